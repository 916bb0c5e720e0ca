//! The gradients of keys and values.
//!
//! ```text
//! for heads of the group, query blocks i:    s^T = k q_i^T        p^T = e^(scale s^T - lse)        dp^T = v dout_i^T
//!                                            ds^T = p^T (dp^T - delta)       dv += p^T dout_i      dk += ds^T q_i
//! at the end:                                dk = scale dk
//! ```
//!
//! Scores are transposed, with keys as the rows: the accumulators of `p^T` and `ds^T` are then the left operands of the products that
//! follow, in the same lanes. Where the gradients of 16 keys do not fit the registers of a warp, two warps share key rows: each computes
//! the scores of half of the queries, weights pass between them through shared memory, and each adds up half of the columns.
//!
//! | who | does |
//! | --- | --- |
//! | all threads | load the tiles: keys and values once, queries, output gradients and statistics in stages |
//! | warp `w` | rows `16 M (w / columns) ..` of the key block; of them the gradients' pairs of 8 columns `w % columns`, and every `columns`th |
//!
//! ```text
//!   one key block (causal):      . . / # # # # #     `#` query blocks without a mask, `/` with element tests, `.` not visited
//! ```

use cuda_std::{copy, shared, sync, thread};
#[cfg(not(target_feature = "sm_90a"))]
use kernel_spec::families::backward::PackedBackwardParams;
use kernel_spec::families::backward::memory::Keys as Memory;
use kernel_spec::families::backward::{BackwardParams, STATISTICS_BYTES, policy};
use kernel_spec::families::forward::features::DROPOUT;

use crate::attention::backward::key_block::KeyBlock;
#[cfg(not(target_feature = "sm_90a"))]
use crate::attention::backward::packed::Own;
use crate::attention::backward::{self, Scores, load_statistics, place, random, source, target, weigh_columns};
use crate::attention::dropout::{ColumnMarks, drop_and_scale, drop_weights};
use crate::parts::fragments::{Fragments, RegTile};
use crate::parts::products::{MulProbs, MulTransposed, Probs, Products, Rounded};
use crate::parts::shared_tile::{SharedMatrix, SharedTile};

/// What a row makes of this kernel.
pub trait Config: backward::Config {
    /// The choices of the row.
    const POLICY: policy::Keys;
    /// A tile of keys, of values, or of their gradients.
    type Kv: SharedMatrix<Element = Self::T>;
    /// A tile of queries or output gradients.
    type Q: SharedMatrix<Element = Self::T>;
    /// Scores of a warp: its key rows, its share of a block's queries.
    type Scores: Fragments + MulTransposed<Self::Kv, Self::Q>;
    /// Weights of the key rows of a warp, over all queries of a block.
    type Weights: Weights<Self::Scores>;
    /// A gradient of a warp: its key rows, its share of the columns.
    type Acc: Fragments + MulWeights<Self::Weights, Self::Q>;
}

/// Left operands that some warps have computed and that each of them multiplies with.
pub trait Weights<S>: Copy {
    /// Rounds the values of a warp, rows from `row` and columns from `col` on. What is passed on lies at a shared address.
    ///
    /// # Safety
    /// All threads of the warp, converged; nobody reads the shared memory before a barrier.
    unsafe fn pass(values: &S, shared: u32, row: u32, col: u32) -> Self;
}

/// One warp has all of them: they stay in its registers.
impl<T: Products, const M: usize, const N: usize> Weights<RegTile<M, N>> for Probs<T, M, N> {
    #[inline(always)]
    unsafe fn pass(values: &RegTile<M, N>, _: u32, _: u32, _: u32) -> Self {
        Self::round(values)
    }
}

/// Warps that share rows have some columns each: they pass through shared memory.
impl<T: Products, S: Fragments, const ROWS: usize, const COLS: usize> Weights<S> for SharedTile<T, ROWS, COLS> {
    #[inline(always)]
    unsafe fn pass(values: &S, shared: u32, row: u32, col: u32) -> Self {
        let tile = Self::at(shared);
        // SAFETY: passed on.
        unsafe { tile.write(row, col, values) };
        tile
    }
}

/// Accumulators that hold `w b` of [`Weights`] `W` and tiles `B`.
pub trait MulWeights<W, B> {
    /// `self += w b` for the rows of `w` from `row` on, and the share `part` of the columns of `b`.
    ///
    /// # Safety
    /// All threads of the warp, converged; whatever lies in shared memory is complete and behind a barrier.
    unsafe fn mul_weights(&mut self, weights: &W, row: u32, b: B, part: u32);
}

