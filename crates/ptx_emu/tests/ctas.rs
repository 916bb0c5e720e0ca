//! Several CTAs of a launch at a time: semaphores, grid barriers, last-block merges and ordered reductions, each with what is reported
//! when a part of it is missing, and what the seeds change.

use ptx_emu::{EmuError, Emulator, EmulatorOptions, FaultKind, Launch, Module};

const HEAD: &str = ".version 8.0\n.target sm_90\n.address_size 64\n";

/// A kernel of `cells`, a zeroed array of `u32`, and `n`: registers %r, %rd, %p; %r0 is the thread, %r1 the CTA, %r2 the number of CTAs.
fn kernel(body: &str) -> Module {
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 cells, .param .u32 n)\n{{\n.reg .pred %p<8>;\n.reg .b32 %r<32>;\n.reg .b64 %rd<16>;\n\
         ld.param.u64 %rd0, [cells];\nld.param.u32 %r3, [n];\nmov.u32 %r0, %tid.x;\nmov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %nctaid.x;\n\
         {body}\nret;\n}}\n"
    );
    Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Runs a kernel over zeroed cells and returns them.
fn run_on(
    options: EmulatorOptions,
    m: &Module,
    ctas: u32,
    threads: u32,
    n: u32,
    seed: u64,
) -> Result<Vec<u32>, EmuError> {
    let e = Emulator::new(options);
    let cells = e.alloc(4 * 1024)?;
    e.fill(cells, 0, 4 * 1024)?;
    let launch = Launch::new([ctas, 1, 1], [threads, 1, 1]).with_ptr(cells).with_u32(n).with_seed(seed);
    e.launch(m, "k", &launch)?;
    let mut out = vec![0; 4 * 1024];
    e.read(cells, &mut out)?;
    Ok(out.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect())
}

fn run(m: &Module, ctas: u32, threads: u32, seed: u64) -> Result<Vec<u32>, EmuError> {
    run_on(EmulatorOptions::default(), m, ctas, threads, 0, seed)
}

/// The kind of the fault under each seed; `None` where there was none.
fn faults(m: &Module, ctas: u32, threads: u32, seeds: u64) -> Vec<Option<FaultKind>> {
    (0..seeds)
        .map(|seed| match run(m, ctas, threads, seed) {
            Ok(_) => None,
            Err(EmuError::Fault(f)) => Some(f.kind),
            Err(e) => panic!("{e}"),
        })
        .collect()
}

fn always(m: &Module, ctas: u32, threads: u32, kind: FaultKind) {
    assert_eq!(faults(m, ctas, threads, 12), vec![Some(kind); 12]);
}

/// Every CTA writes cell 16 + CTA, all meet at the counter in cell 0, then each reads the cell of the next CTA into 256 + CTA.
const GRID_BARRIER: &str = "
    setp.ne.u32 %p0, %r0, 0;
    mul.wide.u32 %rd1, %r1, 4;
    add.s64 %rd2, %rd0, %rd1;
    add.s32 %r4, %r1, 1000;
    @!%p0 st.global.u32 [%rd2+64], %r4;
    bar.sync 0;
    @%p0 bra met;
    fence.acq_rel.gpu; // before
    atom.relaxed.gpu.global.add.u32 %r5, [%rd0], 1;
wait:
    ld.relaxed.gpu.global.u32 %r6, [%rd0];
    setp.lt.u32 %p1, %r6, %r2;
    @%p1 bra wait;
    fence.acq_rel.gpu; // after
met:
    bar.sync 0;
    setp.ne.u32 %p2, %r0, 33;
    @%p2 bra done;
    add.s32 %r7, %r1, 1;
    rem.u32 %r7, %r7, %r2;
    mul.wide.u32 %rd3, %r7, 4;
    add.s64 %rd3, %rd0, %rd3;
    ld.global.u32 %r8, [%rd3+64];
    st.global.u32 [%rd2+1024], %r8;
