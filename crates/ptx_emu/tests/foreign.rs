//! What compilers other than ours write: legal code that must run, with the right values, and what of it is reported when it is wrong.
//! Every verdict is that of twenty seeds.

use ptx_emu::*;

const SEEDS: u64 = 20;
/// Words of memory that a kernel is given.
const WORDS: usize = 1024;

/// An entry over a zeroed array of words: `%rd0` is its address, `%t` the thread, `%c` the CTA, `%own` the address of the thread's word.
fn kernel(body: &str) -> Module {
    let text = format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n\
         .visible .entry k(.param .u64 words)\n{{\n.shared .align 16 .b8 tile[256];\n.local .align 16 .b8 own[64];\n\
         .reg .pred %p<9>;\n.reg .b16 %h<9>;\n.reg .b32 %r<40>, %t, %c;\n.reg .f32 %f<9>;\n.reg .b64 %rd<20>, %own;\n\
         ld.param.u64 %rd0, [words];\nmov.u32 %t, %tid.x;\nmov.u32 %c, %ctaid.x;\nmul.wide.u32 %own, %t, 4;\n\
         add.s64 %own, %own, %rd0;\n{body}\n}}\n"
    );
    Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn launch(m: &Module, ctas: u32, threads: u32, seed: u64, checks: Checks) -> Result<Vec<u32>, EmuError> {
    let e = Emulator::new(EmulatorOptions::default().with_checks(checks).with_threads(2));
    let words = e.alloc(4 * WORDS as u64)?;
    e.fill(words, 0, 4 * WORDS as u64)?;
    e.launch(m, "k", &Launch::new([ctas, 1, 1], [threads, 1, 1]).with_ptr(words).with_seed(seed))?;
    let mut out = vec![0; 4 * WORDS];
    e.read(words, &mut out)?;
    Ok(out.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect())
}

/// The first words, which must be the same under every seed.
fn words(body: &str, ctas: u32, threads: u32, n: usize) -> Vec<u32> {
    let m = kernel(body);
    let first = launch(&m, ctas, threads, 0, Checks::all()).unwrap_or_else(|e| panic!("{body}\n{e}"));
    for seed in 1..SEEDS {
        let out = launch(&m, ctas, threads, seed, Checks::all()).unwrap_or_else(|e| panic!("{body}\n{e}"));
        assert_eq!(out, first, "seed {seed}: {body}");
    }
    first[..n].to_vec()
}

/// The same fault under every seed.
fn fault(body: &str, ctas: u32, threads: u32, kind: FaultKind) -> Fault {
    let m = kernel(body);
    let of = |seed| match launch(&m, ctas, threads, seed, Checks::all()) {
        Err(EmuError::Fault(f)) => *f,
        other => panic!("seed {seed}: a fault expected, got {other:?}\n{body}"),
    };
    for seed in 0..SEEDS {
        let f = of(seed);
        assert_eq!(f.kind, kind, "{f}\n{body}");
    }
    of(0)
}

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
    ("sub.s32 %r5, 32, LANES;\nshl.b32 %r5, %r5, 8;\nor.b32 %r5, %r5, 31;\nshfl.sync.idx.b32 %r4, %r1, 2, %r5, %r3;", |l, n| {
        3 * (l / n * n + 2)
    }),
    ("redux.sync.add.s32 %r4, %r1, %r3;", |l, n| (l / n * n..l / n * n + n).map(|l| 3 * l).sum()),
    ("redux.sync.max.u32 %r4, %r1, %r3;", |l, n| 3 * (l / n * n + n - 1)),
    ("redux.sync.or.b32 %r4, %r1, %r3;", |l, n| (l / n * n..l / n * n + n).fold(0, |m, l| m | 3 * l)),
    // Pairs of neighbours have the same half.
    ("shr.u32 %r5, %t, 1;\nmatch.any.sync.b32 %r4, %r5, %r3;", |l, _| 3 << (l & !1)),
    // The lanes of the first tile agree.
    ("min.u32 %r5, %t, LANES - 1;\nsetp.lt.u32 %p0, %t, LANES;\nselp.b32 %r5, 7, %t, %p0;\n\
      match.all.sync.b32 %r4|%p1, %r5, %r3;\nselp.u32 %r5, 1, 0, %p1;\nadd.s32 %r4, %r4, %r5;", |l, n| {
        if l < n { (1 << n) - 1 + 1 } else { 0 }
    }),
    ("and.b32 %r5, %t, 1;\nsetp.eq.u32 %p0, %r5, 1;\nvote.sync.ballot.b32 %r4, %p0, %r3;", |l, n| {
        (0xaaaa_aaaau64 & (((1 << n) - 1) << (l / n * n))) as u32
    }),
    ("setp.ge.u32 %p0, %t, LANES;\nvote.sync.all.pred %p1, %p0, %r3;\nselp.u32 %r4, 1, 0, %p1;", |l, n| (l >= n) as u32),
    ("setp.eq.u32 %p0, %t, 0;\nvote.sync.any.pred %p1, %p0, %r3;\nselp.u32 %r4, 1, 0, %p1;", |l, n| (l < n) as u32),
    ("setp.eq.u32 %p0, %t, 0;\nvote.sync.uni.pred %p1, %p0, %r3;\nselp.u32 %r4, 1, 0, %p1;", |l, n| (l >= n) as u32),
    ("elect.sync %r4|%p1, %r3;\nselp.u32 %r5, 100, 0, %p1;\nadd.s32 %r4, %r4, %r5;", |l, n| {
        l / n * n + if l % n == 0 { 100 } else { 0 }
    }),
    // The lanes of a tile read what their neighbours wrote.
    ("mov.u32 %r5, tile;\nshl.b32 %r6, %t, 2;\nadd.s32 %r7, %r5, %r6;\nst.shared.u32 [%r7], %r1;\nbar.warp.sync %r3;\n\
      xor.b32 %r6, %r6, 4;\nadd.s32 %r7, %r5, %r6;\nld.shared.u32 %r4, [%r7];", |l, _| 3 * (l ^ 1)),
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
    ("falling into the return behind a loop", "mov.u32 %r7, 0;\nbra.uni T;\nL: ALL\nadd.s32 %r7, %r7, 1;\n\
      T: setp.gt.u32 %p1, %r7, 2;\nor.pred %p1, %p1, %p0;\n@!%p1 bra L;\nD: ret;"),
    ("falling into the return behind others", "@!%p0 bra A;\nmov.u32 %r7, 1;\nD: ret;\nA: ALL\nbra D;"),
    ("two returns, one after another", "setp.eq.u32 %p2, %r2, 31;\n@%p2 bra D;\n@%p0 bra D;\nALL\nD: ret;"),
];

#[test]
fn lanes_that_returned_are_missed_by_nobody() {
    for (what, text) in WAYS_OUT {
        let body = format!(
            "and.b32 %r2, %t, 31;\nsetp.ge.u32 %p0, %r2, 16;\n{}",
            text.replace("ALL", ALL_THAT_ARE_LEFT)
        );
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
