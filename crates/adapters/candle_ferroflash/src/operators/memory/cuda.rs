//! Tensors on a GPU: candle's slices and stream, given to ferroflash as they are.

use super::{Changed, Given, Memory, MemoryMut, View, Views, Wanted};
use crate::error::Error;
use candle_core::cuda_backend::{
    CudaDType,
    cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop},
};
use candle_core::{CudaDevice, CudaStorage, DType, Result, Storage};
use ferroflash::{BoolView, Device, Dims, IndicesView, Operand, Stream, TensorView, TensorViewMut};

/// Where a tensor of a call starts, how many elements of its slice there are from there on, and what records its use.
struct Place<'a> {
    address: u64,
    elements: usize,
    guard: SyncOnDrop<'a>,
}

/// A tensor that is written.
struct Written<'a> {
    operand: Operand,
    axes: (Dims, Dims),
    dtype: DType,
    place: Place<'a>,
}

pub(super) fn run(
    op: &'static str,
    device: &CudaDevice,
    given: &[Given<'_>],
    mut changed: Vec<Changed<'_>>,
    new: &[Wanted],
    call: impl for<'v> FnOnce(&Stream, &mut Views<'v>) -> ferroflash::Result<()>,
) -> Result<Vec<Storage>> {
    let stream = device.cuda_stream();
    let of_ours = ferroflash_cudarc::device(stream.context()).map_err(Error::from)?;
    let mut made = new.iter().map(|new| fresh(op, device, new)).collect::<Result<Vec<_>>>()?;
    {
        // The guards order the call with earlier and later work on the slices, and record it when they go.
        let read = given.iter().map(|given| place(op, given, &stream)).collect::<Result<Vec<_>>>()?;
        let mut outputs = Vec::with_capacity(changed.len() + new.len());
        for changed in &mut changed {
            let (operand, axes) = (changed.operand, changed.axes().map_err(Error::from)?);
            let (found, start) = (changed.memory.dtype(), changed.layout.start_offset());
            let MemoryMut::Cuda(storage) = &mut changed.memory else { unreachable!("one device, see above") };
            if !matches!(found, DType::F16 | DType::BF16 | DType::F32) {
                return Err(Error::ElementType { op, operand, found }.into());
            }
            outputs.push(Written { operand, axes, dtype: found, place: place_mut(storage, start, &stream)? });
        }
        for (new, made) in new.iter().zip(&mut made) {
            let (operand, axes, dtype) = (new.operand, new.axes().map_err(Error::from)?, new.dtype);
            outputs.push(Written { operand, axes, dtype, place: place_mut(made, 0, &stream)? });
        }
        let mut views = views(&of_ours, given, &read, &outputs).map_err(Error::from)?;
        // The waits of guards have no result of their own.
        stream.context().check_err().map_err(|error| Error::from(ferroflash_cudarc::Error::from(error)))?;
        // SAFETY: the stream is live and one of the primary context of the device; the handle is gone when this function returns, in the
        // thread that called it. Tensors of ferroflash's own are not used but for workspace, which its calls order with the stream.
        let on = unsafe { Stream::from_raw(&of_ours, stream.cu_stream().cast()) };
        call(&on, &mut views).map_err(Error::from)?;
        let written = outputs.into_iter().map(|output| output.place);
        drop(read.into_iter().chain(written).map(|place| place.guard).collect::<Vec<_>>());
    }
    Ok(made.into_iter().map(Storage::Cuda).collect())
}

fn views<'v>(
    device: &'v Device,
    given: &[Given<'_>],
    read: &[Place<'_>],
    written: &[Written<'_>],
) -> ferroflash::Result<Views<'v>> {
    let view = |(given, place): (&Given<'_>, &Place<'_>)| {
        if given.has_numbers() {
            let count = given.layout.shape().elem_count();
            assert!(count <= place.elements, "a tensor of candle's ends in its storage");
            // SAFETY: the slice has that many numbers of 32 bits from the address on, and its guard is held for as long as the views are used;
            // every pattern of bits is a number of either type.
            return Ok((given.operand, View::Numbers(unsafe { IndicesView::from_raw(device, place.address, count) }?)));
        }
        let (shape, strides) = given.axes()?;
        if given.has_booleans() {
            // SAFETY: the slice has that many bytes from the address on, in the primary context of the device, and its guard is held for as long as
            // the views are used; a byte that is not 0 is true.
            let view = unsafe { BoolView::from_raw(device, place.address, place.elements, shape, strides) }?;
            return Ok((given.operand, View::Booleans(view)));
        }
        let dtype = element(given.memory.dtype());
        // SAFETY: the slice has that many elements from the address on, in the primary context of the device, and its guard is held for as
        // long as the views are used.
        let view = unsafe { TensorView::from_raw(device, place.address, place.elements, shape, strides, dtype) }?;
        Ok((given.operand, View::Tensor(view)))
    };
    let view_mut = |&Written { operand, axes: (shape, strides), dtype, ref place }: &Written<'_>| {
        let (address, elements, dtype) = (place.address, place.elements, element(dtype));
        // SAFETY: as for what is read, and the slice is borrowed mutably.
        Ok((operand, unsafe { TensorViewMut::from_raw(device, address, elements, shape, strides, dtype) }?))
    };
    Ok(Views {
        given: given.iter().zip(read).map(view).collect::<ferroflash::Result<_>>()?,
        made: written.iter().map(view_mut).collect::<ferroflash::Result<_>>()?,
    })
}

