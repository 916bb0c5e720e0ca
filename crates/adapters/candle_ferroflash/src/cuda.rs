//! Tensors on a GPU: candle's slices and stream, given to ferroflash as they are.

use crate::FlashAttn;
use crate::differentiable::Inputs;
use crate::error::Error;
use crate::op::heads;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{
    CudaDType,
    cudarc::driver::{CudaView, DeviceRepr},
};
use candle_core::{CudaStorage, DType, Layout, Result};
use ferroflash::{Element, Operand, Shape, Strides};
use ferroflash_cudarc::{View, ViewMut};

/// The result, and the log-sum-exp if it is wanted.
pub(crate) fn forward(
    options: &FlashAttn,
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
    options: &FlashAttn,
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

    fn view(&self) -> View<'_, T> {
        View::new(&self.data, self.shape, self.strides)
    }
}

/// The driver does not allocate 0 elements. ferroflash refuses a q without any, and writes none of such keys.
fn at_least_one(elements: usize) -> usize {
    elements.max(1)
}

fn typed<T: Element + CudaDType + DeviceRepr>(
    options: &FlashAttn,
    op: &'static str,
    [q, k, v]: [(&CudaStorage, &Layout); 3],
    with_lse: bool,
) -> Result<(CudaStorage, Option<CudaStorage>)> {
    let (device, elements) = (q.0.device(), q.1.shape().elem_count());
    let (q, k, v) = (Part::<T>::new(op, Operand::Q, q)?, Part::new(op, Operand::K, k)?, Part::new(op, Operand::V, v)?);
    let attention = options.attention(op, k.shape.rows)?;
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
    ferroflash_cudarc::forward(&attention, &stream, q.view(), k.view(), v.view(), &mut out_view, lse_view)
        .map_err(Error::from)?;
    let storage = CudaStorage::wrap_cuda_slice(out, device.clone());
    Ok((storage, lse.map(|lse| CudaStorage::wrap_cuda_slice(lse, device.clone()))))
}

fn typed_backward<T: Element + CudaDType + DeviceRepr>(
    options: &FlashAttn,
    op: &'static str,
    [q, k, v, out, dout]: Inputs<'_, CudaStorage>,
    lse: &CudaStorage,
) -> Result<[CudaStorage; 3]> {
    let device = q.0.device();
    let elements = [q.1, k.1, v.1].map(|layout| at_least_one(layout.shape().elem_count()));
    let (q, k, v) = (Part::<T>::new(op, Operand::Q, q)?, Part::new(op, Operand::K, k)?, Part::new(op, Operand::V, v)?);
    let (out, dout) = (Part::new(op, Operand::Out, out)?, Part::new(op, Operand::Dout, dout)?);
    let attention = options.attention(op, k.shape.rows)?;
    // SAFETY: the call below writes every element of the three, or fails, and then nobody reads one.
    let [dq, dk, dv] = elements.map(|elements| unsafe { device.alloc::<T>(elements) });
    let (mut dq, mut dk, mut dv) = (dq?, dk?, dv?);
    let contiguous = |slice, shape| ViewMut::contiguous(slice, shape, ferroflash::Layout::Bshd).map_err(Error::from);
    let into = ferroflash_cudarc::Gradients {
        dq: contiguous(&mut dq, q.shape)?,
        dk: contiguous(&mut dk, k.shape)?,
        dv: contiguous(&mut dv, v.shape)?,
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
    ferroflash_cudarc::backward(&attention, &device.cuda_stream(), given, into).map_err(Error::from)?;
    Ok([dq, dk, dv].map(|gradient| CudaStorage::wrap_cuda_slice(gradient, device.clone())))
}
