//! The calls of forward attention: on views, into given memory, and on plain addresses.

use super::check;
use super::options::Attention;
use super::plan::{self, Plan};
use super::problem::{Problem, Sizes};
use super::request::{Placed, Tensors};
use crate::backend::RawStream;
use crate::device::{Device, Stream};
use crate::error::{Error, Operand, Result};
use crate::plan::run;
use crate::tensor::{HeadsView, Layout, Lse, LseShape, LseViewMut, Strides, Tensor, TensorView, TensorViewMut};
use kernel_spec::DType;
use std::ffi::c_void;

/// A tensor of another framework for [`Attention::forward_raw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawTensor {
    /// Device address of element `[0, 0, 0, 0]`.
    pub address: u64,
    /// Strides in elements.
    pub strides: Strides,
}

impl RawTensor {
    /// A tensor that starts at `address`.
    pub const fn new(address: u64, strides: Strides) -> RawTensor {
        RawTensor { address, strides }
    }
}

impl From<HeadsView<'_>> for RawTensor {
    fn from(view: HeadsView<'_>) -> RawTensor {
        RawTensor { address: view.address(), strides: view.strides() }
    }
}

/// What [`Attention::forward`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct Output {
    /// The result, of q's shape, element type and order of axes in memory.
    pub out: Tensor,
    /// Log-sum-exp of every row when [`Attention::lse`] is set.
    pub lse: Option<Lse>,
    /// What was launched.
    pub plan: Plan,
}

