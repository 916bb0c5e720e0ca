//! The gradients of queries, in the shape of [`v2`](crate::attention::v2).
//!
//! ```text
//! for key blocks j:   dp = dout v_j^T        s = q k_j^T        p = e^(scale s - lse)        ds = p (dp - delta)        dq += ds k_j
//! at the end:         dq = scale dq
//! ```
//!
//! Values come before keys, which are needed twice: tiles pass through two slots in turn, `k_j` arrives under `dout v_j^T`, and
//! `v_{j+1}` under everything else.
//!
//! | who | does |
//! | --- | --- |
//! | all threads | load the tiles, see [`stream`](crate::attention::stream) for the barriers |
//! | warp `w` | rows `16 M w ..` of the query block |

use cuda_std::{copy, math, shared, sync, thread, warp};
#[cfg(not(target_feature = "sm_90a"))]
use kernel_spec::families::backward::PackedBackwardParams;
use kernel_spec::families::backward::memory::Queries as Memory;
use kernel_spec::families::backward::{BackwardParams, STATISTICS_BYTES, policy};
use kernel_spec::families::forward::features::DROPOUT;

#[cfg(not(target_feature = "sm_90a"))]
use crate::attention::backward::packed::Own;
use crate::attention::backward::{
    self, Scores, Statistics, load_statistics, place, random, source, target, weigh_rows,
};
use crate::attention::dropout::{RowMarks, drop_and_scale};
use crate::attention::stream::{KvStream, StreamConfig};
use crate::parts::fragments::Fragments;
use crate::parts::products::{MulProbs, MulTransposed, Rounded};
use crate::parts::shared_tile::SharedMatrix;

/// What a row makes of this kernel. Its stream is one of values and keys, see above.
pub trait Config: backward::Config + StreamConfig<K = Self::Kv, V = Self::Kv> {
    /// The choices of the row.
    const POLICY: policy::Queries;
    /// A tile of keys or values.
    type Kv: SharedMatrix<Element = Self::T>;
    /// A tile of queries, of output gradients, or of gradients of queries.
    type Q: SharedMatrix<Element = Self::T>;
    /// Scores of a warp: some query rows, all keys of a block.
    type Scores: Fragments + MulTransposed<Self::Q, Self::Kv>;
    /// Gradients of scores, rounded.
    type Dscores: Rounded<Self::Scores>;
    /// Gradients of a warp: its query rows, all columns.
    type Acc: Fragments<Rows = <Self::Scores as Fragments>::Rows> + MulProbs<Self::Dscores, Self::Kv>;
}

/// What one thread block works on: a block of query rows of one head.
struct QueryBlock {
    batch: u32,
    /// The same, or the sequence, of programs on scores.
    entry: u32,
    q_head: u32,
    kv_head: u32,
    first_row: u32,
}

impl QueryBlock {
    /// The share of this thread block. Numbered as v2's: last row first, then heads, then batch.
    #[inline(always)]
    fn of<C: Config>(p: &BackwardParams) -> Self {
        // Opaque, so that it can be computed anew.
        let (cta, q_rows) = (thread::block_index(), math::opaque(p.q_rows));
        // SAFETY: the host launches no block for an empty problem. Without this, every division could panic.
        unsafe { core::hint::assert_unchecked(q_rows > 0 && p.q_heads > 0 && p.group > 0) };
        let q_blocks = q_rows.div_ceil(C::ROW.q_block);
        let (head, index) = (cta / q_blocks, cta % q_blocks);
        let (batch, q_head) = (head / p.q_heads, head % p.q_heads);
        // From one lane to all: ptxas then keeps what follows from these in uniform registers.
        // SAFETY: a whole block does it.
        let [batch, q_head, kv_head, index] =
            [batch, q_head, q_head / p.group, index].map(|x| unsafe { warp::broadcast(x, 0) });
        QueryBlock { batch, entry: batch, q_head, kv_head, first_row: (q_blocks - 1 - index) * C::ROW.q_block }
    }

    /// Block `index` of a head, counted from the last row.
    #[inline(always)]
    #[cfg(not(target_feature = "sm_90a"))]
    fn at<C: Config>(p: &BackwardParams, batch: u32, q_head: u32, index: u32) -> Self {
        // SAFETY: there are heads. Without this, a division could panic.
        unsafe { core::hint::assert_unchecked(p.group > 0) };
        let first_row = (p.q_rows.div_ceil(C::ROW.q_block) - 1 - index) * C::ROW.q_block;
        QueryBlock { batch, entry: batch, q_head, kv_head: q_head / p.group, first_row }
    }
}

