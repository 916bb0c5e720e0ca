//! Numbers on the device that say where sequences are: lengths, starts, pages.

use crate::backend::RawStream;
use crate::device::{Allocation, Device};
use crate::error::{Error, Result};
use kernel_spec::DType;

/// Bytes of a number.
const BYTES: usize = size_of::<i32>();

/// Numbers on a device, owned: `i32`, as everybody has them.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::{Device, Indices};
/// let device = Device::emulator()?;
/// let lengths = Indices::from_slice(&device, &[3, 0, 5])?;
/// assert_eq!(lengths.to_vec()?, [3, 0, 5]);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Debug)]
pub struct Indices {
    storage: Allocation,
    len: usize,
}

impl Indices {
    /// A copy of `numbers`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn from_slice(device: &Device, numbers: &[i32]) -> Result<Indices> {
        let storage = Allocation::new(device, RawStream::DEFAULT, size_of_val(numbers) as u64)?;
        if !numbers.is_empty() {
            device.backend().write(storage.address(), bytemuck::cast_slice(numbers))?;
        }
        Ok(Indices { storage, len: numbers.len() })
    }

    /// Other numbers in their place, as many. In the order of the default stream.
    ///
    /// # Errors
    /// [`Error::DataLength`], [`Error::Cuda`].
    pub fn write(&mut self, numbers: &[i32]) -> Result<()> {
        if numbers.len() != self.len {
            let (shape, expected, found) = (vec![self.len], self.len, numbers.len());
            return Err(Error::DataLength { shape, expected, found });
        }
        if numbers.is_empty() {
            return Ok(());
        }
        self.storage.device().backend().write(self.storage.address(), bytemuck::cast_slice(numbers))
    }

    /// The numbers. Waits for work on the device.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::Emulator`].
    pub fn to_vec(&self) -> Result<Vec<i32>> {
        self.view().to_vec()
    }

    /// A view of them.
    pub fn view(&self) -> IndicesView<'_> {
        IndicesView { device: self.storage.device(), address: self.storage.address(), len: self.len }
    }
}

/// Borrowed numbers on a device: `i32`, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct IndicesView<'a> {
    device: &'a Device,
    address: u64,
    len: usize,
}

impl<'a> IndicesView<'a> {
    /// Uses memory of another framework in place.
    ///
    /// # Errors
    /// [`Error::MisalignedAddress`].
    ///
    /// # Safety
    /// `len` `i32` from `address` on are device memory of `device`, live and not written for `'a` except by work that is ordered before the
    /// use of this view.
    pub unsafe fn from_raw(device: &'a Device, address: u64, len: usize) -> Result<IndicesView<'a>> {
        if !address.is_multiple_of(BYTES as u64) {
            // The same size and alignment.
            return Err(Error::MisalignedAddress { address, bytes: BYTES, dtype: DType::F32 });
        }
        Ok(IndicesView { device, address, len })
    }

    /// The device that holds them.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// The numbers. Waits for work on the device.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::Emulator`].
    pub fn to_vec(&self) -> Result<Vec<i32>> {
        let mut numbers = vec![0; self.len];
        if !numbers.is_empty() {
            self.device.backend().read(self.address, bytemuck::cast_slice_mut(&mut numbers))?;
        }
        Ok(numbers)
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "nothing asks for it")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Device address of the first.
    pub fn address(&self) -> u64 {
        self.address
    }
}
