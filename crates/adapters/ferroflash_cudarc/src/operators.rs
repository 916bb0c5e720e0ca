//! What a model computes around attention, on slices: the operators of [`ferroflash::operators`].
//!
//! A call has options, which are ferroflash's own without tensors, and [`Tensors`] by their names: `Operand::X`, `Operand::Weight` and so on. Which of
//! them a call takes is said by its function; those that are not marked as optional are needed. Shapes, element types and strides are ferroflash's.
//! Streams, waits and what is recorded in the slices are as in [`forward`](crate::forward()).
//!
//! ```no_run
//! use cudarc::driver::CudaContext;
//! use ferroflash::operators::Norm;
//! use ferroflash::{Operand, bf16};
//! use ferroflash_cudarc::operators::{Tensors, norm};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = CudaContext::new(0)?.new_stream()?;
//! let (x, weight) = (stream.alloc_zeros::<bf16>(512 * 4096)?, stream.alloc_zeros::<bf16>(4096)?);
//! let mut out = stream.alloc_zeros::<bf16>(512 * 4096)?;
//! let tensors = Tensors::new()
//!     .read(Operand::X, &x, [512, 4096])
//!     .read(Operand::Weight, &weight, [4096])
//!     .write(Operand::Out, &mut out, [512, 4096]);
//! norm(&stream, Norm::rms(1e-6), tensors)?;
//! # Ok(())
//! # }
//! ```

mod tensors;
mod training;

pub use tensors::Tensors;
pub use training::{adamw, gradient_norm};

use crate::Result;
use cudarc::driver::CudaStream;
use ferroflash::Operand;
use ferroflash::operators::{
    Activation, CrossEntropy, CrossEntropyOutputViewMut, CrossEntropySaved, Dense, DenseGradientsViewMut,
    DenseOutputViewMut, Embedding, LinearCrossEntropy, LinearCrossEntropySaved, Norm, NormGradientsViewMut,
    NormOutputViewMut, NormSaved, Rotary, RotaryPositions, Softmax,
};
use tensors::{Views, operate};

/// RMSNorm or LayerNorm, with weights and biases of the tensors: see [`Norm::forward_into`].
///
/// Reads `X`, and optionally `Weight`, `Bias`, `Residual` and `Rowscale`; writes `Out`, with a residual, `Rowscale` or dropout optionally `ResidualOut`, and
/// optionally `Rstd` and, of LayerNorm, `Mean`.
///
/// # Errors
/// Those of [`forward`](crate::forward()) for slices, [`Error::NotGiven`](crate::Error::NotGiven), [`Error::NotTaken`](crate::Error::NotTaken), and
/// what ferroflash refuses. Nothing is launched then.
pub fn norm(stream: &CudaStream, norm: Norm<'static>, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Bias, Mean, Out, Residual, ResidualOut, Rowscale, Rstd, Weight, X};
    let known = [X, Weight, Bias, Residual, Rowscale, Out, ResidualOut, Rstd, Mean];
    operate(stream, &known, tensors, |stream, views| {
        let norm = with_weights(norm, views);
        let norm = views.find(Residual).map_or(norm, |residual| norm.with_residual(&residual));
        let mut into = NormOutputViewMut::new(views.out(Out)?);
        into.residual_out = views.find_out(ResidualOut);
        into.rstd = views.find_out(Rstd);
        into.mean = views.find_out(Mean);
        Ok(norm.forward_into(stream, &views.tensor(X)?, &mut into)?)
    })
}

/// The gradients of [`norm`]: see [`Norm::backward_into`].
///
/// Reads `Normalised` (x, or its sum with the residual), `Dout`, `Rstd`, of LayerNorm `Mean`, optionally `Weight`, `Bias`, `Rowscale` and
/// `DresidualOut`; writes `Dx`, and optionally `Dresidual`, `Dweight` and `Dbias`.
///
/// # Errors
/// As [`norm`].
pub fn norm_backward(stream: &CudaStream, norm: Norm<'static>, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Bias, Dbias, Dout, Dresidual, DresidualOut, Dweight, Dx, Mean, Normalised, Rowscale, Rstd, Weight};
    let known = [Normalised, Dout, Rstd, Mean, Weight, Bias, Rowscale, DresidualOut, Dx, Dresidual, Dweight, Dbias];
    operate(stream, &known, tensors, |stream, views| {
        let mut saved = NormSaved::new(&views.tensor(Normalised)?, &views.tensor(Rstd)?);
        saved.mean = views.find(Mean);
        let mut into = NormGradientsViewMut::new(views.out(Dx)?);
        into.dresidual = views.find_out(Dresidual);
        into.dweight = views.find_out(Dweight);
        into.dbias = views.find_out(Dbias);
        let (dout, upstream) = (views.tensor(Dout)?, views.find(DresidualOut));
        Ok(with_weights(norm, views).backward_into(stream, &saved, &dout, upstream.as_ref(), &mut into)?)
    })
}

