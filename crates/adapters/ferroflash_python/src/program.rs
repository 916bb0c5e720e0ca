//! Programs on scores: what Python hands over as text, and the memory that they read.

use crate::arrays::{Array, ElementType};
use crate::blocks::Blocks;
use crate::call::{Memory, Place};
use crate::sequences::Int32;
use crate::{errors, numbers};
use dlpark::ffi::{DLDataType, DLDataTypeCode};
use ferroflash::score::{BoundProgram, FoundBlocks, ProgramTensor, ScoreProgram};
use ferroflash::{DType, Device, Error, IndicesView, ProgramError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

mod text;

/// A program on scores as Python hands it over: its text, its tensors by name, `(name, ordinal, dtype, address, shape, strides)` each, and the blocks of
/// its mask, where they are known.
pub(crate) type TorchProgram<'py> =
    (String, Vec<(String, i32, u8, u64, Bound<'py, PyTuple>, Bound<'py, PyTuple>)>, Option<Bound<'py, Blocks>>);

/// The same, with tensors that speak DLPack or `__cuda_array_interface__`.
pub(crate) type ArrayProgram<'py> = (String, Vec<(String, Bound<'py, PyAny>)>, Option<Bound<'py, Blocks>>);

/// What a tensor of a program holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Elements {
    Floats(DType),
    /// Whole numbers of 32 bits.
    Ints,
}

impl ElementType for Elements {
    fn of_dlpack(py: Python<'_>, name: &str, found: DLDataType) -> PyResult<Elements> {
        match found.code {
            DLDataTypeCode::INT => Int32::of_dlpack(py, name, found).map(|Int32| Elements::Ints),
            _ => DType::of_dlpack(py, name, found).map(Elements::Floats),
        }
    }

    fn of_interface(py: Python<'_>, name: &str, found: &str) -> PyResult<Elements> {
        match found {
            "<i4" | "=i4" => Ok(Elements::Ints),
            _ => DType::of_interface(py, name, found).map(Elements::Floats),
        }
    }

    fn size(&self) -> usize {
        match self {
            Elements::Floats(dtype) => dtype.size(),
            Elements::Ints => Int32.size(),
        }
    }
}

/// A program with its tensors.
#[derive(Clone, Debug)]
pub(crate) struct OnScores {
    /// See [`text`].
    pub(crate) text: String,
    /// By name.
    pub(crate) tensors: Vec<(String, Memory<Elements>)>,
    /// Of its mask.
    pub(crate) blocks: Option<FoundBlocks>,
}

impl OnScores {
    /// Checks what the library does not see, and that the tensors are in this place.
    pub(crate) fn check(&self, py: Python<'_>, place: Place) -> PyResult<()> {
        for (name, memory) in &self.tensors {
            if memory.place != place {
                let (what, found, expected) = (name.clone(), memory.place.to_string(), place.to_string());
                return Err(errors::raise(py, ferroflash::Error::DeviceMismatch { what, found, expected }));
            }
            if matches!(memory.dtype, Elements::Ints) && !memory.is_contiguous() {
                let Memory { shape, strides, .. } = memory;
                let message =
                    format!("{name} of shape {shape:?} has strides {strides:?}; whole numbers must be contiguous");
                return Err(errors::of_input(py, message));
            }
        }
        Ok(())
    }

