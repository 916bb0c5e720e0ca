//! The tiles of a persistent thread block of v3: found by the load warp, told to the others in shared memory.

use cuda_std::{math, shared, thread, warp};
use kernel_spec::v3::{GROUP_ROWS, STEPS_BYTES, TILE_BYTES};
use kernel_spec::{KvBlocks, Steps, V3Params};

use crate::block::QueryBlock;
use crate::element::Element;

/// What the load warp tells the others with a buffer of queries: the tile that they belong to.
#[derive(Clone, Copy)]
pub struct Notes {
    /// Shared address of the first note.
    pub address: u32,
    /// Bytes from one note to the next.
    pub bytes: u32,
}

impl Notes {
    /// Writes the tile of the current buffer and what each of its warpgroups does in its steps, or that there are no more tiles.
    ///
    /// # Safety
    /// The load warp, converged, between waiting for the buffer and announcing its bytes.
    #[inline(always)]
    pub unsafe fn write<const Q_BLOCK: usize, const KV_BLOCK: usize, const SKIPS: bool>(
        self,
        stage: u32,
        tile: Option<&Tile>,
        p: &V3Params,
        elected: bool,
    ) {
        let groups = const { Q_BLOCK as u32 / GROUP_ROWS };
        let at = self.address + stage * self.bytes;
        let (place, blocks) = match tile {
            Some(Tile { batch, q_head, kv_head, first_row, blocks: b }) => {
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
                if SKIPS {
                    // Rolled: one computation at a time fits the registers of a load warp.
                    for group in 0..math::opaque(groups) {
                        let steps = tile.map_or(Steps::NONE, |tile| tile.steps(p, group, KV_BLOCK));
                        let at = at + TILE_BYTES + group * STEPS_BYTES;
                        shared::store_u32(at, steps.first);
                        shared::store_u32(at + 4, steps.tested_end);
                    }
                }
            }
        }
    }

    /// The tile of a buffer of queries that is full, as warpgroup `group` takes part in it, or `None` after the last.
    ///
    /// # Safety
    /// All threads of the warp, converged, between waiting for the buffer and releasing it.
    #[inline(always)]
    pub unsafe fn read<const SKIPS: bool>(self, stage: u32, group: u32) -> Option<Part<SKIPS>> {
        let at = self.address + stage * self.bytes;
        // SAFETY: inside the note; converged.
        let (place, blocks, steps) = unsafe {
            let steps = if SKIPS {
                let at = at + TILE_BYTES + group * STEPS_BYTES;
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
        let tile = Tile { batch, q_head, kv_head, first_row, blocks };
        if blocks.count() == 0 { None } else { Some(Part { tile, steps }) }
    }
}

/// A tile as one warpgroup takes part in it. All do the same steps unless they skip blocks that their own rows do not see.
#[derive(Clone, Copy)]
pub struct Part<const SKIPS: bool> {
    /// The tile.
    pub tile: Tile,
    steps: Steps,
}

impl<const SKIPS: bool> Part<SKIPS> {
    /// The warpgroup's first step: 0, or 1 where it skips the first block.
    #[inline(always)]
    pub fn first_step(&self) -> u32 {
        if SKIPS { self.steps.first } else { 0 }
    }

    /// The step from which on there are no element tests.
    #[inline(always)]
    pub fn tested_end(&self) -> u32 {
        if SKIPS { self.steps.tested_end } else { self.tile.blocks.count() - self.tile.blocks.unmasked_count() }
    }
}

/// The tiles of this thread block, one after the other.
pub struct Tiles {
    /// Round of the schedule that comes next.
    pub round: u32,
}

/// A block of query rows and the key blocks that it visits, at least one.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Batch entry.
    pub batch: u32,
    /// Query head, or the first of those that are packed together.
    pub q_head: u32,
    /// Key-value head.
    pub kv_head: u32,
    /// First query row, as [`QueryBlock`] counts them.
    pub first_row: u32,
    /// Key blocks to visit.
    pub blocks: KvBlocks,
}

impl Tile {
    /// What warpgroup `group` does in the steps of the tile. It skips one block at most: with more, it would wait for keys that come
    /// after values whose buffers it has not freed.
    #[inline(always)]
    pub fn steps(&self, p: &V3Params, group: u32, kv_block: usize) -> Steps {
        let f = &p.forward;
        let first = self.first_row + group * GROUP_ROWS;
        let [first, rows] = [first, GROUP_ROWS].map(|rows| rows >> p.schedule.packed_log2);
        let steps = f.band.steps(self.blocks, first, rows, f.q_rows, f.kv_rows, kv_block as u32);
        Steps { first: steps.first.min(1), ..steps }
    }

    /// First key of step `i`. Blocks with element tests come first: with the longest tests, they run beside other warpgroups' loads.
    #[inline(always)]
    pub fn first_key(&self, i: u32, kv_block: usize) -> u32 {
        self.blocks.visit(self.blocks.count() - 1 - i) * kv_block as u32
    }

    /// Where the queries start in their tensor map: first row, head and batch entry; with several heads a tile, head, row, batch entry.
    #[inline(always)]
    pub fn query_rows(&self, p: &V3Params) -> [u32; 3] {
        let packed_log2 = p.schedule.packed_log2;
        let row = self.first_row >> packed_log2;
        let [outer, inner] = if packed_log2 == 0 { [self.q_head, row] } else { [row, self.q_head] };
        [inner, outer, self.batch]
    }

    /// First row, head and batch entry of the keys and values of step `i`.
    #[inline(always)]
    pub fn key_rows(&self, i: u32, kv_block: usize) -> [u32; 3] {
        [self.first_key(i, kv_block), self.kv_head, self.batch]
    }

    /// The query block of the tile.
    #[inline(always)]
    pub fn block<T: Element>(&self, p: &V3Params) -> QueryBlock<T> {
        let mut block = QueryBlock::at(&p.forward, self.batch, self.q_head, self.kv_head, self.first_row, self.blocks);
        block.packed_log2 = p.schedule.packed_log2;
        block
    }
}

impl Tiles {
    /// The next tile, if there is one.
    #[inline(always)]
    pub fn next<const Q_BLOCK: usize, const KV_BLOCK: usize>(&mut self, p: &V3Params) -> Option<Tile> {
        let (f, schedule) = (&p.forward, &p.schedule);
        loop {
            let slot = schedule.slot(self.round, thread::block_index(), thread::grid_size())?;
            self.round += 1;
            let Some(tile) = schedule.tile(slot) else { continue };
            let (batch, head) = schedule.sequence_heads.split(tile.head);
            let (kv_head, _) = schedule.group.split(head);
            let first_row = tile.q_block * Q_BLOCK as u32;
            let [first, rows] = [first_row, Q_BLOCK as u32].map(|rows| rows >> schedule.packed_log2);
            let mut blocks = f.band.kv_blocks(first, rows, f.q_rows, f.kv_rows, KV_BLOCK as u32);
            if blocks.count() == 0 {
                // Every tile takes one step. The block past the last key reads as zeros, all hidden.
                let past = f.kv_rows.div_ceil(KV_BLOCK as u32);
                blocks = KvBlocks { first: past, unmasked_first: past, unmasked_end: past, end: past + 1 };
            }
            return Some(Tile { batch, q_head: head << schedule.packed_log2, kv_head, first_row, blocks });
        }
    }
}
