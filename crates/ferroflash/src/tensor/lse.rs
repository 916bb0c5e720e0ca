//! The log-sum-exp of the rows of attention.

use super::dims::Dims;
use super::geometry::Geometry;
use super::shape::Layout;
use crate::backend::RawStream;
use crate::device::{Allocation, Device};
use crate::error::{Error, Result};
use kernel_spec::DType;

/// The log-sum-exp of every row, owned, in device memory: contiguous `f32 [batch, head, row]`, natural logarithm.
///
/// A row that sees no key has minus infinity.
#[derive(Debug)]
pub struct Lse {
    storage: Allocation,
    shape: LseShape,
}

/// Extents of a log-sum-exp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LseShape {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Query rows.
    pub rows: usize,
}

impl LseShape {
    fn geometry(&self) -> Result<Geometry> {
        Geometry::contiguous(Dims::from([self.batch, self.heads, self.rows]), Layout::RowMajor, DType::F32)
    }
}

impl Lse {
    /// Memory for the log-sum-exp, unspecified until it is written.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge), [`Error::OutOfMemory`](crate::Error::OutOfMemory),
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub fn uninit(device: &Device, shape: LseShape) -> Result<Lse> {
        let bytes = shape.geometry()?.span()? * DType::F32.bytes();
        Ok(Lse { storage: Allocation::new(device, RawStream::DEFAULT, bytes as u64)?, shape })
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.storage.device()
    }

    /// Extents.
    pub fn shape(&self) -> LseShape {
        self.shape
    }

    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.storage.address()
    }

    /// A log-sum-exp, or its gradient, with these values in the order `[batch, head, row]`.
    ///
    /// # Errors
    /// [`Error::DataLength`](crate::Error::DataLength), and those of [`Lse::uninit`].
    pub fn from_slice(device: &Device, values: &[f32], shape: LseShape) -> Result<Lse> {
        let (found, expected) = (values.len(), shape.geometry()?.span()?);
        if found != expected {
            let shape = vec![shape.batch, shape.heads, shape.rows];
            return Err(Error::DataLength { shape, expected, found });
        }
        let lse = Lse::uninit(device, shape)?;
        if !values.is_empty() {
            device.backend().write(lse.storage.address(), bytemuck::cast_slice(values))?;
        }
        Ok(lse)
    }

    /// A view for reading.
    pub fn view(&self) -> LseView<'_> {
        LseView { device: self.storage.device(), address: self.storage.address(), shape: self.shape }
    }

    /// A view for writing.
    pub fn view_mut(&mut self) -> LseViewMut<'_> {
        LseViewMut { device: self.storage.device(), address: self.storage.address(), shape: self.shape }
    }

    /// The values in the order `[batch, head, row]`. Waits for work on the device.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda), [`Error::Emulator`](crate::Error::Emulator).
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let mut values = vec![0f32; self.shape.geometry()?.span()?];
        if !values.is_empty() {
            self.device().backend().read(self.storage.address(), bytemuck::cast_slice_mut(&mut values))?;
        }
        Ok(values)
    }

    /// Sets every byte, for instance to 0xff, which is NaN.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub fn fill_bytes(&mut self, byte: u8) -> Result<()> {
        if self.storage.bytes() == 0 {
            return Ok(());
        }
        self.device().backend().fill(self.storage.address(), byte, self.storage.bytes())
    }
}

/// A borrowed log-sum-exp, or the gradient with respect to one: contiguous `f32 [batch, head, row]`.
#[derive(Clone, Copy, Debug)]
pub struct LseView<'a> {
    device: &'a Device,
    address: u64,
    shape: LseShape,
}

impl<'a> LseView<'a> {
    /// Uses memory of another framework in place; `storage_elements` counts `f32` from `address` on.
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`](crate::Error::StorageTooSmall), [`Error::MisalignedAddress`](crate::Error::MisalignedAddress),
    /// [`Error::TooLarge`](crate::Error::TooLarge).
    ///
    /// # Safety
    /// `storage_elements` `f32` from `address` on are device memory of `device`, live and not written for `'a` except by work that is
    /// ordered before the use of this view.
    pub unsafe fn from_raw(
        device: &'a Device,
        address: u64,
        storage_elements: usize,
        shape: LseShape,
    ) -> Result<LseView<'a>> {
        let geometry = shape.geometry()?;
        geometry.check_storage(0, storage_elements)?;
        geometry.check_address(address)?;
        Ok(LseView { device, address, shape })
    }

    /// The device that holds it.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Extents.
    pub fn shape(&self) -> LseShape {
        self.shape
    }

    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// Borrowed memory for a log-sum-exp: contiguous `f32 [batch, head, row]`.
#[derive(Debug)]
pub struct LseViewMut<'a> {
    device: &'a Device,
    address: u64,
    shape: LseShape,
}

impl<'a> LseViewMut<'a> {
    /// Uses memory of another framework in place; `storage_elements` counts `f32` from `address` on.
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`](crate::Error::StorageTooSmall), [`Error::MisalignedAddress`](crate::Error::MisalignedAddress),
    /// [`Error::TooLarge`](crate::Error::TooLarge).
    ///
    /// # Safety
    /// `storage_elements` `f32` from `address` on are device memory of `device`, live and used by nobody else for `'a` except
    /// by work that is ordered before the use of this view.
    pub unsafe fn from_raw(
        device: &'a Device,
        address: u64,
        storage_elements: usize,
        shape: LseShape,
    ) -> Result<LseViewMut<'a>> {
        let geometry = shape.geometry()?;
        geometry.check_storage(0, storage_elements)?;
        geometry.check_address(address)?;
        Ok(LseViewMut { device, address, shape })
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.device
    }

    /// Extents.
    pub fn shape(&self) -> LseShape {
        self.shape
    }

    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }
}
