//! FlashAttention (Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022, algorithm 1),
//! with the loops exchanged so that a block of query rows walks over the key blocks, as the authors' own code came to do.
//!
//! ```text
//! for key blocks j:   s = q k_j^T             m' = max(m, rowmax(s))        p = e^(s - m')
//!                     l' = e^(m - m') l + rowsum(p)      o = (l e^(m - m') o + p v_j) / l'
//! at the end:         lse = m + ln(l)
//! ```
//!
//! A [sink](crate::attention::sink) comes in at the end: `o = o e^(m - m'') l / l''`.
//!
//! The output is a proper average after every step; the last line is computed as the update of an average,
//! `o + (p v_j - rowsum(p) o) / l'`, which rounds a small correction instead of the whole output. A warp owns a slice of every key block and all query rows, so that row maxima,
//! row sums and partial outputs pass between warps at every step: see [`exchange`](crate::attention::exchange) for its barriers.
//! [`v2`](crate::attention::v2) does away with both.
//!
//! | who | does |
//! | --- | --- |
//! | all threads | load the tiles, see [`stream`](crate::attention::stream) for the barriers |
//! | warp `w` | keys `8 S w ..` of every key block, for all query rows; dims `8 N w ..` of the output |
//!
//! ```text
//!   one query block (causal):    # # # # # # # # / .     `#` blocks without a mask, `/` blocks with element tests,
//!   rows ->                      # # # # # # # # # /     `.` blocks that are not visited
//! ```

use cuda_std::{math, shared, thread};
use kernel_spec::ForwardParams;
use kernel_spec::families::forward::memory::Stream;
use kernel_spec::families::forward::policy;

use crate::attention::exchange::Exchange;
use crate::attention::online_softmax::{OnlineSoftmax, inverse};
use crate::attention::query_block::QueryBlock;
use crate::attention::stream::{KvStream, StreamConfig};
use crate::attention::{self, exact};
use crate::parts::fragments::{Fragments, PerRow};
use crate::parts::products::{MulProbs, MulTransposed, Rounded};
use crate::parts::shared_tile::SharedMatrix;

/// What a row makes of v1.
pub trait Config: attention::Config + StreamConfig {
    /// The choices of the row.
    const POLICY: policy::V1;
    /// A tile of queries.
    type Q: SharedMatrix;
    /// The same rows of the output.
    type OutTile: SharedMatrix<Element = Self::Out>;
    /// Scores of a warp: all query rows, its share of a block's keys.
    type Scores: Fragments + MulTransposed<Self::Q, Self::K>;
    /// Probabilities of a warp.
    type Probs: Rounded<Self::Scores>;
    /// What a warp's keys give to the output: all query rows, all dims.
    type Partial: Fragments<Rows = <Self::Scores as Fragments>::Rows> + MulProbs<Self::Probs, Self::V>;
    /// Output of a warp: all query rows, its share of the dims.
    type Acc: Fragments<Rows = <Self::Scores as Fragments>::Rows>;
}

/// One thread block of v1.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn forward<C: Config>(p: &ForwardParams) {
    let memory = const { Stream::of(C::ROW, C::POLICY.slots) };
    // SAFETY: every thread of the block takes the same path; the barriers of stream and exchange order shared memory.
    unsafe {
        let block = QueryBlock::<C>::of(thread::block_index(), p);
        let blocks = block.kv_blocks;
        let warp = thread::warp_index();
        let warp_key = warp * 8 * C::Scores::N as u32;
        let q = C::Q::at(shared::dynamic() + memory.q);
        let exchange =
            Exchange::<C>::at(shared::dynamic() + memory.partial, shared::dynamic() + memory.statistics, warp);

        q.load::<C>(&block.q, block.first_row);
        let kv = KvStream::<C, _, _>::start(block.k, block.v, shared::dynamic() + memory.slots, blocks);
        block.apply_sign::<C, _>(q);

        let mut softmax = OnlineSoftmax::new();
        let mut out = C::Acc::zero();
        let mut visit = #[inline(always)]
        |block: &QueryBlock<C>, i: u32, masked: bool| {
            let k = kv.keys(i);
            let mut scores = C::Scores::zero();
            scores.mul_transposed(q, 0, k, warp_key);
            let key = blocks.visit(i) * C::ROW.kv_block + warp_key;
            block.modify(&mut scores, block.first_row, key);
            if masked {
                block.hide(&mut scores, block.first_row, key);
            }

            let step = softmax.step::<C::T, _>(&mut scores, block.scale, masked | block.may_hide(), &exchange);

            block.drop(&mut scores, block.first_row, key);
            let v = kv.values(i);
            let mut partial = C::Partial::zero();
            partial.mul_probs(&C::Probs::round(&scores), v, warp_key);
            out.average_in(&exchange.columns(&partial), &step.sum, &inverse(&softmax.sum));
        };
        for i in 0..blocks.unmasked_count() {
            visit(&block, i, false);
        }
        // Anew, or f32 at 256 dims spills what the first loop carries along for the second, and for the end.
        let block = QueryBlock::<C>::again(p);
        for i in blocks.unmasked_count()..blocks.count() {
            visit(&block, i, true);
        }

        let block = QueryBlock::<C>::again(p);
        if warp == 0 {
            block.store_lse(block.first_row, &softmax.max, &softmax.sum);
        }
        // The output is an average already: only a factor of NaN is left to take, the share of the weights that a sink leaves to the keys, or the
        // factor of what dropout has kept.
        let factors = exact::factors(&block, block.first_row, &softmax.max, &softmax.sum);
        let kept = block.kept_factor();
        if block.has_sink() {
            // A sink that weighs nothing leaves every bit, which a product of a sum and its reciprocal would not.
            let share = |factor: f32, sum| if factor == math::reciprocal(sum) { kept } else { factor * sum * kept };
            out.scale_rows(&factors.zip(&softmax.sum, share));
        } else {
            out.scale_rows(&factors.map(|factor| if factor.is_nan() { factor } else { kept }));
        }
        let not_finite = out.any_not_finite::<C::Out>();
        let tile = C::OutTile::at(shared::dynamic() + memory.q);
        block.store_out::<C, _>(tile, 0, warp * 8 * C::Acc::N as u32, &out);
        exact::mend::<C>(p, not_finite);
    }
}
