//! Dense layers: a product of matrices, and what is done to it before it leaves.
//!
//! [`portable`] runs everywhere, [`hopper`] on Hopper's asynchronous units. Both have the same [`epilogue`].

mod activation;
pub mod epilogue;
#[cfg(target_feature = "sm_90a")]
pub mod hopper;
#[cfg(not(target_feature = "sm_90a"))]
pub mod portable;

use kernel_spec::families::dense::{Memory, Variant};

/// What a row of the list makes of a kernel.
pub trait Config {
    /// The row.
    const ROW: &'static Variant;
    /// How the thread block divides up its shared memory.
    const MEMORY: Memory = Memory::of(Self::ROW.engine, Self::ROW.dtype, &Self::ROW.tile);
}
