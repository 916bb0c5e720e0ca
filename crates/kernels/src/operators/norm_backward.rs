//! Gradients of RMSNorm and LayerNorm: with `n = (h - mean) rstd` and `g = dout (weight + offset)`,
//!
//! ```text
//! dh = rstd (g - mean(g) - n mean(g n)) + dresidual_out        dweight = sum over rows of dout n        dbias = sum over rows of dout
//! dresidual = dh        dx = branch(dh)
//! ```
//!
//! RMSNorm has no `mean(g)`. `branch` is [what forward did to x](crate::operators::branch), with the same mask, made again.
//!
//! Sums over rows without atomics, the same bits from run to run: as many thread blocks as the GPU holds at a time share out the rows, and each keeps what
//! its columns add up to in registers. It writes that to a row of `parts`, and [`parts`] adds these, in their order.
//!
//! ```text
//! rows 0, n, 2n, ..  ->  thread block 0   ->  parts 0   \
//! rows 1, n + 1, ..  ->  thread block 1   ->  parts 1    >  dweight, dbias
//! ..                                                    /
//! ```
//!
//! Where no register holds a row, none holds a sum of columns either: [`columns`] reads both tensors once more, a column a thread.

use cuda_std::{copy, math, shared, sync, thread};
use kernel_spec::families::norm::features::{BRANCH, MEAN, RESIDUAL};
use kernel_spec::families::norm::{NormBackwardParams, NormPartsParams, PARTS_COLUMNS};

use crate::operators::ahead::Ahead;
use crate::operators::branch::Branch;
use crate::operators::norm::NormConfig;
use crate::operators::row::{Columns, RowPlace, Seat, Vector, added, tiles, widened};
use crate::operators::sums::Sums;
use crate::parts::element::Element;