    /// The program with its tensors in the memory of `device`.
    pub(crate) fn bind<'a>(&self, device: &'a Device) -> ferroflash::Result<BoundProgram<'a>> {
        let tensors = self.tensors.iter().map(|(name, memory)| {
            let tensor = match memory.dtype {
                // SAFETY: the tensors are memory of this device by what their owners say, or are planned with and never launched with. The
                // arguments of the call hold them until it returns, and from then on their frameworks give memory back in the order of the
                // stream.
                Elements::Floats(dtype) => unsafe { memory.of(dtype).view(device) }?.into(),
                Elements::Ints => {
                    // SAFETY: as for numbers, and there are no gaps.
                    let numbers = unsafe { IndicesView::from_raw(device, memory.address, memory.elements()) }?;
                    ProgramTensor::ints(numbers, memory.shape)?
                }
            };
            Ok((name.as_str(), tensor))
        });
        let tensors = tensors.collect::<ferroflash::Result<Vec<_>>>()?;
        let bound = program(&self.text)?.bind(&tensors)?;
        let Some(blocks) = &self.blocks else { return Ok(bound) };
        match bound.clone().with_known_blocks(blocks) {
            // Beside the mask, a function of scores that itself does nothing but hide keys: every key is visited.
            Err(Error::Program(ProgramError::BlocksOfAnother { .. })) => Ok(bound),
            with_blocks => with_blocks,
        }
    }
}

/// The program that a text says. It is read once.
pub(crate) fn program(text: &str) -> ferroflash::Result<ScoreProgram> {
    static KNOWN: LazyLock<Mutex<HashMap<String, ScoreProgram>>> = LazyLock::new(Mutex::default);
    // A panic in here leaves the programs as they were.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = known.get(text) {
        return Ok(program.clone());
    }
    let program = text::read(text)?;
    // Who makes programs in a loop is not to fill the memory.
    if known.len() >= 1024 {
        known.clear();
    }
    known.insert(text.to_owned(), program.clone());
    Ok(program)
}

/// A program on tensors of torch.
pub(crate) fn torch_program((text, tensors, blocks): TorchProgram<'_>) -> PyResult<OnScores> {
    let tensors = tensors.iter().map(|(name, ordinal, dtype, address, shape, strides)| {
        let place = if *ordinal < 0 { Place::Cpu } else { Place::Cuda(*ordinal as usize) };
        // The numbers that `_torch.py` gives the types.
        let dtype = [DType::F16, DType::Bf16, DType::F32].get(usize::from(*dtype)).copied();
        let dtype = dtype.map_or(Elements::Ints, Elements::Floats);
        Ok((
            name.clone(),
            Memory { place, dtype, address: *address, shape: numbers(shape)?, strides: numbers(strides)? },
        ))
    });
    let blocks = blocks.map(|blocks| blocks.get().0.clone());
    Ok(OnScores { text, tensors: tensors.collect::<PyResult<_>>()?, blocks })
}

/// [`arrays_of_program`], where there is a program.
pub(crate) fn program_of_arrays(
    program: Option<ArrayProgram<'_>>,
    stream: usize,
    device: Option<usize>,
) -> PyResult<(Option<OnScores>, Vec<Array<Elements>>)> {
    let Some(program) = program else { return Ok((None, Vec::new())) };
    let (program, arrays) = arrays_of_program(program, stream, device)?;
    Ok((Some(program), arrays))
}

/// The program, and the arrays of its tensors, which are to be held until the launch has returned.
pub(crate) fn arrays_of_program(
    (text, tensors, blocks): ArrayProgram<'_>,
    stream: usize,
    device: Option<usize>,
) -> PyResult<(OnScores, Vec<Array<Elements>>)> {
    let import = |(name, object): &(String, _)| Array::<Elements>::import(name, object, stream, device, false);
    let arrays = tensors.iter().map(import).collect::<PyResult<Vec<_>>>()?;
    let tensors = tensors.into_iter().zip(&arrays).map(|((name, _), array)| (name, array.tensor)).collect();
    let blocks = blocks.map(|blocks| blocks.get().0.clone());
    Ok((OnScores { text, tensors, blocks }, arrays))
}

/// What the program of this text computes, in a few lines; an error when there is no such program.
#[pyfunction]
pub(crate) fn describe_program(py: Python<'_>, text: &str) -> PyResult<String> {
    let program = program(text).map_err(|error| errors::raise(py, error))?;
    Ok(program.to_string())
}
