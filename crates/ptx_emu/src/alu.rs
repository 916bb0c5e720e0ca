//! Arithmetic over the 32 lanes of a warp, in loops that vectorise.

use std::cmp::Ordering;

use crate::float::*;
use crate::ir::{Alu, Cmp, Mods, SINK, Slot, Ty};

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// One slot of the register file.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(128))]
pub(crate) struct Lanes32(pub(crate) [u32; LANES]);

/// The registers of one warp, and which lanes of each hold a value that somebody wrote.
#[derive(Debug, Clone)]
pub(crate) struct Regs {
    slots: Vec<Lanes32>,
    init: Vec<u32>,
    /// Predicates as lane masks; number 0 is true.
    pub(crate) preds: Vec<u32>,
    pub(crate) pred_init: Vec<u32>,
}

impl Regs {
    pub(crate) fn new(slots: u32, preds: u32) -> Self {
        let mut r = Regs {
            slots: vec![Lanes32([0; LANES]); slots as usize + 1],
            init: vec![0; slots as usize + 1],
            preds: vec![0; preds as usize],
            pred_init: vec![0; preds as usize],
        };
        r.reset();
        r
    }

    /// Forgets every value; the constants must be set again.
    pub(crate) fn reset(&mut self) {
        self.init.fill(0);
        self.pred_init.fill(0);
        self.slots.fill(Lanes32([0; LANES]));
        self.preds.fill(0);
        self.init[0] = !0;
        self.init[1] = !0;
        self.preds[0] = !0;
        self.pred_init[0] = !0;
    }

    #[inline(always)]
    pub(crate) fn r32(&self, s: Slot) -> &[u32; LANES] {
        &self.slots[s as usize].0
    }

    #[inline(always)]
    pub(crate) fn r32_mut(&mut self, s: Slot) -> &mut [u32; LANES] {
        &mut self.slots[s as usize].0
    }

    #[inline(always)]
    pub(crate) fn r64(&self, s: Slot) -> &[u64; LANES] {
        let two: &[Lanes32] = &self.slots[s as usize..s as usize + 2];
        // SAFETY: two adjacent slots are 256 bytes without padding, aligned to 128, and any bits are a u64.
        unsafe { &*two.as_ptr().cast::<[u64; LANES]>() }
    }

    #[inline(always)]
    pub(crate) fn r64_mut(&mut self, s: Slot) -> &mut [u64; LANES] {
        let two: &mut [Lanes32] = &mut self.slots[s as usize..s as usize + 2];
        // SAFETY: as in `r64`, and the borrow is exclusive.
        unsafe { &mut *two.as_mut_ptr().cast::<[u64; LANES]>() }
    }

    #[inline(always)]
    pub(crate) fn init(&self, s: Slot) -> u32 {
        self.init[s as usize]
    }

    /// Records that the lanes of `mask` were written, with values that `known` says somebody wrote.
    #[inline(always)]
    pub(crate) fn set_init(&mut self, s: Slot, mask: u32, known: u32) {
        let i = &mut self.init[s as usize];
        *i = (*i & !mask) | (known & mask);
    }

    #[inline(always)]
    pub(crate) fn put32(&mut self, s: Slot, v: &[u32; LANES], mask: u32) {
        if s == SINK {
            return;
        }
        let d = &mut self.slots[s as usize].0;
        if mask == !0 {
            *d = *v;
        } else {
            for i in 0..LANES {
                let m = 0u32.wrapping_sub((mask >> i) & 1);
                d[i] = (v[i] & m) | (d[i] & !m);
            }
        }
    }

    #[inline(always)]
    pub(crate) fn put64(&mut self, s: Slot, v: &[u64; LANES], mask: u32) {
        if s == SINK {
            return;
        }
        let d = self.r64_mut(s);
        if mask == !0 {
            *d = *v;
        } else {
            for i in 0..LANES {
                let m = 0u64.wrapping_sub(((mask >> i) & 1) as u64);
                d[i] = (v[i] & m) | (d[i] & !m);
            }
        }
    }

    #[inline(always)]
    pub(crate) fn lane(&self, s: Slot, wide: bool, lane: usize) -> u64 {
        if wide { self.r64(s)[lane] } else { self.r32(s)[lane] as u64 }
    }

