//! The calls of the backward pass: on views, into given memory, and on plain addresses.

use super::check;
use super::forward::RawTensor;
use super::options::Attention;
use super::problem::{Problem, Sequences, Sizes};
use crate::backend::RawStream;
use crate::device::{Device, Stream};
use crate::error::{Error, Operand, Result, Unsupported};
use crate::tensor::{HeadsView, Layout, LseShape, LseView, Tensor, TensorView, TensorViewMut};
use inputs::{Inputs, Outputs, Views};
use kernel_spec::DType;
use plan::BackwardPlan;
use std::ffi::c_void;
use std::iter;
use tensors::{Beside, Tensors};

mod fused;
mod inputs;
mod naive;
mod packed;
pub(super) mod plan;
mod sinks;
mod tensors;

/// What comes back to the backward pass: the gradients of a number with respect to what the forward pass gave. A view of the
/// gradient with respect to the output is one without the other.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OutputGradients<'a> {
    /// With respect to the output, of its shape and element type.
    pub dout: TensorView<'a>,
    /// With respect to the log-sum-exp, where the number depends on it; `None` is 0.
    pub dlse: Option<LseView<'a>>,
}

impl<'a> OutputGradients<'a> {
    /// Of a number that does not depend on the log-sum-exp.
    pub fn new(dout: TensorView<'a>) -> Self {
        OutputGradients { dout, dlse: None }
    }

    /// Sets the gradient with respect to the log-sum-exp.
    pub fn with_dlse(mut self, dlse: LseView<'a>) -> Self {
        self.dlse = Some(dlse);
        self
    }
}

impl<'a> From<TensorView<'a>> for OutputGradients<'a> {
    fn from(dout: TensorView<'a>) -> Self {
        OutputGradients::new(dout)
    }
}

/// What [`Attention::backward`] and [`Attention::backward_packed`] return: gradients with respect to the inputs, of their shapes and element
/// type; of uniform sequences also of their orders of axes in memory.
#[derive(Debug)]
#[non_exhaustive]
pub struct Gradients {
    /// With respect to q.
    pub dq: Tensor,
    /// With respect to k, summed over the query heads that share the head.
    pub dk: Tensor,
    /// With respect to v, likewise.
    pub dv: Tensor,
    /// With respect to the sinks, `f32 [q_heads]`, where the call has any: see [`Attention::with_sink`].
    pub dsink: Option<Tensor>,
    /// What was launched.
    pub plan: BackwardPlan,
}

/// Memory for gradients, for [`Attention::backward_into`] and [`Attention::backward_packed_into`].
#[derive(Debug)]
#[non_exhaustive]
pub struct GradientsViewMut<'a> {
    /// With respect to q, of its shape.
    pub dq: TensorViewMut<'a>,
    /// With respect to k, of its shape.
    pub dk: TensorViewMut<'a>,
    /// With respect to v, of its shape.
    pub dv: TensorViewMut<'a>,
    /// With respect to the sinks, contiguous `f32 [q_heads]`; `None` where it is not wanted, which saves its launch.
    pub dsink: Option<TensorViewMut<'a>>,
}

impl<'a> GradientsViewMut<'a> {
    /// Memory for the three of them.
    pub fn new(dq: TensorViewMut<'a>, dk: TensorViewMut<'a>, dv: TensorViewMut<'a>) -> Self {
        GradientsViewMut { dq, dk, dv, dsink: None }
    }

    /// Sets the memory for the gradient with respect to the sinks.
    pub fn with_dsink(mut self, dsink: TensorViewMut<'a>) -> Self {
        self.dsink = Some(dsink);
        self
    }

    /// All of it, for checks.
    fn views(&self) -> Views<'_> {
        let GradientsViewMut { dq, dk, dv, dsink } = self;
        Views { tensors: [dq.view(), dk.view(), dv.view()], dsink: dsink.as_ref().map(TensorViewMut::view) }
    }
}

