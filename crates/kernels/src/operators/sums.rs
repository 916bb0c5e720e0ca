//! Sums over a row: over the columns of a thread, the lanes of a warp, the warps, the thread blocks, each in one order, so that every thread ends up with
//! the same bits.

#[cfg(target_feature = "sm_90a")]
use cuda_std::{cluster, mbarrier};
use cuda_std::{shared, sync, thread, warp};
#[cfg(target_feature = "sm_90a")]
use kernel_spec::families::rows::MAX_SHARERS;

use crate::operators::row::{Config, Seat};

/// Sums over rows, one after the other.
pub struct Sums {
    /// Which of two places in shared memory comes next, or how many sums there were, of which every other has the same place: see [`Sums::next`]. One barrier
    /// for each sum is then enough: whoever writes to a place again has passed the barrier of the sum between, which nobody passes who still reads.
    pub(super) turn: u32,
    /// Which of the rows of the thread block.
    pub(super) in_block: u32,
}

impl Sums {
    /// None yet. Early: the thread blocks of a cluster then need not wait for each other in [`Sums::meet`].
    ///
    /// # Safety
    /// All threads of the cluster call it, converged; where there is a cluster, then [`Sums::meet`], and at least one sum follows.
    #[inline(always)]
    pub unsafe fn new<C: Config>(seat: &Seat) -> Sums {
        #[cfg(target_feature = "sm_90a")]
        if C::CLUSTER {
            // SAFETY: passed on; one thread initialises what nobody uses before all have met.
            unsafe {
                if thread::index() == 0 {
                    for turn in 0..2 {
                        mbarrier::init(shared::dynamic() + const { C::SUMS.arrived } + turn * 8, 1 + seat.sharers);
                    }
                    mbarrier::fence_init();
                }
                cluster::arrive_relaxed();
            }
        }
        Sums { turn: 0, in_block: seat.in_block }
    }

    /// Waits for the thread blocks of the cluster, none of which sends anything before all are there: once, with loads on their way.
    ///
    /// # Safety
    /// All threads of the cluster call it, converged, and at least one sum follows.
    #[inline(always)]
    pub unsafe fn meet<C: Config>(&self) {
        #[cfg(target_feature = "sm_90a")]
        if C::CLUSTER {
            // SAFETY: passed on.
            unsafe { cluster::wait() };
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
                    if rank < cluster::size() {
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
        self.next::<C>();
        values
    }

    /// Which of the two places this sum has.
    #[inline(always)]
    fn place<C: Config>(&self) -> u32 {
        if C::CLUSTER { self.turn % 2 } else { self.turn }
    }

    /// Goes on to the next sum. Clusters alone count them: others need but one register for the place.
    #[inline(always)]
    pub(super) fn next<C: Config>(&mut self) {
        self.turn = if C::CLUSTER { self.turn + 1 } else { self.turn ^ 1 };
    }

    /// Where the warps of a thread block leave two numbers each, in this turn.
    #[inline(always)]
    pub(super) fn warps_place<C: Config>(&self) -> u32 {
        shared::dynamic() + const { C::SUMS.warps } + self.place::<C>() * const { 8 * (C::TILE.threads / 32) }
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

    /// Gives a thread block's numbers to all of its cluster, and waits for theirs; those of a rank are 8 bytes behind those of the rank before. They are sent,
    /// and counted where they arrive: a barrier of the cluster would wait for everything that a thread has written, rows too.
    ///
    /// A phase ends when all numbers of a turn are there, and all thread blocks have arrived. Nobody sends those of the next turn but one before: this thread
    /// block has arrived in the next turn, to which all of its threads have come, and so have read what was in the place. And nobody exits before all that is
    /// sent to him is there.
    ///
    /// # Safety
    /// All threads of the cluster call it, converged, after all threads of the row have met in this turn.
    #[cfg(target_feature = "sm_90a")]
    #[inline(always)]
    pub(super) unsafe fn give_to_all<C: Config, const N: usize>(&self, values: [f32; N]) -> u32 {
        const { assert!(N == 1 || N == 2 && C::ROW_THREADS > 32, "one number or two, of threads that have met") };
        let place = shared::dynamic() + const { C::SUMS.blocks } + self.place::<C>() * const { 8 * MAX_SHARERS };
        let arrived = shared::dynamic() + const { C::SUMS.arrived } + self.place::<C>() * 8;
        // SAFETY: passed on; no other thread block writes to the place of this one.
        unsafe {
            mbarrier::arrive_expect_if(arrived, cluster::size() * const { 4 * N as u32 }, thread::index() == 0);
            if thread::index() < cluster::size() {
                let to = cluster::map(place + cluster::rank() * 8, thread::index());
                let arrived = cluster::map(arrived, thread::index());
                if N == 2 {
                    cluster::send_f32x2(to, [values[0], values[1]], arrived);
                } else {
                    cluster::send_f32(to, values[0], arrived);
                }
                mbarrier::arrive_cluster_if(arrived, true);
            }
            mbarrier::wait(arrived, self.turn / 2 % 2);
        }
        place
    }
}