/// The tensors that forward and backward both read.
fn with_weights<'v>(norm: Norm<'v>, views: &Views<'v>) -> Norm<'v> {
    let norm = views.find(Operand::Rowscale).map_or(norm, |rowscale| norm.with_rowscale(&rowscale));
    let norm = views.find(Operand::Weight).map_or(norm, |weight| norm.with_weight(&weight));
    views.find(Operand::Bias).map_or(norm, |bias| norm.with_bias(&bias))
}

/// Softmax or its logarithm: see [`Softmax::forward_into`].
///
/// Reads `X`, and optionally `Mask`, a tensor or [booleans](Tensors::booleans); writes `Out`.
///
/// # Errors
/// As [`norm`].
pub fn softmax(stream: &CudaStream, softmax: Softmax<'static>, tensors: Tensors<'_>) -> Result<()> {
    operate(stream, &[Operand::X, Operand::Mask, Operand::Out], tensors, |stream, views| {
        let softmax = views.find(Operand::Mask).map_or(softmax, |mask| softmax.with_mask(&mask));
        let softmax = views.find_booleans(Operand::Mask).map_or(softmax, |mask| softmax.with_bool_mask(&mask));
        Ok(softmax.forward_into(stream, &views.tensor(Operand::X)?, &mut views.out(Operand::Out)?)?)
    })
}

/// The gradient of [`softmax`]: see [`Softmax::backward_into`].
///
/// Reads `Out`, which [`softmax`] gave, and `Dout`; writes `Dx`.
///
/// # Errors
/// As [`norm`].
pub fn softmax_backward(stream: &CudaStream, softmax: Softmax<'static>, tensors: Tensors<'_>) -> Result<()> {
    operate(stream, &[Operand::Out, Operand::Dout, Operand::Dx], tensors, |stream, views| {
        let (out, dout) = (views.tensor(Operand::Out)?, views.tensor(Operand::Dout)?);
        Ok(softmax.backward_into(stream, &out, &dout, &mut views.out(Operand::Dx)?)?)
    })
}

/// Cross-entropy of rows of logits: see [`CrossEntropy::forward_into`].
///
/// Reads `Logits`, and `Targets` as numbers; writes `Loss`, and optionally `Lse` and `ZLosses`.
///
/// # Errors
/// As [`norm`].
pub fn cross_entropy(stream: &CudaStream, options: CrossEntropy, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Logits, Loss, Lse, Targets, ZLosses};
    operate(stream, &[Logits, Targets, Loss, Lse, ZLosses], tensors, |stream, views| {
        let mut into = CrossEntropyOutputViewMut::new(views.out(Loss)?);
        into.lse = views.find_out(Lse);
        into.z_losses = views.find_out(ZLosses);
        Ok(options.forward_into(stream, &views.tensor(Logits)?, &views.numbers(Targets)?, &mut into)?)
    })
}

/// The gradient of [`cross_entropy`]: see [`CrossEntropy::backward_into`].
///
/// Reads `Logits`, `Lse` and `Dloss`, and `Targets` as numbers; writes `Dlogits`.
///
/// # Errors
/// As [`norm`].
pub fn cross_entropy_backward(stream: &CudaStream, options: CrossEntropy, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Dlogits, Dloss, Logits, Lse, Targets};
    operate(stream, &[Logits, Targets, Lse, Dloss, Dlogits], tensors, |stream, views| {
        let saved = CrossEntropySaved::new(&views.tensor(Logits)?, &views.numbers(Targets)?, &views.tensor(Lse)?);
        Ok(options.backward_into(stream, &saved, &views.tensor(Dloss)?, &mut views.out(Dlogits)?)?)
    })
}

/// What [`rotary`] does with pairs and positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RotaryOptions {
    /// Whether neighbours are pairs, columns `2 i` and `2 i + 1` (GPT-J), not columns `i` and `turned / 2 + i` (GPT-NeoX).
    pub interleaved: bool,
    /// Position of the first rows, where neither `Offsets` nor `Positions` are given.
    pub offset: usize,
}

