//! What the warps of v1 tell each other through shared memory: row maxima, row sums and partial outputs.
//!
//! | step | every warp writes | barrier | every warp reads |
//! | --- | --- | --- | --- |
//! | [`Exchange::max`] | the maxima of its keys, all rows | yes | all warps' maxima |
//! | [`Exchange::sum`] | the sums of its keys, all rows | yes | all warps' sums |
//! | [`Exchange::columns`] | its partial output, all rows and dims | yes | all warps' partial outputs of its own dims |
//!
//! A buffer is written again only after the barriers of the other two, so nobody overwrites what is still being read.

use cuda_std::{math, shared, sync, thread};
use kernel_spec::layout::{fragment_col, fragment_row};

use crate::tile::{RegTile, RowValues};

/// The exchange of `WARPS` warps that each hold all rows of a query block, `M` fragments of 16.
pub struct Exchange<const WARPS: usize, const M: usize, const HEAD_DIM: usize> {
    partial: u32,
    stats: u32,
    warp: u32,
}

impl<const WARPS: usize, const M: usize, const HEAD_DIM: usize> Exchange<WARPS, M, HEAD_DIM> {
    const ROWS: u32 = 16 * M as u32;

    /// The exchange through shared memory at `address`: `WARPS * 16 M * (HEAD_DIM + 2)` floats.
    #[inline(always)]
    pub fn at(address: u32, warp: u32) -> Self {
        let partial_bytes = WARPS as u32 * Self::ROWS * HEAD_DIM as u32 * 4;
        Exchange { partial: address, stats: address + partial_bytes, warp }
    }

    /// Maximum of every row over all warps.
    ///
    /// # Safety
    /// All threads of the block, converged.
    #[inline(always)]
    pub unsafe fn max(&self, own: &RowValues<M>) -> RowValues<M> {
        // SAFETY: passed on.
        unsafe { self.combine(0, own, math::max) }
    }

    /// Sum of every row over all warps.
    ///
    /// # Safety
    /// All threads of the block, converged.
    #[inline(always)]
    pub unsafe fn sum(&self, own: &RowValues<M>) -> RowValues<M> {
        // SAFETY: passed on.
        unsafe { self.combine(1, own, |a, b| a + b) }
    }

    #[inline(always)]
    unsafe fn combine(&self, buffer: u32, own: &RowValues<M>, f: impl Fn(f32, f32) -> f32) -> RowValues<M> {
        let lane = thread::lane();
        let address = |warp: u32, m: usize, half: usize| {
            let row = 16 * m as u32 + fragment_row(lane, 2 * half as u32);
            self.stats + ((buffer * WARPS as u32 + warp) * Self::ROWS + row) * 4
        };
        let mut result = *own;
        // SAFETY: inside the buffer; the barrier stands between the writes and the reads.
        unsafe {
            for m in 0..M {
                for half in 0..2 {
                    // The four lanes of a quad hold the same row.
                    if lane % 4 == 0 {
                        shared::store_f32(address(self.warp, m, half), own.0[m][half]);
                    }
                }
            }
            sync::block();
            for m in 0..M {
                for half in 0..2 {
                    // Every warp combines in the same order, so all get the same bits.
                    let mut value = shared::load_f32(address(0, m, half));
                    for warp in 1..WARPS as u32 {
                        value = f(value, shared::load_f32(address(warp, m, half)));
                    }
                    result.0[m][half] = value;
                }
            }
        }
        result
    }

    /// Sum of all warps' partial outputs (`O` fragments of 8 dims) in this warp's share of the dims (`N = O / WARPS` fragments).
    ///
    /// # Safety
    /// All threads of the block, converged.
    #[inline(always)]
    pub unsafe fn columns<const O: usize, const N: usize>(&self, partial: &RegTile<M, O>) -> RegTile<M, N> {
        const { assert!(O == N * WARPS, "every warp owns the same number of dims") };
        let lane = thread::lane();
        let address = |warp: u32, m: usize, n: u32, half: usize| {
            let row = 16 * m as u32 + fragment_row(lane, 2 * half as u32);
            let col = 8 * n + fragment_col(lane, 0);
            // Rows 32 bytes apart modulo 128: the eight rows of a fragment would meet in the same banks.
            self.partial + ((warp * Self::ROWS + row) * HEAD_DIM as u32 + (col ^ (row % 4 * 8))) * 4
        };
        let mut result = RegTile::zero();
        // SAFETY: inside the buffer; the barrier stands between the writes and the reads.
        unsafe {
            for m in 0..M {
                for n in 0..O {
                    for half in 0..2 {
                        let pair = [partial.0[m][n][2 * half], partial.0[m][n][2 * half + 1]];
                        shared::store_f32x2(address(self.warp, m, n as u32, half), pair);
                    }
                }
            }
            sync::block();
            for m in 0..M {
                for n in 0..N {
                    for half in 0..2 {
                        let col = self.warp * N as u32 + n as u32;
                        for warp in 0..WARPS as u32 {
                            let pair = shared::load_f32x2(address(warp, m, col, half));
                            result.0[m][n][2 * half] += pair[0];
                            result.0[m][n][2 * half + 1] += pair[1];
                        }
                    }
                }
            }
        }
        result
    }
}
