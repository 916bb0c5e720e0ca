//! What compilers other than ours write: legal code that must run, with the right values, and what of it is reported when it is wrong.
//! Every verdict is that of twenty seeds.

mod seeds;

use ptx_emu::*;
use seeds::*;

// Member masks of tiles.

/// The mask of the 8 or 16 lanes around a thread, in `%r3`.
fn tile_mask(lanes: u32) -> String {
    let ones = (1u64 << lanes) - 1;
    format!("and.b32 %r2, %t, {};\nshl.b32 %r3, {ones}, %r2;\n", 32 - lanes)
}

/// Instructions of a tile on `%r1`, three times the thread, to `%r4`, and what lane `l` of tiles of 16 or 8 lanes gets.
type Expected = fn(l: u32, lanes: u32) -> u32;
const COLLECTIVES: &[(&str, Expected)] = &[
    ("shfl.sync.bfly.b32 %r4, %r1, 1, 31, %r3;", |l, _| 3 * (l ^ 1)),
    (
        "sub.s32 %r5, 32, LANES;\nshl.b32 %r5, %r5, 8;\nor.b32 %r5, %r5, 31;\nshfl.sync.idx.b32 %r4, %r1, 2, %r5, %r3;",
        |l, n| 3 * (l / n * n + 2),
    ),
    ("redux.sync.add.s32 %r4, %r1, %r3;", |l, n| (l / n * n..l / n * n + n).map(|l| 3 * l).sum()),
    ("redux.sync.max.u32 %r4, %r1, %r3;", |l, n| 3 * (l / n * n + n - 1)),
    ("redux.sync.or.b32 %r4, %r1, %r3;", |l, n| (l / n * n..l / n * n + n).fold(0, |m, l| m | (3 * l))),
    // Pairs of neighbours have the same half.
    ("shr.u32 %r5, %t, 1;\nmatch.any.sync.b32 %r4, %r5, %r3;", |l, _| 3 << (l & !1)),
    // The lanes of the first tile agree.
    (
        "min.u32 %r5, %t, LANES - 1;\nsetp.lt.u32 %p0, %t, LANES;\nselp.b32 %r5, 7, %t, %p0;\n\
      match.all.sync.b32 %r4|%p1, %r5, %r3;\nselp.u32 %r5, 1, 0, %p1;\nadd.s32 %r4, %r4, %r5;",
        |l, n| {
            if l < n { (1 << n) - 1 + 1 } else { 0 }
        },
    ),
    ("and.b32 %r5, %t, 1;\nsetp.eq.u32 %p0, %r5, 1;\nvote.sync.ballot.b32 %r4, %p0, %r3;", |l, n| {
        (0xaaaa_aaaau64 & (((1 << n) - 1) << (l / n * n))) as u32
    }),
    ("setp.ge.u32 %p0, %t, LANES;\nvote.sync.all.pred %p1, %p0, %r3;\nselp.u32 %r4, 1, 0, %p1;", |l, n| {
        (l >= n) as u32
    }),
    ("setp.eq.u32 %p0, %t, 0;\nvote.sync.any.pred %p1, %p0, %r3;\nselp.u32 %r4, 1, 0, %p1;", |l, n| (l < n) as u32),
    ("setp.eq.u32 %p0, %t, 0;\nvote.sync.uni.pred %p1, %p0, %r3;\nselp.u32 %r4, 1, 0, %p1;", |l, n| (l >= n) as u32),
    ("elect.sync %r4|%p1, %r3;\nselp.u32 %r5, 100, 0, %p1;\nadd.s32 %r4, %r4, %r5;", |l, n| {
        l / n * n + if l % n == 0 { 100 } else { 0 }
    }),
    // The lanes of a tile read what their neighbours wrote.
    (
        "mov.u32 %r5, tile;\nshl.b32 %r6, %t, 2;\nadd.s32 %r7, %r5, %r6;\nst.shared.u32 [%r7], %r1;\nbar.warp.sync %r3;\n\
      xor.b32 %r6, %r6, 4;\nadd.s32 %r7, %r5, %r6;\nld.shared.u32 %r4, [%r7];",
        |l, _| 3 * (l ^ 1),
    ),
];

