//! The four axes of attention by name, and the order of axes in memory.

use super::dims::Dims;
use crate::error::{Error, Result};

/// Order of the axes of a contiguous tensor in memory, the slowest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// `[batch, row, head, dim]`, as FlashAttention's own packages take it.
    #[default]
    Bshd,
    /// `[batch, head, row, dim]`, as PyTorch's `scaled_dot_product_attention` takes it.
    Bhsd,
    /// The order in which the axes are listed, whatever they mean and however many there are. For the four axes of attention it is
    /// [`Layout::Bshd`].
    RowMajor,
}

impl Layout {
    /// The axes of a tensor of this rank from the slowest to the fastest in memory.
    ///
    /// # Errors
    /// [`Error::Rank`] for [`Layout::Bhsd`] and [`Layout::Bshd`] of any number but four.
    pub(crate) fn order(self, rank: usize) -> Result<&'static [usize]> {
        const ROW_MAJOR: [usize; super::dims::MAX_RANK] = [0, 1, 2, 3, 4, 5, 6, 7];
        match self {
            Layout::RowMajor => Ok(&ROW_MAJOR[..rank]),
            Layout::Bshd | Layout::Bhsd if rank != 4 => Err(Error::Rank { found: rank }),
            Layout::Bshd => Ok(&ROW_MAJOR[..4]),
            Layout::Bhsd => Ok(&[0, 2, 1, 3]),
        }
    }
}

/// Extents of the four axes of attention, whatever their order in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Rows (tokens) of a sequence.
    pub rows: usize,
    /// Heads.
    pub heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
}

impl Shape {
    /// A shape from its four extents.
    pub const fn new(batch: usize, rows: usize, heads: usize, head_dim: usize) -> Shape {
        Shape { batch, rows, heads, head_dim }
    }

    /// A shape from a list of extents in the order of `layout`.
    ///
    /// # Errors
    /// [`Error::Rank`] when there are not four.
    pub fn from_dims(dims: &[usize], layout: Layout) -> Result<Shape> {
        let &[batch, second, third, head_dim] = dims else { return Err(Error::Rank { found: dims.len() }) };
        let (rows, heads) = match layout {
            Layout::Bshd | Layout::RowMajor => (second, third),
            Layout::Bhsd => (third, second),
        };
        Ok(Shape { batch, rows, heads, head_dim })
    }

    /// Number of elements, or `None` when it does not fit into `usize`.
    pub fn elements(&self) -> Option<usize> {
        elements(&Dims::from(*self))
    }

    /// Strides of a contiguous tensor of this shape in the order of `layout`.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when the number of elements does not fit into 64 bits.
    pub fn contiguous(&self, layout: Layout) -> Result<Strides> {
        Strides::from_dims(&contiguous(&Dims::from(*self), layout)?, Layout::Bshd)
    }
}

impl From<Shape> for Dims {
    fn from(shape: Shape) -> Dims {
        Dims::from([shape.batch, shape.rows, shape.heads, shape.head_dim])
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shape { batch, rows, heads, head_dim } = self;
        write!(f, "[batch {batch}, rows {rows}, heads {heads}, head_dim {head_dim}]")
    }
}

/// Distances in elements between neighbours along each axis of attention. 0 repeats the same memory (inputs only).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Strides {
    /// From one batch entry to the next.
    pub batch: usize,
    /// From one row to the next.
    pub row: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one column to the next. Attention accepts only 1.
    pub dim: usize,
}

impl Strides {
    /// Strides with contiguous columns.
    pub const fn new(batch: usize, row: usize, head: usize) -> Strides {
        Strides { batch, row, head, dim: 1 }
    }

    /// Strides from a list in the order of `layout`.
    ///
    /// # Errors
    /// [`Error::Rank`] when there are not four.
    pub fn from_dims(strides: &[usize], layout: Layout) -> Result<Strides> {
        let Shape { batch, rows: row, heads: head, head_dim: dim } = Shape::from_dims(strides, layout)?;
        Ok(Strides { batch, row, head, dim })
    }
}

impl From<Strides> for Dims {
    fn from(strides: Strides) -> Dims {
        Dims::from([strides.batch, strides.row, strides.head, strides.dim])
    }
}

impl std::fmt::Display for Strides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Strides { batch, row, head, dim } = self;
        write!(f, "[batch {batch}, row {row}, head {head}, dim {dim}]")
    }
}

/// Number of elements, or `None` when it does not fit into `usize`.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    // A product of extents of which one is 0 is 0, however large the others are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().copied().try_fold(1usize, usize::checked_mul)
}

/// Strides of a contiguous tensor in the order of `layout`.
pub(crate) fn contiguous(shape: &Dims, layout: Layout) -> Result<Dims> {
    let mut strides = *shape;
    elements(shape).ok_or_else(|| Error::TooLarge { shape: shape.to_vec(), strides: Vec::new() })?;
    // An empty axis may hide an overflow of the others, which only a saturating product survives; no element is there then.
    let mut stride = 1usize;
    for &axis in layout.order(shape.len())?.iter().rev() {
        strides[axis] = stride;
        stride = stride.saturating_mul(shape[axis]);
    }
    Ok(strides)
}
