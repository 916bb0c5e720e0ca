//! Arithmetic, predicates and conversions.

use super::super::{Case, Compare, Input, Output};
use super::{case, hopper};

pub(super) fn arithmetic(v: &mut Vec<Case>) {
    use Input::*;
    let b32 = |family, body: &str, input| case(family, body, input, Output::B32);
    let b64 = |family, body: &str, input| case(family, body, input, Output::B64);
    let b16 = |family, body: &str, input| case(family, body, input, Output::B16);
    for body in ["mul24.lo.u32 %d0, %a, %b;", "mad24.lo.s32 %d0, %a, %b, %c;", "mad.hi.s32 %d0, %a, %b, %c;"] {
        v.push(b32("integer 32", body, Bits));
    }
    for body in ["sad.u32 %d0, %a, %b, %c;", "min.u32 %d0, %a, %b;", "max.s32 %d0, %a, %b;", "div.s32 %d0, %a, 7;"] {
        v.push(b32("integer 32", body, Bits));
    }
    for body in [
        "sub.s64 %ld, %la, %lb;",
        "neg.s64 %ld, %la;",
        "abs.s64 %ld, %la;",
        "max.u64 %ld, %la, %lb;",
        "mad.hi.u64 %ld, %la, %lb, %lc;",
        "mad.wide.s32 %ld, %a, %b, %lc;",
        "or.b64 %lb, %lb, 1;\ndiv.u64 %ld, %la, %lb;",
        "or.b64 %lb, %lb, 1;\nrem.s64 %ld, %la, %lb;",
        "sad.s64 %ld, %la, %lb, %lc;",
        "shl.b64 %ld, %la, %b;",
        "shr.s64 %ld, %la, %b;",
        "not.b64 %ld, %la;",
        "cnot.b64 %ld, %la;",
    ] {
        v.push(b64("integer 64", body, Bits));
    }
    for body in [
        "sub.s16 %hd, %ha, %hb;",
        "mul.hi.u16 %hd, %ha, %hb;",
        "mul.hi.s16 %hd, %ha, %hb;",
        "mad.lo.u16 %hd, %ha, %hb, %hc;",
        "max.s16 %hd, %ha, %hb;",
        "min.u16 %hd, %ha, %hb;",
        "neg.s16 %hd, %ha;",
        "abs.s16 %hd, %ha;",
        "or.b16 %hb, %hb, 1;\ndiv.s16 %hd, %ha, %hb;",
        "or.b16 %hb, %hb, 1;\nrem.u16 %hd, %ha, %hb;",
        "and.b16 %hd, %ha, %hb;",
        "not.b16 %hd, %ha;",
        "shl.b16 %hd, %ha, %b;",
        "shr.u16 %hd, %ha, %b;",
        "selp.b16 %hd, %ha, %hb, %q1;",
    ] {
        v.push(b16("integer 16", body, Bits));
    }
    v.push(b32("integer 16", "mul.wide.u16 %d0, %ha, %hb;", Bits));
    v.push(b32("integer 16", "mad.wide.s16 %d0, %ha, %hb, %c;", Bits));
    v.push(case("carry", "add.cc.s64 %ld, %la, %lb;\naddc.s64 %ld, %ld, %lc;", Bits, Output::B64));
    v.push(case("carry", "mad.hi.cc.u32 %d0, %a, %b, %c;\naddc.u32 %d1, %a, %b;", Bits, Output::Quad));
    for body in [
        "or.b32 %d0, %a, %b;",
        "shr.u32 %d0, %a, %b;",
        "popc.b32 %d0, %a;",
        "clz.b64 %d0, %la;",
        "brev.b32 %d0, %a;",
        "bfind.u32 %d0, %a;",
        "bfind.s64 %d0, %la;",
        "bfind.shiftamt.s32 %d0, %a;",
        "bmsk.clamp.b32 %d0, %a, %b;",
        "bmsk.wrap.b32 %d0, %a, %b;",
        "prmt.b32.rc8 %d0, %a, %b, %c;",
        "shf.l.clamp.b32 %d0, %a, %b, %c;",
        "shf.r.wrap.b32 %d0, %a, %b, %c;",
        "dp4a.u32.u32 %d0, %a, %b, %c;",
        "dp4a.s32.u32 %d0, %a, %b, %c;",
        "dp2a.hi.s32.s32 %d0, %a, %b, %c;",
        "dp2a.lo.u32.u32 %d0, %a, %b, %c;",
        "dp2a.hi.u32.s32 %d0, %a, %b, %c;",
    ] {
        v.push(b32("bits", body, Bits));
    }
    v.push(b64("bits", "and.b32 %b, %b, 63;\nand.b32 %c, %c, 63;\nbfe.u64 %ld, %la, %b, %c;", Bits));
    for table in [0x00u32, 0x1b, 0x2d, 0x80, 0xe8, 0xfe, 0xff] {
        v.push(b32("bits", &format!("lop3.b32 %d0, %a, %b, %c, {table:#x};"), Bits));
    }
    for (a, b, table) in [("lt", "and", "s32"), ("hi", "or", "u32"), ("ne", "xor", "b32"), ("ls", "and", "u32")] {
        let body =
            format!("setp.{a}.{b}.{table} %q|%q1, %a, %b, !%q1;\nselp.b32 %d0, 2, 0, %q1;\n@%q add.s32 %d0, %d0, 1;");
        v.push(b32("predicates", &body, Bits));
    }
    let body = "and.pred %q, %q1, %q;\nor.pred %q, %q, %q1;\nxor.pred %q, %q, %q1;\nnot.pred %q, %q;";
    v.push(case("predicates", body, Bits, Output::Pred));
    for ty in ["s16", "u16"] {
        v.push(case("predicates", format!("setp.le.{ty} %q, %ha, %hb;"), Bits, Output::Pred));
    }
    for ty in ["s64", "u64"] {
        v.push(case("predicates", format!("setp.gt.{ty} %q, %la, %lb;"), Bits, Output::Pred));
    }
    for body in [
        "add.rp.f32 %d0, %a, %b;",
        "sub.rz.f32 %d0, %a, %b;",
        "mul.rz.f32 %d0, %a, %b;",
        "mul.rm.f32 %d0, %a, %b;",
        "fma.rp.f32 %d0, %a, %b, %c;",
        "fma.rn.sat.f32 %d0, %a, %b, %c;",
        "fma.rz.ftz.f32 %d0, %a, %b, %c;",
        "mul.rn.sat.f32 %d0, %a, %b;",
        "sub.rn.ftz.sat.f32 %d0, %a, %b;",
        "min.NaN.f32 %d0, %a, %b;",
        "min.ftz.f32 %d0, %a, %b;",
        "neg.f32 %d0, %a;",
        "neg.ftz.f32 %d0, %a;",
        "abs.f32 %d0, %a;",
        "abs.ftz.f32 %d0, %a;",
        "div.rn.ftz.f32 %d0, %a, %b;",
        "rcp.rn.ftz.f32 %d0, %a;",
        "sqrt.rn.ftz.f32 %d0, %a;",
        "set.le.ftz.f32.f32 %d0, %a, %b;",
        "slct.f32.f32 %d0, %a, %b, %c;",
        "slct.ftz.f32.f32 %d0, %a, %b, %c;",
        "selp.f32 %d0, %a, %b, %q1;",
    ] {
        v.push(b32("f32", body, F32));
    }
    for cmp in ["eq", "ne", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "nan"] {
        v.push(case("f32", format!("setp.{cmp}.f32 %q, %a, %b;"), F32, Output::Pred));
    }
    v.push(case("f32", "setp.eq.ftz.f32 %q, %a, %b;", F32, Output::Pred));
    for test in ["finite", "infinite", "number", "notanumber", "normal"] {
        v.push(case("f32", format!("testp.{test}.f32 %q, %a;"), F32, Output::Pred));
    }
    for body in [
        "sub.rn.f64 %ld, %la, %lb;",
        "div.rn.f64 %ld, %la, %lb;",
        "rcp.rn.f64 %ld, %la;",
        "abs.f64 %lb, %la;\nsqrt.rn.f64 %ld, %lb;",
        "min.f64 %ld, %la, %lb;",
        "max.f64 %ld, %la, %lb;",
        "neg.f64 %ld, %la;",
        "copysign.f64 %ld, %la, %lb;",
    ] {
        v.push(b64("f64", body, F64));
    }
    v.push(case("f64", "testp.normal.f64 %q, %la;", F64, Output::Pred));
    for (family, ty, input) in [("f16", "f16", F16), ("bf16", "bf16", Bf16)] {
        let packed = format!("{ty}x2");
        let on = |body: String, sm90| {
            let c = b32(family, &body, input);
            if sm90 { hopper(c) } else { c }
        };
        for op in ["min", "max", "min.NaN", "max.NaN"] {
            v.push(on(format!("{op}.{packed} %d0, %a, %b;"), false));
        }
        for op in ["neg", "abs"] {
            v.push(on(format!("{op}.{packed} %d0, %a;"), false));
        }
        v.push(on(format!("sub.rn.{packed} %d0, %a, %b;"), ty == "bf16"));
        v.push(on(format!("fma.rn.relu.{packed} %d0, %a, %b, %c;"), false));
        for (op, n) in [("min", 2), ("max", 2), ("neg", 1), ("abs", 1), ("fma.rn", 3)] {
            let args = ["%ha", "%hb", "%hc"][..n].join(", ");
            v.push(b16(family, &format!("{op}.{ty} %hd, {args};"), input));
        }
        for cmp in ["lt", "geu", "nan"] {
            let c = case(family, format!("setp.{cmp}.{ty} %q, %ha, %hb;"), input, Output::Pred);
            v.push(if ty == "bf16" { hopper(c) } else { c });
        }
    }
    for body in [
        "add.rn.sat.f16x2 %d0, %a, %b;",
        "mul.rn.ftz.f16x2 %d0, %a, %b;",
        "fma.rn.sat.f16x2 %d0, %a, %b, %c;",
        "fma.rn.ftz.f16x2 %d0, %a, %b, %c;",
    ] {
        v.push(b32("f16", body, F16));
    }
    for body in ["add.rn.bf16 %hd, %ha, %hb;", "sub.rn.bf16 %hd, %ha, %hb;", "mul.rn.bf16 %hd, %ha, %hb;"] {
        v.push(hopper(b16("bf16", body, Bf16)));
    }
    // Bounds of the PTX ISA: 2^-10.987 (tanh) and 2^-9.9 (ex2) relative for f16, one unit more for bf16.
    for (body, input, bf16, sm90, units) in [
        ("ex2.approx.f16x2 %d0, %a;", ModerateF16, false, false, 2),
        ("tanh.approx.f16x2 %d0, %a;", ModerateF16, false, false, 2),
        ("ex2.approx.ftz.bf16x2 %d0, %a;", ModerateBf16, true, true, 2),
        ("tanh.approx.bf16x2 %d0, %a;", ModerateBf16, true, true, 2),
    ] {
        let c = Case { compare: Compare::HalfUlps { units, bf16 }, ..b32("approximate", body, input) };
        v.push(if sm90 { hopper(c) } else { c });
    }
    for (body, compare) in [
        ("rsqrt.approx.ftz.f32 %d0, %a;", Compare::Ulps(3)),
        ("sqrt.approx.ftz.f32 %d0, %a;", Compare::Ulps(2)),
        ("lg2.approx.ftz.f32 %d0, %a;", Compare::Lg2),
    ] {
        v.push(Case { compare, ..b32("approximate", body, if body.starts_with("lg2") { Moderate } else { F32 }) });
    }
}

