//! Instructions that our own kernels have not, and other people's have: each with its definition.

use super::super::{Case, Input, Output};
use super::{case, hopper};

type Reference = fn(u64, u64, u64) -> u64;

pub(super) fn rare(v: &mut Vec<Case>) {
    let mut add = |family, input, output, body: &str, reference: Reference| {
        v.push(Case { reference: Some(reference), ..case(family, body, input, output) });
    };
    directed(&mut add);
    sets(&mut add);
    signs(&mut add);
    bits(&mut add);
    packed(v);
}

type Add<'a> = dyn FnMut(&'static str, Input, Output, &str, Reference) + 'a;

/// Numbers between one half and two, of any sign, whose errors are numbers.
const PLAIN: &str = "and.b64 %la, %la, 0x801fffffffffffff;\nor.b64 %la, %la, 0x3fe0000000000000;\nand.b64 %lb, %lb, 0x801fffffffffffff;\n\
                     or.b64 %lb, %lb, 0x3fe0000000000000;\nand.b64 %lc, %lc, 0x801fffffffffffff;\nor.b64 %lc, %lc, 0x3fe0000000000000;\n";

fn plain(x: u64) -> f64 {
    f64::from_bits(x & 0x801f_ffff_ffff_ffff | 0x3fe0_0000_0000_0000)
}

/// Which way a result is rounded.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Zero,
    Down,
    Up,
}

/// The rounded number next to `near`, whose distance from the true one has the sign of `error`.
fn toward(way: Way, near: f64, error: f64) -> u64 {
    let down = way == Way::Down || way == Way::Zero && near > 0.0;
    let v = match error {
        0.0 => near,
        e if e > 0.0 => {
            if down {
                near
            } else {
                near.next_up()
            }
        }
        _ if down => near.next_down(),
        _ => near,
    };
    // A difference that is zero is -0 when it is rounded down.
    (if v == 0.0 && error == 0.0 && way == Way::Down { -0.0 } else { v }).to_bits()
}

/// Sum and error (Knuth's two-sum).
fn sum(a: f64, b: f64) -> (f64, f64) {
    let near = a + b;
    let part = near - a;
    (near, (a - (near - part)) + (b - part))
}

fn add64(way: Way, a: f64, b: f64) -> u64 {
    let (near, error) = sum(a, b);
    toward(way, near, error)
}

fn mul64(way: Way, a: f64, b: f64) -> u64 {
    toward(way, a * b, a.mul_add(b, -(a * b)))
}

/// The error of the rounded one is that of the product on top of that of the sum, all of which are numbers here.
fn fma64(way: Way, a: f64, b: f64, c: f64) -> u64 {
    let near = a.mul_add(b, c);
    let (high, low) = (a * b, a.mul_add(b, -(a * b)));
    let (first, rest) = sum(high, c);
    let (second, third) = sum(low, rest);
    // near - first is exact, for the two are close or equal.
    let left = first - near;
    let (fourth, fifth) = sum(left, second);
    let error = if fourth != 0.0 { fourth } else { fifth + third };
    toward(way, near, if fourth != 0.0 { error + (fifth + third) } else { error })
}

fn div64(way: Way, a: f64, b: f64) -> u64 {
    toward(way, a / b, (-(a / b)).mul_add(b, a) * b.signum())
}

fn sqrt64(way: Way, a: f64) -> u64 {
    let near = a.abs().sqrt();
    toward(way, near, (-near).mul_add(near, a.abs()))
}

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

/// An f32 from the f64 that is nearest to the true result: of quotients and roots of f32 it is none of them but where it is exact.
fn single(way: Way, x: f64) -> u64 {
    if x.is_nan() {
        return 0x7fff_ffff;
    }
    let near = x as f32;
    let down = way == Way::Down || way == Way::Zero && x > 0.0;
    let v = match (near as f64).partial_cmp(&x).expect("numbers") {
        std::cmp::Ordering::Less if !down => near.next_up(),
        std::cmp::Ordering::Greater if down => near.next_down(),
        _ => near,
    };
    // Zero keeps the sign of what underflowed to it.
    (if v == 0.0 { 0f32.copysign(x as f32) } else { v }).to_bits() as u64
}

