//! Packed sequences: their tiles, and where in the tensors these lie.
//!
//! Sequences have lengths that only the device knows. A kernel before this one has written a list of their tiles, the longest first, see
//! [`tiles`](crate::attention::sequences::tiles), and a tile brings along where its sequence lies.
//!
//! The copy engine knows one packed tensor, and no sequences. Its map has the rows twice, as axes of equal stride: the first is as long as all
//! sequences together, starts so many rows before the tensor, and ends where the sequence does once the second has moved it there. A box
//! that reaches past the sequence reads zeros, as past the end of a tensor.

use cuda_std::{copy, shared, thread};
use kernel_spec::families::sequences::TileEntry;
use kernel_spec::{ForwardParams, KvBlocks, TensorParams, V3Params};

use crate::attention::query_block::QueryBlock;
use crate::attention::v3::config::Config;
use crate::attention::v3::note::{QueryTile, Tiles};
use crate::parts::element::Element;

/// Where a packed sequence lies.
#[derive(Clone, Copy)]
pub struct Sequence {
    /// First row in q and out.
    q_first: u32,
    /// Rows of q in use.
    q_rows: u32,
    /// First row in k and v.
    kv_first: u32,
    /// Rows of k and v in use.
    kv_rows: u32,
}

impl Sequence {
    /// Of a tile whose sequences are not packed.
    pub const NONE: Sequence = Sequence { q_first: 0, q_rows: 0, kv_first: 0, kv_rows: 0 };

    /// Rows of q, and of k and v.
    #[inline(always)]
    pub fn rows(&self) -> [u32; 2] {
        [self.q_rows, self.kv_rows]
    }

    /// Where a box of queries from `row` of the sequence on starts along both row axes of its map.
    #[inline(always)]
    pub fn q_box(&self, p: &V3Params, row: u32) -> [u32; 2] {
        [p.forward.q_rows - self.q_rows + row, self.q_first + self.q_rows]
    }

    /// The same of keys or values.
    #[inline(always)]
    pub fn kv_box(&self, p: &V3Params, row: u32) -> [u32; 2] {
        [p.forward.kv_rows - self.kv_rows + row, self.kv_first + self.kv_rows]
    }

    /// The problem that the sequence poses on its own. Keys and values are read through their maps alone, or to mend.
    #[inline(always)]
    pub fn problem<C: Config>(&self, f: &ForwardParams) -> ForwardParams {
        let moved = |tensor: &TensorParams, row: u32| TensorParams {
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

    /// The query block of a tile of the sequence.
    #[inline(always)]
    pub fn block<C: Config>(&self, tile: &QueryTile, p: &V3Params) -> QueryBlock<C> {
        let problem = self.problem::<C>(&p.forward);
        let mut block = QueryBlock::at(&problem, 0, tile.q_head, tile.kv_head, tile.first_row, tile.blocks);
        block.packed_log2 = p.schedule.packed_log2;
        // Of all sequences: `[head, token]`.
        block.packed_rows = p.forward.q_rows;
        block
    }

    /// Writes it to a note.
    ///
    /// # Safety
    /// One thread; the place is the note's own.
    #[inline(always)]
    pub unsafe fn write(self, at: u32) {
        let Sequence { q_first, q_rows, kv_first, kv_rows } = self;
        // SAFETY: passed on.
        unsafe { shared::store_u32x4(at, [q_first, q_rows, kv_first, kv_rows]) };
    }

    /// Reads it.
    ///
    /// # Safety
    /// It has been written.
    #[inline(always)]
    pub unsafe fn read(at: u32) -> Sequence {
        // SAFETY: passed on.
        let [q_first, q_rows, kv_first, kv_rows] = unsafe { shared::load_u32x4(at) };
        Sequence { q_first, q_rows, kv_first, kv_rows }
    }
}

impl Tiles {
    /// [`Tiles::next`] of packed sequences: sections of heads whose keys stay in the L2 cache, in each of them the tiles of the list, and of
    /// each tile the heads.
    #[inline(always)]
    pub fn next_packed<C: Config>(&mut self, p: &V3Params) -> Option<QueryTile> {
        let schedule = &p.schedule;
        // A packed tensor has no batch entries to step over: in place of the step there is the list.
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
            let at = list + (1 + index as u64) * size_of::<TileEntry>() as u64;
            let [q_first, q_rows, kv_first, kv_rows] = copy::load_u32x4(at);
            let first_row = copy::load_u32(at + 16);
            let head = section * schedule.section_heads.value + head;
            let (kv_head, _) = schedule.group.split(head);
            let [first, rows] = [first_row, C::ROW.q_block].map(|rows| rows >> schedule.packed_log2);
            let mut blocks = p.forward.band.kv_blocks(first, rows, q_rows, kv_rows, C::ROW.kv_block);
            if blocks.count() == 0 {
                // As of other sequences.
                let past = kv_rows.div_ceil(C::ROW.kv_block);
                blocks = KvBlocks { first: past, unmasked_first: past, unmasked_end: past, end: past + 1 };
            }
            let q_head = head << schedule.packed_log2;
            let sequence = Sequence { q_first, q_rows, kv_first, kv_rows };
            Some(QueryTile { batch: 0, q_head, kv_head, first_row, blocks, sequence })
        }
    }
}
