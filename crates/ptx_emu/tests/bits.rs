//! Bits that nobody wrote: known ones beside them, and where the others are reported. Every verdict is that of twenty seeds.

mod seeds;

use ptx_emu::*;
use seeds::*;

/// Code after which `%r9` is known, of `%r1`, which nobody wrote, with the value that it must have.
const KNOWN: &[(&str, u32)] = &[
    // A field after another, in local memory and in registers.
    (
        "ld.local.u32 %r1, [own];\nand.b32 %r2, %r1, 0xffff0000;\nor.b32 %r3, %r2, 5;\nand.b32 %r4, %r3, 0xffff;\n\
      st.local.u32 [own], %r3;\nld.local.u32 %r5, [own];\nand.b32 %r5, %r5, 0x0000ffff;\nor.b32 %r5, %r5, 0x70000;\nmov.u32 %r9, %r5;",
        0x70005,
    ),
    (
        "and.b32 %r2, %r1, 0xffff0000;\nor.b32 %r2, %r2, 5;\nand.b32 %r2, %r2, 0xffff;\nor.b32 %r9, %r2, 0x90000;",
        0x90005,
    ),
    ("bfi.b32 %r2, 0x12, %r1, 0, 8;\nbfi.b32 %r2, 0x345678, %r2, 8, 24;\nmov.u32 %r9, %r2;", 0x3456_7812),
    ("bfi.b32 %r2, 0x12, %r1, 4, 8;\nbfe.u32 %r9, %r2, 4, 8;", 0x12),
    ("prmt.b32 %r2, %r1, 0x1234, 0x5410;\nshr.u32 %r9, %r2, 16;", 0x1234),
    ("shl.b32 %r2, %r1, 8;\nor.b32 %r2, %r2, 7;\nand.b32 %r9, %r2, 255;", 7),
    ("shf.l.wrap.b32 %r9, 0x55, %r1, 32;\nshf.r.clamp.b32 %r9, 0x55, %r1, 0;", 0x55),
    ("lop3.b32 %r9, %r1, 0xff, 0x42, 0x88;", 0x42),
    (
        "mov.b32 {%h0, %h1}, %r1;\nmov.u16 %h0, 3;\nmov.b32 %r2, {%h0, %h1};\nmov.u16 %h1, 4;\nmov.b32 {%h2, _}, %r2;\n\
      mov.b32 %r9, {%h2, %h1};",
        0x40003,
    ),
    ("mov.b64 %rd5, {%r1, 6};\nmov.b64 {_, %r9}, %rd5;", 6),
    ("mov.b64 %rd5, {6, %r1};\ncvt.u32.u64 %r9, %rd5;", 6),
    ("and.b32 %r2, %r1, 0xffffff00;\nor.b32 %r2, %r2, 0x80;\ncvt.s32.s8 %r9, %r2;", 0xffff_ff80),
    // Nothing is left of it.
    ("xor.b32 %r9, %r1, %r1;", 0),
    ("sub.s32 %r9, %r1, %r1;", 0),
    ("and.b32 %r9, %r1, 0;", 0),
    ("mul.lo.u32 %r9, %r1, 0;", 0),
    ("mad.lo.u32 %r9, %r1, 0, 8;", 8),
    ("mul.wide.u32 %rd5, %r1, 0;\ncvt.u32.u64 %r9, %rd5;", 0),
    ("shl.b32 %r9, %r1, 32;", 0),
    ("rem.u32 %r9, %r1, 1;", 0),
    ("or.b32 %r2, %r1, -1;\nadd.s32 %r9, %r2, 1;", 0),
    ("lop3.b32 %r9, %r1, %r1, 1, 0x3c;", 0),
    ("min.u32 %r9, %r1, 0;", 0),
    ("setp.eq.u32 %p1, %r1, %r1;\nselp.u32 %r9, 4, 5, %p1;", 4),
    ("or.b32 %r2, %r1, 16;\nsetp.eq.u32 %p1, %r2, 0;\nselp.u32 %r9, 4, 5, %p1;", 5),
    ("and.b32 %r2, %r1, 15;\nsetp.lt.u32 %p1, %r2, 16;\n@%p1 mov.u32 %r9, 3;", 3),
    // Either way the same.
    ("setp.lt.u32 %p1, %r1, 100;\nselp.u32 %r9, 5, 5, %p1;", 5),
    ("setp.lt.u32 %p1, %r1, 100;\nor.pred %p2, %p1, 1;\nselp.u32 %r9, 6, 7, %p2;", 6),
    ("setp.lt.u32 %p1, %r1, 100;\nsetp.eq.and.u32 %p2, %t, 99, %p1;\nselp.u32 %r9, 6, 7, %p2;", 7),
    // A carry that stays below.
    ("and.b32 %r2, %r1, 7;\nadd.s32 %r2, %r2, 8;\nshr.u32 %r9, %r2, 3;", 1),
    ("and.b32 %r2, %r1, 7;\nadd.cc.u32 %r2, %r2, 8;\naddc.u32 %r9, 1, 2;", 3),
    ("shl.b32 %r2, %r1, 4;\nmul.lo.u32 %r2, %r2, 3;\nand.b32 %r9, %r2, 15;", 0),
    // Between lanes: the value of lane 1, whose upper half nobody wrote.
    (
        "and.b32 %r2, %r1, 0xffff0000;\nor.b32 %r2, %r2, 9;\nshfl.sync.idx.b32 %r3, %r2, 1, 31, -1;\nand.b32 %r9, %r3, 0xffff;",
        9,
    ),
    (
        "and.b32 %r2, %r1, 0xffff0000;\nor.b32 %r2, %r2, 9;\nredux.sync.or.b32 %r3, %r2, -1;\nand.b32 %r9, %r3, 0xffff;",
        9,
    ),
    (
        "setp.lt.u32 %p1, %r1, 100;\nsetp.eq.u32 %p2, %t, 3;\nor.pred %p1, %p1, %p2;\nvote.sync.any.pred %p3, %p1, -1;\n\
      selp.u32 %r9, 8, 9, %p3;",
        8,
    ),
];

