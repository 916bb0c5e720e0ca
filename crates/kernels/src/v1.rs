//! FlashAttention (Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022, algorithm 1),
//! with the loops exchanged so that a block of query rows walks over the key blocks, as the authors' own code came to do.
//!
//! ```text
//! for key blocks j:   s = q k_j^T             m' = max(m, rowmax(s))        p = e^(s - m')
//!                     l' = e^(m - m') l + rowsum(p)      o = (l e^(m - m') o + p v_j) / l'
//! at the end:         lse = m + ln(l)
//! ```
//!
//! The output is a proper average after every step; the last line is computed as the update of an average,
//! `o + (p v_j - rowsum(p) o) / l'`, which rounds a small correction instead of the whole output. A warp owns a slice of every key block and all query rows, so that row maxima,
//! row sums and partial outputs pass between warps at every step: see [`exchange`](crate::exchange) for its barriers.
//! [`v2`](crate::v2) does away with both.
//!
//! | who | does |
//! | --- | --- |
//! | all threads | load the tiles, see [`stream`](crate::stream) for the barriers |
//! | warp `w` | keys `8 S w ..` of every key block, for all query rows; dims `8 N w ..` of the output |
//!
//! ```text
//!   one query block (causal):    # # # # # # # # / .     `#` blocks without a mask, `/` blocks with element tests,
//!   rows ->                      # # # # # # # # # /     `.` blocks that are not visited
//! ```

use cuda_std::{shared, thread};
use kernel_spec::ForwardParams;

use crate::block::QueryBlock;
use crate::element::Element;
use crate::exchange::Exchange;
use crate::softmax;
use crate::stream::KvStream;
use crate::tile::{RegTile, RowValues, SharedTile};

/// One thread block of v1. A warp holds `M` fragments of 16 query rows, `S` fragments of 8 keys, `O` fragments of 8 dims for its
/// partial output and `N` for its share of the output.
///
/// # Safety
/// Kernel entry: all `THREADS` threads of the block, with the shared memory that the variant asks for.
#[inline(always)]
pub unsafe fn forward<
    T: Element,
    const Q_BLOCK: usize,
    const KV_BLOCK: usize,
    const HEAD_DIM: usize,
    const WARPS: usize,
    const THREADS: usize,
    const RING: usize,
    const M: usize,
    const S: usize,
    const O: usize,
    const N: usize,
>(
    p: &ForwardParams,
) {
    // SAFETY: every thread of the block takes the same path; the barriers of stream and exchange order shared memory.
    unsafe {
        let block = QueryBlock::<T>::of(thread::block_index(), p, Q_BLOCK as u32, KV_BLOCK as u32);
        let blocks = block.kv_blocks;
        let warp = thread::warp_index();
        let key = warp * 8 * S as u32;
        let q = SharedTile::<T, Q_BLOCK, HEAD_DIM>::at(shared::dynamic());
        let slots = shared::dynamic() + SharedTile::<T, Q_BLOCK, HEAD_DIM>::BYTES;
        let scratch = slots + RING as u32 * SharedTile::<T, KV_BLOCK, HEAD_DIM>::BYTES;
        let exchange = Exchange::<WARPS, M, HEAD_DIM>::at(scratch, warp);

        q.load::<THREADS>(&block.q, block.first_row);
        let kv = KvStream::<T, KV_BLOCK, HEAD_DIM, THREADS, RING>::start(block.k, block.v, slots, blocks);
        block.apply_sign::<THREADS, Q_BLOCK, HEAD_DIM>(q);

        let mut max = RowValues::<M>::splat(f32::NEG_INFINITY);
        let mut sum = RowValues::<M>::splat(0.0);
        let mut out = RegTile::<M, N>::zero();
        let mut visit = #[inline(always)]
        |i: u32, masked: bool| {
            let k = kv.keys(i);
            let mut scores = RegTile::<M, S>::zero();
            T::mul_transposed(&mut scores, q, 0, k, key);
            if masked {
                block.hide(&mut scores, block.first_row, blocks.visit(i) * KV_BLOCK as u32 + key);
            }

            let new_max = max.zip(&exchange.max(&softmax::row_max(&scores, block.scale_log2)), f32::max);
            let base = softmax::base(&new_max, masked);
            let rescale = softmax::rescale(&max, &base);
            let probs_sum = softmax::exponentiate(&mut scores, &base, block.scale_log2);
            let probs_sum = exchange.sum(&softmax::quad_sum(&probs_sum));
            max = new_max;
            sum = sum.zip(&rescale, |l, alpha| l * alpha).zip(&probs_sum, |l, p| l + p);

            let v = kv.values(i);
            let mut partial = RegTile::<M, O>::zero();
            T::mul_probs(&mut partial, &T::round_probs(&scores), v, key);
            out.average_in(&exchange.columns(&partial), &probs_sum, &softmax::inverse(&sum));
        };
        for i in 0..blocks.unmasked_count() {
            visit(i, false);
        }
        for i in blocks.unmasked_count()..blocks.count() {
            visit(i, true);
        }

        if warp == 0 {
            block.store_lse(block.first_row, &max, &sum);
        }
        block.store_out::<THREADS, Q_BLOCK, HEAD_DIM, M, N>(q, 0, warp * 8 * N as u32, &out);
    }
}
