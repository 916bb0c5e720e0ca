//! Dense layers.

use super::apply::{Input, Operator, apply};
use super::memory::{Given, Views, Wanted, run};
use crate::error::{Error, Feature};
use candle_core::{Result, Shape, Storage, Tensor};
use ferroflash::Operand;
use ferroflash::operators::{Activation, DenseOutputViewMut};

/// A dense layer without an activation, `xs weight^T + bias`, of `xs` `(.., k)`, `weight` `(n, k)` and `bias` `(n)`: `(.., n)`. See
/// [`Dense::forward`], also for gradients, which there are none of yet.
///
/// # Errors
/// As [`Dense::forward`].
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    dense(xs, weight, bias, Activation::Identity)
}

/// A dense layer, `activation(xs weight^T + bias)`, in one launch.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_ferroflash::operators::{Activation, dense};
///
/// candle_ferroflash::emulate_cpu(true);
/// let xs = Tensor::new(&[[1.0f32, 2.0], [3.0, -1.0]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[1.0f32, 0.0], [1.0, 1.0], [0.0, 2.0]], &Device::Cpu)?;
/// let out = dense(&xs, &weight, None, Activation::Relu)?;
/// assert_eq!(out.to_vec2::<f32>()?, [[1.0, 3.0, 4.0], [3.0, 2.0, 0.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// As [`Dense::forward`].
pub fn dense(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    let layer = Dense::new(weight).with_activation(activation);
    bias.map_or(layer.clone(), |bias| layer.with_bias(bias)).forward(xs)
}

/// A dense layer with its options; see [`ferroflash::operators::Dense`] for equations, sources, and for which kernel takes which shapes.
#[derive(Clone, Debug)]
#[must_use]
pub struct Dense {
    weight: Tensor,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
    activation: Activation,
}

impl Dense {
    /// A layer of these weights, `(n, k)`, or `(2 n, k)` of SwiGLU, the rows of the gate first. Of the type of x, their last axis contiguous.
    pub fn new(weight: &Tensor) -> Dense {
        Dense { weight: weight.clone(), bias: None, residual: None, activation: Activation::Identity }
    }

    /// Adds these biases to the sums, `(n)`, or `(2 n)` of SwiGLU; contiguous, of the type of x.
    pub fn with_bias(mut self, bias: &Tensor) -> Dense {
        self.bias = Some(bias.clone());
        self
    }

    /// Adds this behind the activation; of the shape and the type of the result.
    pub fn with_residual(mut self, residual: &Tensor) -> Dense {
        self.residual = Some(residual.clone());
        self
    }

    /// What becomes of the sums.
    pub fn with_activation(mut self, activation: Activation) -> Dense {
        self.activation = activation;
        self
    }

    /// The layer of the rows of `xs`, `(.., k)`, of f16, bf16 or f32: `(.., n)`, in its type, rounded once. Sums are f32.
    ///
    /// There are no gradients yet: `backward` of a result that depends on a variable is [`Error::Missing`] with [`Feature::DenseGradients`].
    ///
    /// # Errors
    /// [`Error::CpuTensors`], [`Error::ElementType`], and what [`ferroflash::operators::Dense::forward_into`] refuses; or candle's own for tensors on
    /// different devices.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let bias = self.bias.iter().map(|bias| (Operand::Bias, bias));
        let residual = self.residual.iter().map(|residual| (Operand::Residual, residual));
        let mut beside: Vec<_> = bias.chain(residual).collect();
        let mut inputs = vec![(Operand::X, xs), (Operand::Weight, &self.weight)];
        // candle's operations have three inputs. One that a gradient is wanted of has to be among them, for its lack to be an error.
        if let Some(place) = beside.iter().position(|(_, tensor)| tensor.track_op()) {
            inputs.push(beside.swap_remove(place));
        }
        let tensors: Vec<_> = inputs.iter().map(|&(_, tensor)| tensor).collect();
        let operands = inputs.iter().map(|&(operand, _)| operand).collect();
        let held = beside.into_iter().map(|(operand, tensor)| (operand, tensor.detach())).collect();
        let halves = if self.activation.is_gated() { 2 } else { 1 };
        // Weights of another shape are refused before a result is written.
        let columns = self.weight.dims().first().map_or(0, |sums| sums / halves);
        let outer = &xs.dims()[..xs.rank().saturating_sub(1)];
        let shape = outer.iter().copied().chain([columns]).collect();
        apply(Layer { activation: self.activation, operands, held, shape }, &tensors)
    }
}

/// One call.
struct Layer {
    activation: Activation,
    /// What the inputs are, of which x is the first.
    operands: Vec<Operand>,
    /// What is no input.
    held: Vec<(Operand, Tensor)>,
    /// That of the result.
    shape: Vec<usize>,
}

impl Layer {
    fn options<'v>(&self, views: &Views<'v>) -> ferroflash::operators::Dense<'v> {
        let layer = ferroflash::operators::Dense::new(&views.tensor(Operand::Weight)).with_activation(self.activation);
        let layer = views.find(Operand::Bias).map_or(layer, |bias| layer.with_bias(&bias));
        views.find(Operand::Residual).map_or(layer, |residual| layer.with_residual(&residual))
    }
}

impl Operator for Layer {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> Result<(Storage, Shape)> {
        let operands = self.operands.iter().zip(inputs);
        let given = operands.map(|(&operand, &(memory, layout))| Given { operand, memory, layout });
        let held: Vec<_> = self.held.iter().map(|(operand, tensor)| (*operand, tensor)).collect();
        let wanted = vec![Wanted::new(Operand::Out, inputs[0].0.dtype(), self.shape.as_slice())];
        let mut made = run(self.name(), &given.collect::<Vec<_>>(), &held, wanted, |stream, views| {
            let mut into = DenseOutputViewMut::new(views.out(Operand::Out));
            self.options(views).forward_into(stream, &views.tensor(Operand::X), &mut into)
        })?;
        Ok(made.storage(Operand::Out))
    }

    fn backward(&self, _: &[&Tensor], _: &Tensor, _: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Err(Error::Missing { op: self.name(), feature: Feature::DenseGradients }.into())
    }
}
