//! RMSNorm (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019) and LayerNorm (Ba, Kiros and Hinton, "Layer Normalization", 2016), row by
//! row, of a sum with a residual where there is one:
//!
//! ```text
//! h = branch(x) + residual        rstd = 1 / sqrt(mean((h - mean)^2) + epsilon)        out = (h - mean) rstd (weight + offset) + bias
//! ```
//!
//! `branch` is [dropout and a factor a row](crate::operators::branch), where a call has them. RMSNorm has no `mean`; `h` and the statistics are f32, and
//! `out` is rounded once. The variance is that of differences, in a second pass over registers:
//! `mean(h^2) - mean^2` would lose what a large mean leaves of it.
//!
//! It is bound by memory. A row is read once, all of it before anything is done with it, so that as many bytes are on their way as the registers hold;
//! weights come from the caches. [`row`](crate::operators::row) has the picture.
//!
//! Numbers whose squares f32 does not hold make the variance infinite. The row is then multiplied with a power of two that leaves room for the squares of
//! the largest numbers, and the statistics are computed again: nothing that counts beside such numbers is lost, and other rows pay for a test.

use cuda_std::{copy, math, warp};
use kernel_spec::families::norm::features::{BRANCH, MEAN, RESIDUAL};
use kernel_spec::families::norm::{Memory, NormParams, Variant};

use crate::operators::ahead::Ahead;
use crate::operators::branch::Branch;
use crate::operators::row::{Columns, Config, RowPlace, Seat, Vector, added, tiles, widened};
use crate::operators::sums::Sums;
use crate::parts::element::Element;

/// Squares of the largest numbers times this, and the sum of 2^24 of them, are numbers.
const SHRINK: f32 = f32::from_bits((127 - 80) << 23);

/// What a row of the list makes of a kernel.
pub trait NormConfig: Config {
    /// The row.
    const ROW: &'static Variant;
    /// How the thread block divides up its shared memory.
    const MEMORY: Memory = Memory::of(Self::ROW.pass, &Self::ROW.tile);
}

/// One thread block.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn forward<C: NormConfig, const V: usize>(p: &NormParams) {
    let seat = Seat::of::<C>(&p.sharers);
    // SAFETY: all threads come here, and there is a row for each thread block.
    let mut sums = unsafe { Sums::new::<C>(&seat) };
    let mut rows_ahead = Ahead::<2>::new(C::MEMORY.ahead);
    let step = p.teams * const { C::TILE.block_rows() };
    let mut row = seat.team * const { C::TILE.block_rows() } + seat.in_block;
    let ahead = const { C::TILE.ahead };
    // f32 beside 16 bits does not fit the places of rows to come, and single elements are not copied.
    // Beside eight vectors of both tensors as they come from there, the registers do not hold what x is multiplied with too.
    let spills = V > 4 && p.features.has(RESIDUAL) && p.features.has(BRANCH);
    let copied = ahead > 0 && p.aligned != 0 && (!p.features.has(RESIDUAL) || p.wide_residual == 0) && !spills;
    if copied {
        for i in 0..ahead {
            // SAFETY: places are free.
            unsafe { start::<C, V>(p, &seat, &mut rows_ahead, row + i * step) };
        }
    }
    // SAFETY: all threads come here.
    unsafe { sums.meet::<C>() };
    loop {
        // SAFETY: passed on.
        unsafe { one_row::<C, V>(p, &seat, &mut sums, &mut rows_ahead, row, copied) };
        // Without rows ahead there is a thread block for each row, or each few.
        row += step;
        if ahead == 0 || row - seat.in_block >= p.extents.rows {
            break;
        }
    }
    // Zeros in place of rows behind the last.
    if ahead > 0 {
        copy::wait_group::<0>();
    }
}

/// Tensors that a row is the sum of.
#[inline(always)]
fn tensors(p: &NormParams) -> usize {
    if p.features.has(RESIDUAL) { 2 } else { 1 }
}

