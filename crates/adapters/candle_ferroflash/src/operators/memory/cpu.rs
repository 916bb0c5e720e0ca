//! Tensors on the CPU: copies of them in the emulator's memory.

use super::{Changed, Given, Memory, MemoryMut, View, Views, Wanted};
use crate::cpu::memory::{Copy, device, reached};
use crate::error::{Error, Result};
use candle_core::{CpuStorage, DType, Storage, WithDType};
use ferroflash::{BoolTensor, Dims, Element, Indices, Stream, Tensor};

/// What is given, in the emulator's memory.
enum Held {
    Tensor(Box<Copy>),
    Numbers(Indices),
    /// With the shape and strides of its view.
    Booleans(Box<(BoolTensor, Dims, Dims)>),
}

impl Held {
    fn new(op: &'static str, given: &Given<'_>) -> Result<Held> {
        #[cfg_attr(not(feature = "cuda"), expect(clippy::infallible_destructuring_match, reason = "not with GPUs"))]
        let storage = match given.memory {
            Memory::Cpu(storage) => storage,
            #[cfg(feature = "cuda")]
            Memory::Cuda(_) => unreachable!("all tensors of the call are on one device"),
        };
        let operand = given.operand;
        if given.has_numbers() {
            let range = given.layout.start_offset()..given.layout.start_offset() + given.layout.shape().elem_count();
            let numbers = match storage {
                CpuStorage::U32(data) => data[range].iter().map(|&number| number as i32).collect(),
                CpuStorage::I32(data) => data[range].to_vec(),
                _ => return Err(Error::Numbers { op, operand, found: given.memory.dtype() }),
            };
            return Ok(Held::Numbers(Indices::from_slice(device()?, &numbers)?));
        }
        let (layout, axes) = (given.layout, given.axes()?);
        if let (true, CpuStorage::U8(data)) = (given.has_booleans(), storage) {
            let data = &data[layout.start_offset()..][..reached(layout)];
            let booleans = BoolTensor::from_bytes(device()?, data, [data.len()])?;
            return Ok(Held::Booleans(Box::new((booleans, axes.0, axes.1))));
        }
        Ok(Held::Tensor(Box::new(match storage {
            CpuStorage::F16(data) => Copy::of(data, layout, axes)?,
            CpuStorage::BF16(data) => Copy::of(data, layout, axes)?,
            CpuStorage::F32(data) => Copy::of(data, layout, axes)?,
            _ => return Err(given.unaccepted(op)),
        })))
    }

    fn view(&self) -> Result<View<'_>> {
        Ok(match self {
            Held::Tensor(copy) => View::Tensor(copy.view()?),
            Held::Numbers(numbers) => View::Numbers(numbers.view()),
            Held::Booleans(held) => {
                let (booleans, shape, strides) = &**held;
                View::Booleans(booleans.strided(0, *shape, *strides)?)
            }
        })
    }
}

pub(super) fn run(
    op: &'static str,
    given: &[Given<'_>],
    mut changed: Vec<Changed<'_>>,
    new: &[Wanted],
    call: impl for<'v> FnOnce(&Stream, &mut Views<'v>) -> ferroflash::Result<()>,
) -> Result<Vec<Storage>> {
    let device = device()?;
    let held = given.iter().map(|given| Ok((given.operand, Held::new(op, given)?))).collect::<Result<Vec<_>>>()?;
    let fresh = |new: &Wanted| {
        let (shape, _) = new.axes()?;
        Ok(Tensor::uninit(device, element(op, new)?, shape, ferroflash::Layout::RowMajor)?)
    };
    let mut made = new.iter().map(fresh).collect::<Result<Vec<_>>>()?;
    let mut copies = changed.iter().map(|changed| copy(op, changed)).collect::<Result<Vec<_>>>()?;
    let given = held.iter().map(|(operand, held)| Ok((*operand, held.view()?))).collect::<Result<Vec<_>>>()?;
    let overwritten = changed.iter().zip(&mut copies).map(|(changed, copy)| Ok((changed.operand, copy.view_mut()?)));
    let mut outputs = overwritten.collect::<Result<Vec<_>>>()?;
    outputs.extend(new.iter().zip(&mut made).map(|(new, tensor)| (new.operand, tensor.view_mut())));
    call(&device.default_stream(), &mut Views { given, made: outputs })?;
    for (changed, copy) in changed.iter_mut().zip(&copies) {
        put_back(changed, copy)?;
    }
    new.iter().zip(&made).map(|(new, tensor)| storage(new.dtype, tensor)).collect()
}

/// The element type of a new tensor: that of one that is given, or f32.
fn element(op: &'static str, new: &Wanted) -> Result<ferroflash::DType> {
    match new.dtype {
        DType::F16 => Ok(ferroflash::DType::F16),
        DType::BF16 => Ok(ferroflash::DType::Bf16),
        DType::F32 => Ok(ferroflash::DType::F32),
        found => Err(Error::ElementType { op, operand: new.operand, found }),
    }
}

fn storage(dtype: DType, tensor: &Tensor) -> Result<Storage> {
    fn of<T: Element + WithDType>(tensor: &Tensor) -> Result<Storage> {
        Ok(Storage::Cpu(T::to_cpu_storage_owned(tensor.to_vec::<T>()?)))
    }
    match dtype {
        DType::F16 => of::<ferroflash::f16>(tensor),
        DType::BF16 => of::<ferroflash::bf16>(tensor),
        _ => of::<f32>(tensor),
    }
}

/// A tensor that is overwritten, in the emulator's memory.
fn copy(op: &'static str, changed: &Changed<'_>) -> Result<Copy> {
    let (layout, axes) = (changed.layout, changed.axes()?);
    match &changed.memory {
        MemoryMut::Cpu(CpuStorage::F16(data)) => Copy::of(data, layout, axes),
        MemoryMut::Cpu(CpuStorage::BF16(data)) => Copy::of(data, layout, axes),
        MemoryMut::Cpu(CpuStorage::F32(data)) => Copy::of(data, layout, axes),
        _ => Err(Error::ElementType { op, operand: changed.operand, found: changed.memory.dtype() }),
    }
}

/// What has become of it, where it was.
fn put_back(changed: &mut Changed<'_>, copy: &Copy) -> Result<()> {
    let start = changed.layout.start_offset();
    match &mut changed.memory {
        MemoryMut::Cpu(CpuStorage::F16(data)) => copy.put_back(&mut data[start..]),
        MemoryMut::Cpu(CpuStorage::BF16(data)) => copy.put_back(&mut data[start..]),
        MemoryMut::Cpu(CpuStorage::F32(data)) => copy.put_back(&mut data[start..]),
        _ => unreachable!("`copy` has refused it"),
    }
}
