//! What tiles are blocks of: sequences of equal length, or packed ones.
//!
//! [`Uniform`] ones are all alike, and a schedule that the host has made says which tile comes next. [`Packed`] ones have lengths that only the
//! device knows: a kernel before this one has written a list of their tiles, the longest first, see
//! [`tiles`](crate::attention::sequences::tiles), and a tile brings along where its sequence lies.
//!
//! The copy engine knows one packed tensor, and no sequences. Its map has the rows twice, as axes of equal stride: the first is as long as a
//! sequence can be, and ends where the sequence does, the second moves that end to its place. A box that reaches past the sequence reads
//! zeros there, as past the end of a tensor.

use cuda_std::{copy, shared, thread};
use kernel_spec::families::sequences::{PackedV3Params, TileEntry};
use kernel_spec::{ForwardParams, KvBlocks, V3Params};

use crate::attention::exact;
use crate::attention::query_block::QueryBlock;
use crate::attention::v3::config::Config;
use crate::attention::v3::note::{QueryTile, Tiles};
use crate::parts::element::Element;

/// What a tile is a block of. The value is what a tile knows of its sequence.
pub trait Tiling: Copy {
    /// Parameters of the kernel, which start with the tensor maps of q, k and v.
    type Params;

    /// The problem, or that of all sequences together.
    fn forward(p: &Self::Params) -> &ForwardParams;

    /// Logarithm to base 2 of the query heads that share a tile.
    fn packed_log2(p: &Self::Params) -> u32;

    /// The next tile of this thread block, if there is one.
    fn next<C: Config<Tiling = Self>>(tiles: &mut Tiles, p: &Self::Params) -> Option<QueryTile<Self>>;

    /// Rows of q, and of k and v, of the tile's sequence.
    fn rows(&self, p: &Self::Params) -> [u32; 2];

    /// Where the queries of a tile start in their map: with one head a tile, row, head and the last axis; with several, head, row, last axis.
    fn query_rows(tile: &QueryTile<Self>, p: &Self::Params) -> [u32; 3];

    /// Where keys from `first` on start in theirs.
    fn kv_rows(tile: &QueryTile<Self>, p: &Self::Params, first: u32) -> [u32; 3];

    /// The query block of a tile.
    fn block<C: Config<Tiling = Self>>(tile: &QueryTile<Self>, p: &Self::Params) -> QueryBlock<C>;

    /// Computes rows of a tile again, see [`exact::rows`].
    ///
    /// # Safety
    /// As there.
    unsafe fn mend<C: Config<Tiling = Self>>(tile: &QueryTile<Self>, p: &Self::Params, rows: [u32; 3]);

    /// Writes the value to a note, or that there is none.
    ///
    /// # Safety
    /// One thread; the place is the note's own.
    unsafe fn write(sequence: Option<&Self>, at: u32);

    /// Reads it.
    ///
    /// # Safety
    /// It has been written.
    unsafe fn read(at: u32) -> Self;
}

/// Sequences of equal length, each a batch entry.
#[derive(Clone, Copy)]
pub struct Uniform;

impl Tiling for Uniform {
    type Params = V3Params;

    #[inline(always)]
    fn forward(p: &V3Params) -> &ForwardParams {
        &p.forward
    }

    #[inline(always)]
    fn packed_log2(p: &V3Params) -> u32 {
        p.schedule.packed_log2
    }

    #[inline(always)]
    fn next<C: Config<Tiling = Self>>(tiles: &mut Tiles, p: &V3Params) -> Option<QueryTile<Self>> {
        let (f, schedule) = (&p.forward, &p.schedule);
        loop {
            let slot = schedule.slot(tiles.round, thread::block_index(), thread::grid_size())?;
            tiles.round += 1;
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
            return Some(QueryTile {
                batch,
                q_head: head << schedule.packed_log2,
                kv_head,
                first_row,
                blocks,
                sequence: Uniform,
            });
        }
    }

