//! A warpgroup that multiplies: 64 rows of every tile.

use cuda_std::{shared, sync, thread, wgmma};
use kernel_spec::families::dense::{DenseParams, Pass, WARPGROUP_ROWS};
use kernel_spec::layout::{PANEL_BYTES, PANEL_COLS};

use crate::operators::dense::Epilogue;
use crate::operators::dense::epilogue::{Global, Shared};
use crate::operators::dense::hopper::config::{Config, Operands};
use crate::operators::dense::hopper::outlet::Pieces;
use crate::operators::dense::hopper::tiles::Tiles;
use crate::parts::element::{Element, TensorCore};
use crate::parts::fragments::Fragments;
use crate::parts::ring::Ring;
use crate::parts::warpgroup::{WARPGROUP, start_panel, start_panel_columns, start_panel_shared};

/// The first of the named barriers of a warpgroup's biases; 0 is the block's.
const BIASES: u32 = 1;

/// Bytes of a bias in shared memory.
const BIAS_BYTES: u32 = 2;

/// All tiles of warpgroup `group`, counted without the one that loads. `out_map` is the address of the output's map.
///
/// # Safety
/// All threads of the warpgroup, converged; the ring is initialised, and the load warp runs beside it.
#[rustc_force_inline]
pub(super) unsafe fn run<C: Config>(
    params: &<C::Epilogue as Epilogue>::Params,
    out_map: u64,
    group: u32,
    ring: &mut Ring<Operands<C>>,
) {
    let p = C::Epilogue::product(params);
    // The rows of a warpgroup, or the panel of its columns, which is as large.
    let group_bytes = group * const { WARPGROUP_ROWS * PANEL_BYTES as u32 };
    let warp_row = group * WARPGROUP_ROWS + thread::index() % WARPGROUP / 32 * 16;
    let steps = p.depth.div_ceil(PANEL_COLS as u32);
    let columns = if C::is_gated(p) { C::ROW.tile.columns / 2 } else { C::ROW.tile.columns };
    // One thread for each thread block of the cluster: it frees buffers there.
    let freed = thread::index() % WARPGROUP;
    // SAFETY: buffers are read between the wait for them and their release.
    unsafe {
        let release = #[inline(always)]
        |ring: &Ring<Operands<C>>| {
            if C::CLUSTER > 1 {
                ring.release_for(freed % C::CLUSTER, freed < C::CLUSTER);
            } else {
                ring.release(freed == 0);
            }
        };
        // Gradients of a layer have none, and beside what losses keep of a row the registers do not hold those of shared memory.
        let copies_biases = const { matches!(C::ROW.pass, Pass::Forward | Pass::LogitGradient) };
        let mut turn = 0;
        let mut pieces = Pieces::<C>::new(thread::index() / 32 - WARPGROUP / 32, out_map);
        let mut tiles = Tiles::new::<C>();
        while let Some([row, column]) = tiles.next::<C>(p) {
            let mut acc = C::Acc::zero();
            let mut start = #[inline(always)]
            |ring: &mut Ring<Operands<C>>, first: bool| {
                ring.wait();
                // Nothing but products touches the sums behind the first, but without a fence for each step ptxas 13.0 has each product wait for the one before.
                wgmma::fence();
                let a = ring.buffer();
                start_step::<C>(&mut acc, a + group_bytes, a + C::MEMORY.a_bytes, first);
            };
            start(ring, true);
            let biases = biases_place::<C>(group, turn);
            if copies_biases {
                // Under the first product.
                copy_biases::<C>(p, biases, column * columns);
                turn ^= 1;
            }
            let mut before = *ring;
            ring.advance();
            for _ in 1..steps {
                start(ring, false);
                wgmma::wait::<1>();
                release(&before);
                before.advance();
                ring.advance();
            }
            wgmma::wait::<0>();
            release(&before);
            let (row, col) = (row + warp_row, column * columns);
            pieces.at(row, col);
            if copies_biases {
                // All biases are there; and who comes here in the next turn has read those of this one.
                sync::named(BIASES + group, WARPGROUP);
                C::Epilogue::leave::<C, C::T, C::Acc, true>(params, &acc, Shared(biases), &mut pieces, row, col);
            } else {
                C::Epilogue::leave::<C, C::T, C::Acc, true>(params, &acc, Global, &mut pieces, row, col);
            }
        }
        pieces.finish();
    }
}

/// Where the biases of a warpgroup's tile are, in one of two turns.
#[inline(always)]
fn biases_place<C: Config>(group: u32, turn: u32) -> u32 {
    shared::dynamic() + C::MEMORY.biases + (2 * group + turn) * const { C::ROW.tile.columns * BIAS_BYTES }
}

/// Copies the biases of a tile whose columns of the output start at `first` to `to`: zeros where there are none.
///
/// # Safety
/// All threads of the warpgroup call it, and nobody reads what was there.
#[inline(always)]
unsafe fn copy_biases<C: Config>(p: &DenseParams, to: u32, first: u32) {
    let bound = if p.bias == 0 { 0 } else { p.columns };
    for i in 0..const { C::ROW.tile.columns.div_ceil(WARPGROUP) } {
        let place = i * WARPGROUP + thread::index() % WARPGROUP;
        if place >= C::ROW.tile.columns {
            break;
        }
        let half = const { C::ROW.tile.columns / 2 };
        // Of a gated activation, the second half of the tile has the columns of the first half again.
        let opened = C::is_gated(p) && place >= half;
        let (column, before) = if opened { (first + place - half, p.columns) } else { (first + place, 0) };
        // SAFETY: nothing is read behind the bound; the place is this thread's.
        unsafe {
            let bias = C::T::load_within(p.bias + ((before + column) as usize * C::T::BYTES) as u64, column, bound);
            shared::store_u16(to + place * BIAS_BYTES, <C::T as TensorCore>::round(bias));
        }
    }
}

/// Starts the products of a buffer, whose operands lie as the pass has them; it overwrites the sums if `first`, a constant.
///
/// # Safety
/// As for [`start_panel`].
#[inline(always)]
unsafe fn start_step<C: Config>(acc: &mut C::Acc, a: u32, b: u32, first: bool) {
    // SAFETY: passed on.
    unsafe {
        match C::DEPTH_IN_ROWS {
            [true, true] => start_panel::<C::T, C::Acc>(acc, a, b, first),
            [true, false] => start_panel_shared::<C::T, C::Acc>(acc, a, b, first),
            _ => start_panel_columns::<C::T, C::Acc>(acc, a, b, first),
        }
    }
}