impl<T: Products, const M: usize, const K: usize, const N: usize, const BR: usize, const D: usize>
    MulWeights<Probs<T, M, K>, SharedTile<T, BR, D>> for RegTile<M, N>
{
    #[inline(always)]
    unsafe fn mul_weights(&mut self, weights: &Probs<T, M, K>, _: u32, b: SharedTile<T, BR, D>, _: u32) {
        // SAFETY: passed on.
        unsafe { self.mul_probs(weights, b, 0) }
    }
}

impl<T: Products, const M: usize, const N: usize, const AR: usize, const K: usize, const D: usize>
    MulWeights<SharedTile<T, AR, K>, SharedTile<T, K, D>> for RegTile<M, N>
{
    #[inline(always)]
    unsafe fn mul_weights(&mut self, weights: &SharedTile<T, AR, K>, row: u32, b: SharedTile<T, K, D>, part: u32) {
        // SAFETY: passed on.
        unsafe { T::mul_part(self, *weights, row, b, part) }
    }
}

/// Where a thread block is on its way: a head of the group, and a visit of its query blocks.
#[derive(Clone, Copy)]
struct Step {
    head: u32,
    visit: u32,
}

impl KeyBlock {
    /// The step after this one.
    #[inline(always)]
    fn next(&self, Step { head, visit }: Step) -> Step {
        if visit + 1 < self.q_blocks.count() {
            Step { head, visit: visit + 1 }
        } else {
            Step { head: head + 1, visit: 0 }
        }
    }

    /// Starts loading queries, output gradients and statistics of a step, if there is one: into the stage at `stage` and the statistics
    /// at `statistics`.
    ///
    /// # Safety
    /// All threads of the block, converged; nobody reads the stage any more.
    #[inline(always)]
    unsafe fn load<C: Config>(&self, p: &BackwardParams, step: Step, stage: u32, dout: u32, statistics: u32) {
        if step.head < p.group && self.q_blocks.count() > 0 {
            let q_head = self.kv_head * p.group + step.head;
            let first_row = self.q_blocks.visit(step.visit) * C::ROW.q_block;
            let rows = [self.batch, q_head, p.q_rows];
            // SAFETY: passed on.
            unsafe {
                C::Q::at(stage).load::<C>(&source::<C>(p, &p.q, rows), first_row);
                C::Q::at(stage + dout).load::<C>(&source::<C>(p, &p.dout, rows), first_row);
                load_statistics::<C>(statistics, p, self.batch * p.q_heads + q_head, first_row);
            }
        }
        copy::commit_group();
    }
}

