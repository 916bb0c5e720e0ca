//! The tiles of sequences, each as often as keys are split, listed for [`v3`](crate::attention::v3): the longest first, so that the thread
//! blocks, which take tiles in turn, end together.
//!
//! One thread block sorts them by their length, in steps over the keys, as far as [`Memory::LENGTHS`] lengths can be told apart: it counts the
//! tiles of each length, gives each length its places, and puts the tiles there. The order among equals differs from run to run; what is
//! computed does not depend on it.

use cuda_std::{copy, shared, sync, thread, warp};
use kernel_spec::MAX_ROWS;
use kernel_spec::families::sequences::memory::Tiles as Memory;
use kernel_spec::families::sequences::{TileEntry, TilesParams};

use crate::attention::sequences::block::part;
use crate::attention::sequences::place::sum_up_to;
use crate::attention::sequences::sequence::{CachePlace, query_rows};

/// Calls `visit` with the entry of every tile, and the steps that it takes. A warp has sequences of its own, and a lane tiles of these.
#[inline(always)]
unsafe fn for_each_tile<const WARPS: u32>(p: &TilesParams, mut visit: impl FnMut(TileEntry, u32)) {
    // SAFETY: tiles have rows, and fewer than a tensor. Without this, divisions could panic, by -1 too, and lanes would part before it.
    unsafe { core::hint::assert_unchecked(p.q_block > 0 && p.kv_block > 0 && p.kv_block < MAX_ROWS) };
    // SAFETY: sequences below the number of them.
    unsafe {
        for sequence in (thread::index() / 32..p.table.batch).step_by(WARPS as usize) {
            let [q_first, q_rows] = query_rows(&p.table, p.q_rows, sequence);
            let q_first = q_first + sequence * p.q_step;
            let cache = CachePlace::of(&p.table, p.kv_rows, sequence);
            let [from, end] = cache.keys(&p.table, sequence);
            let (kv_first, kv_rows) = (cache.entry * p.kv_step + cache.base + from, end - from);
            let first_place = if p.place_step == 0 { q_first } else { sequence * p.place_step };
            let tiles = (q_rows << p.packed_log2).div_ceil(p.q_block);
            for index in (thread::lane()..tiles * p.splits.value).step_by(32) {
                let (tile, split) = p.splits.split(index);
                let first_row = tile * p.q_block;
                let [first, rows] = [first_row, p.q_block].map(|rows| rows >> p.packed_log2);
                let all = p.band.kv_blocks(first, rows, q_rows, kv_rows, p.kv_block);
                let own = part(all, split, &p.splits, p.split_keys, p.kv_block);
                let place = first_place + split * p.split_step;
                let (first_block, end_block) = (own.first, own.end);
                let entry = TileEntry {
                    q_first,
                    q_rows,
                    kv_first,
                    kv_rows,
                    first_row,
                    sequence,
                    first_block,
                    end_block,
                    place,
                    unused: [0; 3],
                };
                visit(entry, own.count());
            }
        }
    }
}

/// The only thread block.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn list<const WARPS: u32>(p: &TilesParams) {
    let memory = const { Memory::places() };
    let (counts, longest) = (shared::dynamic() + memory.counts, shared::dynamic() + memory.longest);
    let count_of = |length: u32| counts + length * 4;
    // SAFETY: inside the shared memory, and the list; barriers stand between the passes.
    unsafe {
        for length in (thread::index()..Memory::LENGTHS).step_by(32 * WARPS as usize) {
            shared::store_u32(count_of(length), 0);
        }
        if thread::index() == 0 {
            shared::store_u32(longest, 1);
        }
        sync::block();
        for_each_tile::<WARPS>(p, |_, steps| shared::raise(longest, steps));
        sync::block();
        let most = shared::load_u32(longest);
        core::hint::assert_unchecked(most > 0);
        // Length 0 is the longest.
        let length_of = |steps: u32| {
            let length = (most - steps.min(most)) as u64 * (Memory::LENGTHS - 1) as u64 / most as u64;
            length as u32
        };
        for_each_tile::<WARPS>(p, |_, steps| {
            shared::fetch_add(count_of(length_of(steps)), 1);
        });
        sync::block();
        if thread::index() < 32 {
            first_places(p, counts);
        }
        sync::block();
        for_each_tile::<WARPS>(p, |entry, steps| {
            let place = shared::fetch_add(count_of(length_of(steps)), 1);
            // As many as fit: a list that the host has made room for holds all of them.
            if place < p.room {
                let to = p.tiles + (1 + place as u64) * size_of::<TileEntry>() as u64;
                copy::store_u32x4(to, [entry.q_first, entry.q_rows, entry.kv_first, entry.kv_rows]);
                copy::store_u32x4(to + 16, [entry.first_row, entry.sequence, entry.first_block, entry.end_block]);
                copy::store_u32(to + 32, entry.place);
            }
        });
    }
}

/// Turns counts into first places, and writes down how many tiles there are.
///
/// # Safety
/// The first warp, converged, between the barriers.
#[inline(always)]
unsafe fn first_places(p: &TilesParams, counts: u32) {
    const EACH: u32 = Memory::LENGTHS / 32;
    let own = counts + thread::lane() * EACH * 4;
    // SAFETY: inside the counts.
    unsafe {
        let mut sum = 0;
        for i in 0..EACH {
            sum += shared::load_u32(own + i * 4);
        }
        let end = sum_up_to(sum);
        let mut place = end - sum;
        for i in 0..EACH {
            let count = shared::load_u32(own + i * 4);
            shared::store_u32(own + i * 4, place);
            place += count;
        }
        let all = warp::broadcast(end, 31);
        if thread::lane() == 0 {
            copy::store_u32(p.tiles, all.min(p.room));
        }
    }
}
