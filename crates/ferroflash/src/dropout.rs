//! Dropout: on the probabilities of attention, and on the rows that a norm adds to a residual. Each element is dropped with probability `p`, and multiplied
//! with `1 / (1 - p)` where it is kept.
//!
//! # Probabilities
//!
//! Which are dropped follows from a seed and an offset alone, as in FlashAttention-2 and in PyTorch's flash backend: equal numbers drop the same
//! probabilities there and here, in every kernel, and in the backward pass, which makes them again. [`keep`] tells of each:
//!
//! ```
//! use ferroflash::dropout;
//! let keeps = |row, key| dropout::keep(42, 0, 1, 8, 3, row, key, 0.25);
//! let kept = (0..1000).filter(|&key| keeps(7, key)).count();
//! assert!((700..800).contains(&kept));
//! ```
//!
//! The generator has 2^64 numbers for a seed, of which a call takes [`numbers`] from its offset on: calls that do not overlap are independent.
//! A probability is kept where a byte is at most `floor((1 - p) 255)`, so that the share of what is kept, `(floor((1 - p) 255) + 1) / 256`, is within
//! a 256th of `1 - p`; the factor is `1 / (1 - p)` all the same. Both are FlashAttention-2's.
//!
//! # Rows
//!
//! [`Norm::with_dropout`](crate::operators::Norm::with_dropout) takes numbers of the same generator, from other counters, and [`keep_in_row`] tells of each
//! element. The key is the seed; the counter is the offset in its low 64 bits, the row above them, and above that the number of a group of eight columns, 32
//! bits each. Its sixteen bytes are eight numbers of 16 bits, one a column, and a column is kept where its number is at most `floor((1 - p) 65535)`. Rows are
//! counted over all axes but the last, in their logical order. A call takes [`ROWS_NUMBERS`] from its offset on: calls of attention and of norms that do
//! not overlap are independent. Which elements FlashAttention's `layer_norm` drops is another matter: its CUDA kernels count threads, and its Triton ones draw
//! a seed for each row.

use crate::error::{DropoutError, Result};

/// What is dropped: a probability, and where the random numbers start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    p: f32,
    state: State,
}

/// Where seed and offset are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    Numbers { seed: u64, offset: u64 },
    OnDevice { address: u64, offset: u64 },
}

impl Dropout {
    /// Drops each probability with probability `p`, from 0 to below 1, by the numbers of `seed` from `offset` on.
    pub const fn new(p: f32, seed: u64, offset: u64) -> Dropout {
        Dropout { p, state: State::Numbers { seed, offset } }
    }

    /// The same with seed and offset on the device, where kernels read them: a captured graph draws anew at each launch if they change in
    /// between. `address` is that of two numbers of 64 bits, seed and offset, and `more` is added to the offset.
    ///
    /// The reference, which has no device, does not take it.
    ///
    /// # Safety
    /// At the address, 16 bytes of memory of the device of a call stay allocated until the work of the call is done, and nobody writes them
    /// meanwhile but by work that is ordered with it.
    pub const unsafe fn from_device(p: f32, address: u64, more: u64) -> Dropout {
        Dropout { p, state: State::OnDevice { address, offset: more } }
    }

    /// The probability with which each is dropped.
    pub const fn p(&self) -> f32 {
        self.p
    }

    /// Seed and offset; `None` where they are on the device.
    pub const fn seed_and_offset(&self) -> Option<[u64; 2]> {
        match self.state {
            State::Numbers { seed, offset } => Some([seed, offset]),
            State::OnDevice { .. } => None,
        }
    }

    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// What probabilities that are kept are multiplied with.
    pub(crate) fn factor(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }

    /// Itself, checked, or `None` where it drops nothing.
    pub(crate) fn checked(self) -> Result<Option<Dropout>> {
        // Not by comparing the other way round, which NaN would pass.
        if !(0.0..1.0).contains(&self.p) {
            return Err(DropoutError::Probability { found: self.p }.into());
        }
        match self.state {
            State::OnDevice { address, .. } if address == 0 || !address.is_multiple_of(8) => {
                Err(DropoutError::State { address }.into())
            }
            _ => Ok(Some(self).filter(|dropout| dropout.p > 0.0)),
        }
    }
}

impl std::fmt::Display for Dropout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.state {
            State::Numbers { seed, offset } => write!(f, "dropout {}, seed {seed}, offset {offset}", self.p),
            State::OnDevice { offset: 0, .. } => write!(f, "dropout {}, seed and offset on the device", self.p),
            State::OnDevice { offset, .. } => {
                write!(f, "dropout {}, seed and offset on the device, + {offset}", self.p)
            }
        }
    }
}