/// An element type that `place` or `fresh` has accepted.
fn element(dtype: DType) -> ferroflash::DType {
    match dtype {
        DType::F16 => ferroflash::DType::F16,
        DType::BF16 => ferroflash::DType::Bf16,
        _ => ferroflash::DType::F32,
    }
}

/// Memory of a new tensor, which is not written yet.
fn fresh(op: &'static str, device: &CudaDevice, Wanted { operand, dtype, layout }: &Wanted) -> Result<CudaStorage> {
    fn of<T: CudaDType + DeviceRepr>(device: &CudaDevice, elements: usize) -> Result<CudaStorage> {
        // SAFETY: the call writes every element, or fails, and then nobody reads one.
        let slice = unsafe { device.alloc::<T>(elements) }?;
        Ok(CudaStorage::wrap_cuda_slice(slice, device.clone()))
    }
    // The driver does not allocate 0 elements.
    let elements = layout.shape().elem_count().max(1);
    match *dtype {
        DType::F16 => of::<ferroflash::f16>(device, elements),
        DType::BF16 => of::<ferroflash::bf16>(device, elements),
        DType::F32 => of::<f32>(device, elements),
        found => Err(Error::ElementType { op, operand: *operand, found }.into()),
    }
}

fn place<'a>(op: &'static str, given: &Given<'a>, stream: &'a CudaStream) -> Result<Place<'a>> {
    fn of<'a, T: CudaDType + 'a>(storage: &'a CudaStorage, start: usize, stream: &'a CudaStream) -> Result<Place<'a>> {
        let slice = storage.as_cuda_slice::<T>()?;
        let (address, guard) = slice.device_ptr(stream);
        let elements = slice.len().saturating_sub(start);
        Ok(Place { address: address + (start * size_of::<T>()) as u64, elements, guard })
    }
    let Memory::Cuda(storage) = given.memory else { unreachable!("all tensors of the call are on one device") };
    let (operand, found, start): (Operand, _, _) = (given.operand, given.memory.dtype(), given.layout.start_offset());
    match (given.has_numbers(), found) {
        (true, DType::U32) => of::<u32>(storage, start, stream),
        (true, DType::I32) => of::<i32>(storage, start, stream),
        (true, _) => Err(Error::Numbers { op, operand, found }.into()),
        (false, DType::F16) => of::<ferroflash::f16>(storage, start, stream),
        (false, DType::BF16) => of::<ferroflash::bf16>(storage, start, stream),
        (false, DType::F32) => of::<f32>(storage, start, stream),
        (false, DType::U8) if given.has_booleans() => of::<u8>(storage, start, stream),
        (false, _) => Err(given.unaccepted(op).into()),
    }
}

fn place_mut<'a>(storage: &'a mut CudaStorage, start: usize, stream: &'a CudaStream) -> Result<Place<'a>> {
    fn of<'a, T: CudaDType + 'a>(
        storage: &'a mut CudaStorage,
        start: usize,
        stream: &'a CudaStream,
    ) -> Result<Place<'a>> {
        let slice = storage.as_cuda_slice_mut::<T>()?;
        let elements = slice.len().saturating_sub(start);
        let (address, guard) = slice.device_ptr_mut(stream);
        Ok(Place { address: address + (start * size_of::<T>()) as u64, elements, guard })
    }
    match candle_core::backend::BackendStorage::dtype(storage) {
        DType::F16 => of::<ferroflash::f16>(storage, start, stream),
        DType::BF16 => of::<ferroflash::bf16>(storage, start, stream),
        _ => of::<f32>(storage, start, stream),
    }
}

/// A copy of these i32, as u32 with the same bits.
pub(super) fn unsigned(storage: &CudaStorage, range: std::ops::Range<usize>) -> Result<CudaStorage> {
    let (device, count) = (&storage.device, range.len());
    let signed = storage.as_cuda_slice::<i32>()?.slice(range);
    // SAFETY: every pattern of bits is a number of either type.
    let same = unsafe { signed.transmute::<u32>(count) }.expect("as many numbers of the same size");
    let mut copy = device.alloc_zeros::<u32>(count.max(1))?;
    device.memcpy_dtod(&same, &mut copy.slice_mut(..count))?;
    Ok(CudaStorage::wrap_cuda_slice(copy, device.clone()))
}