fn directed(add: &mut Add<'_>) {
    use Way::*;
    let forms: [(&str, Reference); 21] = [
        ("add.rz.f64 %ld, %la, %lb;", |a, b, _| add64(Zero, plain(a), plain(b))),
        ("add.rm.f64 %ld, %la, %lb;", |a, b, _| add64(Down, plain(a), plain(b))),
        ("add.rp.f64 %ld, %la, %lb;", |a, b, _| add64(Up, plain(a), plain(b))),
        ("sub.rz.f64 %ld, %la, %lb;", |a, b, _| add64(Zero, plain(a), -plain(b))),
        ("sub.rm.f64 %ld, %la, %lb;", |a, b, _| add64(Down, plain(a), -plain(b))),
        ("sub.rp.f64 %ld, %la, %lb;", |a, b, _| add64(Up, plain(a), -plain(b))),
        ("mul.rz.f64 %ld, %la, %lb;", |a, b, _| mul64(Zero, plain(a), plain(b))),
        ("mul.rm.f64 %ld, %la, %lb;", |a, b, _| mul64(Down, plain(a), plain(b))),
        ("mul.rp.f64 %ld, %la, %lb;", |a, b, _| mul64(Up, plain(a), plain(b))),
        ("fma.rz.f64 %ld, %la, %lb, %lc;", |a, b, c| fma64(Zero, plain(a), plain(b), plain(c))),
        ("fma.rm.f64 %ld, %la, %lb, %lc;", |a, b, c| fma64(Down, plain(a), plain(b), plain(c))),
        ("fma.rp.f64 %ld, %la, %lb, %lc;", |a, b, c| fma64(Up, plain(a), plain(b), plain(c))),
        ("div.rz.f64 %ld, %la, %lb;", |a, b, _| div64(Zero, plain(a), plain(b))),
        ("div.rm.f64 %ld, %la, %lb;", |a, b, _| div64(Down, plain(a), plain(b))),
        ("div.rp.f64 %ld, %la, %lb;", |a, b, _| div64(Up, plain(a), plain(b))),
        ("rcp.rz.f64 %ld, %la;", |a, _, _| div64(Zero, 1.0, plain(a))),
        ("rcp.rm.f64 %ld, %la;", |a, _, _| div64(Down, 1.0, plain(a))),
        ("rcp.rp.f64 %ld, %la;", |a, _, _| div64(Up, 1.0, plain(a))),
        ("abs.f64 %la, %la;\nsqrt.rz.f64 %ld, %la;", |a, _, _| sqrt64(Zero, plain(a))),
        ("abs.f64 %la, %la;\nsqrt.rm.f64 %ld, %la;", |a, _, _| sqrt64(Down, plain(a))),
        ("abs.f64 %la, %la;\nsqrt.rp.f64 %ld, %la;", |a, _, _| sqrt64(Up, plain(a))),
    ];
    for (body, reference) in forms {
        add("directed f64", Input::F64, Output::B64, &format!("{PLAIN}{body}"), reference);
    }
    let forms: [(&str, Reference); 10] = [
        ("div.rz.f32 %d0, %a, %b;", |a, b, _| single(Zero, f(a) as f64 / f(b) as f64)),
        ("div.rm.f32 %d0, %a, %b;", |a, b, _| single(Down, f(a) as f64 / f(b) as f64)),
        ("div.rp.f32 %d0, %a, %b;", |a, b, _| single(Up, f(a) as f64 / f(b) as f64)),
        ("rcp.rz.f32 %d0, %a;", |a, _, _| single(Zero, 1.0 / f(a) as f64)),
        ("rcp.rm.f32 %d0, %a;", |a, _, _| single(Down, 1.0 / f(a) as f64)),
        ("rcp.rp.f32 %d0, %a;", |a, _, _| single(Up, 1.0 / f(a) as f64)),
        ("sqrt.rz.f32 %d0, %a;", |a, _, _| single(Zero, (f(a) as f64).sqrt())),
        ("sqrt.rm.f32 %d0, %a;", |a, _, _| single(Down, (f(a) as f64).sqrt())),
        ("sqrt.rp.f32 %d0, %a;", |a, _, _| single(Up, (f(a) as f64).sqrt())),
        (
            "abs.f32 %a, %a;\nmin.f32 %a, %a, 0f7F7FFFFF;\nmax.f32 %a, %a, 0f00800000;\nsqrt.rp.ftz.f32 %d0, %a;",
            |a, _, _| {
                // NaN gives the other operand of a minimum.
                let x = if f(a).is_nan() { f32::MAX } else { f(a).abs().clamp(f32::MIN_POSITIVE, f32::MAX) };
                single(Up, (x as f64).sqrt())
            },
        ),
    ];
    for (body, reference) in forms {
        add("directed f32", Input::F32, Output::B32, body, reference);
    }
}

