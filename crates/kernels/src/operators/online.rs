//! Maximum of a row and sum of the exponentials measured against it, in one go (Milakov and Gimelshein, "Online normalizer calculation for softmax",
//! 2018):
//!
//! ```text
//! (max, sum) + (max', sum')  =  (m, sum e^(max - m) + sum' e^(max' - m))        m = the larger of max and max'
//! ```
//!
//! Each thread has the pair of its columns; the pairs of the lanes of a warp, of the warps and of the thread blocks of a cluster then become one, in one
//! exchange each.

#[cfg(target_feature = "sm_90a")]
use cuda_std::cluster;
use cuda_std::{math, shared, thread, warp};
#[cfg(target_feature = "sm_90a")]
use kernel_spec::families::rows::MAX_SHARERS;

use crate::operators::row::{Columns, Config};
use crate::operators::sums::Sums;
use crate::parts::element::Element;

/// Maximum of some numbers, and the sum of their [`weights`](weight) against it.
#[derive(Clone, Copy)]
pub struct Online {
    /// Minus infinity where no number was seen.
    pub max: f32,
    /// 0 where none was seen, at least 1 where one was, NaN where one of them was NaN or plus infinity.
    pub sum: f32,
}

/// `2^((x - base) factor)`: the difference first, which is small and all but exact where it counts, however large the two are.
#[inline(always)]
pub fn weight(x: f32, base: f32, factor: f32) -> f32 {
    math::exp2((x - base) * factor)
}

impl Online {
    /// Of no numbers.
    pub const NONE: Online = Online { max: f32::NEG_INFINITY, sum: 0.0 };

    /// What weights are measured against: the maximum, or 0 where that would make a difference of two infinities.
    #[inline(always)]
    pub fn base(&self) -> f32 {
        if self.max == f32::NEG_INFINITY { 0.0 } else { self.max }
    }

    /// The same numbers, measured against a maximum that is no smaller.
    #[inline(always)]
    pub fn raised(self, max: f32, factor: f32) -> Online {
        let raised = Online { max, sum: self.sum };
        Online { sum: self.sum * weight(self.max, raised.base(), factor), ..raised }
    }

    /// The pair of `lanes` neighbours, a power of two up to 32, in all of them.
    ///
    /// # Safety
    /// Converged warp.
    #[inline(always)]
    pub unsafe fn over_lanes(self, lanes: u32, factor: f32) -> Online {
        let mut max = self.max;
        // SAFETY: the caller guarantees convergence.
        unsafe {
            let mut distance = lanes / 2;
            while distance > 0 {
                max = math::max(max, warp::butterfly(max, distance));
                distance /= 2;
            }
            let mut all = self.raised(max, factor);
            distance = lanes / 2;
            while distance > 0 {
                all.sum += warp::butterfly(all.sum, distance);
                distance /= 2;
            }
            all
        }
    }
}

impl Sums {
    /// The pair of all threads that share a row, in all of these. It takes the place of a sum of two numbers, see [`Sums::over`].
    ///
    /// # Safety
    /// As for [`Sums::over`].
    #[inline(always)]
    pub unsafe fn online<C: Config>(&mut self, own: Online, factor: f32) -> Online {
        // SAFETY: the caller guarantees convergence and shared memory, and the barriers order it.
        unsafe {
            let mut all = own.over_lanes(const { if C::ROW_THREADS < 32 { C::ROW_THREADS } else { 32 } }, factor);
            let warps = const { C::ROW_THREADS / 32 };
            if warps > 1 {
                // A pair a warp; then a pair a lane, and the same again.
                let place = self.warps_place::<C>();
                if thread::lane() == 0 {
                    shared::store_f32x2(place + thread::index() / 32 * 8, [all.max, all.sum]);
                }
                self.sync_row::<C>();
                let [max, sum] = shared::load_f32x2(place + (self.in_block * warps + thread::lane() % warps) * 8);
                all = Online { max, sum }.over_lanes(warps, factor);
            }
            #[cfg(target_feature = "sm_90a")]
            if C::CLUSTER {
                let place = self.give_to_all::<C, 2>([all.max, all.sum]);
                let rank = thread::lane() % MAX_SHARERS;
                all = Online::NONE;
                if rank < cluster::size() {
                    let [max, sum] = shared::load_f32x2(place + rank * 8);
                    all = Online { max, sum };
                }
                all = all.over_lanes(MAX_SHARERS, factor);
            }
            self.next::<C>();
            all
        }
    }
}

impl Columns {
    /// A number of an element of a vector, and minus infinity, which counts for nothing, behind the last column; see [`Columns::or_zero`].
    #[inline(always)]
    pub fn or_minus_infinity<C: Config>(&self, vector: usize, element: usize, x: f32) -> f32 {
        math::within_or(x, Self::ahead::<C>(vector) + element as u32, self.room, f32::NEG_INFINITY)
    }

    /// The columns that the thread has so many tiles later.
    #[inline(always)]
    pub fn later<C: Config>(self, tiles: u32) -> Columns {
        let columns = tiles * const { C::TILE.columns() };
        Columns { first: self.first + columns, room: self.room.saturating_sub(columns), ..self }
    }

    /// Whether so many vectors of the thread are all in front of the last column.
    #[inline(always)]
    pub fn is_whole<C: Config>(&self, vectors: usize) -> bool {
        self.room >= Self::ahead::<C>(vectors - 1) + C::CHUNK
    }

    /// [`Columns::load`] of the row's own type, as the bits of the elements: half the registers while they are on their way, and after.
    ///
    /// # Safety
    /// As for [`Columns::load`].
    #[inline(always)]
    pub unsafe fn load_bits<C: Config, const V: usize>(&self, start: u64) -> [[u32; 4]; V] {
        let base = self.base(start, C::T::BYTES);
        let mut words = [[0; 4]; V];
        // SAFETY: passed on.
        unsafe {
            for v in 0..V {
                // An element that was widened is rounded to itself.
                words[v] = if self.aligned {
                    self.load_words::<C>(base, v)
                } else {
                    C::T::round_chunk(self.load_elements::<C, C::T>(base, v))
                };
            }
        }
        words
    }
}
