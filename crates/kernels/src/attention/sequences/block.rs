//! The query rows of a thread block, and the keys of a split that they see.

use cuda_std::{cluster, copy, shared, thread};
use kernel_spec::families::sequences::SequencesParams;
use kernel_spec::layout::fragment_row;
use kernel_spec::{Divisor, KvBlocks};

use crate::attention::Config;
use crate::attention::query_block::{QueryBlock, QueryRow};
use crate::attention::sequences::mend::mend;
use crate::attention::sequences::merge::{InCluster, merge_row};
use crate::attention::sequences::place::{Place, lse_address, partial_index};
use crate::attention::sequences::rows::{HeadRows, SequenceRows};
use crate::attention::sequences::sequence::Sequence;
use crate::attention::sink;
use crate::parts::element::Element;
use crate::parts::fragments::{Fragments, PerRow};
use crate::parts::rows::RowSource;

/// The query rows of a [`Place`], and the keys of a split that they see.
pub struct SequenceBlock<C: Config<Out = <C as Config>::T>> {
    /// Rows, mask and scale, as the kernels of uniform sequences have them.
    pub block: QueryBlock<C>,
    /// Queries, as the block counts rows.
    pub q: HeadRows<C::T>,
    /// Output, likewise.
    pub out: HeadRows<C::Out>,
    /// Keys.
    pub k: SequenceRows<C::T>,
    /// Values.
    pub v: SequenceRows<C::T>,
    /// The key blocks of the split that the rows visit.
    pub kv_blocks: KvBlocks,
    sequence: Sequence,
    place: Place,
    split: u32,
}

impl<C: Config<Out = <C as Config>::T>> SequenceBlock<C> {
    /// The share of thread block `cta`: splits are neighbours. `None`: there is nothing to do.
    ///
    /// # Safety
    /// All threads of the block, converged.
    #[inline(always)]
    pub unsafe fn of(p: &SequencesParams, cta: u32) -> Option<Self> {
        let (index, split) = p.splits.split(cta);
        // SAFETY: passed on.
        unsafe { SequenceBlock::at(p, Place::of(p, index, C::ROW.q_block)?, split) }
    }

    #[inline(always)]
    unsafe fn at(p: &SequencesParams, place: Place, split: u32) -> Option<Self> {
        // SAFETY: passed on.
        let sequence = unsafe { Sequence::of(p, place.sequence, C::T::BYTES) };
        let Sequence { problem, pages, .. } = &sequence;
        let pages = *pages;
        let packed_log2 = p.packed_log2;
        let tiles = (problem.q_rows << packed_log2).div_ceil(C::ROW.q_block);
        if place.tile >= tiles {
            return None;
        }
        // Last rows first, as in `QueryBlock::of`.
        let first_row = (tiles - 1 - place.tile) * C::ROW.q_block;
        let [first, rows] = [first_row, C::ROW.q_block].map(|rows| rows >> packed_log2);
        let all = problem.band.kv_blocks(first, rows, problem.q_rows, problem.kv_rows, C::ROW.kv_block);
        let kv_blocks = part(all, split, &p.splits, p.split_keys, C::ROW.kv_block);
        let mut block = QueryBlock::at(problem, 0, place.q_head, place.kv_head, first_row, kv_blocks);
        block.packed_log2 = packed_log2;
        block.batch = place.sequence;
        let q = HeadRows::new(&block.q, problem.q.head_stride, packed_log2, place.heads);
        let out = HeadRows::new(&block.out, problem.out.head_stride, packed_log2, place.heads);
        let (k, v) = (SequenceRows::new(&block.k, pages, &problem.k), SequenceRows::new(&block.v, pages, &problem.v));
        Some(SequenceBlock { block, q, out, k, v, kv_blocks, sequence, place, split })
    }

    /// Whether the block has a row, and which.
    #[inline(always)]
    fn row(&self, row: u32) -> Option<QueryRow> {
        let at = self.block.row(row);
        (self.q.has(row)).then_some(at)
    }

    /// Writes the log-sum-exp, see [`QueryBlock::store_lse`].
    ///
    /// # Safety
    /// All threads of the warp, converged; no other warp writes these rows.
    #[inline(always)]
    pub unsafe fn store_lse<R: PerRow>(&self, p: &SequencesParams, row: u32, max: &R, sum: &R) {
        if self.sequence.problem.lse == 0 {
            return;
        }
        let lane = thread::lane();
        for m in 0..R::M {
            for half in 0..2 {
                // The four lanes of a quad hold the same row.
                if let Some(at) = self.row(row + 16 * m as u32 + fragment_row(lane, 2 * half as u32))
                    && lane % 4 == 0
                {
                    let lse = sink::lse::<C::T>(max.at(m, half), sum.at(m, half), self.block.sink(|| at.head));
                    // SAFETY: inside the log-sum-exp.
                    unsafe { copy::store_f32(lse_address(self.sequence.problem.lse, p, self.place.q_head, at), lse) };
                }
            }
        }
    }

