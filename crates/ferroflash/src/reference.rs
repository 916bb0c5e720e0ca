//! Attention by its definition, in plain loops on the CPU: what every kernel is checked against.
//!
//! [`forward`] computes in `f64`. [`forward_rounded`] computes the same formula the way a straightforward program in the
//! tensors' own precision would. Their difference is the error that the precision itself brings, and [`Comparison`] allows a kernel
//! twice that:
//!
//! ```text
//! max |out - forward|  <=  2 * max |forward_rounded - forward| + 1e-5
//! ```
//!
//! Nothing here shares arithmetic with the kernels or with the crate `kernel_spec`: a mistake there shows up as a difference.
//!
//! All tensors are slices in logical order `[batch, row, head, dim]`, the log-sum-exp is `[batch, head, row]`.
//!
//! ```
//! use ferroflash::{Attention, DType, Problem, Sequences, reference};
//! // One query, two keys with scores 0 and ln 3: weights 1/4 and 3/4.
//! let problem = Problem::new(Sequences::Uniform { batch: 1, q_rows: 1, kv_rows: 2 }, 1, 1, 8, DType::F32);
//! let one_hot = |x: f64| [x, 0., 0., 0., 0., 0., 0., 0.];
//! let q = one_hot(3f64.ln());
//! let k = [one_hot(0.0), one_hot(1.0)].concat();
//! let v = [one_hot(0.0), one_hot(4.0)].concat();
//! let result = reference::forward(&q, &k, &v, &problem, &Attention::new().with_scale(1.0))?;
//! assert!((result.out[0] - 3.0).abs() < 1e-12 && (result.lse[0] - 4f64.ln()).abs() < 1e-12);
//! # Ok::<(), ferroflash::Error>(())
//! ```

use crate::attention::{Attention, Problem};
use crate::error::Result;
use gradients::{Precision, Upstream};
use inputs::Inputs;

mod adamw;
mod branch;
mod compare;
mod cross_entropy;
mod dense;
mod embedding;
mod gradients;
mod inputs;
mod linear_cross_entropy;
mod merge;
mod norm;
mod rotary;
mod sequences;
mod softmax;
#[cfg(test)]
mod tests;

pub use adamw::{ReferenceAdamW, ReferenceAdamWState};
pub use branch::ReferenceBranch;
pub use compare::{Comparison, max_abs_difference, tolerance};
pub use cross_entropy::{ReferenceCrossEntropy, ReferenceCrossEntropyOutput};
pub use dense::{ReferenceDense, ReferenceDenseGradients, ReferenceDenseOutput};
pub use embedding::ReferenceEmbedding;
pub use gradients::ReferenceGradients;
pub use inputs::{ReferenceOutput, Row};
pub use linear_cross_entropy::ReferenceLinearCrossEntropy;
pub use merge::{ReferencePart, merge, merge_rounded};
pub use norm::{ReferenceNorm, ReferenceNormGradients, ReferenceNormOutput};
pub use rotary::ReferenceRotary;
pub use sequences::{
    SequenceRows, backward_sequences, backward_sequences_rounded, forward_sequences, forward_sequences_rounded,
};
pub use softmax::ReferenceSoftmax;

/// Attention in `f64`.
///
/// # Errors
/// Those of [`Problem::sizes`] and [`Problem::validate`], [`Error::Scale`], and [`Error::DataLength`]. Other sequences than uniform ones are
/// for [`forward_sequences`].
pub fn forward(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    problem: impl Into<Problem>,
    attention: &Attention,
) -> Result<ReferenceOutput> {
    let inputs = Inputs::new(q, k, v, &problem.into(), attention)?;
    Ok(inputs.all_rows(|row, out| inputs.row_f64(row, out)))
}

/// Attention in `f64` for some rows of a problem that is too large to compute in full: `out` is `[row, dim]`, `lse` is `[row]`.
///
/// # Errors
/// As [`forward`], and [`Error::Range`] for a row outside the problem.
pub fn forward_rows(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    problem: impl Into<Problem>,
    attention: &Attention,
    rows: &[Row],
) -> Result<ReferenceOutput> {
    let inputs = Inputs::new(q, k, v, &problem.into(), attention)?;
    inputs.some_rows(rows, |row, out| inputs.row_f64(row, out))
}

/// Attention as a straightforward program in the element type of the problem computes it: scores, softmax and sums in `f32`,
/// probabilities rounded to the element type before they meet the values, and the output rounded to it.
///
/// # Errors
/// As [`forward`].
pub fn forward_rounded(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    problem: impl Into<Problem>,
    attention: &Attention,
) -> Result<ReferenceOutput> {
    let inputs = Inputs::new(q, k, v, &problem.into(), attention)?;
    Ok(inputs.all_rows(|row, out| inputs.row_rounded(row, out)))
}

/// [`forward_rounded`] for some rows: `out` is `[row, dim]`, `lse` is `[row]`.
///
/// # Errors
/// As [`forward_rows`].
pub fn forward_rounded_rows(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    problem: impl Into<Problem>,
    attention: &Attention,
    rows: &[Row],
) -> Result<ReferenceOutput> {
    let inputs = Inputs::new(q, k, v, &problem.into(), attention)?;
    inputs.some_rows(rows, |row, out| inputs.row_rounded(row, out))
}

/// Gradients of a number with respect to q, k and v in `f64`, given those with respect to the output of [`forward`], `dout`, and to its
/// log-sum-exp, `dlse`, where the number depends on it.
///
/// A row that sees no key gives nothing, and a key that no row sees gets 0.
///
/// # Errors
/// As [`forward`], and [`Error::DataLength`](crate::Error::DataLength) for `dout` and `dlse`.
pub fn backward(
    [q, k, v]: [&[f64]; 3],
    dout: &[f64],
    dlse: Option<&[f64]>,
    problem: impl Into<Problem>,
    attention: &Attention,
) -> Result<ReferenceGradients> {
    Inputs::new(q, k, v, &problem.into(), attention)?.gradients(Upstream { dout, dlse }, Precision::Exact)
}

/// Gradients as a straightforward program in the element type of the problem computes them: scores, softmax and sums in `f32`,
/// probabilities and gradients of scores rounded to the element type before they meet a tensor, `dout out` from the output as it was
/// stored, and the results rounded.
///
/// # Errors
/// As [`backward`].
pub fn backward_rounded(
    [q, k, v]: [&[f64]; 3],
    dout: &[f64],
    dlse: Option<&[f64]>,
    problem: impl Into<Problem>,
    attention: &Attention,
) -> Result<ReferenceGradients> {
    Inputs::new(q, k, v, &problem.into(), attention)?.gradients(Upstream { dout, dlse }, Precision::Rounded)
}
