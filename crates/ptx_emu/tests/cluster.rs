//! Clusters: shared memory of other CTAs, cluster barriers, stores and copies that an mbarrier of another CTA counts, each with what is
//! reported when a part of it is missing.

use ptx_emu::{EmuError, Emulator, EmulatorOptions, FaultKind, Launch, Module};

const HEAD: &str =
    ".version 8.6\n.target sm_90a\n.address_size 64\n.shared .align 128 .b8 tile[512];\n.shared .align 8 .b8 bar[8];\n";

/// A kernel of `cells`: %r0 is the thread, %r1 the CTA in the grid, %r2 its rank, %r3 the CTAs of the cluster, %r4 the next rank, %r5 the
/// address of the thread's word of `tile`; cells are 32 to a CTA, and %rd1 is the thread's.
fn kernel(directives: &str, body: &str) -> Module {
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 cells) {directives}\n{{\n.reg .pred %p<8>;\n.reg .b32 %r<32>;\n.reg .b64 %rd<16>;\n\
         ld.param.u64 %rd0, [cells];\nmov.u32 %r0, %tid.x;\nmov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %cluster_ctarank;\n\
         mov.u32 %r3, %cluster_nctarank;\nadd.s32 %r4, %r2, 1;\nrem.u32 %r4, %r4, %r3;\nmov.u32 %r5, tile;\nshl.b32 %r6, %r0, 2;\n\
         add.s32 %r5, %r5, %r6;\nmad.lo.u32 %r6, %r1, 32, %r0;\nmul.wide.u32 %rd1, %r6, 4;\nadd.s64 %rd1, %rd0, %rd1;\n\
         mad.lo.u32 %r7, %r1, 100, %r0;\n{body}\nret;\n}}\n"
    );
    Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn run(m: &Module, grid: u32, cluster: u32, seed: u64) -> Result<Vec<u32>, EmuError> {
    let e = Emulator::new(EmulatorOptions::default());
    let n = 4 * 32 * grid as usize;
    let cells = e.alloc(n as u64)?;
    e.fill(cells, 0, n as u64)?;
    let launch = Launch::new([grid, 1, 1], [32, 1, 1]).with_ptr(cells).with_seed(seed).with_cluster([cluster, 1, 1]);
    e.launch(m, "k", &launch)?;
    let mut out = vec![0; n];
    e.read(cells, &mut out)?;
    Ok(out.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect())
}

/// What every seed reports, which must be one of `kinds`; the messages.
fn always(body: &str, grid: u32, cluster: u32, kinds: &[FaultKind]) -> Vec<String> {
    let m = kernel("", body);
    (0..12)
        .map(|seed| match run(&m, grid, cluster, seed) {
            Err(EmuError::Fault(f)) if kinds.contains(&f.kind) => f.to_string(),
            other => panic!("seed {seed}: {kinds:?} expected, got {other:?}\n{body}"),
        })
        .collect()
}

fn clean(body: &str, grid: u32, cluster: u32, want: impl Fn(u32, u32) -> u32) {
    let m = kernel("", body);
    for seed in 0..12 {
        let out = run(&m, grid, cluster, seed).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{body}"));
        for (i, v) in out.iter().enumerate() {
            let (cta, thread) = (i as u32 / 32, i as u32 % 32);
            assert_eq!(*v, want(cta, thread), "CTA {cta}, thread {thread}, seed {seed}");
        }
    }
}

/// The CTA with the next rank in the cluster.
fn next(cta: u32, cluster: u32) -> u32 {
    cta / cluster * cluster + (cta + 1) % cluster
}

/// The CTA with the rank before.
fn previous(cta: u32, cluster: u32) -> u32 {
    cta / cluster * cluster + (cta + cluster - 1) % cluster
}

const SYNC: &str = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;";

/// Every CTA reads the tile of the next.
const EXCHANGE: &str = "
    st.shared.u32 [%r5], %r7;
    SYNC // first
    mapa.shared::cluster.u32 %r8, %r5, %r4;
    ld.shared::cluster.u32 %r9, [%r8];
    SYNC // last
    st.global.u32 [%rd1], %r9;";

fn exchange() -> String {
    EXCHANGE.replace("SYNC", SYNC)
}

