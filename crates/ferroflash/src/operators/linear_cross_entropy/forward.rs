//! Losses.

use super::super::check::Tensors;
use super::super::cross_entropy::CrossEntropyOutputViewMut;
use super::super::dense::Activation;
use super::super::dense::matrix::Matrix;
use super::super::dense::product::Product;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::LinearCrossEntropy;
use super::backward::LinearCrossEntropySaved;
use super::logits::{LossBuffers, Use, merge, parts, step};
use crate::backend::RawStream;
use crate::device::{Device, Stream};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, Result};
use crate::plan::{Buffer, run};
use crate::tensor::{IndicesView, Layout, Tensor, TensorView};
use kernel_spec::DType;
use kernel_spec::families::dense::Pass;

#[cfg(doc)]
use super::super::cross_entropy::CrossEntropy;

/// What [`LinearCrossEntropy::forward`] returns. New tensors are contiguous.
#[derive(Debug)]
#[non_exhaustive]
pub struct LinearCrossEntropyOutput {
    /// Losses of the rows, with the part that is of the log-sum-exps.
    pub loss: Tensor,
    /// Natural log-sum-exps of the rows, of the scaled logits, where [`CrossEntropy::with_lse`] asks for them.
    pub lse: Option<Tensor>,
    /// The part of the losses that is of the log-sum-exps, where [`CrossEntropy::with_z_losses`] asks for it.
    pub z_losses: Option<Tensor>,
    /// What was launched.
    pub plan: OperatorPlan,
}

impl LinearCrossEntropyOutput {
    /// What gradients are computed from; `None` without log-sum-exps.
    pub fn saved<'a>(&'a self, x: &TensorView<'a>, targets: &IndicesView<'a>) -> Option<LinearCrossEntropySaved<'a>> {
        Some(LinearCrossEntropySaved::new(x, targets, &self.lse.as_ref()?.view()))
    }
}

/// The tensors of a forward pass, and where each lies.
struct Call {
    x: Placed,
    classes: usize,
    /// One number a row each.
    numbers: Vec<Placed>,
}

