//! Clusters: special registers, shared memory of other CTAs, cluster barriers, mbarriers of other CTAs, and multicast copies.
//!
//! In these bodies, `%t0` is the rank of the next CTA of the cluster, `%t1` the shared address of the thread's own 16 bytes, `%t3`
//! that of the same bytes in the next CTA, `%t4` the thread, `%t5` the mbarrier and `%t6` that of the next CTA.

use ptx_emu::{Swizzle, TensorDataType, TensorFill};

use super::super::{BLOCK, Case, Definition, Input, Output, Tensor};
use super::{case, hopper};

/// All cases of this file.
pub(super) fn clusters(v: &mut Vec<Case>) {
    registers(v);
    accesses(v);
    atomics(v);
    orders(v);
    mbarriers(v);
    asynchronous_stores(v);
    copies(v);
    multicasts(v);
}

/// What thread `t` reads.
fn words(inputs: &[[u64; 3]], t: usize) -> [u32; 3] {
    inputs[t].map(|w| w as u32)
}

/// The thread at the same place in the CTA whose rank is `by` larger, in clusters of `n`.
fn other(t: usize, n: usize, by: usize) -> usize {
    let cta = t / BLOCK;
    (cta / n * n + (cta % n + by) % n) * BLOCK + t % BLOCK
}

/// Everybody of the cluster arrives, and waits for the others.
const SYNC: &str = "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n";

/// The addresses, in clusters of `n`, a power of two.
fn addresses(n: u32) -> String {
    format!(
        "mov.u32 %t0, %cluster_ctarank;\nadd.u32 %t0, %t0, 1;\nand.b32 %t0, %t0, {};\nmov.u32 %t4, %tid.x;\n\
         shl.b32 %t1, %t4, 4;\nmov.u32 %t2, buffer;\nadd.s32 %t1, %t1, %t2;\nmapa.shared::cluster.u32 %t3, %t1, %t0;\n\
         mov.u32 %t5, bar;\nmapa.shared::cluster.u32 %t6, %t5, %t0;\n",
        n - 1
    )
}

/// A case of four words in clusters of `n`, with its definition.
fn of_cluster(family: &'static str, n: u32, body: &str, definition: Definition) -> Case {
    let body = format!("{}{body}", addresses(n));
    let case = hopper(case(family, body, Input::Bits, Output::Quad));
    Case { cluster: n, definition: Some(definition), ..case }
}

fn registers(v: &mut Vec<Case>) {
    let family = "cluster registers";
    let rank = "mov.u32 %d0, %cluster_ctaid.x;\nmov.u32 %d1, %cluster_nctaid.x;\nmov.u32 %d2, %cluster_ctarank;\n\
                mov.u32 %d3, %cluster_nctarank;";
    let grid = "mov.u32 %d0, %clusterid.x;\nmov.u32 %d1, %nclusterid.x;\nmov.pred %q, %is_explicit_cluster;\n\
                selp.b32 %d2, 1, 0, %q;\nmov.u32 %d3, %cluster_nctaid.y;";
    v.push(of_cluster(family, 4, rank, |_, t| [(t / BLOCK % 4) as u32, 4, (t / BLOCK % 4) as u32, 4]));
    v.push(of_cluster(family, 2, grid, |_, t| [(t / BLOCK / 2) as u32, 4, 1, 1]));
    // Without a cluster size, every CTA is a cluster.
    let alone = |body: &str, definition: Definition| {
        let case = hopper(case(family, body, Input::Bits, Output::Quad));
        Case { definition: Some(definition), ..case }
    };
    v.push(alone(rank, |_, _| [0, 1, 0, 1]));
    v.push(alone(grid, |_, t| [(t / BLOCK) as u32, 8, 0, 1]));
}

