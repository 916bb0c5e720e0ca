//! What there is to know of a device, and how an emulator is set up.

use crate::error::Version;
use kernel_spec::Arch;
use std::num::NonZero;

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
    /// Streaming multiprocessors; the emulator has as many as [`EmulatorConfig::multiprocessors`] says, 3 by default.
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
    /// The name that [`Device::open`](crate::Device::open) takes: `cuda:0`, `emulator`.
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
    /// Most bytes that were allocated at one time since the device was opened or [`Device::reset_peak`](crate::Device::reset_peak) was called.
    pub peak_bytes: u64,
}

/// How an emulator device runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmulatorConfig {
    /// Look for out-of-bounds and uninitialised accesses, data races, barrier misuse and copies read too early.
    pub checks: bool,
    /// Seed of the order in which warps run and asynchronous copies land. The same seed gives the same run.
    pub seed: u64,
    /// Streaming multiprocessors that it says it has: the most thread blocks of a persistent kernel.
    pub multiprocessors: NonZero<u32>,
    /// Bytes of device memory, 4 GiB by default. Memory that nothing touches costs the machine nothing.
    pub memory_bytes: u64,
}

impl Default for EmulatorConfig {
    fn default() -> Self {
        EmulatorConfig {
            checks: true,
            seed: 0,
            multiprocessors: EMULATED_MULTIPROCESSORS,
            memory_bytes: EMULATED_MEMORY_BYTES,
        }
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

    /// Sets the number of multiprocessors.
    pub fn with_multiprocessors(mut self, multiprocessors: NonZero<u32>) -> Self {
        self.multiprocessors = multiprocessors;
        self
    }

    /// Sets the bytes of device memory; an allocation beyond them is [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn with_memory_bytes(mut self, memory_bytes: u64) -> Self {
        self.memory_bytes = memory_bytes;
        self
    }
}

/// Memory of an emulator: a mistaken size ends with an error before the machine that runs it is out of memory.
const EMULATED_MEMORY_BYTES: u64 = 4 << 30;

/// Multiprocessors of an emulator, which bound the persistent thread blocks of v3: few enough that each gets several tiles of a small
/// problem, and a number that rarely divides the tiles, so that the last round is a partial one. The same on every CPU, so that plans
/// are too.
const EMULATED_MULTIPROCESSORS: NonZero<u32> = NonZero::new(3).expect("not 0");
