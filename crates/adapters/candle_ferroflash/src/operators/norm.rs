//! RMSNorm and LayerNorm.

use super::apply::{Input, Operator, apply, rows_of};
use super::memory::{Given, Made, Memory, Views, Wanted, run};
use candle_core::{DType, Error, Result, Shape, Storage, Tensor};
use ferroflash::operators::{NormGradientsViewMut, NormOutputViewMut, NormSaved};
use ferroflash::{Dropout, Operand};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// RMSNorm along the last axis of `xs`, `xs / sqrt(mean(xs^2) + eps) * alpha` (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019).
///
/// `alpha` is `(columns)`, contiguous, of the type of `xs` or f32. The result has the shape and the type of `xs`; both have gradients.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_ferroflash::operators::rms_norm;
///
/// candle_ferroflash::emulate_cpu(true);
/// let xs = Tensor::new(&[[3.0f32, 4.0, 0.0, 0.0]], &Device::Cpu)?;
/// let alpha = Tensor::new(&[1.0f32, 1.0, 1.0, 1.0], &Device::Cpu)?;
/// // The mean of the squares is 25 / 4.
/// let out = rms_norm(&xs, &alpha, 1e-6)?.to_vec2::<f32>()?;
/// assert!((out[0][0] - 3.0 / 2.5).abs() < 1e-5);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// As [`Norm::forward`].
pub fn rms_norm(xs: &Tensor, alpha: &Tensor, eps: f32) -> Result<Tensor> {
    Norm::rms(eps).with_weight(alpha).forward(xs)
}

/// LayerNorm along the last axis of `xs`, `(xs - mean) / sqrt(variance + eps) * alpha + beta` (Ba, Kiros and Hinton, "Layer Normalization", 2016).
///
/// `alpha` and `beta` are `(columns)`, contiguous, both of the type of `xs` or both f32. All three have gradients.
///
/// # Errors
/// As [`Norm::forward`].
pub fn layer_norm(xs: &Tensor, alpha: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    Norm::layer(eps).with_weight(alpha).with_bias(beta).forward(xs)
}

/// [`rms_norm`] of `xs + residual`, and that sum, in one launch. See [`Norm::forward_residual`].
///
/// # Errors
/// As [`Norm::forward_residual`].
pub fn rms_norm_residual(xs: &Tensor, residual: &Tensor, alpha: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    Norm::rms(eps).with_weight(alpha).forward_residual(xs, residual)
}

/// [`layer_norm`] of `xs + residual`, and that sum, in one launch. See [`Norm::forward_residual`].
///
/// # Errors
/// As [`Norm::forward_residual`].
pub fn layer_norm_residual(
    xs: &Tensor,
    residual: &Tensor,
    alpha: &Tensor,
    beta: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    Norm::layer(eps).with_weight(alpha).with_bias(beta).forward_residual(xs, residual)
}

/// RMSNorm or LayerNorm with its options, each of which is optional; see [`ferroflash::operators::Norm`] for the equations, for how large numbers are
/// held, and for what becomes of infinities and NaN.
#[derive(Clone, Debug)]
#[must_use]
pub struct Norm {
    layer: bool,
    epsilon: f32,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    zero_centred: bool,
    dropout: Option<Dropout>,
    rowscale: Option<Tensor>,
}

impl Norm {
    /// RMSNorm; `epsilon` is added to the mean of the squares, and is above 0 and finite.
    pub fn rms(epsilon: f32) -> Norm {
        Norm { layer: false, epsilon, weight: None, bias: None, zero_centred: false, dropout: None, rowscale: None }
    }

    /// LayerNorm; `epsilon` is added to the variance, and is above 0 and finite.
    pub fn layer(epsilon: f32) -> Norm {
        Norm { layer: true, ..Norm::rms(epsilon) }
    }

    /// Multiplies columns with these weights, `(columns)`.
    pub fn with_weight(mut self, weight: &Tensor) -> Norm {
        self.weight = Some(weight.clone());
        self
    }

    /// Adds these biases to the columns, `(columns)`, behind the weights.
    pub fn with_bias(mut self, bias: &Tensor) -> Norm {
        self.bias = Some(bias.clone());
        self
    }

    /// Weights are kept as what they are above 1 (Gemma): columns are multiplied with `1 + weight`.
    pub fn zero_centred(mut self) -> Norm {
        self.zero_centred = true;
        self
    }

