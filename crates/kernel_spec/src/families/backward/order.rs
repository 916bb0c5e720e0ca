//! In what order blocks of keys add to the sums of `dq` where it must not depend on time: bits are then equal from run to run.
//!
//! Every block of queries gets its parts from the key blocks that see it in one order. First come those that thread blocks work on in
//! earlier rounds of the [`Schedule`](crate::schedule::Schedule): nobody waits for a block that is not begun. Of one round, last keys come
//! first, and walks over the queries start such that they get to a block at different steps:
//!
//! ```text
//! causal                                        without a mask, three key blocks of a round
//!   queries  0 1 2 3 4 5   step of the walk       queries  0 1 2 3 4 5
//!   keys 0   0 1 2 3 4 5   each starts where      keys 0   0 1 2 3 4 5   the walks start evenly apart,
//!   keys 1       0 1 2 3   its queries do:        keys 1   4 5 0 1 2 3   and begin again behind the last:
//!   keys 2           0 1   2 at queries 4         keys 2   2 3 4 5 0 1   1, 0 and 2 at queries 2 and 3
//! ```
//!
//! Down each column, who comes first has the smaller step. That cannot end in a circle: a key block that waits at a step waits for smaller
//! steps, or for equal ones of later keys. Until a part that was added is seen by whoever waits for it, about a step goes by: who is that far
//! behind does not wait. Walks that are further apart, of more heads at a time, would read more than the cache holds: 2 to 8 % slower (H200).

use crate::mask::KvBlocks;

/// Rows of queries for each counter of parts: a block of queries has as many as it has shares, or more.
pub const COUNTER_ROWS: u32 = 32;

/// A block of keys among those of its head.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Its index.
    pub index: u32,
    /// The blocks of the head that are worked on in the same round, `first..end`. Earlier rounds have those before.
    pub round: [u32; 2],
    /// The blocks of queries that see it, in the place of key blocks.
    pub q_blocks: KvBlocks,
    /// Whether all blocks of queries see all keys.
    pub all: bool,
}

impl Order {
    /// The block of queries of step `i` of `0..q_blocks.count()`.
    #[inline(always)]
    pub const fn q_block(&self, i: u32) -> u32 {
        let block = self.q_blocks.first + self.start() + i;
        if block < self.q_blocks.end { block } else { block - self.q_blocks.count() }
    }

    /// Whether the queries of a block may not see all keys of this one.
    #[inline(always)]
    pub const fn is_tested(&self, q_block: u32) -> bool {
        q_block < self.q_blocks.unmasked_first || q_block >= self.q_blocks.unmasked_end
    }

    /// How many key blocks add to the sums of a block of queries before this one. `seen`: those that it sees, `first..end`.
    #[inline(always)]
    pub const fn before(&self, q_block: u32, seen: [u32; 2]) -> u32 {
        let [first, end] = self.round;
        if self.all {
            // Of the round, those whose walks start at or before this block of queries: the last of them comes first.
            let blocks = end - first;
            let started = ((q_block + 1) * blocks).div_ceil(self.q_blocks.count());
            let place = self.index - first;
            let later = if place < started { started - 1 - place } else { started + blocks - 1 - place };
            return first + later;
        }
        let end = if end < seen[1] { end } else { seen[1] };
        first.saturating_sub(seen[0]) + end - 1 - self.index
    }

