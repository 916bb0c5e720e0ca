//! What the kernels of dense layers are given.

use super::SLOTS;
use super::order::TileOrder;
use crate::copy_engine::TensorMap;
use crate::families::cross_entropy::LossOptions;
use crate::features::Features;

/// A matrix whose rows are contiguous.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixParams {
    /// Device address of the first element, or 0 when there is no such matrix.
    pub address: u64,
    /// Elements between a row and the next.
    pub row_stride: u64,
}

impl MatrixParams {
    /// No matrix.
    pub const NONE: MatrixParams = MatrixParams { address: 0, row_stride: 0 };
}

/// Parameters of a product: `z = a b^T + bias`, `out = activation(z) + residual`; of gradients, `out = a b + residual` or `a^T b + residual`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseParams {
    /// The rows: `[rows, depth]`; of the gradient of weights `[depth, rows]`.
    pub a: MatrixParams,
    /// The weights: `[columns, depth]`; of a gated activation `[2 columns, depth]`, those of the gate first. Of gradients
    /// `[depth, columns]`.
    pub b: MatrixParams,
    /// Output, `[rows, columns]`.
    pub out: MatrixParams,
    /// Where `z` is kept, `[rows, columns]`, of a gated activation `[rows, 2 columns]`, or none.
    pub kept: MatrixParams,
    /// What is added to the activations, `[rows, columns]`, or none; it may be the output itself.
    pub residual: MatrixParams,
    /// Device address of the biases, one for each row of `b`, or 0.
    pub bias: u64,
    /// Rows of the output.
    pub rows: u32,
    /// Columns of the output.
    pub columns: u32,
    /// Numbers that are summed over.
    pub depth: u32,
    /// 1 when rows of `a` and `b` are whole pieces of 16 bytes at multiples of them; 0 makes threads read single elements.
    pub aligned: u32,
    /// 1 when rows of the output, of what is kept and of the residual, and the biases, are so, with a multiple of 8 columns.
    pub out_aligned: u32,
    /// Which tile comes when.
    pub order: TileOrder,
    /// See [`features`](super::features).
    pub features: Features<{ SLOTS as usize }>,
}

/// Parameters of a product on Hopper: the copy engine reads `a` and `b`, and writes the output, by maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HopperDenseParams {
    /// Map of `a`.
    pub a: TensorMap,
    /// Map of `b`.
    pub b: TensorMap,
    /// Map of the output, if its type is that of the operands.
    pub out: TensorMap,
    /// The rest.
    pub dense: DenseParams,
}

/// Parameters of a product whose sums are logits, and never leave: `logits = a b^T + bias`, of some of the classes of each row. See
/// [`cross_entropy`](crate::families::cross_entropy) for what becomes of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitsParams {
    /// Device address of the targets, contiguous `i32 [rows]`.
    pub targets: u64,
    /// Of the losses: where each tile leaves the maximum of its logits of a row, and the sum of their weights against it, `f32 [rows, parts, 2]`.
    pub pairs: u64,
    /// Of the losses: where it leaves the sum of the logits themselves, `f32 [rows, parts]`, or 0 without smoothing.
    pub totals: u64,
    /// Of the losses: where the logit of each row's target goes, `f32 [rows]`. That of a target that is no class stays as it is.
    pub target_logits: u64,
    /// Of the gradient: device address of the log-sum-exps, contiguous `f32 [rows]`.
    pub lse: u64,
    /// Of the gradient: that of the gradients with respect to the losses, as the log-sum-exps.
    pub dloss: u64,
    /// Parts of a row.
    pub parts: u32,
    /// Classes before that of the first column.
    pub before: u32,
    /// Classes of a row, over all products.
    pub classes: u32,
    /// The loss.
    pub options: LossOptions,
    /// The product. The gradient is its output, whose rows are a multiple of 16 bytes apart, and whose columns behind the last are anybody's; the losses have
    /// none. `out_aligned` is that of the biases alone.
    pub dense: DenseParams,
}

/// The same on Hopper.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HopperLogitsParams {
    /// Map of `a`.
    pub a: TensorMap,
    /// Map of `b`.
    pub b: TensorMap,
    /// Of the gradient: map of the output.
    pub out: TensorMap,
    /// The rest.
    pub logits: LogitsParams,
}
