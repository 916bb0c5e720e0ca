//! Reports: where a fault happened, and who waits for what in a deadlock.

use super::warp::Split;
use super::{Block, Cta};
use crate::alu;
use crate::error::{Fault, FaultKind, SourceLocation};
use crate::ir::*;

impl Cta<'_> {
    /// Everybody waits: the report names who for what.
    pub(super) fn deadlock(&self) -> Box<Fault> {
        let first = self.warps.iter().enumerate().find_map(|(w, warp)| Some((w, warp.splits.first()?)));
        let (w, pc) = first.map_or((0, NO_PC), |(w, s)| (w, waits_at(s)));
        self.fault(w, None, pc, FaultKind::Deadlock, self.waits().join("; "))
    }

    /// Who waits for what, a line for each part of a warp.
    fn waits(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (w, warp) in self.warps.iter().enumerate() {
            for s in &warp.splits {
                let line = self.ctx.prog.code[waits_at(s) as usize].line;
                let what = self.waits_for(s.block);
                lines.push(format!("warp {w} lanes {:#x} at PTX line {line} {what}", s.mask));
            }
            for n in warp.nodes.iter().filter(|n| n.used && n.arrived != 0) {
                lines.push(format!("warp {w} lanes {:#x} wait to meet lanes {:#x}", n.arrived, n.expect & !n.arrived));
            }
        }
        lines
    }

    fn waits_for(&self, block: Option<Block>) -> String {
        match block {
            None => "reads again and again what does not change".to_owned(),
            Some(Block::Barrier(id)) => {
                let b = &self.bars[id as usize];
                let want = b.expected.map_or("all threads".to_owned(), |e| format!("{e} threads"));
                format!("waits for barrier {id} ({} threads arrived of {want})", b.arrived)
            }
            Some(Block::WarpSync(m)) => format!("waits for bar.warp.sync with mask {m:#x}"),
            Some(Block::Mbarrier(a)) => match self.mbars.get(&a) {
                Some(m) => format!(
                    "waits for mbarrier at {:#x} (phase {}, {} of {} arrivals pending, {} bytes expected)",
                    a + SHARED_BASE,
                    m.phase,
                    m.pending,
                    m.expected,
                    m.tx
                ),
                None => format!("waits for mbarrier at {:#x}, which is not initialised", a + SHARED_BASE),
            },
            Some(Block::Wgmma) => "waits for wgmma that the other warps of its group have not issued".to_owned(),
            Some(Block::Cluster) => {
                format!("waits for the cluster barrier, at which {} have not arrived", self.missing())
            }
        }
    }

    /// The first part of a warp that waits, with its CTA.
    pub(super) fn who_waits(&self) -> Option<String> {
        let first = self.waits().into_iter().next()?;
        Some(format!("CTA {:?}, {first}", self.ctaid))
    }

    pub(crate) fn fault(&self, w: usize, lane: Option<u32>, pc: u32, kind: FaultKind, detail: String) -> Box<Fault> {
        let ctx = self.ctx;
        let inst = ctx.prog.code.get(pc as usize);
        let line = inst.map_or(0, |i| i.line);
        let instruction = if line == 0 {
            String::new()
        } else {
            let start = ctx.line_starts.get(line as usize - 1).copied().unwrap_or(0);
            let end = ctx.line_starts.get(line as usize).copied().unwrap_or(ctx.source.len());
            ctx.source[start..end].trim().chars().take(200).collect()
        };
        let source = inst.and_then(|i| ctx.locs.get(i.loc as usize)).map(|&(f, l, c)| SourceLocation {
            file: ctx.files.get(&f).cloned().unwrap_or_else(|| format!("file {f}")),
            line: l,
            column: c,
        });
        let mut operands = String::new();
        if let (Some(_), Some(lane)) = (inst, lane) {
            let (first, reads, _) = ctx.prog.operand_ranges[pc as usize];
            let slots = &ctx.prog.operand_slots[first as usize..first as usize + reads as usize];
            let regs = &self.warps[w].regs;
            let values: Vec<String> = slots
                .iter()
                .take(8)
                .map(|&s| {
                    let wide = s != ZERO && self.is_wide(s);
                    let all = alu::ones(if wide { 64 } else { 32 });
                    match regs.unknown(s, lane as usize) & all {
                        0 => format!("{:#x}", regs.lane(s, wide, lane as usize)),
                        u if u == all => "unwritten".to_owned(),
                        u => format!("{:#x} (bits {u:#x} unwritten)", regs.lane(s, wide, lane as usize) & !u),
                    }
                })
                .collect();
            if !values.is_empty() {
                operands = format!("source operands: {}", values.join(", "));
            }
        }
        Box::new(Fault {
            kind,
            detail,
            kernel: ctx.prog.name.clone(),
            ptx_line: line,
            instruction,
            source,
            cta: self.ctaid,
            warp: w as u32,
            lane,
            operands,
            seed: ctx.seed,
        })
    }

    pub(super) fn is_wide(&self, slot: Slot) -> bool {
        self.ctx.prog.wide[slot as usize]
    }
}

/// The instruction at which a part of a warp waits: some are executed again, behind others it stands already.
fn waits_at(s: &Split) -> u32 {
    match s.block {
        Some(Block::Mbarrier(_) | Block::Wgmma | Block::Cluster) => s.pc,
        _ => s.pc.saturating_sub(1),
    }
}
