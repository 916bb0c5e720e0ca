//! The softcap of scores: `tanh(s * factor)`, where the factor is that of the scale over the cap; the scale that follows holds the cap.
//!
//! Not by the instruction `tanh.approx`: its error of 2^-11 is three times what the log-sum-exp of 16-bit inputs may have (H200).

use cuda_std::{math, warp};

use crate::parts::fragments::Fragments;

/// The softcap of a tile of 16-bit inputs, with a relative error below `7e-7`.
///
/// Scores of trained models are small beside the cap nearly everywhere, and there the tangent is a polynomial of six instructions, none of them
/// of the special unit, which exponentials keep busy. One test for the warp says whether that is so. Where it is not, each score gets what it would
/// have got alone: no result depends on other rows, or on what lies behind the end of the keys.
///
/// `in_turn`: one fragment comes after the other everywhere, which needs the fewest registers.
#[inline(always)]
pub fn tile<F: Fragments>(scores: &mut F, factor: f32, in_turn: bool) {
    let mut largest = 0.0;
    for m in 0..F::M {
        for n in 0..F::N {
            largest = math::max(largest, largest_of(scores.at(m, n)));
        }
    }
    // The factor has the sign of the scale where a program follows, and no sign is left to the queries.
    let limit = math::abs(factor);
    let any_large = |largest: f32| {
        // A NaN loses in the maximum, and stays one in the polynomial.
        // SAFETY: tiles are products of whole warps, which are converged here as they are there.
        unsafe { warp::any(largest * limit >= MODERATE) }
    };
    let moderate = |s: f32| tanh_of_moderate(s * factor);
    let any = |s: f32| {
        let x = s * factor;
        math::if_abs_less(x, MODERATE, tanh_of_moderate(x), tanh_of_others(x))
    };
    let is_large = any_large(largest);
    let with_test = |s: [f32; 4]| if is_large && any_large(largest_of(&s)) { s.map(any) } else { s.map(moderate) };
    // Two loops, so that nothing stands between the polynomials of a tile that has nothing else.
    if in_turn || is_large {
        each_fragment(scores, with_test);
    } else {
        each_fragment(scores, |s| s.map(moderate));
    }
}

#[inline(always)]
fn each_fragment<F: Fragments>(scores: &mut F, f: impl Fn([f32; 4]) -> [f32; 4]) {
    for m in 0..F::M {
        for n in 0..F::N {
            *scores.at_mut(m, n) = f(*scores.at(m, n));
        }
    }
}

/// The largest of four absolute values.
#[inline(always)]
fn largest_of(s: &[f32; 4]) -> f32 {
    math::max(math::max_abs(s[0], s[1]), math::max_abs(s[2], s[3]))
}

/// What [`tanh_of_moderate`] takes is below it.
const MODERATE: f32 = 0.5;

/// `tanh(x)` below [`MODERATE`]: the odd polynomial of degree 7 whose largest relative error is the least, `5.4e-7` (Remez), `6.3e-7` in f32.
#[inline(always)]
fn tanh_of_moderate(x: f32) -> f32 {
    let square = x * x;
    let mut series = math::fma(square, -0.044_402_226, 0.131_902_97);
    series = math::fma(series, square, -0.333_263_2);
    series = math::fma(series, square, 0.999_999_46);
    x * series
}

/// `tanh(x) = 1 - 2 / (1 + e^(2 x))`, with an absolute error below `3e-7`.
#[inline(always)]
fn tanh_of_others(x: f32) -> f32 {
    // Infinite and 0 at the ends, which give 1 and -1.
    let t = math::exp2(x * (2.0 * core::f32::consts::LOG2_E));
    math::fma(math::reciprocal_approx(1.0 + t), -2.0, 1.0)
}

/// `tanh(x)` with an absolute error below `2e-7`.
///
/// Without branches: with one for each score, and a quotient rounded as IEEE 754 asks, a softcap took 4.7 times the time of plain attention
/// (H200, v3, 128 dims).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    math::if_abs_less(x, SMALL, tanh_of_small(x), tanh_of_large(x, math::reciprocal_approx))
}

/// The same, with a branch, and a quotient that brings one of its own: where registers count for more than time.
#[inline(always)]
pub fn tanh_with_branch(x: f32) -> f32 {
    let [small, large] = [tanh_of_small(x), tanh_of_large(x, math::reciprocal)];
    if math::abs(x) < SMALL { small } else { large }
}

/// Below it, the difference in [`tanh_of_large`] cancels.
const SMALL: f32 = 0.25;

/// The Taylor series up to x^9, whose next term is below 2^-28 under [`SMALL`].
#[inline(always)]
fn tanh_of_small(x: f32) -> f32 {
    let square = x * x;
    let mut series = math::fma(square, 62.0 / 2835.0, -17.0 / 315.0);
    series = math::fma(series, square, 2.0 / 15.0);
    series = math::fma(series, square, -1.0 / 3.0);
    math::fma(series * square, x, x)
}

/// `(1 - t) / (1 + t)` with `t = e^(-2 |x|)`, which never overflows.
#[inline(always)]
fn tanh_of_large(x: f32, reciprocal: impl Fn(f32) -> f32) -> f32 {
    let t = math::exp2(math::abs(x) * (-2.0 * core::f32::consts::LOG2_E));
    let large = (1.0 - t) * reciprocal(1.0 + t);
    f32::from_bits(large.to_bits() | (x.to_bits() & 0x8000_0000))
}
