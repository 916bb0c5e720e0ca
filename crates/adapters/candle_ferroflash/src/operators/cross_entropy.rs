//! Cross-entropy.

use super::apply::{Input, Operator, apply};
use super::memory::{Given, Wanted, run};
use candle_core::{DType, Error, Result, Shape, Storage, Tensor};
use ferroflash::Operand;
use ferroflash::operators::{CrossEntropyOutputViewMut, CrossEntropySaved};
use std::sync::OnceLock;

/// Cross-entropy of `inp` logits, `(rows, classes)`, and `target` classes, `(rows)` of u32 or i32: the mean over the rows, an f32 scalar, whatever the
/// type of the logits is. The logits have a gradient.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_ferroflash::operators::cross_entropy;
///
/// candle_ferroflash::emulate_cpu(true);
/// let logits = Tensor::new(&[[0.0f32, 3f32.ln()], [0.0, 0.0]], &Device::Cpu)?;
/// let loss = cross_entropy(&logits, &Tensor::new(&[0u32, 1], &Device::Cpu)?)?.to_scalar::<f32>()?;
/// assert!((loss - (4f32.ln() + 2f32.ln()) / 2.0).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// As [`CrossEntropy::losses`].
pub fn cross_entropy(inp: &Tensor, target: &Tensor) -> Result<Tensor> {
    CrossEntropy::new().mean(inp, target)
}

/// Cross-entropy with its options, of `y = scale logits` and `lse = ln(sum(exp(y)))`:
///
/// ```text
/// loss = (1 - smoothing) (lse - y[target]) + smoothing (lse - mean(y)) + z_loss lse^2
/// ```
///
/// See [`ferroflash::operators::CrossEntropy`] for the sources and for what becomes of infinities and NaN. Targets are on the device, where nobody can
/// refuse one: a target that is neither a class nor the ignored one makes the loss and the gradients of its row NaN.
#[derive(Clone, Debug)]
#[must_use]
pub struct CrossEntropy {
    options: ferroflash::operators::CrossEntropy,
    ignored: Option<i32>,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        CrossEntropy { options: ferroflash::operators::CrossEntropy::new(), ignored: None }
    }
}

impl CrossEntropy {
    /// Of the logits as they are, and every row counts.
    pub fn new() -> CrossEntropy {
        CrossEntropy::default()
    }

    /// Multiplies the logits with this first; above 0.
    pub fn with_scale(mut self, scale: f32) -> CrossEntropy {
        self.options = self.options.with_scale(scale);
        self
    }

    /// Gives this share of a target, from 0 to 1, to all classes alike.
    pub fn with_smoothing(mut self, smoothing: f32) -> CrossEntropy {
        self.options = self.options.with_smoothing(smoothing);
        self
    }

    /// Adds the squares of the log-sum-exps times this, 0 or above, to the losses.
    pub fn with_z_loss(mut self, z_loss: f32) -> CrossEntropy {
        self.options = self.options.with_z_loss(z_loss);
        self
    }

    /// Rows with this target, such as -100, have a loss of 0, and gradients of 0, whatever their logits are. In targets of u32 it is the number with
    /// the same bits.
    pub fn with_ignored(mut self, target: i32) -> CrossEntropy {
        self.options = self.options.with_ignored(target);
        self.ignored = Some(target);
        self
    }

    /// Losses of the rows of `logits`, `(.., classes)`, of f16, bf16 or f32: f32, `(..)`. `targets` are u32 or i32, one for each row, in the order of
    /// the rows. The logits have a gradient.
    ///
    /// # Errors
    /// [`crate::Error`]: [`CpuTensors`](crate::Error::CpuTensors), [`ElementType`](crate::Error::ElementType), [`Numbers`](crate::Error::Numbers), and
    /// what [`ferroflash::operators::CrossEntropy::forward_into`] refuses; or candle's own for tensors on different devices.
    pub fn losses(&self, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let (keeps, targets) = (logits.track_op(), targets.detach().contiguous()?);
        apply(Losses { options: self.options, targets, keeps, lse: OnceLock::new() }, &[logits])
    }

