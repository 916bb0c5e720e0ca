//! Attention over sequences of different lengths, packed one behind the other or with their keys in a cache.
//!
//! Every sequence is a problem of its own: [`Sequence::of`] reads its lengths on the device and moves the addresses of the call's tensors to
//! it. From there on masks, softmax, tiles and products are those of [`v2`](super::v2).
//!
//! | module | who has which keys | for |
//! | --- | --- | --- |
//! | [`decode`] | each warp keys of its own, all query rows | up to 16 query rows, those of a group's heads together |
//! | [`prefill`] | all warps the same keys, each its query rows | more |
//! | [`tiles`] | | the list of tiles of [`v3`](super::v3) over packed sequences |
//! | [`merge`] | | several splits of the keys, put together |
//! | [`append`] | | new keys and values, written to the cache, and queries turned with them |

use core::marker::PhantomData;

use cuda_std::{cluster, copy, math, shared, sync, thread, warp};
use kernel_spec::families::forward::features::PAGED;
use kernel_spec::families::sequences::{SequenceTable, SequencesParams};
use kernel_spec::layout::fragment_row;
use kernel_spec::{ForwardParams, KvBlocks, TensorParams};

use crate::attention::exponent::Exponent;
use crate::attention::query_block::{QueryBlock, QueryRow};
use crate::attention::sequences::merge::{InCluster, merge_row};
use crate::attention::sequences::rows::{HeadRows, Pages, SequenceRows};
use crate::attention::{Config, exact};
use crate::parts::element::Element;
use crate::parts::fragments::{Fragments, PerRow};
use crate::parts::rows::{GlobalRows, RowSource, RowWalk};

pub mod append;
pub mod decode;
pub mod merge;
pub mod prefill;
pub mod rows;
pub mod tiles;

/// One sequence: the problem that it poses on its own.
pub struct Sequence {
    /// The problem. Tensors start at the sequence's first row, and the log-sum-exp at its first element.
    pub problem: ForwardParams,
    /// Number of its first query row among those of all sequences.
    pub first_token: u32,
    /// Where its keys and values are in pages.
    pub pages: Pages,
}

/// Number `index` of an array on the device, as a count: 0 for negative numbers.
///
/// # Safety
/// The array has it.
#[inline(always)]
unsafe fn count(array: u64, index: u32) -> u32 {
    // SAFETY: passed on.
    let number = unsafe { copy::load_u32(array + index as u64 * 4) } as i32;
    number.max(0) as u32
}

/// Rows `[first, end]` of sequence `index`, given where each of them starts. They lie among `rows`, whatever the numbers are.
///
/// # Safety
/// The array has one number more than there are sequences.
#[inline(always)]
unsafe fn span(starts: u64, index: u32, rows: u32) -> [u32; 2] {
    // SAFETY: passed on.
    let [first, end] = unsafe { [count(starts, index), count(starts, index + 1)] };
    let first = first.min(rows);
    [first, end.clamp(first, rows)]
}

/// First query row of a sequence in its tensor, and how many are in use.
///
/// # Safety
/// There is a sequence of this number.
#[inline(always)]
unsafe fn query_rows(table: &SequenceTable, q_rows: u32, index: u32) -> [u32; 2] {
    // SAFETY: passed on.
    unsafe {
        let [first, end] = if table.q_starts == 0 { [0, q_rows] } else { span(table.q_starts, index, q_rows) };
        let rows = end - first;
        [first, if table.q_used == 0 { rows } else { count(table.q_used, index).min(rows) }]
    }
}

/// How many rows the call appends to a sequence.
///
/// # Safety
/// There is a sequence of this number.
#[inline(always)]
unsafe fn new_rows(table: &SequenceTable, index: u32) -> u32 {
    if table.new_starts == 0 {
        return table.new_rows;
    }
    // SAFETY: passed on.
    let [first, end] = unsafe { span(table.new_starts, index, table.new_rows) };
    end - first
}

/// Moves a tensor by batch entries and rows.
#[inline(always)]
fn moved(tensor: &TensorParams, entry: u32, row: u32, bytes: usize) -> TensorParams {
    let elements = entry as u64 * tensor.batch_stride + row as u64 * tensor.row_stride;
    TensorParams { address: tensor.address + elements * bytes as u64, ..*tensor }
}

/// Where the keys and values of a sequence are.
pub struct CachePlace {
    /// Batch entry, 0 where keys are packed or in pages.
    pub entry: u32,
    /// Row of the tensor that the sequence's rows are counted from.
    pub base: u32,
    /// Rows from there on that there are.
    pub room: u32,
    /// Rows in use, without those that the call appends.
    pub used: u32,
}

