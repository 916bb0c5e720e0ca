//! Which weights dropout keeps: the numbers of [`philox`], for tiles of any shape.
//!
//! A lane finds the marks of all of its elements first, a bit for each, so that the words of the generator live no longer than it takes.

use cuda_std::{copy, math, thread};
use kernel_spec::ForwardFeatures;
use kernel_spec::families::forward::features::{DROPOUT, DROPOUT_OFFSET, DROPOUT_SEED, DROPOUT_STATE};
use kernel_spec::philox::{self, BLOCK_KEYS, BLOCK_ROWS};

use crate::parts::fragments::Fragments;

/// The stream of random numbers of a head, and what is done with them.
#[derive(Clone, Copy)]
pub struct Stream {
    seed: u64,
    offset: u64,
    /// The largest byte that keeps a weight: all of them where nothing is dropped.
    threshold: u32,
    /// What weights that are kept are multiplied with.
    pub factor: f32,
}

impl Stream {
    /// Of a head of all, `batch * q_heads + q_head`. Where the feature is off, it keeps everything as it is.
    #[inline(always)]
    pub fn of(features: &ForwardFeatures, head: u32) -> Stream {
        // Opaque, and lanes below: what follows from these is to be computed where it is used, not to live in registers through a loop.
        let head = math::opaque(head);
        if !features.has(DROPOUT) {
            return Stream { seed: 0, offset: 0, threshold: 0xFF, factor: 1.0 };
        }
        let value = features.value(DROPOUT);
        let (mut seed, mut offset) = (features.value(DROPOUT_SEED), features.value(DROPOUT_OFFSET));
        if value & DROPOUT_STATE != 0 {
            // SAFETY: then it is the address of two numbers.
            let state = unsafe { [copy::load_u32x2(seed), copy::load_u32x2(seed + 8)] };
            let [on_device, first] = state.map(|[low, high]| low as u64 | (high as u64) << 32);
            (seed, offset) = (on_device, first.wrapping_add(offset));
        }
        Stream {
            seed,
            offset: philox::head_offset(offset, head as u64),
            threshold: math::opaque((value >> 32) as u32) & 0xFF,
            factor: f32::from_bits(value as u32),
        }
    }

    /// The words of a lane for the block that has a row and a key.
    #[inline(always)]
    fn words(&self, lane: u32, row: u32, key: u32) -> [u32; 4] {
        philox::words(self.seed, self.offset, lane, row / BLOCK_ROWS, key / BLOCK_KEYS)
    }

    /// Whether two keys side by side are kept in a row, the first of them even.
    #[inline(always)]
    pub fn keeps_pair(&self, row: u32, key: u32) -> [bool; 2] {
        let word = select(self.words(philox::lane(row, key), row, key), philox::word(key));
        let bytes = word >> (8 * philox::byte(row, key));
        [bytes, bytes >> 8].map(|byte| byte & 0xFF <= self.threshold)
    }

    /// Whether a key is kept in a row, in code that is there for few.
    #[inline(always)]
    pub fn keeps(&self, row: u32, key: u32) -> bool {
        let [even, odd] = self.keeps_pair(row, key & !1);
        if key % 2 == 0 { even } else { odd }
    }

    /// Bits 0, 8, 16 and 24, set for those bytes of a word that keep: without a comparison for each.
    #[inline(always)]
    fn marks(&self, word: u32) -> u32 {
        // In halves, a byte each: the difference to 256 and the threshold has bit 8 as long as it is not negative.
        let above = (self.threshold | 0x100) * 0x0001_0001;
        let even = (above - (word & 0x00FF_00FF)) & 0x0100_0100;
        let odd = (above - (word >> 8 & 0x00FF_00FF)) & 0x0100_0100;
        even >> 8 | odd
    }
}

/// One of four words, without an array in memory.
#[inline(always)]
fn select(words: [u32; 4], index: u32) -> u32 {
    let [low, high] = [[words[0], words[1]], [words[2], words[3]]].map(|[a, b]| if index & 1 == 0 { a } else { b });
    if index & 2 == 0 { low } else { high }
}

