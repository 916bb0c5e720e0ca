//! What calls of the backward pass read, whether their sequences are uniform or packed, and what is checked and launched alike for both.

use super::super::check::{check_itself, check_like, check_options_apart, check_rows_of, footprint};
use super::super::options::Attention;
use super::super::request::Placed;
use super::super::sinks;
use super::plan::BackwardPlan;
use super::tensors::{Beside, Tensors};
use crate::backend::RawStream;
use crate::error::{Operand, Result};
use crate::plan::run;
use crate::tensor::overlap::{Footprint, check_apart};
use crate::tensor::{HeadsView, Layout, LseView, Tensor, TensorView};
use kernel_spec::DType;

/// Names of what a call writes: gradients of q, k and v.
pub(super) const GRADIENTS: [Operand; 3] = [Operand::Dq, Operand::Dk, Operand::Dv];

/// What a call writes: gradients of q, k and v, and of the sinks if that is wanted.
pub(super) struct Views<'a> {
    pub(super) tensors: [TensorView<'a>; 3],
    pub(super) dsink: Option<TensorView<'a>>,
}

/// The same, read as what they are.
pub(super) struct Outputs<'a> {
    pub(super) tensors: [HeadsView<'a>; 3],
    pub(super) dsink: Option<TensorView<'a>>,
}

impl Outputs<'_> {
    /// Addresses of the gradients of q, k and v.
    pub(super) fn addresses(&self) -> [u64; 3] {
        self.tensors.each_ref().map(|view| view.address())
    }

    /// The gradient of the sinks by its name.
    pub(super) fn dsink_operand(&self) -> impl Iterator<Item = (Operand, u64)> + use<> {
        self.dsink.map(|dsink| (Operand::Dsink, dsink.address())).into_iter()
    }
}

/// The tensors that a call reads, checked against each other.
pub(super) struct Inputs<'a> {
    pub(super) q: HeadsView<'a>,
    pub(super) k: HeadsView<'a>,
    pub(super) v: HeadsView<'a>,
    out: HeadsView<'a>,
    dout: HeadsView<'a>,
    lse: u64,
    pub(super) dlse: Option<u64>,
}

impl<'a> Inputs<'a> {
    /// Checks what comes of the forward pass and of its gradients against q, k and v, which have passed their own checks.
    pub(super) fn read(
        [q, k, v]: [HeadsView<'a>; 3],
        [out, dout]: [HeadsView<'a>; 2],
        lse: &LseView<'_>,
        dlse: Option<&LseView<'_>>,
    ) -> Result<Inputs<'a>> {
        check_like(&q, Operand::Q, Operand::Out, &out)?;
        check_like(&q, Operand::Q, Operand::Dout, &dout)?;
        check_rows_of(&q, Operand::Lse, lse.device(), lse.shape())?;
        if let Some(dlse) = dlse {
            check_rows_of(&q, Operand::Dlse, dlse.device(), dlse.shape())?;
        }
        Ok(Inputs { q, k, v, out, dout, lse: lse.address(), dlse: dlse.map(LseView::address) })
    }

    /// The tensors by name.
    fn tensors(&self) -> [(Operand, &HeadsView<'a>); 5] {
        [
            (Operand::Q, &self.q),
            (Operand::K, &self.k),
            (Operand::V, &self.v),
            (Operand::Out, &self.out),
            (Operand::Dout, &self.dout),
        ]
    }

    /// The log-sum-exp and its gradient.
    fn rows(&self) -> impl Iterator<Item = (Operand, u64)> {
        let dlse = self.dlse.map(|dlse| (Operand::Dlse, dlse));
        [(Operand::Lse, self.lse)].into_iter().chain(dlse)
    }

    /// What the call has, and what it writes, beside its tensors: without `outputs`, all that there is.
    pub(super) fn beside(&self, attention: &Attention<'_>, outputs: Option<&Outputs<'_>>) -> Beside {
        let dsink = outputs.map_or(attention.sink.is_some(), |outputs| outputs.dsink.is_some());
        Beside { dlse: self.dlse.is_some(), dsink }
    }

    /// Memory for the gradient of the sinks, where there are any.
    pub(super) fn new_dsink(&self, attention: &Attention<'_>) -> Result<Option<Tensor>> {
        let new = || Tensor::uninit(self.q.device(), DType::F32, [self.q.shape().heads], Layout::RowMajor);
        attention.sink.is_some().then(new).transpose()
    }

    /// Checks gradients against the inputs, each other, and whatever else is read.
    pub(super) fn check_gradients(
        &self,
        attention: &Attention<'_>,
        Outputs { tensors: gradients, dsink }: &Outputs<'_>,
        others: impl Iterator<Item = (Operand, Footprint)>,
    ) -> Result<()> {
        let inputs = self.tensors();
        for ((name, gradient), (of, like)) in GRADIENTS.into_iter().zip(gradients).zip(&inputs) {
            check_like(like, *of, name, gradient)?;
            check_itself(gradient)?;
        }
        let shape = self.q.shape();
        let extents = [shape.batch, shape.heads, shape.rows, DType::F32.bytes()];
        let row_bytes = extents.into_iter().map(|extent| extent as u128).product();
        let rows = self.rows().map(|(name, address)| (name, Footprint::contiguous(address, row_bytes)));
        if let Some(dsink) = dsink {
            sinks::check_gradient(attention, &self.q, dsink)?;
        }
        let mut written = [0, 1, 2].map(|i| (GRADIENTS[i], footprint(&gradients[i]))).to_vec();
        written.extend(dsink.as_ref().map(|dsink| (Operand::Dsink, sinks::footprint(dsink))));
        let read: Vec<_> =
            inputs.map(|(name, view)| (name, footprint(view))).into_iter().chain(rows).chain(others).collect();
        check_apart(&written, &read)?;
        check_options_apart(attention, &written)
    }

    /// Where the tensors lie. Without `gradients` these are new tensors, with axes in the order that `order` gives them.
    pub(super) fn placed(&self, gradients: Option<&Outputs<'_>>, order: impl Fn(&HeadsView<'_>) -> Layout) -> Tensors {
        let [dq, dk, dv] = match gradients {
            Some(gradients) => gradients.tensors.each_ref().map(Placed::of),
            None => [&self.q, &self.k, &self.v].map(|of| Placed::contiguous(of.shape(), order(of), of.dtype())),
        };
        let [q, k, v, out, dout] = self.tensors().map(|(_, view)| Placed::of(view));
        Tensors { q, k, v, out, dout, dq, dk, dv }
    }

    /// Launches a plan, with gradients at these addresses; `others` are those of whatever else its steps read.
    pub(super) fn launch(
        &self,
        attention: &Attention<'_>,
        stream: RawStream,
        plan: &BackwardPlan,
        gradients: [u64; 3],
        others: impl Iterator<Item = (Operand, u64)>,
    ) -> Result<()> {
        let span = tracing::debug_span!("attention backward", problem = %plan.problem);
        let _entered = span.enter();
        let mut operands: Vec<_> = self.tensors().map(|(name, view)| (name, view.address())).into();
        operands.extend(self.rows());
        operands.extend(GRADIENTS.into_iter().zip(gradients));
        operands.extend(attention.operands());
        operands.extend(others);
        run(self.q.device(), stream, &plan.steps, &plan.buffers, &operands)
    }
}
