//! GPUs.

use crate::driver::{Driver, init};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Result, call};
use crate::sys::{CUdevice, CUdevice_attribute};
use std::ffi::{CStr, c_char, c_int};

/// A property of a GPU; any number of `CUdevice_attribute`, also one that has no name here.
pub type DeviceAttribute = CUdevice_attribute;

/// A GPU that the driver finds. Nothing is held: contexts are.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    driver: &'static Driver,
    raw: CUdevice,
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        self.raw == other.raw
    }
}

impl Eq for Device {}

impl Device {
    /// Number of GPUs that the driver finds.
    ///
    /// # Errors
    /// Those of [`init`], or [`Error::Call`].
    pub fn count() -> Result<usize> {
        let driver = init()?;
        let mut count = 0;
        // SAFETY: the pointer is valid for the call.
        unsafe { call!(driver.cuDeviceGetCount(&mut count)) }?;
        Ok(count.unsigned_abs() as usize)
    }

    /// The GPU of this number, from 0, in CUDA's order.
    ///
    /// # Errors
    /// Those of [`init`], or [`Error::Call`] with `CUDA_ERROR_INVALID_DEVICE`.
    pub fn get(ordinal: u32) -> Result<Device> {
        let driver = init()?;
        let mut raw = 0;
        // A number beyond i32 is none of a GPU; -1 is neither.
        let ordinal = c_int::try_from(ordinal).unwrap_or(-1);
        // SAFETY: the pointer is valid for the call.
        unsafe { call!(driver.cuDeviceGet(&mut raw, ordinal)) }?;
        Ok(Device { driver, raw })
    }

    /// Name for people, such as `NVIDIA H200`.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn name(&self) -> Result<String> {
        // The driver cuts a longer name, and ends what it writes with NUL.
        let mut name = [0u8; 256];
        let driver = self.driver;
        // SAFETY: the buffer is valid for the call and as long as it says.
        unsafe { call!(driver.cuDeviceGetName(name.as_mut_ptr().cast::<c_char>(), name.len() as c_int, self.raw)) }?;
        Ok(CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned())
    }

    /// Bytes of device memory.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn total_memory(&self) -> Result<usize> {
        let mut bytes = 0;
        let driver = self.driver;
        // SAFETY: the pointer is valid for the call.
        unsafe { call!(driver.cuDeviceTotalMem(&mut bytes, self.raw)) }?;
        Ok(bytes)
    }

    /// A property.
    ///
    /// # Errors
    /// [`Error::Call`]: `CUDA_ERROR_INVALID_VALUE` for a property that the driver does not know.
    pub fn attribute(&self, attribute: DeviceAttribute) -> Result<i32> {
        let mut value = 0;
        let driver = self.driver;
        // SAFETY: the pointer is valid for the call.
        unsafe { call!(driver.cuDeviceGetAttribute(&mut value, attribute, self.raw)) }?;
        Ok(value)
    }

    /// Whether kernels and copies of this GPU can reach the memory of `peer` directly.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn can_access_peer(&self, peer: Device) -> Result<bool> {
        let mut can = 0;
        let driver = self.driver;
        // SAFETY: the pointer is valid for the call.
        unsafe { call!(driver.cuDeviceCanAccessPeer(&mut can, self.raw, peer.raw)) }?;
        Ok(can != 0)
    }

    /// The handle.
    pub fn as_raw(&self) -> CUdevice {
        self.raw
    }

    pub(crate) fn driver(&self) -> &'static Driver {
        self.driver
    }
}
