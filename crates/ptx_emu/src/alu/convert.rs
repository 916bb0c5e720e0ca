//! Conversions of one value.

use super::half::half_format;
use crate::float::*;
use crate::ir::{IntRound, Ty};

/// What a `cvt` says beside its operands.
#[derive(Debug, Clone, Copy)]
struct Conversion {
    to: Ty,
    from: Ty,
    round: Round,
    int_round: Option<IntRound>,
    flush: bool,
    sat: bool,
    relu: bool,
}

/// Converts one value; `v` and the result are bit patterns in the low bits.
#[inline]
pub(crate) fn convert(
    to: Ty,
    from: Ty,
    round: Round,
    int_round: Option<IntRound>,
    flush: bool,
    sat: bool,
    relu: bool,
    v: u64,
    second: u64,
) -> u64 {
    let c = Conversion { to, from, round, int_round, flush, sat, relu };
    match (to, from) {
        (Ty::F16x2 | Ty::BF16x2 | Ty::E4M3x2 | Ty::E5M2x2, Ty::F32) => c.pair_of_f32(v, second),
        (Ty::E4M3x2 | Ty::E5M2x2, _) => {
            let one = |b: u64| c.fp8(f16_to_f32(b as u16) as f64);
            one(v >> 16) << 8 | one(v)
        }
        (Ty::F16x2, Ty::E4M3x2 | Ty::E5M2x2) => {
            let fmt = if from == Ty::E4M3x2 { E4M3 } else { E5M2 };
            let one = |b: u64| c.encode(fmt.decode(b as u32 & 0xff), F16);
            one(v >> 8) << 16 | one(v)
        }
        (Ty::TF32, _) => c.tf32(v),
        // A widening to f32 by a shift: a NaN keeps its bits.
        (Ty::F32, Ty::BF16) if int_round.is_none() && !sat => (v & 0xffff) << 16,
        _ if from.is_float() => c.of_float(v),
        _ => c.of_integer(v),
    }
}

impl Conversion {
    fn encode(&self, x: f64, fmt: Format) -> u64 {
        fmt.encode(if self.relu { clamp_negative(x) } else { x }, self.round, self.sat) as u64
    }

    fn fp8(&self, x: f64) -> u64 {
        let fmt = if self.to == Ty::E4M3x2 { E4M3 } else { E5M2 };
        fmt.encode(if self.relu { clamp_negative(x) } else { x }, Round::NearestEven, true) as u64
    }

    /// The first source goes to the high half.
    fn pair_of_f32(&self, first: u64, second: u64) -> u64 {
        if matches!(self.to, Ty::E4M3x2 | Ty::E5M2x2) {
            let one = |b: u64| self.fp8(f32::from_bits(b as u32) as f64);
            return one(first) << 8 | one(second);
        }
        let fmt = half_format(self.to == Ty::BF16x2);
        let value = |b: u64| {
            let x = f32::from_bits(b as u32);
            (if self.flush { ftz(x) } else { x }) as f64
        };
        self.encode(value(first), fmt) << 16 | self.encode(value(second), fmt)
    }

    fn tf32(&self, v: u64) -> u64 {
        let x = f32::from_bits(v as u32);
        // Not a conversion of its own on an H200, but an addition below the last bit and a mask: a NaN keeps its
        // upper bits, as measured, and one with none of them becomes infinite.
        if self.round == Round::NearestAway && !self.relu && !self.sat && !x.is_finite() {
            return v & 0xffff_e000;
        }
        self.encode(x as f64, TF32) << 13
    }

    fn of_float(&self, v: u64) -> u64 {
        if self.to == Ty::F64
            && let Some(nan) = widened_nan(self.from, v)
            && !self.sat
        {
            return nan;
        }
        let x = match self.from {
            Ty::F16 => f16_to_f32(v as u16) as f64,
            Ty::BF16 => bf16_to_f32(v as u16) as f64,
            Ty::F64 => f64::from_bits(v),
            _ => {
                let x = f32::from_bits(v as u32);
                (if self.flush { ftz(x) } else { x }) as f64
            }
        };
        if self.to.is_float() { self.float_to_float(x) } else { self.float_to_integer(x) }
    }

    fn float_to_float(&self, x: f64) -> u64 {
        let x = match self.int_round {
            Some(r) => round_int(x, r),
            None => x,
        };
        let clamp = |x: f64| {
            if !self.sat {
                x
            } else if x > 1.0 {
                1.0
            } else if x > 0.0 {
                x
            } else {
                0.0
            }
        };
        let x = clamp(if self.relu { clamp_negative(x) } else { x });
        match self.to {
            Ty::F16 => F16.encode(x, self.round, false) as u64,
            Ty::BF16 => BF16.encode(x, self.round, false) as u64,
            Ty::F64 if x.is_nan() => 0x7fff_ffff_ffff_ffff,
            Ty::F64 => x.to_bits(),
            _ => {
                let y = f32::from_bits(F32.encode(x, self.round, false));
                (if self.flush { ftz(y) } else { y }).to_bits() as u64
            }
        }
    }

