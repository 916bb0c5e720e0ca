//! The language around the arithmetic: divergence, functions, spaces, messages, refusals.

use ptx_emu::*;

const HEAD: &str = ".version 7.8\n.target sm_80\n.address_size 64\n";

/// Runs an entry `k(out)` of 64 threads; each leaves one u32.
fn run_with(e: &Emulator, text: &str) -> Result<Vec<u32>, EmuError> {
    let m = Module::parse(&format!("{HEAD}{text}")).unwrap_or_else(|e| panic!("{e}"));
    let out = e.alloc(256)?;
    e.launch(&m, "k", &Launch::new([1, 1, 1], [64, 1, 1]).with_ptr(out))?;
    let mut bytes = [0; 256];
    e.read(out, &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect())
}

fn run(text: &str) -> Vec<u32> {
    let plain = run_with(&Emulator::default(), text).unwrap_or_else(|e| panic!("{e}"));
    for seed in 1..30 {
        let e = Emulator::new(EmulatorOptions::default().with_seed(seed));
        assert_eq!(run_with(&e, text).unwrap_or_else(|e| panic!("{e}")), plain);
    }
    plain
}

fn fault(text: &str) -> Fault {
    match run_with(&Emulator::default(), text) {
        Err(EmuError::Fault(f)) => *f,
        other => panic!("a fault expected, got {other:?}"),
    }
}

/// An entry that computes `%r` from `%t` (the thread) and stores it.
fn kernel(declarations: &str, body: &str) -> String {
    format!(
        "{declarations}\n.visible .entry k(.param .u64 result)\n{{\n.reg .pred %p<9>;\n.reg .b16 %h<9>;\n.reg .b32 %r, %t, %a<20>;\n\
         .reg .b64 %rd<20>;\nmov.u32 %t, %tid.x;\n{body}\nld.param.u64 %rd18, [result];\nmul.wide.u32 %rd19, %t, 4;\n\
         add.s64 %rd18, %rd18, %rd19;\nst.global.u32 [%rd18], %r;\nret;\n}}\n"
    )
}

#[test]
fn nested_divergence_reconverges() {
    let out = run(&kernel(
        "",
        "mov.b32 %r, 0;
         and.b32 %a0, %t, 3;
         setp.eq.u32 %p0, %a0, 0;
         @%p0 bra zero;
         setp.eq.u32 %p1, %a0, 1;
         @%p1 bra one;
         add.s32 %r, %r, 100;
         bra joined;
         one: add.s32 %r, %r, 10;
         joined: add.s32 %r, %r, 1;
         bra end;
         zero: add.s32 %r, %r, 1000;
         end: shfl.sync.idx.b32 %a1, %r, 0, 0x1f, 0xffffffff;
         add.s32 %r, %r, %a1;",
    ));
    let want: Vec<u32> = (0..64).map(|t| 1000 + [1000, 11, 101, 101][t % 4]).collect();
    assert_eq!(out, want);
}

#[test]
fn loops_of_different_length_meet_at_their_end() {
    let out = run(&kernel(
        "",
        "mov.b32 %r, 0;
         mov.b32 %a0, %t;
         outer: and.b32 %a1, %a0, 7;
         inner: add.s32 %r, %r, 1;
         setp.eq.u32 %p0, %a1, 0;
         sub.s32 %a1, %a1, 1;
         @!%p0 bra inner;
         setp.lt.u32 %p1, %a0, 8;
         sub.s32 %a0, %a0, 8;
         @!%p1 bra outer;
         bar.warp.sync 0xffffffff;
         activemask.b32 %a2;
         setp.eq.u32 %p2, %a2, 0xffffffff;
         @!%p2 trap;",
    ));
    assert_eq!(out, (0..64).map(|t| (t / 8 + 1) * (t % 8 + 1)).collect::<Vec<u32>>());
}

#[test]
fn lanes_that_exit_early_leave_the_others_converged() {
    let out = run(&kernel(
        "",
        "ld.param.u64 %rd0, [result];
         mul.wide.u32 %rd1, %t, 4;
         add.s64 %rd0, %rd0, %rd1;
         st.global.u32 [%rd0], %t;
         and.b32 %a0, %t, 1;
         setp.eq.u32 %p0, %a0, 1;
         @%p0 exit;
         bar.warp.sync 0x55555555;
         mov.b32 %r, 7;
         bar.sync 0;",
    ));
    assert_eq!(out, (0..64).map(|t| if t % 2 == 1 { t } else { 7 }).collect::<Vec<u32>>());
}

