//! The gradient of an embedding table: `dtable[id] = scale (sum of dout over the tokens that name id) + dtable[id]`, without atomics on sums, so that its
//! bits are the same from run to run. Tokens are sorted by the row that they name; whoever writes a row then knows its tokens, and adds them in their order.
//!
//! ```text
//! ids      7 2 7 0 7     sort, eight bits a pass:     keys    0 2 7 7 7
//!                        count, place                 tokens  3 1 0 2 4
//! bounds                                              starts  0 1 1 2 2 2 2 2 5
//! sum                    row 7 = dout 0 + dout 2 + dout 4; row 1 = 0
//! ```
//!
//! A row that thousands of tokens name would be the work of one thread block. So each [`RUN`] of sorted tokens that names one row alone is summed up
//! beforehand, by a thread block of its own, and the row takes these sums in the place of the tokens:
//!
//! ```text
//! sorted tokens    |  . . . 7 7 7 | 7 7 7 7 7 7 7 | 7 7 7 7 7 7 7 | 7 7 9 . .  |
//! row 7                     tokens      a sum           a sum       tokens
//! ```

use cuda_std::{copy, shared, sync, thread, warp};
use kernel_spec::families::embedding::{BINS, BoundsParams, DIGIT_BITS, Memory, Pass, RUN, SortParams, SumParams};

use crate::operators::embedding::{id, seat, tiles};
use crate::operators::row::{Columns, Config, RowPlace, Vector};
use crate::parts::element::Element;

/// Warps of a thread block of the sort, which has a thread for each value of a digit.
const WARPS: u32 = BINS / 32;

/// The digit of a number.
#[inline(always)]
fn digit(p: &SortParams, key: u32) -> u32 {
    (key >> p.shift) % BINS
}

/// Numbers `[first, end]` of a thread block.
#[inline(always)]
fn share(p: &SortParams) -> [u32; 2] {
    let first = thread::block_index() * p.share;
    [first.min(p.count), (first + p.share).min(p.count)]
}

/// One thread block: how many of its numbers have each value of the digit.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn count(p: &SortParams) {
    let bins = shared::dynamic() + const { Memory::of(Pass::Count, BINS) }.bins;
    let own = bins + thread::index() * 4;
    // SAFETY: numbers of the thread block exist; the barriers order shared memory, on which threads count together between them.
    unsafe {
        shared::store_u32(own, 0);
        sync::block();
        let [first, end] = share(p);
        let mut index = first + thread::index();
        while index < end {
            shared::fetch_add(bins + digit(p, id(p.keys, index, p.vocabulary)) * 4, 1);
            index += BINS;
        }
        sync::block();
        let place = thread::block_index() * BINS + thread::index();
        copy::store_u32(p.counts + place as u64 * 4, shared::load_u32(own));
    }
}

/// Counts that a thread of [`place`] has loads of in flight at a time.
const LOADS: usize = 8;

/// One thread block: its numbers go where they are in the order of the digit, behind those of the same value that are before them.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn place(p: &SortParams) {
    let memory = const { Memory::of(Pass::Place, BINS) };
    let (bins, warps) = (shared::dynamic() + memory.bins, shared::dynamic() + memory.warps);
    let bin = thread::index();
    // SAFETY: all threads come here; the barriers order shared memory, and those of a warp the counters that are its own.
    unsafe {
        // Numbers of this value in all thread blocks, and in those before.
        let (mut all, mut before) = (0, 0);
        let mut block = 0;
        while block < p.blocks {
            let mut found = [0; LOADS];
            for i in 0..LOADS {
                let of = block + i as u32;
                if of < p.blocks {
                    found[i] = copy::load_u32(p.counts + (of * BINS + bin) as u64 * 4);
                }
            }
            for i in 0..LOADS {
                all += found[i];
                before += if block + (i as u32) < thread::block_index() { found[i] } else { 0 };
            }
            block += LOADS as u32;
        }
        shared::store_u32(bins + bin * 4, all);
        for warp in 0..WARPS {
            shared::store_u32(warps + (warp * BINS + bin) * 4, 0);
        }
        sync::block();
        // Behind those of smaller values.
        let mut next = before;
        for four in 0..BINS / 4 {
            let found = shared::load_u32x4(bins + four * 16);
            for i in 0..4 {
                next += if four * 4 + (i as u32) < bin { found[i] } else { 0 };
            }
        }
        let walk = Walk::of(p, warps);
        let mut first = walk.first;
        while first < walk.end {
            let own = walk.number(p, first);
            own.count();
            first += 32;
        }
        sync::block();
        for warp in 0..WARPS {
            let place = warps + (warp * BINS + bin) * 4;
            let found = shared::load_u32(place);
            shared::store_u32(place, next);
            next += found;
        }
        sync::block();
        let mut first = walk.first;
        while first < walk.end {
            let own = walk.number(p, first);
            if own.exists {
                let place = (shared::load_u32(own.counter) + own.rank) as u64 * 4;
                let token = if p.tokens == 0 {
                    first + thread::lane()
                } else {
                    copy::load_u32(p.tokens + (first + thread::lane()) as u64 * 4)
                };
                copy::store_u32(p.sorted_keys + place, own.key);
                copy::store_u32(p.sorted_tokens + place, token);
            }
            warp::sync();
            own.count();
            first += 32;
        }
    }
}

