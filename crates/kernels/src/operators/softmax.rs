//! Softmax of rows, forward and backward:
//!
//! ```text
//! y = scale x + mask          out = e^(y - max) / sum(e^(y - max))         dx = scale out (dout - sum(out dout))
//! of the logarithm:           out = y - max - ln(sum(e^(y - max)))         dx = scale (dout - e^out sum(dout))
//! ```
//!
//! It is bound by memory. A row is read once, all of it before anything is done with it, and held in registers: as its weights against the maximum of the
//! thread, which one factor then measures against that of the row. [`row`](crate::operators::row) has the picture, [`online`](crate::operators::online) the
//! one exchange for maximum and sum. Long rows lie in the shared memory of a cluster, and are read from there for the sum and again for the output; a row that
//! nothing holds is read twice.
//!
//! Columns that a causal row does not see are neither read nor counted: for the sum, the row ends in front of them.

use core::f32::consts::{LN_2, LOG2_E};

use cuda_std::math;
use kernel_spec::families::rows::SumsMemory;
use kernel_spec::families::softmax::features::{CAUSAL, LOG, MASK};
use kernel_spec::families::softmax::{MASK_OF_BOOLS, MASK_OF_F32, SoftmaxBackwardParams, SoftmaxParams};

use crate::operators::ahead::Ahead;
use crate::operators::online::{Online, weight};
use crate::operators::row::{Columns, Config, RowPlace, Seat, Vector, tiles, widened};
use crate::operators::sums::Sums;
use crate::parts::element::Element;

/// One thread block: the output.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn forward<C: Config, const V: usize>(p: &SoftmaxParams) {
    let seat = Seat::of::<C>(&p.sharers);
    // SAFETY: all threads come here.
    let mut sums = unsafe { Sums::new::<C>(&seat) };
    let columns = p.extents.columns;
    let row = seat.team * const { C::TILE.block_rows() } + seat.in_block;
    let exists = row < p.extents.rows;
    let place = RowPlace::of(&p.extents, row);
    let (has_mask, is_log) = (p.features.has(MASK), p.features.has(LOG));
    let seen = if p.features.has(CAUSAL) {
        let (_, query) = p.queries.split(row);
        (columns + query + 1).saturating_sub(p.queries.value)
    } else {
        columns
    };
    let tiles = tiles::<C>(p.share, columns);
    let own = #[inline(always)]
    |tile: u32, end: u32| Columns::of::<C>(&seat, tile, p.share, end, p.aligned != 0, exists);
    let kept = Ahead::<1>::new(const { SumsMemory::with_ahead(&C::TILE, 1)[0] });
    let is_kept = C::KEPT && p.aligned != 0;
    if is_kept {
        // SAFETY: places are free; the row exists, or has no columns.
        unsafe { kept.start_all::<C, V>(|tile| own(tile, seen), [place.start::<C::T>(&p.x, false)], 1) };
        kept.wait_for_all();
    }
    // Minus infinity behind the last column that counts.
    let load = #[inline(always)]
    |tile: u32| -> [Vector; V] {
        let own = own(tile, seen);
        // SAFETY: all tiles have arrived; the row exists, or has no columns.
        let mut y = unsafe {
            if is_kept {
                let [words] = kept.look::<C, V>(tile, 1);
                widened::<C::T, V>(words)
            } else {
                own.load::<C, V>(place.start::<C::T>(&p.x, false), false)
            }
        };
        for v in 0..V {
            let mut mask = [0.0; 8];
            if has_mask && p.mask_kind == MASK_OF_BOOLS {
                // SAFETY: as above.
                let bools = unsafe { own.load_bools::<C>(place.start_of_bools(&p.mask), v) };
                for e in 0..C::T::CHUNK {
                    // Whatever is hidden, NaN and infinities too.
                    if bools[e / 4] >> (8 * (e % 4)) & 0xFF == 0 {
                        (y[v][e], mask[e]) = (0.0, f32::NEG_INFINITY);
                    }
                }
            } else if has_mask {
                let wide = p.mask_kind == MASK_OF_F32;
                // SAFETY: as above.
                mask = unsafe { own.load_one::<C>(place.start::<C::T>(&p.mask, wide), wide, v) };
            }
            for e in 0..C::T::CHUNK {
                let score = if has_mask { math::fma(y[v][e], p.scale, mask[e]) } else { y[v][e] * p.scale };
                y[v][e] = own.or_minus_infinity::<C>(v, e, score);
            }
        }
        y
    };

    // What the thread has seen; of a row that is held, the weights against it, or the scores where their logarithms are asked for.
    let mut seen_by_thread = Online::NONE;
    let mut held = [[0.0; 8]; V];
    for tile in 0..tiles {
        let mut y = load(tile);
        let mut max = seen_by_thread.max;
        for v in 0..V {
            for e in 0..C::T::CHUNK {
                max = math::max(max, y[v][e]);
            }
        }
        let mut raised = seen_by_thread.raised(max, LOG2_E);
        for v in 0..V {
            for e in 0..C::T::CHUNK {
                let weight = weight(y[v][e], raised.base(), LOG2_E);
                raised.sum += weight;
                if !is_log {
                    y[v][e] = weight;
                }
            }
        }
        seen_by_thread = raised;
        if !C::AGAIN {
            held = y;
        }
    }
    // SAFETY: all threads come here.
    let all = unsafe {
        sums.meet::<C>();
        sums.online::<C>(seen_by_thread, LOG2_E)
    };

    // A row without a number that counts is one of zeros, or of minus infinities.
    let (inverse, log_sum) =
        if all.sum == 0.0 { (0.0, 0.0) } else { (math::reciprocal(all.sum), math::log2(all.sum) * LN_2) };
    let held_factor = weight(seen_by_thread.max, all.base(), LOG2_E) * inverse;
    for tile in 0..tiles {
        let y = if C::AGAIN { load(tile) } else { held };
        let own = own(tile, columns);
        for v in 0..V {
            let mut out = y[v];
            for e in 0..C::T::CHUNK {
                out[e] = match (is_log, C::AGAIN) {
                    (true, _) => (y[v][e] - all.base()) - log_sum,
                    (false, true) => weight(y[v][e], all.base(), LOG2_E) * inverse,
                    (false, false) => y[v][e] * held_factor,
                };
            }
            // SAFETY: as above; the columns of the output are this thread's alone.
            unsafe { own.store::<C>(place.start::<C::T>(&p.out, false), false, v, out) };
        }
    }
}

