//! The tensors of a call of an operator, by their names, and the call.

use crate::forward::{check_context, device};
use crate::{Error, Result};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};
use ferroflash::{BoolView, DType, Dims, Element, IndicesView, Operand, Stream, TensorView, TensorViewMut};
use std::fmt;

/// Slices of cudarc as the tensors of an operator, each by its name in ferroflash. A slice may be longer than its tensor, which starts with its first
/// element; whether it is long enough is checked by the call.
#[derive(Default)]
#[must_use]
pub struct Tensors<'a> {
    read: Vec<(Operand, Box<dyn Read + 'a>, As)>,
    written: Vec<(Operand, Box<dyn Write + 'a>, Axes)>,
}

/// What a slice is read as.
#[derive(Clone, Copy, Debug)]
enum As {
    Tensor(Axes),
    Numbers,
    /// Shape and strides.
    Booleans(Dims, Dims),
}

/// What a slice of elements is.
#[derive(Clone, Copy, Debug)]
struct Axes {
    shape: Dims,
    strides: Dims,
    dtype: DType,
}

impl<'a> Tensors<'a> {
    /// None yet.
    pub fn new() -> Tensors<'a> {
        Tensors::default()
    }

    /// A tensor without gaps that is read, its last axis contiguous.
    pub fn read<T: Element>(self, operand: Operand, slice: &'a impl DevicePtr<T>, shape: impl Into<Dims>) -> Self {
        let shape = shape.into();
        self.read_strided(operand, slice, shape, row_major(&shape))
    }

    /// A tensor with these strides, counted in elements, that is read.
    pub fn read_strided<T: Element>(
        mut self,
        operand: Operand,
        slice: &'a impl DevicePtr<T>,
        shape: impl Into<Dims>,
        strides: impl Into<Dims>,
    ) -> Self {
        let axes = Axes { shape: shape.into(), strides: strides.into(), dtype: T::DTYPE };
        self.read.push((operand, Box::new(Slice(slice)), As::Tensor(axes)));
        self
    }

    /// Numbers that are read: all of the slice.
    pub fn numbers(mut self, operand: Operand, slice: &'a impl DevicePtr<i32>) -> Self {
        self.read.push((operand, Box::new(Slice(slice)), As::Numbers));
        self
    }

    /// Booleans without gaps that are read, a byte each, of which any but 0 is true.
    pub fn booleans(self, operand: Operand, slice: &'a impl DevicePtr<u8>, shape: impl Into<Dims>) -> Self {
        let shape = shape.into();
        self.booleans_strided(operand, slice, shape, row_major(&shape))
    }

    /// [`Tensors::booleans`] with these strides.
    pub fn booleans_strided(
        mut self,
        operand: Operand,
        slice: &'a impl DevicePtr<u8>,
        shape: impl Into<Dims>,
        strides: impl Into<Dims>,
    ) -> Self {
        self.read.push((operand, Box::new(Slice(slice)), As::Booleans(shape.into(), strides.into())));
        self
    }

    /// A tensor without gaps that is written, its last axis contiguous.
    pub fn write<T: Element>(
        self,
        operand: Operand,
        slice: &'a mut impl DevicePtrMut<T>,
        shape: impl Into<Dims>,
    ) -> Self {
        let shape = shape.into();
        self.write_strided(operand, slice, shape, row_major(&shape))
    }

    /// A tensor with these strides, counted in elements, that is written. Elements that lie between stay as they are.
    pub fn write_strided<T: Element>(
        mut self,
        operand: Operand,
        slice: &'a mut impl DevicePtrMut<T>,
        shape: impl Into<Dims>,
        strides: impl Into<Dims>,
    ) -> Self {
        let axes = Axes { shape: shape.into(), strides: strides.into(), dtype: T::DTYPE };
        self.written.push((operand, Box::new(SliceMut(slice)), axes));
        self
    }

    /// How many there are of these names.
    pub(super) fn count(&self, of: impl Fn(Operand) -> bool) -> usize {
        let read = self.read.iter().map(|(operand, ..)| *operand);
        read.chain(self.written.iter().map(|(operand, ..)| *operand)).filter(|&operand| of(operand)).count()
    }
}

impl fmt::Debug for Tensors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = self.read.iter().map(|(operand, _, of)| (operand, *of));
        let written = self.written.iter().map(|(operand, _, axes)| (operand, As::Tensor(*axes)));
        f.debug_map().entries(read.chain(written)).finish()
    }
}

/// Strides of a tensor without gaps. A shape of more elements than 64 bits count is refused with its slice, which has fewer.
fn row_major(shape: &Dims) -> Dims {
    let mut strides = *shape;
    let mut step = 1usize;
    for (stride, extent) in strides.iter_mut().zip(shape.iter()).rev() {
        *stride = step;
        step = step.saturating_mul(*extent);
    }
    strides
}

/// A slice of any element type that is read.
trait Read {
    fn len(&self) -> usize;
    fn stream(&self) -> &CudaStream;
    fn place<'s>(&'s self, stream: &'s CudaStream) -> (u64, SyncOnDrop<'s>);
}

/// A slice of any element type that is written.
trait Write {
    fn len(&self) -> usize;
    fn stream(&self) -> &CudaStream;
    fn place<'s>(&'s mut self, stream: &'s CudaStream) -> (u64, SyncOnDrop<'s>);
}

