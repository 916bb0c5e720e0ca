//! What NVIDIA's management library says of the GPU: clocks, power, temperature, and reasons for lower clocks.
//!
//! The library is opened when the program runs. Where it is absent, nothing but these numbers is missing.

use super::record::{NvmlEnvironment, Range, Telemetry};
use super::stats::Quartiles;
use ferroflash::DeviceInfo;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The file that the driver installs; the name without a version comes only with the toolkit.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// Time between two readings: the power that NVML gives is a mean over about this long, and a reading costs well under a millisecond.
const INTERVAL: Duration = Duration::from_millis(50);

/// One look at a GPU. What it does not answer is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    pub(crate) sm_clock_mhz: Option<u32>,
    pub(crate) memory_clock_mhz: Option<u32>,
    pub(crate) power_watts: Option<f64>,
    pub(crate) temperature_celsius: Option<u32>,
    pub(crate) throttle_reasons: Vec<&'static str>,
}

/// Something to read from: a GPU, or in tests a list.
pub(crate) trait Probe: Send {
    fn read(&mut self) -> Reading;
}

/// A GPU that NVML knows.
pub(crate) struct Gpu {
    device: nvml_wrapper::Device<'static>,
}

impl Gpu {
    /// The GPU that is this device; otherwise the reason why NVML has nothing to say of it.
    pub(crate) fn open(device: &DeviceInfo) -> Result<Gpu, String> {
        let bus_id = device.pci_bus_id.as_deref().ok_or("the driver does not say where the GPU is")?;
        let device = library()?.device_by_pci_bus_id(bus_id).map_err(|error| format!("GPU {bus_id}: {error}"))?;
        Ok(Gpu { device })
    }

    /// What does not change during a run.
    pub(crate) fn environment(&self) -> Result<NvmlEnvironment, String> {
        let device = &self.device;
        Ok(NvmlEnvironment {
            version: library()?.sys_nvml_version().map_err(|error| error.to_string())?,
            sm_clock_max_mhz: device.max_clock_info(Clock::SM).ok(),
            memory_clock_max_mhz: device.max_clock_info(Clock::Memory).ok(),
            power_limit_watts: device.enforced_power_limit().ok().map(watts),
            ecc: device.is_ecc_enabled().ok().map(|state| state.currently_enabled),
            persistence: device.is_in_persistent_mode().ok(),
        })
    }
}

impl Probe for Gpu {
    fn read(&mut self) -> Reading {
        let device = &self.device;
        Reading {
            sm_clock_mhz: device.clock_info(Clock::SM).ok(),
            memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
            power_watts: device.power_usage().ok().map(watts),
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
            throttle_reasons: device.current_throttle_reasons().map(names).unwrap_or_default(),
        }
    }
}

/// Release of the driver, such as `580.65.06`.
pub(crate) fn driver_release() -> Option<String> {
    library().ok()?.sys_driver_version().ok()
}

/// NVML, opened once.
fn library() -> Result<&'static Nvml, String> {
    static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();
    let open = || Nvml::builder().lib_path(OsStr::new(LIBRARY)).init().map_err(|error| format!("{LIBRARY}: {error}"));
    NVML.get_or_init(open).as_ref().map_err(Clone::clone)
}

/// From the milliwatts of NVML.
fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1e3
}

/// The reasons that lower the clocks, by their names in NVML. An idle GPU is none, nor are clocks that somebody asked for.
fn names(reasons: ThrottleReasons) -> Vec<&'static str> {
    let table = [
        (ThrottleReasons::SW_POWER_CAP, "sw_power_cap"),
        (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown"),
        (ThrottleReasons::SYNC_BOOST, "sync_boost"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "sw_thermal_slowdown"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hw_thermal_slowdown"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "hw_power_brake_slowdown"),
    ];
    table.into_iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, name)| name).collect()
}

