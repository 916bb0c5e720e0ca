//! The language of clusters and of cache policies: which forms there are, and why others are refused. What they do is in the cases
//! of `cases/families/cluster.rs` and `hints.rs`.

use ptx_emu::*;

/// An entry with one statement, of registers of every kind.
fn module(statement: &str) -> Result<Module, ParseError> {
    Module::parse(&format!(
        ".version 8.6\n.target sm_90a\n.address_size 64\n.shared .align 128 .b8 sh[1024];\n.visible .entry k(.param .u64 g)\n{{\n\
         .reg .pred %p<4>; .reg .b16 %h<4>; .reg .b32 %r<8>; .reg .b64 %rd<8>; .reg .f32 %f<4>;\n{statement}\nret;\n}}\n"
    ))
}

/// Forms that ptxas 13.5 assembles for sm_90a.
const ACCEPTED: &[&str] = &[
    "barrier.cluster.arrive;",
    "barrier.cluster.arrive.release;",
    "barrier.cluster.arrive.relaxed.aligned;",
    "barrier.cluster.wait;",
    "barrier.cluster.wait.acquire.aligned;",
    "mapa.u64 %rd3, %rd2, %r1;",
    "mapa.shared::cluster.u32 %r2, %r0, %r1;",
    "mapa.shared::cluster.u32 %r2, sh, 1;",
    "mapa.shared::cluster.u32 %r2, sh+4, %r1;",
    "mapa.shared::cluster.u64 %rd3, %rd2, %r1;",
    "getctarank.u64 %r2, %rd2;",
    "getctarank.shared::cluster.u32 %r2, %r0;",
    "getctarank.shared::cluster.u32 %r2, sh;",
    "getctarank.shared::cluster.u64 %r2, %rd2;",
    "ld.shared::cluster.v2.u32 {%r2,%r3}, [%r0];",
    "ld.acquire.cluster.shared::cluster.u32 %r2, [%r0];",
    "ld.acquire.cluster.u32 %r2, [%rd0];",
    "ld.volatile.shared::cluster.u32 %r2, [%r0];",
    "st.release.cluster.shared::cluster.u32 [%r0], %r1;",
    "atom.shared::cluster.add.u32 %r2, [%r0], %r1;",
    "atom.acq_rel.cluster.shared::cluster.cas.b32 %r2, [%r0], %r1, %r1;",
    "atom.cluster.add.u32 %r2, [%rd0], %r1;",
    "red.release.cluster.shared::cluster.add.u32 [%r0], %r1;",
    "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r0], %r1, [%r0+8];",
    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%r0], {%f0,%f0,%f0,%f0}, [%r0+8];",
    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b64 [%r0], {%rd1,%rd1}, [%r0+8];",
    "st.async.weak.mbarrier::complete_tx::bytes.b32 [%rd2], %r1, [%rd2+8];",
    "st.async.shared::cta.mbarrier::complete_tx::bytes.b32 [%r0], %r1, [%r0+8];",
    "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.s64 [%r0], %rd1, [%r0+8];",
    "red.async.relaxed.cluster.mbarrier::complete_tx::bytes.inc.u32 [%r0], %r1, [%r0+8];",
    "mbarrier.arrive.shared::cluster.b64 _, [%r0];",
    "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r0], 2;",
    "mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%r0];",
    "mbarrier.arrive.release.cluster.shared::cta.b64 %rd3, [%r0];",
    "mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%r0], %r1;",
    "mbarrier.arrive_drop.expect_tx.release.cluster.shared::cluster.b64 _, [%r0], %r1;",
    "mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64 [%r0], %r1;",
    "mbarrier.complete_tx.shared::cluster.b64 [%r0], %r1;",
    "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [%r0], %r1;",
    "mbarrier.test_wait.relaxed.cluster.shared::cta.b64 %p1, [%r0], %rd1;",
    "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r0], [%r0+64], 64, [%r0+512];",
    "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r0], [%rd0], 64, [%r0+512];",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [%rd0], 64, [%r0+512], %h0;",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [%rd0], 64, [%r0+512], 3;",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%r0], [%rd0], 64, [%r0+512], %h0, %rd1;",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r0], [%rd0], 64, [%r0+512], %rd1;",
    "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%rd0], [%r0], 64, 5;",
    "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [%rd0,{%r1,%r1}], [%r0+512], %h0;",
    "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%r0], [%rd0,{%r1,%r1}], [%r0+512], %h0, %rd1;",
    "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group.L2::cache_hint [%rd0,{%r1,%r1}], [%r0], %rd1;",
    "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group.L2::cache_hint [%rd0,{%r1,%r1}], [%r0], %rd1;",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.add.u32 [%rd0], [%r0], 64, %rd1;",
    "cp.async.bulk.prefetch.tensor.2d.L2.global.L2::cache_hint [%rd0,{%r1,%r1}], %rd1;",
    "cp.async.bulk.prefetch.L2.global.L2::cache_hint [%rd0], 64, %rd1;",
    "cp.async.cg.shared.global.L2::cache_hint [%r0], [%rd0], 16, %r1, %rd1;",
    "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%r0], [%rd0], 16, %rd1;",
    "ld.global.L1::no_allocate.L2::cache_hint.v4.f32 {%f0,%f1,%f2,%f3}, [%rd0], %rd1;",
    "ld.L2::cache_hint.u32 %r2, [%rd0], %rd1;",
    "st.global.L2::cache_hint.u32 [%rd0], %r1, %rd1;",
    "atom.global.add.L2::cache_hint.u32 %r2, [%rd0], %r1, %rd1;",
    "red.global.add.L2::cache_hint.u32 [%rd0], %r1, %rd1;",
    "createpolicy.fractional.L2::evict_last.b64 %rd3;",
    "createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 %rd3, 0.5;",
    "createpolicy.fractional.L2::evict_first.b64 %rd3, %f0;",
    "createpolicy.range.global.L2::evict_last.L2::evict_first.b64 %rd3, [%rd0], %r1, 4096;",
    "createpolicy.cvt.L2.b64 %rd3, %rd1;",
    "griddepcontrol.wait;",
    "griddepcontrol.launch_dependents;",
    "fence.acq_rel.cluster;",
    "fence.sc.cluster;",
    "fence.acquire.cluster;",
    "fence.cluster;",
    "fence.mbarrier_init.release.cluster;",
    "fence.proxy.async.shared::cluster;",
    "mov.u32 %r2, %cluster_ctaid.x;",
    "mov.u32 %r2, %nclusterid.z;",
    "mov.pred %p1, %is_explicit_cluster;",
    "isspacep.shared::cluster %p1, %rd0;",
    "cvta.to.shared::cluster.u64 %rd3, %rd2;",
];

