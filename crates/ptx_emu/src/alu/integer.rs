//! Integers of 16, 32 and 64 bits.

use super::bits::{bfe, bfi, dot, dot2, lop3, prmt};
use super::regs::{Regs, each, map1, map2, map3};
use crate::ir::{Alu, Mods, Slot};

#[inline(always)]
pub(super) fn integer32(r: &mut Regs, f: Alu, signed: bool, m: Mods, d: Slot, s: &[Slot; 4], k: u32) {
    match f {
        Alu::Mov => map1(r, d, s, k, |a: u32| a),
        Alu::Add if m.sat => map2(r, d, s, k, |a: i32, b: i32| a.saturating_add(b)),
        Alu::Sub if m.sat => map2(r, d, s, k, |a: i32, b: i32| a.saturating_sub(b)),
        Alu::Add => map2(r, d, s, k, |a: u32, b: u32| a.wrapping_add(b)),
        Alu::Sub => map2(r, d, s, k, |a: u32, b: u32| a.wrapping_sub(b)),
        Alu::MulLo => map2(r, d, s, k, |a: u32, b: u32| a.wrapping_mul(b)),
        Alu::MadLo => map3(r, d, s, k, |a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c)),
        Alu::MulHi if signed => map2(r, d, s, k, |a: i32, b: i32| ((a as i64 * b as i64) >> 32) as i32),
        Alu::MulHi => map2(r, d, s, k, |a: u32, b: u32| ((a as u64 * b as u64) >> 32) as u32),
        Alu::MadHi if signed => {
            map3(r, d, s, k, |a: i32, b: i32, c: i32| (((a as i64 * b as i64) >> 32) as i32).wrapping_add(c))
        }
        Alu::MadHi => map3(r, d, s, k, |a: u32, b: u32, c: u32| (((a as u64 * b as u64) >> 32) as u32).wrapping_add(c)),
        Alu::MulWide if signed => map2(r, d, s, k, |a: i32, b: i32| a as i64 * b as i64),
        Alu::MulWide => map2(r, d, s, k, |a: u32, b: u32| a as u64 * b as u64),
        Alu::MadWide if signed => map3(r, d, s, k, |a: i32, b: i32, c: i64| (a as i64 * b as i64).wrapping_add(c)),
        Alu::MadWide => map3(r, d, s, k, |a: u32, b: u32, c: u64| (a as u64 * b as u64).wrapping_add(c)),
        Alu::Mul24 | Alu::Mad24 => map3(r, d, s, k, |a: u32, b: u32, c: u32| {
            let cut = |x: u32| if signed { ((x << 8) as i32 >> 8) as u32 } else { x & 0xff_ffff };
            cut(a).wrapping_mul(cut(b)).wrapping_add(c)
        }),
        Alu::Sad if signed => map3(r, d, s, k, |a: i32, b: i32, c: u32| a.abs_diff(b).wrapping_add(c)),
        Alu::Sad => map3(r, d, s, k, |a: u32, b: u32, c: u32| a.abs_diff(b).wrapping_add(c)),
        // PTX leaves division by zero unspecified. An H200 was measured to give all ones for div.u32 and rem.u32, and the
        // code that ptxas 13 makes for sm_90 selects all ones for the other signs and widths too.
        Alu::Div if signed => map2(r, d, s, k, |a: i32, b: i32| if b == 0 { -1 } else { a.wrapping_div(b) }),
        Alu::Div => map2(r, d, s, k, |a: u32, b: u32| a.checked_div(b).unwrap_or(!0)),
        Alu::Rem if signed => map2(r, d, s, k, |a: i32, b: i32| if b == 0 { -1 } else { a.wrapping_rem(b) }),
        Alu::Rem => map2(r, d, s, k, |a: u32, b: u32| a.checked_rem(b).unwrap_or(!0)),
        Alu::Min if m.relu => map2(r, d, s, k, |a: i32, b: i32| a.min(b).max(0)),
        Alu::Max if m.relu => map2(r, d, s, k, |a: i32, b: i32| a.max(b).max(0)),
        Alu::Min if signed => map2(r, d, s, k, |a: i32, b: i32| a.min(b)),
        Alu::Min => map2(r, d, s, k, |a: u32, b: u32| a.min(b)),
        Alu::Max if signed => map2(r, d, s, k, |a: i32, b: i32| a.max(b)),
        Alu::Max => map2(r, d, s, k, |a: u32, b: u32| a.max(b)),
        Alu::Neg => map1(r, d, s, k, |a: u32| a.wrapping_neg()),
        Alu::Abs => map1(r, d, s, k, |a: i32| a.wrapping_abs()),
        Alu::And => map2(r, d, s, k, |a: u32, b: u32| a & b),
        Alu::Or => map2(r, d, s, k, |a: u32, b: u32| a | b),
        Alu::Xor => map2(r, d, s, k, |a: u32, b: u32| a ^ b),
        Alu::Not => map1(r, d, s, k, |a: u32| !a),
        Alu::Cnot => map1(r, d, s, k, |a: u32| (a == 0) as u32),
        Alu::Shl => map2(r, d, s, k, |a: u32, b: u32| if b > 31 { 0 } else { a << b }),
        Alu::Shr if signed => map2(r, d, s, k, |a: i32, b: u32| a >> b.min(31)),
        Alu::Shr => map2(r, d, s, k, |a: u32, b: u32| if b > 31 { 0 } else { a >> b }),
        Alu::Popc => map1(r, d, s, k, |a: u32| a.count_ones()),
        Alu::Clz => map1(r, d, s, k, |a: u32| a.leading_zeros()),
        Alu::Brev => map1(r, d, s, k, |a: u32| a.reverse_bits()),
        Alu::Bfind | Alu::BfindShift => map1(r, d, s, k, |a: u32| {
            let a = if signed && (a as i32) < 0 { !a } else { a };
            if a == 0 {
                !0
            } else if f == Alu::BfindShift {
                a.leading_zeros()
            } else {
                31 - a.leading_zeros()
            }
        }),
        Alu::Bfe => map3(r, d, s, k, |a: u32, b: u32, c: u32| bfe(a as u64, b, c, 32, signed) as u32),
        Alu::Bfi => {
            let (a, b, c, e) = (*r.r32(s[0]), *r.r32(s[1]), *r.r32(s[2]), *r.r32(s[3]));
            let v = each(|i| bfi(a[i] as u64, b[i] as u64, c[i], e[i], 32) as u32);
            r.put32(d, &v, k);
        }
        Alu::Bmsk => map2(r, d, s, k, |a: u32, b: u32| {
            let (a, b) = if m.flag { (a & 31, b & 31) } else { (a.min(32), b.min(32)) };
            let ones = ((1u64 << b) - 1) as u32;
            ((ones as u64) << a) as u32
        }),
        Alu::Prmt => map3(r, d, s, k, |a: u32, b: u32, c: u32| prmt(a, b, c, m.imm)),
        Alu::ShfL | Alu::ShfR => map3(r, d, s, k, |a: u32, b: u32, c: u32| {
            let n = if m.flag { c & 31 } else { c.min(32) };
            let v = (b as u64) << 32 | a as u64;
            if f == Alu::ShfL { ((v << n) >> 32) as u32 } else { (v >> n) as u32 }
        }),
        Alu::Lop3 => map3(r, d, s, k, |a: u32, b: u32, c: u32| lop3(a, b, c, m.imm)),
        Alu::Dp4a => map3(r, d, s, k, |a: u32, b: u32, c: u32| dot(a, b, c, signed, m.flag)),
        Alu::Dp2a => map3(r, d, s, k, |a: u32, b: u32, c: u32| dot2(a, b, c, signed, m.flag, m.imm == 1)),
        // Lowering makes no other pair of operation and type.
        _ => unreachable!("{f:?} of 32 bits"),
    }
}