/// Random numbers that a call with so many batch entries, or packed sequences, and query heads takes: what its generator moves on by.
pub const fn numbers(batch: usize, heads: usize) -> u64 {
    (batch as u64).wrapping_mul(heads as u64).wrapping_mul(32)
}

/// Whether the probability of key `col` in query row `row` is kept: of head `head` of `heads`, of batch entry, or packed sequence, `batch`; rows
/// and keys are counted from the first of the entry or sequence.
#[allow(clippy::too_many_arguments, reason = "which number of which stream it is, each part named")]
pub fn keep(seed: u64, offset: u64, batch: usize, heads: usize, head: usize, row: usize, col: usize, p: f32) -> bool {
    let limit = (f64::from(1.0 - p) * 255.0).floor();
    // Blocks of 16 rows by 32 columns have 32 draws of 16 bytes: for each of the 8 x 4 pairs of a row in the first half and the next
    // column, the same pairs 8 rows below and 8, 16 and 24 columns to the right.
    let (row_in_block, col_in_block) = (row % 16, col % 32);
    let draw = row_in_block % 8 * 4 + col_in_block % 8 / 2;
    let first = offset.wrapping_add(numbers(batch, heads)).wrapping_add(32 * head as u64);
    let counter = [first.wrapping_add(draw as u64), row as u64 / 16 + ((col as u64 / 32) << 32)];
    let bytes = philox(counter, seed);
    let byte = bytes[col_in_block / 8 * 4 + row_in_block / 8 * 2 + col_in_block % 2];
    f64::from(byte) <= limit
}

/// Random numbers that a call on rows takes: what its generator moves on by.
pub const ROWS_NUMBERS: u64 = 1;

/// Whether an element of the rows of a norm is kept: of row `row`, counted over all axes but the last, and column `column`.
pub fn keep_in_row(seed: u64, offset: u64, row: usize, column: usize, p: f32) -> bool {
    let limit = (f64::from(1.0 - p) * 65535.0).floor();
    let bytes = philox([offset, row as u64 + ((column as u64 / 8) << 32)], seed);
    let at = column % 8 * 2;
    f64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]])) <= limit
}

