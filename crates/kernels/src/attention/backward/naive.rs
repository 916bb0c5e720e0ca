//! The backward pass as every framework computed it before 2022: probabilities and gradients of scores go through device memory.
//!
//! ```text
//! p  = e^(scale q k^T - lse), 0 where hidden      [`scores`], one tile a thread block
//! dv = p^T dout                                   [`keys`], a block of keys a thread block
//! dp = dout v^T
//! ds = p (dp - delta), in the place of p          [`scores`]
//! dq = scale ds k                                 [`queries`], a block of rows a thread block
//! dk = scale ds^T q                               [`keys`]
//! ```
//!
//! `dv` is a product with `p` in the type of the tensors. `ds` is made of the same `p` in f32, which waits in a buffer of its own: made of a
//! rounded one it would be rounded twice, where the kernels that recompute round once. With a softcap, what waits is `p (1 - t^2)`. With dropout, `p` in
//! `dv` is what is left of it, and `dp` likewise, where what waits is whole.
//!
//! The statistics, log-sum-exp and delta, are those of [`delta`](super::delta). All five products run on the tensor cores, in f32 on the
//! float units, so that the distance to the kernels that recompute is what the memory traffic costs. Masked blocks are computed like any
//! other, as a framework's matrix product does.

use core::marker::PhantomData;

use cuda_std::{copy, shared, sync, thread};
use kernel_spec::families::backward::memory::{NaiveProduct, NaiveScores};
use kernel_spec::families::backward::{BackwardParams, NaiveBackwardParams, policy};
use kernel_spec::families::forward::features::DROPOUT;
use kernel_spec::families::forward::features::{PROGRAM, SOFTCAP};
use kernel_spec::layout::{fragment_col, fragment_row};

use crate::attention::backward::{Bounds, Config, Program, Scores, Softcap, Statistics, place, random, source, target};
use crate::attention::dropout::{RowMarks, drop_and_scale};
use crate::attention::exponent::Exponent;
use crate::attention::score;
use crate::parts::element::Element;
use crate::parts::fragments::Fragments;
use crate::parts::products::{Mul, MulTransposed, TransposedMul};
use crate::parts::rows::GlobalRows;
use crate::parts::shared_tile::SharedMatrix;

/// What a row makes of [`scores`].
pub trait ScoresConfig: Config {
    /// A tile of queries or output gradients.
    type Q: SharedMatrix<Element = Self::T>;
    /// A tile of keys or values.
    type Kv: SharedMatrix<Element = Self::T>;
    /// Scores of a warp: some query rows, all keys of the tile.
    type Scores: Fragments + MulTransposed<Self::Q, Self::Kv>;
}

/// What a row makes of [`queries`] and [`keys`].
pub trait ProductConfig: Config {
    /// The choices of the row.
    const POLICY: policy::NaiveProduct;
    /// A tile of weights, query rows by keys: probabilities or gradients of scores.
    type Weights: SharedMatrix<Element = Self::T>;
    /// A tile of the rows that are weighed.
    type Rows: SharedMatrix<Element = Self::T>;
    /// A tile of gradients.
    type Gradients: SharedMatrix<Element = Self::T>;
    /// Gradients of a warp: some rows, all columns.
    type Acc: Fragments;
}

