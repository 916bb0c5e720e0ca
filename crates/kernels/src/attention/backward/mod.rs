//! The backward pass (Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022, algorithm 4 and
//! appendix B), in two ways: with a kernel for each side that owns gradients, so that no two thread blocks add to the same sum, and, on
//! Hopper, with one kernel whose thread blocks own keys and add to the sums of the queries.
//!
//! With scores `s = q k^T`, weights `p = e^(scale s - lse)` and `dp = dout v^T`:
//!
//! ```text
//! delta = sum(dout out) - dlse              ds = p (dp - delta)
//! dv = p^T dout                             dk = scale ds^T q            dq = scale ds k
//! ```
//!
//! With a softcap `t = tanh(scale s / cap)`: `p = e^(cap t - lse)` and `ds = p (dp - delta) (1 - t^2)`. With a program on scores `f`:
//! `p = e^(f(scale s) - lse)` and `ds = p (dp - delta) f'(scale s)`. The portable and the naive kernels have both.
//!
//! With dropout, `z` is 0 where a weight is dropped and `1 / (1 - p)` where it is kept: `dp = z dout v^T` and `dv = (z p)^T dout`, while `p` in
//! `ds` is whole. The same numbers as in the forward pass say which are kept, see [`dropout`](crate::attention::dropout).
//!
//! | module | owns | walks over | computes |
//! | --- | --- | --- | --- |
//! | [`delta`] | a row of the output | its columns | the row's [statistics](Statistics) |
//! | [`keys`] | a block of keys of one key-value head | query blocks of all heads of the group | `dk`, `dv` |
//! | [`queries`] | a block of queries of one head | key blocks | `dq` |
//! | `fused` | a block of keys of one key-value head | query blocks of all heads of the group | `dk`, `dv`, its part of the sums of `dq` |
//! | `round` | a block of queries of one head | | `dq`, from the sums |
//! | `sinks` | a query head | all of its rows | the gradient of its sink |
//!
//! The first three have a second entry, over packed sequences: [`packed`] finds what it works on. Their bodies are macros, so that the entry
//! over equal sequences is compiled as if it were alone: as functions, other instructions came out.
//!
//! [`keys`] and [`queries`] compute scores and weights twice, seven products instead of five. What that buys: nothing is added in memory,
//! results are the same from run to run, and eight bytes a row are all the workspace. [`naive`] keeps them in device memory instead.
//!
//! A sink is in the log-sum-exp, and so in `p` and `delta`: nothing else here knows of it but its own gradient.
//!
//! What the mask hides weighs 0 and moves nothing. So does every key of a row whose log-sum-exp is minus infinity, or plus infinity as
//! others write it: such a row has no key, or none that weighs anything.

use core::marker::PhantomData;

use cuda_std::{copy, math, shared, thread};
use kernel_spec::families::backward::order::COUNTER_ROWS;
use kernel_spec::families::backward::{BackwardParams, STATISTICS_BYTES, Variant};
use kernel_spec::families::forward::features::{PROGRAM, SOFTCAP};
use kernel_spec::layout::{CHUNK_BYTES, fragment_col, fragment_row};
use kernel_spec::{Band, TensorParams};

use crate::attention::dropout::Stream;
use crate::attention::exponent::Exponent;
use crate::attention::score;
use crate::attention::softcap::tanh;
use crate::parts::element::Element;
use crate::parts::fragments::Fragments;
use crate::parts::rows::GlobalRows;
use crate::parts::shared_tile::ThreadBlock;

pub mod delta;
#[cfg(target_feature = "sm_90a")]
pub mod fused;
mod key_block;
pub mod keys;
pub mod naive;
#[cfg(not(target_feature = "sm_90a"))]
pub mod packed;
pub mod queries;
#[cfg(target_feature = "sm_90a")]
pub mod round;
#[cfg(not(target_feature = "sm_90a"))]
pub mod sinks;

/// What a kernel is compiled for: a row of `kernel_spec`, as a type without values.
pub trait Config: ThreadBlock {
    /// The row.
    const ROW: &'static Variant;
    /// Element type of all tensors.
    type T: Exponent;
}

/// One head's rows of a tensor that tiles are loaded from.
#[inline(always)]
fn source<C: Config>(p: &BackwardParams, tensor: &TensorParams, [batch, head, rows]: [u32; 3]) -> GlobalRows<C::T> {
    let aligned = p.aligned != 0;
    // One answer for all tensors: each would cost registers in the loop.
    let whole = aligned & (p.dim_qk == C::ROW.dim) & (p.dim_v == C::ROW.dim);
    GlobalRows {
        address: head_address::<C>(tensor, batch, head),
        row_bytes: tensor.row_stride * C::T::BYTES as u64,
        rows,
        cols: p.dim_qk,
        aligned,
        whole,
        element: PhantomData,
    }
}

