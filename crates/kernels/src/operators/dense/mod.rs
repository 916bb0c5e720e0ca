//! Dense layers: a product of matrices, and what is done to it before it leaves.
//!
//! [`portable`] runs everywhere, [`hopper`] on Hopper's asynchronous units. Both have the same [`epilogue`], and both multiply operands as they lie in memory:
//! those of the output, and those of both gradients. [`gradient`] is what comes before these, through the activation.

mod activation;
pub mod epilogue;
#[cfg(not(target_feature = "sm_90a"))]
pub mod gradient;
#[cfg(target_feature = "sm_90a")]
pub mod hopper;
#[cfg(not(target_feature = "sm_90a"))]
pub mod portable;
#[cfg(not(target_feature = "sm_90a"))]
mod slope;

use kernel_spec::FeatureSet;
use kernel_spec::families::dense::features::is_gated;
use kernel_spec::families::dense::{DenseParams, Memory, Variant};

/// What a row of the list makes of a kernel.
pub trait Config {
    /// The row.
    const ROW: &'static Variant;
    /// How the thread block divides up its shared memory.
    const MEMORY: Memory = Memory::of(Self::ROW.engine, Self::ROW.dtype, &Self::ROW.tile);
    /// Whether `a`, and `b`, have what is summed over in their rows.
    const DEPTH_IN_ROWS: [bool; 2] = Self::ROW.pass.depth_in_rows();

    /// The activation, which rows without one have as a constant.
    #[inline(always)]
    fn activation(p: &DenseParams) -> FeatureSet {
        if const { Self::ROW.pass.accepts().is_empty() } { FeatureSet::NONE } else { p.features.set() }
    }

    /// Whether two sums make one number of the output.
    #[inline(always)]
    fn is_gated(p: &DenseParams) -> bool {
        is_gated(Self::activation(p))
    }
}
