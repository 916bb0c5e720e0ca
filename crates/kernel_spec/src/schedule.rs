//! Which tiles a persistent thread block works on, and in what order.

use crate::divisor::Divisor;

/// Query heads of a group that share a tile, row by row, so that few rows fill it ("PackGQA" of FlashAttention-3): a power of two
/// that divides `group`, or 1 where that makes no fewer tiles of `q_block` rows.
pub const fn packed_heads(q_rows: u32, group: u32, q_block: u32) -> u32 {
    // From eight blocks of rows on, what packing can fill is an eighth of a block at most.
    if q_rows >= 8 * q_block {
        return 1;
    }
    // Every tile has a multiple of 64 rows.
    let most = if group.trailing_zeros() < 6 { 1 << group.trailing_zeros() } else { 64 };
    if (q_rows * most).div_ceil(q_block) < q_rows.div_ceil(q_block) * most { most } else { 1 }
}

/// What a [`Schedule`] is made for.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Sequences.
    pub batch: u32,
    /// Query heads of a sequence.
    pub q_heads: u32,
    /// Query heads that share a key-value head.
    pub group: u32,
    /// Query heads that share a tile, see [`packed_heads`].
    pub packed: u32,
    /// Query rows of a sequence.
    pub q_rows: u32,
    /// Rows of a tile.
    pub q_block: u32,
    /// Bytes of the keys and values of a head.
    pub kv_head_bytes: u64,
    /// Whether a mask makes tiles differ in length.
    pub uneven: bool,
}

/// How persistent thread blocks share out the tiles: blocks of query rows of every head, or of every few heads that are packed
/// together and count as one head here.
///
/// Heads are taken in sections. Inside a section the tiles go from the last rows to the first, which under a causal mask means from
/// the longest to the shortest, and a block takes one tile a round. Odd rounds run through the blocks backwards, so that whoever had
/// the longest tile of one round has the shortest of the next. A section of uneven tiles fills pairs of rounds, as exactly as whole
/// groups of heads in the L2 cache can, and the last one takes what is left, up to half a section more; even tiles simply follow one
/// another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Blocks of query rows of a head.
    pub q_blocks: u32,
    /// Rounds of all sections.
    pub rounds: u32,
    /// Index of the last section.
    pub last_section: u32,
    /// Heads of a section.
    pub section_heads: Divisor,
    /// Heads of the last section, which may have more or fewer.
    pub last_heads: Divisor,
    /// Slots of a section: its tiles, and idle ones up to the end of its last round.
    pub section_slots: Divisor,
    /// Heads of a sequence.
    pub sequence_heads: Divisor,
    /// Heads that share a key-value head.
    pub group: Divisor,
    /// 1 if odd rounds run backwards.
    pub alternate: u32,
    /// Logarithm to base 2 of the query heads that share a tile.
    pub packed_log2: u32,
}

/// A block of query rows of one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Head among those of all sequences.
    pub head: u32,
    /// Index of the block of query rows.
    pub q_block: u32,
}

/// Keys and values of a section, which are to stay in the L2 cache: a little over half of the 50 to 60 MB of Hopper, as either half
/// caches for its own multiprocessors. 33 MiB, of 33 heads of 2048 rows and 128 dims, cost nothing, 64 MiB 1 % and 128 MiB 5 % (H200,
/// after a rest, docs/perf-log.md).
pub const CACHED_BYTES: u64 = 34 << 20;

/// Minimum section size in heads, whatever the cache holds, as are the heads that fill two rounds. At 256 dims and 11500 rows (90 blocks) the
/// mean thread block is then busy 98 % of the busiest one's time, computed as the tests do; in sections of two heads 70 %.
const FEW_HEADS: u32 = 4;

/// Most tiles of a schedule: its slots, less than twice as many and one section, stay below `2^31`, see [`Divisor::split`].
pub const MAX_TILES: u32 = 1 << 29;