/// One head's rows of a tensor that a tile is stored to.
#[inline(always)]
fn target<C: Config>(
    tensor: &TensorParams,
    [batch, head, rows]: [u32; 3],
    cols: u32,
    aligned: bool,
) -> GlobalRows<C::T> {
    GlobalRows {
        address: head_address::<C>(tensor, batch, head),
        row_bytes: tensor.row_stride * C::T::BYTES as u64,
        rows,
        cols,
        aligned,
        whole: false,
        element: PhantomData,
    }
}

#[inline(always)]
fn head_address<C: Config>(tensor: &TensorParams, batch: u32, head: u32) -> u64 {
    let elements = batch as u64 * tensor.batch_stride + head as u64 * tensor.head_stride;
    tensor.address + elements * C::T::BYTES as u64
}

/// Bytes from the log-sum-exps of a pair of rows to their deltas: statistics lie as those of rows `2 i` and `2 i + 1`, then their deltas.
///
/// In a transposed tile of scores, a lane has the two columns of such a pair: it reads what it needs at a time, and no more.
const DELTAS: u32 = 8;

/// Address of the statistics of a row of one head of all, `batch * q_heads + q_head`: its log-sum-exp, [`DELTAS`] before its delta. Of an
/// even row, it is where the statistics of the rows from it on start.
#[inline(always)]
fn statistics_of(p: &BackwardParams, head: u32, row: u32) -> u64 {
    p.statistics + head as u64 * p.padded_rows as u64 * STATISTICS_BYTES as u64 + offset_of_row(row) as u64
}

/// Address of the counter of the parts that share `share` of the sums of the rows from `first_row` on has, of one head of all.
#[inline(always)]
fn counter_of(p: &BackwardParams, head: u32, first_row: u32, share: u32) -> u64 {
    let row = head as u64 * p.padded_rows as u64 + first_row as u64;
    p.counters + (row / COUNTER_ROWS as u64 + share as u64) * 4
}

/// Bytes from the first statistics of a head, or of a block of rows, to those of one of its rows.
#[inline(always)]
fn offset_of_row(row: u32) -> u32 {
    row / 2 * 2 * STATISTICS_BYTES + row % 2 * 4
}

/// What the backward pass has to know of a query row: minus its log-sum-exp as [`Exponent`] has it, minus infinity where no key weighs
/// anything, and delta.
#[derive(Clone, Copy)]
struct Statistics {
    minus_lse: f32,
    delta: f32,
}

impl Statistics {
    /// Of a row without weights: `e^(s - inf)` is 0, whatever number `s` is.
    const NONE: Statistics = Statistics { minus_lse: f32::NEG_INFINITY, delta: 0.0 };

    /// Whether the row has no weights.
    #[inline(always)]
    fn is_weightless(self) -> bool {
        self.minus_lse == f32::NEG_INFINITY
    }

    /// Of the lane's upper (`half = 0`) or lower row of a fragment, of the rows whose statistics are at a shared address.
    ///
    /// # Safety
    /// They are there, behind a barrier.
    #[inline(always)]
    unsafe fn of_row(statistics: u32, m: usize, half: usize) -> Statistics {
        let row = 16 * m as u32 + fragment_row(math::opaque(thread::lane()), 2 * half as u32);
        let at = statistics + offset_of_row(row);
        // SAFETY: passed on.
        let [minus_lse, delta] = unsafe { [shared::load_f32(at), shared::load_f32(at + DELTAS)] };
        Statistics { minus_lse, delta }
    }

    /// Of a row of one head of all, from device memory.
    ///
    /// # Safety
    /// The head has this row, or pads it.
    #[inline(always)]
    unsafe fn load(p: &BackwardParams, head: u32, row: u32) -> Statistics {
        let address = statistics_of(p, head, row);
        // SAFETY: passed on.
        let [minus_lse, delta] = unsafe { [copy::load_f32(address), copy::load_f32(address + DELTAS as u64)] };
        Statistics { minus_lse, delta }
    }

    /// Turns a score without scale into its weight `p`, and `dp` into the gradient `ds` of the scaled score.
    #[inline(always)]
    fn weigh<T: Exponent>(self, score: &mut f32, dp: &mut f32, scale: f32, bounds: impl Bounds, at: score::Place) {
        let [bounded, slope] = bounds.apply(*score, at);
        *score = T::weight(bounded, scale, self.minus_lse);
        *dp = *score * (*dp - self.delta) * slope;
    }
}

