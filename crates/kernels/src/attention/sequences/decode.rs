//! Decoding: the few query rows of a step of generation against all keys of a sequence.
//!
//! ```text
//! each warp, over keys of its own:   s = q k_j^T     m' = max(m, rowmax(s))     p = e^(s - m')
//!                                    l = e^(m - m') l + rowsum(p)        o = e^(m - m') o + p v_j
//! once, over the warps w:            m = max m_w     l = sum e^(m_w - m) l_w     o = sum e^(m_w - m) o_w
//! ```
//!
//! A file of its own because it is bound by something else. One row of queries multiplies every key and value once: the time is that of
//! reading them, and what matters is how many bytes are on their way. [`v2`](crate::attention::v2) gives warps query rows, of which there are not
//! enough here, and lets them meet at every tile. Here each warp streams keys of its own through slots of its own, meets nobody until the
//! end, and has several tiles on the way; the query rows of all heads that share the keys fill its product ("PackGQA" of FlashAttention-3).
//! Where sequences and heads are too few for the GPU, the keys are split further, over thread blocks ("Flash-Decoding", Dao et al., 2023),
//! and [`merge`](super::merge) puts the splits together. On Hopper the splits of a row may be a cluster: each leaves what it has found
//! in its shared memory, and takes some of the rows to put together, so that no second kernel follows.

use cuda_std::{copy, shared, sync, thread, warp};
use kernel_spec::KvBlocks;
#[cfg(doc)]
use kernel_spec::families::sequences::policy;
use kernel_spec::families::sequences::{SequencesParams, memory};

use crate::attention::exchange::Exchange;
use crate::attention::online_softmax::{Alone, OnlineSoftmax};
use crate::attention::sequences::block::SequenceBlock;
use crate::attention::sequences::mend::mend;
use crate::attention::stream::{KvStream, StreamConfig};
use crate::attention::{self, exact};
use crate::parts::fragments::{Fragments, PerRow};
use crate::parts::products::{MulProbs, MulTransposed, Rounded};
use crate::parts::shared_tile::SharedMatrix;

/// What a row makes of decode.
pub trait Config: attention::Config<Out = <Self as attention::Config>::T> {
    /// Places that each warp's tiles pass through, see [`policy::Decode`].
    const SLOTS: u32;
    /// Whether the splits are the thread blocks of a cluster.
    const CLUSTER: bool;
    /// The tiles of a warp.
    type Stream: StreamConfig;
    /// A tile of queries.
    type Q: SharedMatrix;
    /// The same rows of the output.
    type OutTile: SharedMatrix<Element = Self::Out>;
    /// Scores of a warp: all query rows, the keys of its tile.
    type Scores: Fragments + MulTransposed<Self::Q, <Self::Stream as StreamConfig>::K>;
    /// Probabilities of a warp.
    type Probs: Rounded<Self::Scores>;
    /// What a warp's keys give to the output: all query rows, all dims.
    type Partial: Fragments<Rows = <Self::Scores as Fragments>::Rows>
        + MulProbs<Self::Probs, <Self::Stream as StreamConfig>::V>;
    /// Output of a warp: all query rows, its share of the dims.
    type Acc: Fragments<Rows = <Self::Scores as Fragments>::Rows>;
}

/// The blocks of warp `warp` of `warps`: neighbours, so that it reads on where it is.
#[inline(always)]
fn share(all: KvBlocks, warp: u32, warps: u32) -> KvBlocks {
    let (each, more) = (all.count() / warps, all.count() % warps);
    let from = all.first + warp * each + warp.min(more);
    all.between(from, from + each + (warp < more) as u32)
}

/// Whether all factors are 1.
#[inline(always)]
fn is_one<R: PerRow>(factors: &R) -> bool {
    let mut all = true;
    for m in 0..R::M {
        for half in 0..2 {
            all &= factors.at(m, half) == 1.0;
        }
    }
    all
}

/// One thread block of decode.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn forward<C: Config>(p: &SequencesParams) {
    let memory = const { memory::Decode::of(C::ROW, C::SLOTS) };
    let at = |offset: u32| shared::dynamic() + offset;
    // SAFETY: every thread of the block takes the same path, and every thread of a warp in the loop; the barriers order shared memory.
    unsafe {
        let Some(own) = SequenceBlock::<C>::of(p, thread::block_index()) else { return };
        let block = &own.block;
        let is_split = p.splits.value > 1;
        // A cluster waits for all of its thread blocks.
        if is_split && !C::CLUSTER && own.kv_blocks.count() == 0 {
            return own.store_empty_split(p);
        }
        let own_warp = thread::warp_index();
        let blocks = share(own.kv_blocks, own_warp, C::ROW.warps);
        let q = C::Q::at(at(memory.q));

        q.load::<C>(&own.q, block.first_row);
        copy::commit_group();
        let slots = at(memory.slots) + own_warp * memory.warp_bytes;
        let kv = KvStream::<C::Stream, _, _>::start(own.k, own.v, slots, blocks);
        block.apply_sign::<C, _>(q);
        // The stream has started one group a slot but one, behind that of the queries.
        kv.wait_for_older();
        sync::block();

        let mut softmax = OnlineSoftmax::new();
        let mut partial = C::Partial::zero();
        let mut visit = #[inline(always)]
        |i: u32, masked: bool| {
            let k = kv.keys(i);
            let mut scores = C::Scores::zero();
            scores.mul_transposed(q, 0, k, 0);
            let key = blocks.visit(i) * C::ROW.kv_block;
            block.modify(&mut scores, block.first_row, key);
            if masked {
                block.hide(&mut scores, block.first_row, key);
            }
            let step = softmax.step::<C::T, _>(&mut scores, block.scale, masked | block.may_hide(), &Alone);
            let probs = C::Probs::round(&scores);
            let v = kv.values(i);
            // Maxima settle after a few steps, and then there is nothing to rescale: a third of a step's arithmetic.
            if warp::any(!is_one(&step.rescale)) {
                partial.scale_rows(&step.rescale);
            }
            partial.mul_probs(&probs, v, 0);
        };
        for i in 0..blocks.unmasked_count() {
            visit(i, false);
        }
        for i in blocks.unmasked_count()..blocks.count() {
            visit(i, true);
        }

        // The slots become the place of what the warps tell each other.
        copy::wait_group::<0>();
        sync::block();
        let exchange = Exchange::<C>::at(at(memory.partial), at(memory.statistics), own_warp);
        partial.scale_rows(&softmax.join::<C::T>(&exchange));
        let mut out: C::Acc = exchange.columns(&partial);
        let (first_row, first_col) = (block.first_row, own_warp * 8 * C::Acc::N as u32);
        if C::CLUSTER {
            let found = [memory.found, memory.found_statistics].map(at);
            return own.merge_in_cluster(p, found, first_col, &out, [&softmax.max, &softmax.sum]);
        }
        if is_split {
            return own.store_split(p, first_row, first_col, &out, [&softmax.max, &softmax.sum], own_warp == 0);
        }
        out.scale_rows(&exact::factors(block, first_row, &softmax.max, &softmax.sum));
        if own_warp == 0 {
            own.store_lse(p, first_row, &softmax.max, &softmax.sum);
        }
        block.store_tile::<C, _>(C::OutTile::at(at(memory.q)), &own.out, 0, first_col, &out);
        mend::<C>(p, out.any_not_finite::<C::Out>());
    }
}
