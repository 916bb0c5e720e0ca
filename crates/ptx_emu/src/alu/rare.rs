//! Operations that few kernels have, apart from the others: their loops would slow down those.

use super::bits::{abs_diff4, find_nth, pack_saturated, szext};
use super::directed;
use super::float::{f32_2_large, f32_3, fmax, fmin};
use super::half::{half_ftz, half_value};
use super::regs::{Regs, map2, map3};
use crate::float::Round;
use crate::ir::{Alu, Mods, SINK, Slot, Ty};

/// Whether an operation is one of those that `execute_rare` knows and `execute` does not.
pub(crate) fn is_rare(f: Alu, ty: Ty, m: Mods) -> bool {
    let directed = m.round != Round::NearestEven;
    matches!(ty, Ty::U16x2 | Ty::S16x2)
        || matches!(f, Alu::Min3 | Alu::Max3 | Alu::Fns | Alu::Szext | Alu::CvtPack | Alu::AbsDiff4)
        || m.xorsign
        || (directed && (ty == Ty::F64 || matches!(f, Alu::Div | Alu::Rcp | Alu::Sqrt)))
}

/// Executes one of them; the caller keeps the record of written registers.
#[cold]
pub(crate) fn execute_rare(r: &mut Regs, f: Alu, ty: Ty, m: Mods, d: Slot, s: &[Slot; 4], k: u32) {
    if d == SINK {
        return;
    }
    let signed = ty == Ty::S32;
    match (f, ty) {
        (Alu::Fns, _) => map3(r, d, s, k, find_nth),
        (Alu::Szext, _) => map2(r, d, s, k, |a: u32, b: u32| szext(a, b, signed, m.flag)),
        (Alu::CvtPack, _) => {
            map3(r, d, s, k, |a: u32, b: u32, c: u32| pack_saturated(a, b, c, m.imm as u32, m.flag));
        }
        (Alu::AbsDiff4, _) => map3(r, d, s, k, |a: u32, b: u32, c: u32| abs_diff4(a, b, c, m)),
        (Alu::Min3, _) => f32_3(r, m, d, s, k, |a, b, c| fmin(fmin(a, b, m.flag), c, m.flag)),
        (Alu::Max3, _) => f32_3(r, m, d, s, k, |a, b, c| fmax(fmax(a, b, m.flag), c, m.flag)),
        (_, Ty::U16x2 | Ty::S16x2) => {
            map2(r, d, s, k, |a: u32, b: u32| halves16(f, m, ty == Ty::S16x2, a, b));
        }
        (_, Ty::F64) => map3(r, d, s, k, |a: f64, b: f64, c: f64| directed::double(f, m.round, a, b, c)),
        (_, Ty::F32) if m.xorsign => f32_2_large(r, m, d, s, k, |a, b| xorsign(f, m, a, b)),
        (_, Ty::F32) => f32_3(r, m, d, s, k, |a, b, c| directed::single(f, m.round, a, b, c)),
        (_, Ty::F16 | Ty::BF16) => {
            map2(r, d, s, k, |a: u16, b: u16| half_xorsign(f, m, ty == Ty::BF16, a, b));
        }
        _ => map2(r, d, s, k, |a: u32, b: u32| {
            let one = |sh: u32| half_xorsign(f, m, ty == Ty::BF16x2, (a >> sh) as u16, (b >> sh) as u16) as u32;
            one(0) | one(16) << 16
        }),
    }
}

/// The smaller or larger magnitude, with the sign that two factors give a product; NaN has none.
fn xorsign(f: Alu, m: Mods, a: f32, b: f32) -> f32 {
    let pick = if f == Alu::Min { fmin } else { fmax };
    let magnitude = pick(a.abs(), b.abs(), m.flag);
    let negative = a.is_sign_negative() != b.is_sign_negative() && !magnitude.is_nan();
    if negative { -magnitude } else { magnitude }
}

/// The same of halves, whose magnitudes have the order of their bits.
fn half_xorsign(f: Alu, m: Mods, bf: bool, a: u16, b: u16) -> u16 {
    let (a, b) = if m.ftz { (half_ftz(a, bf), half_ftz(b, bf)) } else { (a, b) };
    let (x, y) = (a & 0x7fff, b & 0x7fff);
    let magnitude = match (half_value(a, bf).is_nan(), half_value(b, bf).is_nan()) {
        (true, true) => return 0x7fff,
        (true, _) | (_, true) if m.flag => return 0x7fff,
        (true, _) => y,
        (_, true) => x,
        _ if f == Alu::Min => x.min(y),
        _ => x.max(y),
    };
    magnitude | ((a ^ b) & 0x8000)
}

/// add, min and max of two 16-bit integers in a word.
fn halves16(f: Alu, m: Mods, signed: bool, a: u32, b: u32) -> u32 {
    let one = |sh: u32| {
        let (x, y) = ((a >> sh) as u16, (b >> sh) as u16);
        let v = match (f, signed) {
            (Alu::Add, _) => x.wrapping_add(y),
            (Alu::Min, false) => x.min(y),
            (Alu::Min, true) => (x as i16).min(y as i16) as u16,
            (_, false) => x.max(y),
            (_, true) => (x as i16).max(y as i16) as u16,
        };
        let v = if m.relu { (v as i16).max(0) as u16 } else { v };
        (v as u32) << sh
    };
    one(0) | one(16)
}
