//! Every operation against itself: the lanes of a warp compute it for completions of the unknown bits, and what differs is unknown.

use super::*;
use crate::alu::{LANES, compare, convert, execute};
use crate::float::Round;

struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        // Knuth's MMIX generator; the low bits are the weak ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ self.0 >> 33
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// Numbers at which operations do something: small ones, single bits, all bits, and any.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(70),
            1 => 1 << self.below(64),
            2 => (1 << self.below(64)) - 1,
            3 => 0,
            _ => self.next(),
        }
    }
}

/// Operands in slots 2, 4, 6 and 8, of these widths, and a destination in 10 that may be wide.
const SOURCES: [Slot; 4] = [2, 4, 6, 8];
const TO: Slot = 10;

fn registers(widths: &[u32], to: u32) -> (Regs, Vec<bool>) {
    let mut wide = vec![false; 14];
    for (s, w) in SOURCES.iter().zip(widths) {
        wide[*s as usize] = *w == 64;
    }
    wide[TO as usize] = to == 64;
    (Regs::new(12, 2, true), wide)
}

fn put(r: &mut Regs, wide: bool, s: Slot, values: &[u64; LANES]) {
    if wide { r.put64(s, values, !0) } else { r.put32(s, &values.map(|v| v as u32), !0) }
}

/// Masks of unknown bits for each operand: five bits in all, so that 32 lanes have all completions, or many.
fn masks(draw: &mut Draw, widths: &[u32], few: bool) -> Vec<u64> {
    let mut masks = vec![0; widths.len()];
    if !few {
        return widths.iter().map(|&w| if draw.below(2) == 0 { 0 } else { draw.number() & ones(w) }).collect();
    }
    let total: u64 = widths.iter().map(|w| *w as u64).sum();
    // Unknown bits mostly come side by side.
    let first = draw.below(total);
    for i in 0..5 {
        let mut at = if draw.below(4) == 0 { draw.below(total) } else { (first + i) % total };
        for (m, w) in masks.iter_mut().zip(widths) {
            if at < *w as u64 {
                *m |= 1 << at;
                break;
            }
            at -= *w as u64;
        }
    }
    masks
}

/// The completion of a mask: lane `l` takes the bits of `l` one after another, over all operands.
fn complete(draw: &mut Draw, masks: &[u64], few: bool, lane: usize) -> Vec<u64> {
    let mut bits = lane as u64;
    let mut spread = |mask: u64| {
        if !few {
            return draw.next() & mask;
        }
        let mut v = 0;
        for at in (0..64).filter(|at| mask >> at & 1 == 1) {
            v |= (bits & 1) << at;
            bits >>= 1;
        }
        v
    };
    masks.iter().map(|&m| spread(m)).collect()
}

/// An operation with the widths of its sources and of its result, and whether what is known of its result is exact.
struct Subject {
    f: Alu,
    ty: Ty,
    m: Mods,
    widths: Vec<u32>,
    to: u32,
    exact: bool,
}