    /// Where the walk starts, counted from the first block of queries.
    #[inline(always)]
    const fn start(&self) -> u32 {
        let [first, end] = self.round;
        if self.all { (self.index - first) * self.q_blocks.count() / (end - first) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::mask::Mask;
    use crate::schedule::{Schedule, Work};

    use std::collections::HashMap;
    use std::vec::Vec;

    /// Rows of blocks of keys.
    const KV_BLOCK: u32 = 128;

    struct Problem {
        mask: Mask,
        rows: [u32; 2],
        heads: u32,
        group: u32,
        ctas: u32,
        q_block: u32,
        head_bytes: u64,
    }

    impl Problem {
        fn uneven(&self) -> bool {
            self.mask != Mask::Full
        }

        /// What each thread block works on: head and order of its key blocks, in turn.
        fn walks(&self) -> Vec<Vec<(u32, Order)>> {
            let [q_rows, kv_rows] = self.rows;
            let work = Work {
                batch: 1,
                q_heads: self.heads,
                group: 1,
                packed: 1,
                q_rows: kv_rows,
                q_block: KV_BLOCK,
                kv_head_bytes: self.head_bytes,
                uneven: self.uneven(),
            };
            let ctas = self.ctas.min(self.heads * kv_rows.div_ceil(KV_BLOCK));
            let schedule = Schedule::new(&work, ctas);
            let band = self.mask.band().transposed();
            let of_round = |cta, round| {
                let slot = schedule.slot(round, cta, ctas)?;
                let Some(tile) = schedule.tile(slot) else { return Some(None) };
                let index = schedule.q_blocks - 1 - tile.q_block;
                let q_blocks = band.kv_blocks(index * KV_BLOCK, KV_BLOCK, kv_rows, q_rows, self.q_block);
                let round = schedule.same_round(slot, round, ctas);
                assert!(round[0] <= index && index < round[1], "{round:?} has no {index}");
                Some(Some((tile.head, Order { index, round, q_blocks, all: !self.uneven() })))
            };
            (0..ctas).map(|cta| (0..).map_while(|round| of_round(cta, round)).flatten().collect()).collect()
        }

        /// Every step of a thread block in turn: the head of queries, the block of queries, and how many come before.
        fn steps(&self, walk: &[(u32, Order)]) -> Vec<(u32, u32, u32)> {
            let [q_rows, kv_rows] = self.rows;
            let band = self.mask.band();
            let mut steps = Vec::new();
            for (head, order) in walk {
                for q_head in 0..self.group {
                    for i in 0..order.q_blocks.count() {
                        let q_block = order.q_block(i);
                        let seen = band.kv_blocks(q_block * self.q_block, self.q_block, q_rows, kv_rows, KV_BLOCK);
                        let before = order.before(q_block, [seen.first, seen.end]);
                        steps.push((head * self.group + q_head, q_block, before));
                    }
                }
            }
            steps
        }
    }

    fn problems() -> Vec<Problem> {
        let masks = [
            Mask::Full,
            Mask::Causal,
            Mask::Window { left: Some(200), right: Some(70) },
            Mask::Window { left: Some(0), right: None },
            Mask::Window { left: Some(300), right: Some(0) },
        ];
        let mut all = Vec::new();
        for mask in masks {
            for rows in [[1000, 1000], [64, 1500], [1500, 300], [700, 1100], [1, 2000], [1100, 640]] {
                for (heads, group, ctas) in [(1, 1, 1), (3, 1, 4), (5, 2, 7), (4, 1, 132), (9, 1, 16)] {
                    all.push(Problem { mask, rows, heads, group, ctas, q_block: 64, head_bytes: 1 << 20 });
                }
            }
        }
        all
    }

    /// All thread blocks at once, a step each at a time, each only when as many parts are there as come before: everybody gets through, so
    /// that every place in the order of a block of queries is taken once.
    #[test]
    fn everybody_gets_a_turn() {
        for problem in problems() {
            let walks: Vec<_> = problem.walks().iter().map(|walk| problem.steps(walk)).collect();
            let (mut counters, mut at) = (HashMap::new(), std::vec![0; walks.len()]);
            loop {
                let mut went_on = false;
                for (cta, walk) in walks.iter().enumerate() {
                    let Some(&(head, q_block, before)) = walk.get(at[cta]) else { continue };
                    let counter = counters.entry((head, q_block)).or_insert(0);
                    assert!(*counter <= before, "the place of {head}, {q_block}, {before} is taken");
                    if *counter == before {
                        (*counter, at[cta], went_on) = (before + 1, at[cta] + 1, true);
                    }
                }
                if !went_on {
                    break;
                }
            }
            let (mask, rows) = (problem.mask, problem.rows);
            assert!(at.iter().zip(&walks).all(|(&at, walk)| at == walk.len()), "{mask:?}, {rows:?}: nobody can go on");
        }
    }

    /// Steps until all are through, when each takes one and a part is seen some steps after it was added, over those of the longest walk: what
    /// waiting costs.
    #[test]
    fn hardly_anybody_waits() {
        for (mask, rows, heads, q_block, late, most) in [
            (Mask::Full, 2048, 128, 64, 1, 1.01),
            (Mask::Full, 8192, 32, 64, 1, 1.01),
            (Mask::Full, 16384, 16, 64, 1, 1.01),
            (Mask::Full, 16384, 32, 128, 1, 1.01),
            (Mask::Causal, 1024, 256, 64, 1, 1.03),
            (Mask::Causal, 2048, 128, 64, 1, 1.03),
            (Mask::Causal, 8192, 32, 64, 1, 1.04),
            (Mask::Causal, 16384, 16, 64, 1, 1.03),
            // Walks of neighbours are a step apart, and where the longer ones began later none.
            (Mask::Causal, 2048, 256, 128, 1, 1.4),
            (Mask::Causal, 16384, 32, 128, 1, 1.4),
        ] {
            // Queries, output gradients and sums of 128 columns, or of half as many in blocks of twice as many rows.
            let head_bytes = 8 * u64::from(rows * 64 * 128 / q_block);
            let (group, ctas) = (1, 132);
            let problem = Problem { mask, rows: [rows, rows], heads, group, ctas, q_block, head_bytes };
            let walks: Vec<_> = problem.walks().iter().map(|walk| problem.steps(walk)).collect();
            let (mut counters, mut at) = (std::vec![HashMap::new(); late], std::vec![0; walks.len()]);
            let mut steps = 0;
            while at.iter().zip(&walks).any(|(&at, walk)| at < walk.len()) {
                let seen = counters[0].clone();
                let mut added = counters[late - 1].clone();
                for (cta, walk) in walks.iter().enumerate() {
                    let Some(&(head, q_block, before)) = walk.get(at[cta]) else { continue };
                    if seen.get(&(head, q_block)).copied().unwrap_or(0) == before {
                        added.insert((head, q_block), before + 1);
                        at[cta] += 1;
                    }
                }
                counters.remove(0);
                counters.push(added);
                steps += 1;
            }
            let longest = walks.iter().map(Vec::len).max().unwrap_or(0);
            let times = f64::from(steps) / longest as f64;
            assert!(times <= most, "{mask:?}, {rows} rows, blocks of {q_block}: {times:.3} times the longest walk");
        }
    }
}