/// Heads per section of uneven tiles, whole groups of them: the fewest that fill pairs of rounds exactly; if those exceed the cache, the
/// cached number with the best balance.
const fn section_heads(heads: u32, q_blocks: u32, group: u32, kv_head_bytes: u64, ctas: u32) -> u32 {
    let pair = 2 * ctas;
    let filling = pair as u64 * group as u64 / greatest_common_divisor(pair as u64, q_blocks as u64 * group as u64);
    let cached = CACHED_BYTES / if kv_head_bytes == 0 { 1 } else { kv_head_bytes } * group as u64;
    let two_rounds = pair.div_ceil(q_blocks);
    let least = if two_rounds > FEW_HEADS { two_rounds } else { FEW_HEADS }.next_multiple_of(group) as u64;
    let most = if cached > least { cached } else { least };
    if filling <= most && filling < heads as u64 {
        return filling as u32;
    }
    if heads as u64 <= most {
        return heads;
    }
    // Fewer steps than a pair of rounds has slots: as many groups would fill it.
    let (mut best, mut least_excess) = (group, u64::MAX);
    let mut some = group;
    while some as u64 <= most {
        let (sections, last) = split(heads, some);
        let total = (sections - 1) as u64 * excess(some, q_blocks, ctas, false) + excess(last, q_blocks, ctas, true);
        // Of equals the larger: fewer ends.
        if total <= least_excess {
            (best, least_excess) = (some, total);
        }
        some += group;
    }
    best
}

/// Sections of so many heads, and the heads of the last one. To the nearest: a short last section would be long tiles for a few thread
/// blocks while the others are done.
const fn split(heads: u32, section_heads: u32) -> (u32, u32) {
    let sections = (heads + section_heads / 2) / section_heads;
    (sections, heads - (sections - 1) * section_heads)
}

/// Imbalance of a section (busiest minus mean), up to a constant factor.
///
/// Tile length grows linearly with row index: in the order of a section their lengths fall along a line to zero, and a pair of rounds,
/// which runs forwards and backwards, is even. What is uneven is the end. A last pair with idle slots lacks what the line would go on
/// with below zero; a last round without a partner gives some thread blocks a tile and others none, half of which evens out in
/// another section, since its rounds run the other way.
const fn excess(heads: u32, q_blocks: u32, ctas: u32, is_last: bool) -> u64 {
    let (tiles, ctas) = (heads as u64 * q_blocks as u64, ctas as u64);
    let rounds = tiles.div_ceil(ctas);
    let idle = rounds * ctas - tiles;
    let busy = ctas - idle;
    let sum = match (rounds % 2, is_last) {
        (0, _) => idle * (2 * ctas - idle),
        (_, true) => busy * (2 * ctas - busy),
        (_, false) => busy * (ctas - busy),
    };
    // Lengths fall by one every `heads` tiles.
    sum / heads as u64
}

const fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

impl Schedule {
    /// The schedule of some work, at least one tile and at most [`MAX_TILES`], on `ctas` thread blocks.
    pub const fn new(work: &Work, ctas: u32) -> Schedule {
        let Work { batch, packed, kv_head_bytes, uneven, .. } = *work;
        let (sequence_heads, group) = (work.q_heads / packed, work.group / packed);
        let (heads, q_blocks) = (batch * sequence_heads, (work.q_rows * packed).div_ceil(work.q_block));
        let section_heads = if uneven {
            section_heads(heads, q_blocks, group, kv_head_bytes, ctas)
        } else {
            // Equal tiles need no balance: one group of heads after the other.
            group
        };
        let (sections, last_heads) = split(heads, section_heads);
        let last_section = sections - 1;
        let tiles = section_heads * q_blocks;
        let section_slots = if uneven { tiles.next_multiple_of(ctas) } else { tiles };
        Schedule {
            q_blocks,
            rounds: (last_section * section_slots + last_heads * q_blocks).div_ceil(ctas),
            last_section,
            section_heads: Divisor::new(section_heads),
            last_heads: Divisor::new(last_heads),
            section_slots: Divisor::new(section_slots),
            sequence_heads: Divisor::new(sequence_heads),
            group: Divisor::new(group),
            alternate: uneven as u32,
            packed_log2: packed.trailing_zeros(),
        }
    }

