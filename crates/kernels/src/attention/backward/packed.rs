//! The backward pass over packed sequences: what [`delta`](super::delta), [`keys`](super::keys) and [`queries`](super::queries) work on is the
//! problem that one sequence poses.
//!
//! ```text
//! cta -> head, tile of all sequences' -> sequence, tile of its own    by lengths on the device, 32 sequences at a time
//! sequence -> problem                                                 tensors, log-sum-exp and statistics moved to its first rows
//! ```
//!
//! From there on nothing knows of sequences: rows that a sequence does not have, or that are not in use, are rows behind the last of its
//! tensors, which are neither read nor written. Heads are numbered before tiles, so that neighbouring thread blocks share what they read.

use cuda_std::{thread, warp};
use kernel_spec::families::backward::packed::statistics_start;
use kernel_spec::families::backward::{BackwardParams, PackedBackwardParams, STATISTICS_BYTES, STATISTICS_ROWS};
use kernel_spec::families::sequences::SequenceTable;

use crate::attention::backward::Config;
use crate::attention::sequences::place::sum_up_to;
use crate::attention::sequences::sequence::{CachePlace, moved, query_rows};
use crate::parts::element::Element;

/// What a thread block works on: a tile of a head of the problem of a sequence.
pub struct Own {
    /// The problem that the sequence poses on its own.
    pub problem: BackwardParams,
    /// Sequence.
    pub sequence: u32,
    /// Head: of keys, or of queries.
    pub head: u32,
    /// Tile, one that the sequence has.
    pub tile: u32,
}

impl Own {
    /// Of the statistics. `None`: there is nothing to do; likewise the others.
    ///
    /// # Safety
    /// All threads of the block, converged; likewise the others.
    #[inline(always)]
    pub unsafe fn of_statistics<C: Config>(p: &PackedBackwardParams) -> Option<Own> {
        // Whole blocks of statistics: the other kernels read them without looking where the rows end.
        let tiles = |rows: u32| rows.div_ceil(STATISTICS_ROWS) * const { STATISTICS_ROWS / C::ROW.q_block };
        // SAFETY: passed on.
        unsafe {
            let Place { head, sequence, tile } = Place::of(p, |sequence| tiles(q_rows(p, sequence)))?;
            let mut problem = problem::<C>(p, sequence);
            // A head's log-sum-exps are those of all tokens, of which the problem counts its own.
            let others = head as u64 * (p.tokens - problem.q_rows) as u64 * 4;
            problem.lse += others;
            problem.dlse += if problem.dlse == 0 { 0 } else { others };
            (tile < tiles(problem.q_rows)).then_some(Own { problem, sequence, head, tile })
        }
    }

    /// Of the gradients of keys and values.
    ///
    /// # Safety
    /// See [`Self::of_statistics`].
    #[inline(always)]
    pub unsafe fn of_keys<C: Config>(p: &PackedBackwardParams) -> Option<Own> {
        let tiles = |rows: u32| rows.div_ceil(C::ROW.kv_block);
        // SAFETY: passed on.
        unsafe {
            let kv_rows = |sequence| CachePlace::of(&p.table, p.backward.kv_rows, sequence).used;
            let Place { head, sequence, tile } = Place::of(p, |sequence| tiles(kv_rows(sequence)))?;
            let problem = problem::<C>(p, sequence);
            (tile < tiles(problem.kv_rows)).then_some(Own { problem, sequence, head, tile })
        }
    }

    /// Of the gradients of queries.
    ///
    /// # Safety
    /// See [`Self::of_statistics`].
    #[inline(always)]
    pub unsafe fn of_queries<C: Config>(p: &PackedBackwardParams) -> Option<Own> {
        let tiles = |rows: u32| rows.div_ceil(C::ROW.q_block);
        // SAFETY: passed on.
        unsafe {
            let Place { head, sequence, tile } = Place::of(p, |sequence| tiles(q_rows(p, sequence)))?;
            let problem = problem::<C>(p, sequence);
            (tile < tiles(problem.q_rows)).then_some(Own { problem, sequence, head, tile })
        }
    }
}

