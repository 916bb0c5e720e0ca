//! Rows that f32 does not carry, computed again in f64.
//!
//! The kernels measure weights against a maximum that has been scaled and rounded: `2^(c s - round(c max))`. The rounding is a factor that
//! all weights of a row share, and that the division by their sum takes out, until it shows: weights are rounded to 16 bits, but their sum
//! is not, and from 2^30 on the factor is out of range. Sums of large values overflow although their average does not, and products of
//! large queries and keys overflow although the softmax of them is defined. So does a row whose keys are minus infinity for a whole block.
//!
//! No test of this stands in the loops over the keys. At the end of a row [`factors`] makes the output NaN if its maximum is too large or
//! its sum no number, and [`rows`] computes every row again that has an output which is no finite number, straight from the definition:
//! scores and sums in f64, one warp a row. That is slow, and exact; rows of ordinary numbers never come here. Where the values
//! themselves hold infinities or NaN, it finds what the kernel has found.

use core::marker::PhantomData;

use cuda_std::{copy, math, shared, sync, thread, warp};
use kernel_spec::families::forward::features::{DROPOUT, SINK};
use kernel_spec::layout::fragment_row;
use kernel_spec::{ForwardParams, Pass};

use crate::attention::Config;
use crate::attention::dropout::Stream;
use crate::attention::exponent::Exponent;
use crate::attention::query_block::{QueryBlock, QueryRow};
use crate::attention::score::{self, Place};
use crate::attention::sink::{self, WithSink};
use crate::parts::element::Element;
use crate::parts::fragments::PerRow;

/// In place of a weight: the key has none.
const UNSEEN: f32 = -1.0;

/// Output columns of a lane, at most.
const LANE_COLS: usize = 8;

/// What the output of rows from `row` on is multiplied with at its end: `1 / sum`, with the sink where there are any; 0 for a row that sees no key, whose output is defined to
/// be 0; NaN for a row that [`rows`] has to compute.
///
/// `max` and `sum` are those of whole rows, `max` scaled.
#[inline(always)]
pub fn factors<C: Config, R: PerRow>(block: &QueryBlock<C>, row: u32, max: &R, sum: &R) -> R {
    let without_keys = block.rows_without_keys();
    let mut factors = *max;
    for m in 0..R::M {
        for half in 0..2 {
            let at = || block.row(row + 16 * m as u32 + fragment_row(thread::lane(), 2 * half as u32));
            let factor = if block.may_hide() && max.at(m, half) == f32::NEG_INFINITY {
                // Nothing that f32 lost: a program hides all keys.
                0.0
            } else {
                let (max, sum) = (max.at(m, half), sum.at(m, half));
                // Two functions: one that takes a sink or none lets LLVM number the registers of plain v3 in another order.
                if const { C::ROW.entry.takes(SINK) } {
                    factor_with_sink::<C::T>(max, sum, block.sink(|| at().head))
                } else {
                    factor::<C::T>(max, sum)
                }
            };
            *factors.at_mut(m, half) = if (at().row as i32) < without_keys { 0.0 } else { factor };
        }
    }
    factors
}

/// `1 / sum`, or NaN for a row that has to be computed again.
#[inline(always)]
pub fn factor<T: Exponent>(max: f32, sum: f32) -> f32 {
    if is_carried::<T>(max, sum) { math::reciprocal(sum) } else { f32::NAN }
}

/// [`factor`] of a row with this sink, if there is one.
#[inline(always)]
pub fn factor_with_sink<T: Exponent>(max: f32, sum: f32, sink: Option<f32>) -> f32 {
    if is_carried::<T>(max, sum) { factor_of_carried::<T>(max, sum, sink) } else { f32::NAN }
}

/// Whether f32 carries a row.
#[inline(always)]
fn is_carried<T: Exponent>(max: f32, sum: f32) -> bool {
    // Nor for NaN, which 0 times an infinite sum is as well. Of rows without keys or scores above minus infinity, only the mask
    // tells which they are.
    math::fma(sum, 0.0, math::abs(max)) <= T::scale(T::LARGEST_MAX_LOG2)
}

