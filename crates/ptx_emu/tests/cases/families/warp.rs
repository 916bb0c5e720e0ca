//! Atomics, collectives of a warp, accesses to memory, and matrix products of a warp.

use super::super::{Case, Input, Output};
use super::{OWN_SHARED, case, hopper};

/// Reads `%a` anew. For `red` of two halves in shared memory, ptxas 13 takes the upper half of an operand that was cut out of a
/// 64-bit register from that register's upper word.
fn own_register(operation: &str) -> &'static str {
    if operation.contains("16x2") { "ld.global.u32 %a, [%in];\n" } else { "" }
}

pub(super) fn atomics(v: &mut Vec<Case>) {
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

pub(super) fn warps(v: &mut Vec<Case>) {
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

pub(super) fn memory(v: &mut Vec<Case>) {
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

pub(super) fn matrices(v: &mut Vec<Case>) {
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
