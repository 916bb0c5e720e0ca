//! Compiles a kernel crate to PTX through rustc's own `nvptx64-nvidia-cuda` target: no nvcc, no CUDA toolkit, no nightly.
//!
//! The API follows Rust-CUDA's crate of the same name; the way to PTX does not (that one needs a codegen backend of its own).
//!
//! ```no_run
//! use cuda_builder::{Arch, CudaBuilder};
//!
//! let output = CudaBuilder::new("../kernels").arch(Arch::Sm80).arch(Arch::Sm90a).copy_to("ptx").build()?;
//! output.print_rerun_if_changed();
//! for module in &output.modules {
//!     for kernel in &module.kernels {
//!         println!("{} {} {:?}: {} bytes", module.arch, kernel.name, kernel.bounds.threads, kernel.ptx.len());
//!     }
//! }
//! # Ok::<(), cuda_builder::Error>(())
//! ```

mod arch;
mod command;
mod error;
mod fingerprint;
mod flags;
mod metadata;
mod module;
pub mod ptxas;
mod read;
mod toolchain;

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

pub use arch::{Arch, PtxVersion};
pub use error::{Error, RUST_SRC_ENV};
pub use module::{Kernel, LaunchBounds};
pub use toolchain::{Toolchain, cache_dir};

use error::at;
use metadata::Package;

/// Builds one kernel crate for one or more architectures.
///
/// The crate is a `cdylib`, `#![no_std]`, with functions marked `#[kernel]`. Its profile is set here, whatever its manifest says.
#[derive(Clone, Debug)]
#[must_use = "nothing is built before `.build()`"]
pub struct CudaBuilder {
    path: PathBuf,
    archs: Vec<Arch>,
    ptx_versions: Vec<(Arch, PtxVersion)>,
    features: Vec<String>,
    default_features: bool,
    rustflags: Vec<String>,
    target_dir: Option<PathBuf>,
    copy_to: Option<PathBuf>,
    locked: bool,
    offline: bool,
    deny_local_memory: bool,
}

/// What a build produced.
#[derive(Clone, Debug)]
pub struct BuildOutput {
    /// One module per architecture, in the order asked for.
    pub modules: Vec<Module>,
    inputs: Vec<PathBuf>,
}

/// The PTX of the crate for one architecture.
#[derive(Clone, Debug)]
pub struct Module {
    /// The architecture.
    pub arch: Arch,
    /// The whole crate as one PTX file, as rustc wrote it: without launch bounds.
    pub path: PathBuf,
    /// One self-contained module per entry, with launch bounds.
    pub kernels: Vec<Kernel>,
    /// What rustc warned about when it compiled the crate, now or in the build that was taken over.
    pub warnings: String,
    /// Whether the crate was compiled, rather than taken from the last build.
    pub compiled: bool,
}

