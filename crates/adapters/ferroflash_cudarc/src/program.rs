//! Programs on scores whose tensors are slices of cudarc.

use crate::forward::check_context;
use crate::{Error, Result};
use cudarc::driver::{CudaStream, DevicePtr, SyncOnDrop};
use ferroflash::score::{BoundProgram, ScoreProgram};
use ferroflash::{Attention, DType, Device, Dims, Element, IndicesView, Operand, TensorView};
use std::fmt;
use std::sync::Arc;

/// The options of a call: those of ferroflash, which a reference to an [`Attention`] is enough for, what a program on scores reads, and sinks.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    attention: &'a Attention<'a>,
    program: Option<&'a Program<'a>>,
    sink: Option<&'a dyn DevicePtr<f32>>,
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { attention, program, sink } = self;
        let sinks = sink.map(|sink| sink.len());
        f.debug_struct("Options")
            .field("attention", attention)
            .field("program", program)
            .field("sinks", &sinks)
            .finish()
    }
}

impl<'a> Options<'a> {
    /// These options, without a program and without sinks.
    pub fn new(attention: &'a Attention<'a>) -> Options<'a> {
        Options { attention, program: None, sink: None }
    }

    /// Gives every query head a sink: see [`Attention::with_sink`]. The slice has one number for each query head; it is waited for, and the call
    /// is recorded in it, as in the tensors of attention itself.
    pub fn with_sink(mut self, sink: &'a impl DevicePtr<f32>) -> Options<'a> {
        self.sink = Some(sink);
        self
    }

    /// Has scores pass through a program: see [`Attention::with_program`]. Its tensors are waited for, and the call is recorded in them, as
    /// in those of attention itself. They get no gradients.
    pub fn with_program(mut self, program: &'a Program<'a>) -> Options<'a> {
        self.program = Some(program);
        self
    }
}

impl<'a> From<&'a Attention<'a>> for Options<'a> {
    fn from(attention: &'a Attention<'a>) -> Options<'a> {
        Options::new(attention)
    }
}

/// A program on scores and the slices that it reads.
///
/// ```no_run
/// use cudarc::driver::CudaContext;
/// use ferroflash::{Attention, Layout, Shape, f16, score::ScoreProgram};
/// use ferroflash_cudarc::{Options, Program, ProgramTensor, View, ViewMut, forward};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stream = CudaContext::new(0)?.new_stream()?;
/// let shape = Shape::new(2, 512, 4, 64);
/// let q = stream.alloc_zeros::<f16>(shape.elements().unwrap())?;
/// let mut out = stream.alloc_zeros::<f16>(shape.elements().unwrap())?;
/// let slopes = stream.clone_htod(&[0.5f32, 0.25, 0.125, 0.0625])?;
///
/// let alibi = Program::new(ScoreProgram::alibi()).with("slopes", ProgramTensor::floats(&slopes, [1, 4]));
/// let q = View::contiguous(&q, shape, Layout::Bshd)?;
/// let mut out = ViewMut::contiguous(&mut out, shape, Layout::Bshd)?;
/// forward(Options::new(&Attention::new().causal()).with_program(&alibi), &stream, q, q, q, &mut out, None)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Program<'a> {
    program: ScoreProgram,
    tensors: Vec<(String, ProgramTensor<'a>)>,
}

impl<'a> Program<'a> {
    /// A program without tensors.
    pub fn new(program: ScoreProgram) -> Program<'a> {
        Program { program, tensors: Vec::new() }
    }

    /// The same, with this tensor for a name that the program reads. What does not fit is refused by the calls.
    pub fn with(mut self, name: &str, tensor: ProgramTensor<'a>) -> Program<'a> {
        self.tensors.push((name.to_owned(), tensor));
        self
    }
}

/// A `CudaSlice`, `CudaView` or `CudaViewMut` that a program reads as a tensor, which starts with its first element.
///
/// Whether the slice is long enough is checked by the functions that take the program.
pub struct ProgramTensor<'a> {
    data: Box<dyn Slice + 'a>,
    shape: Dims,
    strides: Dims,
}

impl<'a> ProgramTensor<'a> {
    /// Numbers without gaps, the last axis fastest.
    pub fn floats<T: Element>(data: &'a impl DevicePtr<T>, shape: impl Into<Dims>) -> ProgramTensor<'a> {
        let shape = shape.into();
        let mut strides = shape;
        let mut stride = 1usize;
        for axis in (0..shape.len()).rev() {
            // More elements than 64 bits count are more than any slice has.
            (strides[axis], stride) = (stride, stride.saturating_mul(shape[axis].max(1)));
        }
        ProgramTensor::with_strides(data, shape, strides)
    }

    /// Numbers with these strides, counted in elements.
    pub fn with_strides<T: Element>(
        data: &'a impl DevicePtr<T>,
        shape: impl Into<Dims>,
        strides: impl Into<Dims>,
    ) -> ProgramTensor<'a> {
        ProgramTensor { data: Box::new(Floats(data)), shape: shape.into(), strides: strides.into() }
    }

    /// Whole numbers without gaps, the last axis fastest. The slice has as many as the shape.
    pub fn ints(data: &'a impl DevicePtr<i32>, shape: impl Into<Dims>) -> ProgramTensor<'a> {
        let shape = shape.into();
        ProgramTensor { data: Box::new(Ints(data)), shape, strides: shape }
    }
}

impl fmt::Debug for ProgramTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, shape, strides) = (self.data.len(), &self.shape, &self.strides);
        f.debug_struct("ProgramTensor").field("len", &len).field("shape", shape).field("strides", strides).finish()
    }
}

/// A slice of any type.
trait Slice {
    fn len(&self) -> usize;

