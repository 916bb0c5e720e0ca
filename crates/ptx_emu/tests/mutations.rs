//! Correct kernels run clean under every seed; each broken variant is caught, with the right message.

mod kernels;

use kernels::*;
use ptx_emu::*;

/// A kernel with its launch and its inputs.
struct Bench {
    name: &'static str,
    head: &'static str,
    body: &'static str,
    run: fn(&Emulator, &Module, u64) -> Result<Vec<u8>, EmuError>,
    expected: fn() -> Vec<u8>,
}

fn u32s(v: impl Iterator<Item = u32>) -> Vec<u8> {
    v.flat_map(u32::to_le_bytes).collect()
}

fn upload(e: &Emulator, bytes: &[u8]) -> u64 {
    let p = e.alloc(bytes.len() as u64).unwrap();
    e.write(p, bytes).unwrap();
    p
}

fn download(e: &Emulator, p: u64, n: usize) -> Vec<u8> {
    let mut out = vec![0; n];
    e.read(p, &mut out).unwrap();
    out
}

fn reverse(e: &Emulator, m: &Module, seed: u64) -> Result<Vec<u8>, EmuError> {
    let input = upload(e, &u32s(0..50));
    let out = e.alloc(200)?;
    let l = Launch::new([1, 1, 1], [64, 1, 1]).with_ptr(input).with_ptr(out).with_u32(50).with_seed(seed);
    e.launch(m, "reverse", &l)?;
    Ok(download(e, out, 200))
}

fn pipeline_input(i: u32) -> u32 {
    i.wrapping_mul(2654435761) >> 8
}

fn pipeline(e: &Emulator, m: &Module, seed: u64) -> Result<Vec<u8>, EmuError> {
    let input = upload(e, &u32s((0..5 * 256).map(pipeline_input)));
    let out = e.alloc(256)?;
    let l = Launch::new([1, 1, 1], [64, 1, 1])
        .with_dynamic_shared_bytes(2048)
        .with_ptr(input)
        .with_ptr(out)
        .with_u32(5)
        .with_seed(seed);
    e.launch(m, "pipeline", &l)?;
    Ok(download(e, out, 256))
}

fn warp(e: &Emulator, m: &Module, seed: u64) -> Result<Vec<u8>, EmuError> {
    let input = upload(e, &u32s(0..32));
    let out = e.alloc(128)?;
    let l = Launch::new([1, 1, 1], [32, 1, 1]).with_ptr(input).with_ptr(out).with_seed(seed);
    e.launch(m, "warp", &l)?;
    Ok(download(e, out, 128))
}

/// Small integers as f16 or bf16 bits, so that every sum is exact.
fn small(i: u32) -> i32 {
    (i.wrapping_mul(2654435761) >> 29) as i32 - 3
}

fn mma(e: &Emulator, m: &Module, seed: u64) -> Result<Vec<u8>, EmuError> {
    let tile: Vec<u8> = (0..256).flat_map(|i| half(small(i)).to_le_bytes()).collect();
    let input = upload(e, &tile);
    let out = e.alloc(512)?;
    let l = Launch::new([1, 1, 1], [64, 1, 1]).with_ptr(input).with_ptr(out).with_seed(seed);
    e.launch(m, "mma", &l)?;
    Ok(download(e, out, 512))
}

/// f16 bits of an integer of magnitude at most 4.
fn half(v: i32) -> u16 {
    let magnitude = match v.unsigned_abs() {
        0 => 0,
        1 => 0x3c00,
        2 => 0x4000,
        3 => 0x4200,
        _ => 0x4400,
    };
    magnitude | if v < 0 { 0x8000 } else { 0 }
}

fn last_cta(e: &Emulator, m: &Module, seed: u64) -> Result<Vec<u8>, EmuError> {
    let cells = e.alloc(4 * 40)?;
    let out = e.alloc(4)?;
    let (counter, _) = e.global(m, "arrived")?;
    e.write(counter, &[0; 4])?;
    let l = Launch::new([40, 1, 1], [32, 1, 1]).with_ptr(cells).with_ptr(out).with_seed(seed);
    e.launch(m, "last_cta", &l)?;
    Ok(download(e, out, 4))
}

