//! What Hopper's copy engine (TMA) asks of a tensor, and the map that tells it of one.

use crate::layout::{PANEL_BYTES, PANEL_COLS};
use crate::mask::MAX_ROWS;

/// What the copy engine knows of a tensor: 128 bytes that the driver encodes.
///
/// The copy engine reads it in place, from the kernel's parameters, at an address that is a multiple of 64. Rust's own alignment
/// stays at 8: rustc's nvptx64 backend passes no parameter aligned to more than 16, so the entry raises it in the PTX.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap(pub [u64; 16]);

impl TensorMap {
    /// Bytes of a map.
    pub const BYTES: usize = size_of::<TensorMap>();
}

/// Columns of a box of a 16-bit type: one panel of a tile, whose rows are the 128 bytes of the swizzle.
pub const BOX_COLS: u32 = PANEL_COLS as u32;

/// Bytes of the swizzle pattern that a box is written with.
pub const SWIZZLE_BYTES: u32 = PANEL_BYTES as u32;

/// What addresses and strides are multiples of, in bytes (CUDA driver API, `cuTensorMapEncodeTiled`, without interleave).
pub const ALIGNMENT: u64 = 16;

/// Strides in bytes are below this (same function).
pub const STRIDE_LIMIT: u64 = 1 << 40;

/// Rows of the first row axis of a map that wraps.
///
/// Such a map is of a tensor whose rows belong to sequences, of which a box must read no more than one. It has the rows twice, as axes of
/// equal stride: a sequence of `n` rows from row `f` on ends where the first axis does, `n - i` rows behind its row `i`, once the second
/// axis has moved it by `f + n`. What is too much by then, [`WRAPPED`] rows, goes away by as many steps along a fifth axis: together they
/// are 2^64 bytes, and addresses have 64 bits.
///
/// ```text
/// tensor + (WRAPPED - n + i) row_bytes + (f + n) row_bytes + WRAPPED (2^34 - row_bytes) = tensor + (f + i) row_bytes + 2^64
/// ```
///
/// A map that began so many rows before its tensor would do without, but for boxes with no row inside, of sequences without keys and of
/// pieces behind the last page: of those, the copy engine touches the address that the map begins at (H200), where no memory has to be.
pub const WRAPPED: u32 = 1 << 30;

/// Bytes of a row and a step along the fifth axis together: 2^64 for each of [`WRAPPED`] rows.
const TOGETHER: u64 = 1 << (64 - WRAPPED.trailing_zeros());

/// Rows of maps that wrap are fewer bytes than this.
pub const WRAPPED_BYTES: u64 = TOGETHER - ALIGNMENT;

/// Bytes of a step along the fifth axis, see [`WRAPPED`].
pub const fn wrapping_stride(row_bytes: u64) -> u64 {
    TOGETHER - row_bytes
}

const _: () = assert!(WRAPPED.is_power_of_two(), "as many steps as rows are 2^64 bytes");
const _: () = assert!(MAX_ROWS < WRAPPED, "every sequence is in the first row axis");