fn of_tiles(instruction: &str, lanes: u32, mask: &str) -> String {
    let instruction = instruction.replace("LANES - 1", &(lanes - 1).to_string()).replace("LANES", &lanes.to_string());
    format!("{mask}mul.lo.u32 %r1, %t, 3;\n{instruction}\nst.global.u32 [%own], %r4;\nret;")
}

#[test]
fn tiles_of_a_warp_execute_one_instruction_with_a_mask_for_each() {
    for lanes in [8, 16] {
        for (instruction, expected) in COLLECTIVES {
            let out = words(&of_tiles(instruction, lanes, &tile_mask(lanes)), 1, 32, 32);
            let want: Vec<u32> = (0..32).map(|l| expected(l, lanes)).collect();
            assert_eq!(out, want, "{lanes} lanes: {instruction}");
            // Values do not depend on the check.
            let m = kernel(&of_tiles(instruction, lanes, &tile_mask(lanes)));
            let checks = Checks { convergence: false, ..Checks::all() };
            assert_eq!(launch(&m, 1, 32, 0, checks).unwrap()[..32], want, "{lanes} lanes: {instruction}");
        }
    }
}

#[test]
fn masks_that_do_not_fit_together_are_reported() {
    for (what, mask) in [
        ("the mask of the other half", "and.b32 %r2, %t, 16;\nxor.b32 %r2, %r2, 16;\nshl.b32 %r3, 65535, %r2;\n"),
        ("a mask without the lane itself", "mov.u32 %r3, 0xfffffffe;\n"),
        ("all lanes, and half of them", "setp.lt.u32 %p8, %t, 16;\nselp.b32 %r3, 0xffff, -1, %p8;\n"),
        ("lane 3 is in two masks", "setp.lt.u32 %p8, %t, 4;\nselp.b32 %r3, 0xf, 0xfffffff8, %p8;\n"),
    ] {
        for (instruction, _) in COLLECTIVES {
            let m = kernel(&of_tiles(instruction, 16, mask).replace("ret;", "barrier.sync 0;\nret;"));
            for seed in 0..SEEDS {
                let Err(e) = launch(&m, 1, 32, seed, Checks::all()) else { panic!("{what}: {instruction}") };
                let kind = e.fault().unwrap().kind;
                // A bar.warp.sync waits for lanes that may come to another one with this mask, or exit.
                let waits = instruction.contains("bar.warp") && kind == FaultKind::Deadlock;
                assert!(kind == FaultKind::DivergentCollective || waits, "{what}: {instruction}: {e}");
            }
        }
    }
    // Lanes of the mask that are elsewhere: a tile that has not come as a whole.
    let alone = "setp.eq.u32 %p8, %t, 9;\n@%p8 bra E;\nshfl.sync.bfly.b32 %r4, %t, 1, 31, %r3;\nE: add.s32 %r5, %r4, 1;\n\
                 bar.sync 0;\nret;";
    let f = fault(&format!("{}{alone}", tile_mask(8)), 1, 32, FaultKind::DivergentCollective);
    assert!(f.detail.contains("0x0000ff00 names lanes 0x00000200, which are elsewhere"), "{f}");
    // A value of a lane outside of the mask is nobody's.
    let outside = format!("{}shfl.sync.idx.b32 %r4, %t, 0, 31, %r3;\nst.global.u32 [%own], %r4;\nret;", tile_mask(8));
    fault(&outside, 1, 32, FaultKind::UninitializedRegister);
}

#[test]
fn tiles_wait_for_their_own_lanes_alone() {
    // The upper tiles synchronise while half of the first is in a branch of its own, and waits there for what they do later.
    let body = format!(
        "{}mov.u32 %r5, tile;
         mov.u32 %r9, 0;
         setp.ge.u32 %p0, %t, 4;
         @%p0 bra others;
         @%p0 bra others;
         bar.warp.sync %r3;
         mov.u32 %r9, 1;
         bra met;
         others:
         bar.warp.sync %r3;
         met:
         bar.warp.sync -1;
         st.global.u32 [%own], %r9;
         ret;",
        tile_mask(8)
    );
    assert_eq!(words(&body, 1, 32, 6), [1, 1, 1, 1, 0, 0]);
}

