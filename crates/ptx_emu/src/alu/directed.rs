//! Sums, products, quotients and roots rounded in any direction, of f64 and f32: exact in integers, then rounded once.

use crate::float::Round;

/// A binary format by its fraction and exponent bits.
#[derive(Debug, Clone, Copy)]
struct Format {
    fraction: u32,
    exponent: u32,
}

const F64: Format = Format { fraction: 52, exponent: 11 };
const F32: Format = Format { fraction: 23, exponent: 8 };

/// `(-1)^negative * digits * 2^exponent`, and a little more where `more` says so.
#[derive(Debug, Clone, Copy)]
struct Exact {
    negative: bool,
    digits: u128,
    exponent: i32,
    more: bool,
}

/// The canonical NaN of f64 results.
const NAN: f64 = f64::from_bits(0x7fff_ffff_ffff_ffff);

/// On bits: the compiler may take one NaN of arithmetic for another.
fn canonical(x: f64) -> f64 {
    let bits = x.to_bits();
    f64::from_bits(if bits << 1 > 0x7ff << 53 { NAN.to_bits() } else { bits })
}

fn parts(x: f64) -> Exact {
    let bits = x.to_bits();
    let (e, m) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
    let (digits, exponent) = if e == 0 { (m, -1074) } else { (m | 1 << 52, e - 1075) };
    Exact { negative: x.is_sign_negative(), digits: digits as u128, exponent, more: false }
}

/// Rounds to a number of the format, which every f64 holds.
fn round(x: Exact, to: Format, mode: Round) -> f64 {
    let (precision, bias) = (to.fraction as i32 + 1, (1 << (to.exponent - 1)) - 1);
    let least = 1 - bias - to.fraction as i32;
    let length = 128 - x.digits.leading_zeros() as i32;
    // The exponent of the last place kept: subnormals have fewer.
    let last = (x.exponent + length - precision).max(least);
    let cut = last - x.exponent;
    let (mut kept, half, rest) = if cut <= 0 {
        (x.digits << -cut, false, x.more)
    } else if cut > 127 {
        (0, false, x.digits != 0 || x.more)
    } else {
        let below = x.digits & ((1 << cut) - 1);
        (x.digits >> cut, below >> (cut - 1) & 1 == 1, below & ((1 << (cut - 1)) - 1) != 0 || x.more)
    };
    let up = match mode {
        Round::NearestEven => half && (rest || kept & 1 == 1),
        Round::NearestAway => half,
        Round::Zero => false,
        Round::Down => x.negative && (half || rest),
        Round::Up => !x.negative && (half || rest),
    };
    kept += up as u128;
    // The largest finite number is all digits at this exponent.
    let (top, most) = (bias - to.fraction as i32, (1u128 << precision) - 1);
    let over = last > top || (last == top && kept > most) || (last + 1 == top && kept > 2 * most + 1);
    let magnitude = if over {
        let infinite = match mode {
            Round::NearestEven | Round::NearestAway => true,
            Round::Zero => false,
            Round::Down => x.negative,
            Round::Up => !x.negative,
        };
        if infinite { f64::INFINITY } else { scaled(most as u64, top) }
    } else {
        scaled(kept as u64, last)
    };
    if x.negative { -magnitude } else { magnitude }
}

/// `digits * 2^exponent`, which f64 holds.
fn scaled(digits: u64, exponent: i32) -> f64 {
    let power = |e: i32| f64::from_bits(if e >= -1022 { ((e + 1023) as u64) << 52 } else { 1 << (e + 1074) });
    // Digits have up to 54 bits of which the last is zero then; a power of two above 2^970 would overflow on the way.
    if exponent < -1022 { digits as f64 * power(exponent + 60) * power(-60) } else { digits as f64 * power(exponent) }
}

/// What is left of digits that are shifted to the right, and whether anything was lost.
fn shifted(digits: u128, by: i32) -> (u128, bool) {
    if by > 127 { (0, digits != 0) } else { (digits >> by, digits & ((1 << by) - 1) != 0) }
}

