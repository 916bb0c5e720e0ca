//! The output.

use super::super::check::Tensors;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::backward::NormSaved;
use super::cut::cut;
use super::{Kind, Norm};
use crate::backend::RawStream;
use crate::device::{Device, Stream};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, OperatorError, Result};
use crate::plain::bytes_of;
use crate::plan::{Binding, Params, run};
use crate::tensor::{Layout, Tensor, TensorView, TensorViewMut};
use kernel_spec::families::norm::features::{BRANCH, MEAN, RESIDUAL};
use kernel_spec::families::norm::{BranchParams, NormParams, Pass};
use kernel_spec::families::rows::RowsParams;
use kernel_spec::{DType, Divisor, Features};
use std::mem::offset_of;

/// What [`Norm::forward`] returns. New tensors are contiguous.
#[derive(Debug)]
#[non_exhaustive]
pub struct NormOutput {
    /// The rows, normalised.
    pub out: Tensor,
    /// The sum of x and the residual, in the residual's type, where there is one; also without one where something was dropped or rows have a factor, in the
    /// type of x.
    pub residual_out: Option<Tensor>,
    /// Means of the rows, of LayerNorm, where [`Norm::with_statistics`] asks for them.
    pub mean: Option<Tensor>,
    /// Reciprocal deviations of the rows, where [`Norm::with_statistics`] asks for them.
    pub rstd: Option<Tensor>,
    /// What was launched.
    pub plan: OperatorPlan,
}

impl NormOutput {
    /// What gradients are computed from, where x was normalised, or its sum with a residual; `None` without statistics.
    pub fn saved<'a>(&'a self, x: &TensorView<'a>) -> Option<NormSaved<'a>> {
        let normalised = self.residual_out.as_ref().map_or(*x, Tensor::view);
        let saved = NormSaved::new(&normalised, &self.rstd.as_ref()?.view());
        Some(self.mean.as_ref().map_or(saved, |mean| saved.with_mean(&mean.view())))
    }
}

/// Where [`Norm::forward_into`] writes.
#[derive(Debug)]
#[non_exhaustive]
pub struct NormOutputViewMut<'o> {
    /// The rows, normalised.
    pub out: TensorViewMut<'o>,
    /// The sum of x and the residual, of the residual's type.
    pub residual_out: Option<TensorViewMut<'o>>,
    /// Means of the rows, of LayerNorm alone.
    pub mean: Option<TensorViewMut<'o>>,
    /// Reciprocal deviations of the rows.
    pub rstd: Option<TensorViewMut<'o>>,
}

