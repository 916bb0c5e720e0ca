// Its example runs on a device, and only the emulator is everywhere.
#![cfg_attr(feature = "emulator", doc = include_str!("../README.md"))]
#![cfg_attr(not(feature = "emulator"), doc = "Exact attention, with every GPU kernel written in Rust.")]
#![cfg_attr(
    not(any(cuda, feature = "emulator")),
    allow(dead_code, reason = "a build without devices launches nothing; plans, checks and the reference remain")
)]

mod attention;
mod backend;
mod device;
pub mod dropout;
mod error;
pub mod operators;
mod plain;
mod plan;
mod ptx;
pub mod reference;
pub mod score;
mod specialise;
mod tensor;
mod tensor_map;
#[cfg(test)]
mod tests;

pub use attention::{
    Attention, BackwardPlan, Gradients, GradientsViewMut, KernelChoice, KvCache, KvCacheMut, MergePlan, Merged,
    NewRows, Output, OutputGradients, PackedRows, PageTable, Part, Plan, Problem, QueryRows, RawTensor, Rotary,
    Sequences, Sizes, Splits, merge, merge_into, plan_merge,
};
pub use device::{Device, DeviceInfo, DeviceKind, EmulatorConfig, Event, Graph, MemoryUse, Stream, StreamOptions};
pub use dropout::Dropout;
pub use error::{
    AxesError, BindError, DropoutError, Error, MergeError, Operand, OperatorError, ProgramError, Result,
    SequencesError, SinkError, Unsupported, Version,
};
/// The list of compiled kernels and the words it is written in, from the crate `kernel_spec`, of which they are public on purpose: what a
/// plan names, a test visits and a benchmark compares.
pub use kernel_spec::{Arch, DType, Entry, FeatureSet, Kernel, Mask, Pass, VARIANTS, Variant, entries};
pub use plan::{Binding, Buffer, Step};
pub use ptx::{embedded_entries, text as embedded_ptx};
pub use specialise::Specialised;
pub use tensor::{
    BoolTensor, BoolView, Dims, Element, HeadsView, Indices, IndicesView, Layout, Lse, LseShape, LseView, LseViewMut,
    MAX_RANK, Shape, Strides, Tensor, TensorView, TensorViewMut,
};

/// The element types of tensors in half precision, from the crate `half`.
pub use half::{bf16, f16};
