//! Opening the driver library.

use crate::error::{Error, Result, check};
use crate::sys::Table;
use libloading::Library;
use std::ffi::{c_int, c_void};
use std::ops::Deref;
use std::sync::OnceLock;

/// A version of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Every function of [`sys::REQUIRED`](crate::sys::REQUIRED) is in drivers from this one on: `cuGraphInstantiateWithFlags` is the
/// youngest of them (CUDA 11.4).
pub const LEAST_DRIVER: Version = Version { major: 11, minor: 4 };

/// The driver library: its version, and (by dereferencing) the table of its functions. It stays loaded until the process ends.
pub struct Driver {
    table: Table,
    version: Version,
    /// What the pointers of the table point into.
    _library: Library,
}

impl Driver {
    /// Newest CUDA version that the driver supports.
    pub fn version(&self) -> Version {
        self.version
    }
}

impl Deref for Driver {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("version", &self.version).finish_non_exhaustive()
    }
}

/// Opens the driver library and fills the table. The first call does the work, and all get its result.
///
/// Nothing of the driver is initialised: its version can be asked for on a machine without a GPU.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::UnsupportedPlatform`], [`Error::DriverTooOld`], [`Error::MissingSymbols`] or [`Error::Call`].
pub fn load() -> Result<&'static Driver> {
    static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();
    DRIVER.get_or_init(|| fill(open()?)).as_ref().map_err(Error::clone)
}

/// [`load`]s the driver and initialises it (`cuInit`), which every other function needs. Opening a [`Device`](crate::Device) does it.
///
/// # Errors
/// Those of [`load`], and [`Error::Call`] with `CUDA_ERROR_NO_DEVICE` where there is no GPU.
pub fn init() -> Result<&'static Driver> {
    static INITIALISED: OnceLock<()> = OnceLock::new();
    let driver = load()?;
    if INITIALISED.get().is_none() {
        // SAFETY: 0 is the only value that the flags may have. Several threads may call it, and so may other libraries.
        check("cuInit", unsafe { (driver.cuInit)(0) })?;
        let _ = INITIALISED.set(());
    }
    Ok(driver)
}

#[cfg(target_os = "linux")]
fn open() -> Result<Library> {
    // The name that the driver installs; under WSL it lies in a folder that not every loader configuration knows.
    const NAMES: [&str; 2] = ["libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"];
    let mut reasons = Vec::new();
    for name in NAMES {
        // SAFETY: the driver library's initialisers have no preconditions.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    // The first is the one that people know.
    Err(Error::NoDriver { reason: reasons.swap_remove(0) })
}

#[cfg(windows)]
fn open() -> Result<Library> {
    use libloading::os::windows;
    // From the system's folder alone, where the driver installs it: never from the folder that the program was started in.
    // SAFETY: the driver library's initialisers have no preconditions.
    unsafe { windows::Library::load_with_flags("nvcuda.dll", windows::LOAD_LIBRARY_SEARCH_SYSTEM32) }
        .map(Library::from)
        .map_err(|error| Error::NoDriver { reason: error.to_string() })
}

#[cfg(not(any(target_os = "linux", windows)))]
fn open() -> Result<Library> {
    Err(Error::UnsupportedPlatform)
}

/// The driver in this library, whose version is looked at first: an old one lacks functions, and its age is the better reason.
fn fill(library: Library) -> Result<Driver> {
    // SAFETY: an address is taken, and called with the type that the driver API gives it.
    let find = |symbol: &str| unsafe { library.get::<*const c_void>(symbol.as_bytes()) }.ok().map(|found| *found);
    let version = version(find("cuDriverGetVersion"))?;
    if version < LEAST_DRIVER {
        return Err(Error::DriverTooOld { found: version, least: LEAST_DRIVER });
    }
    // SAFETY: the addresses are those of the driver's functions.
    let table = unsafe { Table::fill(find) }.map_err(|symbols| Error::MissingSymbols { symbols })?;
    Ok(Driver { table, version, _library: library })
}

fn version(function: Option<*const c_void>) -> Result<Version> {
    type GetVersion = unsafe extern "system" fn(*mut c_int) -> crate::sys::CUresult;
    let function = function.ok_or_else(|| Error::MissingSymbols { symbols: vec!["cuDriverGetVersion"] })?;
    // SAFETY: the type is the one that the driver API gives this symbol.
    let function = unsafe { std::mem::transmute::<*const c_void, GetVersion>(function) };
    let mut version = 0;
    // SAFETY: the pointer is valid for the call, which needs no initialised driver.
    let result = unsafe { function(&mut version) };
    if result != crate::sys::CUresult::SUCCESS {
        // The table that gives codes their names is being made.
        let name = format!("CUresult {}", result.0);
        return Err(Error::Call { call: "cuDriverGetVersion", result, message: name.clone(), name });
    }
    // 1000 * major + 10 * minor, by the driver API's documentation.
    let version = version.unsigned_abs();
    Ok(Version { major: version / 1000, minor: version % 1000 / 10 })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// A library without any function of the driver is told from an old driver.
    #[test]
    fn a_library_that_is_no_driver() {
        // SAFETY: the C library is loaded already.
        let library = unsafe { Library::new("libc.so.6") }.unwrap();
        let error = fill(library).unwrap_err();
        assert_eq!(error.to_string(), "the CUDA driver lacks cuDriverGetVersion");
    }

    #[test]
    fn every_call_gets_the_result_of_the_first() {
        match load() {
            Ok(driver) => assert!(driver.version() >= LEAST_DRIVER),
            Err(Error::NoDriver { reason }) => assert!(reason.contains("libcuda.so.1"), "{reason}"),
            Err(Error::DriverTooOld { found, .. }) => assert!(found < LEAST_DRIVER),
            Err(other) => panic!("{other}"),
        }
        assert_eq!(load().err(), load().err());
    }
}