    /// Drops elements of `xs` before the residual is added and the rows are normalised, and multiplies the others with `1 / (1 - p)`: dropout of the branch of a
    /// residual block, as `layer_norm_fn` of FlashAttention has it. It is for training; each call drops what its seed and offset say, and takes
    /// [`ROWS_NUMBERS`](ferroflash::dropout::ROWS_NUMBERS) of the offsets. Gradients make the mask again.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_ferroflash::operators::{Dropout, Norm};
    ///
    /// candle_ferroflash::emulate_cpu(true);
    /// let xs = Tensor::ones((4, 64), DType::F32, &Device::Cpu)?;
    /// let (_, sum) = Norm::rms(1e-6).with_dropout(Dropout::new(0.5, 42, 0)).forward_residual(&xs, &xs)?;
    /// // What is kept is 2, and the residual is 1.
    /// assert!(sum.flatten_all()?.to_vec1::<f32>()?.iter().all(|&x| x == 3.0 || x == 1.0));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn with_dropout(mut self, dropout: Dropout) -> Norm {
        self.dropout = Some(dropout);
        self
    }

    /// Multiplies the rows of `xs` with a factor each before elements are dropped and the residual is added (stochastic depth: Huang and others, 2016): f32, of
    /// the shape of `xs` without its last axis. It gets no gradient.
    pub fn with_rowscale(mut self, rowscale: &Tensor) -> Norm {
        self.rowscale = Some(rowscale.detach());
        self
    }

    /// The rows of `xs`, `(.., columns)`, normalised, in its shape and type. Gradients of `xs`, weights and biases.
    ///
    /// # Errors
    /// [`crate::Error`]: [`CpuTensors`](crate::Error::CpuTensors), [`ElementType`](crate::Error::ElementType), and what
    /// [`ferroflash::operators::Norm::forward_into`] refuses; or candle's own for tensors on different devices.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if self.has_branch() { Ok(self.of_sum(&[xs])?.0) } else { self.normalise(xs, self.keeps(&[xs]), None) }
    }

    /// [`forward`](Norm::forward), and the rows that were normalised, in the type of `xs`: `xs` itself where nothing is dropped and no row has a factor. One launch.
    ///
    /// # Errors
    /// As [`Norm::forward`].
    pub fn forward_sum(&self, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        if self.has_branch() { self.of_sum(&[xs]) } else { Ok((self.forward(xs)?, xs.clone())) }
    }

    /// The rows of `xs + residual` normalised, in the shape and type of `xs`, and the sum itself, in the type of the residual: that of `xs`, or f32.
    /// One launch. The output is computed from the sum before that is rounded.
    ///
    /// Gradients of `xs`, the residual, weights and biases, whichever of the two results a loss depends on: the gradient of the sum is what it
    /// gets by itself and what it gets through the norm, which candle adds. Through dropout and factors of rows, that of `xs` is a launch more.
    ///
    /// # Errors
    /// As [`Norm::forward`].
    pub fn forward_residual(&self, xs: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        self.of_sum(&[xs, residual])
    }

    /// Whether x is not taken as it is. What is no probability is refused by the call without.
    fn has_branch(&self) -> bool {
        self.rowscale.is_some() || self.dropout.is_some_and(|dropout| dropout.p() > 0.0)
    }

    /// The norm of the sum of x and, where there is one, a residual, and the sum.
    fn of_sum(&self, addends: &[&Tensor]) -> Result<(Tensor, Tensor)> {
        let keeps = self.keeps(addends);
        let ready = Arc::new(Mutex::new(None));
        let detached = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::detach);
        let rowscale = self.rowscale.as_ref().map(Tensor::contiguous).transpose()?;
        let norm = Norm { weight: detached(&self.weight), bias: detached(&self.bias), rowscale, ..self.clone() };
        let sum = apply(Sum { norm, keeps, ready: ready.clone() }, addends)?;
        let made = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The sum is taken as it is.
        let norm = Norm { dropout: None, rowscale: None, ..self.clone() };
        Ok((norm.normalise(&sum, keeps, made)?, sum))
    }

    /// Whether a gradient may be asked for: candle records an operation when, and only when, one of its inputs is a variable or depends on one.
    fn keeps(&self, inputs: &[&Tensor]) -> bool {
        inputs.iter().copied().chain(&self.weight).chain(&self.bias).any(Tensor::track_op)
    }

    /// Makes the norm of `xs` a part of the graph, computed already where it is `ready`.
    fn normalise(&self, xs: &Tensor, keeps: bool, ready: Option<Ready>) -> Result<Tensor> {
        let inputs: Vec<_> = std::iter::once(xs).chain(&self.weight).chain(&self.bias).collect();
        let norm = Norm { weight: None, bias: None, ..self.clone() };
        let has = [self.weight.is_some(), self.bias.is_some()];
        let (ready, statistics) = (Mutex::new(ready), OnceLock::new());
        apply(Normalise { norm, has, keeps, ready, statistics }, &inputs)
    }

    fn name(&self) -> &'static str {
        if self.layer { "layer-norm" } else { "rms-norm" }
    }

    /// The options as ferroflash's own, with the weights and biases among the tensors of a call.
    fn options<'v>(&self, views: &Views<'v>) -> ferroflash::operators::Norm<'v> {
        use ferroflash::operators::Norm;
        let norm = if self.layer { Norm::layer(self.epsilon) } else { Norm::rms(self.epsilon) };
        let norm = views.find(Operand::Weight).map_or(norm, |weight| norm.with_weight(&weight));
        let norm = views.find(Operand::Bias).map_or(norm, |bias| norm.with_bias(&bias));
        let norm = views.find(Operand::Rowscale).map_or(norm, |rowscale| norm.with_rowscale(&rowscale));
        let norm = self.dropout.map_or(norm, |dropout| norm.with_dropout(dropout));
        if self.zero_centred { norm.zero_centred() } else { norm }
    }

    /// Launches the forward pass, for outputs of the type of x, and of `sum_type` where there is a residual.
    fn launch(
        &self,
        given: &[Given<'_>],
        held: &[(Operand, &Tensor)],
        keeps: bool,
        sum_type: Option<DType>,
    ) -> Result<(Made, Option<Statistics>)> {
        let Given { memory, layout, .. } = given[0];
        let shape = layout.shape();
        let mut new = vec![Wanted::new(Operand::Out, memory.dtype(), shape)];
        new.extend(sum_type.map(|dtype| Wanted::new(Operand::ResidualOut, dtype, shape)));
        if keeps {
            let rows = &shape.dims()[..shape.rank().saturating_sub(1)];
            new.push(Wanted::new(Operand::Rstd, DType::F32, rows));
            new.extend(self.layer.then(|| Wanted::new(Operand::Mean, DType::F32, rows)));
        }
        let mut made = run(self.name(), given, held, new, |stream, views| {
            let norm = self.options(views);
            let norm = views.find(Operand::Residual).map_or(norm, |residual| norm.with_residual(&residual));
            let mut into = NormOutputViewMut::new(views.out(Operand::Out));
            into.residual_out = views.find_out(Operand::ResidualOut);
            into.rstd = views.find_out(Operand::Rstd);
            into.mean = views.find_out(Operand::Mean);
            norm.forward_into(stream, &views.tensor(Operand::X), &mut into)
        })?;
        let mean = made.tensor(Operand::Mean);
        let statistics = made.tensor(Operand::Rstd).map(|rstd| Statistics { rstd, mean });
        Ok((made, statistics))
    }
}