/// [`factor_with_sink`] of a row that f32 is known to carry.
#[inline(always)]
pub fn factor_of_carried<T: Exponent>(max: f32, sum: f32, sink: Option<f32>) -> f32 {
    let Some(sink) = sink else { return math::reciprocal(sum) };
    let row = WithSink::of::<T>(max, sum, sink);
    row.rescale * math::reciprocal(row.sum)
}

/// Whether any of these is NaN.
#[inline(always)]
pub fn any_nan<R: PerRow>(values: &R) -> bool {
    let mut any = false;
    for m in 0..R::M {
        for half in 0..2 {
            any |= values.at(m, half).is_nan();
        }
    }
    any
}

/// [`rows`] for a thread block whose warps share the rows of its block out among themselves, if any thread has met a number that is not
/// finite. The first bytes of shared memory are free.
///
/// # Safety
/// All threads of the block, converged, when the output has been written.
#[inline(always)]
pub unsafe fn mend<C: Config>(p: &ForwardParams, not_finite: bool) {
    // SAFETY: passed on; the first barrier stands behind the writes of all threads and their reads of shared memory, the second behind the
    // copy, which is smaller than a tile.
    unsafe {
        if sync::block_any(not_finite) {
            // What is called takes an address. That of parameters is one from PTX 7.7 on only, and drivers from CUDA 11.4 on read 7.4.
            let copy = shared::generic(shared::dynamic());
            if thread::index() == 0 {
                *(copy as *mut ForwardParams) = *p;
            }
            sync::block();
            block_rows::<C>(copy);
        }
    }
}

/// A function that is called: inside the kernel, it would take registers from the loop over the keys.
///
/// # Safety
/// As for [`mend`], behind its barriers; `params` is an address of the kernel's parameters.
#[inline(never)]
unsafe fn block_rows<C: Config>(params: u64) {
    // SAFETY: every warp takes other rows.
    unsafe {
        let p = &*(params as *const ForwardParams);
        let block = QueryBlock::<C>::of(thread::block_index(), p);
        let first = block.first_row + thread::warp_index();
        rows(&block, p, first, block.first_row + C::ROW.q_block, C::ROW.warps);
    }
}

/// Computes those rows of the block again that have an output which is not finite: `first`, `first + step`, .. below `end`, as the block
/// counts them.
///
/// # Safety
/// All threads of the warp, converged. They have written the rows, or met a barrier with those who have, and nobody else touches them.
#[inline(always)]
pub unsafe fn rows<C: Config>(block: &QueryBlock<C>, p: &ForwardParams, first: u32, end: u32, step: u32) {
    let lane = thread::lane();
    // Rolled, here and below: this code is there for few.
    for index in (first..math::opaque(end)).step_by(math::opaque(step) as usize) {
        let at = block.row(index);
        if at.row >= block.q.rows {
            continue;
        }
        let out = block.out_row(at);
        // SAFETY: converged; a row of the output, whose columns exist.
        unsafe {
            if holds_no_number::<C::Out>(lane, out, block.out.cols) {
                Row::of_block(block, p, at).attend::<C::Out>(out);
            }
        }
    }
}

/// Whether an element of a row of the output is no finite number, for every lane; this one is `lane`.
///
/// # Safety
/// All threads of the warp, converged; the row's columns exist.
#[inline(always)]
pub unsafe fn holds_no_number<O: Element>(lane: u32, out: u64, cols: u32) -> bool {
    let mut finite = true;
    for col in (lane..cols).step_by(32) {
        // SAFETY: passed on.
        finite &= unsafe { O::load(out + (col as usize * O::BYTES) as u64) }.is_finite();
    }
    // SAFETY: passed on.
    unsafe { warp::any(!finite) }
}

/// Where the keys and values of a head are.
pub trait Places {
    /// Address of a key.
    fn key(&self, key: u32) -> u64;

    /// Address of a value.
    fn value(&self, key: u32) -> u64;
}

/// Keys and values at equal distances, from these addresses on.
pub struct Affine<'a, T> {
    p: &'a ForwardParams,
    k: u64,
    v: u64,
    element: PhantomData<T>,
}

impl<T: Element> Places for Affine<'_, T> {
    #[inline(always)]
    fn key(&self, key: u32) -> u64 {
        self.k + key as u64 * self.p.k.row_stride * T::BYTES as u64
    }

    #[inline(always)]
    fn value(&self, key: u32) -> u64 {
        self.v + key as u64 * self.p.v.row_stride * T::BYTES as u64
    }
}