#[test]
fn lanes_that_branch_to_the_return_are_gone() {
    // Compilers write `if (i >= n) return;` as a branch to the common `ret`, with other branches on the way.
    for target in ["done", "far"] {
        let out = run(&kernel(
            "",
            &format!(
                "mov.b32 %r, 7;
                 ld.param.u64 %rd0, [result];
                 mul.wide.u32 %rd1, %t, 4;
                 add.s64 %rd1, %rd0, %rd1;
                 st.global.u32 [%rd1], %t;
                 and.b32 %a0, %t, 3;
                 setp.eq.u32 %p0, %a0, 3;
                 @%p0 bra {target};
                 bar.warp.sync 0xffffffff;
                 shfl.sync.idx.b32 %a1, %t, 1, 0x1f, 0xffffffff;
                 vote.sync.ballot.b32 %a2, 1, 0xffffffff;
                 bar.sync 0;
                 add.s32 %r, %a1, %a2;
                 bra store;
                 far: bra done;
                 store: st.global.u32 [%rd1], %r;
                 done: ret;"
            ),
        ));
        let want = |t: u32| if t % 4 == 3 { t } else { (t / 32 * 32 + 1).wrapping_add(0x7777_7777) };
        assert_eq!(out, (0..64).map(want).collect::<Vec<u32>>());
    }
    // A block that does something before it returns is no exit: its lanes are still to come.
    let f = fault(&kernel(
        "",
        "mov.b32 %r, 7;
         setp.eq.u32 %p0, %t, 3;
         @%p0 bra done;
         bar.warp.sync 0xffffffff;
         done: add.s32 %r, %r, 1;",
    ));
    assert_eq!(f.kind, FaultKind::Deadlock, "{f}");
}

#[test]
fn lanes_that_branch_to_the_return_count_as_before() {
    let m = Module::parse(&format!(
        "{HEAD}.visible .entry k() {{ .reg .pred %p; .reg .b32 %r; mov.u32 %r, %tid.x; setp.lt.u32 %p, %r, 40;\n\
         @%p bra done; add.s32 %r, %r, 1; done: ret; }}"
    ))
    .unwrap();
    let e = Emulator::default();
    let c = e.launch(&m, "k", &Launch::new([1, 1, 1], [64, 1, 1])).unwrap().counters;
    // Warp 0 leaves as a whole: mov, setp, bra, ret. In warp 1, 8 lanes branch and 24 add; all return.
    let lanes = 4 * 32 + (2 * 32 + 8 + 24 + 32);
    assert_eq!((c.warp_instructions, c.lane_instructions, c.divergent_branches), (4 + 5, lanes, 1));
}

#[test]
fn lanes_of_one_warp_can_wait_for_each_other() {
    // Lane 0 waits for a flag that lane 1 sets on the other side of the branch: needs independent progress.
    let out = run(&kernel(
        ".shared .align 4 .u32 flag;",
        "setp.ne.u32 %p0, %t, 40;
         @!%p0 st.shared.u32 [flag], 0;
         bar.sync 0;
         setp.eq.u32 %p1, %t, 0;
         setp.ne.u32 %p2, %t, 1;
         @%p1 bra wait;
         membar.cta;
         @!%p2 atom.shared.exch.b32 %a1, [flag], 5;
         bra done;
         wait: ld.volatile.shared.u32 %a0, [flag];
         setp.ne.u32 %p3, %a0, 5;
         @%p3 bra wait;
         done: mov.b32 %r, 1;",
    ));
    assert_eq!(out, [1; 64]);
}

#[test]
fn functions_return_values_through_parameters() {
    let out = run(&kernel(
        ".func (.param .b32 ret) square(.param .b32 x) { .reg .b32 %v; ld.param.b32 %v, [x]; mul.lo.s32 %v, %v, %v; st.param.b32 [ret], %v; ret; }
         .func (.param .align 8 .b8 ret[8]) pair(.param .align 8 .b8 x[8])
         { .reg .pred %p; .reg .b32 %v<3>; ld.param.v2.b32 {%v0, %v1}, [x]; setp.gt.u32 %p, %v0, 31; @%p bra big;
           st.param.v2.b32 [ret], {%v1, %v0}; ret; big: st.param.v2.b32 [ret], {%v0, %v1}; ret; }",
        "{ .param .b32 p0; st.param.b32 [p0], %t; .param .b32 q0; call.uni (q0), square, (p0); ld.param.b32 %a0, [q0]; }
         { .param .align 8 .b8 p0[8]; st.param.v2.b32 [p0], {%t, %a0}; .param .align 8 .b8 q0[8]; call (q0), pair, (p0); ld.param.b32 %r, [q0]; }",
    ));
    assert_eq!(out, (0..64).map(|t| if t > 31 { t } else { t * t }).collect::<Vec<u32>>());
}