    #[inline(always)]
    fn rows(&self, p: &V3Params) -> [u32; 2] {
        [p.forward.q_rows, p.forward.kv_rows]
    }

    #[inline(always)]
    fn query_rows(tile: &QueryTile<Self>, p: &V3Params) -> [u32; 3] {
        let packed_log2 = p.schedule.packed_log2;
        let row = tile.first_row >> packed_log2;
        let [outer, inner] = if packed_log2 == 0 { [tile.q_head, row] } else { [row, tile.q_head] };
        [inner, outer, tile.batch]
    }

    #[inline(always)]
    fn kv_rows(tile: &QueryTile<Self>, _: &V3Params, first: u32) -> [u32; 3] {
        [first, tile.kv_head, tile.batch]
    }

    #[inline(always)]
    fn block<C: Config<Tiling = Self>>(tile: &QueryTile<Self>, p: &V3Params) -> QueryBlock<C> {
        let mut block = QueryBlock::at(&p.forward, tile.batch, tile.q_head, tile.kv_head, tile.first_row, tile.blocks);
        block.packed_log2 = p.schedule.packed_log2;
        block
    }

    #[inline(always)]
    unsafe fn mend<C: Config<Tiling = Self>>(tile: &QueryTile<Self>, p: &V3Params, [first, end, step]: [u32; 3]) {
        // SAFETY: passed on.
        unsafe { exact::rows(&tile.block::<C>(p), &p.forward, first, end, step) };
    }

    #[inline(always)]
    unsafe fn write(_: Option<&Self>, _: u32) {}

    #[inline(always)]
    unsafe fn read(_: u32) -> Self {
        Uniform
    }
}

/// Packed sequences: where that of a tile lies.
#[derive(Clone, Copy)]
pub struct Packed {
    /// First row in q and out.
    q_first: u32,
    /// Rows of q in use.
    q_rows: u32,
    /// First row in k and v.
    kv_first: u32,
    /// Rows of k and v in use.
    kv_rows: u32,
}

impl Packed {
    /// The problem that a tile's sequence poses on its own. Keys and values are read through their maps alone, or to mend.
    #[inline(always)]
    fn problem<C: Config>(&self, f: &ForwardParams) -> ForwardParams {
        let moved = |tensor: &kernel_spec::TensorParams, row: u32| kernel_spec::TensorParams {
            address: tensor.address + row as u64 * tensor.row_stride * C::T::BYTES as u64,
            ..*tensor
        };
        ForwardParams {
            q: moved(&f.q, self.q_first),
            k: moved(&f.k, self.kv_first),
            v: moved(&f.v, self.kv_first),
            out: moved(&f.out, self.q_first),
            lse: if f.lse == 0 { 0 } else { f.lse + self.q_first as u64 * 4 },
            q_rows: self.q_rows,
            kv_rows: self.kv_rows,
            ..*f
        }
    }
}

impl Tiling for Packed {
    type Params = PackedV3Params;

    #[inline(always)]
    fn forward(p: &PackedV3Params) -> &ForwardParams {
        &p.forward
    }

    #[inline(always)]
    fn packed_log2(p: &PackedV3Params) -> u32 {
        p.packed_log2
    }

