//! Where and with what a run is made.

use super::record::Environment;
use ferroflash::{DeviceInfo, DeviceKind};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// The environment of a run that starts now on `device`.
pub(crate) fn environment(device: &DeviceInfo) -> Environment {
    let (backend, driver, compute_capability) = match &device.kind {
        DeviceKind::Cuda { driver_version, compute_capability, .. } => {
            ("cuda", Some(driver_version.to_string()), Some(compute_capability.to_string()))
        }
        _ => ("emulator", None, None),
    };
    Environment {
        device: device.name.clone(),
        backend: backend.to_owned(),
        driver,
        driver_release: None,
        compute_capability,
        multiprocessors: device.multiprocessors.into(),
        memory_bytes: device.memory_bytes,
        l2_bytes: None,
        nvml: None,
        nvml_missing: None,
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        commit: commit().map(str::to_owned),
        rustc: env!("FERROFLASH_RUSTC").to_owned(),
        ptxas: None,
        ferroflash: env!("CARGO_PKG_VERSION").to_owned(),
        cpu: None,
        peers: BTreeMap::new(),
        peers_missing: None,
    }
}

/// The commit that this binary was built from, if it was built in a checkout.
pub(crate) fn commit() -> Option<&'static str> {
    Some(env!("FERROFLASH_COMMIT")).filter(|commit| !commit.is_empty())
}