fn accesses(v: &mut Vec<Case>) {
    let family = "cluster memory";
    let store_own = "st.shared.v4.u32 [%t1], {%a, %b, %c, %a};\n";
    let load =
        |n, what: &str, definition| of_cluster(family, n, &format!("{store_own}{SYNC}{what}\n{SYNC}"), definition);
    v.push(load(2, "ld.shared::cluster.v4.u32 {%d0, %d1, %d2, %d3}, [%t3];", |inputs, t| {
        let [a, b, c] = words(inputs, other(t, 2, 1));
        [a, b, c, a]
    }));
    v.push(load(8, "ld.shared::cluster.v2.u32 {%d0, %d1}, [%t3+8];", |inputs, t| {
        let [a, _, c] = words(inputs, other(t, 8, 1));
        [c, a, 0, 0]
    }));
    v.push(load(4, "ld.shared::cluster.s16 %d0, [%t3+2];\nld.shared::cluster.u8 %d1, [%t3+5];", |inputs, t| {
        let [a, b, _] = words(inputs, other(t, 4, 1));
        [(a as i32 >> 16) as u32, b >> 8 & 0xff, 0, 0]
    }));
    // The CTA's own memory, by a mapped address and by one that was not mapped.
    v.push(load(
        2,
        "mov.u32 %t0, %cluster_ctarank;\nmapa.shared::cluster.u32 %t7, %t1, %t0;\nld.shared::cluster.u32 %d0, [%t7];\n\
         ld.shared::cluster.u32 %d1, [%t1+4];",
        |inputs, t| [words(inputs, t)[0], words(inputs, t)[1], 0, 0],
    ));
    v.push(load(
        4,
        "cvt.u64.u32 %la, %t1;\ncvta.shared.u64 %la, %la;\nmapa.u64 %lb, %la, %t0;\nld.u32 %d0, [%lb+8];\n\
         getctarank.u64 %d1, %lb;\nisspacep.shared::cluster %q, %lb;\nselp.b32 %d2, 1, 0, %q;\n\
         isspacep.shared::cta %q, %lb;\nselp.b32 %d3, 1, 0, %q;",
        |inputs, t| [words(inputs, other(t, 4, 1))[2], (t / BLOCK + 1) as u32 % 4, 1, 0],
    ));
    v.push(load(
        4,
        "getctarank.shared::cluster.u32 %d0, %t3;\ngetctarank.shared::cluster.u32 %d1, %t1;\n\
         mapa.shared::cluster.u32 %t7, buffer, 3;\ngetctarank.shared::cluster.u32 %d2, %t7;",
        |_, t| [(t / BLOCK + 1) as u32 % 4, (t / BLOCK % 4) as u32, 3, 0],
    ));
    let store = |n, what: &str, definition| {
        let body = format!(
            "st.shared.v4.u32 [%t1], {{0, 0, 0, 0}};\n{SYNC}{what}\n{SYNC}ld.shared.v4.u32 {{%d0, %d1, %d2, %d3}}, [%t1];"
        );
        of_cluster(family, n, &body, definition)
    };
    v.push(store(4, "st.shared::cluster.v4.u32 [%t3], {%a, %b, %c, %a};", |inputs, t| {
        let [a, b, c] = words(inputs, other(t, 4, 3));
        [a, b, c, a]
    }));
    v.push(store(2, "st.shared::cluster.u16 [%t3+6], %ha;\nst.shared::cluster.b64 [%t3+8], %lb;", |inputs, t| {
        let [a, b, _] = inputs[other(t, 2, 1)];
        [0, (a as u32) << 16, b as u32, (b >> 32) as u32]
    }));
    v.push(store(
        8,
        "cvt.u64.u32 %la, %t1;\ncvta.shared.u64 %la, %la;\nmapa.u64 %la, %la, %t0;\nst.v2.u32 [%la+8], {%a, %b};",
        |inputs, t| {
            let [a, b, _] = words(inputs, other(t, 8, 7));
            [0, 0, a, b]
        },
    ));
}

