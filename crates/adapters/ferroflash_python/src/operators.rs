//! Operators on rows: the tensors of a call as Python hands them over, and who computes it.

mod cross_entropy;
mod dense;
mod elements;
mod embedding;
mod linear_cross_entropy;
mod lists;
mod norm;
mod on_cpu;
mod rotary;
mod softmax;

use crate::arrays::Array;
use crate::call::{Memory, Place, Tensor};
use crate::sequences::{Int32, Numbers};
use crate::{TorchTensor, emulated, errors, numbers};
use elements::{Elements, OfMask};
use ferroflash::{
    BoolView, DType, Device, Dims, IndicesView, Operand, OperatorError, Stream, TensorView, TensorViewMut,
};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::any::Any;

/// A tensor as Python hands it over, if it is given: `(ordinal, dtype, address, shape, strides)` of one of torch, else an object that speaks
/// DLPack or `__cuda_array_interface__`.
pub(crate) type Given<'py> = Option<Bound<'py, PyAny>>;

/// The number by which `_torch_operators.py` knows 32-bit integers, behind those of the types of tensors.
const INT32: u8 = 3;

/// The same of booleans.
const BOOL: u8 = 4;

/// What is done with a tensor of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Written,
    /// Read, as one run of 32-bit integers.
    Numbers,
    /// Read, as numbers with a point or booleans.
    Mask,
}

/// A tensor that an operator takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    operand: Operand,
    access: Access,
    is_needed: bool,
}

impl Slot {
    pub(crate) const fn read(operand: Operand) -> Slot {
        Slot { operand, access: Access::Read, is_needed: true }
    }

    pub(crate) const fn written(operand: Operand) -> Slot {
        Slot { operand, access: Access::Written, is_needed: true }
    }

    pub(crate) const fn numbers(operand: Operand) -> Slot {
        Slot { operand, access: Access::Numbers, is_needed: true }
    }

    pub(crate) const fn mask(operand: Operand) -> Slot {
        Slot { operand, access: Access::Mask, is_needed: true }
    }

    pub(crate) const fn or_none(self) -> Slot {
        Slot { is_needed: false, ..self }
    }
}

/// A tensor that is given, or an array of numbers.
#[derive(Clone, Copy, Debug)]
struct Entry {
    operand: Operand,
    is_written: bool,
    memory: Memory<Elements>,
}

impl Entry {
    /// The memory as a tensor of numbers with a point.
    fn tensor(&self) -> Option<Tensor> {
        match self.memory.dtype {
            Elements::Floats(dtype) => Some(self.memory.of(dtype)),
            Elements::Ints | Elements::Bools => None,
        }
    }
}

/// The tensors of a call.
#[derive(Clone, Debug)]
pub(crate) struct Operands(Vec<Entry>);