impl LinearCrossEntropy<'_> {
    /// Losses of these rows in new tensors, on the default stream of their device. `targets` are the classes of the rows, in their order.
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn forward(&self, x: &TensorView<'_>, targets: &IndicesView<'_>) -> Result<LinearCrossEntropyOutput> {
        let call = self.call(x, targets, None)?;
        let plan = self.forward_plan(&call, x.device())?;
        let new = |placed: &Placed| Tensor::uninit(x.device(), placed.dtype, placed.shape, Layout::RowMajor);
        let find = |operand| call.numbers.iter().find(|placed| placed.operand == operand).map(new).transpose();
        let loss = find(Operand::Loss)?.expect("every call has losses");
        let (lse, z_losses) = (find(Operand::Lse)?, find(Operand::ZLosses)?);
        let mut operands = self.inputs(x, targets);
        let written =
            [(Operand::Loss, Some(&loss)), (Operand::Lse, lse.as_ref()), (Operand::ZLosses, z_losses.as_ref())];
        operands.extend(written.into_iter().filter_map(|(operand, tensor)| Some((operand, tensor?.address()))));
        run(x.device(), RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands)?;
        Ok(LinearCrossEntropyOutput { loss, lse, z_losses, plan })
    }

    /// [`LinearCrossEntropy::forward`] into these tensors, on `stream`: whichever of them are given are written. They need memory of their own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`LinearCrossEntropy::forward`], and [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn forward_into(
        &self,
        stream: &Stream,
        x: &TensorView<'_>,
        targets: &IndicesView<'_>,
        into: &mut CrossEntropyOutputViewMut<'_>,
    ) -> Result<()> {
        let call = self.call(x, targets, Some(into))?;
        x.device().check_stream(stream)?;
        let plan = self.forward_plan(&call, x.device())?;
        let mut operands = self.inputs(x, targets);
        operands.extend(into.given().map(|(operand, view)| (operand, view.view().address())));
        run(x.device(), stream.raw(), &plan.steps, &plan.buffers, &operands)
    }

    /// What [`LinearCrossEntropy::forward`] of these rows would launch and allocate, and why.
    ///
    /// # Errors
    /// As [`LinearCrossEntropy::forward`].
    pub fn plan(&self, x: &TensorView<'_>, targets: &IndicesView<'_>) -> Result<OperatorPlan> {
        self.forward_plan(&self.call(x, targets, None)?, x.device())
    }

    /// The tensors that both passes read.
    pub(super) fn inputs(&self, x: &TensorView<'_>, targets: &IndicesView<'_>) -> Vec<(Operand, u64)> {
        let bias = self.layer.bias.as_ref().map(|bias| (Operand::Bias, bias.address()));
        let all = [
            (Operand::X, x.address()),
            (Operand::Weight, self.layer.weight.address()),
            (Operand::Targets, targets.address()),
        ];
        all.into_iter().chain(bias).collect()
    }

    /// Checks everything, for outputs that are given or for new ones.
    fn call(
        &self,
        x: &TensorView<'_>,
        targets: &IndicesView<'_>,
        into: Option<&CrossEntropyOutputViewMut<'_>>,
    ) -> Result<Call> {
        self.loss.check_options()?;
        let mut tensors = Tensors::of(Operand::X, x)?;
        let classes = self.layer.check_weights(&mut tensors, x)?;
        tensors.row_indices(Operand::Targets, targets)?;
        let numbers = self.loss.numbers(&mut tensors, into)?;
        Ok(Call { x: Placed::of(Operand::X, x), classes, numbers })
    }

    fn forward_plan(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let Call { x, classes, numbers } = call;
        let rows = Rows::of(x, &[*x])?;
        let x_matrix = Matrix::of(x, rows.rows, rows.one_stride(x, x)?);
        let (weight, bias) = (self.layer.weight_matrix(), self.bias());
        let product = Product {
            pass: Pass::Losses,
            activation: Activation::Identity,
            rows: rows.rows,
            columns: *classes,
            depth: weight.columns,
            operands: [&x_matrix, &weight],
            out: None,
            kept: None,
            residual: None,
            bias: bias.as_ref(),
        };
        let (row, refused) = product.choose(device, self.layer.hopper);
        let count = parts(row, *classes);
        // Something, also without rows.
        let each = rows.rows.max(1) as u64 * DType::F32.bytes() as u64;
        let mut buffers = vec![
            Buffer {
                name: "maxima and sums",
                bytes: 2 * each * u64::from(count),
                reason: "what each tile leaves of a row's logits, in f32",
            },
            Buffer { name: "targets' logits", bytes: each, reason: "one a row, from the tile that has it" },
        ];
        let smooths = self.loss.smoothing > 0.0;
        if smooths {
            let reason = "their mean counts with smoothing";
            buffers.push(Buffer { name: "sums of logits", bytes: each * u64::from(count), reason });
        }
        let parts_of = LossBuffers { pairs: 0, target_logits: 1, totals: smooths.then_some(2) };
        let options = self.loss.params();
        let steps = vec![
            step(&product, row, device, options, *classes, &Use::Losses(parts_of))?,
            merge(device, options, [rows.rows, count as usize, *classes], parts_of, numbers)?,
        ];
        let inputs = [Some(*x), Some(weight.placed), bias];
        let tensors = inputs.iter().flatten().chain(numbers);
        Ok(OperatorPlan {
            name: "linear-cross-entropy",
            pass: "forward",
            rows: rows.rows,
            columns: *classes,
            dtype: x.dtype,
            steps,
            buffers,
            // And a target a row.
            bytes: tensors.map(Placed::bytes).sum::<u64>() + size_of::<i32>() as u64 * rows.rows as u64,
            reason: match refused {
                None => {
                    format!("products of warpgroups, {} deep, whose sums are logits that never leave", weight.columns)
                }
                Some(why) => format!(
                    "products of warps, {} deep, whose sums are logits that never leave, and not those of warpgroups: {why}",
                    weight.columns
                ),
            },
        })
    }

    /// The biases, where there are some.
    pub(super) fn bias(&self) -> Option<Placed> {
        self.layer.bias.as_ref().map(|bias| Placed::of(Operand::Bias, bias))
    }
}
