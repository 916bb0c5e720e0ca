//! The slopes of activations, of sums in f32:
//!
//! ```text
//! ReLU        1 or 0
//! GELU        Phi(z) + z e^(-z^2 / 2) / sqrt(2 pi)
//! GELU tanh   s + z s (1 - s) 2u'        s = 1 / (1 + e^-2u),  u = sqrt(2 / pi) (z + 0.044715 z^3)
//! SiLU        s + z s (1 - s)            s = 1 / (1 + e^-z)
//! ```

use core::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LN_2, LOG2_E};

use cuda_std::math;
use kernel_spec::FeatureSet;
use kernel_spec::families::dense::features::{CURVED, LOGISTIC, SECOND};

use crate::operators::dense::activation::{TANH_CUBE, TANH_SLOPE, logistic, normal_distribution};

/// The activation of one sum, and its slope there: of a gated one, those of the gate.
#[inline(always)]
pub fn with_slope(which: FeatureSet, z: f32) -> [f32; 2] {
    let has = #[inline(always)]
    |slot: u32| which.contains(FeatureSet::of(slot));
    // Infinities have the slopes that large numbers have: products with them would have none.
    let near = math::if_abs_less(z, STRAIGHT, z, 0.0);
    if has(LOGISTIC) {
        let s = logistic(z * LOG2_E);
        [z * s, math::fma(near * s, 1.0 - s, s)]
    } else if has(CURVED) {
        if has(SECOND) {
            let phi = normal_distribution(z);
            let density = math::exp2(near * near * (-0.5 * LOG2_E)) * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
            [z * phi, math::fma(near, density, phi)]
        } else {
            let s = logistic(z * (TANH_SLOPE * math::fma(TANH_CUBE * z, z, 1.0)));
            let inner = math::fma(3.0 * TANH_CUBE * near, near, 1.0) * (TANH_SLOPE * LN_2);
            [z * s, math::fma(near * s * (1.0 - s), inner, s)]
        }
    } else if has(SECOND) {
        // A comparison, so that a NaN has the gradient of what passes.
        if z <= 0.0 { [0.0, 0.0] } else { [z, 1.0] }
    } else {
        [z, 1.0]
    }
}

/// From there on, slopes are 0 or 1 to the last bit.
const STRAIGHT: f32 = 100.0;