#[test]
fn recursive_and_external_calls_are_errors_when_they_run() {
    let text = kernel(
        ".func f() { call f; ret; }\n.extern .func g();",
        "mov.b32 %r, 1;\nsetp.eq.u32 %p0, %t, 999;\n@%p0 call f;\n@%p0 call g;",
    );
    assert_eq!(run(&text), [1; 64]);
    let f = fault(&kernel(".func f() { call f; ret; }", "call f;\nmov.b32 %r, 1;"));
    assert!(f.kind == FaultKind::Unsupported && f.detail.contains("recursive"), "{f}");
    let f = fault(&kernel(".extern .func g();", "call g;\nmov.b32 %r, 1;"));
    assert!(f.kind == FaultKind::Unsupported && f.detail.contains("`g`"), "{f}");
}

#[test]
fn local_memory_and_generic_addresses() {
    let out = run(&kernel(
        ".shared .align 8 .b8 tile[512];",
        ".local .align 8 .b8 depot[16];
         mov.u64 %rd0, depot;
         cvta.local.u64 %rd1, %rd0;
         st.local.u32 [%rd0+4], %t;
         st.u16 [%rd1+8], 0xabcd;
         mov.u64 %rd2, tile;
         cvta.shared.u64 %rd3, %rd2;
         mul.wide.u32 %rd4, %t, 8;
         add.s64 %rd3, %rd3, %rd4;
         ld.u32 %a0, [%rd1+4];
         st.v2.u32 [%rd3], {%a0, 5};
         ld.v2.u32 {%a1, %a2}, [%rd3];
         cvta.to.shared.u64 %rd5, %rd3;
         ld.shared.u32 %a3, [%rd5+4];
         ld.s16 %a4, [%rd1+8];
         isspacep.shared %p0, %rd3;
         isspacep.local %p1, %rd3;
         selp.u32 %a5, 1, 0, %p0;
         selp.u32 %a6, 1, 0, %p1;
         add.s32 %r, %a1, %a2;
         add.s32 %r, %r, %a3;
         add.s32 %r, %r, %a4;
         mad.lo.s32 %r, %a5, 1000, %r;
         mad.lo.s32 %r, %a6, 100000, %r;",
    ));
    assert_eq!(
        out,
        (0..64).map(|t: u32| (t + 10 + 1000).wrapping_add(0xabcdu16 as i16 as i32 as u32)).collect::<Vec<u32>>()
    );
}

#[test]
fn variables_start_with_their_initialisers() {
    let out = run(&kernel(
        ".global .align 4 .u32 table[4] = {10, 0x14, 30, 40};\n.const .align 8 .u64 pointer[1] = {table+4};\n.global .align 4 .f32 zero;",
        "ld.const.u64 %rd0, [pointer];
         and.b32 %a0, %t, 1;
         mul.wide.u32 %rd1, %a0, 4;
         add.s64 %rd0, %rd0, %rd1;
         ld.global.u32 %a1, [%rd0];
         ld.global.u32 %a2, [zero];
         add.s32 %r, %a1, %a2;",
    ));
    assert_eq!(out, (0..64).map(|t| 20 + 10 * (t % 2)).collect::<Vec<u32>>());
    let f = fault(&kernel(
        ".const .align 4 .u32 one = 1;",
        "mov.b32 %r, 1;\nmov.u64 %rd0, one;\nst.global.u32 [%rd0], %r;",
    ));
    assert_eq!(f.kind, FaultKind::ReadOnlyWrite);
}

