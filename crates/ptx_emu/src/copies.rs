//! cp.async: copies of 4, 8 or 16 bytes by single lanes, in groups.

use crate::access::Sectors;
use crate::error::FaultKind;
use crate::history::Kind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes};
use crate::shared;

/// One cp.async of one lane that has not been waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy16 {
    pub(crate) lane: u32,
    pub(crate) group: u32,
    pub(crate) dst: u32,
    pub(crate) bytes: u8,
    pub(crate) src_bytes: u8,
    /// Allocation and offset of the source.
    pub(crate) src: (u32, u64),
    pub(crate) done: bool,
}

/// What a wait looks at in a copy.
pub(crate) struct CopyView {
    pub(crate) lane: u32,
    pub(crate) group: u32,
}

impl Cta<'_> {
    pub(crate) fn cp_async(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        dst: Addr,
        src: Addr,
        bytes: u8,
        src_size: Option<Slot>,
        ignore: Option<Pred>,
    ) -> Exec<()> {
        if self.ctx.checks.uninitialized {
            self.known_operands(w, pc, active)?;
        }
        let to = self.addresses(w, pc, active, dst)?;
        let from = self.addresses(w, pc, active, src)?;
        let mut sectors = Sectors::default();
        let n = bytes as u64;
        for lane in lanes(active) {
            let mut take = n;
            let regs = &self.warps[w].regs;
            if let Some(s) = src_size {
                take = regs.r32(s)[lane] as u64;
                if take > n {
                    let d = format!("a source size of {take} bytes; at most {n}");
                    return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
                }
            }
            if let Some(p) = ignore
                && (regs.preds[p.index as usize] >> lane & 1 == 1) != p.negated
            {
                take = 0;
            }
            let Where::Shared(off) = self.locate(w, pc, lane, MemSpace::Shared, to[lane], n, n)? else {
                unreachable!("the space is shared")
            };
            if !from[lane].is_multiple_of(n) {
                let d = format!("source address {:#x} is not a multiple of {n}", from[lane]);
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::Misaligned, d));
            }
            let mut at = (0usize, 0u64);
            if take != 0 {
                let Where::Global(i, o) = self.locate(w, pc, lane, MemSpace::Global, from[lane], take, 1)? else {
                    unreachable!("the space is global")
                };
                at = (i, o);
                let mut sink = [0u8; 16];
                self.read_global(w, pc, lane, at, &mut sink[..take as usize], false)?;
                sectors.add(i, o, take);
            }
            if self.ctx.checks.races {
                let warp = &self.warps[w];
                let rec = shared::Record {
                    clock: warp.now,
                    agent: w as u32,
                    lane: lane as u32,
                    mask: 0,
                    in_flight: self.ctx.checks.asynchronous,
                };
                if let Some(c) = self.shared.on_write(off, n as usize, &warp.know, lane as u32, false, rec) {
                    return Err(self.shared_conflict(w, pc, Some(lane as u32), c, true));
                }
            }
            self.counters.async_copies += 1;
            self.counters.shared_bytes_written += n;
            // With a seed, any copy may be done at once; else it happens at its wait, the last legal moment.
            let now = self.ctx.seed != 0 && self.rng.below(2) == 0;
            let mut c = Copy16 {
                lane: lane as u32,
                group: self.warps[w].group[lane],
                dst: off as u32,
                bytes,
                src_bytes: take as u8,
                src: (at.0 as u32, at.1),
                done: false,
            };
            // Until it lands, the destination holds garbage, and what reads it is told by the record of the copy.
            self.shared.mark_written(off, n as usize);
            if now {
                self.perform_copy(&mut c);
            }
            self.warps[w].copies.push(c);
        }
        self.count_sectors(&sectors, false);
        Ok(())
    }

    pub(crate) fn perform_copy(&mut self, c: &mut Copy16) {
        let mut buf = [0u8; 16];
        let mut unknown = None;
        if c.src_bytes != 0 {
            let a = self.ctx.mem.get(c.src.0 as usize);
            a.load(c.src.1, &mut buf[..c.src_bytes as usize]);
            unknown = a.unknown::<16>(c.src.1, c.src_bytes as usize);
        }
        let n = c.bytes as usize;
        self.shared.bytes[c.dst as usize..c.dst as usize + n].copy_from_slice(&buf[..n]);
        if let Some(unknown) = unknown {
            self.shared.mark_stored(c.dst as usize, n, Some(&unknown[..n]));
        }
        c.done = true;
    }

    /// Adversarial time: one copy in flight lands now.
    pub(crate) fn complete_some_copy(&mut self, w: usize) {
        let n = self.warps[w].copies.len();
        if n == 0 {
            return;
        }
        let i = self.rng.below(n as u64) as usize;
        let mut c = self.warps[w].copies[i];
        if !c.done {
            self.perform_copy(&mut c);
            self.warps[w].copies[i] = c;
        }
    }

    pub(crate) fn cp_async_wait(&mut self, w: usize, active: u32, n: Option<u32>) {
        let group = self.warps[w].group;
        self.settle_copies(w, |c| active >> c.lane & 1 == 1 && n.is_none_or(|n| c.group + n < group[c.lane as usize]));
    }

    /// Completes and forgets the copies that the predicate names.
    pub(crate) fn settle_copies(&mut self, w: usize, which: impl Fn(&CopyView) -> bool) {
        let mut copies = std::mem::take(&mut self.warps[w].copies);
        let clock = self.warps[w].now;
        copies.retain_mut(|c| {
            if !which(&CopyView { lane: c.lane, group: c.group }) {
                return true;
            }
            if !c.done {
                self.perform_copy(c);
            }
            if self.ctx.checks.races {
                let rec = shared::Record { clock, agent: w as u32, lane: c.lane, mask: 0, in_flight: false };
                self.shared.settle(c.dst as usize, c.bytes as usize, rec);
            }
            false
        });
        self.warps[w].copies = copies;
    }

    /// The race check of a write to global memory by a bulk copy.
    pub(crate) fn write_race(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: (usize, u64),
        n: u64,
        atomic: bool,
    ) -> Exec<()> {
        let kind = if atomic { Kind::StrongWrite { narrow: false } } else { Kind::Write { same: false } };
        self.global_access(w, pc, 1 << lane, at, n, kind)
    }
}
