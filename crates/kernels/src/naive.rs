//! Attention as every framework computed it before 2022: scores and probabilities go through device memory.
//!
//! ```text
//! scores = scale * q k^T, minus infinity where hidden      [`scores`], one tile a thread block
//! probs  = softmax(scores), row by row                     [`softmax`], one row a warp
//! out    = probs v                                         [`output`], a block of rows a thread block
//! ```
//!
//! Both products run on the tensor cores and both intermediates are written and read once, so the distance to v1 and v2 is what
//! the memory traffic costs. Masked blocks are computed like any other, as a framework's matrix product does.

use core::marker::PhantomData;

use cuda_std::{copy, math, shared, sync, thread, warp};
use kernel_spec::NaiveParams;
use kernel_spec::layout::{fragment_col, fragment_row};

use crate::block::QueryBlock;
use crate::element::Element;
use crate::tile::{GlobalRows, RegTile, SharedTile};

/// One `Q_BLOCK x KV_BLOCK` tile of the scores, in log2 units.
///
/// # Safety
/// Kernel entry: all `THREADS` threads of the block, with the shared memory that the variant asks for.
#[inline(always)]
pub unsafe fn scores<
    T: Element,
    const Q_BLOCK: usize,
    const KV_BLOCK: usize,
    const HEAD_DIM: usize,
    const THREADS: usize,
    const M: usize,
    const S: usize,
>(
    p: &NaiveParams,
) {
    // SAFETY: every thread of the block takes the same path; the barrier orders shared memory.
    unsafe {
        // Without keys no block is launched; without this line the divisions could panic.
        core::hint::assert_unchecked(p.forward.kv_rows > 0);
        let kv_blocks = p.forward.kv_rows.div_ceil(KV_BLOCK as u32);
        let (cta, kv_block) = (thread::block_index() / kv_blocks, thread::block_index() % kv_blocks);
        let block = QueryBlock::<T>::of(cta, &p.forward, Q_BLOCK as u32, KV_BLOCK as u32);
        let row = thread::warp_index() * 16 * M as u32;
        let key = kv_block * KV_BLOCK as u32;
        let q = SharedTile::<T, Q_BLOCK, HEAD_DIM>::at(shared::dynamic());
        let k = SharedTile::<T, KV_BLOCK, HEAD_DIM>::at(shared::dynamic() + SharedTile::<T, Q_BLOCK, HEAD_DIM>::BYTES);

        q.load::<THREADS>(&block.q, block.first_row);
        k.load::<THREADS>(&block.k, key);
        copy::commit_group();
        copy::wait_group::<0>();
        sync::block();

        let mut scores = RegTile::<M, S>::zero();
        T::mul_transposed(&mut scores, q, row, k, 0);
        let scale_log2 = if block.negative_scale { -block.scale_log2 } else { block.scale_log2 };
        scores.scale_rows(&crate::tile::RowValues::splat(scale_log2));
        block.hide(&mut scores, block.first_row + row, key);

        let lane = thread::lane();
        let first = p.scores + block.head * block.q.rows as u64 * p.score_stride * 4;
        for m in 0..M {
            for half in 0..2 {
                let row = block.first_row + row + 16 * m as u32 + fragment_row(lane, 2 * half);
                let address = first + (row as u64 * p.score_stride + (key + fragment_col(lane, 0)) as u64) * 4;
                for n in 0..S {
                    // The stride is a multiple of 8, so a fragment lies wholly inside a row of the buffer or wholly outside.
                    if row < block.q.rows && ((key + 8 * n as u32) as u64) < p.score_stride {
                        let pair = [scores.0[m][n][2 * half as usize], scores.0[m][n][2 * half as usize + 1]];
                        copy::store_f32x2(address + 32 * n as u64, pair);
                    }
                }
            }
        }
    }
}

