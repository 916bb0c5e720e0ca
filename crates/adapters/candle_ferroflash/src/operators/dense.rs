//! Dense layers.

use super::apply::{Input, Operator, apply};
use super::memory::{Given, Views, Wanted, run};
use candle_core::{Result, Shape, Storage, Tensor};
use ferroflash::Operand;
use ferroflash::operators::{Activation, DenseGradientsViewMut, DenseOutputViewMut};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A dense layer without an activation, `xs weight^T + bias`, of `xs` `(.., k)`, `weight` `(n, k)` and `bias` `(n)`: `(.., n)`. All
/// three have gradients; see [`Dense::forward`].
///
/// # Errors
/// As [`Dense::forward`].
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    dense(xs, weight, bias, Activation::Identity)
}

/// A dense layer, `activation(xs weight^T + bias)`, in one launch. `xs`, weights and biases have gradients.
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
    /// Gradients of `xs`, weights, biases and the residual, of which `backward` computes those that are wanted. For them the sums before an activation
    /// are kept with the call, in the type of `xs`.
    ///
    /// # Errors
    /// [`crate::Error`]: [`CpuTensors`](crate::Error::CpuTensors), [`ElementType`](crate::Error::ElementType), and what
    /// [`ferroflash::operators::Dense::forward_into`] refuses; or candle's own for tensors on different devices.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let bias = self.bias.iter().map(|bias| (Operand::Bias, bias));
        let residual = self.residual.iter().map(|residual| (Operand::Residual, residual));
        let mut beside: Vec<_> = bias.chain(residual).collect();
        let mut inputs = vec![(Operand::X, xs), (Operand::Weight, &self.weight)];
        // candle's operations have up to three inputs, and gradients for them alone.
        if let Some(place) = beside.iter().position(|(_, tensor)| tensor.track_op()) {
            inputs.push(beside.remove(place));
        }
        // The residual, where biases are the third.
        let fourth = beside.iter().find(|(_, tensor)| tensor.track_op()).map(|&(_, tensor)| tensor);
        // The identity has no need of sums, nor has the residual.
        let mut summed = inputs.iter().filter(|(operand, _)| *operand != Operand::Residual);
        let keeps = self.activation != Activation::Identity && summed.any(|(_, tensor)| tensor.track_op());
        let tensors: Vec<_> = inputs.iter().map(|&(_, tensor)| tensor).collect();
        let operands = inputs.iter().map(|&(operand, _)| operand).collect();
        let held = beside.into_iter().map(|(operand, tensor)| (operand, tensor.detach())).collect();
        let halves = if self.activation.is_gated() { 2 } else { 1 };
        // Weights of another shape are refused before a result is written.
        let sums = self.weight.dims().first().copied().unwrap_or(0);
        let ready = Ready::default();
        let layer = Layer {
            activation: self.activation,
            operands,
            held,
            outer: xs.dims()[..xs.rank().saturating_sub(1)].to_vec(),
            sums,
            columns: sums / halves,
            keeps,
            z: OnceLock::new(),
            ready: fourth.map(|_| ready.clone()),
        };
        let out = apply(layer, &tensors)?;
        match fourth {
            None => Ok(out),
            Some(residual) => apply(Added { ready }, &[&out, residual]),
        }
    }
}

/// A result that is computed already, for the operation of the graph that gives it.
type Ready = Arc<Mutex<Option<(Storage, Shape)>>>;

/// One call.
struct Layer {
    activation: Activation,
    /// What the inputs are, of which x is the first.
    operands: Vec<Operand>,
    /// What is no input.
    held: Vec<(Operand, Tensor)>,
    /// Axes of rows.
    outer: Vec<usize>,
    /// Sums of a row.
    sums: usize,
    /// Columns of the result.
    columns: usize,
    /// Whether gradients that need the sums may be asked for.
    keeps: bool,
    /// The sums before the activation, when they were kept.
    z: OnceLock<Tensor>,
    /// Where the result goes when [`Added`] is to give it.
    ready: Option<Ready>,
}

impl Layer {
    fn options<'v>(&self, views: &Views<'v>) -> ferroflash::operators::Dense<'v> {
        let layer = ferroflash::operators::Dense::new(&views.tensor(Operand::Weight)).with_activation(self.activation);
        let layer = views.find(Operand::Bias).map_or(layer, |bias| layer.with_bias(&bias));
        views.find(Operand::Residual).map_or(layer, |residual| layer.with_residual(&residual))
    }

    fn with_last(&self, last: usize) -> Vec<usize> {
        self.outer.iter().copied().chain([last]).collect()
    }
}

