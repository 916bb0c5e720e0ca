//! The attention forward pass: options, checks, parameter structs and launches.

use crate::backend::{Launch, RawStream};
use crate::device::{Allocation, Device, Stream};
use crate::error::{Error, Operand, Result};
use crate::overlap::{self, Footprint};
use crate::plan::{self, Plan, Problem, Step};
use crate::tensor::{
    Geometry, Layout, Lse, LseShape, LseViewMut, Shape, Strides, Tensor, TensorView, TensorViewMut, check_address,
};
use crate::tensor_map::TensorGeometry;
use kernel_spec::schedule::{Schedule, Work};
use kernel_spec::{
    Band, Divisor, Features, ForwardParams, Kernel, Mask, NaiveParams, Pass, TensorParams, V3Params, Variant,
};
use std::ffi::c_void;

/// Which kernel computes the result. All give the same result up to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KernelChoice {
    /// The library chooses; [`Plan::reason`] says why.
    #[default]
    Auto,
    /// This one.
    Kernel(Kernel),
    /// The kernel of this row of [`VARIANTS`](kernel_spec::VARIANTS), with its tile: to compare tiles, and to test each of them.
    Variant(&'static Variant),
}

impl KernelChoice {
    /// The kernel that is asked for, if one is.
    pub fn kernel(self) -> Option<Kernel> {
        match self {
            KernelChoice::Auto => None,
            KernelChoice::Kernel(kernel) => Some(kernel),
            KernelChoice::Variant(variant) => Some(variant.pass.kernel()),
        }
    }
}

impl From<&'static Variant> for KernelChoice {
    fn from(variant: &'static Variant) -> KernelChoice {
        KernelChoice::Variant(variant)
    }
}

impl From<Kernel> for KernelChoice {
    fn from(kernel: Kernel) -> KernelChoice {
        KernelChoice::Kernel(kernel)
    }
}

/// Exact attention, `out = softmax(scale * q k^T + mask) v`, and its options.
///
/// Shapes: q and out `[batch, q_rows, q_heads, head_dim]`, k and v `[batch, kv_rows, kv_heads, head_dim]` with `q_heads` a multiple
/// of `kv_heads` (query head `h` reads key-value head `h / (q_heads / kv_heads)`), and `head_dim` a multiple of 8 up to 256. Scores,
/// softmax and sums are `f32` for every element type. A row that sees no key gives 0, and minus infinity as its log-sum-exp.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::{Attention, Device, Layout, Shape, Tensor};
/// let device = Device::emulator()?;
/// let shape = Shape::new(1, 4, 2, 32);
/// let data: Vec<f32> = (0..shape.elements().unwrap()).map(|i| (i as f32).sin()).collect();
/// let q = Tensor::from_slice(&device, &data, shape, Layout::Bshd)?;
/// let output = Attention::new().causal().forward(&q.view(), &q.view(), &q.view())?;
/// // The first row sees only itself.
/// let (out, first) = (output.out.to_vec::<f32>()?, &data[..2 * 32]);
/// assert!(out.iter().zip(first).all(|(a, b)| (a - b).abs() < 1e-6));
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Attention {
    /// Which keys a row sees.
    pub mask: Mask,
    /// Factor on the scores; `None` is `1 / sqrt(head_dim)`. Any finite value, 0 and negative ones too.
    pub scale: Option<f32>,
    /// Which kernel computes it.
    pub kernel: KernelChoice,
    /// Whether [`Attention::forward`] also returns the log-sum-exp of every row.
    pub lse: bool,
}

impl Default for Attention {
    fn default() -> Self {
        Attention { mask: Mask::Full, scale: None, kernel: KernelChoice::Auto, lse: false }
    }
}

/// A tensor of another framework for [`Attention::forward_raw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawTensor {
    /// Device address of element `[0, 0, 0, 0]`.
    pub address: u64,
    /// Strides in elements.
    pub strides: Strides,
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

impl Attention {
    /// Every query sees every key, scale `1 / sqrt(head_dim)`, the library chooses the kernel, no log-sum-exp.
    pub fn new() -> Attention {
        Attention::default()
    }

