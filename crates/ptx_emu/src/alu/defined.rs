//! Which bits of a result are known when some of the operands' bits are not: what was never written, or depends on it.
//!
//! Exact, so that a bit is known if and only if no completion of the unknown bits changes it: moves, logic (`lop3` and repeated operands
//! too), shifts, funnel shifts, `prmt`, `bfe` and `bfi` by known amounts, `brev`, products, quotients and remainders with a power of two,
//! products with zero, comparisons of integers, `copysign`, conversions between integers. Sums and differences know every bit that
//! no unknown bit and no unknown carry reaches. The others know at least the bits that all numbers between the least and the
//! largest possible result have in common, and products those below the first that an unknown bit reaches; where that is not worked
//! out (signed division, saturation, `sad`, `bmsk`, `dp4a`, `dp2a`, unknown amounts), and in floating point, nothing of an element is
//! known that any unknown bit goes into.

use super::bits::{bfe, bfi, lop3, prmt};
use super::regs::Regs;
use crate::ir::{Alu, Cmp, Mods, Slot, Ty};
use crate::machine::lanes;

/// Bits of a register in a lane, and which of them are unknown.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bits {
    pub(crate) value: u64,
    pub(crate) unknown: u64,
}

const ALL: u64 = !0;

/// The lowest `n` bits, up to 64.
pub(crate) fn ones(n: u32) -> u64 {
    if n >= 64 { ALL } else { (1 << n) - 1 }
}

/// The same number in 64 bits, of its lowest `n`; a mask repeats its highest bit in the same way.
pub(crate) fn extend(v: u64, n: u32, signed: bool) -> u64 {
    if signed { ((v << (64 - n)) as i64 >> (64 - n)) as u64 } else { v & ones(n) }
}

/// The bits that are not the same in all numbers from `lo` to `hi`.
fn between(lo: u64, hi: u64) -> u64 {
    ones(64 - (lo ^ hi).leading_zeros())
}

impl Bits {
    fn cut(self, n: u32) -> Bits {
        Bits { value: self.value & ones(n), unknown: self.unknown & ones(n) }
    }

    fn known(self) -> bool {
        self.unknown == 0
    }

    /// The least and the largest number that it can be, of `n` bits.
    fn range(self, n: u32, signed: bool) -> (i128, i128) {
        let sign = if signed { self.unknown & 1 << (n - 1) } else { 0 };
        let rest = self.unknown & !sign;
        let base = self.value & !self.unknown;
        let number = |v: u64| {
            let v = extend(v, n, signed);
            if signed { v as i64 as i128 } else { v as i128 }
        };
        (number(base | sign), number(base | rest))
    }

    fn extended(self, n: u32, signed: bool) -> Bits {
        Bits { value: extend(self.value, n, signed), unknown: extend(self.unknown, n, signed) }
    }
}

/// The unknown bits of a sum. A carry is monotone in the bits below it: where the least and the largest sum agree, all do.
fn sum(a: Bits, b: Bits) -> u64 {
    let least = (a.value & !a.unknown).wrapping_add(b.value & !b.unknown);
    let largest = (a.value | a.unknown).wrapping_add(b.value | b.unknown);
    a.unknown | b.unknown | (least ^ largest)
}

fn difference(a: Bits, b: Bits) -> u64 {
    let least = (a.value & !a.unknown).wrapping_sub(b.value | b.unknown);
    let largest = (a.value | a.unknown).wrapping_sub(b.value & !b.unknown);
    a.unknown | b.unknown | (least ^ largest)
}