/// `dq` of the block of query rows `$block` of a problem, which is found anew where it is asked for: all threads of the block, with the shared
/// memory that the row asks for.
macro_rules! gradients_of {
    ($C:ident, $p:ident, $block:expr) => {
        let memory = const { Memory::of($C::ROW, $C::POLICY) };
        // SAFETY: every thread of the block takes the same path; the stream's barriers order shared memory.
        unsafe {
            let QueryBlock { batch, entry, q_head, kv_head, first_row } = $block;
            let blocks = $p.band.kv_blocks(first_row, $C::ROW.q_block, $p.q_rows, $p.kv_rows, $C::ROW.kv_block);

            let row = thread::warp_index() * 16 * $C::Scores::M as u32;
            // In shared memory: two numbers a row would live in registers through the loop.
            let statistics = shared::dynamic() + memory.statistics + row * STATISTICS_BYTES;
            let q = $C::Q::at(shared::dynamic() + memory.q);
            let dout = $C::Q::at(shared::dynamic() + memory.dout);
            let (q_head_rows, kv_head_rows) = ([batch, q_head, $p.q_rows], [batch, kv_head, $p.kv_rows]);
            q.load::<$C>(&source::<$C>($p, &$p.q, q_head_rows), first_row);
            dout.load::<$C>(&source::<$C>($p, &$p.dout, q_head_rows), first_row);
            load_statistics::<$C>(shared::dynamic() + memory.statistics, $p, batch * $p.q_heads + q_head, first_row);
            let [v, k] = [&$p.v, &$p.k].map(|tensor| source::<$C>($p, tensor, kv_head_rows));
            let stream = KvStream::<$C, _, _>::start(v, k, shared::dynamic() + memory.slots, blocks);

            let mut dq = $C::Acc::zero();
            let mut visit = #[inline(always)]
            |i: u32, masked: bool| {
                // In front of the products: the marks are fewer registers than what they are made of.
                let kept = if const { $C::ROW.entry.takes(DROPOUT) } {
                    let random = random($p, [entry, q_head]);
                    let first_key = blocks.visit(i) * $C::ROW.kv_block;
                    Some(RowMarks::of::<$C::Scores>(&random, first_row + row, first_key))
                } else {
                    None
                };
                let mut dscores = $C::Scores::zero();
                dscores.mul_transposed(dout, row, stream.keys(i), 0);
                let k = stream.values(i);
                let mut weights = $C::Scores::zero();
                weights.mul_transposed(q, row, k, 0);
                let first_key = blocks.visit(i) * $C::ROW.kv_block;
                let place =
                    |query: u32, key: u32| place($p, [entry, q_head], first_row + row + query, first_key + key);
                if let Some(kept) = &kept {
                    drop_and_scale(&mut dscores, kept);
                }
                weigh_rows::<$C, _>(&mut weights, &mut dscores, statistics, $p, place);
                if masked {
                    Scores::of($p).hide([&mut dscores], first_row + row, first_key);
                }
                dq.mul_probs(&$C::Dscores::round(&dscores), k, 0);
            };
            // Two copies of the loop: a branch around the element tests would cost a move for every score that crosses it.
            for i in 0..blocks.unmasked_count() {
                visit(i, false);
            }
            for i in blocks.unmasked_count()..blocks.count() {
                visit(i, true);
            }

            // A block without keys never waited for its queries.
            copy::wait_group::<0>();
            sync::block();
            for m in 0..$C::Acc::M {
                for half in 0..2 {
                    // Not by a factor of 0: keys of minus infinity, which give a row no weight, are no numbers in the sum.
                    let weightless = Statistics::of_row(statistics, m, half).is_weightless();
                    for n in 0..$C::Acc::N {
                        for x in &mut dq.at_mut(m, n)[2 * half..2 * half + 2] {
                            *x = if weightless { 0.0 } else { *x * $p.scale };
                        }
                    }
                }
            }
            q.write(row, 0, &dq);
            sync::block();
            // Anew: it would live in registers through the loop.
            let QueryBlock { batch, q_head, first_row, .. } = $block;
            let rows = [batch, q_head, $p.q_rows];
            q.store::<$C>(&target::<$C>(&$p.dq, rows, $p.dim_qk, $p.dq_aligned != 0), first_row);
        }
    };
}

/// One thread block: `dq` of a block of query rows of one head.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn gradients<C: Config>(p: &BackwardParams) {
    gradients_of! { C, p, QueryBlock::of::<C>(p) }
}

/// The same of a packed sequence.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
#[cfg(not(target_feature = "sm_90a"))]
pub unsafe fn packed_gradients<C: Config>(p: &PackedBackwardParams) {
    // SAFETY: passed on.
    let Some(Own { problem, sequence, head, tile }) = (unsafe { Own::of_queries::<C>(p) }) else { return };
    let p = &problem;
    gradients_of! { C, p, QueryBlock { entry: sequence, ..QueryBlock::at::<C>(p, 0, head, tile) } }
}