/// One thread block: the gradient of x of its rows, and what these add to those of weights and biases.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn backward<C: NormConfig, const V: usize>(p: &NormBackwardParams) {
    let seat = Seat::of::<C>(&p.sharers);
    // SAFETY: all threads come here, and there is a row for each thread block.
    let mut sums = unsafe { Sums::new::<C>(&seat) };
    let columns = p.extents.columns;
    let (wide, wide_weight, aligned) = (p.wide_residual != 0, p.wide_weight != 0, p.aligned != 0);
    let has_mean = p.features.has(MEAN);
    let has_residual = p.features.has(RESIDUAL);
    let block_rows = const { C::TILE.block_rows() };
    let tiles = tiles::<C>(p.share, columns);
    let own = #[inline(always)]
    |tile: u32, exists: bool| Columns::of::<C>(&seat, tile, p.share, columns, aligned, exists);
    let load_weights = #[inline(always)]
    |tile: u32| {
        if p.weight == 0 {
            return [[1.0; 8]; V];
        }
        // SAFETY: weights are as many as columns.
        unsafe { own(tile, true).load::<C, V>(p.weight, wide_weight) }
    };
    // What a vector takes in place of h and dout: n and g.
    let terms = #[inline(always)]
    |mut h: Vector, mut dout: Vector, weight: &Vector, [mean, rstd]: [f32; 2]| {
        for e in 0..C::T::CHUNK {
            h[e] = (h[e] - mean) * rstd;
            dout[e] *= weight[e] + p.weight_offset;
        }
        (h, dout)
    };
    let mut weight_sums = [[0.0; 8]; V];
    let mut bias_sums = [[0.0; 8]; V];
    let count = columns as f32;
    let mut first = seat.team * block_rows;
    let step = p.parts * block_rows;

    let ahead = const { C::TILE.ahead };
    let mut rows_ahead = Ahead::<2>::new(C::MEMORY.ahead);
    // f32 beside 16 bits does not fit the places of rows to come, and single elements are not copied.
    // What x was multiplied with spills in large thread blocks: no row is on its way there then, and it is found behind the sums.
    let late_branch = const { C::AGAIN || C::ROW_THREADS > 256 };
    let spills = late_branch && p.features.has(BRANCH);
    let copied = ahead > 0 && aligned && !wide && !spills;
    let start = #[inline(always)]
    |rows_ahead: &mut Ahead<2>, row: u32| {
        let place = RowPlace::of(&p.extents, row);
        let starts = [&p.normalised, &p.dout].map(|tensor| place.start::<C::T>(tensor, false));
        // SAFETY: places are free, and rows that do not exist have no columns.
        unsafe { rows_ahead.start::<C, V>(&own(0, row < p.extents.rows), starts, 2) };
    };
    // Nobody waits for the statistics of a row either: they are read while the row before is worked on; beside a cluster, or what x was multiplied with, where
    // they spill, before the row is waited for.
    let late_statistics = C::CLUSTER || p.features.has(BRANCH);
    let statistics = #[inline(always)]
    |row: u32| {
        let (mut mean, mut rstd) = (0.0, 0.0);
        if row < p.extents.rows {
            // SAFETY: one number a row.
            unsafe {
                if has_mean {
                    mean = copy::load_f32(p.mean + row as u64 * 4);
                }
                rstd = copy::load_f32(p.rstd + row as u64 * 4);
            }
        }
        [mean, rstd]
    };
    if copied {
        for i in 0..ahead {
            start(&mut rows_ahead, first + seat.in_block + i * step);
        }
    }
    let mut next_statistics = if late_statistics { [0.0; 2] } else { statistics(first + seat.in_block) };
    // SAFETY: all threads come here.
    unsafe { sums.meet::<C>() };
    while first < p.extents.rows {
        let row = first + seat.in_block;
        let exists = row < p.extents.rows;
        let place = RowPlace::of(&p.extents, row);
        let normalised = place.start::<C::T>(&p.normalised, wide);
        let dout = place.start::<C::T>(&p.dout, false);
        let load = #[inline(always)]
        |tile: u32| {
            // SAFETY: the row exists, or has no columns.
            unsafe {
                let own = own(tile, exists);
                (own.load::<C, V>(normalised, wide), own.load::<C, V>(dout, false))
            }
        };
        let load_upstream = #[inline(always)]
        |tile: u32| {
            let upstream = place.start::<C::T>(&p.dresidual_out, wide);
            // SAFETY: as above.
            unsafe { own(tile, exists).load::<C, V>(upstream, wide) }
        };
        // Before the row is waited for, so that nobody waits for both. Beside a cluster they spill.
        let late_weights = const { C::AGAIN || C::CLUSTER };
        let own_statistics = if late_statistics { statistics(row) } else { [0.0; 2] };
        let branch = #[inline(always)]
        |tile: u32| {
            // SAFETY: what parameters name is there.
            unsafe { Branch::of::<C, V>(&p.branch, &p.features, &own(tile, exists), row, exists) }
        };
        let held_branch = if late_branch { None } else { Some(branch(0)) };
        let held_weights = if late_weights { [[0.0; 8]; V] } else { load_weights(0) };
        let mut held = if C::AGAIN {
            ([[0.0; 8]; V], [[0.0; 8]; V])
        } else if copied {
            // SAFETY: as many rows as there are places were started, and the one that had this place was taken.
            let [normalised, dout] = unsafe { rows_ahead.take::<C, V>(2) };
            start(&mut rows_ahead, row + ahead * step);
            (widened::<C::T, V>(normalised), widened::<C::T, V>(dout))
        } else {
            load(0)
        };
        // With the other two, so that it is on its way.
        let held_upstream = if has_residual && !C::AGAIN { load_upstream(0) } else { [[0.0; 8]; V] };
        let [mean, rstd] = if late_statistics { own_statistics } else { next_statistics };
        if !late_statistics {
            next_statistics = statistics(row + step);
        }
        // Of g n, and of g.
        let mut own_sums = [0.0; 2];
        for tile in 0..tiles {
            let (mut h, mut dout) = if C::AGAIN { load(tile) } else { held };
            let weights = if late_weights { load_weights(tile) } else { held_weights };
            for v in 0..V {
                let (n, g) = terms(h[v], dout[v], &weights[v], [mean, rstd]);
                for e in 0..C::T::CHUNK {
                    own_sums[0] = math::fma(g[e], n[e], own_sums[0]);
                    if has_mean {
                        own_sums[1] += g[e];
                    }
                    if !C::AGAIN {
                        weight_sums[v][e] = math::fma(dout[v][e], n[e], weight_sums[v][e]);
                    }
                }
                if !C::AGAIN && p.bias_parts != 0 {
                    bias_sums[v] = added(bias_sums[v], dout[v]);
                }
                (h[v], dout[v]) = (n, g);
            }
            held = (h, dout);
        }
        // SAFETY: all threads of the block come here, and of its cluster.
        let [mean_gn, mean_g] = unsafe { sums.over::<C, 2>(own_sums) }.map(|sum| sum / count);
        let mean_g = if has_mean { mean_g } else { 0.0 };
        for tile in 0..tiles {
            let own = own(tile, exists);
            let (h, dout) = if C::AGAIN { load(tile) } else { held };
            let weights = if C::AGAIN { load_weights(tile) } else { held_weights };
            let upstream = match (has_residual, C::AGAIN) {
                (true, true) => load_upstream(tile),
                (true, false) => held_upstream,
                _ => [[0.0; 8]; V],
            };
            let branch = held_branch.unwrap_or_else(|| branch(tile));
            for v in 0..V {
                let (n, g) = if C::AGAIN { terms(h[v], dout[v], &weights[v], [mean, rstd]) } else { (h[v], dout[v]) };
                let mut dh = [0.0; 8];
                for e in 0..C::T::CHUNK {
                    dh[e] = math::fma(-n[e], mean_gn, g[e] - mean_g) * rstd;
                    if has_residual {
                        dh[e] += upstream[v][e];
                    }
                }
                // SAFETY: as above; the columns are this thread's alone.
                unsafe {
                    own.store::<C>(place.start::<C::T>(&p.dx, false), false, v, branch.on::<C>(v, dh));
                    if p.dresidual.address != 0 {
                        own.store::<C>(place.start::<C::T>(&p.dresidual, wide), wide, v, dh);
                    }
                }
            }
        }
        first += step;
    }
    if !C::AGAIN {
        // Zeros in place of rows behind the last are still on their way, to where the sums go.
        copy::wait_group::<0>();
        // SAFETY: all threads of the block come here.
        unsafe {
            store_parts::<C, V>(p, &seat, p.weight_parts, &weight_sums);
            store_parts::<C, V>(p, &seat, p.bias_parts, &bias_sums);
        }
    }
}