/// A bit for each element of a tile with up to two by eight fragments, as rows that drop weights have them.
#[derive(Clone, Copy)]
pub struct Marks<const TRANSPOSED: bool> {
    bits: [u32; 2],
    /// What those that are kept are multiplied with.
    factor: f32,
}

/// Of a tile whose rows are queries: a lane has the elements that the layout of the numbers gives it.
pub type RowMarks = Marks<false>;

/// Of a tile whose rows are keys.
pub type ColumnMarks = Marks<true>;

impl<const TRANSPOSED: bool> Marks<TRANSPOSED> {
    #[inline(always)]
    const fn bit(n: usize, i: usize) -> usize {
        if TRANSPOSED { n / 2 + 4 * i + n % 2 * 16 } else { n + 8 * i }
    }

    /// Whether element `i` of fragment `(m, n)` is kept.
    #[inline(always)]
    fn keeps(&self, m: usize, n: usize, i: usize) -> bool {
        self.bits[m] >> Self::bit(n, i) & 1 != 0
    }
}

impl RowMarks {
    /// Of the query rows from `row` on, a multiple of 16, and the keys from `key` on, a multiple of the tile's columns.
    #[inline(always)]
    pub fn of<F: Fragments>(stream: &Stream, row: u32, key: u32) -> Self {
        let (lane, mut bits) = (math::opaque(thread::lane()), [0; 2]);
        for m in 0..F::M {
            let mut words = [0; 4];
            for n in 0..F::N {
                let first = key + 8 * n as u32;
                if n % 4 == 0 {
                    words = stream.words(lane, row + 16 * m as u32, first);
                }
                let word = if F::N % 4 == 0 { words[n % 4] } else { select(words, philox::word(first)) };
                // Byte `i` is element `i`.
                bits[m] |= stream.marks(word) << n;
            }
        }
        // Here and now, not where they are looked at.
        Marks { bits: bits.map(math::opaque), factor: stream.factor }
    }
}

impl ColumnMarks {
    /// Of the keys from `key` on and the query rows from `row` on, multiples of the tile's.
    ///
    /// A lane's columns are two query rows, which other lanes have in the layout of the numbers: it asks for both of them.
    #[inline(always)]
    pub fn of<F: Fragments>(stream: &Stream, key: u32, row: u32) -> Self {
        let lane = math::opaque(thread::lane());
        let mut bits = [0; 2];
        for n in (0..F::N).step_by(2) {
            let first_row = row + 8 * n as u32;
            for parity in 0..2 {
                let owner = philox::lane(lane % 4 * 2 + parity, lane / 4);
                // Both fragments of 16 keys are in one block, where there are two.
                let words = stream.words(owner, first_row, key);
                for m in 0..F::M {
                    for half in 0..2 {
                        let index = if F::M == 2 { 2 * m as u32 + half } else { philox::word(key + 8 * half) };
                        // The byte of the lane's key, and 16 bits above it that of the query row 8 below.
                        let word = select(words, index) >> (8 * (lane / 4 % 2));
                        let marks = stream.marks(word) & 0x0001_0001;
                        let marks = if F::N == 1 { marks >> (16 * (first_row / 8 % 2)) & 1 } else { marks };
                        bits[m] |= marks << Self::bit(n, (parity + 2 * half) as usize);
                    }
                }
            }
        }
        Marks { bits, factor: stream.factor }
    }
}

/// Sets the weights that are not kept to 0.
#[inline(always)]
pub fn drop_weights<F: Fragments, const TRANSPOSED: bool>(weights: &mut F, kept: &Marks<TRANSPOSED>) {
    for m in 0..F::M {
        for n in 0..F::N {
            for i in 0..4 {
                let weight = &mut weights.at_mut(m, n)[i];
                *weight = if kept.keeps(m, n, i) { *weight } else { 0.0 };
            }
        }
    }
}

/// The same, and multiplies the others with their factor.
#[inline(always)]
pub fn drop_and_scale<F: Fragments, const TRANSPOSED: bool>(weights: &mut F, kept: &Marks<TRANSPOSED>) {
    for m in 0..F::M {
        for n in 0..F::N {
            for i in 0..4 {
                let weight = &mut weights.at_mut(m, n)[i];
                *weight = if kept.keeps(m, n, i) { *weight * kept.factor } else { 0.0 };
            }
        }
    }
}
