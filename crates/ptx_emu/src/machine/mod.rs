//! The machine that runs CTAs: warps with their diverged parts, the schedule, and every instruction that is not arithmetic.

mod collective;
mod cta;
mod data;
mod divergence;
mod execute;
mod grid;
mod launch;
mod operands;
mod report;
mod run;
mod select;
mod sync;
mod turn;
mod warp;

pub(crate) use cta::{Cta, MBAR_AGENTS};
pub(crate) use grid::run_grid;
pub(crate) use launch::{LaunchCtx, Rng};

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
}

/// Where an access lands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Where {
    Global(usize, u64),
    Shared(usize),
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
