//! The entry points: one for every row of the lists in `kernel_spec::families`, under the symbol that the row gives.

use cuda_std::prelude::*;

#[cfg(all(feature = "operators", not(target_feature = "sm_90a")))]
mod adamw;
#[cfg(feature = "attention")]
mod backward;
#[cfg(all(feature = "attention", not(target_feature = "sm_90a")))]
mod blocks;
#[cfg(feature = "operators")]
mod cross_entropy;
#[cfg(feature = "operators")]
mod dense;
#[cfg(all(feature = "operators", not(target_feature = "sm_90a")))]
mod embedding;
#[cfg(feature = "attention")]
mod forward;
#[cfg(all(feature = "operators", not(target_feature = "sm_90a")))]
mod gradient_norm;
#[cfg(all(feature = "attention", not(target_feature = "sm_90a")))]
mod merge;
#[cfg(feature = "operators")]
mod norm;
#[cfg(all(feature = "operators", not(target_feature = "sm_90a")))]
mod rotary;
#[cfg(feature = "attention")]
mod sequences;
#[cfg(feature = "operators")]
mod softmax;

// The rows name element types as `kernel_spec::DType` does.
#[cfg(any(feature = "operators", not(target_feature = "sm_90a")))]
type F32 = f32;
type F16 = f16;
type Bf16 = bf16;