    /// Slot of thread block `cta` of `ctas` in round `round`; `None` is past the end.
    #[inline(always)]
    pub const fn slot(&self, round: u32, cta: u32, ctas: u32) -> Option<u32> {
        if round >= self.rounds {
            return None;
        }
        Some(round * ctas + if round & self.alternate == 1 { ctas - 1 - cta } else { cta })
    }

    /// The tile of a slot, or `None` when it is idle.
    #[inline(always)]
    pub const fn tile(&self, slot: u32) -> Option<Tile> {
        let (section, _) = self.section_slots.split(slot);
        let is_last = section >= self.last_section;
        let section = if is_last { self.last_section } else { section };
        let place = slot - section * self.section_slots.value;
        let (from_last, head) = if is_last { self.last_heads.split(place) } else { self.section_heads.split(place) };
        if from_last >= self.q_blocks {
            return None;
        }
        Some(Tile { head: section * self.section_heads.value + head, q_block: self.q_blocks - 1 - from_last })
    }

    /// The tiles of the head of a slot that are worked on in the same round as it, `round`, by `ctas` thread blocks: `[first, end]`, counted
    /// from the head's last tile. The slot is not idle.
    ///
    /// Finds section and head anew: shared with [`Self::tile`], the steps to them would be other machine code there.
    #[inline(always)]
    pub const fn same_round(&self, slot: u32, round: u32, ctas: u32) -> [u32; 2] {
        let (section, _) = self.section_slots.split(slot);
        let is_last = section >= self.last_section;
        let section = if is_last { self.last_section } else { section };
        let heads = if is_last { &self.last_heads } else { &self.section_heads };
        let start = section * self.section_slots.value;
        let (_, head) = heads.split(slot - start);
        let first = self.tiles_before(round * ctas, start + head, heads);
        [first, self.tiles_before((round + 1) * ctas, start + head, heads)]
    }