// Lanes that are gone.

/// Everything that wants all lanes that are still there; `%r4` is the thread of lane 1, `%r5` who is there.
const ALL_THAT_ARE_LEFT: &str = "bar.warp.sync -1;
    shfl.sync.idx.b32 %r4, %t, 1, 31, -1;
    vote.sync.ballot.b32 %r5, 1, -1;
    bar.sync 0;
    add.s32 %r6, %r4, %r5;
    st.global.u32 [%own], %r6;";

/// How threads from 16 of each warp on leave.
const WAYS_OUT: &[(&str, &str)] = &[
    ("a branch to the return", "@%p0 bra D;\nALL\nD: ret;"),
    ("a branch to a branch to the return", "@%p0 bra F;\nALL\nbra D;\nF: bra.uni D;\nD: ret;"),
    ("a return of its own", "@!%p0 bra G;\nret;\nG: ALL\nret;"),
    ("a guarded return", "@%p0 ret;\nALL\nret;"),
    ("the end of the text", "@%p0 bra D;\nALL\nD:"),
    (
        "falling into the return behind a loop",
        "mov.u32 %r7, 0;\nbra.uni T;\nL: ALL\nadd.s32 %r7, %r7, 1;\n\
      T: setp.gt.u32 %p1, %r7, 2;\nor.pred %p1, %p1, %p0;\n@!%p1 bra L;\nD: ret;",
    ),
    ("falling into the return behind others", "@!%p0 bra A;\nmov.u32 %r7, 1;\nD: ret;\nA: ALL\nbra D;"),
    ("two returns, one after another", "setp.eq.u32 %p2, %r2, 31;\n@%p2 bra D;\n@%p0 bra D;\nALL\nD: ret;"),
];

#[test]
fn lanes_that_returned_are_missed_by_nobody() {
    for (what, text) in WAYS_OUT {
        let body =
            format!("and.b32 %r2, %t, 31;\nsetp.ge.u32 %p0, %r2, 16;\n{}", text.replace("ALL", ALL_THAT_ARE_LEFT));
        let out = words(&body, 1, 64, 64);
        let want: Vec<u32> = (0..64).map(|t| if t % 32 < 16 { t / 32 * 32 + 1 + 0xffff } else { 0 }).collect();
        assert_eq!(out, want, "{what}");
    }
}

#[test]
fn lanes_that_return_from_a_function_are_still_there() {
    let text = "
.version 8.0\n.target sm_90\n.address_size 64
.func early(.param .b32 x)
{
    .reg .pred %p;
    .reg .b32 %r;
    ld.param.u32 %r, [x];
    setp.ge.u32 %p, %r, 16;
    @%p bra D;
    nanosleep.u32 1;
D:  ret;
}
.visible .entry k(.param .u64 words)
{
    .reg .b32 %r<9>;
    .reg .b64 %rd<3>;
    .param .b32 x;
    mov.u32 %r0, %tid.x;
    st.param.b32 [x], %r0;
    call early, (x);
    vote.sync.ballot.b32 %r1, 1, -1;
    ld.param.u64 %rd0, [words];
    mul.wide.u32 %rd1, %r0, 4;
    add.s64 %rd0, %rd0, %rd1;
    st.global.u32 [%rd0], %r1;
    ret;
}";
    let m = Module::parse(text).unwrap();
    for seed in 0..SEEDS {
        assert_eq!(launch(&m, 1, 32, seed, Checks::all()).unwrap()[..32], [!0; 32], "seed {seed}");
    }
}

