//! What the warps of v1 tell each other through shared memory: row maxima, row sums and partial outputs.
//!
//! | step | every warp writes | barrier | every warp reads |
//! | --- | --- | --- | --- |
//! | [`AcrossWarps::max`] | the maxima of its keys, all rows | yes | all warps' maxima |
//! | [`AcrossWarps::sum`] | the sums of its keys, all rows | yes | all warps' sums |
//! | [`Exchange::columns`] | its partial output, all rows and dims | yes | all warps' partial outputs of its own dims |
//!
//! A buffer is written again only after the barriers of the other two, so nobody overwrites what is still being read.

use core::marker::PhantomData;

use cuda_std::{math, shared, sync, thread};
use kernel_spec::layout::{fragment_col, fragment_row};

use crate::attention::Config;
use crate::attention::online_softmax::{AcrossWarps, quad_sum};
use crate::parts::fragments::{Fragments, PerRow};

/// The exchange of the warps of a thread block that each hold all rows of a query block.
pub struct Exchange<C> {
    partial: u32,
    statistics: u32,
    warp: u32,
    config: PhantomData<C>,
}

impl<C: Config> Exchange<C> {
    const ROWS: u32 = C::ROW.q_block;
    const WARPS: u32 = C::ROW.warps;

    /// The exchange of warp `warp` through shared memory at these addresses: every warp's partial output, a row as long as the
    /// output's, and two floats for every warp and row.
    #[inline(always)]
    pub fn at(partial: u32, statistics: u32, warp: u32) -> Self {
        Exchange { partial, statistics, warp, config: PhantomData }
    }

    #[inline(always)]
    unsafe fn combine<R: PerRow>(&self, buffer: u32, own: &R, f: impl Fn(f32, f32) -> f32) -> R {
        let lane = thread::lane();
        let address = |warp: u32, m: usize, half: usize| {
            let row = 16 * m as u32 + fragment_row(lane, 2 * half as u32);
            self.statistics + ((buffer * Self::WARPS + warp) * Self::ROWS + row) * 4
        };
        let mut result = *own;
        // SAFETY: inside the buffer; the barrier stands between the writes and the reads.
        unsafe {
            for m in 0..R::M {
                for half in 0..2 {
                    // The four lanes of a quad hold the same row.
                    if lane % 4 == 0 {
                        shared::store_f32(address(self.warp, m, half), own.at(m, half));
                    }
                }
            }
            sync::block();
            for m in 0..R::M {
                for half in 0..2 {
                    // Every warp combines in the same order, so all get the same bits.
                    let mut value = shared::load_f32(address(0, m, half));
                    for warp in 1..Self::WARPS {
                        value = f(value, shared::load_f32(address(warp, m, half)));
                    }
                    *result.at_mut(m, half) = value;
                }
            }
        }
        result
    }

    /// Sum of all warps' partial outputs in this warp's share of the dims.
    ///
    /// # Safety
    /// All threads of the block, converged.
    #[inline(always)]
    pub unsafe fn columns<P: Fragments, S: Fragments>(&self, partial: &P) -> S {
        const { assert!(P::N == S::N * C::ROW.warps as usize, "every warp owns the same number of dims") };
        let lane = thread::lane();
        let address = |warp: u32, m: usize, n: u32, half: usize| {
            let row = 16 * m as u32 + fragment_row(lane, 2 * half as u32);
            let col = 8 * n + fragment_col(lane, 0);
            // Rows 32 bytes apart modulo 128: the eight rows of a fragment would meet in the same banks.
            self.partial + ((warp * Self::ROWS + row) * C::ROW.dim_v + (col ^ (row % 4 * 8))) * 4
        };
        let mut result = S::zero();
        // SAFETY: inside the buffer; the barrier stands between the writes and the reads.
        unsafe {
            for m in 0..S::M {
                for n in 0..P::N {
                    for half in 0..2 {
                        let pair = [partial.at(m, n)[2 * half], partial.at(m, n)[2 * half + 1]];
                        shared::store_f32x2(address(self.warp, m, n as u32, half), pair);
                    }
                }
            }
            sync::block();
            for m in 0..S::M {
                for n in 0..S::N {
                    for half in 0..2 {
                        let col = self.warp * S::N as u32 + n as u32;
                        for warp in 0..Self::WARPS {
                            let pair = shared::load_f32x2(address(warp, m, col, half));
                            result.at_mut(m, n)[2 * half] += pair[0];
                            result.at_mut(m, n)[2 * half + 1] += pair[1];
                        }
                    }
                }
            }
        }
        result
    }
}

impl<C: Config, R: PerRow> AcrossWarps<R> for Exchange<C> {
    #[inline(always)]
    unsafe fn max(&self, own: R) -> R {
        // SAFETY: passed on.
        unsafe { self.combine(0, &own, math::max) }
    }

    #[inline(always)]
    unsafe fn sum(&self, own: R) -> R {
        // SAFETY: passed on.
        unsafe { self.combine(1, &quad_sum(&own), |a, b| a + b) }
    }
}