#[test]
fn bits_that_somebody_wrote_are_known_whatever_lies_beside_them() {
    for (code, want) in KNOWN {
        let out = words(&format!("{code}\nst.global.u32 [%own], %r9;\nret;"), 1, 32, 32);
        assert_eq!(out, vec![*want; 32], "{code}");
    }
}

/// Code after which some bits of `%r9` are not known.
const UNKNOWN: &[&str] = &[
    "and.b32 %r2, %r1, 0xffff0000;\nor.b32 %r9, %r2, 5;",
    "bfi.b32 %r9, 0x12, %r1, 0, 31;",
    "prmt.b32 %r9, %r1, 0x1234, 0x5430;",
    "shl.b32 %r9, %r1, 31;",
    "xor.b32 %r9, %r1, %r2;",
    "mul.lo.u32 %r9, %r1, 2;",
    "setp.lt.u32 %p1, %r1, 100;\nselp.u32 %r9, 5, 6, %p1;",
    "and.b32 %r2, %r1, 7;\nadd.s32 %r9, %r2, 8;",
    "and.b32 %r2, %r1, 7;\nadd.cc.u32 %r2, %r2, -1;\naddc.u32 %r9, 1, 2;",
    "mov.b64 %rd5, {6, %r1};\nmov.b64 {_, %r9}, %rd5;",
    "shfl.sync.idx.b32 %r9, %r1, 1, 31, -1;",
    "setp.eq.u32 %p2, %t, 3;\nselp.u32 %r2, %r1, 1, %p2;\nredux.sync.or.b32 %r9, %r2, -1;",
    "cvt.rn.f32.u32 %f1, %r1;\ncvt.rzi.u32.f32 %r9, %f1;",
    "mov.u32 %r2, 1;\nst.local.u16 [own], %r2;\nld.local.u32 %r9, [own];",
];

#[test]
fn bits_that_nobody_wrote_are_reported_where_they_matter() {
    for code in UNKNOWN {
        for use_of in [
            "popc.b32 %r8, %r9;\nand.b32 %r8, %r8, 1;\nsetp.eq.u32 %p5, %r8, 1;\n@%p5 mov.u32 %r7, 1;",
            "mul.wide.u32 %rd6, %r9, 4;\nadd.s64 %rd6, %rd6, %rd0;\nld.global.u32 %r7, [%rd6];",
            "ld.shared.u32 %r7, [%r9];",
            "atom.global.add.u32 %r7, [%rd0], %r9;",
        ] {
            let f = fault(&format!("{code}\n{use_of}\nret;"), 1, 32, FaultKind::UninitializedRegister);
            assert!(f.detail.contains("nobody wrote"), "{f}");
        }
    }
    // Where a value comes from, and who takes part.
    for code in [
        "shfl.sync.idx.b32 %r9, %t, %r1, 31, -1;\natom.global.add.u32 %r7, [%rd0], %r9;",
        "shfl.sync.bfly.b32 %r9, %t, 1, 31, %r1;",
        "bar.warp.sync %r1;",
        "and.b32 %r2, %r1, 1;\nor.b32 %r2, %r2, 0xfffffffe;\nvote.sync.any.pred %p1, 1, %r2;",
    ] {
        fault(&format!("{code}\nret;"), 1, 32, FaultKind::UninitializedRegister);
    }
    // The report says which bits.
    let f = fault(
        "and.b32 %r2, %r1, 0xf0;\nor.b32 %r9, %r2, 0x105;\natom.global.add.u32 %r7, [%rd0], %r9;\nret;",
        1,
        1,
        FaultKind::UninitializedRegister,
    );
    assert!(f.operands.contains("0x105 (bits 0xf0 unwritten)"), "{f}");
    // A store of nothing but such bits.
    fault("st.global.u32 [%own], %r1;\nret;", 1, 32, FaultKind::UninitializedRegister);
    fault("st.shared.u32 [tile], %r1;\nld.shared.u32 %r2, [tile];\nret;", 1, 1, FaultKind::UninitializedShared);
    // A written word is unwritten again when such bits are stored over it.
    fault(
        "st.shared.u32 [tile], %t;\nst.shared.u32 [tile], %r1;\nld.shared.u32 %r2, [tile];\nret;",
        1,
        1,
        FaultKind::UninitializedShared,
    );
}

