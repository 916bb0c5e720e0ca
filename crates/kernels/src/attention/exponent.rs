//! In which numbers the kernels of an element type have scores, maxima and the log-sum-exps that they measure weights against.

use core::f32::consts::{LN_2, LOG2_E};

use cuda_std::math;

use crate::parts::element::{Element, TensorCore};

/// The exponent of a weight: of 2 for types of 16 bits, of e for f32.
///
/// A score and the log-sum-exp of its row are two large numbers that cancel. In powers of two, a weight costs one instruction and the
/// exponential, but the log-sum-exp, which is natural, is rounded twice more on its way to the caller, and so is the score that the
/// backward pass compares with it: weights of scores of 200 are wrong by 4e-5. Next to a weight of 16 bits that is nothing. In f32 it is
/// more than what f32 scores themselves are wrong by, and two instructions a score are little next to products on float units.
pub trait Exponent: Element {
    /// The factor on scores, given the one that makes powers of two of them.
    fn scale(scale_log2: f32) -> f32;

    /// The weight of a score without scale, given minus what it is measured against.
    fn weight(score: f32, scale: f32, minus_base: f32) -> f32;

    /// The factor from one exponent to another, which differ by this much.
    fn power(exponent: f32) -> f32;

    /// A natural logarithm as an exponent.
    fn exponent(natural: f32) -> f32;

    /// The natural log-sum-exp of a row with this maximum and sum of weights.
    fn lse(max: f32, sum: f32) -> f32;

    /// Minus a log-sum-exp that is a number, as [`weight`](Self::weight) takes it, given the factor `high + low` from natural numbers to
    /// scores in powers of two.
    fn minus_lse(lse: f32, high: f32, low: f32) -> f32;
}

impl<T: TensorCore> Exponent for T {
    #[inline(always)]
    fn scale(scale_log2: f32) -> f32 {
        scale_log2
    }

    #[inline(always)]
    fn weight(score: f32, scale: f32, minus_base: f32) -> f32 {
        math::exp2(math::fma(score, scale, minus_base))
    }

    #[inline(always)]
    fn power(exponent: f32) -> f32 {
        math::exp2(exponent)
    }

    #[inline(always)]
    fn exponent(natural: f32) -> f32 {
        natural * LOG2_E
    }

    #[inline(always)]
    fn lse(max: f32, sum: f32) -> f32 {
        (max + math::log2(sum)) * LN_2
    }

    #[inline(always)]
    fn minus_lse(lse: f32, high: f32, low: f32) -> f32 {
        math::fma(-lse, high, -lse * low)
    }
}

impl Exponent for f32 {
    #[inline(always)]
    fn scale(scale_log2: f32) -> f32 {
        scale_log2 * LN_2
    }

    /// The product is rounded before the difference is taken, as in a maximum: the largest score of a row and its log-sum-exp are equal,
    /// whatever their size, where that score has all the weight.
    #[inline(always)]
    fn weight(score: f32, scale: f32, minus_base: f32) -> f32 {
        Self::power(score * scale + minus_base)
    }

    #[inline(always)]
    fn power(exponent: f32) -> f32 {
        math::exp2(exponent * LOG2_E)
    }

    #[inline(always)]
    fn exponent(natural: f32) -> f32 {
        natural
    }

    #[inline(always)]
    fn lse(max: f32, sum: f32) -> f32 {
        max + math::log2(sum) * LN_2
    }

    #[inline(always)]
    fn minus_lse(lse: f32, _: f32, _: f32) -> f32 {
        -lse
    }
}