impl Operands {
    fn find(&self, operand: Operand) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.operand == operand)
    }

    /// A tensor to be read, if it is given.
    pub(crate) fn view<'a>(&self, device: &'a Device, operand: Operand) -> ferroflash::Result<Option<TensorView<'a>>> {
        let tensor = self.find(operand).and_then(Entry::tensor);
        // SAFETY: the tensors are memory of this device by what their owners say, or are looked at and never launched with. The arguments of the
        // call hold them until it returns, and from then on their frameworks give memory back in the order of the stream.
        tensor.map(|tensor| unsafe { tensor.view(device) }).transpose()
    }

    /// A tensor to be written, if it is given.
    pub(crate) fn view_mut<'a>(
        &self,
        device: &'a Device,
        operand: Operand,
    ) -> ferroflash::Result<Option<TensorViewMut<'a>>> {
        let tensor = self.find(operand).and_then(Entry::tensor);
        // SAFETY: as for `view`; what is written is the caller's to write.
        tensor.map(|tensor| unsafe { tensor.view_mut(device) }).transpose()
    }

    /// The tensors of a list in their order, to be read.
    pub(crate) fn views<'a>(
        &self,
        device: &'a Device,
        is_of: impl Fn(Operand) -> bool,
    ) -> ferroflash::Result<Vec<TensorView<'a>>> {
        let tensors = self.0.iter().filter(|entry| is_of(entry.operand)).filter_map(Entry::tensor);
        // SAFETY: as for `view`.
        tensors.map(|tensor| unsafe { tensor.view(device) }).collect()
    }

    /// The tensors of a list in their order, to be written.
    pub(crate) fn views_mut<'a>(
        &self,
        device: &'a Device,
        is_of: impl Fn(Operand) -> bool,
    ) -> ferroflash::Result<Vec<TensorViewMut<'a>>> {
        let tensors = self.0.iter().filter(|entry| is_of(entry.operand)).filter_map(Entry::tensor);
        // SAFETY: as for `view_mut`.
        tensors.map(|tensor| unsafe { tensor.view_mut(device) }).collect()
    }

    /// Numbers on the device, if they are given.
    pub(crate) fn indices<'a>(
        &self,
        device: &'a Device,
        operand: Operand,
    ) -> ferroflash::Result<Option<IndicesView<'a>>> {
        let Some(Entry { memory, .. }) = self.find(operand) else { return Ok(None) };
        // SAFETY: as for `view`.
        unsafe { IndicesView::from_raw(device, memory.address, memory.elements()) }.map(Some)
    }

    /// Booleans, if a mask is given that holds them.
    pub(crate) fn bools<'a>(&self, device: &'a Device, operand: Operand) -> ferroflash::Result<Option<BoolView<'a>>> {
        let masks = self.find(operand).filter(|entry| entry.memory.dtype == Elements::Bools);
        // SAFETY: as for `view`; a byte that is not 0 is true.
        masks.map(|entry| unsafe { entry.memory.bools(device) }).transpose()
    }

    /// A tensor whose slot says that it is needed.
    pub(crate) fn given<'a>(&self, device: &'a Device, operand: Operand) -> ferroflash::Result<TensorView<'a>> {
        Ok(self.view(device, operand)?.expect("its slot says that it is needed"))
    }

    /// [`Self::given`], of numbers.
    pub(crate) fn given_indices<'a>(
        &self,
        device: &'a Device,
        operand: Operand,
    ) -> ferroflash::Result<IndicesView<'a>> {
        Ok(self.indices(device, operand)?.expect("its slot says that they are needed"))
    }

    /// [`Self::given`], to be written.
    pub(crate) fn given_mut<'a>(&self, device: &'a Device, operand: Operand) -> ferroflash::Result<TensorViewMut<'a>> {
        Ok(self.view_mut(device, operand)?.expect("its slot says that it is needed"))
    }
}

/// Where the tensors of a call come from, and where it runs.
pub(crate) struct Caller<'py> {
    pub(crate) py: Python<'py>,
    pub(crate) stream: usize,
    /// The GPU of arrays that do not say theirs.
    pub(crate) gpu: Option<usize>,
}

impl Caller<'_> {
    /// Takes the tensors, and launches `launch` with them on the stream (on the CPU: computes it), without the interpreter's lock.
    pub(crate) fn run<'g, 'py: 'g>(
        &self,
        slots: impl IntoIterator<Item = Slot>,
        given: impl IntoIterator<Item = &'g Given<'py>>,
        launch: impl Fn(&Device, &Stream, &Operands) -> ferroflash::Result<()> + Send + Sync,
    ) -> PyResult<()> {
        let Caller { py, stream, .. } = *self;
        // The arrays are held until the launch has returned.
        let (mut entries, mut held): (Vec<Entry>, Vec<Box<dyn Any>>) = (Vec::new(), Vec::new());
        for (slot, object) in slots.into_iter().zip(given) {
            let Some(object) = object else {
                if slot.is_needed {
                    return Err(errors::of_input(py, format!("{} is needed", slot.operand)));
                }
                continue;
            };
            let memory = self.take(slot, object, &mut held)?;
            entries.push(Entry { operand: slot.operand, is_written: slot.access == Access::Written, memory });
        }
        let Some(Entry { operand: of, memory: first, .. }) = entries.first().copied() else { return Ok(()) };
        for Entry { operand, memory, .. } in &entries {
            if memory.place != first.place {
                let (found, expected) = (memory.place.to_string(), first.place.to_string());
                let error = OperatorError::Device { tensor: *operand, found, of, expected };
                return Err(errors::raise(py, error.into()));
            }
        }
        let operands = Operands(entries);
        let result = match first.place {
            Place::Cpu => {
                emulated::warn(py)?;
                py.detach(|| on_cpu::compute(&operands, launch))
            }
            Place::Cuda(ordinal) => py.detach(|| {
                let device = Device::cuda(ordinal)?;
                // SAFETY: a live stream of the GPU's primary context by the word of the caller of Python, and a handle that is gone when this
                // function returns.
                let stream = unsafe { Stream::from_raw(&device, std::ptr::with_exposed_provenance_mut(stream)) };
                launch(&device, &stream, &operands)
            }),
        };
        drop(held);
        result.map_err(|error| errors::raise(py, error))
    }

    /// Where a tensor lies. What holds it there goes to `held`.
    fn take(&self, slot: Slot, object: &Bound<'_, PyAny>, held: &mut Vec<Box<dyn Any>>) -> PyResult<Memory<Elements>> {
        let name = slot.operand.to_string();
        if let Ok(tuple) = object.cast::<PyTuple>() {
            return of_torch(&name, slot, tuple);
        }
        let is_written = slot.access == Access::Written;
        Ok(match slot.access {
            Access::Read | Access::Written => {
                let array = Array::<DType>::import(&name, object, self.stream, self.gpu, is_written)?;
                let memory = array.tensor.of(Elements::Floats(array.tensor.dtype));
                held.push(Box::new(array));
                memory
            }
            Access::Numbers => {
                let array = Array::<Int32>::import(&name, object, self.stream, self.gpu, is_written)?;
                check_run(self.py, &name, &array.tensor)?;
                let memory = array.tensor.of(Elements::Ints);
                held.push(Box::new(array));
                memory
            }
            Access::Mask => {
                let array = Array::<OfMask>::import(&name, object, self.stream, self.gpu, is_written)?;
                let memory = array.tensor.of(array.tensor.dtype.0);
                held.push(Box::new(array));
                memory
            }
        })
    }
}

