//! What Hopper's copy engine (TMA) asks of a tensor, and the map that tells it of one.

use crate::layout::{PANEL_BYTES, PANEL_COLS};

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
