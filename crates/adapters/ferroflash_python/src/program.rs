//! Programs on scores: what Python hands over as text, and the memory that they read.

use crate::arrays::ElementType;
use crate::call::{Memory, Place};
use crate::errors;
use crate::sequences::Int32;
use dlpark::ffi::{DLDataType, DLDataTypeCode};
use ferroflash::score::{BoundProgram, ProgramTensor, ScoreProgram};
use ferroflash::{DType, Device, IndicesView};
use pyo3::prelude::*;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

mod text;

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
        program(&self.text)?.bind(&tensors)
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
