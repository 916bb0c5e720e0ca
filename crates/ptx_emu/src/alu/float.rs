//! f32 and f64.

use super::integer::{integer32, integer64};
use super::regs::{LANES, Lane, Regs, each, map1, map2, map3};
use crate::float::*;
use crate::ir::{Alu, Mods, Slot};

#[inline(always)]
pub(super) fn finish(x: f32, m: Mods) -> f32 {
    let x = if m.ftz { ftz(x) } else { x };
    if m.sat { saturate(x) } else { canon(x) }
}

/// The operand, flushed if the instruction says so.
#[inline(always)]
fn operand(r: &Regs, m: Mods, s: Slot) -> [f32; LANES] {
    let a = f32::get(r, s);
    if m.ftz { each(|i| ftz(a[i])) } else { a }
}

#[inline(always)]
fn put_f32(r: &mut Regs, m: Mods, d: Slot, v: &[f32; LANES], mask: u32) {
    let v = if m.ftz || m.sat { each(|i| finish(v[i], m)) } else { each(|i| canon(v[i])) };
    f32::put(r, d, &v, mask);
}

/// Large functions of one operand. The modifiers have passes of their own, so that the function has one call: then it is inlined
/// and its loop vectorises.
#[inline(always)]
fn f32_1(r: &mut Regs, m: Mods, d: Slot, s: &[Slot; 4], mask: u32, f: impl Fn(f32) -> f32) {
    let a = operand(r, m, s[0]);
    let v = each(|i| f(a[i]));
    put_f32(r, m, d, &v, mask);
}

/// As `f32_1`, of two operands.
#[inline(always)]
pub(super) fn f32_2_large(r: &mut Regs, m: Mods, d: Slot, s: &[Slot; 4], mask: u32, f: impl Fn(f32, f32) -> f32) {
    let (a, b) = (operand(r, m, s[0]), operand(r, m, s[1]));
    let v = each(|i| f(a[i], b[i]));
    put_f32(r, m, d, &v, mask);
}

#[inline(always)]
fn f32_2(r: &mut Regs, m: Mods, d: Slot, s: &[Slot; 4], mask: u32, f: impl Fn(f32, f32) -> f32) {
    if m.ftz || m.sat {
        f32_2_large(r, m, d, s, mask, f);
    } else {
        map2(r, d, s, mask, |a: f32, b: f32| canon(f(a, b)));
    }
}

#[inline(always)]
pub(super) fn f32_3(r: &mut Regs, m: Mods, d: Slot, s: &[Slot; 4], mask: u32, f: impl Fn(f32, f32, f32) -> f32) {
    if m.ftz || m.sat {
        let (a, b, c) = (operand(r, m, s[0]), operand(r, m, s[1]), operand(r, m, s[2]));
        let v = each(|i| f(a[i], b[i], c[i]));
        put_f32(r, m, d, &v, mask);
    } else {
        map3(r, d, s, mask, |a: f32, b: f32, c: f32| canon(f(a, b, c)));
    }
}

/// min and max of f32: -0 below +0, a NaN gives the other operand unless `.NaN` is asked for.
#[inline(always)]
pub(super) fn fmin(a: f32, b: f32, nan: bool) -> f32 {
    if nan && (a.is_nan() || b.is_nan()) {
        return NAN32;
    }
    let less = a < b || (a == b && a.is_sign_negative());
    if less || b.is_nan() { a } else { b }
}

#[inline(always)]
pub(super) fn fmax(a: f32, b: f32, nan: bool) -> f32 {
    if nan && (a.is_nan() || b.is_nan()) {
        return NAN32;
    }
    let more = a > b || (a == b && b.is_sign_negative());
    if more || b.is_nan() { a } else { b }
}

#[inline]
fn dmin(a: f64, b: f64) -> f64 {
    let less = a < b || (a == b && a.is_sign_negative());
    if less || b.is_nan() { a } else { b }
}

#[inline]
fn dmax(a: f64, b: f64) -> f64 {
    let more = a > b || (a == b && b.is_sign_negative());
    if more || b.is_nan() { a } else { b }
}

/// 2^x, in f64 with a polynomial whose error is below 1e-11, so right to f32's last bit but for ties.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f32 {
    if x.is_nan() {
        return NAN32;
    }
    // Beyond these the result is infinite or rounds to zero.
    let x = x.clamp(-160.0, 130.0) as f64;
    let n = (x + 6755399441055744.0) - 6755399441055744.0;
    let r = (x - n) * std::f64::consts::LN_2;
    let mut p = 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let scale = f64::from_bits(((n as i32 + 1023) as u64) << 52);
    (p * scale) as f32
}