/// Rotary embedding: see [`Rotary::forward_into`].
///
/// Reads `X`, `Cos` and `Sin`, and optionally as numbers `Offsets` or `Positions`, and `Starts`; writes `Out`.
///
/// # Errors
/// As [`norm`].
pub fn rotary(stream: &CudaStream, options: RotaryOptions, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Cos, Offsets, Out, Positions, Sin, Starts, X};
    operate(stream, &[X, Cos, Sin, Offsets, Positions, Starts, Out], tensors, |stream, views| {
        Ok(options.of(views)?.forward_into(stream, &views.tensor(X)?, &mut views.out(Out)?)?)
    })
}

/// The gradient of [`rotary`]: see [`Rotary::backward_into`].
///
/// Reads `Dout`, and the others as [`rotary`] does; writes `Dx`.
///
/// # Errors
/// As [`norm`].
pub fn rotary_backward(stream: &CudaStream, options: RotaryOptions, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Cos, Dout, Dx, Offsets, Positions, Sin, Starts};
    operate(stream, &[Dout, Cos, Sin, Offsets, Positions, Starts, Dx], tensors, |stream, views| {
        Ok(options.of(views)?.backward_into(stream, &views.tensor(Dout)?, &mut views.out(Dx)?)?)
    })
}

impl RotaryOptions {
    fn of<'v>(self, views: &Views<'v>) -> Result<Rotary<'v>> {
        let rotary = Rotary::new(&views.tensor(Operand::Cos)?, &views.tensor(Operand::Sin)?);
        let positions = match (views.find_numbers(Operand::Offsets), views.find_numbers(Operand::Positions)) {
            (None, None) => RotaryPositions::Offset(self.offset),
            (Some(offsets), None) => RotaryPositions::Offsets(offsets),
            (None, Some(positions)) => RotaryPositions::Each(positions),
            (Some(_), Some(_)) => return Err(crate::Error::NotTaken { operand: Operand::Positions }),
        };
        let starts = views.find_numbers(Operand::Starts);
        Ok(rotary.with_interleaved(self.interleaved).with_positions(positions).with_starts(starts))
    }
}

/// What [`embedding`] does with rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbeddingOptions {
    /// Is multiplied with rows.
    pub scale: f32,
    /// The row of the table that gets no gradient.
    pub padding: Option<usize>,
    /// Whether the gradient is added to what `Dtable` holds.
    pub accumulate: bool,
}

impl Default for EmbeddingOptions {
    fn default() -> Self {
        EmbeddingOptions { scale: 1.0, padding: None, accumulate: false }
    }
}

impl EmbeddingOptions {
    fn of<'v>(self, views: &Views<'v>) -> Result<Embedding<'v>> {
        let embedding = Embedding::new(&views.tensor(Operand::Table)?).with_scale(self.scale);
        Ok(embedding.with_padding(self.padding).with_accumulate(self.accumulate))
    }
}

/// Rows of a table: see [`Embedding::forward_into`].
///
/// Reads `Table`, and `Ids` as numbers; writes `Out`.
///
/// # Errors
/// As [`norm`].
pub fn embedding(stream: &CudaStream, options: EmbeddingOptions, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Ids, Out, Table};
    operate(stream, &[Table, Ids, Out], tensors, |stream, views| {
        Ok(options.of(views)?.forward_into(stream, &views.numbers(Ids)?, &mut views.out(Out)?)?)
    })
}

/// The gradient of the table: see [`Embedding::backward_into`].
///
/// Reads `Table` and `Dout`, and `Ids` as numbers; writes `Dtable`.
///
/// # Errors
/// As [`norm`].
pub fn embedding_backward(stream: &CudaStream, options: EmbeddingOptions, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Dout, Dtable, Ids, Table};
    operate(stream, &[Table, Ids, Dout, Dtable], tensors, |stream, views| {
        let (ids, dout) = (views.numbers(Ids)?, views.tensor(Dout)?);
        Ok(options.of(views)?.backward_into(stream, &ids, &dout, &mut views.out(Dtable)?)?)
    })
}

