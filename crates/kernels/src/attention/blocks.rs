//! Which keys a program on scores shows to which rows, block by block, and the lists of tiles that follow from it: see
//! `kernel_spec::families::blocks`.

use cuda_std::{copy, math, thread, warp};
use kernel_spec::families::blocks::{
    ClassesParams, HEAD_WORDS, HIDDEN, LIST_WORDS, ListsParams, MOST_KEYS, MOST_ROWS, PARTIAL, SEEN, TAKEN_WORD,
    THREADS, UNIT_KEYS, UNIT_ROWS, UNITS_OF_WARP,
};

/// Units along the rows of the largest tile.
const MOST_ROW_UNITS: u32 = MOST_ROWS / UNIT_ROWS;

/// Pairs of units that the keys of the largest tile reach into: it may start in the middle of one.
const MOST_PAIRS: u32 = MOST_KEYS / UNIT_KEYS / UNITS_OF_WARP + 1;

/// One thread block of the kernel that classifies: each warp two neighbouring units, a lane one key of them, row after row.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn classes(p: &ClassesParams) {
    let index = warp_of_grid();
    if index >= p.count {
        return;
    }
    let (rest, pair) = p.key_pairs.split(index);
    let (rest, row_unit) = p.row_units.split(rest);
    let (batch, head) = p.heads.split(rest);
    let key = pair * UNITS_OF_WARP * UNIT_KEYS + thread::lane();
    let first = row_unit * UNIT_ROWS;
    let (mut shows, mut hides) = (false, false);
    for row in first..(first + UNIT_ROWS).min(p.q_rows) {
        let score = math::score_hook(0.0, [batch, head, row, key, p.q_rows, p.kv_rows]);
        let hidden = score == f32::NEG_INFINITY;
        shows |= !hidden;
        hides |= hidden;
    }
    // Keys past the last one are hidden by the tests that every last tile has, and play no part in its class.
    let is_there = key < p.kv_rows;
    // SAFETY: the whole warp is here; the pair is inside the classes, and no other warp writes it.
    unsafe {
        let (shows, hides) = (warp::ballot(shows && is_there), warp::ballot(hides && is_there));
        let class = |unit: u32| {
            let lanes = 0xffff << (UNIT_KEYS * unit);
            match (shows & lanes != 0, hides & lanes != 0) {
                (false, _) => HIDDEN,
                (true, true) => PARTIAL,
                (true, false) => SEEN,
            }
        };
        if thread::lane() == 0 {
            copy::store_u16(p.classes + 2 * index as u64, class(0) | class(1) << 8);
        }
    }
}

/// One thread block of the kernel that lists: each warp the tiles of keys of one tile of queries, a lane every 32nd of them.
///
/// # Safety
/// Kernel entry: all threads of the block, behind the kernel that classifies.
#[inline(always)]
pub unsafe fn lists(p: &ListsParams) {
    // SAFETY: addresses inside the lists, which only the warp's lanes write, each other words.
    unsafe {
        if thread::block_index() == 0 && thread::index() == 0 {
            copy::store_u32x4(p.lists, [p.words, p.head_words, p.batch_words, HEAD_WORDS + p.count * p.words]);
            copy::store_u32(p.lists + 4 * TAKEN_WORD as u64, 0);
        }
        let index = warp_of_grid();
        if index >= p.count {
            return;
        }
        core::hint::assert_unchecked(p.kv_block > 0);
        let (head, tile) = p.tiles.split(index);
        let blocks = p.band.kv_blocks(tile * p.q_block, p.q_block, p.q_rows, p.kv_rows, p.kv_block);
        let list = p.lists + 4 * (HEAD_WORDS as u64 + index as u64 * p.words as u64);
        let entries = list + 4 * LIST_WORDS as u64;
        // Tiles that need tests first, as steps do.
        let mut count = 0;
        let mut to_test = 0;
        for tested in [true, false] {
            for first in (blocks.first..blocks.end).step_by(32) {
                let block = first + thread::lane();
                let class = if block < blocks.end { class_of(p, head, tile, block) } else { HIDDEN };
                let all = class == SEEN && block >= blocks.unmasked_first && block < blocks.unmasked_end;
                let mine = class != HIDDEN && all != tested;
                let lanes = warp::ballot(mine);
                if mine {
                    let place = count + (lanes & ((1 << thread::lane()) - 1)).count_ones();
                    copy::store_u32(entries + 4 * place as u64, block);
                }
                count += lanes.count_ones();
            }
            if tested {
                to_test = count;
            }
        }
        if thread::lane() == 0 {
            if count == 0 {
                // Every tile takes one step. The block past the last key reads as zeros, all hidden.
                copy::store_u32(entries, p.kv_rows.div_ceil(p.kv_block));
                (count, to_test) = (1, 1);
            }
            copy::store_u32x4(list, [count, to_test, 0, 0]);
        }
    }
}

/// The class of a tile of keys for a tile of queries: that of its units, where they agree.
///
/// Reads as many as the largest tiles have, some of them twice, so that none waits for another.
#[inline(always)]
unsafe fn class_of(p: &ListsParams, head: u32, tile: u32, block: u32) -> u16 {
    let first_row = tile * (p.q_block / UNIT_ROWS);
    let last_row = (first_row + p.q_block / UNIT_ROWS).min(p.row_units) - 1;
    let first_unit = block * (p.kv_block / UNIT_KEYS);
    let end_unit = (first_unit + p.kv_block / UNIT_KEYS).min(p.kv_rows.div_ceil(UNIT_KEYS));
    let (mut shows, mut hides) = (false, false);
    for i in 0..MOST_ROW_UNITS {
        let row = head as u64 * p.row_units as u64 + (first_row + i).min(last_row) as u64;
        for j in 0..MOST_PAIRS {
            let pair = (first_unit / UNITS_OF_WARP + j).min((end_unit - 1) / UNITS_OF_WARP);
            // SAFETY: inside the classes, which are complete.
            let both = unsafe { copy::load_u16(p.classes + 2 * (row * p.key_pairs as u64 + pair as u64)) };
            for half in 0..UNITS_OF_WARP {
                let (class, unit) = (both >> (8 * half) & 0xff, pair * UNITS_OF_WARP + half);
                let counts = unit >= first_unit && unit < end_unit;
                shows |= counts && class != HIDDEN;
                hides |= counts && class != SEEN;
            }
        }
    }
    match (shows, hides) {
        (false, _) => HIDDEN,
        (true, true) => PARTIAL,
        (true, false) => SEEN,
    }
}

/// The number of this thread's warp among all of the grid.
#[inline(always)]
fn warp_of_grid() -> u32 {
    thread::block_index() * (THREADS / 32) + thread::index() / 32
}
