//! Cross-entropy of rows of logits, forward and backward.

mod backward;
mod cut;
mod forward;

pub use backward::{CrossEntropyGradient, CrossEntropySaved};
pub use forward::{CrossEntropyOutput, CrossEntropyOutputViewMut};

use crate::error::{OperatorError, Result};
use kernel_spec::families::cross_entropy::LossOptions;
use std::f32::consts::LOG2_E;

/// Cross-entropy of rows of logits with a target class each, with its options:
///
/// ```text
/// y = scale logits        lse = ln(sum(exp(y)))
/// loss = (1 - smoothing) (lse - y[target]) + smoothing (lse - mean(y)) + z_loss lse^2
/// ```
///
/// Label smoothing is that of Szegedy and others, "Rethinking the Inception Architecture for Computer Vision", 2015, section 7, as PyTorch has it; the loss of the
/// log-sum-exp that of Chowdhery and others, "PaLM", 2022, section 5. What the loss of a model is, such as the mean over the rows that count, is the
/// caller's: `dloss` of the backward pass is where its factor goes.
///
/// | tensor | shape | element type |
/// | --- | --- | --- |
/// | logits, dlogits | `[.., classes]` | f32, f16 or bf16, both the same |
/// | targets | one for each row of logits, in their order | i32 |
/// | loss, lse, z_losses, dloss | that of logits without the last axis, contiguous | f32 |
///
/// Logits lie side by side, up to 2^24 of them; all other axes are those of rows, with any strides of which at most three step through rows in ways of their
/// own, once axes that continue each other in all tensors are one.
///
/// Targets are on the device, where nobody can refuse one: a target that is neither a class nor the ignored one makes its loss and its gradients NaN, and nothing is
/// read for it. Numbers are computed in f32, each sum in one order: the same bits from run to run. A logit of minus infinity is a class without
/// probability; a NaN or plus infinity makes the loss NaN, and so does a row without a number.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::operators::CrossEntropy;
/// use ferroflash::{Device, Indices, Layout, Tensor};
/// let device = Device::emulator()?;
/// let logits = Tensor::from_slice(&device, &[0.0, 3f32.ln(), 0.0, 3f32.ln()], [2, 2], Layout::RowMajor)?;
/// let targets = Indices::from_slice(&device, &[0, -100])?;
/// let loss = CrossEntropy::new().with_ignored(-100).forward(&logits.view(), &targets.view())?.loss.to_vec::<f32>()?;
/// assert!((loss[0] - 4f32.ln()).abs() < 1e-6 && loss[1] == 0.0);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct CrossEntropy {
    pub(super) scale: f32,
    pub(super) smoothing: f32,
    pub(super) z_loss: f32,
    pub(super) ignored: Option<i32>,
    pub(super) lse: bool,
    pub(super) z_losses: bool,
    pub(super) clusters: bool,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        CrossEntropy {
            scale: 1.0,
            smoothing: 0.0,
            z_loss: 0.0,
            ignored: None,
            lse: false,
            z_losses: false,
            clusters: true,
        }
    }
}

impl CrossEntropy {
    /// Of the logits as they are, and every row counts.
    pub fn new() -> CrossEntropy {
        CrossEntropy::default()
    }

    /// Multiplies the logits with this first; above 0.
    pub fn with_scale(mut self, scale: f32) -> CrossEntropy {
        self.scale = scale;
        self
    }

    /// Gives this share of a target, from 0 to 1, to all classes alike.
    pub fn with_smoothing(mut self, smoothing: f32) -> CrossEntropy {
        self.smoothing = smoothing;
        self
    }

    /// Adds the squares of the log-sum-exps times this, 0 or above, to the losses.
    pub fn with_z_loss(mut self, z_loss: f32) -> CrossEntropy {
        self.z_loss = z_loss;
        self
    }

    /// Rows with this target have a loss of 0, and gradients of 0, whatever their logits are.
    pub fn with_ignored(mut self, target: i32) -> CrossEntropy {
        self.ignored = Some(target);
        self
    }

    /// Whether a call that makes its outputs gives the log-sum-exps too, which gradients are computed from.
    pub fn with_lse(mut self, lse: bool) -> CrossEntropy {
        self.lse = lse;
        self
    }

    /// Whether a call that makes its outputs gives the part of the losses that is of the log-sum-exps too.
    pub fn with_z_losses(mut self, z_losses: bool) -> CrossEntropy {
        self.z_losses = z_losses;
        self
    }

    /// Whether the thread blocks of a cluster may share a row where rows are few, and the device has clusters: on without this.
    pub fn with_clusters(mut self, clusters: bool) -> CrossEntropy {
        self.clusters = clusters;
        self
    }

    /// What is wrong with the options, whatever the logits are.
    pub(super) fn check_options(&self) -> Result<()> {
        let CrossEntropy { scale, smoothing, z_loss, .. } = *self;
        let wrong = if !(scale > 0.0 && (scale * LOG2_E).is_finite()) {
            OperatorError::LogitScale { found: scale }
        } else if !(0.0..=1.0).contains(&smoothing) {
            OperatorError::Smoothing { found: smoothing }
        } else if !(z_loss >= 0.0 && z_loss.is_finite()) {
            OperatorError::ZLoss { found: z_loss }
        } else {
            return Ok(());
        };
        Err(wrong.into())
    }

    /// The options, as kernels take them.
    pub(super) fn params(&self) -> LossOptions {
        let CrossEntropy { scale, smoothing, z_loss, ignored, .. } = *self;
        LossOptions {
            scale,
            smoothing,
            z_loss,
            ignored: ignored.unwrap_or(-1),
            has_ignored: u32::from(ignored.is_some()),
        }
    }
}