#[inline(always)]
pub(super) fn integer64(r: &mut Regs, f: Alu, signed: bool, d: Slot, s: &[Slot; 4], k: u32) {
    match f {
        Alu::Mov => map1(r, d, s, k, |a: u64| a),
        Alu::Add => map2(r, d, s, k, |a: u64, b: u64| a.wrapping_add(b)),
        Alu::Sub => map2(r, d, s, k, |a: u64, b: u64| a.wrapping_sub(b)),
        Alu::MulLo => map2(r, d, s, k, |a: u64, b: u64| a.wrapping_mul(b)),
        Alu::MadLo => map3(r, d, s, k, |a: u64, b: u64, c: u64| a.wrapping_mul(b).wrapping_add(c)),
        Alu::MulHi if signed => map2(r, d, s, k, |a: i64, b: i64| ((a as i128 * b as i128) >> 64) as i64),
        Alu::MulHi => map2(r, d, s, k, |a: u64, b: u64| ((a as u128 * b as u128) >> 64) as u64),
        Alu::MadHi if signed => {
            map3(r, d, s, k, |a: i64, b: i64, c: i64| (((a as i128 * b as i128) >> 64) as i64).wrapping_add(c))
        }
        Alu::MadHi => {
            map3(r, d, s, k, |a: u64, b: u64, c: u64| (((a as u128 * b as u128) >> 64) as u64).wrapping_add(c))
        }
        Alu::Sad if signed => map3(r, d, s, k, |a: i64, b: i64, c: u64| a.abs_diff(b).wrapping_add(c)),
        Alu::Sad => map3(r, d, s, k, |a: u64, b: u64, c: u64| a.abs_diff(b).wrapping_add(c)),
        // Division by zero as in `integer32`.
        Alu::Div if signed => map2(r, d, s, k, |a: i64, b: i64| if b == 0 { -1 } else { a.wrapping_div(b) }),
        Alu::Div => map2(r, d, s, k, |a: u64, b: u64| a.checked_div(b).unwrap_or(!0)),
        Alu::Rem if signed => map2(r, d, s, k, |a: i64, b: i64| if b == 0 { -1 } else { a.wrapping_rem(b) }),
        Alu::Rem => map2(r, d, s, k, |a: u64, b: u64| a.checked_rem(b).unwrap_or(!0)),
        Alu::Min if signed => map2(r, d, s, k, |a: i64, b: i64| a.min(b)),
        Alu::Min => map2(r, d, s, k, |a: u64, b: u64| a.min(b)),
        Alu::Max if signed => map2(r, d, s, k, |a: i64, b: i64| a.max(b)),
        Alu::Max => map2(r, d, s, k, |a: u64, b: u64| a.max(b)),
        Alu::Neg => map1(r, d, s, k, |a: u64| a.wrapping_neg()),
        Alu::Abs => map1(r, d, s, k, |a: i64| a.wrapping_abs()),
        Alu::And => map2(r, d, s, k, |a: u64, b: u64| a & b),
        Alu::Or => map2(r, d, s, k, |a: u64, b: u64| a | b),
        Alu::Xor => map2(r, d, s, k, |a: u64, b: u64| a ^ b),
        Alu::Not => map1(r, d, s, k, |a: u64| !a),
        Alu::Cnot => map1(r, d, s, k, |a: u64| (a == 0) as u64),
        Alu::Shl => map2(r, d, s, k, |a: u64, b: u32| if b > 63 { 0 } else { a << b }),
        Alu::Shr if signed => map2(r, d, s, k, |a: i64, b: u32| a >> b.min(63)),
        Alu::Shr => map2(r, d, s, k, |a: u64, b: u32| if b > 63 { 0 } else { a >> b }),
        Alu::Popc => map1(r, d, s, k, |a: u64| a.count_ones()),
        Alu::Clz => map1(r, d, s, k, |a: u64| a.leading_zeros()),
        Alu::Brev => map1(r, d, s, k, |a: u64| a.reverse_bits()),
        Alu::Bfind | Alu::BfindShift => map1(r, d, s, k, |a: u64| {
            let a = if signed && (a as i64) < 0 { !a } else { a };
            if a == 0 {
                !0
            } else if f == Alu::BfindShift {
                a.leading_zeros()
            } else {
                63 - a.leading_zeros()
            }
        }),
        Alu::Bfe => map3(r, d, s, k, |a: u64, b: u32, c: u32| bfe(a, b, c, 64, signed)),
        Alu::Bfi => {
            let (a, b, c, e) = (*r.r64(s[0]), *r.r64(s[1]), *r.r32(s[2]), *r.r32(s[3]));
            let v = each(|i| bfi(a[i], b[i], c[i], e[i], 64));
            r.put64(d, &v, k);
        }
        // Lowering makes no other pair of operation and type.
        _ => unreachable!("{f:?} of 64 bits"),
    }
}