#[test]
fn lanes_that_are_still_to_come_are_missed() {
    // What they do before the return is enough to be there.
    let body = "and.b32 %r2, %t, 31;\nsetp.ge.u32 %p0, %r2, 16;\n@%p0 bra D;\nALL\nD: st.global.u32 [%own], %t;\nret;";
    let f = |instruction: &str, kind| fault(&body.replace("ALL", instruction), 1, 32, kind);
    f("bar.warp.sync -1;", FaultKind::Deadlock);
    f("shfl.sync.idx.b32 %r4, %t, 1, 31, -1;", FaultKind::DivergentCollective);
    f("bar.sync 0;", FaultKind::DivergentCollective);
}

// Stores of one value, plain reads before atomics, and what an atomic does not hide.

/// Stores by all lanes of a warp to one place; `%r1` is the same in all of them.
const SAME_VALUES: &[&str] = &[
    "st.SPACE.u32 [%rd1], 9;",
    "st.SPACE.u8 [%rd1], 9;",
    "st.SPACE.u16 [%rd1+2], 9;",
    "st.SPACE.v4.u32 [%rd1], {%r1, 2, 3, %r1};",
    "st.SPACE.v2.u64 [%rd1], {%rd0, %rd0};",
    "mov.u32 %r2, 9;\n@%p0 st.SPACE.u32 [%rd1], %r2;\n@!%p0 st.SPACE.u32 [%rd1], 9;",
    "@%p0 bra A;\nst.SPACE.u32 [%rd1], 9;\nbra.uni B;\nA: st.SPACE.u32 [%rd1], 9;\nB: add.s32 %r2, %t, 1;",
    // The value that was there before, and one over the other with the lanes in step.
    "st.SPACE.u32 [%rd1], 0;\nbar.warp.sync -1;\nst.SPACE.u32 [%rd1], 0;",
    "st.SPACE.u32 [%rd1], 1;\nbar.warp.sync -1;\nst.SPACE.u32 [%rd1], 2;\nbar.warp.sync -1;\nld.SPACE.u32 %r2, [%rd1];",
    // Where atomics are about.
    "st.SPACE.u32 [%rd1], 9;\nbar.sync 0;\natom.SPACE.add.u32 %r2, [%rd1], 1;\nbar.sync 0;\nst.SPACE.u32 [%rd1], 8;",
];

fn of_space(body: &str, space: &str) -> String {
    let place = if space == "global" { "add.s64 %rd1, %rd0, 1024;" } else { "mov.u64 %rd1, tile;" };
    format!("{place}\nmov.u32 %r1, 7;\nsetp.lt.u32 %p0, %t, 16;\n{}\nret;", body.replace("SPACE", space))
}

#[test]
fn lanes_of_a_warp_may_store_one_value_to_one_place() {
    for space in ["global", "shared"] {
        for body in SAME_VALUES {
            words(&of_space(body, space), 1, 32, 0);
        }
        let kind = if space == "global" { FaultKind::GlobalRace } else { FaultKind::SharedRace };
        for body in [
            "st.SPACE.u32 [%rd1], %t;",
            "shr.u32 %r2, %t, 4;\nst.SPACE.u32 [%rd1], %r2;",
            "st.SPACE.u32 [%rd1], 1;\nst.SPACE.u32 [%rd1], 2;",
            "@%p0 st.SPACE.u16 [%rd1], 9;\n@!%p0 st.SPACE.u32 [%rd1], 0x70009;",
        ] {
            fault(&of_space(body, space), 1, 32, kind);
        }
        // Other warps are none of it.
        fault(&of_space("st.SPACE.u32 [%rd1], 9;", space), 1, 64, kind);
    }
    fault(&of_space("st.SPACE.u32 [%rd1], 9;", "global"), 2, 32, FaultKind::GlobalRace);
}

