//! Narrow floating-point formats and directed rounding, bit by bit.

/// Rounding of a result to its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Round {
    #[default]
    NearestEven,
    NearestAway,
    Zero,
    Down,
    Up,
}

/// A binary format narrower than f32 (or f32 itself).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    pub(crate) exp_bits: u32,
    pub(crate) man_bits: u32,
    /// e4m3 has no infinity: the all-ones exponent is a number, but for the all-ones mantissa.
    pub(crate) has_inf: bool,
}

pub(crate) const F16: Format = Format { exp_bits: 5, man_bits: 10, has_inf: true };
pub(crate) const BF16: Format = Format { exp_bits: 8, man_bits: 7, has_inf: true };
pub(crate) const TF32: Format = Format { exp_bits: 8, man_bits: 10, has_inf: true };
pub(crate) const F32: Format = Format { exp_bits: 8, man_bits: 23, has_inf: true };
pub(crate) const E4M3: Format = Format { exp_bits: 4, man_bits: 3, has_inf: false };
pub(crate) const E5M2: Format = Format { exp_bits: 5, man_bits: 2, has_inf: true };

impl Format {
    fn nan(self) -> u32 {
        let all = (1 << (self.exp_bits + self.man_bits)) - 1;
        // The canonical NaN of PTX: every bit but the sign for f16, bf16 and e4m3, the same pattern for e5m2.
        all
    }

    fn max_finite(self) -> u32 {
        let all = (1u32 << (self.exp_bits + self.man_bits)) - 1;
        if self.has_inf { all - (1 << self.man_bits) } else { all - 1 }
    }

    fn inf(self) -> u32 {
        ((1 << self.exp_bits) - 1) << self.man_bits
    }

    /// Rounds an f64 once to this format. `finite` saturates overflow to the largest number.
    pub(crate) fn encode(self, v: f64, round: Round, finite: bool) -> u32 {
        let sign = if v.is_sign_negative() { 1u32 << (self.exp_bits + self.man_bits) } else { 0 };
        if v.is_nan() {
            return self.nan();
        }
        let overflow = |s: u32| {
            let to_inf = match round {
                Round::NearestEven | Round::NearestAway => true,
                Round::Zero => false,
                Round::Down => s != 0,
                Round::Up => s == 0,
            };
            if finite || !to_inf {
                s | self.max_finite()
            } else if self.has_inf {
                s | self.inf()
            } else {
                s | self.nan()
            }
        };
        if v.is_infinite() {
            return if finite {
                sign | self.max_finite()
            } else if self.has_inf {
                sign | self.inf()
            } else {
                sign | self.nan()
            };
        }
        let bits = v.to_bits() & !(1 << 63);
        if bits == 0 {
            return sign;
        }
        let (mut e, mut m) = ((bits >> 52) as i32, bits & ((1 << 52) - 1));
        if e == 0 {
            // A subnormal f64 is below the smallest number of every narrower format.
            e = 1;
        } else {
            m |= 1 << 52;
        }
        let bias = (1 << (self.exp_bits - 1)) - 1;
        let mut te = e - 1023 + bias;
        let mut shift = 52 - self.man_bits as i32;
        if te < 1 {
            shift += 1 - te;
            te = 0;
        }
        let (mut q, rest, half) =
            if shift > 63 { (0u64, 1u64, 2u64) } else { (m >> shift, m & ((1u64 << shift) - 1), 1u64 << (shift - 1)) };
        let up = match round {
            Round::NearestEven => rest > half || (rest == half && q & 1 == 1),
            Round::NearestAway => rest >= half,
            Round::Zero => false,
            Round::Down => sign != 0 && rest != 0,
            Round::Up => sign == 0 && rest != 0,
        };
        q += up as u64;
        // For a normal number q holds the implicit bit: adding carries into the exponent as it must.
        let r = if te == 0 { q as u32 } else { (((te - 1) as u32) << self.man_bits).wrapping_add(q as u32) };
        if te > (1 << self.exp_bits) || r > self.max_finite() {
            return overflow(sign);
        }
        sign | r
    }

    /// The value of a bit pattern, exact.
    pub(crate) fn decode(self, bits: u32) -> f64 {
        let sign = if bits >> (self.exp_bits + self.man_bits) & 1 == 1 { -1.0 } else { 1.0 };
        let e = (bits >> self.man_bits) & ((1 << self.exp_bits) - 1);
        let m = bits & ((1 << self.man_bits) - 1);
        let bias = (1 << (self.exp_bits - 1)) - 1;
        let top = (1 << self.exp_bits) - 1;
        if self.has_inf && e == top {
            return if m == 0 { sign * f64::INFINITY } else { f64::NAN };
        }
        if !self.has_inf && e == top && m == (1 << self.man_bits) - 1 {
            return f64::NAN;
        }
        let (m, e) = if e == 0 { (m, 1) } else { (m | 1 << self.man_bits, e) };
        sign * m as f64 * exp2i(e as i32 - bias - self.man_bits as i32)
    }
}

/// 2^e for an exponent in the normal range of f64.
fn exp2i(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// The rounding error of `a + b = s` in f64 (Knuth's TwoSum).
fn two_sum_error(a: f64, b: f64, s: f64) -> f64 {
    let bb = s - a;
    (a - (s - bb)) + (b - bb)
}

/// `a + b` with the last bit made sticky (rounding to odd), so that a later rounding to a narrower format is right.
pub(crate) fn add_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    if !s.is_finite() {
        return s;
    }
    let e = two_sum_error(a, b, s);
    if e == 0.0 || s.to_bits() & 1 == 1 {
        return s;
    }
    // Not exact and even: step towards the error's side, which is odd.
    let bits = s.to_bits();
    if (e > 0.0) == (s > 0.0) { f64::from_bits(bits + 1) } else { f64::from_bits(bits - 1) }
}