fn atomics(v: &mut Vec<Case>) {
    let family = "cluster atomics";
    let body = |form: &str, what: &str| {
        format!(
            "st.shared.v4.u32 [%t1], {{%b, %c, %a, %b}};\n{SYNC}{form}.relaxed.cluster.shared::cluster.{what};\n{SYNC}\
             ld.shared.v2.u32 {{%d1, %d2}}, [%t1];"
        )
    };
    // What the owner had there comes back; what the previous CTA makes of it stays.
    macro_rules! atom {
        ($what:literal, $op:expr) => {
            v.push(of_cluster(family, 4, &body("atom", concat!($what, " %d0, [%t3], %a")), |inputs, t| {
                let op: fn(u32, u32) -> u32 = $op;
                let (mine, theirs) = (words(inputs, t), words(inputs, other(t, 4, 3)));
                [words(inputs, other(t, 4, 1))[1], op(mine[1], theirs[0]), mine[2], 0]
            }));
        };
    }
    atom!("add.u32", |old, x| old.wrapping_add(x));
    atom!("min.s32", |old, x| (old as i32).min(x as i32) as u32);
    atom!("max.u32", |old, x| old.max(x));
    atom!("inc.u32", |old, x| if old >= x { 0 } else { old + 1 });
    atom!("dec.u32", |old, x| if old == 0 || old > x { x } else { old - 1 });
    atom!("and.b32", |old, x| old & x);
    atom!("or.b32", |old, x| old | x);
    atom!("xor.b32", |old, x| old ^ x);
    atom!("exch.b32", |_, x| x);
    v.push(of_cluster(family, 2, &body("atom", "cas.b32 %d0, [%t3], %b, %a"), |inputs, t| {
        let (mine, theirs) = (words(inputs, t), words(inputs, other(t, 2, 1)));
        [theirs[1], if mine[1] == theirs[1] { theirs[0] } else { mine[1] }, mine[2], 0]
    }));
    v.push(of_cluster(family, 2, &body("atom", "add.u64 %ld, [%t3], %la"), |inputs, t| {
        let (mine, theirs) = (words(inputs, t), inputs[other(t, 2, 1)]);
        let sum = (mine[1] as u64 | (mine[2] as u64) << 32).wrapping_add(theirs[0]);
        [0, sum as u32, (sum >> 32) as u32, 0]
    }));
    v.push(of_cluster(family, 8, &body("red", "add.u32 [%t3], %a"), |inputs, t| {
        let (mine, theirs) = (words(inputs, t), words(inputs, other(t, 8, 7)));
        [0, mine[1].wrapping_add(theirs[0]), mine[2], 0]
    }));
    // Everybody on one word of the first CTA.
    let sum = format!(
        "mapa.shared::cluster.u32 %t7, buffer, 0;\nsetp.eq.u32 %q, %t4, 0;\n@%q st.shared.u32 [%t2], 0;\n{SYNC}\
         red.relaxed.cluster.shared::cluster.add.u32 [%t7], %a;\n{SYNC}ld.shared::cluster.u32 %d0, [%t7];\n{SYNC}"
    );
    v.push(of_cluster(family, 8, &sum, |inputs, _| {
        [inputs.iter().fold(0u32, |sum, w| sum.wrapping_add(w[0] as u32)), 0, 0, 0]
    }));
}

