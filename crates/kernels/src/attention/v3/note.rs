//! The tiles of a persistent thread block of v3: found by the load warp, told to the others in shared memory.

use core::marker::PhantomData;

use cuda_std::{copy, math, shared, thread, warp};
use kernel_spec::families::forward::features::BLOCKS;
use kernel_spec::families::forward::memory::{V3 as Memory, WARPGROUP_ROWS};
use kernel_spec::{KvBlocks, Steps, V3Params};

use crate::attention::query_block::QueryBlock;
use crate::attention::v3::config::Config;
use crate::attention::v3::packed::Sequence;
use crate::parts::boxes::Corner;

/// What the load warp tells the others with a buffer of queries: the tile that they belong to.
#[derive(Clone, Copy)]
pub struct TileNotes {
    /// Shared address of the first note.
    pub address: u32,
    /// Bytes from one note to the next.
    pub bytes: u32,
}

impl TileNotes {
    /// Writes the tile of the current buffer and what each of its warpgroups does in its steps, or that there are no more tiles.
    ///
    /// # Safety
    /// The load warp, converged, between waiting for the buffer and announcing its bytes.
    #[inline(always)]
    pub unsafe fn write<C: Config>(self, stage: u32, tile: Option<&QueryTile>, p: &V3Params, elected: bool) {
        let warpgroups = const { C::ROW.q_block / WARPGROUP_ROWS };
        let at = self.address + stage * self.bytes;
        let (place, blocks) = match tile {
            Some(QueryTile { batch, q_head, kv_head, first_row, blocks: b, .. }) => {
                ([*batch, *q_head, *kv_head, *first_row], [b.first, b.unmasked_first, b.unmasked_end, b.end])
            }
            // A tile has a block at least.
            None => ([0; 4], [0; 4]),
        };
        if elected {
            // SAFETY: inside the note, which only this thread writes.
            unsafe {
                shared::store_u32x4(at, place);
                shared::store_u32x4(at + 16, blocks);
                if C::PACKED {
                    let sequence = tile.map_or(Sequence::NONE, |tile| tile.sequence);
                    sequence.write::<C>(at + self.bytes - Memory::NOTE_SEQUENCE_BYTES);
                }
                if C::POLICY.skips {
                    // Rolled: one computation at a time fits the registers of a load warp.
                    for warpgroup in 0..math::opaque(warpgroups) {
                        let steps = tile.map_or(Steps::NONE, |tile| tile.steps::<C>(p, warpgroup));
                        let at = at + Memory::NOTE_TILE_BYTES + warpgroup * Memory::NOTE_STEPS_BYTES;
                        shared::store_u32(at, steps.first);
                        shared::store_u32(at + 4, steps.tested_end);
                    }
                }
            }
        }
    }

    /// The tile of a buffer of queries that is full, as warpgroup `warpgroup` takes part in it, or `None` after the last.
    ///
    /// # Safety
    /// All threads of the warp, converged, between waiting for the buffer and releasing it.
    #[inline(always)]
    pub unsafe fn read<C: Config>(self, stage: u32, warpgroup: u32) -> Option<WarpgroupTile<C>> {
        let at = self.address + stage * self.bytes;
        // SAFETY: inside the note; converged.
        let (place, blocks, steps) = unsafe {
            let steps = if C::POLICY.skips {
                let at = at + Memory::NOTE_TILE_BYTES + warpgroup * Memory::NOTE_STEPS_BYTES;
                Steps { first: shared::load_u32(at), tested_end: shared::load_u32(at + 4) }
            } else {
                Steps::NONE
            };
            let note = (shared::load_u32x4(at), shared::load_u32x4(at + 16), steps);
            // Without it, ptxas takes what depends on a note for different from lane to lane, keeps addresses of buffers out of uniform
            // registers, and moves them there in every step: 3 to 4 % (H200, 128 dims).
            warp::sync();
            note
        };
        let [batch, q_head, kv_head, first_row] = place;
        let [first, unmasked_first, unmasked_end, end] = blocks;
        let blocks = KvBlocks { first, unmasked_first, unmasked_end, end };
        let sequence = if C::PACKED {
            // SAFETY: as above.
            unsafe { Sequence::read::<C>(at + self.bytes - Memory::NOTE_SEQUENCE_BYTES) }
        } else {
            Sequence::NONE
        };
        let tile = QueryTile { batch, q_head, kv_head, first_row, blocks, sequence };
        if blocks.count() == 0 { None } else { Some(WarpgroupTile { tile, steps, config: PhantomData }) }
    }
}

