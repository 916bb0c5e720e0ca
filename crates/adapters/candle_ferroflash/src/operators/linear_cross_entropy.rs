//! Cross-entropy of the logits of a dense layer.

use super::apply::{Input, Operator, apply};
use super::cross_entropy::CrossEntropy;
use super::memory::{Given, Views, Wanted, run};
use candle_core::{DType, Error, Result, Shape, Storage, Tensor};
use ferroflash::Operand;
use ferroflash::operators::{CrossEntropyOutputViewMut, DenseGradientsViewMut, LinearCrossEntropySaved};
use std::sync::OnceLock;

/// [`cross_entropy`](super::cross_entropy()) of the logits `xs weight^T + bias`, which are never in memory: of `xs` `(rows, k)`, `weight` `(classes, k)`,
/// `bias` `(classes)` and `target` classes, `(rows)` of u32 or i32. The mean over the rows, an f32 scalar. `xs`, weights and biases have gradients.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_ferroflash::operators::linear_cross_entropy;
///
/// candle_ferroflash::emulate_cpu(true);
/// let xs = Tensor::new(&[[1.0f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
/// // Logits 0 and ln 3 of the first row, 0 and 0 of the second.
/// let weight = Tensor::new(&[[0.0f32, 0.0], [3f32.ln(), 0.0]], &Device::Cpu)?;
/// let loss = linear_cross_entropy(&xs, &weight, None, &Tensor::new(&[0u32, 1], &Device::Cpu)?)?.to_scalar::<f32>()?;
/// assert!((loss - (4f32.ln() + 2f32.ln()) / 2.0).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// As [`LinearCrossEntropy::losses`].
pub fn linear_cross_entropy(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, target: &Tensor) -> Result<Tensor> {
    let of = LinearCrossEntropy::new(weight);
    bias.map_or(of.clone(), |bias| of.with_bias(bias)).mean(xs, target)
}

/// The last layer of a model and its loss, with their options: cross-entropy of the logits `x weight^T + bias`, which are never in memory.
///
/// See [`ferroflash::operators::LinearCrossEntropy`] for how, for sources, and for which kernel takes which shapes. Gradients compute the logits again, a chunk
/// of classes at a time.
#[derive(Clone, Debug)]
#[must_use]
pub struct LinearCrossEntropy {
    weight: Tensor,
    bias: Option<Tensor>,
    loss: CrossEntropy,
    chunk_bytes: Option<u64>,
}

impl LinearCrossEntropy {
    /// The plain loss of a layer of these weights, `(classes, k)`, of the type of x, their last axis contiguous.
    pub fn new(weight: &Tensor) -> LinearCrossEntropy {
        LinearCrossEntropy { weight: weight.clone(), bias: None, loss: CrossEntropy::new(), chunk_bytes: None }
    }

    /// Adds these biases to the logits, `(classes)`; contiguous, of the type of x.
    pub fn with_bias(mut self, bias: &Tensor) -> LinearCrossEntropy {
        self.bias = Some(bias.clone());
        self
    }

    /// The loss with its options.
    pub fn with_loss(mut self, loss: CrossEntropy) -> LinearCrossEntropy {
        self.loss = loss;
        self
    }

    /// Gradients of logits take so many bytes at a time, at most, or those of 256 classes, if that is more. Without this, it is 512 MiB, or what the gradient of x
    /// takes in f32, if that is more.
    pub fn with_chunk_bytes(mut self, bytes: u64) -> LinearCrossEntropy {
        self.chunk_bytes = Some(bytes);
        self
    }

    /// Losses of the rows of `xs`, `(.., k)`, of f16, bf16 or f32, through whose rows one stride steps: f32, `(..)`. `targets` are u32 or i32, one for each row,
    /// in the order of the rows.
    ///
    /// Gradients of `xs`, weights and biases, of which `backward` computes those that are wanted. Gradients of logits are rounded to the type of `xs` on their way:
    /// of f16, what is below 2^-25 is 0.
    ///
    /// # Errors
    /// [`crate::Error`]: [`CpuTensors`](crate::Error::CpuTensors), [`ElementType`](crate::Error::ElementType), [`Numbers`](crate::Error::Numbers), and
    /// what [`ferroflash::operators::LinearCrossEntropy::forward_into`] refuses; or candle's own for tensors on different devices.
    pub fn losses(&self, xs: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let inputs: Vec<_> = [xs, &self.weight].into_iter().chain(&self.bias).collect();
        let losses = Losses {
            loss: self.loss.options(),
            chunk_bytes: self.chunk_bytes,
            targets: targets.detach().contiguous()?,
            keeps: inputs.iter().any(|input| input.track_op()),
            lse: OnceLock::new(),
        };
        apply(losses, &inputs)
    }