    /// The mean of [`losses`](CrossEntropy::losses) over the rows whose target is not the ignored one, an f32 scalar; NaN if there is no such row.
    ///
    /// # Errors
    /// As [`CrossEntropy::losses`].
    pub fn mean(&self, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
        self.mean_of(CROSS_ENTROPY, &self.losses(logits, targets)?, targets)
    }

    /// The mean of losses, which are those of `op`, over the rows that count.
    pub(super) fn mean_of(&self, op: &'static str, losses: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let Some(ignored) = self.ignored else { return losses.mean_all() };
        // candle compares no i32 on GPUs.
        let counted = super::memory::unsigned(op, targets)?.ne(ignored as u32)?;
        losses.sum_all()?.div(&counted.to_dtype(DType::F32)?.sum_all()?)
    }

    /// As ferroflash's own.
    pub(super) fn options(&self) -> ferroflash::operators::CrossEntropy {
        self.options
    }
}

const CROSS_ENTROPY: &str = "cross-entropy";

/// The losses of one call.
struct Losses {
    options: ferroflash::operators::CrossEntropy,
    /// Contiguous.
    targets: Tensor,
    /// Whether a gradient may be asked for.
    keeps: bool,
    /// Log-sum-exps of the rows, when they were kept.
    lse: OnceLock<Tensor>,
}

impl Operator for Losses {
    fn name(&self) -> &'static str {
        CROSS_ENTROPY
    }

    fn forward(&self, inputs: &[Input<'_>]) -> Result<(Storage, Shape)> {
        let (memory, layout) = inputs[0];
        let rows = &layout.dims()[..layout.dims().len().saturating_sub(1)];
        let given = [Given { operand: Operand::Logits, memory, layout }];
        let mut new = vec![Wanted::new(Operand::Loss, DType::F32, rows)];
        new.extend(self.keeps.then(|| Wanted::new(Operand::Lse, DType::F32, rows)));
        let mut made = run(CROSS_ENTROPY, &given, &[(Operand::Targets, &self.targets)], new, |stream, views| {
            let mut into = CrossEntropyOutputViewMut::new(views.out(Operand::Loss));
            into.lse = views.find_out(Operand::Lse);
            let (logits, targets) = (views.tensor(Operand::Logits), views.numbers(Operand::Targets));
            self.options.forward_into(stream, &logits, &targets, &mut into)
        })?;
        if let Some(lse) = made.tensor(Operand::Lse) {
            // `losses` makes an operation for each call.
            assert!(self.lse.set(lse).is_ok(), "an operation of one call was applied twice");
        }
        Ok(made.storage(Operand::Loss))
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, dloss: &Tensor) -> Result<Vec<Option<Tensor>>> {
        // candle asks for gradients of what it has recorded, and what it records is kept.
        let Some(lse) = self.lse.get() else { return Err(Error::BackwardNotSupported { op: CROSS_ENTROPY }) };
        let (logits, dloss) = (inputs[0], dloss.contiguous()?);
        let held = [
            (Operand::Logits, logits),
            (Operand::Targets, &self.targets),
            (Operand::Lse, lse),
            (Operand::Dloss, &dloss),
        ];
        let new = vec![Wanted::new(Operand::Dlogits, logits.dtype(), logits.shape())];
        let mut made = run(CROSS_ENTROPY, &[], &held, new, |stream, views| {
            let [logits, lse, dloss] = [Operand::Logits, Operand::Lse, Operand::Dloss].map(|of| views.tensor(of));
            let saved = CrossEntropySaved::new(&logits, &views.numbers(Operand::Targets), &lse);
            self.options.backward_into(stream, &saved, &dloss, &mut views.out(Operand::Dlogits))
        })?;
        Ok(vec![made.tensor(Operand::Dlogits)])
    }
}
