//! Where an element of a tile lies: in shared memory, and in the registers of a warp.
//!
//! # In shared memory
//!
//! A tile of `rows x cols` elements is stored as panels of at most 128 bytes a row (the width of all 32 banks), each panel row
//! after row. Inside a panel the 16-byte chunks of a row are permuted by the row number, so that eight rows read at one chunk
//! column (`ldmatrix`, and the stores of `cp.async`) touch all 32 banks. It is the layout that Hopper's TMA and wgmma call
//! 128-byte and 64-byte swizzle, so v3 can read the same tiles.
//!
//! # In registers
//!
//! A product leaves its result, 16 rows of 8 columns, spread over the 32 lanes of a warp: an accumulator fragment. Lane `4 g + t` holds
//! four of its elements, numbered 0 to 3:
//!
//! ```text
//!  column ->     0  1    2  3    4  5    6  7
//!   row  0     | 0  0  | 1  1  | 2  2  | 3  3  |   lane that holds it: elements 0 and 1 of lanes 0 to 3,
//!   row  1     | 4  4  | 5  5  | 6  6  | 7  7  |   a quad; the quad of lane l has row l / 4
//!     ..
//!   row  7     | 28 28 | 29 29 | 30 30 | 31 31 |
//!   row  8     | 0  0  | 1  1  | 2  2  | 3  3  |   elements 2 and 3 of the same lanes
//!     ..
//!   row 15     | 28 28 | 29 29 | 30 30 | 31 31 |
//! ```
//!
//! So a lane has two rows, `l / 4` and 8 below, and a maximum or sum over a row is one over a lane's own elements, then over the four
//! lanes of its quad. A warpgroup's product of 64 rows is four of these on top of one another, one for each warp; wider ones stand side
//! by side.
//!
//! The left operand of the next product, 16 rows of 16 columns, is spread in the same way: element pairs of two neighbouring fragments,
//! in the same lanes. Scores become probabilities and the probabilities an operand without a word between lanes, which is what the
//! kernels mean by: the accumulator is the next operand.

/// Bytes of the piece that moves as one: one `cp.async`, one row of an `ldmatrix` matrix.
pub const CHUNK_BYTES: usize = 16;

/// Bytes of a row of a wide panel: what TMA's 128-byte swizzle and wgmma read, and the width of all 32 banks.
pub const PANEL_BYTES: usize = 128;

/// Columns of a wide panel of a 16-bit type.
pub const PANEL_COLS: usize = PANEL_BYTES / 2;

/// Bytes of one row of a panel, for tiles whose rows hold `row_bytes`: 128, or 64 when 128 does not divide.
///
/// # Panics
/// At compile time when `row_bytes` is no multiple of 64.
pub const fn panel_bytes(row_bytes: usize) -> usize {
    assert!(row_bytes.is_multiple_of(64), "a tile row holds a multiple of 64 bytes");
    if row_bytes.is_multiple_of(PANEL_BYTES) { PANEL_BYTES } else { 64 }
}

/// The chunk at which chunk `chunk` of row `row` is stored, in panels of `panel_bytes` a row.
///
/// An involution in `chunk` for every row.
#[inline(always)]
pub const fn swizzle(row: usize, chunk: usize, panel_bytes: usize) -> usize {
    // 128-byte rows: eight rows of one chunk column spread over the eight chunks.
    // 64-byte rows: two rows share a 128-byte line, so the row pair decides.
    chunk ^ if panel_bytes == PANEL_BYTES { row % 8 } else { row / 2 % 4 }
}

/// Byte offset of chunk `chunk` of row `row` in a tile of `rows` rows of `row_bytes` bytes.
#[inline(always)]
pub const fn chunk_offset(row: usize, chunk: usize, rows: usize, row_bytes: usize) -> usize {
    let panel_bytes = panel_bytes(row_bytes);
    let panel_chunks = panel_bytes / CHUNK_BYTES;
    let (panel, chunk) = (chunk / panel_chunks, chunk % panel_chunks);
    (panel * rows + row) * panel_bytes + swizzle(row, chunk, panel_bytes) * CHUNK_BYTES
}

/// Row of element `index` (0..4) of an m16n8 accumulator fragment that lane `lane` holds (PTX ISA, mma.m16n8k16).
#[inline(always)]
pub const fn fragment_row(lane: u32, index: u32) -> u32 {
    lane / 4 + index / 2 * 8
}

/// Column of element `index` (0..4) of an m16n8 accumulator fragment that lane `lane` holds (PTX ISA, mma.m16n8k16).
#[inline(always)]
pub const fn fragment_col(lane: u32, index: u32) -> u32 {
    lane % 4 * 2 + index % 2
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    #[test]
    fn every_chunk_has_its_own_place() {
        for row_bytes in [64, 128, 192, 256, 384, 512, 1024] {
            for rows in [8, 16, 64] {
                let mut taken = vec![false; rows * row_bytes / CHUNK_BYTES];
                for row in 0..rows {
                    for chunk in 0..row_bytes / CHUNK_BYTES {
                        let offset = chunk_offset(row, chunk, rows, row_bytes);
                        assert_eq!(offset % CHUNK_BYTES, 0);
                        assert!(!core::mem::replace(&mut taken[offset / CHUNK_BYTES], true), "{row} {chunk}");
                    }
                }
                assert!(taken.iter().all(|&t| t));
            }
        }
    }

    /// Eight rows at one chunk column, which is what one ldmatrix phase reads, cover the 128 bytes of all banks once.
    #[test]
    fn eight_rows_of_a_chunk_column_touch_every_bank_once() {
        for row_bytes in [64, 128, 192, 256, 384, 512] {
            for first in [0, 8, 24] {
                for chunk in 0..row_bytes / CHUNK_BYTES {
                    let mut lines = [0; 8];
                    for row in first..first + 8 {
                        lines[chunk_offset(row, chunk, 32, row_bytes) % 128 / CHUNK_BYTES] += 1;
                    }
                    assert_eq!(lines, [1; 8], "row_bytes {row_bytes}, chunk {chunk}");
                }
            }
        }
    }

    #[test]
    fn fragments_cover_the_tile_once() {
        let mut taken = [[0; 8]; 16];
        for lane in 0..32 {
            for index in 0..4 {
                taken[fragment_row(lane, index) as usize][fragment_col(lane, index) as usize] += 1;
            }
        }
        assert_eq!(taken, [[1; 8]; 16]);
    }
}
