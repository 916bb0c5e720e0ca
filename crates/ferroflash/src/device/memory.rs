//! Device memory, and how much of it there is in use.

use super::Device;
use crate::backend::RawStream;
use crate::error::Result;

/// Device memory that is freed on drop, in the order of the stream that it was allocated on.
#[derive(Debug)]
pub(crate) struct Allocation {
    device: Device,
    stream: RawStream,
    address: u64,
    bytes: u64,
}

impl Allocation {
    /// Allocates `bytes` in the order of `stream`. No bytes: no memory, address 0.
    pub(crate) fn new(device: &Device, stream: RawStream, bytes: u64) -> Result<Allocation> {
        let address = if bytes == 0 { 0 } else { device.backend().allocate(bytes, stream)? };
        let mut usage = device.usage();
        usage.live_bytes += bytes;
        usage.peak_bytes = usage.peak_bytes.max(usage.live_bytes);
        drop(usage);
        Ok(Allocation { device: device.clone(), stream, address, bytes })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.device.backend().free(self.address, self.stream);
            self.device.usage().live_bytes -= self.bytes;
        }
    }
}
