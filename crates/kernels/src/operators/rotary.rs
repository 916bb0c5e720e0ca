//! Rotary embedding (Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021): each pair of columns of a head is turned by the
//! angle that the position of its row has in the tables, in f32, and rounded once:
//!
//! ```text
//! x' = x cos - sign y sin        y' = sign x sin + y cos
//! ```
//!
//! `sign` is -1 for the opposite turn, which takes the first one back and is its gradient.
//!
//! It is bound by memory. A thread has two vectors of 16 bytes of a head, one of either half, in both styles, so that neighbours read neighbouring vectors;
//! it has them of several heads of a token, all of which are on their way before the first is turned, and one set of cosines and sines.
//!
//! ```text
//! columns of a head    [v0 v1 .. | v0 v1 ..]  [rest         ]        units:  v0 v1 .. turn, the others copy
//!                       first half  second     not turned            pairs:  (i, half + i), or neighbours where interleaved
//! threads              unit is fastest, then heads, then tokens
//! ```
//!
//! Positions on the device are not believed: each is taken for the nearest that the tables have.

use cuda_std::{copy, math, thread};
use kernel_spec::families::rotary::RotaryParams;
use kernel_spec::families::rotary::features::INTERLEAVED;

use crate::operators::row::{RowPlace, Vector};
use crate::parts::element::Element;

/// One thread block of `THREADS`, each with up to `HEADS` heads of a token.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn rotary<T: Element, const THREADS: u32, const HEADS: usize>(p: &RotaryParams) {
    let (team, unit) = p.units.split(thread::block_index() * THREADS + thread::index());
    let (token, group) = p.groups.split(team);
    if token >= p.tokens {
        return;
    }
    let (batch, row) = p.rows.split(token);
    let heads = Heads { batch, row, group, groups: p.groups.value };
    // SAFETY: the token exists, and so do the heads below their number; no other thread has these columns of them.
    unsafe {
        let angles = position(p, token, batch, row) as u64 * p.half as u64;
        if p.aligned == 0 {
            turn_elements::<T, HEADS>(p, heads, unit, angles);
        } else {
            turn_vectors::<T, HEADS>(p, heads, unit, angles);
        }
    }
}

/// The heads of a thread: every `groups`-th from `group` on.
#[derive(Clone, Copy)]
struct Heads {
    batch: u32,
    row: u32,
    group: u32,
    groups: u32,
}

impl Heads {
    /// The number of one of them, and where it is.
    #[inline(always)]
    fn of(&self, index: usize) -> (u32, RowPlace) {
        let head = self.group + index as u32 * self.groups;
        (head, RowPlace::at([self.batch, self.row, head]))
    }
}

/// The position of a token, among those of the tables.
///
/// # Safety
/// The token exists.
#[inline(always)]
unsafe fn position(p: &RotaryParams, token: u32, batch: u32, row: u32) -> u32 {
    // SAFETY: passed on: arrays have a number for each token, batch entry or sequence.
    let position = unsafe {
        if p.positions != 0 {
            count(p.positions, token)
        } else {
            let [sequence, row] = if p.starts != 0 { sequence_of(p, token) } else { [batch, row] };
            row + if p.offsets != 0 { count(p.offsets, sequence) } else { p.offset }
        }
    };
    position.min(p.position_count - 1)
}

/// A number on the device that is taken for 0 where it is below.
///
/// # Safety
/// There is such a number.
#[inline(always)]
unsafe fn count(array: u64, index: u32) -> u32 {
    // SAFETY: passed on.
    (unsafe { copy::load_u32(array + index as u64 * 4) } as i32).max(0) as u32
}

/// The packed sequence of a token and which of its rows it is: the last that starts at the token or before it, or else the first. Whatever the starts are,
/// it is one of the sequences.
///
/// # Safety
/// There are as many starts as sequences.
#[inline(always)]
unsafe fn sequence_of(p: &RotaryParams, token: u32) -> [u32; 2] {
    let (mut first, mut end) = (0, p.sequences);
    while end - first > 1 {
        let middle = (first + end) / 2;
        // SAFETY: the middle is below the number of sequences.
        if unsafe { count(p.starts, middle) } <= token { first = middle } else { end = middle }
    }
    // SAFETY: there is a sequence, as the host has checked.
    [first, token.saturating_sub(unsafe { count(p.starts, first) })]
}

