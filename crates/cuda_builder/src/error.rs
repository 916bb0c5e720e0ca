//! What can go wrong, and the cure.

use std::path::PathBuf;

use crate::{Arch, PtxVersion};

/// Environment variable that names a folder with rustc's `library` source.
pub const RUST_SRC_ENV: &str = "FERROFLASH_RUST_SRC";

/// Why a kernel crate could not be built or assembled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is no architecture that this crate builds for.
    #[error("unknown architecture `{name}`; accepted are {}", list(Arch::ALL))]
    UnknownArch {
        /// The name given.
        name: String,
    },
    /// rustc has no target feature for this PTX version.
    #[error("PTX {major}.{minor} is no version that rustc can emit; accepted are 7.0 to 7.8 and 8.0 to 8.7")]
    UnknownPtxVersion {
        /// Number before the dot.
        major: u32,
        /// Number after the dot.
        minor: u32,
    },
    /// The architecture is younger than the PTX version asked for.
    #[error("PTX {asked} does not know {arch}, which needs PTX {least} or later")]
    PtxTooOld {
        /// The architecture.
        arch: Arch,
        /// The version asked for.
        asked: PtxVersion,
        /// The least version that knows the architecture.
        least: PtxVersion,
    },
    /// `build` was called without an architecture.
    #[error("no architecture given: call `.arch(Arch::Sm80)` (or another) before `.build()`")]
    NoArch,
    /// The folder given is no crate.
    #[error("no kernel crate in {}: it holds no Cargo.toml", .path.display())]
    NoCrate {
        /// The folder given.
        path: PathBuf,
    },
    /// The crate cannot become PTX as it is declared.
    #[error("{package}: {reason}")]
    Manifest {
        /// The kernel crate.
        package: String,
        /// What is wrong and what is accepted.
        reason: String,
    },
    /// The library source of rustc, from which `core` is compiled for the GPU, is not there.
    #[error(
        "rustc {version} has no library source, from which `core` is compiled for the GPU.\n\
         Either  rustup component add rust-src --toolchain {version}\n\
         or      cargo xtask setup   (Debian and Ubuntu, without rustup's network)\n\
         or set  {}=DIR to the `library` folder of the source of rustc {version}\n\
         Looked in:\n{}",
        RUST_SRC_ENV,
        lines(.searched)
    )]
    NoRustSrc {
        /// rustc's version.
        version: String,
        /// The folders looked at.
        searched: Vec<PathBuf>,
    },
    /// What the environment variable names is no library source. No other takes its place.
    #[error(
        "{} names {}, where there is no core/src/lib.rs; it takes the `library` folder of the source of rustc {version}.",
        RUST_SRC_ENV,
        .path.display()
    )]
    RustSrcNamed {
        /// What it names.
        path: PathBuf,
        /// rustc's version.
        version: String,
    },
    /// There is a library source, but of another rustc.
    #[error(
        "the library source in {} is {found}, but rustc is {wanted}; they must be equal.\n\
         `cargo xtask setup` installs the right one.",
        .path.display()
    )]
    RustSrcVersion {
        /// The folder with the source.
        path: PathBuf,
        /// What it was found to be.
        found: String,
        /// rustc's version.
        wanted: String,
    },
    /// A tool did not start.
    #[error("{program} did not start: {source}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A tool ended with an error.
    #[error("{command} failed ({status})\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote, standard output and standard error.
        output: String,
    },
    /// A tool wrote something that this crate does not understand.
    #[error("unexpected output of {command}: {reason}")]
    Output {
        /// The command.
        command: String,
        /// What was expected.
        reason: String,
    },
    /// The PTX text is not what rustc is known to write.
    #[error("{arch}: cannot read the PTX, line {line}: {reason}")]
    Ptx {
        /// The architecture.
        arch: Arch,
        /// Line in the module, from 1.
        line: usize,
        /// What was found and what was expected.
        reason: String,
    },
    /// `#[kernel]` declared an entry that is not in the PTX.
    #[error(
        "{arch}: #[kernel] declares `{entry}`, but the PTX has no such entry: a second function of that name, or LLVM dropped it"
    )]
    MissingEntry {
        /// The architecture.
        arch: Arch,
        /// The entry.
        entry: String,
    },
    /// The crate compiled, but has no kernel.
    #[error("{package} has no kernel for {arch}: mark a `pub unsafe fn` with #[kernel]")]
    NoKernels {
        /// The kernel crate.
        package: String,
        /// The architecture.
        arch: Arch,
    },
    /// Entries use local memory, and the builder was told to refuse that.
    #[error(
        "{arch}: local memory (an array whose index is not constant after unrolling, or a spilled aggregate) in {}",
        .entries.join(", ")
    )]
    LocalMemory {
        /// The architecture.
        arch: Arch,
        /// The entries.
        entries: Vec<String>,
    },
    /// ptxas is not there.
    #[error(
        "ptxas is not there; `cargo xtask setup --ptxas` installs it, or put a CUDA toolkit on PATH or in CUDA_HOME.\n\
         Looked in:\n{}",
        lines(.searched)
    )]
    NoPtxas {
        /// The places looked at.
        searched: Vec<PathBuf>,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

fn list(names: &[Arch]) -> String {
    names.iter().map(|arch| arch.name()).collect::<Vec<_>>().join(", ")
}

fn lines(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("  {}", path.display())).collect::<Vec<_>>().join("\n")
}

/// Adds the path to an I/O error.
pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { path, source }
}
