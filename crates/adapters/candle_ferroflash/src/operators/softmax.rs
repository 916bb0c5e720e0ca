//! Softmax and its logarithm.

use super::apply::{Input, Operator, apply, rows_of};
use super::memory::{Given, Views, Wanted, run};
use candle_core::shape::Dim;
use candle_core::{D, Result, Shape, Storage, Tensor};
use ferroflash::Operand;

/// Softmax along the last axis of `xs`, in its shape and type, with a gradient.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_ferroflash::operators::softmax_last_dim;
///
/// candle_ferroflash::emulate_cpu(true);
/// let out = softmax_last_dim(&Tensor::new(&[[0.0f32, 3f32.ln()]], &Device::Cpu)?)?.to_vec2::<f32>()?;
/// assert!((out[0][0] - 0.25).abs() < 1e-6 && (out[0][1] - 0.75).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// As [`Softmax::forward`].
pub fn softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    Softmax::new().forward(xs)
}

/// [`softmax_last_dim`], which `dim` has to name.
///
/// # Errors
/// As [`Softmax::forward`]; [`Error::Axis`](crate::Error::Axis) for another axis than the last.
pub fn softmax<A: Dim>(xs: &Tensor, dim: A) -> Result<Tensor> {
    along_the_last("softmax", xs, dim)?;
    softmax_last_dim(xs)
}

/// The logarithm of softmax along the last axis of `xs`, which `dim` has to name, with a gradient.
///
/// # Errors
/// As [`Softmax::forward`]; [`Error::Axis`](crate::Error::Axis) for another axis than the last.
pub fn log_softmax<A: Dim>(xs: &Tensor, dim: A) -> Result<Tensor> {
    along_the_last("log-softmax", xs, dim)?;
    Softmax::log().forward(xs)
}

/// Refuses another axis than the last, along which kernels would read single elements of distant rows.
fn along_the_last(op: &'static str, xs: &Tensor, dim: impl Dim) -> Result<()> {
    let (found, last) = (dim.to_index(xs.shape(), op)?, D::Minus1.to_index(xs.shape(), op)?);
    if found == last { Ok(()) } else { Err(crate::Error::Axis { op, found, rank: xs.rank() }.into()) }
}

/// Softmax or its logarithm, of `scale xs + mask` or of what a mask of booleans shows; see [`ferroflash::operators::Softmax`] for what becomes of hidden columns, infinities and NaN.
#[derive(Clone, Debug)]
#[must_use]
pub struct Softmax {
    scale: f32,
    mask: Option<Tensor>,
    causal: bool,
    log: bool,
}

impl Default for Softmax {
    fn default() -> Self {
        Softmax { scale: 1.0, mask: None, causal: false, log: false }
    }
}

impl Softmax {
    /// Of the rows as they are.
    pub fn new() -> Softmax {
        Softmax::default()
    }

    /// The logarithm of the softmax.
    pub fn log() -> Softmax {
        Softmax { log: true, ..Softmax::default() }
    }

    /// Multiplies the rows with this first; any finite number.
    pub fn with_scale(mut self, scale: f32) -> Softmax {
        self.scale = scale;
        self
    }

    /// A mask of a shape that can be broadcast to that of the rows; rows that share a mask share its memory. One of their type or f32 is added to them, behind
    /// the scale: minus infinity hides a column. One of u8, as candle's comparisons give it, shows the columns where it is not 0 and hides what is in the
    /// others, NaN too. It gets no gradient.
    pub fn with_mask(mut self, mask: &Tensor) -> Softmax {
        self.mask = Some(mask.detach());
        self
    }

    /// Whether the rows of the last axis before the columns are query rows, aligned to the end of the columns: row `i` of `R` sees the first
    /// `i + 1 + columns - R` columns.
    pub fn causal(mut self, causal: bool) -> Softmax {
        self.causal = causal;
        self
    }

    /// The softmax of the rows of `xs`, `(.., columns)`, in its shape and type. Its gradient is computed from this output alone.
    ///
    /// # Errors
    /// [`crate::Error`]: [`CpuTensors`](crate::Error::CpuTensors), [`ElementType`](crate::Error::ElementType), [`MaskType`](crate::Error::MaskType), and
    /// what [`ferroflash::operators::Softmax::forward_into`] refuses; or candle's own for a mask that cannot be broadcast, or is on another device.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mask = self.mask.as_ref().map(|mask| mask.broadcast_as(xs.shape())).transpose()?;
        apply(Softmax { mask, ..self.clone() }, &[xs])
    }

    /// The options as ferroflash's own, with the mask among the tensors of a call.
    fn options<'v>(&self, views: &Views<'v>) -> ferroflash::operators::Softmax<'v> {
        use ferroflash::operators::Softmax;
        let softmax = if self.log { Softmax::log() } else { Softmax::new() };
        let softmax = softmax.with_scale(self.scale).causal(self.causal);
        let softmax = views.find(Operand::Mask).map_or(softmax, |mask| softmax.with_mask(&mask));
        views.find_booleans(Operand::Mask).map_or(softmax, |mask| softmax.with_bool_mask(&mask))
    }
}

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log-softmax" } else { "softmax" }
    }

    fn forward(&self, inputs: &[Input<'_>]) -> Result<(Storage, Shape)> {
        let (memory, layout) = inputs[0];
        let given = [Given { operand: Operand::X, memory, layout }];
        let held: Vec<_> = self.mask.iter().map(|mask| (Operand::Mask, mask)).collect();
        let new = vec![Wanted::new(Operand::Out, memory.dtype(), layout.shape())];
        let mut made = run(Operator::name(self), &given, &held, new, |stream, views| {
            self.options(views).forward_into(stream, &views.tensor(Operand::X), &mut views.out(Operand::Out))
        })?;
        Ok(made.storage(Operand::Out))
    }

    fn backward(&self, _: &[&Tensor], out: &Tensor, dout: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dout = rows_of(dout)?;
        let held = [(Operand::Out, out), (Operand::Dout, &dout)];
        let new = vec![Wanted::new(Operand::Dx, out.dtype(), out.shape())];
        let mut made = run(Operator::name(self), &[], &held, new, |stream, views| {
            let (out, dout) = (views.tensor(Operand::Out), views.tensor(Operand::Dout));
            self.options(views).backward_into(stream, &out, &dout, &mut views.out(Operand::Dx))
        })?;
        Ok(vec![made.tensor(Operand::Dx)])
    }
}
