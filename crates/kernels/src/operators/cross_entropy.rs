//! Cross-entropy of rows of logits, with label smoothing (Szegedy and others, "Rethinking the Inception Architecture for Computer Vision", 2015, section 7)
//! and a loss of the log-sum-exp (Chowdhery and others, "PaLM", 2022, section 5):
//!
//! ```text
//! y = scale logits        lse = ln(sum(e^y))
//! loss = (1 - smoothing) (lse - y[target]) + smoothing (lse - mean(y)) + z_loss lse^2
//! dlogits = scale dloss (e^(y - lse) (1 + 2 z_loss lse) - smoothing / classes - (1 - smoothing) [class = target])
//! ```
//!
//! Both are bound by memory. Forward writes a number a row and so needs no register to hold a row: tiles pass by, and two are on their way
//! ([`ahead`](crate::operators::ahead)), of this row or the next, while one is added to the thread's maximum and sum ([`online`](crate::operators::online)).
//!
//! Of logits that are never in memory, each tile of the product that they are sums of leaves such a pair for each row, and [`parts`] makes a loss of these.
//!
//! Backward knows the log-sum-exp, so that no thread waits for another: a thread block has one tile, which it reads and writes, and both may be in the same
//! memory.

use core::f32::consts::{LN_2, LOG2_E};

use cuda_std::{copy, math};
use kernel_spec::Divisor;
use kernel_spec::families::cross_entropy::features::SMOOTHING;
use kernel_spec::families::cross_entropy::{
    CrossEntropyBackwardParams, CrossEntropyParams, LossOptions, LossPartsParams,
};
use kernel_spec::families::rows::{Sharing, SumsMemory};

use crate::operators::ahead::Ahead;
use crate::operators::online::{Online, weight};
use crate::operators::row::{Columns, Config, RowPlace, Seat};
use crate::operators::sums::Sums;
use crate::parts::element::Element;

/// One thread block: losses and log-sum-exps.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn forward<C: Config, const V: usize>(p: &CrossEntropyParams) {
    let seat = Seat::of::<C>(&p.sharers);
    // SAFETY: all threads come here, and there is a row for each thread block.
    let mut sums = unsafe { Sums::new::<C>(&seat) };
    let (rows, columns) = (p.extents.rows, p.extents.columns);
    let aligned = p.aligned != 0;
    let has_smoothing = p.features.has(SMOOTHING);
    let alone = const { matches!(C::TILE.sharing, Sharing::Alone) };
    let tiles = if alone { 1 } else { p.share.div_ceil(const { C::TILE.columns() }) };
    let own_columns =
        #[inline(always)]
        |row: u32, tile: u32| Columns::of::<C>(&seat, 0, p.share, columns, aligned, row < rows).later::<C>(tile);
    let start_of = #[inline(always)]
    |row: u32| RowPlace::of(&p.extents, row).start::<C::T>(&p.logits, false);

    let block_rows = const { C::TILE.block_rows() };
    let mut first = seat.team * block_rows;
    let step = p.teams * block_rows;
    // Tiles are on their way beyond the end of a row, and single elements are not copied.
    let mut tiles_ahead = Ahead::<1>::new(const { SumsMemory::with_ahead(&C::TILE, 1)[0] });
    let (mut coming_row, mut coming_tile) = (first + seat.in_block, 0);
    let mut start = #[inline(always)]
    |tiles_ahead: &mut Ahead<1>| {
        let own = own_columns(coming_row, coming_tile);
        // SAFETY: places are free; rows that do not exist have no columns.
        unsafe { tiles_ahead.start::<C, V>(&own, [start_of(coming_row)], 1) };
        coming_tile += 1;
        if alone || coming_tile == tiles {
            (coming_row, coming_tile) = (coming_row + step, 0);
        }
    };
    if aligned {
        for _ in 0..const { C::TILE.ahead } {
            start(&mut tiles_ahead);
        }
    }
    // Nobody waits for the target of a row: it is read while the row before is worked on.
    let target_of = #[inline(always)]
    |row: u32| {
        let mut target = -1;
        if seat.is_first() && row < rows {
            // SAFETY: a target a row.
            target = unsafe { copy::load_u32(p.targets + row as u64 * 4) as i32 };
        }
        target
    };
    let mut next_target = target_of(first + seat.in_block);

    // Weights of logits, which differ by powers of two of this.
    let factor = p.options.scale * LOG2_E;
    // SAFETY: all threads come here.
    unsafe { sums.meet::<C>() };
    while first < rows {
        let row = first + seat.in_block;
        let start_of_row = start_of(row);
        let target = next_target;
        next_target = target_of(row + step);
        let mut target_logit = 0.0;
        if (target as u32) < columns {
            // SAFETY: the row has a target, and so exists.
            target_logit = unsafe { C::T::load(start_of_row + target as u64 * C::T::BYTES as u64) };
        }
        let mut own = Tally { seen: Online::NONE, total: 0.0, factor, has_smoothing };
        for tile in 0..tiles {
            let here = own_columns(row, tile);
            let arrived = if aligned {
                // SAFETY: as many tiles as there are places were started, and the one that had this place was taken.
                let [arrived] = unsafe { tiles_ahead.take::<C, V>(1) };
                start(&mut tiles_ahead);
                arrived
            } else {
                // SAFETY: the row exists, or has no columns.
                unsafe { here.load_bits::<C, V>(start_of_row) }
            };
            if here.is_whole::<C>(V) {
                own.add::<C, V, true>(&here, &arrived);
            } else {
                own.add::<C, V, false>(&here, &arrived);
            }
        }
        // SAFETY: all threads come here.
        let (all, total) = unsafe {
            let all = sums.online::<C>(own.seen, factor);
            (all, if has_smoothing { sums.over::<C, 1>([own.total]) } else { [0.0] })
        };
        if seat.is_first() && row < rows {
            let of = RowLoss::new(&p.options, &all, total[0], columns, target, target_logit);
            // SAFETY: one number a row, which no other thread writes.
            unsafe { of.store(row, [p.loss, p.lse, p.z_losses]) };
        }
        first += step;
    }
    // Zeros in place of rows behind the last.
    copy::wait_group::<0>();
}