/// A product of two numbers of `n` bits in `2 n`, with its unknown bits.
fn product(a: Bits, b: Bits, n: u32, signed: bool) -> (u128, u128) {
    let (a, b) = (a.cut(n), b.cut(n));
    let wide = |v: u64| {
        let v = extend(v, n, signed);
        if signed { v as i64 as i128 as u128 } else { v as u128 }
    };
    let value = wide(a.value).wrapping_mul(wide(b.value));
    let positive = |x: Bits| x.known() && (!signed || x.value >> (n - 1) == 0);
    for (x, y) in [(a, b), (b, a)] {
        if x.known() && x.value == 0 {
            return (value, 0);
        }
        if positive(x) && x.value.is_power_of_two() {
            return (value, wide(y.unknown) << x.value.trailing_zeros());
        }
    }
    // Known zeros at the end of one factor move what is unknown in the other.
    let zeros = |x: Bits| (x.value | x.unknown).trailing_zeros().min(n);
    let first = |x: Bits| if x.known() { 2 * n } else { x.unknown.trailing_zeros() };
    let lowest = (first(a) + zeros(b)).min(first(b) + zeros(a));
    let ((a0, a1), (b0, b1)) = (a.range(n, signed), b.range(n, signed));
    // Unsigned factors of 64 bits leave i128.
    let corners = [(a0, b0), (a0, b1), (a1, b0), (a1, b1)].map(|(x, y)| (x as u128).wrapping_mul(y as u128));
    let (lo, hi) = if signed {
        let signed = corners.map(|c| c as i128);
        (signed.into_iter().min().unwrap_or(0) as u128, signed.into_iter().max().unwrap_or(0) as u128)
    } else {
        (corners[0], corners[3])
    };
    let differ = lo ^ hi;
    let up_to = if differ.leading_zeros() == 0 { !0 } else { (1u128 << (128 - differ.leading_zeros())) - 1 };
    let from = if lowest >= 128 { 0 } else { !0u128 << lowest };
    (value, up_to & from)
}

