//! Which rows a thread block works on, and where what belongs to them is.

use cuda_std::{thread, warp};
use kernel_spec::TensorParams;
use kernel_spec::families::sequences::SequencesParams;

use crate::attention::query_block::QueryRow;
use crate::attention::sequences::sequence::query_rows;
use crate::parts::element::Element;

/// Which rows of which heads of which sequence a thread block works on.
#[derive(Clone, Copy)]
pub struct Place {
    /// Sequence.
    pub sequence: u32,
    /// Tile of its query rows.
    pub tile: u32,
    /// Key-value head.
    pub kv_head: u32,
    /// First query head.
    pub q_head: u32,
    /// Query heads, at most as many as a tile packs together.
    pub heads: u32,
}

impl Place {
    /// Place `index` of a call: heads are neighbours, then tiles, then sequences. `None`: there are not so many.
    ///
    /// # Safety
    /// All threads of the warp, converged.
    #[inline(always)]
    pub unsafe fn of(p: &SequencesParams, index: u32, q_block: u32) -> Option<Place> {
        // SAFETY: no row has a tile without rows. Without this, a division could panic, and lanes would part before it.
        unsafe { core::hint::assert_unchecked(q_block > 0) };
        let (tile, head) = p.head_tiles.split(index);
        let (kv_head, part) = p.group_tiles.split(head);
        let group = p.forward.group;
        let first = part << p.packed_log2;
        let heads = (group - first).min(1 << p.packed_log2);
        // SAFETY: passed on.
        let [sequence, tile] = unsafe { Place::tile(p, tile, q_block) }?;
        Some(Place { sequence, tile, kv_head, q_head: kv_head * group + first, heads })
    }

    /// Sequence and tile of the tile of this number, where sequences have as many as they need.
    #[inline(always)]
    unsafe fn tile(p: &SequencesParams, tile: u32, q_block: u32) -> Option<[u32; 2]> {
        let table = &p.table;
        let tiles = |rows: u32| (rows << p.packed_log2).div_ceil(q_block);
        // SAFETY: passed on; sequences below the number of them.
        unsafe {
            if table.q_starts == 0 {
                let (sequence, tile) = p.q_tiles.split(tile);
                return Some([sequence, tile]);
            }
            // 32 sequences at a time, one a lane.
            let (mut first, mut before) = (0, 0);
            while first < table.batch {
                let own = first + thread::lane();
                let own_tiles = if own < table.batch { tiles(query_rows(table, p.forward.q_rows, own)[1]) } else { 0 };
                let end = before + sum_up_to(own_tiles);
                let found = warp::ballot(tile < end);
                if found != 0 {
                    let lane = found.trailing_zeros();
                    return Some([first + lane, tile - warp::broadcast(end - own_tiles, lane)]);
                }
                before = warp::broadcast(end, 31);
                first += 32;
            }
            None
        }
    }
}

/// The sum of the values of this lane and those before it.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
pub unsafe fn sum_up_to(mut value: u32) -> u32 {
    for log2 in 0..5 {
        let distance = 1 << log2;
        // SAFETY: passed on.
        let other = unsafe { warp::broadcast(value, thread::lane().wrapping_sub(distance) % 32) };
        value += if thread::lane() >= distance { other } else { 0 };
    }
    value
}

/// Where a split of a row is in the buffers of partial results.
#[inline(always)]
pub fn partial_index(p: &SequencesParams, split: u32, q_head: u32, token: u32) -> u64 {
    (split as u64 * p.forward.q_heads as u64 + q_head as u64) * p.tokens as u64 + token as u64
}

/// The address of a row's log-sum-exp, given that of its sequence.
#[inline(always)]
pub fn lse_address(lse: u64, p: &SequencesParams, first_head: u32, at: QueryRow) -> u64 {
    // Rows of all sequences where they are packed, else those of one: both are the rows of a batch entry.
    lse + ((first_head + at.head) as u64 * p.forward.q_rows as u64 + at.row as u64) * 4
}

/// The address of a row of q or out.
#[inline(always)]
pub fn row_address<T: Element>(tensor: &TensorParams, place: &Place, at: QueryRow) -> u64 {
    let head = (place.q_head + at.head) as u64 * tensor.head_stride;
    tensor.address + (head + at.row as u64 * tensor.row_stride) * T::BYTES as u64
}