/// Forms that ptxas 13.5 refuses, with what the emulator says of them.
const REFUSED: &[(&str, &str)] = &[
    ("barrier.cluster.wait.relaxed;", "`.relaxed` is not accepted here"),
    ("barrier.cluster.arrive.acquire;", "`.acquire` is not accepted here"),
    ("barrier.cluster;", ".arrive or .wait is missing"),
    ("bar.cluster.arrive 0, 32;", "`.cluster` is not accepted here"),
    ("barrier.cluster.arrive 0;", "1 operands given, [0] accepted"),
    ("mapa.shared::cta.u32 %r2, %r0, %r1;", "other than .shared::cluster"),
    ("mapa.shared.u32 %r2, %r0, %r1;", "other than .shared::cluster"),
    ("mapa.shared::cluster.b32 %r2, %r0, %r1;", "other than u32 and u64"),
    ("getctarank.shared::cta.u32 %r2, %r0;", "other than .shared::cluster"),
    ("getctarank.shared::cluster.u64 %rd3, %rd2;", "not 32 bits wide"),
    ("ld.acquire.shared::cluster.u32 %r2, [%r0];", "an order without a scope"),
    (
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b64 [%r0], {%rd1,%rd1,%rd1,%rd1}, [%r0+8];",
        "32 bytes; at most 16",
    ),
    ("st.async.shared::cluster.mbarrier::complete_tx::bytes.b8 [%r0], %r1, [%r0+8];", "type that it has not"),
    ("st.async.shared::cluster.b32 [%r0], %r1, [%r0+8];", ".mbarrier::complete_tx::bytes is missing"),
    ("st.async.release.cluster.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r0], %r1, [%r0+8];", ".weak"),
    ("st.async.global.mbarrier::complete_tx::bytes.b32 [%rd0], %r1, [%r0+8];", "other than shared"),
    (
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r0], %r1, [%r0+8];",
        "1 registers given, 2 accepted",
    ),
    ("red.async.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r0], %r1, [%r0+8];", ".relaxed.cluster"),
    (
        "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.min.u64 [%r0], %rd1, [%r0+8];",
        "type that it has not",
    ),
    (
        "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.or.b64 [%r0], %rd1, [%r0+8];",
        "type that it has not",
    ),
    (
        "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.f32 [%r0], %f0, [%r0+8];",
        "type that it has not",
    ),
    (
        "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.exch.b32 [%r0], %r1, [%r0+8];",
        "operation or type that it has not",
    ),
    ("mbarrier.arrive.shared::cluster.b64 [%r0];", "`_` is accepted"),
    ("mbarrier.arrive.release.cluster.shared::cluster.b64 %rd3, [%r0];", "`_` is accepted"),
    ("mbarrier.arrive.release.gpu.shared::cta.b64 %rd3, [%r0];", "other than .cta and .cluster"),
    ("mbarrier.arrive.release.shared::cta.b64 %rd3, [%r0];", "an order without a scope"),
    ("mbarrier.arrive.cluster.shared::cta.b64 %rd3, [%r0];", "a scope without an order"),
    ("mbarrier.arrive.acquire.cluster.shared::cta.b64 %rd3, [%r0];", "an order that this action has not"),
    ("mbarrier.arrive.noComplete.shared::cluster.b64 _, [%r0], 1;", ".shared::cta is accepted"),
    ("mbarrier.init.shared::cluster.b64 [%r0], 1;", ".shared::cta is accepted"),
    ("mbarrier.inval.shared::cluster.b64 [%r0];", ".shared::cta is accepted"),
    ("mbarrier.test_wait.shared::cluster.b64 %p1, [%r0], %rd1;", ".shared::cta is accepted"),
    ("mbarrier.try_wait.parity.shared::cluster.b64 %p1, [%r0], %r1;", ".shared::cta is accepted"),
    ("mbarrier.try_wait.parity.release.cluster.shared::cta.b64 %p1, [%r0], %r1;", "an order that this action has not"),
    (
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [%rd0], 64, [%r0+512];",
        "a mask of CTAs is missing",
    ),
    (
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%rd0], 64, [%r0+512], %h0;",
        "5 operands given, [4] accepted",
    ),
    (
        "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [%rd0], 64, [%r0+512], %h0;",
        "a multicast other than",
    ),
    (
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [%r0], 64, [%r0+512], %h0;",
        "a multicast other than",
    ),
    (
        "cp.async.bulk.shared::cta.shared::cta.mbarrier::complete_tx::bytes [%r0], [%r0], 64, [%r0+512];",
        "spaces other than",
    ),
    (
        "cp.async.bulk.shared::cluster.shared::cluster.mbarrier::complete_tx::bytes [%r0], [%r0], 64, [%r0+512];",
        "spaces other than",
    ),
    ("ld.shared.L2::cache_hint.u32 %r2, [%r0], %rd1;", "a cache policy for a space other than global"),
    ("ld.global.L2::cache_hint.u32 %r2, [%rd0];", "a cache policy is missing"),
    ("ld.global.u32 %r2, [%rd0], %rd1;", "3 operands given, [2] accepted"),
    ("ld.global.L2::cache_hint.u32 %r2, [%rd0], %r1;", "not 64 bits wide"),
    ("createpolicy.fractional.b64 %rd3;", "a priority is missing"),
    ("createpolicy.range.L2::evict_last.b64 %rd3, [%rd0];", "2 operands given, [4] accepted"),
    ("griddepcontrol;", ".wait or .launch_dependents is missing"),
    ("fence.sc;", "a scope is missing"),
    ("fence.mbarrier_init;", "other than .release.cluster"),
    ("fence.mbarrier_init.release.cta;", "other than .release.cluster"),
    ("mov.u32 %r2, %is_explicit_cluster;", "read by mov.pred only"),
    ("ldmatrix.sync.aligned.m8n8.x1.shared::cluster.b16 {%r2}, [%r0];", "other than shared"),
    ("cp.async.mbarrier.arrive.shared::cluster.b64 [%r0];", "other than shared"),
];

