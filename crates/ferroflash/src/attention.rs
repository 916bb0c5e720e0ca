//! Attention: its options, the problems it is posed, the plan of a call, and the call.

mod check;
mod choose;
mod forward;
mod options;
mod params;
pub(crate) mod plan;
mod problem;
mod request;

pub use forward::{Output, RawTensor};
pub use options::{Attention, KernelChoice};
pub use plan::Plan;
pub use problem::{Problem, Sequences, Sizes};
