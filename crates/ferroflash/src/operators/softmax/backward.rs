//! The gradient.

use super::super::check::Tensors;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::Softmax;
use super::cut::cut;
use crate::backend::RawStream;
use crate::device::{Device, Stream};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, Result};
use crate::plain::bytes_of;
use crate::plan::{Binding, Params, run};
use crate::tensor::{Layout, Tensor, TensorView, TensorViewMut};
use kernel_spec::families::softmax::features::LOG;
use kernel_spec::families::softmax::{Pass, SoftmaxBackwardParams};
use kernel_spec::{Divisor, Features};
use std::mem::offset_of;

/// What [`Softmax::backward`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct SoftmaxGradient {
    /// With respect to x; contiguous, of the type of the output.
    pub dx: Tensor,
    /// What was launched.
    pub plan: OperatorPlan,
}

/// The tensors of a backward pass, and where each lies.
struct Call {
    out: Placed,
    dout: Placed,
    dx: Placed,
}

impl Softmax<'_> {
    /// The gradient of a number with respect to x, given what forward gave and the gradient with respect to it, in a new tensor, on the default stream of
    /// their device:
    ///
    /// ```text
    /// dx = scale out (dout - sum(out dout))        of the logarithm: dx = scale (dout - exp(out) sum(dout))
    /// ```
    ///
    /// The three tensors have one shape and one element type. Of the options it needs the scale, and whether it is the logarithm: what is hidden has an `out` of
    /// 0, and a gradient of 0. Of the logarithm, that is an `out` of minus infinity, whose `dout` counts for nothing.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::operators::Softmax;
    /// use ferroflash::{Device, Layout, Tensor};
    /// let device = Device::emulator()?;
    /// let x = Tensor::from_slice(&device, &[0.5f32, -1.0, 2.0, 0.0], [1, 4], Layout::RowMajor)?;
    /// let out = Softmax::new().forward(&x.view())?.out;
    /// // The sum of the output does not change with x.
    /// let dout = Tensor::from_slice(&device, &[1.0f32; 4], [1, 4], Layout::RowMajor)?;
    /// let dx = Softmax::new().backward(&out.view(), &dout.view())?.dx;
    /// assert!(dx.to_vec::<f32>()?.iter().all(|dx| dx.abs() < 1e-6));
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn backward(&self, out: &TensorView<'_>, dout: &TensorView<'_>) -> Result<SoftmaxGradient> {
        let device = dout.device();
        let call = self.gradient_call(out, dout, None)?;
        let plan = self.gradient_plan(&call, device)?;
        let dx = Tensor::uninit(device, call.dx.dtype, call.dx.shape, Layout::RowMajor)?;
        run(device, RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands(out, dout, dx.address()))?;
        Ok(SoftmaxGradient { dx, plan })
    }

    /// [`Softmax::backward`] into this tensor, on `stream`. It needs memory of its own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`Softmax::backward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn backward_into(
        &self,
        stream: &Stream,
        out: &TensorView<'_>,
        dout: &TensorView<'_>,
        dx: &mut TensorViewMut<'_>,
    ) -> Result<()> {
        let device = dout.device();
        let call = self.gradient_call(out, dout, Some(dx))?;
        device.check_stream(stream)?;
        let plan = self.gradient_plan(&call, device)?;
        run(device, stream.raw(), &plan.steps, &plan.buffers, &operands(out, dout, dx.view().address()))
    }

    /// What [`Softmax::backward`] would launch, and why.
    ///
    /// # Errors
    /// As [`Softmax::backward`].
    pub fn plan_backward(&self, out: &TensorView<'_>, dout: &TensorView<'_>) -> Result<OperatorPlan> {
        self.gradient_plan(&self.gradient_call(out, dout, None)?, dout.device())
    }

    fn gradient_call(
        &self,
        out: &TensorView<'_>,
        dout: &TensorView<'_>,
        into: Option<&TensorViewMut<'_>>,
    ) -> Result<Call> {
        self.check_options()?;
        let mut tensors = Tensors::of(Operand::Dout, dout)?;
        let dtype = dout.dtype();
        tensors.rows(Operand::Out, out, &[dtype])?;
        let dx = Placed::new(Operand::Dx, dtype, dout.shape());
        let mut call = Call { out: Placed::of(Operand::Out, out), dout: Placed::of(Operand::Dout, dout), dx };
        if let Some(dx) = into {
            tensors.rows_out(Operand::Dx, dx, &[dtype])?;
            call.dx = Placed::of(Operand::Dx, &dx.view());
            tensors.check_apart()?;
        }
        Ok(call)
    }

    fn gradient_plan(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let tensors = [call.out, call.dout, call.dx];
        let dtype = call.dout.dtype;
        let rows = Rows::of(&call.dout, &tensors)?;
        let aligned = rows.aligned(dtype, tensors.iter());
        let cut = cut(Pass::Backward, dtype, &rows, device, self.clusters)?;
        let teams = rows.rows.div_ceil(cut.tile.block_rows() as usize) as u64;
        let features = if self.log { Features::OFF.with(LOG, 0) } else { Features::OFF };
        let params = SoftmaxBackwardParams {
            out: rows.params(&call.out),
            dout: rows.params(&call.dout),
            dx: rows.params(&call.dx),
            extents: rows.extents,
            sharers: Divisor::new(cut.sharers),
            share: cut.share,
            scale: self.scale,
            aligned: aligned.into(),
            features,
        };
        let holes = tensors.iter().fold(Params::new(bytes_of(&params)), |holes, placed| {
            let offset = match placed.operand {
                Operand::Out => offset_of!(SoftmaxBackwardParams, out.address),
                Operand::Dout => offset_of!(SoftmaxBackwardParams, dout.address),
                _ => offset_of!(SoftmaxBackwardParams, dx.address),
            };
            holes.address(offset, Binding::Operand(placed.operand), placed.alignment(aligned))
        });
        Ok(OperatorPlan {
            name: self.name(),
            pass: "backward",
            rows: rows.rows,
            columns: rows.columns,
            dtype,
            steps: vec![cut.step(teams, features.set(), aligned, holes)?],
            buffers: Vec::new(),
            bytes: tensors.iter().map(Placed::bytes).sum(),
            reason: cut.reason(),
        })
    }
}

fn operands(out: &TensorView<'_>, dout: &TensorView<'_>, dx: u64) -> [(Operand, u64); 3] {
    [(Operand::Out, out.address()), (Operand::Dout, dout.address()), (Operand::Dx, dx)]
}