/// What a row gives.
struct RowLoss {
    loss: f32,
    lse: f32,
    z_loss: f32,
}

impl RowLoss {
    /// Of a row of `classes` logits of this maximum and sum of weights; `total` is the sum of the logits themselves, which counts with smoothing alone.
    #[inline(always)]
    fn new(of: &LossOptions, all: &Online, total: f32, classes: u32, target: i32, target_logit: f32) -> RowLoss {
        let log_sum = math::log2(all.sum) * LN_2;
        // The product is rounded before the sum, as backward rounds it before the difference: where one logit has all of a row, its error cancels.
        let lse = all.max * of.scale + log_sum;
        // Differences before the logarithm: the log-sum-exp is rounded like the largest logit, which the loss may be far below.
        let below = #[inline(always)]
        |logit: f32| math::fma(all.max - logit, of.scale, log_sum);
        let mut loss = below(target_logit);
        if of.smoothing != 0.0 {
            loss = math::fma(of.smoothing, below(total / classes as f32) - loss, loss);
        }
        // Without its factor there is none, whatever the log-sum-exp is.
        let mut z_loss = if of.z_loss == 0.0 { 0.0 } else { of.z_loss * lse * lse };
        loss += z_loss;
        if of.has_ignored != 0 && target == of.ignored {
            (loss, z_loss) = (0.0, 0.0);
        } else if target as u32 >= classes {
            loss = f32::NAN;
        }
        RowLoss { loss, lse, z_loss }
    }

    /// Writes it where `to` has losses, and log-sum-exps and their losses where these are wanted.
    ///
    /// # Safety
    /// The row exists, and no other thread writes its numbers.
    #[inline(always)]
    unsafe fn store(&self, row: u32, to: [u64; 3]) {
        // SAFETY: passed on.
        unsafe {
            copy::store_f32(to[0] + row as u64 * 4, self.loss);
            if to[1] != 0 {
                copy::store_f32(to[1] + row as u64 * 4, self.lse);
            }
            if to[2] != 0 {
                copy::store_f32(to[2] + row as u64 * 4, self.z_loss);
            }
        }
    }
}

/// What a thread has seen of its row.
struct Tally {
    seen: Online,
    /// The sum of the logits themselves, where that counts.
    total: f32,
    factor: f32,
    has_smoothing: bool,
}

impl Tally {
    /// Adds the vectors of a tile, none of which reaches behind the last column where `WHOLE`.
    #[inline(always)]
    fn add<C: Config, const V: usize, const WHOLE: bool>(&mut self, here: &Columns, words: &[[u32; 4]; V]) {
        let mut max = self.seen.max;
        for v in 0..V {
            let x = C::T::widen_chunk(words[v]);
            for e in 0..C::T::CHUNK {
                max = math::max(max, if WHOLE { x[e] } else { here.or_minus_infinity::<C>(v, e, x[e]) });
            }
        }
        let mut seen = self.seen.raised(max, self.factor);
        for v in 0..V {
            let x = C::T::widen_chunk(words[v]);
            for e in 0..C::T::CHUNK {
                let counted = if WHOLE { x[e] } else { here.or_minus_infinity::<C>(v, e, x[e]) };
                seen.sum += weight(counted, seen.base(), self.factor);
                if self.has_smoothing {
                    // Zeros behind the last column.
                    self.total += x[e];
                }
            }
        }
        self.seen = seen;
    }
}

