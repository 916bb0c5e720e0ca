//! Named barriers.

use crate::alu::LANES;
use crate::error::FaultKind;
use crate::ir::*;
use crate::machine::{BARRIERS, Block, Cta, Exec};
use crate::order::Clocks;

/// A barrier in use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Barrier {
    pub(crate) expected: Option<u32>,
    pub(crate) arrived: u32,
    pub(crate) waiting: Vec<(u32, u32)>,
    pub(crate) clocks: Clocks,
    pub(crate) popc: u32,
    pub(crate) all: bool,
    pub(crate) any: bool,
    pub(crate) reduction: bool,
}

impl Cta<'_> {
    pub(crate) fn barrier(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        kind: BarKind,
        aligned: bool,
        id: Slot,
        count: Slot,
        has_count: bool,
        d: Slot,
        p: u32,
        a: Pred,
    ) -> Exec<Option<u32>> {
        if aligned {
            self.aligned(w, pc, active)?;
        }
        let lane = active.trailing_zeros();
        let regs = &self.warps[w].regs;
        let id = regs.r32(id)[lane as usize];
        let bad = |this: &Self, kind, d: String| Err(this.fault(w, Some(lane), pc, kind, d));
        if id >= BARRIERS as u32 {
            return bad(self, FaultKind::InvalidOperand, format!("barrier {id}; 0 to 15 are accepted"));
        }
        let expected = if has_count {
            let n = regs.r32(count)[lane as usize];
            if n == 0 || !n.is_multiple_of(32) || n > 1024 {
                return bad(
                    self,
                    FaultKind::InvalidOperand,
                    format!("a thread count of {n}; multiples of 32 up to 1024 are accepted"),
                );
            }
            if n > self.warps.len() as u32 * 32 {
                let all = self.warps.len() * 32;
                return bad(
                    self,
                    FaultKind::BarrierMismatch,
                    format!("barrier {id} waits for {n} threads, the CTA has {all}"),
                );
            }
            Some(n)
        } else {
            None
        };
        let reduction = matches!(kind, BarKind::RedPopc | BarKind::RedAnd | BarKind::RedOr);
        let v = regs.preds[a.index as usize];
        let v = (if a.negated { !v } else { v }) & active;
        let warp = &self.warps[w];
        let whole = active == warp.live;
        let news = self.publish(w, active);
        let b = &mut self.bars[id as usize];
        if b.arrived == 0 {
            *b = Barrier { expected, reduction, all: true, ..Barrier::default() };
        } else if b.expected != expected {
            let (x, y) = (b.expected, expected);
            let show = |e: Option<u32>| e.map_or("all".to_owned(), |n| n.to_string());
            return bad(
                self,
                FaultKind::BarrierMismatch,
                format!("barrier {id} was entered for {} threads before, now for {}", show(x), show(y)),
            );
        } else if kind != BarKind::Arrive && b.reduction != reduction && !b.waiting.is_empty() {
            return bad(self, FaultKind::BarrierMismatch, format!("barrier {id} is used with and without a reduction"));
        }
        let b = &mut self.bars[id as usize];
        // A barrier counts warps: lanes that do not exist or have exited count with their warp.
        b.arrived += if whole { 32 } else { active.count_ones() };
        b.clocks.join(&news);
        b.popc += v.count_ones();
        b.all &= v == active;
        b.any |= v != 0;
        b.reduction |= reduction;
        let (arrived, want) = (b.arrived, expected.unwrap_or(u32::MAX));
        self.tick(w);
        if arrived > want {
            return bad(
                self,
                FaultKind::BarrierMismatch,
                format!("{arrived} threads arrive at barrier {id}, which waits for {want}"),
            );
        }
        if kind == BarKind::Arrive {
            self.try_release(id)?;
            return Ok(None);
        }
        self.bars[id as usize].waiting.push((w as u32, active));
        if reduction {
            // The result is filled in at the release, which knows it.
            if d != SINK {
                self.warps[w].regs.set_init(d, active, !0);
            }
            self.red_results.push((id, w as u32, active, kind, d, p));
        }
        Ok(Some(id))
    }

    /// Lets everybody go who waits at a barrier that is complete.
    pub(crate) fn try_release(&mut self, id: u32) -> Exec<()> {
        let live_warps = self.warps.iter().filter(|w| w.live != 0).count() as u32;
        let b = &self.bars[id as usize];
        if b.arrived == 0 {
            return Ok(());
        }
        let want = b.expected.unwrap_or(live_warps * 32);
        if b.arrived < want {
            return Ok(());
        }
        // All arrived and nobody waits: arrive-only barriers complete too.
        let b = std::mem::take(&mut self.bars[id as usize]);
        for &(w, mask) in &b.waiting {
            self.learn(w as usize, mask, &b.clocks);
            let warp = &mut self.warps[w as usize];
            for s in &mut warp.splits {
                if s.block == Some(Block::Barrier(id)) && s.mask & mask != 0 {
                    s.block = None;
                }
            }
        }
        let results: Vec<_> = self.red_results.extract_if(.., |r| r.0 == id).collect();
        for (_, w, mask, kind, d, p) in results {
            let regs = &mut self.warps[w as usize].regs;
            match kind {
                BarKind::RedPopc => regs.put32(d, &[b.popc; LANES], mask),
                BarKind::RedAnd => regs.put_pred(p, if b.all { !0 } else { 0 }, mask, !0),
                _ => regs.put_pred(p, if b.any { !0 } else { 0 }, mask, !0),
            }
        }
        Ok(())
    }
}
