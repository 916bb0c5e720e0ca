//! FlashAttention-2 (Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023, algorithm 1).
//!
//! ```text
//! for key blocks j:   s = q k_j^T             m' = max(m, rowmax(s))        p = e^(s - m')
//!                     l = e^(m - m') l + rowsum(p)       o = e^(m - m') o + p v_j
//! at the end:         o = o / l                lse = m + ln(l)
//! ```
//!
//! With dropout, weights of 0 take the place of some of `p` in the product with `v_j`, and not in `l`; `o` is divided by `(1 - p) l` at the end.
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
use kernel_spec::families::forward::features::DROPOUT;
use kernel_spec::families::forward::memory::Stream;
use kernel_spec::families::forward::policy;

use crate::attention::online_softmax::{Alone, OnlineSoftmax, quad_sum};
use crate::attention::query_block::QueryBlock;
use crate::attention::stream::{KvStream, StreamConfig};
use crate::attention::{self, exact};
use crate::parts::fragments::{Fragments, PerRow};
use crate::parts::products::{MulProbs, MulTransposed, Rounded};
use crate::parts::shared_tile::SharedMatrix;

/// What a row makes of v2.
pub trait Config: attention::Config + StreamConfig {
    /// The choices of the row.
    const POLICY: policy::V2;
    /// A tile of queries.
    type Q: SharedMatrix;
    /// The same rows of the output.
    type OutTile: SharedMatrix<Element = Self::Out>;
    /// Scores of a warp: some query rows, all keys of a block.
    type Scores: Fragments + MulTransposed<Self::Q, Self::K>;
    /// Probabilities of a warp.
    type Probs: Rounded<Self::Scores>;
    /// Output of a warp: its query rows, all dims.
    type Acc: Fragments<Rows = <Self::Scores as Fragments>::Rows> + MulProbs<Self::Probs, Self::V>;
}

/// One thread block of v2.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn forward<C: Config>(p: &ForwardParams) {
    let memory = const { Stream::of(C::ROW, C::POLICY.slots) };
    // SAFETY: every thread of the block takes the same path; the stream's barriers order shared memory.
    unsafe {
        let block = QueryBlock::<C>::of(thread::block_index(), p);
        let blocks = block.kv_blocks;
        let row = thread::warp_index() * 16 * C::Scores::M as u32;
        let q = C::Q::at(shared::dynamic() + memory.q);

        q.load::<C>(&block.q, block.first_row);
        let kv = KvStream::<C, _, _>::start(block.k, block.v, shared::dynamic() + memory.slots, blocks);
        block.apply_sign::<C, _>(q);

        let mut softmax = OnlineSoftmax::new();
        let mut out = C::Acc::zero();
        let mut visit = #[inline(always)]
        |i: u32, masked: bool| {
            let k = kv.keys(i);
            let mut scores = C::Scores::zero();
            scores.mul_transposed(q, row, k, 0);
            let (row, key) = (block.first_row + row, blocks.visit(i) * C::ROW.kv_block);
            block.modify(&mut scores, row, key);
            if masked {
                block.hide(&mut scores, row, key);
            }

            let early = C::POLICY.early_values.then(|| kv.values(i));
            let step = softmax.step::<C::T, _>(&mut scores, block.scale, masked | block.may_hide(), &Alone);

            block.drop(&mut scores, row, key);
            let probs = C::Probs::round(&scores);
            let v = early.unwrap_or_else(|| kv.values(i));
            out.scale_rows(&step.rescale);
            out.mul_probs(&probs, v, 0);
        };
        // Two copies of the loop: a branch around the element tests would cost a move for every score that crosses it.
        for i in 0..blocks.unmasked_count() {
            visit(i, false);
        }
        for i in blocks.unmasked_count()..blocks.count() {
            visit(i, true);
        }
        let sum = quad_sum(&softmax.sum);
        let row = block.first_row + row;
        let mut factors = exact::factors(&block, row, &softmax.max, &sum);
        if const { C::ROW.entry.takes(DROPOUT) } {
            factors = factors.map(|factor| factor * block.kept_factor());
        }
        out.scale_rows(&factors);

        block.store_lse(row, &softmax.max, &sum);
        block.store_out::<C, _>(C::OutTile::at(shared::dynamic() + memory.q), row - block.first_row, 0, &out);
        exact::mend::<C>(p, out.any_not_finite::<C::Out>());
    }
}