/// One thread block: the gradient of a tile of a row, or of a few short rows.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn backward<C: Config, const V: usize>(p: &CrossEntropyBackwardParams) {
    let seat = Seat::of::<C>(&p.tiles);
    let (team, tile) = p.tiles.split(seat.team);
    let columns = p.extents.columns;
    let row = team * const { C::TILE.block_rows() } + seat.in_block;
    if row >= p.extents.rows {
        return;
    }
    let place = RowPlace::of(&p.extents, row);
    let own = Columns::of::<C>(&seat, 0, columns, columns, p.aligned != 0, true).later::<C>(tile);
    // SAFETY: the row exists, and has one of each number. What is written are the columns that this thread has read, which are its alone.
    unsafe {
        let words = own.load_bits::<C, V>(place.start::<C::T>(&p.logits, false));
        let target = copy::load_u32(p.targets + row as u64 * 4) as i32;
        let lse = copy::load_f32(p.lse + row as u64 * 4);
        let dloss = copy::load_f32(p.dloss + row as u64 * 4);
        let of = RowGradient::new(&p.options, columns, target, lse, dloss);
        for v in 0..V {
            let mut x = C::T::widen_chunk(words[v]);
            for e in 0..C::T::CHUNK {
                x[e] = of.at(x[e]);
            }
            let in_vector = (target as u32).wrapping_sub(own.column::<C>(v));
            if in_vector < C::CHUNK {
                for e in 0..C::T::CHUNK {
                    x[e] -= if e as u32 == in_vector { of.of_target } else { 0.0 };
                }
            }
            own.store::<C>(place.start::<C::T>(&p.dlogits, false), false, v, x);
        }
    }
}

/// The gradient of a row, as a function of its logits.
#[derive(Clone, Copy)]
pub struct RowGradient {
    scale: f32,
    lse: f32,
    /// The factor on probabilities.
    slope: f32,
    /// What every class has less.
    of_all: f32,
    /// What the target has less beside that.
    pub of_target: f32,
    /// Whether the row is not the ignored one.
    counts: bool,
}

impl RowGradient {
    /// Of a row of `classes` logits with this target and log-sum-exp.
    #[inline(always)]
    pub fn new(of: &LossOptions, classes: u32, target: i32, lse: f32, dloss: f32) -> RowGradient {
        let counts = of.has_ignored == 0 || target != of.ignored;
        // A target that is no class has no gradient, which shows.
        let dlogit = if (target as u32) < classes { dloss * of.scale } else { f32::NAN };
        let slope = if of.z_loss == 0.0 { dlogit } else { dlogit * math::fma(2.0 * of.z_loss, lse, 1.0) };
        let of_all = dlogit * of.smoothing / classes as f32;
        let of_target = if counts { dlogit * (1.0 - of.smoothing) } else { 0.0 };
        RowGradient { scale: of.scale, lse, slope, of_all, of_target, counts }
    }

    /// That of a logit, but for what the target has less.
    #[inline(always)]
    pub fn at(&self, logit: f32) -> f32 {
        let p = weight(logit * self.scale, self.lse, LOG2_E);
        if self.counts { math::fma(p, self.slope, -self.of_all) } else { 0.0 }
    }
}

/// One thread block: losses and log-sum-exps of some rows, a warp each, from what tiles of a product have left of their logits.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn parts<C: Config>(p: &LossPartsParams) {
    let seat = Seat::of::<C>(&const { Divisor::new(1) });
    let row = seat.team * const { C::TILE.block_rows() } + seat.in_block;
    let exists = row < p.rows;
    let factor = p.options.scale * LOG2_E;
    let (mut seen, mut total) = (Online::NONE, 0.0);
    let mut part = if exists { seat.thread } else { p.parts };
    while part < p.parts {
        let at = row as u64 * p.parts as u64 + part as u64;
        // SAFETY: the part exists.
        let [max, sum] = unsafe { f32::load_two_within(p.pairs + at * 8, 0, 1) };
        let both = math::max(seen.max, max);
        seen = seen.raised(both, factor);
        seen.sum += Online { max, sum }.raised(both, factor).sum;
        if p.totals != 0 {
            // SAFETY: as above.
            total += unsafe { copy::load_f32(p.totals + at * 4) };
        }
        part += C::ROW_THREADS;
    }
    // SAFETY: all threads come here; the row exists where its numbers are read and written.
    unsafe {
        let mut sums = Sums::new::<C>(&seat);
        let all = sums.online::<C>(seen, factor);
        let [total] = sums.over::<C, 1>([total]);
        if seat.is_first() && exists {
            let target = copy::load_u32(p.targets + row as u64 * 4) as i32;
            // That of a target that is no class was never written.
            let is_class = (target as u32) < p.classes;
            let logit = if is_class { copy::load_f32(p.target_logits + row as u64 * 4) } else { 0.0 };
            RowLoss::new(&p.options, &all, total, p.classes, target, logit).store(row, [p.loss, p.lse, p.z_losses]);
        }
    }
}
