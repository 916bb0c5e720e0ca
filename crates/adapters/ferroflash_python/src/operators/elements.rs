//! What the tensors of operators hold.

use crate::arrays::{ElementType, float_of_dlpack, float_of_interface, words};
use crate::errors;
use dlpark::ffi::{DLDataType, DLDataTypeCode};
use ferroflash::DType;
use pyo3::prelude::*;

/// What a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elements {
    Floats(DType),
    /// Whole numbers of 32 bits.
    Ints,
    /// Booleans, a byte each.
    Bools,
}

impl Elements {
    /// Bytes of an element.
    pub(super) fn bytes(self) -> usize {
        match self {
            Elements::Floats(dtype) => dtype.bytes(),
            Elements::Ints => size_of::<i32>(),
            Elements::Bools => 1,
        }
    }
}

/// What a mask holds: numbers that are added, or booleans.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfMask(pub(super) Elements);

/// What is accepted of a mask.
pub(super) const ACCEPTED: &str = "bool, float16, bfloat16 and float32 are";

impl ElementType for OfMask {
    fn of_dlpack(py: Python<'_>, name: &str, found: DLDataType) -> PyResult<OfMask> {
        match (found.code, found.bits, found.lanes) {
            (DLDataTypeCode::BOOL, 8, 1) => Ok(OfMask(Elements::Bools)),
            _ => match float_of_dlpack(found) {
                Some(dtype) => Ok(OfMask(Elements::Floats(dtype))),
                None => Err(errors::of_type(py, format!("{name} holds {}; {ACCEPTED} accepted", words(found)))),
            },
        }
    }

    fn of_interface(py: Python<'_>, name: &str, found: &str) -> PyResult<OfMask> {
        match found {
            "|b1" => Ok(OfMask(Elements::Bools)),
            _ => float_of_interface(found).map(|dtype| OfMask(Elements::Floats(dtype))).ok_or_else(|| {
                let accepted = "`|b1`, `<f2` and `<f4` are accepted, and bfloat16 through DLPack";
                errors::of_type(py, format!("{name} holds `{found}`; {accepted}"))
            }),
        }
    }

    fn size(&self) -> usize {
        self.0.bytes()
    }
}