impl Attention<'_> {
    /// What a call of [`Attention::backward`], or of [`Attention::backward_packed`], on `device` with contiguous tensors would launch and
    /// allocate, and why.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Attention, DType, Device, Problem, Sequences};
    /// let device = Device::emulator()?;
    /// let problem = Problem::new(Sequences::Uniform { batch: 1, q_rows: 1000, kv_rows: 1000 }, 8, 2, 64, DType::Bf16);
    /// let plan = Attention::new().causal().backward_plan(&device, &problem)?;
    /// // Two numbers for every row of every head, in whole blocks of 128 rows, and a sum for every number of dq.
    /// assert_eq!(plan.workspace_bytes(), 8 * 1024 * (8 + 4 * 64));
    /// // Thread blocks add to those sums in any order.
    /// assert!(!plan.deterministic);
    /// let plan = Attention::new().causal().with_deterministic(true).backward_plan(&device, &problem)?;
    /// // In order, which takes a counter for every 32 rows.
    /// assert_eq!(plan.workspace_bytes(), 8 * 1024 * (8 + 4 * 64) + 8 * 1024 / 32 * 4);
    /// assert!(plan.deterministic);
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Problem::validate`], [`Error::Scale`](crate::Error::Scale), [`Error::Softcap`](crate::Error::Softcap),
    /// [`Error::Unsupported`](crate::Error::Unsupported), [`Error::GpuTooOld`](crate::Error::GpuTooOld),
    /// [`Error::SharedMemory`](crate::Error::SharedMemory), [`Error::GridTooLarge`](crate::Error::GridTooLarge),
    /// [`Error::WorkspaceTooLarge`](crate::Error::WorkspaceTooLarge).
    pub fn backward_plan(&self, device: &Device, problem: impl Into<Problem>) -> Result<BackwardPlan> {
        let problem = problem.into();
        match &problem.sequences {
            Sequences::Uniform { .. } => {}
            Sequences::Packed { .. } => return packed::plan_contiguous(self, device.info(), &problem),
            other => {
                let reason = Unsupported::Sequences { found: other.name(), accepted: "uniform and packed" };
                return Err(Error::Unsupported(reason));
            }
        }
        let sizes = problem.sizes()?;
        sizes.validate()?;
        let beside = Beside { dlse: false, dsink: self.sink.is_some() };
        plan::plan(self, device.info(), &sizes, &Tensors::contiguous(&sizes), beside)
    }

    /// [`Attention::backward_plan`] for the tensors of a call, whose strides and addresses are looked at; `into` as of
    /// [`Attention::backward_into`], or `None` for new tensors. Nothing is launched and no element is read.
    ///
    /// # Errors
    /// As [`Attention::backward_into`] before it launches.
    #[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
    pub fn backward_plan_for<'a>(
        &self,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        out: &TensorView<'_>,
        lse: &LseView<'_>,
        gradients: impl Into<OutputGradients<'a>>,
        into: Option<&GradientsViewMut<'_>>,
    ) -> Result<BackwardPlan> {
        let call = Call::read(q, k, v, out, lse, &gradients.into())?;
        let Some(into) = into else { return call.plan(self, None) };
        call.plan(self, Some(&call.outputs(self, &into.views())?))
    }

    /// Computes the gradients of a number with respect to q, k and v, given those with respect to what [`Attention::forward`] made of
    /// them, into new tensors on the default stream of q's device.
    ///
    /// `out` and `lse` are what the forward pass gave for the same inputs and options, by whichever kernel. With
    /// [`Kernel::Naive`](kernel_spec::Kernel::Naive), probabilities and their gradients go through device memory, as frameworks without
    /// fused attention have them: something to compare with. [`Kernel::V3`](kernel_spec::Kernel::V3) is the fused kernel of Hopper, for
    /// f16 and bf16 up to 128 dims without a softcap, which the library takes where it runs; v1 and v2 are the portable kernels. [`Attention::lse`]
    /// plays no part. On CUDA the call returns before the work is done; reading a result waits for it.
    ///
    /// # Bits
    /// dk and dv have the same bits for the same inputs, always, and so has dq but in the fused kernel with more than 256 keys, where
    /// its sums are added in any order: see [`BackwardPlan::deterministic`], and [`Attention::deterministic`] for sums in order, whose bits
    /// are equal on GPUs with as many multiprocessors.
    ///
    /// # Sinks
    /// `lse` is that of the forward pass, with the sinks, so that every kernel takes calls with them. Their gradient,
    /// `-sum e^(sink - lse) (sum(dout out) - dlse)` over the rows of a head and the batch, is a launch more: [`Gradients::dsink`].
    ///
    /// # Rows without keys
    /// A row whose log-sum-exp is minus infinity, because it sees no key, gives nothing and gets 0; plus infinity means the same, as other
    /// programs write it. A key that no row sees gets 0.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Attention, Device, Layout, Shape, Tensor};
    /// let device = Device::emulator()?;
    /// let shape = Shape::new(1, 3, 2, 8);
    /// let data: Vec<f32> = (0..shape.elements().unwrap()).map(|i| (i as f32).sin()).collect();
    /// let q = Tensor::from_slice(&device, &data, shape, Layout::Bshd)?;
    /// let attention = Attention::new().causal().with_lse(true);
    /// let output = attention.forward(&q.view(), &q.view(), &q.view())?;
    /// let lse = output.lse.expect("asked for");
    /// let dout = Tensor::from_slice(&device, &vec![1f32; data.len()], shape, Layout::Bshd)?;
    /// let gradients =
    ///     attention.backward(&q.view(), &q.view(), &q.view(), &output.out.view(), &lse.view(), dout.view())?;
    /// // The first row sees only itself: its weight is 1 whatever the query is.
    /// let dq = gradients.dq.to_vec::<f32>()?;
    /// assert!(dq[..2 * 8].iter().all(|x| x.abs() < 1e-6) && dq[2 * 8..].iter().any(|x| x.abs() > 1e-3));
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Numbers
    /// Scores, weights and sums are `f32`; weights and gradients of scores are rounded to the type of the tensors before they are
    /// multiplied with one. Logits as large as the forward pass takes without computing rows again (below 4096 / log2(e)) keep the error
    /// of the type. q, k, v and dout are numbers: infinity or NaN in one of them may reach every gradient of the heads that read it, but
    /// for rows of a weightless query. What lies between rows, or behind the last, is never read.
    ///
    /// # Errors
    /// Bad input gives the error that names it, before anything is launched. [`Error::OutOfMemory`](crate::Error::OutOfMemory),
    /// [`Error::MissingVariant`](crate::Error::MissingVariant), [`Error::PtxRejected`](crate::Error::PtxRejected),
    /// [`Error::Cuda`](crate::Error::Cuda) and [`Error::Emulator`](crate::Error::Emulator) come from the device.
    pub fn backward<'a>(
        &self,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        out: &TensorView<'_>,
        lse: &LseView<'_>,
        gradients: impl Into<OutputGradients<'a>>,
    ) -> Result<Gradients> {
        let call = Call::read(q, k, v, out, lse, &gradients.into())?;
        let plan = call.plan(self, None)?;
        let new = |of: &HeadsView<'_>| Tensor::uninit(q.device(), q.dtype(), of.shape(), of.memory_order());
        let inputs = &call.inputs;
        let (dq, dk, dv) = (new(&inputs.q)?, new(&inputs.k)?, new(&inputs.v)?);
        let dsink = inputs.new_dsink(self)?;
        let others = dsink.iter().map(|dsink| (Operand::Dsink, dsink.address()));
        inputs.launch(self, RawStream::DEFAULT, &plan, [&dq, &dk, &dv].map(Tensor::address), others)?;
        Ok(Gradients { dq, dk, dv, dsink, plan })
    }

    /// [`Attention::backward`] into `into`, on `stream`.
    ///
    /// # Errors
    /// As [`Attention::backward`], and [`Error::OutputOverlapsItself`](crate::Error::OutputOverlapsItself),
    /// [`Error::OutputOverlaps`](crate::Error::OutputOverlaps), [`ProgramError::OutputOverlaps`](crate::ProgramError::OutputOverlaps) and
    /// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch).
    #[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
    pub fn backward_into<'a>(
        &self,
        stream: &Stream,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        out: &TensorView<'_>,
        lse: &LseView<'_>,
        gradients: impl Into<OutputGradients<'a>>,
        into: &mut GradientsViewMut<'_>,
    ) -> Result<()> {
        let call = Call::read(q, k, v, out, lse, &gradients.into())?;
        q.device().check_stream(stream)?;
        call.run(self, stream.raw(), &into.views())
    }

    /// The backward pass on addresses and a stream of another framework: the entry for bindings.
    ///
    /// `stream` is a `CUstream` of the primary context of `device` (null for the default stream; on the emulator always null); `lse` and
    /// `dlse`, which may be absent, are addresses of contiguous `f32 [batch, q_heads, q_rows]`, `dsink`, which may be too, of `f32 [q_heads]`.
    /// Returns before the work is done.
    ///
    /// # Errors
    /// As [`Attention::backward_into`], and [`Error::MisalignedAddress`](crate::Error::MisalignedAddress).
    ///
    /// # Safety
    /// Every element of the tensors, of `lse` and of `dlse` is memory of `device` that stays allocated until the work on `stream` is
    /// done; until then nobody writes the inputs or touches the gradients, except by work that is ordered with `stream`. The stream is
    /// live.
    #[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
    pub unsafe fn backward_raw(
        &self,
        device: &Device,
        stream: *mut c_void,
        problem: impl Into<Problem>,
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        out: RawTensor,
        lse: u64,
        dout: RawTensor,
        dlse: Option<u64>,
        dq: RawTensor,
        dk: RawTensor,
        dv: RawTensor,
        dsink: Option<u64>,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the stream.
        let stream = unsafe { Stream::from_raw(device, stream) };
        let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = problem.into().sizes()?;
        // The caller vouches for every element that the shapes and strides reach, however many these are.
        let view = |tensor: RawTensor, rows, heads| {
            let shape = [batch, rows, heads, head_dim];
            // SAFETY: see above.
            unsafe { TensorView::from_raw(device, tensor.address, usize::MAX, shape, tensor.strides, dtype) }
        };
        let of_q = |tensor| view(tensor, q_rows, q_heads);
        let of_k = |tensor| view(tensor, kv_rows, kv_heads);
        // SAFETY: see above.
        let of_rows = |address| unsafe {
            LseView::from_raw(device, address, usize::MAX, LseShape { batch, heads: q_heads, rows: q_rows })
        };
        let (q, k, v, out) = (of_q(q)?, of_k(k)?, of_k(v)?, of_q(out)?);
        let gradients = OutputGradients { dout: of_q(dout)?, dlse: dlse.map(of_rows).transpose()? };
        let call = Call::read(&q, &k, &v, &out, &of_rows(lse)?, &gradients)?;
        // SAFETY: see above.
        let of_heads = |address| unsafe { TensorView::from_raw(device, address, q_heads, [q_heads], [1], DType::F32) };
        let tensors = [of_q(dq)?, of_k(dk)?, of_k(dv)?];
        call.run(self, stream.raw(), &Views { tensors, dsink: dsink.map(of_heads).transpose()? })
    }
}

/// The inputs of a call, checked against each other.
struct Call<'a> {
    inputs: Inputs<'a>,
    sizes: Sizes,
}

impl<'a> Call<'a> {
    fn read(
        q: &TensorView<'a>,
        k: &TensorView<'a>,
        v: &TensorView<'a>,
        out: &TensorView<'a>,
        lse: &LseView<'_>,
        OutputGradients { dout, dlse }: &OutputGradients<'a>,
    ) -> Result<Call<'a>> {
        let [q, k, v, out, dout] = [q, k, v, out, dout].map(|view| view.as_heads(Layout::Bshd));
        let (q, k, v, out, dout) = (q?, k?, v?, out?, dout?);
        let sizes = check::check_inputs(&q, &k, &v)?;
        Ok(Call { inputs: Inputs::read([q, k, v], [out, dout], lse, dlse.as_ref())?, sizes })
    }

    /// Checks the gradients against the inputs and each other.
    fn outputs<'o>(&self, attention: &Attention<'_>, views: &Views<'o>) -> Result<Outputs<'o>> {
        let [dq, dk, dv] = views.tensors.map(|view| view.as_heads(Layout::Bshd));
        let outputs = Outputs { tensors: [dq?, dk?, dv?], dsink: views.dsink };
        self.inputs.check_gradients(attention, &outputs, iter::empty())?;
        Ok(outputs)
    }

    /// The plan for these tensors. Without `outputs` they are new tensors.
    fn plan(&self, attention: &Attention, outputs: Option<&Outputs<'_>>) -> Result<BackwardPlan> {
        let Inputs { q, .. } = &self.inputs;
        check::check_options(attention, q)?;
        let tensors = self.inputs.placed(outputs, |of| of.memory_order());
        plan::plan(attention, q.device().info(), &self.sizes, &tensors, self.inputs.beside(attention, outputs))
    }

    /// The gradients into these tensors.
    fn run(&self, attention: &Attention<'_>, stream: RawStream, views: &Views<'_>) -> Result<()> {
        let outputs = self.outputs(attention, views)?;
        let plan = self.plan(attention, Some(&outputs))?;
        self.inputs.launch(attention, stream, &plan, outputs.addresses(), outputs.dsink_operand())
    }
}
