//! Attention: its options, the problems it is posed, the plans of calls, forward and backward, the calls, and the merge of their results.

mod backward;
mod blocks;
mod check;
mod choose;
mod forward;
mod merge;
mod options;
mod params;
pub(crate) mod plan;
mod problem;
mod request;
mod sequences;
mod sinks;

pub use backward::plan::BackwardPlan;
pub use backward::{Gradients, GradientsViewMut, OutputGradients};
pub use forward::{Output, RawTensor};
pub use merge::{MergePlan, Merged, Part, merge, merge_into, plan_merge};
pub use options::{Attention, KernelChoice, Splits};
pub use plan::Plan;
pub use problem::{Problem, QueryRows, Sequences, Sizes};
pub use sequences::{KvCache, KvCacheMut, NewRows, PackedRows, PageTable, Rotary};