fn subjects() -> Vec<Subject> {
    use Alu::*;
    let mut out = Vec::new();
    let mut add = |f, ty: Ty, m: Mods, widths: &[u32], to, exact| {
        out.push(Subject { f, ty, m, widths: widths.to_vec(), to, exact });
    };
    let plain = Mods::default();
    for ty in [Ty::U16, Ty::S16, Ty::U32, Ty::S32, Ty::U64, Ty::S64] {
        let n = ty.bits();
        for f in [And, Or, Xor] {
            add(f, ty, plain, &[n, n], n, true);
        }
        for f in [Add, Sub, MulLo, MulHi, Div, Rem, Min, Max] {
            add(f, ty, plain, &[n, n], n, false);
        }
        for (f, exact) in [(Mov, true), (Not, true), (Neg, false), (Abs, false), (Cnot, true)] {
            add(f, ty, plain, &[n], n, exact);
        }
        for f in [MadLo, MadHi, Sad] {
            add(f, ty, plain, &[n, n, n], n, false);
        }
        for f in [Shl, Shr] {
            add(f, ty, plain, &[n, 32], n, false);
        }
        if n < 64 {
            add(MulWide, ty, plain, &[n, n], 2 * n, false);
            add(MadWide, ty, plain, &[n, n, 2 * n], 2 * n, false);
        }
        if n >= 32 {
            for f in [Popc, Clz, Bfind, BfindShift] {
                add(f, ty, plain, &[n], 32, false);
            }
            add(Brev, ty, plain, &[n], n, true);
            add(Bfe, ty, plain, &[n, 32, 32], n, false);
            add(Bfi, ty, plain, &[n, n, 32, 32], n, false);
        }
    }
    for ty in [Ty::U32, Ty::S32] {
        for f in [Mul24, Mad24, Dp4a, Dp2a] {
            let n = if f == Mul24 { 2 } else { 3 };
            add(f, ty, plain, &[32, 32, 32][..n], 32, false);
        }
    }
    for m in [Mods { relu: true, ..plain }, Mods { sat: true, ..plain }] {
        for f in if m.relu { [Min, Max] } else { [Add, Sub] } {
            add(f, Ty::S32, m, &[32, 32], 32, false);
        }
    }
    for flag in [false, true] {
        let m = Mods { flag, ..plain };
        add(Bmsk, Ty::B32, m, &[32, 32], 32, false);
        add(ShfL, Ty::B32, m, &[32, 32, 32], 32, false);
        add(ShfR, Ty::B32, m, &[32, 32, 32], 32, false);
    }
    for imm in 0..7 {
        add(Prmt, Ty::B32, Mods { imm, ..plain }, &[32, 32, 32], 32, false);
    }
    for imm in [0, 0x80, 0xfe, 0x96, 0xca, 0xe8, 0x3c, 0x5a, 0x17, 0xff, 0xf0, 0xaa] {
        add(Lop3, Ty::B32, Mods { imm, ..plain }, &[32, 32, 32], 32, true);
    }
    for ty in [Ty::F32, Ty::F64, Ty::F16, Ty::BF16, Ty::F16x2, Ty::BF16x2, Ty::F32x2] {
        let n = ty.bits();
        for f in [Add, Sub, FMul] {
            add(f, ty, plain, &[n, n], n, false);
        }
        add(Fma, ty, plain, &[n, n, n], n, false);
        if matches!(ty, Ty::F32 | Ty::F64) {
            add(Mov, ty, plain, &[n], n, true);
            add(Copysign, ty, plain, &[n, n], n, true);
        }
        if ty != Ty::F32x2 {
            for f in [Min, Max] {
                add(f, ty, plain, &[n, n], n, false);
            }
            add(Neg, ty, plain, &[n], n, false);
            add(Abs, ty, plain, &[n], n, false);
        }
    }
    for f in [Ex2, Lg2, Rcp, Sqrt] {
        add(f, Ty::F32, plain, &[32], 32, false);
    }
    out
}

#[test]
fn no_bit_that_changes_is_known() {
    let mut draw = Draw(1);
    for s in subjects() {
        let mut known = 0u32;
        for round in 0..300 {
            let few = round % 4 != 3;
            // Operands that are one register, and destinations that are a source.
            let same = round % 7 == 0 && s.widths.len() > 1 && s.widths[0] == s.widths[1];
            let (mut r, wide) = registers(&s.widths, s.to);
            let values: Vec<u64> = s.widths.iter().map(|&w| draw.number() & ones(w)).collect();
            let mut masks = masks(&mut draw, &s.widths, few);
            let mut sources = [0; 4];
            sources[..s.widths.len()].copy_from_slice(&SOURCES[..s.widths.len()]);
            if same {
                masks[1] = 0;
                sources[1] = sources[0];
            }
            let completions: Vec<Vec<u64>> = (0..LANES).map(|l| complete(&mut draw, &masks, few, l)).collect();
            for (i, slot) in SOURCES[..s.widths.len()].iter().enumerate() {
                let lanes = std::array::from_fn(|l| (values[i] & !masks[i]) | completions[l][i]);
                put(&mut r, wide[*slot as usize], *slot, &lanes);
                r.set_unknown(*slot, wide[*slot as usize], !0, &[masks[i]; LANES]);
            }
            define(&mut r, &wide, s.f, s.ty, s.m, TO, &sources, !0);
            execute(&mut r, false, s.f, s.ty, s.m, TO, &sources, !0);
            let of = |l: usize| r.lane(TO, s.to == 64, l);
            let changes = (1..LANES).fold(0, |c, l| c | (of(0) ^ of(l)));
            // What is known is so in every lane, whatever the unknown bits happen to be.
            for lane in 0..LANES {
                let unknown = r.unknown(TO, lane) & ones(s.to.max(32));
                let what = || format!("{:?}.{:?} {:?} of {values:x?}, {masks:x?} unknown", s.f, s.ty, s.m);
                assert_eq!(changes & !unknown, 0, "{}: {changes:x} change, {unknown:x} unknown", what());
                if s.exact && few {
                    assert_eq!(unknown, changes, "{}", what());
                }
                known += (unknown & ones(s.to) != ones(s.to)) as u32;
            }
        }
        assert!(known > 0, "{:?}.{:?}: nothing is ever known", s.f, s.ty);
    }
}