impl CachePlace {
    /// Of sequence `index`, in tensors whose batch entries, or all pages of a sequence, or all sequences, have `kv_rows` rows.
    ///
    /// # Safety
    /// There is a sequence of this number.
    #[inline(always)]
    pub unsafe fn of(table: &SequenceTable, kv_rows: u32, index: u32) -> CachePlace {
        // SAFETY: passed on.
        unsafe {
            let [base, end] = if table.kv_starts == 0 { [0, kv_rows] } else { span(table.kv_starts, index, kv_rows) };
            let room = end - base;
            let used = if table.kv_used == 0 { room } else { count(table.kv_used, index).min(room) };
            let entry = if table.kv_entries == 0 { index } else { count(table.kv_entries, index) };
            // Of packed sequences and of pages, there is one entry, or none that is the sequence's.
            let alone = table.kv_starts != 0 || table.pages != 0;
            let entry = if alone { 0 } else { entry.min(table.kv_entry_count - 1) };
            CachePlace { entry, base, room, used }
        }
    }
}

impl Sequence {
    /// Sequence `index` of a call whose tensors have elements of `bytes` bytes.
    ///
    /// # Safety
    /// All threads of the warp, converged; there is a sequence of this number.
    #[inline(always)]
    pub unsafe fn of(p: &SequencesParams, index: u32, bytes: usize) -> Sequence {
        let (table, f) = (&p.table, &p.forward);
        // SAFETY: passed on.
        unsafe {
            let [q_first, q_rows] = query_rows(table, f.q_rows, index);
            let cache = CachePlace::of(table, f.kv_rows, index);
            let end = (cache.used + new_rows(table, index)).min(cache.room);
            let kv_first = if table.kv_first == 0 { 0 } else { count(table.kv_first, index).min(end) };
            let q_entry = if table.q_starts == 0 { index } else { 0 };
            let packed = table.q_starts != 0;
            let first_token = if packed { q_first } else { index * f.q_rows };
            // `[head, token]` where sequences are packed, else `[batch, head, row]`.
            let lse = if packed { q_first as u64 } else { index as u64 * f.q_heads as u64 * f.q_rows as u64 };
            let paged = f.features.has(PAGED);
            let kv_row = if paged { 0 } else { cache.base + kv_first };
            // From one lane to all, as in `QueryBlock::of`.
            let [q_rows, kv_rows, kv_row, entry, first_token] =
                [q_rows, end - kv_first, kv_row, cache.entry, first_token].map(|x| warp::broadcast(x, 0));
            let problem = ForwardParams {
                q: moved(&f.q, q_entry, q_first, bytes),
                out: moved(&f.out, q_entry, q_first, bytes),
                k: moved(&f.k, entry, kv_row, bytes),
                v: moved(&f.v, entry, kv_row, bytes),
                lse: if f.lse == 0 { 0 } else { f.lse + lse * 4 },
                q_rows,
                kv_rows,
                ..*f
            };
            let pages = Pages {
                exist: paged,
                table: table.pages + index as u64 * table.table_stride * 4,
                first: kv_first,
                rows: table.page_rows,
                count: table.kv_entry_count,
            };
            Sequence { problem, first_token, pages }
        }
    }
}

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
unsafe fn sum_up_to(mut value: u32) -> u32 {
    for log2 in 0..5 {
        let distance = 1 << log2;
        // SAFETY: passed on.
        let other = unsafe { warp::broadcast(value, thread::lane().wrapping_sub(distance) % 32) };
        value += if thread::lane() >= distance { other } else { 0 };
    }
    value
}

/// The query rows of a [`Place`], and the keys of a split that they see.
pub struct SequenceBlock<C: Config<Out = <C as Config>::T>> {
    /// Rows, mask and scale, as the kernels of uniform sequences have them.
    pub block: QueryBlock<C>,
    /// Queries, as the block counts rows.
    pub q: HeadRows<C::T>,
    /// Output, likewise.
    pub out: HeadRows<C::Out>,
    /// Keys.
    pub k: SequenceRows<C::T>,
    /// Values.
    pub v: SequenceRows<C::T>,
    /// The key blocks of the split that the rows visit.
    pub kv_blocks: KvBlocks,
    sequence: Sequence,
    place: Place,
    split: u32,
}

