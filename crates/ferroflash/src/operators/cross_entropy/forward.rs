//! Losses.

use super::super::check::Tensors;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::CrossEntropy;
use super::backward::CrossEntropySaved;
use super::cut::forward_cut;
use crate::backend::RawStream;
use crate::device::{Device, Stream};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, Result};
use crate::plain::bytes_of;
use crate::plan::{Binding, Params, run};
use crate::tensor::{IndicesView, Layout, Tensor, TensorView, TensorViewMut};
use kernel_spec::families::cross_entropy::CrossEntropyParams;
use kernel_spec::families::cross_entropy::features::SMOOTHING;
use kernel_spec::{DType, Divisor, Features};
use std::mem::offset_of;

/// What [`CrossEntropy::forward`] returns. New tensors are contiguous.
#[derive(Debug)]
#[non_exhaustive]
pub struct CrossEntropyOutput {
    /// Losses of the rows, with the part that is of the log-sum-exps.
    pub loss: Tensor,
    /// Natural log-sum-exps of the rows, of the scaled logits, where [`CrossEntropy::with_lse`] asks for them.
    pub lse: Option<Tensor>,
    /// The part of the losses that is of the log-sum-exps, where [`CrossEntropy::with_z_losses`] asks for it.
    pub z_losses: Option<Tensor>,
    /// What was launched.
    pub plan: OperatorPlan,
}

impl CrossEntropyOutput {
    /// What gradients are computed from; `None` without log-sum-exps.
    pub fn saved<'a>(&'a self, logits: &TensorView<'a>, targets: &IndicesView<'a>) -> Option<CrossEntropySaved<'a>> {
        Some(CrossEntropySaved::new(logits, targets, &self.lse.as_ref()?.view()))
    }
}

/// Where [`CrossEntropy::forward_into`] writes.
#[derive(Debug)]
#[non_exhaustive]
pub struct CrossEntropyOutputViewMut<'o> {
    /// Losses of the rows.
    pub loss: TensorViewMut<'o>,
    /// Log-sum-exps of the rows.
    pub lse: Option<TensorViewMut<'o>>,
    /// The part of the losses that is of the log-sum-exps.
    pub z_losses: Option<TensorViewMut<'o>>,
}