/// Philox4x32 with 7 rounds (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011): the 16 bytes of a counter, lowest first.
fn philox([low, high]: [u64; 2], seed: u64) -> [u8; 16] {
    const ROUNDS: u64 = 7;
    let halves = |x: u64| [x % (1 << 32), x >> 32];
    let ([mut l0, mut r0], [mut l1, mut r1]) = (halves(low), halves(high));
    let [key0, key1] = halves(seed);
    for round in 0..ROUNDS {
        // The key goes on by the fractions of the golden ratio and of the square root of 3.
        let key = [key0 + round * 0x9E37_79B9, key1 + round * 0xBB67_AE85].map(|key| key % (1 << 32));
        let ([low0, high0], [low1, high1]) = (halves(l0 * 0xD251_1F53), halves(l1 * 0xCD9E_8D57));
        (l0, r0, l1, r1) = (high1 ^ r0 ^ key[0], low1, high0 ^ r1 ^ key[1], low0);
    }
    let mut bytes = [0; 16];
    for (word, bytes) in [l0, r0, l1, r1].into_iter().zip(bytes.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&(word as u32).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    /// From the file of known answers of Random123, for 7 rounds.
    #[test]
    fn the_generator_gives_the_published_answers() {
        let words = |counter: [u64; 2], seed| {
            let bytes = philox(counter, seed);
            [0, 4, 8, 12].map(|i| u32::from_le_bytes(bytes[i..i + 4].try_into().expect("four of them")))
        };
        assert_eq!(words([0; 2], 0), [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]);
        assert_eq!(words([u64::MAX; 2], u64::MAX), [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]);
        let pi = [0x85a3_08d3_243f_6a88, 0x0370_7344_1319_8a2e];
        let of_pi = [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a];
        assert_eq!(words(pi, 0x299f_31d0_a409_3822), of_pi);
    }

    /// Two definitions that share nothing.
    #[test]
    fn the_kernels_keep_the_same() {
        use kernel_spec::philox::{head_offset, random, threshold};
        let (seed, offset, heads, p) = (0x1234_5678_9abc_def0, u64::MAX - 100, 3, 0.3);
        for (batch, head) in [(0, 0), (0, 2), (5, 1)] {
            for row in (0..70).chain(1000..1010) {
                for col in (0..100).chain(5000..5040) {
                    let stream = head_offset(offset, (batch * heads + head) as u64);
                    let byte = random(seed, stream, row, col);
                    let kept = keep(seed, offset, batch, heads, head, row as usize, col as usize, p);
                    assert_eq!(byte <= threshold(p), kept, "{batch} {head} {row} {col}");
                }
            }
        }
    }

    #[test]
    fn the_kernels_keep_the_same_of_rows() {
        use kernel_spec::philox::{ROWS_NUMBERS as NUMBERS, rows_random, rows_threshold};
        assert_eq!(NUMBERS, ROWS_NUMBERS);
        let seed = 0x1234_5678_9abc_def0;
        for (offset, p) in [(0, 0.3), (u64::MAX - 5, 0.999), (1 << 40, 0.01)] {
            for row in (0..40).chain([1 << 20, (1 << 31) - 1025]) {
                for column in (0..40).chain((1 << 24) - 9..1 << 24) {
                    let kept = keep_in_row(seed, offset, row as usize, column as usize, p);
                    assert_eq!(rows_random(seed, offset, row, column) <= rows_threshold(p), kept, "{row} {column}");
                }
            }
        }
    }

    /// As below, over all, over each of the columns of a group, and over rows alone; and no two rows, groups or offsets have the same mask.
    #[test]
    fn the_share_of_rows_that_is_kept_is_that_of_the_threshold() {
        for p in [0.001_f32, 0.1, 0.5, 0.99] {
            let share = ((f64::from(1.0 - p) * 65535.0).floor() + 1.0) / 65536.0;
            assert!((share - f64::from(1.0 - p)).abs() <= 1.0 / 65536.0);
            let (rows, columns) = (64, 1024);
            let count = |n: usize, kept: usize| {
                let deviation = (n as f64 * share * (1.0 - share)).sqrt();
                assert!((kept as f64 - n as f64 * share).abs() <= 4.5 * deviation + 1.0, "{p}: {kept} of {n}");
            };
            let of = |row: usize, first: usize, step: usize| {
                (first..columns).step_by(step).filter(|&column| keep_in_row(9, 4, row, column, p)).count()
            };
            count(rows * columns, (0..rows).map(|row| of(row, 0, 1)).sum());
            (0..rows).for_each(|row| count(columns, of(row, 0, 1)));
            (0..8).for_each(|first| count(rows * columns / 8, (0..rows).map(|row| of(row, first, 8)).sum()));
        }
        let mask = |offset, row, first: usize| -> Vec<bool> {
            (first..first + 256).map(|column| keep_in_row(9, offset, row, column, 0.5)).collect()
        };
        let others = [mask(4, 1, 0), mask(4, 0, 256), mask(5, 0, 0), mask(4 + (1 << 32), 0, 0)];
        assert!(others.iter().all(|other| *other != mask(4, 0, 0)));
    }

    /// Within four standard deviations of the share that the threshold gives, over many blocks, rows and columns of them.
    #[test]
    fn the_share_that_is_kept_is_that_of_the_threshold() {
        for p in [0.01_f32, 0.1, 0.5, 0.9] {
            let share = ((f64::from(1.0 - p) * 255.0).floor() + 1.0) / 256.0;
            let (rows, cols) = (96, 400);
            let keeps = |row, col| keep(7, 3, 1, 2, 1, row, col, p);
            let count = |n: usize, kept: usize| {
                let deviation = (n as f64 * share * (1.0 - share)).sqrt();
                assert!((kept as f64 - n as f64 * share).abs() <= 4.0 * deviation + 1.0, "{p}: {kept} of {n}");
            };
            count(rows * cols, (0..rows).map(|row| (0..cols).filter(|&col| keeps(row, col)).count()).sum());
            for part in 0..16 {
                let of = |row: usize| (0..cols).filter(|&col| keeps(row, col)).count();
                count(rows / 16 * cols, (part..rows).step_by(16).map(of).sum());
            }
            for part in 0..32 {
                let of = |col: usize| (0..rows).filter(|&row| keeps(row, col)).count();
                let columns: Vec<usize> = (part..cols).step_by(32).collect();
                count(rows * columns.len(), columns.into_iter().map(of).sum());
            }
        }
    }

    #[test]
    fn what_is_no_probability_is_an_error() {
        for p in [-0.1, 1.0, 1.5, f32::NAN, f32::INFINITY, -f32::MIN_POSITIVE] {
            let error = Dropout::new(p, 0, 0).checked().unwrap_err();
            assert!(matches!(error, Error::Dropout(_)), "{p}: {error}");
        }
        assert_eq!(Dropout::new(0.0, 1, 2).checked().unwrap(), None);
        assert_eq!(Dropout::new(-0.0, 1, 2).checked().unwrap(), None);
        let almost = Dropout::new(1.0 - f32::EPSILON / 2.0, 1, 2);
        assert_eq!(almost.checked().unwrap(), Some(almost));
    }
}
