//! Arithmetic over the 32 lanes of a warp, in loops that vectorise.

mod atomic;
mod bits;
mod compare;
mod convert;
mod defined;
mod directed;
mod float;
mod half;
mod integer;
mod rare;
mod regs;

use crate::float::ftz;
use crate::ir::{Alu, Mods, SINK, Slot, Ty};
use float::{double, finish, float};
use half::half_op;
use integer::{integer16, integer32, integer64};
use regs::map3;

pub(crate) use atomic::atomic;
pub(crate) use compare::compare;
pub(crate) use convert::convert;
pub(crate) use defined::{bits, converted, decided, define, extend, ones};
pub(crate) use rare::{execute_rare, is_rare};
pub(crate) use regs::{LANES, Regs, each};

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