    /// Out of range saturates; NaN gives zero, or the extreme that hardware gives for 64-bit results.
    fn float_to_integer(&self, x: f64) -> u64 {
        let x = round_int(x, self.int_round.unwrap_or(IntRound::Zero));
        match self.to {
            Ty::U64 | Ty::S64 | Ty::B64 if x.is_nan() => 1 << 63,
            _ if x.is_nan() => 0,
            Ty::U8 | Ty::B8 => x as u8 as u64,
            Ty::S8 => x as i8 as u8 as u64,
            Ty::U16 | Ty::B16 => x as u16 as u64,
            Ty::S16 => x as i16 as u16 as u64,
            Ty::U32 | Ty::B32 => x as u32 as u64,
            Ty::S32 => x as i32 as u32 as u64,
            Ty::U64 | Ty::B64 => x as u64,
            _ => x as i64 as u64,
        }
    }

    fn of_integer(&self, v: u64) -> u64 {
        let x: i128 = match self.from {
            Ty::U8 | Ty::B8 => v as u8 as i128,
            Ty::S8 => v as i8 as i128,
            Ty::U16 | Ty::B16 => v as u16 as i128,
            Ty::S16 => v as i16 as i128,
            Ty::U32 | Ty::B32 => v as u32 as i128,
            Ty::S32 => v as i32 as i128,
            Ty::S64 => v as i64 as i128,
            _ => v as i128,
        };
        match self.to {
            Ty::F32 | Ty::F16 | Ty::BF16 => {
                let f = nearly_f64(x);
                let f = if self.sat { f.clamp(0.0, 1.0) } else { f };
                let fmt = match self.to {
                    Ty::F32 => F32,
                    Ty::F16 => F16,
                    _ => BF16,
                };
                fmt.encode(f, self.round, false) as u64
            }
            Ty::F64 => integer_to_f64(x, self.round).to_bits(),
            to => {
                let bits = to.bits();
                let ones = if bits == 64 { !0 } else { (1 << bits) - 1 };
                if !self.sat {
                    return x as u64 & ones;
                }
                let (lo, hi) = if to.signed() {
                    (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
                } else {
                    (0, (1i128 << bits) - 1)
                };
                x.clamp(lo, hi) as u64 & ones
            }
        }
    }
}

/// An integer of up to 53 bits exactly; of a longer one, what is cut off goes into the last bit, which no narrower format keeps.
fn nearly_f64(x: i128) -> f64 {
    let mag = x.unsigned_abs() as u64;
    let f = if mag >> 53 != 0 { ((mag & !0x7ff) | ((mag & 0x7ff != 0) as u64) << 11) as f64 } else { mag as f64 };
    if x < 0 { -f } else { f }
}

/// The f64 of a narrower NaN: the same sign and payload, quiet; `None` for a number.
fn widened_nan(from: Ty, v: u64) -> Option<u64> {
    let (bits, exp_bits) = match from {
        Ty::F16 => (16, 5),
        Ty::BF16 => (16, 8),
        Ty::F32 => (32, 8),
        _ => return None,
    };
    let man_bits = bits - 1 - exp_bits;
    let payload = v & ((1 << man_bits) - 1);
    let exponent = v >> man_bits & ((1 << exp_bits) - 1);
    let nan = exponent == (1 << exp_bits) - 1 && payload != 0;
    nan.then(|| (v >> (bits - 1) & 1) << 63 | 0xfff << 51 | payload << (52 - man_bits))
}

/// An integer of at most 64 bits and a sign, rounded to f64.
fn integer_to_f64(x: i128, round: Round) -> f64 {
    let mag = x.unsigned_abs() as u64;
    let cut = 11u32.saturating_sub(mag.leading_zeros());
    // The 53 bits that f64 holds are exact, and the next number is one unit of the last of them away.
    let (kept, unit) = (mag >> cut << cut, (1u64 << cut) as f64);
    let away = match round {
        Round::NearestEven | Round::NearestAway => return x as f64,
        Round::Zero => false,
        Round::Down => x < 0,
        Round::Up => x > 0,
    };
    let f = kept as f64 + if away && kept != mag { unit } else { 0.0 };
    if x < 0 { -f } else { f }
}

/// `.relu`: what has a minus sign, -0 too, gives +0; NaN stays.
#[inline(always)]
fn clamp_negative(x: f64) -> f64 {
    if x.is_sign_negative() && !x.is_nan() { 0.0 } else { x }
}

fn round_int(x: f64, r: IntRound) -> f64 {
    use IntRound::*;
    match r {
        NearestEven => x.round_ties_even(),
        Zero => x.trunc(),
        Down => x.floor(),
        Up => x.ceil(),
    }
}
