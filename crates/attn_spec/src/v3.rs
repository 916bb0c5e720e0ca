//! What host and device agree on for v3: its shared memory and its schedule.

/// Columns of a tile in shared memory: head dims rounded up to whole panels of 128 bytes of a 16-bit type.
pub const fn shared_cols(head_dim: u32) -> u32 {
    head_dim.div_ceil(64) * 64
}

/// Buffers of the query tile. With a second one, the next tile's queries arrive while the last output leaves; above 128 dims it
/// does not fit beside two stages of keys and values.
pub const fn q_buffers(head_dim: u32) -> u32 {
    if head_dim <= 128 { 2 } else { 1 }
}

/// Bytes of the note that goes with a buffer of queries: which tile they belong to.
pub const TILE_NOTE_BYTES: u32 = 32;

/// Warps that multiply: all but the loading warpgroup.
pub const fn math_warps(warps: u32) -> u32 {
    warps - 4
}

/// How persistent thread blocks share out the tiles: blocks of query rows of every head.
///
/// Heads are taken in sections whose keys and values fit the L2 cache together. Inside a section the tiles go from the last rows to
/// the first, which under a causal mask means from the longest to the shortest, and a block takes one tile a round. Odd rounds run
/// through the blocks backwards, so that whoever had the longest tile of one round has the shortest of the next. A section of
/// uneven tiles ends with a round of its own; even tiles simply follow one another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// `batch * q_heads`.
    pub heads: u32,
    /// Blocks of query rows of a head.
    pub q_blocks: u32,
    /// Heads of a section.
    pub section_heads: u32,
    /// Slots of a section: its tiles, and idle ones up to the end of its last round.
    pub section_slots: u32,
    /// Rounds of a section; 1 when sections do not end with a round.
    pub section_rounds: u32,
    /// Keeps the size a multiple of 8 without hidden padding.
    pub reserved: u32,
}

/// A block of query rows of one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// `batch * q_heads + q_head`.
    pub head: u32,
    /// Index of the block of query rows.
    pub q_block: u32,
}

/// Keys and values of a section. Half of the 50 to 60 MB of L2 that Hopper has: either half caches for its own multiprocessors.
const SECTION_BYTES: u64 = 32 << 20;

impl Schedule {
    /// The schedule of `q_blocks` tiles for each of `heads` heads on `ctas` thread blocks.
    ///
    /// `group` query heads share keys and values of `kv_head_bytes` bytes. `uneven` says that a mask makes tiles differ in length.
    pub fn new(heads: u32, q_blocks: u32, group: u32, kv_head_bytes: u64, uneven: bool, ctas: u32) -> Schedule {
        if !uneven {
            // One group of heads after the other: equal tiles need no balance.
            return Schedule {
                heads,
                q_blocks,
                section_heads: group,
                section_slots: group * q_blocks,
                section_rounds: 1,
                reserved: 0,
            };
        }
        let cached = (SECTION_BYTES / kv_head_bytes.max(1)).clamp(1, (heads / group) as u64) as u32 * group;
        // Two rounds at least, so that long tiles meet short ones.
        let section_heads = cached.max((2 * ctas).div_ceil(q_blocks)).next_multiple_of(group).min(heads);
        let section_rounds = (section_heads * q_blocks).div_ceil(ctas);
        Schedule { heads, q_blocks, section_heads, section_slots: section_rounds * ctas, section_rounds, reserved: 0 }
    }

    /// Slot of thread block `cta` of `ctas` in round `round`; `None` is past the end.
    #[inline(always)]
    pub const fn slot(&self, round: u32, cta: u32, ctas: u32) -> Option<u32> {
        let backwards = round % self.section_rounds % 2 == 1;
        let slot = round * ctas + if backwards { ctas - 1 - cta } else { cta };
        if slot / self.section_slots * self.section_heads < self.heads { Some(slot) } else { None }
    }

    /// The tile of a slot, or `None` when it is idle.
    #[inline(always)]
    pub const fn tile(&self, slot: u32) -> Option<Tile> {
        let first_head = slot / self.section_slots * self.section_heads;
        let rest = slot % self.section_slots;
        let left = self.heads - first_head;
        let heads = if left < self.section_heads { left } else { self.section_heads };
        let from_last = rest / heads;
        if from_last >= self.q_blocks {
            return None;
        }
        Some(Tile { head: first_head + rest % heads, q_block: self.q_blocks - 1 - from_last })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;

    fn tiles(schedule: &Schedule, cta: u32, ctas: u32) -> std::vec::Vec<Tile> {
        (0..).map_while(|round| schedule.slot(round, cta, ctas)).filter_map(|slot| schedule.tile(slot)).collect()
    }

    #[test]
    fn every_tile_is_worked_on_once() {
        for (heads, group) in [(1, 1), (6, 3), (16, 1), (32, 4), (256, 1)] {
            for q_blocks in [1, 2, 7, 64] {
                for ctas in [1, 5, 132] {
                    for (bytes, uneven) in [(1, true), (8 << 20, true), (64 << 20, true), (0, true), (1 << 20, false)] {
                        let ctas = ctas.min(heads * q_blocks);
                        let schedule = Schedule::new(heads, q_blocks, group, bytes, uneven, ctas);
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

    /// 16384 causal rows, 16 heads of 128 dims on 132 multiprocessors: tile lengths are 1 to 128, and the busiest thread block has
    /// at most 5 % more to do than the average.
    #[test]
    fn causal_tiles_are_balanced() {
        let schedule = Schedule::new(16, 128, 1, 8 << 20, true, 132);
        let loads = (0..132).map(|cta| tiles(&schedule, cta, 132).iter().map(|t| t.q_block + 1).sum::<u32>());
        let (most, all) = loads.fold((0, 0), |(most, all), load| (load.max(most), all + load));
        assert!(most as f64 <= 1.05 * all as f64 / 132.0, "{most} of {all} on average over 132");
    }
}
