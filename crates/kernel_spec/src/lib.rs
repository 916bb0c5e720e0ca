//! The contract between the device kernels and the host: the rows of compiled kernels, the parameter structs that both sides read,
//! the masks, and the layout of tiles in shared memory.
//!
//! What every kernel has is at the top: [`Entry`], [`Features`], [`Carve`], [`layout`]. What only one family of kernels has, its rows and
//! its parameters, is in [`families`]; [`entries`] lists the entry points of all of them.
//!
//! The crate is `no_std`, depends on nothing, and all of its arithmetic is `const fn`, so that the same line of code decides on
//! the GPU, in the host's plan and in host tests. Axes are called `batch`, `q_head`, `kv_head`, `q_row`, `kv_row` and `dim`;
//! strides count elements.
#![no_std]

// The host's side alone edits text.
#[cfg(not(target_arch = "nvptx64"))]
extern crate alloc;

pub mod copy_engine;
mod divisor;
mod dtype;
mod entry;
pub mod families;
mod features;
pub mod layout;
mod mask;
pub mod philox;
pub mod schedule;
mod shared;
#[cfg(not(target_arch = "nvptx64"))]
mod specialise;

pub use copy_engine::TensorMap;
pub use divisor::Divisor;
pub use dtype::DType;
pub use entry::{Arch, Entry};
pub use families::forward::{
    COMPILED_HEAD_DIMS, FORWARD_SLOTS, ForwardFeatures, ForwardParams, Kernel, MAX_HEAD_DIM, NaiveParams, Pass, Policy,
    SOFTMAX_ROWS_PER_CTA, TensorParams, V3Params, VARIANTS, Variant,
};
pub use families::{Unit, entries};
pub use features::{FeatureSet, Features};
pub use mask::{Band, KvBlocks, MAX_ROWS, Mask, Steps};
pub use shared::Carve;
#[cfg(not(target_arch = "nvptx64"))]
pub use specialise::{SpecialiseError, specialise};
