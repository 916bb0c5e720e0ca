//! Element types of the host.

use kernel_spec::DType;

/// Element types of the host: `f32`, [`half::f16`] and [`half::bf16`].
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed + 'static {
    /// The same type on the device.
    const DTYPE: DType;
    /// The exact value.
    fn to_f64(self) -> f64;
    /// The nearest value of this type, ties to even.
    fn from_f64(value: f64) -> Self;
}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for f32 {}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl sealed::Sealed for half::f16 {}
impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
    fn to_f64(self) -> f64 {
        self.to_f64()
    }
    fn from_f64(value: f64) -> Self {
        half::f16::from_f32(to_f32_odd(value))
    }
}

impl sealed::Sealed for half::bf16 {}
impl Element for half::bf16 {
    const DTYPE: DType = DType::Bf16;
    fn to_f64(self) -> f64 {
        self.to_f64()
    }
    fn from_f64(value: f64) -> Self {
        half::bf16::from_f32(to_f32_odd(value))
    }
}

/// `value` where `f32` has it; elsewhere that of its two neighbours in `f32` whose last bit is 1.
///
/// Rounded again to a type of 16 bits, which is far coarser, it gives what `value` gives: no number of `f32` with that bit lies halfway
/// between two of the coarser type, and none of those lies between `value` and it. `half`'s own conversions from `f64` do not look at the
/// last 32 bits, which decide next to a halfway point.
fn to_f32_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let exact = f64::from(nearest) == value || value.is_nan();
    if exact || nearest.to_bits() & 1 == 1 {
        return nearest;
    }
    // The other neighbour: one step towards `value`, in bits that count magnitudes.
    let grows = value.abs() > f64::from(nearest).abs();
    f32::from_bits(if grows { nearest.to_bits() + 1 } else { nearest.to_bits() - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a pattern of 16 bits with so many bits of fraction, by the definition of the formats. Infinity counts as the number that
    /// would follow the largest, as rounding to nearest has it.
    fn value(magnitude: u16, fraction_bits: i32) -> f64 {
        let exponent_bits = 15 - fraction_bits;
        let bias = (1 << (exponent_bits - 1)) - 1;
        let (exponent, fraction) = (i32::from(magnitude >> fraction_bits), magnitude & ((1 << fraction_bits) - 1));
        let hidden = if exponent > 0 { 1 << fraction_bits } else { 0 };
        f64::from(hidden + i32::from(fraction)) * 2f64.powi(exponent.max(1) - bias - fraction_bits)
    }

    /// Around every halfway point of the type: one number of f64 to either side, of f32, and the point itself, which is the even neighbour's.
    fn check<T: Element>(fraction_bits: i32, bits: impl Fn(T) -> u16) {
        let infinity = ((1 << (15 - fraction_bits)) - 1) << fraction_bits;
        for lower in 0..infinity {
            let upper = lower + 1;
            let even = if lower % 2 == 0 { lower } else { upper };
            let [a, b] = [lower, upper].map(|magnitude| value(magnitude, fraction_bits));
            // Exact: one bit more than the type has.
            let half = a + (b - a) / 2.0;
            let tiny = (b - a) * 2f64.powi(-25);
            let cases = [
                (a, lower),
                (a.next_up(), lower),
                (half - tiny, lower),
                (half.next_down(), lower),
                (half, even),
                (half.next_up(), upper),
                (half + tiny, upper),
                (b.next_down(), upper),
            ];
            for (x, expected) in cases {
                assert_eq!(bits(T::from_f64(x)), expected, "{x:e} of {lower:#06x}");
                assert_eq!(bits(T::from_f64(-x)), expected | 0x8000, "-{x:e} of {lower:#06x}");
            }
        }
        for x in [f64::MAX, f64::INFINITY, value(infinity, fraction_bits)] {
            assert_eq!([x, -x].map(|x| bits(T::from_f64(x))), [infinity, infinity | 0x8000], "{x:e}");
        }
        for x in [f64::MIN_POSITIVE, f64::from_bits(1), 1e-60] {
            assert_eq!([x, -x].map(|x| bits(T::from_f64(x))), [0, 0x8000], "{x:e}");
        }
        // NaN of every kind, also one whose only bit is lost on the way.
        for pattern in [f64::NAN.to_bits(), 0x7ff0_0000_0000_0001, 0xffff_ffff_ffff_ffff] {
            let found = bits(T::from_f64(f64::from_bits(pattern))) & 0x7fff;
            assert!(found > infinity, "{pattern:#x} is {found:#x}");
        }
    }

    #[test]
    fn the_nearest_f16() {
        check(10, half::f16::to_bits);
    }

    #[test]
    fn the_nearest_bf16() {
        check(7, half::bf16::to_bits);
    }

    #[test]
    fn the_nearest_f32() {
        assert_eq!(
            [1.0 + 2f64.powi(-24), 1.0 + 3.0 * 2f64.powi(-24), 1e-46].map(f32::from_f64),
            [1.0, 1.0 + 2.0 * f32::EPSILON, 0.0]
        );
    }
}