/// A tile as one warpgroup takes part in it. All do the same steps unless they skip blocks that their own rows do not see.
pub struct WarpgroupTile<C> {
    /// The tile.
    pub tile: QueryTile,
    steps: Steps,
    config: PhantomData<C>,
}

impl<C: Config> WarpgroupTile<C> {
    /// The warpgroup's first step: 0, or 1 where it skips the first block.
    #[inline(always)]
    pub fn first_step(&self) -> u32 {
        if C::POLICY.skips { self.steps.first } else { 0 }
    }

    /// Whether its first step has element tests.
    #[inline(always)]
    pub fn starts_with_tests(&self) -> bool {
        if C::POLICY.skips {
            self.steps.first < self.steps.tested_end
        } else {
            // Not by `tested_end`: LLVM would fold its difference into the comparison, and see `first_softmax`.
            self.tile.blocks.count() != self.tile.blocks.unmasked_count()
        }
    }

    /// The step from which on there are no element tests.
    #[inline(always)]
    pub fn tested_end(&self) -> u32 {
        if C::POLICY.skips {
            self.steps.tested_end
        } else {
            self.tile.blocks.count() - self.tile.blocks.unmasked_count()
        }
    }
}

/// The tiles of this thread block, one after the other.
pub struct Tiles {
    /// Round of the schedule that comes next.
    pub round: u32,
}

/// A block of query rows and the key blocks that it visits, at least one.
#[derive(Clone, Copy)]
pub struct QueryTile {
    /// Batch entry.
    pub batch: u32,
    /// Query head, or the first of those that are packed together.
    pub q_head: u32,
    /// Key-value head.
    pub kv_head: u32,
    /// First query row, as [`QueryBlock`] counts them.
    pub first_row: u32,
    /// Key blocks to visit. Of a row with lists of them, as many words of its list in their place, see [`listed`](super::listed).
    pub blocks: KvBlocks,
    /// Where the sequence lies, if the tile comes from a list.
    pub sequence: Sequence,
}

impl QueryTile {
    /// What warpgroup `warpgroup` does in the steps of the tile. It skips one block at most: with more, it would wait for keys that come
    /// after values whose buffers it has not freed.
    #[inline(always)]
    pub fn steps<C: Config>(&self, p: &V3Params, warpgroup: u32) -> Steps {
        let f = &p.forward;
        let [q_rows, kv_rows] = if C::PACKED { self.sequence.rows() } else { [f.q_rows, f.kv_rows] };
        let first = self.first_row + warpgroup * WARPGROUP_ROWS;
        let [first, rows] = [first, WARPGROUP_ROWS].map(|rows| rows >> p.schedule.packed_log2);
        let steps = f.band.steps(self.blocks, first, rows, q_rows, kv_rows, C::ROW.kv_block);
        Steps { first: steps.first.min(1), ..steps }
    }

    /// First key of step `i`. Blocks with element tests come first: with the longest tests, they run beside other warpgroups' loads.
    #[inline(always)]
    pub fn first_key<C: Config>(&self, p: &V3Params, i: u32) -> u32 {
        let block = if C::LISTED {
            // SAFETY: a step of the tile, whose blocks are counted as words of the lists.
            unsafe { copy::load_u32(lists(p) + 4 * (self.blocks.first + i) as u64) }
        } else {
            self.blocks.step(i)
        };
        block * C::ROW.kv_block
    }

    /// Where the queries start in their tensor map: first row, head and batch entry; with several heads a tile, head, row, batch entry.
    #[inline(always)]
    pub fn query_rows<C: Config>(&self, p: &V3Params) -> Corner {
        let packed_log2 = p.schedule.packed_log2;
        let row = self.first_row >> packed_log2;
        let [row, last] = if C::PACKED { self.sequence.q_box(row) } else { [row, self.batch] };
        let [outer, inner] = if packed_log2 == 0 { [self.q_head, row] } else { [row, self.q_head] };
        Corner { at: [inner, outer, last], wraps: C::PACKED }
    }

    /// Where keys and values from `first` on are in their maps: row, head, batch entry. The parameters play no part, but
    /// the closures that load have to capture them: the order of registers depends on it, see [`v3`](super).
    #[inline(always)]
    pub fn kv_rows<C: Config>(&self, _p: &V3Params, first: u32) -> Corner {
        let [row, last] = if C::PACKED { self.sequence.kv_box(first) } else { [first, self.batch] };
        Corner { at: [row, self.kv_head, last], wraps: C::PACKED }
    }

