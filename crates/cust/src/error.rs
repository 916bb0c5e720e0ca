//! Why a call failed.

use crate::driver::Version;
use crate::sys::CUresult;
use std::ffi::{CStr, c_char};

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed. Every message says what was given and what is accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The dynamic loader finds no driver library.
    #[error("the CUDA driver library is not found: {reason}")]
    NoDriver {
        /// What the loader said.
        reason: String,
    },
    /// NVIDIA has no driver for this platform.
    #[error("the CUDA driver is there on Linux and Windows only")]
    UnsupportedPlatform,
    /// The driver is older than the least one that this crate works with.
    #[error("the CUDA driver supports CUDA {found}; at least CUDA {least} is needed")]
    DriverTooOld {
        /// CUDA version of the driver.
        found: Version,
        /// Least CUDA version.
        least: Version,
    },
    /// The driver library lacks functions that this crate calls.
    #[error("the CUDA driver lacks {}", .symbols.join(", "))]
    MissingSymbols {
        /// Symbols of the missing functions.
        symbols: Vec<&'static str>,
    },
    /// A function of the driver failed.
    #[error("{call} failed: {name} ({}): {message}", .result.0)]
    Call {
        /// Name of the function.
        call: &'static str,
        /// What it returned.
        result: CUresult,
        /// Name of that, such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
        name: String,
        /// The driver's own words.
        message: String,
    },
    /// The driver's compiler refuses a module.
    #[error("the driver rejects the module: {name} {log}")]
    ModuleRejected {
        /// What the driver returned.
        result: CUresult,
        /// Name of that, such as `CUDA_ERROR_INVALID_PTX`.
        name: String,
        /// What the compiler said, cut at [`JitOptions::error_log_bytes`](crate::JitOptions::error_log_bytes).
        log: String,
    },
    /// A text that the driver takes up to its first NUL holds one inside.
    #[error("the {what} holds a NUL at byte {position}")]
    Nul {
        /// `PTX` or `name of the kernel`.
        what: &'static str,
        /// Where.
        position: usize,
    },
    /// The time between two events that lie the other way round.
    #[error("the event lies {milliseconds} ms before the one that is said to be earlier")]
    EventOrder {
        /// Below 0.
        milliseconds: f32,
    },
    /// Two buffers of one copy have different lengths.
    #[error("the source holds {from} elements, the destination {to}; they must be equal")]
    CopyLength {
        /// Elements of the source.
        from: usize,
        /// Elements of the destination.
        to: usize,
    },
    /// More elements than an address space holds.
    #[error("{elements} elements of {bytes} bytes reach past the end of the address space")]
    TooLarge {
        /// Elements asked for.
        elements: usize,
        /// Bytes of one.
        bytes: usize,
    },
    /// Things of two contexts in one call.
    #[error("{what} belongs to another context")]
    OtherContext {
        /// `the stream`.
        what: &'static str,
    },
    /// A priority that the device's streams do not have.
    #[error("stream priority {found} is not accepted; priorities go from {greatest} (first) to {least}")]
    Priority {
        /// The priority given.
        found: i32,
        /// The number of the highest priority.
        greatest: i32,
        /// The number of the lowest priority.
        least: i32,
    },
    /// A launch without threads.
    #[error(
        "grid {grid:?} of blocks {block:?} in clusters {cluster:?} is not accepted; every extent must be at least 1"
    )]
    EmptyLaunch {
        /// Blocks along x, y and z.
        grid: [u32; 3],
        /// Threads of a block along x, y and z.
        block: [u32; 3],
        /// Blocks of a cluster along x, y and z.
        cluster: [u32; 3],
    },
    /// The legacy default stream cannot be captured.
    #[error("the default stream cannot be captured into a graph; capture a stream of its own")]
    CaptureOfDefaultStream,
    /// The lists that describe a tensor to the copy engine do not fit together.
    #[error("a tensor of {rank} axes has {expected} {what}; {found} are given")]
    TensorMapRank {
        /// Axes of the tensor: its extents.
        rank: usize,
        /// `strides`, `box extents` or `element strides`.
        what: &'static str,
        /// How many there have to be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
}

impl Error {
    /// What the driver returned, if it is the driver that refused.
    pub fn result(&self) -> Option<CUresult> {
        match self {
            Error::Call { result, .. } | Error::ModuleRejected { result, .. } => Some(*result),
            _ => None,
        }
    }
}

/// Calls a function of the table, and makes an error that names it of what it returns. An unsafe operation like the call itself.
macro_rules! call {
    ($table:ident.$name:ident($($argument:expr),* $(,)?)) => {
        $crate::error::check(stringify!($name), ($table.$name)($($argument),*))
    };
}
pub(crate) use call;

pub(crate) fn check(call: &'static str, result: CUresult) -> Result<()> {
    if result == CUresult::SUCCESS { Ok(()) } else { Err(failed(call, result)) }
}

#[cold]
pub(crate) fn failed(call: &'static str, result: CUresult) -> Error {
    Error::Call { call, result, name: name_of(result), message: describe(result, |table| table.cuGetErrorString) }
}

pub(crate) fn name_of(result: CUresult) -> String {
    describe(result, |table| table.cuGetErrorName)
}

type Describe = unsafe extern "system" fn(CUresult, *mut *const c_char) -> CUresult;

/// What the driver says about a code.
fn describe(result: CUresult, function: impl Fn(&crate::sys::Table) -> Describe) -> String {
    let unknown = || format!("CUresult {}", result.0);
    let Ok(driver) = crate::driver::load() else { return unknown() };
    let mut text = std::ptr::null();
    // SAFETY: `text` is valid for the call, which needs no context.
    if unsafe { function(driver)(result, &mut text) } != CUresult::SUCCESS || text.is_null() {
        return unknown();
    }
    // SAFETY: the driver returns static strings.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Writes down a failure that has nobody to go to.
pub(crate) fn log_failure(what: &'static str, result: Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, "{what}");
    }
}
