//! The load warp: both operands of every step of every tile.

use cuda_std::{thread, tma};
use kernel_spec::TensorMap;
use kernel_spec::families::dense::HopperDenseParams;
use kernel_spec::families::dense::features::is_gated;
use kernel_spec::layout::PANEL_COLS;

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
pub(super) unsafe fn run<C: Config>(p: &HopperDenseParams, maps: u64, ring: &mut Ring<Operands<C>>) {
    const { assert!(C::CLUSTER == 1 || C::CLUSTER == PARTS, "each thread block of a cluster loads one part") };
    let p = &p.dense;
    let [a_map, b_map] = [0, 1].map(|map| maps + map * TensorMap::BYTES as u64);
    let part_rows = const { C::ROW.tile.columns / PARTS };
    let part_bytes = const { (C::MEMORY.stage_bytes - C::MEMORY.a_bytes) / PARTS };
    let gated = is_gated(p.features.set());
    // A whole warp walks along, one thread of it acts: addresses then live in uniform registers.
    let elected = thread::lane() == 0;
    let mut tiles = Tiles::new::<C>();
    while let Some([row, column]) = tiles.next::<C>(p) {
        for step in 0..p.depth.div_ceil(PANEL_COLS as u32) {
            let depth = step * PANEL_COLS as u32;
            // SAFETY: buffers are free once the ring says so: in all thread blocks that a copy goes to.
            unsafe {
                ring.wait_free();
                let full = ring.announce(elected);
                tma::load_if(ring.buffer(), a_map, [depth, row, 0, 0], full, elected);
                for part in 0..PARTS {
                    // Row of the part, and which half of the weights: each half has an end of its own.
                    let at = if gated { [column * part_rows, part] } else { [(column * PARTS + part) * part_rows, 0] };
                    let (to, at) = (ring.buffer() + C::MEMORY.a_bytes + part * part_bytes, [depth, at[0], at[1], 0]);
                    if C::CLUSTER > 1 {
                        let all = const { ((1 << C::CLUSTER) - 1) as u16 };
                        tma::load_multicast_if(to, b_map, at, full, all, elected & (part == rank::<C>()));
                    } else {
                        tma::load_if(to, b_map, at, full, elected);
                    }
                }
            }
            ring.advance();
        }
    }
}
