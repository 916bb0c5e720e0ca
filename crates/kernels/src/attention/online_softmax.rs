//! The steps of the online softmax, on scores in registers.
//!
//! Scores are unscaled, `scale_log2` turns them into powers of two. Maxima are scaled and rounded once, by [`row_max`]: whatever is
//! measured against a maximum, weights, sums, outputs and the log-sum-exp, is measured against the same number.

use cuda_std::{math, warp};

use crate::parts::fragments::{Fragments, PerRow};

/// Scaled maximum of every row, over the keys of this warp. The scale is positive, so that it can follow the maximum.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
pub unsafe fn row_max<F: Fragments>(scores: &F, scale_log2: f32) -> F::Rows {
    let mut max = F::Rows::splat(f32::NEG_INFINITY);
    for m in 0..F::M {
        for n in 0..F::N {
            for half in 0..2 {
                // Neighbours first: the chain through the running value is half as long.
                let pair = math::max(scores.at(m, n)[2 * half], scores.at(m, n)[2 * half + 1]);
                *max.at_mut(m, half) = math::max(max.at(m, half), pair);
            }
        }
    }
    // SAFETY: passed on.
    max.map(|x| unsafe { warp::quad_max(x) } * scale_log2)
}

/// What weights are measured against: the maximum, or 0 in a row that has seen no key, whose weights are then `2^-inf = 0`, not NaN.
/// Only a `masked` block can leave a row without a key.
#[inline(always)]
pub fn base<R: PerRow>(max: &R, masked: bool) -> R {
    if masked { max.map(|max| if max == f32::NEG_INFINITY { 0.0 } else { max }) } else { *max }
}

/// The maximum to measure weights against once a block has come up to `new`: still the `old` one unless that is above `limit`.
#[inline(always)]
pub fn lazy_max<R: PerRow>(old: &R, new: &R, limit: &R) -> R {
    let raised = new.zip(limit, |new, limit| if new > limit { new } else { f32::NEG_INFINITY });
    old.zip(&raised, f32::max)
}

/// How far a row's maximum may grow before weights have to be measured against the new one, for sums `sum` relative to `max`.
///
/// The largest weight of a row is 1, which no rounding changes, when it is measured against itself. Measured against an older maximum
/// it is rounded as the others are; that is no loss where it is one of many, a sixteenth of the sum at most. FlashAttention-4 (Zadouri
/// et al., 2026) has a fixed limit of 2^8, which doubles the error of rows with one large weight.
#[inline(always)]
pub fn lazy_limit<R: PerRow>(max: &R, sum: &R) -> R {
    // From 2^8 on the limit stays where it is, far from the largest f16.
    const SIXTEENTH_LOG2: f32 = -4.0;
    const MOST_LOG2: f32 = 8.0;
    max.zip(sum, |max, sum| max + (math::log2(sum) + SIXTEENTH_LOG2).clamp(0.0, MOST_LOG2))
}

/// Whether the maximum of any row of this warp has changed.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
pub unsafe fn any_changed<R: PerRow>(old: &R, new: &R) -> bool {
    let mut changed = false;
    for m in 0..R::M {
        for half in 0..2 {
            changed = changed || old.at(m, half) != new.at(m, half);
        }
    }
    // SAFETY: passed on.
    unsafe { warp::any(changed) }
}

/// The factor that turns sums and outputs relative to maximum `old` into ones relative to `base`: `2^(old - base)`.
#[inline(always)]
pub fn rescale<R: PerRow>(old: &R, base: &R) -> R {
    old.zip(base, |old, base| math::exp2(old - base))
}

/// Turns scores into `p = 2^(scale s - base)` in place and returns the sum of every row over the keys of this *lane*.
#[inline(always)]
pub fn exponentiate<F: Fragments>(scores: &mut F, base: &F::Rows, scale_log2: f32) -> F::Rows {
    let mut sum = F::Rows::splat(0.0);
    for m in 0..F::M {
        for n in 0..F::N {
            let p = scores.at_mut(m, n);
            for i in 0..4 {
                p[i] = math::exp2(math::fma(p[i], scale_log2, -base.at(m, i / 2)));
            }
            for half in 0..2 {
                // Neighbours first: the chain through the running value is half as long.
                *sum.at_mut(m, half) += p[2 * half] + p[2 * half + 1];
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
pub unsafe fn quad_sum<R: PerRow>(sum: &R) -> R {
    // SAFETY: passed on.
    sum.map(|x| unsafe { warp::quad_sum(x) })
}

/// `1 / sum`, and 0 for a row that saw no key, whose output is defined to be 0.
#[inline(always)]
pub fn inverse<R: PerRow>(sum: &R) -> R {
    sum.map(|sum| if sum == 0.0 { 0.0 } else { math::reciprocal(sum) })
}
