//! Tensors on a GPU: candle's slices and stream, given to ferroflash as they are.

use crate::FlashAttn;
use crate::error::Error;
use crate::op::heads;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaDType, cudarc::driver::DeviceRepr};
use candle_core::{CudaStorage, DType, Layout, Result, Shape};
use ferroflash::{Element, Operand};
use ferroflash_cudarc::{View, ViewMut};

pub(crate) fn forward(
    options: &FlashAttn,
    op: &'static str,
    tensors: [(&CudaStorage, &Layout); 3],
) -> Result<(CudaStorage, Shape)> {
    match tensors[0].0.dtype() {
        DType::F16 => typed::<ferroflash::f16>(options, op, tensors),
        DType::BF16 => typed::<ferroflash::bf16>(options, op, tensors),
        DType::F32 => typed::<f32>(options, op, tensors),
        found => Err(Error::DType { op, found }.into()),
    }
}

fn typed<T: Element + CudaDType + DeviceRepr>(
    options: &FlashAttn,
    op: &'static str,
    [(q, q_l), (k, k_l), (v, v_l)]: [(&CudaStorage, &Layout); 3],
) -> Result<(CudaStorage, Shape)> {
    let device = q.device();
    let (q_heads, k_heads) = (heads(op, Operand::Q, q_l)?, heads(op, Operand::K, k_l)?);
    let v_heads = heads(op, Operand::V, v_l)?;
    let attention = options.attention(op, k_heads.0.rows)?;
    let q = q.as_cuda_slice::<T>()?.slice(q_l.start_offset()..);
    let k = k.as_cuda_slice::<T>()?.slice(k_l.start_offset()..);
    let v = v.as_cuda_slice::<T>()?.slice(v_l.start_offset()..);
    // The driver does not allocate 0 elements; ferroflash refuses such a q.
    let elements = q_l.shape().elem_count().max(1);
    // SAFETY: the call below writes every element, or fails, and then nobody reads one.
    let mut out = unsafe { device.alloc::<T>(elements) }?;
    let mut out_view = ViewMut::contiguous(&mut out, q_heads.0, ferroflash::Layout::Bshd).map_err(Error::from)?;
    ferroflash_cudarc::forward(
        &attention,
        &device.cuda_stream(),
        View::new(&q, q_heads.0, q_heads.1),
        View::new(&k, k_heads.0, k_heads.1),
        View::new(&v, v_heads.0, v_heads.1),
        &mut out_view,
        None,
    )
    .map_err(Error::from)?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), q_l.shape().clone()))
}