impl CudaBuilder {
    /// A builder for the kernel crate in the folder `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        CudaBuilder {
            path: path.into(),
            archs: Vec::new(),
            ptx_versions: Vec::new(),
            features: Vec::new(),
            default_features: true,
            rustflags: Vec::new(),
            target_dir: None,
            copy_to: None,
            locked: false,
            offline: false,
            deny_local_memory: false,
        }
    }

    /// Adds an architecture; one that is there already is not built twice.
    pub fn arch(mut self, arch: Arch) -> Self {
        if !self.archs.contains(&arch) {
            self.archs.push(arch);
        }
        self
    }

    /// Adds several architectures.
    pub fn archs(self, archs: impl IntoIterator<Item = Arch>) -> Self {
        archs.into_iter().fold(self, CudaBuilder::arch)
    }

    /// PTX version of the output for an architecture, for instructions younger than the least version of it.
    ///
    /// A driver runs no PTX younger than itself, so the default is the least version that knows the architecture.
    pub fn ptx_version(mut self, arch: Arch, version: PtxVersion) -> Self {
        self.ptx_versions.retain(|(of, _)| *of != arch);
        self.ptx_versions.push((arch, version));
        self
    }

    /// Turns on a feature of the kernel crate.
    pub fn feature(mut self, feature: impl Into<String>) -> Self {
        self.features.push(feature.into());
        self
    }

    /// Whether the default features of the kernel crate are on, as they are without this.
    pub fn default_features(mut self, on: bool) -> Self {
        self.default_features = on;
        self
    }

    /// Adds a flag of rustc, for the kernel crate, its dependencies and `core`; for experiments with code generation.
    pub fn rustflag(mut self, flag: impl Into<String>) -> Self {
        self.rustflags.push(flag.into());
        self
    }

    /// Folder for the nested build; by default `cuda_builder` in the target folder of the outer one.
    ///
    /// It is shared by every caller, so that a build script and a command-line tool compile the same kernels once.
    pub fn target_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.target_dir = Some(dir.into());
        self
    }

    /// Writes every entry to `dir/ARCH/ENTRY.ptx`, and removes the `.ptx` files there that are no entries any more.
    pub fn copy_to(mut self, dir: impl Into<PathBuf>) -> Self {
        self.copy_to = Some(dir.into());
        self
    }

    /// Passes `--locked`: the kernel crate's `Cargo.lock` must be there and stay as it is. cargo does not tell a build script
    /// whether it was called so itself.
    pub fn locked(mut self, locked: bool) -> Self {
        self.locked = locked;
        self
    }

    /// Passes `--offline`. `CARGO_NET_OFFLINE` and cargo's configuration files hold for the nested build without it.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Makes local memory in any entry an error: in a kernel over register tiles it means an index that did not become constant.
    pub fn deny_local_memory(mut self, deny: bool) -> Self {
        self.deny_local_memory = deny;
        self
    }

    /// Compiles what has changed, and splits the PTX into one module per entry.
    ///
    /// # Errors
    /// [`Error`] says what is missing and how to get it; a compile error holds all that rustc wrote.
    pub fn build(&self) -> Result<BuildOutput, Error> {
        if self.archs.is_empty() {
            return Err(Error::NoArch);
        }
        if let Some(&(arch, asked)) = self.ptx_versions.iter().find(|(arch, asked)| *asked < arch.least_ptx()) {
            return Err(Error::PtxTooOld { arch, asked, least: arch.least_ptx() });
        }
        let toolchain = Toolchain::detect()?;
        let package = Package::read(&toolchain, &self.path, self.locked, self.offline)?;
        let files = package.files()?;
        // The architectures share nothing but the source: each compiles its own `core`. On two cores two of them take as long
        // as one.
        let mut modules = Vec::with_capacity(self.archs.len());
        let at_once = thread::available_parallelism().map_or(1, usize::from);
        for archs in self.archs.chunks(at_once) {
            let results = thread::scope(|scope| {
                let (toolchain, package, files) = (&toolchain, &package, &files);
                let build = |&arch| scope.spawn(move || self.module(toolchain, package, files, arch));
                let threads: Vec<_> = archs.iter().map(build).collect();
                threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
            });
            for result in results {
                modules.push(result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
        }
        if let Some(dir) = &self.copy_to {
            for module in &modules {
                module.copy_to(dir)?;
            }
        }
        let mut inputs = package.manifests();
        for module in &modules {
            inputs.extend(package.sources(module.path.parent().expect("it lies in a folder"))?);
        }
        inputs.sort();
        inputs.dedup();
        Ok(BuildOutput { modules, inputs })
    }

    fn module(&self, toolchain: &Toolchain, package: &Package, files: &[PathBuf], arch: Arch) -> Result<Module, Error> {
        let flags = flags::rustflags(arch, &self.rustflags);
        // Different settings live in different folders, so that they do not evict one another.
        let mut settings = DefaultHasher::new();
        (&flags, &self.features, self.default_features).hash(&mut settings);
        let folder = format!("{arch}-{:08x}", settings.finish() as u32);
        let dir =
            self.target_dir.clone().unwrap_or_else(|| package.default_target_dir()).join(&package.name).join(folder);
        fs::create_dir_all(&dir).map_err(at(&dir))?;

        // A build script and a command-line tool may run at the same time; cargo locks its own folder, not our files.
        let lock_path = dir.join("lock");
        let lock = fs::File::create(&lock_path).map_err(at(&lock_path))?;
        lock.lock().map_err(at(&lock_path))?;

        let ptx_path = dir.join(format!("{}.ptx", package.name));
        let fingerprint_path = dir.join("fingerprint");
        let settings =
            (&flags, &self.features, self.default_features, flags::PROFILE, flags::EMIT, toolchain.verbose_version());
        let fingerprint = fingerprint::of(files, &settings)?;
        let is_fresh = ptx_path.is_file() && fs::read_to_string(&fingerprint_path).is_ok_and(|old| old == fingerprint);
        let warnings_path = dir.join("warnings");
        let warnings = if is_fresh {
            fs::read_to_string(&warnings_path).map_err(at(&warnings_path))?
        } else {
            let warnings =
                self.cargo(toolchain, package, &flags, &dir, &flags::cargo_arguments("rustc"), flags::EMIT)?;
            let assembly = dir.join(flags::TARGET).join("release/deps").join(format!("{}.s", package.crate_name));
            fs::copy(&assembly, &ptx_path).map_err(at(&assembly))?;
            fs::write(&warnings_path, &warnings).map_err(at(&warnings_path))?;
            // Last, so that an interrupted build is not taken for a finished one.
            fs::write(&fingerprint_path, &fingerprint).map_err(at(&fingerprint_path))?;
            warnings
        };

        let ptx = fs::read_to_string(&ptx_path).map_err(at(&ptx_path))?;
        let asked = self.ptx_versions.iter().find(|(of, _)| *of == arch);
        let ptx = if let Some((_, version)) = asked { version.set_in(&ptx) } else { ptx };
        let kernels = module::split(arch, &ptx)?;
        if kernels.is_empty() {
            return Err(Error::NoKernels { package: package.name.clone(), arch });
        }
        if self.deny_local_memory {
            let local = kernels.iter().filter(|kernel| kernel.uses_local_memory());
            let entries: Vec<String> = local.map(|kernel| kernel.name.clone()).collect();
            if !entries.is_empty() {
                return Err(Error::LocalMemory { arch, entries });
            }
        }
        Ok(Module { arch, path: ptx_path, kernels, warnings, compiled: !is_fresh })
    }

    /// Runs clippy over the kernel crate, for the first architecture asked for. `flags` go to clippy, such as `-Dwarnings`.
    ///
    /// # Errors
    /// [`Error::Command`] holds the findings that are errors by `flags`; otherwise as [`CudaBuilder::build`].
    pub fn lint(&self, flags: &[&str]) -> Result<String, Error> {
        let &arch = self.archs.first().ok_or(Error::NoArch)?;
        let toolchain = Toolchain::detect()?;
        let package = Package::read(&toolchain, &self.path, self.locked, self.offline)?;
        let rustflags = flags::rustflags(arch, &self.rustflags);
        // Apart from builds: other flags of rustc would evict `core` from their folder.
        let dir = self.root(&package).join(format!("{arch}-lint"));
        self.cargo(&toolchain, &package, &rustflags, &dir, &flags::cargo_arguments("clippy"), flags)
    }

    /// Folder of everything that is built from the package.
    fn root(&self, package: &Package) -> PathBuf {
        self.target_dir.clone().unwrap_or_else(|| package.default_target_dir()).join(&package.name)
    }

    /// Runs the nested cargo; gives the warnings.
    fn cargo(
        &self,
        toolchain: &Toolchain,
        package: &Package,
        rustflags: &[String],
        dir: &Path,
        arguments: &[&str],
        tool_arguments: &[&str],
    ) -> Result<String, Error> {
        let rust_src = toolchain.rust_src()?;
        let mut cargo = Command::new(toolchain.cargo());
        cargo.args(arguments).arg("--target-dir").arg(dir);
        // Progress lines would hide the warnings, which are all that is left on standard error.
        cargo.arg("--quiet").arg("--manifest-path").arg(&package.manifest);
        if self.locked {
            cargo.arg("--locked");
        }
        if self.offline {
            cargo.arg("--offline");
        }
        if !self.default_features {
            cargo.arg("--no-default-features");
        }
        for feature in &self.features {
            cargo.args(["--features", feature]);
        }
        cargo.arg("--").args(tool_arguments);

        cargo.current_dir(&package.folder).env_clear();
        cargo.envs(env::vars_os().filter(|(name, _)| name.to_str().is_none_or(flags::is_inherited)));
        cargo.envs(flags::PROFILE.iter().copied());
        cargo.env("RUSTC", toolchain.rustc());
        // An empty wrapper also switches off one from a configuration file: it might not know the target.
        cargo.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
        // build-std and the features of kernels (ptx-kernel ABI, inline PTX) are unstable; the pinned release has them all.
        cargo.env("RUSTC_BOOTSTRAP", "1");
        cargo.env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f"));
        // The one way to name a library source outside of the sysroot; undocumented, but the toolchain is pinned.
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", rust_src);
        let (_, warnings) = command::streams(&mut cargo)?;
        Ok(warnings)
    }
}

impl BuildOutput {
    /// Files that the PTX is made of. Those of modules behind features that are off are not among them.
    pub fn inputs(&self) -> &[PathBuf] {
        &self.inputs
    }

    /// Prints the `cargo::rerun-if-changed` lines of a build script.
    pub fn print_rerun_if_changed(&self) {
        for input in &self.inputs {
            println!("cargo::rerun-if-changed={}", input.display());
        }
        println!("cargo::rerun-if-env-changed={RUST_SRC_ENV}");
    }
}

impl Module {
    /// The kernel called `name`.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// Writes every entry to `dir/ARCH/ENTRY.ptx`, and removes the `.ptx` files there that are no entries any more.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written.
    pub fn copy_to(&self, dir: &Path) -> Result<(), Error> {
        let dir = dir.join(self.arch.name());
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        for entry in fs::read_dir(&dir).map_err(at(&dir))? {
            let path = entry.map_err(at(&dir))?.path();
            let is_ptx = path.extension().is_some_and(|extension| extension == "ptx");
            let name = path.file_stem().and_then(|stem| stem.to_str());
            if is_ptx && name.is_none_or(|name| self.kernel(name).is_none()) {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        for kernel in &self.kernels {
            let path = dir.join(format!("{}.ptx", kernel.name));
            // An unchanged file keeps its time, so that what depends on it is not rebuilt.
            if fs::read_to_string(&path).ok().as_deref() != Some(&kernel.ptx) {
                fs::write(&path, &kernel.ptx).map_err(at(&path))?;
            }
        }
        Ok(())
    }
}