/// Messages from CTA to CTA, by every pair of a release and an acquire.
fn orders(v: &mut Vec<Case>) {
    let family = "cluster orders";
    let clear = "st.shared.v4.u32 [%t1], {0, 0, 0, 0};\n";
    let received: Definition = |inputs, t| {
        let [a, b, _] = words(inputs, other(t, 2, 1));
        [a, b, 0, 0]
    };
    let send = "st.shared::cluster.v2.u32 [%t3], {%a, %b};\n";
    let receive = "ld.shared.v2.u32 {%d0, %d1}, [%t1];\n";
    for (release, acquire) in [
        ("st.release.cluster.shared::cluster.u32 [%t3+8], 1;", "ld.acquire.cluster.shared::cta.u32 %t7, [%t1+8];"),
        ("st.release.cluster.shared::cluster.u32 [%t3+8], 1;", "ld.acquire.cluster.shared::cluster.u32 %t7, [%t1+8];"),
        (
            "fence.acq_rel.cluster;\nst.relaxed.cluster.shared::cluster.u32 [%t3+8], 1;",
            "ld.relaxed.cluster.shared::cta.u32 %t7, [%t1+8];\nfence.acq_rel.cluster;",
        ),
        (
            "fence.sc.cluster;\nst.relaxed.cluster.shared::cluster.u32 [%t3+8], 1;",
            "ld.relaxed.cluster.shared::cta.u32 %t7, [%t1+8];\nfence.sc.cluster;",
        ),
        (
            "red.release.cluster.shared::cluster.add.u32 [%t3+8], 1;",
            "atom.acquire.cluster.shared::cta.or.b32 %t7, [%t1+8], 0;",
        ),
        (
            "atom.acq_rel.cluster.shared::cluster.exch.b32 %t7, [%t3+8], 1;",
            "ld.acquire.gpu.shared::cta.u32 %t7, [%t1+8];",
        ),
    ] {
        let body = format!(
            "{clear}{SYNC}{send}{release}\nagain:\n{acquire}\nsetp.eq.u32 %q, %t7, 0;\n@%q bra again;\n{receive}{SYNC}"
        );
        v.push(of_cluster(family, 2, &body, received));
    }
    for (arrive, wait) in [
        ("barrier.cluster.arrive;", "barrier.cluster.wait;"),
        ("barrier.cluster.arrive.release;", "barrier.cluster.wait.acquire;"),
        ("barrier.cluster.arrive.release.aligned;", "barrier.cluster.wait.acquire.aligned;"),
        ("fence.acq_rel.cluster;\nbarrier.cluster.arrive.relaxed;", "barrier.cluster.wait;"),
        ("fence.acq_rel.cluster;\nbarrier.cluster.arrive.relaxed.aligned;", "barrier.cluster.wait.aligned;"),
        // Arrived at from both sides of a branch, with work between arrival and wait.
        (
            "@%q1 bra less;\nbarrier.cluster.arrive;\nbra both;\nless: barrier.cluster.arrive;\nboth: bar.warp.sync 0xffffffff;",
            "add.u32 %d2, %d2, %t4;\nsub.u32 %d2, %d2, %t4;\nbarrier.cluster.wait;",
        ),
    ] {
        let body = format!("{clear}{SYNC}{send}{arrive}\n{wait}\n{receive}");
        v.push(of_cluster(family, 2, &body, received));
    }
}

/// `%q`: this is thread 0. The mbarrier awaits `count` arrivals, and every CTA of the cluster knows it.
fn initialized(count: u32) -> String {
    format!(
        "setp.eq.u32 %q, %t4, 0;\n@%q mbarrier.init.shared::cta.b64 [%t5], {count};\n\
         @%q fence.mbarrier_init.release.cluster;\nst.shared.v4.u32 [%t1], {{%b, 0, 0, 0}};\n"
    )
}

/// Waits for the mbarrier's first phase.
fn wait(form: &str) -> String {
    format!("again:\nmbarrier.{form}.shared::cta.b64 %q1, [%t5], 0;\n@!%q1 bra again;\n")
}

const ACQUIRE: &str = "try_wait.parity.acquire.cluster";
const LOAD_OWN: &str = "ld.shared.v4.u32 {%d0, %d1, %d2, %d3}, [%t1];\n";

