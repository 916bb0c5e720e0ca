//! Finding and opening GPUs.

use super::Cuda;
use super::error::version;
use crate::device::{Device, DeviceInfo, DeviceKind};
use crate::error::{Error, Result, Version};
use cust::DeviceAttribute;
use cust::sys::CUresult;
use kernel_spec::VARIANTS;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Every GPU that the driver finds, usable or not.
pub(crate) fn devices() -> Result<Vec<DeviceInfo>> {
    (0..count()?).map(|ordinal| info(ordinal).map(|(info, _)| info)).collect()
}

/// Opens a GPU, or gives another handle of the one that is open: what was opened stays open until the process ends.
///
/// Closing would have to wait for the whole GPU before modules can be unloaded, in a context that others share, and whoever opens it
/// again would compile every kernel again.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
    static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    // The map stays consistent when a thread panicked while it held the lock: entries are inserted whole.
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&ordinal) {
        return Ok(device.clone());
    }
    match count()? {
        0 => return Err(Error::NoGpu),
        count if ordinal >= count => return Err(Error::NoSuchGpu { ordinal, count }),
        _ => {}
    }
    let span = tracing::info_span!("open", ordinal);
    let _entered = span.enter();
    let (info, device) = info(ordinal)?;
    check_capability(&info)?;
    let backend = Cuda::new(device, info.memory_bytes)?;
    tracing::info!(name = info.name, "GPU opened");
    let device = Device::from_inner(Device::inner(info, Box::new(backend)));
    open.insert(ordinal, device.clone());
    Ok(device)
}

fn count() -> Result<usize> {
    match cust::Device::count() {
        // What `cuInit` says on a machine with a driver and no GPU.
        Err(error) if error.result() == Some(CUresult::NO_DEVICE) => Err(Error::NoGpu),
        count => Ok(count?),
    }
}

fn info(ordinal: usize) -> Result<(DeviceInfo, cust::Device)> {
    let device = cust::Device::get(ordinal as u32)?;
    let attribute = |attribute| -> Result<u32> { Ok(device.attribute(attribute)?.unsigned_abs()) };
    let compute_capability = Version {
        major: attribute(DeviceAttribute::COMPUTE_CAPABILITY_MAJOR)?,
        minor: attribute(DeviceAttribute::COMPUTE_CAPABILITY_MINOR)?,
    };
    let driver_version = version(cust::load()?.version());
    let info = DeviceInfo {
        name: device.name()?,
        kind: DeviceKind::Cuda { ordinal, driver_version, compute_capability },
        multiprocessors: attribute(DeviceAttribute::MULTIPROCESSOR_COUNT)?,
        memory_bytes: device.total_memory()? as u64,
        max_shared_bytes_per_block: attribute(DeviceAttribute::MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2_bytes: attribute(DeviceAttribute::L2_CACHE_SIZE)?,
        // Virtual GPUs say 0.
        clock_khz: Some(attribute(DeviceAttribute::CLOCK_RATE)?).filter(|&khz| khz > 0),
        pci_bus_id: Some(format!(
            "{:04x}:{:02x}:{:02x}.0",
            attribute(DeviceAttribute::PCI_DOMAIN_ID)?,
            attribute(DeviceAttribute::PCI_BUS_ID)?,
            attribute(DeviceAttribute::PCI_DEVICE_ID)?
        )),
    };
    Ok((info, device))
}

/// Fails for a GPU that none of the compiled variants runs on.
fn check_capability(info: &DeviceInfo) -> Result<()> {
    if VARIANTS.iter().any(|variant| info.runs(variant.entry.arch)) {
        return Ok(());
    }
    let least = VARIANTS.iter().map(|variant| variant.entry.arch.least_compute_capability()).min();
    let (major, minor) = least.expect("there are variants");
    let least = Version { major, minor };
    Err(Error::GpuTooOld { name: info.name.clone(), found: info.compute_capability(), least })
}
