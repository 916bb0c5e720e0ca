//! The machine that runs CTAs: warps with their diverged parts, the schedule, and every instruction that is not arithmetic.
//!
//! # Execution
//!
//! A warp is a set of *parts* (`warp::Split`), lanes that stand at one instruction. A branch splits a part, the immediate post-dominator
//! joins parts again (`divergence`), and parts go on independently of each other, as hardware since sm_70 lets them. The *turn* of a
//! CTA (`turn`) picks a part that can run and runs it (`run`) until it blocks, ends, has executed its share, or reads again by a
//! strong access what the same one read before: then it waits for somebody, and others go first. A part blocks at barriers of all
//! kinds, and whoever completes the barrier unblocks it. Bulk copies and what other CTAs send are carried out when the schedule lets
//! them land, between their issue and the moment when nothing else can go on.
//!
//! # Residency and schedule
//!
//! Whether CTAs can talk to each other is decided from the instructions (`talk`): through strong accesses to global memory, through
//! fences wider than the CTA, or because they form clusters. CTAs that cannot are run one after the other, on several threads, in the
//! order of the seed (`grid`). CTAs that can are resident together, on one thread (`resident`): as many clusters as the device's
//! multiprocessors hold, each from the moment when there is room for it until its last CTA has ended. The seed draws which CTA has
//! the next turns and how many, and everything within a turn; so the same seed gives the same run and the same report. A CTA of a
//! cluster holds its peers while it runs (`peers`).
//!
//! Nothing but turns that only poll, for long, is a deadlock, and so is a cluster that is blocked as a whole. A grid barrier of
//! more CTAs than are resident is one, as on a GPU; the report says so.
//!
//! `griddepcontrol` orders a launch with those before and after it in the stream. A launch on the emulator begins when all before it
//! have ended with everything that they wrote visible, and ends before the next one begins: `wait` is satisfied at once, and
//! `launch_dependents` has nobody to start. What a kernel reads of an earlier launch before its `wait` is therefore not noticed.
//!
//! # What is ordered before what
//!
//! Memory itself is sequentially consistent: a load gives the value of the last store. Races are not found by odd values but by
//! what the threads know (`order`): each warp has a clock, each lane knows up to which clock of every lane and engine of its CTA it
//! is ordered after, and barriers, mbarriers and releases hand that on. What is known of other CTAs travels along (`remote`).
//! Releases and acquires follow the memory consistency model of the PTX ISA (`release`): fences with strong accesses, or orders on
//! the accesses themselves, and each side in the scope of the other. A relaxed atomic alone orders nothing.
//!
//! An access is compared with the history of its bytes: of shared memory (`shared`), and of global memory (`history`). A history keeps
//! every access until one that is ordered after it makes it superfluous, plain writes, plain reads and strong accesses apart, so
//! that no access hides another one. An earlier access that the thread does not know of, one of them writing, is a race, whatever
//! order the two came in; so nearly every seed shows it.

mod collective;
mod control;
mod cta;
mod data;
mod divergence;
mod execute;
mod grid;
mod launch;
mod operands;
mod peers;
mod polling;
mod report;
mod resident;
mod run;
mod select;
mod shuffle;
mod sync;
mod turn;
mod warp;

pub(crate) use cta::{Cta, MBAR_AGENTS};
pub(crate) use grid::run_grid;
pub(crate) use launch::{LaunchCtx, Rng};
pub(crate) use warp::Warp;

use crate::alu::Regs;
use crate::error::Fault;
use crate::ir::*;

/// Named barriers of a CTA.
pub(crate) const BARRIERS: usize = 16;

pub(crate) type Exec<T> = Result<T, Box<Fault>>;

/// Why a part of a warp does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    Barrier(u32),
    WarpSync(u32),
    Mbarrier(u32),
    Wgmma,
    Cluster,
}

/// Where an access lands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Where {
    Global(usize, u64),
    Shared(usize),
    /// In another CTA of the cluster: its rank, and the offset in its shared memory.
    Peer(u32, usize),
    Local(usize),
    Param(usize),
}

/// The set lanes of a mask, in order.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut m = mask;
    std::iter::from_fn(move || {
        if m == 0 {
            return None;
        }
        let l = m.trailing_zeros() as usize;
        m &= m - 1;
        Some(l)
    })
}

fn logic(f: BoolOp, a: u32, b: u32) -> u32 {
    match f {
        BoolOp::And => a & b,
        BoolOp::Or => a | b,
        BoolOp::Xor => a ^ b,
    }
}

/// Lanes in which the result of `logic` is known, of operands with the lanes in which they are.
fn logic_known(f: BoolOp, (x, kx): (u32, u32), (y, ky): (u32, u32)) -> u32 {
    // A known false decides an `and`, a known true an `or`.
    match f {
        BoolOp::And => (kx & ky) | (kx & !x) | (ky & !y),
        BoolOp::Or => (kx & ky) | (kx & x) | (ky & y),
        BoolOp::Xor => kx & ky,
    }
}

pub(crate) fn put_lane(regs: &mut Regs, d: Slot, wide: bool, lane: usize, v: u64) {
    if d == SINK {
        return;
    }
    if wide {
        regs.r64_mut(d)[lane] = v;
    } else {
        regs.r32_mut(d)[lane] = v as u32;
    }
}