    /// Tiles of a head in slots before `slot`. The first has slot `start`, and the heads of a section take turns.
    #[inline(always)]
    const fn tiles_before(&self, slot: u32, start: u32, heads: &Divisor) -> u32 {
        if slot <= start {
            return 0;
        }
        let (tiles, _) = heads.split(slot - start + heads.value - 1);
        if tiles < self.q_blocks { tiles } else { self.q_blocks }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::cmp::Reverse;
    use std::collections::{BinaryHeap, HashSet};
    use std::vec::Vec;

    /// Blocks of one row, and 1 MiB of keys and values a head.
    fn work(batch: u32, q_heads: u32, group: u32, q_blocks: u32) -> Work {
        let (packed, q_rows, q_block, kv_head_bytes, uneven) = (1, q_blocks, 1, 1 << 20, false);
        Work { batch, q_heads, group, packed, q_rows, q_block, kv_head_bytes, uneven }
    }

    fn tiles(schedule: &Schedule, cta: u32, ctas: u32) -> Vec<Tile> {
        (0..).map_while(|round| schedule.slot(round, cta, ctas)).filter_map(|slot| schedule.tile(slot)).collect()
    }

    #[test]
    fn every_tile_is_worked_on_once() {
        // 40 and 56: last sections that are longer and shorter than the others, on 132 thread blocks.
        for (batch, q_heads, group) in
            [(1, 1, 1), (2, 3, 3), (16, 1, 1), (1, 40, 1), (7, 8, 1), (8, 4, 4), (8, 4, 2), (32, 8, 1)]
        {
            let heads = batch * q_heads;
            for q_blocks in [1, 2, 7, 64] {
                for ctas in [1, 5, 132] {
                    for (bytes, uneven) in [(1, true), (8 << 20, true), (64 << 20, true), (0, true), (1 << 20, false)] {
                        let ctas = ctas.min(heads * q_blocks);
                        let work = Work { kv_head_bytes: bytes, uneven, ..work(batch, q_heads, group, q_blocks) };
                        let schedule = Schedule::new(&work, ctas);
                        let mut seen = HashSet::new();
                        for tile in (0..ctas).flat_map(|cta| tiles(&schedule, cta, ctas)) {
                            assert!(
                                tile.head < heads && tile.q_block < q_blocks && seen.insert(tile),
                                "{tile:?} {schedule:?}"
                            );
                        }
                        assert_eq!(seen.len() as u32, heads * q_blocks, "{schedule:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn heads_are_packed_where_that_makes_fewer_tiles() {
        for (q_rows, group, expected) in [
            (1, 1, 1),
            (1, 8, 8),
            (1, 12, 4),
            (1, 256, 64),
            (64, 2, 2),
            (100, 2, 1),
            (128, 8, 1),
            (129, 8, 8),
            (1000, 8, 8),
            (900, 8, 8),
            (1024, 8, 1),
            (1025, 8, 1),
            (100, 7, 1),
        ] {
            assert_eq!(packed_heads(q_rows, group, 128), expected, "{q_rows} rows, groups of {group}");
        }
    }

    /// Four query heads of each of two key-value heads as one head with four times the rows.
    #[test]
    fn packed_heads_count_as_one() {
        let work = Work { packed: 4, q_rows: 33, q_block: 128, ..work(3, 8, 4, 0) };
        let schedule = Schedule::new(&work, 12);
        assert_eq!((schedule.last_section + 1, schedule.last_heads.value), (6, 1));
        assert_eq!((schedule.q_blocks, schedule.packed_log2), (2, 2));
        assert_eq!((schedule.sequence_heads.value, schedule.group.value), (2, 1));
    }

    #[test]
    fn every_block_has_a_tile() {
        for (heads, q_blocks, ctas) in [(1, 1, 1), (3, 50, 132), (132, 1, 132), (7, 19, 132), (700, 9, 132)] {
            for uneven in [false, true] {
                let schedule = Schedule::new(&Work { uneven, ..work(heads, 1, 1, q_blocks) }, ctas);
                assert!((0..ctas).all(|cta| !tiles(&schedule, cta, ctas).is_empty()), "{schedule:?}");
            }
        }
    }

    /// Sequences of as many causal rows, keys and values of 16 bits.
    fn causal(sequences: u32, q_heads: u32, group: u32, rows: u32, head_dim: u32, q_block: u32) -> Work {
        let kv_head_bytes = 2 * 2 * u64::from(rows * head_dim);
        Work { q_rows: rows, q_block, kv_head_bytes, uneven: true, ..work(sequences, q_heads, group, 0) }
    }

    /// How long a tile of [`causal`] takes, in key blocks: two more than it visits, for its start and its end.
    fn steps(work: &Work, q_block: u32, kv_block: u32) -> u32 {
        ((q_block + 1) * work.q_block).min(work.q_rows).div_ceil(kv_block) + 2
    }

    /// Steps of the busiest thread block, and of the mean.
    fn busiest_and_mean(work: &Work, kv_block: u32, ctas: u32) -> (f64, f64) {
        let schedule = Schedule::new(work, ctas);
        let steps = |tile: &Tile| steps(work, tile.q_block, kv_block);
        let loads: Vec<u32> = (0..ctas).map(|cta| tiles(&schedule, cta, ctas).iter().map(steps).sum()).collect();
        (*loads.iter().max().unwrap() as f64, loads.iter().sum::<u32>() as f64 / ctas as f64)
    }

    /// Steps of the busiest thread block when each takes the longest tile that is left as soon as it has nothing to do.
    fn greedy(work: &Work, kv_block: u32, ctas: u32) -> f64 {
        let mut loads = BinaryHeap::from_iter((0..ctas).map(|_| Reverse(0)));
        for q_block in (0..work.q_rows.div_ceil(work.q_block)).rev() {
            for _ in 0..work.batch * work.q_heads {
                let Reverse(least) = loads.pop().unwrap();
                loads.push(Reverse(least + steps(work, q_block, kv_block)));
            }
        }
        loads.into_iter().map(|Reverse(load)| load).max().unwrap() as f64
    }

    /// 16384 causal rows in sequences of every length on 132 multiprocessors: the busiest thread block has at most 5 % more to do
    /// than the average.
    #[test]
    fn causal_tiles_are_balanced() {
        // Head dim, tile, and the lengths for which the plan takes it.
        for (head_dim, q_block, kv_block, lengths) in [
            (64, 128, 128, 512..=2048),
            (64, 192, 128, 4096..=16384),
            (96, 128, 128, 512..=2048),
            (96, 192, 96, 4096..=16384),
            (128, 128, 128, 512..=4096),
            (128, 192, 80, 8192..=16384),
            (192, 128, 64, 512..=2048),
            (192, 128, 96, 4096..=16384),
            (256, 128, 64, 512..=16384),
        ] {
            for rows in [512, 1024, 2048, 4096, 8192, 16384_u32].into_iter().filter(|rows| lengths.contains(rows)) {
                let work = causal(16384 / rows, 2048 / head_dim, 1, rows, head_dim, q_block);
                let (most, mean) = busiest_and_mean(&work, kv_block, 132);
                assert!(most <= 1.05 * mean, "{rows} rows of {head_dim} dims: {most}, {mean} on average");
            }
        }
    }

    /// Sequences, heads and lengths that fill no round, on the three sizes of Hopper: over all of them at most 0.5 % behind the greedy
    /// schedule, which would need a counter that all thread blocks share, and nowhere more than 6 %.
    #[test]
    fn causal_tiles_are_balanced_as_by_a_queue() {
        let (mut logs, mut shapes) = (0.0, 0);
        for ctas in [132, 114, 78] {
            for rows in [300, 777, 1000, 2048, 3000, 5000, 12000] {
                for (sequences, q_heads, group) in
                    [(1, 40, 1), (3, 32, 4), (7, 12, 1), (11, 16, 2), (5, 64, 8), (20, 30, 3)]
                {
                    let work = causal(sequences, q_heads, group, rows, 128, 128);
                    if sequences * q_heads * rows.div_ceil(128) < ctas {
                        continue;
                    }
                    let ((most, _), best) = (busiest_and_mean(&work, 128, ctas), greedy(&work, 128, ctas));
                    assert!(most <= 1.06 * best, "{work:?} on {ctas}: {most} for {best}");
                    logs += (most / best).ln();
                    shapes += 1;
                }
            }
        }
        let mean = (logs / shapes as f64).exp();
        assert!(shapes > 100 && mean <= 1.005, "{mean} over {shapes} shapes");
    }

    /// 8 to 20 MiB of keys and values a head: the few that the cache holds would fill rounds badly.
    #[test]
    fn heads_beyond_the_cache_are_balanced() {
        for rows in [8576, 8704, 9000, 11500, 12000, 20000] {
            let work = causal(3, 16, 1, rows, 256, 128);
            let ((most, _), best) = (busiest_and_mean(&work, 64, 132), greedy(&work, 64, 132));
            assert!(most <= 1.03 * best, "{rows} rows: {most} for {best}");
        }
        // Three heads are as even here; four were measured.
        assert_eq!(Schedule::new(&causal(1, 8, 1, 16384, 256, 128), 132).section_heads.value, 4);
    }

    /// Sections of cells that were measured (docs/perf-log.md), 16384 rows in sequences of every length: their keys and values stay in
    /// the cache.
    #[test]
    fn sections_stay_in_the_cache() {
        for (head_dim, q_block, rows, expected) in [
            (64, 128, 2048, 33),
            (64, 192, 4096, 12),
            (64, 192, 8192, 15),
            (64, 192, 16384, 6),
            (128, 128, 512, 66),
            (128, 128, 2048, 33),
            (128, 128, 4096, 12),
            (128, 192, 8192, 6),
            (128, 192, 16384, 3),
            (256, 128, 4096, 8),
        ] {
            let work = causal(16384 / rows, 2048 / head_dim, 1, rows, head_dim, q_block);
            let heads = Schedule::new(&work, 132).section_heads.value;
            assert_eq!(heads, expected, "{rows} rows of {head_dim} dims");
            assert!(u64::from(heads) * work.kv_head_bytes <= CACHED_BYTES, "{rows} rows of {head_dim} dims");
        }
    }
}