/// What gradients need of the rows: f32, one number a row.
struct Statistics {
    rstd: Tensor,
    mean: Option<Tensor>,
}

/// A norm that was computed together with the sum that it is of.
struct Ready {
    out: (Storage, Shape),
    statistics: Option<Statistics>,
}

/// The sum of x, dropped and multiplied where that is asked for, and a residual, if there is one. It is an operation of its own because those of candle have one
/// result: the norm of the sum, which the same launch computes, is left for the operation that follows.
struct Sum {
    /// With weights and biases, which get their gradients from the operation that follows.
    norm: Norm,
    keeps: bool,
    ready: Arc<Mutex<Option<Ready>>>,
}

impl Operator for Sum {
    fn name(&self) -> &'static str {
        self.norm.name()
    }

    fn forward(&self, inputs: &[Input<'_>]) -> Result<(Storage, Shape)> {
        let operands = [Operand::X, Operand::Residual];
        let given =
            operands.into_iter().zip(inputs).map(|(operand, &(memory, layout))| Given { operand, memory, layout });
        let weight = self.norm.weight.iter().map(|weight| (Operand::Weight, weight));
        let bias = self.norm.bias.iter().map(|bias| (Operand::Bias, bias));
        let held: Vec<_> = weight.chain(bias).chain(self.rowscale()).collect();
        // The type of the residual, or of x.
        let sum_type = inputs.last().map(|(memory, _)| memory.dtype());
        let (mut made, statistics) = self.norm.launch(&given.collect::<Vec<_>>(), &held, self.keeps, sum_type)?;
        let ready = Ready { out: made.storage(Operand::Out), statistics };
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(ready);
        Ok(made.storage(Operand::ResidualOut))
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, dsum: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let gradient = |(i, of): (usize, &&Tensor)| {
            if !of.track_op() {
                return Ok(None);
            }
            // All are addends of one sum; only the types may differ, and what becomes of x before.
            let of_addend = if i == 0 { self.through(dsum)? } else { dsum.clone() };
            of_addend.to_dtype(of.dtype()).map(Some)
        };
        inputs.iter().enumerate().map(gradient).collect()
    }
}

impl Sum {
    fn rowscale(&self) -> impl Iterator<Item = (Operand, &Tensor)> {
        self.norm.rowscale.iter().map(|rowscale| (Operand::Rowscale, rowscale))
    }