/// One query row and the keys that it sees.
pub struct Row<'a, T, S> {
    /// The problem.
    pub p: &'a ForwardParams,
    /// Address of the queries.
    pub q: u64,
    /// The keys and values of its head.
    pub places: S,
    /// Address of the log-sum-exp, or 0.
    pub lse: u64,
    /// Where its scores are; the key plays no part.
    pub at: Place,
    /// First key that it sees.
    pub first: u32,
    /// One past the last.
    pub end: u32,
    /// The sink of its head, if there are any.
    pub sink: Option<f32>,
    /// Whether there may be one that is read where it comes in, in place of the one above: no register is left to keep it in f16 rows of v3.
    pub has_late_sink: bool,
    /// Which of them dropout keeps, if some are dropped.
    pub random: Option<Stream>,
    /// The element type.
    pub element: PhantomData<T>,
}

/// Whether sinks are read late, see [`Row::has_late_sink`]. Elsewhere that would order the steps of plain v2 otherwise: 2 to 3 % at 128 dims (H200).
const fn is_late<C: Config>() -> bool {
    matches!(C::ROW.pass, Pass::V3)
}

impl<'a, T: Element> Row<'a, T, Affine<'a, T>> {
    /// A row of a query block.
    #[inline(always)]
    fn of_block<C: Config<T = T>>(block: &QueryBlock<C>, p: &'a ForwardParams, at: QueryRow) -> Self {
        let elements = at.head as u64 * p.q.head_stride + at.row as u64 * p.q.row_stride;
        let lse_rows = if block.packed_rows == 0 { p.q_rows } else { block.packed_rows };
        let lse = (block.head + at.head as u64) * lse_rows as u64 + at.row as u64;
        let [first, end] = p.band.keys(at.row, p.q_rows, p.kv_rows);
        Row {
            p,
            q: block.q.address + elements * T::BYTES as u64,
            places: Affine { p, k: block.k.address, v: block.v.address, element: PhantomData },
            lse: if p.lse == 0 { 0 } else { p.lse + lse * 4 },
            at: block.place(at, 0),
            first,
            end,
            sink: if const { is_late::<C>() } { None } else { block.sink(|| at.head) },
            has_late_sink: const { is_late::<C>() && C::ROW.entry.takes(SINK) },
            random: if const { C::ROW.entry.takes(DROPOUT) } { Some(block.random()) } else { None },
            element: PhantomData,
        }
    }
}