done:";

#[test]
fn sixteen_ctas_meet_at_a_grid_barrier() {
    let m = kernel(GRID_BARRIER);
    for seed in 0..12 {
        let out = run(&m, 16, 64, seed).unwrap();
        for cta in 0..16 {
            assert_eq!(out[256 + cta], 1000 + (cta as u32 + 1) % 16, "CTA {cta}, seed {seed}");
        }
    }
}

#[test]
fn a_grid_barrier_needs_both_fences_the_block_barriers_and_the_scope() {
    for (what, from, to) in [
        ("no fence before the counter", "fence.acq_rel.gpu; // before", ""),
        ("no fence after the counter", "fence.acq_rel.gpu; // after", ""),
        ("fences of the CTA only", "fence.acq_rel.gpu", "fence.acq_rel.cta"),
        ("fences of the cluster only", "fence.acq_rel.gpu", "fence.acq_rel.cluster"),
        ("atomics of the CTA only", "relaxed.gpu", "relaxed.cta"),
        ("nobody waits", "@%p1 bra wait;", ""),
    ] {
        let m = kernel(&GRID_BARRIER.replace(from, to));
        assert_eq!(faults(&m, 16, 64, 8), vec![Some(FaultKind::GlobalRace); 8], "{what}");
    }
    // The thread that waited tells the others of its block by a barrier.
    let m = kernel(&GRID_BARRIER.replace("met:\n    bar.sync 0;", "met:\n"));
    assert_eq!(faults(&m, 16, 64, 8), vec![Some(FaultKind::GlobalRace); 8]);
    // With the orders on the atomics themselves no fence is needed.
    let strong = GRID_BARRIER
        .replace("fence.acq_rel.gpu; // before", "")
        .replace("fence.acq_rel.gpu; // after", "")
        .replace("atom.relaxed", "atom.acq_rel")
        .replace("ld.relaxed", "ld.acquire");
    assert_eq!(faults(&kernel(&strong), 16, 64, 8), vec![None; 8]);
    let released = strong.replace("ld.acquire", "ld.relaxed");
    assert_eq!(faults(&kernel(&released), 16, 64, 8), vec![Some(FaultKind::GlobalRace); 8]);
}

#[test]
fn a_barrier_of_more_ctas_than_are_resident_is_a_deadlock() {
    let m = kernel(GRID_BARRIER);
    let small = EmulatorOptions::default().with_multiprocessors(1);
    // 1024 threads: two CTAs a multiprocessor.
    let wide = |ctas, seed| run_on(small.clone(), &m, ctas, 1024, 0, seed);
    for seed in 0..3 {
        assert!(wide(2, seed).is_ok());
        let e = wide(3, seed).unwrap_err();
        let f = e.fault().unwrap();
        assert_eq!(f.kind, FaultKind::Deadlock, "{f}");
        assert!(f.detail.contains("1 CTAs wait for a place: the 1 multiprocessors are full with 2 CTAs"), "{f}");
        assert!(f.instruction.contains("ld.relaxed.gpu.global.u32 %r6"), "{f}");
    }
    assert_eq!(Emulator::new(small).resident_ctas(&m, "k", [1024, 1, 1], 0).unwrap(), 2);
    assert_eq!(Emulator::default().resident_ctas(&m, "k", [64, 1, 1], 0).unwrap(), 16 * 32);
    assert_eq!(Emulator::default().resident_ctas(&m, "k", [64, 1, 1], 100 << 10).unwrap(), 16 * 2);
}

#[test]
fn a_flag_that_nobody_sets_is_a_deadlock() {
    let m = kernel("wait: ld.acquire.gpu.global.u32 %r4, [%rd0];\nsetp.eq.u32 %p0, %r4, 0;\n@%p0 bra wait;");
    for seed in 0..3 {
        let e = run(&m, 3, 32, seed).unwrap_err();
        let f = e.fault().unwrap();
        assert!(f.kind == FaultKind::Deadlock && f.detail.contains("reads again and again"), "{f}");
        assert!(!f.detail.contains("wait for a place"), "{f}");
    }
}