#[test]
fn lanes_of_a_warp_may_store_one_value_to_one_place_of_another_cta() {
    let run = |value: &str, threads: u32, seed| {
        let m = kernel(&format!(
            "mov.u64 %rd1, tile;\ncvta.shared.u64 %rd1, %rd1;\nmapa.u64 %rd2, %rd1, 1;\nsetp.ne.u32 %p0, %c, 0;\n\
             barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n@!%p0 st.u32 [%rd2], {value};\n\
             barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n@%p0 ld.shared.u32 %r4, [tile];\n\
             @%p0 st.global.u32 [%rd0], %r4;\nret;"
        ));
        let e = Emulator::default();
        let out = e.alloc(4).unwrap();
        let launch = Launch::new([2, 1, 1], [threads, 1, 1]).with_cluster([2, 1, 1]).with_ptr(out).with_seed(seed);
        e.launch(&m, "k", &launch)?;
        let mut word = [0; 4];
        e.read(out, &mut word)?;
        Ok::<_, EmuError>(u32::from_le_bytes(word))
    };
    for seed in 0..SEEDS {
        assert_eq!(run("9", 32, seed).unwrap(), 9, "seed {seed}");
        for (value, threads) in [("%t", 32), ("9", 64)] {
            let kind = run(value, threads, seed).unwrap_err().fault().map(|f| f.kind);
            assert_eq!(kind, Some(FaultKind::SharedRace), "seed {seed}");
        }
    }
}

/// The word that so many threads leave.
type Left = fn(u32) -> u32;

/// Idioms that read plainly what others change by atomics, and make up for an old value: the word that they leave after `n` threads.
const WEAK_READS: &[(&str, Left)] = &[
    // The CUDA C++ Programming Guide's atomicAdd by atomicCAS.
    (
        "ld.SPACE.u32 %r2, [%rd1];\nL: add.s32 %r3, %r2, 3;\natom.SPACE.cas.b32 %r4, [%rd1], %r2, %r3;\nsetp.ne.u32 %p1, %r4, %r2;\n\
         mov.u32 %r2, %r4;\n@%p1 bra L;",
        |n| 3 * n,
    ),
    // A look at the maximum before it is raised.
    ("ld.SPACE.u32 %r2, [%rd1];\nsetp.ge.u32 %p1, %r2, %t;\n@!%p1 atom.SPACE.max.u32 %r4, [%rd1], %t;", |n| n - 1),
];

#[test]
fn plain_reads_against_atomics_are_graded_by_the_caller() {
    for (space, kind) in [("global", FaultKind::GlobalRace), ("shared", FaultKind::SharedRace)] {
        for (body, want) in WEAK_READS {
            let start = if space == "shared" {
                "setp.eq.u32 %p2, %t, 0;\n@%p2 st.shared.u32 [%rd1], 0;\nbar.sync 0;\n"
            } else {
                ""
            };
            let end = "\nbar.sync 0;\nsetp.eq.u32 %p2, %t, 0;\n@%p2 ld.SPACE.u32 %r5, [%rd1];\n@%p2 st.global.u32 [%rd0], %r5;";
            let body = of_space(&format!("{start}{body}{end}"), space);
            let f = fault(&body, 1, 64, kind);
            assert!(f.detail.contains("Checks::weak_reads"), "{f}");
            let m = kernel(&body);
            for seed in 0..SEEDS {
                for severity in [Severity::Ignore, Severity::Warn] {
                    let out = launch(&m, 1, 64, seed, Checks::all().with_weak_reads(severity)).unwrap();
                    assert_eq!(out[0], want(64), "seed {seed}, {severity:?}: {body}");
                }
            }
        }
    }
    // In several CTAs, and with what is said of it: once an instruction, in the order of the text.
    let body = of_space(WEAK_READS[0].0, "global");
    let e = Emulator::new(EmulatorOptions::default().with_checks(Checks::all().with_weak_reads(Severity::Warn)));
    let words = e.alloc(4096).unwrap();
    for seed in 0..SEEDS {
        e.fill(words, 0, 4096).unwrap();
        let launch = Launch::new([5, 1, 1], [40, 1, 1]).with_ptr(words).with_seed(seed);
        let report = e.launch(&kernel(&body), "k", &launch).unwrap();
        let mut sum = [0; 4];
        e.read(words + 1024, &mut sum).unwrap();
        assert_eq!(u32::from_le_bytes(sum), 3 * 200);
        let told: Vec<&str> = report.warnings.iter().map(|w| &w.instruction[..8]).collect();
        assert!(
            !told.is_empty() && told.len() <= 2 && told.iter().all(|t| ["ld.globa", "atom.glo"].contains(t)),
            "{told:?}"
        );
        assert!(report.warnings.iter().all(|w| w.kind == FaultKind::GlobalRace && w.seed == seed));
    }
}