/// The unknown bits of what an operation makes of one lane's operands.
fn unknown(f: Alu, ty: Ty, m: Mods, [a, b, c, e]: [Bits; 4], s: &[Slot; 4]) -> u64 {
    if ty.is_float() && f != Alu::Mov {
        return float(f, ty, a, b, c);
    }
    if matches!(ty, Ty::U16x2 | Ty::S16x2) {
        let one = if ty == Ty::S16x2 { Ty::S16 } else { Ty::U16 };
        let half = |x: Bits, sh: u32| Bits { value: x.value >> sh, unknown: x.unknown >> sh }.cut(16);
        let of = |sh: u32| unknown(f, one, m, [half(a, sh), half(b, sh), Bits::default(), Bits::default()], s) & 0xffff;
        return of(0) | of(16) << 16;
    }
    // Bytes are computed with in 16 bits.
    let n = ty.bits().max(16);
    let signed = ty.signed();
    let (amount_of_b, amount_of_c) = (b.cut(32), c.cut(32));
    let (a, b) = (a.cut(n), b.cut(n));
    let same = s[0] == s[1];
    let nothing = ones(n);
    let shifted = |shift: &dyn Fn(u64, u32) -> u64| {
        let amount = amount_of_b;
        if amount.known() {
            return shift(a.unknown, amount.value as u32);
        }
        let zero = a.known() && a.value == 0 || (!signed || f == Alu::Shl) && amount.range(32, false).0 >= n as i128;
        if zero { 0 } else { nothing }
    };
    match f {
        // Other sources of a move say whether the result is known (see `lower::policy`).
        Alu::Mov => {
            if b.known() && c.known() && e.known() {
                a.unknown
            } else {
                nothing
            }
        }
        Alu::And if !same => (a.unknown | b.unknown) & (a.value | a.unknown) & (b.value | b.unknown),
        Alu::Or if !same => (a.unknown | b.unknown) & !(a.value & !a.unknown) & !(b.value & !b.unknown),
        Alu::And | Alu::Or => a.unknown,
        Alu::Xor if same => 0,
        Alu::Xor => a.unknown | b.unknown,
        Alu::Not => a.unknown,
        Alu::Lop3 => lookup(a, b, c.cut(32), m.imm, s),
        Alu::Cnot => (!a.known() && a.value & !a.unknown == 0) as u64,
        Alu::Shl => shifted(&|u, by| if by >= n { 0 } else { u << by }),
        Alu::Shr => shifted(&|u, by| match (signed, by >= n) {
            (true, _) => (extend(u, n, true) as i64 >> by.min(n - 1)) as u64,
            (false, true) => 0,
            (false, false) => u >> by,
        }),
        Alu::ShfL | Alu::ShfR => {
            let by = amount_of_c;
            if by.unknown & (if m.flag { 31 } else { ALL }) != 0 {
                return nothing;
            }
            let by = if m.flag { by.value as u32 & 31 } else { (by.value as u32).min(32) };
            let v = b.unknown << 32 | a.unknown;
            if f == Alu::ShfL { (v << by) >> 32 } else { v >> by }
        }
        Alu::Prmt => permutation(a, b, amount_of_c, m.imm),
        Alu::Bfe if (amount_of_b.unknown | c.unknown) & 0xff == 0 => {
            bfe(a.unknown, amount_of_b.value as u32, c.value as u32, n, signed)
        }
        Alu::Bfi if (c.unknown | e.unknown) & 0xff == 0 => bfi(a.unknown, b.unknown, c.value as u32, e.value as u32, n),
        Alu::Brev => a.unknown.reverse_bits() >> (64 - n),
        Alu::Popc => between((a.value & !a.unknown).count_ones() as u64, (a.value | a.unknown).count_ones() as u64),
        Alu::Clz => {
            let zeros = |v: u64| (v.leading_zeros() + n).saturating_sub(64) as u64;
            between(zeros(a.value | a.unknown), zeros(a.value & !a.unknown))
        }
        Alu::Bfind | Alu::BfindShift => highest(a, n, signed, f == Alu::BfindShift),
        Alu::Add | Alu::Sub if m.sat => nothing,
        Alu::Add => sum(a, b),
        Alu::Sub if same => 0,
        Alu::Sub => difference(a, b),
        Alu::Neg => difference(Bits::default(), a),
        Alu::Abs => match (a.unknown >> (n - 1) & 1, a.value >> (n - 1) & 1) {
            (1, _) => nothing,
            (_, 0) => a.unknown,
            _ => difference(Bits::default(), a),
        },
        Alu::MulLo => product(a, b, n, false).1 as u64,
        Alu::MulHi => (product(a, b, n, signed).1 >> n) as u64,
        Alu::MulWide => product(a, b, n, signed).1 as u64,
        Alu::MadLo => {
            let (value, unknown) = product(a, b, n, false);
            sum(Bits { value: value as u64, unknown: unknown as u64 }, c)
        }
        Alu::MadHi => {
            let (value, unknown) = product(a, b, n, signed);
            sum(Bits { value: (value >> n) as u64, unknown: (unknown >> n) as u64 }.cut(n), c)
        }
        Alu::MadWide => {
            let (value, unknown) = product(a, b, n, signed);
            sum(Bits { value: value as u64, unknown: unknown as u64 }, c)
        }
        Alu::Mul24 | Alu::Mad24 => {
            let cut = |x: Bits| x.extended(24, signed).cut(32);
            let (value, unknown) = product(cut(a), cut(b), 32, false);
            sum(Bits { value: value as u64, unknown: unknown as u64 }, c)
        }
        Alu::Min | Alu::Max => {
            let ((a0, a1), (b0, b1)) = (a.range(n, signed), b.range(n, signed));
            let smaller = (f == Alu::Min) == (a1 <= b0);
            if a1 <= b0 || b1 <= a0 {
                let picked = if smaller { a } else { b };
                return if m.relu && !picked.known() { nothing } else { picked.unknown };
            }
            let pick = |x: i128, y: i128| {
                let v = if f == Alu::Min { x.min(y) } else { x.max(y) };
                (if m.relu { v.max(0) } else { v }) as u64
            };
            between(pick(a0, b0), pick(a1, b1))
        }
        Alu::Div | Alu::Rem => quotient(f, a, b, n, signed),
        _ => nothing,
    }
}

