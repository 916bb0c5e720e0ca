//! Dense layers.

mod backward;
mod forward;
pub(super) mod matrix;
pub(super) mod product;
pub(super) mod through;

pub(super) use backward::by;
pub use backward::{DenseGradients, DenseGradientsViewMut};
pub use forward::{DenseOutput, DenseOutputViewMut};

use crate::tensor::TensorView;
use kernel_spec::FeatureSet;
use kernel_spec::families::dense::features;

/// What becomes of the sums of a dense layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// `z`.
    #[default]
    Identity,
    /// `max(z, 0)`.
    Relu,
    /// `z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2` (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, section 2).
    GeluTanh,
    /// `z (1 + erf(z / sqrt 2)) / 2` (same paper).
    GeluErf,
    /// `z / (1 + e^-z)`.
    Silu,
    /// `silu(gate) up`, where the first half of the sums are gates, and the second half what they open (Shazeer, "GLU Variants Improve Transformer",
    /// 2020).
    SwiGlu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 6] = [
        Activation::Identity,
        Activation::Relu,
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::Silu,
        Activation::SwiGlu,
    ];

    /// Whether two sums make one number of the output.
    pub fn is_gated(self) -> bool {
        self == Activation::SwiGlu
    }

    /// Lower-case name: `identity`, `relu`, `gelu_tanh`, `gelu_erf`, `silu`, `swiglu`.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Identity => "identity",
            Activation::Relu => "relu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::GeluErf => "gelu_erf",
            Activation::Silu => "silu",
            Activation::SwiGlu => "swiglu",
        }
    }

    fn features(self) -> FeatureSet {
        match self {
            Activation::Identity => features::IDENTITY,
            Activation::Relu => features::RELU,
            Activation::GeluTanh => features::GELU_TANH,
            Activation::GeluErf => features::GELU_ERF,
            Activation::Silu => features::SILU,
            Activation::SwiGlu => features::SWIGLU,
        }
    }
}

impl std::fmt::Display for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A dense layer, with its options:
///
/// ```text
/// z = x weight^T + bias        out = activation(z) + residual
/// ```
///
/// | tensor | shape | element type |
/// | --- | --- | --- |
/// | x | `[.., k]` | f32, f16 or bf16 |
/// | weight | `[n, k]`; SwiGLU: `[2 n, k]`, the rows of the gate first | that of x |
/// | bias | `[n]`; SwiGLU: `[2 n]`; contiguous | that of x |
/// | out, residual | that of x with n in place of k | that of x |
/// | z | that of out; SwiGLU: `[.., 2 n]` | that of x |
///
/// The last axes of all are contiguous. The axes before the last are those of rows: in each tensor one stride steps through all of them.
///
/// Sums are in f32, of f32 in true f32, and everything up to the output, which is rounded once; `z` is rounded only where it is kept. Sums beyond the largest
/// number of f32 are infinite, and what the activation makes of them follows its equation: NaN for SiLU and GELU of minus infinity.
///
/// Hopper's kernel (wgmma) takes 16-bit types where all rows start at multiples of 16 bytes and n is a multiple of 8; everything else runs on the
/// kernel that all GPUs have, and the plan says why.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::operators::{Activation, Dense};
/// use ferroflash::{Device, Layout, Tensor};
/// let device = Device::emulator()?;
/// let tensor = |data: &[f32], shape: &[usize]| Tensor::from_slice(&device, data, ferroflash::Dims::new(shape)?, Layout::RowMajor);
/// let x = tensor(&[1.0, 2.0, 3.0, -1.0], &[2, 2])?;
/// let weight = tensor(&[1.0, 0.0, 1.0, 1.0, 0.0, 2.0], &[3, 2])?;
/// let bias = tensor(&[0.0, 0.5, 0.0], &[3])?;
/// let layer = Dense::new(&weight.view()).with_bias(&bias.view()).with_activation(Activation::Relu);
/// assert_eq!(layer.forward(&x.view())?.out.to_vec::<f32>()?, [1.0, 3.5, 4.0, 3.0, 2.5, 0.0]);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Dense<'a> {
    pub(super) weight: TensorView<'a>,
    pub(super) bias: Option<TensorView<'a>>,
    residual: Option<TensorView<'a>>,
    activation: Activation,
    keeps: bool,
    pub(super) hopper: bool,
}

impl<'a> Dense<'a> {
    /// A layer of these weights, `[n, k]`, without biases and activation.
    pub fn new(weight: &TensorView<'a>) -> Dense<'a> {
        Dense {
            weight: *weight,
            bias: None,
            residual: None,
            activation: Activation::Identity,
            keeps: false,
            hopper: true,
        }
    }

    /// Adds these biases to the sums, one for each row of the weights.
    pub fn with_bias(mut self, bias: &TensorView<'a>) -> Dense<'a> {
        self.bias = Some(*bias);
        self
    }

    /// What becomes of the sums.
    pub fn with_activation(mut self, activation: Activation) -> Dense<'a> {
        self.activation = activation;
        self
    }

    /// Adds these rows to the output, behind the activation.
    pub fn with_residual(mut self, residual: &TensorView<'a>) -> Dense<'a> {
        self.residual = Some(*residual);
        self
    }

    /// Whether a call that makes its outputs gives z too, the sums before the activation, which gradients are computed from.
    pub fn with_z(mut self, keeps: bool) -> Dense<'a> {
        self.keeps = keeps;
        self
    }

    /// Whether Hopper's kernel may be taken where it runs: on without this.
    pub fn with_hopper(mut self, hopper: bool) -> Dense<'a> {
        self.hopper = hopper;
        self
    }
}