fn add(a: Exact, b: Exact, mode: Round) -> Exact {
    if a.digits == 0 || b.digits == 0 {
        let zero = a.digits == 0 && b.digits == 0;
        let sign = if a.negative == b.negative { a.negative } else { mode == Round::Down };
        let x = if a.digits == 0 { b } else { a };
        return if zero { Exact { negative: sign, ..a } } else { x };
    }
    // The larger one gets two bits of room above it, and all others below.
    let top = |x: &Exact| x.exponent + 128 - x.digits.leading_zeros() as i32;
    let (a, b) = if top(&a) >= top(&b) { (a, b) } else { (b, a) };
    let room = a.digits.leading_zeros() as i32 - 2;
    let (x, exponent) = (a.digits << room, a.exponent - room);
    let down = exponent - b.exponent;
    let (y, lost) = if down >= 0 { shifted(b.digits, down) } else { (b.digits << -down, false) };
    if a.negative == b.negative {
        return Exact { negative: a.negative, digits: x + y, exponent, more: lost };
    }
    // What was lost makes the difference smaller: one less, and a little more than that.
    let (mut digits, mut negative) = if x >= y { (x - y, a.negative) } else { (y - x, b.negative) };
    if lost {
        digits -= 1;
    }
    if digits == 0 && !lost {
        negative = mode == Round::Down;
    }
    Exact { negative, digits, exponent, more: lost }
}

fn fused(a: f64, b: f64, c: f64, to: Format, mode: Round) -> f64 {
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        let v = a.mul_add(b, c);
        return canonical(v);
    }
    let (x, y) = (parts(a), parts(b));
    let product = Exact {
        negative: x.negative != y.negative,
        digits: x.digits * y.digits,
        exponent: x.exponent + y.exponent,
        more: false,
    };
    round(add(product, parts(c), mode), to, mode)
}

fn product(a: f64, b: f64, to: Format, mode: Round) -> f64 {
    if !(a.is_finite() && b.is_finite()) {
        let v = a * b;
        return canonical(v);
    }
    let (x, y) = (parts(a), parts(b));
    let negative = x.negative != y.negative;
    round(Exact { negative, digits: x.digits * y.digits, exponent: x.exponent + y.exponent, more: false }, to, mode)
}

fn quotient(a: f64, b: f64, to: Format, mode: Round) -> f64 {
    if !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        let v = a / b;
        return canonical(v);
    }
    let (x, y) = (parts(a), parts(b));
    let room = x.digits.leading_zeros() as i32;
    let digits = x.digits << room;
    let exact = Exact {
        negative: x.negative != y.negative,
        digits: digits / y.digits,
        exponent: x.exponent - room - y.exponent,
        more: !digits.is_multiple_of(y.digits),
    };
    round(exact, to, mode)
}

fn root(a: f64, to: Format, mode: Round) -> f64 {
    if !a.is_finite() || a <= 0.0 {
        let v = a.sqrt();
        return canonical(v);
    }
    let x = parts(a);
    // An even exponent.
    let room = x.digits.leading_zeros() as i32;
    let room = room - ((x.exponent - room) & 1);
    let digits = x.digits << room;
    let root = digits.isqrt();
    let exponent = (x.exponent - room) / 2;
    round(Exact { negative: false, digits: root, exponent, more: root * root != digits }, to, mode)
}

/// An operation of f64 in a rounding.
pub(super) fn double(f: crate::ir::Alu, mode: Round, a: f64, b: f64, c: f64) -> f64 {
    of(f, F64, mode, a, b, c)
}

/// An operation of f32 in a rounding.
pub(super) fn single(f: crate::ir::Alu, mode: Round, a: f32, b: f32, c: f32) -> f32 {
    of(f, F32, mode, a as f64, b as f64, c as f64) as f32
}

