//! Comparisons, as masks of lanes.

use std::cmp::Ordering;

use super::half::{half_ftz, half_value};
use super::regs::{LANES, Lane, Regs, each};
use crate::float::ftz;
use crate::ir::{Cmp, Slot, Ty};

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