#[test]
fn tiles_are_exchanged_through_distributed_shared_memory() {
    for cluster in [1, 2, 4, 8, 16] {
        clean(&exchange(), 16, cluster, |cta, t| next(cta, cluster) * 100 + t);
    }
    // Through generic addresses, and with the rank read back from the address.
    let generic = "
        st.shared.u32 [%r5], %r7;
        SYNC
        cvt.u64.u32 %rd2, %r5;
        cvta.shared.u64 %rd3, %rd2;
        mapa.u64 %rd4, %rd3, %r4;
        ld.u32 %r9, [%rd4];
        getctarank.u64 %r10, %rd4;
        mapa.shared::cluster.u32 %r11, %r5, %r4;
        getctarank.shared::cluster.u32 %r12, %r11;
        mad.lo.u32 %r9, %r10, 100000, %r9;
        mad.lo.u32 %r9, %r12, 1000000, %r9;
        SYNC
        st.global.u32 [%rd1], %r9;"
        .replace("SYNC", SYNC);
    clean(&generic, 8, 4, |cta, t| next(cta, 4) * 100 + t + next(cta, 4) % 4 * 1_100_000);
}

#[test]
fn missing_cluster_barriers_are_reported() {
    use FaultKind::{ClusterMisuse, SharedRace};
    let first = format!("{SYNC} // first");
    let last = format!("{SYNC} // last");
    let messages = always(&exchange().replace(&first, ""), 8, 4, &[ClusterMisuse]);
    assert!(messages.iter().all(|m| m.contains("may not have begun")), "{}", messages[0]);
    let messages = always(&exchange().replace(&last, ""), 8, 4, &[ClusterMisuse]);
    assert!(messages.iter().any(|m| m.contains("a cluster barrier is missing")), "{messages:?}");
    assert!(messages.iter().any(|m| m.contains("a CTA that has ended")), "{messages:?}");
    // A relaxed arrival says that the CTA has begun, and nothing of what it wrote.
    let relaxed = exchange().replacen("arrive.release", "arrive.relaxed", 1);
    always(&relaxed, 8, 4, &[SharedRace]);
    // The tile is written again before the neighbour has read it.
    let again = exchange().replace(&last, &format!("st.shared.u32 [%r5], %r0;\n{last}"));
    let messages = always(&again, 8, 4, &[SharedRace]);
    assert!(messages.iter().any(|m| m.contains("rank")), "{}", messages[0]);
    // Two CTAs write one place of a third.
    let both = format!(
        "{SYNC}\nmov.u32 %r4, 0;\nmapa.shared::cluster.u32 %r8, %r5, %r4;\nst.shared::cluster.u32 [%r8], %r1;\n{SYNC}"
    );
    always(&both, 4, 4, &[SharedRace]);
}

#[test]
fn the_cluster_barrier_has_a_protocol() {
    let arrive = "barrier.cluster.arrive.aligned;";
    let wait = "barrier.cluster.wait.aligned;";
    let m = always(&format!("{arrive}\n{arrive}\n{wait}"), 4, 2, &[FaultKind::ClusterMisuse]);
    assert!(m[0].contains("without a wait"), "{}", m[0]);
    let m = always(wait, 4, 2, &[FaultKind::ClusterMisuse]);
    assert!(m[0].contains("without having arrived"), "{}", m[0]);
    // One CTA of two never arrives, and never ends.
    let stuck = format!(
        "and.b32 %r8, %r1, 1;\nsetp.eq.u32 %p0, %r8, 1;\n@%p0 bra never;\n{arrive}\n{wait}\nret;\nnever:\nbar.sync 0, 64;"
    );
    always(&stuck, 2, 2, &[FaultKind::BarrierMismatch, FaultKind::Deadlock]);
    let stuck = format!(
        "mov.u32 %r9, bar;\nsetp.eq.u32 %p1, %r0, 0;\n@%p1 mbarrier.init.shared.b64 [%r9], 1;\nbar.sync 0;\nsetp.eq.u32 %p0, %r2, 1;\n\
         @%p0 bra never;\n{arrive}\n{wait}\nret;\nnever:\nmbarrier.try_wait.parity.shared.b64 %p2, [%r9], 0;\n@!%p2 bra never;"
    );
    let m = always(&stuck, 2, 2, &[FaultKind::Deadlock]);
    assert!(m.iter().any(|m| m.contains("cluster barrier") || m.contains("mbarrier")), "{}", m[0]);
    // Threads that have ended are waited for by nobody.
    let early = "setp.ge.u32 %p0, %r0, 8;\n@%p0 bra out;\nbarrier.cluster.arrive;\nbarrier.cluster.wait;\n\
                 st.global.u32 [%rd1], 5;\nout:";
    clean(early, 4, 2, |_, t| if t < 8 { 5 } else { 0 });
}

