//! Rings of shared-memory buffers between a loading warp and the warpgroups that multiply.
//!
//! | barrier of a buffer | who arrives | who waits |
//! | --- | --- | --- |
//! | full | the loading thread, once, and the copy engine with its bytes | readers, before they read |
//! | empty | every reader, once, after its last read | the loading warp, before it loads again |

use core::marker::PhantomData;

use cuda_std::{cluster, mbarrier};

/// The buffers of a ring.
pub trait Buffers {
    /// How many there are.
    const STAGES: u32;
    /// Bytes of one.
    const BYTES: u32;
    /// Bytes that arrive for one: its own, and those that lie elsewhere.
    const EXPECTED: u32 = Self::BYTES;
}

/// Buffers that every role walks over in the same order, each with its own copy of this struct.
pub struct Ring<B> {
    buffers: u32,
    barriers: u32,
    stage: u32,
    parity: u32,
    kind: PhantomData<B>,
}

impl<B> Clone for Ring<B> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Ring<B> {}

/// Bytes of the two barriers of a buffer.
pub const BARRIER_PAIR: u32 = 16;

/// Offset of the second of them.
const EMPTY: u32 = 8;

impl<B: Buffers> Ring<B> {
    /// The ring over the buffers at `buffers`, with barriers at `barriers`.
    #[inline(always)]
    pub fn new(buffers: u32, barriers: u32) -> Self {
        Ring { buffers, barriers, stage: 0, parity: 0, kind: PhantomData }
    }

    /// Sets up the barriers for one loader and `readers` readers.
    ///
    /// # Safety
    /// One thread, before anybody uses the ring.
    #[inline(always)]
    pub unsafe fn init(&self, readers: u32) {
        // SAFETY: passed on.
        unsafe { self.init_shared(1, readers) }
    }

    /// Sets up the barriers for `writers` that fill a buffer together, each with a call of [`Self::announce_none`] by its elected
    /// thread, and `readers` readers.
    ///
    /// # Safety
    /// One thread, before anybody uses the ring.
    #[inline(always)]
    pub unsafe fn init_shared(&self, writers: u32, readers: u32) {
        for stage in 0..B::STAGES {
            let full = self.barriers + BARRIER_PAIR * stage;
            // SAFETY: passed on.
            unsafe {
                mbarrier::init(full, writers);
                mbarrier::init(full + EMPTY, readers);
            }
        }
    }

    /// Shared address of the current buffer.
    #[inline(always)]
    pub fn buffer(&self) -> u32 {
        self.buffers + self.stage * B::BYTES
    }

    #[inline(always)]
    fn full(&self) -> u32 {
        self.barriers + BARRIER_PAIR * self.stage
    }

    /// Index of the current buffer.
    #[inline(always)]
    pub fn stage(&self) -> u32 {
        self.stage
    }

    /// Loader: waits until the current buffer is free.
    ///
    /// # Safety
    /// The loading warp, converged.
    #[inline(always)]
    pub unsafe fn wait_free(&self) {
        // SAFETY: passed on. In the first round the wait returns at once: a fresh barrier has completed parity 1.
        unsafe { mbarrier::wait(self.full() + EMPTY, self.parity ^ 1) };
    }

    /// Loader: announces the bytes that are about to fill the current buffer; returns the barrier to complete them on.
    ///
    /// # Safety
    /// The loading warp, converged, with one `elected` thread, after [`Self::wait_free`].
    #[inline(always)]
    pub unsafe fn announce(&self, elected: bool) -> u32 {
        // SAFETY: passed on.
        unsafe { mbarrier::arrive_expect_if(self.full(), B::EXPECTED, elected) };
        self.full()
    }

    /// Loader: tells the readers to go on without a single byte in the current buffer.
    ///
    /// # Safety
    /// As for [`Self::announce`].
    #[inline(always)]
    pub unsafe fn announce_none(&self, elected: bool) {
        // SAFETY: passed on.
        unsafe { mbarrier::arrive_if(self.full(), elected) };
    }

    /// Reader: waits until the current buffer is full.
    ///
    /// # Safety
    /// Any reading thread.
    #[inline(always)]
    pub unsafe fn wait(&self) {
        // SAFETY: passed on.
        unsafe { mbarrier::wait(self.full(), self.parity) };
    }

    /// Reader: frees the current buffer, by its `elected` threads, of which [`Self::init`] was told.
    ///
    /// # Safety
    /// After the reader's last access.
    #[inline(always)]
    pub unsafe fn release(&self, elected: bool) {
        // SAFETY: passed on.
        unsafe { mbarrier::arrive_if(self.full() + EMPTY, elected) };
    }

    /// [`Self::release`] of a buffer that thread blocks of a cluster fill together: its `elected` threads free it for the thread block `rank`.
    ///
    /// # Safety
    /// As for [`Self::release`]; the thread block has not exited.
    #[inline(always)]
    pub unsafe fn release_for(&self, rank: u32, elected: bool) {
        // SAFETY: passed on.
        unsafe { mbarrier::arrive_cluster_if(cluster::map(self.full() + EMPTY, rank), elected) };
    }

    /// Moves on to the next buffer.
    #[inline(always)]
    pub fn advance(&mut self) {
        self.stage += 1;
        if self.stage == B::STAGES {
            self.stage = 0;
            self.parity ^= 1;
        }
    }
}
