//! Whether the CTAs of a kernel can talk to each other: what decides how they are run, from the instructions alone.

use crate::ir::*;

/// How CTAs can reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Talk {
    /// What one CTA sees may depend on how far another one is: they run under one schedule.
    pub(crate) talks: bool,
    /// A CTA can acquire what another one released, so that their accesses may be ordered.
    pub(crate) orders: bool,
}

impl Talk {
    pub(crate) fn of(prog: &Program, clusters: bool) -> Talk {
        let (mut talks, mut strong_reads, mut strong_writes) = (clusters, clusters, clusters);
        let global = |s: MemSpace| matches!(s, MemSpace::Global | MemSpace::Generic);
        for inst in &prog.code {
            match &inst.op {
                Op::Ld(a) if a.order != Order::Weak && global(a.space) => strong_reads = true,
                Op::St(a) if a.order != Order::Weak && global(a.space) => strong_writes = true,
                Op::Atom { space, d, .. } if global(*space) => {
                    strong_writes = true;
                    // Without a result it is `red`, which sees nothing.
                    strong_reads |= *d != SINK;
                }
                // Sums of floating-point numbers depend on their order.
                Op::Bulk(b) | Op::BulkTensor(b) if b.to_global && b.reduce.is_some() => talks = true,
                // Only good for talking, whatever it is done through.
                Op::Fence(FenceKind::Memory(scope)) if *scope > Scope::Cta => talks = true,
                _ => {}
            }
        }
        Talk { talks: talks || strong_reads || strong_writes, orders: strong_reads && strong_writes }
    }
}
