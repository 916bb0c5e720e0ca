//! The pipeline of key and value tiles: `k_0, v_0, k_1, v_1, ..` pass through a ring of shared-memory slots.
//!
//! | step | who | what |
//! | --- | --- | --- |
//! | wait | every thread | its own copies of the next tile have landed |
//! | barrier | all threads | everybody's copies have landed, and everybody is done with the tile before |
//! | load | all threads | start copying `SLOTS - 1` tiles ahead, into the slot that just became free |
//! | use | warps | multiply |
//!
//! The threads are those of a thread block, or of a warp that has keys of its own.
//!
//! With two slots, keys and values alternate: `v_j` arrives under `q k_j^T`, `k_{j+1}` under the softmax and `p v_j`.

use core::marker::PhantomData;

use cuda_std::copy;
use kernel_spec::KvBlocks;

use crate::parts::rows::RowSource;
use crate::parts::shared_tile::{SharedMatrix, ThreadBlock};

/// The tiles of a stream and the slots that they pass through.
pub trait StreamConfig: ThreadBlock {
    /// A tile of keys.
    type K: SharedMatrix;
    /// A tile of values, of as many rows.
    type V: SharedMatrix;
    /// Slots, from 2 to 6.
    const SLOTS: u32;
    /// Bytes from one slot to the next: either tile fits.
    const SLOT_BYTES: u32 = if Self::K::BYTES > Self::V::BYTES { Self::K::BYTES } else { Self::V::BYTES };
}

/// Key and value tiles on their way through the slots.
pub struct KvStream<C, K, V> {
    k: K,
    v: V,
    slots: u32,
    blocks: KvBlocks,
    config: PhantomData<C>,
}

/// Place of a tile in its pair.
const KEYS: u32 = 0;
const VALUES: u32 = 1;

impl<C: StreamConfig, K: RowSource, V: RowSource> KvStream<C, K, V> {
    /// Starts loading the first tiles of `blocks`, together with whatever copies the threads have already started.
    ///
    /// # Safety
    /// All threads of the block, converged; `slots` is the shared address of the slots.
    #[inline(always)]
    pub unsafe fn start(k: K, v: V, slots: u32, blocks: KvBlocks) -> Self {
        const { assert!(C::SLOTS >= 2 && C::SLOTS <= 6, "one slot is read while the next is written; waits count to 4") };
        const { assert!(C::K::ROWS == C::V::ROWS, "keys and values come in pairs") };
        let stream = KvStream { k, v, slots, blocks, config: PhantomData };
        for tile in 0..C::SLOTS - 1 {
            // SAFETY: passed on.
            unsafe { stream.load(0, tile) };
        }
        stream
    }

    /// Waits for the keys of visit `i` and frees the slot of the tile before.
    ///
    /// # Safety
    /// All threads of the block, converged, `keys(i)` and `values(i)` in turn for every visit `i` of the blocks.
    #[inline(always)]
    pub unsafe fn keys(&self, i: u32) -> C::K {
        // SAFETY: passed on.
        unsafe { self.turn(i, KEYS) };
        C::K::at(self.slot(i, KEYS))
    }

    /// Waits for the values of visit `i` and frees the slot of the tile before.
    ///
    /// # Safety
    /// As for [`Self::keys`].
    #[inline(always)]
    pub unsafe fn values(&self, i: u32) -> C::V {
        // SAFETY: passed on.
        unsafe { self.turn(i, VALUES) };
        C::V::at(self.slot(i, VALUES))
    }

    /// Waits for the copies that this thread had started before the stream, and committed.
    #[inline(always)]
    pub fn wait_for_older(&self) {
        match C::SLOTS {
            2 => copy::wait_group::<1>(),
            3 => copy::wait_group::<2>(),
            4 => copy::wait_group::<3>(),
            5 => copy::wait_group::<4>(),
            _ => copy::wait_group::<5>(),
        }
    }

    #[inline(always)]
    unsafe fn turn(&self, i: u32, place: u32) {
        // SLOTS - 1 groups are on their way; the oldest is the tile wanted now.
        match C::SLOTS {
            2 => copy::wait_group::<0>(),
            3 => copy::wait_group::<1>(),
            4 => copy::wait_group::<2>(),
            5 => copy::wait_group::<3>(),
            _ => copy::wait_group::<4>(),
        }
        // SAFETY: passed on.
        unsafe {
            C::meet();
            self.load(i, place + C::SLOTS - 1);
        }
    }

    /// Starts loading the tile `ahead` places after the keys of visit `i`, if there is one.
    #[inline(always)]
    unsafe fn load(&self, i: u32, ahead: u32) {
        let visit = i + ahead / 2;
        if visit < self.blocks.count() {
            let first_row = self.blocks.visit(visit) * C::K::ROWS as u32;
            let slot = self.slot(i, ahead);
            // SAFETY: passed on.
            unsafe {
                if ahead % 2 == KEYS {
                    C::K::at(slot).load::<C>(&self.k, first_row);
                } else {
                    C::V::at(slot).load::<C>(&self.v, first_row);
                }
            }
        }
        // Also when nothing was started, so that waits count alike to the end.
        copy::commit_group();
    }

    /// Shared address of the slot `ahead` places after that of the keys of visit `i`.
    #[inline(always)]
    fn slot(&self, i: u32, ahead: u32) -> u32 {
        // Two slots make this a constant: keys in the first, values in the second.
        self.slots + (2 * i + ahead) % C::SLOTS * C::SLOT_BYTES
    }
}
