//! The load warp: both operands of every step of every tile.

use cuda_std::{thread, tma};
use kernel_spec::TensorMap;
use kernel_spec::families::dense::DenseParams;
use kernel_spec::layout::{PANEL_BYTES, PANEL_COLS};

use crate::operators::dense::hopper::config::{Config, Operands};
use crate::operators::dense::hopper::tiles::{Tiles, rank};
use crate::parts::ring::Ring;

/// The parts that `b` is loaded in: of a gated activation, rows of the gate and rows of what they open.
const PARTS: u32 = 2;

/// All loads of the thread block. `maps` is the address of the tensor maps.
///
/// # Safety
/// The load warp, converged; the ring is initialised, and the warpgroups that read it run beside it, in all thread blocks of the cluster.
#[rustc_force_inline]
pub(super) unsafe fn run<C: Config>(p: &DenseParams, maps: u64, ring: &mut Ring<Operands<C>>) {
    const { assert!(C::CLUSTER == 1 || C::CLUSTER == PARTS, "each thread block of a cluster loads one part") };
    let [a_map, b_map] = [0, 1].map(|map| maps + map * TensorMap::BYTES as u64);
    let [a_in_rows, b_in_rows] = C::DEPTH_IN_ROWS;
    let tile = const { C::ROW.tile };
    let part_rows = const { C::ROW.tile.columns / PARTS };
    let part_bytes = const { (C::MEMORY.stage_bytes - C::MEMORY.a_bytes) / PARTS };
    let gated = C::is_gated(p);
    // A whole warp walks along, one thread of it acts: addresses then live in uniform registers.
    let elected = thread::lane() == 0;
    let mut tiles = Tiles::new::<C>();
    while let Some([row, column]) = tiles.next::<C>(p) {
        for step in 0..p.depth.div_ceil(PANEL) {
            let depth = step * PANEL;
            // SAFETY: buffers are free once the ring says so: in all thread blocks that a copy goes to.
            unsafe {
                ring.wait_free();
                let full = ring.announce(elected);
                if a_in_rows {
                    tma::load_if(ring.buffer(), a_map, [depth, row, 0, 0], full, elected);
                } else {
                    for panel in 0..tile.rows / PANEL {
                        let to = ring.buffer() + panel * SQUARE_BYTES;
                        tma::load_if(to, a_map, [row + panel * PANEL, depth, 0, 0], full, elected);
                    }
                }
                let b = ring.buffer() + C::MEMORY.a_bytes;
                for part in 0..PARTS {
                    let to = b + part * part_bytes;
                    if b_in_rows {
                        // Row of the part, and which half of the weights: each half has an end of its own.
                        let at =
                            if gated { [column * part_rows, part] } else { [(column * PARTS + part) * part_rows, 0] };
                        load_part::<C>(to, b_map, [depth, at[0], at[1], 0], full, elected, part);
                    } else {
                        let first = (column * PARTS + part) * part_rows;
                        for panel in 0..part_rows / PANEL {
                            let at = [first + panel * PANEL, depth, 0, 0];
                            load_part::<C>(to + panel * SQUARE_BYTES, b_map, at, full, elected, part);
                        }
                    }
                }
            }
            ring.advance();
        }
    }
}

/// Columns of a panel, and numbers of a step: what is summed over along the rows of an operand comes in squares.
const PANEL: u32 = PANEL_COLS as u32;

/// Bytes of such a square.
const SQUARE_BYTES: u32 = PANEL * PANEL_BYTES as u32;

/// Starts copying a box of a part of `b`: of a cluster, one thread block does for all.
///
/// # Safety
/// As for [`tma::load_if`].
#[inline(always)]
unsafe fn load_part<C: Config>(to: u32, map: u64, at: [u32; 4], full: u32, elected: bool, part: u32) {
    // SAFETY: passed on.
    unsafe {
        if C::CLUSTER > 1 {
            let all = const { ((1 << C::CLUSTER) - 1) as u16 };
            tma::load_multicast_if(to, map, at, full, all, elected & (part == rank::<C>()));
        } else {
            tma::load_if(to, map, at, full, elected);
        }
    }
}
