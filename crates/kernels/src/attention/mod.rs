//! Exact attention, `out = softmax(scale * q k^T + mask) v`, as four generations of one kernel.
//!
//! | module | algorithm | work of a warp | extra memory |
//! | --- | --- | --- | --- |
//! | [`naive`] | scores and probabilities in device memory | 16 or 32 query rows | quadratic |
//! | [`v1`] | FlashAttention: online softmax, output normalised at every step | a slice of the keys, all query rows | linear |
//! | [`v2`] | FlashAttention-2: normalisation deferred to the end | 16 or 32 query rows, all keys | linear |
//! | `v3` | FlashAttention-3: Hopper's asynchronous copies and products | 16 query rows of a warpgroup's 64, all keys | linear |

use kernel_spec::Variant;

use crate::attention::exponent::Exponent;
use crate::parts::element::Element;
use crate::parts::shared_tile::ThreadBlock;

pub mod backward;
#[cfg(not(target_feature = "sm_90a"))]
pub mod blocks;
pub mod dropout;
pub mod exact;
pub mod exchange;
pub mod exponent;
#[cfg(not(target_feature = "sm_90a"))]
pub mod merge;
pub mod naive;
pub mod online_softmax;
pub mod query_block;
pub mod score;
pub mod sequences;
pub mod sink;
pub mod softcap;
pub mod stream;
pub mod v1;
pub mod v2;
// Hopper only: its instructions are text that LLVM does not check against the architecture.
#[cfg(target_feature = "sm_90a")]
pub mod v3;

/// What a kernel is compiled for: a row of `kernel_spec`, as a type without values.
///
/// Every kernel has a trait of its own with what follows from the row. Associated types carry what is a size in a type, which stable
/// Rust cannot compute from constants of a type parameter; constants carry the rest.
pub trait Config: ThreadBlock {
    /// The row.
    const ROW: &'static Variant;
    /// Element type of q, k and v.
    type T: Exponent;
    /// Element type of the output.
    type Out: Element;
}
