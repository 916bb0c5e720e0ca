//! Borrowed tensors of any rank.

use super::dims::Dims;
use super::element::Element;
use super::geometry::Geometry;
use super::overlap;
use crate::device::Device;
use crate::error::{Error, Result};
use kernel_spec::DType;
use std::ops::Range;

/// A borrowed tensor: an address, a shape, strides and an element type. Reads only.
///
/// It has any number of axes up to [`MAX_RANK`](crate::MAX_RANK). [`Attention`](crate::Attention) takes four, `[batch, row, head, dim]`;
/// [`TensorView::as_heads`] reads others as these.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::{Device, Layout, Tensor};
/// let device = Device::emulator()?;
/// let data: Vec<f32> = (0..24).map(|i| i as f32).collect();
/// let tensor = Tensor::from_slice(&device, &data, [2, 3, 4], Layout::RowMajor)?;
/// let view = tensor.view().narrow(1, 1..3)?.permute(&[1, 0, 2])?;
/// assert_eq!((&view.shape()[..], &view.strides()[..]), (&[2, 2, 4][..], &[4, 12, 1][..]));
/// assert_eq!(view.to_vec::<f32>()?[..8], [4., 5., 6., 7., 16., 17., 18., 19.]);
/// assert_eq!(tensor.view().reshape([6, 4])?.narrow(0, 5..6)?.to_vec::<f32>()?, [20., 21., 22., 23.]);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
///
/// Views are equal that see the same memory in the same way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    device: &'a Device,
    address: u64,
    geometry: Geometry,
}

impl<'a> TensorView<'a> {
    /// A view whose elements somebody else vouches for.
    pub(crate) fn new(device: &'a Device, address: u64, geometry: Geometry) -> TensorView<'a> {
        TensorView { device, address, geometry }
    }

    /// Uses memory of another framework in place. `address` is that of the first element, and `storage_elements` the number of elements
    /// from there to the end of the memory.
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::MisalignedAddress`], [`Error::TooLarge`], [`Error::Axes`].
    ///
    /// # Safety
    /// `storage_elements` elements from `address` on are device memory of `device`, live and not written for `'a` except by
    /// work that is ordered before the use of this view.
    pub unsafe fn from_raw(
        device: &'a Device,
        address: u64,
        storage_elements: usize,
        shape: impl Into<Dims>,
        strides: impl Into<Dims>,
        dtype: DType,
    ) -> Result<TensorView<'a>> {
        let geometry = Geometry::new(shape.into(), strides.into(), dtype)?;
        geometry.check_storage(0, storage_elements)?;
        geometry.check_address(address)?;
        Ok(TensorView { device, address, geometry })
    }

    /// The device that holds it.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.geometry.dtype
    }

    /// Extents of the axes.
    pub fn shape(&self) -> Dims {
        self.geometry.shape
    }

    /// Strides of the axes in elements.
    pub fn strides(&self) -> Dims {
        self.geometry.strides
    }

    /// Device address of the first element, that of index 0 along every axis.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The elements with these indices along one axis.
    ///
    /// # Errors
    /// [`Error::Axes`], [`Error::Range`].
    pub fn narrow(&self, axis: usize, range: Range<usize>) -> Result<TensorView<'a>> {
        self.narrow_named(axis, range, None)
    }

    pub(crate) fn narrow_named(
        &self,
        axis: usize,
        range: Range<usize>,
        name: Option<&'static str>,
    ) -> Result<TensorView<'a>> {
        let (geometry, offset) = self.geometry.narrow(axis, range, name)?;
        Ok(TensorView { address: self.address + (offset * self.dtype().bytes()) as u64, geometry, ..*self })
    }

    /// The axes in another order: axis `i` of the result is axis `order[i]`.
    ///
    /// # Errors
    /// [`Error::Axes`] when `order` does not name every axis once.
    pub fn permute(&self, order: &[usize]) -> Result<TensorView<'a>> {
        Ok(TensorView { geometry: self.geometry.permute(order)?, ..*self })
    }

    /// The same elements in the same logical order under another shape. Nothing is copied.
    ///
    /// # Errors
    /// [`Error::Axes`] for another number of elements, or where no strides give them in this order.
    pub fn reshape(&self, shape: impl Into<Dims>) -> Result<TensorView<'a>> {
        Ok(TensorView { geometry: self.geometry.reshape(shape.into())?, ..*self })
    }

    /// The elements in logical order, the last axis fastest. Waits for work on the device.
    ///
    /// # Errors
    /// [`Error::ElementType`], [`Error::Cuda`], [`Error::Emulator`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let geometry = &self.geometry;
        geometry.check_element::<T>()?;
        let mut memory = vec![T::zeroed(); geometry.span()?];
        if memory.is_empty() {
            return Ok(memory);
        }
        let bytes = bytemuck::cast_slice_mut(&mut memory);
        if geometry.is_logical_order() {
            self.device.backend().read(self.address, bytes)?;
            return Ok(memory);
        }
        self.device.backend().read_ranges(self.address, &geometry.byte_ranges(), bytes)?;
        let (extent, stride) = geometry.run();
        let mut logical = Vec::new();
        geometry.for_each_run(|start| match stride {
            1 => logical.extend_from_slice(&memory[start..start + extent]),
            _ => logical.extend((0..extent).map(|i| memory[start + i * stride])),
        });
        Ok(logical)
    }

    /// The exact values of the elements in logical order. Waits for work on the device.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::Emulator`].
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        fn values<T: Element>(view: &TensorView<'_>) -> Result<Vec<f64>> {
            Ok(view.to_vec::<T>()?.into_iter().map(T::to_f64).collect())
        }
        match self.dtype() {
            DType::F32 => values::<f32>(self),
            DType::F16 => values::<half::f16>(self),
            DType::Bf16 => values::<half::bf16>(self),
            other => unreachable!("{other} is no `Element`"),
        }
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }
}