#[test]
fn a_loop_that_gives_up_is_no_deadlock() {
    // Nobody sets the flag; the loop counts its looks at it, in a register or in local memory.
    let counts = [
        ("mov.b32 %r5, 0;", "add.s32 %r5, %r5, 1;"),
        (
            ".local .align 4 .b8 spilled[4];\nst.local.u32 [spilled], 0;",
            "ld.local.u32 %r5, [spilled];\nadd.s32 %r5, %r5, 1;\nst.local.u32 [spilled], %r5;",
        ),
    ];
    for (start, count) in counts {
        let m = kernel(&format!(
            "{start}\nwait:\nld.volatile.global.u32 %r4, [%rd0];\n{count}\nsetp.lt.u32 %p0, %r5, 3000;\nsetp.eq.and.u32 %p1, %r4, 0, %p0;\n\
             @%p1 bra wait;\nst.global.u32 [%rd0+64], %r5;"
        ));
        for seed in 0..3 {
            assert_eq!(run(&m, 1, 1, seed).unwrap()[16], 3000, "seed {seed}");
        }
    }
}

/// Each CTA stores its part, counts itself, and the last one adds all parts up into cell 1.
const LAST_BLOCK: &str = "
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra done;
    mul.wide.u32 %rd1, %r1, 4;
    add.s64 %rd2, %rd0, %rd1;
    add.s32 %r4, %r1, 7;
    st.global.u32 [%rd2+64], %r4;
    membar.gl; // before
    atom.global.add.u32 %r5, [%rd0], 1;
    add.s32 %r6, %r2, -1;
    setp.ne.u32 %p1, %r5, %r6;
    @%p1 bra done;
    membar.gl; // after
    mov.u32 %r7, 0;
    mov.u32 %r8, 0;
    mov.u64 %rd3, %rd0;
sum:
    ld.global.u32 %r9, [%rd3+64];
    add.s32 %r7, %r7, %r9;
    add.s64 %rd3, %rd3, 4;
    add.s32 %r8, %r8, 1;
    setp.lt.u32 %p2, %r8, %r2;
    @%p2 bra sum;
    st.global.u32 [%rd0+4], %r7;
done:";

#[test]
fn the_last_block_merges_only_with_its_fences() {
    let m = kernel(LAST_BLOCK);
    for seed in 0..12 {
        assert_eq!(run(&m, 9, 32, seed).unwrap()[1], (0..9).map(|c| c + 7).sum::<u32>(), "seed {seed}");
    }
    for missing in ["membar.gl; // before", "membar.gl; // after"] {
        always(&kernel(&LAST_BLOCK.replace(missing, "")), 9, 32, FaultKind::GlobalRace);
        always(&kernel(&LAST_BLOCK.replace(missing, "membar.cta;")), 9, 32, FaultKind::GlobalRace);
    }
    // A fence before the store releases nothing of it.
    let early = LAST_BLOCK
        .replace("membar.gl; // before", "")
        .replace("    st.global.u32 [%rd2+64]", "    membar.gl;\n    st.global.u32 [%rd2+64]");
    always(&kernel(&early), 9, 32, FaultKind::GlobalRace);
}

/// CTAs add to cell 1 in their order: each waits for its turn in cell 0.
const ORDERED: &str = "
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra done;
turn:
    ld.acquire.gpu.global.u32 %r4, [%rd0];
    setp.ne.u32 %p1, %r4, %r1;
    @%p1 bra turn;
    ld.global.u32 %r5, [%rd0+4];
    mad.lo.s32 %r5, %r5, 3, %r1;
    st.global.u32 [%rd0+4], %r5;
    add.s32 %r6, %r1, 1;
    st.release.gpu.global.u32 [%rd0], %r6;