fn hopper(e: &Emulator, m: &Module, seed: u64) -> Result<Vec<u8>, EmuError> {
    let bf16 = |i: u32| ((small(i) as f32).to_bits() >> 16) as u16;
    let a: Vec<u8> = (0..64 * 64).flat_map(|i| bf16(i).to_le_bytes()).collect();
    let b: Vec<u8> = (0..8 * 64).flat_map(|i| bf16(i + 9999).to_le_bytes()).collect();
    let (pa, pb) = (upload(e, &a), upload(e, &b));
    let maps = e.alloc(256)?;
    for (i, (address, rows)) in [(pa, 64u32), (pb, 8)].into_iter().enumerate() {
        let t = TensorMap::encode(&TensorMapSpec {
            data_type: TensorDataType::Bfloat16,
            address,
            dims: vec![64, rows as u64],
            strides: vec![128],
            box_dims: vec![64, rows],
            swizzle: Swizzle::Bytes128,
            fill: TensorFill::Zero,
        })?;
        e.write(maps + 128 * i as u64, t.as_bytes())?;
    }
    let out = e.alloc(2048)?;
    let l = Launch::new([1, 1, 1], [128, 1, 1])
        .with_dynamic_shared_bytes(12288)
        .with_ptr(maps)
        .with_ptr(out)
        .with_seed(seed);
    e.launch(m, "hopper", &l)?;
    Ok(download(e, out, 2048))
}

fn elect(e: &Emulator, m: &Module, seed: u64) -> Result<Vec<u8>, EmuError> {
    let out = e.alloc(512)?;
    e.launch(m, "elect", &Launch::new([1, 1, 1], [64, 1, 1]).with_ptr(out).with_seed(seed))?;
    Ok(download(e, out, 512))
}

fn halves(e: &Emulator, m: &Module, seed: u64) -> Result<Vec<u8>, EmuError> {
    let out = e.alloc(128)?;
    e.launch(m, "halves", &Launch::new([1, 1, 1], [32, 1, 1]).with_ptr(out).with_seed(seed))?;
    Ok(download(e, out, 128))
}

fn exchange(e: &Emulator, m: &Module, seed: u64) -> Result<Vec<u8>, EmuError> {
    let (cells, out) = (e.alloc(128)?, e.alloc(128)?);
    e.launch(m, "exchange", &Launch::new([1, 1, 1], [32, 1, 1]).with_ptr(cells).with_ptr(out).with_seed(seed))?;
    Ok(download(e, out, 128))
}

const BENCHES: [Bench; 9] = [
    Bench {
        name: "reverse",
        head: HEAD_80,
        body: REVERSE,
        run: reverse,
        expected: || u32s((0..50).map(|i| if i < 14 { 0 } else { 63 - i })),
    },
    Bench {
        name: "pipeline",
        head: HEAD_80,
        body: PIPELINE,
        run: pipeline,
        expected: || {
            u32s((0..64u32).map(|t| {
                (0..5).fold(0u32, |s, tile| {
                    let first = tile * 256 + (t ^ 63) * 4;
                    s.wrapping_add(pipeline_input(first)).wrapping_add(pipeline_input(first + 3))
                })
            }))
        },
    },
    Bench {
        name: "warp",
        head: HEAD_80,
        body: WARP,
        run: warp,
        expected: || u32s((0..32u32).map(|l| 496 + (l + 1) % 32)),
    },
    Bench {
        name: "mma",
        head: HEAD_80,
        body: MMA,
        run: mma,
        expected: || {
            let at = |r: u32, c: u32| small(r * 16 + c);
            let dot = |r: u32, c: u32| (0..16).map(|k| at(r, k) * at(c, k)).sum::<i32>() as f32;
            (0..32u32)
                .flat_map(|l| {
                    let (g, t) = (l / 4, l % 4);
                    [dot(g, 2 * t), dot(g, 2 * t + 1), dot(g + 8, 2 * t), dot(g + 8, 2 * t + 1)]
                })
                .flat_map(f32::to_le_bytes)
                .collect()
        },
    },
    Bench {
        name: "last_cta",
        head: HEAD_80,
        body: LAST_CTA,
        run: last_cta,
        expected: || u32s(std::iter::once((0..40u32).map(|c| c + 100).sum())),
    },
    Bench {
        name: "hopper",
        head: HEAD_90A,
        body: HOPPER,
        run: hopper,
        expected: || {
            (0..64u32)
                .flat_map(|r| {
                    (0..8u32).map(move |c| (0..64).map(|k| small(r * 64 + k) * small(c * 64 + k + 9999)).sum::<i32>())
                })
                .flat_map(|v| (v as f32).to_le_bytes())
                .collect()
        },
    },
    Bench {
        name: "elect",
        head: HEAD_90A,
        body: ELECT,
        run: elect,
        expected: || u32s((0..128).map(|i| i / 32 * 100 + i % 32)),
    },
    Bench {
        name: "halves",
        head: HEAD_80,
        body: HALVES,
        run: halves,
        expected: || u32s((0..32u32).map(|i| (31 - i) + 100 * ((31 - i) ^ 1))),
    },
    Bench { name: "exchange", head: HEAD_80, body: EXCHANGE, run: exchange, expected: || u32s((0..32u32).rev()) },
];