impl Attention<'_> {
    /// What a call on `device` with contiguous tensors would launch and allocate, and why.
    ///
    /// v3 also depends on addresses and strides, which are no part of `problem`: [`Attention::plan_for`] looks at those of a call.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Attention, DType, Device, Kernel, Problem, Sequences};
    /// let device = Device::emulator()?;
    /// let problem =
    ///     Problem::new(Sequences::Uniform { batch: 1, q_rows: 1024, kv_rows: 1024 }, 8, 8, 64, DType::F16);
    /// let extra = |kernel| Attention::new().with_kernel(kernel).plan(&device, &problem).map(|plan| plan.extra_bytes());
    /// // 8 heads of 1024 x 1024 scores in f32 and probabilities in f16, against nothing.
    /// assert_eq!((extra(Kernel::Naive)?, extra(Kernel::V2)?), (8 * 1024 * 1024 * 6, 0));
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Problem::validate`], [`Error::Scale`], [`Error::Softcap`], [`Error::Unsupported`], [`Error::GpuTooOld`], [`Error::SharedMemory`], [`Error::GridTooLarge`],
    /// [`Error::WorkspaceTooLarge`], [`Error::KernelUnsupported`].
    pub fn plan(&self, device: &Device, problem: impl Into<Problem>) -> Result<Plan> {
        plan::plan(self, device.info(), &problem.into())
    }

    /// What a call with these tensors would launch and allocate, and why: the plan that [`Attention::forward`] (`out` is `None`) and
    /// [`Attention::forward_into`] carry out.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Attention, DType, Device, Kernel, Layout, Shape, Tensor};
    /// let device = Device::emulator()?;
    /// let q = Tensor::zeros(&device, DType::F16, Shape::new(1, 4, 2, 64), Layout::Bshd)?;
    /// let plan = Attention::new().plan_for(&q.view(), &q.view(), &q.view(), None)?;
    /// assert_eq!(plan.kernel, Kernel::V3);
    /// let q = Tensor::zeros(&device, DType::F32, Shape::new(1, 4, 2, 64), Layout::Bshd)?;
    /// let plan = Attention::new().plan_for(&q.view(), &q.view(), &q.view(), None)?;
    /// assert_eq!(plan.kernel, Kernel::V2);
    /// assert!(plan.reason.contains("without v3: the tensors hold f32; f16 and bf16 are accepted"));
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// Bad input gives the error that names it, as from [`Attention::forward_into`]; then those of [`Attention::plan`].
    pub fn plan_for(
        &self,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        out: Option<&TensorView<'_>>,
    ) -> Result<Plan> {
        let call = Inputs::read(q, k, v)?;
        let out = out.map(|out| call.output(out, None)).transpose()?;
        call.plan(self, out.as_ref())
    }

    /// Computes attention into a new tensor on the default stream of q's device.
    ///
    /// On CUDA it returns before the work is done; reading the result waits for it.
    ///
    /// # Numbers
    /// Any finite q, k, v and any finite scale give what f64 gives, rounded to the type, as far as scores in f32 carry it. A row whose
    /// logits are too large for f32, or whose weighted sum of values leaves its range, is computed again in f64, at the speed of a plain
    /// loop; no other row pays for it. Logits from 4096 / log2(e) on are too large, 32768 / log2(e) for bf16.
    /// - A key with a score of minus infinity is one that the row does not see, alone or together with all others, as if hidden by the
    ///   mask. So is one whose product `q k`, or a partial sum of it, is below the range of f32 while another key of the row is inside it.
    ///   With a softcap, scores are at least minus the cap, and such keys are seen.
    /// - A score of plus infinity or NaN that a row sees makes its output and log-sum-exp NaN: the softmax of it is not defined.
    /// - Infinity or NaN in v reaches the rows that see the key, in that column alone, even where the weight is 0, because 0 times infinity
    ///   is NaN. Keys that the mask hides from a row are never part of it, whatever they hold.
    ///
    /// # Errors
    /// Bad input gives the error that names it, before anything is launched. [`Error::OutOfMemory`], [`Error::MissingVariant`],
    /// [`Error::PtxRejected`], [`Error::Cuda`] and [`Error::Emulator`] come from the device.
    pub fn forward(&self, q: &TensorView<'_>, k: &TensorView<'_>, v: &TensorView<'_>) -> Result<Output> {
        let call = Inputs::read(q, k, v)?;
        let plan = call.plan(self, None)?;
        let out = Tensor::uninit(q.device(), q.dtype(), q.shape(), call.q.memory_order())?;
        let Sizes { batch, q_heads: heads, q_rows: rows, .. } = call.sizes;
        let lse = if self.lse { Some(Lse::uninit(q.device(), LseShape { batch, heads, rows })?) } else { None };
        call.launch(self, RawStream::DEFAULT, &plan, out.address(), lse.as_ref().map(Lse::address))?;
        Ok(Output { out, lse, plan })
    }

    /// Computes attention into `out`, and the log-sum-exp into `lse` when given, on `stream`.
    ///
    /// On CUDA it returns before the work is done; [`Stream::synchronize`], or reading the result, waits for it. The option
    /// [`Attention::lse`] plays no part.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Attention, DType, Device, Layout, Lse, LseShape, Shape, Tensor};
    /// let device = Device::emulator()?;
    /// let stream = device.stream()?;
    /// let shape = Shape::new(1, 4, 2, 32);
    /// let kv = Tensor::zeros(&device, DType::F32, shape, Layout::Bhsd)?;
    /// let mut out = Tensor::uninit(&device, DType::F32, shape, Layout::Bhsd)?;
    /// let mut lse = Lse::uninit(&device, LseShape { batch: 1, heads: 2, rows: 4 })?;
    /// let (q, k, v) = (kv.view(), kv.view(), kv.view());
    /// Attention::new().forward_into(&stream, &q, &k, &v, &mut out.view_mut(), Some(&mut lse.view_mut()))?;
    /// stream.synchronize()?;
    /// // Four scores of 0: the logarithm of 4 ones.
    /// assert!(lse.to_vec()?.iter().all(|x| (x - 4f32.ln()).abs() < 1e-6));
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Attention::forward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`],
    /// [`ProgramError::OutputOverlaps`](crate::ProgramError::OutputOverlaps) and [`Error::DeviceMismatch`].
    pub fn forward_into(
        &self,
        stream: &Stream,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        out: &mut TensorViewMut<'_>,
        lse: Option<&mut LseViewMut<'_>>,
    ) -> Result<()> {
        let call = Inputs::read(q, k, v)?;
        let out = out.view();
        let out = call.output(&out, lse.as_deref())?;
        q.device().check_stream(stream)?;
        let lse = lse.map(|lse| lse.address());
        call.check_overlaps(self, &out, lse)?;
        let plan = call.plan(&self.with_lse(lse.is_some()), Some(&out))?;
        call.launch(self, stream.raw(), &plan, out.address(), lse)
    }

    /// Computes attention on addresses and a stream of another framework: the entry for bindings.
    ///
    /// `stream` is a `CUstream` of the primary context of `device` (null for the default stream; on the emulator always null), and
    /// `lse` the address of contiguous `f32 [batch, q_heads, q_rows]`, or `None`. Returns before the work is done.
    ///
    /// # Errors
    /// As [`Attention::forward_into`], and [`Error::MisalignedAddress`].
    ///
    /// # Safety
    /// Every element of the four tensors and of `lse` is memory of `device` that stays allocated until the work on `stream` is done;
    /// until then nobody writes the inputs or touches the outputs, except by work that is ordered with `stream`. The stream is live.
    #[allow(clippy::too_many_arguments, reason = "the tensors of one attention call, each named")]
    pub unsafe fn forward_raw(
        &self,
        device: &Device,
        stream: *mut c_void,
        problem: impl Into<Problem>,
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        out: RawTensor,
        lse: Option<u64>,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the stream.
        let stream = unsafe { Stream::from_raw(device, stream) };
        let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = problem.into().sizes()?;
        let view = |tensor: RawTensor, rows, heads| {
            // SAFETY: the caller vouches for every element that the shape and strides reach, however many these are.
            unsafe {
                let shape = [batch, rows, heads, head_dim];
                TensorView::from_raw(device, tensor.address, usize::MAX, shape, tensor.strides, dtype)
            }
        };
        let (q, out) = (view(q, q_rows, q_heads)?, view(out, q_rows, q_heads)?);
        let (k, v) = (view(k, kv_rows, kv_heads)?, view(v, kv_rows, kv_heads)?);
        let call = Inputs::read(&q, &k, &v)?;
        let out = call.output(&out, None)?;
        if let Some(address) = lse.filter(|address| !address.is_multiple_of(DType::F32.bytes() as u64)) {
            let dtype = DType::F32;
            return Err(Error::MisalignedAddress { address, bytes: dtype.bytes(), dtype });
        }
        call.check_overlaps(self, &out, lse)?;
        let plan = call.plan(&self.with_lse(lse.is_some()), Some(&out))?;
        call.launch(self, stream.raw(), &plan, out.address(), lse)
    }
}

