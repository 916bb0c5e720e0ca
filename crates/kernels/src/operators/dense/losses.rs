//! How logits leave a product: never. They are sums in f32, a quad of lanes has each row of a tile, and what leaves is a few numbers of it, or its gradient:
//!
//! ```text
//! losses      part of a row in a tile:  (max, sum e^(y - max y))  and, with smoothing,  sum of logits           one of each for each part and row
//!             the tile that has the target's column:  its logit                                               one a row
//!
//! gradient    dlogits = scale dloss (e^(y - lse) (1 + 2 z_loss lse) - smoothing / classes - (1 - smoothing) [class = target])
//! ```
//!
//! The parts of a row become its loss in a launch of their own (`cross_entropy::parts`), in one order, whatever the order of tiles was. What a loss and a gradient
//! are of a logit is that of [`cross_entropy`](crate::operators::cross_entropy).

use core::f32::consts::LOG2_E;

use cuda_std::{copy, math, thread, warp};
use kernel_spec::families::dense::{DenseParams, LogitsParams};

use crate::operators::cross_entropy::RowGradient;
use crate::operators::dense::columns::{Columns, FOUR, Four};
use crate::operators::dense::epilogue::sums;
use crate::operators::dense::{Biases, Config, Epilogue, Outlet};
use crate::operators::online::{Online, weight};
use crate::parts::element::Element;
use crate::parts::fragments::Fragments;

/// What the losses of rows need.
pub struct Losses;

/// The gradient of logits.
pub struct LogitGradient;

impl Epilogue for Losses {
    type Params = LogitsParams;

    #[inline(always)]
    fn product(p: &LogitsParams) -> &DenseParams {
        &p.dense
    }

    #[inline(always)]
    unsafe fn leave<C: Config, T: Element, F: Fragments, const ALIGNED: bool>(
        p: &LogitsParams,
        acc: &F,
        biases: impl Biases,
        _outlet: impl Outlet,
        row: u32,
        col: u32,
    ) {
        for m in 0..F::M {
            let rows = rows_of_lane(row + 16 * m as u32);
            // SAFETY: rows that do not exist are not touched; lanes of a quad have the same row, and shuffle together.
            unsafe {
                // Of no row, class 0: what is found for it is not stored.
                let targets = rows.map(|row| copy::load_u32_within(p.targets + row as u64 * 4, row, p.dense.rows));
                let mut tallies = [Tally::of(p); 2];
                for first in (0..F::N).step_by(FOUR) {
                    let own = Columns::<T>::new(col + 8 * first as u32, p.dense.out_aligned != 0);
                    let bias = biases.of::<T>(&p.dense, own.place(), first, 0);
                    for half in 0..2 {
                        tallies[half].add(&sums(acc, [m, first, half], &bias), &own, targets[half], p.dense.columns);
                    }
                }
                for half in 0..2 {
                    tallies[half].leave(p, rows[half], [col, const { 8 * F::N as u32 }], targets[half]);
                }
            }
        }
    }
}

impl Epilogue for LogitGradient {
    type Params = LogitsParams;

    #[inline(always)]
    fn product(p: &LogitsParams) -> &DenseParams {
        &p.dense
    }