    /// Writes what a split has found: sums that are not yet divided, and the maxima and sums of weights of all rows. `first_col` is the
    /// first of the columns; only a warp that `has_statistics` writes those.
    ///
    /// # Safety
    /// As for [`Self::store_lse`].
    #[inline(always)]
    pub unsafe fn store_split<F: Fragments>(
        &self,
        p: &SequencesParams,
        row: u32,
        first_col: u32,
        out: &F,
        [max, sum]: [&F::Rows; 2],
        has_statistics: bool,
    ) {
        let lane = thread::lane();
        for m in 0..F::M {
            for half in 0..2 {
                let Some(at) = self.row(row + 16 * m as u32 + fragment_row(lane, 2 * half as u32)) else { continue };
                let index =
                    partial_index(p, self.split, self.place.q_head + at.head, self.sequence.first_token + at.row);
                let half = half as usize;
                // SAFETY: inside both buffers.
                unsafe {
                    if has_statistics && lane % 4 == 0 {
                        copy::store_f32x2(p.statistics + index * 8, [max.at(m, half), sum.at(m, half)]);
                    }
                    for n in 0..F::N {
                        let col = first_col + 8 * n as u32 + lane % 4 * 2;
                        if col < p.forward.dim_v {
                            let to = p.partial + (index * p.forward.dim_v as u64 + col as u64) * 4;
                            copy::store_f32x2(to, [out.at(m, n)[2 * half], out.at(m, n)[2 * half + 1]]);
                        }
                    }
                }
            }
        }
    }

    /// Leaves what this thread block has found in its shared memory, at the addresses `[sums, statistics]`, and puts the rows together that
    /// are its own: one in as many as the cluster has thread blocks.
    ///
    /// # Safety
    /// All threads of all thread blocks of the cluster, converged.
    #[inline(always)]
    pub unsafe fn merge_in_cluster<F: Fragments>(
        &self,
        p: &SequencesParams,
        [sums, statistics]: [u32; 2],
        first_col: u32,
        out: &F,
        [max, sum]: [&F::Rows; 2],
    ) {
        let lane = thread::lane();
        // SAFETY: inside both places; the cluster's barriers stand between writes, reads and the end of whoever is read from.
        unsafe {
            let warp = thread::warp_index();
            for m in 0..F::M {
                for half in 0..2 {
                    let row = 16 * m as u32 + fragment_row(lane, 2 * half as u32);
                    if warp == 0 && lane % 4 == 0 {
                        shared::store_f32x2(statistics + row * 8, [max.at(m, half), sum.at(m, half)]);
                    }
                    for n in 0..F::N {
                        let col = first_col + 8 * n as u32 + lane % 4 * 2;
                        let pair = [out.at(m, n)[2 * half], out.at(m, n)[2 * half + 1]];
                        shared::store_f32x2(sums + (row * C::ROW.dim_v + col) * 4, pair);
                    }
                }
            }
            cluster::sync();
            let mut again = false;
            // A warp of each thread block in turn, so that few rows are many thread blocks' work.
            let first = cluster::rank() + warp * p.splits.value;
            for row in (first..C::ROW.q_block).step_by((C::ROW.warps * p.splits.value) as usize) {
                if let Some(at) = self.row(self.block.first_row + row) {
                    let found = InCluster { row: sums + row * C::ROW.dim_v * 4, statistics: statistics + row * 8 };
                    again |= merge_row::<C::T>(p, &self.sequence, &self.place, at, &found);
                }
            }
            cluster::sync();
            mend::<C>(p, again);
        }
    }

    /// Writes that a split has no keys for the block's rows: no weights, and sums of 0, because the merge reads before it asks.
    ///
    /// # Safety
    /// All threads of the block.
    #[inline(always)]
    pub unsafe fn store_empty_split(&self, p: &SequencesParams) {
        let pieces = p.forward.dim_v / 4;
        // SAFETY: there are columns. Without this, a division could panic.
        unsafe { core::hint::assert_unchecked(pieces > 0) };
        for index in (thread::index()..C::ROW.q_block * pieces).step_by(C::THREADS) {
            let (row, piece) = (index / pieces, index % pieces);
            if let Some(at) = self.row(self.block.first_row + row) {
                let index =
                    partial_index(p, self.split, self.place.q_head + at.head, self.sequence.first_token + at.row);
                // SAFETY: inside both buffers.
                unsafe {
                    if piece == 0 {
                        copy::store_f32x2(p.statistics + index * 8, [f32::NEG_INFINITY, 0.0]);
                    }
                    copy::store_u32x4(p.partial + (index * p.forward.dim_v as u64 + piece as u64 * 4) * 4, [0; 4]);
                }
            }
        }
    }
}

/// The key blocks of one of so many splits, of `split_keys` keys, or 0 for equal ones.
#[inline(always)]
pub fn part(all: KvBlocks, split: u32, splits: &Divisor, split_keys: u32, kv_block: u32) -> KvBlocks {
    if splits.value == 1 {
        return all;
    }
    if split_keys == 0 {
        let blocks = splits.ceil(all.count());
        let from = all.first + split * blocks;
        return all.between(from.min(all.end), (from + blocks).min(all.end));
    }
    let blocks = split_keys / kv_block;
    // The last one has what is left: the host may know of fewer keys than there are.
    let end = if split + 1 == splits.value { u32::MAX } else { (split + 1) * blocks };
    all.between(split * blocks, end)
}
