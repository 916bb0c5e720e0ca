//! Devices.

use crate::backend::{Backend, RawStream};
use crate::error::{Error, Result};
use std::sync::{Arc, Mutex};
use std::time::Duration;

mod event;
mod graph;
mod info;
mod memory;
mod open;
mod stream;

pub use event::{Event, StreamOptions};
pub use graph::Graph;
pub use info::{DeviceInfo, DeviceKind, EmulatorConfig, MemoryUse};
pub(crate) use memory::Allocation;
pub use stream::Stream;

/// A device that holds tensors and runs kernels: a CUDA GPU or the emulator. Clones are the same device.
///
/// Opening the same GPU twice gives the same device: its primary context, shared with every other framework in the process, is
/// retained once and a kernel is loaded once. A GPU stays open until the process ends. Dropping the last handle waits for nothing and
/// unloads nothing, so that opening it again is cheap; freed memory that is kept for later ([`Device::trim_memory`]) stays kept. Every
/// emulator is a device of its own, gone with its last handle.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    info: DeviceInfo,
    backend: Box<dyn Backend>,
    usage: Mutex<MemoryUse>,
}

impl Device {
    pub(crate) fn inner(info: DeviceInfo, backend: Box<dyn Backend>) -> Arc<Inner> {
        Arc::new(Inner { info, backend, usage: Mutex::default() })
    }

    pub(crate) fn from_inner(inner: Arc<Inner>) -> Device {
        Device { inner }
    }

    /// Properties of this device.
    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// Bytes that tensors and workspaces of this crate hold on this device, now and at most.
    pub fn memory(&self) -> MemoryUse {
        *self.usage()
    }

    /// Starts a new measurement of the peak: it becomes what is live now.
    pub fn reset_peak(&self) {
        let mut usage = self.usage();
        usage.peak_bytes = usage.live_bytes;
    }

    /// Gives freed device memory that this crate keeps for later allocations back to the driver.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn trim_memory(&self) -> Result<()> {
        self.inner.backend.trim_memory()
    }

    /// Waits until everything that was launched on this device is done, and reports what failed meanwhile.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn synchronize(&self) -> Result<()> {
        self.inner.backend.synchronize()
    }

    /// The stream that tensors are allocated, freed, written and read on: on CUDA the legacy default stream, which is PyTorch's
    /// default stream too.
    pub fn default_stream(&self) -> Stream {
        Stream { device: self.clone(), raw: RawStream::DEFAULT, owned: false }
    }

    /// Creates a stream. Work on it is ordered with the default stream (it is no `non-blocking` stream), so that tensors may be
    /// dropped while it still runs. For others see [`Device::stream_with`].
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn stream(&self) -> Result<Stream> {
        self.stream_with(&StreamOptions::new())
    }

    /// Runs `work` and returns the time that the device took for what it launched on `stream`.
    ///
    /// On CUDA between two events on the stream, on the emulator by the clock of the host, which is no statement about a GPU.
    ///
    /// # Errors
    /// The error of `work`, [`Error::DeviceMismatch`] for a stream of another device, or [`Error::Cuda`].
    pub fn time(&self, stream: &Stream, work: impl FnMut() -> Result<()>) -> Result<Duration> {
        Ok(self.time_each(stream, 1, || Ok(()), work)?.iter().sum())
    }

    /// Runs `before` and then `work` `count` times, and returns the time that the device took for each `work` alone.
    ///
    /// All of it is launched before anything is waited for: on CUDA the device goes from one to the next without a pause in which
    /// the host would be measured. `before` may evict caches, for instance with [`Tensor::copy_from`](crate::Tensor::copy_from).
    ///
    /// # Errors
    /// The error of `before` or `work`, [`Error::DeviceMismatch`] for a stream of another device, or [`Error::Cuda`].
    pub fn time_each(
        &self,
        stream: &Stream,
        count: u32,
        mut before: impl FnMut() -> Result<()>,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<Vec<Duration>> {
        self.check_stream(stream)?;
        self.inner.backend.time_each(stream.raw, count, &mut before, &mut work)
    }

    /// What the emulator counted in all launches since [`Device::reset_counters`], by name: instructions, bytes moved and so on.
    /// The same launches give the same numbers. Empty on CUDA.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.inner.backend.counters()
    }

    /// Starts counting from 0.
    pub fn reset_counters(&self) {
        self.inner.backend.reset_counters();
    }

    pub(crate) fn check_stream(&self, stream: &Stream) -> Result<()> {
        if stream.device == *self {
            return Ok(());
        }
        Err(Error::DeviceMismatch {
            what: "the stream".to_owned(),
            found: stream.device.info().id(),
            expected: self.info().id(),
        })
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.inner.backend
    }

    fn usage(&self) -> std::sync::MutexGuard<'_, MemoryUse> {
        // The counters stay usable when a thread panicked between two of them.
        self.inner.usage.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl PartialEq for Device {
    /// Whether both are the same device, not merely the same model.
    fn eq(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Eq for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.inner.info).finish()
    }
}