#[test]
fn faults_name_line_source_and_thread() {
    let text = kernel(
        ".file 1 \"src/kernel.rs\"",
        "mov.b32 %r, 1;\n.loc 1 42 7\nsetp.eq.u32 %p0, %t, 37;\n.loc 1 43 9\n@%p0 st.global.u32 [4096], %r;",
    );
    let f = fault(&text);
    assert_eq!((f.kind, f.warp, f.lane, f.cta), (FaultKind::GlobalOutOfBounds, 1, Some(5), [0, 0, 0]));
    assert_eq!(f.kernel, "k");
    assert_eq!(f.source, Some(SourceLocation { file: "src/kernel.rs".to_owned(), line: 43, column: 9 }));
    assert!(f.instruction.starts_with("@%p0 st.global.u32"), "{f}");
    let line = format!("{HEAD}{text}").lines().position(|l| l.starts_with("@%p0 st")).unwrap() as u32 + 1;
    assert_eq!(f.ptx_line, line);
    assert!(f.operands.contains("0x1"), "{f}");
}

#[test]
fn freed_memory_is_told_from_memory_that_never_was() {
    let e = Emulator::default();
    let m = Module::parse(&format!(
        "{HEAD}.visible .entry k(.param .u64 p) {{ .reg .b64 %rd; .reg .b32 %r; ld.param.u64 %rd, [p]; ld.global.u32 %r, [%rd]; ret; }}"
    ))
    .unwrap();
    let p = e.alloc(64).unwrap();
    e.fill(p, 0, 64).unwrap();
    e.free(p).unwrap();
    for (address, kind) in [
        (p + 4, FaultKind::GlobalUseAfterFree),
        (p + 64, FaultKind::GlobalOutOfBounds),
        (0, FaultKind::GlobalOutOfBounds),
    ] {
        match e.launch(&m, "k", &Launch::new([1, 1, 1], [1, 1, 1]).with_ptr(address)) {
            Err(EmuError::Fault(f)) => assert_eq!(f.kind, kind),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_not_known_is_refused_with_its_line() {
    let at = |body: &str| {
        Module::parse(&format!(
            "{HEAD}.visible .entry k()\n{{\n.reg .pred %p;\n.reg .b32 %r<4>;\n.reg .b64 %rd<4>;\n{body}\nret;\n}}\n"
        ))
        .unwrap_err()
    };
    for (body, want) in [
        ("frobnicate.b32 %r0, %r1;", "unknown opcode `frobnicate`"),
        ("add.b99 %r0, %r1, %r2;", "a type"),
        ("add.rn.s32 %r0, %r1, %r2;", "floating-point modifier"),
        ("add.sat.u32 %r0, %r1, %r2;", ".sat"),
        ("ld.global.b32.fancy %r0, [%rd0];", "fancy"),
        ("add.s32 %r0, %r1, %rd0;", "not 32 bits"),
        ("add.s32 %r0, %r1;", "operands"),
        ("add.s32 %r9, %r1, %r2;", "not declared"),
        ("bra nowhere;", "`nowhere` is not declared"),
        ("shfl.idx.b32 %r0, %r1, 0, 0x1f;", ".sync"),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {%r0,%r0,%r0,%r0}, {%r1,%r1,%r1,%r1}, {%r2,%r2}, {%r0,%r0,%r0,%r0};",
            "combination",
        ),
        ("cp.async.cg.shared.global [%r0], [%rd0], 8;", "16"),
        ("cvt.f16.f32 %r0, %r1;", "rounding"),
        ("st.param.b32 [%rd0], %r0;", "parameter"),
        ("cvt.sat.s32.u16 %r0, %r1;", "every value fits"),
        ("atom.global.min.f16x2 %r0, [%rd0], %r1;", "not known for this type"),
    ] {
        let e = at(body);
        assert_eq!(e.line, 9, "{e}");
        assert!(e.to_string().contains(want), "`{body}`: {e}");
    }
    assert!(matches!(Module::parse(".version 3.0\n").unwrap_err().kind, ParseErrorKind::Unsupported(_)));
    assert!(Module::parse(".version 8.0\n.target sm_80\n.address_size 32\n").is_err());
    assert!(Module::parse("garbage").is_err());
}

#[test]
fn an_entry_that_cannot_run_leaves_the_others() {
    let text = |body: &str| {
        format!(
            "{HEAD}.func helper() {{ .reg .b32 %r; frobnicate.b32 %r, %r; ret; }}\n.visible .entry good() {{ ret; }}\n\
             .visible .entry bad() {{ .reg .b32 %r; {body}\nret; }}\n.visible .entry worse() {{ call helper; ret; }}\n"
        )
    };
    let e = Emulator::default();
    let launch = Launch::new([1, 1, 1], [32, 1, 1]);
    for (body, want) in [
        ("frobnicate.b32 %r, %r;", "unknown opcode `frobnicate`"),
        ("mov.u32 %r, %envreg2;", "special register `%envreg2`"),
        ("mov.u32 %r, %r;\nt: .branchtargets a, b;\na: b: brx.idx %r, t;", "branch table"),
        ("add.s32 %r, %r, nothing;", "`nothing` is not declared"),
    ] {
        let m = Module::parse(&text(body)).unwrap();
        e.launch(&m, "good", &launch).unwrap();
        assert_eq!(m.entries().collect::<Vec<_>>(), ["good"]);
        assert_eq!(m.refused().map(|(name, _)| name).collect::<Vec<_>>(), ["bad", "worse"]);
        assert!(m.entry("good").is_some() && m.entry("bad").is_none());
        match e.launch(&m, "bad", &launch) {
            Err(EmuError::UnsupportedEntry { entry, error }) => {
                assert_eq!(entry, "bad");
                assert!(error.to_string().contains(want), "`{body}`: {error}");
            }
            other => panic!("{other:?}"),
        }
        let error = e.launch(&m, "worse", &launch).unwrap_err().to_string();
        assert!(error.starts_with("entry `worse`: PTX line 4") && error.contains("frobnicate"), "{error}");
    }
    // With nothing left to launch, the module itself is refused, with what comes first.
    let error = Module::parse(&text("frobnicate.b32 %r, %r;").replace("{ ret; }", "{ trick; }")).unwrap_err();
    assert!(error.line == 5 && error.to_string().contains("trick"), "{error}");
}

#[test]
fn launches_are_checked_before_they_run() {
    let e = Emulator::default();
    let m = Module::parse(&format!(
        "{HEAD}.extern .shared .align 16 .b8 d[];\n.visible .entry k(.param .u64 a, .param .align 8 .b8 b[24]) .reqntid 32,1,1\n\
         {{ .reg .b32 %r; mov.b32 %r, d; ret; }}"
    ))
    .unwrap();
    let info = m.entry("k").unwrap();
    assert_eq!(info.required_block, Some([32, 1, 1]));
    assert_eq!(info.params.iter().map(|p| (p.offset, p.bytes)).collect::<Vec<_>>(), [(0, 8), (8, 24)]);
    let good = Launch::new([1, 1, 1], [32, 1, 1]).with_ptr(0).with_param(&[0; 24]);
    assert!(e.launch(&m, "k", &good).is_ok());
    let invalid = |l: Launch| assert!(matches!(e.launch(&m, "k", &l), Err(EmuError::InvalidLaunch { .. })), "{l:?}");
    invalid(Launch { block: [64, 1, 1], ..good.clone() });
    invalid(Launch { grid: [0, 1, 1], ..good.clone() });
    invalid(Launch { params: vec![vec![0; 8]], ..good.clone() });
    invalid(Launch { params: vec![vec![0; 8], vec![0; 23]], ..good.clone() });
    invalid(Launch { dynamic_shared_bytes: 228 << 10, ..good.clone() });
    assert!(matches!(e.launch(&m, "nope", &good), Err(EmuError::UnknownEntry { .. })));
    let old = Emulator::new(EmulatorOptions::default().with_sm_target(75));
    assert!(matches!(old.launch(&m, "k", &good), Err(EmuError::InvalidLaunch { .. })));
}

#[test]
fn counters_are_exact_and_do_not_depend_on_threads() {
    let text = kernel(
        ".shared .align 16 .b8 tile[8192];",
        "mov.u32 %a0, tile;
         shl.b32 %a1, %t, 7;
         add.s32 %a1, %a0, %a1;
         st.shared.u32 [%a1], %t;
         fma.rn.f32 %r, %t, %t, %t;
         mov.b32 %r, %t;",
    );
    let m = Module::parse(&format!("{HEAD}{text}")).unwrap();
    let count = |threads: usize| {
        let e = Emulator::new(EmulatorOptions::default().with_threads(threads));
        let out = e.alloc(256 * 40).unwrap();
        let mut all = Counters::default();
        for i in 0..4 {
            let l = Launch::new([1, 1, 1], [64, 1, 1]).with_ptr(out + 256 * i);
            all.add(&e.launch(&m, "k", &l).unwrap().counters);
        }
        all
    };
    let c = count(1);
    assert_eq!(c, count(2));
    assert_eq!(c.warp_instructions, 4 * 2 * 12);
    assert_eq!(c.lane_instructions, 32 * c.warp_instructions);
    assert_eq!(c.f32_flops, 4 * 64 * 2);
    assert_eq!(c.global_bytes_written, 4 * 256);
    assert_eq!((c.global_sectors_written, c.unique_bytes_written), (4 * 8, 4 * 256));
    // A stride of 128 bytes puts all lanes on one bank.
    assert_eq!((c.shared_wavefronts, c.shared_bank_conflicts), (4 * 2 * 32, 4 * 2 * 31));
    assert_eq!(c.class(InstructionClass::Float), 4 * 64);
}

#[test]
fn a_fault_is_the_same_again_with_its_seed() {
    let text = kernel(".shared .align 4 .u32 x;", "mov.b32 %r, 0;\nst.shared.u32 [x], %t;");
    let m = Module::parse(&format!("{HEAD}{text}")).unwrap();
    for seed in 0..20 {
        let go = || {
            let e = Emulator::new(EmulatorOptions::default().with_threads(1));
            let out = e.alloc(256).unwrap();
            e.launch(&m, "k", &Launch::new([1, 1, 1], [64, 1, 1]).with_ptr(out).with_seed(seed)).unwrap_err()
        };
        assert_eq!(go(), go());
        assert_eq!(go().fault().unwrap().seed, seed);
    }
}

#[test]
fn minima_and_maxima_of_three_and_hints_to_the_memory() {
    let text = |body: &str| {
        format!(
            ".version 8.8\n.target sm_100\n.address_size 64\n.visible .entry k(.param .u64 words)\n{{\n.reg .b32 %r<9>;\n.reg .b64 %rd0;\n\
             ld.param.u64 %rd0, [words];\n{body}\nret;\n}}\n"
        )
    };
    let e = Emulator::new(EmulatorOptions::default().with_sm_target(100));
    let word = e.alloc(256).unwrap();
    let run = |body: &str| {
        e.fill(word, 0, 256)?;
        e.launch(&Module::parse(&text(body)).unwrap(), "k", &Launch::new([1, 1, 1], [1, 1, 1]).with_ptr(word))?;
        let mut out = [0; 4];
        e.read(word, &mut out)?;
        Ok::<_, EmuError>(u32::from_le_bytes(out))
    };
    for (operation, of, want) in [
        ("max", [1.0f32, 3.0, 2.0], 3.0f32),
        ("max", [-1.0, f32::NAN, -2.0], -1.0),
        ("min", [1.0, 3.0, 2.0], 1.0),
        ("min", [0.0, 5.0, -0.0], -0.0),
        ("min.NaN", [0.0, f32::NAN, -0.0], f32::from_bits(0x7fff_ffff)),
        ("max.ftz", [0.0, 1e-40, -3.0], 0.0),
    ] {
        let [a, b, c] = of.map(|x| format!("0f{:08X}", x.to_bits()));
        let got = run(&format!("{operation}.f32 %r0, {a}, {b}, {c};\nst.global.u32 [%rd0], %r0;")).unwrap();
        assert_eq!(got, want.to_bits(), "{operation} of {of:?}");
    }
    for hint in [
        "applypriority.global.L2::evict_normal [%rd0], 128;",
        "pmevent 7;",
        "ld.mmio.relaxed.sys.global.u32 %r1, [%rd0];",
    ] {
        assert_eq!(run(&format!("{hint}\nst.global.u32 [%rd0], 7;")).unwrap(), 7, "{hint}");
    }
    // What was discarded is nobody's before it is written again.
    let discard = "st.global.u32 [%rd0], 5;\ndiscard.global.L2 [%rd0], 128;\n";
    assert_eq!(run(&format!("{discard}st.global.u32 [%rd0], 7;")).unwrap(), 7);
    assert!(matches!(run(discard), Err(EmuError::InvalidDeviceAddress { .. })));
    let kind = |body: &str| run(body).unwrap_err().fault().map(|f| f.kind);
    assert_eq!(kind(&format!("{discard}ld.global.u32 %r1, [%rd0];")), Some(FaultKind::UninitializedGlobal));
    assert_eq!(kind("discard.global.L2 [%rd0+64], 128;"), Some(FaultKind::Misaligned));
    assert_eq!(kind("discard.global.L2 [%rd0+256], 128;"), Some(FaultKind::GlobalOutOfBounds));
}
