//! The calls of the backward pass over packed sequences.

use super::super::check::check_options;
use super::super::options::Attention;
use super::super::sequences::{Call, PackedRows, heads};
use super::inputs::{GRADIENTS, Inputs, Outputs, Views};
use super::plan::BackwardPlan;
use super::{Gradients, GradientsViewMut, OutputGradients};
use crate::backend::RawStream;
use crate::device::Stream;
use crate::error::{Operand, Result};
use crate::tensor::{HeadsView, Layout, LseView, Tensor, TensorView};
pub(super) use plan::plan_contiguous;

mod plan;

impl Attention<'_> {
    /// Computes the gradients of a number with respect to q, k and v of packed sequences, given those with respect to what
    /// [`Attention::forward_packed`] made of them, into new tensors on the default stream of q's device.
    ///
    /// q, `out`, its gradient and dq are `[row, q_head, dim]`, k, v, dk and dv `[row, kv_head, dim]`; the log-sum-exp and its gradient are
    /// `[1, q_head, row]`. `out` and `lse` are what the forward pass gave for the same inputs and options. What comes out for a sequence is
    /// what [`Attention::backward`] gives for it alone, by its portable kernels, the only ones here: a call is deterministic, and captured
    /// calls read the numbers of `q_rows` and `kv_rows` anew. Hints of the longest sequence play no part.
    ///
    /// Rows that belong to no sequence, or are not in use, have gradients of 0, as their outputs are: they are neither read nor written.
    /// A row of k and v that is in use and that nobody sees gets 0, too.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Attention, Device, Indices, Layout, PackedRows, Tensor};
    /// let device = Device::emulator()?;
    /// // Two sequences, of 3 and 2 rows, of 2 heads.
    /// let data: Vec<f32> = (0..5 * 2 * 8).map(|i| (i as f32).sin()).collect();
    /// let x = Tensor::from_slice(&device, &data, [5, 2, 8], Layout::RowMajor)?;
    /// let starts = Indices::from_slice(&device, &[0, 3, 5])?;
    /// let rows = PackedRows::new(starts.view());
    /// let attention = Attention::new().causal().with_lse(true);
    /// let x = x.view();
    /// let output = attention.forward_packed(&x, &x, &x, &rows, &rows)?;
    /// let lse = output.lse.expect("asked for");
    /// let gradients = attention.backward_packed(&x, &x, &x, &output.out.view(), &lse.view(), x, &rows, &rows)?;
    /// // The first row of each sequence sees only itself: its weight is 1 whatever the query is.
    /// let dq = gradients.dq.to_vec::<f32>()?;
    /// for (row, dq) in dq.chunks(2 * 8).enumerate() {
    ///     assert_eq!(dq.iter().all(|x| x.abs() < 1e-6), row == 0 || row == 3);
    /// }
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// Bad input gives the error that names it, before anything is launched; the numbers on the device are not looked at, see
    /// [`PackedRows`]. [`Error::KernelUnsupported`](crate::Error::KernelUnsupported) where another kernel than v2 is asked for,
    /// [`SequencesError::TooMany`](crate::SequencesError::TooMany). Then those of [`Attention::backward`].
    #[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
    pub fn backward_packed<'a>(
        &self,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        out: &TensorView<'_>,
        lse: &LseView<'_>,
        gradients: impl Into<OutputGradients<'a>>,
        q_rows: &PackedRows<'_>,
        kv_rows: &PackedRows<'_>,
    ) -> Result<Gradients> {
        let call = PackedCall::read([q, k, v], out, lse, &gradients.into(), [q_rows, kv_rows])?;
        let plan = call.plan(self, None)?;
        // What no sequence writes would be whatever was there before.
        let new = |of: &HeadsView<'_>| {
            let shape = of.shape();
            Tensor::zeros(q.device(), q.dtype(), [shape.rows, shape.heads, shape.head_dim], Layout::RowMajor)
        };
        let (dq, dk, dv) = (new(&call.inputs.q)?, new(&call.inputs.k)?, new(&call.inputs.v)?);
        let dsink = call.inputs.new_dsink(self)?;
        let others = dsink.iter().map(|dsink| (Operand::Dsink, dsink.address()));
        call.launch(self, RawStream::DEFAULT, &plan, [&dq, &dk, &dv].map(Tensor::address), others)?;
        Ok(Gradients { dq, dk, dv, dsink, plan })
    }

    /// [`Attention::backward_packed`] into `into`, on `stream`. Gradients of rows that belong to no sequence, or are not in use, stay what
    /// they were.
    ///
    /// # Errors
    /// As [`Attention::backward_packed`], and [`Error::OutputOverlapsItself`](crate::Error::OutputOverlapsItself),
    /// [`Error::OutputOverlaps`](crate::Error::OutputOverlaps), [`ProgramError::OutputOverlaps`](crate::ProgramError::OutputOverlaps) and
    /// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch).
    #[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
    pub fn backward_packed_into<'a>(
        &self,
        stream: &Stream,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        out: &TensorView<'_>,
        lse: &LseView<'_>,
        gradients: impl Into<OutputGradients<'a>>,
        q_rows: &PackedRows<'_>,
        kv_rows: &PackedRows<'_>,
        into: &mut GradientsViewMut<'_>,
    ) -> Result<()> {
        let call = PackedCall::read([q, k, v], out, lse, &gradients.into(), [q_rows, kv_rows])?;
        q.device().check_stream(stream)?;
        let outputs = call.outputs(self, &into.views())?;
        let plan = call.plan(self, Some(&outputs))?;
        call.launch(self, stream.raw(), &plan, outputs.addresses(), outputs.dsink_operand())
    }

    /// What a call of [`Attention::backward_packed`] would launch and allocate, and why; `into` as of [`Attention::backward_packed_into`], or
    /// `None` for new tensors. Nothing is launched and no element is read.
    ///
    /// # Errors
    /// As [`Attention::backward_packed_into`] before it launches.
    #[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
    pub fn backward_plan_packed<'a>(
        &self,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        out: &TensorView<'_>,
        lse: &LseView<'_>,
        gradients: impl Into<OutputGradients<'a>>,
        q_rows: &PackedRows<'_>,
        kv_rows: &PackedRows<'_>,
        into: Option<&GradientsViewMut<'_>>,
    ) -> Result<BackwardPlan> {
        let call = PackedCall::read([q, k, v], out, lse, &gradients.into(), [q_rows, kv_rows])?;
        let Some(into) = into else { return call.plan(self, None) };
        call.plan(self, Some(&call.outputs(self, &into.views())?))
    }
}

