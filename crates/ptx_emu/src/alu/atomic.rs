//! What `atom` and `red` do to one value.

use super::half::half_op;
use crate::float::{canon, ftz};
use crate::ir::{Alu, AtomOp, Mods, Ty};

/// `red` and `atom` arithmetic on one value of the type; `c` is the swap value of cas, and `flush` says that f32 sums flush
/// subnormal terms and results, as those in global memory do.
pub(crate) fn atomic(op: AtomOp, ty: Ty, old: u64, b: u64, c: u64, flush: bool) -> u64 {
    use AtomOp::*;
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
