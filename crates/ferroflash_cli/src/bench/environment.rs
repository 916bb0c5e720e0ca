//! Where and with what a run is made.

use super::nvml::{self, Gpu};
use super::record::Environment;
use ferroflash::{DeviceInfo, DeviceKind};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::SystemTime;

/// The environment of a run that starts now on `device`, without peers. `gpu` is NVML's view of it, or why there is none.
pub(crate) fn environment(device: &DeviceInfo, gpu: &Result<Gpu, String>) -> Environment {
    let (backend, driver, compute_capability) = match &device.kind {
        DeviceKind::Cuda { driver_version, compute_capability, .. } => {
            ("cuda", Some(driver_version.to_string()), Some(compute_capability.to_string()))
        }
        _ => ("emulator", None, None),
    };
    let nvml = gpu.as_ref().map_err(Clone::clone).and_then(Gpu::environment);
    Environment {
        device: device.name.clone(),
        backend: backend.to_owned(),
        driver,
        driver_release: if device.is_emulator() { None } else { nvml::driver_release() },
        compute_capability,
        multiprocessors: device.multiprocessors.into(),
        memory_bytes: device.memory_bytes,
        l2_bytes: Some(u64::from(device.l2_bytes)).filter(|&bytes| bytes > 0),
        nvml_missing: if device.is_emulator() { None } else { nvml.as_ref().err().cloned() },
        nvml: nvml.ok(),
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        commit: commit().map(str::to_owned),
        rustc: env!("FERROFLASH_RUSTC").to_owned(),
        ptxas: ptxas(),
        ferroflash: env!("CARGO_PKG_VERSION").to_owned(),
        cpu: cpu(),
        peers: BTreeMap::new(),
        peers_missing: None,
    }
}

/// The commit that this binary was built from, if it was built in a checkout.
pub(crate) fn commit() -> Option<&'static str> {
    Some(env!("FERROFLASH_COMMIT")).filter(|commit| !commit.is_empty())
}

/// Release of the ptxas on the path, such as `13.0, V13.0.88`.
fn ptxas() -> Option<String> {
    let output = Command::new("ptxas").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // `Cuda compilation tools, release 13.0, V13.0.88` is one of its lines.
    Some(text.lines().find_map(|line| line.split_once("release "))?.1.trim().to_owned())
}

fn cpu() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'))?.1.trim().to_owned();
    Some(name).filter(|name| !name.is_empty())
}
