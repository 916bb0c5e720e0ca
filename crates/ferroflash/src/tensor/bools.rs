//! Booleans on the device, a byte each, as PyTorch and NumPy have them.

use super::dims::Dims;
use super::geometry::Geometry;
use super::shape::Layout;
use crate::backend::RawStream;
use crate::device::{Allocation, Device};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use kernel_spec::DType;

/// Shapes and strides are counted in elements; of the arithmetic on them, bytes are no part that a view of booleans takes.
const ANY: DType = DType::F16;

/// Booleans on a device, owned: a byte each, of which 0 is false and all others are true.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::operators::Softmax;
/// use ferroflash::{BoolTensor, Device, Layout, Tensor};
/// let device = Device::emulator()?;
/// let x = Tensor::zeros(&device, ferroflash::DType::F32, [2, 4], Layout::RowMajor)?;
/// let seen = BoolTensor::from_slice(&device, &[true, false, true, false], [4])?;
/// // Both rows have one mask.
/// let softmax = Softmax::new().with_bool_mask(&seen.strided(0, [2, 4], [0, 1])?);
/// assert_eq!(softmax.forward(&x.view())?.out.to_vec::<f32>()?, [0.5, 0.0, 0.5, 0.0, 0.5, 0.0, 0.5, 0.0]);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Debug)]
pub struct BoolTensor {
    storage: Allocation,
    len: usize,
    shape: Dims,
    strides: Dims,
}

impl BoolTensor {
    /// A copy of `data`, in row-major order.
    ///
    /// # Errors
    /// [`Error::DataLength`], [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn from_slice(device: &Device, data: &[bool], shape: impl Into<Dims>) -> Result<BoolTensor> {
        BoolTensor::from_bytes(device, bytemuck::cast_slice(data), shape)
    }

    /// The same from bytes.
    ///
    /// # Errors
    /// As [`BoolTensor::from_slice`].
    pub fn from_bytes(device: &Device, data: &[u8], shape: impl Into<Dims>) -> Result<BoolTensor> {
        let geometry = Geometry::contiguous(shape.into(), Layout::RowMajor, ANY)?;
        geometry.check_len(data.len())?;
        let storage = Allocation::new(device, RawStream::DEFAULT, data.len() as u64)?;
        if !data.is_empty() {
            device.backend().write(storage.address(), data)?;
        }
        Ok(BoolTensor { storage, len: data.len(), shape: geometry.shape, strides: geometry.strides })
    }

    /// A view of all of them.
    pub fn view(&self) -> BoolView<'_> {
        let (device, address) = (self.storage.device(), self.storage.address());
        BoolView { device, address, shape: self.shape, strides: self.strides }
    }

    /// Another view of the same storage, from element `offset` on: a part of it, or one that repeats, by strides of 0.
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::Axes`], [`Error::TooLarge`].
    pub fn strided(&self, offset: usize, shape: impl Into<Dims>, strides: impl Into<Dims>) -> Result<BoolView<'_>> {
        let geometry = Geometry::new(shape.into(), strides.into(), ANY)?;
        geometry.check_storage(offset, self.len)?;
        let Geometry { shape, strides, .. } = geometry;
        Ok(BoolView { device: self.storage.device(), address: self.storage.address() + offset as u64, shape, strides })
    }
}

/// Borrowed booleans on a device: a byte each, of any shape and strides.
#[derive(Clone, Copy, Debug)]
pub struct BoolView<'a> {
    device: &'a Device,
    address: u64,
    shape: Dims,
    strides: Dims,
}

impl<'a> BoolView<'a> {
    /// Uses memory of another framework in place. `address` is that of the first element, and `storage_elements` the number of elements from there to the
    /// end of the memory.
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::TooLarge`], [`Error::Axes`].
    ///
    /// # Safety
    /// `storage_elements` bytes from `address` on are device memory of `device`, live and not written for `'a` except by work that is ordered before the use
    /// of this view.
    pub unsafe fn from_raw(
        device: &'a Device,
        address: u64,
        storage_elements: usize,
        shape: impl Into<Dims>,
        strides: impl Into<Dims>,
    ) -> Result<BoolView<'a>> {
        let geometry = Geometry::new(shape.into(), strides.into(), ANY)?;
        geometry.check_storage(0, storage_elements)?;
        Ok(BoolView { device, address, shape: geometry.shape, strides: geometry.strides })
    }

    /// The device that holds them.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Extents of the axes.
    pub fn shape(&self) -> Dims {
        self.shape
    }

    /// Strides of the axes in elements, which are bytes.
    pub fn strides(&self) -> Dims {
        self.strides
    }

    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }
}