#[test]
fn what_is_no_plain_read_against_an_atomic_is_an_error_at_any_severity() {
    let checks = Checks::all().with_weak_reads(Severity::Ignore);
    for (space, kind) in [("global", FaultKind::GlobalRace), ("shared", FaultKind::SharedRace)] {
        for body in [
            // A plain write against an atomic, two plain ones, and a plain read against a plain write.
            "@%p0 st.SPACE.u32 [%rd1], 5;\n@!%p0 red.SPACE.add.u32 [%rd1], 1;",
            "st.SPACE.u32 [%rd1], %t;",
            "@%p0 ld.SPACE.u32 %r2, [%rd1];\n@!%p0 st.SPACE.u32 [%rd1], 1;",
            // Behind such a read.
            "ld.SPACE.u32 %r2, [%rd1];\nred.SPACE.add.u32 [%rd1], 1;\nst.SPACE.u32 [%rd1], 5;",
        ] {
            let start = "setp.eq.u32 %p2, %t, 0;\n@%p2 st.shared.u32 [tile], 0;\nbar.sync 0;\n";
            let m = kernel(&of_space(&format!("{start}{body}"), space));
            for seed in 0..SEEDS {
                let f = launch(&m, 1, 32, seed, checks).unwrap_err().fault().map(|f| f.kind);
                assert_eq!(f, Some(kind), "seed {seed}, {space}: {body}");
            }
        }
    }
    // An atomic of the scope of the CTA is none for another one.
    let narrow = "setp.eq.u32 %p1, %c, 0;\n@%p1 ld.global.u32 %r2, [%rd0];\n@!%p1 red.relaxed.cta.global.add.u32 [%rd0], 1;\nret;";
    for seed in 0..SEEDS {
        let f = launch(&kernel(narrow), 2, 1, seed, checks).unwrap_err().fault().map(|f| f.kind);
        assert_eq!(f, Some(FaultKind::GlobalRace), "seed {seed}");
    }
}

#[test]
fn an_atomic_hides_no_plain_store_of_its_thread() {
    let start = "@%p1 bra S;\nst.SPACE.f32 [%rd1], 0f00000000;\nS: bar.sync 0;\n";
    for (space, kind) in [("global", FaultKind::GlobalRace), ("shared", FaultKind::SharedRace)] {
        for (between, other) in [
            ("", "A: atom.SPACE.add.f32 %f2, [%rd1], 0f3F800000;"),
            ("", "A: red.SPACE.add.f32 [%rd1], 0f3F800000;"),
            ("atom.SPACE.add.f32 %f2, [%rd1], 0f3F800000;\n", "A: atom.SPACE.add.f32 %f2, [%rd1], 0f3F800000;"),
            ("ld.SPACE.f32 %f3, [%rd1];\n", "A: atom.SPACE.exch.b32 %f2, [%rd1], 0f3F800000;"),
            ("", "A: atom.SPACE.cas.b32 %r2, [%rd1], 0, 1;"),
        ] {
            let body = format!(
                "setp.ne.u32 %p1, %t, 0;\n{start}@%p1 bra A;\nst.SPACE.f32 [%rd1], 0f40A00000;\n{between}{other}"
            );
            fault(&of_space(&body, space), 1, 32, kind);
            // With a barrier between them it is none.
            let body = body.replace("A: ", "A: bar.sync 0;\n");
            words(&of_space(&body, space), 1, 32, 0);
        }
    }
}

/// All CTAs add to a sum and count themselves; the last one reads the sum.
const LAST_CTA: &str = "setp.ne.u32 %p1, %t, 0;\n@%p1 bra D;\nred.global.add.u32 [%rd0+8], 5;\nBEFORE\natom.global.add.u32 %r2, [%rd0], 1;\n\
    mov.u32 %r3, %nctaid.x;\nsub.s32 %r3, %r3, 1;\nsetp.ne.u32 %p1, %r2, %r3;\n@%p1 bra D;\nAFTER\nld.global.u32 %r4, [%rd0+8];\n\
    st.global.u32 [%rd0+4], %r4;\nD: ret;";

