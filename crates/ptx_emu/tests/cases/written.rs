//! Cases that are written out, most with their definition.

use std::borrow::Cow;

use super::Compare::{Absolute, Bits, Lg2, Ulps};
use super::{Case, Input, Output, f};

/// The canonical NaN for any NaN.
fn c(x: f32) -> u64 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() as u64 }
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { x * 0.0 } else { x }
}

fn low(x: u32) -> u64 {
    x as u64
}

macro_rules! case {
    ($family:literal, $body:literal, $in:ident, $out:ident, $cmp:expr) => {
        Case {
            family: $family,
            body: Cow::Borrowed($body),
            input: Input::$in,
            output: Output::$out,
            compare: $cmp,
            sm: "sm_80",
            reference: None,
            definition: None,
            tensor: None,
            cluster: 0,
        }
    };
    ($family:literal, $body:literal, $in:ident, $out:ident, $cmp:expr, $ref:expr) => {
        Case {
            family: $family,
            body: Cow::Borrowed($body),
            input: Input::$in,
            output: Output::$out,
            compare: $cmp,
            sm: "sm_80",
            reference: Some($ref),
            definition: None,
            tensor: None,
            cluster: 0,
        }
    };
}

/// All cases of this file.
pub(super) fn all() -> Vec<Case> {
    let mut v = vec![
        case!("integer 32", "add.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as u32).wrapping_add(b as u32))),
        case!("integer 32", "add.sat.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as i32)
            .saturating_add(b as i32)
            as u32)),
        case!("integer 32", "sub.sat.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as i32)
            .saturating_sub(b as i32)
            as u32)),
        case!("integer 32", "sub.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as u32).wrapping_sub(b as u32))),
        case!("integer 32", "mul.lo.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low(
            (a as u32).wrapping_mul(b as u32)
        )),
        case!("integer 32", "mul.hi.u32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low(((a as u32 as u64
            * b as u32 as u64)
            >> 32) as u32)),
        case!("integer 32", "mul.hi.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low(((a as i32 as i64
            * b as i32 as i64)
            >> 32) as u32)),
        case!("integer 32", "mad.lo.s32 %d0, %a, %b, %c;", Bits, B32, Bits, |a, b, c| low((a as u32)
            .wrapping_mul(b as u32)
            .wrapping_add(c as u32))),
        case!("integer 32", "mad.hi.u32 %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("integer 32", "mul24.lo.s32 %d0, %a, %b;", Bits, B32, Bits),
        case!("integer 32", "mad24.lo.u32 %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("integer 32", "sad.s32 %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("integer 32", "div.u32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as u32)
            .checked_div(b as u32)
            .unwrap_or(!0))),
        case!("integer 32", "rem.u32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as u32)
            .checked_rem(b as u32)
            .unwrap_or(!0))),
        // PTX leaves division by zero unspecified: the forms whose result has not been measured get odd divisors.
        case!("integer 32", "or.b32 %b, %b, 1;\ndiv.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as i32)
            .wrapping_div(b as i32 | 1)
            as u32)),
        case!("integer 32", "or.b32 %b, %b, 1;\nrem.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as i32)
            .wrapping_rem(b as i32 | 1)
            as u32)),
        case!("integer 32", "min.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as i32).min(b as i32) as u32)),
        case!("integer 32", "max.u32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as u32).max(b as u32))),
        case!("integer 32", "neg.s32 %d0, %a;", Bits, B32, Bits, |a, _, _| low((a as u32).wrapping_neg())),
        case!("integer 32", "abs.s32 %d0, %a;", Bits, B32, Bits, |a, _, _| low((a as i32).wrapping_abs() as u32)),
        case!("integer 64", "add.s64 %ld, %la, %lb;", Bits, B64, Bits, |a, b, _| a.wrapping_add(b)),
        case!("integer 64", "mul.lo.s64 %ld, %la, %lb;", Bits, B64, Bits, |a, b, _| a.wrapping_mul(b)),
        case!("integer 64", "mul.hi.s64 %ld, %la, %lb;", Bits, B64, Bits, |a, b, _| ((a as i64 as i128
            * b as i64 as i128)
            >> 64) as u64),
        case!("integer 64", "mul.hi.u64 %ld, %la, %lb;", Bits, B64, Bits, |a, b, _| ((a as u128 * b as u128) >> 64)
            as u64),
        case!("integer 64", "mad.lo.s64 %ld, %la, %lb, %lc;", Bits, B64, Bits, |a, b, c| a
            .wrapping_mul(b)
            .wrapping_add(c)),
        case!(
            "integer 64",
            "mul.wide.s32 %ld, %a, %b;",
            Bits,
            B64,
            Bits,
            |a, b, _| (a as i32 as i64 * b as i32 as i64) as u64
        ),
        case!("integer 64", "mul.wide.u32 %ld, %a, %b;", Bits, B64, Bits, |a, b, _| a as u32 as u64 * b as u32 as u64),
        case!("integer 64", "mad.wide.u32 %ld, %a, %b, %lc;", Bits, B64, Bits, |a, b, c| (a as u32 as u64
            * b as u32 as u64)
            .wrapping_add(c)),
        case!("integer 64", "or.b64 %lb, %lb, 1;\ndiv.s64 %ld, %la, %lb;", Bits, B64, Bits, |a, b, _| (a as i64)
            .wrapping_div(b as i64 | 1)
            as u64),
        case!("integer 64", "or.b64 %lb, %lb, 1;\nrem.u64 %ld, %la, %lb;", Bits, B64, Bits, |a, b, _| a % (b | 1)),
        case!("integer 64", "min.s64 %ld, %la, %lb;", Bits, B64, Bits, |a, b, _| (a as i64).min(b as i64) as u64),
        case!("integer 16", "add.s16 %hd, %ha, %hb;", Bits, B16, Bits, |a, b, _| (a as u16).wrapping_add(b as u16)
            as u64),
        case!("integer 16", "mul.lo.s16 %hd, %ha, %hb;", Bits, B16, Bits, |a, b, _| (a as u16).wrapping_mul(b as u16)
            as u64),
        case!("integer 16", "mul.wide.s16 %d0, %ha, %hb;", Bits, B32, Bits, |a, b, _| low((a as i16 as i32
            * b as i16 as i32)
            as u32)),
        case!("integer 16", "min.s16 %hd, %ha, %hb;", Bits, B16, Bits, |a, b, _| (a as i16).min(b as i16) as u16
            as u64),
        case!("integer 16", "shr.s16 %hd, %ha, %b;", Bits, B16, Bits, |a, b, _| ((a as i16) >> (b as u32).min(15))
            as u16 as u64),
        case!("carry", "add.cc.u32 %d0, %a, %b;\naddc.cc.u32 %d1, %b, %c;\naddc.u32 %d2, 0, 0;", Bits, Quad, Bits),
        case!("carry", "sub.cc.u32 %d0, %a, %b;\nsubc.cc.u32 %d1, %b, %c;\nsubc.u32 %d2, 0, 0;", Bits, Quad, Bits),
        case!("carry", "mad.lo.cc.u32 %d0, %a, %b, %c;\nmadc.hi.u32 %d1, %a, %b, 0;", Bits, Quad, Bits, |a, b, c| {
            (a as u32 as u64 * b as u32 as u64).wrapping_add(c as u32 as u64)
        }),
        case!("bits", "and.b32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| (a & b) & 0xffff_ffff),
        case!("bits", "xor.b64 %ld, %la, %lb;", Bits, B64, Bits, |a, b, _| a ^ b),
        case!("bits", "not.b32 %d0, %a;", Bits, B32, Bits, |a, _, _| low(!(a as u32))),
        case!("bits", "cnot.b32 %d0, %a;", Bits, B32, Bits, |a, _, _| (a as u32 == 0) as u64),
        case!("bits", "shl.b32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as u32)
            .checked_shl(b as u32)
            .unwrap_or(0))),
        case!("bits", "shr.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low((a as i32 >> (b as u32).min(31)) as u32)),
        case!("bits", "shr.u64 %ld, %la, %b;", Bits, B64, Bits, |a, b, _| a.checked_shr(b as u32).unwrap_or(0)),
        case!("bits", "popc.b64 %d0, %la;", Bits, B32, Bits, |a, _, _| low(a.count_ones())),
        case!("bits", "clz.b32 %d0, %a;", Bits, B32, Bits, |a, _, _| low((a as u32).leading_zeros())),
        case!("bits", "brev.b64 %ld, %la;", Bits, B64, Bits, |a, _, _| a.reverse_bits()),
        case!("bits", "bfind.s32 %d0, %a;", Bits, B32, Bits),
        case!("bits", "bfind.shiftamt.u64 %d0, %la;", Bits, B32, Bits),
        case!("bits", "bfe.u32 %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("bits", "bfe.s32 %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("bits", "and.b32 %b, %b, 63;\nand.b32 %c, %c, 63;\nbfe.s64 %ld, %la, %b, %c;", Bits, B64, Bits),
        case!("bits", "and.b32 %c, %c, 31;\nbfi.b32 %d0, %a, %b, %c, 9;", Bits, B32, Bits),
        case!("bits", "bfi.b64 %ld, %la, %lb, 7, 33;", Bits, B64, Bits),
        case!("bits", "prmt.b32 %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("bits", "prmt.b32.f4e %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("bits", "prmt.b32.b4e %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("bits", "prmt.b32.rc16 %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("bits", "prmt.b32.ecl %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("bits", "prmt.b32.ecr %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("bits", "lop3.b32 %d0, %a, %b, %c, 0x96;", Bits, B32, Bits, |a, b, c| (a ^ b ^ c) & 0xffff_ffff),
        case!("bits", "lop3.b32 %d0, %a, %b, %c, 0xca;", Bits, B32, Bits, |a, b, c| ((a & b) | (!a & c)) & 0xffff_ffff),
        case!("bits", "shf.l.wrap.b32 %d0, %a, %b, %c;", Bits, B32, Bits, |a, b, c| {
            low((((b << 32 | a as u32 as u64) << (c & 31)) >> 32) as u32)
        }),
        case!("bits", "shf.r.clamp.b32 %d0, %a, %b, %c;", Bits, B32, Bits, |a, b, c| {
            low(((b << 32 | a as u32 as u64) >> (c as u32).min(32)) as u32)
        }),
        case!("bits", "dp4a.u32.s32 %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("bits", "dp4a.s32.s32 %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("bits", "dp2a.lo.s32.u32 %d0, %a, %b, %c;", Bits, B32, Bits),
        case!("f32", "add.rn.f32 %d0, %a, %b;", F32, B32, Bits, |a, b, _| c(f(a) + f(b))),
        case!("f32", "add.rn.ftz.f32 %d0, %a, %b;", F32, B32, Bits, |a, b, _| c(flush(flush(f(a)) + flush(f(b))))),
        case!("f32", "add.rn.sat.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("f32", "sub.rn.f32 %d0, %a, %b;", F32, B32, Bits, |a, b, _| c(f(a) - f(b))),
        case!("f32", "mul.rn.f32 %d0, %a, %b;", F32, B32, Bits, |a, b, _| c(f(a) * f(b))),
        case!("f32", "mul.rn.ftz.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("f32", "fma.rn.f32 %d0, %a, %b, %c;", F32, B32, Bits, |a, b, x| c(f(a).mul_add(f(b), f(x)))),
        case!("f32", "fma.rn.ftz.f32 %d0, %a, %b, %c;", F32, B32, Bits),
        case!("f32", "add.rz.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("f32", "add.rm.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("f32", "sub.rm.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("f32", "fma.rm.f32 %d0, %a, %b, %c;", F32, B32, Bits),
        case!("f32", "mul.rp.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("f32", "fma.rz.f32 %d0, %a, %b, %c;", F32, B32, Bits),
        case!("f32", "div.rn.f32 %d0, %a, %b;", F32, B32, Bits, |a, b, _| c(f(a) / f(b))),
        case!("f32", "rcp.rn.f32 %d0, %a;", F32, B32, Bits, |a, _, _| c(1.0 / f(a))),
        case!("f32", "sqrt.rn.f32 %d0, %a;", F32, B32, Bits, |a, _, _| c(f(a).sqrt())),
        case!("f32", "min.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("f32", "max.ftz.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("f32", "max.NaN.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("f32", "setp.lt.f32 %q, %a, %b;", F32, Pred, Bits, |a, b, _| (f(a) < f(b)) as u64),
        case!("f32", "setp.geu.f32 %q, %a, %b;", F32, Pred, Bits, |a, b, _| (f(a) >= f(b)
            || f(a).is_nan()
            || f(b).is_nan()) as u64),
        case!("f32", "setp.num.f32 %q, %a, %b;", F32, Pred, Bits, |a, b, _| !(f(a).is_nan() || f(b).is_nan()) as u64),
        case!("f32", "set.gt.u32.f32 %d0, %a, %b;", F32, B32, Bits, |a, b, _| if f(a) > f(b) {
            0xffff_ffff
        } else {
            0
        }),
        case!("f32", "copysign.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("f32", "testp.subnormal.f32 %q, %a;", F32, Pred, Bits, |a, _, _| f(a).is_subnormal() as u64),
        case!("f64", "add.rn.f64 %ld, %la, %lb;", F64, B64, Bits),
        case!("f64", "mul.rn.f64 %ld, %la, %lb;", F64, B64, Bits),
        case!("f64", "fma.rn.f64 %ld, %la, %lb, %lc;", F64, B64, Bits),
        case!("f64", "setp.le.f64 %q, %la, %lb;", F64, Pred, Bits, |a, b, _| (f64::from_bits(a) <= f64::from_bits(b))
            as u64),
        case!("f16", "add.rn.f16 %hd, %ha, %hb;", F16, B16, Bits),
        case!("f16", "add.rn.ftz.f16x2 %d0, %a, %b;", F16, B32, Bits),
        case!("f16", "mul.rn.f16x2 %d0, %a, %b;", F16, B32, Bits),
        case!("f16", "fma.rn.f16x2 %d0, %a, %b, %c;", F16, B32, Bits),
        case!("f16", "fma.rn.relu.f16x2 %d0, %a, %b, %c;", F16, B32, Bits),
        case!("f16", "max.f16x2 %d0, %a, %b;", F16, B32, Bits),
        case!("f16", "min.NaN.f16x2 %d0, %a, %b;", F16, B32, Bits),
        case!("f16", "setp.gt.f16x2 %q|%q1, %a, %b;", F16, Pred, Bits),
        case!("bf16", "fma.rn.bf16x2 %d0, %a, %b, %c;", Bf16, B32, Bits),
        case!("bf16", "max.bf16x2 %d0, %a, %b;", Bf16, B32, Bits),
        case!("convert", "cvt.rn.f16.f32 %hd, %a;", F32, B16, Bits),
        case!("convert", "cvt.rz.f16.f32 %hd, %a;", F32, B16, Bits),
        case!("convert", "cvt.rn.bf16.f32 %hd, %a;", F32, B16, Bits),
        case!("convert", "cvt.rn.f16x2.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("convert", "cvt.rn.bf16x2.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("convert", "cvt.rn.relu.bf16x2.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("convert", "cvt.rn.relu.f16.f32 %hd, %a;", F32, B16, Bits),
        case!("convert", "cvt.rn.relu.f16x2.f32 %d0, %a, %b;", F32, B32, Bits),
        case!("convert", "cvt.f32.f16 %d0, %ha;", F16, B32, Bits),
        case!("convert", "cvt.rna.tf32.f32 %d0, %a;", F32, B32, Bits, |a, _, _| {
            let half = if f(a).is_finite() { 0x1000 } else { 0 };
            low((a as u32 + half) & 0xffff_e000)
        }),
        case!("convert", "cvt.rni.f32.f32 %d0, %a;", F32, B32, Bits, |a, _, _| c(f(a).round_ties_even())),
        case!("convert", "cvt.rzi.s32.f32 %d0, %a;", F32, B32, Bits, |a, _, _| low(f(a) as i32 as u32)),
        case!("convert", "cvt.rni.u32.f32 %d0, %a;", F32, B32, Bits, |a, _, _| low(f(a).round_ties_even() as u32)),
        case!("convert", "cvt.rmi.s64.f32 %ld, %a;", F32, B64, Bits),
        case!("convert", "cvt.rpi.ftz.s32.f32 %d0, %a;", F32, B32, Bits),
        case!("convert", "cvt.sat.f32.f32 %d0, %a;", F32, B32, Bits),
        case!("convert", "cvt.rn.f32.s32 %d0, %a;", Bits, B32, Bits, |a, _, _| low((a as i32 as f32).to_bits())),
        case!("convert", "cvt.rz.f32.u32 %d0, %a;", Bits, B32, Bits),
        case!("convert", "cvt.rn.f32.u64 %d0, %la;", Bits, B32, Bits, |a, _, _| low((a as f32).to_bits())),
        case!("convert", "cvt.rn.f64.s64 %ld, %la;", Bits, B64, Bits, |a, _, _| (a as i64 as f64).to_bits()),
        case!("convert", "cvt.rn.f16.s32 %hd, %a;", Bits, B16, Bits),
        case!("convert", "cvt.rn.f32.f64 %d0, %la;", F64, B32, Bits),
        case!("convert", "cvt.rzi.s32.f64 %d0, %la;", F64, B32, Bits),
        case!("convert", "cvt.s32.s8 %d0, %a;", Bits, B32, Bits, |a, _, _| low(a as i8 as i32 as u32)),
        case!("convert", "cvt.u32.u16 %d0, %ha;", Bits, B32, Bits, |a, _, _| a & 0xffff),
        case!("convert", "cvt.s64.s32 %ld, %a;", Bits, B64, Bits, |a, _, _| a as i32 as i64 as u64),
        case!("convert", "cvt.sat.u8.s32 %d0, %a;", Bits, B32, Bits, |a, _, _| (a as i32).clamp(0, 255) as u64),
        case!("convert", "cvt.sat.s16.s32 %d0, %a;", Bits, B32, Bits, |a, _, _| low(
            (a as i32).clamp(-32768, 32767) as u32
        )),
        case!("move", "mov.b64 %ld, {%a, %b};", Bits, B64, Bits, |a, b, _| (a & 0xffff_ffff) | b << 32),
        case!("move", "mov.b32 %d0, {%ha, %hb};", Bits, B32, Bits, |a, b, _| (a & 0xffff) | (b & 0xffff) << 16),
        case!("move", "mov.b64 {%d1, %d0}, %la;", Bits, B32, Bits, |a, _, _| a >> 32),
        case!("move", "selp.b32 %d0, %a, %b, %q1;", Bits, B32, Bits, |a, b, _| (if (a as u32) < b as u32 {
            a
        } else {
            b
        }) & 0xffff_ffff),
        case!("move", "slct.b32.s32 %d0, %a, %b, %c;", Bits, B32, Bits, |a, b, c| (if c as i32 >= 0 { a } else { b })
            & 0xffff_ffff),
        case!("warp", "shfl.sync.bfly.b32 %d0, %a, 5, 0x1f, 0xffffffff;", Bits, B32, Bits),
        case!("warp", "shfl.sync.up.b32 %d0|%q, %a, 3, 0x0800, 0xffffffff;\nselp.b32 %d1, 1, 0, %q;", Bits, Quad, Bits),
        case!("warp", "shfl.sync.down.b32 %d0|%q, %a, 9, 0x1f, 0xffffffff;\nselp.b32 %d1, 1, 0, %q;", Bits, Quad, Bits),
        case!("warp", "and.b32 %b, %b, 31;\nshfl.sync.idx.b32 %d0, %a, %b, 0x1c03, 0xffffffff;", Bits, B32, Bits),
        case!("warp", "vote.sync.ballot.b32 %d0, %q1, 0xffffffff;", Bits, B32, Bits),
        case!("warp", "vote.sync.any.pred %q, %q1, 0xffffffff;", Bits, Pred, Bits),
        case!("warp", "and.b32 %a, %a, 3;\nmatch.any.sync.b32 %d0, %a, 0xffffffff;", Bits, B32, Bits),
        case!("warp", "redux.sync.add.s32 %d0, %a, 0xffffffff;", Bits, B32, Bits),
        case!("warp", "redux.sync.max.s32 %d0, %a, 0xffffffff;", Bits, B32, Bits),
        case!("warp", "redux.sync.xor.b32 %d0, %a, 0xffffffff;", Bits, B32, Bits),
        case!("approximate", "ex2.approx.ftz.f32 %d0, %a;", Moderate, B32, Ulps(2)),
        case!("approximate", "ex2.approx.f32 %d0, %a;", F32, B32, Ulps(2)),
        case!("approximate", "lg2.approx.f32 %d0, %a;", Moderate, B32, Lg2),
        case!("approximate", "rcp.approx.ftz.f32 %d0, %a;", F32, B32, Ulps(1)),
        case!("approximate", "rsqrt.approx.f32 %d0, %a;", F32, B32, Ulps(3)),
        case!("approximate", "sqrt.approx.f32 %d0, %a;", F32, B32, Ulps(2)),
        case!("approximate", "div.approx.f32 %d0, %a, %b;", Moderate, B32, Ulps(2)),
        case!("approximate", "div.full.f32 %d0, %a, %b;", Moderate, B32, Ulps(2)),
        case!("approximate", "sin.approx.f32 %d0, %a;", Moderate, B32, Absolute(2e-6)),
        case!("approximate", "cos.approx.f32 %d0, %a;", Moderate, B32, Absolute(2e-6)),
        // 2^-11 relative, and |tanh| is below one.
        case!("approximate", "tanh.approx.f32 %d0, %a;", Moderate, B32, Absolute(4.9e-4)),
        case!(
            "mma",
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%d0,%d1,%d2,%d3}, {%a,%b,%c,%a}, {%b,%c}, {%d0,%d1,%d2,%d3};",
            SmallF16,
            Quad,
            Bits
        ),
        case!(
            "mma",
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%d0,%d1,%d2,%d3}, {%a,%b}, {%c}, {%d0,%d1,%d2,%d3};",
            SmallF16,
            Quad,
            Bits
        ),
        case!(
            "mma",
            "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%d0,%d1}, {%a,%b,%c,%a}, {%b,%c}, {%a,%b};",
            SmallF16,
            Quad,
            Bits
        ),
        case!(
            "mma",
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%d0,%d1,%d2,%d3}, {%a,%b,%c,%a}, {%b,%c}, {%d0,%d1,%d2,%d3};",
            SmallBf16,
            Quad,
            Bits
        ),
        case!(
            "mma",
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%d0,%d1,%d2,%d3}, {%a,%b,%c,%a}, {%b,%c}, {%a,%b,%c,%a};",
            SmallF32,
            Quad,
            Bits
        ),
        case!(
            "mma",
            "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%d0,%d1,%d2,%d3}, {%a,%b}, {%c}, {%a,%b,%c,%a};",
            SmallF32,
            Quad,
            Bits
        ),
        case!(
            "mma",
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%d0,%d1,%d2,%d3}, {%a,%b,%c,%a}, {%b,%c}, {%a,%b,%c,%a};",
            Bits,
            Quad,
            Bits
        ),
        case!("matrix moves", "movmatrix.sync.aligned.m8n8.trans.b16 %d0, %a;", Bits, B32, Bits),
        case!(
            "matrix moves",
            "mov.u32 %t0, %tid.x;\nshl.b32 %t0, %t0, 4;\nmov.u32 %t1, buffer;\nadd.s32 %t0, %t0, %t1;\n\
             st.shared.v4.u32 [%t0], {%a, %b, %c, %a};\nbar.sync 0;\n\
             ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%d0,%d1,%d2,%d3}, [%t0];",
            Bits,
            Quad,
            Bits
        ),
        case!(
            "matrix moves",
            "mov.u32 %t0, %tid.x;\nshl.b32 %t0, %t0, 4;\nmov.u32 %t1, buffer;\nadd.s32 %t0, %t0, %t1;\n\
             st.shared.v4.u32 [%t0], {%a, %b, %c, %a};\nbar.sync 0;\n\
             ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%d0,%d1}, [%t0];",
            Bits,
            Quad,
            Bits
        ),
        case!(
            "asynchronous copies",
            "mov.u32 %t0, %tid.x;\nshl.b32 %t1, %t0, 4;\nmov.u32 %t2, buffer;\nadd.s32 %t1, %t1, %t2;\nand.b32 %t3, %t0, 7;\n\
             and.b64 %la, %in, -16;\ncp.async.cg.shared.global [%t1], [%la], 16, %t3;\ncp.async.commit_group;\ncp.async.wait_group 0;\n\
             bar.sync 0;\nxor.b32 %t1, %t1, 48;\nld.shared.v4.u32 {%d0, %d1, %d2, %d3}, [%t1];",
            Bits,
            Quad,
            Bits
        ),
        case!(
            "atomics",
            "mov.u32 %t0, %tid.x;\nand.b32 %t1, %t0, 7;\nshl.b32 %t1, %t1, 2;\nmov.u32 %t2, buffer;\nadd.s32 %t1, %t1, %t2;\n\
             setp.gt.u32 %q, %t0, 7;\n@!%q st.shared.u32 [%t1], 0;\nbar.sync 0;\nred.shared.add.u32 [%t1], %a;\n\
             bar.sync 0;\nld.shared.u32 %d0, [%t1];\nbar.sync 0;\nred.shared.max.s32 [%t1], %b;\nbar.sync 0;\nld.shared.u32 %d1, [%t1];",
            Bits,
            Quad,
            Bits
        ),
        case!(
            "control flow",
            "and.b32 %a, %a, 15;\nloop:\nadd.s32 %d0, %d0, %a;\nsetp.eq.u32 %q, %a, 0;\n@%q bra leave;\nsub.s32 %a, %a, 1;\n\
             and.b32 %t0, %a, 1;\nsetp.eq.u32 %q1, %t0, 0;\n@%q1 bra loop;\nadd.s32 %d1, %d1, 1;\nbra loop;\nleave:\nbar.warp.sync 0xffffffff;",
            Bits,
            Quad,
            Bits
        ),
        case!("barrier", "mov.u32 %t0, %tid.x;\nbarrier.cta.red.popc.aligned.u32 %d0, 0, %q1;", Bits, B32, Bits),
        case!("barrier", "barrier.cta.red.or.aligned.pred %q, 0, %q1;", Bits, Pred, Bits),
    ];
    for case in [
        case!("bf16", "add.rn.bf16x2 %d0, %a, %b;", Bf16, B32, Bits),
        case!("bf16", "mul.rn.bf16x2 %d0, %a, %b;", Bf16, B32, Bits),
        case!("convert", "cvt.rn.satfinite.e4m3x2.f32 %hd, %a, %b;", F32, B16, Bits),
        case!("convert", "cvt.rn.satfinite.e5m2x2.f32 %hd, %a, %b;", F32, B16, Bits),
        case!("convert", "cvt.rn.f16x2.e4m3x2 %d0, %ha;", Bits, B32, Bits),
        case!("convert", "cvt.rn.f16x2.e5m2x2 %d0, %ha;", Bits, B32, Bits),
        case!("integer 32", "min.relu.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low(
            (a as i32).min(b as i32).max(0) as u32
        )),
        case!("integer 32", "max.relu.s32 %d0, %a, %b;", Bits, B32, Bits, |a, b, _| low(
            (a as i32).max(b as i32).max(0) as u32
        )),
        case!("warp", "elect.sync %d0|%q, 0xffffffff;\nselp.b32 %d1, 1, 0, %q;", Bits, Quad, Bits),
        case!(
            "matrix moves",
            "mov.u32 %t0, %tid.x;\nshl.b32 %t0, %t0, 4;\nmov.u32 %t1, buffer;\nadd.s32 %t0, %t0, %t1;\n\
             stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%t0], {%a, %b, %c, %a};\nbar.sync 0;\n\
             ld.shared.v4.u32 {%d0,%d1,%d2,%d3}, [%t0];",
            Bits,
            Quad,
            Bits
        ),
    ] {
        v.push(Case { sm: "sm_90a", ..case });
    }
    v
}