/// `a * b + c` for factors whose product f64 holds exactly, to odd.
pub(crate) fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    add_odd(a * b, c)
}

/// f16 to f32, exact; written so that a loop over lanes vectorises.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    let h = h as u32;
    let magic = f32::from_bits((254 - 15) << 23);
    let v = (f32::from_bits((h & 0x7fff) << 13) * magic).to_bits();
    let special = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(v | special | (h & 0x8000) << 16)
}

/// f32 to f16, to nearest even; NaN gives 0x7fff.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let b = x.to_bits();
    let sign = (b >> 16) & 0x8000;
    let a = b & 0x7fff_ffff;
    if a > 0x7f80_0000 {
        return 0x7fff;
    }
    if a >= (143 << 23) {
        return (sign | 0x7c00) as u16;
    }
    let r = if a < (113 << 23) {
        // Subnormal: let the addition round at the right bit.
        let magic = f32::from_bits(((127 - 15) + (23 - 10) + 1) << 23);
        (f32::from_bits(a) + magic).to_bits() - magic.to_bits()
    } else {
        let odd = (a >> 13) & 1;
        a.wrapping_add(((15u32.wrapping_sub(127)) << 23).wrapping_add(0xfff)).wrapping_add(odd) >> 13
    };
    (sign | r) as u16
}

/// bf16 to f32, exact.
#[inline(always)]
pub(crate) fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits((h as u32) << 16)
}

/// f32 to bf16, to nearest even; NaN gives 0x7fff.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let b = x.to_bits();
    if x.is_nan() {
        return 0x7fff;
    }
    (b.wrapping_add(0x7fff + ((b >> 16) & 1)) >> 16) as u16
}

/// Flushes a subnormal to the zero of its sign.
#[inline(always)]
pub(crate) fn ftz(x: f32) -> f32 {
    let b = x.to_bits();
    f32::from_bits(if b & 0x7f80_0000 == 0 { b & 0x8000_0000 } else { b })
}

/// The canonical NaN of f32 arithmetic.
pub(crate) const NAN32: f32 = f32::from_bits(0x7fff_ffff);

/// Makes every NaN the canonical one. On bits: the compiler may take one NaN of float arithmetic for another.
#[inline(always)]
pub(crate) fn canon(x: f32) -> f32 {
    let b = x.to_bits();
    f32::from_bits(if b & 0x7fff_ffff > 0x7f80_0000 { 0x7fff_ffff } else { b })
}

/// Clamps to [0, 1]; NaN gives +0.
#[inline(always)]
pub(crate) fn saturate(x: f32) -> f32 {
    if x > 1.0 {
        1.0
    } else if x > 0.0 {
        x
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_round_trips_and_rounds_like_the_slow_path() {
        for h in 0..=u16::MAX {
            let x = f16_to_f32(h);
            let slow = F16.decode(h as u32);
            assert!(x as f64 == slow || (x.is_nan() && slow.is_nan()), "{h:#x}");
            if !x.is_nan() {
                assert_eq!(f32_to_f16(x), h);
            }
        }
        let mut s = 1u32;
        for _ in 0..200_000 {
            s = s.wrapping_mul(1664525).wrapping_add(1013904223);
            let x = f32::from_bits(s);
            if x.is_nan() {
                continue;
            }
            assert_eq!(f32_to_f16(x) as u32, F16.encode(x as f64, Round::NearestEven, false), "{x}");
            assert_eq!(f32_to_bf16(x) as u32, BF16.encode(x as f64, Round::NearestEven, false), "{x}");
            assert_eq!(x.to_bits(), F32.encode(x as f64, Round::NearestEven, false), "{x}");
        }
    }

    #[test]
    fn fp8_covers_its_range() {
        assert_eq!(E4M3.decode(0x7e), 448.0);
        assert!(E4M3.decode(0x7f).is_nan());
        assert_eq!(E5M2.decode(0x7b), 57344.0);
        assert_eq!(E4M3.encode(1000.0, Round::NearestEven, true), 0x7e);
        assert_eq!(E5M2.encode(1e9, Round::NearestEven, true), 0x7b);
        for b in 0..=255u32 {
            for f in [E4M3, E5M2] {
                let v = f.decode(b);
                if v.is_finite() {
                    assert_eq!(f.encode(v, Round::NearestEven, true), b);
                }
            }
        }
    }

    #[test]
    fn directed_rounding_brackets_the_value() {
        let v = 1.0 + 2f64.powi(-40);
        assert_eq!(f32::from_bits(F32.encode(v, Round::Zero, false)), 1.0);
        assert_eq!(f32::from_bits(F32.encode(v, Round::Up, false)), 1.0 + f32::EPSILON);
        assert_eq!(f32::from_bits(F32.encode(-v, Round::Down, false)), -1.0 - f32::EPSILON);
        // 1 + 2^-24 + 2^-80 is above the tie: rounding to odd keeps that.
        let s = add_odd(1.0 + 2f64.powi(-24), 2f64.powi(-80));
        assert_eq!(f32::from_bits(F32.encode(s, Round::NearestEven, false)), 1.0 + f32::EPSILON);
    }
}