#[test]
fn operations_are_exact_where_they_are_said_to_be() {
    use Alu::*;
    let n = 32;
    let m = Mods::default();
    let mut draw = Draw(2);
    let mut check = |f: Alu, ty: Ty, widths: &[u32], known: &[(usize, u64)]| {
        for _ in 0..200 {
            let (mut r, wide) = registers(widths, n);
            let mut masks = vec![0; widths.len()];
            masks[0] = 0x1f << draw.below(28);
            let mut sources = [0; 4];
            sources[..widths.len()].copy_from_slice(&SOURCES[..widths.len()]);
            let completions: Vec<Vec<u64>> = (0..LANES).map(|l| complete(&mut draw, &masks, true, l)).collect();
            for (i, slot) in SOURCES[..widths.len()].iter().enumerate() {
                let v = known.iter().find(|k| k.0 == i).map_or_else(|| draw.next(), |k| k.1);
                put(&mut r, false, *slot, &std::array::from_fn(|l| (v & !masks[i]) | completions[l][i]));
                r.set_unknown(*slot, false, !0, &[masks[i]; LANES]);
            }
            define(&mut r, &wide, f, ty, m, TO, &sources, !0);
            execute(&mut r, false, f, ty, m, TO, &sources, !0);
            let changes = (1..LANES).fold(0, |c, l| c | (r.lane(TO, false, 0) ^ r.lane(TO, false, l)));
            assert_eq!(r.unknown(TO, 0) & ones(n), changes, "{f:?}.{ty:?} {known:x?} {masks:x?}");
        }
    };
    for by in [0, 1, 13, 31, 32, 33] {
        for ty in [Ty::U32, Ty::S32] {
            check(Shl, ty, &[32, 32], &[(1, by)]);
            check(Shr, ty, &[32, 32], &[(1, by)]);
        }
        for len in [0, 1, 8, 31, 32] {
            check(Bfe, Ty::U32, &[32, 32, 32], &[(1, by), (2, len)]);
            check(Bfe, Ty::S32, &[32, 32, 32], &[(1, by), (2, len)]);
            check(Bfi, Ty::U32, &[32, 32, 32, 32], &[(2, by), (3, len)]);
        }
        check(ShfL, Ty::B32, &[32, 32, 32], &[(2, by)]);
        check(ShfR, Ty::B32, &[32, 32, 32], &[(2, by)]);
    }
    for selector in [0x3210, 0x7654, 0x5410, 0x7632, 0x0000, 0x8b9f, 0x1032] {
        check(Prmt, Ty::B32, &[32, 32, 32], &[(2, selector)]);
    }
    for factor in [0, 1, 2, 64, 1 << 31] {
        check(MulLo, Ty::U32, &[32, 32], &[(1, factor)]);
        check(MulHi, Ty::U32, &[32, 32], &[(1, factor)]);
        check(Div, Ty::U32, &[32, 32], &[(1, factor.max(1))]);
        check(Rem, Ty::U32, &[32, 32], &[(1, factor.max(1))]);
    }
}

