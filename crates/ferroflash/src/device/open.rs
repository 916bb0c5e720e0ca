//! Finding and opening devices.

use super::{Device, DeviceInfo, EmulatorConfig};
use crate::error::{Error, Result};

impl Device {
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
        let mut devices = cuda_devices().unwrap_or_else(|error| {
            tracing::debug!(%error, "no CUDA device");
            Vec::new()
        });
        devices.extend(emulator_info());
        devices
    }

    /// Opens a CUDA GPU.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::DriverLacksSymbols`], [`Error::NoGpu`], [`Error::NoSuchGpu`],
    /// [`Error::GpuTooOld`], [`Error::DeviceNotBuilt`], or [`Error::Cuda`].
    pub fn cuda(ordinal: usize) -> Result<Device> {
        open_cuda(ordinal)
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
        open_emulator(config)
    }

    /// The first CUDA GPU that can run the kernels, otherwise the emulator.
    ///
    /// # Errors
    /// What [`Device::cuda`] says about the first GPU, when this build has no emulator.
    pub fn best() -> Result<Device> {
        let count = cuda_devices().map_or(0, |devices| devices.len());
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
}

#[cfg(cuda)]
use crate::backend::cuda::{devices as cuda_devices, open as open_cuda};

#[cfg(not(cuda))]
fn cuda_devices() -> Result<Vec<DeviceInfo>> {
    Err(cuda_not_built())
}

#[cfg(not(cuda))]
fn open_cuda(_ordinal: usize) -> Result<Device> {
    Err(cuda_not_built())
}

#[cfg(not(cuda))]
fn cuda_not_built() -> Error {
    Error::DeviceNotBuilt {
        device: "cuda",
        feature: "cuda",
        note: ", which works on Linux on x86_64 and aarch64 and on Windows",
    }
}

#[cfg(feature = "emulator")]
use crate::backend::emulator::open as open_emulator;

#[cfg(feature = "emulator")]
fn emulator_info() -> Option<DeviceInfo> {
    Some(crate::backend::emulator::info(&EmulatorConfig::default()))
}

#[cfg(not(feature = "emulator"))]
fn emulator_info() -> Option<DeviceInfo> {
    None
}

#[cfg(not(feature = "emulator"))]
fn open_emulator(_config: EmulatorConfig) -> Result<Device> {
    Err(Error::DeviceNotBuilt { device: "emulator", feature: "emulator", note: "" })
}