impl<'o> NormOutputViewMut<'o> {
    /// The output alone.
    pub fn new(out: TensorViewMut<'o>) -> NormOutputViewMut<'o> {
        NormOutputViewMut { out, residual_out: None, mean: None, rstd: None }
    }

    /// And the sum with the residual.
    pub fn with_residual_out(mut self, residual_out: TensorViewMut<'o>) -> NormOutputViewMut<'o> {
        self.residual_out = Some(residual_out);
        self
    }

    /// And the means.
    pub fn with_mean(mut self, mean: TensorViewMut<'o>) -> NormOutputViewMut<'o> {
        self.mean = Some(mean);
        self
    }

    /// And the reciprocal deviations.
    pub fn with_rstd(mut self, rstd: TensorViewMut<'o>) -> NormOutputViewMut<'o> {
        self.rstd = Some(rstd);
        self
    }
}

/// The tensors of a forward pass, and where each lies.
struct Call {
    x: Placed,
    residual: Option<Placed>,
    rowscale: Option<Placed>,
    out: Placed,
    residual_out: Option<Placed>,
    weight: Option<Placed>,
    bias: Option<Placed>,
    statistics: Vec<Placed>,
}

impl Norm<'_> {
    /// Normalises rows into new tensors, on the default stream of their device.
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn forward(&self, x: &TensorView<'_>) -> Result<NormOutput> {
        let call = self.call(x, None)?;
        let plan = self.forward_plan(&call, x.device())?;
        let new = |placed: &Placed| Tensor::uninit(x.device(), placed.dtype, placed.shape, Layout::RowMajor);
        let out = new(&call.out)?;
        let residual_out = call.residual_out.as_ref().map(new).transpose()?;
        let statistic = |operand| call.statistics.iter().find(|placed| placed.operand == operand).map(new).transpose();
        let (mean, rstd) = (statistic(Operand::Mean)?, statistic(Operand::Rstd)?);
        let written = [(Operand::ResidualOut, &residual_out), (Operand::Mean, &mean), (Operand::Rstd, &rstd)];
        let mut operands = self.inputs(x);
        operands.push((Operand::Out, out.address()));
        operands
            .extend(written.into_iter().filter_map(|(operand, tensor)| Some((operand, tensor.as_ref()?.address()))));
        run(x.device(), RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands)?;
        Ok(NormOutput { out, residual_out, mean, rstd, plan })
    }

    /// [`Norm::forward`] into these tensors, on `stream`: whichever of them are given are written. They need memory of their own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`Norm::forward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn forward_into(&self, stream: &Stream, x: &TensorView<'_>, into: &mut NormOutputViewMut<'_>) -> Result<()> {
        let call = self.call(x, Some(into))?;
        x.device().check_stream(stream)?;
        let plan = self.forward_plan(&call, x.device())?;
        let mut operands = self.inputs(x);
        operands.push((Operand::Out, into.out.view().address()));
        let written =
            [(Operand::ResidualOut, &into.residual_out), (Operand::Mean, &into.mean), (Operand::Rstd, &into.rstd)];
        operands
            .extend(written.into_iter().filter_map(|(operand, view)| Some((operand, view.as_ref()?.view().address()))));
        run(x.device(), stream.raw(), &plan.steps, &plan.buffers, &operands)
    }

    /// What [`Norm::forward`] of these rows would launch, and why.
    ///
    /// # Errors
    /// As [`Norm::forward`].
    pub fn plan(&self, x: &TensorView<'_>) -> Result<OperatorPlan> {
        self.forward_plan(&self.call(x, None)?, x.device())
    }

    fn inputs(&self, x: &TensorView<'_>) -> Vec<(Operand, u64)> {
        let given = [
            (Operand::Residual, &self.residual),
            (Operand::Rowscale, &self.rowscale),
            (Operand::Weight, &self.weight),
            (Operand::Bias, &self.bias),
        ];
        let given = given.into_iter().filter_map(|(operand, view)| Some((operand, view.as_ref()?.address())));
        std::iter::once((Operand::X, x.address())).chain(given).collect()
    }

    /// Checks everything, for outputs that are given or for new ones.
    fn call(&self, x: &TensorView<'_>, into: Option<&NormOutputViewMut<'_>>) -> Result<Call> {
        self.check_options()?;
        let mut tensors = Tensors::of(Operand::X, x)?;
        let dtype = x.dtype();
        if let Some(residual) = &self.residual {
            tensors.rows(Operand::Residual, residual, &[dtype, DType::F32])?;
        }
        self.check_rowscale(&mut tensors)?;
        self.check_weights(&mut tensors, dtype)?;
        // What was normalised is another tensor than x where there is something to add, or x is not taken as it is.
        let sum_dtype = match (&self.residual, self.branch()?) {
            (Some(residual), _) => Some(residual.dtype()),
            (None, branch) => branch.map(|_| dtype),
        };
        let given = |operand, view: &Option<TensorView<'_>>| view.as_ref().map(|view| Placed::of(operand, view));
        let mut call = Call {
            x: Placed::of(Operand::X, x),
            residual: given(Operand::Residual, &self.residual),
            rowscale: given(Operand::Rowscale, &self.rowscale),
            out: Placed::new(Operand::Out, dtype, x.shape()),
            residual_out: sum_dtype.map(|dtype| Placed::new(Operand::ResidualOut, dtype, x.shape())),
            weight: given(Operand::Weight, &self.weight),
            bias: given(Operand::Bias, &self.bias),
            statistics: Vec::new(),
        };
        let Some(into) = into else {
            if self.statistics {
                let wanted: &[Operand] =
                    if self.kind == Kind::Layer { &[Operand::Mean, Operand::Rstd] } else { &[Operand::Rstd] };
                let new = |&operand: &Operand| Placed::new(operand, DType::F32, tensors.vector_shape(operand));
                call.statistics = wanted.iter().map(new).collect();
            }
            return Ok(call);
        };
        tensors.rows_out(Operand::Out, &into.out, &[dtype])?;
        call.out = Placed::of(Operand::Out, &into.out.view());
        call.residual_out = None;
        if let Some(sum) = &into.residual_out {
            let Some(sum_dtype) = sum_dtype else {
                return Err(OperatorError::Unwanted { tensor: Operand::ResidualOut, needed: "residual" }.into());
            };
            tensors.rows_out(Operand::ResidualOut, sum, &[sum_dtype])?;
            call.residual_out = Some(Placed::of(Operand::ResidualOut, &sum.view()));
        }
        if into.mean.is_some() && self.kind == Kind::Rms {
            return Err(OperatorError::UNWANTED_MEAN.into());
        }
        for (operand, view) in [(Operand::Mean, &into.mean), (Operand::Rstd, &into.rstd)] {
            if let Some(view) = view {
                tensors.vector_out(operand, view, &[DType::F32])?;
                call.statistics.push(Placed::of(operand, &view.view()));
            }
        }
        tensors.check_apart()?;
        Ok(call)
    }

    fn forward_plan(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let dtype = call.x.dtype;
        let wide = |placed: &Option<Placed>| u32::from(placed.is_some_and(|placed| placed.dtype != dtype));
        let tensors: Vec<Placed> =
            [Some(call.x), call.residual, Some(call.out), call.residual_out].into_iter().flatten().collect();
        let rows = Rows::of(&call.x, &tensors)?;
        let weights: Vec<Placed> = [call.weight, call.bias].into_iter().flatten().collect();
        // Weights have one axis, of which nothing is stepped over.
        let aligned = rows.aligned(dtype, tensors.iter().chain(&weights));
        let cut = cut(Pass::Forward, dtype, &rows, device, self.clusters)?;
        let teams = cut.teams(&rows, device, cut.tile.ahead > 0);
        let mut features = Features::OFF;
        let branch = self.branch()?;
        for (slot, on) in
            [(MEAN, self.kind == Kind::Layer), (RESIDUAL, call.residual.is_some()), (BRANCH, branch.is_some())]
        {
            features = if on { features.with(slot, 0) } else { features };
        }
        let place = |placed: &Option<Placed>| placed.as_ref().map_or(RowsParams::NONE, |placed| rows.params(placed));
        let params = NormParams {
            x: rows.params(&call.x),
            residual: place(&call.residual),
            out: rows.params(&call.out),
            residual_out: place(&call.residual_out),
            weight: 0,
            bias: 0,
            mean: 0,
            rstd: 0,
            branch: branch.unwrap_or(BranchParams::NONE),
            extents: rows.extents,
            sharers: Divisor::new(cut.sharers),
            share: cut.share,
            epsilon: self.epsilon,
            weight_offset: self.weight_offset(),
            aligned: aligned.into(),
            wide_residual: wide(&call.residual),
            wide_weight: self.weight_dtype().map_or(0, |weight| u32::from(weight != dtype)),
            teams: teams as u32,
            features,
        };
        let all = tensors.iter().chain(&weights).chain(&call.rowscale).chain(&call.statistics);
        let holes = all.clone().fold(Params::new(bytes_of(&params)), |holes, placed| {
            let offset = match placed.operand {
                Operand::X => offset_of!(NormParams, x.address),
                Operand::Residual => offset_of!(NormParams, residual.address),
                Operand::Out => offset_of!(NormParams, out.address),
                Operand::ResidualOut => offset_of!(NormParams, residual_out.address),
                Operand::Weight => offset_of!(NormParams, weight),
                Operand::Bias => offset_of!(NormParams, bias),
                Operand::Rowscale => offset_of!(NormParams, branch.rowscale),
                Operand::Mean => offset_of!(NormParams, mean),
                _ => offset_of!(NormParams, rstd),
            };
            let of_rows = matches!(placed.operand, Operand::Rowscale | Operand::Mean | Operand::Rstd);
            holes.address(offset, Binding::Operand(placed.operand), placed.alignment(aligned && !of_rows))
        });
        let step = cut.step(teams, features.set(), aligned, holes)?;
        Ok(OperatorPlan {
            name: self.kind.name(),
            pass: "forward",
            rows: rows.rows,
            columns: rows.columns,
            dtype,
            steps: vec![step],
            buffers: Vec::new(),
            bytes: all.map(Placed::bytes).sum(),
            reason: cut.reason(),
        })
    }
}
