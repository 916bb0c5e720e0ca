//! [`v2`](crate::attention::v2) over sequences: the same loop, over the keys of one split.
//!
//! Three things differ. Rows come from wherever their sequence has them, in pages or not; query heads that share keys fill a tile together;
//! and where the keys are split, sums leave as they are, with the maxima that they are measured against, for [`merge`](super::merge) to
//! divide.

use cuda_std::{shared, thread};
use kernel_spec::families::forward::memory::Stream;
use kernel_spec::families::sequences::{SequencesParams, policy};

use crate::attention::online_softmax::{Alone, OnlineSoftmax, quad_sum};
use crate::attention::sequences::block::SequenceBlock;
use crate::attention::sequences::mend::mend;
use crate::attention::stream::{KvStream, StreamConfig};
use crate::attention::{self, exact};
use crate::parts::fragments::Fragments;
use crate::parts::products::{MulProbs, MulTransposed, Rounded};
use crate::parts::shared_tile::SharedMatrix;

/// What a row makes of prefill.
pub trait Config: attention::Config<Out = <Self as attention::Config>::T> + StreamConfig {
    /// The choices of the row.
    const POLICY: policy::Prefill;
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

/// One thread block of prefill.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn forward<C: Config>(p: &SequencesParams) {
    let memory = const { Stream::of(C::ROW, C::POLICY.slots) };
    // SAFETY: every thread of the block takes the same path; the stream's barriers order shared memory.
    unsafe {
        let Some(own) = SequenceBlock::<C>::of(p, thread::block_index()) else { return };
        let (block, blocks) = (&own.block, own.kv_blocks);
        let is_split = p.splits.value > 1;
        if is_split && blocks.count() == 0 {
            return own.store_empty_split(p);
        }
        let row = thread::warp_index() * 16 * C::Scores::M as u32;
        let q = C::Q::at(shared::dynamic() + memory.q);

        q.load::<C>(&own.q, block.first_row);
        let kv = KvStream::<C, _, _>::start(own.k, own.v, shared::dynamic() + memory.slots, blocks);
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

            let probs = C::Probs::round(&scores);
            let v = early.unwrap_or_else(|| kv.values(i));
            out.scale_rows(&step.rescale);
            out.mul_probs(&probs, v, 0);
        };
        for i in 0..blocks.unmasked_count() {
            visit(i, false);
        }
        for i in blocks.unmasked_count()..blocks.count() {
            visit(i, true);
        }
        let sum = quad_sum(&softmax.sum);
        let row = block.first_row + row;
        if is_split {
            return own.store_split(p, row, 0, &out, [&softmax.max, &sum], true);
        }
        out.scale_rows(&exact::factors(block, row, &softmax.max, &sum));
        own.store_lse(p, row, &softmax.max, &sum);
        let tile = C::OutTile::at(shared::dynamic() + memory.q);
        block.store_tile::<C, _>(tile, &own.out, row - block.first_row, 0, &out);
        mend::<C>(p, out.any_not_finite::<C::Out>());
    }
}
