//! New rows of keys and values go into the cache, behind those in use, turned by their position (rotary embedding: Su et al., "RoFormer",
//! 2021), and the queries are turned with them. A warp moves one row of one head.
//!
//! ```text
//! (x, y) of a pair, at position t:   x' = x cos(t) - y sin(t)      y' = x sin(t) + y cos(t)
//! ```

use cuda_std::{copy, math, thread, warp};
use kernel_spec::TensorParams;
use kernel_spec::families::forward::features::PAGED;
use kernel_spec::families::sequences::AppendParams;

use crate::attention::sequences::sequence::{CachePlace, count, query_rows, span};
use crate::parts::element::Element;

/// Which new rows a warp moves.
#[derive(Clone, Copy, PartialEq)]
enum What {
    Keys,
    Values,
}

/// One thread block, of `WARPS` warps.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn append<T: Element, const WARPS: u32>(p: &AppendParams) {
    // SAFETY: a warp takes one path, and writes a row that is nobody else's. The host launches nothing for a call without rows or heads:
    // without these, divisions could panic.
    unsafe {
        core::hint::assert_unchecked(p.kv_heads > 0 && p.q_heads > 0);
        let index = thread::block_index() * WARPS + thread::warp_index();
        // Rows of all sequences: uniform ones have as many each.
        let rows = |rows: u32, starts: u64| if starts == 0 { rows * p.table.batch } else { rows };
        let new = rows(p.table.new_rows, p.table.new_starts) * p.kv_heads;
        if index < 2 * new {
            let (what, index) = if index < new { (What::Keys, index) } else { (What::Values, index - new) };
            move_new::<T>(p, what, index / p.kv_heads, index % p.kv_heads);
        } else if p.q.address != 0 {
            let index = index - 2 * new;
            if index < rows(p.q_rows, p.table.q_starts) * p.q_heads {
                turn_queries::<T>(p, index / p.q_heads, index % p.q_heads);
            }
        }
    }
}

/// The sequence that a row of a packed or uniform tensor belongs to, and which of its rows it is.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
unsafe fn sequence_of(p: &AppendParams, starts: u64, rows: u32, token: u32) -> Option<[u32; 2]> {
    if starts == 0 {
        // SAFETY: there is a row, which belongs to somebody.
        unsafe { core::hint::assert_unchecked(rows > 0) };
        return Some([token / rows, token % rows]);
    }
    let mut first = 0;
    while first < p.table.batch {
        let own = first + thread::lane();
        // SAFETY: sequences below the number of them; collectives are called by all lanes.
        unsafe {
            let [start, end] = if own < p.table.batch { span(starts, own, rows) } else { [0, 0] };
            let found = warp::ballot(start <= token && token < end);
            if found != 0 {
                let lane = found.trailing_zeros();
                return Some([first + lane, token - warp::broadcast(start, lane)]);
            }
        }
        first += 32;
    }
    None
}

/// Address of a row of a head.
#[inline(always)]
fn at<T: Element>(tensor: &TensorParams, entry: u32, row: u32, head: u32) -> u64 {
    let elements =
        entry as u64 * tensor.batch_stride + row as u64 * tensor.row_stride + head as u64 * tensor.head_stride;
    tensor.address + elements * T::BYTES as u64
}

/// Position of the first new row of a sequence.
///
/// # Safety
/// There is a sequence of this number.
#[inline(always)]
unsafe fn first_position(p: &AppendParams, sequence: u32, used: u32) -> u32 {
    // SAFETY: passed on.
    if p.positions == 0 { used } else { unsafe { count(p.positions, sequence) } }
}

/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
unsafe fn move_new<T: Element>(p: &AppendParams, what: What, token: u32, head: u32) {
    // SAFETY: rows that exist, in a sequence that exists.
    unsafe {
        let Some([sequence, row]) = sequence_of(p, p.table.new_starts, p.table.new_rows, token) else { return };
        let cache = CachePlace::of(&p.table, p.kv_rows, sequence);
        let to = cache.used + row;
        // No room: the call's contract, but nothing outside is touched.
        if to >= cache.room {
            return;
        }
        let (new, tensor) = if what == What::Keys { (&p.new_k, &p.k) } else { (&p.new_v, &p.v) };
        let from =
            if p.table.new_starts == 0 { at::<T>(new, sequence, row, head) } else { at::<T>(new, 0, token, head) };
        let to = if p.features.has(PAGED) {
            let (entry, row) = p.table.page_rows.split(to);
            let table = p.table.pages + (sequence as u64 * p.table.table_stride + entry as u64) * 4;
            let page = copy::load_u32(table);
            if page >= p.table.kv_entry_count {
                return;
            }
            at::<T>(tensor, page, row, head)
        } else {
            at::<T>(tensor, cache.entry, cache.base + to, head)
        };
        let turns = what == What::Keys && p.cos != 0;
        move_row::<T>(p, from, to, turns.then_some(first_position(p, sequence, cache.used) + row));
    }
}

/// # Safety
/// As for [`move_new`].
#[inline(always)]
unsafe fn turn_queries<T: Element>(p: &AppendParams, token: u32, head: u32) {
    // SAFETY: as there.
    unsafe {
        let Some([sequence, row]) = sequence_of(p, p.table.q_starts, p.q_rows, token) else { return };
        if row >= query_rows(&p.table, p.q_rows, sequence)[1] {
            return;
        }
        let cache = CachePlace::of(&p.table, p.kv_rows, sequence);
        let position = first_position(p, sequence, cache.used) + if p.q_advances != 0 { row } else { 0 };
        let [from, to] = [&p.q, &p.turned].map(|tensor| {
            if p.table.q_starts == 0 { at::<T>(tensor, sequence, row, head) } else { at::<T>(tensor, 0, token, head) }
        });
        move_row::<T>(p, from, to, Some(position));
    }
}

/// Copies a row, turned where there is a position.
///
/// # Safety
/// All threads of the warp; both rows exist.
#[inline(always)]
unsafe fn move_row<T: Element>(p: &AppendParams, from: u64, to: u64, position: Option<u32>) {
    let byte = |col: u32| (col as usize * T::BYTES) as u64;
    let turned = if position.is_some() { p.turned_dims } else { 0 };
    // SAFETY: inside the rows, and the table of cosines.
    unsafe {
        if let Some(position) = position {
            // Behind the table there are no cosines: the call's contract, but nothing outside is touched.
            let place = (position as u64).min(p.position_count - 1) * (p.turned_dims / 2) as u64;
            for pair in (thread::lane()..p.turned_dims / 2).step_by(32) {
                let [x, y] =
                    if p.interleaved != 0 { [2 * pair, 2 * pair + 1] } else { [pair, p.turned_dims / 2 + pair] };
                let angle = (place + pair as u64) * T::BYTES as u64;
                let [cos, sin] = [T::load(p.cos + angle), T::load(p.sin + angle)];
                let [a, b] = [T::load(from + byte(x)), T::load(from + byte(y))];
                T::store(to + byte(x), math::fma(a, cos, -(b * sin)));
                T::store(to + byte(y), math::fma(a, sin, b * cos));
            }
        }
        for col in (turned + thread::lane()..p.dim).step_by(32) {
            T::store(to + byte(col), T::load(from + byte(col)));
        }
    }
}