fn of_torch(name: &str, slot: Slot, tuple: &Bound<'_, PyTuple>) -> PyResult<Memory<Elements>> {
    let py = tuple.py();
    let (ordinal, dtype, address, shape, strides): TorchTensor<'_> = tuple.extract()?;
    let place = if ordinal < 0 { Place::Cpu } else { Place::Cuda(ordinal as usize) };
    let shape = numbers(&shape)?;
    // Strides of a tensor without elements say nothing.
    let strides = if shape.contains(&0) { contiguous(&shape) } else { numbers(&strides)? };
    let (dtype, fits) = match dtype {
        INT32 => (Elements::Ints, slot.access == Access::Numbers),
        BOOL => (Elements::Bools, slot.access == Access::Mask),
        of => {
            (Elements::Floats([DType::F16, DType::Bf16, DType::F32][usize::from(of)]), slot.access != Access::Numbers)
        }
    };
    if !fits {
        let accepted = match slot.access {
            Access::Read | Access::Written => "float16, bfloat16 and float32 are",
            Access::Numbers => "int32 is",
            Access::Mask => elements::ACCEPTED,
        };
        return Err(errors::of_type(py, format!("{name} holds elements of another type; {accepted} accepted")));
    }
    let found = Memory { place, dtype, address, shape, strides };
    if slot.access == Access::Numbers {
        check_run(py, name, &found.of(Int32))?;
    }
    Ok(found)
}

/// Strides without gaps, the last axis fastest.
fn contiguous(shape: &Dims) -> Dims {
    let (mut strides, mut step) = (*shape, 1usize);
    for (stride, &extent) in strides.iter_mut().zip(shape.iter()).rev() {
        *stride = step;
        step = step.saturating_mul(extent.max(1));
    }
    strides
}

/// The library takes numbers as an address and a count.
fn check_run(py: Python<'_>, name: &str, numbers: &Numbers) -> PyResult<()> {
    if numbers.is_contiguous() {
        return Ok(());
    }
    let Memory { shape, strides, .. } = numbers;
    Err(errors::of_input(py, format!("{name} of shape {shape:?} has strides {strides:?}; it must be contiguous")))
}

/// Adds the functions of this module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(norm::norm, module)?)?;
    module.add_function(wrap_pyfunction!(norm::norm_backward, module)?)?;
    module.add_function(wrap_pyfunction!(cross_entropy::cross_entropy, module)?)?;
    module.add_function(wrap_pyfunction!(cross_entropy::cross_entropy_backward, module)?)?;
    module.add_function(wrap_pyfunction!(rotary::rotary, module)?)?;
    module.add_function(wrap_pyfunction!(softmax::softmax, module)?)?;
    module.add_function(wrap_pyfunction!(softmax::softmax_backward, module)?)?;
    module.add_function(wrap_pyfunction!(embedding::embedding, module)?)?;
    module.add_function(wrap_pyfunction!(embedding::embedding_backward, module)?)?;
    module.add_function(wrap_pyfunction!(lists::adamw, module)?)?;
    module.add_function(wrap_pyfunction!(lists::gradient_norm, module)?)?;
    module.add_function(wrap_pyfunction!(dense::dense, module)?)?;
    module.add_function(wrap_pyfunction!(dense::dense_backward, module)?)?;
    module.add_function(wrap_pyfunction!(linear_cross_entropy::linear_cross_entropy, module)?)?;
    module.add_function(wrap_pyfunction!(linear_cross_entropy::linear_cross_entropy_backward, module)?)
}
