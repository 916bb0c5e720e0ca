//! Tensors on the CPU: an error, unless the emulator is asked for.

use crate::FlashAttn;
use crate::error::Error;
use candle_core::{CpuStorage, Layout, Result, Shape};
use std::sync::atomic::{AtomicU8, Ordering};

/// What [`emulate_cpu`] said last.
static ASKED: AtomicU8 = AtomicU8::new(UNSAID);
const UNSAID: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;

/// Whether the functions of this crate take tensors on the CPU from now on, in the whole process, and compute them with the GPU's kernels
/// in ferroflash's emulator. For tests and for machines without a GPU: it checks every memory access and is thousands of times slower than
/// a GPU.
///
/// Until this is called, the environment variable `CANDLE_FERROFLASH_CPU` decides: `emulator` is yes; without it, tensors on the CPU are
/// [`Error::CpuTensors`], as they are an error of candle-flash-attn.
pub fn emulate_cpu(yes: bool) {
    ASKED.store(if yes { YES } else { NO }, Ordering::Relaxed);
}

/// Whether the emulator was asked for.
fn is_asked() -> crate::error::Result<bool> {
    match ASKED.load(Ordering::Relaxed) {
        UNSAID => match std::env::var_os("CANDLE_FERROFLASH_CPU") {
            None => Ok(false),
            Some(value) if value == "emulator" => Ok(true),
            Some(value) => Err(Error::CpuVariable { found: value.to_string_lossy().into_owned() }),
        },
        asked => Ok(asked == YES),
    }
}

pub(crate) fn forward(
    options: &FlashAttn,
    op: &'static str,
    tensors: [(&CpuStorage, &Layout); 3],
) -> Result<(CpuStorage, Shape)> {
    if !is_asked()? {
        return Err(Error::CpuTensors { op }.into());
    }
    emulate(options, op, tensors)
}

#[cfg(not(feature = "emulator"))]
fn emulate(_: &FlashAttn, op: &'static str, _: [(&CpuStorage, &Layout); 3]) -> Result<(CpuStorage, Shape)> {
    Err(Error::NoEmulator { op }.into())
}

#[cfg(feature = "emulator")]
use emulator::emulate;

#[cfg(feature = "emulator")]
mod emulator {
    use super::*;
    use crate::op::heads;
    use candle_core::{DType, WithDType, backend::BackendStorage};
    use ferroflash::{Device, Element, Operand, Tensor, TensorView};
    use std::sync::OnceLock;

    /// The emulator of this process.
    fn device() -> crate::error::Result<&'static Device> {
        static DEVICE: OnceLock<Device> = OnceLock::new();
        if let Some(device) = DEVICE.get() {
            return Ok(device);
        }
        let device = Device::emulator()?;
        Ok(DEVICE.get_or_init(|| device))
    }

    pub(super) fn emulate(
        options: &FlashAttn,
        op: &'static str,
        tensors: [(&CpuStorage, &Layout); 3],
    ) -> Result<(CpuStorage, Shape)> {
        match tensors[0].0.dtype() {
            DType::F16 => typed::<ferroflash::f16>(options, op, tensors),
            DType::BF16 => typed::<ferroflash::bf16>(options, op, tensors),
            DType::F32 => typed::<f32>(options, op, tensors),
            found => Err(Error::DType { op, found }.into()),
        }
    }

    fn typed<T: Element + WithDType>(
        options: &FlashAttn,
        op: &'static str,
        [(q, q_l), (k, k_l), (v, v_l)]: [(&CpuStorage, &Layout); 3],
    ) -> Result<(CpuStorage, Shape)> {
        let slice = T::cpu_storage_as_slice;
        let out = compute::<T>(options, op, [(slice(q)?, q_l), (slice(k)?, k_l), (slice(v)?, v_l)])?;
        Ok((T::to_cpu_storage_owned(out), q_l.shape().clone()))
    }

    /// The elements of the result in logical order.
    fn compute<T: Element>(
        options: &FlashAttn,
        op: &'static str,
        [q, k, v]: [(&[T], &Layout); 3],
    ) -> crate::error::Result<Vec<T>> {
        let device = device()?;
        let (q_heads, k_heads) = (heads(op, Operand::Q, q.1)?, heads(op, Operand::K, k.1)?);
        let v_heads = heads(op, Operand::V, v.1)?;
        let attention = options.attention(op, k_heads.0.rows)?;
        let (q, k, v) = (copy(device, q)?, copy(device, k)?, copy(device, v)?);
        let view = |copy: &Tensor, (shape, strides): (ferroflash::Shape, ferroflash::Strides)| {
            // SAFETY: the copy has as many elements as it says, and lives longer than the view.
            unsafe { TensorView::from_raw(device, copy.address(), copy.shape()[0], shape, strides, T::DTYPE) }
        };
        let (q, k, v) = (view(&q, q_heads)?, view(&k, k_heads)?, view(&v, v_heads)?);
        let mut out = Tensor::uninit(device, T::DTYPE, q_heads.0, ferroflash::Layout::Bshd)?;
        attention.forward_into(&device.default_stream(), &q, &k, &v, &mut out.view_mut(), None)?;
        Ok(out.to_vec()?)
    }

    /// What the layout reaches of its storage, in the emulator's memory: the tensor there has the same strides.
    fn copy<T: Element>(device: &Device, (data, layout): (&[T], &Layout)) -> crate::error::Result<Tensor> {
        let axes = layout.dims().iter().zip(layout.stride());
        let reached = match layout.dims().contains(&0) {
            true => 0,
            false => 1 + axes.map(|(extent, stride)| (extent - 1) * stride).sum::<usize>(),
        };
        let data = &data[layout.start_offset()..][..reached];
        Ok(Tensor::from_slice(device, data, [reached], ferroflash::Layout::RowMajor)?)
    }
}