/// What ptxas assembles and the emulator refuses, so that nobody takes it for executed.
const NOT_RUN: &[(&str, &str)] = &[
    ("mapa.u32 %r2, %r0, %r1;", "a generic address of 32 bits"),
    ("getctarank.u32 %r2, %r0;", "a generic address of 32 bits"),
    ("fence.acquire.sync_restrict::shared::cluster.cluster;", "sync_restrict"),
    (
        "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32 [%r0], [%r0+64], 64, [%r0+512];",
        "a reduction into shared memory",
    ),
];

#[test]
fn forms_that_exist_are_accepted() {
    for form in ACCEPTED {
        module(form).unwrap_or_else(|e| panic!("`{form}`: {e}"));
    }
}

#[test]
fn other_forms_are_refused_with_a_reason() {
    for (form, want) in REFUSED.iter().chain(NOT_RUN) {
        let error = module(form).map(|_| ()).expect_err(form);
        assert_eq!(error.line, 8, "`{form}`: {error}");
        assert!(matches!(error.kind, ParseErrorKind::UnsupportedForm { .. }), "`{form}`: {error}");
        assert!(error.to_string().contains(want), "`{form}`: {error}");
    }
}

#[test]
fn cluster_directives_are_checked() {
    let with = |directives: &str| {
        Module::parse(&format!(
            ".version 8.6\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{directives}\n{{ ret; }}\n"
        ))
    };
    for fine in [
        ".reqnctapercluster 2",
        ".reqnctapercluster 4, 2, 1",
        ".explicitcluster\n.reqnctapercluster 16, 1, 1",
        ".maxclusterrank 8",
        ".reqntid 128, 1, 1\n.reqnctapercluster 1, 1, 8",
    ] {
        assert!(with(fine).is_ok(), "{fine}");
    }
    for (bad, want) in [
        (".reqnctapercluster 0", "clusters of [0, 1, 1] CTAs; 1 to 16 are accepted"),
        (".reqnctapercluster 17, 1, 1", "clusters of [17, 1, 1] CTAs"),
        (".reqnctapercluster 4, 4, 2", "clusters of [4, 4, 2] CTAs"),
        (".reqnctapercluster 65536, 65536, 65536", "1 to 16 are accepted"),
        (".blocksareclusters", "grids that are counted in clusters"),
    ] {
        let error = with(bad).map(|_| ()).expect_err(bad);
        assert!(error.to_string().contains(want) && error.line == 5, "{bad}: {error}");
    }
}

#[test]
fn a_policy_is_known_as_soon_as_its_operands_are() {
    let run = |first: &str| {
        let m = module(&format!(
            "{first}\ncreatepolicy.fractional.L2::evict_last.b64 %rd3, %f0;\nld.param.u64 %rd0, [g];\nst.global.b64 [%rd0], %rd3;"
        ));
        let e = Emulator::default();
        let out = e.alloc(8).unwrap();
        e.launch(&m.unwrap(), "k", &Launch::new([1, 1, 1], [1, 1, 1]).with_ptr(out))
    };
    assert!(run("mov.f32 %f0, 0f3F800000;").is_ok());
    let fault = run("").unwrap_err().fault().map(|f| f.kind);
    assert_eq!(fault, Some(FaultKind::UninitializedRegister));
}
