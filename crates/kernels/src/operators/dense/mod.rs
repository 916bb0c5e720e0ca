//! Dense layers: a product of matrices, and what is done to it before it leaves.
//!
//! [`portable`] runs everywhere, [`hopper`] on Hopper's asynchronous units. Both have the same [`epilogue`], and both multiply operands as they lie in memory:
//! those of the output, and those of both gradients. [`gradient`] is what comes before these, through the activation. Where the sums are the logits of a loss, which
//! never leave, the epilogues are those of [`losses`].

mod activation;
mod columns;
pub mod epilogue;
#[cfg(not(target_feature = "sm_90a"))]
pub mod gradient;
#[cfg(target_feature = "sm_90a")]
pub mod hopper;
pub mod losses;
#[cfg(not(target_feature = "sm_90a"))]
pub mod portable;
#[cfg(not(target_feature = "sm_90a"))]
mod slope;

use kernel_spec::FeatureSet;
use kernel_spec::families::dense::features::is_gated;
use kernel_spec::families::dense::{DenseParams, Memory, Pass, Variant};

use crate::operators::dense::columns::{Columns, Four};
use crate::parts::element::Element;
use crate::parts::fragments::Fragments;

/// Where the biases of a tile are.
pub trait Biases: Copy {
    /// Those of the columns that four fragments have from fragment `first` of the product on, `before` columns further on in memory; zeros without biases. `columns`
    /// are the first of these, and whether they move in whole pieces.
    ///
    /// # Safety
    /// Converged warp; the columns below their number have biases, if there are any.
    unsafe fn of<T: Element>(&self, p: &DenseParams, columns: (u32, bool), first: usize, before: u32) -> Four;
}

/// How rows of the output, in the type of the operands, get to memory.
pub trait Outlet {
    /// Makes room for what four fragments from fragment `first` of the output on put.
    ///
    /// # Safety
    /// Converged warp.
    unsafe fn begin(&mut self, first: usize);

    /// Rounds and writes row `row` of these columns: of four fragments, from fragment `first` of the output on, the upper (`half = 0`) or the lower one. What does
    /// not exist is left out.
    ///
    /// # Safety
    /// Converged warp, behind [`begin`](Self::begin); no other warp writes there.
    unsafe fn put<T: Element>(&mut self, p: &DenseParams, own: &Columns<T>, row: u32, place: [usize; 2], values: Four);

    /// Both halves of the four fragments from `first` on are put.
    ///
    /// # Safety
    /// Converged warp.
    unsafe fn end(&mut self, first: usize);
}

/// How sums leave a kernel, and the parameters that say so.
pub trait Epilogue {
    /// All parameters of the kernel, but for Hopper's maps.
    type Params;

    /// Those of the product.
    fn product(p: &Self::Params) -> &DenseParams;

    /// Leaves a warp's part of the product: 16 rows a fragment from row `row` on, and 8 columns of the output a fragment from column `col` on. What does not exist
    /// is left out.
    ///
    /// `biases` says where those of the tile are, `outlet` takes the output, of just these rows and columns. `ALIGNED`: what a layer reads and writes beside operands moves in whole pieces; else the parameters say whether it does.
    ///
    /// # Safety
    /// All threads of the warp, converged; no other warp has these rows and columns.
    unsafe fn leave<C: Config, T: Element, F: Fragments, const ALIGNED: bool>(
        p: &Self::Params,
        acc: &F,
        biases: impl Biases,
        outlet: impl Outlet,
        row: u32,
        col: u32,
    );
}

/// The epilogue of each pass, by its name.
pub mod passes {
    pub use super::epilogue::{Layer as Forward, Layer as InputGradient, Layer as WeightGradient};
    pub use super::losses::{LogitGradient, Losses};
}

/// What a row of the list makes of a kernel.
pub trait Config {
    /// The row.
    const ROW: &'static Variant;
    /// How the thread block divides up its shared memory.
    const MEMORY: Memory = Memory::of(Self::ROW.pass, Self::ROW.engine, Self::ROW.dtype, &Self::ROW.tile);
    /// Whether `a`, and `b`, have what is summed over in their rows.
    const DEPTH_IN_ROWS: [bool; 2] = Self::ROW.pass.depth_in_rows();

    /// How sums leave.
    type Epilogue: Epilogue;

    /// The activation, which passes without one have as a constant.
    #[inline(always)]
    fn activation(p: &DenseParams) -> FeatureSet {
        if const { matches!(Self::ROW.pass, Pass::Forward) } { p.features.set() } else { FeatureSet::NONE }
    }

    /// Whether the feature of this slot is on, of the gradient of x; a constant elsewhere.
    #[inline(always)]
    fn is_wide(p: &DenseParams, slot: u32) -> bool {
        matches!(Self::ROW.pass, Pass::InputGradient) && p.features.has(slot)
    }

    /// Whether two sums make one number of the output.
    #[inline(always)]
    fn is_gated(p: &DenseParams) -> bool {
        if const { Self::ROW.takes_gates() } { is_gated(Self::activation(p)) } else { false }
    }
}