fn lookup(a: Bits, b: Bits, c: Bits, table: u8, s: &[Slot; 4]) -> u64 {
    let (mut zero, mut one) = (0, 0);
    for i in 0..8u8 {
        let bit = |k: u8| i >> k & 1;
        // Repeated operands have the same bits.
        if s[0] == s[1] && bit(2) != bit(1) || s[1] == s[2] && bit(1) != bit(0) || s[0] == s[2] && bit(2) != bit(0) {
            continue;
        }
        let can = |x: Bits, b: u8| x.unknown | if b == 1 { x.value } else { !x.value };
        let row = can(a, bit(2)) & can(b, bit(1)) & can(c, bit(0));
        if lop3(bit(2) as u32, bit(1) as u32, bit(0) as u32, table) & 1 == 1 { one |= row } else { zero |= row }
    }
    zero & one & ones(32)
}

fn permutation(a: Bits, b: Bits, selector: Bits, mode: u8) -> u64 {
    let moved = prmt(a.unknown as u32, b.unknown as u32, selector.value as u32, mode);
    if mode != 0 {
        let used = if mode == 6 { 1 } else { 3 };
        return if selector.unknown & used != 0 { ones(32) } else { moved as u64 };
    }
    (0..4).fold(moved as u64, |u, i| if selector.unknown >> (4 * i) & 15 != 0 { u | 0xff << (8 * i) } else { u })
}

/// `bfind`: the position of the highest bit that is not the sign.
fn highest(a: Bits, n: u32, signed: bool, shift: bool) -> u64 {
    let sign = signed && a.value >> (n - 1) & 1 == 1;
    if signed && a.unknown >> (n - 1) & 1 == 1 {
        return ones(32);
    }
    let (lo, hi) = if sign {
        (!a.value & !a.unknown & ones(n), (!a.value | a.unknown) & ones(n))
    } else {
        (a.value & !a.unknown, a.value | a.unknown)
    };
    // Nothing found is all ones.
    if lo == 0 && hi != 0 {
        return ones(32);
    }
    let at = |v: u64| if shift { v.leading_zeros() + n - 64 } else { 63 - v.leading_zeros() } as u64;
    if lo == hi { 0 } else { between(at(lo), at(hi)) }
}

fn quotient(f: Alu, a: Bits, b: Bits, n: u32, signed: bool) -> u64 {
    let ((a0, a1), (b0, b1)) = (a.range(n, signed), b.range(n, signed));
    if a0 < 0 || b0 <= 0 {
        return ones(n);
    }
    if b.known() && b.value.is_power_of_two() {
        return if f == Alu::Div { a.unknown >> b.value.trailing_zeros() } else { a.unknown & (b.value - 1) };
    }
    if f == Alu::Div {
        return between((a0 / b1) as u64, (a1 / b0) as u64);
    }
    if a1 < b0 { a.unknown } else { between(0, a1.min(b1 - 1) as u64) }
}

/// An element that any unknown bit goes into is unknown, all of it: the sign and the exponent decide what happens to the rest.
fn float(f: Alu, ty: Ty, a: Bits, b: Bits, c: Bits) -> u64 {
    let n = ty.bits();
    if f == Alu::Copysign {
        let sign = 1 << (n - 1);
        return (a.unknown & sign) | (b.unknown & (sign - 1));
    }
    let element = if matches!(ty, Ty::F16x2 | Ty::BF16x2 | Ty::F32x2) { n / 2 } else { n };
    let any = (a.unknown | b.unknown | c.unknown) & ones(n);
    (0..n / element).map(|i| ones(element) << (i * element)).filter(|part| any & part != 0).fold(0, |u, part| u | part)
}

