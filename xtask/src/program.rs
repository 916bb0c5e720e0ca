//! The `ferroflash` program, which does the work of `bench`, `compare`, `report`, `attend` and a part of `doctor`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{setup, workspace};

/// Builds the program in release mode and runs one of its verbs, which reads the arguments and prints the help. This process ends with
/// its exit status.
pub(crate) fn hand_over(verb: &str, arguments: Vec<OsString>) -> Result<()> {
    setup::require_rust_src()?;
    // Not by `cargo run`, which adds a message of its own to each exit status that is not 0.
    workspace::hand_over(Command::new(build()?).arg(verb).args(arguments))
}

/// Builds the program in release mode.
pub(crate) fn build() -> Result<PathBuf> {
    executable(&["build", "--package", "ferroflash_cli", "--bin", "ferroflash"])
}

/// Builds something in release mode and gives the path of the program.
pub(crate) fn executable(arguments: &[&str]) -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    // rustc's messages go to standard error as usual, the machine's lines to standard output.
    cargo.args(arguments).args(["--release", "--message-format", "json-render-diagnostics"]);
    let messages = workspace::output(&mut cargo)?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .with_context(|| format!("`cargo {}` names no program", arguments.join(" ")))
}
