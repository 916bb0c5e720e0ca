//! What the kernels of RMSNorm and LayerNorm are given.

use super::SLOTS;
use crate::divisor::Divisor;
use crate::families::rows::{Extents, RowsParams};
use crate::features::Features;

/// What x is multiplied with before the residual is added: the branch of a residual block. Read where there is [`BRANCH`](super::features::BRANCH).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BranchParams {
    /// Device address of the factors of the rows, contiguous `f32 [rows]`, or 0: all are 1.
    pub rowscale: u64,
    /// The seed of dropout, see [`philox`](crate::philox); or the device address of two numbers of 64 bits, seed and offset.
    pub seed: u64,
    /// The offset, or what is added to the one on the device.
    pub offset: u64,
    /// What elements that are kept are multiplied with; 1 without dropout.
    pub factor: f32,
    /// The largest random number that keeps an element.
    pub threshold: u32,
    /// 1 when seed and offset are on the device, so that they may change between two runs of a captured call.
    pub on_device: u32,
    /// 1 when elements are dropped.
    pub drops: u32,
}

impl BranchParams {
    /// x as it is.
    pub const NONE: BranchParams =
        BranchParams { rowscale: 0, seed: 0, offset: 0, factor: 1.0, threshold: 0, on_device: 0, drops: 0 };
}

/// Parameters of a forward pass: `h = branch(x) + residual`, `out = (h - mean) rstd (weight + weight_offset) + bias`,
/// `rstd = 1 / sqrt(mean((h - mean)^2) + epsilon)`, where RMSNorm has no `mean`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormParams {
    /// What is normalised, or the first addend of it.
    pub x: RowsParams,
    /// The other addend.
    pub residual: RowsParams,
    /// Output.
    pub out: RowsParams,
    /// The sum, or none when it is not wanted.
    pub residual_out: RowsParams,
    /// Device address of the weights, `[columns]`, or 0: all are 1.
    pub weight: u64,
    /// Device address of the biases, `[columns]`, or 0: all are 0.
    pub bias: u64,
    /// Device address of the means, contiguous `f32 [rows]`, or 0 when they are not wanted.
    pub mean: u64,
    /// Device address of the reciprocal deviations, as the means.
    pub rstd: u64,
    /// What x is multiplied with.
    pub branch: BranchParams,
    /// The rows.
    pub extents: Extents,
    /// Thread blocks that share a row: 1, or those of a cluster.
    pub sharers: Divisor,
    /// Columns of each of them, a multiple of the elements in 16 bytes.
    pub share: u32,
    /// Is added to the variance.
    pub epsilon: f32,
    /// Is added to each weight: 0 or 1.
    pub weight_offset: f32,
    /// 1 when rows, weights and biases start at multiples of 16 bytes, and so do the columns behind the last; 0 makes threads read single elements.
    pub aligned: u32,
    /// 1 when residual and residual_out are f32; 0: of x's type.
    pub wide_residual: u32,
    /// 1 when weights and biases are f32; 0: of x's type.
    pub wide_weight: u32,
    /// Thread blocks, or clusters of them, that share out the rows where rows are on their way ahead.
    pub teams: u32,
    /// See [`features`](super::features).
    pub features: Features<{ SLOTS as usize }>,
}

/// Parameters of a backward pass: with `n = (h - mean) rstd` and `g = dout (weight + weight_offset)`,
/// `dx = rstd (g - mean(g) - n mean(g n)) + dresidual_out`, `dweight = sum over the rows of dout n`, `dbias` that of `dout`. RMSNorm has no `mean(g)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormBackwardParams {
    /// What was normalised: `h`.
    pub normalised: RowsParams,
    /// Gradient with respect to the output.
    pub dout: RowsParams,
    /// Gradient with respect to the sum with the residual, of the type of `h`, where the result depends on it in another way too.
    pub dresidual_out: RowsParams,
    /// Gradient with respect to x.
    pub dx: RowsParams,
    /// That with respect to the residual, in the type of `h`, or none when it is not wanted: the same but for what x was multiplied with.
    pub dresidual: RowsParams,
    /// As in [`NormParams`].
    pub weight: u64,
    /// The means that forward gave; 0 for RMSNorm.
    pub mean: u64,
    /// The reciprocal deviations that forward gave.
    pub rstd: u64,
    /// Device address of `f32 [parts, columns]`: sums of `dout n` of each thread block, or 0 when they are not wanted.
    pub weight_parts: u64,
    /// The same of `dout`.
    pub bias_parts: u64,
    /// What x was multiplied with: so is its gradient.
    pub branch: BranchParams,
    /// The rows.
    pub extents: Extents,
    /// As in [`NormParams`].
    pub sharers: Divisor,
    /// As in [`NormParams`].
    pub share: u32,
    /// Thread blocks, or clusters of them, that share out the rows; each has a row of the parts.
    pub parts: u32,
    /// As in [`NormParams`].
    pub weight_offset: f32,
    /// As in [`NormParams`], of these tensors.
    pub aligned: u32,
    /// 1 when `h`, dresidual_out and dresidual are f32; 0: of the type of dout.
    pub wide_residual: u32,
    /// 1 when weights are f32; 0: of the type of dout.
    pub wide_weight: u32,
    /// 0: the features start at a multiple of 8.
    pub unused: u32,
    /// See [`features`](super::features).
    pub features: Features<{ SLOTS as usize }>,
}

/// Parameters of the sum over parts, in their order: gradients of weights and biases.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormPartsParams {
    /// Device addresses of `f32 [parts, columns]`, one for each result.
    pub from: [u64; 2],
    /// Device addresses of the results, `[columns]`.
    pub to: [u64; 2],
    /// Rows of each.
    pub parts: u32,
    /// Columns of each.
    pub columns: u32,
    /// None yet.
    pub features: Features<0>,
}
