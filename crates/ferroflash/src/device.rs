//! Devices: finding, opening and asking them.

use crate::backend::{self, Backend, RawStream};
use crate::error::{Error, Result, Version};
use kernel_spec::Arch;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};
use std::time::Duration;

mod event;
mod graph;

pub use event::{Event, StreamOptions};
pub use graph::Graph;

/// What kind of device, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceKind {
    /// An NVIDIA GPU.
    Cuda {
        /// Number of the GPU, as CUDA counts.
        ordinal: usize,
        /// Newest CUDA version that the driver supports.
        driver_version: Version,
        /// Compute capability of the GPU.
        compute_capability: Version,
    },
    /// The CPU, running the same PTX in an emulator with memory and race checks.
    Emulator,
}

/// Properties of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Name for people, such as `NVIDIA H200`.
    pub name: String,
    /// Kind of the device.
    pub kind: DeviceKind,
    /// Streaming multiprocessors; the emulator has 3 on every CPU.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Largest dynamic shared memory of one thread block, in bytes.
    pub max_shared_bytes_per_block: u32,
    /// Level-two cache in bytes; 0 for the emulator, which has none.
    pub l2_bytes: u32,
    /// Highest clock of the multiprocessors in kHz; `None` for the emulator and where the driver does not say.
    pub clock_khz: Option<u32>,
    /// Place of the GPU on the PCI bus, such as `0000:3b:00.0`, by which other tools know it; `None` for the emulator.
    pub pci_bus_id: Option<String>,
}

impl DeviceInfo {
    /// The name that [`Device::open`] takes: `cuda:0`, `emulator`.
    pub fn id(&self) -> String {
        match self.kind {
            DeviceKind::Cuda { ordinal, .. } => format!("cuda:{ordinal}"),
            DeviceKind::Emulator => "emulator".to_owned(),
        }
    }

    /// Compute capability of the GPU; for the emulator that of the instructions that it runs, 9.0.
    pub fn compute_capability(&self) -> Version {
        match self.kind {
            DeviceKind::Cuda { compute_capability, .. } => compute_capability,
            DeviceKind::Emulator => Version { major: 9, minor: 0 },
        }
    }

    /// Whether this device runs the instructions of `arch`.
    pub fn runs(&self, arch: Arch) -> bool {
        let Version { major, minor } = self.compute_capability();
        arch.runs_on((major, minor))
    }

    /// Whether this is the emulator, whose times say nothing about a GPU.
    pub fn is_emulator(&self) -> bool {
        self.kind == DeviceKind::Emulator
    }
}

/// Bytes that this crate holds on a device. Memory of other frameworks does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes allocated now.
    pub live_bytes: u64,
    /// Most bytes that were allocated at one time since the device was opened or [`Device::reset_peak`] was called.
    pub peak_bytes: u64,
}

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

    /// Every device that this build can use on this machine: the CUDA GPUs in CUDA's order, then the emulator.
    ///
    /// A machine without a driver or without a GPU has none of the former; [`Device::cuda`] says why.
    ///
    /// ```
    /// for info in ferroflash::Device::list() {
    ///     println!("{}: {}, {} bytes", info.id(), info.name, info.memory_bytes);
    /// }
    /// ```
    pub fn list() -> Vec<DeviceInfo> {
        let mut devices = backend::cuda_devices().unwrap_or_else(|error| {
            tracing::debug!(%error, "no CUDA device");
            Vec::new()
        });
        devices.extend(backend::emulator_info());
        devices
    }

    /// Opens a CUDA GPU.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::DriverLacksSymbols`], [`Error::NoGpu`], [`Error::NoSuchGpu`],
    /// [`Error::GpuTooOld`], [`Error::DeviceNotBuilt`], or [`Error::Cuda`].
    pub fn cuda(ordinal: usize) -> Result<Device> {
        backend::open_cuda(ordinal)
    }

    /// Opens an emulator with every check on and the default seed. See [`Device::emulator_with`].
    ///
    /// # Errors
    /// [`Error::DeviceNotBuilt`] without the cargo feature `emulator`.
    pub fn emulator() -> Result<Device> {
        Device::emulator_with(EmulatorConfig::default())
    }

    /// Opens an emulator: the kernels' PTX runs on the CPU. Each call gives a new device with memory of its own.
    ///
    /// # Errors
    /// [`Error::DeviceNotBuilt`] without the cargo feature `emulator`.
    pub fn emulator_with(config: EmulatorConfig) -> Result<Device> {
        backend::open_emulator(config)
    }

    /// The first CUDA GPU that can run the kernels, otherwise the emulator.
    ///
    /// # Errors
    /// What [`Device::cuda`] says about the first GPU, when this build has no emulator.
    pub fn best() -> Result<Device> {
        let count = backend::cuda_devices().map_or(0, |devices| devices.len());
        for ordinal in 0..count {
            match Device::cuda(ordinal) {
                Ok(device) => return Ok(device),
                Err(error) => tracing::debug!(ordinal, %error, "GPU is not usable"),
            }
        }
        match Device::emulator() {
            Err(Error::DeviceNotBuilt { .. }) => Device::cuda(0),
            result => result,
        }
    }

    /// Opens the device of this name: `cuda` (the first GPU), `cuda:N`, `emulator` or `best`.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`], and those of [`Device::cuda`] and [`Device::emulator`].
    pub fn open(name: &str) -> Result<Device> {
        match name {
            "best" => Device::best(),
            "emulator" => Device::emulator(),
            "cuda" => Device::cuda(0),
            _ => {
                let ordinal = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                Device::cuda(ordinal.ok_or_else(|| Error::UnknownDevice { name: name.to_owned() })?)
            }
        }
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

/// How an emulator device runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmulatorConfig {
    /// Look for out-of-bounds and uninitialised accesses, data races, barrier misuse and copies read too early.
    pub checks: bool,
    /// Seed of the order in which warps run and asynchronous copies land. The same seed gives the same run.
    pub seed: u64,
}

impl Default for EmulatorConfig {
    fn default() -> Self {
        EmulatorConfig { checks: true, seed: 0 }
    }
}

impl EmulatorConfig {
    /// Turns the checks on or off.
    pub fn with_checks(mut self, checks: bool) -> Self {
        self.checks = checks;
        self
    }

    /// Sets the seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// A queue of work on a device. Work on one stream runs in order.
pub struct Stream {
    device: Device,
    raw: RawStream,
    owned: bool,
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
    /// [`Error::Cuda`].
    pub fn synchronize(&self) -> Result<()> {
        self.device.inner.backend.synchronize_stream(self.raw)
    }

    pub(crate) fn raw(&self) -> RawStream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned {
            self.device.inner.backend.destroy_stream(self.raw);
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("device", &self.device.info().id()).field("raw", &self.as_raw()).finish()
    }
}

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
