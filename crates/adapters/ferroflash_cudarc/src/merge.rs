//! The merge of partial results.

use crate::forward::{check_context, device};
use crate::{Result, View, ViewMut};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use ferroflash::{
    Element, LseShape, LseView, LseViewMut, Operand, Shape, Stream, TensorView, TensorViewMut, merge_into,
};
use std::fmt;

/// Attention over some of the keys; see [`ferroflash::Part`].
#[derive(Clone, Copy)]
pub struct Part<'a, T> {
    out: View<'a, T>,
    lse: &'a dyn DevicePtr<f32>,
}

impl<'a, T> Part<'a, T> {
    /// An output, and its log-sum-exp: a slice that begins with contiguous `f32 [batch, q_heads, rows]`.
    pub fn new(out: View<'a, T>, lse: &'a impl DevicePtr<f32>) -> Part<'a, T> {
        Part { out, lse }
    }
}

impl<T> fmt::Debug for Part<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("out", &self.out).field("lse", &self.lse.len()).finish()
    }
}

/// Puts partial results together in `out`, and with `lse` also the log-sum-exp of every row, on `stream`: attention of the same queries over
/// disjoint sets of keys becomes attention over all of these keys, see [`ferroflash::merge`].
///
/// Outputs of packed rows are views of batch 1. `out` has the type of the parts, or one of the two is `f32`. `lse` begins with contiguous
/// `f32 [batch, q_heads, rows]`. Streams, waits and what is recorded in the slices are as in [`forward`](crate::forward()).
///
/// ```no_run
/// use cudarc::driver::CudaContext;
/// use ferroflash::{Layout, Shape, bf16};
/// use ferroflash_cudarc::{Part, View, ViewMut, merge};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stream = CudaContext::new(0)?.new_stream()?;
/// let shape = Shape::new(1, 100, 8, 128);
/// // Over a prompt, and over what follows it.
/// let [prompt, rest] = [0; 2].map(|_| stream.alloc_zeros::<bf16>(100 * 8 * 128));
/// let [prompt_lse, rest_lse] = [0; 2].map(|_| stream.alloc_zeros::<f32>(8 * 100));
/// let (prompt, rest, prompt_lse, rest_lse) = (prompt?, rest?, prompt_lse?, rest_lse?);
/// let mut out = stream.alloc_zeros::<bf16>(100 * 8 * 128)?;
/// let parts = [
///     Part::new(View::contiguous(&prompt, shape, Layout::Bshd)?, &prompt_lse),
///     Part::new(View::contiguous(&rest, shape, Layout::Bshd)?, &rest_lse),
/// ];
/// merge(&stream, &parts, &mut ViewMut::contiguous(&mut out, shape, Layout::Bshd)?, None)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of [`forward`](crate::forward()) and [`ferroflash::merge_into`].
pub fn merge<T: Element, Out: Element>(
    stream: &CudaStream,
    parts: &[Part<'_, T>],
    out: &mut ViewMut<'_, Out>,
    lse: Option<&mut dyn DevicePtrMut<f32>>,
) -> Result<()> {
    let device = device(stream.context())?;
    for (i, part) in parts.iter().enumerate() {
        check_context(Operand::Part(i), part.out.data.stream(), stream)?;
        check_context(Operand::PartLse(i), part.lse.stream(), stream)?;
    }
    check_context(Operand::Out, out.data.stream(), stream)?;
    lse.as_ref().map_or(Ok(()), |lse| check_context(Operand::Lse, lse.stream(), stream))?;

    // The guards order the call with earlier and later work on the slices, and record it when they go.
    let guarded: Vec<_> =
        parts.iter().map(|part| (part.out.data.device_ptr(stream), part.lse.device_ptr(stream))).collect();
    let rows = |Shape { batch, rows, heads, .. }: Shape| LseShape { batch, heads, rows };
    let views = parts.iter().zip(&guarded).map(|(Part { out, lse }, &((address, _), (lse_address, _)))| {
        let View { data, shape, strides } = *out;
        // SAFETY: the slice has that many elements of `T` from the address on, in the primary context of the device; it is borrowed for
        // this call, and its guard is held.
        let out = unsafe { TensorView::from_raw(&device, address, data.len(), shape, strides, T::DTYPE) }?;
        // SAFETY: as for the output of the part.
        let lse = unsafe { LseView::from_raw(&device, lse_address, lse.len(), rows(shape)) }?;
        Ok(ferroflash::Part::new(&out, &lse))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let (len, shape, strides) = (out.data.len(), out.shape, out.strides);
    let (address, _out_guard) = out.data.device_ptr_mut(stream);
    // SAFETY: as for what is read, and the slice is borrowed mutably.
    let mut out = unsafe { TensorViewMut::from_raw(&device, address, len, shape, strides, Out::DTYPE) }?;
    let lse = lse.map(|lse| (lse.len(), lse.device_ptr_mut(stream)));
    let lse_view = lse.as_ref().map(|&(len, (address, _))| {
        // SAFETY: as for out.
        unsafe { LseViewMut::from_raw(&device, address, len, rows(shape)) }
    });
    let mut lse_view = lse_view.transpose()?;
    // The waits of guards have no result of their own.
    stream.context().check_err()?;
    // SAFETY: as in `forward`: the stream is live and one of the primary context of `device`, and the handle is gone when this function
    // returns.
    let on = unsafe { Stream::from_raw(&device, stream.cu_stream().cast()) };
    merge_into(&on, &views, &mut out, lse_view.as_mut())?;
    drop((guarded, lse));
    Ok(())
}
