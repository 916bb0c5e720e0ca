//! Tensors on the CPU: the GPU's kernels in ferroflash's emulator, on copies in its memory.

use crate::blocks::found_by;
use crate::call::{Call, Memory, Options, Tensor};
use crate::errors;
use crate::gradients::Backward;
use crate::merge;
use crate::packed_gradients::{self, PackedBackward};
use crate::program::{Elements, OnScores};
use crate::sequences::{self, Numbers, TENSORS};
use ferroflash::score::{FoundBlocks, ScoreShape};
use ferroflash::{DType, Device, Element, Indices, Layout, Lse, Operand, TensorView, TensorViewMut, bf16, f16};
use pyo3::prelude::*;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Says once in the life of a process how slow this is.
pub(crate) fn warn(py: Python<'_>) -> PyResult<()> {
    static SAID: AtomicBool = AtomicBool::new(false);
    if SAID.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let message = c"tensors on the CPU are computed by ferroflash's emulator of the GPU, which checks every memory access: for tests, and \
                    thousands of times slower than a GPU";
    PyErr::warn(py, errors::class(py, "EmulatorWarning")?.as_any(), message, 2)
}

/// The emulator of this process.
pub(crate) fn device() -> ferroflash::Result<&'static Device> {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    if let Some(device) = DEVICE.get() {
        return Ok(device);
    }
    let device = Device::emulator()?;
    Ok(DEVICE.get_or_init(|| device))
}

/// Computes a call whose tensors are in the memory of this process.
pub(crate) fn forward(options: &Options, call: &Call) -> ferroflash::Result<()> {
    let device = device()?;
    // SAFETY: these views are compared and planned with, and never launched with.
    let (q, k, v, out) =
        unsafe { (call.q.view(device)?, call.k.view(device)?, call.v.view(device)?, call.out.view(device)?) };
    // Nothing of the tensors is read before they fit together.
    options.with_attention(device, |attention| attention.plan_for(&q, &k, &v, Some(&out)))?;
    match call.q.dtype {
        DType::F16 => typed::<f16>(device, options, call),
        DType::Bf16 => typed::<bf16>(device, options, call),
        _ => typed::<f32>(device, options, call),
    }
}

fn typed<T: Element>(device: &Device, options: &Options, call: &Call) -> ferroflash::Result<()> {
    let (q, k, v) = (copy::<T>(device, &call.q)?, copy::<T>(device, &call.k)?, copy::<T>(device, &call.v)?);
    let (q, k, v) = (view(&q, &call.q)?, view(&k, &call.k)?, view(&v, &call.v)?);
    let Tensor { shape, strides, .. } = call.out;
    let (elements, memory) = (reached(&call.out), ferroflash::Tensor::uninit);
    let out = memory(device, T::DTYPE, [elements], Layout::RowMajor)?;
    // SAFETY: the memory is this function's own, and has as many elements as it says.
    let mut out = unsafe { TensorViewMut::from_raw(device, out.address(), elements, shape, strides, T::DTYPE) }?;
    let lse_shape = call.lse_shape();
    let mut lse = lse_shape.map(|(_, _, shape)| Lse::uninit(device, shape)).transpose()?;
    let mut lse_view = lse.as_mut().map(Lse::view_mut);
    let stream = device.default_stream();
    with_copies(device, options, |options| {
        options.with_attention(device, |attention| {
            attention.forward_into(&stream, &q, &k, &v, &mut out, lse_view.as_mut())
        })
    })?;

    write::<T>(&call.out, &out.view().to_vec()?);
    if let (Some(tensor), Some(lse)) = (&call.lse, &lse) {
        write::<f32>(tensor, &lse.to_vec()?);
    }
    Ok(())
}

/// Computes a backward pass whose tensors are in the memory of this process.
pub(crate) fn backward(options: &Options, call: &Backward) -> ferroflash::Result<()> {
    let device = device()?;
    // Nothing of the tensors is read before they fit together.
    options.with_attention(device, |attention| call.plan(device, attention))?;
    match call.q.dtype {
        DType::F16 => typed_backward::<f16>(device, options, call),
        DType::Bf16 => typed_backward::<bf16>(device, options, call),
        _ => typed_backward::<f32>(device, options, call),
    }
}