#[test]
fn clusters_are_checked_before_the_launch() {
    let refused = |directives: &str, grid: [u32; 3], cluster: Option<[u32; 3]>, options: EmulatorOptions| {
        let m = kernel(directives, "");
        let e = Emulator::new(options);
        let cells = e.alloc(4).unwrap();
        let launch = Launch { cluster, ..Launch::new(grid, [32, 1, 1]).with_ptr(cells) };
        match e.launch(&m, "k", &launch) {
            Ok(_) => String::new(),
            Err(e) => e.to_string(),
        }
    };
    let plain = EmulatorOptions::default;
    assert_eq!(refused("", [4, 2, 1], Some([2, 2, 1]), plain()), "");
    assert!(refused("", [4, 1, 1], Some([3, 1, 1]), plain()).contains("a multiple of the clusters of [3, 1, 1]"));
    assert!(refused("", [34, 1, 1], Some([17, 1, 1]), plain()).contains("1 to 16 are accepted"));
    assert!(refused("", [4, 1, 1], Some([0, 1, 1]), plain()).contains("1 to 16 are accepted"));
    let required = ".explicitcluster .reqnctapercluster 2, 1, 1";
    assert_eq!(refused(required, [4, 1, 1], None, plain()), "");
    assert!(refused(required, [4, 1, 1], Some([4, 1, 1]), plain()).contains("the entry requires [2, 1, 1]"));
    assert!(refused(required, [3, 1, 1], None, plain()).contains("a multiple"));
    let one = plain().with_multiprocessors(1).with_max_shared_bytes(227 << 10);
    let m = kernel("", "");
    let e = Emulator::new(one);
    let cells = e.alloc(4).unwrap();
    let wide = Launch::new([8, 1, 1], [1024, 1, 1]).with_ptr(cells).with_cluster([4, 1, 1]);
    assert!(e.launch(&m, "k", &wide).unwrap_err().to_string().contains("the 1 multiprocessors hold 2"));
}

#[test]
fn ranks_follow_the_box_of_the_cluster() {
    // A grid of 4 x 2 in clusters of 2 x 2: x runs first within a cluster.
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 cells) .explicitcluster .reqnctapercluster 2, 2, 1\n{{\n.reg .b32 %r<16>;\n.reg .b64 %rd<4>;\n\
         ld.param.u64 %rd0, [cells];\nmov.u32 %r0, %ctaid.x;\nmov.u32 %r1, %ctaid.y;\nmad.lo.u32 %r2, %r1, 4, %r0;\nmul.wide.u32 %rd1, %r2, 4;\n\
         add.s64 %rd1, %rd0, %rd1;\nmov.u32 %r3, %cluster_ctarank;\nmov.u32 %r4, %clusterid.x;\nmad.lo.u32 %r3, %r4, 10, %r3;\n\
         mov.u32 %r5, %cluster_ctaid.y;\nmad.lo.u32 %r3, %r5, 100, %r3;\nmov.u32 %r6, %nclusterid.x;\nmad.lo.u32 %r3, %r6, 1000, %r3;\n\
         st.global.u32 [%rd1], %r3;\nret;\n}}\n"
    );
    let m = Module::parse(&text).unwrap();
    let e = Emulator::default();
    let cells = e.alloc(32).unwrap();
    e.launch(&m, "k", &Launch::new([4, 2, 1], [1, 1, 1]).with_ptr(cells)).unwrap();
    let mut out = [0; 32];
    e.read(cells, &mut out).unwrap();
    let out: Vec<u32> = out.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(out, [2000, 2001, 2010, 2011, 2102, 2103, 2112, 2113]);
}