impl<T: Element, S: Places> Row<'_, T, S> {
    /// The score of a key, without scale.
    ///
    /// # Safety
    /// The row sees the key.
    #[inline(always)]
    unsafe fn score(&self, key: u32) -> f64 {
        let k = self.places.key(key);
        let mut sum = 0.0;
        for col in 0..self.p.dim_qk {
            let offset = (col as usize * T::BYTES) as u64;
            // SAFETY: inside both rows.
            let [q, k] = unsafe { [T::load(self.q + offset), T::load(k + offset)] };
            sum += q as f64 * k as f64;
        }
        let at = Place { key, ..self.at };
        score::modify_one(if self.p.negate != 0 { -sum } else { sum }, &self.p.features, at)
    }

    /// The largest score, in every lane; NaN if any is, and minus infinity if there is no key, or none that is more.
    ///
    /// # Safety
    /// All threads of the warp, converged.
    #[inline(always)]
    unsafe fn max(&self) -> f64 {
        let mut max = f64::NEG_INFINITY;
        for key in (self.first + thread::lane()..self.end).step_by(32) {
            // SAFETY: one of the keys.
            let score = unsafe { self.score(key) };
            max = larger(max, score);
        }
        let mut result = f64::NEG_INFINITY;
        for lane in 0..math::opaque(32) {
            // SAFETY: passed on.
            let other = unsafe { shuffle(max, lane) };
            result = larger(result, other);
        }
        result
    }

    /// The weight of a key relative to that of the largest score; [`UNSEEN`] for a key that the row does not see, or that minus infinity
    /// hides.
    ///
    /// # Safety
    /// The key exists, if the row sees it.
    #[inline(always)]
    unsafe fn weight(&self, key: u32, max: f64) -> f32 {
        if key < self.first || key >= self.end {
            return UNSEEN;
        }
        // SAFETY: passed on.
        let score = unsafe { self.score(key) };
        if score == f64::NEG_INFINITY {
            return UNSEEN;
        }
        math::exp2(((score - max) * self.p.scale_log2 as f64) as f32)
    }

    /// Largest exponent, sum of weights and the factor on what was summed up, of a row with this sink: [`WithSink`] in f64.
    #[inline(always)]
    fn with_sink(&self, max: f64, sum: f64, sink: f32) -> [f64; 3] {
        let (max, sink) = (self.exponent(max), sink as f64 * core::f64::consts::LOG2_E);
        let largest = larger(max, sink);
        let base = if largest == f64::NEG_INFINITY { 0.0 } else { largest };
        let [rescale, own] = [max, sink].map(|exponent| math::exp2((exponent - base) as f32) as f64);
        [largest, sum * rescale + own, rescale]
    }

    /// The largest exponent, of the largest score.
    #[inline(always)]
    fn exponent(&self, max: f64) -> f64 {
        max * self.p.scale_log2 as f64
    }

    /// Writes the natural log-sum-exp, for the largest exponent and a sum of weights, if it is wanted.
    ///
    /// # Safety
    /// One thread of the warp that has the row.
    #[inline(always)]
    unsafe fn store_lse(&self, max: f64, sum: f64) {
        let lse = ((max + math::log2(sum as f32) as f64) * core::f64::consts::LN_2) as f32;
        if self.lse != 0 {
            // SAFETY: the row's own.
            unsafe { copy::store_f32(self.lse, lse) };
        }
    }

    /// Writes the row's output, to `out`, and its log-sum-exp.
    ///
    /// # Safety
    /// All threads of the warp, converged; the address is the row's own.
    #[inline(always)]
    pub unsafe fn attend<O: Element>(&self, out: u64) {
        let lane = thread::lane();
        // SAFETY: converged: every loop below takes the whole warp along; addresses are inside rows.
        unsafe {
            let max = self.max();
            let mut sum = 0.0;
            let mut acc = [0.0_f64; LANE_COLS];
            for first in (self.first..self.end).step_by(32) {
                let own = self.weight(first + lane, max);
                for other in 0..math::opaque((self.end - first).min(32)) {
                    let weight = warp::shuffle(own, other) as f64;
                    // Not even as a weight of 0, which makes NaN of an infinite value. NaN is seen.
                    if weight == UNSEEN as f64 {
                        continue;
                    }
                    sum += weight;
                    // Behind the sum, and not by a weight of 0 either.
                    if self.random.is_some_and(|random| !random.keeps(self.at.row, first + other)) {
                        continue;
                    }
                    let v = self.places.value(first + other);
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let col = lane + 32 * i as u32;
                        if col < self.p.dim_v {
                            *acc += weight * T::load(v + (col as usize * T::BYTES) as u64) as f64;
                        }
                    }
                }
            }
            let sink = if self.has_late_sink { sink::of_head(&self.p.features, self.at.head) } else { self.sink };
            let with_sink = sink.map(|sink| self.with_sink(max, sum, sink));
            let (share, sum) = with_sink.map_or((1.0, sum), |[_, sum, rescale]| (rescale, sum));
            // Once: a division in f64 is a hundred instructions.
            let inverse = if sum == 0.0 { 0.0 } else { share / sum };
            let inverse = self.random.map_or(inverse, |random| inverse * random.factor as f64);
            for (i, acc) in acc.into_iter().enumerate() {
                let col = lane + 32 * i as u32;
                if col < self.p.dim_v {
                    O::store(out + (col as usize * O::BYTES) as u64, (acc * inverse) as f32);
                }
            }
            if lane == 0 {
                self.store_lse(with_sink.map_or_else(|| self.exponent(max), |[max, ..]| max), sum);
            }
        }
    }
}

/// The larger of two numbers, and NaN if either is.
#[inline(always)]
fn larger(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

/// Value of lane `lane` for every lane.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
unsafe fn shuffle(value: f64, lane: u32) -> f64 {
    let bits = value.to_bits();
    // SAFETY: passed on.
    let [low, high] = [bits as u32, (bits >> 32) as u32].map(|half| unsafe { warp::broadcast(half, lane) });
    f64::from_bits(low as u64 | (high as u64) << 32)
}
