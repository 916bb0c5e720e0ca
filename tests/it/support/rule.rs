//! The tolerance rule, for results of operators.

use ferroflash::reference::{max_abs_difference, tolerance};

/// By the rule, in units of what a result is likely to be; `exact` and `rounded` may have more rows than `found`.
pub(crate) fn check(name: &str, found: &[f64], exact: &[f64], rounded: &[f64], unit: f64) -> Result<(), String> {
    let error = max_abs_difference(found, &exact[..found.len()]) / unit;
    let bound = tolerance(max_abs_difference(rounded, exact) / unit);
    // A bound that is no number accepts nothing.
    if error <= bound && bound.is_finite() {
        Ok(())
    } else {
        Err(format!("{name} is off by {error:e} times {unit:e}, {bound:e} is accepted"))
    }
}

/// One test for each element type.
macro_rules! for_each_dtype {
    ($check:ident) => {
        mod $check {
            use super::*;

            #[test]
            fn of_f32() {
                super::$check::<f32>();
            }

            #[test]
            fn of_f16() {
                super::$check::<f16>();
            }

            #[test]
            fn of_bf16() {
                super::$check::<bf16>();
            }
        }
    };
}
pub(crate) use for_each_dtype;
