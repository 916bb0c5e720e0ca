//! Permutations, tables, fields of bits, and sums of products of bytes.

use crate::ir::Mods;

/// Byte permutation of prmt in its default and special modes.
#[inline]
pub(super) fn prmt(a: u32, b: u32, c: u32, mode: u8) -> u32 {
    let all = (a as u64) | (b as u64) << 32;
    let byte = |i: u32| (all >> (8 * (i & 7))) as u8;
    let pick = |sel: [u32; 4]| u32::from_le_bytes(sel.map(byte));
    let s = c & 3;
    match mode {
        1 => pick([s, s + 1, s + 2, s + 3]),
        2 => pick([s, s.wrapping_sub(1), s.wrapping_sub(2), s.wrapping_sub(3)]),
        3 => pick([s; 4]),
        4 => pick([s, s.max(1), s.max(2), 3]),
        5 => pick([0, s.min(1), s.min(2), s]),
        6 => {
            let h = (s & 1) * 2;
            pick([h, h + 1, h, h + 1])
        }
        _ => {
            let mut r = 0;
            for i in 0..4 {
                let sel = (c >> (4 * i)) & 15;
                let mut v = byte(sel);
                if sel & 8 != 0 {
                    v = if v & 0x80 != 0 { 0xff } else { 0 };
                }
                r |= (v as u32) << (8 * i);
            }
            r
        }
    }
}

#[inline(always)]
pub(super) fn lop3(a: u32, b: u32, c: u32, lut: u8) -> u32 {
    let mut r = 0;
    for i in 0..8u32 {
        if lut >> i & 1 == 1 {
            let x = if i & 4 != 0 { a } else { !a };
            let y = if i & 2 != 0 { b } else { !b };
            let z = if i & 1 != 0 { c } else { !c };
            r |= x & y & z;
        }
    }
    r
}

#[inline]
pub(super) fn bfe(a: u64, pos: u32, len: u32, bits: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let msb = bits - 1;
    let sign = if !signed || len == 0 { 0 } else { (a >> (pos + len - 1).min(msb)) & 1 };
    let mut r = 0u64;
    for i in 0..bits {
        let bit = if i < len && pos + i <= msb { (a >> (pos + i)) & 1 } else { sign };
        r |= bit << i;
    }
    r
}

#[inline]
pub(super) fn bfi(a: u64, b: u64, pos: u32, len: u32, bits: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let mut r = b;
    for i in 0..len {
        if pos + i >= bits {
            break;
        }
        let at = pos + i;
        r = (r & !(1 << at)) | (((a >> i) & 1) << at);
    }
    r
}

#[inline]
pub(super) fn dot(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let mut sum = c;
    for i in 0..4 {
        let x = (a >> (8 * i)) as u8;
        let y = (b >> (8 * i)) as u8;
        let x = if a_signed { x as i8 as i32 } else { x as i32 };
        let y = if b_signed { y as i8 as i32 } else { y as i32 };
        sum = sum.wrapping_add(x.wrapping_mul(y) as u32);
    }
    sum
}

#[inline]
pub(super) fn dot2(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool, hi: bool) -> u32 {
    let mut sum = c;
    for i in 0..2 {
        let x = (a >> (16 * i)) as u16;
        let y = (b >> (8 * i + if hi { 16 } else { 0 })) as u8;
        let x = if a_signed { x as i16 as i32 } else { x as i32 };
        let y = if b_signed { y as i8 as i32 } else { y as i32 };
        sum = sum.wrapping_add(x.wrapping_mul(y) as u32);
    }
    sum
}

/// `fns`: the position of the n-th set bit from a base on, upwards or downwards; the base itself where n is 0. All ones if there is none.
#[inline]
pub(super) fn find_nth(mask: u32, base: u32, offset: i32) -> u32 {
    if base > 31 {
        return !0;
    }
    if offset == 0 {
        return if mask >> base & 1 == 1 { base } else { !0 };
    }
    let n = offset.unsigned_abs() as usize - 1;
    let set = |p: &u32| mask >> p & 1 == 1;
    let found = if offset > 0 { (base..32).filter(set).nth(n) } else { (0..=base).rev().filter(set).nth(n) };
    found.unwrap_or(!0)
}

/// `szext`: the low `b` bits of `a`, extended by zeros or by their sign.
#[inline]
pub(super) fn szext(a: u32, b: u32, signed: bool, wrap: bool) -> u32 {
    if b > 31 && !wrap {
        return a;
    }
    match b & 31 {
        0 => 0,
        n if signed => ((a << (32 - n)) as i32 >> (32 - n)) as u32,
        n => a & ((1 << n) - 1),
    }
}

/// `cvt.pack.sat`: two integers saturated to `bits`, the first above the second, and `c` above both.
#[inline]
pub(super) fn pack_saturated(a: u32, b: u32, c: u32, bits: u32, signed: bool) -> u32 {
    let (lo, hi) = if signed { (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1) } else { (0, (1i64 << bits) - 1) };
    let one = |x: u32| (x as i32 as i64).clamp(lo, hi) as u32 & ((1 << bits) - 1);
    let both = one(a) << bits | one(b);
    if bits == 16 { both } else { both | c << (2 * bits) }
}

/// `vabsdiff4`: differences of four bytes; or their sum on top of `c`, where `imm` says so.
#[inline]
pub(super) fn abs_diff4(a: u32, b: u32, c: u32, m: Mods) -> u32 {
    let signed = |v: u32, i: u32, yes: bool| {
        let byte = (v >> (8 * i)) as u8;
        if yes { byte as i8 as i32 } else { byte as i32 }
    };
    let differences = (0..4).map(|i| signed(a, i, m.flag).abs_diff(signed(b, i, m.relu)));
    if m.imm == 1 {
        return differences.fold(c, |sum, d| sum.wrapping_add(d));
    }
    let most = match (m.sat, m.imm) {
        (true, 2) => 127,
        (true, _) => 255,
        _ => u32::MAX,
    };
    differences.enumerate().fold(0, |v, (i, d)| v | (d.min(most) & 0xff) << (8 * i))
}
