//! f16 and bf16.

use super::float::{exp2, fmax, fmin};
use crate::float::*;
use crate::ir::{Alu, Mods};

/// f16 or bf16 values of a register half.
#[inline(always)]
pub(super) fn half_value(h: u16, bf: bool) -> f32 {
    if bf { bf16_to_f32(h) } else { f16_to_f32(h) }
}

#[inline(always)]
pub(super) fn half_ftz(h: u16, bf: bool) -> u16 {
    let exp = if bf { 0x7f80 } else { 0x7c00 };
    if h & exp == 0 { h & 0x8000 } else { h }
}

#[inline]
pub(super) fn half_format(bf: bool) -> Format {
    if bf { BF16 } else { F16 }
}

#[inline]
fn half_finish(mut h: u16, m: Mods, bf: bool) -> u16 {
    if m.ftz {
        h = half_ftz(h, bf);
    }
    if m.sat {
        h = half_bits(saturate(half_value(h, bf)), bf);
    }
    if m.relu && h & 0x8000 != 0 && !half_value(h, bf).is_nan() {
        h = 0;
    }
    h
}

#[inline(always)]
fn half_bits(x: f32, bf: bool) -> u16 {
    if bf { f32_to_bf16(x) } else { f32_to_f16(x) }
}

#[inline]
pub(super) fn half_op(f: Alu, m: Mods, bf: bool, a: u16, b: u16, c: u16) -> u16 {
    let (a, b, c) = if m.ftz { (half_ftz(a, bf), half_ftz(b, bf), half_ftz(c, bf)) } else { (a, b, c) };
    let (x, y) = (half_value(a, bf), half_value(b, bf));
    let h = match f {
        Alu::Add | Alu::Sub => {
            let y = if f == Alu::Sub { -y } else { y };
            half_format(bf).encode(add_odd(x as f64, y as f64), Round::NearestEven, false) as u16
        }
        // The product of two halves is exact in f64.
        Alu::FMul => half_format(bf).encode(x as f64 * y as f64, Round::NearestEven, false) as u16,
        Alu::Fma => {
            let z = half_value(c, bf) as f64;
            half_format(bf).encode(fma_odd(x as f64, y as f64, z), Round::NearestEven, false) as u16
        }
        Alu::Min => half_bits(fmin(x, y, m.flag), bf),
        Alu::Max => half_bits(fmax(x, y, m.flag), bf),
        // Additions on hardware: a NaN becomes the canonical one.
        Alu::Neg | Alu::Abs if x.is_nan() => 0x7fff,
        Alu::Neg => a ^ 0x8000,
        Alu::Abs => a & 0x7fff,
        Alu::Ex2 => half_bits(exp2(x), bf),
        Alu::Tanh => half_bits((x as f64).tanh() as f32, bf),
        _ => 0,
    };
    half_finish(h, m, bf)
}
