//! The online softmax, on scores in registers.
//!
//! Scores are unscaled, `scale` turns them into [exponents](Exponent). Maxima are scaled and rounded once, by [`row_max`]: whatever is
//! measured against a maximum, weights, sums, outputs and the log-sum-exp, is measured against the same number.

use cuda_std::{math, warp};

use crate::attention::exponent::Exponent;
use crate::parts::element::TensorCore;
use crate::parts::fragments::{Fragments, PerRow};

/// The running maximum and sum of every row.
#[derive(Clone, Copy)]
pub struct OnlineSoftmax<R> {
    /// What weights are measured against: the scaled maximum, or an older one, see [`Self::lazy_step`].
    pub max: R,
    /// Sum of the weights of a row that this lane has seen; of all lanes where [`AcrossWarps`] adds them up.
    pub sum: R,
    /// How far a maximum may grow before weights have to be measured against the new one, see [`lazy_limit`].
    limit: R,
}

/// What a step has found.
pub struct Step<R> {
    /// The factor on what has been summed up to now.
    pub rescale: R,
    /// Sums of the weights of the step.
    pub sum: R,
}

/// What a lazy step has found.
pub struct LazyStep<R> {
    max: R,
    base: R,
    sum: R,
    grown: bool,
}

/// How warps that share rows put their maxima and sums together.
pub trait AcrossWarps<R> {
    /// The maximum of every row, given those over this warp's keys.
    ///
    /// # Safety
    /// All threads of the warps that share the rows, converged.
    unsafe fn max(&self, own: R) -> R;

    /// The sum of every row, given those over this lane's keys.
    ///
    /// # Safety
    /// As for [`Self::max`].
    unsafe fn sum(&self, own: R) -> R;
}

/// A warp that has all keys of its rows. Its lanes add up their sums at the end.
pub struct Alone;

impl<R> AcrossWarps<R> for Alone {
    #[inline(always)]
    unsafe fn max(&self, own: R) -> R {
        own
    }

    #[inline(always)]
    unsafe fn sum(&self, own: R) -> R {
        own
    }
}

impl<R: PerRow> Default for OnlineSoftmax<R> {
    #[inline(always)]
    fn default() -> Self {
        OnlineSoftmax::new()
    }
}

impl<R: PerRow> OnlineSoftmax<R> {
    /// No keys yet.
    #[inline(always)]
    pub fn new() -> Self {
        let [max, sum] = [f32::NEG_INFINITY, 0.0].map(R::splat);
        OnlineSoftmax { max, sum, limit: max }
    }

    /// Turns the first scores of all into weights. Rows may see none of their keys.
    ///
    /// # Safety
    /// All threads of the warp, converged.
    #[inline(always)]
    pub unsafe fn first<T: Exponent, F: Fragments<Rows = R>>(scores: &mut F, scale: f32) -> Self {
        // SAFETY: passed on.
        let max = unsafe { row_max(scores, scale) };
        let sum = exponentiate::<T, _>(scores, &base(&max, true), scale);
        OnlineSoftmax { max, sum, limit: max }
    }

    /// Turns the scores of a block into weights and takes them in. Only a `masked` block can leave a row without a key; a block where a program
    /// may hide some is one.
    ///
    /// # Safety
    /// All threads of the warps that share the rows, converged.
    #[inline(always)]
    pub unsafe fn step<T: Exponent, F: Fragments<Rows = R>>(
        &mut self,
        scores: &mut F,
        scale: f32,
        masked: bool,
        warps: &impl AcrossWarps<R>,
    ) -> Step<R> {
        // SAFETY: passed on.
        let new_max = unsafe { self.max.zip(&warps.max(row_max(scores, scale)), f32::max) };
        let base = base(&new_max, masked);
        let rescale = rescale::<T, _>(&self.max, &base);
        let weights = exponentiate::<T, _>(scores, &base, scale);
        // SAFETY: passed on.
        let sum = unsafe { warps.sum(weights) };
        self.max = new_max;
        self.sum = self.sum.zip(&rescale, |l, alpha| l * alpha).zip(&sum, |l, p| l + p);
        Step { rescale, sum }
    }

    /// Puts the maxima and sums of warps together that have had other keys of the same rows. What is returned is the factor on what this warp
    /// has summed up.
    ///
    /// # Safety
    /// All threads of the warps that share the rows, converged.
    #[inline(always)]
    pub unsafe fn join<T: Exponent>(&mut self, warps: &impl AcrossWarps<R>) -> R {
        // SAFETY: passed on.
        unsafe {
            let max = warps.max(self.max);
            let rescale = rescale::<T, _>(&self.max, &base(&max, true));
            self.sum = warps.sum(self.sum.zip(&rescale, |l, alpha| l * alpha));
            self.max = max;
            rescale
        }
    }

