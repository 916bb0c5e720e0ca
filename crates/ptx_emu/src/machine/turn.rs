//! The schedule of one CTA: which part of which warp runs next, and for how long.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::{Cta, Exec};
use crate::error::FaultKind;
use crate::ir::NO_PC;

/// Instructions between two looks at the limits and at the other warps.
const QUANTUM: u32 = 4096;

impl Cta<'_> {
    /// Runs one CTA to its end.
    pub(crate) fn run(&mut self, index: u32) -> Exec<()> {
        self.begin(index);
        let random = self.ctx.seed != 0;
        // Under odd seeds no bulk copy lands before nothing else can go on: some then come later than any that was started after them.
        let late = self.ctx.seed % 2 == 1;
        let mut next = 0usize;
        let n = self.warps.len();
        loop {
            if random && !late && !self.bulk.is_empty() && self.rng.below(4) == 0 {
                let i = self.rng.below(self.bulk.len() as u64) as usize;
                self.complete_bulk(i)?;
            }
            if random && self.rng.below(8) == 0 {
                let w = self.rng.below(n as u64) as usize;
                self.complete_some_copy(w);
            }
            // A ready part of a warp: the next in order, or any by the seed.
            let start = if random { self.rng.below(n as u64) as usize } else { next };
            let mut pick = None;
            for i in 0..n {
                let w = (start + i) % n;
                let splits = &self.warps[w].splits;
                let from = if random && splits.len() > 1 { self.rng.below(splits.len() as u64) as usize } else { 0 };
                if let Some(s) =
                    (0..splits.len()).map(|k| (from + k) % splits.len()).find(|&k| splits[k].block.is_none())
                {
                    pick = Some((w, s));
                    break;
                }
            }
            let Some((w, s)) = pick else {
                if !self.bulk.is_empty() {
                    let i = if random { self.rng.below(self.bulk.len() as u64) as usize } else { 0 };
                    self.complete_bulk(i)?;
                    continue;
                }
                if self.warps.iter().all(|w| w.splits.is_empty()) {
                    return self.end();
                }
                return Err(self.deadlock());
            };
            let quantum = if !random {
                QUANTUM
            } else {
                match self.rng.below(4) {
                    0 => 1 + self.rng.below(4) as u32,
                    1 => 1 + self.rng.below(64) as u32,
                    _ => QUANTUM,
                }
            };
            let split = self.warps[w].splits.swap_remove(s);
            let before = self.counters.warp_instructions;
            self.run_split(w, split, quantum)?;
            let done = self.counters.warp_instructions - before;
            self.limits(w, done)?;
            // A part that still can run lets the others go first.
            next = (w + 1) % n;
        }
    }

    pub(super) fn limits(&mut self, w: usize, done: u64) -> Exec<()> {
        let ctx = self.ctx;
        let total = ctx.executed.fetch_add(done, Relaxed) + done;
        if ctx.stop.load(Relaxed) {
            return Err(self.fault(w, None, NO_PC, FaultKind::TimeLimit, "stopped: another CTA failed".to_owned()));
        }
        if total > ctx.instruction_limit {
            let d = format!("{} warp instructions; the limit is {}", total, ctx.instruction_limit);
            return Err(self.fault(w, None, NO_PC, FaultKind::InstructionLimit, d));
        }
        if let Some(deadline) = ctx.deadline
            && Instant::now() > deadline
        {
            let d = format!("after {total} warp instructions");
            return Err(self.fault(w, None, NO_PC, FaultKind::TimeLimit, d));
        }
        Ok(())
    }
}
