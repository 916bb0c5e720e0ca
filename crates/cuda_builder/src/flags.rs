//! Every flag of the nested build, with its reason.

use crate::Arch;

/// The target: rustc's own NVPTX backend.
pub(crate) const TARGET: &str = "nvptx64-nvidia-cuda";

/// Loops up to this many unrolled instructions are unrolled fully. LLVM's default of 300 leaves loops over register tiles rolled
/// up, and an array that is indexed by a loop variable goes to local memory instead of registers. 20000 covers a 64 x 256
/// accumulator with its products; the loops over key blocks have no constant count and stay loops.
const UNROLL_THRESHOLD: u32 = 20_000;

/// Flags of rustc for the kernel crate, its dependencies and `core`.
pub(crate) fn rustflags(arch: Arch, extra: &[String]) -> Vec<String> {
    let mut flags = vec![
        // One architecture per build: LLVM picks instructions, and the least PTX version, by it.
        format!("-Ctarget-cpu={arch}"),
        // The target's linker is a tool that needs rustup's network. With fat LTO all of the program is in one module
        // anyway, and its assembly, which is PTX, is the result: nothing is left to link.
        "-Clinker=true".into(),
        format!("-Cllvm-args=-unroll-threshold={UNROLL_THRESHOLD}"),
    ];
    flags.extend_from_slice(extra);
    flags
}

/// Arguments of `cargo`; `command` is `rustc` or `clippy`.
pub(crate) fn cargo_arguments(command: &'static str) -> [&'static str; 6] {
    [
        command,
        "--lib",
        // Kernels are unusable without optimisation: register tiles would live in memory.
        "--release",
        // No `core` for this target is distributed; it is compiled with the kernels, for their architecture.
        "-Zbuild-std=core",
        "--target",
        TARGET,
    ]
}

/// The release profile of the nested build, whatever the kernel crate's own manifest says.
pub(crate) const PROFILE: &[(&str, &str)] = &[
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    // Pulls `core` and the dependencies into the one module that becomes PTX.
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    // One module, one PTX file.
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    // There is no unwinding on a GPU.
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    // `.loc` lines and debug sections would double the PTX that every host program embeds.
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    // A wrapped index in a kernel is memory corruption either way; the checks cost registers.
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false"),
    // Incremental compilation excludes fat LTO.
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "false"),
];

/// Arguments of rustc for the kernel crate alone: PTX is LLVM's assembly output.
pub(crate) const EMIT: &[&str] = &["--emit=asm"];

/// Variables that the nested cargo inherits; every other `CARGO*` and `RUST*` one belongs to the outer build (its target folder,
/// flags, wrappers, profile, build-script values) and would leak into the kernels.
pub(crate) fn is_inherited(variable: &str) -> bool {
    const KEPT: &[&str] = &["CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "RUSTUP_AUTO_INSTALL", "CARGO_MAKEFLAGS"];
    // How to reach registries, or that they must not be reached.
    const KEPT_PREFIXES: &[&str] = &["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_"];
    if KEPT.contains(&variable) || KEPT_PREFIXES.iter().any(|prefix| variable.starts_with(prefix)) {
        return true;
    }
    // What cargo sets for build scripts, without a prefix of its own.
    const BUILD_SCRIPT: &[&str] = &["OUT_DIR", "TARGET", "HOST", "PROFILE", "OPT_LEVEL", "DEBUG", "NUM_JOBS"];
    const PREFIXES: &[&str] = &["CARGO", "__CARGO", "RUST", "DEP_"];
    !BUILD_SCRIPT.contains(&variable) && !PREFIXES.iter().any(|prefix| variable.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_build_does_not_leak_in() {
        for variable in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_FEATURE_CUDA",
            "OUT_DIR",
            "__CARGO_TESTS_ONLY_SRC_ROOT",
        ] {
            assert!(!is_inherited(variable), "{variable}");
        }
        for variable in ["PATH", "HOME", "CARGO_HOME", "CARGO_NET_OFFLINE", "RUSTUP_TOOLCHAIN"] {
            assert!(is_inherited(variable), "{variable}");
        }
    }
}