impl<C: Config<Out = <C as Config>::T>> SequenceBlock<C> {
    /// The share of thread block `cta`: splits are neighbours. `None`: there is nothing to do.
    ///
    /// # Safety
    /// All threads of the block, converged.
    #[inline(always)]
    pub unsafe fn of(p: &SequencesParams, cta: u32) -> Option<Self> {
        let (index, split) = p.splits.split(cta);
        // SAFETY: passed on.
        unsafe { SequenceBlock::at(p, Place::of(p, index, C::ROW.q_block)?, split) }
    }

    #[inline(always)]
    unsafe fn at(p: &SequencesParams, place: Place, split: u32) -> Option<Self> {
        // SAFETY: passed on.
        let sequence = unsafe { Sequence::of(p, place.sequence, C::T::BYTES) };
        let Sequence { problem, pages, .. } = &sequence;
        let pages = *pages;
        let packed_log2 = p.packed_log2;
        let tiles = (problem.q_rows << packed_log2).div_ceil(C::ROW.q_block);
        if place.tile >= tiles {
            return None;
        }
        // Last rows first, as in `QueryBlock::of`.
        let first_row = (tiles - 1 - place.tile) * C::ROW.q_block;
        let [first, rows] = [first_row, C::ROW.q_block].map(|rows| rows >> packed_log2);
        let all = problem.band.kv_blocks(first, rows, problem.q_rows, problem.kv_rows, C::ROW.kv_block);
        let kv_blocks = part(all, split, p, C::ROW.kv_block);
        let mut block = QueryBlock::at(problem, 0, place.q_head, place.kv_head, first_row, kv_blocks);
        block.packed_log2 = packed_log2;
        let q = HeadRows::new(&block.q, problem.q.head_stride, packed_log2, place.heads);
        let out = HeadRows::new(&block.out, problem.out.head_stride, packed_log2, place.heads);
        let (k, v) = (SequenceRows::new(&block.k, pages, &problem.k), SequenceRows::new(&block.v, pages, &problem.v));
        Some(SequenceBlock { block, q, out, k, v, kv_blocks, sequence, place, split })
    }

    /// Whether the block has a row, and which.
    #[inline(always)]
    fn row(&self, row: u32) -> Option<QueryRow> {
        let at = self.block.row(row);
        (self.q.has(row)).then_some(at)
    }

    /// Writes the log-sum-exp, see [`QueryBlock::store_lse`].
    ///
    /// # Safety
    /// All threads of the warp, converged; no other warp writes these rows.
    #[inline(always)]
    pub unsafe fn store_lse<R: PerRow>(&self, p: &SequencesParams, row: u32, max: &R, sum: &R) {
        if self.sequence.problem.lse == 0 {
            return;
        }
        let lane = thread::lane();
        for m in 0..R::M {
            for half in 0..2 {
                let lse = C::T::lse(max.at(m, half), sum.at(m, half));
                // The four lanes of a quad hold the same row.
                if let Some(at) = self.row(row + 16 * m as u32 + fragment_row(lane, 2 * half as u32))
                    && lane % 4 == 0
                {
                    // SAFETY: inside the log-sum-exp.
                    unsafe { copy::store_f32(lse_address(self.sequence.problem.lse, p, self.place.q_head, at), lse) };
                }
            }
        }
    }

    /// Writes what a split has found: sums that are not yet divided, and the maxima and sums of weights of all rows. `first_col` is the
    /// first of the columns; only a warp that `has_statistics` writes those.
    ///
    /// # Safety
    /// As for [`Self::store_lse`].
    #[inline(always)]
    pub unsafe fn store_split<F: Fragments>(
        &self,
        p: &SequencesParams,
        row: u32,
        first_col: u32,
        out: &F,
        [max, sum]: [&F::Rows; 2],
        has_statistics: bool,
    ) {
        let lane = thread::lane();
        for m in 0..F::M {
            for half in 0..2 {
                let Some(at) = self.row(row + 16 * m as u32 + fragment_row(lane, 2 * half as u32)) else { continue };
                let index =
                    partial_index(p, self.split, self.place.q_head + at.head, self.sequence.first_token + at.row);
                let half = half as usize;
                // SAFETY: inside both buffers.
                unsafe {
                    if has_statistics && lane % 4 == 0 {
                        copy::store_f32x2(p.statistics + index * 8, [max.at(m, half), sum.at(m, half)]);
                    }
                    for n in 0..F::N {
                        let col = first_col + 8 * n as u32 + lane % 4 * 2;
                        if col < p.forward.dim_v {
                            let to = p.partial + (index * p.forward.dim_v as u64 + col as u64) * 4;
                            copy::store_f32x2(to, [out.at(m, n)[2 * half], out.at(m, n)[2 * half + 1]]);
                        }
                    }
                }
            }
        }
    }

