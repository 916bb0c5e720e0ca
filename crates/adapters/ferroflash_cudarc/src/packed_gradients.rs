//! The backward pass over packed sequences.

use crate::backward::{BackwardInputs, Gradients, written_sink};
use crate::forward::{check_context, device};
use crate::sequences::{PackedRows, axes};
use crate::{Options, Result, View, ViewMut};
use cudarc::driver::{CudaStream, SyncOnDrop};
use ferroflash::{
    Device, Element, GradientsViewMut, IndicesView, LseShape, LseView, Operand, OutputGradients, Stream, TensorView,
    TensorViewMut,
};

/// Computes the gradients of a number with respect to q, k and v of packed sequences into `gradients`, given those with respect to what
/// [`forward_packed`](crate::forward_packed) made of them, on `stream`: see [`ferroflash::Attention::backward_packed`]. All tensors have batch 1; the
/// log-sum-exp and its gradient begin with contiguous `f32 [q_heads, rows]`. The same inputs give the same bits.
///
/// Gradients of rows that no sequence has in use are not written. Streams, waits and what is recorded in the slices, those of the numbers too, are
/// as in [`forward`](crate::forward()): nothing waits for the numbers on the host.
///
/// # Errors
/// Those of [`backward`](crate::backward()) and [`ferroflash::Attention::backward_packed_into`].
pub fn backward_packed<'a, T: Element>(
    options: impl Into<Options<'a>>,
    stream: &CudaStream,
    inputs: BackwardInputs<'_, T>,
    q_rows: PackedRows<'_>,
    kv_rows: PackedRows<'_>,
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
    let numbers = [
        (Operand::QStarts, Some(q_rows.starts)),
        (Operand::QUsed, q_rows.used),
        (Operand::KvStarts, Some(kv_rows.starts)),
        (Operand::KvUsed, kv_rows.used),
    ];
    for (operand, numbers) in numbers {
        numbers.map_or(Ok(()), |numbers| check_context(operand, numbers.0.stream(), stream))?;
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
    let number_guards =
        numbers.map(|(_, numbers)| numbers.map(|numbers| (numbers.0.device_ptr(stream), numbers.0.len())));
    let [q_view, k_view, v_view, out_view, dout_view] = [0, 1, 2, 3, 4].map(|i| {
        let (View { data, shape, strides }, (address, _)) = (read[i].1, &guards[i]);
        let (shape, strides) = axes(shape, strides, true);
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
    let [q_starts, q_used, kv_starts, kv_used] = number_guards.each_ref().map(|guarded| {
        // SAFETY: as for the tensors.
        let view = |&((address, _), len): &_| unsafe { IndicesView::from_raw(&device, address, len) };
        guarded.as_ref().map(view).transpose()
    });
    let (Some(lse_view), Some(q_starts), Some(kv_starts)) = (lse_view?, q_starts?, kv_starts?) else {
        unreachable!("the log-sum-exp and the starts are always given")
    };
    let q_rows = ferroflash::PackedRows::new(q_starts).with_used(q_used?).with_longest(q_rows.longest);
    let kv_rows = ferroflash::PackedRows::new(kv_starts).with_used(kv_used?).with_longest(kv_rows.longest);
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
    let (q, k, v, out) = (q_view?, k_view?, v_view?, out_view?);
    attention
        .backward_packed_into(&stream, &q, &k, &v, &out, &lse_view, upstream, &q_rows, &kv_rows, &mut into)
        .map_err(Into::into)
}

/// A gradient as ferroflash knows it, and the guard of its slice.
fn written<'v, T: Element>(
    device: &'v Device,
    stream: &'v CudaStream,
    view: &'v mut ViewMut<'_, T>,
) -> Result<(TensorViewMut<'v>, SyncOnDrop<'v>)> {
    let (len, (shape, strides)) = (view.data.len(), axes(view.shape, view.strides, true));
    let (address, guard) = view.data.device_ptr_mut(stream);
    // SAFETY: as for the inputs of `backward_packed`, and the slice is borrowed mutably.
    let view = unsafe { TensorViewMut::from_raw(device, address, len, shape, strides, T::DTYPE) }?;
    Ok((view, guard))
}