    /// What dropout and factors of rows make of a gradient: what they made of x. That is the sum of a norm without a residual, which also normalises it, for nobody:
    /// rows are read and written once each, and written once more.
    fn through(&self, dsum: &Tensor) -> Result<Tensor> {
        if !self.norm.has_branch() {
            return Ok(dsum.clone());
        }
        let dsum = rows_of(dsum)?;
        let plain = Norm { weight: None, bias: None, zero_centred: false, ..self.norm.clone() };
        let (storage, layout) = dsum.storage_and_layout();
        let memory = Memory::of(&storage).ok_or(crate::Error::Device { op: self.norm.name() })?;
        let given = [Given { operand: Operand::X, memory, layout }];
        let (mut made, _) = plain.launch(&given, &self.rowscale().collect::<Vec<_>>(), false, Some(dsum.dtype()))?;
        Ok(made.tensor(Operand::ResidualOut).expect("a call with such options has a sum"))
    }
}

/// The norm of x, weights and biases.
struct Normalise {
    /// Without weights and biases, which are inputs.
    norm: Norm,
    /// Whether there are weights, and biases.
    has: [bool; 2],
    keeps: bool,
    ready: Mutex<Option<Ready>>,
    statistics: OnceLock<Statistics>,
}

impl Normalise {
    /// What the inputs behind x are.
    fn beside(&self) -> impl Iterator<Item = Operand> {
        let has = [Operand::Weight, Operand::Bias].into_iter().zip(self.has);
        has.filter(|&(_, has)| has).map(|(operand, _)| operand)
    }
}

impl Operator for Normalise {
    fn name(&self) -> &'static str {
        self.norm.name()
    }

    fn forward(&self, inputs: &[Input<'_>]) -> Result<(Storage, Shape)> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (out, statistics) = if let Some(Ready { out, statistics }) = ready {
            (out, statistics)
        } else {
            let operands = std::iter::once(Operand::X).chain(self.beside());
            let given = operands.zip(inputs).map(|(operand, &(memory, layout))| Given { operand, memory, layout });
            let (mut made, statistics) = self.norm.launch(&given.collect::<Vec<_>>(), &[], self.keeps, None)?;
            (made.storage(Operand::Out), statistics)
        };
        if let Some(statistics) = statistics {
            // `normalise` makes an operation for each call.
            assert!(self.statistics.set(statistics).is_ok(), "an operation of one call was applied twice");
        }
        Ok(out)
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, dout: &Tensor) -> Result<Vec<Option<Tensor>>> {
        // candle asks for gradients of what it has recorded, and what it records is kept.
        let Some(Statistics { rstd, mean }) = self.statistics.get() else {
            return Err(Error::BackwardNotSupported { op: self.name() });
        };
        let (x, dout) = (inputs[0], rows_of(dout)?);
        let mut held = vec![(Operand::Normalised, x), (Operand::Dout, &dout), (Operand::Rstd, rstd)];
        held.extend(mean.iter().map(|mean| (Operand::Mean, mean)));
        let mut new = vec![Wanted::new(Operand::Dx, dout.dtype(), x.shape())];
        // The sum with a residual of f32 has its gradient in f32.
        let wide = x.dtype() != dout.dtype();
        new.extend(wide.then(|| Wanted::new(Operand::Dresidual, x.dtype(), x.shape())));
        for (operand, &tensor) in self.beside().zip(&inputs[1..]) {
            held.push((operand, tensor));
            let gradient = if operand == Operand::Weight { Operand::Dweight } else { Operand::Dbias };
            new.extend(tensor.track_op().then(|| Wanted::new(gradient, tensor.dtype(), tensor.shape())));
        }
        let mut made = run(self.name(), &[], &held, new, |stream, views| {
            let mut saved = NormSaved::new(&views.tensor(Operand::Normalised), &views.tensor(Operand::Rstd));
            saved.mean = views.find(Operand::Mean);
            let mut into = NormGradientsViewMut::new(views.out(Operand::Dx));
            into.dresidual = views.find_out(Operand::Dresidual);
            into.dweight = views.find_out(Operand::Dweight);
            into.dbias = views.find_out(Operand::Dbias);
            self.norm.options(views).backward_into(stream, &saved, &views.tensor(Operand::Dout), None, &mut into)
        })?;
        let dx = made.tensor(if wide { Operand::Dresidual } else { Operand::Dx });
        let mut gradients = vec![dx.filter(|_| x.track_op())];
        for operand in self.beside() {
            gradients.push(made.tensor(if operand == Operand::Weight { Operand::Dweight } else { Operand::Dbias }));
        }
        Ok(gradients)
    }
}
