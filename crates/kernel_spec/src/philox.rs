//! The random numbers of dropout: which number belongs to which probability.
//!
//! The generator is Philox4x32 with 7 rounds (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011): from a key of 64 bits and a
//! counter of 128 it makes four words. What it is asked for is that of FlashAttention-2, so that the same seed and offset drop the same
//! probabilities there, in PyTorch, and here:
//!
//! - The probabilities of a head lie in blocks of 16 query rows by 32 keys, each of which asks 32 times: once for each lane of the warp that
//!   would hold the block as four accumulator fragments side by side ([`layout`](crate::layout) has the picture of one).
//! - The key is the seed. The low half of the counter is the offset, plus 32 for each head of all (`batch * q_heads + q_head`) before this one,
//!   plus the lane. The high half is the block: its number among the blocks of rows in the low word, among those of keys in the high one.
//! - The sixteen bytes that come out, lowest first, belong to the sixteen elements of the lane: four to each fragment, in its order of elements.
//!   A row and a key thus have the word `key % 32 / 8` of the lane `row % 8 * 4 + key % 8 / 2`, and in it the byte
//!   `row % 16 / 8 * 2 + key % 2`.
//! - A probability is kept where its byte is at most [`threshold`], and then multiplied with `1 / (1 - p)`, whatever share of 256 that is.
//!
//! Nothing of this depends on tiles: kernels of any shape, forward and backward, drop the same. A call moves the offset of a generator on
//! by 32 for each head.
//!
//! The elements of rows, which norms drop before the residual is added, have numbers of the same generator and key in another order, since a thread holds
//! neighbouring columns of one row there:
//!
//! - The low half of the counter is the offset alone. The high half is the row, counted over all axes but the last, in the low word, and the number of the
//!   group of 8 columns in the high one. A call moves the offset of a generator on by [`ROWS_NUMBERS`].
//! - The sixteen bytes that come out, lowest first, are the 16-bit numbers of the eight columns.
//! - An element is kept where its number is at most [`rows_threshold`], and then multiplied with `1 / (1 - p)`, whatever share of 65536 that is. Sixteen bits
//!   where probabilities have eight: they cost nothing more, as half a vector of f32 needs no more than the whole.
//!
//! Norms and attention that take different offsets of one seed share no counter.

/// Rounds of the generator.
pub const ROUNDS: u32 = 7;

/// Query rows of a block.
pub const BLOCK_ROWS: u32 = 16;

/// Keys of a block.
pub const BLOCK_KEYS: u32 = 32;

/// Numbers of the generator that a head takes: one for each lane.
pub const HEAD_NUMBERS: u32 = 32;

/// Columns of a row whose numbers come of one counter.
pub const ROWS_GROUP: u32 = 8;

/// Numbers of the generator that a call on rows takes.
pub const ROWS_NUMBERS: u64 = 1;

/// Factors of a round, and what is added to the key from one to the next (Salmon et al., table 2 and section 4.3).
const FACTORS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four words for a counter and a key, low words first.
#[inline(always)]
pub const fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let mut round = 0;
    while round < ROUNDS {
        let first = counter[0] as u64 * FACTORS[0] as u64;
        let second = counter[2] as u64 * FACTORS[1] as u64;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(STEPS[0]), key[1].wrapping_add(STEPS[1])];
        round += 1;
    }
    counter
}

/// The stream of a head: the offset of a call, moved on by the heads before this one of all.
#[inline(always)]
pub const fn head_offset(offset: u64, head: u64) -> u64 {
    offset.wrapping_add(head * HEAD_NUMBERS as u64)
}

/// The words of a lane for a block, one for each of its fragments; `offset` is that of [`head_offset`].
#[inline(always)]
pub const fn words(seed: u64, offset: u64, lane: u32, row_block: u32, key_block: u32) -> [u32; 4] {
    let counter = offset.wrapping_add(lane as u64);
    philox([counter as u32, (counter >> 32) as u32, row_block, key_block], [seed as u32, (seed >> 32) as u32])
}

/// Which lane has a row and a key.
#[inline(always)]
pub const fn lane(row: u32, key: u32) -> u32 {
    row % 8 * 4 + key % 8 / 2
}

