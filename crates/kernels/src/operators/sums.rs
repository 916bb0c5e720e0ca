//! Sums over a row: over the columns of a thread, the lanes of a warp, the warps, the thread blocks, each in one order, so that every thread ends up with
//! the same bits.

#[cfg(target_feature = "sm_90a")]
use cuda_std::cluster;
use cuda_std::{shared, sync, thread, warp};
#[cfg(target_feature = "sm_90a")]
use kernel_spec::families::rows::MAX_SHARERS;

use crate::operators::row::{Config, Seat};

/// Sums over rows, one after the other.
pub struct Sums {
    /// Which of two places in shared memory comes next. One barrier for each sum is then enough: whoever writes to a place again has passed the
    /// barrier of the sum between, which nobody passes who still reads.
    pub(super) turn: u32,
    /// Which of the rows of the thread block.
    pub(super) in_block: u32,
    /// Thread blocks that share a row.
    #[cfg(target_feature = "sm_90a")]
    pub(super) sharers: u32,
    /// Which of them this one is.
    #[cfg(target_feature = "sm_90a")]
    rank: u32,
}

impl Sums {
    /// None yet.
    ///
    /// # Safety
    /// All threads of the cluster call it, converged: none writes to the memory of another before that has begun.
    #[inline(always)]
    pub unsafe fn new<C: Config>(seat: &Seat) -> Sums {
        #[cfg(target_feature = "sm_90a")]
        if C::CLUSTER {
            // SAFETY: passed on.
            unsafe { cluster::sync() };
        }
        Sums {
            turn: 0,
            in_block: seat.in_block,
            #[cfg(target_feature = "sm_90a")]
            sharers: seat.sharers,
            #[cfg(target_feature = "sm_90a")]
            rank: seat.rank,
        }
    }

    /// Each number's sum over the threads that share a row, in all of these.
    ///
    /// # Safety
    /// All threads of the block, and of its cluster, call it, converged, with the shared memory that the row of the list asks for.
    #[inline(always)]
    pub unsafe fn over<C: Config, const N: usize>(&mut self, mut values: [f32; N]) -> [f32; N] {
        let lanes = const { if C::ROW_THREADS < 32 { C::ROW_THREADS } else { 32 } };
        let mut distance = lanes / 2;
        // SAFETY: the caller guarantees convergence and shared memory, and the barriers order it.
        unsafe {
            while distance > 0 {
                for i in 0..N {
                    values[i] += warp::butterfly(values[i], distance);
                }
                distance /= 2;
            }
            let warps = const { C::ROW_THREADS / 32 };
            if warps > 1 {
                let place = self.warps_place::<C>();
                let all_warps = const { C::TILE.threads / 32 };
                if thread::lane() == 0 {
                    for i in 0..N {
                        shared::store_f32(place + (i as u32 * all_warps + thread::index() / 32) * 4, values[i]);
                    }
                }
                self.sync_row::<C>();
                for i in 0..N {
                    let first = place + (i as u32 * all_warps + self.in_block * warps) * 4;
                    if warps == 2 {
                        let [a, b] = shared::load_f32x2(first);
                        values[i] = a + b;
                    } else {
                        let mut sum = 0.0;
                        for four in 0..warps / 4 {
                            let [a, b, c, d] = shared::load_f32x4(first + four * 16);
                            sum += (a + b) + (c + d);
                        }
                        values[i] = sum;
                    }
                }
            }
            #[cfg(target_feature = "sm_90a")]
            if C::CLUSTER {
                let place = self.give_to_all::<C, N>(values);
                // Eight lanes have those of a rank each, and add them: fewer registers than if each lane had all.
                let rank = thread::lane() % MAX_SHARERS;
                for i in 0..N {
                    values[i] = 0.0;
                    if rank < self.sharers {
                        values[i] = shared::load_f32(place + rank * 8 + i as u32 * 4);
                    }
                    let mut distance = MAX_SHARERS / 2;
                    while distance > 0 {
                        values[i] += warp::butterfly(values[i], distance);
                        distance /= 2;
                    }
                }
            }
        }
        self.turn ^= 1;
        values
    }

    /// Where the warps of a thread block leave two numbers each, in this turn.
    #[inline(always)]
    pub(super) fn warps_place<C: Config>(&self) -> u32 {
        shared::dynamic() + const { C::SUMS.warps } + self.turn * const { 8 * (C::TILE.threads / 32) }
    }

    /// Waits for the threads of a row: rows of the same thread block do not wait for each other.
    ///
    /// # Safety
    /// All of them call it, converged.
    #[inline(always)]
    pub(super) unsafe fn sync_row<C: Config>(&self) {
        // SAFETY: passed on.
        unsafe {
            match const { C::TILE.block_rows() } {
                1 => sync::block(),
                // Numbers that are constants: with others a thread block reserves all barriers, and four of them are all that a multiprocessor has room for.
                2 if self.in_block == 0 => sync::named(1, C::ROW_THREADS),
                2 => sync::named(2, C::ROW_THREADS),
                _ => const { assert!(C::TILE.block_rows() <= 2 || C::ROW_THREADS <= 32, "a barrier for each row") },
            }
        }
    }

    /// Gives a thread block's numbers to all of its cluster, where those of a rank are 8 bytes behind those of the rank before. A store goes on its way,
    /// where a read would have to come back.
    ///
    /// # Safety
    /// All threads of the cluster call it, converged.
    #[cfg(target_feature = "sm_90a")]
    #[inline(always)]
    pub(super) unsafe fn give_to_all<C: Config, const N: usize>(&self, values: [f32; N]) -> u32 {
        let place = shared::dynamic() + const { C::SUMS.blocks } + self.turn * const { 8 * MAX_SHARERS };
        // SAFETY: passed on; no other thread block writes to the place of this one.
        unsafe {
            if thread::index() < self.sharers {
                let to = cluster::map(place + self.rank * 8, thread::index());
                for i in 0..N {
                    cluster::store_f32(to + i as u32 * 4, values[i]);
                }
            }
            cluster::sync();
        }
        place
    }
}