/// Where that is.
struct Place {
    head: u32,
    sequence: u32,
    tile: u32,
}

impl Place {
    /// The share of this thread block, of sequences that have as many tiles as `tiles` says of each. `None`: there is none for it.
    ///
    /// # Safety
    /// All threads of the block, converged.
    #[inline(always)]
    unsafe fn of(p: &PackedBackwardParams, tiles: impl Fn(u32) -> u32) -> Option<Place> {
        let (head, tile) = p.tiles.split(thread::block_index());
        // SAFETY: passed on.
        unsafe {
            let [sequence, tile] = find_tile(&p.table, tile, tiles)?;
            // From one lane to all: ptxas then keeps what follows from these in uniform registers.
            let [head, sequence, tile] = [head, sequence, tile].map(|x| warp::broadcast(x, 0));
            Some(Place { head, sequence, tile })
        }
    }
}

/// Sequence and tile of the tile of this number, of sequences with as many as `tiles` says of each; see [`Place::of`].
///
/// The tile is one that the sequence has, unless the numbers of them all together do not fit 32 bits.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
unsafe fn find_tile(table: &SequenceTable, tile: u32, tiles: impl Fn(u32) -> u32) -> Option<[u32; 2]> {
    // 32 sequences at a time, one a lane.
    let (mut first, mut before) = (0, 0);
    // SAFETY: passed on.
    unsafe {
        while first < table.batch {
            let own = first + thread::lane();
            let own_tiles = if own < table.batch { tiles(own) } else { 0 };
            let end = before + sum_up_to(own_tiles);
            let found = warp::ballot(tile < end);
            if found != 0 {
                let lane = found.trailing_zeros();
                return Some([first + lane, tile - warp::broadcast(end - own_tiles, lane)]);
            }
            before = warp::broadcast(end, 31);
            first += 32;
        }
    }
    None
}

/// Rows of q of a sequence in use.
///
/// # Safety
/// There is a sequence of this number.
#[inline(always)]
unsafe fn q_rows(p: &PackedBackwardParams, sequence: u32) -> u32 {
    // SAFETY: passed on.
    let [_, rows] = unsafe { query_rows(&p.table, p.backward.q_rows, sequence) };
    rows
}

/// The problem that a sequence poses on its own: one batch entry, whose tensors start at its first rows.
///
/// # Safety
/// All threads of the warp, converged; there is a sequence of this number.
#[inline(always)]
unsafe fn problem<C: Config>(p: &PackedBackwardParams, sequence: u32) -> BackwardParams {
    let all = &p.backward;
    // SAFETY: passed on.
    let [q_first, q_rows, kv_first, kv_rows] = unsafe {
        let [q_first, q_rows] = query_rows(&p.table, all.q_rows, sequence);
        let CachePlace { base, used, .. } = CachePlace::of(&p.table, all.kv_rows, sequence);
        [q_first, q_rows, base, used].map(|x| warp::broadcast(x, 0))
    };
    let of_queries = |tensor| moved(tensor, 0, q_first, C::T::BYTES);
    let of_keys = |tensor| moved(tensor, 0, kv_first, C::T::BYTES);
    let numbers = q_first as u64 * 4;
    BackwardParams {
        q: of_queries(&all.q),
        k: of_keys(&all.k),
        v: of_keys(&all.v),
        out: of_queries(&all.out),
        dout: of_queries(&all.dout),
        dq: of_queries(&all.dq),
        dk: of_keys(&all.dk),
        dv: of_keys(&all.dv),
        lse: all.lse + numbers,
        dlse: if all.dlse == 0 { 0 } else { all.dlse + numbers },
        statistics: all.statistics + statistics_start(q_first, sequence) as u64 * STATISTICS_BYTES as u64,
        q_rows,
        kv_rows,
        ..*all
    }
}
