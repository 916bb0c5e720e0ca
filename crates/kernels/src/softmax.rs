//! The steps of the online softmax, on scores in registers.
//!
//! Scores are unscaled, `scale_log2` turns them into powers of two. Maxima are scaled and rounded once, by [`row_max`]: whatever is
//! measured against a maximum, weights, sums, outputs and the log-sum-exp, is measured against the same number.

use cuda_std::{math, warp};

use crate::tile::{RegTile, RowValues};

/// Scaled maximum of every row, over the keys of this warp. The scale is positive, so that it can follow the maximum.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
pub unsafe fn row_max<const M: usize, const N: usize>(scores: &RegTile<M, N>, scale_log2: f32) -> RowValues<M> {
    let mut max = RowValues::splat(f32::NEG_INFINITY);
    for m in 0..M {
        for n in 0..N {
            for half in 0..2 {
                // Neighbours first: the chain through the running value is half as long.
                let pair = math::max(scores.0[m][n][2 * half], scores.0[m][n][2 * half + 1]);
                max.0[m][half] = math::max(max.0[m][half], pair);
            }
        }
    }
    // SAFETY: passed on.
    max.map(|x| unsafe { warp::quad_max(x) } * scale_log2)
}

/// What weights are measured against: the maximum, or 0 in a row that has seen no key, whose weights are then `2^-inf = 0`, not NaN.
/// Only a `masked` block can leave a row without a key.
#[inline(always)]
pub fn base<const M: usize>(max: &RowValues<M>, masked: bool) -> RowValues<M> {
    if masked { max.map(|max| if max == f32::NEG_INFINITY { 0.0 } else { max }) } else { *max }
}

/// How far, as a power of two, the maximum of a row may lie above the one that its weights are measured against.
///
/// Weights up to 2^8 fit every element type and keep its relative precision, and the largest sum of f32 is far. The threshold of
/// FlashAttention-4 (Zadouri et al., 2026, conditional rescaling).
const HEADROOM: f32 = 8.0;

/// The maximum to measure weights against when `new` may have come above it: the `old` one while that is within [`HEADROOM`].
/// Divided by sums against the same number, the output is the same.
#[inline(always)]
pub fn lazy_max(old: f32, new: f32) -> f32 {
    // From minus infinity, where the row had seen no key, any number is too far; two of them differ by NaN, which is not.
    if new - old > HEADROOM { new } else { old }
}

/// Whether the maximum of any row of this warp has changed.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
pub unsafe fn any_changed<const M: usize>(old: &RowValues<M>, new: &RowValues<M>) -> bool {
    let mut changed = false;
    for m in 0..M {
        for half in 0..2 {
            changed = changed || old.0[m][half] != new.0[m][half];
        }
    }
    // SAFETY: passed on.
    unsafe { warp::any(changed) }
}

/// The factor that turns sums and outputs relative to maximum `old` into ones relative to `base`: `2^(old - base)`.
#[inline(always)]
pub fn rescale<const M: usize>(old: &RowValues<M>, base: &RowValues<M>) -> RowValues<M> {
    old.zip(base, |old, base| math::exp2(old - base))
}

/// Turns scores into `p = 2^(scale s - base)` in place and returns the sum of every row over the keys of this *lane*.
#[inline(always)]
pub fn exponentiate<const M: usize, const N: usize>(
    scores: &mut RegTile<M, N>,
    base: &RowValues<M>,
    scale_log2: f32,
) -> RowValues<M> {
    let mut sum = RowValues::splat(0.0);
    for m in 0..M {
        for n in 0..N {
            let p = &mut scores.0[m][n];
            for i in 0..4 {
                p[i] = math::exp2(math::fma(p[i], scale_log2, -base.0[m][i / 2]));
            }
            for half in 0..2 {
                // Neighbours first: the chain through the running value is half as long.
                sum.0[m][half] += p[2 * half] + p[2 * half + 1];
            }
        }
    }
    sum
}

/// Sum of every row over the four lanes that share it.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
pub unsafe fn quad_sum<const M: usize>(sum: &RowValues<M>) -> RowValues<M> {
    // SAFETY: passed on.
    sum.map(|x| unsafe { warp::quad_sum(x) })
}

/// `1 / sum`, and 0 for a row that saw no key, whose output is defined to be 0.
#[inline(always)]
pub fn inverse<const M: usize>(sum: &RowValues<M>) -> RowValues<M> {
    sum.map(|sum| if sum == 0.0 { 0.0 } else { math::reciprocal(sum) })
}