/// Reads a probe in the background until it is dropped.
pub(crate) struct Sampler {
    readings: Arc<Mutex<Vec<Reading>>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub(crate) fn start(probe: impl Probe + 'static) -> Sampler {
        Sampler::with_interval(probe, INTERVAL)
    }

    fn with_interval(mut probe: impl Probe + 'static, interval: Duration) -> Sampler {
        let readings = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = channel();
        let shared = readings.clone();
        let thread = std::thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(interval) {
                let reading = probe.read();
                shared.lock().unwrap_or_else(PoisonError::into_inner).push(reading);
            }
        });
        Sampler { readings, stop: Some(stop), thread: Some(thread) }
    }

    /// What was read since the last call.
    pub(crate) fn take(&self) -> Vec<Reading> {
        std::mem::take(&mut self.readings.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A reading that panicked has lost its numbers and nothing else.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What a record holds of some readings; `None` when there are none.
pub(crate) fn summary(readings: &[Reading]) -> Option<Telemetry> {
    if readings.is_empty() {
        return None;
    }
    let reasons: BTreeSet<&str> =
        readings.iter().flat_map(|reading| reading.throttle_reasons.iter().copied()).collect();
    Some(Telemetry {
        samples: readings.len(),
        sm_clock_mhz: range(readings, |reading| reading.sm_clock_mhz.map(f64::from)),
        memory_clock_mhz: range(readings, |reading| reading.memory_clock_mhz.map(f64::from)),
        power_watts: range(readings, |reading| reading.power_watts),
        temperature_celsius: range(readings, |reading| reading.temperature_celsius.map(f64::from)),
        throttle_reasons: reasons.into_iter().map(str::to_owned).collect(),
    })
}

fn range(readings: &[Reading], value: impl Fn(&Reading) -> Option<f64>) -> Option<Range> {
    let values: Vec<f64> = readings.iter().filter_map(value).collect();
    let min = values.iter().copied().reduce(f64::min)?;
    let max = values.iter().copied().reduce(f64::max)?;
    Some(Range { min, median: Quartiles::of(&values).median, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A GPU that gets faster, warmer and then throttled.
    struct Warming(u32);

    impl Probe for Warming {
        fn read(&mut self) -> Reading {
            self.0 += 1;
            Reading {
                sm_clock_mhz: Some(1000 + self.0),
                memory_clock_mhz: None,
                power_watts: Some(f64::from(self.0)),
                temperature_celsius: Some(40),
                throttle_reasons: if self.0 >= 3 { vec!["sw_power_cap"] } else { vec![] },
            }
        }
    }

    #[test]
    fn readings_come_from_the_background_and_are_taken_once() {
        let sampler = Sampler::with_interval(Warming(0), Duration::from_millis(1));
        let mut readings = Vec::new();
        while readings.len() < 3 {
            std::thread::sleep(Duration::from_millis(2));
            readings.extend(sampler.take());
        }
        let clocks: Vec<_> = readings.iter().filter_map(|reading| reading.sm_clock_mhz).collect();
        assert!(clocks.iter().enumerate().all(|(i, &clock)| clock == 1001 + i as u32), "{clocks:?}");
        let summary = summary(&readings[..3]).unwrap();
        assert_eq!(summary.sm_clock_mhz, Some(Range { min: 1001.0, median: 1002.0, max: 1003.0 }));
        assert_eq!((summary.samples, summary.memory_clock_mhz), (3, None));
        assert_eq!(summary.throttle_reasons, ["sw_power_cap"]);
    }

    #[test]
    fn no_readings_are_no_numbers() {
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn only_what_slows_a_gpu_down_is_a_reason() {
        assert!(names(ThrottleReasons::GPU_IDLE | ThrottleReasons::APPLICATIONS_CLOCKS_SETTING).is_empty());
        let both = ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_THERMAL_SLOWDOWN | ThrottleReasons::GPU_IDLE;
        assert_eq!(names(both), ["sw_power_cap", "hw_thermal_slowdown"]);
    }
}
