//! Tensors read as `[batch, row, head, dim]`.

use super::shape::{Layout, Shape, Strides};
use super::view::TensorView;
use crate::error::{Error, Result};
use std::ops::Range;

/// A tensor of four axes read as `[batch, row, head, dim]`, whatever their order in memory. Derefs to the [`TensorView`] whose axes
/// these are, so that it goes wherever attention takes a view.
#[derive(Clone, Copy, Debug)]
pub struct HeadsView<'a>(TensorView<'a>);

impl<'a> TensorView<'a> {
    /// Reads the axes of this view as those that `layout` lists.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Attention, DType, Device, Layout, Tensor};
    /// let device = Device::emulator()?;
    /// // As PyTorch has it: 2 heads of 5 rows of 32 dims.
    /// let x = Tensor::zeros(&device, DType::F32, [1, 2, 5, 32], Layout::RowMajor)?;
    /// let heads = x.view().as_heads(Layout::Bhsd)?;
    /// assert_eq!((heads.shape().rows, heads.shape().heads, heads.strides().head), (5, 2, 5 * 32));
    /// let last = heads.rows(4..5)?;
    /// let output = Attention::new().forward(&last, &heads, &heads)?;
    /// assert_eq!(output.out.shape()[..], [1, 1, 2, 32]);
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Rank`] for any number of axes but four.
    pub fn as_heads(&self, layout: Layout) -> Result<HeadsView<'a>> {
        match self.shape().len() {
            4 => Ok(HeadsView(self.permute(layout.order(4)?)?)),
            found => Err(Error::Rank { found }),
        }
    }
}

impl<'a> std::ops::Deref for HeadsView<'a> {
    type Target = TensorView<'a>;

    fn deref(&self) -> &TensorView<'a> {
        &self.0
    }
}

impl<'a> HeadsView<'a> {
    /// Extents of the axes by name.
    pub fn shape(&self) -> Shape {
        let [batch, rows, heads, head_dim] = self.axes().map(|(extent, _)| extent);
        Shape { batch, rows, heads, head_dim }
    }

    /// Strides of the axes by name, in elements.
    pub fn strides(&self) -> Strides {
        let [batch, row, head, dim] = self.axes().map(|(_, stride)| stride);
        Strides { batch, row, head, dim }
    }

    /// These rows of every sequence.
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn rows(&self, rows: Range<usize>) -> Result<HeadsView<'a>> {
        Ok(HeadsView(self.0.narrow_named(1, rows, Some("rows"))?))
    }

    /// These heads.
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn heads(&self, heads: Range<usize>) -> Result<HeadsView<'a>> {
        Ok(HeadsView(self.0.narrow_named(2, heads, Some("heads"))?))
    }

    /// Axes as `(extent, stride)`: batch, row, head, dim.
    pub(crate) fn axes(&self) -> [(usize, usize); 4] {
        let (shape, strides) = (self.0.shape(), self.0.strides());
        std::array::from_fn(|axis| (shape[axis], strides[axis]))
    }

    /// The order of axes for an output that goes with this view: the longer of the strides of rows and heads decides.
    pub(crate) fn memory_order(&self) -> Layout {
        let (shape, strides) = (self.shape(), self.strides());
        // The stride of an axis of extent 1 says nothing, and both orders are the same memory then.
        if shape.rows > 1 && shape.heads > 1 && strides.head > strides.row { Layout::Bhsd } else { Layout::Bshd }
    }
}
