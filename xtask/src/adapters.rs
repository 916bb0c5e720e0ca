//! The workspace of adapters, which is not part of this one: what it has to pass.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace;

/// Folder of the adapters.
pub(crate) fn root() -> PathBuf {
    workspace::root().join("crates/adapters")
}

/// cargo in the folder of the adapters, where its own configuration holds.
pub(crate) fn cargo() -> Command {
    let mut cargo = workspace::cargo();
    cargo.current_dir(root());
    cargo
}

/// Lints. This compiles what candle's GPU tensors need, too: candle's own kernels by a stand-in for nvcc, as empty files.
pub(crate) fn lint() -> Result<()> {
    let warnings_are_errors = ["--quiet", "--", "-D", "warnings"];
    workspace::run(
        cargo().args(["clippy", "--package", "ferroflash_cudarc", "--all-targets"]).args(warnings_are_errors),
    )?;
    let stand_in = root().join("candle_ferroflash/tests/toolkit/bin");
    let mut path = OsString::from(&stand_in);
    path.push(":");
    path.push(std::env::var_os("PATH").context("PATH is not set")?);
    // Asked for on machines that have no GPU to ask.
    let environment = [("PATH", path), ("NVCC", stand_in.join("nvcc").into()), ("CUDA_COMPUTE_CAP", "90".into())];
    workspace::run(
        cargo()
            .envs(environment)
            .args(["clippy", "--package", "candle_ferroflash", "--package", "candle-flash-attn", "--all-targets"])
            .args(warnings_are_errors),
    )
}

/// Tests, none of which needs a GPU: on the stand-in for the driver and in the emulator. Without the default features, because
/// `candle-flash-attn` is for GPUs, whose programs do not link without CUDA.
pub(crate) fn test() -> Result<()> {
    workspace::hand_over(cargo().args([
        "test",
        "--workspace",
        "--no-default-features",
        "--features",
        "candle_ferroflash/default,ferroflash_cudarc/default",
        "--no-fail-fast",
    ]))
}