/// A borrowed tensor for writing.
#[derive(Debug)]
pub struct TensorViewMut<'a>(TensorView<'a>);

impl<'a> TensorViewMut<'a> {
    /// A view of memory that the caller has to itself.
    pub(crate) fn new(view: TensorView<'a>) -> TensorViewMut<'a> {
        TensorViewMut(view)
    }

    /// Uses memory of another framework in place, for writing; see [`TensorView::from_raw`].
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::MisalignedAddress`], [`Error::TooLarge`], [`Error::Axes`].
    ///
    /// # Safety
    /// `storage_elements` elements from `address` on are device memory of `device`, live and used by nobody else for `'a`
    /// except by work that is ordered before the use of this view.
    pub unsafe fn from_raw(
        device: &'a Device,
        address: u64,
        storage_elements: usize,
        shape: impl Into<Dims>,
        strides: impl Into<Dims>,
        dtype: DType,
    ) -> Result<TensorViewMut<'a>> {
        // SAFETY: the caller promises more than a view for reading needs.
        Ok(TensorViewMut(unsafe { TensorView::from_raw(device, address, storage_elements, shape, strides, dtype)? }))
    }

    /// The same tensor for reading.
    pub fn view(&self) -> TensorView<'_> {
        self.0
    }

    /// The same tensor, whoever writes it from now on.
    pub(crate) fn into_view(self) -> TensorView<'a> {
        self.0
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.0.device
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    /// Extents of the axes.
    pub fn shape(&self) -> Dims {
        self.0.shape()
    }

    /// Strides of the axes in elements.
    pub fn strides(&self) -> Dims {
        self.0.strides()
    }

    /// The elements with these indices along one axis; see [`TensorView::narrow`].
    ///
    /// # Errors
    /// [`Error::Axes`], [`Error::Range`].
    pub fn into_narrow(self, axis: usize, range: Range<usize>) -> Result<TensorViewMut<'a>> {
        Ok(TensorViewMut(self.0.narrow(axis, range)?))
    }

    /// The axes in another order; see [`TensorView::permute`].
    ///
    /// # Errors
    /// [`Error::Axes`].
    pub fn into_permuted(self, order: &[usize]) -> Result<TensorViewMut<'a>> {
        Ok(TensorViewMut(self.0.permute(order)?))
    }

    /// The same elements under another shape; see [`TensorView::reshape`].
    ///
    /// # Errors
    /// [`Error::Axes`].
    pub fn into_reshaped(self, shape: impl Into<Dims>) -> Result<TensorViewMut<'a>> {
        Ok(TensorViewMut(self.0.reshape(shape)?))
    }

    /// Writes the elements from `data`, in logical order. What lies between them stays.
    ///
    /// # Errors
    /// [`Error::ElementType`], [`Error::DataLength`], [`Error::OutputOverlapsItself`], [`Error::Cuda`], [`Error::Emulator`].
    pub fn write<T: Element>(&mut self, data: &[T]) -> Result<()> {
        let TensorView { device, address, geometry } = self.0;
        geometry.check_element::<T>()?;
        geometry.check_len(data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        if geometry.is_logical_order() {
            return device.backend().write(address, bytemuck::cast_slice(data));
        }
        if overlap::overlaps_itself(&geometry) {
            let (shape, strides) = (geometry.shape.to_vec(), geometry.strides.to_vec());
            return Err(Error::OutputOverlapsItself { shape, strides });
        }
        let mut memory = vec![T::zeroed(); geometry.span()?];
        let (extent, stride) = geometry.run();
        let mut runs = data.chunks_exact(extent);
        geometry.for_each_run(|start| {
            let run = runs.next().expect("as many runs as check_len counted");
            for (i, &value) in run.iter().enumerate() {
                memory[start + i * stride] = value;
            }
        });
        device.backend().write_ranges(address, &geometry.byte_ranges(), bytemuck::cast_slice(&memory))
    }
}
