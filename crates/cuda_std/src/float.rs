//! 16-bit float types: storage and conversion only, arithmetic happens in `f32`.

/// IEEE binary16, as its bits.
#[allow(non_camel_case_types)]
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct f16(pub u16);

/// bfloat16, as its bits.
#[allow(non_camel_case_types)]
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct bf16(pub u16);

impl f16 {
    /// The nearest value, ties to even.
    ///
    /// PTX `cvt.rn.f16.f32`, least SM 5.3, any thread; the same result in software on the host.
    #[inline(always)]
    pub fn from_f32(x: f32) -> f16 {
        #[cfg(target_arch = "nvptx64")]
        {
            let bits: u16;
            // SAFETY: arithmetic without side effects.
            unsafe {
                core::arch::asm!("cvt.rn.f16.f32 {}, {};", out(reg16) bits, in(reg32) x, options(pure, nomem, nostack));
            }
            f16(bits)
        }
        #[cfg(not(target_arch = "nvptx64"))]
        f16(software::round_to_bits::<5, 10>(x))
    }

    /// The same value, exactly.
    ///
    /// PTX `cvt.f32.f16`, least SM 5.3, any thread; in software on the host.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        #[cfg(target_arch = "nvptx64")]
        {
            let x: f32;
            // SAFETY: arithmetic without side effects.
            unsafe {
                core::arch::asm!("cvt.f32.f16 {}, {};", out(reg32) x, in(reg16) self.0, options(pure, nomem, nostack));
            }
            x
        }
        #[cfg(not(target_arch = "nvptx64"))]
        software::widen::<5, 10>(self.0)
    }

    /// Rounds two values and packs them, `low` in the lower half.
    ///
    /// PTX `cvt.rn.f16x2.f32 d, high, low`, least SM 8.0, any thread.
    #[inline(always)]
    pub fn pack(low: f32, high: f32) -> u32 {
        let packed: u32;
        // SAFETY: arithmetic without side effects.
        unsafe {
            ptx!("cvt.rn.f16x2.f32 {}, {}, {};",
                out(reg32) packed, in(reg32) high, in(reg32) low, options(pure, nomem, nostack));
        }
        packed
    }

    /// `a b + c` for each half of packed pairs, rounded once.
    ///
    /// PTX `fma.rn.f16x2`, least SM 5.3, any thread.
    #[inline(always)]
    pub fn fma_pair(a: u32, b: u32, c: u32) -> u32 {
        let result: u32;
        // SAFETY: arithmetic without side effects.
        unsafe {
            ptx!("fma.rn.f16x2 {}, {}, {}, {};",
                out(reg32) result, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
        }
        result
    }
}

impl bf16 {
    /// The nearest value, ties to even.
    ///
    /// PTX `cvt.rn.bf16.f32`, least SM 8.0, any thread; the same result in software on the host.
    #[inline(always)]
    pub fn from_f32(x: f32) -> bf16 {
        #[cfg(target_arch = "nvptx64")]
        {
            let bits: u16;
            // SAFETY: arithmetic without side effects.
            unsafe {
                core::arch::asm!("cvt.rn.bf16.f32 {}, {};", out(reg16) bits, in(reg32) x, options(pure, nomem, nostack));
            }
            bf16(bits)
        }
        #[cfg(not(target_arch = "nvptx64"))]
        bf16(software::round_to_bits::<8, 7>(x))
    }

    /// The same value, exactly: bfloat16 is the upper half of an `f32`.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }

    /// Rounds two values and packs them, `low` in the lower half.
    ///
    /// PTX `cvt.rn.bf16x2.f32 d, high, low`, least SM 8.0, any thread.
    #[inline(always)]
    pub fn pack(low: f32, high: f32) -> u32 {
        let packed: u32;
        // SAFETY: arithmetic without side effects.
        unsafe {
            ptx!("cvt.rn.bf16x2.f32 {}, {}, {};",
                out(reg32) packed, in(reg32) high, in(reg32) low, options(pure, nomem, nostack));
        }
        packed
    }