#[inline]
fn directed(f: Alu, m: Mods, a: f32, b: f32, c: f32) -> f32 {
    let (a, b, c) = (a as f64, b as f64, c as f64);
    let v = match f {
        Alu::Add => add_odd(a, b),
        Alu::Sub => add_odd(a, -b),
        Alu::FMul => a * b,
        _ => fma_odd(a, b, c),
    };
    // IEEE 754, 6.3: rounding down, an exact zero sum is -0 unless both terms are +0. The f64 sum of f32 terms is exact
    // near zero, so `v` is zero only where the sum is.
    if v == 0.0 && m.round == Round::Down && f != Alu::FMul {
        let (x, y) = match f {
            Alu::Add => (a, b),
            Alu::Sub => (a, -b),
            _ => (a * b, c),
        };
        return if x.is_sign_positive() && y.is_sign_positive() { 0.0 } else { -0.0 };
    }
    f32::from_bits(F32.encode(v, m.round, false))
}

#[inline(always)]
pub(super) fn float(r: &mut Regs, f: Alu, m: Mods, d: Slot, s: &[Slot; 4], k: u32) {
    if m.round != Round::NearestEven {
        f32_3(r, m, d, s, k, |a, b, c| directed(f, m, a, b, c));
        return;
    }
    match f {
        Alu::Mov => map1(r, d, s, k, |a: u32| a),
        Alu::Add => f32_2(r, m, d, s, k, |a, b| a + b),
        Alu::Sub => f32_2(r, m, d, s, k, |a, b| a - b),
        Alu::FMul => f32_2(r, m, d, s, k, |a, b| a * b),
        Alu::Fma => f32_3(r, m, d, s, k, |a, b, c| a.mul_add(b, c)),
        Alu::Div => f32_2(r, m, d, s, k, |a, b| {
            // div.approx goes through a reciprocal that underflows to zero here.
            if m.approx && b.abs() >= f32::from_bits(253 << 23) && b.is_finite() {
                if a.is_infinite() { NAN32 } else { 0.0 * a * b.signum() }
            } else {
                a / b
            }
        }),
        Alu::Min => f32_2_large(r, m, d, s, k, |a, b| fmin(a, b, m.flag)),
        Alu::Max => f32_2_large(r, m, d, s, k, |a, b| fmax(a, b, m.flag)),
        Alu::Neg => f32_1(r, m, d, s, k, |a| -a),
        Alu::Abs => f32_1(r, m, d, s, k, |a| a.abs()),
        // The sign of the first operand on the magnitude of the second.
        Alu::Copysign => map2(r, d, s, k, |a: f32, b: f32| b.copysign(a)),
        Alu::Ex2 => f32_1(r, m, d, s, k, exp2),
        Alu::Lg2 => f32_1(r, m, d, s, k, |a| (a as f64).log2() as f32),
        Alu::Rcp => f32_1(r, m, d, s, k, |a| 1.0 / a),
        Alu::Rsqrt => f32_1(r, m, d, s, k, |a| (1.0 / (a as f64).sqrt()) as f32),
        Alu::Sqrt => f32_1(r, m, d, s, k, |a| a.sqrt()),
        Alu::Sin => f32_1(r, m, d, s, k, |a| (a as f64).sin() as f32),
        Alu::Cos => f32_1(r, m, d, s, k, |a| (a as f64).cos() as f32),
        Alu::Tanh => f32_1(r, m, d, s, k, |a| (a as f64).tanh() as f32),
        _ => integer32(r, f, false, m, d, s, k),
    }
}

#[inline(always)]
pub(super) fn double(r: &mut Regs, f: Alu, d: Slot, s: &[Slot; 4], k: u32) {
    match f {
        Alu::Mov => map1(r, d, s, k, |a: u64| a),
        Alu::Add => map2(r, d, s, k, |a: f64, b: f64| a + b),
        Alu::Sub => map2(r, d, s, k, |a: f64, b: f64| a - b),
        Alu::FMul => map2(r, d, s, k, |a: f64, b: f64| a * b),
        Alu::Fma => map3(r, d, s, k, |a: f64, b: f64, c: f64| a.mul_add(b, c)),
        Alu::Div => map2(r, d, s, k, |a: f64, b: f64| a / b),
        Alu::Min => map2(r, d, s, k, dmin),
        Alu::Max => map2(r, d, s, k, dmax),
        Alu::Neg => map1(r, d, s, k, |a: f64| -a),
        Alu::Abs => map1(r, d, s, k, |a: f64| a.abs()),
        Alu::Copysign => map2(r, d, s, k, |a: f64, b: f64| b.copysign(a)),
        Alu::Rcp => map1(r, d, s, k, |a: f64| 1.0 / a),
        Alu::Rsqrt => map1(r, d, s, k, |a: f64| 1.0 / a.sqrt()),
        Alu::Sqrt => map1(r, d, s, k, |a: f64| a.sqrt()),
        _ => integer64(r, f, false, d, s, k),
    }
}
