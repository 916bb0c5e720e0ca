//! The activations of dense layers, of sums in f32:
//!
//! ```text
//! ReLU        max(z, 0)
//! GELU        z Phi(z) = z (1 + erf(z / sqrt 2)) / 2                    (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016)
//! GELU tanh   z (1 + tanh u) / 2 = z / (1 + e^-2u)                      u = sqrt(2 / pi) (z + 0.044715 z^3)
//! SiLU        z / (1 + e^-z)
//! SwiGLU      SiLU(gate) up                                             (Shazeer, "GLU Variants Improve Transformer", 2020)
//! ```
//!
//! `tanh` is written as the logistic function of twice its argument, which loses nothing where it is close to -1. Which of them it is, is a constant in the
//! text that runs.

use core::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

use cuda_std::math;
use kernel_spec::FeatureSet;
use kernel_spec::families::dense::features::{CURVED, LOGISTIC, SECOND};

/// `2 sqrt(2 / pi) log2(e)`: the argument of the exponential for a small z, over z.
pub(super) const TANH_SLOPE: f32 = 2.302_208_2;

/// The factor of `z^3` in it, over that of `z`.
pub(super) const TANH_CUBE: f32 = 0.044_715;

/// The activation of one sum: of a gated one, that of the gate.
#[inline(always)]
pub fn activation(which: FeatureSet, z: f32) -> f32 {
    let has = #[inline(always)]
    |slot: u32| which.contains(FeatureSet::of(slot));
    if has(LOGISTIC) {
        z * logistic(z * LOG2_E)
    } else if has(CURVED) {
        if has(SECOND) {
            z * normal_distribution(z)
        } else {
            // The cube overflows where the sum does not: the logistic function is then 0 or 1, as it should be.
            z * logistic(z * (TANH_SLOPE * math::fma(TANH_CUBE * z, z, 1.0)))
        }
    } else if has(SECOND) {
        // A comparison, so that a NaN stays one.
        if z < 0.0 { 0.0 } else { z }
    } else {
        z
    }
}

/// `1 / (1 + 2^-x)`.
#[inline(always)]
pub(super) fn logistic(x: f32) -> f32 {
    math::reciprocal_approx(1.0 + math::exp2(-x))
}

/// `Phi(z)` with an error below `1e-7`: Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 7.1.26, for `x = |z| / sqrt 2`.
#[inline(always)]
pub(super) fn normal_distribution(z: f32) -> f32 {
    let x = math::abs(z) * FRAC_1_SQRT_2;
    let t = math::reciprocal_approx(math::fma(0.327_591_1, x, 1.0));
    // Halves of the handbook's factors: erfc(x) / 2 is the smaller of Phi(z) and Phi(-z).
    let mut tail = 0.530_702_7;
    for factor in [-0.726_576_5, 0.710_706_9, -0.142_248_37, 0.127_414_8] {
        tail = math::fma(tail, t, factor);
    }
    tail *= t * math::exp2(x * x * -LOG2_E);
    if z < 0.0 { tail } else { 1.0 - tail }
}
