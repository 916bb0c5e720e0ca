//! Cases that come in families: every pair of types of a conversion, every operation of an atomic, every layout of a matrix
//! product. The bodies are made here; `mod.rs` holds those that are written out.

use std::fmt::Write as _;

use ptx_emu::{Swizzle, TensorDataType, TensorFill};

use super::{Case, Compare, Input, Output, Tensor};

/// All cases of this file.
pub(crate) fn all() -> Vec<Case> {
    let mut v = Vec::new();
    arithmetic(&mut v);
    conversions(&mut v);
    atomics(&mut v);
    warps(&mut v);
    memory(&mut v);
    matrices(&mut v);
    bulk_copies(&mut v);
    wgmmas(&mut v);
    v
}

/// A case that is compared bit for bit.
fn case(family: &'static str, body: impl Into<String>, input: Input, output: Output) -> Case {
    Case {
        family,
        body: body.into().into(),
        input,
        output,
        compare: Compare::Bits,
        sm: "sm_80",
        reference: None,
        tensor: None,
    }
}

fn hopper(case: Case) -> Case {
    Case { sm: "sm_90a", ..case }
}

fn arithmetic(v: &mut Vec<Case>) {
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

fn conversions(v: &mut Vec<Case>) {
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

/// Reads `%a` anew. For `red` of two halves in shared memory, ptxas 13 takes the upper half of an operand that was cut out of a
/// 64-bit register from that register's upper word.
fn own_register(operation: &str) -> &'static str {
    if operation.contains("16x2") { "ld.global.u32 %a, [%in];\n" } else { "" }
}

/// Puts the shared address of the thread's own 16 bytes into `%t1`, after storing `{%b, %c, %a, %b}` there.
const OWN_SHARED: &str = "mov.u32 %t0, %tid.x;\nshl.b32 %t1, %t0, 4;\nmov.u32 %t2, buffer;\nadd.s32 %t1, %t1, %t2;\n\
                          st.shared.v4.u32 [%t1], {%b, %c, %a, %b};\n";

fn atomics(v: &mut Vec<Case>) {
    // Each thread on its own 16 bytes: the old value and the new one.
    let operations: &[(&str, &str, Input)] = &[
        ("add.u32", "%a", Input::Bits),
        ("add.s32", "%a", Input::Bits),
        ("add.u64", "%la", Input::Bits),
        ("add.f32", "%a", Input::F32),
        ("min.u32", "%a", Input::Bits),
        ("min.s32", "%a", Input::Bits),
        ("max.u32", "%a", Input::Bits),
        ("max.s32", "%a", Input::Bits),
        ("min.s64", "%la", Input::Bits),
        ("max.u64", "%la", Input::Bits),
        ("and.b32", "%a", Input::Bits),
        ("or.b32", "%a", Input::Bits),
        ("xor.b32", "%a", Input::Bits),
        ("and.b64", "%la", Input::Bits),
        ("xor.b64", "%la", Input::Bits),
        ("inc.u32", "%a", Input::Bits),
        ("dec.u32", "%a", Input::Bits),
        ("add.noftz.f16", "%ha", Input::F16),
        ("add.noftz.f16x2", "%a", Input::F16),
        ("add.noftz.bf16", "%ha", Input::Bf16),
        ("add.noftz.bf16x2", "%a", Input::Bf16),
    ];
    for (operation, operand, input) in operations {
        let (d, output) = match *operand {
            "%la" => ("%ld", "mov.b64 {%d0, %d1}, %ld;"),
            "%ha" => ("%hd", "cvt.u32.u16 %d0, %hd;"),
            _ => ("%d0", ""),
        };
        let on = |c: Case| if operation.contains("bf16") { hopper(c) } else { c };
        let exchange = |space: &str, at: &str| {
            format!(
                "atom.{space}.{operation} {d}, [{at}], {operand};\n{output}\nred.{space}.{operation} [{at}+8], {operand};\n"
            )
        };
        let body = format!(
            "{}{OWN_SHARED}{}ld.shared.v2.u32 {{%d2, %d3}}, [%t1+8];",
            own_register(operation),
            exchange("shared", "%t1")
        );
        v.push(on(case("atomics, shared", body, *input, Output::Quad)));
        let body = format!(
            "mul.wide.u32 %ld, %i, 16;\nadd.s64 %lc, %out, %ld;\nst.global.v4.u32 [%lc], {{%b, %c, %a, %b}};\n{}\
             ld.global.v2.u32 {{%d2, %d3}}, [%lc+8];",
            exchange("global", "%lc")
        );
        v.push(on(case("atomics, global", body, *input, Output::Quad)));
    }
    for body in [
        "atom.shared.exch.b32 %d0, [%t1], %a;\natom.shared.cas.b32 %d1, [%t1+4], %c, %a;\nld.shared.v2.u32 {%d2, %d3}, [%t1];",
        "atom.shared.exch.b64 %ld, [%t1], %la;\nmov.b64 {%d0, %d1}, %ld;\nld.shared.v2.u32 {%d2, %d3}, [%t1];",
        "ld.shared.u64 %lb, [%t1];\natom.shared.cas.b64 %ld, [%t1], %lb, %la;\nmov.b64 {%d0, %d1}, %ld;\nld.shared.v2.u32 {%d2, %d3}, [%t1];",
        "cvt.u16.u32 %hb, %b;\natom.shared.cas.b16 %hd, [%t1], %hb, %ha;\ncvt.u32.u16 %d0, %hd;\nld.shared.u32 %d1, [%t1];",
        "atom.acq_rel.cta.shared.add.u32 %d0, [%t1], %a;\natom.relaxed.gpu.shared.or.b32 %d1, [%t1+4], %a;",
    ] {
        v.push(case("atomics, shared", format!("{OWN_SHARED}{body}"), Input::Bits, Output::Quad));
    }
    // Sixteen threads on one word, in sums that are exact in every order.
    for (operation, operand, input, zero_ty, sm90) in [
        ("add.u32", "%a", Input::Bits, "u32", false),
        ("add.f32", "%a", Input::SmallF32, "u32", false),
        ("add.noftz.f16x2", "%a", Input::SmallF16, "u32", false),
        ("add.noftz.bf16x2", "%a", Input::SmallBf16, "u32", true),
        ("max.s32", "%a", Input::Bits, "u32", false),
        ("min.u64", "%la", Input::Bits, "u64", false),
        ("xor.b32", "%a", Input::Bits, "u32", false),
    ] {
        let body = format!(
            "{}mov.u32 %t0, %tid.x;\nand.b32 %t1, %t0, 7;\nshl.b32 %t1, %t1, 3;\nmov.u32 %t2, buffer;\nadd.s32 %t1, %t1, %t2;\n\
             setp.gt.u32 %q, %t0, 7;\n@!%q st.shared.v2.u32 [%t1], {{0, 0}};\nbar.sync 0;\nred.shared.{operation} [%t1], {operand};\n\
             bar.sync 0;\nld.shared.{zero_ty} {}, [%t1];",
            own_register(operation),
            if zero_ty == "u64" { "%ld" } else { "%d0" }
        );
        let output = if zero_ty == "u64" { Output::B64 } else { Output::B32 };
        let c = case("atomics, contended", body, input, output);
        v.push(if sm90 { hopper(c) } else { c });
    }
}

fn warps(v: &mut Vec<Case>) {
    let add = |v: &mut Vec<Case>, body: &str, output| v.push(case("warp", body, Input::Bits, output));
    for op in ["add.u32", "min.u32", "min.s32", "max.u32", "and.b32", "or.b32"] {
        add(v, &format!("redux.sync.{op} %d0, %a, 0xffffffff;"), Output::B32);
    }
    for mode in ["all", "uni"] {
        let body = format!("and.b32 %a, %a, 15;\nsetp.ne.u32 %q1, %a, 3;\nvote.sync.{mode}.pred %q, %q1, 0xffffffff;");
        add(v, &body, Output::Pred);
    }
    add(v, "shr.u32 %a, %i, 5;\nmatch.all.sync.b32 %d0|%q, %a, 0xffffffff;\nselp.b32 %d1, 1, 0, %q;", Output::Quad);
    add(v, "and.b64 %la, %la, 1;\nmatch.any.sync.b64 %d0, %la, 0xffffffff;", Output::B32);
    add(v, "and.b64 %la, %la, 1;\nmatch.all.sync.b64 %d0|%q, %la, 0xffffffff;\nselp.b32 %d1, 1, 0, %q;", Output::Quad);
    // Half of a warp, in code that only it executes.
    add(
        v,
        "mov.u32 %t0, %laneid;\nsetp.lt.u32 %q, %t0, 16;\n@!%q bra skip;\nshfl.sync.bfly.b32 %d0, %a, 3, 0x1f, 0x0000ffff;\n\
         redux.sync.add.u32 %d1, %a, 0x0000ffff;\nvote.sync.ballot.b32 %d2, %q1, 0x0000ffff;\nactivemask.b32 %d3;\nskip:",
        Output::Quad,
    );
    add(v, "shfl.sync.idx.b32 %d0|%q, %a, %b, 0x181f, 0xffffffff;\nselp.b32 %d1, 1, 0, %q;", Output::Quad);
    add(
        v,
        "mov.u32 %d0, %laneid;\nmov.u32 %d1, %lanemask_lt;\nmov.u32 %d2, %lanemask_ge;\nmov.u32 %d3, %nctaid.x;",
        Output::Quad,
    );
    add(v, "barrier.cta.red.and.aligned.pred %q, 1, 128, %q1;", Output::Pred);
    // Producers arrive, consumers wait: two warps each, on a barrier with a count.
    add(
        v,
        "mov.u32 %t0, %tid.x;\nshl.b32 %t1, %t0, 2;\nmov.u32 %t2, buffer;\nadd.s32 %t1, %t1, %t2;\nsetp.lt.u32 %q, %t0, 64;\n\
         @!%q bra consume;\nst.shared.u32 [%t1], %a;\nbar.arrive 3, 128;\nbra done;\nconsume:\nbar.sync 3, 128;\n\
         ld.shared.u32 %d0, [%t1+-256];\ndone:",
        Output::B32,
    );
}

fn memory(v: &mut Vec<Case>) {
    // `%in` is the thread's own 24 bytes, of which the first 16 are aligned to 8.
    let mut add = |body: &str, output| v.push(case("memory", body, Input::Bits, output));
    for (load, d, output) in [
        ("ld.global.u8", "%d0", Output::B32),
        ("ld.global.s8", "%d0", Output::B32),
        ("ld.global.nc.u16", "%hd", Output::B16),
        ("ld.global.s16", "%d0", Output::B32),
        ("ld.global.s32", "%ld", Output::B64),
        ("ld.global.nc.v2.u32", "{%d0, %d1}", Output::Quad),
        ("ld.global.ca.v4.u8", "{%d0, %d1, %d2, %d3}", Output::Quad),
        ("ld.global.L1::no_allocate.L2::128B.v2.b32", "{%d0, %d1}", Output::Quad),
        ("ld.volatile.global.u32", "%d0", Output::B32),
        ("ld.relaxed.gpu.global.u32", "%d0", Output::B32),
        ("ld.acquire.sys.global.u64", "%ld", Output::B64),
        ("ldu.global.u32", "%d0", Output::B32),
        ("ld.u32", "%d0", Output::B32),
    ] {
        add(&format!("{load} {d}, [%in+8];"), output);
    }
    add("and.b64 %la, %in, -16;\nld.global.nc.v4.u32 {%d0, %d1, %d2, %d3}, [%la];", Output::Quad);
    add("and.b64 %la, %in, -16;\nld.global.v2.u64 {%lb, %lc}, [%la];\nxor.b64 %ld, %lb, %lc;", Output::B64);
    for store in ["st.shared.v2.u64 [%t1], {%la, %lb}", "st.shared.v4.u8 [%t1+5], {%a, %b, %c, %a}"] {
        // The second one is not aligned and so at +4.
        let store = store.replace("+5", "+4");
        add(&format!("{OWN_SHARED}{store};\nld.shared.v4.u32 {{%d0, %d1, %d2, %d3}}, [%t1];"), Output::Quad);
    }
    add(
        &format!(
            "{OWN_SHARED}st.shared.u16 [%t1+2], %ha;\nst.shared.u8 [%t1+7], %b;\nld.shared.v2.u32 {{%d0, %d1}}, [%t1];"
        ),
        Output::Quad,
    );
    // Through generic addresses of shared and local memory.
    add(
        &format!(
            "{OWN_SHARED}cvt.u64.u32 %la, %t1;\ncvta.shared.u64 %lb, %la;\nld.v2.u32 {{%d0, %d1}}, [%lb+8];\nst.u32 [%lb], %a;\n\
                  ld.shared.u32 %d2, [%t1];\nisspacep.shared %q, %lb;\nselp.b32 %d3, 1, 0, %q;"
        ),
        Output::Quad,
    );
    add(
        "{\n.local .align 16 .b8 own[64];\nmov.u64 %la, own;\nst.local.v2.u32 [%la], {%a, %b};\ncvta.local.u64 %lb, %la;\n\
         and.b32 %t0, %c, 4;\ncvt.u64.u32 %lc, %t0;\nadd.s64 %lc, %lc, %lb;\nld.u32 %d0, [%lc];\nld.local.u16 %hd, [%la+2];\n\
         cvt.u32.u16 %d1, %hd;\nisspacep.local %q, %lb;\nselp.b32 %d2, 1, 0, %q;\nisspacep.global %q, %in;\nselp.b32 %d3, 1, 0, %q;\n}",
        Output::Quad,
    );
    add(
        "mul.wide.u32 %ld, %i, 16;\nadd.s64 %lc, %out, %ld;\nst.release.gpu.global.u32 [%lc], %a;\nfence.acq_rel.gpu;\nmembar.cta;\n\
         st.global.cs.v2.u32 [%lc+8], {%b, %c};\nld.global.u32 %d0, [%lc];\nld.global.v2.u32 {%d1, %d2}, [%lc+8];",
        Output::Quad,
    );
    for bytes in [4, 8, 16] {
        v.push(case(
            "asynchronous copies",
            format!(
                "{OWN_SHARED}and.b64 %la, %in, -16;\ncp.async.ca.shared.global [%t1], [%la], {bytes};\ncp.async.wait_all;\n\
                 ld.shared.v4.u32 {{%d0, %d1, %d2, %d3}}, [%t1];"
            ),
            Input::Bits,
            Output::Quad,
        ));
    }
    v.push(case(
        "asynchronous copies",
        format!(
            "{OWN_SHARED}and.b64 %la, %in, -16;\nsetp.ne.u32 %q, %t0, 0;\n@!%q mbarrier.init.shared.b64 [buffer+2040], 128;\nbar.sync 0;\n\
             cp.async.ca.shared.global [%t1], [%la], 8;\ncp.async.mbarrier.arrive.noinc.shared.b64 [buffer+2040];\nwait:\n\
             mbarrier.test_wait.parity.shared.b64 %q, [buffer+2040], 0;\n@!%q bra wait;\nxor.b32 %t1, %t1, 64;\n\
             ld.shared.v2.u32 {{%d0, %d1}}, [%t1];"
        )
        // The barrier lies in the last thread's second half, which nobody reads.
        .replace("st.shared.v4.u32 [%t1], {%b, %c, %a, %b};", "st.shared.v2.u32 [%t1], {%b, %c};"),
        Input::Bits,
        Output::Quad,
    ));
    v.push(case(
        "mbarrier",
        "mov.u32 %t0, %tid.x;\nsetp.ne.u32 %q, %t0, 0;\n@!%q mbarrier.init.shared.b64 [buffer], 128;\nbar.sync 0;\n\
         mbarrier.arrive.shared.b64 %ld, [buffer];\nwait:\nmbarrier.test_wait.shared.b64 %q, [buffer], %ld;\n@!%q bra wait;\n\
         mbarrier.test_wait.parity.shared.b64 %q, [buffer], 1;\nbar.sync 0;\n@%q mov.b32 %d0, 1;\nsetp.gt.u32 %q, %t0, 63;\n\
         @%q mbarrier.arrive_drop.shared.b64 %la, [buffer];\n@!%q mbarrier.arrive.shared.b64 %la, [buffer];\nwait2:\n\
         mbarrier.test_wait.parity.shared.b64 %q1, [buffer], 1;\n@!%q1 bra wait2;\nbar.sync 0;\n@%q bra skip;\n\
         mbarrier.arrive.shared.b64 %la, [buffer];\nskip:\nwait3:\nmbarrier.test_wait.parity.shared.b64 %q1, [buffer], 0;\n@!%q1 bra wait3;\n\
         bar.sync 0;\nsetp.ne.u32 %q, %t0, 0;\n@!%q mbarrier.inval.shared.b64 [buffer];\nmov.b32 %d1, 7;",
        Input::Bits,
        Output::Quad,
    ));
    v.push(hopper(case(
        "mbarrier",
        "mov.u32 %t0, %tid.x;\nsetp.ne.u32 %q, %t0, 0;\n@!%q mbarrier.init.shared.b64 [buffer], 128;\nbar.sync 0;\n\
         mbarrier.arrive.release.cta.shared.b64 %ld, [buffer];\nmbarrier.try_wait.shared.b64 %q, [buffer], %ld, 1000000;\nwait:\n\
         mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %q, [buffer], 0;\n@!%q bra wait;\nmov.b32 %d0, 5;",
        Input::Bits,
        Output::Quad,
    )));
}

fn matrices(v: &mut Vec<Case>) {
    for n in [1, 2, 4] {
        for trans in ["", ".trans"] {
            let regs = ["%d0", "%d1", "%d2", "%d3"][..n].join(", ");
            let body = format!(
                "{OWN_SHARED}bar.sync 0;\nldmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16 {{{regs}}}, [%t1];"
            );
            v.push(case("matrix moves", body, Input::Bits, Output::Quad));
            let regs = ["%a", "%c", "%b", "%a"][..n].join(", ");
            let body = format!(
                "{OWN_SHARED}bar.sync 0;\nstmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16 [%t1], {{{regs}}};\nbar.sync 0;\n\
                 ld.shared.v4.u32 {{%d0, %d1, %d2, %d3}}, [%t1];"
            );
            v.push(hopper(case("matrix moves", body, Input::Bits, Output::Quad)));
        }
    }
    let mut mma = |shape: &str, types: &str, input, a: &str, b: &str, narrow: bool, sm90: bool| {
        let (d, c) = if narrow { ("%d0,%d1", "%a,%b") } else { ("%d0,%d1,%d2,%d3", "%d0,%d1,%d2,%d3") };
        let body = format!("mma.sync.aligned.{shape}.row.col.{types} {{{d}}}, {{{a}}}, {{{b}}}, {{{c}}};");
        let c = case("mma", body, input, Output::Quad);
        v.push(if sm90 { hopper(c) } else { c });
    };
    let (four, two) = ("%a,%b,%c,%a", "%b,%c");
    mma("m16n8k8", "f16.f16.f16.f16", Input::SmallF16, "%a,%b", "%c", true, false);
    mma("m16n8k8", "f32.bf16.bf16.f32", Input::SmallBf16, "%a,%b", "%c", false, false);
    for types in ["s32.s8.s8.s32", "s32.u8.u8.s32", "s32.u8.s8.s32"] {
        mma("m16n8k32", types, Input::Bits, four, two, false, false);
        mma("m16n8k16", types, Input::Bits, "%a,%b", "%c", false, false);
    }
    mma("m16n8k32.row.col.satfinite", "s32.s8.s8.s32", Input::Bits, four, two, false, false);
    for types in ["e4m3.e4m3", "e5m2.e5m2", "e4m3.e5m2", "e5m2.e4m3"] {
        let input = match types {
            "e4m3.e4m3" => Input::SmallE4m3,
            "e5m2.e5m2" => Input::SmallE5m2,
            // Bytes that are small multiples of a power of two in either type.
            _ => Input::SmallFp8,
        };
        mma("m16n8k32", &format!("f32.{types}.f32"), input, four, two, false, true);
    }
    for c in v.iter_mut().filter(|c| c.body.contains("row.col.satfinite.row.col")) {
        c.body = c.body.replace("row.col.satfinite.row.col", "row.col.satfinite").into();
    }
}

/// Waits for the bytes of a bulk copy, then reads the thread's own 16 bytes of a tile of `bytes`; zeros where the copy does not come
/// within 10000 polls, a hundred times what one takes.
fn load_with(copy: &str, bytes: u32) -> String {
    format!(
        "mov.u32 %t0, %tid.x;\nsetp.ne.u32 %q, %t0, 0;\nmov.u32 %t1, buffer;\nmov.u32 %t7, %ctaid.x;\n@%q bra ready;\n\
         mbarrier.init.shared.b64 [bar], 1;\nfence.proxy.async;\nready:\nbar.sync 0;\n@%q bra wait;\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {bytes};\n{copy}\nwait:\n\
         mov.b32 %c, 0;\npoll:\nadd.s32 %c, %c, 1;\nsetp.gt.u32 %q1, %c, 10000;\n@%q1 bra late;\n\
         mbarrier.try_wait.parity.shared::cta.b64 %q1, [bar], 0;\n@!%q1 bra poll;\n\
         shl.b32 %t2, %t0, 4;\nand.b32 %t2, %t2, {};\nadd.s32 %t2, %t2, %t1;\nld.shared.v4.u32 {{%d0, %d1, %d2, %d3}}, [%t2];\nlate:",
        bytes.min(2048) - 16
    )
}

/// Lets thread 0 store or reduce the 2048 bytes of `buffer`, which every thread has written its 16 bytes of; the output holds
/// other bytes before.
fn store_with(copy: &str) -> String {
    format!(
        "mul.wide.u32 %ld, %i, 16;\nadd.s64 %lc, %out, %ld;\nst.global.v4.u32 [%lc], {{%c, %a, %b, %c}};\n{OWN_SHARED}\
         fence.proxy.async;\nbar.sync 0;\nsetp.ne.u32 %q, %t0, 0;\n@%q bra done;\nmov.u32 %t1, buffer;\nmov.u32 %t7, %ctaid.x;\n{copy}\n\
         cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\ndone:"
    )
}

/// Coordinates in `%t3` and on, from factors of the block index and offsets.
fn coordinates(list: &[(i32, i32)]) -> (String, String) {
    let mut text = String::new();
    let mut names = Vec::new();
    for (i, (factor, offset)) in list.iter().enumerate() {
        let name = ["%t3", "%t4", "%t5", "%t6", "%d0"][i];
        writeln!(text, "mul.lo.s32 {name}, %t7, {factor};\nadd.s32 {name}, {name}, {offset};")
            .expect("a string takes all");
        names.push(name);
    }
    (text, names.join(", "))
}

fn bulk_copies(v: &mut Vec<Case>) {
    use TensorDataType::*;
    let element = |t: TensorDataType| t.bytes();
    for bytes in [16u32, 512, 2048] {
        let copy = format!(
            "mul.wide.u32 %la, %t7, 1040;\nld.param.u64 %lb, [in];\nadd.s64 %la, %la, %lb;\n\
             cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%t1], [%la], {bytes}, [bar];"
        );
        v.push(hopper(case("bulk copies", load_with(&copy, bytes), Input::Bits, Output::Quad)));
    }
    let rows = "mul.wide.u32 %la, %t7, 2048;\nadd.s64 %la, %la, %out;\n";
    let copy = format!("{rows}cp.async.bulk.global.shared::cta.bulk_group [%la+32], [%t1], 2000;");
    v.push(hopper(case("bulk copies", store_with(&copy), Input::Bits, Output::Own)));
    for (op, input) in [
        ("add.u32", Input::Bits),
        ("add.s32", Input::Bits),
        ("add.u64", Input::Bits),
        ("min.u32", Input::Bits),
        ("max.s32", Input::Bits),
        ("min.s64", Input::Bits),
        ("and.b32", Input::Bits),
        ("or.b64", Input::Bits),
        ("xor.b32", Input::Bits),
        ("inc.u32", Input::Bits),
        ("dec.u32", Input::Bits),
        ("add.f32", Input::SmallF32),
        ("add.f32", Input::F32),
        ("add.noftz.f16", Input::F16),
        ("add.noftz.bf16", Input::Bf16),
        ("add.noftz.f16", Input::SmallF16),
        ("min.f16", Input::SmallF16),
        ("max.f16", Input::SmallF16),
        ("add.noftz.bf16", Input::SmallBf16),
        ("max.bf16", Input::SmallBf16),
    ] {
        let copy = format!("{rows}cp.reduce.async.bulk.global.shared::cta.bulk_group.{op} [%la], [%t1], 2048;");
        v.push(hopper(case("bulk reductions", store_with(&copy), input, Output::Own)));
    }
    // Loads of every rank, type and swizzle: the tensor is the input buffer, the block index moves the box across its edges.
    let mut load = |rank: usize, data_type, box_dims: &[u32], swizzle, fill, input| {
        let e = element(data_type) as u64;
        let row = 192u64;
        let dims: Vec<u64> = [(row - 16) / e, 5, 3, 4, 2][..rank].to_vec();
        let dims = if rank == 1 { vec![1008 / e] } else { dims };
        let dims = if rank == 2 { vec![(row - 16) / e, 120] } else { dims };
        let strides: Vec<u64> = [row, row * 5, row * 15, row * 60][..rank - 1].to_vec();
        let across = 16 / e as i32;
        let all = [(across, 0), (0, 2), (0, 1), (0, 1), (0, 0)];
        let (mut setup, names) = coordinates(&all[..rank]);
        if rank == 2 {
            setup = coordinates(&[(across, 0), (16, 3)]).0;
        }
        let bytes = box_dims.iter().product::<u32>() * e as u32;
        let copy = format!(
            "{setup}cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes [%t1], [%map, {{{names}}}], [bar];"
        );
        // The last coordinate of five goes through an output register.
        let tensor = Tensor { of_output: false, data_type, dims, strides, box_dims: box_dims.to_vec(), swizzle, fill };
        let c = case("tensor loads", load_with(&copy, bytes), input, Output::Quad);
        v.push(hopper(Case { tensor: Some(tensor), ..c }));
    };
    for swizzle in [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128] {
        let columns = match swizzle {
            Swizzle::Bytes32 => 16,
            Swizzle::Bytes64 => 32,
            _ => 64,
        };
        load(2, Bfloat16, &[columns, 1024 / columns], swizzle, TensorFill::Zero, Input::Bits);
        load(3, Float16, &[columns, 4, 256 / columns], swizzle, TensorFill::Nan, Input::Bits);
        load(4, Uint16, &[columns, 2, 2, 2], swizzle, TensorFill::Zero, Input::Bits);
        load(5, Bfloat16, &[columns, 2, 2, 2, 2], swizzle, TensorFill::Nan, Input::Bits);
        load(2, Float32, &[columns / 2, 16], swizzle, TensorFill::Nan, Input::Bits);
        load(2, Uint8, &[2 * columns, 16], swizzle, TensorFill::Zero, Input::Bits);
    }
    load(1, Uint16, &[256], Swizzle::None, TensorFill::Zero, Input::Bits);
    load(1, Float32, &[64], Swizzle::None, TensorFill::Nan, Input::Bits);
    load(2, Uint32, &[16, 8], Swizzle::None, TensorFill::Zero, Input::Bits);
    load(2, Int32, &[16, 8], Swizzle::Bytes64, TensorFill::Zero, Input::Bits);
    load(2, Uint64, &[8, 8], Swizzle::Bytes64, TensorFill::Zero, Input::Bits);
    load(2, Int64, &[16, 8], Swizzle::Bytes128, TensorFill::Zero, Input::Bits);
    load(2, Float64, &[8, 8], Swizzle::None, TensorFill::Nan, Input::Bits);
    // Stores and reductions: the tensor is the output buffer, 64-column rows of 16 bits of which 56 are in the tensor.
    let mut store = |op: &str, rank: usize, data_type, swizzle, input| {
        let e = element(data_type) as u64;
        let columns: u32 = match swizzle {
            Swizzle::None | Swizzle::Bytes128 => 128 / e as u32,
            Swizzle::Bytes64 => 64 / e as u32,
            Swizzle::Bytes32 => 32 / e as u32,
        };
        let inside = (128 - 16) / e;
        let (dims, strides, box_dims, at) = match rank {
            1 => (vec![16000 / e], vec![], vec![256], vec![(2048 / e as i32, 0)]),
            2 => (vec![inside, 120], vec![128], vec![columns, 16], vec![(0, 0), (16, 0)]),
            3 => (vec![inside, 4, 30], vec![128, 512], vec![columns, 4, 4], vec![(0, 16 / e as i32), (0, 1), (4, 0)]),
            4 => (
                vec![inside, 2, 2, 31],
                vec![128, 256, 512],
                vec![columns, 2, 2, 4],
                vec![(0, 16 / e as i32), (0, 0), (0, 1), (4, 0)],
            ),
            _ => (
                vec![inside, 2, 2, 2, 16],
                vec![128, 256, 512, 1024],
                vec![columns, 2, 2, 2, 2],
                vec![(0, 0), (0, 1), (0, 0), (0, 0), (2, 0)],
            ),
        };
        let (setup, names) = coordinates(&at);
        let instruction = match op {
            "" => format!("cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group"),
            op => format!("cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.{op}.tile.bulk_group"),
        };
        let copy = format!("{setup}{instruction} [%map, {{{names}}}], [%t1];");
        let tensor = Tensor { of_output: true, data_type, dims, strides, box_dims, swizzle, fill: TensorFill::Zero };
        let family = if op.is_empty() { "tensor stores" } else { "tensor reductions" };
        v.push(hopper(Case { tensor: Some(tensor), ..case(family, store_with(&copy), input, Output::Own) }));
    };
    for rank in 1..=5 {
        store("", rank, Bfloat16, Swizzle::None, Input::Bits);
    }
    for swizzle in [Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128] {
        store("", 2, Float16, swizzle, Input::Bits);
        store("", 3, Float32, swizzle, Input::Bits);
    }
    for (op, data_type, input) in [
        ("add", Uint32, Input::Bits),
        ("add", Int32, Input::Bits),
        ("add", Uint64, Input::Bits),
        ("add", Float32, Input::SmallF32),
        ("add", Float32, Input::F32),
        ("add", Float16, Input::SmallF16),
        ("add", Bfloat16, Input::SmallBf16),
        ("min", Int32, Input::Bits),
        ("max", Uint32, Input::Bits),
        ("min", Float16, Input::SmallF16),
        ("max", Bfloat16, Input::SmallBf16),
        ("and", Uint32, Input::Bits),
        ("or", Int32, Input::Bits),
        ("xor", Uint32, Input::Bits),
        ("inc", Uint32, Input::Bits),
        ("dec", Uint32, Input::Bits),
    ] {
        store(op, 2, data_type, Swizzle::Bytes128, input);
    }
    tensor_edges(v);
}

/// Tensor copies that begin before, between or behind the elements of a tensor, or at other places of shared memory.
fn tensor_edges(v: &mut Vec<Case>) {
    use Compare::{Bits, Refused};
    use Swizzle::{Bytes32, Bytes64, Bytes128};
    use TensorFill::{Nan, Zero};
    // Rows of 192 bytes of bf16, of which `dims[0]` elements are in the tensor; at a shared offset from the buffer.
    let mut load = |inner: u64, at: &[(i32, i32)], swizzle, fill, offset: u32, compare| {
        let rank = at.len();
        let dims = if rank == 2 { vec![inner, 120] } else { [inner, 5, 3, 4, 2][..rank].to_vec() };
        let strides = [192, 960, 2880, 11520][..rank - 1].to_vec();
        let columns = match swizzle {
            Bytes32 => 16,
            Bytes64 => 32,
            _ => 64,
        };
        let box_dims = [columns, 8, 1, 1, 1][..rank].to_vec();
        let bytes = box_dims.iter().product::<u32>() * 2;
        let (setup, names) = coordinates(at);
        let copy = format!(
            "{setup}cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes [%t1], [%map, {{{names}}}], [bar];"
        );
        let body = load_with(&copy, bytes);
        let body = body.replace("mov.u32 %t1, buffer;", &format!("mov.u32 %t1, buffer;\nadd.s32 %t1, %t1, {offset};"));
        let data_type = TensorDataType::Bfloat16;
        let tensor = Tensor { of_output: false, data_type, dims, strides, box_dims, swizzle, fill };
        let c = case("tensor loads, edges", body, Input::Bits, Output::Quad);
        v.push(hopper(Case { tensor: Some(tensor), compare, ..c }));
    };
    // A row that is no multiple of 16 bytes, and coordinates that are none: those are refused.
    load(95, &[(0, 0), (16, 0)], Swizzle::None, Zero, 0, Bits);
    load(95, &[(8, 0), (16, 0)], Bytes128, Nan, 0, Bits);
    load(88, &[(12, 0), (16, 0)], Swizzle::None, Zero, 0, Refused);
    load(95, &[(13, 1), (16, 0)], Bytes64, Nan, 0, Refused);
    load(95, &[(8, 0), (0, 1), (0, 1)], Swizzle::None, Zero, 0, Bits);
    // Before the tensor.
    load(88, &[(0, -8), (16, 0)], Swizzle::None, Zero, 0, Bits);
    load(88, &[(0, 0), (17, -5)], Swizzle::None, Zero, 0, Bits);
    load(88, &[(8, -8)], Swizzle::None, Zero, 0, Bits);
    load(95, &[(8, -16), (17, -5)], Bytes128, Nan, 0, Bits);
    load(95, &[(16, -8), (1, -2), (1, -3)], Bytes64, Nan, 0, Bits);
    load(88, &[(0, 0), (0, 0), (0, 0), (0, -1), (0, 0)], Swizzle::None, Nan, 0, Bits);
    // Behind it.
    load(88, &[(16, 0), (16, 0)], Swizzle::None, Nan, 0, Bits);
    load(88, &[(0, 0), (40, 0)], Bytes32, Nan, 0, Bits);
    load(88, &[(8, 0), (1, 0), (1, 0), (1, 0)], Swizzle::None, Zero, 0, Bits);
    // Elsewhere in shared memory: 128 bytes are the least alignment.
    for offset in [128, 384] {
        for swizzle in [Swizzle::None, Bytes32, Bytes64, Bytes128] {
            load(88, &[(8, 0), (16, 0)], swizzle, Nan, offset, Bits);
        }
    }
    for offset in [16, 64] {
        load(88, &[(8, 0), (16, 0)], Swizzle::None, Zero, offset, Refused);
    }
    load(88, &[(8, 0), (16, 0)], Bytes32, Zero, 64, Refused);
    let mut store = |op: &str, inner: u64, at: &[(i32, i32)], swizzle, offset: u32, compare| {
        let rank = at.len();
        let dims = if rank == 2 { vec![inner, 120] } else { [inner, 4, 30][..rank].to_vec() };
        let strides = [128, 512][..rank - 1].to_vec();
        let box_dims = [if swizzle == Bytes64 { 32 } else { 64 }, 8, 1][..rank].to_vec();
        let (setup, names) = coordinates(at);
        let instruction = match op {
            "" => format!("cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group"),
            op => format!("cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.{op}.tile.bulk_group"),
        };
        let body = store_with(&format!("{setup}{instruction} [%map, {{{names}}}], [%t1];"));
        let body = body.replace("mov.u32 %t1, buffer;", &format!("mov.u32 %t1, buffer;\nadd.s32 %t1, %t1, {offset};"));
        let data_type = TensorDataType::Bfloat16;
        let tensor = Tensor { of_output: true, data_type, dims, strides, box_dims, swizzle, fill: Zero };
        let family = if op.is_empty() { "tensor stores, edges" } else { "tensor reductions, edges" };
        let c = case(family, body, Input::SmallBf16, Output::Own);
        v.push(hopper(Case { tensor: Some(tensor), compare, ..c }));
    };
    for op in ["", "add"] {
        for inner in [49, 50, 52, 55] {
            store(op, inner, &[(0, 0), (16, 0)], Swizzle::None, 0, Bits);
        }
        store(op, 55, &[(0, 0), (16, 0)], Bytes128, 0, Bits);
        store(op, 56, &[(0, 4), (16, 0)], Swizzle::None, 0, Refused);
        store(op, 55, &[(0, 24), (16, 2)], Bytes64, 128, Bits);
        store(op, 56, &[(0, 64), (16, 0)], Swizzle::None, 0, Bits);
        store(op, 56, &[(0, 0), (120, 0)], Swizzle::None, 0, Bits);
        store(op, 56, &[(0, 8), (0, 0), (4, 2)], Bytes128, 384, Bits);
        store(op, 56, &[(0, -8), (16, 0)], Swizzle::None, 0, Refused);
        store(op, 56, &[(0, 0), (16, -2)], Bytes128, 0, Refused);
        store(op, 56, &[(0, 0), (0, -1), (4, 0)], Swizzle::None, 0, Refused);
        store(op, 56, &[(0, 0), (16, 0)], Swizzle::None, 16, Refused);
        store(op, 56, &[(0, 0), (16, 0)], Swizzle::None, 64, Refused);
    }
}

/// What a `wgmma` case multiplies.
struct Product {
    /// Types of accumulator, A and B.
    types: [&'static str; 3],
    n: u32,
    swizzle: Swizzle,
    transposed: [bool; 2],
    a_in_registers: bool,
    /// Signs of A and B, and whether the accumulator's old value counts.
    scale: [i32; 2],
    accumulate: bool,
    input: Input,
}

impl Product {
    fn element_bytes(&self) -> u32 {
        match self.types[1] {
            "tf32" => 4,
            "f16" | "bf16" => 2,
            _ => 1,
        }
    }

    /// Bytes of an operand of `mn` rows as the canonical layout packs it, with its leading and stride byte offsets.
    fn layout(&self, mn: u32, mn_major: bool) -> [u32; 3] {
        let span = match self.swizzle {
            Swizzle::None => 16,
            Swizzle::Bytes32 => 32,
            Swizzle::Bytes64 => 64,
            Swizzle::Bytes128 => 128,
        };
        let e = self.element_bytes();
        let (block, k) = (span * 8, 32 / e);
        let (inner, outer) = if mn_major { (mn, k) } else { (k, mn) };
        let inner_blocks = (inner * e).div_ceil(span);
        let (next_inner, next_outer) = (block, inner_blocks * block);
        let bytes = inner_blocks * outer.div_ceil(8) * block;
        if mn_major && self.swizzle == Swizzle::None {
            [bytes, next_outer, next_inner]
        } else {
            [bytes, next_inner, next_outer]
        }
    }

    fn case(&self) -> Case {
        let [acc_ty, a_ty, b_ty] = self.types;
        let mode = match self.swizzle {
            Swizzle::None => 0u64,
            Swizzle::Bytes128 => 1,
            Swizzle::Bytes64 => 2,
            Swizzle::Bytes32 => 3,
        };
        let descriptor = |[_, leading, stride]: [u32; 3], at: u32| {
            (at as u64 >> 4) + ((leading as u64 >> 4) << 16) + ((stride as u64 >> 4) << 32) + (mode << 62)
        };
        let (a, b) = (self.layout(64, self.transposed[0]), self.layout(self.n, self.transposed[1]));
        let b_at = a[0].next_multiple_of(1024);
        let words = (b_at + b[0]).div_ceil(512);
        let mut body =
            String::from("mov.u32 %t0, %tid.x;\nshl.b32 %t1, %t0, 2;\nmov.u32 %t2, buffer;\nadd.s32 %t3, %t1, %t2;\n");
        // Every word of both operands gets another thread's input.
        for i in 0..words {
            let from = ["%a", "%b", "%c"][i as usize % 3];
            write!(
                body,
                "shfl.sync.bfly.b32 %t4, {from}, {}, 0x1f, 0xffffffff;\n st.shared.u32 [%t3+{}], %t4;\n",
                i % 32,
                512 * i
            )
            .expect("a string takes all");
        }
        let accumulators = self.n / if acc_ty == "f16" { 4 } else { 2 };
        let registers: Vec<String> = (0..accumulators).map(|i| format!("%w{i}")).collect();
        for (i, register) in registers.iter().enumerate() {
            // One, two and minus one in f32 or in pairs of f16.
            let value = match (acc_ty, i % 3) {
                ("f16", 0) => 0x3c00_4000u32,
                ("f16", _) => 0xbc00_3c00,
                (_, 0) => 0x3f80_0000,
                (_, 1) => 0x4000_0000,
                _ => 0xbf80_0000,
            };
            writeln!(body, "mov.b32 {register}, {value};").expect("a string takes all");
        }
        let operand = if self.a_in_registers { "{%a, %b, %c, %t4}" } else { "%la" };
        let [scale_a, scale_b] = self.scale;
        let mut flags = format!("{scale_a}, {scale_b}");
        if self.element_bytes() == 2 {
            if !self.a_in_registers {
                write!(flags, ", {}", self.transposed[0] as u32).expect("a string takes all");
            }
            write!(flags, ", {}", self.transposed[1] as u32).expect("a string takes all");
        }
        write!(
            body,
            "fence.proxy.async;\nbar.sync 0;\nshr.u32 %t2, %t2, 4;\ncvt.u64.u32 %lb, %t2;\nadd.s64 %la, %lb, {};\nadd.s64 %lb, %lb, {};\n\
             setp.{}.u32 %q, %t0, %t0;\nwgmma.fence.sync.aligned;\n\
             wgmma.mma_async.sync.aligned.m64n{}k{}.{acc_ty}.{a_ty}.{b_ty} {{{}}}, {operand}, %lb, %q, {flags};\n\
             wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
            descriptor(a, 0) as i64,
            descriptor(b, b_at) as i64,
            if self.accumulate { "eq" } else { "ne" },
            self.n,
            32 / self.element_bytes(),
            registers.join(", ")
        )
        .expect("a string takes all");
        // Every accumulator goes into one of the four result words.
        for (i, register) in registers.iter().enumerate() {
            let d = format!("%d{}", i % 4);
            writeln!(body, "shf.l.wrap.b32 {d}, {d}, {d}, 5;\nxor.b32 {d}, {d}, {register};")
                .expect("a string takes all");
        }
        hopper(case("wgmma", body, self.input, Output::Quad))
    }
}

fn wgmmas(v: &mut Vec<Case>) {
    let bf16 = || Product {
        types: ["f32", "bf16", "bf16"],
        n: 64,
        swizzle: Swizzle::Bytes128,
        transposed: [false; 2],
        a_in_registers: false,
        scale: [1, 1],
        accumulate: true,
        input: Input::SmallBf16,
    };
    let swizzles = [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128];
    for n in (8..=256).step_by(8) {
        v.push(Product { n, ..bf16() }.case());
    }
    for swizzle in swizzles {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            for a_in_registers in [false, true] {
                if a_in_registers && transposed[0] {
                    continue;
                }
                v.push(Product { n: 136, swizzle, transposed, a_in_registers, accumulate: false, ..bf16() }.case());
            }
        }
    }
    for (types, input) in [
        (["f32", "f16", "f16"], Input::SmallF16),
        (["f16", "f16", "f16"], Input::SmallF16),
        (["f32", "tf32", "tf32"], Input::SmallF32),
        (["f32", "e4m3", "e4m3"], Input::SmallE4m3),
        (["f32", "e5m2", "e5m2"], Input::SmallE5m2),
        (["f32", "e4m3", "e5m2"], Input::SmallFp8),
        (["f32", "e5m2", "e4m3"], Input::SmallFp8),
        (["f16", "e4m3", "e4m3"], Input::SmallE4m3),
    ] {
        for a_in_registers in [false, true] {
            v.push(Product { types, input, a_in_registers, ..bf16() }.case());
        }
        v.push(Product { types, input, n: 96, swizzle: Swizzle::Bytes32, ..bf16() }.case());
    }
    for scale in [[-1, 1], [1, -1], [-1, -1]] {
        v.push(Product { scale, ..bf16() }.case());
        v.push(Product { scale, a_in_registers: true, ..bf16() }.case());
    }
}
