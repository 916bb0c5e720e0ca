//! Packed sequences: where each has its statistics, and how many tiles there may be, from what the host knows, which is no length.

use super::STATISTICS_ROWS;

/// Row of a head's statistics at which those of sequence `index` start, whose first row of q is `first_row`.
///
/// Kernels read whole blocks of statistics, so a sequence needs whole blocks of its own, where rows that do not exist weigh nothing. Each
/// sequence before it makes room for one block that is not full: nobody has to sum up lengths. Whatever the starts are, as long as they
/// lie among the rows, so do these.
#[inline(always)]
pub const fn statistics_start(first_row: u32, index: u32) -> u32 {
    (first_row + index * STATISTICS_ROWS) / STATISTICS_ROWS * STATISTICS_ROWS
}

/// Rows of a head's statistics, for so many rows of q and sequences.
pub const fn statistics_rows(rows: u64, batch: u64) -> u64 {
    (rows / STATISTICS_ROWS as u64 + batch) * STATISTICS_ROWS as u64
}

/// Tiles of `block` rows that sequences of so many rows together have, at most: each has at most one that is not full.
pub const fn most_tiles(rows: u64, batch: u64, block: u64) -> u64 {
    rows / block + batch
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// Sequences of these lengths: first rows, and the rows of all.
    fn starts(lengths: &[u32]) -> (Vec<u32>, u32) {
        let mut rows = 0;
        let starts = lengths.iter().map(|&length| {
            rows += length;
            rows - length
        });
        (starts.collect(), lengths.iter().sum())
    }

    const LENGTHS: [&[u32]; 8] = [
        &[0],
        &[1],
        &[128, 128, 128],
        &[127, 129, 0, 1, 255],
        &[1, 1, 1, 1, 1, 1, 1],
        &[0, 0, 300, 0, 0],
        &[64, 65, 63, 200, 2],
        &[129, 129, 129, 129],
    ];

    #[test]
    fn statistics_of_sequences_are_whole_blocks_that_do_not_meet() {
        for lengths in LENGTHS {
            let (starts, rows) = starts(lengths);
            let mut free = 0;
            for (index, (&start, &length)) in starts.iter().zip(lengths).enumerate() {
                let first = statistics_start(start, index as u32);
                assert!(first >= free && first.is_multiple_of(STATISTICS_ROWS), "{lengths:?}: sequence {index}");
                free = first + length.next_multiple_of(STATISTICS_ROWS);
            }
            assert!(u64::from(free) <= statistics_rows(rows.into(), lengths.len() as u64), "{lengths:?}");
        }
    }

    /// Whatever a start and a length are that lie among the rows.
    #[test]
    fn statistics_of_any_starts_lie_inside() {
        for (rows, batch) in [(0, 1), (1, 3), (127, 2), (128, 2), (129, 2), (300, 1)] {
            for index in 0..batch {
                for start in 0..=rows {
                    let end = statistics_start(start, index) + (rows - start).next_multiple_of(STATISTICS_ROWS);
                    assert!(
                        u64::from(end) <= statistics_rows(rows.into(), batch.into()),
                        "{rows} rows from {start} on"
                    );
                }
            }
        }
    }

    #[test]
    fn tiles_of_all_sequences_have_a_number() {
        for lengths in LENGTHS {
            let (_, rows) = starts(lengths);
            for block in [16, 32, 64, 128] {
                let tiles: u32 = lengths.iter().map(|length| length.div_ceil(block)).sum();
                assert!(u64::from(tiles) <= most_tiles(rows.into(), lengths.len() as u64, block.into()), "{lengths:?}");
            }
        }
    }
}