    /// Leaves what this thread block has found in its shared memory, at the addresses `[sums, statistics]`, and puts the rows together that
    /// are its own: one in as many as the cluster has thread blocks.
    ///
    /// # Safety
    /// All threads of all thread blocks of the cluster, converged.
    #[inline(always)]
    pub unsafe fn merge_in_cluster<F: Fragments>(
        &self,
        p: &SequencesParams,
        [sums, statistics]: [u32; 2],
        first_col: u32,
        out: &F,
        [max, sum]: [&F::Rows; 2],
    ) {
        let lane = thread::lane();
        // SAFETY: inside both places; the cluster's barriers stand between writes, reads and the end of whoever is read from.
        unsafe {
            let warp = thread::warp_index();
            for m in 0..F::M {
                for half in 0..2 {
                    let row = 16 * m as u32 + fragment_row(lane, 2 * half as u32);
                    if warp == 0 && lane % 4 == 0 {
                        shared::store_f32x2(statistics + row * 8, [max.at(m, half), sum.at(m, half)]);
                    }
                    for n in 0..F::N {
                        let col = first_col + 8 * n as u32 + lane % 4 * 2;
                        let pair = [out.at(m, n)[2 * half], out.at(m, n)[2 * half + 1]];
                        shared::store_f32x2(sums + (row * C::ROW.dim_v + col) * 4, pair);
                    }
                }
            }
            cluster::sync();
            let mut again = false;
            // A warp of each thread block in turn, so that few rows are many thread blocks' work.
            let first = cluster::rank() + warp * p.splits.value;
            for row in (first..C::ROW.q_block).step_by((C::ROW.warps * p.splits.value) as usize) {
                if let Some(at) = self.row(self.block.first_row + row) {
                    let found = InCluster { row: sums + row * C::ROW.dim_v * 4, statistics: statistics + row * 8 };
                    again |= merge_row::<C::T>(p, &self.sequence, &self.place, at, &found);
                }
            }
            cluster::sync();
            mend::<C>(p, again);
        }
    }

    /// Writes that a split has no keys for the block's rows: no weights, and sums of 0, because the merge reads before it asks.
    ///
    /// # Safety
    /// All threads of the block.
    #[inline(always)]
    pub unsafe fn store_empty_split(&self, p: &SequencesParams) {
        let pieces = p.forward.dim_v / 4;
        // SAFETY: there are columns. Without this, a division could panic.
        unsafe { core::hint::assert_unchecked(pieces > 0) };
        for index in (thread::index()..C::ROW.q_block * pieces).step_by(C::THREADS) {
            let (row, piece) = (index / pieces, index % pieces);
            if let Some(at) = self.row(self.block.first_row + row) {
                let index =
                    partial_index(p, self.split, self.place.q_head + at.head, self.sequence.first_token + at.row);
                // SAFETY: inside both buffers.
                unsafe {
                    if piece == 0 {
                        copy::store_f32x2(p.statistics + index * 8, [f32::NEG_INFINITY, 0.0]);
                    }
                    copy::store_u32x4(p.partial + (index * p.forward.dim_v as u64 + piece as u64 * 4) * 4, [0; 4]);
                }
            }
        }
    }
}

/// Where a split of a row is in the buffers of partial results.
#[inline(always)]
fn partial_index(p: &SequencesParams, split: u32, q_head: u32, token: u32) -> u64 {
    (split as u64 * p.forward.q_heads as u64 + q_head as u64) * p.tokens as u64 + token as u64
}

/// The address of a row's log-sum-exp, given that of its sequence.
#[inline(always)]
fn lse_address(lse: u64, p: &SequencesParams, first_head: u32, at: QueryRow) -> u64 {
    // Rows of all sequences where they are packed, else those of one: both are the rows of a batch entry.
    lse + ((first_head + at.head) as u64 * p.forward.q_rows as u64 + at.row as u64) * 4
}

/// The key blocks of a split.
#[inline(always)]
fn part(all: KvBlocks, split: u32, p: &SequencesParams, kv_block: u32) -> KvBlocks {
    if p.splits.value == 1 {
        return all;
    }
    if p.split_keys == 0 {
        let blocks = p.splits.ceil(all.count());
        let from = all.first + split * blocks;
        return all.between(from.min(all.end), (from + blocks).min(all.end));
    }
    let blocks = p.split_keys / kv_block;
    all.between(split * blocks, (split + 1) * blocks)
}