#[test]
fn no_comparison_that_changes_is_decided() {
    let mut draw = Draw(3);
    let cmps = [Cmp::Eq, Cmp::Ne, Cmp::Lt, Cmp::Le, Cmp::Gt, Cmp::Ge];
    let types = [Ty::U16, Ty::S16, Ty::U32, Ty::S32, Ty::U64, Ty::S64, Ty::F32, Ty::F64, Ty::F16, Ty::F16x2];
    for ty in types {
        for cmp in cmps {
            let (mut decided_some, mut open) = (0, 0);
            for round in 0..200 {
                let few = round % 4 != 3;
                let widths = [ty.bits(); 2];
                let (mut r, wide) = registers(&widths, 32);
                let masks = masks(&mut draw, &widths, few);
                let values = [draw.number(), draw.number()];
                let completions: Vec<Vec<u64>> = (0..LANES).map(|l| complete(&mut draw, &masks, few, l)).collect();
                for i in 0..2 {
                    let lanes = std::array::from_fn(|l| (values[i] & !masks[i] & ones(widths[i])) | completions[l][i]);
                    put(&mut r, wide[SOURCES[i] as usize], SOURCES[i], &lanes);
                    r.set_unknown(SOURCES[i], wide[SOURCES[i] as usize], !0, &[masks[i]; LANES]);
                }
                let (x, y) = compare(&r, cmp, ty, false, SOURCES[0], SOURCES[1]);
                let known = decided(&r, &wide, cmp, ty, SOURCES[0], SOURCES[1], !0);
                for (v, known) in [x, y].into_iter().zip(known) {
                    assert!(known == 0 || v == 0 || v == !0, "{cmp:?}.{ty:?} {values:x?} {masks:x?}: {v:x} {known:x}");
                    if known == 0 {
                        open += 1
                    } else {
                        decided_some += 1
                    }
                    // Of integers the answer is exact.
                    let exact = few && !ty.is_float();
                    assert!(!exact || known == !0 || (v != 0 && v != !0), "{cmp:?}.{ty:?} {values:x?} {masks:x?}");
                }
            }
            assert!(decided_some > 0 && open > 0, "{cmp:?}.{ty:?}");
        }
    }
}

#[test]
fn no_bit_that_a_conversion_changes_is_known() {
    let mut draw = Draw(4);
    let integers = [Ty::U8, Ty::S8, Ty::U16, Ty::S16, Ty::U32, Ty::S32, Ty::U64, Ty::S64];
    let floats = [Ty::F16, Ty::BF16, Ty::F32, Ty::F64];
    let mut forms: Vec<(Ty, Ty, bool)> = Vec::new();
    for from in integers {
        forms.extend(integers.iter().flat_map(|&to| [(to, from, false), (to, from, true)]));
        forms.extend(floats.iter().flat_map(|&f| [(f, from, false), (from, f, false)]));
    }
    forms.extend(
        [(Ty::F32, Ty::BF16), (Ty::F32, Ty::F16), (Ty::F16, Ty::F32), (Ty::F64, Ty::F32)].map(|(t, f)| (t, f, false)),
    );
    forms.extend([Ty::F16x2, Ty::BF16x2, Ty::E4M3x2, Ty::E5M2x2].map(|to| (to, Ty::F32, false)));
    forms.extend([(Ty::F16x2, Ty::E4M3x2, false), (Ty::E5M2x2, Ty::F16x2, false), (Ty::TF32, Ty::F32, false)]);
    for (to, from, sat) in forms {
        let int_round = (!to.is_float() && from.is_float()).then_some(crate::ir::IntRound::Zero);
        for round in 0..100 {
            let few = round % 2 == 0;
            let widths = [from.bits(), if from == Ty::F32 { 32 } else { 0 }];
            let widths = &widths[..1 + (widths[1] != 0) as usize];
            let masks = masks(&mut draw, widths, few);
            let values = [draw.number() & ones(widths[0]), draw.next() & ones(32)];
            let results: Vec<u64> = (0..LANES)
                .map(|l| {
                    let c = complete(&mut draw, &masks, few, l);
                    let of = |i: usize| if i < c.len() { (values[i] & !masks[i]) | c[i] } else { 0 };
                    let v = convert(to, from, Round::NearestEven, int_round, false, sat, false, of(0), of(1));
                    if to.signed() { extend(v, to.bits(), true) } else { v }
                })
                .collect();
            let changes = results.iter().fold(0, |c, v| c | (results[0] ^ v));
            let plain = !sat && int_round.is_none();
            let unknown = converted(to, from, plain, masks[0], masks.get(1).copied().unwrap_or(0));
            assert_eq!(changes & !unknown, 0, "{to:?} from {from:?}: {values:x?}, {masks:x?}");
            if !to.is_float() && !from.is_float() && !sat && few {
                assert_eq!(changes, unknown, "{to:?} from {from:?}: {values:x?}, {masks:x?}");
            }
        }
    }
}
