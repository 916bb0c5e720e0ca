//! Cross-entropy of the logits that a dense layer gives, which are never in memory.

mod backward;
mod forward;
mod logits;

pub use backward::LinearCrossEntropySaved;
pub use forward::LinearCrossEntropyOutput;

use super::cross_entropy::CrossEntropy;
use super::dense::Dense;
use crate::tensor::TensorView;

/// Cross-entropy of the logits of the last dense layer of a model, without the logits:
///
/// ```text
/// logits = x weight^T + bias        y = scale logits        lse = ln(sum(exp(y)))
/// loss = (1 - smoothing) (lse - y[target]) + smoothing (lse - mean(y)) + z_loss lse^2
/// ```
///
/// | tensor | shape | element type |
/// | --- | --- | --- |
/// | x, dx | `[.., k]` | f32, f16 or bf16 |
/// | weight, dweight | `[classes, k]` | that of x |
/// | bias, dbias | `[classes]`, contiguous | that of x |
/// | targets | one for each row of x, in their order | i32 |
/// | loss, lse, z_losses, dloss | that of x without the last axis, contiguous | f32 |
///
/// The last axes of x and weight are contiguous. The axes before the last are those of rows: in each tensor one stride steps through all of them. k and classes
/// are up to 2^24.
///
/// The loss and its options are those of [`CrossEntropy`], and so are targets that are no class, infinities and NaN. Logits are sums in f32 that are neither
/// rounded nor stored: each tile of the product leaves the maximum, the sum of exponentials and the target's logit of its rows, 8 bytes a row for each 256
/// classes on Hopper, and for each 64 elsewhere; a second launch merges them in one order, so that the bits are the same from run to run. (That logits need no
/// memory: Wijmans and others, "Cut Your Losses in Large-Vocabulary Language Models", 2025, section 4.)
///
/// Gradients take the classes in chunks, whose logits are computed again, and their gradients rounded to the type of x and kept as long as the products
/// with them take: a chunk's rows of dweight are complete, and dx is a sum over chunks in f32, in their order.
///
/// Hopper's kernel (wgmma) takes 16-bit types where the rows of x and weight start at multiples of 16 bytes, and any number of classes; everything else runs
/// on the kernel that all GPUs have, and the plan says why.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::operators::{CrossEntropy, LinearCrossEntropy};
/// use ferroflash::{Device, Indices, Layout, Tensor};
/// let device = Device::emulator()?;
/// // Logits 0 and ln 3 of two rows, of which the second does not count.
/// let x = Tensor::from_slice(&device, &[1.0f32, 0.0, 1.0, 0.0], [2, 2], Layout::RowMajor)?;
/// let weight = Tensor::from_slice(&device, &[0.0, 1.0, 3f32.ln(), 1.0], [2, 2], Layout::RowMajor)?;
/// let targets = Indices::from_slice(&device, &[0, -100])?;
/// let weight = weight.view();
/// let of = LinearCrossEntropy::new(&weight).with_loss(CrossEntropy::new().with_ignored(-100).with_lse(true));
/// let found = of.forward(&x.view(), &targets.view())?;
/// let loss = found.loss.to_vec::<f32>()?;
/// assert!((loss[0] - 4f32.ln()).abs() < 1e-6 && loss[1] == 0.0);
///
/// let saved = found.saved(&x.view(), &targets.view()).expect("with log-sum-exps");
/// let one = Tensor::from_slice(&device, &[1.0f32; 2], [2], Layout::RowMajor)?;
/// let gradients = of.backward(&saved, &one.view())?;
/// // dlogits of the first row are -3/4 and 3/4.
/// let dweight = gradients.dweight.to_vec::<f32>()?;
/// assert!((dweight[0] + 0.75).abs() < 1e-6 && (dweight[2] - 0.75).abs() < 1e-6);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct LinearCrossEntropy<'a> {
    layer: Dense<'a>,
    loss: CrossEntropy,
    chunk_bytes: Option<u64>,
}

impl<'a> LinearCrossEntropy<'a> {
    /// The plain loss of a layer of these weights, `[classes, k]`, without biases.
    pub fn new(weight: &TensorView<'a>) -> LinearCrossEntropy<'a> {
        LinearCrossEntropy { layer: Dense::new(weight), loss: CrossEntropy::new(), chunk_bytes: None }
    }

    /// Adds these biases to the logits, one for each class.
    pub fn with_bias(mut self, bias: &TensorView<'a>) -> LinearCrossEntropy<'a> {
        self.layer = self.layer.with_bias(bias);
        self
    }

    /// The loss: a factor on logits, smoothing, the loss of the log-sum-exp, the ignored target, and which numbers a call that makes its outputs gives. Rows are shared by
    /// no clusters here, whatever it says of these.
    pub fn with_loss(mut self, loss: CrossEntropy) -> LinearCrossEntropy<'a> {
        self.loss = loss;
        self
    }

    /// Gradients of logits take so many bytes at a time, at most, or those of 256 classes, if that is more: fewer bytes are more chunks. Without this, it is 512 MiB, or
    /// what a sum of dx in f32 takes, if that is more, as each chunk adds to it.
    pub fn with_chunk_bytes(mut self, bytes: u64) -> LinearCrossEntropy<'a> {
        self.chunk_bytes = Some(bytes);
        self
    }

    /// Whether Hopper's kernel may be taken where it runs: on without this.
    pub fn with_hopper(mut self, hopper: bool) -> LinearCrossEntropy<'a> {
        self.layer = self.layer.with_hopper(hopper);
        self
    }
}