#[test]
fn atomics_reach_the_shared_memory_of_another_cta() {
    let body = |op: &str| {
        format!(
            "setp.eq.u32 %p0, %r0, 0;\n@%p0 st.shared.u32 [%r5], 0;\n{SYNC}\nmov.u32 %r8, tile;\nmov.u32 %r10, 0;\n\
             mapa.shared::cluster.u32 %r8, %r8, %r10;\n{op}\n{SYNC}\nmov.u32 %r9, 0;\nsetp.eq.u32 %p1, %r2, 0;\n\
             @%p1 ld.shared.u32 %r9, [tile];\nst.global.u32 [%rd1], %r9;"
        )
    };
    let add = body("atom.relaxed.cluster.shared::cluster.add.u32 %r11, [%r8], 1;");
    clean(&add, 8, 4, |cta, _| if cta % 4 == 0 { 128 } else { 0 });
    let plain =
        body("ld.shared::cluster.u32 %r11, [%r8];\nadd.s32 %r11, %r11, 1;\nst.shared::cluster.u32 [%r8], %r11;");
    always(&plain, 8, 4, &[FaultKind::SharedRace]);
    // An atomic of one CTA does not hide its owner's plain store.
    let unordered = add.replacen(SYNC, "barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;", 1);
    always(&unordered, 8, 4, &[FaultKind::SharedRace]);
}

/// Thread 0 sends its number into the next CTA, whose mbarrier counts the bytes.
const SEND: &str = "
    mov.u32 %r8, bar;
    mov.u32 %r9, tile;
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra ready;
    mbarrier.init.shared.b64 [%r8], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r8], 8;
ready:
    SYNC
    @%p0 bra wait;
    mapa.shared::cluster.u32 %r10, %r8, %r4;
    mapa.shared::cluster.u32 %r11, %r9, %r4;
    st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [%r11], {%r7, %r1}, [%r10];
wait:
    mbarrier.try_wait.parity.shared.b64 %p1, [%r8], 0;
    @!%p1 bra wait;
    ld.shared.u32 %r12, [%r9];
    ld.shared.u32 %r13, [%r9+4];
    add.s32 %r12, %r12, %r13;
    st.global.u32 [%rd1], %r12;";

#[test]
fn a_store_is_counted_by_the_mbarrier_of_its_target() {
    let send = SEND.replace("SYNC", SYNC);
    for cluster in [1, 2, 8] {
        clean(&send, 8, cluster, |cta, _| previous(cta, cluster) * 101);
    }
    use FaultKind::{
        AsyncCopyNotWaited, ClusterMisuse, CopiesInFlightAtExit, MbarrierMisuse, SharedRace, UninitializedShared,
    };
    always(&send.replace("@!%p1 bra wait;", ""), 8, 4, &[AsyncCopyNotWaited, UninitializedShared, SharedRace]);
    // Nor may the place be read before the wait when it holds something.
    let early = send
        .replace("@!%p1 bra wait;", "")
        .replace("mbarrier.init", "st.shared.v2.u32 [%r9], {%r0, %r0};\nmbarrier.init");
    always(&format!("{early}\n{SYNC}"), 8, 4, &[AsyncCopyNotWaited, SharedRace]);
    always(&send.replace("[%r8], 8;", "[%r8], 4;"), 8, 4, &[MbarrierMisuse]);
    always(&send.replace("[%r8], 8;", "[%r8], 12;"), 8, 4, &[FaultKind::Deadlock]);
    always(&send.replace(SYNC, "bar.sync 0;"), 8, 4, &[ClusterMisuse]);
    let relaxed = send.replace("arrive.release", "arrive.relaxed").replace("fence.mbarrier_init.release.cluster;", "");
    always(&relaxed, 8, 4, &[SharedRace]);
    // The fence of the initialisation is enough for a relaxed arrival.
    clean(&send.replace("arrive.release", "arrive.relaxed"), 8, 4, |cta, _| previous(cta, 4) * 101);
    let unread = send.replace("wait:\n", "wait:\nbra out;\n").replace("st.global.u32 [%rd1], %r12;", "out:");
    always(&unread, 8, 4, &[CopiesInFlightAtExit, ClusterMisuse]);
    // A reduction: the values of two senders add up.
    let red = send
        .replace("[%r8], 8;", "[%r8], 4;")
        .replace("mbarrier.init", "st.shared.u64 [%r9], 0;\nmbarrier.init")
        .replace(
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [%r11], {%r7, %r1}, [%r10];",
            "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r11], %r7, [%r10];",
        );
    clean(&red, 8, 4, |cta, _| previous(cta, 4) * 100);
}

/// Rank 0 copies 128 bytes of the cells of CTA 0 of the cluster into all its CTAs.
const MULTICAST: &str = "
    mov.u32 %r8, bar;
    mov.u32 %r9, tile;
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra ready;
    mbarrier.init.shared.b64 [%r8], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r8], 128;
ready:
    SYNC
    setp.ne.u32 %p2, %r2, 0;
    or.pred %p2, %p2, %p0;
    @%p2 bra wait;
    mov.b16 %r10, MASK;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r9], [%rd1], 128, [%r8], %r10;