/// The inputs of a call, checked against each other.
struct PackedCall<'a> {
    sequences: Call<'a>,
    inputs: Inputs<'a>,
}

impl<'a> PackedCall<'a> {
    fn read(
        inputs: [&TensorView<'a>; 3],
        out: &TensorView<'a>,
        lse: &LseView<'_>,
        OutputGradients { dout, dlse }: &OutputGradients<'a>,
        [q_rows, kv_rows]: [&PackedRows<'a>; 2],
    ) -> Result<PackedCall<'a>> {
        let sequences = Call::packed(inputs, q_rows, kv_rows)?;
        let given = [heads(Operand::Out, out, true)?, heads(Operand::Dout, dout, true)?];
        let inputs = Inputs::read([sequences.q, sequences.k, sequences.v], given, lse, dlse.as_ref())?;
        Ok(PackedCall { sequences, inputs })
    }

    /// Checks the gradients against the inputs and each other.
    fn outputs<'o>(&self, attention: &Attention<'_>, views: &Views<'o>) -> Result<Outputs<'o>> {
        let [dq, dk, dv] = [0, 1, 2].map(|i| heads(GRADIENTS[i], &views.tensors[i], true));
        let outputs = Outputs { tensors: [dq?, dk?, dv?], dsink: views.dsink };
        // The numbers that say where sequences are, too.
        self.inputs.check_gradients(attention, &outputs, self.sequences.number_footprints())?;
        Ok(outputs)
    }

    /// The plan for these tensors. Without `outputs` they are new tensors.
    fn plan(&self, attention: &Attention, outputs: Option<&Outputs<'_>>) -> Result<BackwardPlan> {
        let Inputs { q, .. } = &self.inputs;
        check_options(attention, q)?;
        let tensors = self.inputs.placed(outputs, |_| Layout::Bshd);
        let arrays = self.sequences.arrays(attention.mask);
        let beside = self.inputs.beside(attention, outputs);
        plan::plan(attention, q.device().info(), &self.sequences.sizes, &arrays, &tensors, beside)
    }

    fn launch(
        &self,
        attention: &Attention<'_>,
        stream: RawStream,
        plan: &BackwardPlan,
        gradients: [u64; 3],
        dsink: impl Iterator<Item = (Operand, u64)>,
    ) -> Result<()> {
        let numbers = self.sequences.numbers().map(|(operand, view)| (operand, view.address()));
        self.inputs.launch(attention, stream, plan, gradients, numbers.chain(dsink))
    }
}