    #[inline(always)]
    fn next<C: Config<Tiling = Self>>(tiles: &mut Tiles, p: &PackedV3Params) -> Option<QueryTile<Self>> {
        // SAFETY: the list is complete, and longer than the number of tiles that it starts with.
        unsafe {
            let count = copy::load_u32(p.tiles);
            let (round, ctas, cta) = (tiles.round, thread::grid_size(), thread::block_index());
            // Odd rounds run backwards: whoever had the longest tile of one has the shortest of the next.
            let slot = round * ctas + if round & 1 == 1 { ctas - 1 - cta } else { cta };
            tiles.round += 1;
            // Heads of a section are neighbours, so that their keys are read from the L2 cache, then come tiles, then sections.
            let (rest, head) = p.section_heads.split(slot);
            // A list without tiles has nothing to divide by.
            let (section, index) = if count == 0 { (u32::MAX, 0) } else { (rest / count, rest % count) };
            if section >= p.sections {
                return None;
            }
            let at = p.tiles + (1 + index as u64) * size_of::<TileEntry>() as u64;
            let [q_first, q_rows, kv_first, kv_rows] = copy::load_u32x4(at);
            let first_row = copy::load_u32(at + 16);
            let head = section * p.section_heads.value + head;
            let (kv_head, _) = p.group.split(head);
            let sequence = Packed { q_first, q_rows, kv_first, kv_rows };
            let [first, rows] = [first_row, C::ROW.q_block].map(|rows| rows >> p.packed_log2);
            let mut blocks = p.forward.band.kv_blocks(first, rows, q_rows, kv_rows, C::ROW.kv_block);
            if blocks.count() == 0 {
                // As above.
                let past = kv_rows.div_ceil(C::ROW.kv_block);
                blocks = KvBlocks { first: past, unmasked_first: past, unmasked_end: past, end: past + 1 };
            }
            Some(QueryTile { batch: 0, q_head: head << p.packed_log2, kv_head, first_row, blocks, sequence })
        }
    }

    #[inline(always)]
    fn rows(&self, _: &PackedV3Params) -> [u32; 2] {
        [self.q_rows, self.kv_rows]
    }

    #[inline(always)]
    fn query_rows(tile: &QueryTile<Self>, p: &PackedV3Params) -> [u32; 3] {
        let Packed { q_first, q_rows, .. } = tile.sequence;
        let row = p.forward.q_rows - q_rows + (tile.first_row >> p.packed_log2);
        let [outer, inner] = if p.packed_log2 == 0 { [tile.q_head, row] } else { [row, tile.q_head] };
        [inner, outer, q_first + q_rows]
    }

    #[inline(always)]
    fn kv_rows(tile: &QueryTile<Self>, p: &PackedV3Params, first: u32) -> [u32; 3] {
        let Packed { kv_first, kv_rows, .. } = tile.sequence;
        [p.forward.kv_rows - kv_rows + first, tile.kv_head, kv_first + kv_rows]
    }

    #[inline(always)]
    fn block<C: Config<Tiling = Self>>(tile: &QueryTile<Self>, p: &PackedV3Params) -> QueryBlock<C> {
        let problem = tile.sequence.problem::<C>(&p.forward);
        let mut block = QueryBlock::at(&problem, 0, tile.q_head, tile.kv_head, tile.first_row, tile.blocks);
        block.packed_log2 = p.packed_log2;
        // Of all sequences: `[head, token]`.
        block.lse_rows = p.forward.q_rows;
        block
    }

    #[inline(always)]
    unsafe fn mend<C: Config<Tiling = Self>>(tile: &QueryTile<Self>, p: &PackedV3Params, [first, end, step]: [u32; 3]) {
        let problem = tile.sequence.problem::<C>(&p.forward);
        // SAFETY: passed on.
        unsafe { exact::rows(&tile.block::<C>(p), &problem, first, end, step) };
    }

    #[inline(always)]
    unsafe fn write(sequence: Option<&Self>, at: u32) {
        let words = sequence
            .map_or([0; 4], |&Packed { q_first, q_rows, kv_first, kv_rows }| [q_first, q_rows, kv_first, kv_rows]);
        // SAFETY: passed on.
        unsafe { shared::store_u32x4(at, words) };
    }

    #[inline(always)]
    unsafe fn read(at: u32) -> Self {
        // SAFETY: passed on.
        let [q_first, q_rows, kv_first, kv_rows] = unsafe { shared::load_u32x4(at) };
        Packed { q_first, q_rows, kv_first, kv_rows }
    }
}