/// mbarriers of the next CTA.
fn mbarriers(v: &mut Vec<Case>) {
    let family = "cluster mbarriers";
    let send = "st.shared::cluster.v2.u32 [%t3+8], {%a, %c};\n";
    let received: Definition = |inputs, t| {
        let [a, _, c] = words(inputs, other(t, 2, 1));
        [words(inputs, t)[1], 0, a, c]
    };
    for (count, arrive, form) in [
        (128, "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%t6];", ACQUIRE),
        (256, "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%t6], 2;", ACQUIRE),
        (128, "mbarrier.arrive_drop.release.cluster.shared::cluster.b64 _, [%t6];", ACQUIRE),
        (128, "fence.acq_rel.cluster;\nmbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%t6];", ACQUIRE),
        (128, "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%t6];", "test_wait.parity.acquire.cluster"),
        (1, "bar.sync 0;\n@%q mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%t6];", ACQUIRE),
    ] {
        let body = format!("{}{SYNC}{send}{arrive}\n{}{LOAD_OWN}{SYNC}", initialized(count), wait(form));
        v.push(of_cluster(family, 2, &body, received));
    }
    // Who dropped out is not awaited in the next phase.
    let body = format!(
        "{}{SYNC}{send}mbarrier.arrive_drop.release.cluster.shared::cluster.b64 _, [%t6];\n\
         @%q mbarrier.arrive.shared::cta.b64 _, [%t5];\n{}{LOAD_OWN}bar.sync 0;\n@%q mbarrier.arrive.shared::cta.b64 _, [%t5];\n\
         next:\nmbarrier.try_wait.parity.shared::cta.b64 %q1, [%t5], 1;\n@!%q1 bra next;\n{SYNC}",
        initialized(129),
        wait(ACQUIRE)
    );
    v.push(of_cluster(family, 2, &body, received));
    // A relaxed wait, with a fence behind it.
    let body = format!(
        "{}{SYNC}{send}mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%t6];\n{}fence.acq_rel.cluster;\n{LOAD_OWN}{SYNC}",
        initialized(128),
        wait("try_wait.parity.relaxed.cluster")
    );
    v.push(of_cluster(family, 2, &body, received));
    // Bytes that the neighbour expects and counts.
    let body = format!(
        "{}{SYNC}{send}bar.sync 0;\n@%q mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64 [%t6], 64;\n\
         @%q mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%t6];\n\
         @%q mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%t6], 64;\n{}{LOAD_OWN}{SYNC}",
        initialized(1),
        wait(ACQUIRE)
    );
    v.push(of_cluster(family, 2, &body, received));
}