/// Name, register that holds it, register for the result, bits.
const INTEGERS: [(&str, &str, &str, u32); 8] = [
    ("u8", "%a", "%d0", 8),
    ("s8", "%a", "%d0", 8),
    ("u16", "%ha", "%hd", 16),
    ("s16", "%ha", "%hd", 16),
    ("u32", "%a", "%d0", 32),
    ("s32", "%a", "%d0", 32),
    ("u64", "%la", "%ld", 64),
    ("s64", "%la", "%ld", 64),
];

fn output_of(register: &str) -> Output {
    match register {
        "%hd" => Output::B16,
        "%ld" => Output::B64,
        _ => Output::B32,
    }
}

pub(super) fn conversions(v: &mut Vec<Case>) {
    const FLOATS: [(&str, &str, &str, Input); 3] =
        [("f16", "%ha", "%hd", Input::F16), ("f32", "%a", "%d0", Input::F32), ("f64", "%la", "%ld", Input::F64)];
    for (from, source, _, from_bits) in INTEGERS {
        for (to, _, d, to_bits) in INTEGERS {
            let signed = |name: &str| name.starts_with('s');
            // Where every value fits, `.sat` is not accepted.
            let fits = to_bits > from_bits && (signed(to) || !signed(from))
                || to_bits == from_bits && signed(to) == signed(from);
            for sat in &["", ".sat"][..2 - fits as usize] {
                let body = format!("cvt{sat}.{to}.{from} {d}, {source};");
                v.push(case("convert integer to integer", body, Input::Bits, output_of(d)));
            }
        }
        for (to, _, d, _) in FLOATS {
            for round in ["rn", "rz", "rm", "rp"] {
                let body = format!("cvt.{round}.{to}.{from} {d}, {source};");
                v.push(case("convert integer to float", body, Input::Bits, output_of(d)));
            }
        }
    }
    for (from, source, _, input) in FLOATS {
        for (to, _, d, bits) in INTEGERS {
            // Integers of 8 bits take the same road as those of 16.
            if bits == 8 {
                continue;
            }
            for round in ["rni", "rzi", "rmi", "rpi"] {
                let body = format!("cvt.{round}.{to}.{from} {d}, {source};");
                v.push(case("convert float to integer", body, input, output_of(d)));
            }
        }
        for (to, _, d, _) in FLOATS {
            let rounds: &[&str] = match (from, to) {
                ("f16", "f16") | ("f32", "f32") | ("f64", "f64") => &["rni", "rzi", "rmi", "rpi"],
                ("f32", "f16") => &["rn", "rz", "rm", "rp"],
                ("f64", _) => &["rn", "rz", "rm", "rp"],
                _ => &[""],
            };
            for round in rounds {
                let round = if round.is_empty() { String::new() } else { format!(".{round}") };
                let body = format!("cvt{round}.{to}.{from} {d}, {source};");
                v.push(case("convert float to float", body, input, output_of(d)));
            }
        }
    }
    let float = |body: &str, input, output| case("convert float to float", body, input, output);
    for (body, output) in [
        ("cvt.rz.bf16.f32 %hd, %a;", Output::B16),
        ("cvt.rn.relu.bf16.f32 %hd, %a;", Output::B16),
        ("cvt.rz.relu.f16.f32 %hd, %a;", Output::B16),
        ("cvt.rz.bf16x2.f32 %d0, %a, %b;", Output::B32),
        ("cvt.rz.f16x2.f32 %d0, %a, %b;", Output::B32),
        ("cvt.rn.ftz.f16.f32 %hd, %a;", Output::B16),
        ("cvt.rni.ftz.f32.f32 %d0, %a;", Output::B32),
        ("cvt.rzi.sat.f32.f32 %d0, %a;", Output::B32),
        ("cvt.rmi.ftz.u32.f32 %d0, %a;", Output::B32),
    ] {
        v.push(float(body, Input::F32, output));
    }
    for (body, input, output) in [
        ("cvt.rn.tf32.f32 %d0, %a;", Input::F32, Output::B32),
        ("cvt.rz.tf32.f32 %d0, %a;", Input::F32, Output::B32),
        ("cvt.rn.relu.tf32.f32 %d0, %a;", Input::F32, Output::B32),
        ("cvt.rn.satfinite.relu.e4m3x2.f32 %hd, %a, %b;", Input::F32, Output::B16),
        ("cvt.rn.satfinite.e4m3x2.f16x2 %hd, %a;", Input::F16, Output::B16),
        ("cvt.rn.satfinite.e5m2x2.f16x2 %hd, %a;", Input::F16, Output::B16),
        ("cvt.f32.bf16 %d0, %ha;", Input::Bf16, Output::B32),
        ("cvt.f64.bf16 %ld, %ha;", Input::Bf16, Output::B64),
        ("cvt.rn.bf16.s32 %hd, %a;", Input::Bits, Output::B16),
        ("cvt.rz.bf16.u16 %hd, %ha;", Input::Bits, Output::B16),
        ("cvt.rzi.s32.bf16 %d0, %ha;", Input::Bf16, Output::B32),
        ("cvt.rni.u16.bf16 %hd, %ha;", Input::Bf16, Output::B16),
    ] {
        v.push(hopper(float(body, input, output)));
    }
}
