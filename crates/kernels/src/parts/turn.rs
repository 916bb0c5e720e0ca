//! Turns of warpgroups at starting products: FlashAttention-3's ping-pong (section 3.1), on named barriers.

use cuda_std::sync;

use crate::parts::warpgroup::WARPGROUP;

/// Named barrier of the first warpgroup's turn, the next are those of the others. 0 is the block's.
pub const FIRST_TURN: u32 = 1;

/// One warpgroup's view of the turns, or of none: then nobody waits for anybody.
#[derive(Clone, Copy)]
pub struct Turn {
    own: u32,
    next: u32,
    /// A constant wherever it is asked.
    on: bool,
}

impl Turn {
    /// Threads at a turn barrier: the warpgroup that waits and the one that passes on.
    const THREADS: u32 = 2 * WARPGROUP;

    /// The view of one of so many warpgroups. The first turn is the first warpgroup's; without `on` there are no turns.
    ///
    /// # Safety
    /// All threads of the warpgroup, converged, once.
    #[inline(always)]
    pub unsafe fn new(warpgroup: u32, warpgroups: u32, on: bool) -> Self {
        let last = warpgroup + 1 == warpgroups;
        let turn =
            Turn { own: FIRST_TURN + warpgroup, next: if last { FIRST_TURN } else { FIRST_TURN + warpgroup + 1 }, on };
        if last {
            // SAFETY: passed on.
            unsafe { turn.pass_on() };
        }
        turn
    }

    /// Waits for the turn of this warpgroup.
    ///
    /// # Safety
    /// All threads of the warpgroup, converged.
    #[inline(always)]
    pub unsafe fn wait(self) {
        if self.on {
            // SAFETY: passed on.
            unsafe { sync::named(self.own, Self::THREADS) };
        }
    }

    /// Passes the turn on to the next warpgroup.
    ///
    /// # Safety
    /// As for [`Self::wait`], after it.
    #[inline(always)]
    pub unsafe fn pass_on(self) {
        if self.on {
            // SAFETY: passed on.
            unsafe { sync::arrive(self.next, Self::THREADS) };
        }
    }
}