/// Seeds that the correct kernels run under: the issue of a missed wait is a matter of seconds, not of luck.
const SEEDS: u64 = 1000;

#[test]
fn correct_kernels_are_clean_under_every_seed() {
    for b in &BENCHES {
        let m = Module::parse(&format!("{}{}", b.head, b.body)).unwrap_or_else(|e| panic!("{}: {e}", b.name));
        let want = (b.expected)();
        for seed in 0..SEEDS {
            let e = Emulator::default();
            match (b.run)(&e, &m, seed) {
                Ok(out) => assert_eq!(out, want, "{} with seed {seed}", b.name),
                Err(e) => panic!("{}: {e}", b.name),
            }
        }
    }
}

#[test]
fn correct_kernels_run_without_checks() {
    for b in &BENCHES {
        let m = Module::parse(&format!("{}{}", b.head, b.body)).unwrap();
        let e = Emulator::new(EmulatorOptions::default().with_checks(Checks::none()));
        for seed in 0..20 {
            assert_eq!((b.run)(&e, &m, seed).unwrap(), (b.expected)(), "{}", b.name);
        }
    }
}

/// What breaks a kernel: kernel, what is broken, text to replace, the replacement, and the errors that may come of it. There
/// are several where a reader may come before or after the writer that it should have waited for.
type Mutant = (&'static str, &'static str, &'static str, &'static str, &'static [FaultKind]);

use FaultKind::*;

const MUTANTS: &[Mutant] = &[
    ("reverse", "barrier removed", "bar.sync 0;", "", &[SharedRace, UninitializedShared]),
    (
        "reverse",
        "barrier before the store",
        "st.shared.u32 [%r4], %r5;\n    bar.sync 0;",
        "bar.sync 0;\n    st.shared.u32 [%r4], %r5;",
        &[SharedRace, UninitializedShared],
    ),
    ("reverse", "load past the tail", "@!%p0 ld.global.u32", "ld.global.u32", &[GlobalOutOfBounds]),
    ("reverse", "store past the tail", "@!%p0 st.global.u32", "st.global.u32", &[GlobalOutOfBounds]),
    ("reverse", "tail off by one", "setp.ge.u32 %p0, %r1, %r0", "setp.gt.u32 %p0, %r1, %r0", &[GlobalOutOfBounds]),
    ("reverse", "shared index off by one", "sub.s32 %r6, 63, %r1", "sub.s32 %r6, 64, %r1", &[SharedOutOfBounds]),
    ("reverse", "misaligned address", "add.s32 %r8, %r2, %r7", "add.s32 %r8, %r7, 1026", &[Misaligned]),
    (
        "reverse",
        "a warp does not store",
        "st.shared.u32 [%r4], %r5",
        "setp.lt.u32 %p1, %r1, 32;\n    @%p1 st.shared.u32 [%r4], %r5",
        &[UninitializedShared],
    ),
    ("reverse", "value not initialised", "mov.b32 %r5, 0;", "", &[UninitializedShared]),
    (
        "reverse",
        "divergent barrier",
        "bar.sync 0;",
        "setp.lt.u32 %p1, %r1, 40;\n    @%p1 bar.sync 0;",
        &[DivergentCollective],
    ),
    (
        "reverse",
        "a warp syncs on another barrier",
        "bar.sync 0;",
        "shr.u32 %r10, %r1, 5;\n    bar.sync %r10;",
        &[Deadlock],
    ),
    ("reverse", "barrier waits for more threads than there are", "bar.sync 0;", "bar.sync 0, 96;", &[BarrierMismatch]),
    (
        "reverse",
        "threads disagree about the count",
        "bar.sync 0;",
        "shr.u32 %r10, %r1, 5;\n    add.s32 %r10, %r10, 1;\n    shl.b32 %r10, %r10, 5;\n    sub.s32 %r10, 96, %r10;\n    bar.sync 0, %r10;",
        &[BarrierMismatch, SharedRace, UninitializedShared],
    ),
    ("reverse", "no such barrier", "bar.sync 0;", "bar.sync 16;", &[InvalidOperand]),
    ("reverse", "trap", "bar.sync 0;", "trap;", &[Trap]),
    ("reverse", "endless loop", "bar.sync 0;", "here: bra here;", &[InstructionLimit]),
    ("pipeline", "wait removed", "cp.async.wait_group 1;", "", &[AsyncCopyNotWaited, UninitializedShared]),
    (
        "pipeline",
        "waits for one group too few",
        "cp.async.wait_group 1;",
        "cp.async.wait_group 2;",
        &[AsyncCopyNotWaited],
    ),
    ("pipeline", "commit removed", "last:\n    cp.async.commit_group;", "last:", &[AsyncCopyNotWaited]),
    (
        "pipeline",
        "barrier after the wait removed",
        "cp.async.wait_group 1;\n    bar.sync 0;",
        "cp.async.wait_group 1;",
        &[AsyncCopyNotWaited, UninitializedShared, SharedRace],
    ),
    (
        "pipeline",
        "early overwrite",
        "add.s32 %r9, %r9, %r19;\n    bar.sync 0;",
        "add.s32 %r9, %r9, %r19;",
        &[SharedRace, AsyncCopyNotWaited],
    ),
    (
        "pipeline",
        "reads the stage in flight",
        "add.s32 %r15, %r8, %r11",
        "add.s32 %r15, %r8, %r13",
        &[AsyncCopyNotWaited],
    ),
    ("pipeline", "stage off by one", "xor.b32 %r13, %r11, 1024", "add.s32 %r13, %r11, 1024", &[SharedOutOfBounds]),
    ("pipeline", "copies one tile too many", "@%p0 bra last;", "", &[GlobalOutOfBounds]),
    ("pipeline", "source size too large", "mov.b32 %r5, 16", "mov.b32 %r5, 17", &[InvalidOperand]),
    (
        "pipeline",
        "copy in flight at exit",
        "st.global.u32 [%rd5], %r9;",
        "st.global.u32 [%rd5], %r9;\n    ld.param.u64 %rd3, [in];\n    cp.async.cg.shared.global [%r4], [%rd3], 16;",
        &[CopiesInFlightAtExit],
    ),
    ("warp", "warp barrier removed", "bar.warp.sync 0xffffffff;", "", &[SharedRace]),
    (
        "warp",
        "divergent shuffle",
        "shfl.sync.bfly.b32 %r4, %r3, 4,",
        "@%p0 shfl.sync.bfly.b32 %r4, %r3, 4,",
        &[DivergentCollective],
    ),
    (
        "warp",
        "mask without the executing lanes",
        "shfl.sync.bfly.b32 %r4, %r3, 2, 0x1f, 0xffffffff",
        "shfl.sync.bfly.b32 %r4, %r3, 2, 0x1f, 0x0000ffff",
        &[DivergentCollective],
    ),
    ("warp", "accumulator not initialised", "mov.b32 %r3, 0;", "", &[UninitializedRegister]),
    ("warp", "address not initialised", "add.s64 %rd4, %rd1, %rd2;", "", &[UninitializedRegister]),
    (
        "warp",
        "guard not initialised",
        "st.global.u32 [%rd4], %r11",
        "@%p3 st.global.u32 [%rd4], %r11",
        &[UninitializedRegister],
    ),
    ("warp", "shared store by all lanes to one place", "add.s32 %r7, %r5, %r6", "mov.b32 %r7, %r5", &[SharedRace]),
    ("mma", "barrier before ldmatrix removed", "bar.sync 0;", "", &[SharedRace, UninitializedShared]),
    ("mma", "accumulator not initialised", "mov.f32 %f2, 0f00000000;", "", &[UninitializedRegister]),
    (
        "mma",
        "divergent mma",
        "mma.sync.aligned",
        "setp.lt.u32 %p1, %r1, 16;\n    @%p1 mma.sync.aligned",
        &[DivergentCollective],
    ),
    (
        "mma",
        "misaligned matrix row",
        "add.s32 %r9, %r9, %r8;",
        "add.s32 %r9, %r9, %r8;\n    add.s32 %r9, %r9, 8;",
        &[Misaligned],
    ),
    ("mma", "matrix past the tile", "shl.b32 %r8, %r8, 4;", "shl.b32 %r8, %r8, 9;", &[SharedOutOfBounds]),
    (
        "last_cta",
        "fence before the atomic removed",
        "st.global.u32 [%rd3], %r2;\n    membar.gl;",
        "st.global.u32 [%rd3], %r2;",
        &[GlobalRace, UninitializedGlobal],
    ),
    (
        "last_cta",
        "counter without atomic",
        "atom.global.add.u32 %r3, [arrived], 1;",
        "ld.global.u32 %r3, [arrived];\n    add.s32 %r8, %r3, 1;\n    st.global.u32 [arrived], %r8;",
        &[GlobalRace, UninitializedGlobal],
    ),
    ("last_cta", "every CTA writes the result", "@%p1 bra done;", "", &[UninitializedGlobal, GlobalRace]),
    (
        "last_cta",
        "reads one cell too many",
        "setp.le.u32 %p2, %r6, %r4",
        "add.s32 %r9, %r4, 1;\n    setp.le.u32 %p2, %r6, %r9",
        &[GlobalOutOfBounds],
    ),
    ("hopper", "mbarrier wait removed", "@!%p1 bra wait;", "", &[AsyncCopyNotWaited, UninitializedShared, SharedRace]),
    (
        "hopper",
        "wrong phase",
        "[%r4], 0;\n    @!%p1",
        "[%r4], 1;\n    @!%p1",
        &[AsyncCopyNotWaited, UninitializedShared, SharedRace],
    ),
    ("hopper", "expect_tx too small", "[%r4], 9216;", "[%r4], 8192;", &[MbarrierMisuse]),
    ("hopper", "expect_tx too large", "[%r4], 9216;", "[%r4], 9232;", &[Deadlock]),
    (
        "hopper",
        "a copy missing",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd2, {%r6, %r6}], [%r4];",
        "",
        &[Deadlock],
    ),
    (
        "hopper",
        "arrival count too large",
        "mbarrier.init.shared::cta.b64 [%r4], 1;",
        "mbarrier.init.shared::cta.b64 [%r4], 2;",
        &[Deadlock],
    ),
    (
        "hopper",
        "arrives too often",
        "@!%p1 bra wait;",
        "@!%p1 bra wait;\n    mbarrier.arrive.shared::cta.b64 _, [%r4], 2;",
        &[MbarrierMisuse],
    ),
    ("hopper", "initialisation not fenced", "fence.mbarrier_init.release.cluster;", "", &[MissingProxyFence]),
    ("hopper", "mbarrier not initialised", "mbarrier.init.shared::cta.b64 [%r4], 1;", "", &[MbarrierMisuse]),
    (
        "hopper",
        "mbarrier initialised twice",
        "fence.mbarrier_init.release.cluster;",
        "mbarrier.init.shared::cta.b64 [%r4], 1;",
        &[MbarrierMisuse],
    ),
    (
        "hopper",
        "barrier after the initialisation removed",
        "ready:\n    bar.sync 0;",
        "ready:",
        &[SharedRace, MbarrierMisuse],
    ),
    ("hopper", "wgmma.fence removed", "wgmma.fence.sync.aligned;", "", &[MissingWgmmaFence]),
    ("hopper", "wgmma wait removed", "wgmma.wait_group.sync.aligned 0;", "", &[WgmmaRegisterInFlight]),
    ("hopper", "wgmma commit removed", "wgmma.commit_group.sync.aligned;", "", &[WgmmaRegisterInFlight]),
    (
        "hopper",
        "waits for one wgmma group too few",
        "wgmma.wait_group.sync.aligned 0;",
        "wgmma.wait_group.sync.aligned 1;",
        &[WgmmaRegisterInFlight],
    ),
    (
        "hopper",
        "accumulator not initialised",
        "setp.eq.u32 %p2, %r1, -1",
        "setp.ne.u32 %p2, %r1, -1",
        &[UninitializedRegister],
    ),
    ("hopper", "divergent wgmma", "wgmma.commit_group", "@%p0 wgmma.commit_group", &[DivergentCollective]),
    (
        "hopper",
        "tile overwritten before the wgmma wait",
        "wgmma.commit_group",
        "st.shared.u32 [%r3], %r6;\n    wgmma.commit_group",
        &[AsyncReadOverwritten],
    ),
    ("hopper", "descriptor past the tile", "add.s64 %rd5, %rd3, 6;", "add.s64 %rd5, %rd3, 768;", &[SharedOutOfBounds]),
    ("hopper", "proxy fence removed", "fence.proxy.async.shared::cta;", "", &[MissingProxyFence]),
    (
        "hopper",
        "barrier before the bulk store removed",
        "fence.proxy.async.shared::cta;\n    bar.sync 0;",
        "fence.proxy.async.shared::cta;",
        &[SharedRace, UninitializedShared, MissingProxyFence],
    ),
    ("hopper", "bulk wait removed", "cp.async.bulk.wait_group 0;", "", &[CopiesInFlightAtExit]),
    (
        "hopper",
        "staging overwritten before the bulk wait",
        "cp.async.bulk.commit_group;",
        "cp.async.bulk.commit_group;\n    st.shared.u32 [%r5], %r6;",
        &[AsyncReadOverwritten],
    ),
    ("hopper", "bulk store past the output", "[%rd1], [%r5], 2048", "[%rd1], [%r5], 2064", &[SharedOutOfBounds]),
    ("hopper", "bulk size not a multiple of 16", "[%rd1], [%r5], 2048", "[%rd1], [%r5], 2040", &[InvalidOperand]),
    (
        "elect",
        "no bar.warp.sync before the elected lane's arrival",
        "bar.warp.sync 0xffffffff; // before the arrival",
        "",
        &[SharedRace],
    ),
    (
        "elect",
        "a shuffle, which orders no memory, for the bar.warp.sync",
        "bar.warp.sync 0xffffffff; // before the arrival",
        "shfl.sync.bfly.b32 %r11, %r9, 16, 0x1f, 0xffffffff;",
        &[SharedRace],
    ),
    (
        "elect",
        "the elected lane arrives before the bar.warp.sync",
        "bar.warp.sync 0xffffffff; // before the arrival\n    @%p0 mbarrier.arrive.shared::cta.b64 _, [%r3];",
        "@%p0 mbarrier.arrive.shared::cta.b64 _, [%r3];\n    bar.warp.sync 0xffffffff;",
        &[SharedRace],
    ),
    (
        "elect",
        "the elected lane reads again before it arrives",
        "bar.warp.sync 0xffffffff; // before the arrival",
        "fence.proxy.async.shared::cta;\n    @%p0 ld.shared.u32 %r11, [%r4];",
        &[SharedRace],
    ),
    (
        "elect",
        "the elected lane alone waits for the note",
        "await_full:",
        "@!%p0 bra have_note;\nawait_full:",
        &[SharedRace],
    ),
    (
        "elect",
        "no bar.warp.sync after the elected lane's wait",
        "bar.warp.sync 0xffffffff; // before the overwriting",
        "",
        &[AsyncReadOverwritten],
    ),
    (
        "elect",
        "another lane waits for the elected lane's store",
        "@%p0 cp.async.bulk.wait_group.read 0;",
        "@!%p0 cp.async.bulk.wait_group.read 0;",
        &[AsyncReadOverwritten],
    ),
    (
        "elect",
        "no bar.warp.sync before the elected lane's store",
        "bar.warp.sync 0xffffffff; // before the store",
        "",
        &[SharedRace],
    ),
    (
        "elect",
        "the elected lane alone executes the proxy fence",
        "fence.proxy.async.shared::cta;",
        "@%p0 fence.proxy.async.shared::cta;",
        &[MissingProxyFence],
    ),
    ("halves", "no barrier of the half", "bar.warp.sync 0x0000ffff; // low: written", "", &[SharedRace]),
    ("halves", "no barrier of the half before the update", "bar.warp.sync 0x0000ffff; // low: read", "", &[SharedRace]),
    ("halves", "no barrier of both halves", "bar.warp.sync 0xffffffff; // both", "", &[SharedRace]),
    ("exchange", "no bar.warp.sync", "bar.warp.sync 0xffffffff;", "", &[GlobalRace, UninitializedGlobal]),
    (
        "exchange",
        "a vote, which orders no memory, for the bar.warp.sync",
        "bar.warp.sync 0xffffffff;",
        "vote.sync.ballot.b32 %r4, 1, 0xffffffff;",
        &[GlobalRace, UninitializedGlobal],
    ),
    ("hopper", "not a tensor map", "add.s64 %rd2, %rd0, 128", "mov.u64 %rd2, %rd1", &[InvalidOperand]),
];