/// The numbers of a warp, 32 at a time and in their order.
struct Walk {
    first: u32,
    end: u32,
    /// Where its counters are in shared memory.
    counters: u32,
}

/// One of these, in its lane.
struct Number {
    exists: bool,
    key: u32,
    /// How many lanes before this one have the same value of the digit.
    rank: u32,
    /// How many lanes have.
    alike: u32,
    /// Where the warp counts that value.
    counter: u32,
}

impl Walk {
    /// # Safety
    /// All threads of the warp.
    #[inline(always)]
    unsafe fn of(p: &SortParams, warps: u32) -> Walk {
        let [first, end] = share(p);
        // SAFETY: passed on.
        let warp = unsafe { thread::warp_index() };
        let run = p.share / WARPS;
        let first = (first + warp * run).min(end);
        Walk { first, end: (first + run).min(end), counters: warps + warp * BINS * 4 }
    }

    /// # Safety
    /// All threads of the warp, converged.
    #[inline(always)]
    unsafe fn number(&self, p: &SortParams, first: u32) -> Number {
        let index = first + thread::lane();
        let exists = index < self.end;
        // SAFETY: the number exists where it is read; collectives are called by all lanes.
        unsafe {
            let key = if exists { id(p.keys, index, p.vocabulary) } else { 0 };
            let digit = digit(p, key);
            let mut alike = warp::ballot(exists);
            for bit in 0..DIGIT_BITS {
                let has = (digit >> bit) & 1 != 0;
                let lanes = warp::ballot(has);
                alike &= if has { lanes } else { !lanes };
            }
            let before = alike & ((1 << thread::lane()) - 1);
            Number {
                exists,
                key,
                rank: before.count_ones(),
                alike: alike.count_ones(),
                counter: self.counters + digit * 4,
            }
        }
    }
}

impl Number {
    /// Counts all of the lanes that have a value, once for each.
    ///
    /// # Safety
    /// All threads of the warp, converged.
    #[inline(always)]
    unsafe fn count(&self) {
        // SAFETY: one lane of those with a value touches its counter, which the next numbers find counted up.
        unsafe {
            if self.exists && self.rank == 0 {
                shared::store_u32(self.counter, shared::load_u32(self.counter) + self.alike);
            }
            warp::sync();
        }
    }
}

/// One thread block: the first place of a row of the table among the sorted numbers, a row a thread.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn bounds<const THREADS: u32>(p: &BoundsParams) {
    let row = thread::block_index() * THREADS + thread::index();
    if row > p.vocabulary {
        return;
    }
    let (mut first, mut end) = (0, p.count);
    while first < end {
        let middle = (first + end) / 2;
        // SAFETY: the middle is below the number of them.
        if unsafe { copy::load_u32(p.keys + middle as u64 * 4) } < row { first = middle + 1 } else { end = middle }
    }
    // SAFETY: one number a thread.
    unsafe { copy::store_u32(p.starts + row as u64 * 4, first) };
}

/// Rows that a thread has loads of in flight at a time.
const ROWS: usize = 4;

/// What sorted tokens add to the columns of a thread.
struct Sum<const V: usize>([Vector; V]);

impl<const V: usize> Sum<V> {
    /// Adds the rows of dout of the sorted tokens `first..end`.
    ///
    /// # Safety
    /// These tokens exist.
    #[inline(always)]
    unsafe fn add_tokens<C: Config>(&mut self, p: &SumParams, own: &Columns, mut first: u32, end: u32) {
        while first < end {
            let mut rows = [[[0.0; 8]; V]; ROWS];
            for i in 0..ROWS {
                let slot = first + i as u32;
                if slot < end {
                    // SAFETY: the token exists.
                    unsafe {
                        let token = copy::load_u32(p.tokens + slot as u64 * 4);
                        rows[i] =
                            own.load::<C, V>(RowPlace::of(&p.extents, token).start::<C::T>(&p.dout, false), false);
                    }
                }
            }
            self.add::<C>(&rows);
            first += ROWS as u32;
        }
    }