done:";

#[test]
fn an_ordered_reduction_gives_the_same_under_every_seed() {
    let want = (0..20u32).fold(0u32, |s, c| s.wrapping_mul(3).wrapping_add(c));
    let m = kernel(ORDERED);
    for seed in 0..12 {
        assert_eq!(run(&m, 20, 32, seed).unwrap()[1], want, "seed {seed}");
    }
    always(&kernel(&ORDERED.replace("st.release", "st.relaxed")), 20, 32, FaultKind::GlobalRace);
    always(&kernel(&ORDERED.replace("ld.acquire", "ld.relaxed")), 20, 32, FaultKind::GlobalRace);
    // More CTAs than are resident: those that come first have the earlier turns, if CTAs come in their order.
    let one = EmulatorOptions::default().with_multiprocessors(1);
    assert_eq!(run_on(one.clone(), &m, 40, 32, 0, 0).unwrap()[0], 40);
    let deadlock = (1..6).filter(|&seed| run_on(one.clone(), &m, 40, 32, 0, seed).is_err()).count();
    assert!(deadlock > 2, "{deadlock} of 5 seeds");
}

/// A lock in cell 0 around a plain counter in cell 1.
const LOCK: &str = "
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra done;
lock:
    atom.acquire.gpu.global.cas.b32 %r4, [%rd0], 0, 1;
    setp.ne.u32 %p1, %r4, 0;
    @%p1 bra lock;
    ld.global.u32 %r5, [%rd0+4];
    add.s32 %r5, %r5, 1;
    st.global.u32 [%rd0+4], %r5;
    atom.release.gpu.global.exch.b32 %r6, [%rd0], 0;
done:";

#[test]
fn a_semaphore_guards_a_plain_counter() {
    let m = kernel(LOCK);
    for seed in 0..12 {
        assert_eq!(run(&m, 24, 64, seed).unwrap()[1], 24, "seed {seed}");
    }
    always(&kernel(&LOCK.replace("atom.release", "atom.relaxed")), 24, 32, FaultKind::GlobalRace);
    always(&kernel(&LOCK.replace("atom.acquire", "atom.relaxed")), 24, 32, FaultKind::GlobalRace);
    // A lock that is never given back.
    let kept = LOCK.replace("atom.release.gpu.global.exch.b32 %r6, [%rd0], 0;", "");
    always(&kernel(&kept), 24, 32, FaultKind::Deadlock);
}

#[test]
fn seeds_change_the_order_of_ctas_and_the_same_seed_does_not() {
    // Each CTA takes a ticket: who gets the first one depends on the order. No race, and wrong all the same for who relies on it.
    let m = kernel(
        "setp.ne.u32 %p0, %r0, 0;\n@%p0 bra done;\natom.relaxed.gpu.global.add.u32 %r4, [%rd0], 1;\nmul.wide.u32 %rd1, %r4, 4;\n\
         add.s64 %rd1, %rd0, %rd1;\nst.global.u32 [%rd1+64], %r1;\ndone:",
    );
    let order = |seed| run(&m, 12, 32, seed).unwrap()[16..28].to_vec();
    assert_eq!(order(0), (0..12).collect::<Vec<_>>());
    let orders: std::collections::HashSet<Vec<u32>> = (1..20).map(order).collect();
    assert!(orders.len() > 15, "{} of 19", orders.len());
    for seed in 0..6 {
        assert_eq!(order(seed), order(seed));
    }
    // The report is the same too.
    let broken = kernel(&GRID_BARRIER.replace("fence.acq_rel.gpu; // after", ""));
    for seed in 0..6 {
        let report = || run(&broken, 16, 64, seed).unwrap_err().to_string();
        assert_eq!(report(), report());
    }
}

