//! The CUDA driver library, found when the program runs instead of when it is linked.
//!
//! [`cust`](https://docs.rs/cust) links against `libcuda`, which comes with the driver: without one nothing builds and nothing
//! starts. This crate defines every driver function that cust and its users here call as a forwarder of one jump, and [`load`]
//! points the forwarders at `libcuda.so.1`. Until then, and on a machine without a driver, each returns
//! `CUDA_ERROR_NO_DEVICE`, so that the binary starts everywhere and cust says what is the matter.
//!
//! ```
//! match cuda_loader::load() {
//!     Ok(driver) => println!("driver found, supports CUDA {:?}", driver.version()),
//!     Err(error) => println!("no CUDA: {error}"),
//! }
//! ```
#![cfg_attr(
    not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))),
    allow(unused, reason = "there is no driver to open on this platform")
)]

use std::ffi::{CStr, c_int};
use std::sync::OnceLock;
use std::sync::atomic::AtomicPtr;

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod forward;

/// Why there is no driver to call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The dynamic loader finds no driver library.
    #[error("the CUDA driver library is not found: {0}")]
    NotFound(String),
    /// There are forwarders for Linux on x86_64 and aarch64 only.
    #[error("the CUDA driver is loaded on Linux on x86_64 and aarch64 only")]
    UnsupportedPlatform,
}

/// The driver lacks functions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the CUDA driver lacks {}", .symbols.join(", "))]
pub struct MissingSymbols {
    /// Names of the functions.
    pub symbols: Vec<&'static str>,
}

/// The loaded driver library. It stays loaded until the process ends.
#[derive(Debug)]
pub struct Driver {
    #[cfg(target_os = "linux")]
    library: libloading::Library,
    missing: Vec<&'static str>,
}

/// `CUDA_ERROR_NO_DEVICE`: what every forwarder returns before [`load`] or without a driver.
pub const NO_DEVICE: u32 = 100;

/// `CUDA_ERROR_NOT_SUPPORTED`: what the forwarder of a function returns that the loaded driver lacks.
pub const NOT_SUPPORTED: u32 = 801;