struct Slice<'a, T>(&'a dyn DevicePtr<T>);
struct SliceMut<'a, T>(&'a mut dyn DevicePtrMut<T>);

impl<T> Read for Slice<'_, T> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn stream(&self) -> &CudaStream {
        self.0.stream()
    }

    fn place<'s>(&'s self, stream: &'s CudaStream) -> (u64, SyncOnDrop<'s>) {
        self.0.device_ptr(stream)
    }
}

impl<T> Write for SliceMut<'_, T> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn stream(&self) -> &CudaStream {
        self.0.stream()
    }

    fn place<'s>(&'s mut self, stream: &'s CudaStream) -> (u64, SyncOnDrop<'s>) {
        self.0.device_ptr_mut(stream)
    }
}

/// The tensors of a call as ferroflash knows them.
pub(super) struct Views<'v> {
    tensors: Vec<(Operand, TensorView<'v>)>,
    numbers: Vec<(Operand, IndicesView<'v>)>,
    booleans: Vec<(Operand, BoolView<'v>)>,
    outputs: Vec<(Operand, TensorViewMut<'v>)>,
}

impl<'v> Views<'v> {
    pub(super) fn find(&self, operand: Operand) -> Option<TensorView<'v>> {
        self.tensors.iter().find(|(of, _)| *of == operand).map(|&(_, view)| view)
    }

    pub(super) fn tensor(&self, operand: Operand) -> Result<TensorView<'v>> {
        self.find(operand).ok_or(Error::NotGiven { operand })
    }

    pub(super) fn find_numbers(&self, operand: Operand) -> Option<IndicesView<'v>> {
        self.numbers.iter().find(|(of, _)| *of == operand).map(|&(_, view)| view)
    }

    pub(super) fn numbers(&self, operand: Operand) -> Result<IndicesView<'v>> {
        self.find_numbers(operand).ok_or(Error::NotGiven { operand })
    }

    pub(super) fn find_booleans(&self, operand: Operand) -> Option<BoolView<'v>> {
        self.booleans.iter().find(|(of, _)| *of == operand).map(|&(_, view)| view)
    }

    /// The view goes to the first who asks.
    pub(super) fn find_out(&mut self, operand: Operand) -> Option<TensorViewMut<'v>> {
        let place = self.outputs.iter().position(|(of, _)| *of == operand)?;
        Some(self.outputs.swap_remove(place).1)
    }

    pub(super) fn out(&mut self, operand: Operand) -> Result<TensorViewMut<'v>> {
        self.find_out(operand).ok_or(Error::NotGiven { operand })
    }
}

/// Runs `call`, one of a family of operators that knows these names, with the tensors as ferroflash knows them. Until it has returned, cudarc's guards
/// are held: they made the stream wait for earlier work, and record what `call` queued when they go.
pub(super) fn operate(
    stream: &CudaStream,
    known: &[Operand],
    mut tensors: Tensors<'_>,
    call: impl for<'v> FnOnce(&Stream, &mut Views<'v>) -> Result<()>,
) -> Result<()> {
    let device = device(stream.context())?;
    let mut seen: Vec<Operand> = Vec::new();
    let read = tensors.read.iter().map(|(operand, slice, _)| (*operand, slice.stream()));
    for (operand, of) in read.chain(tensors.written.iter().map(|(operand, slice, _)| (*operand, slice.stream()))) {
        // One that is taken for nothing would be a mistake that nobody sees.
        if !known.contains(&operand) || seen.contains(&operand) {
            return Err(Error::NotTaken { operand });
        }
        seen.push(operand);
        check_context(operand, of, stream)?;
    }
    let mut views = Views { tensors: Vec::new(), numbers: Vec::new(), booleans: Vec::new(), outputs: Vec::new() };
    let mut guards = Vec::new();
    for (operand, slice, of) in &tensors.read {
        let (operand, len) = (*operand, slice.len());
        let (address, guard) = slice.place(stream);
        guards.push(guard);
        match *of {
            As::Tensor(Axes { shape, strides, dtype }) => {
                // SAFETY: the slice has that many elements from the address on, in the primary context of the device; it is borrowed for this call,
                // and its guard is held.
                let view = unsafe { TensorView::from_raw(&device, address, len, shape, strides, dtype) }?;
                views.tensors.push((operand, view));
            }
            // SAFETY: as for a tensor.
            As::Numbers => views.numbers.push((operand, unsafe { IndicesView::from_raw(&device, address, len) }?)),
            As::Booleans(shape, strides) => {
                // SAFETY: as for a tensor.
                let view = unsafe { BoolView::from_raw(&device, address, len, shape, strides) }?;
                views.booleans.push((operand, view));
            }
        }
    }
    for (operand, slice, Axes { shape, strides, dtype }) in &mut tensors.written {
        let len = slice.len();
        let (address, guard) = slice.place(stream);
        guards.push(guard);
        // SAFETY: as for what is read, and the slice is borrowed mutably.
        let view = unsafe { TensorViewMut::from_raw(&device, address, len, *shape, *strides, *dtype) }?;
        views.outputs.push((*operand, view));
    }
    // The waits of guards have no result of their own.
    stream.context().check_err()?;
    // SAFETY: as in `forward`: the stream is live and one of the primary context of `device`, and the handle is gone when this function
    // returns.
    let on = unsafe { Stream::from_raw(&device, stream.cu_stream().cast()) };
    call(&on, &mut views)?;
    drop(guards);
    Ok(())
}