/// Two vectors of every head: turned, or copied behind the turned columns.
///
/// # Safety
/// The unit exists; halves, rows and tables are whole vectors.
#[inline(always)]
unsafe fn turn_vectors<T: Element, const HEADS: usize>(p: &RotaryParams, heads: Heads, unit: u32, angles: u64) {
    let turns = unit < p.turning_units;
    let chunk = T::CHUNK as u32;
    let [first, second] = if turns {
        [unit * chunk, p.half + unit * chunk]
    } else {
        let [unit, copying] = [unit - p.turning_units, p.units.value - p.turning_units];
        [2 * p.half + unit * chunk, 2 * p.half + (copying + unit) * chunk]
    };
    // Of an odd number of vectors to copy, the last thread has one.
    let second_heads = if second < p.columns { p.heads } else { 0 };
    let at = #[inline(always)]
    |row: u64, column: u32| row + column as u64 * T::BYTES as u64;
    // SAFETY: passed on; heads behind the last are neither read nor written.
    unsafe {
        let mut words = [[[0; 4]; 2]; HEADS];
        for i in 0..HEADS {
            let (head, place) = heads.of(i);
            let row = place.start::<T>(&p.x, false);
            words[i] = [
                copy::load_u32x4_within(at(row, first), head, p.heads),
                copy::load_u32x4_within(at(row, second), head, second_heads),
            ];
        }
        if turns {
            // The pairs of two vectors: in halves a run of them; in neighbours those of either vector.
            let few = chunk / 2;
            let interleaved = p.features.has(INTERLEAVED);
            let [low, high] = if interleaved {
                [unit * few, (p.turning_units + unit) * few]
            } else {
                [unit * chunk, unit * chunk + few]
            };
            let load = #[inline(always)]
            |table: u64| {
                let [low, high] =
                    [low, high].map(|pair| load_few::<T>(table, angles + pair as u64, p.wide_tables != 0));
                let mut all = [0.0; 8];
                for e in 0..T::CHUNK / 2 {
                    (all[e], all[T::CHUNK / 2 + e]) = (low[e], high[e]);
                }
                all
            };
            let (cos, mut sin) = (load(p.cos), load(p.sin));
            for e in 0..T::CHUNK {
                sin[e] *= p.sign;
            }
            for i in 0..HEADS {
                let [a, b] = [T::widen_chunk(words[i][0]), T::widen_chunk(words[i][1])];
                let [a, b] =
                    if interleaved { in_neighbours::<T>(a, b, cos, sin) } else { in_halves::<T>(a, b, cos, sin) };
                words[i] = [T::round_chunk(a), T::round_chunk(b)];
            }
        }
        for i in 0..HEADS {
            let (head, place) = heads.of(i);
            let row = place.start::<T>(&p.out, false);
            copy::store_u32x4_within(at(row, first), words[i][0], head, p.heads);
            copy::store_u32x4_within(at(row, second), words[i][1], head, second_heads);
        }
    }
}

/// As many neighbouring cosines or sines as there are pairs in a vector.
///
/// # Safety
/// They exist, and the first is at a multiple of the bytes of all.
#[inline(always)]
unsafe fn load_few<T: Element>(table: u64, index: u64, wide: bool) -> [f32; 4] {
    // SAFETY: passed on.
    unsafe {
        if T::BYTES == 4 {
            let [a, b] = copy::load_u32x2(table + index * 4);
            [f32::from_bits(a), f32::from_bits(b), 0.0, 0.0]
        } else if wide {
            copy::load_f32x4(table + index * 4)
        } else {
            T::load_four(table + index * T::BYTES as u64)
        }
    }
}

/// One pair.
#[inline(always)]
fn turned([x, y]: [f32; 2], cos: f32, sin: f32) -> [f32; 2] {
    [math::fma(x, cos, -(y * sin)), math::fma(x, sin, y * cos)]
}

/// Pairs of which each has one column in either vector.
#[inline(always)]
fn in_halves<T: Element>(mut a: Vector, mut b: Vector, cos: Vector, sin: Vector) -> [Vector; 2] {
    for e in 0..T::CHUNK {
        [a[e], b[e]] = turned([a[e], b[e]], cos[e], sin[e]);
    }
    [a, b]
}

/// Pairs of neighbours in two vectors.
#[inline(always)]
fn in_neighbours<T: Element>(mut a: Vector, mut b: Vector, cos: Vector, sin: Vector) -> [Vector; 2] {
    for e in 0..T::CHUNK / 2 {
        let other = T::CHUNK / 2 + e;
        [a[2 * e], a[2 * e + 1]] = turned([a[2 * e], a[2 * e + 1]], cos[e], sin[e]);
        [b[2 * e], b[2 * e + 1]] = turned([b[2 * e], b[2 * e + 1]], cos[other], sin[other]);
    }
    [a, b]
}

/// Pairs and columns wherever they lie, one after the other: those of a thread are as far apart as there are threads.
///
/// # Safety
/// The unit exists.
#[inline(always)]
unsafe fn turn_elements<T: Element, const HEADS: usize>(p: &RotaryParams, heads: Heads, unit: u32, angles: u64) {
    let at = #[inline(always)]
    |row: u64, column: u32| row + column as u64 * T::BYTES as u64;
    let wide = p.wide_tables != 0;
    let load = #[inline(always)]
    |table: u64, pair: u32| {
        let index = angles + pair as u64;
        // SAFETY: the tables have the position, and the pair.
        unsafe { if wide { copy::load_f32(table + index * 4) } else { T::load(table + index * T::BYTES as u64) } }
    };
    for i in 0..HEADS {
        let (head, place) = heads.of(i);
        if head < p.heads {
            let [from, to] = [&p.x, &p.out].map(|tensor| place.start::<T>(tensor, false));
            // A loop of its own steps without a division.
            let mut pair = unit;
            while pair < p.half {
                let [first, second] =
                    if p.features.has(INTERLEAVED) { [2 * pair, 2 * pair + 1] } else { [pair, p.half + pair] };
                // SAFETY: the columns are in the row.
                unsafe {
                    let two = [T::load(at(from, first)), T::load(at(from, second))];
                    let [x, y] = turned(two, load(p.cos, pair), load(p.sin, pair) * p.sign);
                    T::store(at(to, first), x);
                    T::store(at(to, second), y);
                }
                pair += p.units.value;
            }
            let mut column = 2 * p.half + unit;
            while column < p.columns {
                // SAFETY: as above.
                unsafe { T::store(at(to, column), T::load(at(from, column))) };
                column += p.units.value;
            }
        }
    }
}