    #[inline(always)]
    unsafe fn leave<C: Config, T: Element, F: Fragments, const ALIGNED: bool>(
        p: &LogitsParams,
        acc: &F,
        biases: impl Biases,
        mut outlet: impl Outlet,
        row: u32,
        col: u32,
    ) {
        for m in 0..F::M {
            let rows = rows_of_lane(row + 16 * m as u32);
            // SAFETY: rows that do not exist are neither read nor written; each gradient has one lane.
            unsafe {
                let [targets, lse, dloss] = [p.targets, p.lse, p.dloss]
                    .map(|of| rows.map(|row| copy::load_u32_within(of + row as u64 * 4, row, p.dense.rows)));
                let gradients = [0, 1].map(|half: usize| {
                    let [lse, dloss] = [lse, dloss].map(|of| f32::from_bits(of[half]));
                    RowGradient::new(&p.options, p.classes, targets[half] as i32, lse, dloss)
                });
                // In pairs, as those of a layer.
                for pair in (0..F::N).step_by(2 * FOUR) {
                    for second in 0..2 {
                        let first = pair + FOUR * second;
                        let own = Columns::<T>::new(col + 8 * first as u32, p.dense.out_aligned != 0);
                        let bias = biases.of::<T>(&p.dense, own.place(), first, 0);
                        outlet.begin(first);
                        for half in 0..2 {
                            let of = &gradients[half];
                            let target = targets[half].wrapping_sub(p.before);
                            let mut z = sums(acc, [m, first, half], &bias);
                            for n in 0..FOUR {
                                for i in 0..2 {
                                    let is_target = own.of_lane(n) + i as u32 == target;
                                    z[n][i] = of.at(z[n][i]) - if is_target { of.of_target } else { 0.0 };
                                }
                            }
                            // Rows of their own, in whole pieces, whatever those of the tensors are.
                            outlet.put(&p.dense, &Columns::<T>::new(own.col, true), rows[half], [first, half], z);
                        }
                        outlet.end(first);
                    }
                }
            }
        }
    }
}

/// The two rows of a fragment that a lane has, of those from row `row` on.
#[inline(always)]
fn rows_of_lane(row: u32) -> [u32; 2] {
    let upper = row + thread::lane() / 4;
    [upper, upper + 8]
}

/// What a lane has seen of its row.
#[derive(Clone, Copy)]
struct Tally {
    seen: Online,
    /// The sum of the logits themselves.
    total: f32,
    /// The logit of the target, if the lane has its column.
    target_logit: f32,
    /// Weights of logits differ by powers of two of this.
    factor: f32,
}

impl Tally {
    #[inline(always)]
    fn of(p: &LogitsParams) -> Tally {
        Tally { seen: Online::NONE, total: 0.0, target_logit: 0.0, factor: p.options.scale * LOG2_E }
    }

    /// Adds the lane's logits of four fragments, those in front of column `columns`.
    #[inline(always)]
    fn add<T: Element>(&mut self, z: &Four, own: &Columns<T>, target: u32, columns: u32) {
        let mut max = self.seen.max;
        let mut counted = *z;
        for n in 0..FOUR {
            for i in 0..2 {
                let column = own.of_lane(n) + i as u32;
                // Behind the last column: no weight, and nothing to add.
                counted[n][i] = math::within_or(z[n][i], column, columns, f32::NEG_INFINITY);
                self.total += math::within(z[n][i], column, columns);
                self.target_logit = if column == target { z[n][i] } else { self.target_logit };
                max = math::max(max, counted[n][i]);
            }
        }
        let mut seen = self.seen.raised(max, self.factor);
        for n in 0..FOUR {
            for i in 0..2 {
                seen.sum += weight(counted[n][i], seen.base(), self.factor);
            }
        }
        self.seen = seen;
    }

    /// Leaves the part of a row that is of the columns from `col` on; `columns` of a part.
    ///
    /// # Safety
    /// All threads of the warp, converged; the row and the columns are the quad's.
    #[inline(always)]
    unsafe fn leave(self, p: &LogitsParams, row: u32, [col, columns]: [u32; 2], target: u32) {
        // A quad has eight columns of each fragment, a lane two neighbours of these.
        let in_part = target < p.dense.columns && target.wrapping_sub(col) < columns;
        let has_target = in_part && target % 8 / 2 == thread::lane() % 4;
        // SAFETY: passed on; rows that do not exist are left out.
        unsafe {
            let all = self.seen.over_lanes(4, self.factor);
            let total = warp::quad_sum(self.total);
            if row >= p.dense.rows {
                return;
            }
            if thread::lane() % 4 == 0 {
                let at = row as u64 * p.parts as u64 + (col / columns) as u64;
                copy::store_f32x2(p.pairs + at * 8, [all.max, all.sum]);
                if p.totals != 0 {
                    copy::store_f32(p.totals + at * 4, total);
                }
            }
            if has_target {
                copy::store_f32(p.target_logits + row as u64 * 4, self.target_logit);
            }
        }
    }
}