    /// The query block of the tile.
    #[inline(always)]
    pub fn block<C: Config>(&self, p: &V3Params) -> QueryBlock<C> {
        if C::PACKED {
            return self.sequence.block(p, [self.q_head, self.kv_head], self.first_row, self.blocks);
        }
        let mut block = QueryBlock::at(&p.forward, self.batch, self.q_head, self.kv_head, self.first_row, self.blocks);
        block.packed_log2 = p.schedule.packed_log2;
        block
    }
}

impl Tiles {
    /// The next tile, if there is one.
    #[inline(always)]
    pub fn next<C: Config>(&mut self, p: &V3Params) -> Option<QueryTile> {
        if C::PACKED {
            return self.next_packed::<C>(p);
        }
        let (f, schedule) = (&p.forward, &p.schedule);
        loop {
            let slot = schedule.slot(self.round, thread::block_index(), thread::grid_size())?;
            self.round += 1;
            let Some(tile) = schedule.tile(slot) else { continue };
            let (batch, head) = schedule.sequence_heads.split(tile.head);
            let (kv_head, _) = schedule.group.split(head);
            let first_row = tile.q_block * C::ROW.q_block;
            let [first, rows] = [first_row, C::ROW.q_block].map(|rows| rows >> schedule.packed_log2);
            let mut blocks = f.band.kv_blocks(first, rows, f.q_rows, f.kv_rows, C::ROW.kv_block);
            if blocks.count() == 0 {
                // Every tile takes one step. The block past the last key reads as zeros, all hidden.
                let past = f.kv_rows.div_ceil(C::ROW.kv_block);
                blocks = KvBlocks { first: past, unmasked_first: past, unmasked_end: past, end: past + 1 };
            }
            let q_head = head << schedule.packed_log2;
            return Some(QueryTile { batch, q_head, kv_head, first_row, blocks, sequence: Sequence::NONE });
        }
    }

    /// [`Tiles::next`] of a list: sections of heads whose keys stay in the L2 cache, in each of them the tiles of the list, and of
    /// each tile the heads.
    #[inline(always)]
    pub fn next_packed<C: Config>(&mut self, p: &V3Params) -> Option<QueryTile> {
        let schedule = &p.schedule;
        // No tensor has batch entries to step over: in place of the step there is the list.
        let list = p.forward.q.batch_stride;
        // SAFETY: the list is complete, and as long as it says.
        unsafe {
            let count = copy::load_u32(list);
            let (round, ctas, cta) = (self.round, thread::grid_size(), thread::block_index());
            // Odd rounds run backwards: whoever had the longest tile of one has the shortest of the next.
            let slot = round * ctas + if round & 1 == 1 { ctas - 1 - cta } else { cta };
            self.round += 1;
            let (rest, head) = schedule.section_heads.split(slot);
            // A list without tiles has nothing to divide by.
            let (section, index) = if count == 0 { (u32::MAX, 0) } else { (rest / count, rest % count) };
            if section > schedule.last_section {
                return None;
            }
            let (sequence, first_row, range) = Sequence::entry(list, index);
            let [q_rows, kv_rows] = sequence.rows();
            let head = section * schedule.section_heads.value + head;
            let (kv_head, _) = schedule.group.split(head);
            let [first, rows] = [first_row, C::ROW.q_block].map(|rows| rows >> schedule.packed_log2);
            let mut blocks = p.forward.band.kv_blocks(first, rows, q_rows, kv_rows, C::ROW.kv_block);
            if C::SPLIT {
                let [first, end] = range;
                blocks = blocks.between(first, end);
            }
            if blocks.count() == 0 {
                // As of other sequences.
                let past = kv_rows.div_ceil(C::ROW.kv_block);
                blocks = KvBlocks { first: past, unmasked_first: past, unmasked_end: past, end: past + 1 };
            }
            let q_head = head << schedule.packed_log2;
            Some(QueryTile { batch: 0, q_head, kv_head, first_row, blocks, sequence })
        }
    }
}

/// The address of the lists of blocks, in a row that has some.
#[inline(always)]
pub fn lists(p: &V3Params) -> u64 {
    p.forward.features.value(BLOCKS)
}