    /// Adds the sums of the runs `first..end`.
    ///
    /// # Safety
    /// These runs name one row each.
    #[inline(always)]
    unsafe fn add_runs<C: Config>(&mut self, p: &SumParams, own: &Columns, mut first: u32, end: u32) {
        while first < end {
            let mut rows = [[[0.0; 8]; V]; ROWS];
            for i in 0..ROWS {
                if first + (i as u32) < end {
                    // SAFETY: the run exists.
                    rows[i] = unsafe { own.load::<C, V>(run_start(p, first + i as u32), true) };
                }
            }
            self.add::<C>(&rows);
            first += ROWS as u32;
        }
    }

    #[inline(always)]
    fn add<C: Config>(&mut self, rows: &[[Vector; V]; ROWS]) {
        for i in 0..ROWS {
            for v in 0..V {
                for e in 0..C::T::CHUNK {
                    self.0[v][e] += rows[i][v][e];
                }
            }
        }
    }
}

/// Where the sum of a run is: rows of whole vectors.
#[inline(always)]
fn run_start(p: &SumParams, run: u32) -> u64 {
    p.runs + run as u64 * p.extents.columns.next_multiple_of(4) as u64 * 4
}

/// One thread block: sums of the runs of sorted tokens that name one row.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn runs<C: Config, const V: usize>(p: &SumParams) {
    let seat = seat::<C>();
    let run = seat.team * const { C::TILE.block_rows() } + seat.in_block;
    // A run that is no whole one is nobody's.
    if run >= p.extents.rows / RUN {
        return;
    }
    let first = run * RUN;
    // SAFETY: the tokens of the run exist; its sum is that of these threads alone.
    unsafe {
        let [key, last] = [first, first + RUN - 1].map(|slot| copy::load_u32(p.keys + slot as u64 * 4));
        if key != last || key == p.padding {
            return;
        }
        for tile in 0..tiles::<C>(p.extents.columns) {
            let own = Columns::of::<C>(&seat, tile, p.extents.columns, p.extents.columns, p.aligned != 0, true);
            let mut sum = Sum([[0.0; 8]; V]);
            sum.add_tokens::<C>(p, &own, first, first + RUN);
            for v in 0..V {
                own.store::<C>(run_start(p, run), true, v, sum.0[v]);
            }
        }
    }
}

/// One thread block: rows of the gradient of the table.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn sum<C: Config, const V: usize>(p: &SumParams) {
    let seat = seat::<C>();
    let row = seat.team * const { C::TILE.block_rows() } + seat.in_block;
    if row >= p.vocabulary {
        return;
    }
    // SAFETY: the row exists, and its columns are those of this thread alone; its tokens exist, and so do the sums of runs that are all its own.
    unsafe {
        let [first, end] = [row, row + 1].map(|row| copy::load_u32(p.starts + row as u64 * 4));
        let end = if row == p.padding { first } else { end };
        // Tokens up to the first run that is all the row's, such runs, and the tokens behind them.
        let whole = first.next_multiple_of(RUN).min(end);
        let rest = (end / RUN * RUN).max(whole);
        let wide = p.wide_table != 0;
        let to = RowPlace::at([0, 0, row]).start::<C::T>(&p.dtable, wide);
        for tile in 0..tiles::<C>(p.extents.columns) {
            let own = Columns::of::<C>(&seat, tile, p.extents.columns, p.extents.columns, p.aligned != 0, true);
            let mut sum = Sum([[0.0; 8]; V]);
            sum.add_tokens::<C>(p, &own, first, whole);
            sum.add_runs::<C>(p, &own, whole / RUN, rest / RUN);
            sum.add_tokens::<C>(p, &own, rest, end);
            for v in 0..V {
                let mut result = sum.0[v];
                for e in 0..C::T::CHUNK {
                    result[e] *= p.scale;
                }
                if p.accumulate != 0 {
                    let before = own.load_one::<C>(to, wide, v);
                    for e in 0..C::T::CHUNK {
                        result[e] += before[e];
                    }
                }
                own.store::<C>(to, wide, v, result);
            }
        }
    }
}
