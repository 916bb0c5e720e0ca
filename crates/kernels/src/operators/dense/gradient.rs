//! Gradients through the activation of a dense layer, and what the rows add to those of the biases:
//!
//! ```text
//! dz = dout activation'(z)          SwiGLU: dgate = dout up SiLU'(gate), dup = dout SiLU(gate)          db = sum over rows of dz
//!
//!                     a strip of columns: a warp has a vector in each lane                  thread block (part, strip):
//!          +------------------------------------------+                                       for rows of the part: dz, sums += dz
//!  warp 0  |                                          |  rows part * 8, ..                     the sums of all warps, in their order
//!  warp 1  |                                          |
//!    ..    |                                          |
//! ```
//!
//! The thread blocks of a strip share out the rows, and a second launch adds what they have summed up in their order (`norm_backward::parts`): the same bits from
//! run to run. Sums are of what is not rounded yet.

use cuda_std::{copy, shared, sync, thread};
use kernel_spec::families::activation::ActivationGradientParams;
use kernel_spec::families::dense::MatrixParams;
use kernel_spec::families::dense::features::is_gated;
use kernel_spec::{Divisor, FeatureSet};

use crate::operators::dense::slope::with_slope;
use crate::operators::norm_backward::parts_stride;
use crate::operators::row::{Columns, Config, Seat, Vector};
use crate::parts::element::Element;

/// Rows that a warp has loads of in flight at a time.
const ROWS: usize = 2;

/// One thread block: one strip of columns of the rows of one part.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn activation<C: Config>(p: &ActivationGradientParams) {
    let which = p.features.set();
    let gated = is_gated(which);
    let has_z = !which.is_empty();
    let (part, strip) = p.strips.split(thread::block_index());
    let before = strip * const { C::TILE.columns() };
    let seat = Seat::of::<C>(&const { Divisor::new(1) });
    let (room, block_rows) = (p.columns - before, const { C::TILE.block_rows() });
    let mut sums = [[0.0; 8]; 2];
    let mut first = part * block_rows + seat.in_block;
    let step = p.parts * block_rows;
    while first < p.rows {
        let own = |i: usize| {
            let exists = first + i as u32 * step < p.rows;
            Columns::of::<C>(&seat, 0, room, room, p.aligned != 0, exists)
        };
        let at = |matrix: &MatrixParams, i: usize, half: u32| {
            let row = first as u64 + i as u64 * step as u64;
            let column = (before + half * p.columns) as u64;
            matrix.address + (row * matrix.row_stride + column) * C::T::BYTES as u64
        };
        // SAFETY: rows and columns that do not exist are not touched; each has one thread.
        unsafe {
            // All loads first: they take a microsecond, whatever their number.
            let mut held = [[[0.0; 8]; 3]; ROWS];
            for i in 0..ROWS {
                held[i][0] = own(i).load_one::<C>(at(&p.dout, i, 0), false, 0);
                if has_z {
                    held[i][1] = own(i).load_one::<C>(at(&p.z, i, 0), false, 0);
                }
                if gated {
                    held[i][2] = own(i).load_one::<C>(at(&p.z, i, 1), false, 0);
                }
            }
            for i in 0..ROWS {
                let [dz, dup] = through::<C>(which, &held[i]);
                for e in 0..C::T::CHUNK {
                    sums[0][e] += dz[e];
                    sums[1][e] += dup[e];
                }
                if p.dz.address != 0 {
                    own(i).store::<C>(at(&p.dz, i, 0), false, 0, dz);
                    if gated {
                        own(i).store::<C>(at(&p.dz, i, 1), false, 0, dup);
                    }
                }
            }
        }
        first += step * ROWS as u32;
    }
    if p.part_sums != 0 {
        let halves = if gated { 2 } else { 1 };
        let to = p.part_sums + (part as u64 * parts_stride(p.columns * halves) + before as u64) * 4;
        // SAFETY: passed on.
        unsafe { leave_sums::<C>(&seat, &sums, halves, to, p.columns, room) };
    }
}

/// The gradients of sums, of a gated activation those of the gate and of what it opens, from those of the output and from the sums. Of rows that do not exist,
/// which are zeros here, they are 0.
#[inline(always)]
fn through<C: Config>(which: FeatureSet, [dout, z, up]: &[Vector; 3]) -> [Vector; 2] {
    let (mut dz, mut dup) = ([0.0; 8], [0.0; 8]);
    for e in 0..C::T::CHUNK {
        let [active, slope] = with_slope(which, z[e]);
        let opened = if is_gated(which) { dout[e] * up[e] } else { dout[e] };
        dz[e] = opened * slope;
        dup[e] = dout[e] * active;
    }
    [dz, dup]
}

/// Adds the sums of all rows of threads, in their order, and writes those of `room` columns to `to`, the second half `columns` further on.
///
/// # Safety
/// All threads of the block; `to` is the thread block's own.
#[inline(always)]
unsafe fn leave_sums<C: Config>(seat: &Seat, sums: &[Vector; 2], halves: u32, to: u64, columns: u32, room: u32) {
    let width = const { C::TILE.columns() };
    let of_half = const { C::TILE.block_rows() * C::TILE.columns() };
    let place = shared::dynamic();
    // SAFETY: inside the places of the thread block, which the barrier orders; columns behind the last are left out.
    unsafe {
        for half in 0..2 {
            for e in 0..C::T::CHUNK {
                let at = half * of_half + seat.in_block * width + seat.thread * C::CHUNK + e as u32;
                shared::store_f32(place + at * 4, sums[half as usize][e]);
            }
        }
        sync::block();
        for half in 0..halves {
            for column in (thread::index()..width.min(room)).step_by(const { C::TILE.threads as usize }) {
                let mut sum = 0.0;
                for row in 0..const { C::TILE.block_rows() } {
                    sum += shared::load_f32(place + (half * of_half + row * width + column) * 4);
                }
                copy::store_f32(to + (half * columns + column) as u64 * 4, sum);
            }
        }
    }
}
