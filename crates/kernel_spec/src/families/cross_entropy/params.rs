//! What the kernels of cross-entropy are given.

use super::SLOTS;
use crate::divisor::Divisor;
use crate::families::rows::{Extents, RowsParams};
use crate::features::Features;

/// The options of a loss.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossOptions {
    /// The factor on logits, above 0.
    pub scale: f32,
    /// The share of a target that all classes have alike.
    pub smoothing: f32,
    /// The factor on squares of log-sum-exps.
    pub z_loss: f32,
    /// A target whose row counts for nothing. Where there is none, any that is no class.
    pub ignored: i32,
    /// 1 when `ignored` is one.
    pub has_ignored: u32,
}

/// Parameters of a forward pass: `y = scale logits`, `lse = ln(sum(exp(y)))`,
/// `loss = (1 - smoothing) (lse - y[target]) + smoothing (lse - mean(y)) + z_loss lse^2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropyParams {
    /// Logits, a class a column.
    pub logits: RowsParams,
    /// Device address of the targets, contiguous `i32 [rows]`.
    pub targets: u64,
    /// Device address of the losses, contiguous `f32 [rows]`.
    pub loss: u64,
    /// Device address of the log-sum-exps, as the losses, or 0 when they are not wanted.
    pub lse: u64,
    /// Device address of `z_loss lse^2`, as the losses, or 0 when it is not wanted.
    pub z_losses: u64,
    /// The rows.
    pub extents: Extents,
    /// Thread blocks that share a row: 1, or those of a cluster.
    pub sharers: Divisor,
    /// Columns of each of them, a multiple of the elements in 16 bytes.
    pub share: u32,
    /// The loss.
    pub options: LossOptions,
    /// 1 when rows start at multiples of 16 bytes, and so do the columns behind the last; 0 makes threads read single elements.
    pub aligned: u32,
    /// Thread blocks, or clusters of them, that share out the rows.
    pub teams: u32,
    /// 0: the features start at a multiple of 8.
    pub unused: u32,
    /// See [`features`](super::features).
    pub features: Features<{ SLOTS as usize }>,
}

/// Parameters of a backward pass: with `p = exp(scale logits - lse)`,
/// `dlogits = scale dloss (p (1 + 2 z_loss lse) - smoothing / classes - (1 - smoothing) [class = target])`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropyBackwardParams {
    /// As in [`CrossEntropyParams`].
    pub logits: RowsParams,
    /// Gradient with respect to the logits; may be the very memory of these.
    pub dlogits: RowsParams,
    /// As in [`CrossEntropyParams`].
    pub targets: u64,
    /// What forward gave.
    pub lse: u64,
    /// Device address of the gradients with respect to the losses, contiguous `f32 [rows]`.
    pub dloss: u64,
    /// The rows.
    pub extents: Extents,
    /// Thread blocks that share out the columns of a row.
    pub tiles: Divisor,
    /// The loss.
    pub options: LossOptions,
    /// As in [`CrossEntropyParams`], of both tensors.
    pub aligned: u32,
    /// 0: the features start at a multiple of 8.
    pub unused: u32,
    /// None yet.
    pub features: Features<0>,
}

/// Parameters of the merge of what tiles of a product have left of the losses of its rows, see [`LogitsParams`](crate::families::dense::LogitsParams).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossPartsParams {
    /// Maxima and sums of weights, `f32 [rows, parts, 2]`.
    pub pairs: u64,
    /// Sums of logits, `f32 [rows, parts]`, or 0 without smoothing.
    pub totals: u64,
    /// The logit of each row's target, `f32 [rows]`, of those that are classes.
    pub target_logits: u64,
    /// As in [`CrossEntropyParams`].
    pub targets: u64,
    /// As in [`CrossEntropyParams`].
    pub loss: u64,
    /// As in [`CrossEntropyParams`].
    pub lse: u64,
    /// As in [`CrossEntropyParams`].
    pub z_losses: u64,
    /// Rows.
    pub rows: u32,
    /// Parts of a row.
    pub parts: u32,
    /// Classes.
    pub classes: u32,
    /// The loss.
    pub options: LossOptions,
    /// None yet.
    pub features: Features<0>,
}
