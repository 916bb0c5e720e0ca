//! The schedule within one CTA: which part of which warp runs next, and for how long.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::{Cta, Exec};
use crate::error::FaultKind;
use crate::ir::NO_PC;

/// Instructions between two looks at the limits and at the other warps.
const QUANTUM: u32 = 4096;

/// Turns in a row that only looked again at what had not changed, for each part of a warp that can run, after which each of them has
/// had one: under a random schedule the odds against it are those of e to the power of this.
pub(super) const FRUITLESS: u64 = 32;
/// Of those, after how many a copy in flight lands: nothing else can go on.
pub(super) const LANDS_AFTER: u64 = 4;

/// What a CTA did in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Ran,
    /// The seed let it execute a few instructions, which tells nothing about whether it gets on.
    Cut,
    /// A part of a warp read again what it had read before, and is where it was before.
    Polled,
    /// No part of a warp can go on before another CTA does something.
    Blocked,
    Done,
}

impl Cta<'_> {
    /// Runs one CTA by itself to its end.
    pub(super) fn run(&mut self, index: u32) -> Exec<()> {
        self.begin(index);
        let mut fruitless = 0;
        loop {
            match self.turn()? {
                Turn::Done => return Ok(()),
                Turn::Ran => fruitless = 0,
                Turn::Cut => {}
                Turn::Blocked => return Err(self.deadlock()),
                Turn::Polled => {
                    fruitless += 1;
                    let n = self.runnable();
                    if fruitless > LANDS_AFTER * n && self.land_one()? {
                        fruitless = 0;
                    }
                    if fruitless > FRUITLESS * n {
                        return Err(self.deadlock());
                    }
                }
            }
        }
    }

    /// Parts of warps that can run, at least one.
    pub(super) fn runnable(&self) -> u64 {
        let free = |s: &&super::warp::Split| s.block.is_none();
        self.warps.iter().map(|w| w.splits.iter().filter(free).count() as u64).sum::<u64>().max(1)
    }

    /// Lets one copy in flight land, if there is one.
    pub(super) fn land_one(&mut self) -> Exec<bool> {
        let n = self.bulk.len() + self.landing.len();
        if n == 0 {
            return Ok(false);
        }
        let i = if self.ctx.seed != 0 { self.rng.below(n as u64) as usize } else { 0 };
        self.land(i)?;
        Ok(true)
    }

    fn land(&mut self, i: usize) -> Exec<()> {
        if i < self.bulk.len() { self.complete_bulk(i) } else { self.complete_landing(i - self.bulk.len()) }
    }

    /// Runs one part of one warp for a while.
    pub(super) fn turn(&mut self) -> Exec<Turn> {
        let random = self.ctx.seed != 0;
        // Under odd seeds no bulk copy lands before nothing else can go on: some then come later than any that was started after them.
        let late = self.ctx.seed % 2 == 1;
        let flying = self.bulk.len() + self.landing.len();
        if random && !late && flying != 0 && self.rng.below(4) == 0 {
            let i = self.rng.below(flying as u64) as usize;
            self.land(i)?;
        }
        let n = self.warps.len();
        if random && self.rng.below(8) == 0 {
            let w = self.rng.below(n as u64) as usize;
            self.complete_some_copy(w);
        }
        let Some((w, s)) = self.pick(random) else {
            if self.warps.iter().all(|w| w.splits.is_empty()) {
                // What others send may still be under way.
                if self.landing.is_empty() {
                    self.end()?;
                    return Ok(Turn::Done);
                }
                self.land_one()?;
                return Ok(Turn::Ran);
            }
            // In a cluster, nothing else can go on only when all of its CTAs wait.
            if (late && self.peers.others()) || !self.land_one()? {
                return Ok(Turn::Blocked);
            }
            return Ok(Turn::Ran);
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
        (self.polled, self.cut) = (false, false);
        let split = self.warps[w].splits.swap_remove(s);
        let before = self.counters.warp_instructions;
        self.run_split(w, split, quantum)?;
        self.cut &= quantum < QUANTUM;
        let done = self.counters.warp_instructions - before;
        self.limits(w, done)?;
        // A part that still can run lets the others go first.
        self.next_warp = (w + 1) % n;
        Ok(match (self.polled, self.cut) {
            (true, _) => Turn::Polled,
            (_, true) => Turn::Cut,
            _ => Turn::Ran,
        })
    }

    /// A ready part of a warp: the next in order, or any by the seed.
    fn pick(&mut self, random: bool) -> Option<(usize, usize)> {
        let n = self.warps.len();
        let start = if random { self.rng.below(n as u64) as usize } else { self.next_warp };
        for i in 0..n {
            let w = (start + i) % n;
            let splits = &self.warps[w].splits;
            let from = if random && splits.len() > 1 { self.rng.below(splits.len() as u64) as usize } else { 0 };
            if let Some(s) = (0..splits.len()).map(|k| (from + k) % splits.len()).find(|&k| splits[k].block.is_none()) {
                return Some((w, s));
            }
        }
        None
    }

    fn limits(&mut self, w: usize, done: u64) -> Exec<()> {
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