/// Starts copying a row that is to come.
///
/// # Safety
/// See [`Ahead::start`].
#[inline(always)]
unsafe fn start<C: NormConfig, const V: usize>(p: &NormParams, seat: &Seat, ahead: &mut Ahead<2>, row: u32) {
    let own = Columns::of::<C>(seat, 0, p.share, p.extents.columns, true, row < p.extents.rows);
    let place = RowPlace::of(&p.extents, row);
    let starts = [&p.x, &p.residual].map(|tensor| place.start::<C::T>(tensor, false));
    // SAFETY: passed on; rows that do not exist have no columns.
    unsafe { ahead.start::<C, V>(&own, starts, tensors(p)) };
}

/// A row, or one of each few threads of the thread block.
///
/// # Safety
/// All threads of the block and of its cluster call it, converged.
#[inline(always)]
unsafe fn one_row<C: NormConfig, const V: usize>(
    p: &NormParams,
    seat: &Seat,
    sums: &mut Sums,
    rows_ahead: &mut Ahead<2>,
    row: u32,
    copied: bool,
) {
    let columns = p.extents.columns;
    let exists = row < p.extents.rows;
    let place = RowPlace::of(&p.extents, row);
    let (wide, wide_weight, aligned) = (p.wide_residual != 0, p.wide_weight != 0, p.aligned != 0);
    let has_mean = p.features.has(MEAN);
    let has_residual = p.features.has(RESIDUAL);
    let x = place.start::<C::T>(&p.x, false);
    let residual = place.start::<C::T>(&p.residual, wide);
    let tiles = tiles::<C>(p.share, columns);
    let own = #[inline(always)]
    |tile: u32| Columns::of::<C>(seat, tile, p.share, columns, aligned, exists);
    let branch_acts = p.features.has(BRANCH);
    let branch = #[inline(always)]
    |tile: u32| {
        // SAFETY: what parameters name is there.
        unsafe { Branch::of::<C, V>(&p.branch, &p.features, &own(tile), row, exists) }
    };
    let load = #[inline(always)]
    |tile: u32| -> [Vector; V] {
        let own = own(tile);
        // SAFETY: the row exists, or has no columns.
        unsafe {
            if branch_acts {
                let branch = branch(tile);
                let mut h = own.load::<C, V>(x, false);
                for v in 0..V {
                    h[v] = branch.on::<C>(v, h[v]);
                    if has_residual {
                        h[v] = added(h[v], own.load_one::<C>(residual, wide, v));
                    }
                }
                return h;
            }
            if has_residual { own.load_sum::<C, V>(x, residual, wide) } else { own.load::<C, V>(x, false) }
        }
    };

    let mut held = if C::AGAIN {
        [[0.0; 8]; V]
    } else if copied {
        // SAFETY: as many rows as there are places were started, and the one that had this place was taken.
        unsafe {
            let branch = branch(0);
            let [x, residual] = rows_ahead.take::<C, V>(tensors(p));
            start::<C, V>(p, seat, rows_ahead, row + const { C::TILE.ahead * C::TILE.block_rows() } * p.teams);
            let mut h = widened::<C::T, V>(x);
            if branch_acts {
                for v in 0..V {
                    h[v] = branch.on::<C>(v, h[v]);
                }
            }
            if has_residual {
                for v in 0..V {
                    h[v] = added(h[v], C::T::widen_chunk(residual[v]));
                }
            }
            h
        }
    } else {
        load(0)
    };
    let store_sum = #[inline(always)]
    |tile: u32, h: &[Vector; V]| {
        if (has_residual || branch_acts) && p.residual_out.address != 0 {
            let to = place.start::<C::T>(&p.residual_out, wide);
            for v in 0..V {
                // SAFETY: as above; the columns are this thread's alone.
                unsafe { own(tile).store::<C>(to, wide, v, h[v]) };
            }
        }
    };
    if !C::AGAIN {
        store_sum(0, &held);
    }

    let count = columns as f32;
    let mut scale = 1.0;
    let mut is_second = false;
    let (mut mean, mut variance);
    loop {
        mean = 0.0;
        if has_mean {
            let mut sum = 0.0;
            for tile in 0..tiles {
                let h = if C::AGAIN { load(tile) } else { held };
                for v in 0..V {
                    for e in 0..C::T::CHUNK {
                        sum += if C::AGAIN { h[v][e] * scale } else { h[v][e] };
                    }
                }
            }
            // SAFETY: all threads come here.
            mean = unsafe { sums.over::<C, 1>([sum]) }[0] / count;
        }
        let mut squares = 0.0;
        for tile in 0..tiles {
            let h = if C::AGAIN { load(tile) } else { held };
            for v in 0..V {
                for e in 0..C::T::CHUNK {
                    let x = if C::AGAIN { h[v][e] * scale } else { h[v][e] };
                    // Behind the last column there are zeros, which differ from the mean.
                    let difference = if has_mean { own(tile).or_zero::<C>(v, e, x - mean) } else { x };
                    squares = math::fma(difference, difference, squares);
                }
            }
        }
        // SAFETY: as above. The threads of a row have the same bits, and those of a warp with two rows stay together.
        variance = unsafe { sums.over::<C, 1>([squares]) }[0] / count;
        let overflows = variance.is_nan() | (variance == f32::INFINITY);
        // SAFETY: as above.
        let again = if C::ROW_THREADS < 32 { unsafe { warp::any(overflows) } } else { overflows };
        if !again || is_second {
            break;
        }
        is_second = true;
        // A row that shares its warp with such a row stays as it is.
        scale = if overflows { SHRINK } else { 1.0 };
        for v in 0..V {
            for e in 0..C::T::CHUNK {
                held[v][e] *= scale;
            }
        }
    }
    // Of numbers that were scaled, and of those that were not. Beside a variance that is no number epsilon counts for nothing, unless that came of the
    // sum alone: a row of large numbers that are all the same, whose differences are 0.
    let [scaled_rstd, rstd] = if scale == 1.0 {
        [math::reciprocal(math::sqrt(p.epsilon + variance)); 2]
    } else if variance == 0.0 {
        [1.0, math::reciprocal(math::sqrt(p.epsilon))]
    } else {
        let scaled = math::reciprocal(math::sqrt(variance));
        [scaled, scaled * scale]
    };

    // Hidden, or the differences of the last sum would be kept for the output, beside the row that another round would need.
    let mean = f32::from_bits(math::opaque(mean.to_bits()));
    let out = place.start::<C::T>(&p.out, false);
    for tile in 0..tiles {
        let own = own(tile);
        let h = if C::AGAIN { load(tile) } else { held };
        if C::AGAIN {
            store_sum(tile, &h);
        }
        for v in 0..V {
            let mut y = h[v];
            for e in 0..C::T::CHUNK {
                let x = if C::AGAIN { y[e] * scale } else { y[e] };
                y[e] = (x - mean) * scaled_rstd;
            }
            // SAFETY: as above; the columns of the output are this thread's alone.
            unsafe {
                if p.weight != 0 {
                    let weight = own.load_one::<C>(p.weight, wide_weight, v);
                    for e in 0..C::T::CHUNK {
                        y[e] *= weight[e] + p.weight_offset;
                    }
                }
                if p.bias != 0 {
                    let bias = own.load_one::<C>(p.bias, wide_weight, v);
                    for e in 0..C::T::CHUNK {
                        y[e] += bias[e];
                    }
                }
                own.store::<C>(out, false, v, y);
            }
        }
    }
    if seat.is_first() && exists {
        // SAFETY: one number a row, which no other thread writes.
        unsafe {
            if has_mean && p.mean != 0 {
                copy::store_f32(p.mean + row as u64 * 4, mean / scale);
            }
            if p.rstd != 0 {
                copy::store_f32(p.rstd + row as u64 * 4, rstd);
            }
        }
    }
}
