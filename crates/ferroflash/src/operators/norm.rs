//! RMSNorm and LayerNorm of rows, forward and backward.

mod backward;
mod check;
mod cut;
mod forward;

pub use backward::{NormGradients, NormGradientsViewMut, NormSaved};
pub use forward::{NormOutput, NormOutputViewMut};

use crate::dropout::Dropout;
use crate::tensor::TensorView;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Rms,
    Layer,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Rms => "rmsnorm",
            Kind::Layer => "layernorm",
        }
    }
}

/// RMSNorm (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019) or LayerNorm (Ba, Kiros and Hinton, "Layer Normalization", 2016) of
/// rows, with its options:
///
/// ```text
/// h = dropout(rowscale x) + residual
/// RMSNorm:    rstd = 1 / sqrt(mean(h^2) + epsilon)                out = h rstd weight + bias
/// LayerNorm:  rstd = 1 / sqrt(mean((h - mean)^2) + epsilon)       out = (h - mean) rstd weight + bias
/// ```
///
/// Rows are along the last axis, whose elements lie side by side, up to 2^24 of them; all other axes are those of rows, with any strides of which at
/// most three step through rows in ways of their own, once axes that continue each other in all tensors are one.
///
/// | tensor | shape | element type |
/// | --- | --- | --- |
/// | x, out | any | f32, f16 or bf16, both the same |
/// | residual, residual_out | that of x | that of x, or f32 |
/// | rowscale | that of x without the last axis, contiguous | f32 |
/// | weight, bias | `[columns]`, contiguous | that of x, or f32, both the same |
/// | mean, rstd | that of x without the last axis, contiguous | f32 |
///
/// Sums are in f32, each in one order: the same bits from run to run. `out` is computed from `h` in f32, not from `residual_out`, which is `h` rounded to its type.
///
/// Numbers of any size are taken: where squares are larger than f32 holds, the row is scaled by a power of two and its statistics are computed again. A NaN in a row
/// makes all of it NaN. An infinity makes the row of LayerNorm NaN; that of RMSNorm is 0 but for the infinity itself, which becomes NaN, as the equations have it.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::operators::Norm;
/// use ferroflash::{Device, Layout, Tensor};
/// let device = Device::emulator()?;
/// let tensor = |data: &[f32], shape: &[usize]| Tensor::from_slice(&device, data, ferroflash::Dims::new(shape)?, Layout::RowMajor);
/// let x = tensor(&[3.0, 4.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], &[2, 4])?;
/// let weight = tensor(&[1.0, 1.0, 1.0, 2.0], &[4])?;
/// let normed = Norm::rms(1e-6).with_weight(&weight.view()).forward(&x.view())?;
/// let out = normed.out.to_vec::<f32>()?;
/// // The mean of the squares is 25 / 4 in the first row, and 1 in the second.
/// assert!((out[0] - 3.0 / 2.5).abs() < 1e-6 && (out[7] - 2.0).abs() < 1e-5);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Norm<'a> {
    pub(super) kind: Kind,
    pub(super) epsilon: f32,
    pub(super) weight: Option<TensorView<'a>>,
    pub(super) bias: Option<TensorView<'a>>,
    pub(super) residual: Option<TensorView<'a>>,
    pub(super) dropout: Option<Dropout>,
    pub(super) rowscale: Option<TensorView<'a>>,
    pub(super) zero_centred: bool,
    pub(super) statistics: bool,
    pub(super) clusters: bool,
}

impl<'a> Norm<'a> {
    /// RMSNorm; `epsilon` is added to the mean of the squares, and is above 0 and finite.
    pub fn rms(epsilon: f32) -> Norm<'a> {
        Norm {
            kind: Kind::Rms,
            epsilon,
            weight: None,
            bias: None,
            residual: None,
            dropout: None,
            rowscale: None,
            zero_centred: false,
            statistics: false,
            clusters: true,
        }
    }

    /// LayerNorm; `epsilon` is added to the variance, and is above 0 and finite.
    pub fn layer(epsilon: f32) -> Norm<'a> {
        Norm { kind: Kind::Layer, ..Norm::rms(epsilon) }
    }

    /// Multiplies columns with these weights, `[columns]`.
    pub fn with_weight(mut self, weight: &TensorView<'a>) -> Norm<'a> {
        self.weight = Some(*weight);
        self
    }

    /// Adds these biases to the columns, `[columns]`, behind the weights.
    pub fn with_bias(mut self, bias: &TensorView<'a>) -> Norm<'a> {
        self.bias = Some(*bias);
        self
    }

    /// Adds these rows to x before they are normalised. The sum is an output too.
    pub fn with_residual(mut self, residual: &TensorView<'a>) -> Norm<'a> {
        self.residual = Some(*residual);
        self
    }

    /// Drops elements of x before the residual is added, and multiplies those that are kept with `1 / (1 - p)`: dropout of the branch of a residual
    /// block, as `layer_norm_fn` of FlashAttention has it. The sum is an output, also without a residual, since gradients are computed from it.
    ///
    /// Which are dropped follows from the row, the column, seed and offset alone, see [`dropout`](crate::dropout#rows): gradients are given the same
    /// dropout, and make the mask again. A call takes [`ROWS_NUMBERS`](crate::dropout::ROWS_NUMBERS) of the offsets of a seed. What is dropped is 0,
    /// whatever it was.
    pub fn with_dropout(mut self, dropout: Dropout) -> Norm<'a> {
        self.dropout = Some(dropout);
        self
    }

    /// Multiplies the rows of x with a factor each before elements are dropped and the residual is added (stochastic depth: Huang and others, 2016):
    /// f32, of the shape of x without its last axis, contiguous. It gets no gradient. The sum is an output, as with dropout.
    pub fn with_rowscale(mut self, rowscale: &TensorView<'a>) -> Norm<'a> {
        self.rowscale = Some(*rowscale);
        self
    }

    /// Weights are kept as what they are above 1 (Gemma): columns are multiplied with `1 + weight`.
    pub fn zero_centred(mut self) -> Norm<'a> {
        self.zero_centred = true;
        self
    }

    /// Whether a call that makes its outputs gives the statistics too, which gradients are computed from.
    pub fn with_statistics(mut self, statistics: bool) -> Norm<'a> {
        self.statistics = statistics;
        self
    }

    /// Whether the thread blocks of a cluster may share a row, where the device has clusters: on without this. What every GPU does instead is what
    /// is left without.
    pub fn with_clusters(mut self, clusters: bool) -> Norm<'a> {
        self.clusters = clusters;
        self
    }
}
