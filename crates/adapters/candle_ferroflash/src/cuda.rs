//! Tensors on a GPU: candle's slices and stream, given to ferroflash as they are.

use crate::FlashAttn;
use crate::differentiable::Inputs;
use crate::error::Error;
use crate::op::{self, heads};
use crate::packed::{Keys, Packed};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::{
    CudaDType,
    cudarc::driver::{CudaView, DeviceRepr, ValidAsZeroBits},
};
use candle_core::{CudaStorage, CustomOp3, DType, DeviceLocation, Layout, Result, Storage, Tensor};
use ferroflash::score::ScoreProgram;
use ferroflash::{Attention, Element, Operand, Shape, Strides};
use ferroflash_cudarc::{CacheRows, Numbers, Options, PackedRows, Pages, Program, ProgramTensor, View, ViewMut};

/// The result, and the log-sum-exp if it is wanted.
pub(crate) fn forward(
    options: op::Options<'_>,
    op: &'static str,
    tensors: [(&CudaStorage, &Layout); 3],
    with_lse: bool,
) -> Result<(CudaStorage, Option<CudaStorage>)> {
    match tensors[0].0.dtype() {
        DType::F16 => typed::<ferroflash::f16>(options, op, tensors, with_lse),
        DType::BF16 => typed::<ferroflash::bf16>(options, op, tensors, with_lse),
        DType::F32 => typed::<f32>(options, op, tensors, with_lse),
        found => Err(Error::DType { op, found }.into()),
    }
}

/// The gradients with respect to q, k and v, contiguous.
pub(crate) fn backward(
    options: op::Options<'_>,
    op: &'static str,
    inputs: Inputs<'_, CudaStorage>,
    lse: &CudaStorage,
) -> Result<[CudaStorage; 3]> {
    match inputs[0].0.dtype() {
        DType::F16 => typed_backward::<ferroflash::f16>(options, op, inputs, lse),
        DType::BF16 => typed_backward::<ferroflash::bf16>(options, op, inputs, lse),
        DType::F32 => typed_backward::<f32>(options, op, inputs, lse),
        found => Err(Error::DType { op, found }.into()),
    }
}

/// A part of a slice of candle's, and how it is read.
struct Part<'a, T> {
    data: CudaView<'a, T>,
    shape: Shape,
    strides: Strides,
}

impl<'a, T: Element + CudaDType + DeviceRepr> Part<'a, T> {
    fn new(op: &'static str, operand: Operand, (storage, layout): (&'a CudaStorage, &Layout)) -> Result<Part<'a, T>> {
        let (shape, strides) = heads(op, operand, layout)?;
        let data = storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..);
        Ok(Part { data, shape, strides })
    }

    /// A tensor of packed rows, which has batch 1, or of pages.
    fn of(call: &Packed, operand: Operand, (storage, layout): (&'a CudaStorage, &Layout)) -> Result<Part<'a, T>> {
        let (shape, strides) = call.axes(operand, layout)?;
        let (shape, strides) = match (&shape[..], &strides[..]) {
            (&[rows, heads, dim], &[row, head, column]) => {
                (Shape::new(1, rows, heads, dim), Strides { batch: 0, row, head, dim: column })
            }
            (shape, strides) => {
                let layout = ferroflash::Layout::Bshd;
                let (shape, strides) = (Shape::from_dims(shape, layout), Strides::from_dims(strides, layout));
                (shape.map_err(Error::from)?, strides.map_err(Error::from)?)
            }
        };
        let data = storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..);
        Ok(Part { data, shape, strides })
    }

    fn view(&self) -> View<'_, T> {
        View::new(&self.data, self.shape, self.strides)
    }
}

/// Runs `call` with the options, and with slopes for the heads, where there are any, which have to be where q is.
fn with_slopes<R>(
    options: &FlashAttn,
    op: &'static str,
    q_heads: usize,
    lhs: DeviceLocation,
    attention: &Attention<'_>,
    call: impl FnOnce(Options<'_>) -> Result<R>,
) -> Result<R> {
    let Some(slopes) = options.slopes(op, q_heads)? else { return call(Options::new(attention)) };
    let (storage, layout) = slopes.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        let rhs = slopes.device().location();
        return Err(candle_core::Error::DeviceMismatchBinaryOp { lhs, rhs, op }.bt());
    };
    let data = storage.as_cuda_slice::<f32>()?.slice(layout.start_offset()..);
    let tensor = ProgramTensor::with_strides(&data, [1, q_heads], [0, layout.stride()[0]]);
    let program = Program::new(ScoreProgram::alibi()).with("slopes", tensor);
    call(Options::new(attention).with_program(&program))
}

