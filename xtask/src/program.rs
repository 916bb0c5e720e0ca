//! `bench` and `attend`: the `ferroflash` binary does the work.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::{setup, workspace};

/// Builds the `ferroflash` binary in release mode and runs one of its verbs, which reads the arguments and prints the help.
pub(crate) fn hand_over(verb: &str, arguments: Vec<OsString>) -> Result<()> {
    setup::require_rust_src()?;
    workspace::hand_over(release().arg("--").arg(verb).args(arguments))
}

/// `cargo run` of the `ferroflash` binary in release mode, without the arguments of the binary.
pub(crate) fn release() -> Command {
    let mut cargo = workspace::cargo();
    // Paths on the command line are the caller's.
    if let Ok(folder) = std::env::current_dir() {
        cargo.current_dir(folder);
    }
    cargo.args(["run", "--release", "--package", "ferroflash_cli", "--bin", "ferroflash", "--manifest-path"]);
    cargo.arg(workspace::root().join("Cargo.toml"));
    cargo
}