    /// `a b + c` for each half of packed pairs, rounded once.
    ///
    /// PTX `fma.rn.bf16x2`, least SM 8.0, any thread.
    #[inline(always)]
    pub fn fma_pair(a: u32, b: u32, c: u32) -> u32 {
        let result: u32;
        // SAFETY: arithmetic without side effects.
        unsafe {
            ptx!("fma.rn.bf16x2 {}, {}, {}, {};",
                out(reg32) result, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
        }
        result
    }
}

/// Conversions for the host build.
#[cfg(not(target_arch = "nvptx64"))]
mod software {
    /// Rounds to a 16-bit float of `EXPONENT` and `MANTISSA` bits, ties to even, NaN kept quiet.
    pub(super) fn round_to_bits<const EXPONENT: u32, const MANTISSA: u32>(x: f32) -> u16 {
        let bits = x.to_bits();
        let sign = (bits >> 16 & 0x8000) as u16;
        let max_exponent = (1_i32 << EXPONENT) - 1;
        let bias = max_exponent / 2;
        let infinity = (max_exponent as u16) << MANTISSA;
        if x.is_nan() {
            // The quiet bit, and what is left of the payload.
            let payload = (bits >> (23 - MANTISSA)) as u16 & ((1 << MANTISSA) - 1);
            return sign | infinity | 1 << (MANTISSA - 1) | payload;
        }
        let exponent = (bits >> 23 & 0xff) as i32 - 127 + bias;
        let significand = (bits & 0x7f_ffff) | if bits >> 23 & 0xff == 0 { 0 } else { 0x80_0000 };
        if exponent >= max_exponent {
            return sign | infinity;
        }
        // A result of exponent field 0 is subnormal and scaled as exponent field 1. An f32 subnormal has field 0 but scale 1 as
        // well, which only bfloat16 (same bias) reaches.
        let below = if exponent < 1 { 1 - exponent } else { 0 };
        let below = if bits >> 23 & 0xff == 0 { below - 1 } else { below };
        let shift = (23 - MANTISSA as i32) + below;
        if shift > 25 {
            return sign;
        }
        let kept = significand >> shift;
        let rest = significand & ((1 << shift) - 1);
        let half = 1 << (shift - 1);
        let round_up = rest > half || (rest == half && kept & 1 == 1);
        let rounded = kept + round_up as u32;
        // The hidden bit adds one to the exponent field; a carry out of the mantissa does so by itself.
        let field = if exponent < 1 { 0 } else { (exponent as u32 - 1) << MANTISSA };
        sign | (field + rounded) as u16
    }

    /// The value of a 16-bit float of `EXPONENT` and `MANTISSA` bits.
    pub(super) fn widen<const EXPONENT: u32, const MANTISSA: u32>(bits: u16) -> f32 {
        let sign = (bits as u32 & 0x8000) << 16;
        let exponent = bits as u32 >> MANTISSA & ((1 << EXPONENT) - 1);
        let mantissa = bits as u32 & ((1 << MANTISSA) - 1);
        let bias = (1 << (EXPONENT - 1)) - 1;
        let magnitude = if exponent == (1 << EXPONENT) - 1 {
            let quiet = if mantissa == 0 { 0 } else { 0x40_0000 };
            f32::from_bits(0x7f80_0000 | mantissa << (23 - MANTISSA) | quiet)
        } else if exponent == 0 {
            // mantissa * 2^(1 - bias - MANTISSA), exact in f32.
            mantissa as f32 * f32::from_bits((127 + 1 - bias - MANTISSA) << 23)
        } else {
            f32::from_bits((exponent + 127 - bias) << 23 | mantissa << (23 - MANTISSA))
        };
        f32::from_bits(magnitude.to_bits() | sign)
    }
}

#[cfg(test)]
mod tests {
    use super::{bf16, f16};

    #[test]
    fn widening_agrees_with_half_for_every_value() {
        for bits in 0..=u16::MAX {
            assert_eq!(f16(bits).to_f32().to_bits(), half::f16::from_bits(bits).to_f32().to_bits(), "{bits:#06x}");
            let (ours, theirs) = (bf16(bits).to_f32(), half::bf16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#06x}");
        }
    }

    #[test]
    fn rounding_agrees_with_half() {
        // Every exponent and sign, with mantissas around all rounding boundaries of both formats.
        let mantissas = (0..1 << 11).map(|m| m << 12).flat_map(|m: u32| [m, m | 1, m | 0xfff, m | 0x800, m | 0x7ff]);
        for mantissa in mantissas {
            for upper in 0..1 << 9 {
                let x = f32::from_bits(upper << 23 | (mantissa & 0x7f_ffff));
                assert_eq!(f16::from_f32(x).0, half::f16::from_f32(x).to_bits(), "{x:e} {:#x}", x.to_bits());
                assert_eq!(bf16::from_f32(x).0, half::bf16::from_f32(x).to_bits(), "{x:e} {:#x}", x.to_bits());
            }
        }
    }
}
