//! Finds rustc, cargo, the library source and the per-user cache.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{RUST_SRC_ENV, at};
use crate::{Error, command};

/// The compiler that builds kernels.
#[derive(Clone, Debug)]
pub struct Toolchain {
    cargo: OsString,
    rustc: OsString,
    version: String,
    verbose_version: String,
    sysroot: PathBuf,
}

impl Toolchain {
    /// The toolchain of the cargo that runs the caller, or the first one on PATH.
    ///
    /// # Errors
    /// [`Error::Start`] or [`Error::Command`] when rustc does not run.
    pub fn detect() -> Result<Self, Error> {
        // Set by cargo for build scripts and `cargo run`; without them rustup's proxies on PATH pick the toolchain.
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let verbose_version = command::output(Command::new(&rustc).arg("-vV"))?;
        let version = verbose_version
            .lines()
            .find_map(|line| line.strip_prefix("release: "))
            .ok_or_else(|| Error::Output { command: "rustc -vV".into(), reason: "no `release:` line".into() })?
            .to_string();
        let sysroot = PathBuf::from(command::output(Command::new(&rustc).args(["--print", "sysroot"]))?.trim());
        Ok(Toolchain { cargo, rustc, version, verbose_version, sysroot })
    }

    /// rustc's version, such as `1.95.0`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Folder of the toolchain.
    pub fn sysroot(&self) -> &Path {
        &self.sysroot
    }

    /// What `rustc -vV` says: version, commit, LLVM.
    pub fn verbose_version(&self) -> &str {
        &self.verbose_version
    }

    pub(crate) fn cargo(&self) -> &OsString {
        &self.cargo
    }

    pub(crate) fn rustc(&self) -> &OsString {
        &self.rustc
    }

    /// Where rustup keeps the library source of this toolchain.
    fn sysroot_library(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// Where `cargo xtask setup` puts the library source of this rustc.
    ///
    /// `None` when neither `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn cached_library(&self) -> Option<PathBuf> {
        Some(cache_dir()?.join(format!("rust-src-{}", self.version)).join("library"))
    }

    /// The library source that `core` is compiled from: the one that the environment variable [`RUST_SRC_ENV`] names and no other;
    /// without it the sysroot's, else the one in the per-user cache.
    ///
    /// # Errors
    /// [`Error::NoRustSrc`] names the cure; [`Error::RustSrcNamed`] when the variable names something else;
    /// [`Error::RustSrcVersion`] when the source belongs to another rustc.
    pub fn rust_src(&self) -> Result<PathBuf, Error> {
        self.find_rust_src(env::var_os(RUST_SRC_ENV).filter(|named| !named.is_empty()).map(PathBuf::from))
    }

    fn find_rust_src(&self, named: Option<PathBuf>) -> Result<PathBuf, Error> {
        let is_library = |folder: &Path| folder.join("core/src/lib.rs").is_file();
        let library = if let Some(path) = named {
            if !is_library(&path) {
                return Err(Error::RustSrcNamed { path, version: self.version.clone() });
            }
            path
        } else {
            let searched: Vec<PathBuf> = [self.sysroot_library()].into_iter().chain(self.cached_library()).collect();
            let Some(library) = searched.iter().find(|folder| is_library(folder)) else {
                return Err(Error::NoRustSrc { version: self.version.clone(), searched });
            };
            library.clone()
        };
        self.check_source(&library)?;
        Ok(library)
    }

    /// Checks that a library source belongs to this rustc.
    ///
    /// The source carries no version file everywhere it comes from, but its `#[stable(since = ..)]` attributes do: a release has
    /// some of its own minor version and none of the next.
    ///
    /// # Errors
    /// [`Error::RustSrcVersion`] when it does not.
    pub fn check_source(&self, library: &Path) -> Result<(), Error> {
        let mismatch =
            |found: String| Error::RustSrcVersion { path: library.to_path_buf(), found, wanted: self.version.clone() };
        let mut numbers = self.version.split(['.', '-']);
        let minor: u32 = match (numbers.next(), numbers.next().map(str::parse)) {
            (Some("1"), Some(Ok(minor))) => minor,
            _ => return Err(mismatch("not comparable with such a version number".into())),
        };
        let mut has_own = false;
        let mut has_next = false;
        let mut folders = vec![library.join("core/src"), library.join("alloc/src")];
        let (own, next) = (format!("since = \"1.{minor}.0\""), format!("since = \"1.{}.0\"", minor + 1));
        while let Some(folder) = folders.pop() {
            // A cut-down source may lack `alloc`; `core` was found by the caller or its absence is the mismatch.
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries {
                let path = entry.map_err(at(&folder))?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = fs::read_to_string(&path).map_err(at(&path))?;
                    has_own |= text.contains(&own);
                    has_next |= text.contains(&next);
                }
            }
        }
        match (has_own, has_next) {
            (true, false) => Ok(()),
            (_, true) => Err(mismatch(format!("of 1.{} or later", minor + 1))),
            (false, false) => Err(mismatch(format!("older than 1.{minor}"))),
        }
    }
}

/// The per-user cache of the project: `$XDG_CACHE_HOME/ferroflash`, or `~/.cache/ferroflash`.
///
/// `None` when neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("ferroflash"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(since: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let core = dir.path().join("core/src/num");
        fs::create_dir_all(&core).unwrap();
        fs::write(dir.path().join("core/src/lib.rs"), "").unwrap();
        let text: String =
            since.iter().map(|version| format!("#[stable(feature = \"x\", since = \"{version}\")]\n")).collect();
        fs::write(core.join("mod.rs"), text).unwrap();
        dir
    }

    #[test]
    fn a_source_that_is_named_is_the_one_that_is_used() {
        let toolchain = Toolchain { version: "1.95.0".into(), ..Toolchain::detect().unwrap() };
        let named = source(&["1.95.0"]);
        assert_eq!(toolchain.find_rust_src(Some(named.path().into())).unwrap(), named.path());
        // No other takes the place of one that is not there.
        let absent = named.path().join("absent");
        let error = toolchain.find_rust_src(Some(absent.clone())).unwrap_err();
        assert!(matches!(&error, Error::RustSrcNamed { path, .. } if *path == absent), "{error}");
    }

    #[test]
    fn a_source_of_another_version_is_refused() {
        let toolchain = Toolchain { version: "1.95.0".into(), ..Toolchain::detect().unwrap() };
        let check = |since: &[&str]| toolchain.check_source(source(since).path());
        check(&["1.0.0", "1.94.0", "1.95.0"]).unwrap();
        let newer = check(&["1.95.0", "1.96.0"]).unwrap_err().to_string();
        assert!(newer.contains("1.96 or later") && newer.contains("rustc is 1.95.0"), "{newer}");
        let older = check(&["1.93.0", "1.94.0"]).unwrap_err().to_string();
        assert!(older.contains("older than 1.95"), "{older}");
    }
}