/// The inputs of a call, checked against each other.
struct Inputs<'a> {
    q: HeadsView<'a>,
    k: HeadsView<'a>,
    v: HeadsView<'a>,
    sizes: Sizes,
}

impl<'a> Inputs<'a> {
    fn read(q: &TensorView<'a>, k: &TensorView<'a>, v: &TensorView<'a>) -> Result<Inputs<'a>> {
        let [q, k, v] = [q, k, v].map(|view| view.as_heads(Layout::Bshd));
        let (q, k, v) = (q?, k?, v?);
        let sizes = check::check_inputs(&q, &k, &v)?;
        Ok(Inputs { q, k, v, sizes })
    }

    /// Checks the outputs against the inputs.
    fn output<'o>(&self, out: &TensorView<'o>, lse: Option<&LseViewMut<'_>>) -> Result<HeadsView<'o>> {
        let out = out.as_heads(Layout::Bshd)?;
        check::check_output(&self.q, &out, lse)?;
        Ok(out)
    }

    fn check_overlaps(&self, attention: &Attention<'_>, out: &HeadsView<'_>, lse: Option<u64>) -> Result<()> {
        check::check_overlaps(attention, [&self.q, &self.k, &self.v], out, lse.map(|lse| (lse, &self.sizes)))
    }

    /// The plan for these tensors. Without `out` it is a new tensor.
    fn plan(&self, attention: &Attention<'_>, out: Option<&HeadsView<'_>>) -> Result<Plan> {
        check::check_options(attention, &self.q)?;
        let new = || Placed::contiguous(self.q.shape(), self.q.memory_order(), self.q.dtype());
        let tensors = Tensors {
            q: Placed::of(&self.q),
            k: Placed::of(&self.k),
            v: Placed::of(&self.v),
            out: out.map_or_else(new, Placed::of),
        };
        plan::plan_for(attention, self.q.device().info(), &self.sizes, tensors)
    }

    fn launch(
        &self,
        attention: &Attention<'_>,
        stream: RawStream,
        plan: &Plan,
        out: u64,
        lse: Option<u64>,
    ) -> Result<()> {
        let span = tracing::debug_span!("attention", kernel = %plan.kernel, problem = %plan.problem);
        let _entered = span.enter();
        let inputs = [(Operand::Q, &self.q), (Operand::K, &self.k), (Operand::V, &self.v)];
        let [q, k, v] = inputs.map(|(operand, view)| (operand, view.address()));
        let out = (Operand::Out, out);
        let run = |operands: &[_]| run(self.q.device(), stream, &plan.steps, &plan.buffers, operands);
        if attention.changing_program().is_some() || attention.sink.is_some() {
            let lse = lse.map(|lse| (Operand::Lse, lse));
            let tensors = [q, k, v, out].into_iter().chain(lse).chain(attention.operands());
            return run(&tensors.collect::<Vec<_>>());
        }
        match lse {
            Some(lse) => run(&[q, k, v, out, (Operand::Lse, lse)]),
            None => run(&[q, k, v, out]),
        }
    }
}
