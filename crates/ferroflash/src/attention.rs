//! Attention: its options, the problems it is posed, the plans of calls, forward and backward, and the calls.

mod backward;
mod check;
mod choose;
mod forward;
mod options;
mod params;
pub(crate) mod plan;
mod problem;
mod request;
mod sequences;

pub use backward::plan::BackwardPlan;
pub use backward::{Gradients, GradientsViewMut, OutputGradients};
pub use forward::{Output, RawTensor};
pub use options::{Attention, KernelChoice, Splits};
pub use plan::Plan;
pub use problem::{Problem, QueryRows, Sequences, Sizes};
pub use sequences::{KvCache, KvCacheMut, NewRows, PackedRows, PageTable, Rotary};
