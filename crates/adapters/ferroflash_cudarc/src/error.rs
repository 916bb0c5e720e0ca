//! What can go wrong.

use cudarc::driver::DriverError;
use ferroflash::Operand;

/// Result of the functions of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. Nothing was launched, unless the error inside says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What ferroflash refuses, or what failed while it launched.
    #[error(transparent)]
    Ferroflash(#[from] ferroflash::Error),
    /// The stream is in a context that somebody made beside the GPU's primary one, where ferroflash's kernels are not.
    #[error(
        "the stream is in a context of cuda:{ordinal} that is not its primary one; contexts of `CudaContext::new` are accepted"
    )]
    NotPrimary {
        /// Number of the GPU.
        ordinal: usize,
    },
    /// Memory in another context than that of the stream.
    #[error(
        "{operand} is in a context of cuda:{found}, the stream in another, of cuda:{expected}; they must be in the same"
    )]
    ContextMismatch {
        /// The tensor.
        operand: Operand,
        /// Number of the GPU that holds it.
        found: usize,
        /// Number of the stream's GPU.
        expected: usize,
    },
    /// The options carry a program that is bound to tensors already: nothing is known here of who writes them, and on which stream.
    #[error(
        "the program {program} is bound to tensors already; programs whose tensors are slices are accepted \
         (`ferroflash_cudarc::Options::with_program`)"
    )]
    BoundElsewhere {
        /// Its name.
        program: String,
    },
    /// The options carry sinks that are a view already: nothing is known here of who writes them, and on which stream.
    #[error(
        "the sinks are a view already; sinks that are a slice are accepted (`ferroflash_cudarc::Options::with_sink`)"
    )]
    SinkElsewhere,
    /// A tensor that an operator needs.
    #[error("{operand} is not among the tensors of the call, which needs it")]
    NotGiven {
        /// The tensor.
        operand: Operand,
    },
    /// A tensor that an operator knows nothing of, or that it has already.
    #[error("{operand} is among the tensors of the call, which takes none, or has one already")]
    NotTaken {
        /// The tensor.
        operand: Operand,
    },
    /// The stream could not be made to wait for earlier work on the tensors, or an earlier call of cudarc that has no result of its own
    /// (that of a `Drop`) left this error.
    #[error("cudarc: {0}")]
    Cudarc(#[from] DriverError),
}