wait:
    mbarrier.try_wait.parity.shared.b64 %p1, [%r8], 0;
    @!%p1 bra wait;
    ld.shared.u32 %r12, [%r5];
    add.s32 %r12, %r12, 1;
    SYNC
    setp.eq.u32 %p3, %r2, 0;
    @!%p3 st.global.u32 [%rd1], %r12;";

#[test]
fn one_copy_reaches_all_ctas_of_the_mask() {
    let multicast = MULTICAST.replace("SYNC", SYNC).replace("mov.b16 %r10", "mov.b32 %r10");
    clean(&multicast.replace("MASK", "15"), 8, 4, |cta, _| (cta % 4 != 0) as u32);
    use FaultKind::{AsyncCopyNotWaited, Deadlock, InvalidOperand, MissingProxyFence, UninitializedShared};
    let all = multicast.replace("MASK", "15");
    always(&all.replace("@!%p1 bra wait;", ""), 8, 4, &[AsyncCopyNotWaited, UninitializedShared]);
    always(&multicast.replace("MASK", "7"), 8, 4, &[Deadlock]);
    always(&multicast.replace("MASK", "31"), 8, 4, &[InvalidOperand]);
    always(&multicast.replace("MASK", "0"), 8, 4, &[InvalidOperand]);
    always(&all.replace("fence.mbarrier_init.release.cluster;", ""), 8, 4, &[MissingProxyFence]);
}

#[test]
fn shared_memory_is_copied_to_another_cta() {
    let copy = "
        mov.u32 %r8, bar;
        mov.u32 %r9, tile;
        st.shared.u32 [%r5], %r7;
        setp.ne.u32 %p0, %r0, 0;
        @%p0 bra ready;
        mbarrier.init.shared.b64 [%r8], 1;
        fence.mbarrier_init.release.cluster;
        mbarrier.arrive.expect_tx.shared.b64 _, [%r8], 128;
    ready:
        fence.proxy.async;
        SYNC
        @%p0 bra wait;
        mapa.shared::cluster.u32 %r10, %r8, %r4;
        add.s32 %r11, %r9, 256;
        mapa.shared::cluster.u32 %r11, %r11, %r4;
        cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r11], [%r9], 128, [%r10];
    wait:
        mbarrier.try_wait.parity.shared.b64 %p1, [%r8], 0;
        @!%p1 bra wait;
        ld.shared.u32 %r12, [%r5+256];
        SYNC // last
        st.shared.u32 [%r5], %r0;
        st.global.u32 [%rd1], %r12;"
        .replace("SYNC", SYNC);
    clean(&copy, 8, 4, |cta, t| previous(cta, 4) * 100 + t);
    always(&copy.replace("fence.proxy.async;", ""), 8, 4, &[FaultKind::MissingProxyFence]);
    // The source is written again before its copy is known to have arrived.
    always(&copy.replace(&format!("{SYNC} // last"), ""), 8, 4, &[FaultKind::SharedRace, FaultKind::ClusterMisuse]);
}

#[test]
fn an_arrival_at_another_cta_releases() {
    // The next CTA may read what was written before the arrival at its mbarrier.
    let arrive = "
        mov.u32 %r8, bar;
        setp.ne.u32 %p0, %r0, 0;
        @%p0 bra ready;
        mbarrier.init.shared.b64 [%r8], 32;
    ready:
        SYNC
        mapa.shared::cluster.u32 %r11, %r5, %r4;
        st.shared::cluster.u32 [%r11], %r7;
        mapa.shared::cluster.u32 %r10, %r8, %r4;
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r10];
    wait:
        mbarrier.try_wait.parity.acquire.cluster.shared.b64 %p1, [%r8], 0;
        @!%p1 bra wait;
        ld.shared.u32 %r12, [%r5];
        st.global.u32 [%rd1], %r12;"
        .replace("SYNC", SYNC);
    clean(&arrive, 8, 4, |cta, t| previous(cta, 4) * 100 + t);
    let m = always(
        &arrive.replace("@!%p1 bra wait;", ""),
        8,
        4,
        &[FaultKind::SharedRace, FaultKind::UninitializedShared, FaultKind::ClusterMisuse],
    );
    assert!(!m.is_empty());
    always(&arrive.replace("b64 [%r8], 32;", "b64 [%r8], 33;"), 8, 4, &[FaultKind::Deadlock]);
}