/// One tile of the probabilities, or of the gradients of scores.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn scores<C: ScoresConfig>(p: &NaiveBackwardParams) {
    let memory = const { NaiveScores::of(C::ROW) };
    let problem = &p.backward;
    // SAFETY: every thread of the block takes the same path; the barrier orders shared memory; pairs that are stored lie in the buffers.
    unsafe {
        assume_not_empty(problem);
        // Without keys no block is launched.
        core::hint::assert_unchecked(problem.kv_rows > 0);
        let kv_blocks = problem.kv_rows.div_ceil(C::ROW.kv_block);
        let q_blocks = problem.q_rows.div_ceil(C::ROW.q_block);
        let (cta, kv_block) = (thread::block_index() / kv_blocks, thread::block_index() % kv_blocks);
        let (head, q_block) = (cta / q_blocks, cta % q_blocks);
        let (batch, q_head) = (head / problem.q_heads, head % problem.q_heads);
        let (first_row, first_key) = (q_block * C::ROW.q_block, kv_block * C::ROW.kv_block);

        let with_dout = p.with_dout != 0;
        let (rows, keys) = if with_dout { (problem.dout, problem.v) } else { (problem.q, problem.k) };
        let q = C::Q::at(shared::dynamic() + memory.q);
        let kv = C::Kv::at(shared::dynamic() + memory.kv);
        q.load::<C>(&source::<C>(problem, &rows, [batch, q_head, problem.q_rows]), first_row);
        kv.load::<C>(&source::<C>(problem, &keys, [batch, q_head / problem.group, problem.kv_rows]), first_key);
        copy::commit_group();
        copy::wait_group::<0>();
        sync::block();

        let row = thread::warp_index() * 16 * C::Scores::M as u32;
        let mut scores = C::Scores::zero();
        scores.mul_transposed(q, row, kv, 0);
        let row = first_row + row;
        // Elements in front of the head's own.
        let before = head as u64 * problem.q_rows as u64 * p.score_stride;
        let (is_bounded, has_program) = (problem.features.has(SOFTCAP), problem.features.has(PROGRAM));
        let place = |query: u32, key: u32| place(problem, [batch, q_head], row + query, first_key + key);
        let store_two = |element: u64, pair| C::T::store_two(p.probs + (before + element) * C::T::BYTES as u64, pair);
        let factors = |element: u64| p.factors + (before + element) * 4;
        // In the `const`s below, so that the text of other rows has nothing of it.
        let kept = || RowMarks::of::<C::Scores>(&random(problem, [batch, q_head]), row, first_key);
        if with_dout {
            if const { C::ROW.entry.takes(DROPOUT) } {
                drop_and_scale(&mut scores, &kept());
            }
            subtract_delta(&mut scores, problem, head, row);
            for_each_pair(&scores, p, [row, first_key], |element, [left, right]| {
                let factors = factors(element);
                store_two(element, [left * copy::load_f32(factors), right * copy::load_f32(factors + 4)]);
            });
        } else {
            if is_bounded | has_program {
                // On their way through memory: the registers of a thread do not hold them beside the scores.
                let mut slopes = C::Scores::zero();
                if is_bounded {
                    bound(&mut scores, &mut slopes, Softcap::of(problem), place);
                } else {
                    bound(&mut scores, &mut slopes, Program, place);
                }
                for_each_pair(&slopes, p, [row, first_key], |element, pair| copy::store_f32x2(factors(element), pair));
            }
            weigh::<C::T, _>(&mut scores, problem, head, row);
            // Columns between the keys and the stride, which products read as well, are hidden too.
            Scores::of(problem).hide([&mut scores], row, first_key);
            for_each_pair(&scores, p, [row, first_key], |element, pair| {
                if const { !C::ROW.entry.takes(DROPOUT) } {
                    store_two(element, pair);
                }
                let (at, [left, right]) = (factors(element), pair);
                let pair = if is_bounded | has_program {
                    [left * copy::load_f32(at), right * copy::load_f32(at + 4)]
                } else {
                    [left, right]
                };
                copy::store_f32x2(at, pair);
            });
            if const { C::ROW.entry.takes(DROPOUT) } {
                // The gradients of scores are made of whole probabilities, those of values of what dropout leaves.
                drop_and_scale(&mut scores, &kept());
                for_each_pair(&scores, p, [row, first_key], store_two);
            }
        }
    }
}

/// A block of query rows of `dq`.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn queries<C: ProductConfig>(p: &NaiveBackwardParams)
where
    C::Acc: Mul<C::Weights, C::Rows>,
{
    let problem = &p.backward;
    // SAFETY: every thread of the block takes the same path; the barriers order shared memory.
    unsafe {
        assume_not_empty(problem);
        let q_blocks = problem.q_rows.div_ceil(C::ROW.q_block);
        let (head, q_block) = (thread::block_index() / q_blocks, thread::block_index() % q_blocks);
        let (batch, q_head) = (head / problem.q_heads, head % problem.q_heads);
        let (first_row, warp_row) = (q_block * C::ROW.q_block, thread::warp_index() * 16 * C::Acc::M as u32);
        let k = source::<C>(problem, &problem.k, [batch, q_head / problem.group, problem.kv_rows]);

        let mut dq = C::Acc::zero();
        add_up::<C>(
            problem.kv_rows.div_ceil(C::ROW.kv_block),
            |j, Slot { weights, rows }| {
                let first_key = j * C::ROW.kv_block;
                weights.load::<C>(&weights_from::<C>(p, head, first_key), first_row);
                rows.load::<C>(&k, first_key);
            },
            #[inline(always)]
            |Slot { weights, rows }| dq.mul(weights, warp_row, rows),
        );
        for m in 0..C::Acc::M {
            for half in 0..2 {
                let row = first_row + warp_row + 16 * m as u32 + fragment_row(thread::lane(), 2 * half);
                // Not by a factor of 0: keys of minus infinity, which give a row no weight, are no numbers in the sum.
                let weightless = Statistics::load(problem, head, row).is_weightless();
                for n in 0..C::Acc::N {
                    for x in &mut dq.at_mut(m, n)[2 * half as usize..][..2] {
                        *x = if weightless { 0.0 } else { *x * problem.scale };
                    }
                }
            }
        }
        let aligned = problem.dq_aligned != 0;
        let to = target::<C>(&problem.dq, [batch, q_head, problem.q_rows], problem.dim_qk, aligned);
        store::<C>(&to, first_row, warp_row, &dq);
    }
}