#[test]
fn the_last_cta_reads_a_sum_of_atomics_only_behind_fences() {
    let body = |before: &str, after: &str| LAST_CTA.replace("BEFORE", before).replace("AFTER", after);
    let fence = "membar.gl;";
    assert_eq!(words(&body(fence, fence), 9, 32, 2), [9, 45]);
    for (before, after) in [("", ""), (fence, ""), ("", fence), ("membar.cta;", "membar.cta;")] {
        let f = fault(&body(before, after), 9, 32, FaultKind::GlobalRace);
        assert!(f.detail.contains("Checks::weak_reads"), "{f}");
    }
    // In shared memory: the last warp of a CTA.
    let shared = |fence: &str| {
        format!(
            "and.b32 %r2, %t, 31;\nsetp.ne.u32 %p1, %t, 0;\nmov.u32 %r5, tile;\n@%p1 bra S;\nst.shared.v2.u32 [tile], {{0, 0}};\n\
             S: bar.sync 0;\nsetp.ne.u32 %p1, %r2, 0;\n@%p1 bra D;\nred.shared.add.u32 [%r5], 5;\n{fence}\n\
             atom.shared.add.u32 %r3, [%r5+4], 1;\nsetp.ne.u32 %p1, %r3, 2;\n@%p1 bra D;\n{fence}\nld.shared.u32 %r4, [%r5];\n\
             st.global.u32 [%rd0], %r4;\nD: ret;"
        )
    };
    assert_eq!(words(&shared("membar.cta;"), 1, 96, 1), [15]);
    fault(&shared(""), 1, 96, FaultKind::SharedRace);
}

// CTAs.

#[test]
fn seeds_change_who_comes_last() {
    // Without checks the order shows in the value.
    let m = kernel("st.global.u32 [%rd0], %c;\nret;");
    let e = Emulator::new(EmulatorOptions::default().with_checks(Checks::none()).with_threads(1));
    let word = e.alloc(4).unwrap();
    let last = |seed| {
        e.launch(&m, "k", &Launch::new([16, 1, 1], [32, 1, 1]).with_ptr(word).with_seed(seed)).unwrap();
        let mut out = [0; 4];
        e.read(word, &mut out).unwrap();
        u32::from_le_bytes(out)
    };
    assert_eq!(last(0), 15);
    assert!((1..SEEDS).map(last).collect::<std::collections::HashSet<_>>().len() > 5);
}

#[test]
fn ctas_of_a_grid_barrier_are_resident_together() {
    // As cooperative groups have it: the counter by one thread, everybody else at the barrier of the block; on two threads of the host.
    let body = |after: &str| {
        format!(
            "mul.wide.u32 %rd1, %c, 4;\nadd.s64 %rd1, %rd1, %rd0;\nsetp.ne.u32 %p1, %t, 0;\nmov.u32 %r2, %nctaid.x;\n@%p1 bra W;\n\
             st.global.u32 [%rd1+64], %c;\nW: bar.sync 0;\n@%p1 bra M;\nmembar.gl;\nred.global.add.u32 [%rd0], 1;\n\
             L: ld.volatile.global.u32 %r3, [%rd0];\nsetp.lt.u32 %p2, %r3, %r2;\n@%p2 bra L;\n{after}\nM: bar.sync 0;\n@%p1 bra D;\n\
             sub.s32 %r4, %r2, %c;\nsub.s32 %r4, %r4, 1;\nmul.wide.u32 %rd2, %r4, 4;\nadd.s64 %rd2, %rd2, %rd0;\n\
             ld.global.u32 %r5, [%rd2+64];\nst.global.u32 [%rd1+256], %r5;\nD: ret;"
        )
    };
    assert_eq!(words(&body("membar.gl;"), 16, 64, 80)[64..], (0..16).rev().collect::<Vec<u32>>());
    fault(&body(""), 16, 64, FaultKind::GlobalRace);
}
