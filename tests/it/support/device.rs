//! The device under test.

use ferroflash::{Device, DeviceKind};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Tests share the device, except those that measure how much memory it holds.
static IN_USE: RwLock<()> = RwLock::new(());

/// The device under test, shared with other tests while this lives.
pub(crate) struct Shared {
    pub(crate) device: Device,
    _in_use: RwLockReadGuard<'static, ()>,
}

/// The device under test, used by nobody else while this lives.
pub(crate) struct Exclusive {
    pub(crate) device: Device,
    _in_use: RwLockWriteGuard<'static, ()>,
}

/// The device, shared with other tests.
pub(crate) fn shared() -> Shared {
    // A failed test poisons the lock; the device is as usable as before.
    Shared { _in_use: IN_USE.read().unwrap_or_else(PoisonError::into_inner), device: open() }
}

/// The device for one test alone.
pub(crate) fn exclusive() -> Exclusive {
    Exclusive { _in_use: IN_USE.write().unwrap_or_else(PoisonError::into_inner), device: open() }
}

/// What `FERROFLASH_TEST_DEVICE` names.
pub(crate) fn name() -> String {
    std::env::var("FERROFLASH_TEST_DEVICE").unwrap_or_else(|_| "best".to_owned())
}

/// One device for all tests: kernels are loaded once.
fn open() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let open = || {
        let name = name();
        Device::open(&name).unwrap_or_else(|error| panic!("FERROFLASH_TEST_DEVICE={name}: {error}"))
    };
    DEVICE.get_or_init(open).clone()
}

/// Whether the device under test is a GPU, so that sizes and numbers of cases can be those of a GPU.
pub(crate) fn is_gpu() -> bool {
    static GPU: OnceLock<bool> = OnceLock::new();
    *GPU.get_or_init(|| matches!(open().info().kind, DeviceKind::Cuda { .. }))
}

/// Random cases of each property: `FERROFLASH_TEST_CASES`, or as many as take some minutes on two cores, or on a GPU, for the suite.
pub(crate) fn cases() -> u32 {
    number("FERROFLASH_TEST_CASES").unwrap_or(if is_gpu() { 256 } else { 64 })
}

/// Interleavings that the emulator goes through where a test is about them: `FERROFLASH_TEST_SEEDS`, or `few`.
pub(crate) fn seeds(few: u32) -> u32 {
    number("FERROFLASH_TEST_SEEDS").unwrap_or(few)
}

/// The number above 0 that an environment variable holds, if it is set.
fn number(name: &str) -> Option<u32> {
    let text = std::env::var(name).ok()?;
    let number = text.parse().ok().filter(|&number| number > 0);
    Some(number.unwrap_or_else(|| panic!("{name}={text} is not accepted; a whole number above 0 is needed")))
}