#[test]
fn every_mutant_is_caught_with_the_right_message() {
    let mut failures = Vec::new();
    for (bench, what, from, to, want) in MUTANTS {
        let b = BENCHES.iter().find(|b| b.name == *bench).unwrap();
        assert!(b.body.contains(from), "{bench}: `{from}` is not in the kernel");
        let text = format!("{}{}", b.head, b.body.replacen(from, to, 1));
        let m = Module::parse(&text).unwrap_or_else(|e| panic!("{bench}, {what}: {e}"));
        // A race is found by ordering and not by luck: every seed shows it. Only a wait without its loop may happen to find its phase
        // complete.
        let lucky = *what == "mbarrier wait removed";
        let mut caught = 0;
        for seed in 0..20 {
            let e = Emulator::new(EmulatorOptions::default().with_instruction_limit(Some(1_000_000)).with_threads(1));
            match (b.run)(&e, &m, seed) {
                Ok(_) if lucky && seed != 0 => {}
                Ok(_) => failures.push(format!("{bench}, {what}: not caught with seed {seed}")),
                Err(EmuError::Fault(f)) if !want.contains(&f.kind) => {
                    failures.push(format!("{bench}, {what}: {want:?} expected, got {f}").replace('\n', " |"));
                }
                Err(EmuError::Fault(f))
                    if f.ptx_line == 0 && !matches!(f.kind, CopiesInFlightAtExit | InstructionLimit) =>
                {
                    failures.push(format!("{bench}, {what}: no line: {f}"));
                }
                Err(EmuError::Fault(_)) => caught += 1,
                Err(e) => failures.push(format!("{bench}, {what}: {e}")),
            }
        }
        if caught == 0 {
            failures.push(format!("{bench}, {what}: never caught"));
        }
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), MUTANTS.len(), failures.join("\n"));
}