/// The value of a half, by its definition.
fn half(h: u64, bf16: bool) -> f64 {
    let (fraction, bias) = if bf16 { (7, 127) } else { (10, 15) };
    let (e, m) = ((h as i32 & 0x7fff) >> fraction, (h as i32 & ((1 << fraction) - 1)) as f64 / (1 << fraction) as f64);
    let top = 0x7fff >> fraction;
    let v = match e {
        0 => m * 2f64.powi(1 - bias),
        e if e == top => {
            if m == 0.0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        e => (1.0 + m) * 2f64.powi(e - bias),
    };
    if h >> 15 & 1 == 1 { -v } else { v }
}

fn both(a: u64, b: u64, bf16: bool, yes: u64, is: fn(f64, f64) -> bool) -> u64 {
    let one = |sh: u64| if is(half(a >> sh & 0xffff, bf16), half(b >> sh & 0xffff, bf16)) { yes << sh } else { 0 };
    one(0) | one(16)
}

fn sets(add: &mut Add<'_>) {
    let forms: [(&str, Input, Output, Reference); 12] = [
        ("set.lt.f16.f16 %hd, %ha, %hb;", Input::F16, Output::B16, |a, b, _| {
            if half(a & 0xffff, false) < half(b & 0xffff, false) { 0x3c00 } else { 0 }
        }),
        ("set.nan.f16.f16 %hd, %ha, %hb;", Input::F16, Output::B16, |a, b, _| {
            if half(a & 0xffff, false).is_nan() || half(b & 0xffff, false).is_nan() { 0x3c00 } else { 0 }
        }),
        ("set.geu.bf16.bf16 %hd, %ha, %hb;", Input::Bf16, Output::B16, |a, b, _| {
            if half(a & 0xffff, true) < half(b & 0xffff, true) { 0 } else { 0x3f80 }
        }),
        ("set.eq.u32.f16 %d0, %ha, %hb;", Input::F16, Output::B32, |a, b, _| {
            if half(a & 0xffff, false) == half(b & 0xffff, false) { 0xffff_ffff } else { 0 }
        }),
        ("set.gt.s16.f16 %hd, %ha, %hb;", Input::F16, Output::B16, |a, b, _| {
            if half(a & 0xffff, false) > half(b & 0xffff, false) { 0xffff } else { 0 }
        }),
        (
            "set.ne.f16.s32 %hd, %a, %b;",
            Input::Bits,
            Output::B16,
            |a, b, _| if a as u32 != b as u32 { 0x3c00 } else { 0 },
        ),
        ("set.lt.bf16.f32 %hd, %a, %b;", Input::F32, Output::B16, |a, b, _| if f(a) < f(b) { 0x3f80 } else { 0 }),
        ("set.lt.f16x2.f16x2 %d0, %a, %b;", Input::F16, Output::B32, |a, b, _| both(a, b, false, 0x3c00, |x, y| x < y)),
        ("set.equ.f16x2.f16x2 %d0, %a, %b;", Input::F16, Output::B32, |a, b, _| {
            both(a, b, false, 0x3c00, |x, y| x == y || x.is_nan() || y.is_nan())
        }),
        ("set.le.u32.f16x2 %d0, %a, %b;", Input::F16, Output::B32, |a, b, _| both(a, b, false, 0xffff, |x, y| x <= y)),
        ("set.gt.bf16x2.bf16x2 %d0, %a, %b;", Input::Bf16, Output::B32, |a, b, _| {
            both(a, b, true, 0x3f80, |x, y| x > y)
        }),
        ("setp.lt.u32 %q, %a, %b;\nset.ge.and.f16x2.f16x2 %d0, %a, %b, %q;", Input::F16, Output::B32, |a, b, _| {
            if (a as u32) < b as u32 { both(a, b, false, 0x3c00, |x, y| x >= y) } else { 0 }
        }),
    ];
    for (body, input, output, reference) in forms {
        add("set of halves", input, output, body, reference);
    }
}

fn xorsign(a: u64, b: u64, largest: bool) -> u64 {
    let (x, y) = (f(a), f(b));
    let v = match (x.is_nan(), y.is_nan()) {
        (true, true) => return 0x7fff_ffff,
        (true, _) => y.abs(),
        (_, true) => x.abs(),
        _ if (x.abs() > y.abs()) == largest => x.abs(),
        _ => y.abs(),
    };
    v.to_bits() as u64 | ((a ^ b) & 0x8000_0000)
}

fn signs(add: &mut Add<'_>) {
    add("signs", Input::F32, Output::B32, "min.xorsign.abs.f32 %d0, %a, %b;", |a, b, _| xorsign(a, b, false));
    add("signs", Input::F32, Output::B32, "max.xorsign.abs.f32 %d0, %a, %b;", |a, b, _| xorsign(a, b, true));
    add("signs", Input::F16, Output::B32, "min.xorsign.abs.f16x2 %d0, %a, %b;", |a, b, _| {
        let one = |sh: u32| {
            let (x, y) = (a >> sh & 0xffff, b >> sh & 0xffff);
            let (nx, ny) = (half(x, false).is_nan(), half(y, false).is_nan());
            // Magnitudes have the order of their bits.
            let m = match (nx, ny) {
                (true, true) => return 0x7fff << sh,
                (true, _) => y & 0x7fff,
                (_, true) => x & 0x7fff,
                _ => (x & 0x7fff).min(y & 0x7fff),
            };
            (m | ((x ^ y) & 0x8000)) << sh
        };
        one(0) | one(16)
    });
}

/// The sum of a word's bytes' distances from another's, and each of them.
fn distances(a: u64, b: u64, signed: bool) -> [u64; 4] {
    std::array::from_fn(|i| {
        let of = |v: u64| {
            let byte = (v >> (8 * i)) as u8;
            if signed { byte as i8 as i64 } else { byte as i64 }
        };
        (of(a) - of(b)).unsigned_abs()
    })
}

fn bytes(v: [u64; 4]) -> u64 {
    (0..4).fold(0, |w, i| w | (v[i] & 0xff) << (8 * i))
}

fn bits(add: &mut Add<'_>) {
    let b32 = Output::B32;
    let forms: [(&str, Output, Reference); 17] = [
        ("and.b32 %b, %b, 31;\nand.b32 %c, %c, 7;\nsub.s32 %c, %c, 3;\nfns.b32 %d0, %a, %b, %c;", b32, |a, b, c| {
            let (base, offset) = ((b & 31) as i32, (c & 7) as i32 - 3);
            let set = |p: i32| (0..32).contains(&p) && a as u32 >> p & 1 == 1;
            if offset == 0 {
                return if set(base) { base as u64 } else { 0xffff_ffff };
            }
            // Step by step, counting set bits.
            let (mut at, mut left) = (base, offset.abs());
            while (0..32).contains(&at) {
                left -= set(at) as i32;
                if left == 0 {
                    return at as u64;
                }
                at += offset.signum();
            }
            0xffff_ffff
        }),
        ("and.b32 %b, %b, 63;\nszext.clamp.u32 %d0, %a, %b;", b32, |a, b, _| {
            let (a, b) = (a & 0xffff_ffff, b & 63);
            if b > 31 { a } else { a % (1 << b) }
        }),
        ("and.b32 %b, %b, 63;\nszext.wrap.u32 %d0, %a, %b;", b32, |a, b, _| (a & 0xffff_ffff) % (1 << (b & 31))),
        ("and.b32 %b, %b, 63;\nszext.clamp.s32 %d0, %a, %b;", b32, |a, b, _| {
            let (a, b) = (a & 0xffff_ffff, b & 63);
            let low = a as i64 % (1i64 << b.min(32));
            let v = if b > 31 || b == 0 || low < 1 << (b - 1) { low } else { low - (1 << b) };
            v as u32 as u64
        }),
        ("and.b32 %b, %b, 63;\nszext.wrap.s32 %d0, %a, %b;", b32, |a, b, _| {
            let (a, b) = (a & 0xffff_ffff, b & 31);
            let low = a as i64 % (1i64 << b);
            let v = if b == 0 || low < 1 << (b - 1) { low } else { low - (1 << b) };
            v as u32 as u64
        }),
        ("cvt.pack.sat.u16.s32 %d0, %a, %b;", b32, |a, b, _| {
            let one = |x: u64| (x as i32).clamp(0, 65535) as u64;
            one(a) * 65536 + one(b)
        }),
        ("cvt.pack.sat.s16.s32 %d0, %a, %b;", b32, |a, b, _| {
            let one = |x: u64| (x as i32).clamp(-32768, 32767) as u16 as u64;
            one(a) * 65536 + one(b)
        }),
        ("cvt.pack.sat.u8.s32.b32 %d0, %a, %b, %c;", b32, |a, b, c| {
            let one = |x: u64| (x as i32).clamp(0, 255) as u64;
            (c & 0xffff) * 65536 + one(a) * 256 + one(b)
        }),
        ("cvt.pack.sat.s8.s32.b32 %d0, %a, %b, %c;", b32, |a, b, c| {
            let one = |x: u64| (x as i32).clamp(-128, 127) as u8 as u64;
            (c & 0xffff) * 65536 + one(a) * 256 + one(b)
        }),
        ("cvt.pack.sat.s4.s32.b32 %d0, %a, %b, %c;", b32, |a, b, c| {
            let one = |x: u64| (x as i32).clamp(-8, 7) as u64 & 15;
            (c & 0xff_ffff) * 256 + one(a) * 16 + one(b)
        }),
        ("cvt.pack.sat.u2.s32.b32 %d0, %a, %b, %c;", b32, |a, b, c| {
            let one = |x: u64| (x as i32).clamp(0, 3) as u64;
            (c & 0xfff_ffff) * 16 + one(a) * 4 + one(b)
        }),
        ("lop3.or.b32 %d0|%q, %a, %b, %c, 0x80, %q1;\nselp.u32 %d1, 1, 0, %q;", Output::Quad, |a, b, c| {
            let v = a & b & c & 0xffff_ffff;
            v | ((v != 0 || (a as u32) < b as u32) as u64) << 32
        }),
        ("lop3.and.b32 _|%q, %a, %b, %c, 0x16, !%q1;\nselp.u32 %d1, 1, 0, %q;", Output::Quad, |a, b, c| {
            let v = (a & !b & !c) | (!a & b & !c) | (!a & !b & c);
            ((v as u32 != 0 && (a as u32) >= b as u32) as u64) << 32
        }),
        ("vabsdiff4.u32.u32.u32 %d0, %a, %b, 0;", b32, |a, b, _| bytes(distances(a, b, false))),
        ("vabsdiff4.u32.s32.s32.sat %d0, %a, %b, 0;", b32, |a, b, _| bytes(distances(a, b, true))),
        ("vabsdiff4.s32.s32.s32.sat %d0, %a, %b, 0;", b32, |a, b, _| bytes(distances(a, b, true).map(|d| d.min(127)))),
        ("vabsdiff4.u32.u32.u32.add %d0, %a, %b, %c;", b32, |a, b, c| {
            (c as u32 as u64 + distances(a, b, false).iter().sum::<u64>()) & 0xffff_ffff
        }),
    ];
    for (body, output, reference) in forms {
        add("bits, rare", Input::Bits, output, body, reference);
    }
}

fn packed(v: &mut Vec<Case>) {
    fn halves(a: u64, b: u64, f: impl Fn(u16, u16) -> u16) -> u64 {
        f(a as u16, b as u16) as u64 | (f((a >> 16) as u16, (b >> 16) as u16) as u64) << 16
    }
    let forms: [(&str, Reference); 8] = [
        ("add.u16x2 %d0, %a, %b;", |a, b, _| halves(a, b, |x, y| (x as u32 + y as u32) as u16)),
        ("add.s16x2 %d0, %a, %b;", |a, b, _| halves(a, b, |x, y| (x as u32 + y as u32) as u16)),
        ("min.u16x2 %d0, %a, %b;", |a, b, _| halves(a, b, |x, y| if x < y { x } else { y })),
        ("max.u16x2 %d0, %a, %b;", |a, b, _| halves(a, b, |x, y| if x < y { y } else { x })),
        ("min.s16x2 %d0, %a, %b;", |a, b, _| halves(a, b, |x, y| if (x as i16) < y as i16 { x } else { y })),
        ("max.s16x2 %d0, %a, %b;", |a, b, _| halves(a, b, |x, y| if (x as i16) < y as i16 { y } else { x })),
        ("min.relu.s16x2 %d0, %a, %b;", |a, b, _| halves(a, b, |x, y| if (x | y) >> 15 == 1 { 0 } else { x.min(y) })),
        ("max.relu.s16x2 %d0, %a, %b;", |a, b, _| {
            halves(a, b, |x, y| [x, y].into_iter().filter(|v| v >> 15 == 0).max().unwrap_or(0))
        }),
    ];
    for (body, reference) in forms {
        v.push(hopper(Case { reference: Some(reference), ..case("packed integers", body, Input::Bits, Output::B32) }));
    }
}