    /// The mean of [`losses`](LinearCrossEntropy::losses) over the rows whose target is not the ignored one, an f32 scalar; NaN if there is no such row.
    ///
    /// # Errors
    /// As [`LinearCrossEntropy::losses`].
    pub fn mean(&self, xs: &Tensor, targets: &Tensor) -> Result<Tensor> {
        self.loss.mean_of(LINEAR_CROSS_ENTROPY, &self.losses(xs, targets)?, targets)
    }
}

const LINEAR_CROSS_ENTROPY: &str = "linear-cross-entropy";

/// What the inputs of the operation are, of which the last may be missing, and their gradients.
const INPUTS: [(Operand, Operand); 3] =
    [(Operand::X, Operand::Dx), (Operand::Weight, Operand::Dweight), (Operand::Bias, Operand::Dbias)];

/// The losses of one call.
struct Losses {
    loss: ferroflash::operators::CrossEntropy,
    chunk_bytes: Option<u64>,
    /// Contiguous.
    targets: Tensor,
    /// Whether a gradient may be asked for.
    keeps: bool,
    /// Log-sum-exps of the rows, when they were kept.
    lse: OnceLock<Tensor>,
}

impl Losses {
    /// The options as ferroflash's own, with weights and biases among the tensors of a call.
    fn options<'v>(&self, views: &Views<'v>) -> ferroflash::operators::LinearCrossEntropy<'v> {
        use ferroflash::operators::LinearCrossEntropy;
        let of = LinearCrossEntropy::new(&views.tensor(Operand::Weight)).with_loss(self.loss);
        let of = views.find(Operand::Bias).map_or(of, |bias| of.with_bias(&bias));
        self.chunk_bytes.map_or(of, |bytes| of.with_chunk_bytes(bytes))
    }
}

impl Operator for Losses {
    fn name(&self) -> &'static str {
        LINEAR_CROSS_ENTROPY
    }

    fn forward(&self, inputs: &[Input<'_>]) -> Result<(Storage, Shape)> {
        let given = INPUTS.iter().zip(inputs);
        let given: Vec<_> = given.map(|(&(operand, _), &(memory, layout))| Given { operand, memory, layout }).collect();
        let of_x = given[0].layout.dims();
        let rows = &of_x[..of_x.len().saturating_sub(1)];
        let mut new = vec![Wanted::new(Operand::Loss, DType::F32, rows)];
        new.extend(self.keeps.then(|| Wanted::new(Operand::Lse, DType::F32, rows)));
        let mut made =
            run(LINEAR_CROSS_ENTROPY, &given, &[(Operand::Targets, &self.targets)], new, |stream, views| {
                let mut into = CrossEntropyOutputViewMut::new(views.out(Operand::Loss));
                into.lse = views.find_out(Operand::Lse);
                let (x, targets) = (views.tensor(Operand::X), views.numbers(Operand::Targets));
                self.options(views).forward_into(stream, &x, &targets, &mut into)
            })?;
        if let Some(lse) = made.tensor(Operand::Lse) {
            // `losses` makes an operation for each call.
            assert!(self.lse.set(lse).is_ok(), "an operation of one call was applied twice");
        }
        Ok(made.storage(Operand::Loss))
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, dloss: &Tensor) -> Result<Vec<Option<Tensor>>> {
        // candle asks for gradients of what it has recorded, and what it records is kept.
        let Some(lse) = self.lse.get() else { return Err(Error::BackwardNotSupported { op: LINEAR_CROSS_ENTROPY }) };
        let dloss = dloss.contiguous()?;
        let mut held = vec![(Operand::Targets, &self.targets), (Operand::Lse, lse), (Operand::Dloss, &dloss)];
        let mut new = Vec::new();
        for (&(operand, gradient), &tensor) in INPUTS.iter().zip(inputs) {
            held.push((operand, tensor));
            new.extend(tensor.track_op().then(|| Wanted::new(gradient, tensor.dtype(), tensor.shape())));
        }
        let mut made = run(LINEAR_CROSS_ENTROPY, &[], &held, new, |stream, views| {
            let [x, lse, dloss] = [Operand::X, Operand::Lse, Operand::Dloss].map(|of| views.tensor(of));
            let saved = LinearCrossEntropySaved::new(&x, &views.numbers(Operand::Targets), &lse);
            let mut into = DenseGradientsViewMut::new();
            into.dx = views.find_out(Operand::Dx);
            into.dweight = views.find_out(Operand::Dweight);
            into.dbias = views.find_out(Operand::Dbias);
            self.options(views).backward_into(stream, &saved, &dloss, &mut into)
        })?;
        Ok(INPUTS.iter().zip(inputs).map(|(&(_, gradient), _)| made.tensor(gradient)).collect())
    }
}
