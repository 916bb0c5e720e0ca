//! The backward pass.

use crate::forward::{check_context, device};
use crate::{Options, Result, View, ViewMut};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};
use ferroflash::{
    DType, Device, Element, GradientsViewMut, LseShape, LseView, Operand, OutputGradients, Stream, TensorView,
    TensorViewMut,
};

/// What [`backward`] reads: the tensors of a call of [`forward`](crate::forward()), what it wrote, and the gradients with respect to that.
#[derive(Clone, Copy)]
pub struct BackwardInputs<'a, T> {
    /// As the forward pass was given it.
    pub q: View<'a, T>,
    /// As the forward pass was given it.
    pub k: View<'a, T>,
    /// As the forward pass was given it.
    pub v: View<'a, T>,
    /// What the forward pass wrote.
    pub out: View<'a, T>,
    /// What the forward pass wrote: it begins with contiguous `f32 [batch, q_heads, q_rows]`.
    pub lse: &'a dyn DevicePtr<f32>,
    /// The gradient with respect to the output, of its shape.
    pub dout: View<'a, T>,
    /// The gradient with respect to the log-sum-exp, of its shape; `None` is 0.
    pub dlse: Option<&'a dyn DevicePtr<f32>>,
}

/// What [`backward`] writes: the gradients with respect to q, k and v, of their shapes, and with respect to the sinks.
pub struct Gradients<'a, T> {
    /// With respect to q.
    pub dq: ViewMut<'a, T>,
    /// With respect to k, summed over the query heads that share the head.
    pub dk: ViewMut<'a, T>,
    /// With respect to v, likewise.
    pub dv: ViewMut<'a, T>,
    /// With respect to the sinks, a number for each query head; `None` where it is not wanted.
    pub dsink: Option<&'a mut dyn DevicePtrMut<f32>>,
}

impl<T> std::fmt::Debug for Gradients<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Gradients { dq, dk, dv, dsink } = self;
        let dsink = dsink.as_ref().map(|dsink| dsink.len());
        f.debug_struct("Gradients").field("dq", dq).field("dk", dk).field("dv", dv).field("dsink", &dsink).finish()
    }
}

impl<T> std::fmt::Debug for BackwardInputs<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let BackwardInputs { q, k, v, out, lse, dout, dlse } = self;
        let tensors = [("q", q), ("k", k), ("v", v), ("out", out), ("dout", dout)];
        let mut shown = f.debug_struct("BackwardInputs");
        for (name, tensor) in tensors {
            shown.field(name, tensor);
        }
        shown.field("lse", &lse.len()).field("dlse", &dlse.map(|dlse| dlse.len())).finish()
    }
}