    fn stream(&self) -> &Arc<CudaStream>;

    fn guard<'s>(&'s self, stream: &'s CudaStream) -> (u64, SyncOnDrop<'s>);

    /// The tensor as ferroflash knows it.
    ///
    /// # Safety
    /// The slice, whose guard is held, is in the memory of `device`, and the address is its own.
    unsafe fn view<'d>(
        &self,
        device: &'d Device,
        address: u64,
        axes: (Dims, Dims),
    ) -> ferroflash::Result<ferroflash::score::ProgramTensor<'d>>;
}

struct Floats<'a, T>(&'a dyn DevicePtr<T>);

impl<T: Element> Slice for Floats<'_, T> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.0.stream()
    }

    fn guard<'s>(&'s self, stream: &'s CudaStream) -> (u64, SyncOnDrop<'s>) {
        self.0.device_ptr(stream)
    }

    unsafe fn view<'d>(
        &self,
        device: &'d Device,
        address: u64,
        (shape, strides): (Dims, Dims),
    ) -> ferroflash::Result<ferroflash::score::ProgramTensor<'d>> {
        // SAFETY: the slice has that many elements of `T` from the address on; the rest is the caller's word.
        unsafe { TensorView::from_raw(device, address, self.len(), shape, strides, T::DTYPE) }.map(Into::into)
    }
}

struct Ints<'a>(&'a dyn DevicePtr<i32>);

impl Slice for Ints<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.0.stream()
    }

    fn guard<'s>(&'s self, stream: &'s CudaStream) -> (u64, SyncOnDrop<'s>) {
        self.0.device_ptr(stream)
    }

    unsafe fn view<'d>(
        &self,
        device: &'d Device,
        address: u64,
        (shape, _): (Dims, Dims),
    ) -> ferroflash::Result<ferroflash::score::ProgramTensor<'d>> {
        // SAFETY: as for numbers.
        let numbers = unsafe { IndicesView::from_raw(device, address, self.len()) }?;
        ferroflash::score::ProgramTensor::ints(numbers, shape)
    }
}

impl<'a> Options<'a> {
    /// That the program is one of ours, with its slices in the context of the stream.
    pub(crate) fn check(&self, stream: &CudaStream) -> Result<()> {
        if let Some(bound) = self.attention.program {
            // Tensors of somebody else's may be written, or freed, in an order that this stream knows nothing of.
            let program = bound.program();
            program.bind(&[]).map_err(|_| Error::BoundElsewhere { program: program.name().to_owned() })?;
        }
        if self.attention.sink.is_some() {
            return Err(Error::SinkElsewhere);
        }
        if let Some(sink) = self.sink {
            check_context(Operand::Sink, sink.stream(), stream)?;
        }
        let tensors = self.program.into_iter().flat_map(|program| &program.tensors).enumerate();
        for (i, (_, tensor)) in tensors {
            check_context(Operand::ProgramTensor(i), tensor.data.stream(), stream)?;
        }
        Ok(())
    }

    /// The slices of program and sinks with their guards, which order a call with earlier and later work on them.
    pub(crate) fn guard(&self, stream: &'a CudaStream) -> Guarded<'a> {
        let tensors = self.program.into_iter().flat_map(|program| &program.tensors);
        Guarded {
            options: *self,
            guards: tensors.map(|(_, tensor)| tensor.data.guard(stream)).collect(),
            sink: self.sink.map(|sink| sink.device_ptr(stream)),
        }
    }
}

/// Options while the guards of their slices are held.
pub(crate) struct Guarded<'a> {
    options: Options<'a>,
    guards: Vec<(u64, SyncOnDrop<'a>)>,
    sink: Option<(u64, SyncOnDrop<'a>)>,
}

/// What [`Guarded::bind`] makes: program and sinks as ferroflash knows them.
pub(crate) struct Bound<'d> {
    program: Option<BoundProgram<'d>>,
    sink: Option<TensorView<'d>>,
}

impl<'a> Guarded<'a> {
    /// Program and sinks with their tensors, which are in the primary context of `device`: [`Options::check`] has seen to that.
    pub(crate) fn bind<'d>(&self, device: &'d Device) -> Result<Bound<'d>> {
        let sink = self.options.sink.zip(self.sink.as_ref()).map(|(slice, &(address, _))| {
            // SAFETY: the slice has that many numbers from the address on; it is borrowed for this call, and its guard is held.
            unsafe { TensorView::from_raw(device, address, slice.len(), [slice.len()], [1], DType::F32) }
        });
        Ok(Bound { program: self.program(device)?, sink: sink.transpose()? })
    }

    fn program<'d>(&self, device: &'d Device) -> Result<Option<BoundProgram<'d>>> {
        let Some(Program { program, tensors }) = self.options.program else { return Ok(None) };
        let views = tensors.iter().zip(&self.guards).map(|((name, tensor), &(address, _))| {
            // SAFETY: the slice is borrowed for this call, and its guard, which gave the address, is held.
            let view = unsafe { tensor.data.view(device, address, (tensor.shape, tensor.strides)) };
            view.map(|view| (name.as_str(), view))
        });
        let views = views.collect::<ferroflash::Result<Vec<_>>>()?;
        Ok(Some(program.bind(&views)?))
    }

    /// The options, with what [`Self::bind`] made.
    pub(crate) fn attention<'b>(&self, bound: &'b Bound<'b>) -> Attention<'b>
    where
        'a: 'b,
    {
        let attention: Attention<'b> = *self.options.attention;
        let attention = bound.program.as_ref().map_or(attention, |program| attention.with_program(program));
        bound.sink.as_ref().map_or(attention, |sink| attention.with_sink(sink))
    }
}
