//! Errors of the library as exceptions of the package, with the library's messages.

use ferroflash::{Error, MergeError, OperatorError, SinkError};
use pyo3::prelude::*;
use pyo3::types::PyType;

/// A class of `ferroflash._errors`, where Python's own side of the package finds them too.
pub(crate) fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    Ok(py.import("ferroflash._errors")?.getattr(name)?.cast_into()?)
}

fn of(py: Python<'_>, name: &str, message: String) -> PyErr {
    class(py, name).map_or_else(|error| error, |class| PyErr::from_type(class, message))
}

/// An object or an element type that is not accepted.
pub(crate) fn of_type(py: Python<'_>, message: String) -> PyErr {
    of(py, "InputTypeError", message)
}

/// Shapes, strides or numbers that are not accepted.
pub(crate) fn of_input(py: Python<'_>, message: String) -> PyErr {
    of(py, "InputError", message)
}

/// The exception for an error of the library.
pub(crate) fn raise(py: Python<'_>, error: Error) -> PyErr {
    let message = match &error {
        // Its message names a function of Rust.
        Error::KernelNotLoaded { symbol } => format!(
            "{symbol} is not loaded, and no kernel is loaded while a stream is captured into a graph; call the function once with such \
             tensors before the capture"
        ),
        error => error.to_string(),
    };
    match error {
        Error::DTypeMismatch { .. }
        | Error::ElementType { .. }
        | Error::Sink(SinkError::DType { .. })
        | Error::Operator(OperatorError::DType { .. })
        | Error::Merge(MergeError::PartDType { .. } | MergeError::OutDType { .. }) => of_type(py, message),
        Error::Unsupported(_) => of(py, "MissingFeatureError", message),
        Error::NoDriver { .. }
        | Error::DriverTooOld { .. }
        | Error::DriverLacksSymbols { .. }
        | Error::NoGpu
        | Error::NoSuchGpu { .. }
        | Error::GpuTooOld { .. }
        | Error::DeviceNotBuilt { .. }
        | Error::Cuda { .. }
        | Error::DriverRefuses(_)
        | Error::CaptureUnsupported { .. }
        | Error::KernelNotLoaded { .. }
        | Error::PtxRejected { .. }
        | Error::NotSpecialised { .. }
        | Error::Emulator(_)
        | Error::OutOfMemory { .. }
        | Error::MissingVariant { .. } => of(py, "DeviceError", message),
        // Everything else is said of what was given.
        _ => of_input(py, message),
    }
}