/// Computes the gradients of a number with respect to q, k and v into `gradients`, given those with respect to what
/// [`forward`](crate::forward()) made of them, on `stream`: see [`ferroflash::Attention::backward`]. The same inputs give the same
/// bits with [`ferroflash::Attention::deterministic`]; without, dq may differ in the last bits from run to run on GPUs of compute capability 9.0.
///
/// Streams, waits and what is recorded in the slices are as in [`forward`](crate::forward()). The call returns before the work is done.
///
/// # Errors
/// [`Error::NotPrimary`](crate::Error::NotPrimary), [`Error::ContextMismatch`](crate::Error::ContextMismatch),
/// [`Error::Cudarc`](crate::Error::Cudarc), and those of [`ferroflash::Attention::backward_into`]. Among them, [`ferroflash::Error::StorageTooSmall`] is a
/// slice that ends before its tensor does.
pub fn backward<'a, T: Element>(
    options: impl Into<Options<'a>>,
    stream: &CudaStream,
    inputs: BackwardInputs<'_, T>,
    gradients: Gradients<'_, T>,
) -> Result<()> {
    let device = device(stream.context())?;
    let BackwardInputs { q, k, v, out, lse, dout, dlse } = inputs;
    let Gradients { mut dq, mut dk, mut dv, dsink } = gradients;
    let read = [(Operand::Q, q), (Operand::K, k), (Operand::V, v), (Operand::Out, out), (Operand::Dout, dout)];
    for (operand, view) in read {
        check_context(operand, view.data.stream(), stream)?;
    }
    for (operand, rows) in [(Operand::Lse, Some(lse)), (Operand::Dlse, dlse)] {
        rows.map_or(Ok(()), |rows| check_context(operand, rows.stream(), stream))?;
    }
    for (operand, view) in [(Operand::Dq, &dq), (Operand::Dk, &dk), (Operand::Dv, &dv)] {
        check_context(operand, view.data.stream(), stream)?;
    }
    if let Some(dsink) = &dsink {
        check_context(Operand::Dsink, dsink.stream(), stream)?;
    }
    let options = options.into();
    options.check(stream)?;

    // The guards order the call with earlier and later work on the slices; they are held until it has returned.
    let guarded = options.guard(stream);
    let bound = guarded.bind(&device)?;
    let guards = read.map(|(_, view)| view.data.device_ptr(stream));
    let row_guards = [Some(lse), dlse].map(|rows| rows.map(|rows| (rows.device_ptr(stream), rows.len())));
    let [q_view, k_view, v_view, out_view, dout_view] = [0, 1, 2, 3, 4].map(|i| {
        let (View { data, shape, strides }, (address, _)) = (read[i].1, &guards[i]);
        // SAFETY: the slice has that many elements of `T` from the address on, in the primary context of `device`; it is borrowed for
        // this call, and its guard is held.
        unsafe { TensorView::from_raw(&device, *address, data.len(), shape, strides, T::DTYPE) }
    });
    let rows = LseShape { batch: q.shape.batch, heads: q.shape.heads, rows: q.shape.rows };
    let [lse_view, dlse_view] = row_guards.each_ref().map(|guarded| {
        // SAFETY: as for the tensors.
        let view = |&((address, _), len): &_| unsafe { LseView::from_raw(&device, address, len, rows) };
        guarded.as_ref().map(view).transpose()
    });
    let Some(lse_view) = lse_view? else { unreachable!("the log-sum-exp is always given") };
    let mut upstream = OutputGradients::new(dout_view?);
    if let Some(dlse) = dlse_view? {
        upstream = upstream.with_dlse(dlse);
    }
    let (dq_view, _dq_guard) = written(&device, stream, &mut dq)?;
    let (dk_view, _dk_guard) = written(&device, stream, &mut dk)?;
    let (dv_view, _dv_guard) = written(&device, stream, &mut dv)?;
    let (dsink_view, _dsink_guard) = dsink.map(|dsink| written_sink(&device, stream, dsink)).transpose()?.unzip();
    // The waits above have no result of their own.
    stream.context().check_err()?;

    // SAFETY: as in `forward`: the stream is live and one of the primary context of `device`, and the handle is gone when this function
    // returns.
    let stream = unsafe { Stream::from_raw(&device, stream.cu_stream().cast()) };
    let mut into = GradientsViewMut::new(dq_view, dk_view, dv_view);
    into.dsink = dsink_view;
    let attention = guarded.attention(&bound);
    attention.backward_into(&stream, &q_view?, &k_view?, &v_view?, &out_view?, &lse_view, upstream, &mut into)?;
    Ok(())
}

/// The gradient of the sinks as ferroflash knows it, and the guard of its slice.
pub(crate) fn written_sink<'v>(
    device: &'v Device,
    stream: &'v CudaStream,
    dsink: &'v mut dyn DevicePtrMut<f32>,
) -> Result<(TensorViewMut<'v>, SyncOnDrop<'v>)> {
    let len = dsink.len();
    let (address, guard) = dsink.device_ptr_mut(stream);
    // SAFETY: as for the other gradients.
    let view = unsafe { TensorViewMut::from_raw(device, address, len, [len], [1], DType::F32) }?;
    Ok((view, guard))
}

/// A gradient as ferroflash knows it, and the guard of its slice.
fn written<'v, T: Element>(
    device: &'v Device,
    stream: &'v CudaStream,
    view: &'v mut ViewMut<'_, T>,
) -> Result<(TensorViewMut<'v>, SyncOnDrop<'v>)> {
    let (len, shape, strides) = (view.data.len(), view.shape, view.strides);
    let (address, guard) = view.data.device_ptr_mut(stream);
    // SAFETY: as for the inputs of `backward`, and the slice is borrowed mutably.
    let view = unsafe { TensorViewMut::from_raw(device, address, len, shape, strides, T::DTYPE) }?;
    Ok((view, guard))
}
