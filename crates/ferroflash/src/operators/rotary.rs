//! Rotary embedding.

mod call;
mod plan;

use super::plan::OperatorPlan;
use crate::tensor::{IndicesView, Tensor, TensorView};

/// Where the positions of rows come from.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum RotaryPositions<'a> {
    /// Row `i` of a batch entry, or of a packed sequence, has position `offset + i`.
    Offset(usize),
    /// Row `i` of batch entry or sequence `b` has position `offsets[b] + i`: as many numbers as there are entries or sequences.
    Offsets(IndicesView<'a>),
    /// Each row has a position of its own: as many numbers as there are rows in all batch entries, in their order.
    Each(IndicesView<'a>),
}

/// Rotary embedding (Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, section 3.4.2): of each row and head, the pairs of
/// the first `turned` columns are turned by the angles that the tables have for the row's position:
///
/// ```text
/// x' = x cos - y sin        y' = x sin + y cos
/// ```
///
/// | tensor | shape | element type |
/// | --- | --- | --- |
/// | x, out | `[batch, rows, heads, columns]` or `[rows, heads, columns]` | f32, f16 or bf16, both the same |
/// | cos, sin | `[positions, turned / 2]`, contiguous | that of x, or f32, both the same |
/// | offsets, positions, starts | see [`RotaryPositions`], [`Rotary::with_starts`] | i32 on the device |
///
/// The last axis of x and out is contiguous; all other strides are free. `turned` is at most `columns`, and what lies behind is copied, or left alone in
/// place. It is computed in f32 and rounded once.
///
/// Numbers on the device are neither read on the host nor believed: a position below 0 is taken for 0, and one behind the tables for their last. An offset
/// that the host gives is checked against the tables where the rows of an entry are known.
///
/// Queries and keys are a call each, unless they lie in one tensor, as behind a fused projection: a view of the heads of both is one x, and one launch.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::operators::Rotary;
/// use ferroflash::{Device, Layout, Tensor};
/// let device = Device::emulator()?;
/// // One row at position 0 and one at position 1, which is turned by a quarter.
/// let cos = Tensor::from_slice(&device, &[1.0f32, 0.0], [2, 1], Layout::RowMajor)?;
/// let sin = Tensor::from_slice(&device, &[0.0f32, 1.0], [2, 1], Layout::RowMajor)?;
/// let x = Tensor::from_slice(&device, &[1.0f32, 2.0, 9.0, 1.0, 2.0, 9.0], [2, 1, 3], Layout::RowMajor)?;
/// let turned = Rotary::new(&cos.view(), &sin.view()).forward(&x.view())?;
/// assert_eq!(turned.out.to_vec::<f32>()?, [1.0, 2.0, 9.0, -2.0, 1.0, 9.0]);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Rotary<'a> {
    cos: TensorView<'a>,
    sin: TensorView<'a>,
    interleaved: bool,
    conjugate: bool,
    positions: RotaryPositions<'a>,
    starts: Option<IndicesView<'a>>,
}

/// What [`Rotary::forward`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct RotaryOutput {
    /// The rows, turned: contiguous.
    pub out: Tensor,
    /// What was launched.
    pub plan: OperatorPlan,
}

/// What [`Rotary::backward`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct RotaryGradients {
    /// With respect to x: contiguous.
    pub dx: Tensor,
    /// What was launched.
    pub plan: OperatorPlan,
}

impl<'a> Rotary<'a> {
    /// With these tables. Columns `i` and `turned / 2 + i` are pairs (GPT-NeoX), and row `i` has position `i`.
    pub fn new(cos: &TensorView<'a>, sin: &TensorView<'a>) -> Rotary<'a> {
        Rotary {
            cos: *cos,
            sin: *sin,
            interleaved: false,
            conjugate: false,
            positions: RotaryPositions::Offset(0),
            starts: None,
        }
    }

    /// Whether neighbours are pairs, columns `2 i` and `2 i + 1` (GPT-J).
    pub fn with_interleaved(mut self, interleaved: bool) -> Rotary<'a> {
        self.interleaved = interleaved;
        self
    }

    /// Where the positions of rows come from.
    pub fn with_positions(mut self, positions: RotaryPositions<'a>) -> Rotary<'a> {
        self.positions = positions;
        self
    }

    /// x holds packed sequences, `[tokens, heads, columns]`: these are the first token of each, and the number of all tokens behind the last, as for
    /// attention. The first token of a sequence is its row 0.
    ///
    /// Whatever the numbers are, each token belongs to a sequence: the last that starts at it or before it, or else the first. Rows that do not rise make
    /// it any of them.
    pub fn with_starts(mut self, starts: impl Into<Option<IndicesView<'a>>>) -> Rotary<'a> {
        self.starts = starts.into();
        self
    }

    /// The opposite turn, which takes this one back: that of the gradient.
    pub fn conjugate(mut self) -> Rotary<'a> {
        self.conjugate = !self.conjugate;
        self
    }
}