/// The bits of a source in a lane.
pub(crate) fn bits(r: &Regs, wide: &[bool], s: Slot, lane: usize) -> Bits {
    let wide = wide[s as usize];
    Bits { value: r.lane(s, wide, lane), unknown: r.unknown(s, lane) & ones(if wide { 64 } else { 32 }) }
}

/// Notes which bits of the destination are known when not all of the sources' are; before the instruction is executed.
#[cold]
pub(crate) fn define(r: &mut Regs, wide: &[bool], f: Alu, ty: Ty, m: Mods, d: Slot, s: &[Slot; 4], active: u32) {
    let mut u = [0; super::LANES];
    for lane in lanes(active) {
        let operands = s.map(|s| bits(r, wide, s, lane));
        if operands.iter().all(|o| o.known()) {
            continue;
        }
        let found = unknown(f, ty, m, operands, s);
        // 16-bit results are put into their registers with zeros.
        let narrow = ty.bits() <= 16 && !matches!(f, Alu::MulWide | Alu::MadWide);
        u[lane] = if narrow { found & 0xffff } else { found };
    }
    r.set_unknown(d, wide[d as usize], active, &u);
}

/// Lanes whose comparison comes out the same whatever the unknown bits are; of packed types, of each half.
#[cold]
pub(crate) fn decided(r: &Regs, wide: &[bool], cmp: Cmp, ty: Ty, a: Slot, b: Slot, active: u32) -> [u32; 2] {
    use Cmp::*;
    let n = ty.bits();
    let mut out = [0; 2];
    for lane in lanes(active) {
        let (x, y) = (bits(r, wide, a, lane).cut(n), bits(r, wide, b, lane).cut(n));
        let either = x.unknown | y.unknown;
        let yes = if ty.is_float() {
            let halves = if matches!(ty, Ty::F16x2 | Ty::BF16x2) { [0xffff, 0xffff << 16] } else { [ALL; 2] };
            halves.map(|half| either & half == 0)
        } else if a == b || either == 0 {
            [true; 2]
        } else {
            let ((x0, x1), (y0, y1)) = (x.range(n, ty.signed()), y.range(n, ty.signed()));
            [match cmp {
                Eq | Equ | Ne | Neu => (x.value ^ y.value) & !either != 0,
                Lt | Ltu | Ge | Geu => (x0 < y1) == (x1 < y0),
                Le | Leu | Gt | Gtu => (x0 <= y1) == (x1 <= y0),
                Num | Nan => true,
            }; 2]
        };
        for (out, yes) in out.iter_mut().zip(yes) {
            *out |= (yes as u32) << lane;
        }
    }
    out
}

/// The unknown bits of a conversion; `plain` is one that neither saturates nor rounds to an integer.
pub(crate) fn converted(to: Ty, from: Ty, plain: bool, first: u64, second: u64) -> u64 {
    let (n, m) = (from.bits(), to.bits());
    let parts = |halves: [u64; 2], part: u32| {
        halves.iter().enumerate().fold(0, |u, (i, h)| if *h != 0 { u | ones(part) << (i as u32 * part) } else { u })
    };
    let used = first & ones(n);
    match (to, from) {
        // The first source goes to the high half.
        (Ty::F16x2 | Ty::BF16x2 | Ty::E4M3x2 | Ty::E5M2x2, Ty::F32) => parts([second & ones(32), used], m / 2),
        (Ty::E4M3x2 | Ty::E5M2x2, _) | (Ty::F16x2, _) => parts([used & ones(n / 2), used >> (n / 2)], m / 2),
        // A widening by a shift.
        (Ty::F32, Ty::BF16) if plain => used << 16,
        _ if to.is_float() || from.is_float() || !plain => {
            if used == 0 {
                0
            } else if to.signed() {
                ALL
            } else {
                ones(m)
            }
        }
        // A narrow signed result fills its register with its sign.
        _ => extend(extend(used, n, from.signed()), m, to.signed()),
    }
}

#[cfg(test)]
mod tests;
