//! Memory of cudarc read as the tensors of attention.

use crate::Result;
use cudarc::driver::{DevicePtr, DevicePtrMut};
use ferroflash::{Element, Layout, Shape, Strides};
use std::fmt;

/// A `CudaSlice`, `CudaView` or `CudaViewMut` read as a tensor `[batch, row, head, dim]`, which starts with its first element.
///
/// Any strides with contiguous columns are accepted. Whether the slice is long enough is checked by the functions that take the view.
pub struct View<'a, T> {
    pub(crate) data: &'a dyn DevicePtr<T>,
    pub(crate) shape: Shape,
    pub(crate) strides: Strides,
}

/// A `CudaSlice` or `CudaViewMut` that a tensor `[batch, row, head, dim]` is written to; see [`View`].
///
/// Elements that lie between those of the tensor stay as they are.
pub struct ViewMut<'a, T> {
    pub(crate) data: &'a mut dyn DevicePtrMut<T>,
    pub(crate) shape: Shape,
    pub(crate) strides: Strides,
}

impl<'a, T: Element> View<'a, T> {
    /// A tensor with these strides, counted in elements.
    pub fn new(data: &'a impl DevicePtr<T>, shape: Shape, strides: Strides) -> View<'a, T> {
        View { data, shape, strides }
    }

    /// A tensor without gaps, its axes in the order of `layout`.
    ///
    /// # Errors
    /// [`ferroflash::Error::TooLarge`] when the number of elements does not fit into 64 bits.
    pub fn contiguous(data: &'a impl DevicePtr<T>, shape: Shape, layout: Layout) -> Result<View<'a, T>> {
        Ok(View::new(data, shape, shape.contiguous(layout)?))
    }
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// A tensor with these strides, counted in elements.
    pub fn new(data: &'a mut impl DevicePtrMut<T>, shape: Shape, strides: Strides) -> ViewMut<'a, T> {
        ViewMut { data, shape, strides }
    }

    /// A tensor without gaps, its axes in the order of `layout`.
    ///
    /// # Errors
    /// [`ferroflash::Error::TooLarge`] when the number of elements does not fit into 64 bits.
    pub fn contiguous(data: &'a mut impl DevicePtrMut<T>, shape: Shape, layout: Layout) -> Result<ViewMut<'a, T>> {
        Ok(ViewMut::new(data, shape, shape.contiguous(layout)?))
    }
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<T> fmt::Debug for View<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, shape, strides) = (self.data.len(), &self.shape, &self.strides);
        f.debug_struct("View").field("len", &len).field("shape", shape).field("strides", strides).finish()
    }
}

impl<T> fmt::Debug for ViewMut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, shape, strides) = (self.data.len(), &self.shape, &self.strides);
        f.debug_struct("ViewMut").field("len", &len).field("shape", shape).field("strides", strides).finish()
    }
}