/// One thread block: the gradient.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn backward<C: Config, const V: usize>(p: &SoftmaxBackwardParams) {
    let seat = Seat::of::<C>(&p.sharers);
    // SAFETY: all threads come here.
    let mut sums = unsafe { Sums::new::<C>(&seat) };
    let columns = p.extents.columns;
    let row = seat.team * const { C::TILE.block_rows() } + seat.in_block;
    let exists = row < p.extents.rows;
    let place = RowPlace::of(&p.extents, row);
    let is_log = p.features.has(LOG);
    let tiles = tiles::<C>(p.share, columns);
    let own = #[inline(always)]
    |tile: u32| Columns::of::<C>(&seat, tile, p.share, columns, p.aligned != 0, exists);
    let starts = [&p.out, &p.dout].map(|tensor| place.start::<C::T>(tensor, false));
    let kept = Ahead::<2>::new(const { SumsMemory::with_ahead(&C::TILE, 2)[0] });
    let is_kept = C::KEPT && p.aligned != 0;
    if is_kept {
        // SAFETY: places are free; the row exists, or has no columns.
        unsafe { kept.start_all::<C, V>(own, starts, 2) };
        kept.wait_for_all();
    }
    // Probabilities and gradients; of a logarithm of minus infinity, which no score moves, there is none.
    let load = #[inline(always)]
    |tile: u32| -> ([Vector; V], [Vector; V]) {
        // SAFETY: the row exists, or has no columns.
        let (mut out, mut dout) = unsafe {
            if is_kept {
                let [out, dout] = kept.look::<C, V>(tile, 2);
                (widened::<C::T, V>(out), widened::<C::T, V>(dout))
            } else {
                let own = own(tile);
                let [out, dout] = starts;
                (own.load::<C, V>(out, false), own.load::<C, V>(dout, false))
            }
        };
        if is_log {
            for v in 0..V {
                for e in 0..C::T::CHUNK {
                    dout[v][e] = if out[v][e] == f32::NEG_INFINITY { 0.0 } else { dout[v][e] };
                    out[v][e] = math::exp2(out[v][e] * LOG2_E);
                }
            }
        }
        (out, dout)
    };

    let mut held = ([[0.0; 8]; V], [[0.0; 8]; V]);
    let mut own_sum = 0.0;
    for tile in 0..tiles {
        let (out, dout) = load(tile);
        for v in 0..V {
            for e in 0..C::T::CHUNK {
                own_sum = if is_log { own_sum + dout[v][e] } else { math::fma(out[v][e], dout[v][e], own_sum) };
            }
        }
        if !C::AGAIN {
            held = (out, dout);
        }
    }
    // SAFETY: all threads come here.
    let [sum] = unsafe {
        sums.meet::<C>();
        sums.over::<C, 1>([own_sum])
    };
    for tile in 0..tiles {
        let (out, dout) = if C::AGAIN { load(tile) } else { held };
        let own = own(tile);
        for v in 0..V {
            let mut dx = dout[v];
            for e in 0..C::T::CHUNK {
                let (out, dout) = (out[v][e], dout[v][e]);
                dx[e] = p.scale * if is_log { math::fma(-out, sum, dout) } else { out * (dout - sum) };
            }
            // SAFETY: as above; the columns of the gradient are this thread's alone.
            unsafe { own.store::<C>(place.start::<C::T>(&p.dx, false), false, v, dx) };
        }
    }
}
