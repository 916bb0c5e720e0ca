//! What the warpgroup of v3 that loads does behind the last tile: it computes those rows again that f32 does not carry, see [`exact`].
//!
//! The others only say that there are some, in a word of shared memory: in their code the rest would cost registers that the steps need.

use cuda_std::{shared, sync, thread, wgmma};
use kernel_spec::V3Params;

use crate::attention::exact;
use crate::attention::v3::config::{Config, LoadRegisters};
use crate::attention::v3::listed::ListedTiles;
use crate::attention::v3::note::{QueryTile, Tiles};
use crate::attention::v3::store::NotFinite;
use crate::parts::turn::FIRST_TURN;
use crate::parts::warpgroup::WARPGROUP;

/// Registers of a thread that mends: f64 takes pairs of them, and those of the other warpgroups are free by then.
struct MendRegisters;

impl wgmma::Registers for MendRegisters {
    const COUNT: u32 = 128;
}

/// The named barrier behind the last tile, which follows those of turns and of negated queries, and its threads.
const fn barrier<C: Config>() -> [u32; 2] {
    [FIRST_TURN + 2 * C::WARPGROUPS, (C::WARPGROUPS + 1) * WARPGROUP]
}

/// Writes down, in the word at `again`, whether a lane has met numbers that are not finite.
///
/// # Safety
/// A thread of a warpgroup that multiplies.
#[inline(always)]
pub unsafe fn note<const CHAINS: usize>(again: u32, met: NotFinite<CHAINS>) {
    // SAFETY: the word is there.
    unsafe { shared::set_bits_if(again, 1, met.any()) };
}

/// The end of a warpgroup that multiplies.
///
/// # Safety
/// All threads of the warpgroup, converged, once, when they have written their last output.
#[inline(always)]
pub unsafe fn done<C: Config>() {
    let [barrier, threads] = barrier::<C>();
    // SAFETY: passed on.
    unsafe {
        sync::arrive(barrier, threads);
        // Enough to exit with, so that those who mend find some.
        wgmma::release_registers::<LoadRegisters<C>>();
    }
}

/// Computes rows again that have an output which is not finite, in all tiles of the thread block, if there are any. `params` is the
/// address of the kernel's parameters.
///
/// # Safety
/// All threads of the warpgroup that loads, converged, when nothing is left to load.
#[inline(always)]
pub unsafe fn run<C: Config>(params: u64, again: u32) {
    let [barrier, threads] = barrier::<C>();
    // SAFETY: passed on; the barrier stands behind all writes to the word.
    unsafe {
        sync::named(barrier, threads);
        if shared::load_u32(again) != 0 {
            wgmma::take_registers::<MendRegisters>();
            rows::<C>(params);
        }
    }
}

/// A function that is called: inside the kernel, it would take registers from the loads.
///
/// # Safety
/// As for [`run`], behind its barrier.
#[inline(never)]
unsafe fn rows<C: Config>(params: u64) {
    // SAFETY: the barrier stands behind all writes to the output, every warp takes other rows, and the parameters live as long as the
    // kernel.
    unsafe {
        let p = &*(params as *const V3Params);
        if C::LISTED {
            let mut tiles = ListedTiles::new(p);
            while let Some(tile) = tiles.again::<C>(p) {
                rows_of::<C>(p, &tile);
            }
            return;
        }
        let mut tiles = Tiles { round: 0 };
        while let Some(tile) = tiles.next::<C>(p) {
            rows_of::<C>(p, &tile);
        }
    }
}

/// Those of one tile.
///
/// # Safety
/// As for [`rows`].
#[inline(always)]
unsafe fn rows_of<C: Config>(p: &V3Params, tile: &QueryTile) {
    // SAFETY: passed on.
    unsafe {
        let (first, end) = (tile.first_row + thread::index() / 32, tile.first_row + C::ROW.q_block);
        if C::PACKED {
            let problem = tile.sequence.problem::<C>(&p.forward);
            exact::rows(&tile.block::<C>(p), &problem, first, end, WARPGROUP / 32);
        } else {
            exact::rows(&tile.block::<C>(p), &p.forward, first, end, WARPGROUP / 32);
        }
    }
}
