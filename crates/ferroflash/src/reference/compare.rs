//! The tolerance rule.

/// A result against the reference under the tolerance rule.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Comparison {
    /// Largest absolute difference between the result and the `f64` reference; infinite when either is NaN where the other is not.
    pub max_error: f64,
    /// Largest absolute difference between [`forward_rounded`](super::forward_rounded) and the `f64` reference.
    pub rounded_error: f64,
    /// Largest error that is accepted: `2 * rounded_error + 1e-5`.
    pub bound: f64,
    /// Whether `max_error <= bound`.
    pub within: bool,
}

impl Comparison {
    /// Compares `out` with the reference. The three slices are in the same order.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn new(out: &[f64], reference: &[f64], rounded: &[f64]) -> Comparison {
        let max_error = max_abs_difference(out, reference);
        let rounded_error = max_abs_difference(rounded, reference);
        let bound = tolerance(rounded_error);
        // An infinite bound comes from a reference or a rounded result that is not finite: nothing to accept against.
        Comparison { max_error, rounded_error, bound, within: max_error <= bound && max_error.is_finite() }
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.within { "within" } else { "OUTSIDE" };
        write!(f, "max error {:.3e} is {word} the bound {:.3e}", self.max_error, self.bound)
    }
}

/// The largest error accepted when the same formula in the same precision is off by `rounded_error`.
///
/// The rule of FlashAttention's test suite: a factor 2 for another order of the same operations, and an absolute part for problems
/// whose rounded result is exact.
pub fn tolerance(rounded_error: f64) -> f64 {
    2.0 * rounded_error + 1e-5
}

/// Largest absolute difference. Infinite where one is NaN, or where they are not both the same infinity; never NaN.
///
/// # Panics
/// When the lengths differ.
pub fn max_abs_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "slices of different tensors are compared");
    let difference = |(&a, &b): (&f64, &f64)| {
        if a == b {
            return 0.0;
        }
        let difference = (a - b).abs();
        if difference.is_nan() { f64::INFINITY } else { difference }
    };
    a.iter().zip(b).map(difference).fold(0.0, f64::max)
}
