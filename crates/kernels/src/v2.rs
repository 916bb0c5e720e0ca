//! FlashAttention-2 (Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023, algorithm 1).
//!
//! ```text
//! for key blocks j:   s = q k_j^T             m' = max(m, rowmax(s))        p = e^(s - m')
//!                     l = e^(m - m') l + rowsum(p)       o = e^(m - m') o + p v_j
//! at the end:         o = o / l                lse = m + ln(l)
//! ```
//!
//! Two things differ from [`v1`](crate::v1): the output stays unnormalised until the end, one division instead of one a step;
//! and a warp owns query rows and walks over all keys, so warps exchange nothing.
//!
//! | who | does |
//! | --- | --- |
//! | all threads | load the tiles, see [`stream`](crate::stream) for the barriers |
//! | warp `w` | rows `16 M w ..` of the query block: scores, softmax, output |
//!
//! ```text
//!   one query block (causal):    # # # # # # # # / .     `#` blocks without a mask, `/` blocks with element tests,
//!   rows ->                      # # # # # # # # # /     `.` blocks that are not visited
//! ```

use cuda_std::{shared, thread};
use kernel_spec::ForwardParams;

use crate::block::QueryBlock;
use crate::element::Element;
use crate::softmax;
use crate::stream::KvStream;
use crate::tile::{RegTile, RowValues, SharedTile};

/// One thread block of v2. A warp holds `M` fragments of 16 query rows, `S` fragments of 8 keys and `O` fragments of 8 dims.
///
/// `EARLY_VALUES` waits for the values before the softmax rather than after it. No barrier then stands between the two, and the
/// assembler lets exponentials run under the product with the values (H200, bf16, against FlashAttention-2 in the same run:
/// 1.16 to 1.22 instead of 1.07 to 1.14 at head dim 64). It costs registers: at head dim 128 it spills.
///
/// # Safety
/// Kernel entry: all `THREADS` threads of the block, with the shared memory that the variant asks for.
#[inline(always)]
pub unsafe fn forward<
    T: Element,
    const Q_BLOCK: usize,
    const KV_BLOCK: usize,
    const HEAD_DIM: usize,
    const THREADS: usize,
    const RING: usize,
    const M: usize,
    const S: usize,
    const O: usize,
    const EARLY_VALUES: bool,
>(
    p: &ForwardParams,
) {
    // SAFETY: every thread of the block takes the same path; the stream's barriers order shared memory.
    unsafe {
        let block = QueryBlock::<T>::of(thread::block_index(), p, Q_BLOCK as u32, KV_BLOCK as u32);
        let blocks = block.kv_blocks;
        let row = thread::warp_index() * 16 * M as u32;
        let q = SharedTile::<T, Q_BLOCK, HEAD_DIM>::at(shared::dynamic());
        let slots = shared::dynamic() + SharedTile::<T, Q_BLOCK, HEAD_DIM>::BYTES;

        q.load::<THREADS>(&block.q, block.first_row);
        let kv = KvStream::<T, KV_BLOCK, HEAD_DIM, THREADS, RING>::start(block.k, block.v, slots, blocks);
        block.apply_sign::<THREADS, Q_BLOCK, HEAD_DIM>(q);

        let mut max = RowValues::<M>::splat(f32::NEG_INFINITY);
        let mut sum = RowValues::<M>::splat(0.0);
        let mut out = RegTile::<M, O>::zero();
        let mut visit = #[inline(always)]
        |i: u32, masked: bool| {
            let k = kv.keys(i);
            let mut scores = RegTile::<M, S>::zero();
            T::mul_transposed(&mut scores, q, row, k, 0);
            if masked {
                block.hide(&mut scores, block.first_row + row, blocks.visit(i) * KV_BLOCK as u32);
            }

            let early = EARLY_VALUES.then(|| kv.values(i));
            let new_max = max.zip(&softmax::row_max(&scores, block.scale_log2), f32::max);
            let base = softmax::base(&new_max, masked);
            let rescale = softmax::rescale(&max, &base);
            let probs_sum = softmax::exponentiate(&mut scores, &base, block.scale_log2);
            max = new_max;
            sum = sum.zip(&rescale, |l, alpha| l * alpha).zip(&probs_sum, |l, p| l + p);

            let probs = T::round_probs(&scores);
            let v = early.unwrap_or_else(|| kv.values(i));
            out.scale_rows(&rescale);
            T::mul_probs(&mut out, &probs, v, 0);
        };
        // Two copies of the loop: a branch around the element tests would cost a move for every score that crosses it.
        for i in 0..blocks.unmasked_count() {
            visit(i, false);
        }
        for i in blocks.unmasked_count()..blocks.count() {
            visit(i, true);
        }
        let sum = softmax::quad_sum(&sum);
        out.scale_rows(&softmax::inverse(&sum));

        block.store_lse(block.first_row + row, &max, &sum);
        block.store_out::<THREADS, Q_BLOCK, HEAD_DIM, M, O>(q, row, 0, &out);
    }
}