#[test]
fn the_order_of_independent_ctas_shows_on_one_thread() {
    // Without a check of races nobody is told, but the value differs: the last CTA to write wins.
    let m = kernel("st.global.u32 [%rd0], %r1;");
    let last = |seed| {
        let quiet = EmulatorOptions::default().with_checks(ptx_emu::Checks::none()).with_threads(1);
        run_on(quiet, &m, 8, 1, 0, seed).unwrap()[0]
    };
    assert_eq!(last(0), 7);
    assert!((1..20).map(last).collect::<std::collections::HashSet<_>>().len() > 4);
}

#[test]
fn a_threads_own_atomic_does_not_hide_its_earlier_store() {
    for space in ["global", "shared"] {
        let head = match space {
            "global" => "",
            _ => {
                ".shared .align 8 .b8 tile[64];\nmov.u64 %rd0, tile;\nsetp.eq.u32 %p2, %r0, 0;\n@%p2 st.shared.u32 [%rd0], 0;\nbar.sync 0;\n"
            }
        };
        let body = |sync: &str| {
            format!(
                "{head}setp.ne.u32 %p1, %r0, 0;\n@%p1 bra add;\nst.{space}.f32 [%rd0], 0f40A00000;\nadd:\n{sync}\n\
                 atom.{space}.add.f32 %r4, [%rd0], 0f3F800000;"
            )
        };
        let kind = if space == "global" { FaultKind::GlobalRace } else { FaultKind::SharedRace };
        always(&kernel(&body("")), 1, 32, kind);
        always(&kernel(&body("")), 1, 64, kind);
        assert_eq!(faults(&kernel(&body("bar.sync 0;")), 1, 64, 6), vec![None; 6], "{space}");
        // Nor is an atomic itself forgotten, be it read or written over.
        for plain in ["ld.SPACE.u32 %r5, [%rd0];", "st.SPACE.u32 [%rd0], 7;"] {
            let after = |sync: &str| {
                let plain = plain.replace("SPACE", space);
                kernel(&format!(
                    "{head}atom.{space}.add.u32 %r4, [%rd0], 1;\n{sync}\nsetp.eq.u32 %p3, %r0, 50;\n@%p3 {plain}"
                ))
            };
            always(&after(""), 1, 64, kind);
            assert_eq!(faults(&after("bar.sync 0;"), 1, 64, 6), vec![None; 6], "{space}, {plain}");
        }
    }
}

#[test]
fn plain_reads_of_others_stay_on_record() {
    // Threads 0 and 40 read, then 40 writes: its own read does not hide the other's.
    let body = |sync: &str| {
        format!(
            "setp.eq.u32 %p0, %r0, 0;\nsetp.eq.u32 %p1, %r0, 40;\n@%p0 ld.global.u32 %r4, [%rd0];\n@%p1 ld.global.u32 %r4, [%rd0];\n{sync}\n\
             @%p1 st.global.u32 [%rd0], 5;"
        )
    };
    always(&kernel(&body("")), 1, 64, FaultKind::GlobalRace);
    assert_eq!(faults(&kernel(&body("bar.sync 0;")), 1, 64, 6), vec![None; 6]);
    // Of two CTAs that both read, one writes, be it the first or the last.
    for cta in [0, 1, 2] {
        let m =
            kernel(&format!("ld.global.u32 %r4, [%rd0];\nsetp.eq.u32 %p0, %r1, {cta};\n@%p0 st.global.u32 [%rd0], 5;"));
        assert_eq!(faults(&m, 3, 1, 6), vec![Some(FaultKind::GlobalRace); 6], "CTA {cta}");
    }
    // The bytes of a word belong to different threads.
    let bytes = |shift: u32| {
        kernel(&format!(
            "shr.u32 %r5, %r0, {shift};\ncvt.u64.u32 %rd1, %r5;\nadd.s64 %rd1, %rd0, %rd1;\nst.global.u8 [%rd1], %r0;"
        ))
    };
    assert_eq!(faults(&bytes(0), 1, 64, 4), vec![None; 4]);
    always(&bytes(1), 1, 64, FaultKind::GlobalRace);
}

