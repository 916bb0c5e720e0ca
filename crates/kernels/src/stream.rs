//! The pipeline of key and value tiles: `k_0, v_0, k_1, v_1, ..` pass through a ring of shared-memory slots.
//!
//! | step | who | what |
//! | --- | --- | --- |
//! | wait | every thread | its own copies of the next tile have landed |
//! | barrier | all threads | everybody's copies have landed, and everybody is done with the tile before |
//! | load | all threads | start copying `RING - 1` tiles ahead, into the slot that just became free |
//! | use | warps | multiply |
//!
//! With two slots, keys and values alternate: `v_j` arrives under `q k_j^T`, `k_{j+1}` under the softmax and `p v_j`.

use cuda_std::{copy, sync};
use kernel_spec::KvBlocks;

use crate::element::Element;
use crate::tile::{GlobalRows, SharedTile};

/// Key and value tiles of `KV_BLOCK` rows, on their way through `RING` slots, loaded by `THREADS` threads.
pub struct KvStream<T, const KV_BLOCK: usize, const HEAD_DIM: usize, const THREADS: usize, const RING: usize> {
    k: GlobalRows<T>,
    v: GlobalRows<T>,
    slots: u32,
    blocks: KvBlocks,
}

/// Place of a tile in its pair.
const KEYS: u32 = 0;
const VALUES: u32 = 1;

impl<T: Element, const KV_BLOCK: usize, const HEAD_DIM: usize, const THREADS: usize, const RING: usize>
    KvStream<T, KV_BLOCK, HEAD_DIM, THREADS, RING>
{
    /// Starts loading the first tiles of `blocks`, together with whatever copies the threads have already started.
    ///
    /// # Safety
    /// All threads of the block, converged; `slots` is the shared address of `RING` tiles.
    #[inline(always)]
    pub unsafe fn start(k: GlobalRows<T>, v: GlobalRows<T>, slots: u32, blocks: KvBlocks) -> Self {
        const { assert!(RING >= 2, "one slot is read while the next is written") };
        let stream = KvStream { k, v, slots, blocks };
        for tile in 0..RING as u32 - 1 {
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
    pub unsafe fn keys(&self, i: u32) -> SharedTile<T, KV_BLOCK, HEAD_DIM> {
        // SAFETY: passed on.
        unsafe { self.take(i, KEYS) }
    }

    /// Waits for the values of visit `i` and frees the slot of the tile before.
    ///
    /// # Safety
    /// As for [`Self::keys`].
    #[inline(always)]
    pub unsafe fn values(&self, i: u32) -> SharedTile<T, KV_BLOCK, HEAD_DIM> {
        // SAFETY: passed on.
        unsafe { self.take(i, VALUES) }
    }

    #[inline(always)]
    unsafe fn take(&self, i: u32, place: u32) -> SharedTile<T, KV_BLOCK, HEAD_DIM> {
        // RING - 1 groups are on their way; the oldest is the tile wanted now.
        match RING {
            2 => copy::wait_group::<0>(),
            3 => copy::wait_group::<1>(),
            _ => copy::wait_group::<2>(),
        }
        // SAFETY: passed on.
        unsafe {
            sync::block();
            self.load(i, place + RING as u32 - 1);
        }
        self.slot(i, place)
    }

    /// Starts loading the tile `ahead` places after the keys of visit `i`, if there is one.
    #[inline(always)]
    unsafe fn load(&self, i: u32, ahead: u32) {
        let visit = i + ahead / 2;
        if visit < self.blocks.count() {
            let source = if ahead % 2 == KEYS { &self.k } else { &self.v };
            // SAFETY: passed on.
            unsafe { self.slot(i, ahead).load::<THREADS>(source, self.blocks.visit(visit) * KV_BLOCK as u32) };
        }
        // Also when nothing was started, so that waits count alike to the end.
        copy::commit_group();
    }

    #[inline(always)]
    fn slot(&self, i: u32, ahead: u32) -> SharedTile<T, KV_BLOCK, HEAD_DIM> {
        // Two slots make this a constant: keys in the first, values in the second.
        let slot = (2 * i + ahead) % RING as u32;
        SharedTile::at(self.slots + slot * SharedTile::<T, KV_BLOCK, HEAD_DIM>::BYTES)
    }
}