fn typed_backward<T: Element>(device: &Device, options: &Options, call: &Backward) -> ferroflash::Result<()> {
    // The same call on tensors in the emulator's memory, which `kept` owns.
    let mut kept = Vec::new();
    let mut moved = |tensor: &Tensor, memory: ferroflash::Tensor| {
        let moved = Tensor { address: memory.address(), ..*tensor };
        kept.push(memory);
        moved
    };
    let uninit = |tensor| ferroflash::Tensor::uninit(device, T::DTYPE, [reached(tensor)], Layout::RowMajor);
    let there = Backward {
        q: moved(&call.q, copy::<T>(device, &call.q)?),
        k: moved(&call.k, copy::<T>(device, &call.k)?),
        v: moved(&call.v, copy::<T>(device, &call.v)?),
        out: moved(&call.out, copy::<T>(device, &call.out)?),
        lse: moved(&call.lse, copy::<f32>(device, &call.lse)?),
        dout: moved(&call.dout, copy::<T>(device, &call.dout)?),
        dlse: call
            .dlse
            .map(|dlse| Ok::<_, ferroflash::Error>(moved(&dlse, copy::<f32>(device, &dlse)?)))
            .transpose()?,
        dq: moved(&call.dq, uninit(&call.dq)?),
        dk: moved(&call.dk, uninit(&call.dk)?),
        dv: moved(&call.dv, uninit(&call.dv)?),
        dsink: call
            .dsink
            .map(|dsink| Ok::<_, ferroflash::Error>(moved(&dsink, copy::<f32>(device, &dsink)?)))
            .transpose()?,
    };
    let stream = device.default_stream();
    with_copies(device, options, |options| {
        options.with_attention(device, |attention| there.launch(device, &stream, attention))
    })?;
    for (to, from) in [(&call.dq, &there.dq), (&call.dk, &there.dk), (&call.dv, &there.dv)] {
        // SAFETY: the memory has as many elements as the tensor reaches.
        write::<T>(to, &unsafe { from.view(device) }?.to_vec()?);
    }
    call.dsink.iter().zip(&there.dsink).try_for_each(|(to, from)| write_any(device, to, from))
}

/// Computes a call over sequences whose tensors and numbers are in the memory of this process.
pub(crate) fn sequences(options: &Options, call: &sequences::Call) -> ferroflash::Result<()> {
    let device = device()?;
    // Nothing of the tensors is read before they fit together.
    options.with_attention(device, |attention| call.plan(device, attention))?;
    // The same call on memory of the emulator, which these own.
    let (mut tensors, mut numbers) = (Vec::new(), Vec::new());
    let mut there = *call;
    for tensor in there.tensors.iter_mut().flatten() {
        // What is written is copied, too: rows of no sequence stay as they are.
        let memory = copy_any(device, tensor)?;
        tensor.address = memory.address();
        tensors.push(memory);
    }
    for array in there.numbers.iter_mut().flatten() {
        let memory = copy_numbers(device, array)?;
        array.address = memory.view().address();
        numbers.push(memory);
    }
    let stream = device.default_stream();
    with_copies(device, options, |options| {
        options.with_attention(device, |attention| there.launch(device, &stream, attention))
    })?;
    let is_written = |operand| match operand {
        Operand::Out | Operand::Lse => true,
        Operand::K | Operand::V => call.appends(),
        _ => false,
    };
    for operand in TENSORS.into_iter().filter(|&operand| is_written(operand)) {
        let (Some(to), Some(from)) = (call.tensor(operand), there.tensor(operand)) else { continue };
        write_any(device, &to, &from)?;
    }
    Ok(())
}

/// Computes a merge whose tensors are in the memory of this process.
pub(crate) fn merge(call: &merge::Call) -> ferroflash::Result<()> {
    let device = device()?;
    // Nothing of the tensors is read before they fit together.
    call.plan(device)?;
    // The same call on memory of the emulator, which `kept` owns.
    let (mut kept, mut there) = (Vec::new(), call.clone());
    let parts = there.parts.iter_mut().flat_map(|(out, lse)| [out, lse]);
    for tensor in parts.chain([&mut there.out]).chain(&mut there.lse) {
        let memory = copy_any(device, tensor)?;
        tensor.address = memory.address();
        kept.push(memory);
    }
    there.launch(device, &device.default_stream())?;
    let outputs = [(Some(&call.out), Some(&there.out)), (call.lse.as_ref(), there.lse.as_ref())];
    outputs.into_iter().filter_map(|(to, from)| to.zip(from)).try_for_each(|(to, from)| write_any(device, to, from))
}

/// Computes a backward pass over packed sequences whose tensors and numbers are in the memory of this process.
pub(crate) fn packed_backward(options: &Options, call: &PackedBackward) -> ferroflash::Result<()> {
    let device = device()?;
    // Nothing of the tensors is read before they fit together.
    options.with_attention(device, |attention| call.plan(device, attention))?;
    // The same call on memory of the emulator, which these own.
    let (mut tensors, mut numbers) = (Vec::new(), Vec::new());
    let mut there = *call;
    for tensor in there.tensors.iter_mut().flatten() {
        // What is written is copied, too: rows of no sequence stay as they are.
        let memory = copy_any(device, tensor)?;
        tensor.address = memory.address();
        tensors.push(memory);
    }
    for array in there.numbers.iter_mut().flatten() {
        let memory = copy_numbers(device, array)?;
        array.address = memory.view().address();
        numbers.push(memory);
    }
    let stream = device.default_stream();
    with_copies(device, options, |options| {
        options.with_attention(device, |attention| there.launch(device, &stream, attention))
    })?;
    for operand in packed_gradients::TENSORS.into_iter().filter(|&operand| packed_gradients::is_written(operand)) {
        let (Some(to), Some(from)) = (call.tensor(operand), there.tensor(operand)) else { continue };
        write_any(device, &to, &from)?;
    }
    Ok(())
}