/// Opens the driver library and points every forwarder at it. The first call does the work; all get its result.
///
/// # Errors
/// [`LoadError::NotFound`] on a machine without a driver.
pub fn load() -> Result<&'static Driver, LoadError> {
    static DRIVER: OnceLock<Result<Driver, LoadError>> = OnceLock::new();
    DRIVER.get_or_init(open).as_ref().map_err(LoadError::clone)
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn open() -> Result<Driver, LoadError> {
    Err(LoadError::UnsupportedPlatform)
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn open() -> Result<Driver, LoadError> {
    // The name that the driver installs; under WSL it lies in a folder that not every loader configuration knows.
    const NAMES: [&str; 2] = ["libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"];
    let mut reasons = Vec::new();
    for name in NAMES {
        // SAFETY: the driver library's initialisers have no preconditions.
        match unsafe { libloading::Library::new(name) } {
            Ok(library) => return Ok(fill(library)),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    // The first is the one that people know.
    Err(LoadError::NotFound(reasons.swap_remove(0)))
}

/// Points the forwarders at the library.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn fill(library: libloading::Library) -> Driver {
    use std::sync::atomic::Ordering;
    let mut missing = Vec::new();
    for forwarder in forward::all() {
        // SAFETY: only the address is taken; the forwarder jumps to it with the arguments that its caller meant for this name.
        let function = unsafe { library.get::<*mut ()>(forwarder.name.to_bytes_with_nul()) };
        let target = match function {
            Ok(function) => *function,
            Err(_) => {
                missing.push(forwarder.name.to_str().expect("driver functions have ASCII names"));
                forward::not_supported as *mut ()
            }
        };
        forwarder.slot.store(target, Ordering::Release);
    }
    Driver { library, missing }
}

impl Driver {
    /// Newest CUDA version that the driver supports, as `(major, minor)`, or the CUresult code of the failed call.
    ///
    /// # Errors
    /// The CUresult code that the driver returned.
    pub fn version(&self) -> Result<(u32, u32), u32> {
        let get_version: unsafe extern "C" fn(*mut c_int) -> u32 =
            // SAFETY: the type is that of the driver API.
            unsafe { self.symbol(c"cuDriverGetVersion") }.ok_or(NOT_SUPPORTED)?;
        let mut version = 0;
        // SAFETY: the pointer is valid for the call, which needs no initialised driver.
        match unsafe { get_version(&mut version) } {
            // 1000 * major + 10 * minor, by the driver API's documentation.
            0 => Ok((version.unsigned_abs() / 1000, version.unsigned_abs() % 1000 / 10)),
            code => Err(code),
        }
    }

    /// Functions with a forwarder that this driver lacks. Their forwarders return [`NOT_SUPPORTED`].
    pub fn missing(&self) -> &[&'static str] {
        &self.missing
    }

    /// Fails when the driver lacks one of these functions.
    ///
    /// # Errors
    /// [`MissingSymbols`] names all that are missing.
    pub fn require(&self, symbols: &[&'static str]) -> Result<(), MissingSymbols> {
        let symbols: Vec<_> = symbols.iter().copied().filter(|symbol| self.missing.contains(symbol)).collect();
        if symbols.is_empty() { Ok(()) } else { Err(MissingSymbols { symbols }) }
    }

    /// The function of this name, for driver functions newer than cust's bindings; `None` when the driver lacks it.
    ///
    /// # Safety
    /// `F` is a function pointer of exactly the type that the driver gives this name.
    pub unsafe fn symbol<F: Copy>(&self, name: &CStr) -> Option<F> {
        #[cfg(target_os = "linux")]
        {
            // SAFETY: the caller vouches for the type; the library is never unloaded.
            unsafe { self.library.get::<F>(name.to_bytes_with_nul()) }.ok().map(|symbol| *symbol)
        }
        #[cfg(not(target_os = "linux"))]
        {
            None
        }
    }
}

/// One forwarder: its name, and where it jumps to.
struct Forwarder {
    name: &'static CStr,
    slot: &'static AtomicPtr<()>,
}

#[cfg(all(test, target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn cuDriverGetVersion(version: *mut c_int) -> u32;
        fn cuMemPoolTrimTo(pool: *mut (), bytes: usize) -> u32;
    }

    /// Before loading, a call comes back with NO_DEVICE; after, with what the driver says.
    #[test]
    fn forwarders_answer_with_and_without_a_driver() {
        let mut version = -1;
        // SAFETY: the pointer is valid for the call.
        let before = unsafe { cuDriverGetVersion(&mut version) };
        assert_eq!((before, version), (NO_DEVICE, -1));
        let loaded = load();
        // SAFETY: as above.
        let after = unsafe { cuDriverGetVersion(&mut version) };
        match &loaded {
            Ok(driver) => {
                let (major, minor) = driver.version().unwrap();
                assert_eq!((after, version.unsigned_abs()), (0, 1000 * major + 10 * minor));
            }
            Err(error) => {
                assert!(matches!(error, LoadError::NotFound(reason) if reason.contains("libcuda")), "{error}");
                assert_eq!((after, version), (NO_DEVICE, -1));
                // SAFETY: no driver is there that could look at the arguments.
                assert_eq!(unsafe { cuMemPoolTrimTo(std::ptr::null_mut(), 0) }, NO_DEVICE);
            }
        }
        assert_eq!(load().is_ok(), loaded.is_ok());
    }

    /// Every name once, and a slot of its own.
    #[test]
    fn forwarders_are_distinct() {
        let names: std::collections::BTreeSet<_> = forward::all().iter().map(|f| f.name).collect();
        let slots: std::collections::BTreeSet<_> = forward::all().iter().map(|f| std::ptr::from_ref(f.slot)).collect();
        assert_eq!((names.len(), slots.len()), (forward::all().len(), forward::all().len()));
    }

    /// A library without any driver function stands for a driver that is too old.
    #[test]
    fn a_driver_without_a_function_is_told_by_name() {
        // SAFETY: the C library is loaded already.
        let library = unsafe { libloading::Library::new("libc.so.6") }.unwrap();
        let missing = forward::all().iter().map(|f| f.name.to_str().unwrap()).collect();
        let driver = Driver { library, missing };
        assert_eq!(driver.version(), Err(NOT_SUPPORTED));
        assert_eq!(
            driver.require(&["cuMemPoolCreate"]).unwrap_err().to_string(),
            "the CUDA driver lacks cuMemPoolCreate"
        );
        assert!(driver.require(&[]).is_ok());
    }
}