/// A block of keys of `dv` or `dk`, summed over the heads of the group.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn keys<C: ProductConfig>(p: &NaiveBackwardParams)
where
    C::Acc: TransposedMul<C::Weights, C::Rows>,
{
    let problem = &p.backward;
    // SAFETY: every thread of the block takes the same path; the barriers order shared memory.
    unsafe {
        assume_not_empty(problem);
        // Without keys no block is launched.
        core::hint::assert_unchecked(problem.kv_rows > 0 && problem.group <= problem.q_heads);
        let (kv_blocks, kv_heads) = (problem.kv_rows.div_ceil(C::ROW.kv_block), problem.q_heads / problem.group);
        let (head, kv_block) = (thread::block_index() / kv_blocks, thread::block_index() % kv_blocks);
        let (batch, kv_head) = (head / kv_heads, head % kv_heads);
        let (first_key, warp_key) = (kv_block * C::ROW.kv_block, thread::warp_index() * 16 * C::Acc::M as u32);
        let (rows_from, gradients, factor) =
            if p.with_dout != 0 { (problem.dout, problem.dv, 1.0) } else { (problem.q, problem.dk, problem.scale) };

        let mut sum = C::Acc::zero();
        let q_blocks = problem.q_rows.div_ceil(C::ROW.q_block);
        add_up::<C>(
            problem.group * q_blocks,
            |j, Slot { weights, rows }| {
                let (q_head, first_row) = (kv_head * problem.group + j / q_blocks, j % q_blocks * C::ROW.q_block);
                weights.load::<C>(&weights_from::<C>(p, batch * problem.q_heads + q_head, first_key), first_row);
                rows.load::<C>(&source::<C>(problem, &rows_from, [batch, q_head, problem.q_rows]), first_row);
            },
            #[inline(always)]
            |Slot { weights, rows }| sum.transposed_mul(weights, warp_key, rows),
        );
        for m in 0..C::Acc::M {
            for n in 0..C::Acc::N {
                sum.at_mut(m, n).iter_mut().for_each(|x| *x *= factor);
            }
        }
        let aligned = problem.dkv_aligned != 0;
        let to = target::<C>(&gradients, [batch, kv_head, problem.kv_rows], problem.dim_v, aligned);
        store::<C>(&to, first_key, warp_key, &sum);
    }
}

/// The host launches no block for an empty problem. Without this, every division could panic.
///
/// # Safety
/// The problem has rows and heads.
#[inline(always)]
unsafe fn assume_not_empty(p: &BackwardParams) {
    // SAFETY: passed on.
    unsafe { core::hint::assert_unchecked(p.q_rows > 0 && p.q_heads > 0 && p.group > 0) };
}

/// Bounds scores, and says how each grows.
#[inline(always)]
fn bound<F: Fragments>(scores: &mut F, slopes: &mut F, bounds: impl Bounds, place: impl Fn(u32, u32) -> score::Place) {
    let lane = thread::lane();
    for m in 0..F::M {
        for n in 0..F::N {
            for i in 0..4 {
                let at =
                    place(16 * m as u32 + fragment_row(lane, i as u32), 8 * n as u32 + fragment_col(lane, i as u32));
                [scores.at_mut(m, n)[i], slopes.at_mut(m, n)[i]] = bounds.apply(scores.at(m, n)[i], at);
            }
        }
    }
}

/// Turns scores without scale into probabilities: rows from `row` on of a head.
///
/// # Safety
/// The rows have statistics.
#[inline(always)]
unsafe fn weigh<T: Exponent, F: Fragments>(scores: &mut F, p: &BackwardParams, head: u32, row: u32) {
    for m in 0..F::M {
        for half in 0..2 {
            let row = row + 16 * m as u32 + fragment_row(thread::lane(), 2 * half);
            // SAFETY: passed on.
            let statistics = unsafe { Statistics::load(p, head, row) };
            for n in 0..F::N {
                for x in &mut scores.at_mut(m, n)[2 * half as usize..][..2] {
                    *x = T::weight(*x, T::scale(p.scale_log2), statistics.minus_lse);
                }
            }
        }
    }
}