/// One row of probabilities and its log-sum-exp, by one warp. Columns between the keys and the stride become 0.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn softmax<T: Element>(p: &NaiveParams) {
    // SAFETY: a whole warp works on one row, and every address below is inside that row of a buffer.
    unsafe {
        let row = thread::block_index() as u64 * (thread::block_size() / 32) as u64 + thread::warp_index() as u64;
        if row >= p.score_rows {
            return;
        }
        let lane = thread::lane();
        let scores = p.scores + row * p.score_stride * 4;
        let probs = p.probs + row * p.score_stride * T::BYTES as u64;
        let stride = p.score_stride as u32;
        // Four columns a lane at a time; the scores pass wrote minus infinity up to the stride.
        let load = |col: u32| copy::load_f32x4(scores + col as u64 * 4);

        let mut max = f32::NEG_INFINITY;
        for col in (4 * lane..stride).step_by(128) {
            max = load(col).into_iter().fold(max, math::max);
        }
        let max = warp::max(max);
        let offset = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sum = 0.0;
        for col in (4 * lane..stride).step_by(128) {
            sum = load(col).into_iter().fold(sum, |sum, s| sum + math::exp2(s - offset));
        }
        let sum = warp::sum(sum);
        let inverse = if sum == 0.0 { 0.0 } else { math::reciprocal(sum) };
        for col in (4 * lane..stride).step_by(128) {
            let [a, b, c, d] = load(col);
            let p = |s: f32| math::exp2(s - offset) * inverse;
            T::store_four(probs + (col as usize * T::BYTES) as u64, [p(a), p(b), p(c), p(d)]);
        }
        if p.forward.lse != 0 && lane == 0 {
            let lse = (max + math::log2(sum)) * core::f32::consts::LN_2;
            copy::store_f32(p.forward.lse + row * 4, lse);
        }
    }
}

/// `Q_BLOCK` rows of `out = probs v`. Slot `j % 2` holds a tile of probabilities and a tile of values.
///
/// # Safety
/// Kernel entry: all `THREADS` threads of the block, with the shared memory that the variant asks for.
#[inline(always)]
pub unsafe fn output<
    T: Element,
    const Q_BLOCK: usize,
    const KV_BLOCK: usize,
    const HEAD_DIM: usize,
    const THREADS: usize,
    const M: usize,
    const O: usize,
>(
    p: &NaiveParams,
) {
    // SAFETY: every thread of the block takes the same path; the barriers order shared memory.
    unsafe {
        let block = QueryBlock::<T>::of(thread::block_index(), &p.forward, Q_BLOCK as u32, KV_BLOCK as u32);
        let row = thread::warp_index() * 16 * M as u32;
        let row_bytes = p.score_stride * T::BYTES as u64;
        let probs_bytes = SharedTile::<T, Q_BLOCK, KV_BLOCK>::BYTES;
        let slot_bytes = probs_bytes + SharedTile::<T, KV_BLOCK, HEAD_DIM>::BYTES;
        let probs = |j: u32| SharedTile::<T, Q_BLOCK, KV_BLOCK>::at(shared::dynamic() + j % 2 * slot_bytes);
        let v = |j: u32| SharedTile::<T, KV_BLOCK, HEAD_DIM>::at(shared::dynamic() + j % 2 * slot_bytes + probs_bytes);
        let kv_blocks = p.forward.kv_rows.div_ceil(KV_BLOCK as u32);
        let load = |j: u32| {
            if j < kv_blocks {
                let first_col = j * KV_BLOCK as u32;
                let source = GlobalRows {
                    address: p.probs
                        + block.head * block.q.rows as u64 * row_bytes
                        + (first_col as usize * T::BYTES) as u64,
                    row_bytes,
                    rows: block.q.rows,
                    cols: (p.score_stride as u32 - first_col).min(KV_BLOCK as u32),
                    aligned: true,
                    element: PhantomData,
                };
                probs(j).load::<THREADS>(&source, block.first_row);
                v(j).load::<THREADS>(&block.v, first_col);
            }
            copy::commit_group();
        };

        let mut out = RegTile::<M, O>::zero();
        load(0);
        for j in 0..kv_blocks {
            load(j + 1);
            copy::wait_group::<1>();
            sync::block();
            T::mul(&mut out, probs(j), row, v(j));
            sync::block();
        }
        block.store_out::<THREADS, Q_BLOCK, HEAD_DIM, M, O>(SharedTile::at(shared::dynamic()), row, 0, &out);
    }
}
