//! Sequences of different lengths: their tiles, and where in the tensors these lie.
//!
//! Sequences have lengths that only the device knows. A kernel before this one has written a list of their tiles, the longest first, see
//! [`tiles`](crate::attention::sequences::tiles), and a tile brings along where its sequence lies.
//!
//! The copy engine knows one tensor, and no sequences. Its map has the rows twice, as axes of equal stride: the first ends where the sequence
//! does once the second has moved it there, see [`WRAPPED`]. A box that reaches past the sequence reads zeros, as past the end of a tensor.

use cuda_std::{copy, shared};
use kernel_spec::copy_engine::WRAPPED;
use kernel_spec::families::sequences::TileEntry;
use kernel_spec::{ForwardParams, KvBlocks, TensorParams, V3Params};

use crate::attention::query_block::QueryBlock;
use crate::attention::v3::config::Config;
use crate::parts::element::Element;

/// Where a sequence lies.
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
    /// Where its first row is among those of all splits, see [`TileEntry::place`].
    place: u32,
    /// Its number. Of those that multiply, only they know it whose scores pass through a program.
    index: u32,
}

impl Sequence {
    /// Of a tile of no list.
    pub const NONE: Sequence = Sequence { q_first: 0, q_rows: 0, kv_first: 0, kv_rows: 0, place: 0, index: 0 };

    /// Rows of q, and of k and v.
    #[inline(always)]
    pub fn rows(&self) -> [u32; 2] {
        [self.q_rows, self.kv_rows]
    }

    /// Its number, for the load warp.
    #[inline(always)]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Where row `row` of a head is among those of all splits.
    #[inline(always)]
    pub fn place(&self, p: &V3Params, head: u64, row: u32) -> u64 {
        self.place as u64 + head * p.forward.q_rows as u64 + row as u64
    }

    /// Where a box of queries from `row` of the sequence on starts along both row axes of its map.
    #[inline(always)]
    pub fn q_box(&self, row: u32) -> [u32; 2] {
        [WRAPPED - self.q_rows + row, self.q_first + self.q_rows]
    }

    /// The same of keys or values.
    #[inline(always)]
    pub fn kv_box(&self, row: u32) -> [u32; 2] {
        [WRAPPED - self.kv_rows + row, self.kv_first + self.kv_rows]
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
            // Of a row of packed sequences one number, `[head, token]`; of one of others as many as heads, `[batch, head, row]`. That factor is in
            // place of a step between batch entries, which no tensor has.
            lse: if f.lse == 0 { 0 } else { f.lse + self.q_first as u64 * f.out.batch_stride * 4 },
            q_rows: self.q_rows,
            kv_rows: self.kv_rows,
            ..*f
        }
    }

    /// The query block of a tile of the sequence, of these heads.
    #[inline(always)]
    pub fn block<C: Config>(
        &self,
        p: &V3Params,
        [q_head, kv_head]: [u32; 2],
        first_row: u32,
        blocks: KvBlocks,
    ) -> QueryBlock<C> {
        let problem = self.problem::<C>(&p.forward);
        let mut block = QueryBlock::at(&problem, 0, q_head, kv_head, first_row, blocks);
        block.packed_log2 = p.schedule.packed_log2;
        // Of all sequences where they are packed, `[head, token]`, else of one.
        block.packed_rows = p.forward.q_rows;
        block.batch = self.index;
        block
    }

    /// Writes it to a note.
    ///
    /// # Safety
    /// One thread; the place is the note's own.
    #[inline(always)]
    pub unsafe fn write<C: Config>(self, at: u32) {
        let Sequence { q_first, q_rows, kv_first, kv_rows, place, index } = self;
        // SAFETY: passed on.
        unsafe {
            shared::store_u32x4(at, [q_first, q_rows, kv_first, kv_rows]);
            shared::store_u32(at + 16, place);
            if C::SCORED {
                shared::store_u32(at + 20, index);
            }
        }
    }

    /// Reads it.
    ///
    /// # Safety
    /// It has been written.
    #[inline(always)]
    pub unsafe fn read<C: Config>(at: u32) -> Sequence {
        // SAFETY: passed on.
        let ([q_first, q_rows, kv_first, kv_rows], place) =
            unsafe { (shared::load_u32x4(at), if C::SPLIT { shared::load_u32(at + 16) } else { 0 }) };
        // SAFETY: as above.
        let index = if C::SCORED { unsafe { shared::load_u32(at + 20) } } else { 0 };
        Sequence { q_first, q_rows, kv_first, kv_rows, place, index }
    }

    /// An entry of the list of tiles: the sequence, the first row of the tile, and its blocks of keys, `[first, end]`.
    ///
    /// # Safety
    /// The list has it.
    #[inline(always)]
    pub unsafe fn entry(list: u64, index: u32) -> (Sequence, u32, [u32; 2]) {
        let at = list + (1 + index as u64) * size_of::<TileEntry>() as u64;
        // SAFETY: passed on.
        unsafe {
            let [q_first, q_rows, kv_first, kv_rows] = copy::load_u32x4(at);
            let [first_row, index, first_block, end_block] = copy::load_u32x4(at + 16);
            let place = copy::load_u32(at + 32);
            let sequence = Sequence { q_first, q_rows, kv_first, kv_rows, place, index };
            (sequence, first_row, [first_block, end_block])
        }
    }
}