/// Subtracts delta from the gradients of probabilities: rows from `row` on of a head.
///
/// # Safety
/// The rows have statistics.
#[inline(always)]
unsafe fn subtract_delta<F: Fragments>(dprobs: &mut F, p: &BackwardParams, head: u32, row: u32) {
    for m in 0..F::M {
        for half in 0..2 {
            let row = row + 16 * m as u32 + fragment_row(thread::lane(), 2 * half);
            // SAFETY: passed on.
            let Statistics { delta, .. } = unsafe { Statistics::load(p, head, row) };
            for n in 0..F::N {
                for x in &mut dprobs.at_mut(m, n)[2 * half as usize..][..2] {
                    *x -= delta;
                }
            }
        }
    }
}

/// Hands each pair of neighbours of a tile that exist to `store`, with the elements of the head that lie before it. Rows from `row`, columns
/// from `col` on.
#[inline(always)]
fn for_each_pair<F: Fragments>(tile: &F, p: &NaiveBackwardParams, [row, col]: [u32; 2], store: impl Fn(u64, [f32; 2])) {
    let lane = thread::lane();
    for m in 0..F::M {
        for half in 0..2 {
            let row = row + 16 * m as u32 + fragment_row(lane, 2 * half);
            for n in 0..F::N {
                let (fragment, half) = (tile.at(m, n), 2 * half as usize);
                let first_col = col + 8 * n as u32;
                // The stride is a multiple of 8, so a fragment lies wholly inside a row of the buffer or wholly outside.
                if row < p.backward.q_rows && (first_col as u64) < p.score_stride {
                    let col = first_col + fragment_col(lane, 0);
                    store(row as u64 * p.score_stride + col as u64, [fragment[half], fragment[half + 1]]);
                }
            }
        }
    }
}

/// The weights of a head, as far as a tile of keys from `first_key` on goes.
#[inline(always)]
fn weights_from<C: Config>(p: &NaiveBackwardParams, head: u32, first_key: u32) -> GlobalRows<C::T> {
    let row_bytes = p.score_stride * C::T::BYTES as u64;
    let cols = (p.score_stride as u32 - first_key).min(C::ROW.kv_block);
    let before = head as u64 * p.backward.q_rows as u64 * row_bytes + (first_key as usize * C::T::BYTES) as u64;
    GlobalRows {
        address: p.probs + before,
        row_bytes,
        rows: p.backward.q_rows,
        cols,
        aligned: true,
        whole: cols == C::ROW.kv_block,
        element: PhantomData,
    }
}

/// The tiles of one step.
struct Slot<C: ProductConfig> {
    weights: C::Weights,
    rows: C::Rows,
}

/// Loads the tiles of every step and multiplies them. Those of the next are loaded while the last are multiplied.
///
/// # Safety
/// All threads of the block, converged, with the shared memory that the row asks for.
#[inline(always)]
unsafe fn add_up<C: ProductConfig>(steps: u32, load: impl Fn(u32, Slot<C>), mut multiply: impl FnMut(Slot<C>)) {
    const { assert!(C::POLICY.slots == 2, "one step is loaded while the last is multiplied") };
    let memory = const { NaiveProduct::of(C::ROW, C::POLICY, C::Rows::BYTES) };
    let slot = |j: u32| {
        let address = shared::dynamic() + j % C::POLICY.slots * memory.slot_bytes;
        Slot { weights: C::Weights::at(address), rows: C::Rows::at(address + memory.rows) }
    };
    let load = |j: u32| {
        if j < steps {
            load(j, slot(j));
        }
        copy::commit_group();
    };
    load(0);
    for j in 0..steps {
        load(j + 1);
        copy::wait_group::<1>();
        // SAFETY: every thread of the block takes the same path.
        unsafe {
            sync::block();
            multiply(slot(j));
            sync::block();
        }
    }
}

/// Writes a block of gradients through the shared memory of the slots: every warp its fragments, from `warp_row` on.
///
/// # Safety
/// All threads of the block, converged, after [`add_up`].
#[inline(always)]
unsafe fn store<C: ProductConfig>(to: &GlobalRows<C::T>, first_row: u32, warp_row: u32, gradients: &C::Acc) {
    let tile = C::Gradients::at(shared::dynamic());
    // SAFETY: warps write disjoint rows; the barrier stands between them and the reads of other threads.
    unsafe {
        tile.write(warp_row, 0, gradients);
        sync::block();
        tile.store::<C>(to, first_row);
    }
}