/// Fills a structure of a u64, a byte with padding, and a field of 12 bits in a word, in local memory; `%rd7` is its place in
/// global memory, and `%r20` that in shared memory.
const STRUCTURE: &str = "mul.wide.u32 %rd7, %t, 16;\nadd.s64 %rd7, %rd7, %rd0;\nmov.u32 %r20, tile;\nmad.lo.u32 %r20, %t, 16, %r20;\n\
    cvt.u64.u32 %rd5, %t;\nst.local.u64 [own], %rd5;\nst.local.u8 [own+8], %t;\nld.local.u32 %r1, [own+12];\n\
    bfi.b32 %r1, %t, %r1, 0, 12;\nst.local.u32 [own+12], %r1;\n";

/// Copies of the structure from local to global memory.
const COPIES: &[&str] = &[
    "ld.local.v2.u64 {%rd5, %rd6}, [own];\nst.global.v2.u64 [%rd7], {%rd5, %rd6};",
    "ld.local.v4.u32 {%r1, %r2, %r3, %r4}, [own];\nst.global.v4.u32 [%rd7], {%r1, %r2, %r3, %r4};",
    "ld.local.u64 %rd5, [own];\nld.local.u64 %rd6, [own+8];\nst.global.u64 [%rd7], %rd5;\nst.global.u64 [%rd7+8], %rd6;",
    "ld.local.v4.u32 {%r1, %r2, %r3, %r4}, [own];\nst.shared.v4.u32 [%r20], {%r1, %r2, %r3, %r4};\n\
     ld.shared.v2.u64 {%rd5, %rd6}, [%r20];\nst.global.v2.u64 [%rd7], {%rd5, %rd6};",
    // There and back: global to shared memory by an asynchronous copy, and by a bulk copy to global memory.
    "ld.local.v2.u64 {%rd5, %rd6}, [own];\nst.global.v2.u64 [%rd7], {%rd5, %rd6};\ncp.async.ca.shared.global [%r20], [%rd7], 16;\n\
     cp.async.wait_all;\nld.shared.v2.u64 {%rd5, %rd6}, [%r20];\nst.shared.v2.u64 [%r20], {%rd5, %rd6};\nfence.proxy.async;\n\
     cp.async.bulk.global.shared::cta.bulk_group [%rd7], [%r20], 16;\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;",
    // Lanes exchange structures.
    "ld.local.v4.u32 {%r1, %r2, %r3, %r4}, [own];\nshfl.sync.bfly.b32 %r5, %r3, 0, 31, -1;\nst.global.v4.u32 [%rd7], {%r1, %r2, %r5, %r4};",
];

#[test]
fn structures_are_copied_with_their_padding() {
    for copy in COPIES {
        // The fields come back, and none of the padding.
        let body = format!(
            "{STRUCTURE}{copy}\nld.global.v2.u64 {{%rd5, %rd6}}, [%rd7];\nld.global.u8 %r2, [%rd7+8];\nld.global.u16 %r3, [%rd7+12];\n\
             and.b32 %r3, %r3, 0xfff;\ncvt.u32.u64 %r4, %rd5;\nadd.s32 %r4, %r4, %r2;\nadd.s32 %r4, %r4, %r3;\n\
             bar.sync 0;\nst.global.u32 [%own+512], %r4;\nst.global.v2.u64 [%rd7], {{%rd5, %rd5}};\nret;"
        );
        assert_eq!(words(&body, 1, 16, 144)[128..], (0..16).map(|t| 3 * t).collect::<Vec<u32>>(), "{copy}");
        // Its padding is nobody's, in the kernel and on the host.
        for (use_of, kind) in [
            (
                "ld.global.u8 %r2, [%rd7+9];\natom.global.add.u32 %r3, [%rd0+512], %r2;",
                FaultKind::UninitializedRegister,
            ),
            ("ld.global.u32 %r2, [%rd7+12];\nsetp.eq.u32 %p1, %r2, %t;\n@%p1 trap;", FaultKind::UninitializedRegister),
            ("atom.global.or.b32 %r2, [%rd7+12], 1;", FaultKind::UninitializedGlobal),
        ] {
            fault(&format!("{STRUCTURE}{copy}\n{use_of}\nret;"), 1, 16, kind);
        }
        let m = kernel(&format!("{STRUCTURE}{copy}\nret;"));
        let e = launch(&m, 1, 16, 0, Checks::all()).unwrap_err();
        assert!(matches!(&e, EmuError::InvalidDeviceAddress { what, .. } if what.contains("byte 9 ")), "{e}");
        assert!(launch(&m, 1, 16, 0, Checks { uninitialized: false, ..Checks::all() }).is_ok());
    }
}
