//! Softmax of rows, forward and backward.

mod backward;
mod cut;
mod forward;

pub use backward::SoftmaxGradient;
pub use forward::SoftmaxOutput;

use crate::error::{OperatorError, Result};
use crate::tensor::{BoolView, TensorView};

/// Softmax of rows, with its options:
///
/// ```text
/// out = softmax(scale x + mask)        or its logarithm
/// ```
///
/// Rows are along the last axis, whose elements lie side by side, up to 2^24 of them; all other axes are those of rows, with any strides of which at
/// most three step through rows in ways of their own, once axes that continue each other in all tensors are one.
///
/// | tensor | shape | element type |
/// | --- | --- | --- |
/// | x, out | any | f32, f16 or bf16, both the same |
/// | mask | that of x | that of x, or f32, or booleans |
///
/// A mask of numbers is added: minus infinity hides a column, any other number biases it. One of booleans shows the columns where it is true, and hides what is
/// in the others, whatever that is. A mask that is the same for several rows is a view with strides of 0 (see
/// [`TensorView`]). With [`Softmax::causal`], the rows of the last axis before the columns are query rows, aligned to the end of the columns: row `i` of `R`
/// sees the first `i + 1 + columns - R` columns.
///
/// Numbers are computed in f32. What is hidden, and a number of minus infinity, gives 0; a row without a number that it sees gives zeros, as attention
/// does; of the logarithm, minus infinity. A NaN or plus infinity that a row sees makes all of the row NaN.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::operators::Softmax;
/// use ferroflash::{Device, Layout, Tensor};
/// let device = Device::emulator()?;
/// let x = Tensor::from_slice(&device, &[0.0, 3f32.ln(), 0.0, 3f32.ln()], [2, 2], Layout::RowMajor)?;
/// // Of two rows, the first sees one column.
/// let out = Softmax::new().causal(true).forward(&x.view())?.out.to_vec::<f32>()?;
/// assert!(out.iter().zip([1.0, 0.0, 0.25, 0.75]).all(|(found, right)| (found - right).abs() < 1e-6));
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Softmax<'a> {
    pub(super) scale: f32,
    pub(super) mask: Option<TensorView<'a>>,
    pub(super) bool_mask: Option<BoolView<'a>>,
    pub(super) causal: bool,
    pub(super) log: bool,
    pub(super) clusters: bool,
}

impl Default for Softmax<'_> {
    fn default() -> Self {
        Softmax { scale: 1.0, mask: None, bool_mask: None, causal: false, log: false, clusters: true }
    }
}

impl<'a> Softmax<'a> {
    /// Of the rows as they are.
    pub fn new() -> Softmax<'a> {
        Softmax::default()
    }

    /// The logarithm of the softmax.
    pub fn log() -> Softmax<'a> {
        Softmax { log: true, ..Softmax::default() }
    }

    /// Multiplies the rows with this first; any finite number.
    pub fn with_scale(mut self, scale: f32) -> Softmax<'a> {
        self.scale = scale;
        self
    }

    /// Adds this to the rows, behind the scale. It has no gradient here.
    pub fn with_mask(mut self, mask: &TensorView<'a>) -> Softmax<'a> {
        self.mask = Some(*mask);
        self
    }

    /// Shows the columns where this is true, and hides the others; in the place of a mask that is added.
    pub fn with_bool_mask(mut self, mask: &BoolView<'a>) -> Softmax<'a> {
        self.bool_mask = Some(*mask);
        self
    }

    /// Whether query rows see no later column.
    pub fn causal(mut self, causal: bool) -> Softmax<'a> {
        self.causal = causal;
        self
    }

    /// Whether the thread blocks of a cluster may share a row, where the device has clusters: on without this. What every GPU does instead is what
    /// is left without.
    pub fn with_clusters(mut self, clusters: bool) -> Softmax<'a> {
        self.clusters = clusters;
        self
    }

    fn name(&self) -> &'static str {
        if self.log { "log_softmax" } else { "softmax" }
    }

    /// What is wrong with the options, whatever x is.
    fn check_options(&self) -> Result<()> {
        if self.mask.is_some() && self.bool_mask.is_some() {
            return Err(OperatorError::Both { first: "mask", second: "bool_mask" }.into());
        }
        if self.scale.is_finite() { Ok(()) } else { Err(OperatorError::Scale { found: self.scale }.into()) }
    }
}