/// [`with_slopes`], and with the sinks of the call, likewise.
fn with_slopes_and_sinks<R>(
    options: op::Options<'_>,
    op: &'static str,
    q_heads: usize,
    lhs: DeviceLocation,
    attention: &Attention<'_>,
    call: impl FnOnce(Options<'_>) -> Result<R>,
) -> Result<R> {
    let Some(sink) = options.sinks(op, q_heads)? else {
        return with_slopes(options.options, op, q_heads, lhs, attention, call);
    };
    let (storage, layout) = sink.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        let rhs = sink.device().location();
        return Err(candle_core::Error::DeviceMismatchBinaryOp { lhs, rhs, op }.bt());
    };
    let start = layout.start_offset();
    let data = storage.as_cuda_slice::<f32>()?.slice(start..start + q_heads);
    with_slopes(options.options, op, q_heads, lhs, attention, |options| call(options.with_sink(&data)))
}

/// The driver does not allocate 0 elements. ferroflash refuses a q without any, and writes none of such keys.
fn at_least_one(elements: usize) -> usize {
    elements.max(1)
}

fn typed<T: Element + CudaDType + DeviceRepr>(
    options: op::Options<'_>,
    op: &'static str,
    [q, k, v]: [(&CudaStorage, &Layout); 3],
    with_lse: bool,
) -> Result<(CudaStorage, Option<CudaStorage>)> {
    let (device, elements) = (q.0.device(), q.1.shape().elem_count());
    let (q, k, v) = (Part::<T>::new(op, Operand::Q, q)?, Part::new(op, Operand::K, k)?, Part::new(op, Operand::V, v)?);
    let attention = options.options.attention(k.shape.rows);
    // SAFETY: the call below writes every element, or fails, and then nobody reads one.
    let mut out = unsafe { device.alloc::<T>(at_least_one(elements)) }?;
    let mut lse = match with_lse {
        // SAFETY: as for the result.
        true => Some(unsafe { device.alloc::<f32>(at_least_one(q.shape.batch * q.shape.heads * q.shape.rows)) }?),
        false => None,
    };
    let mut out_view = ViewMut::contiguous(&mut out, q.shape, ferroflash::Layout::Bshd).map_err(Error::from)?;
    let lse_view = lse.as_mut().map(|lse| lse as &mut _);
    let stream = device.cuda_stream();
    with_slopes_and_sinks(options, op, q.shape.heads, device.location(), &attention, |options| {
        let (q, k, v) = (q.view(), k.view(), v.view());
        Ok(ferroflash_cudarc::forward(options, &stream, q, k, v, &mut out_view, lse_view).map_err(Error::from)?)
    })?;
    let storage = CudaStorage::wrap_cuda_slice(out, device.clone());
    Ok((storage, lse.map(|lse| CudaStorage::wrap_cuda_slice(lse, device.clone()))))
}

/// The result of a call over packed sequences, and the log-sum-exp if it is wanted.
pub(crate) fn packed(
    call: &Packed,
    tensors: [(&CudaStorage, &Layout); 3],
) -> Result<(CudaStorage, Option<CudaStorage>)> {
    match tensors[0].0.dtype() {
        DType::F16 => typed_packed::<ferroflash::f16>(call, tensors),
        DType::BF16 => typed_packed::<ferroflash::bf16>(call, tensors),
        DType::F32 => typed_packed::<f32>(call, tensors),
        found => Err(Error::DType { op: call.name(), found }.into()),
    }
}