impl<'o> CrossEntropyOutputViewMut<'o> {
    /// The losses alone.
    pub fn new(loss: TensorViewMut<'o>) -> CrossEntropyOutputViewMut<'o> {
        CrossEntropyOutputViewMut { loss, lse: None, z_losses: None }
    }

    /// And the log-sum-exps.
    pub fn with_lse(mut self, lse: TensorViewMut<'o>) -> CrossEntropyOutputViewMut<'o> {
        self.lse = Some(lse);
        self
    }

    /// And the part of the losses that is of the log-sum-exps.
    pub fn with_z_losses(mut self, z_losses: TensorViewMut<'o>) -> CrossEntropyOutputViewMut<'o> {
        self.z_losses = Some(z_losses);
        self
    }

    /// Whichever there are.
    pub(in crate::operators) fn given(&self) -> impl Iterator<Item = (Operand, &TensorViewMut<'o>)> {
        let all = [
            (Operand::Loss, Some(&self.loss)),
            (Operand::Lse, self.lse.as_ref()),
            (Operand::ZLosses, self.z_losses.as_ref()),
        ];
        all.into_iter().filter_map(|(operand, view)| Some((operand, view?)))
    }
}

/// The tensors of a forward pass, and where each lies.
struct Call {
    logits: Placed,
    /// One number a row each.
    numbers: Vec<Placed>,
}

impl CrossEntropy {
    /// Losses of rows of logits in new tensors, on the default stream of their device. `targets` are the classes of the rows, in their order.
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn forward(&self, logits: &TensorView<'_>, targets: &IndicesView<'_>) -> Result<CrossEntropyOutput> {
        let device = logits.device();
        let call = self.call(logits, targets, None)?;
        let plan = self.forward_plan(&call, device)?;
        let new = |placed: &Placed| Tensor::uninit(device, placed.dtype, placed.shape, Layout::RowMajor);
        let find = |operand| call.numbers.iter().find(|placed| placed.operand == operand).map(new).transpose();
        let loss = find(Operand::Loss)?.expect("every call has losses");
        let (lse, z_losses) = (find(Operand::Lse)?, find(Operand::ZLosses)?);
        let mut operands = vec![
            (Operand::Logits, logits.address()),
            (Operand::Targets, targets.address()),
            (Operand::Loss, loss.address()),
        ];
        let written = [(Operand::Lse, &lse), (Operand::ZLosses, &z_losses)];
        operands
            .extend(written.into_iter().filter_map(|(operand, tensor)| Some((operand, tensor.as_ref()?.address()))));
        run(device, RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands)?;
        Ok(CrossEntropyOutput { loss, lse, z_losses, plan })
    }

    /// [`CrossEntropy::forward`] into these tensors, on `stream`: whichever of them are given are written. They need memory of their own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`CrossEntropy::forward`], and [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn forward_into(
        &self,
        stream: &Stream,
        logits: &TensorView<'_>,
        targets: &IndicesView<'_>,
        into: &mut CrossEntropyOutputViewMut<'_>,
    ) -> Result<()> {
        let device = logits.device();
        let call = self.call(logits, targets, Some(into))?;
        device.check_stream(stream)?;
        let plan = self.forward_plan(&call, device)?;
        let mut operands = vec![(Operand::Logits, logits.address()), (Operand::Targets, targets.address())];
        operands.extend(into.given().map(|(operand, view)| (operand, view.view().address())));
        run(device, stream.raw(), &plan.steps, &plan.buffers, &operands)
    }

    /// What [`CrossEntropy::forward`] of these rows would launch, and why.
    ///
    /// # Errors
    /// As [`CrossEntropy::forward`].
    pub fn plan(&self, logits: &TensorView<'_>, targets: &IndicesView<'_>) -> Result<OperatorPlan> {
        self.forward_plan(&self.call(logits, targets, None)?, logits.device())
    }

    /// Checks everything, for outputs that are given or for new ones.
    fn call(
        &self,
        logits: &TensorView<'_>,
        targets: &IndicesView<'_>,
        into: Option<&CrossEntropyOutputViewMut<'_>>,
    ) -> Result<Call> {
        self.check_options()?;
        let mut tensors = Tensors::of(Operand::Logits, logits)?;
        tensors.row_indices(Operand::Targets, targets)?;
        let numbers = self.numbers(&mut tensors, into)?;
        Ok(Call { logits: Placed::of(Operand::Logits, logits), numbers })
    }

    /// The tensors of one number a row that a call writes, those that are given or new ones, checked.
    pub(in crate::operators) fn numbers(
        &self,
        tensors: &mut Tensors<'_>,
        into: Option<&CrossEntropyOutputViewMut<'_>>,
    ) -> Result<Vec<Placed>> {
        let Some(into) = into else {
            let wanted = [(Operand::Loss, true), (Operand::Lse, self.lse), (Operand::ZLosses, self.z_losses)];
            let new = |(operand, _)| Placed::new(operand, DType::F32, tensors.vector_shape(operand));
            return Ok(wanted.into_iter().filter(|&(_, wanted)| wanted).map(new).collect());
        };
        let mut numbers = Vec::new();
        for (operand, view) in into.given() {
            tensors.vector_out(operand, view, &[DType::F32])?;
            numbers.push(Placed::of(operand, &view.view()));
        }
        tensors.check_apart()?;
        Ok(numbers)
    }

    fn forward_plan(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let Call { logits, numbers } = call;
        let dtype = logits.dtype;
        let rows = Rows::of(logits, &[*logits])?;
        let aligned = rows.aligned(dtype, std::iter::once(logits));
        let cut = forward_cut(dtype, &rows, device, self.clusters)?;
        let teams = cut.teams(&rows, device, true);
        let features = if self.smoothing > 0.0 { Features::OFF.with(SMOOTHING, 0) } else { Features::OFF };
        let params = CrossEntropyParams {
            logits: rows.params(logits),
            targets: 0,
            loss: 0,
            lse: 0,
            z_losses: 0,
            extents: rows.extents,
            sharers: Divisor::new(cut.sharers),
            share: cut.share,
            options: self.params(),
            aligned: aligned.into(),
            teams: teams as u32,
            unused: 0,
            features,
        };
        let holes = Params::new(bytes_of(&params))
            .address(
                offset_of!(CrossEntropyParams, logits.address),
                Binding::Operand(Operand::Logits),
                logits.alignment(aligned),
            )
            .address(offset_of!(CrossEntropyParams, targets), Binding::Operand(Operand::Targets), 4);
        let holes = numbers.iter().fold(holes, |holes, placed| {
            let offset = match placed.operand {
                Operand::Loss => offset_of!(CrossEntropyParams, loss),
                Operand::Lse => offset_of!(CrossEntropyParams, lse),
                _ => offset_of!(CrossEntropyParams, z_losses),
            };
            holes.address(offset, Binding::Operand(placed.operand), placed.alignment(false))
        });
        let mut reason =
            "every logit is read once, and nothing of a row is kept but its maximum and its sum".to_owned();
        if cut.sharers > 1 {
            reason += &format!("; {} thread blocks share a row, as rows are few", cut.sharers);
        }
        Ok(OperatorPlan {
            name: "cross_entropy",
            pass: "forward",
            rows: rows.rows,
            columns: rows.columns,
            dtype,
            steps: vec![cut.step(teams, features.set(), aligned, holes)?],
            buffers: Vec::new(),
            bytes: logits.bytes() + 4 * rows.rows as u64 + numbers.iter().map(Placed::bytes).sum::<u64>(),
            reason,
        })
    }
}