    /// Turns the scores of a block into weights, measured against the old maximum unless that has been passed by more than its limit.
    /// [`Self::take_in`] has to follow.
    ///
    /// # Safety
    /// All threads of the warp, converged.
    #[inline(always)]
    pub unsafe fn lazy_step<T: TensorCore, F: Fragments<Rows = R>>(
        &self,
        scores: &mut F,
        scale: f32,
        masked: bool,
    ) -> LazyStep<R> {
        // SAFETY: passed on.
        unsafe {
            let block_max = row_max(scores, scale);
            let max = lazy_max(&self.max, &block_max, &self.limit);
            let grown = any_changed(&self.max, &max);
            let base = base(&max, masked);
            let sum = exponentiate::<T, _>(scores, &base, scale);
            LazyStep { max, base, sum, grown }
        }
    }

    /// Takes in the weights of a step, and rescales `out`, what has been summed up to now, if a row of the warp has a new maximum.
    ///
    /// # Safety
    /// As for [`Self::lazy_step`].
    #[inline(always)]
    pub unsafe fn take_in<T: TensorCore, F: Fragments<Rows = R>>(&mut self, step: &LazyStep<R>, out: &mut F) {
        if step.grown {
            let rescale = rescale::<T, _>(&self.max, &step.base);
            self.sum = self.sum.zip(&rescale, |l, alpha| l * alpha);
            out.scale_rows(&rescale);
            // SAFETY: passed on; the vote was the same for the whole warp.
            self.limit = lazy_limit(&step.max, &unsafe { quad_sum(&self.sum) });
        }
        self.sum = self.sum.zip(&step.sum, |l, p| l + p);
        self.max = step.max;
    }
}

/// Scaled maximum of every row, over the keys of this warp. The scale is positive, so that it can follow the maximum.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
unsafe fn row_max<F: Fragments>(scores: &F, scale: f32) -> F::Rows {
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
    max.map(|x| unsafe { warp::quad_max(x) } * scale)
}

/// What weights are measured against: the maximum, or 0 in a row that has seen no key, whose weights are then `e^-inf = 0`, not NaN.
/// Only a `masked` block can leave a row without a key.
#[inline(always)]
fn base<R: PerRow>(max: &R, masked: bool) -> R {
    if masked { max.map(|max| if max == f32::NEG_INFINITY { 0.0 } else { max }) } else { *max }
}

/// The maximum to measure weights against once a block has come up to `new`: still the `old` one unless that is above `limit`.
#[inline(always)]
fn lazy_max<R: PerRow>(old: &R, new: &R, limit: &R) -> R {
    let raised = new.zip(limit, |new, limit| if new > limit { new } else { f32::NEG_INFINITY });
    old.zip(&raised, f32::max)
}

/// How far a row's maximum may grow before weights have to be measured against the new one, for sums `sum` relative to `max`.
///
/// Measured against its own maximum, the largest weight is exactly 1. Against an older one it is rounded, which is harmless if it is at
/// most 1/16 of the sum. FlashAttention-4 (Zadouri et al., 2026) has a fixed limit of 2^8, which doubles the error of rows with one
/// large weight.
#[inline(always)]
fn lazy_limit<R: PerRow>(max: &R, sum: &R) -> R {
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
unsafe fn any_changed<R: PerRow>(old: &R, new: &R) -> bool {
    let mut changed = false;
    for m in 0..R::M {
        for half in 0..2 {
            changed = changed || old.at(m, half) != new.at(m, half);
        }
    }
    // SAFETY: passed on.
    unsafe { warp::any(changed) }
}

/// The factor that turns sums and outputs relative to maximum `old` into ones relative to `base`.
#[inline(always)]
fn rescale<T: Exponent, R: PerRow>(old: &R, base: &R) -> R {
    old.zip(base, |old, base| T::power(old - base))
}

/// Turns scores into weights `e^(scale s - base)`, or powers of two, in place and returns the sum of every row over the keys of this *lane*.
#[inline(always)]
fn exponentiate<T: Exponent, F: Fragments>(scores: &mut F, base: &F::Rows, scale: f32) -> F::Rows {
    let mut sum = F::Rows::splat(0.0);
    for m in 0..F::M {
        for n in 0..F::N {
            let p = scores.at_mut(m, n);
            for i in 0..4 {
                p[i] = T::weight(p[i], scale, -base.at(m, i / 2));
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