/// What becomes of a score before its weight is taken.
trait Bounds: Copy {
    /// What takes the place of a score without scale, and how that grows with the score.
    fn apply(self, score: f32, at: score::Place) -> [f32; 2];
}

/// Nothing.
#[derive(Clone, Copy)]
struct Unbounded;

impl Bounds for Unbounded {
    #[inline(always)]
    fn apply(self, score: f32, _: score::Place) -> [f32; 2] {
        [score, 1.0]
    }
}

/// `t = tanh(score * ratio)`; the scale that follows holds the cap. It grows by `1 - t^2`, times what the scale of the gradients holds.
#[derive(Clone, Copy)]
struct Softcap {
    ratio: f32,
}

impl Softcap {
    /// That of a call that has one.
    #[inline(always)]
    fn of(p: &BackwardParams) -> Softcap {
        Softcap { ratio: f32::from_bits(p.features.value(SOFTCAP) as u32) }
    }
}

impl Bounds for Softcap {
    #[inline(always)]
    fn apply(self, score: f32, _: score::Place) -> [f32; 2] {
        let t = tanh(score * self.ratio);
        [t, math::fma(-t, t, 1.0)]
    }
}

/// A program on scores, and its derivative; what comes out is scaled.
#[derive(Clone, Copy)]
struct Program;

impl Bounds for Program {
    #[inline(always)]
    fn apply(self, score: f32, at: score::Place) -> [f32; 2] {
        math::score_gradient_hook(score, at.operands())
    }
}

/// [`Statistics::weigh`] where rows are queries, whose statistics are at a shared address; `place` tells where a score is, given row and
/// column of the tile.
///
/// # Safety
/// Those of all rows are there, behind a barrier.
#[inline(always)]
unsafe fn weigh_rows<C: Config, F: Fragments>(
    scores: &mut F,
    dp: &mut F,
    statistics: u32,
    p: &BackwardParams,
    place: impl Fn(u32, u32) -> score::Place,
) {
    let scale = C::T::scale(p.scale_log2);
    // SAFETY: passed on.
    unsafe {
        if p.features.has(SOFTCAP) {
            weigh_bounded_rows::<C::T, F>(scores, dp, statistics, scale, Softcap::of(p), place);
        } else if const { C::ROW.entry.takes(PROGRAM) } && p.features.has(PROGRAM) {
            weigh_bounded_rows::<C::T, F>(scores, dp, statistics, scale, Program, place);
        } else {
            weigh_bounded_rows::<C::T, F>(scores, dp, statistics, scale, Unbounded, place);
        }
    }
}

#[inline(always)]
unsafe fn weigh_bounded_rows<T: Exponent, F: Fragments>(
    scores: &mut F,
    dp: &mut F,
    statistics: u32,
    scale: f32,
    bounds: impl Bounds,
    place: impl Fn(u32, u32) -> score::Place,
) {
    let lane = thread::lane();
    for m in 0..F::M {
        for half in 0..2 {
            // SAFETY: passed on.
            let row = unsafe { Statistics::of_row(statistics, m, half) };
            for n in 0..F::N {
                for i in 2 * half..2 * half + 2 {
                    let at = place(
                        16 * m as u32 + fragment_row(lane, i as u32),
                        8 * n as u32 + fragment_col(lane, i as u32),
                    );
                    row.weigh::<T>(&mut scores.at_mut(m, n)[i], &mut dp.at_mut(m, n)[i], scale, bounds, at);
                }
            }
        }
    }
}

/// [`weigh_rows`] where columns are queries, whose statistics are at a shared address.
///
/// # Safety
/// Those of all columns are there, behind a barrier.
#[inline(always)]
unsafe fn weigh_columns<C: Config, F: Fragments>(
    scores: &mut F,
    dp: &mut F,
    statistics: u32,
    p: &BackwardParams,
    place: impl Fn(u32, u32) -> score::Place,
) {
    let scale = C::T::scale(p.scale_log2);
    // SAFETY: passed on.
    unsafe {
        if p.features.has(SOFTCAP) {
            weigh_bounded_columns::<C::T, F>(scores, dp, statistics, scale, Softcap::of(p), place);
        } else if const { C::ROW.entry.takes(PROGRAM) } && p.features.has(PROGRAM) {
            weigh_bounded_columns::<C::T, F>(scores, dp, statistics, scale, Program, place);
        } else {
            weigh_bounded_columns::<C::T, F>(scores, dp, statistics, scale, Unbounded, place);
        }
    }
}

