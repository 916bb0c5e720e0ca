//! What does not fit together in a merge of partial results.

use super::names::Operand;
use kernel_spec::DType;

/// Why partial results are not merged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// There is nothing to merge, and no shape for a result.
    #[error("no partial results were given; a merge takes 1 or more")]
    NoParts,
    /// A tensor has another number of axes.
    #[error("{tensor} has {found} axes; 4 are accepted (batch, row, head, dim), or 3 of packed rows (row, head, dim)")]
    AxisCount {
        /// The tensor.
        tensor: Operand,
        /// Number of its axes.
        found: usize,
    },
    /// Shapes differ.
    #[error("{tensor} has shape {found:?}, part 0 has {expected:?}; they must be equal")]
    Shape {
        /// The tensor that differs.
        tensor: Operand,
        /// Its shape.
        found: Vec<usize>,
        /// That of the first part.
        expected: Vec<usize>,
    },
    /// A log-sum-exp is not that of such outputs.
    #[error("{tensor} is [batch, head, row] = {found:?}; that of part 0 is {expected:?}, and so it must be")]
    Lse {
        /// The log-sum-exp.
        tensor: Operand,
        /// Its extents.
        found: [usize; 3],
        /// Those that go with the outputs.
        expected: [usize; 3],
    },
    /// Element types of parts differ.
    #[error("{tensor} holds {found}, part 0 holds {expected}; they must be equal")]
    PartDType {
        /// The part that differs.
        tensor: Operand,
        /// Its element type.
        found: DType,
        /// That of the first part.
        expected: DType,
    },
    /// Parts of one type of 16 bits, and an output of the other.
    #[error("parts of {parts} do not go into an output of {out}; their own type and f32 are accepted")]
    OutDType {
        /// Element type of the parts.
        parts: DType,
        /// Element type of the output.
        out: DType,
    },
    /// Tensors are on different devices.
    #[error("{tensor} is on device {found}, part 0 is on {expected}; they must be on the same device")]
    Device {
        /// The tensor.
        tensor: Operand,
        /// Its device.
        found: String,
        /// That of the first part.
        expected: String,
    },
}
