//! What the kernels of softmax are given.

use super::SLOTS;
use crate::divisor::Divisor;
use crate::families::rows::{Extents, RowsParams};
use crate::features::Features;

/// A mask that is added, of x's type.
pub const MASK_OF_X: u32 = 0;

/// A mask that is added, of f32.
pub const MASK_OF_F32: u32 = 1;

/// A mask of booleans, a byte each: a column is hidden where it is 0.
pub const MASK_OF_BOOLS: u32 = 2;

/// Parameters of a forward pass: `out = softmax(scale x + mask)`, or its logarithm.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxParams {
    /// What the softmax is taken of.
    pub x: RowsParams,
    /// What is added, or none.
    pub mask: RowsParams,
    /// Output.
    pub out: RowsParams,
    /// The rows.
    pub extents: Extents,
    /// Thread blocks that share a row: 1, or those of a cluster.
    pub sharers: Divisor,
    /// Rows of the last axis of these: query rows of a causal softmax.
    pub queries: Divisor,
    /// Columns of each of the thread blocks that share a row, a multiple of the elements in 16 bytes.
    pub share: u32,
    /// The factor on x.
    pub scale: f32,
    /// 1 when rows start at multiples of 16 bytes, and so do the columns behind the last; 0 makes threads read single elements.
    pub aligned: u32,
    /// What the mask holds: one of [`MASK_OF_X`], [`MASK_OF_F32`] and [`MASK_OF_BOOLS`].
    pub mask_kind: u32,
    /// See [`features`](super::features).
    pub features: Features<{ SLOTS as usize }>,
}

/// Parameters of a backward pass: `dx = scale out (dout - sum(out dout))`, or, of the logarithm, `dx = scale (dout - exp(out) sum(dout))`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxBackwardParams {
    /// What forward gave.
    pub out: RowsParams,
    /// Gradient with respect to it.
    pub dout: RowsParams,
    /// Gradient with respect to x.
    pub dx: RowsParams,
    /// The rows.
    pub extents: Extents,
    /// As in [`SoftmaxParams`].
    pub sharers: Divisor,
    /// As in [`SoftmaxParams`].
    pub share: u32,
    /// As in [`SoftmaxParams`].
    pub scale: f32,
    /// As in [`SoftmaxParams`], of these tensors.
    pub aligned: u32,
    /// See [`features`](super::features); of these, LOG alone.
    pub features: Features<{ SLOTS as usize }>,
}