impl Operator for Layer {
    fn name(&self) -> &'static str {
        DENSE
    }

    fn forward(&self, inputs: &[Input<'_>]) -> Result<(Storage, Shape)> {
        let operands = self.operands.iter().zip(inputs);
        let given = operands.map(|(&operand, &(memory, layout))| Given { operand, memory, layout });
        let held: Vec<_> = self.held.iter().map(|(operand, tensor)| (*operand, tensor)).collect();
        let (first, _) = inputs[0];
        let mut new = vec![Wanted::new(Operand::Out, first.dtype(), self.with_last(self.columns))];
        new.extend(self.keeps.then(|| Wanted::new(Operand::Z, first.dtype(), self.with_last(self.sums))));
        let mut made = run(DENSE, &given.collect::<Vec<_>>(), &held, new, |stream, views| {
            let mut into = DenseOutputViewMut::new(views.out(Operand::Out));
            into.z = views.find_out(Operand::Z);
            self.options(views).forward_into(stream, &views.tensor(Operand::X), &mut into)
        })?;
        if let Some(z) = made.tensor(Operand::Z) {
            // `Dense::forward` makes an operation for each call.
            assert!(self.z.set(z).is_ok(), "an operation of one call was applied twice");
        }
        let (out, shape) = made.storage(Operand::Out);
        let Some(ready) = &self.ready else { return Ok((out, shape)) };
        *ready.lock().unwrap_or_else(PoisonError::into_inner) = Some((out, shape.clone()));
        // The graph needs the shape for the gradient. The elements are not there to be read, by `Added` neither, which alone has this tensor.
        Ok((first.one_zero()?, shape))
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, dout: &Tensor) -> Result<Vec<Option<Tensor>>> {
        // One stride has to step through all rows.
        let dout = dout.contiguous()?;
        let inputs = || self.operands.iter().copied().zip(inputs.iter().copied());
        let bias = self.held.iter().map(|(operand, tensor)| (*operand, tensor));
        let mut held: Vec<_> = inputs().chain(bias).filter(|(operand, _)| *operand != Operand::Residual).collect();
        held.push((Operand::Dout, &dout));
        held.extend(self.z.get().map(|z| (Operand::Z, z)));
        let wanted = inputs().filter(|(_, tensor)| tensor.track_op()).filter_map(|(operand, tensor)| {
            gradient(operand).map(|gradient| Wanted::new(gradient, tensor.dtype(), tensor.shape()))
        });
        let wanted: Vec<_> = wanted.collect();
        // The residual gets what the result gets, without a launch.
        let mut made = if wanted.is_empty() {
            None
        } else {
            Some(run(DENSE, &[], &held, wanted, |stream, views| {
                let mut into = DenseGradientsViewMut::new();
                into.dx = views.find_out(Operand::Dx);
                into.dweight = views.find_out(Operand::Dweight);
                into.dbias = views.find_out(Operand::Dbias);
                let (x, z, dout) = (views.tensor(Operand::X), views.find(Operand::Z), views.tensor(Operand::Dout));
                self.options(views).backward_into(stream, &x, z.as_ref(), &dout, &mut into)
            })?)
        };
        let gradients = inputs().map(|(operand, tensor)| match gradient(operand) {
            Some(gradient) => made.as_mut().and_then(|made| made.tensor(gradient)),
            None => tensor.track_op().then(|| dout.clone()),
        });
        Ok(gradients.collect())
    }
}

/// What an input's gradient is called, where it is computed.
fn gradient(of: Operand) -> Option<Operand> {
    match of {
        Operand::X => Some(Operand::Dx),
        Operand::Weight => Some(Operand::Dweight),
        Operand::Bias => Some(Operand::Dbias),
        _ => None,
    }
}

/// The layer and its residual as candle knows them: [`Layer`] has added them already.
struct Added {
    ready: Ready,
}

impl Operator for Added {
    fn name(&self) -> &'static str {
        DENSE
    }

    fn forward(&self, _: &[Input<'_>]) -> Result<(Storage, Shape)> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        // `Dense::forward` makes an operation for each call.
        Ok(ready.expect("the layer has left its result"))
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, dout: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(inputs.iter().map(|input| input.track_op().then(|| dout.clone())).collect())
    }
}

const DENSE: &str = "dense";