#[inline(always)]
pub(super) fn integer16(r: &mut Regs, f: Alu, signed: bool, d: Slot, s: &[Slot; 4], k: u32) {
    match f {
        Alu::Mov => map1(r, d, s, k, |a: u16| a),
        Alu::Add => map2(r, d, s, k, |a: u16, b: u16| a.wrapping_add(b)),
        Alu::Sub => map2(r, d, s, k, |a: u16, b: u16| a.wrapping_sub(b)),
        Alu::MulLo => map2(r, d, s, k, |a: u16, b: u16| a.wrapping_mul(b)),
        Alu::MadLo => map3(r, d, s, k, |a: u16, b: u16, c: u16| a.wrapping_mul(b).wrapping_add(c)),
        Alu::MulHi if signed => map2(r, d, s, k, |a: i16, b: i16| ((a as i32 * b as i32) >> 16) as i16),
        Alu::MulHi => map2(r, d, s, k, |a: u16, b: u16| ((a as u32 * b as u32) >> 16) as u16),
        Alu::MadHi if signed => {
            map3(r, d, s, k, |a: i16, b: i16, c: i16| (((a as i32 * b as i32) >> 16) as i16).wrapping_add(c))
        }
        Alu::MadHi => map3(r, d, s, k, |a: u16, b: u16, c: u16| (((a as u32 * b as u32) >> 16) as u16).wrapping_add(c)),
        Alu::MulWide if signed => map2(r, d, s, k, |a: i16, b: i16| a as i32 * b as i32),
        Alu::MulWide => map2(r, d, s, k, |a: u16, b: u16| a as u32 * b as u32),
        Alu::MadWide if signed => map3(r, d, s, k, |a: i16, b: i16, c: i32| (a as i32 * b as i32).wrapping_add(c)),
        Alu::MadWide => map3(r, d, s, k, |a: u16, b: u16, c: u32| (a as u32 * b as u32).wrapping_add(c)),
        Alu::Sad if signed => map3(r, d, s, k, |a: i16, b: i16, c: u16| a.abs_diff(b).wrapping_add(c)),
        Alu::Sad => map3(r, d, s, k, |a: u16, b: u16, c: u16| a.abs_diff(b).wrapping_add(c)),
        // Division by zero as in `integer32`.
        Alu::Div if signed => map2(r, d, s, k, |a: i16, b: i16| if b == 0 { -1 } else { a.wrapping_div(b) }),
        Alu::Div => map2(r, d, s, k, |a: u16, b: u16| a.checked_div(b).unwrap_or(!0)),
        Alu::Rem if signed => map2(r, d, s, k, |a: i16, b: i16| if b == 0 { -1 } else { a.wrapping_rem(b) }),
        Alu::Rem => map2(r, d, s, k, |a: u16, b: u16| a.checked_rem(b).unwrap_or(!0)),
        Alu::Min if signed => map2(r, d, s, k, |a: i16, b: i16| a.min(b)),
        Alu::Min => map2(r, d, s, k, |a: u16, b: u16| a.min(b)),
        Alu::Max if signed => map2(r, d, s, k, |a: i16, b: i16| a.max(b)),
        Alu::Max => map2(r, d, s, k, |a: u16, b: u16| a.max(b)),
        Alu::Neg => map1(r, d, s, k, |a: u16| a.wrapping_neg()),
        Alu::Abs => map1(r, d, s, k, |a: i16| a.wrapping_abs()),
        Alu::And => map2(r, d, s, k, |a: u16, b: u16| a & b),
        Alu::Or => map2(r, d, s, k, |a: u16, b: u16| a | b),
        Alu::Xor => map2(r, d, s, k, |a: u16, b: u16| a ^ b),
        Alu::Not => map1(r, d, s, k, |a: u16| !a),
        Alu::Cnot => map1(r, d, s, k, |a: u16| (a == 0) as u16),
        Alu::Shl => map2(r, d, s, k, |a: u16, b: u32| if b > 15 { 0 } else { a << b }),
        Alu::Shr if signed => map2(r, d, s, k, |a: i16, b: u32| a >> b.min(15)),
        Alu::Shr => map2(r, d, s, k, |a: u16, b: u32| if b > 15 { 0 } else { a >> b }),
        // Lowering makes no other pair of operation and type.
        _ => unreachable!("{f:?} of 16 bits"),
    }
}
