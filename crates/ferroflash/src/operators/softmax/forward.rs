//! The output.

use super::super::check::Tensors;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::Softmax;
use super::cut::cut;
use crate::backend::RawStream;
use crate::device::{Device, Stream};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, OperatorError, Result};
use crate::plain::bytes_of;
use crate::plan::{Binding, Params, run};
use crate::tensor::{Layout, Tensor, TensorView, TensorViewMut};
use kernel_spec::families::rows::RowsParams;
use kernel_spec::families::softmax::features::{CAUSAL, LOG, MASK};
use kernel_spec::families::softmax::{MASK_OF_BOOLS, MASK_OF_F32, MASK_OF_X, Pass, SoftmaxParams};
use kernel_spec::{DType, Divisor, Features};
use std::mem::offset_of;

/// What [`Softmax::forward`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct SoftmaxOutput {
    /// The softmax of the rows, or its logarithm; contiguous, of the type of x.
    pub out: Tensor,
    /// What was launched.
    pub plan: OperatorPlan,
}

/// The tensors of a forward pass, and where each lies.
struct Call {
    x: Placed,
    mask: Option<Placed>,
    out: Placed,
}

impl Softmax<'_> {
    /// The softmax of rows in a new tensor, on the default stream of their device.
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn forward(&self, x: &TensorView<'_>) -> Result<SoftmaxOutput> {
        let call = self.call(x, None)?;
        let plan = self.forward_plan(&call, x.device())?;
        let out = Tensor::uninit(x.device(), call.out.dtype, call.out.shape, Layout::RowMajor)?;
        run(x.device(), RawStream::DEFAULT, &plan.steps, &plan.buffers, &self.operands(x, out.address()))?;
        Ok(SoftmaxOutput { out, plan })
    }

    /// [`Softmax::forward`] into this tensor, on `stream`. It needs memory of its own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`Softmax::forward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn forward_into(&self, stream: &Stream, x: &TensorView<'_>, out: &mut TensorViewMut<'_>) -> Result<()> {
        let call = self.call(x, Some(out))?;
        x.device().check_stream(stream)?;
        let plan = self.forward_plan(&call, x.device())?;
        run(x.device(), stream.raw(), &plan.steps, &plan.buffers, &self.operands(x, out.view().address()))
    }

    /// What [`Softmax::forward`] of these rows would launch, and why.
    ///
    /// # Errors
    /// As [`Softmax::forward`].
    pub fn plan(&self, x: &TensorView<'_>) -> Result<OperatorPlan> {
        self.forward_plan(&self.call(x, None)?, x.device())
    }

    fn operands(&self, x: &TensorView<'_>, out: u64) -> Vec<(Operand, u64)> {
        let address = self.mask.map(|mask| mask.address()).or(self.bool_mask.map(|mask| mask.address()));
        let mask = address.map(|address| (Operand::Mask, address));
        [(Operand::X, x.address()), (Operand::Out, out)].into_iter().chain(mask).collect()
    }

    /// Checks everything, for an output that is given or for a new one.
    fn call(&self, x: &TensorView<'_>, into: Option<&TensorViewMut<'_>>) -> Result<Call> {
        self.check_options()?;
        let mut tensors = Tensors::of(Operand::X, x)?;
        let dtype = x.dtype();
        let axes = x.shape().len();
        if self.causal && axes < 2 {
            return Err(OperatorError::CausalAxes { tensor: Operand::X, found: axes }.into());
        }
        if let Some(mask) = &self.mask {
            tensors.rows(Operand::Mask, mask, &[dtype, DType::F32])?;
        }
        if let Some(mask) = &self.bool_mask {
            tensors.bool_rows(Operand::Mask, mask)?;
        }
        let of_bools = self.bool_mask.map(|mask| Placed::of_bools(Operand::Mask, &mask, dtype));
        let mask = self.mask.map(|mask| Placed::of(Operand::Mask, &mask)).or(of_bools);
        let mut call = Call { x: Placed::of(Operand::X, x), mask, out: Placed::new(Operand::Out, dtype, x.shape()) };
        if let Some(out) = into {
            tensors.rows_out(Operand::Out, out, &[dtype])?;
            call.out = Placed::of(Operand::Out, &out.view());
            tensors.check_apart()?;
        }
        Ok(call)
    }

    fn forward_plan(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let Call { x, mask, out } = call;
        let dtype = x.dtype;
        let tensors: Vec<Placed> = [Some(*x), *mask, Some(*out)].into_iter().flatten().collect();
        let rows = Rows::of(x, &tensors)?;
        let aligned = rows.aligned(dtype, tensors.iter());
        let cut = cut(Pass::Forward, dtype, &rows, device, self.clusters)?;
        let teams = rows.rows.div_ceil(cut.tile.block_rows() as usize) as u64;
        let mut features = Features::OFF;
        for (slot, on) in [(LOG, self.log), (CAUSAL, self.causal), (MASK, mask.is_some())] {
            features = if on { features.with(slot, 0) } else { features };
        }
        // Of an axis of rows: below 2^31 as their product is, unless there are none.
        let queries =
            x.shape.iter().rev().nth(1).filter(|_| self.causal && rows.rows > 0).map_or(1, |&rows| rows as u32);
        let params = SoftmaxParams {
            x: rows.params(x),
            mask: mask.as_ref().map_or(RowsParams::NONE, |mask| rows.params(mask)),
            out: rows.params(out),
            extents: rows.extents,
            sharers: Divisor::new(cut.sharers),
            queries: Divisor::new(queries),
            share: cut.share,
            scale: self.scale,
            aligned: aligned.into(),
            mask_kind: match mask {
                _ if self.bool_mask.is_some() => MASK_OF_BOOLS,
                Some(mask) if mask.dtype != dtype => MASK_OF_F32,
                _ => MASK_OF_X,
            },
            features,
        };
        let holes = tensors.iter().fold(Params::new(bytes_of(&params)), |holes, placed| {
            let offset = match placed.operand {
                Operand::X => offset_of!(SoftmaxParams, x.address),
                Operand::Mask => offset_of!(SoftmaxParams, mask.address),
                _ => offset_of!(SoftmaxParams, out.address),
            };
            holes.address(offset, Binding::Operand(placed.operand), placed.alignment(aligned))
        });
        Ok(OperatorPlan {
            name: self.name(),
            pass: "forward",
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
