//! Streams.

use super::Device;
use crate::backend::RawStream;
use crate::error::Result;
use std::ffi::c_void;

/// A queue of work on a device. Work on one stream runs in order.
pub struct Stream {
    pub(super) device: Device,
    pub(super) raw: RawStream,
    pub(super) owned: bool,
}

impl Stream {
    /// Uses a stream of another framework.
    ///
    /// # Safety
    /// `stream` is a live `CUstream` of the primary context of `device` (or null for the default stream) and outlives the
    /// result. When it is a `non-blocking` stream, the caller waits for it before a tensor of this crate that it works on is
    /// written, read or dropped. On the emulator it must be null.
    pub unsafe fn from_raw(device: &Device, stream: *mut c_void) -> Stream {
        Stream { device: device.clone(), raw: RawStream::from_pointer(stream), owned: false }
    }

    /// The `CUstream`; null for the default stream and on the emulator.
    pub fn as_raw(&self) -> *mut c_void {
        self.raw.as_pointer()
    }

    /// The device of this stream.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until the work on this stream is done, and reports what failed meanwhile.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub fn synchronize(&self) -> Result<()> {
        self.device.backend().synchronize_stream(self.raw)
    }

    pub(crate) fn raw(&self) -> RawStream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned {
            self.device.backend().destroy_stream(self.raw);
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("device", &self.device.info().id()).field("raw", &self.as_raw()).finish()
    }
}