fn asynchronous_stores(v: &mut Vec<Case>) {
    let family = "asynchronous stores";
    let body = |what: &str, bytes: u32| {
        format!(
            "{}@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%t5], {};\n{SYNC}{what};\n{}{LOAD_OWN}",
            initialized(1),
            128 * bytes,
            wait(ACQUIRE)
        )
    };
    const TX: &str = "shared::cluster.mbarrier::complete_tx::bytes";
    let store = |form: &str, operand: &str, bytes| body(&format!("st.async{form}.{TX}.{operand}, [%t6]"), bytes);
    v.push(of_cluster(family, 2, &store("", "b32 [%t3+4], %a", 4), |inputs, t| {
        [words(inputs, t)[1], words(inputs, other(t, 2, 1))[0], 0, 0]
    }));
    v.push(of_cluster(family, 4, &store(".weak", "v2.u32 [%t3+8], {%a, %c}", 8), |inputs, t| {
        let [a, _, c] = words(inputs, other(t, 4, 3));
        [words(inputs, t)[1], 0, a, c]
    }));
    v.push(of_cluster(family, 8, &store(".weak", "v4.s32 [%t3], {%a, %b, %c, %a}", 16), |inputs, t| {
        let [a, b, c] = words(inputs, other(t, 8, 7));
        [a, b, c, a]
    }));
    v.push(of_cluster(family, 2, &store("", "v4.f32 [%t3], {%c, %b, %a, %a}", 16), |inputs, t| {
        let [a, b, c] = words(inputs, other(t, 2, 1));
        [c, b, a, a]
    }));
    v.push(of_cluster(family, 2, &store(".weak", "b64 [%t3+8], %lc", 8), |inputs, t| {
        let c = inputs[other(t, 2, 1)][2];
        [words(inputs, t)[1], 0, c as u32, (c >> 32) as u32]
    }));
    v.push(of_cluster(family, 2, &store("", "v2.u64 [%t3], {%la, %lb}", 16), |inputs, t| {
        let [a, b, _] = inputs[other(t, 2, 1)];
        [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
    }));
    // Reductions on what the owner left in the first word.
    let family = "asynchronous reductions";
    macro_rules! reduce {
        ($what:literal, $op:expr) => {
            let what = format!("red.async.relaxed.cluster.{TX}.{} [%t3], %a, [%t6]", $what);
            v.push(of_cluster(family, 4, &body(&what, 4), |inputs, t| {
                let op: fn(u32, u32) -> u32 = $op;
                [op(words(inputs, t)[1], words(inputs, other(t, 4, 3))[0]), 0, 0, 0]
            }));
        };
    }
    reduce!("add.u32", |old, x| old.wrapping_add(x));
    reduce!("add.s32", |old, x| old.wrapping_add(x));
    reduce!("min.s32", |old, x| (old as i32).min(x as i32) as u32);
    reduce!("min.u32", |old, x| old.min(x));
    reduce!("max.s32", |old, x| (old as i32).max(x as i32) as u32);
    reduce!("max.u32", |old, x| old.max(x));
    reduce!("inc.u32", |old, x| if old >= x { 0 } else { old + 1 });
    reduce!("dec.u32", |old, x| if old == 0 || old > x { x } else { old - 1 });
    reduce!("and.b32", |old, x| old & x);
    reduce!("or.b32", |old, x| old | x);
    reduce!("xor.b32", |old, x| old ^ x);
    let wide = body(&format!("red.async.relaxed.cluster.{TX}.add.u64 [%t3], %la, [%t6]"), 8);
    v.push(of_cluster(family, 2, &wide, |inputs, t| {
        let sum = (inputs[t][1] & 0xffff_ffff).wrapping_add(inputs[other(t, 2, 1)][0]);
        [sum as u32, (sum >> 32) as u32, 0, 0]
    }));
}

/// Bulk copies from the shared memory of one CTA to that of the next.
fn copies(v: &mut Vec<Case>) {
    let body = format!(
        "{}st.shared.v4.u32 [%t1], {{%a, %b, %c, %a}};\n@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%t5], 2048;\n\
         fence.proxy.async;\n{SYNC}add.s32 %t7, %t3, 2048;\n\
         @%q cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%t7], [%t1], 2048, [%t6];\n\
         {}ld.shared.v4.u32 {{%d0, %d1, %d2, %d3}}, [%t1+2048];\n{SYNC}",
        initialized(1),
        wait(ACQUIRE)
    );
    v.push(of_cluster("cluster copies", 4, &body, |inputs, t| {
        let [a, b, c] = words(inputs, other(t, 4, 3));
        [a, b, c, a]
    }));
}

/// The four 32-bit words at byte `16 i` of the rows of CTA `cta`.
fn sixteen_bytes(inputs: &[[u64; 3]], cta: usize, i: usize) -> [u32; 4] {
    let word = |k: usize| inputs[cta * BLOCK + k / 3][k % 3];
    let (x, y) = (word(2 * i), word(2 * i + 1));
    [x as u32, (x >> 32) as u32, y as u32, (y >> 32) as u32]
}

/// Copies from global memory into several CTAs at once.
fn multicasts(v: &mut Vec<Case>) {
    let family = "multicast copies";
    const TX: &str = "mbarrier::complete_tx::bytes.multicast::cluster";
    // The leader's copy goes to the CTAs of a mask, each of which expects it. The others keep what they had.
    let masked = |copy: &str, mask: u32| {
        format!(
            "{}mov.u32 %t7, %cluster_ctarank;\nshr.u32 %t6, {mask}, %t7;\nand.b32 %t6, %t6, 1;\nsetp.ne.u32 %q1, %t6, 0;\n\
             selp.b32 %t6, 2048, 0, %q1;\n@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%t5], %t6;\nfence.proxy.async;\n{SYNC}\
             setp.eq.and.u32 %q, %t7, 0, %q;\nmov.b32 %t7, 0;\nmov.b16 %ha, {mask};\n@%q {copy};\n{}{LOAD_OWN}{SYNC}",
            initialized(1),
            wait(ACQUIRE)
        )
    };
    let bulk = format!("cp.async.bulk.shared::cluster.global.{TX} [%t2], [%in], 2048, [%t5], %ha");
    v.push(of_cluster(family, 4, &masked(&bulk, 0b1111), |inputs, t| {
        sixteen_bytes(inputs, t / BLOCK / 4 * 4, t % BLOCK)
    }));
    v.push(of_cluster(family, 4, &masked(&bulk, 0b1010), |inputs, t| {
        if t / BLOCK % 2 == 1 {
            sixteen_bytes(inputs, t / BLOCK / 4 * 4, t % BLOCK)
        } else {
            [words(inputs, t)[1], 0, 0, 0]
        }
    }));
    let hinted = format!(
        "createpolicy.fractional.L2::evict_last.b64 %lc, 1.0;\n\
         @%q cp.async.bulk.shared::cluster.global.{TX}.L2::cache_hint [%t2], [%in], 2048, [%t5], %ha, %lc"
    );
    v.push(of_cluster(family, 2, &masked(&hinted, 0b11), |inputs, t| {
        sixteen_bytes(inputs, t / BLOCK / 2 * 2, t % BLOCK)
    }));
    // Every CTA brings a quarter of what all of them want, from its own rows.
    let quarters = format!(
        "{}@%q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%t5], 2048;\nfence.proxy.async;\n{SYNC}\
         mov.u32 %t7, %cluster_ctarank;\nmad.lo.u32 %t2, %t7, 512, %t2;\nmov.b16 %ha, 15;\n\
         @%q cp.async.bulk.shared::cluster.global.{TX} [%t2], [%in], 512, [%t5], %ha;\n{}{LOAD_OWN}{SYNC}",
        initialized(1),
        wait(ACQUIRE)
    );
    v.push(of_cluster(family, 4, &quarters, |inputs, t| {
        let i = t % BLOCK;
        sixteen_bytes(inputs, t / BLOCK / 4 * 4 + i / 32, i % 32)
    }));
    // A box of two rows of 256 words, from the middle of the tensor.
    let tensor = Tensor {
        of_output: false,
        data_type: TensorDataType::Uint32,
        dims: vec![512, 12],
        strides: vec![2048],
        box_dims: vec![256, 2],
        swizzle: Swizzle::None,
        fill: TensorFill::Zero,
    };
    let coordinates = "mov.b32 %d0, 128;\nmov.b32 %d1, 3;\n@%q ";
    for hint in [false, true] {
        let (form, operand) = if hint { (".L2::cache_hint", ", %lc") } else { ("", "") };
        let copy = format!(
            "mov.b64 %lc, 0x12f0000000000000;\n{coordinates}cp.async.bulk.tensor.2d.shared::cluster.global.{TX}{form} \
             [%t2], [%map, {{%d0, %d1}}], [%t5], %ha{operand}"
        );
        let case = of_cluster(family, 4, &masked(&copy, 0b1101), |inputs, t| {
            if t / BLOCK % 4 == 1 {
                return [words(inputs, t)[1], 0, 0, 0];
            }
            std::array::from_fn(|i| {
                let place = 4 * (t % BLOCK) + i;
                let word = (3 + place / 256) * 512 + 128 + place % 256;
                (inputs[word / 6][word % 6 / 2] >> (32 * (word % 2))) as u32
            })
        });
        v.push(Case { tensor: Some(tensor.clone()), ..case });
    }
}