    /// Query row `i` sees the keys up to `i + kv_rows - q_rows`: the mask is aligned to the last row and the last key.
    pub fn causal(self) -> Attention {
        self.with_mask(Mask::Causal)
    }

    /// Query row `i` sees `left` keys before and `right` keys after key `i + kv_rows - q_rows`, and that one; `None` is unbounded.
    pub fn window(self, left: Option<u32>, right: Option<u32>) -> Attention {
        self.with_mask(Mask::Window { left, right })
    }

    /// Sets the mask.
    pub fn with_mask(mut self, mask: Mask) -> Attention {
        self.mask = mask;
        self
    }

    /// Sets the factor on the scores.
    pub fn with_scale(mut self, scale: f32) -> Attention {
        self.scale = Some(scale);
        self
    }

    /// Sets the kernel.
    pub fn with_kernel(mut self, kernel: impl Into<KernelChoice>) -> Attention {
        self.kernel = kernel.into();
        self
    }

    /// Sets whether [`Attention::forward`] returns the log-sum-exp.
    pub fn with_lse(mut self, lse: bool) -> Attention {
        self.lse = lse;
        self
    }

    /// What a call on `device` with contiguous tensors would launch and allocate, and why.
    ///
    /// v3 also depends on addresses and strides, which are no part of `problem`: [`Attention::plan_for`] looks at those of a call.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Attention, DType, Device, Kernel, Problem};
    /// let device = Device::emulator()?;
    /// let problem =
    ///     Problem { batch: 1, q_rows: 1024, kv_rows: 1024, q_heads: 8, kv_heads: 8, head_dim: 64, dtype: DType::F16 };
    /// let extra = |kernel| Attention::new().with_kernel(kernel).plan(&device, &problem).map(|plan| plan.extra_bytes());
    /// // 8 heads of 1024 x 1024 scores in f32 and probabilities in f16, against nothing.
    /// assert_eq!((extra(Kernel::Naive)?, extra(Kernel::V2)?), (8 * 1024 * 1024 * 6, 0));
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Problem::validate`], [`Error::Scale`], [`Error::GpuTooOld`], [`Error::SharedMemory`], [`Error::GridTooLarge`],
    /// [`Error::WorkspaceTooLarge`], [`Error::KernelUnsupported`].
    pub fn plan(&self, device: &Device, problem: &Problem) -> Result<Plan> {
        plan::plan(self, device.info(), problem, &[])
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
    /// assert!(plan.reason.contains("v3 takes f16 and bf16"));
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
        let problem = check_inputs(q, k, v)?;
        if let Some(out) = out {
            check_output(q, out, None)?;
        }
        self.plan_checked(&problem, [q, k, v], out)
    }

    /// The plan for tensors that have passed their checks. Without `out` it is a new tensor, which suits every kernel.
    fn plan_checked(
        &self,
        problem: &Problem,
        inputs: [&TensorView<'_>; 3],
        out: Option<&TensorView<'_>>,
    ) -> Result<Plan> {
        let named = [Operand::Q, Operand::K, Operand::V, Operand::Out].into_iter().zip(inputs.into_iter().chain(out));
        let tensors: Vec<_> = named.map(|(operand, view)| (operand, *view)).collect();
        plan::plan(self, inputs[0].device().info(), problem, &tensors)
    }

    /// Computes attention into a new tensor on the default stream of q's device.
    ///
    /// On CUDA it returns before the work is done; reading the result waits for it.
    ///
    /// # Errors
    /// Bad input gives the error that names it, before anything is launched. [`Error::OutOfMemory`], [`Error::MissingVariant`],
    /// [`Error::PtxRejected`], [`Error::Cuda`] and [`Error::Emulator`] come from the device.
    pub fn forward(&self, q: &TensorView<'_>, k: &TensorView<'_>, v: &TensorView<'_>) -> Result<Output> {
        let problem = check_inputs(q, k, v)?;
        let plan = self.plan_checked(&problem, [q, k, v], None)?;
        let out = Tensor::uninit(q.device(), q.dtype(), q.shape(), layout_of(q))?;
        let lse_shape = LseShape { batch: problem.batch, heads: problem.q_heads, rows: problem.q_rows };
        let lse = if self.lse { Some(Lse::uninit(q.device(), lse_shape)?) } else { None };
        let call = Call {
            device: q.device(),
            stream: RawStream::DEFAULT,
            plan: &plan,
            q: *q,
            k: *k,
            v: *v,
            out: out.view(),
            lse: lse.as_ref().map_or(0, Lse::address),
        };
        call.launch()?;
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
    /// As [`Attention::forward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`] and [`Error::DeviceMismatch`].
    pub fn forward_into(
        &self,
        stream: &Stream,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        out: &mut TensorViewMut<'_>,
        lse: Option<&mut LseViewMut<'_>>,
    ) -> Result<()> {
        let problem = check_inputs(q, k, v)?;
        let out = out.view();
        check_output(q, &out, lse.as_deref())?;
        q.device().check_stream(stream)?;
        check_overlaps([q, k, v], &out, lse.as_ref().map(|lse| (lse.address(), &problem)))?;
        let plan = self.with_lse(lse.is_some()).plan_checked(&problem, [q, k, v], Some(&out))?;
        Call {
            device: q.device(),
            stream: stream.raw(),
            plan: &plan,
            q: *q,
            k: *k,
            v: *v,
            out,
            lse: lse.map_or(0, |lse| lse.address()),
        }
        .launch()
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
        problem: &Problem,
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        out: RawTensor,
        lse: Option<u64>,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the stream.
        let stream = unsafe { Stream::from_raw(device, stream) };
        let Problem { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = *problem;
        let view = |tensor: RawTensor, rows, heads| {
            // SAFETY: the caller vouches for every element that the shape and strides reach, however many these are.
            unsafe {
                let shape = Shape::new(batch, rows, heads, head_dim);
                TensorView::from_raw(device, tensor.address, usize::MAX, shape, tensor.strides, dtype)
            }
        };
        let (q, out) = (view(q, q_rows, q_heads)?, view(out, q_rows, q_heads)?);
        let (k, v) = (view(k, kv_rows, kv_heads)?, view(v, kv_rows, kv_heads)?);
        let problem = check_inputs(&q, &k, &v)?;
        check_output(&q, &out, None)?;
        if let Some(lse) = lse {
            check_address(lse, kernel_spec::DType::F32)?;
        }
        check_overlaps([&q, &k, &v], &out, lse.map(|lse| (lse, &problem)))?;
        let plan = self.with_lse(lse.is_some()).plan_checked(&problem, [&q, &k, &v], Some(&out))?;
        Call { device, stream: stream.raw(), plan: &plan, q, k, v, out, lse: lse.unwrap_or(0) }.launch()
    }

    /// The factor on the scores for this head dim, checked.
    pub(crate) fn scale_for(&self, head_dim: usize) -> Result<f32> {
        let scale = self.scale.unwrap_or_else(|| (1.0 / (head_dim as f64).sqrt()) as f32);
        if scale_log2(scale).is_finite() { Ok(scale) } else { Err(Error::Scale { found: scale }) }
    }
}

/// The kernels work in powers of two: `2^(x log2(e)) = e^x`.
fn scale_log2(scale: f32) -> f32 {
    (f64::from(scale) * std::f64::consts::LOG2_E) as f32
}

/// The order of axes for an output that goes with `view`: the longer of the strides of rows and heads decides.
fn layout_of(view: &TensorView<'_>) -> Layout {
    let (shape, strides) = (view.shape(), view.strides());
    // The stride of an axis of extent 1 says nothing, and both orders are the same memory then.
    if shape.rows > 1 && shape.heads > 1 && strides.head > strides.row { Layout::Bhsd } else { Layout::Bshd }
}

/// Checks q, k and v against each other and returns the problem they pose.
fn check_inputs(q: &TensorView<'_>, k: &TensorView<'_>, v: &TensorView<'_>) -> Result<Problem> {
    let (q_shape, k_shape, v_shape) = (q.shape(), k.shape(), v.shape());
    for (tensor, view) in [(Operand::K, k), (Operand::V, v)] {
        check_against_q(q, tensor, view)?;
    }
    if v_shape.rows != k_shape.rows {
        let (found, expected) = (v_shape.rows, k_shape.rows);
        return Err(Error::RowsMismatch { tensor: Operand::V, found, of: Operand::K, expected });
    }
    if v_shape.heads != k_shape.heads {
        let (found, expected) = (v_shape.heads, k_shape.heads);
        return Err(Error::HeadsMismatch { tensor: Operand::V, found, of: Operand::K, expected });
    }
    let problem = Problem {
        batch: q_shape.batch,
        q_rows: q_shape.rows,
        kv_rows: k_shape.rows,
        q_heads: q_shape.heads,
        kv_heads: k_shape.heads,
        head_dim: q_shape.head_dim,
        dtype: q.dtype(),
    };
    problem.validate()?;
    for (tensor, view) in [(Operand::Q, q), (Operand::K, k), (Operand::V, v)] {
        check_last_dim(tensor, view)?;
    }
    Ok(problem)
}

/// Device, element type, batch and head dim, which every tensor shares with q.
fn check_against_q(q: &TensorView<'_>, tensor: Operand, view: &TensorView<'_>) -> Result<()> {
    check_same_device(q, tensor, view.device())?;
    if view.dtype() != q.dtype() {
        return Err(Error::DTypeMismatch { tensor, found: view.dtype(), expected: q.dtype() });
    }
    let (found, expected) = (view.shape(), q.shape());
    if found.batch != expected.batch {
        return Err(Error::BatchMismatch { tensor, found: found.batch, expected: expected.batch });
    }
    if found.head_dim != expected.head_dim {
        return Err(Error::HeadDimMismatch { tensor, found: found.head_dim, expected: expected.head_dim });
    }
    Ok(())
}

fn check_same_device(q: &TensorView<'_>, tensor: Operand, device: &Device) -> Result<()> {
    if device == q.device() {
        return Ok(());
    }
    let (found, expected) = (device.info().id(), q.device().info().id());
    Err(Error::DeviceMismatch { what: tensor.to_string(), found, expected })
}

fn check_last_dim(tensor: Operand, view: &TensorView<'_>) -> Result<()> {
    match view.strides().dim {
        1 => Ok(()),
        stride => Err(Error::LastDimNotContiguous { tensor, stride }),
    }
}

/// Checks out and lse against q, which has passed its own checks.
fn check_output(q: &TensorView<'_>, out: &TensorView<'_>, lse: Option<&LseViewMut<'_>>) -> Result<()> {
    check_against_q(q, Operand::Out, out)?;
    let q_shape = q.shape();
    let same = |tensor, rows, heads| {
        if rows != q_shape.rows {
            return Err(Error::RowsMismatch { tensor, found: rows, of: Operand::Q, expected: q_shape.rows });
        }
        if heads != q_shape.heads {
            return Err(Error::HeadsMismatch { tensor, found: heads, of: Operand::Q, expected: q_shape.heads });
        }
        Ok(())
    };
    same(Operand::Out, out.shape().rows, out.shape().heads)?;
    check_last_dim(Operand::Out, out)?;
    if let Some(lse) = lse {
        check_same_device(q, Operand::Lse, lse.device())?;
        let shape = lse.shape();
        if shape.batch != q_shape.batch {
            let (found, expected) = (shape.batch, q_shape.batch);
            return Err(Error::BatchMismatch { tensor: Operand::Lse, found, expected });
        }
        same(Operand::Lse, shape.rows, shape.heads)?;
    }
    Ok(())
}

/// Outputs need memory of their own: out and lse (given as its address) against themselves, each other and the inputs.
fn check_overlaps(inputs: [&TensorView<'_>; 3], out: &TensorView<'_>, lse: Option<(u64, &Problem)>) -> Result<()> {
    let geometry = out.geometry();
    if overlap::overlaps_itself(geometry) {
        return Err(Error::OutputOverlapsItself { shape: geometry.shape, strides: geometry.strides });
    }
    let footprint = |view: &TensorView<'_>| Footprint::of(view.geometry(), view.address());
    let named = [Operand::Q, Operand::K, Operand::V].into_iter().zip(inputs.map(footprint));
    let others: Vec<(Operand, Footprint)> = named.collect();
    let mut outputs = vec![(Operand::Out, footprint(out))];
    if let Some((address, p)) = lse {
        let rows = p.batch as u128 * p.q_heads as u128 * p.q_rows as u128;
        let lse = Footprint::contiguous(address, rows * kernel_spec::DType::F32.bytes() as u128);
        if lse.overlaps(&outputs[0].1) {
            return Err(Error::OutputOverlaps { output: Operand::Lse, other: Operand::Out });
        }
        outputs.push((Operand::Lse, lse));
    }
    for (output, memory) in &outputs {
        for (other, input) in &others {
            if memory.overlaps(input) {
                return Err(Error::OutputOverlaps { output: *output, other: *other });
            }
        }
    }
    Ok(())
}

/// A checked call, ready to launch.
struct Call<'a> {
    device: &'a Device,
    stream: RawStream,
    plan: &'a Plan,
    q: TensorView<'a>,
    k: TensorView<'a>,
    v: TensorView<'a>,
    out: TensorView<'a>,
    /// Device address, or 0 when it is not wanted.
    lse: u64,
}

impl Call<'_> {
    fn launch(&self) -> Result<()> {
        let problem = &self.plan.problem;
        let span = tracing::debug_span!("attention", kernel = %self.plan.kernel, %problem);
        let _entered = span.enter();
        let forward = self.forward_params();
        // Checked by the plan against the device's memory.
        let [scores_bytes, probs_bytes] = plan::workspace(self.plan.kernel, problem).map(|bytes| bytes as u64);
        let scores = Allocation::new(self.device, self.stream, scores_bytes)?;
        let probs = Allocation::new(self.device, self.stream, probs_bytes)?;
        let naive = NaiveParams {
            forward,
            scores: scores.address(),
            probs: probs.address(),
            score_stride: problem.score_stride() as u64,
            score_rows: problem.batch as u64 * problem.q_heads as u64 * problem.q_rows as u64,
        };
        for step in self.plan.steps.iter().filter(|step| step.ctas > 0) {
            let v3;
            let params = match step.variant.pass {
                Pass::Scores | Pass::Softmax | Pass::Output => bytes_of(&naive),
                Pass::V1 | Pass::V2 => bytes_of(&forward),
                Pass::V3 => {
                    v3 = self.v3_params(forward, step)?;
                    bytes_of(&v3)
                }
            };
            tracing::trace!(symbol = step.variant.entry.symbol, ctas = step.ctas, "launch");
            self.device.backend().launch(&Launch {
                kernel: &step.kernel(),
                ctas: step.ctas,
                params,
                stream: self.stream,
            })?;
        }
        Ok(())
    }

    fn v3_params(&self, forward: ForwardParams, step: &Step) -> Result<V3Params> {
        let Problem { batch, q_rows, kv_rows, head_dim, dtype, .. } = self.plan.problem;
        let Step { variant, packed_heads: packed, ctas, .. } = *step;
        let map = |view, box_rows, packed| -> Result<_> {
            self.device.backend().tensor_map(&TensorGeometry::new(view, box_rows, packed))
        };
        // The plan has bounded the tiles, and with them the sequences.
        let work = Work {
            batch: batch as u32,
            q_heads: forward.q_heads,
            group: forward.group,
            packed,
            q_rows: forward.q_rows,
            q_block: variant.q_block,
            kv_head_bytes: 2 * (kv_rows * head_dim * dtype.bytes()) as u64,
            uneven: hides_something(forward.band, q_rows, kv_rows),
        };
        Ok(V3Params {
            q: map(&self.q, variant.q_block, packed)?,
            k: map(&self.k, variant.kv_block, 1)?,
            v: map(&self.v, variant.kv_block, 1)?,
            forward,
            schedule: Schedule::new(&work, ctas),
        })
    }

    fn forward_params(&self) -> ForwardParams {
        let Problem { q_rows, kv_rows, q_heads, kv_heads, head_dim, .. } = self.plan.problem;
        let aligned = |view: &TensorView<'_>| rows_are_aligned(view.geometry(), view.address());
        // None of the conversions loses anything: Problem::validate bounds rows and head_dim, the grid bounds the heads.
        ForwardParams {
            q: tensor_params(&self.q),
            k: tensor_params(&self.k),
            v: tensor_params(&self.v),
            out: tensor_params(&self.out),
            lse: self.lse,
            q_rows: q_rows as u32,
            kv_rows: kv_rows as u32,
            q_heads: q_heads as u32,
            group: (q_heads / kv_heads) as u32,
            dim_qk: head_dim as u32,
            dim_v: head_dim as u32,
            // Not 0: the product with a hidden score, minus infinity, would be NaN. A scale this small leaves every visible score
            // at 0 all the same.
            scale_log2: scale_log2(self.plan.scale).abs().max(f32::MIN_POSITIVE),
            band: self.plan.mask.band(),
            aligned: [&self.q, &self.k, &self.v].into_iter().all(aligned).into(),
            out_aligned: aligned(&self.out).into(),
            negate: (self.plan.scale < 0.0).into(),
            features: Features::OFF,
        }
    }
}

/// Whether some row sees less than all keys: the first misses the last key, or the last the first.
fn hides_something(band: Band, q_rows: usize, kv_rows: usize) -> bool {
    i64::from(band.right) < q_rows as i64 - 1 || i64::from(band.left) < kv_rows as i64 - 1
}

fn tensor_params(view: &TensorView<'_>) -> TensorParams {
    let (shape, strides) = (view.shape(), view.strides());
    // Nothing is stepped over along an axis of extent 1, so its stride may be anything. The kernels form the address of rows
    // that do not exist, without reading them, and even such an address has to be aligned: 0 keeps it so.
    let stride = |extent: usize, stride: usize| if extent > 1 { stride as u64 } else { 0 };
    TensorParams {
        address: view.address(),
        batch_stride: stride(shape.batch, strides.batch),
        row_stride: stride(shape.rows, strides.row),
        head_stride: stride(shape.heads, strides.head),
    }
}

/// Whether every row of the tensor starts at a multiple of 16 bytes, so that it moves in 16-byte pieces.
fn rows_are_aligned(geometry: &Geometry, address: u64) -> bool {
    let [batch, rows, heads, _] = geometry.axes();
    // Along an axis of extent 1 nothing is ever stepped over.
    let aligned = |(extent, stride): (usize, usize)| {
        extent <= 1 || (stride * geometry.dtype.bytes()).is_multiple_of(kernel_spec::layout::CHUNK_BYTES)
    };
    address.is_multiple_of(kernel_spec::layout::CHUNK_BYTES as u64) && [batch, rows, heads].into_iter().all(aligned)
}

/// The bytes of a kernel parameter struct.
fn bytes_of<T: KernelParams>(params: &T) -> &[u8] {
    // SAFETY: implementors promise that every byte of `T` is initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(params).cast(), size_of::<T>()) }
}

/// # Safety
/// The type is `repr(C)` without padding.
unsafe trait KernelParams: Copy {}
// SAFETY: repr(C); u64 fields, then u32-sized fields, an even number of them (see the assertions below).
unsafe impl KernelParams for ForwardParams {}
// SAFETY: repr(C); ForwardParams, then u64 fields.
unsafe impl KernelParams for NaiveParams {}
// SAFETY: repr(C); arrays of u64 and ForwardParams, then u32 fields, an even number of them.
unsafe impl KernelParams for V3Params {}
// Sums of the sizes of the fields: a difference would be padding.
const _: () = assert!(
    size_of::<ForwardParams>()
        == 4 * 32 + 8 + 7 * 4 + size_of::<kernel_spec::Band>() + 3 * 4 + 8 * (1 + kernel_spec::FORWARD_SLOTS as usize)
);
const _: () = assert!(size_of::<NaiveParams>() == size_of::<ForwardParams>() + 4 * 8);
const _: () = assert!(size_of::<V3Params>() == 3 * 128 + size_of::<ForwardParams>() + size_of::<Schedule>());
const _: () = assert!(size_of::<Schedule>() == 5 * 4 + 5 * size_of::<Divisor>() && size_of::<Divisor>() == 3 * 4);
