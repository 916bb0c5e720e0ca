//! What is wrong with the sinks of a call, or with their gradient.

use super::names::Operand;
use kernel_spec::DType;

/// Why sinks are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// Another element type.
    #[error("{tensor} holds {found}; f32 is accepted, whatever q holds")]
    DType {
        /// The sinks or their gradient.
        tensor: Operand,
        /// Its element type.
        found: DType,
    },
    /// Another shape.
    #[error("{tensor} has shape {found:?}; [{q_heads}] is accepted, a number for each query head")]
    Shape {
        /// The sinks or their gradient.
        tensor: Operand,
        /// Its shape.
        found: Vec<usize>,
        /// Query heads of the call.
        q_heads: usize,
    },
    /// A gradient of sinks is asked for, and the call has none.
    #[error("dsink was given for a call without sinks; it is accepted together with `Attention::with_sink`")]
    NoSink,
}
