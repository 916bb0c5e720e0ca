//! Operators on tensors in the memory of this process: the GPU's kernels in the emulator, on copies in its memory.

use super::elements::Elements;
use super::{Entry, Operands};
use crate::call::Memory;
use crate::emulated;
use ferroflash::{BoolTensor, Device, IndicesView, Layout, Stream, f16};

/// A run of bytes of this process, whose copy in the emulator's memory tensors lie in as they lie here: of those that share memory here, copies
/// do so there.
struct Span {
    start: u64,
    end: u64,
}

/// Computes a call whose tensors are in the memory of this process.
pub(super) fn compute(
    operands: &Operands,
    launch: impl Fn(&Device, &Stream, &Operands) -> ferroflash::Result<()>,
) -> ferroflash::Result<()> {
    let device = emulated::device()?;
    let mut spans = Vec::new();
    for entry in &operands.0 {
        // Before anything is read: that the address and the arithmetic of the strides are those of a tensor.
        check(device, entry)?;
        let bytes = reached(&entry.memory) * entry.memory.dtype.bytes();
        if bytes > 0 && entry.memory.dtype != Elements::Bools {
            spans.push(Span { start: entry.memory.address, end: entry.memory.address + bytes as u64 });
        }
    }
    let spans = merged(spans);
    let copies = spans.iter().map(|span| copy(device, span)).collect::<ferroflash::Result<Vec<_>>>()?;
    let mut there = operands.clone();
    // Booleans, which are only read, and no whole number of 16 bits: each mask is copied by itself.
    let mut masks = Vec::new();
    for entry in &mut there.0 {
        if entry.memory.dtype == Elements::Bools {
            let copy = copy_bools(device, &entry.memory)?;
            entry.memory.address = copy.view().address();
            masks.push(copy);
        } else if let Some(index) = span_of(&spans, &entry.memory) {
            entry.memory.address = copies[index].address() + (entry.memory.address - spans[index].start);
        }
    }
    launch(device, &device.default_stream(), &there)?;
    let written = operands.0.iter().filter(|entry| entry.is_written);
    for (memory, index) in written.filter_map(|entry| Some((&entry.memory, span_of(&spans, &entry.memory)?))) {
        let bits = copies[index].to_vec::<f16>()?;
        write(memory, &bits, (memory.address - spans[index].start) as usize);
    }
    Ok(())
}

fn check(device: &Device, entry: &Entry) -> ferroflash::Result<()> {
    let memory = &entry.memory;
    match memory.dtype {
        // SAFETY: the view is made to be checked, and never launched with.
        Elements::Floats(dtype) => unsafe { memory.of(dtype).view(device) }.map(drop),
        // SAFETY: as for tensors.
        Elements::Ints => unsafe { IndicesView::from_raw(device, memory.address, memory.elements()) }.map(drop),
        // SAFETY: as for tensors.
        Elements::Bools => unsafe { memory.bools(device) }.map(drop),
    }
}

/// Elements from the first to one past the last.
fn reached(memory: &Memory<Elements>) -> usize {
    if memory.shape.contains(&0) {
        return 0;
    }
    1 + memory.shape.iter().zip(memory.strides.iter()).map(|(extent, stride)| (extent - 1) * stride).sum::<usize>()
}

/// The same bytes, in runs that are apart.
fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable_by_key(|span| span.start);
    let mut apart: Vec<Span> = Vec::new();
    for span in spans {
        match apart.last_mut() {
            Some(last) if span.start < last.end => last.end = last.end.max(span.end),
            _ => apart.push(span),
        }
    }
    apart
}

/// The run that a tensor lies in; one without elements lies in none.
fn span_of(spans: &[Span], memory: &Memory<Elements>) -> Option<usize> {
    if reached(memory) == 0 {
        return None;
    }
    spans.iter().position(|span| (span.start..span.end).contains(&memory.address))
}

/// A mask in the emulator's memory, from its first element to its last.
fn copy_bools(device: &Device, memory: &Memory<Elements>) -> ferroflash::Result<BoolTensor> {
    let count = reached(memory);
    let bytes: &[u8] = match count {
        0 => &[],
        // SAFETY: the owner of the mask says that its elements are there, which lie in one allocation, and every byte is a boolean.
        _ => unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(memory.address as usize), count) },
    };
    BoolTensor::from_bytes(device, bytes, [count])
}

/// The bytes of a run in the emulator's memory. All elements are of a multiple of 16 bits.
fn copy(device: &Device, span: &Span) -> ferroflash::Result<ferroflash::Tensor> {
    let count = (span.end - span.start) as usize / size_of::<f16>();
    // SAFETY: the owners of the tensors say that their elements are there; views of an array lie in one allocation, so that what is between
    // them is there, too, and every pattern of bits is an element. The address is a multiple of an element's size: checked with the view.
    let bits = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(span.start as usize), count) };
    ferroflash::Tensor::from_slice::<f16>(device, bits, [count], Layout::RowMajor)
}

/// Writes a tensor's elements, which begin `first` bytes into `bits`, to its memory. What lies between them stays.
fn write(memory: &Memory<Elements>, bits: &[f16], first: usize) {
    let (from, size) = (bits.as_ptr().cast::<u8>(), memory.dtype.bytes());
    let to: *mut u8 = std::ptr::with_exposed_provenance_mut(memory.address as usize);
    let axes: Vec<_> = memory.shape.iter().copied().zip(memory.strides.iter().copied()).collect();
    for element in 0..memory.elements() {
        let mut rest = element;
        let offset = axes.iter().rev().fold(0, |offset, &(extent, stride)| {
            let index = rest % extent;
            rest /= extent;
            offset + index * stride
        });
        // SAFETY: an element of the tensor, which is the caller's to write, and its copy, which the run holds.
        unsafe { std::ptr::copy_nonoverlapping(from.add(first + offset * size), to.add(offset * size), size) };
    }
}