fn of(f: crate::ir::Alu, to: Format, mode: Round, a: f64, b: f64, c: f64) -> f64 {
    use crate::ir::Alu::*;
    match f {
        Add => fused(a, 1.0, b, to, mode),
        Sub => fused(a, 1.0, -b, to, mode),
        FMul => product(a, b, to, mode),
        Fma => fused(a, b, c, to, mode),
        Div => quotient(a, b, to, mode),
        Rcp => quotient(1.0, a, to, mode),
        // Lowering lets no other operation have a rounding.
        _ => root(a, to, mode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Alu;

    /// Numbers of all sizes, and pairs that nearly cancel.
    fn numbers() -> Vec<f64> {
        let mut v = vec![
            0.0,
            -0.0,
            1.0,
            -1.0,
            1.5,
            3.0,
            f64::MAX,
            f64::MIN_POSITIVE,
            5e-324,
            -5e-324,
            1e-310,
            f64::INFINITY,
            f64::NAN,
        ];
        let mut s = 0x9e37_79b9_7f4a_7c15u64;
        for i in 0..400 {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            // Any bits; near one; small integers, whose results are often exact.
            v.push(match i % 4 {
                0 => f64::from_bits(s),
                1 => f64::from_bits(s & 0x801f_ffff_ffff_ffff | 0x3fe0_0000_0000_0000),
                2 => f64::from_bits(s & 0x800f_ffff_ffff_ffff | 0x0010_0000_0000_0000 | (s & 0x3f) << 53),
                _ => (s % 2001) as f64 - 1000.0,
            });
        }
        v
    }

    fn bits(x: f64) -> u64 {
        canonical(x).to_bits()
    }

    /// To nearest it is what the processor computes, in f64 and in f32.
    #[test]
    fn to_nearest_is_what_the_processor_has() {
        let v = numbers();
        for (i, &a) in v.iter().enumerate() {
            for (k, &b) in v.iter().enumerate().skip(i % 7).step_by(7) {
                let c = v[(i * 31 + k * 17) % v.len()];
                let near = |f| bits(double(f, Round::NearestEven, a, b, c));
                assert_eq!(near(Alu::Add), bits(a + b), "{a:e} + {b:e}");
                assert_eq!(near(Alu::Sub), bits(a - b), "{a:e} - {b:e}");
                assert_eq!(near(Alu::FMul), bits(a * b), "{a:e} * {b:e}");
                assert_eq!(near(Alu::Div), bits(a / b), "{a:e} / {b:e}");
                assert_eq!(near(Alu::Fma), bits(a.mul_add(b, c)), "{a:e} * {b:e} + {c:e}");
                assert_eq!(near(Alu::Fma), bits(a.mul_add(b, c)));
                let (x, y) = (a as f32, b as f32);
                let near = |f| single(f, Round::NearestEven, x, y, 0.0);
                for (got, want) in [(near(Alu::Add), x + y), (near(Alu::FMul), x * y), (near(Alu::Div), x / y)] {
                    assert!(
                        got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                        "{x:e}, {y:e}: {got:e}, {want:e}"
                    );
                }
            }
            // A difference that cancels but for the error of a product.
            let b = 1.0 + f64::EPSILON;
            let c = -(a * b);
            assert_eq!(bits(double(Alu::Fma, Round::NearestEven, a, b, c)), bits(a.mul_add(b, c)), "{a:e}");
            assert_eq!(bits(double(Alu::Sqrt, Round::NearestEven, a, 0.0, 0.0)), bits(a.sqrt()), "{a:e}");
            assert_eq!(bits(double(Alu::Rcp, Round::NearestEven, a, 0.0, 0.0)), bits(1.0 / a), "{a:e}");
            let x = a as f32;
            let (root, want) = (single(Alu::Sqrt, Round::NearestEven, x, 0.0, 0.0), x.sqrt());
            assert!(root.to_bits() == want.to_bits() || (root.is_nan() && want.is_nan()), "{x:e}");
        }
    }

    /// Down and up bracket the result; where it is exact, which the error of the rounded one tells, they are equal, else neighbours.
    #[test]
    fn directions_bracket_the_result() {
        let v = numbers();
        let mut exact = 0;
        for (i, &a) in v.iter().enumerate() {
            for &b in v.iter().skip(i % 5).step_by(5) {
                for f in [Alu::Add, Alu::FMul, Alu::Div, Alu::Sqrt] {
                    let [near, down, up, zero] =
                        [Round::NearestEven, Round::Down, Round::Up, Round::Zero].map(|m| double(f, m, a, b, 0.0));
                    if near.is_nan() || down == up && !near.is_finite() {
                        continue;
                    }
                    assert!(down <= near && near <= up, "{f:?} of {a:e}, {b:e}: {down:e}, {near:e}, {up:e}");
                    let toward = if down >= 0.0 && up > 0.0 || up == 0.0 && down == 0.0 { down } else { up };
                    assert!(zero == toward, "{f:?} of {a:e}, {b:e}: {zero:e}");
                    assert!(down == up || down.next_up() == up, "{f:?} of {a:e}, {b:e}: {down:e}, {up:e}");
                    // The errors of sums are numbers, and those of the others where nothing is subnormal.
                    let plain = |x: f64| x.abs() > 1e-140 && x.abs() < 1e140;
                    if !(near.is_finite() && plain(near) && plain(a) && (plain(b) || f == Alu::Sqrt)) {
                        continue;
                    }
                    let error = match f {
                        Alu::Add => {
                            let part = near - a;
                            (a - (near - part)) + (b - part)
                        }
                        Alu::FMul => a.mul_add(b, -near),
                        Alu::Div => (-near).mul_add(b, a) * b.signum(),
                        _ => (-near).mul_add(near, a),
                    };
                    exact += (error == 0.0) as u32;
                    let want = match error {
                        0.0 => (near, near),
                        e if e > 0.0 => (near, near.next_up()),
                        _ => (near.next_down(), near),
                    };
                    assert_eq!((down, up), want, "{f:?} of {a:e}, {b:e}");
                }
            }
        }
        assert!(exact > 1000, "{exact}");
    }

    #[test]
    fn overflow_and_signs_of_zero_follow_the_direction() {
        let all = [Round::NearestEven, Round::Zero, Round::Down, Round::Up];
        let of = |f, a: f64, b: f64| all.map(|m| double(f, m, a, b, 0.0));
        assert_eq!(of(Alu::Add, f64::MAX, f64::MAX), [f64::INFINITY, f64::MAX, f64::MAX, f64::INFINITY]);
        assert_eq!(of(Alu::FMul, -f64::MAX, 2.0), [f64::NEG_INFINITY, -f64::MAX, f64::NEG_INFINITY, -f64::MAX]);
        assert_eq!(of(Alu::FMul, 5e-324, 0.25), [0.0, 0.0, 0.0, 5e-324]);
        assert_eq!(of(Alu::FMul, 5e-324, -0.25).map(f64::to_bits), [-0.0, -0.0, -5e-324, -0.0].map(f64::to_bits));
        assert_eq!(of(Alu::Add, 1.0, -1.0).map(f64::to_bits), [0.0, 0.0, -0.0, 0.0].map(f64::to_bits));
        assert_eq!(of(Alu::Add, 1.0, 1e-300), [1.0, 1.0, 1.0, 1.0f64.next_up()]);
        assert_eq!(of(Alu::Add, 1.0, -1e-300), [1.0, 1.0f64.next_down(), 1.0f64.next_down(), 1.0]);
        assert_eq!(of(Alu::Div, 1.0, 0.0), [f64::INFINITY; 4]);
        let of = |f, a: f32, b: f32| all.map(|m| single(f, m, a, b, 0.0));
        assert_eq!(of(Alu::Div, f32::MAX, 0.5), [f32::INFINITY, f32::MAX, f32::MAX, f32::INFINITY]);
        assert_eq!(
            of(Alu::Rcp, 3.0, 0.0),
            [1.0 / 3.0, (1.0f32 / 3.0).next_down(), (1.0f32 / 3.0).next_down(), 1.0 / 3.0]
        );
        assert_eq!(of(Alu::Div, 1e-45, 2.0), [0.0, 0.0, 0.0, 1e-45]);
    }
}