fn typed_packed<T: Element + CudaDType + DeviceRepr + ValidAsZeroBits>(
    call: &Packed,
    [q, k, v]: [(&CudaStorage, &Layout); 3],
) -> Result<(CudaStorage, Option<CudaStorage>)> {
    let (device, elements) = (q.0.device(), q.1.shape().elem_count());
    let q = Part::<T>::of(call, Operand::Q, q)?;
    let (k, v) = (Part::of(call, Operand::K, k)?, Part::of(call, Operand::V, v)?);
    let (attention, [longest_q, longest_k]) = (call.attention(), call.longest.map(Some));
    // Rows of no sequence are not written.
    let mut out = device.alloc_zeros::<T>(at_least_one(elements))?;
    let mut out_view = ViewMut::contiguous(&mut out, q.shape, ferroflash::Layout::Bshd).map_err(Error::from)?;
    let mut lse = match call.keeps {
        // SAFETY: rows of no sequence stay what they are, and nobody reads those; the call below writes all others, or fails.
        true => Some(unsafe { device.alloc::<f32>(at_least_one(q.shape.heads * q.shape.rows)) }?),
        false => None,
    };
    let lse_view = lse.as_mut().map(|lse| lse as &mut _);
    let stream = device.cuda_stream();
    let q_starts = call.q_starts.storage_and_layout();
    let location = device.location();
    let numbers = |operand, tensor, held| numbers(call, location, operand, tensor, held);
    let q_starts = numbers(Operand::QStarts, &call.q_starts, (&q_starts.0, q_starts.1))?;
    let q_rows = PackedRows { longest: longest_q, ..PackedRows::new(Numbers::new(&q_starts)) };
    let (heads, q, k, v) = (q.shape.heads, q.view(), k.view(), v.view());
    match &call.keys {
        Keys::Packed { starts } => {
            let kv_starts = starts.storage_and_layout();
            let kv_starts = numbers(Operand::KvStarts, starts, (&kv_starts.0, kv_starts.1))?;
            let kv_rows = PackedRows { longest: longest_k, ..PackedRows::new(Numbers::new(&kv_starts)) };
            with_slopes(&call.options, call.name(), heads, location, &attention, |options| {
                let out = &mut out_view;
                Ok(ferroflash_cudarc::forward_packed(options, &stream, q, k, v, q_rows, kv_rows, out, lse_view)
                    .map_err(Error::from)?)
            })?;
        }
        Keys::Paged { lengths, table } => {
            let (held, held_table) = (lengths.storage_and_layout(), table.storage_and_layout());
            let lengths = numbers(Operand::KvUsed, lengths, (&held.0, held.1))?;
            let pages = numbers(Operand::Pages, table, (&held_table.0, held_table.1))?;
            let width = table.dims()[1];
            let pages = Some(Pages { table: Numbers::new(&pages), width, stride: width });
            let rows = CacheRows { lengths: Some(Numbers::new(&lengths)), pages, ..CacheRows::default() };
            with_slopes(&call.options, call.name(), heads, location, &attention, |options| {
                let (q_rows, out) = (Some(q_rows), &mut out_view);
                Ok(ferroflash_cudarc::forward_cached(options, &stream, q, q_rows, k, v, rows, out, lse_view)
                    .map_err(Error::from)?)
            })?;
        }
    }
    let storage = CudaStorage::wrap_cuda_slice(out, device.clone());
    Ok((storage, lse.map(|lse| CudaStorage::wrap_cuda_slice(lse, device.clone()))))
}

/// The gradients of packed sequences with respect to q, k and v, contiguous. `kv_starts` are those of the call.
pub(crate) fn packed_backward(
    call: &Packed,
    kv_starts: &Tensor,
    inputs: Inputs<'_, CudaStorage>,
    lse: &CudaStorage,
) -> Result<[CudaStorage; 3]> {
    match inputs[0].0.dtype() {
        DType::F16 => typed_packed_backward::<ferroflash::f16>(call, kv_starts, inputs, lse),
        DType::BF16 => typed_packed_backward::<ferroflash::bf16>(call, kv_starts, inputs, lse),
        DType::F32 => typed_packed_backward::<f32>(call, kv_starts, inputs, lse),
        found => Err(Error::DType { op: call.name(), found }.into()),
    }
}