/// Floats of a row of the parts: whole vectors.
#[inline(always)]
pub(super) fn parts_stride(columns: u32) -> u64 {
    columns.next_multiple_of(4) as u64
}

/// Writes what the rows of a thread block, or of its cluster, add up to, column by column.
///
/// # Safety
/// All threads of the block call it.
#[inline(always)]
unsafe fn store_parts<C: NormConfig, const V: usize>(p: &NormBackwardParams, seat: &Seat, to: u64, sums: &[Vector; V]) {
    if to == 0 {
        return;
    }
    let columns = p.extents.columns;
    let to = to + seat.team as u64 * parts_stride(columns) * 4;
    let rows = const { C::TILE.block_rows() };
    let own = Columns::of::<C>(seat, 0, p.share, columns, p.aligned != 0, true);
    // SAFETY: the columns are this thread's alone, of whole vectors where they are aligned; the barriers order shared memory, which has a row for each.
    unsafe {
        if rows == 1 {
            for v in 0..V {
                own.store::<C>(to, true, v, sums[v]);
            }
            return;
        }
        let place = shared::dynamic() + C::MEMORY.sums;
        let width = const { C::TILE.columns() };
        // The place has been read by whoever wrote there before, and no copy is on its way to it.
        sync::block();
        for v in 0..V {
            for e in 0..C::T::CHUNK {
                let at = seat.in_block * width + own.column::<C>(v) + e as u32;
                shared::store_f32(place + at * 4, sums[v][e]);
            }
        }
        sync::block();
        for column in (thread::index()..columns).step_by(const { C::TILE.threads as usize }) {
            let mut sum = 0.0;
            for row in 0..rows {
                sum += shared::load_f32(place + (row * width + column) * 4);
            }
            copy::store_f32(to + column as u64 * 4, sum);
        }
    }
}