/// `dk` and `dv` of the block of keys `$block` of a problem: all threads of the block, with the shared memory that the row asks for.
macro_rules! gradients_of {
    ($C:ident, $p:ident, $block:expr) => {
        let memory = const { Memory::of($C::ROW, $C::POLICY) };
        let policy::Keys { stages, columns } = $C::POLICY;
        // SAFETY: every thread of the block takes the same path; the barriers order shared memory.
        unsafe {
            let block = $block;
            let blocks = block.q_blocks;
            let warp = thread::warp_index();
            let (row, part) = (warp / columns * 16 * $C::Scores::M as u32, warp % columns);
            let col = part * 8 * $C::Scores::N as u32;
            let (k, v) = ($C::Kv::at(shared::dynamic() + memory.k), $C::Kv::at(shared::dynamic() + memory.v));
            let stage = |i: u32| shared::dynamic() + memory.stages + i % stages * memory.stage_bytes;
            let statistics = |i: u32| shared::dynamic() + memory.statistics + i % stages * memory.statistics_bytes;

            let rows = [block.batch, block.kv_head, $p.kv_rows];
            k.load::<$C>(&source::<$C>($p, &$p.k, rows), block.first_row);
            v.load::<$C>(&source::<$C>($p, &$p.v, rows), block.first_row);
            block.load::<$C>($p, Step { head: 0, visit: 0 }, stage(0), memory.dout, statistics(0));

            let (mut dk, mut dv) = ($C::Acc::zero(), $C::Acc::zero());
            // Counts steps: it says which stage is whose.
            let mut count = 0;
            let mut visit = #[inline(always)]
            |step: Step, masked: bool| {
                copy::wait_group::<0>();
                // Everybody's copies have landed, and everybody is done with the step before.
                sync::block();
                let load_next = || {
                    block.load::<$C>($p, block.next(step), stage(count + 1), memory.dout, statistics(count + 1));
                };
                if stages == 2 {
                    load_next();
                }
                let (q, dout) = ($C::Q::at(stage(count)), $C::Q::at(stage(count) + memory.dout));
                let (mut weights, mut dscores) = ($C::Scores::zero(), $C::Scores::zero());
                weights.mul_transposed(k, row, q, col);
                dscores.mul_transposed(v, row, dout, col);
                let first_query = blocks.visit(step.visit) * $C::ROW.q_block + col;
                let head = block.kv_head * $p.group + step.head;
                let place = |key: u32, query: u32| {
                    place($p, [block.entry, head], first_query + query, block.first_row + row + key)
                };
                let statistics = statistics(count) + col * STATISTICS_BYTES;
                // Once: the marks are fewer registers than what they are made of.
                let kept = if const { $C::ROW.entry.takes(DROPOUT) } {
                    let random = random($p, [block.entry, head]);
                    Some(ColumnMarks::of::<$C::Scores>(&random, block.first_row + row, first_query))
                } else {
                    None
                };
                if let Some(kept) = &kept {
                    drop_and_scale(&mut dscores, kept);
                }
                weigh_columns::<$C, _>(&mut weights, &mut dscores, statistics, $p, place);
                if let Some(kept) = &kept {
                    drop_weights(&mut weights, kept);
                }
                if masked {
                    Scores::transposed($p).hide([&mut weights, &mut dscores], block.first_row + row, first_query);
                }
                let weights = $C::Weights::pass(&weights, shared::dynamic() + memory.weights, row, col);
                let dscores = $C::Weights::pass(&dscores, shared::dynamic() + memory.dscores, row, col);
                if columns > 1 {
                    sync::block();
                }
                dv.mul_weights(&weights, row, dout, part);
                dk.mul_weights(&dscores, row, q, part);
                if stages == 1 {
                    // Everybody is done with the only stage.
                    sync::block();
                    load_next();
                }
                count += 1;
            };
            for head in 0..$p.group {
                // Two copies of the loop: a branch around the element tests would cost a move for every score that crosses it.
                for i in 0..blocks.unmasked_count() {
                    visit(Step { head, visit: i }, false);
                }
                for i in blocks.unmasked_count()..blocks.count() {
                    visit(Step { head, visit: i }, true);
                }
            }

            for m in 0..$C::Acc::M {
                for n in 0..$C::Acc::N {
                    dk.at_mut(m, n).iter_mut().for_each(|x| *x *= $p.scale);
                }
            }
            if const { $C::ROW.entry.takes(DROPOUT) } {
                let factor = random($p, [block.entry, block.kv_head * $p.group]).factor;
                for m in 0..$C::Acc::M {
                    for n in 0..$C::Acc::N {
                        dv.at_mut(m, n).iter_mut().for_each(|x| *x *= factor);
                    }
                }
            }
            // A block of keys that no query sees never waited for them.
            copy::wait_group::<0>();
            sync::block();
            k.write_part(row, part, columns, &dk);
            v.write_part(row, part, columns, &dv);
            sync::block();
            let aligned = $p.dkv_aligned != 0;
            k.store::<$C>(&target::<$C>(&$p.dk, rows, $p.dim_qk, aligned), block.first_row);
            v.store::<$C>(&target::<$C>(&$p.dv, rows, $p.dim_v, aligned), block.first_row);
        }
    };
}

/// One thread block: `dk` and `dv` of a block of keys.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn gradients<C: Config>(p: &BackwardParams) {
    gradients_of! { C, p, KeyBlock::of::<C>(thread::block_index(), p) }
}

/// The same of a packed sequence.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
#[cfg(not(target_feature = "sm_90a"))]
pub unsafe fn packed_gradients<C: Config>(p: &PackedBackwardParams) {
    // SAFETY: passed on.
    let Some(Own { problem, sequence, head, tile }) = (unsafe { Own::of_keys::<C>(p) }) else { return };
    let p = &problem;
    gradients_of! { C, p, KeyBlock { entry: sequence, ..KeyBlock::at::<C>(p, 0, head, tile) } }
}