fn typed_packed_backward<T: Element + CudaDType + DeviceRepr + ValidAsZeroBits>(
    call: &Packed,
    kv_starts: &Tensor,
    [q, k, v, out, dout]: Inputs<'_, CudaStorage>,
    lse: &CudaStorage,
) -> Result<[CudaStorage; 3]> {
    let device = q.0.device();
    let elements = [q.1, k.1, v.1].map(|layout| at_least_one(layout.shape().elem_count()));
    let of = |operand, given| Part::<T>::of(call, operand, given);
    let (q, k, v) = (of(Operand::Q, q)?, of(Operand::K, k)?, of(Operand::V, v)?);
    let (out, dout) = (of(Operand::Out, out)?, of(Operand::Dout, dout)?);
    // Rows of no sequence are not written.
    let [dq, dk, dv] = elements.map(|elements| device.alloc_zeros::<T>(elements));
    let (mut dq, mut dk, mut dv) = (dq?, dk?, dv?);
    let contiguous = |slice, shape| ViewMut::contiguous(slice, shape, ferroflash::Layout::Bshd).map_err(Error::from);
    let into = ferroflash_cudarc::Gradients {
        dq: contiguous(&mut dq, q.shape)?,
        dk: contiguous(&mut dk, k.shape)?,
        dv: contiguous(&mut dv, v.shape)?,
        dsink: None,
    };
    let (location, q_held, kv_held) =
        (device.location(), call.q_starts.storage_and_layout(), kv_starts.storage_and_layout());
    let q_starts = numbers(call, location, Operand::QStarts, &call.q_starts, (&q_held.0, q_held.1))?;
    let kv_starts = numbers(call, location, Operand::KvStarts, kv_starts, (&kv_held.0, kv_held.1))?;
    let given = ferroflash_cudarc::BackwardInputs {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        out: out.view(),
        lse: lse.as_cuda_slice::<f32>()?,
        dout: dout.view(),
        dlse: None,
    };
    let [q_rows, kv_rows] = [&q_starts, &kv_starts].map(|starts| PackedRows::new(Numbers::new(starts)));
    let (attention, stream) = (call.attention(), device.cuda_stream());
    with_slopes(&call.options, call.name(), q.shape.heads, location, &attention, |options| {
        Ok(ferroflash_cudarc::backward_packed(options, &stream, given, q_rows, kv_rows, into).map_err(Error::from)?)
    })?;
    Ok([dq, dk, dv].map(|gradient| CudaStorage::wrap_cuda_slice(gradient, device.clone())))
}

/// Numbers of a contiguous tensor of candle's, which has to be where q is.
fn numbers<'a>(
    call: &Packed,
    lhs: DeviceLocation,
    operand: Operand,
    tensor: &Tensor,
    (storage, layout): (&'a Storage, &Layout),
) -> Result<CudaView<'a, i32>> {
    call.check_numbers(operand, tensor)?;
    let Storage::Cuda(storage) = storage else {
        let rhs = tensor.device().location();
        return Err(candle_core::Error::DeviceMismatchBinaryOp { lhs, rhs, op: call.name() }.bt());
    };
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    if storage.dtype() == DType::I32 {
        return Ok(storage.as_cuda_slice::<i32>()?.slice(range));
    }
    let unsigned = storage.as_cuda_slice::<u32>()?.slice(range);
    // SAFETY: every pattern of bits is a number of either type.
    let signed = unsafe { unsigned.transmute(layout.shape().elem_count()) };
    Ok(signed.expect("as many numbers of the same size"))
}

fn typed_backward<T: Element + CudaDType + DeviceRepr>(
    options: op::Options<'_>,
    op: &'static str,
    [q, k, v, out, dout]: Inputs<'_, CudaStorage>,
    lse: &CudaStorage,
) -> Result<[CudaStorage; 3]> {
    let device = q.0.device();
    let elements = [q.1, k.1, v.1].map(|layout| at_least_one(layout.shape().elem_count()));
    let (q, k, v) = (Part::<T>::new(op, Operand::Q, q)?, Part::new(op, Operand::K, k)?, Part::new(op, Operand::V, v)?);
    let (out, dout) = (Part::new(op, Operand::Out, out)?, Part::new(op, Operand::Dout, dout)?);
    let attention = options.options.attention(k.shape.rows);
    // SAFETY: the call below writes every element of the three, or fails, and then nobody reads one.
    let [dq, dk, dv] = elements.map(|elements| unsafe { device.alloc::<T>(elements) });
    let (mut dq, mut dk, mut dv) = (dq?, dk?, dv?);
    let contiguous = |slice, shape| ViewMut::contiguous(slice, shape, ferroflash::Layout::Bshd).map_err(Error::from);
    let into = ferroflash_cudarc::Gradients {
        dq: contiguous(&mut dq, q.shape)?,
        dk: contiguous(&mut dk, k.shape)?,
        dv: contiguous(&mut dv, v.shape)?,
        dsink: None,
    };
    let given = ferroflash_cudarc::BackwardInputs {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        out: out.view(),
        lse: lse.as_cuda_slice::<f32>()?,
        dout: dout.view(),
        dlse: None,
    };
    with_slopes_and_sinks(options, op, q.shape.heads, device.location(), &attention, |options| {
        Ok(ferroflash_cudarc::backward(options, &device.cuda_stream(), given, into).map_err(Error::from)?)
    })?;
    Ok([dq, dk, dv].map(|gradient| CudaStorage::wrap_cuda_slice(gradient, device.clone())))
}
