//! The calls.

use crate::{Error, Options, Result, View, ViewMut};
use cudarc::driver::{CudaContext, CudaStream, DevicePtrMut};
use ferroflash::{Attention, Device, Element, LseShape, LseViewMut, Operand, Plan, Stream, TensorView, TensorViewMut};

/// The device of ferroflash that works in this context. Opening it again is cheap, and a GPU stays open until the process ends.
///
/// # Errors
/// [`Error::NotPrimary`], and those of [`Device::cuda`].
pub fn device(context: &CudaContext) -> Result<Device> {
    if !context.is_primary() {
        return Err(Error::NotPrimary { ordinal: context.ordinal() });
    }
    Ok(Device::cuda(context.ordinal())?)
}

/// What [`forward`] with these tensors would launch and allocate, and why. Nothing is launched.
///
/// Given to [`Device::prepare`], it loads the kernels ahead of the first call, which has to be done before a call is captured into a graph.
///
/// # Errors
/// As [`forward`].
pub fn plan<'a, T: Element>(
    options: impl Into<Options<'a>>,
    stream: &CudaStream,
    q: View<'_, T>,
    k: View<'_, T>,
    v: View<'_, T>,
    out: &mut ViewMut<'_, T>,
) -> Result<Plan> {
    with_tensors(options.into(), stream, q, k, v, out, None, |attention, _, q, k, v, out, _| {
        attention.plan_for(q, k, v, Some(&out.view()))
    })
}

/// Computes attention of `q`, `k` and `v` into `out`, and with `lse` also the log-sum-exp of every row, on `stream`.
///
/// `options` are an [`Attention`], by reference, or [`Options`], with a program on scores. Shapes are those of [`Attention`]. `lse` begins with contiguous `f32 [batch, q_heads, q_rows]`, in natural logarithm; what it holds
/// behind them stays as it is. Any stream of cudarc is taken: the default stream, the one of the thread, those that wait for nothing else,
/// and those that are captured. `stream` waits for what was queued before on the memory of the tensors, and this use is recorded in them, as
/// in every call of cudarc itself. The call returns before the work is done.
///
/// ```no_run
/// use cudarc::driver::CudaContext;
/// use ferroflash::{Attention, Layout, Shape, f16};
/// use ferroflash_cudarc::{View, ViewMut, forward};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stream = CudaContext::new(0)?.new_stream()?;
/// let shape = Shape::new(2, 512, 8, 64); // batch, rows, heads, head_dim
/// let qkv = stream.alloc_zeros::<f16>(3 * shape.elements().unwrap())?;
/// let mut out = stream.alloc_zeros::<f16>(shape.elements().unwrap())?;
/// let mut lse = stream.alloc_zeros::<f32>(2 * 8 * 512)?;
///
/// // [batch, row, 3, head, dim]: a row of q, then one of k and one of v.
/// let strides = ferroflash::Strides::new(512 * 3 * 8 * 64, 3 * 8 * 64, 64);
/// let [q, k, v] = [0, 1, 2].map(|i| qkv.slice(i * 8 * 64..));
/// let [q, k, v] = [&q, &k, &v].map(|part| View::new(part, shape, strides));
/// let mut o = ViewMut::contiguous(&mut out, shape, Layout::Bshd)?;
/// forward(&Attention::new().causal(), &stream, q, k, v, &mut o, Some(&mut lse))?;
/// let rows: Vec<f16> = stream.clone_dtoh(&out)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::NotPrimary`], [`Error::ContextMismatch`], [`Error::Cudarc`], [`Error::BoundElsewhere`], and those of [`Attention::forward_into`]. Among them,
/// [`ferroflash::Error::StorageTooSmall`] is a slice that ends before its tensor does.
pub fn forward<'a, T: Element>(
    options: impl Into<Options<'a>>,
    stream: &CudaStream,
    q: View<'_, T>,
    k: View<'_, T>,
    v: View<'_, T>,
    out: &mut ViewMut<'_, T>,
    lse: Option<&mut dyn DevicePtrMut<f32>>,
) -> Result<()> {
    with_tensors(options.into(), stream, q, k, v, out, lse, |attention, stream, q, k, v, out, lse| {
        attention.forward_into(stream, q, k, v, out, lse)
    })
}