/// Which of its words.
#[inline(always)]
pub const fn word(key: u32) -> u32 {
    key % BLOCK_KEYS / 8
}

/// Which byte of that, counted from the lowest.
#[inline(always)]
pub const fn byte(row: u32, key: u32) -> u32 {
    row % BLOCK_ROWS / 8 * 2 + key % 2
}

/// The random byte of a row and a key, 0 to 255.
#[inline(always)]
pub const fn random(seed: u64, offset: u64, row: u32, key: u32) -> u32 {
    let words = words(seed, offset, lane(row, key), row / BLOCK_ROWS, key / BLOCK_KEYS);
    words[word(key) as usize] >> (8 * byte(row, key)) & 0xFF
}

/// The largest byte that keeps a probability, where each is dropped with probability `p`.
pub const fn threshold(p: f32) -> u32 {
    ((1.0 - p) as f64 * 255.0) as u32
}

/// The words of the group of [`ROWS_GROUP`] columns that has a column, of a row of a norm: each has the numbers of two, the first of them in its low half.
#[inline(always)]
pub const fn rows_words(seed: u64, offset: u64, row: u32, column: u32) -> [u32; 4] {
    philox([offset as u32, (offset >> 32) as u32, row, column / ROWS_GROUP], [seed as u32, (seed >> 32) as u32])
}

/// The random number of an element of a row, 0 to 65535.
#[inline(always)]
pub const fn rows_random(seed: u64, offset: u64, row: u32, column: u32) -> u32 {
    let in_group = column % ROWS_GROUP;
    rows_words(seed, offset, row, column)[(in_group / 2) as usize] >> (16 * (in_group % 2)) & 0xFFFF
}

/// The largest number that keeps an element of a row, where each is dropped with probability `p`.
pub const fn rows_threshold(p: f32) -> u32 {
    ((1.0 - p) as f64 * 65535.0) as u32
}

/// Whether kernels have marks for the rows and columns of a warp's tile of scores: a bit for each of its fragments of 8 columns, whose words come
/// for four of them at a time, or for one or two, and two fragments of 16 rows.
pub const fn has_marks([rows, cols]: [u32; 2]) -> bool {
    rows <= 32 && cols <= 64 && (cols.is_multiple_of(32) || cols == 8 || cols == 16)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::layout::{fragment_col, fragment_row};
    use std::vec;

    /// From the file of known answers of Random123, for 7 rounds.
    #[test]
    fn the_generator_gives_the_published_answers() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let of_zeros = [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48];
        let of_ones = [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662];
        let of_pi = [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a];
        assert_eq!(philox([0; 4], [0; 2]), of_zeros);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), of_ones);
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), of_pi);
    }

    /// The prose, from the side of the lane: element `i` of fragment `n` is byte `i` of word `n`.
    #[test]
    fn every_byte_of_a_block_belongs_to_one_element() {
        let mut taken = vec![0; 32 * 16];
        for l in 0..32 {
            for n in 0..4 {
                for i in 0..4 {
                    let (row, key) = (fragment_row(l, i), 8 * n + fragment_col(l, i));
                    assert_eq!((lane(row, key), word(key), byte(row, key)), (l, n, i));
                    taken[(row * BLOCK_KEYS + key) as usize] += 1;
                }
            }
        }
        assert!(taken.iter().all(|&times| times == 1));
    }

    #[test]
    fn a_threshold_is_rounded_down_from_255() {
        for (p, expected) in [(0.1, 229), (0.17, 211), (0.5, 127), (0.999, 0), (0.0, 255), (0.001, 254)] {
            assert_eq!(threshold(p), expected, "{p}");
        }
        for (p, expected) in [(0.1, 58981), (0.5, 32767), (0.999_99, 0), (0.0, 65535), (0.001, 65469)] {
            assert_eq!(rows_threshold(p), expected, "{p}");
        }
    }

    #[test]
    fn counters_carry_into_their_high_word() {
        assert_eq!(words(7, u64::from(u32::MAX), 1, 2, 3), philox([0, 1, 2, 3], [7, 0]));
        assert_eq!(words(7, u64::MAX, 1, 2, 3), philox([0, 0, 2, 3], [7, 0]));
        assert_eq!(head_offset(5, 1 << 31), 5 + (1 << 36));
    }
}
