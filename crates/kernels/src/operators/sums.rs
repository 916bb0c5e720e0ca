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
    turn: u32,
    /// Which of the rows of the thread block.
    in_block: u32,
    /// Thread blocks that share a row, and which of them this one is.
    #[cfg(target_feature = "sm_90a")]
    sharers: [u32; 2],
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
            sharers: [seat.sharers, seat.rank],
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
            let memory = const { C::SUMS };
            let warps = const { C::ROW_THREADS / 32 };
            let all_warps = const { C::TILE.threads / 32 };
            if warps > 1 {
                let place = shared::dynamic() + memory.warps + self.turn * 8 * all_warps;
                if thread::lane() == 0 {
                    for i in 0..N {
                        shared::store_f32(place + (i as u32 * all_warps + thread::index() / 32) * 4, values[i]);
                    }
                }
                // Rows of the same thread block do not wait for each other.
                if all_warps > warps {
                    sync::named(self.in_block + 1, C::ROW_THREADS);
                } else {
                    sync::block();
                }
                for i in 0..N {
                    let first = place + i as u32 * all_warps * 4;
                    let first = if all_warps > warps { first + self.in_block * warps * 4 } else { first };
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
                // Each gives its sums to all: a store goes on its way, where a read would have to come back.
                let place = shared::dynamic() + memory.blocks + self.turn * 8 * MAX_SHARERS;
                let [sharers, rank] = self.sharers;
                if thread::index() < sharers {
                    let to = cluster::map(place + rank * 8, thread::index());
                    for i in 0..N {
                        cluster::store_f32(to + i as u32 * 4, values[i]);
                    }
                }
                cluster::sync();
                values = [0.0; N];
                for rank in 0..MAX_SHARERS {
                    if rank < sharers {
                        for i in 0..N {
                            values[i] += shared::load_f32(place + rank * 8 + i as u32 * 4);
                        }
                    }
                }
            }
        }
        self.turn ^= 1;
        values
    }
}