/// The blocks of a program whose tensors are in the memory of this process, in the emulator's.
pub(crate) fn find_blocks(program: &OnScores, shape: ScoreShape) -> ferroflash::Result<FoundBlocks> {
    let device = device()?;
    let options = Options { program: Some(program.clone()), ..Options::default() };
    with_copies(device, &options, |options| found_by(options.program.as_ref().expect("given above"), device, shape))
}

/// Runs `call` with the same options, the program's tensors and the sinks in the emulator's memory.
fn with_copies<R>(
    device: &Device,
    options: &Options,
    call: impl FnOnce(&Options) -> ferroflash::Result<R>,
) -> ferroflash::Result<R> {
    let (mut tensors, mut numbers, mut there) = (Vec::new(), Vec::new(), options.clone());
    if let Some(sink) = &mut there.sink {
        tensors.push(copy_any(device, sink)?);
        sink.address = tensors[0].address();
    }
    for (_, memory) in there.program.iter_mut().flat_map(|program| &mut program.tensors) {
        memory.address = match memory.dtype {
            Elements::Floats(dtype) => {
                tensors.push(copy_any(device, &memory.of(dtype))?);
                tensors[tensors.len() - 1].address()
            }
            Elements::Ints => {
                // Without gaps, so that they are as good as one axis.
                let flat = Memory { shape: [memory.elements()].into(), strides: [1].into(), ..*memory };
                numbers.push(copy_numbers(device, &flat.of(sequences::Int32))?);
                numbers[numbers.len() - 1].view().address()
            }
        };
    }
    call(&there)
}

/// [`copy`], of elements of any type.
fn copy_any(device: &Device, tensor: &Tensor) -> ferroflash::Result<ferroflash::Tensor> {
    match tensor.dtype {
        DType::F16 => copy::<f16>(device, tensor),
        DType::Bf16 => copy::<bf16>(device, tensor),
        _ => copy::<f32>(device, tensor),
    }
}

/// Writes what a tensor of the emulator holds to one of this process, whatever the type.
fn write_any(device: &Device, to: &Tensor, from: &Tensor) -> ferroflash::Result<()> {
    // SAFETY: the memory has as many elements as the tensor reaches.
    let from = unsafe { from.view(device) }?;
    match to.dtype {
        DType::F16 => write::<f16>(to, &from.to_vec()?),
        DType::Bf16 => write::<bf16>(to, &from.to_vec()?),
        _ => write::<f32>(to, &from.to_vec()?),
    }
    Ok(())
}

fn copy_numbers(device: &Device, numbers: &Numbers) -> ferroflash::Result<Indices> {
    let data = match sequences::reached(numbers) {
        0 => &[],
        // SAFETY: as in `copy`.
        count => unsafe {
            std::slice::from_raw_parts(std::ptr::with_exposed_provenance(numbers.address as usize), count)
        },
    };
    Indices::from_slice(device, data)
}

/// Elements from the first to one past the last; that the arithmetic fits was checked with the view.
fn reached(tensor: &Tensor) -> usize {
    if tensor.shape.contains(&0) {
        return 0;
    }
    1 + tensor.shape.iter().zip(tensor.strides.iter()).map(|(extent, stride)| (extent - 1) * stride).sum::<usize>()
}

/// What the tensor reaches of its memory, in the emulator's: a tensor there has the same strides.
fn copy<T: Element>(device: &Device, tensor: &Tensor) -> ferroflash::Result<ferroflash::Tensor> {
    let elements = reached(tensor);
    let data = match elements {
        0 => &[],
        // SAFETY: the owner of the tensor says that its elements are there; views of an array lie in one allocation, so that what is
        // between them is there, too, and every pattern of bits is an element. The address is a multiple of the element's size: checked
        // with the view.
        _ => unsafe {
            std::slice::from_raw_parts(std::ptr::with_exposed_provenance(tensor.address as usize), elements)
        },
    };
    ferroflash::Tensor::from_slice::<T>(device, data, [elements], Layout::RowMajor)
}

/// A copy, read as the tensor that it is of.
fn view<'a>(copy: &'a ferroflash::Tensor, of: &Tensor) -> ferroflash::Result<TensorView<'a>> {
    let elements = copy.shape()[0];
    // SAFETY: the copy has that many elements and lives longer than the view.
    unsafe { TensorView::from_raw(copy.device(), copy.address(), elements, of.shape, of.strides, of.dtype) }
}

/// Writes the elements, in logical order, to the tensor's memory. What lies between them stays.
fn write<T: Element>(tensor: &Tensor, elements: &[T]) {
    let start: *mut T = std::ptr::with_exposed_provenance_mut(tensor.address as usize);
    let axes: Vec<_> = tensor.shape.iter().copied().zip(tensor.strides.iter().copied()).collect();
    for (logical, &element) in elements.iter().enumerate() {
        let mut rest = logical;
        let offset = axes.iter().rev().fold(0, |offset, &(extent, stride)| {
            let index = rest % extent;
            rest /= extent;
            offset + index * stride
        });
        // SAFETY: an element of the tensor, which is the caller's to write.
        unsafe { start.add(offset).write(element) };
    }
}