#[test]
fn atomics_race_with_plain_accesses_only() {
    let m = kernel("red.global.add.u32 [%rd0], 1;");
    for seed in 0..4 {
        assert_eq!(run(&m, 7, 96, seed).unwrap()[0], 7 * 96);
    }
    for plain in ["ld.global.u32 %r4, [%rd0];", "st.global.u32 [%rd0], 1;"] {
        let m = kernel(&format!(
            "setp.eq.u32 %p0, %r1, 3;\n@%p0 bra plain;\nred.global.add.u32 [%rd0], 1;\nret;\nplain:\n{plain}"
        ));
        always(&m, 7, 1, FaultKind::GlobalRace);
    }
    // Atomics of the scope of the CTA are atomic for nobody else.
    for (one, two) in [("cta", "cta"), ("cta", "gpu"), ("gpu", "cta")] {
        let m = kernel(&format!(
            "setp.eq.u32 %p0, %r1, 3;\n@%p0 red.relaxed.{one}.global.add.u32 [%rd0], 1;\n@!%p0 red.relaxed.{two}.global.add.u32 [%rd0], 1;"
        ));
        always(&m, 7, 1, FaultKind::GlobalRace);
        assert_eq!(faults(&m, 1, 64, 4), vec![None; 4], "{one}, {two}");
    }
    // Lanes of one warp may store the same value to one place, other warps and CTAs may not.
    let same = kernel("st.global.u32 [%rd0], 9;");
    assert_eq!(faults(&same, 1, 32, 4), vec![None; 4]);
    always(&same, 1, 64, FaultKind::GlobalRace);
    always(&same, 2, 32, FaultKind::GlobalRace);
    always(&kernel("st.global.u32 [%rd0], %r0;"), 1, 32, FaultKind::GlobalRace);
    // Nor may one lane write what another one has read, be it the value that it holds.
    let read = "setp.eq.u32 %p0, %r0, 3;\n@%p0 ld.global.u32 %r4, [%rd0];\n@!%p0 st.global.u32 [%rd0], 0;";
    always(&kernel(read), 1, 32, FaultKind::GlobalRace);
}

/// `red` of several floats adds each to its own place, atomically, at an address that is aligned to all of them.
#[test]
fn reductions_of_several_floats() {
    let red = |address: &str, values: &str| {
        kernel(&format!(
            "mov.b32 %r5, 0f3F000000;\nred.relaxed.gpu.global.add.{values};",
            values = values.replace("@", address)
        ))
    };
    let four = "v4.f32 [@], {%r5, 0f3F800000, 0f40000000, %r5}";
    for seed in 0..4 {
        let sums = run(&red("%rd0+32", four), 7, 96, seed).unwrap();
        let threads = (7 * 96) as f32;
        let expected = [0.5, 1.0, 2.0, 0.5].map(|x: f32| (x * threads).to_bits());
        assert_eq!((&sums[..8], &sums[8..12], sums[12]), (&[0; 8][..], &expected[..], 0));
    }
    assert_eq!(
        run(&red("%rd0+8", "v2.f32 [@], {%r5, %r5}"), 1, 4, 0).unwrap()[2..5],
        [2f32.to_bits(), 2f32.to_bits(), 0]
    );
    always(&red("%rd0+8", four), 1, 1, FaultKind::Misaligned);
    // Atomic among themselves, and no more than one float each: a plain access to any of them races.
    let m = kernel(
        "setp.eq.u32 %p0, %r1, 3;\n@%p0 bra plain;\nmov.b32 %r5, 0;\nred.relaxed.gpu.global.add.v4.f32 [%rd0], {%r5, %r5, %r5, %r5};\nret;\n\
         plain:\nst.global.u32 [%rd0+12], 1;",
    );
    always(&m, 7, 1, FaultKind::GlobalRace);
}