/// Runs `call` with the tensors as ferroflash knows them. Until it has returned, cudarc's guards are held: they made the stream wait
/// for earlier work, and record what `call` queued when they go.
#[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
fn with_tensors<T: Element, R>(
    options: Options<'_>,
    stream: &CudaStream,
    q: View<'_, T>,
    k: View<'_, T>,
    v: View<'_, T>,
    out: &mut ViewMut<'_, T>,
    lse: Option<&mut dyn DevicePtrMut<f32>>,
    call: impl FnOnce(
        &Attention<'_>,
        &Stream,
        &TensorView<'_>,
        &TensorView<'_>,
        &TensorView<'_>,
        &mut TensorViewMut<'_>,
        Option<&mut LseViewMut<'_>>,
    ) -> ferroflash::Result<R>,
) -> Result<R> {
    let device = device(stream.context())?;
    for (operand, view) in [(Operand::Q, q), (Operand::K, k), (Operand::V, v)] {
        check_context(operand, view.data.stream(), stream)?;
    }
    check_context(Operand::Out, out.data.stream(), stream)?;
    if let Some(lse) = &lse {
        check_context(Operand::Lse, lse.stream(), stream)?;
    }
    options.check(stream)?;

    let guarded = options.guard(stream);
    let bound = guarded.bind(&device)?;
    let inputs = [q, k, v].map(|view| view.data.device_ptr(stream));
    let [q, k, v] = [(q, &inputs[0]), (k, &inputs[1]), (v, &inputs[2])].map(|(view, &(address, _))| {
        let (len, View { shape, strides, .. }) = (view.data.len(), view);
        // SAFETY: the slice has `len` elements of `T` from `address` on, in the primary context of `device`; it is borrowed for this
        // call, and its guard orders the call with earlier and later work on it.
        unsafe { TensorView::from_raw(&device, address, len, shape, strides, T::DTYPE) }
    });
    let (q, k, v) = (q?, k?, v?);
    let (len, shape, strides) = (out.data.len(), out.shape, out.strides);
    let (address, _out_guard) = out.data.device_ptr_mut(stream);
    // SAFETY: as for the inputs, and the slice is borrowed mutably.
    let mut out = unsafe { TensorViewMut::from_raw(&device, address, len, shape, strides, T::DTYPE) }?;
    let lse = lse.map(|lse| (lse.len(), lse.device_ptr_mut(stream)));
    let lse_view = lse.as_ref().map(|&(len, (address, _))| {
        let [batch, rows, heads, _] = q.shape()[..] else { unreachable!("a `Shape` has four axes") };
        // SAFETY: as for out.
        unsafe { LseViewMut::from_raw(&device, address, len, LseShape { batch, heads, rows }) }
    });
    let mut lse_view = lse_view.transpose()?;
    // The waits above have no result of their own.
    stream.context().check_err()?;

    // SAFETY: the stream is live and one of the primary context of `device`; the handle is gone when this function returns, in the thread
    // that called it, which matters for the stream of the thread. Tensors of ferroflash's own, which a stream that waits for nothing else
    // would be a danger to, are not used.
    let stream = unsafe { Stream::from_raw(&device, stream.cu_stream().cast()) };
    let attention = guarded.attention(&bound);
    let result = call(&attention, &stream, &q, &k, &v, &mut out, lse_view.as_mut())?;
    drop((inputs, lse, guarded));
    Ok(result)
}

pub(crate) fn check_context(operand: Operand, of: &CudaStream, stream: &CudaStream) -> Result<()> {
    let (found, expected) = (of.context(), stream.context());
    if found.cu_ctx() == expected.cu_ctx() {
        return Ok(());
    }
    Err(Error::ContextMismatch { operand, found: found.ordinal(), expected: expected.ordinal() })
}
