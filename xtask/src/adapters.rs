//! The workspace of adapters, which is not part of this one: what it has to pass.

use std::env;
use std::iter::once;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::seed::{self, Seed};
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
    let stand_in = root().join("candle_ferroflash/tests/toolkit/bin");
    let path = env::var_os("PATH").context("PATH is not set")?;
    let path = env::join_paths(once(stand_in.clone()).chain(env::split_paths(&path)))?;
    // A machine without a GPU cannot be asked for its compute capability.
    let environment = [("PATH", path), ("NVCC", stand_in.join("nvcc").into()), ("CUDA_COMPUTE_CAP", "90".into())];
    // The tests of ferroflash_cudarc choose a version of CUDA, which is another than candle finds: one at a time.
    let candle = ["candle_ferroflash", "candle-flash-attn", "candle_models"];
    for (packages, features) in
        [(&["ferroflash_cudarc"][..], ""), (&candle, "candle_models/emulator"), (&["ferroflash_python"], "")]
    {
        let packages = packages.iter().flat_map(|package| ["--package", package]);
        let mut cargo = cargo();
        cargo.envs(environment.clone()).arg("clippy").args(packages).args(["--features", features]);
        workspace::run(cargo.args(["--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    }
    Ok(())
}

/// Tests, none of which needs a GPU: on the stand-in for the driver and in the emulator. Without the default features, because
/// `candle-flash-attn` is for GPUs, whose programs do not link without CUDA.
pub(crate) fn test(seed: &Seed) -> Result<()> {
    workspace::hand_over(cargo().env(seed::VARIABLE, seed.value.to_string()).args([
        "test",
        "--workspace",
        "--no-default-features",
        "--features",
        "candle_ferroflash/default",
        "--no-fail-fast",
    ]))
}