/// Rows that a thread of [`columns`] has loads of in flight at a time.
const ROWS: usize = 4;

/// One thread block: what some of the rows add to some of the columns, a column a thread.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn columns<C: NormConfig>(p: &NormBackwardParams) {
    // Sharers are the thread blocks that share out the columns.
    let (part, strip) = p.sharers.split(thread::block_index());
    let column = strip * const { C::TILE.threads } + thread::index();
    if column >= p.extents.columns {
        return;
    }
    let wide = p.wide_residual != 0 && C::T::BYTES == 2;
    let has_mean = p.features.has(MEAN);
    let (mut weight, mut bias) = (0.0, 0.0);
    // SAFETY: the rows and the column exist; the sums are this thread's alone.
    unsafe {
        let mut first = part;
        while first < p.extents.rows {
            // All loads first: they take a microsecond, whatever their number.
            let mut found = [[0.0; 4]; ROWS];
            for i in 0..ROWS {
                let row = first + i as u32 * p.parts;
                if row < p.extents.rows {
                    let place = RowPlace::of(&p.extents, row);
                    let h = place.start::<C::T>(&p.normalised, wide)
                        + column as u64 * if wide { 4 } else { C::T::BYTES as u64 };
                    let h = if wide { copy::load_f32(h) } else { C::T::load(h) };
                    let dout = C::T::load(place.start::<C::T>(&p.dout, false) + column as u64 * C::T::BYTES as u64);
                    let mean = if has_mean { copy::load_f32(p.mean + row as u64 * 4) } else { 0.0 };
                    found[i] = [h, dout, mean, copy::load_f32(p.rstd + row as u64 * 4)];
                }
            }
            for i in 0..ROWS {
                let [h, dout, mean, rstd] = found[i];
                weight = math::fma(dout, (h - mean) * rstd, weight);
                bias += dout;
            }
            first += p.parts * ROWS as u32;
        }
        let at = (part as u64 * parts_stride(p.extents.columns) + column as u64) * 4;
        if p.weight_parts != 0 {
            copy::store_f32(p.weight_parts + at, weight);
        }
        if p.bias_parts != 0 {
            copy::store_f32(p.bias_parts + at, bias);
        }
    }
}

/// Loads that a thread of [`parts`] has in flight at a time.
const LOADS: usize = 8;

/// One thread block: some columns of one of the results, by threads that share out the parts.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn parts<C: NormConfig>(p: &NormPartsParams) {
    let strips = p.columns.div_ceil(PARTS_COLUMNS);
    let second = thread::block_index() >= strips;
    let strip = if second { thread::block_index() - strips } else { thread::block_index() };
    let (from, to) = if second { (p.from[1], p.to[1]) } else { (p.from[0], p.to[0]) };
    let (in_strip, share) = (thread::index() % PARTS_COLUMNS, thread::index() / PARTS_COLUMNS);
    let column = strip * PARTS_COLUMNS + in_strip;
    let shares = const { C::TILE.threads / PARTS_COLUMNS };
    let stride = parts_stride(p.columns) * 4;
    // SAFETY: parts and columns exist where they are read; the barrier orders shared memory.
    unsafe {
        let mut sum = 0.0;
        let mut first = share;
        while first < p.parts && column < p.columns {
            let mut found = [0.0; LOADS];
            for i in 0..LOADS {
                let part = first + i as u32 * shares;
                if part < p.parts {
                    found[i] = copy::load_f32(from + part as u64 * stride + column as u64 * 4);
                }
            }
            for i in 0..LOADS {
                sum += found[i];
            }
            first += LOADS as u32 * shares;
        }
        let place = shared::dynamic() + C::MEMORY.sums;
        shared::store_f32(place + thread::index() * 4, sum);
        sync::block();
        if share == 0 && column < p.columns {
            let mut total = 0.0;
            for share in 0..shares {
                total += shared::load_f32(place + (share * PARTS_COLUMNS + in_strip) * 4);
            }
            C::T::store(to + (column as usize * C::T::BYTES) as u64, total);
        }
    }
}