    #[inline(always)]
    pub(crate) fn put_pred(&mut self, p: u32, v: u32, mask: u32, known: u32) {
        if p == SINK {
            return;
        }
        let d = &mut self.preds[p as usize];
        *d = (*d & !mask) | (v & mask);
        let i = &mut self.pred_init[p as usize];
        *i = (*i & !mask) | (known & mask);
    }
}

/// A function of each lane. A plain loop: the closures of `array::map` and `array::from_fn` are not inlined in time for the
/// loop to vectorise (three times the time on the attention kernels, by `cargo bench -p ptx_emu`).
#[inline(always)]
pub(crate) fn each<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; LANES] {
    let mut v = [T::default(); LANES];
    for (i, x) in v.iter_mut().enumerate() {
        *x = f(i);
    }
    v
}

/// A type of lane values.
pub(crate) trait Lane: Copy + Default {
    fn get(r: &Regs, s: Slot) -> [Self; LANES];
    fn put(r: &mut Regs, s: Slot, v: &[Self; LANES], mask: u32);
}

#[inline(always)]
fn same<T>(x: T) -> T {
    x
}

macro_rules! lane {
    ($t:ty, $raw:ty, $get:ident, $put:ident, $from:expr, $to:expr) => {
        impl Lane for $t {
            #[inline(always)]
            fn get(r: &Regs, s: Slot) -> [Self; LANES] {
                let v = r.$get(s);
                each(|i| $from(v[i]))
            }
            #[inline(always)]
            fn put(r: &mut Regs, s: Slot, v: &[Self; LANES], mask: u32) {
                r.$put(s, &each(|i| $to(v[i])), mask)
            }
        }
    };
}
lane!(u32, u32, r32, put32, same, same);
lane!(i32, u32, r32, put32, (|x: u32| x as i32), (|x: i32| x as u32));
lane!(f32, u32, r32, put32, f32::from_bits, f32::to_bits);
lane!(u16, u32, r32, put32, (|x: u32| x as u16), (|x: u16| x as u32));
lane!(i16, u32, r32, put32, (|x: u32| x as i16), (|x: i16| x as u16 as u32));
lane!(u64, u64, r64, put64, same, same);
lane!(i64, u64, r64, put64, (|x: u64| x as i64), (|x: i64| x as u64));
lane!(f64, u64, r64, put64, f64::from_bits, f64::to_bits);

#[inline(always)]
fn map1<A: Lane, D: Lane>(r: &mut Regs, d: Slot, s: &[Slot; 4], mask: u32, f: impl Fn(A) -> D) {
    let a = A::get(r, s[0]);
    let v = each(|i| f(a[i]));
    D::put(r, d, &v, mask);
}

#[inline(always)]
fn map2<A: Lane, B: Lane, D: Lane>(r: &mut Regs, d: Slot, s: &[Slot; 4], mask: u32, f: impl Fn(A, B) -> D) {
    let (a, b) = (A::get(r, s[0]), B::get(r, s[1]));
    let v = each(|i| f(a[i], b[i]));
    D::put(r, d, &v, mask);
}

#[inline(always)]
fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(r: &mut Regs, d: Slot, s: &[Slot; 4], mask: u32, f: impl Fn(A, B, C) -> D) {
    let (a, b, c) = (A::get(r, s[0]), B::get(r, s[1]), C::get(r, s[2]));
    let v = each(|i| f(a[i], b[i], c[i]));
    D::put(r, d, &v, mask);
}

