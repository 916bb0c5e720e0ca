//! The contract between the device kernels and the host: one list of compiled variants, the parameter structs that both sides
//! read, the masks, and the layout of tiles in shared memory.
//!
//! The crate is `no_std`, depends on nothing, and all of its arithmetic is `const fn`, so that the same line of code decides on
//! the GPU, in the host's plan and in host tests. Axes are called `batch`, `q_head`, `kv_head`, `q_row`, `kv_row` and `dim`;
//! strides count elements.
#![no_std]

// The host's side alone edits text.
#[cfg(not(target_arch = "nvptx64"))]
extern crate alloc;

mod dtype;
mod entry;
mod features;
pub mod layout;
mod mask;
mod params;
#[cfg(not(target_arch = "nvptx64"))]
mod specialise;
pub mod v3;
mod variants;

pub use dtype::DType;
pub use entry::{Arch, Entry};
pub use features::{FeatureSet, Features};
pub use mask::{Band, KvBlocks, MAX_ROWS, Mask, Steps};
pub use params::{FORWARD_SLOTS, ForwardParams, NaiveParams, TensorMap, TensorParams, V3Params};
#[cfg(not(target_arch = "nvptx64"))]
pub use specialise::{SpecialiseError, specialise};
pub use variants::{COMPILED_HEAD_DIMS, Kernel, MAX_HEAD_DIM, Pass, SOFTMAX_ROWS_PER_CTA, VARIANTS, Variant};