/// The keys and values of a head, in the cache or wherever they are.
struct CachePlaces<T> {
    k: SequenceRows<T>,
    v: SequenceRows<T>,
}

impl<T: Element> exact::Places for CachePlaces<T> {
    #[inline(always)]
    fn key(&self, key: u32) -> u64 {
        self.k.walk(key, 1, 0).address()
    }

    #[inline(always)]
    fn value(&self, key: u32) -> u64 {
        self.v.walk(key, 1, 0).address()
    }
}

/// Computes a row in f64, see [`exact`].
///
/// # Safety
/// All threads of the warp, converged; the row exists, and nobody else touches it.
#[inline(always)]
unsafe fn mend_row<T: Element>(p: &SequencesParams, sequence: &Sequence, place: &Place, at: QueryRow) {
    let problem = &sequence.problem;
    let rows = |tensor: &TensorParams| GlobalRows {
        address: tensor.address + place.kv_head as u64 * tensor.head_stride * T::BYTES as u64,
        row_bytes: tensor.row_stride * T::BYTES as u64,
        rows: problem.kv_rows,
        cols: 0,
        aligned: false,
        whole: false,
        element: PhantomData::<T>,
    };
    let k = SequenceRows::new(&rows(&problem.k), sequence.pages, &problem.k);
    let v = SequenceRows::new(&rows(&problem.v), sequence.pages, &problem.v);
    let [first, end] = problem.band.keys(at.row, problem.q_rows, problem.kv_rows);
    let row = exact::Row {
        p: problem,
        q: row_address::<T>(&problem.q, place, at),
        places: CachePlaces { k, v },
        lse: if problem.lse == 0 { 0 } else { lse_address(problem.lse, p, place.q_head, at) },
        row: at.row,
        first,
        end,
        element: PhantomData::<T>,
    };
    // SAFETY: passed on.
    unsafe { row.attend::<T>(row_address::<T>(&problem.out, place, at)) };
}

/// The address of a row of q or out.
#[inline(always)]
fn row_address<T: Element>(tensor: &TensorParams, place: &Place, at: QueryRow) -> u64 {
    let head = (place.q_head + at.head) as u64 * tensor.head_stride;
    tensor.address + (head + at.row as u64 * tensor.row_stride) * T::BYTES as u64
}

/// Computes rows of the thread block again, see [`exact::mend`]; with one split.
///
/// # Safety
/// All threads of the block, converged, when the output has been written.
#[inline(always)]
unsafe fn mend<C: Config<Out = <C as Config>::T>>(p: &SequencesParams, not_finite: bool) {
    // SAFETY: as in `exact::mend`.
    unsafe {
        if sync::block_any(not_finite) {
            let copy = shared::generic(shared::dynamic());
            if thread::index() == 0 {
                *(copy as *mut SequencesParams) = *p;
            }
            sync::block();
            mend_block::<C>(copy);
        }
    }
}

/// A function that is called, as in [`exact`].
///
/// # Safety
/// As for [`mend`], behind its barriers; `params` is an address of the kernel's parameters.
#[inline(never)]
unsafe fn mend_block<C: Config<Out = <C as Config>::T>>(params: u64) {
    // SAFETY: every warp takes other rows.
    unsafe {
        let p = &*(params as *const SequencesParams);
        // In a cluster, each thread block has rows of its own to look at.
        let (index, split) = p.splits.split(thread::block_index());
        let Some(place) = Place::of(p, index, C::ROW.q_block) else { return };
        let sequence = Sequence::of(p, place.sequence, C::T::BYTES);
        let rows = sequence.problem.q_rows;
        let tiles = (rows << p.packed_log2).div_ceil(C::ROW.q_block);
        let first_row = (tiles - 1 - place.tile) * C::ROW.q_block;
        let step = math::opaque(C::ROW.warps) * p.splits.value;
        let first = split + thread::warp_index() * p.splits.value;
        for index in (first..math::opaque(C::ROW.q_block)).step_by(step as usize) {
            let row = first_row + index;
            let at = QueryRow { head: row & ((1 << p.packed_log2) - 1), row: row >> p.packed_log2 };
            if at.row < rows && at.head < place.heads {
                let out = row_address::<C::T>(&sequence.problem.out, &place, at);
                if exact::holds_no_number::<C::T>(out, p.forward.dim_v) {
                    mend_row::<C::T>(p, &sequence, &place, at);
                }
            }
        }
    }
}