#[inline(always)]
fn finish(x: f32, m: Mods) -> f32 {
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
fn f32_2_large(r: &mut Regs, m: Mods, d: Slot, s: &[Slot; 4], mask: u32, f: impl Fn(f32, f32) -> f32) {
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
fn f32_3(r: &mut Regs, m: Mods, d: Slot, s: &[Slot; 4], mask: u32, f: impl Fn(f32, f32, f32) -> f32) {
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
fn fmin(a: f32, b: f32, nan: bool) -> f32 {
    if nan && (a.is_nan() || b.is_nan()) {
        return NAN32;
    }
    let less = a < b || (a == b && a.is_sign_negative());
    if less || b.is_nan() { a } else { b }
}

#[inline(always)]
fn fmax(a: f32, b: f32, nan: bool) -> f32 {
    if nan && (a.is_nan() || b.is_nan()) {
        return NAN32;
    }
    let more = a > b || (a == b && b.is_sign_negative());
    if more || b.is_nan() { a } else { b }
}

fn dmin(a: f64, b: f64) -> f64 {
    let less = a < b || (a == b && a.is_sign_negative());
    if less || b.is_nan() { a } else { b }
}

fn dmax(a: f64, b: f64) -> f64 {
    let more = a > b || (a == b && b.is_sign_negative());
    if more || b.is_nan() { a } else { b }
}

/// 2^x, in f64 with a polynomial whose error is below 1e-11, so right to f32's last bit but for ties.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
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

/// f16 or bf16 values of a register half.
#[inline(always)]
fn half_value(h: u16, bf: bool) -> f32 {
    if bf { bf16_to_f32(h) } else { f16_to_f32(h) }
}

#[inline(always)]
fn half_ftz(h: u16, bf: bool) -> u16 {
    let exp = if bf { 0x7f80 } else { 0x7c00 };
    if h & exp == 0 { h & 0x8000 } else { h }
}

fn half_format(bf: bool) -> Format {
    if bf { BF16 } else { F16 }
}

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

fn half_op(f: Alu, m: Mods, bf: bool, a: u16, b: u16, c: u16) -> u16 {
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

/// Byte permutation of prmt in its default and special modes.
fn prmt(a: u32, b: u32, c: u32, mode: u8) -> u32 {
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
fn lop3(a: u32, b: u32, c: u32, lut: u8) -> u32 {
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

fn bfe(a: u64, pos: u32, len: u32, bits: u32, signed: bool) -> u64 {
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

fn bfi(a: u64, b: u64, pos: u32, len: u32, bits: u32) -> u64 {
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

fn dot(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
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

fn dot2(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool, hi: bool) -> u32 {
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

/// Executes one arithmetic instruction; the caller keeps the record of written registers.
pub(crate) fn execute(r: &mut Regs, simd: bool, f: Alu, ty: Ty, m: Mods, d: Slot, s: &[Slot; 4], mask: u32) {
    #[cfg(target_arch = "x86_64")]
    if simd {
        // SAFETY: `simd` is only true when the processor has AVX2 and FMA (see `has_simd`).
        unsafe { execute_avx2(r, f, ty, m, d, s, mask) };
        return;
    }
    let _ = simd;
    execute_any(r, f, ty, m, d, s, mask);
}

/// Whether the vector build of the loops can run here.
pub(crate) fn has_simd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn execute_avx2(r: &mut Regs, f: Alu, ty: Ty, m: Mods, d: Slot, s: &[Slot; 4], mask: u32) {
    execute_any(r, f, ty, m, d, s, mask);
}

#[inline(always)]
fn execute_any(r: &mut Regs, f: Alu, ty: Ty, m: Mods, d: Slot, s: &[Slot; 4], k: u32) {
    if d == SINK {
        return;
    }
    match ty {
        Ty::F32 => float(r, f, m, d, s, k),
        Ty::F64 => double(r, f, d, s, k),
        Ty::F16 | Ty::BF16 if !bitwise(f) => {
            let bf = ty == Ty::BF16;
            map3(r, d, s, k, |a: u16, b: u16, c: u16| half_op(f, m, bf, a, b, c));
        }
        Ty::F16x2 | Ty::BF16x2 if !bitwise(f) => {
            let bf = ty == Ty::BF16x2;
            map3(r, d, s, k, |a: u32, b: u32, c: u32| {
                let lo = half_op(f, m, bf, a as u16, b as u16, c as u16);
                let hi = half_op(f, m, bf, (a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
                lo as u32 | (hi as u32) << 16
            });
        }
        Ty::F32x2 if !bitwise(f) => map3(r, d, s, k, |a: u64, b: u64, c: u64| {
            let one = |sh: u32| {
                let (a, b, c) = (
                    f32::from_bits((a >> sh) as u32),
                    f32::from_bits((b >> sh) as u32),
                    f32::from_bits((c >> sh) as u32),
                );
                let (a, b, c) = if m.ftz { (ftz(a), ftz(b), ftz(c)) } else { (a, b, c) };
                let v = match f {
                    Alu::Add => a + b,
                    Alu::Sub => a - b,
                    Alu::FMul => a * b,
                    _ => a.mul_add(b, c),
                };
                (finish(v, m).to_bits() as u64) << sh
            };
            one(0) | one(32)
        }),
        Ty::U64 | Ty::S64 | Ty::B64 | Ty::F32x2 => integer64(r, f, ty == Ty::S64, d, s, k),
        Ty::U16 | Ty::S16 | Ty::B16 | Ty::U8 | Ty::S8 | Ty::B8 => integer16(r, f, ty == Ty::S16, d, s, k),
        _ => integer32(r, f, ty == Ty::S32, m, d, s, k),
    }
}

#[inline(always)]
fn bitwise(f: Alu) -> bool {
    matches!(f, Alu::Mov)
}

#[inline(always)]
fn float(r: &mut Regs, f: Alu, m: Mods, d: Slot, s: &[Slot; 4], k: u32) {
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
fn double(r: &mut Regs, f: Alu, d: Slot, s: &[Slot; 4], k: u32) {
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

#[inline(always)]
fn integer32(r: &mut Regs, f: Alu, signed: bool, m: Mods, d: Slot, s: &[Slot; 4], k: u32) {
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
fn integer64(r: &mut Regs, f: Alu, signed: bool, d: Slot, s: &[Slot; 4], k: u32) {
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
fn integer16(r: &mut Regs, f: Alu, signed: bool, d: Slot, s: &[Slot; 4], k: u32) {
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

#[inline(always)]
fn mask_of(v: &[bool; LANES]) -> u32 {
    let mut m = 0;
    for (i, &b) in v.iter().enumerate() {
        m |= (b as u32) << i;
    }
    m
}

#[inline(always)]
fn cmp_int<T: Lane + Ord>(r: &Regs, cmp: Cmp, a: Slot, b: Slot) -> u32 {
    let (a, b) = (T::get(r, a), T::get(r, b));
    macro_rules! go {
        (|$a:ident, $b:ident| $e:expr) => {
            mask_of(&each(|i| {
                let ($a, $b) = (&a[i], &b[i]);
                $e
            }))
        };
    }
    match cmp {
        Cmp::Eq | Cmp::Equ => go!(|a, b| a == b),
        Cmp::Ne | Cmp::Neu => go!(|a, b| a != b),
        Cmp::Lt | Cmp::Ltu => go!(|a, b| a < b),
        Cmp::Le | Cmp::Leu => go!(|a, b| a <= b),
        Cmp::Gt | Cmp::Gtu => go!(|a, b| a > b),
        Cmp::Ge | Cmp::Geu => go!(|a, b| a >= b),
        Cmp::Num => !0,
        Cmp::Nan => 0,
    }
}

fn cmp_float<T: Copy + PartialOrd>(cmp: Cmp, a: &[T; LANES], b: &[T; LANES]) -> u32 {
    let go = |f: fn(T, T) -> bool| mask_of(&each(|i| f(a[i], b[i])));
    let unordered = |f: fn(T, T) -> bool| !mask_of(&each(|i| f(a[i], b[i])));
    match cmp {
        Cmp::Eq => go(|a, b| a == b),
        Cmp::Ne => go(|a, b| a.partial_cmp(&b).is_some_and(Ordering::is_ne)),
        Cmp::Lt => go(|a, b| a < b),
        Cmp::Le => go(|a, b| a <= b),
        Cmp::Gt => go(|a, b| a > b),
        Cmp::Ge => go(|a, b| a >= b),
        Cmp::Equ => unordered(|a, b| a.partial_cmp(&b).is_some_and(Ordering::is_ne)),
        Cmp::Neu => unordered(|a, b| a == b),
        Cmp::Ltu => unordered(|a, b| a >= b),
        Cmp::Leu => unordered(|a, b| a > b),
        Cmp::Gtu => unordered(|a, b| a <= b),
        Cmp::Geu => unordered(|a, b| a < b),
        Cmp::Num => go(|a, b| a.partial_cmp(&b).is_some()),
        Cmp::Nan => unordered(|a, b| a.partial_cmp(&b).is_some()),
    }
}

/// Compares lane by lane; packed types give the mask of each half.
pub(crate) fn compare(r: &Regs, cmp: Cmp, ty: Ty, flush: bool, a: Slot, b: Slot) -> (u32, u32) {
    let both = |m: u32| (m, m);
    match ty {
        Ty::U32 | Ty::B32 => both(cmp_int::<u32>(r, cmp, a, b)),
        Ty::S32 => both(cmp_int::<i32>(r, cmp, a, b)),
        Ty::U64 | Ty::B64 => both(cmp_int::<u64>(r, cmp, a, b)),
        Ty::S64 => both(cmp_int::<i64>(r, cmp, a, b)),
        Ty::S16 => both(cmp_int::<i16>(r, cmp, a, b)),
        Ty::F32 => {
            let (mut x, mut y) = (f32::get(r, a), f32::get(r, b));
            if flush {
                x = x.map(ftz);
                y = y.map(ftz);
            }
            both(cmp_float(cmp, &x, &y))
        }
        Ty::F64 => both(cmp_float(cmp, &f64::get(r, a), &f64::get(r, b))),
        Ty::F16 | Ty::BF16 | Ty::F16x2 | Ty::BF16x2 => {
            let bf = matches!(ty, Ty::BF16 | Ty::BF16x2);
            let (x, y) = (r.r32(a), r.r32(b));
            let half = |v: &[u32; LANES], sh: u32| {
                v.map(|v| {
                    let h = (v >> sh) as u16;
                    half_value(if flush { half_ftz(h, bf) } else { h }, bf)
                })
            };
            let lo = cmp_float(cmp, &half(x, 0), &half(y, 0));
            if matches!(ty, Ty::F16x2 | Ty::BF16x2) {
                (lo, cmp_float(cmp, &half(x, 16), &half(y, 16)))
            } else {
                both(lo)
            }
        }
        _ => both(cmp_int::<u16>(r, cmp, a, b)),
    }
}

/// `red` and `atom` arithmetic on one value of the type; `c` is the swap value of cas, and `flush` says that f32 sums flush
/// subnormal terms and results, as those in global memory do.
pub(crate) fn atomic(op: crate::ir::AtomOp, ty: Ty, old: u64, b: u64, c: u64, flush: bool) -> u64 {
    use crate::ir::AtomOp::*;
    let (o32, b32) = (old as u32, b as u32);
    let halves = |f: &dyn Fn(u16, u16) -> u16| {
        f(o32 as u16, b32 as u16) as u64 | (f((o32 >> 16) as u16, (b32 >> 16) as u16) as u64) << 16
    };
    let m = Mods::default();
    match (op, ty) {
        (Exch, _) => b,
        (Cas, Ty::B16) => {
            if old as u16 == b as u16 {
                c & 0xffff
            } else {
                old
            }
        }
        (Cas, t) if t.bits() == 32 => {
            if o32 == b32 {
                c & 0xffff_ffff
            } else {
                old
            }
        }
        (Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (And, _) => old & b,
        (Or, _) => old | b,
        (Xor, _) => old ^ b,
        (Inc, _) => {
            if o32 >= b32 {
                0
            } else {
                o32 as u64 + 1
            }
        }
        (Dec, _) => {
            if o32 == 0 || o32 > b32 {
                b32 as u64
            } else {
                o32 as u64 - 1
            }
        }
        (Add, Ty::F32) if flush => canon(ftz(ftz(f32::from_bits(o32)) + ftz(f32::from_bits(b32)))).to_bits() as u64,
        (Add, Ty::F32) => canon(f32::from_bits(o32) + f32::from_bits(b32)).to_bits() as u64,
        (Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (Add, Ty::F16) => half_op(Alu::Add, m, false, old as u16, b as u16, 0) as u64,
        (Add, Ty::BF16) => half_op(Alu::Add, m, true, old as u16, b as u16, 0) as u64,
        (Min, Ty::F16) => half_op(Alu::Min, m, false, old as u16, b as u16, 0) as u64,
        (Min, Ty::BF16) => half_op(Alu::Min, m, true, old as u16, b as u16, 0) as u64,
        (Max, Ty::F16) => half_op(Alu::Max, m, false, old as u16, b as u16, 0) as u64,
        (Max, Ty::BF16) => half_op(Alu::Max, m, true, old as u16, b as u16, 0) as u64,
        (Add, Ty::F16x2) => halves(&|x, y| half_op(Alu::Add, m, false, x, y, 0)),
        (Add, Ty::BF16x2) => halves(&|x, y| half_op(Alu::Add, m, true, x, y, 0)),
        (Min, Ty::F16x2) => halves(&|x, y| half_op(Alu::Min, m, false, x, y, 0)),
        (Min, Ty::BF16x2) => halves(&|x, y| half_op(Alu::Min, m, true, x, y, 0)),
        (Max, Ty::F16x2) => halves(&|x, y| half_op(Alu::Max, m, false, x, y, 0)),
        (Max, Ty::BF16x2) => halves(&|x, y| half_op(Alu::Max, m, true, x, y, 0)),
        (Add, t) if t.bits() == 64 => old.wrapping_add(b),
        (Add, _) => o32.wrapping_add(b32) as u64,
        (Min, Ty::S32) => (o32 as i32).min(b32 as i32) as u32 as u64,
        (Max, Ty::S32) => (o32 as i32).max(b32 as i32) as u32 as u64,
        (Min, Ty::S64) => (old as i64).min(b as i64) as u64,
        (Max, Ty::S64) => (old as i64).max(b as i64) as u64,
        (Min, Ty::U64) => old.min(b),
        (Max, Ty::U64) => old.max(b),
        (Min, _) => o32.min(b32) as u64,
        (Max, _) => o32.max(b32) as u64,
    }
}

/// Converts one value; `v` and the result are bit patterns in the low bits.
pub(crate) fn convert(
    to: Ty,
    from: Ty,
    round: Round,
    int_round: Option<crate::ir::IntRound>,
    flush: bool,
    sat: bool,
    relu: bool,
    v: u64,
    second: u64,
) -> u64 {
    use crate::ir::IntRound;
    let encode_f32 =
        |x: f64, fmt: Format| -> u64 { fmt.encode(if relu { clamp_negative(x) } else { x }, round, sat) as u64 };
    match (to, from) {
        (Ty::F16x2 | Ty::BF16x2, Ty::F32) => {
            let fmt = half_format(to == Ty::BF16x2);
            let value = |b: u64| {
                let x = f32::from_bits(b as u32);
                (if flush { ftz(x) } else { x }) as f64
            };
            // The first source goes to the high half.
            return encode_f32(value(v), fmt) << 16 | encode_f32(value(second), fmt);
        }
        (Ty::E4M3x2 | Ty::E5M2x2, Ty::F32) => {
            let fmt = if to == Ty::E4M3x2 { E4M3 } else { E5M2 };
            let one = |b: u64| fp8(f32::from_bits(b as u32) as f64, fmt, relu);
            return one(v) << 8 | one(second);
        }
        (Ty::E4M3x2 | Ty::E5M2x2, Ty::F16x2) => {
            let fmt = if to == Ty::E4M3x2 { E4M3 } else { E5M2 };
            let one = |b: u64| fp8(f16_to_f32(b as u16) as f64, fmt, relu);
            return one(v >> 16) << 8 | one(v);
        }
        (Ty::F16x2, Ty::E4M3x2 | Ty::E5M2x2) => {
            let fmt = if from == Ty::E4M3x2 { E4M3 } else { E5M2 };
            let one = |b: u64| encode_f32(fmt.decode(b as u32 & 0xff), F16);
            return one(v >> 8) << 16 | one(v);
        }
        (Ty::TF32, _) => {
            let x = f32::from_bits(v as u32);
            // Not a conversion of its own on an H200, but an addition below the last bit and a mask: a NaN keeps its
            // upper bits, as measured, and one with none of them becomes infinite.
            if round == Round::NearestAway && !relu && !sat && !x.is_finite() {
                return v & 0xffff_e000;
            }
            return encode_f32(x as f64, TF32) << 13;
        }
        _ => {}
    }
    // A widening to f32 by a shift: a NaN keeps its bits.
    if (to, from) == (Ty::F32, Ty::BF16) && int_round.is_none() && !sat {
        return (v & 0xffff) << 16;
    }
    if from.is_float() {
        if to == Ty::F64
            && let Some(nan) = widened_nan(from, v)
            && !sat
        {
            return nan;
        }
        let x = match from {
            Ty::F16 => f16_to_f32(v as u16) as f64,
            Ty::BF16 => bf16_to_f32(v as u16) as f64,
            Ty::F64 => f64::from_bits(v),
            _ => {
                let x = f32::from_bits(v as u32);
                (if flush { ftz(x) } else { x }) as f64
            }
        };
        if to.is_float() {
            let x = match int_round {
                Some(r) => round_int(x, r),
                None => x,
            };
            let clamp = |x: f64| {
                if !sat {
                    x
                } else if x > 1.0 {
                    1.0
                } else if x > 0.0 {
                    x
                } else {
                    0.0
                }
            };
            let x = if relu { clamp_negative(x) } else { x };
            return match to {
                Ty::F16 => F16.encode(clamp(x), round, false) as u64,
                Ty::BF16 => BF16.encode(clamp(x), round, false) as u64,
                Ty::F64 => {
                    let x = clamp(x);
                    if x.is_nan() { 0x7fff_ffff_ffff_ffff } else { x.to_bits() }
                }
                _ => {
                    let y = f32::from_bits(F32.encode(clamp(x), round, false));
                    (if flush { ftz(y) } else { y }).to_bits() as u64
                }
            };
        }
        // Out of range saturates; NaN gives zero, or the extreme that hardware gives for 64-bit results.
        let x = round_int(x, int_round.unwrap_or(IntRound::Zero));
        if x.is_nan() {
            return match to {
                Ty::U64 | Ty::S64 | Ty::B64 => 1 << 63,
                _ => 0,
            };
        }
        return match to {
            Ty::U8 | Ty::B8 => x as u8 as u64,
            Ty::S8 => x as i8 as u8 as u64,
            Ty::U16 | Ty::B16 => x as u16 as u64,
            Ty::S16 => x as i16 as u16 as u64,
            Ty::U32 | Ty::B32 => x as u32 as u64,
            Ty::S32 => x as i32 as u32 as u64,
            Ty::U64 | Ty::B64 => x as u64,
            _ => x as i64 as u64,
        };
    }
    let x: i128 = match from {
        Ty::U8 | Ty::B8 => v as u8 as i128,
        Ty::S8 => v as i8 as i128,
        Ty::U16 | Ty::B16 => v as u16 as i128,
        Ty::S16 => v as i16 as i128,
        Ty::U32 | Ty::B32 => v as u32 as i128,
        Ty::S32 => v as i32 as i128,
        Ty::S64 => v as i64 as i128,
        _ => v as i128,
    };
    match to {
        Ty::F32 | Ty::F16 | Ty::BF16 => {
            // An integer of up to 53 bits is exact in f64; above, the cut bits go to the last one.
            let mag = x.unsigned_abs() as u64;
            let f = if mag >> 53 != 0 {
                let cut = mag & 0x7ff;
                let kept = (mag & !0x7ff) | ((cut != 0) as u64) << 11;
                kept as f64
            } else {
                mag as f64
            };
            let f = if x < 0 { -f } else { f };
            let f = if sat { f.clamp(0.0, 1.0) } else { f };
            match to {
                Ty::F32 => F32.encode(f, round, false) as u64,
                Ty::F16 => F16.encode(f, round, false) as u64,
                _ => BF16.encode(f, round, false) as u64,
            }
        }
        Ty::F64 => integer_to_f64(x, round).to_bits(),
        _ => {
            let bits = to.bits();
            if sat {
                let (lo, hi) = if to.signed() {
                    (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
                } else {
                    (0, (1i128 << bits) - 1)
                };
                let c = x.clamp(lo, hi);
                return if bits == 64 { c as u64 } else { c as u64 & ((1 << bits) - 1) };
            }
            let y = x as u64;
            if bits == 64 { y } else { y & ((1 << bits) - 1) }
        }
    }
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

fn fp8(x: f64, fmt: Format, relu: bool) -> u64 {
    fmt.encode(if relu { clamp_negative(x) } else { x }, Round::NearestEven, true) as u64
}

/// `.relu`: what has a minus sign, -0 too, gives +0; NaN stays.
#[inline(always)]
fn clamp_negative(x: f64) -> f64 {
    if x.is_sign_negative() && !x.is_nan() { 0.0 } else { x }
}

fn round_int(x: f64, r: crate::ir::IntRound) -> f64 {
    use crate::ir::IntRound::*;
    match r {
        NearestEven => x.round_ties_even(),
        Zero => x.trunc(),
        Down => x.floor(),
        Up => x.ceil(),
    }
}