/// A dense layer: see [`Dense::forward_into`].
///
/// Reads `X` and `Weight`, and optionally `Bias` and `Residual`; writes `Out`, and optionally `Z`.
///
/// # Errors
/// As [`norm`].
pub fn dense(stream: &CudaStream, activation: Activation, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Bias, Out, Residual, Weight, X, Z};
    operate(stream, &[X, Weight, Bias, Residual, Out, Z], tensors, |stream, views| {
        let layer = layer(activation, views)?;
        let layer = views.find(Residual).map_or(layer, |residual| layer.with_residual(&residual));
        let mut into = DenseOutputViewMut::new(views.out(Out)?);
        into.z = views.find_out(Z);
        Ok(layer.forward_into(stream, &views.tensor(X)?, &mut into)?)
    })
}

/// The gradients of [`dense`]: see [`Dense::backward_into`]. That of the residual is `Dout`.
///
/// Reads `X`, `Weight` and `Dout`, with an activation optionally `Z`, which [`dense`] gave and is computed again without it, and optionally `Bias`;
/// writes those of `Dx`, `Dweight` and, with biases, `Dbias` that are given: at least one.
///
/// # Errors
/// As [`norm`].
pub fn dense_backward(stream: &CudaStream, activation: Activation, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Bias, Dbias, Dout, Dweight, Dx, Weight, X, Z};
    operate(stream, &[X, Weight, Bias, Z, Dout, Dx, Dweight, Dbias], tensors, |stream, views| {
        let mut into = DenseGradientsViewMut::new();
        into.dx = views.find_out(Dx);
        into.dweight = views.find_out(Dweight);
        into.dbias = views.find_out(Dbias);
        let (x, z, dout) = (views.tensor(X)?, views.find(Z), views.tensor(Dout)?);
        Ok(layer(activation, views)?.backward_into(stream, &x, z.as_ref(), &dout, &mut into)?)
    })
}

/// Cross-entropy of the logits of a dense layer, which are never in memory: see [`LinearCrossEntropy::forward_into`].
///
/// Reads `X` and `Weight`, optionally `Bias`, and `Targets` as numbers; writes `Loss`, and optionally `Lse` and `ZLosses`.
///
/// # Errors
/// As [`norm`].
pub fn linear_cross_entropy(stream: &CudaStream, loss: CrossEntropy, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Bias, Loss, Lse, Targets, Weight, X, ZLosses};
    operate(stream, &[X, Weight, Bias, Targets, Loss, Lse, ZLosses], tensors, |stream, views| {
        let mut into = CrossEntropyOutputViewMut::new(views.out(Loss)?);
        into.lse = views.find_out(Lse);
        into.z_losses = views.find_out(ZLosses);
        let (x, targets) = (views.tensor(X)?, views.numbers(Targets)?);
        Ok(with_loss(loss, views)?.forward_into(stream, &x, &targets, &mut into)?)
    })
}

/// The gradients of [`linear_cross_entropy`]: see [`LinearCrossEntropy::backward_into`].
///
/// Reads `X`, `Weight`, `Lse` and `Dloss`, optionally `Bias`, and `Targets` as numbers; writes those of `Dx`, `Dweight` and, with biases, `Dbias` that are
/// given: at least one.
///
/// # Errors
/// As [`norm`].
pub fn linear_cross_entropy_backward(stream: &CudaStream, loss: CrossEntropy, tensors: Tensors<'_>) -> Result<()> {
    use Operand::{Bias, Dbias, Dloss, Dweight, Dx, Lse, Targets, Weight, X};
    operate(stream, &[X, Weight, Bias, Targets, Lse, Dloss, Dx, Dweight, Dbias], tensors, |stream, views| {
        let mut into = DenseGradientsViewMut::new();
        into.dx = views.find_out(Dx);
        into.dweight = views.find_out(Dweight);
        into.dbias = views.find_out(Dbias);
        let saved = LinearCrossEntropySaved::new(&views.tensor(X)?, &views.numbers(Targets)?, &views.tensor(Lse)?);
        Ok(with_loss(loss, views)?.backward_into(stream, &saved, &views.tensor(Dloss)?, &mut into)?)
    })
}

fn with_loss<'v>(loss: CrossEntropy, views: &Views<'v>) -> Result<LinearCrossEntropy<'v>> {
    let of = LinearCrossEntropy::new(&views.tensor(Operand::Weight)?).with_loss(loss);
    Ok(views.find(Operand::Bias).map_or(of, |bias| of.with_bias(&bias)))
}

fn layer<'v>(activation: Activation, views: &Views<'v>) -> Result<Dense<'v>> {
    let layer = Dense::new(&views.tensor(Operand::Weight)?).with_activation(activation);
    Ok(views.find(Operand::Bias).map_or(layer, |bias| layer.with_bias(&bias)))
}
