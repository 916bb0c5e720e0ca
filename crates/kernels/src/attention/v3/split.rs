//! A split of the keys, in pages or not: how its keys and values are loaded, and how what it has found leaves.
//!
//! Few query rows over many keys are few tiles. The list then has each of them several times, with other keys, and
//! [`merge`](crate::attention::sequences::merge) puts together what they find: sums that are not yet divided, in `f32`, with the maxima and
//! sums of weights that belong to them.
//!
//! A block of keys lies in one page or in several. Each lane of the load warp looks up the page of one piece of it, all at a time, and then
//! the pieces are loaded one by one: the row axis that is there twice ends a piece where the sequence ends.

use cuda_std::{copy, thread, warp};
use kernel_spec::V3Params;
use kernel_spec::copy_engine::WRAPPED;
use kernel_spec::families::sequences::{PagesParams, SplitV3Params};
use kernel_spec::layout::{PANEL_BYTES, PANEL_COLS};

use crate::attention::query_block::QueryBlock;
use crate::attention::v3::config::Config;
use crate::attention::v3::note::QueryTile;
use crate::attention::v3::packed::Sequence;
use crate::parts::boxes::{self, Corner};
use crate::parts::fragments::{Fragments, PerRow};
use crate::parts::ring::{Buffers, Ring};
use crate::parts::shared_tile::SharedMatrix;

/// Loads the block of keys or values from `first` on into the next buffer of a ring, once it is free. `maps` is the address of the first
/// tensor map, which stands behind what is known of the pages.
///
/// # Safety
/// The loading warp, converged; the parameters are those of a split.
#[inline(always)]
pub unsafe fn load_next<C: Config, S: SharedMatrix, B: Buffers>(
    ring: &mut Ring<B>,
    map: u64,
    maps: u64,
    p: &V3Params,
    tile: &QueryTile,
    first: u32,
    elected: bool,
) {
    const { assert!(size_of::<SplitV3Params>() == size_of::<PagesParams>() + size_of::<V3Params>()) };
    // SAFETY: passed on; the pieces fill the buffer exactly, and it is free once the ring says so.
    unsafe {
        let pages = &*((maps - size_of::<PagesParams>() as u64) as *const PagesParams);
        if pages.table == 0 {
            return boxes::load_next::<S, B>(ring, map, tile.kv_rows::<C>(p, first), elected);
        }
        let piece_rows = pages.piece_rows;
        let from = piece(pages, &tile.sequence, first + thread::lane() * piece_rows);
        ring.wait_free();
        let full = ring.announce(elected);
        let mut to = ring.buffer();
        for piece in 0..S::ROWS as u32 / piece_rows {
            let [row, last] = from.map(|x| warp::broadcast(x, piece));
            let corner = Corner { at: [row, tile.kv_head, last], wraps: true };
            for panel in 0..(S::COLS / PANEL_COLS) as u32 {
                let to = to + panel * (S::ROWS * PANEL_BYTES) as u32;
                corner.load(to, map, panel * PANEL_COLS as u32, full, elected);
            }
            to += piece_rows * PANEL_BYTES as u32;
        }
    }
    ring.advance();
}

/// Where the piece from `key` on starts along both row axes of its map. Behind the last key, it is all zeros.
///
/// # Safety
/// The table has a row for the sequence, with an entry for each of its keys.
#[inline(always)]
unsafe fn piece(pages: &PagesParams, sequence: &Sequence, key: u32) -> [u32; 2] {
    let [_, kv_rows] = sequence.rows();
    let rows = kv_rows.saturating_sub(key).min(pages.piece_rows);
    let (entry, row) = pages.page_rows.split(key);
    // Read by every lane, so that all of them stay together; entries behind the last key may be anything, and are not followed.
    let entry = if rows > 0 { entry } else { 0 };
    let at = pages.table + (sequence.index() as u64 * pages.table_stride + entry as u64) * 4;
    // SAFETY: passed on.
    let page = unsafe { copy::load_u32(at) };
    // A number that is no page's is a mistake of the caller's, who reads a page of somebody else then, but nothing outside.
    let moved = page.min(pages.count - 1) * pages.page_step + row + rows;
    [WRAPPED - rows, if rows > 0 { moved } else { 0 }]
}

/// Writes what a warp's 16 rows of a split have found, from row `row` on: sums, and maxima and sums of weights.
///
/// # Safety
/// All threads of the warp, converged; no other warp writes these rows.
#[inline(always)]
pub unsafe fn store<C: Config, F: Fragments>(
    p: &V3Params,
    sequence: &Sequence,
    block: &QueryBlock<C>,
    row: u32,
    out: &F,
    [max, sum]: [&F::Rows; 2],
) {
    let (lane, cols) = (thread::lane(), p.forward.dim_v);
    for half in 0..2 {
        let at = block.row(row + lane / 4 + 8 * half as u32);
        let place = sequence.place(p, block.head + at.head as u64, at.row);
        let to = p.forward.out.address + (place * cols as u64 + lane as u64 % 4 * 2) * 4;
        // By predicate, as in `store::store`.
        let exists = at.row < block.q.rows;
        // SAFETY: inside both buffers: head dims are multiples of 8.
        unsafe {
            for n in 0..F::N {
                let pair = [out.at(0, n)[2 * half], out.at(0, n)[2 * half + 1]];
                copy::store_f32x2_if(to + (8 * n * 4) as u64, pair, exists & (8 * (n as u32) < cols));
            }
            let statistics = [max.at(0, half), sum.at(0, half)];
            copy::store_f32x2_if(p.forward.lse + place * 8, statistics, exists & (lane % 4 == 0));
        }
    }
}