#[inline(always)]
unsafe fn weigh_bounded_columns<T: Exponent, F: Fragments>(
    scores: &mut F,
    dp: &mut F,
    statistics: u32,
    scale: f32,
    bounds: impl Bounds,
    place: impl Fn(u32, u32) -> score::Place,
) {
    let lane = thread::lane();
    let first = statistics + fragment_col(math::opaque(thread::lane()), 0) * STATISTICS_BYTES;
    for n in 0..F::N {
        // A lane's two columns are neighbours.
        // SAFETY: passed on; columns come in pairs, 16 bytes.
        let [lse0, lse1, delta0, delta1] = unsafe { shared::load_f32x4(first + 8 * n as u32 * STATISTICS_BYTES) };
        let cols = [(lse0, delta0), (lse1, delta1)].map(|(minus_lse, delta)| Statistics { minus_lse, delta });
        for m in 0..F::M {
            for i in 0..4 {
                let at =
                    place(16 * m as u32 + fragment_row(lane, i as u32), 8 * n as u32 + fragment_col(lane, i as u32));
                cols[i % 2].weigh::<T>(&mut scores.at_mut(m, n)[i], &mut dp.at_mut(m, n)[i], scale, bounds, at);
            }
        }
    }
}

/// The random numbers of a head, `[batch entry or sequence, query head]`.
#[inline(always)]
fn random(p: &BackwardParams, [batch, head]: [u32; 2]) -> Stream {
    // In 32 bits, which hold it because the thread blocks are counted in 32 bits.
    Stream::of(&p.features, batch * p.q_heads + head)
}

/// Where a score is, of programs: `[batch entry or sequence, query head]`, row and key.
#[inline(always)]
fn place(p: &BackwardParams, [batch, head]: [u32; 2], row: u32, key: u32) -> score::Place {
    score::Place { batch, head, row, key, q_rows: p.q_rows, kv_rows: p.kv_rows }
}

/// A matrix of scores with its mask: queries by keys, or transposed.
#[derive(Clone, Copy)]
struct Scores {
    band: Band,
    rows: u32,
    cols: u32,
}

impl Scores {
    /// Queries by keys.
    #[inline(always)]
    fn of(p: &BackwardParams) -> Scores {
        Scores { band: p.band, rows: p.q_rows, cols: p.kv_rows }
    }

    /// Keys by queries.
    #[inline(always)]
    fn transposed(p: &BackwardParams) -> Scores {
        Scores { band: p.band.transposed(), rows: p.kv_rows, cols: p.q_rows }
    }

    /// Sets what the mask hides to 0, in weights and gradients of scores alike: rows from `row` on, columns from `col` on.
    #[inline(always)]
    fn hide<F: Fragments, const TILES: usize>(&self, mut tiles: [&mut F; TILES], row: u32, col: u32) {
        // Opaque: few blocks need a mask, so its limits must not live in registers in between.
        let [lane, rows, cols] = [thread::lane(), self.rows, self.cols].map(math::opaque);
        let (rows, cols) = (rows as i32, cols as i32);
        for m in 0..F::M {
            for i in 0..4 {
                let diagonal = (row + 16 * m as u32 + fragment_row(lane, i)) as i32 + cols - rows;
                // Visible columns of this tile, counted from the lane's own first column.
                let from = (col + fragment_col(lane, i)) as i32;
                let first = diagonal - self.band.left - from;
                let last = (diagonal + self.band.right).min(cols - 1) - from;
                // Rows that do not exist have gradients too, where these are summed over rows.
                let last = if row + 16 * (m as u32) + fragment_row(lane, i) < rows as u32 { last } else { -1 };
                for n in 0..F::N {
                    let col = 8 * n as i32;
                    let hidden = col < first || col > last;
                    for tile in &mut tiles {
                        let x = &mut tile.at_mut(m, n)[i as usize];
                        *x = if hidden { 0.0 } else { *x };
                    }
                }
            }
        }
    }
}

/// Starts loading the statistics of a block of query rows of one head of all, from `first_row` on, to a shared address.
///
/// # Safety
/// All threads of the block; nobody reads them before waiting for the copies and a barrier.
#[inline(always)]
unsafe fn load_statistics<C: Config>(shared: u32, p: &BackwardParams, head: u32, first_row: u32) {
    const { assert!(C::ROW.q_block * STATISTICS_BYTES <= (C::THREADS * CHUNK_BYTES) as u32, "a chunk a thread") };
    let thread = thread::index();
    if thread < C::ROW.q_block * STATISTICS_BYTES / CHUNK_BYTES as u32 {
        let offset = thread * CHUNK_BYTES as u32;
        // SAFETY: whole blocks of statistics exist, padded rows and all.
        unsafe { copy::async_16(shared + offset, statistics_of(p, head, first_row) + offset as u64) };
    }
}
