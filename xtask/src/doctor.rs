//! `doctor`: the toolchain's side of the machine, then the device's side from the `ferroflash` binary.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Result, bail};
use cuda_builder::Toolchain;
use cuda_builder::ptxas::Ptxas;
use lexopt::Arg;

use crate::{arguments, output, program, setup, workspace};

const HELP: &str = "\
Usage: cargo xtask doctor

Says what this machine has and the cure for what is missing: rustc, its library source, ptxas, driver, GPUs, and how long each
kernel takes from the start of the process to its first result. Installs nothing.
";

pub(crate) fn run(rest: Vec<OsString>) -> Result<()> {
    let mut parser = arguments::parser(rest);
    if let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => {
                return output::print(HELP);
            }
            other => return Err(arguments::unexpected(other, HELP)),
        }
    }
    let toolchain = Toolchain::detect()?;
    let pinned = setup::pinned_version()?;
    let is_pinned = toolchain.version() == pinned;
    line(is_pinned, "rustc", toolchain.version())?;
    if !is_pinned {
        cure(&format!("the workspace is pinned to {pinned}: rustup toolchain install {pinned}"))?;
    }
    let rust_src = toolchain.rust_src();
    match &rust_src {
        Ok(library) => line(true, "rust-src", &library.display().to_string())?,
        Err(error) => {
            line(false, "rust-src", "missing: no kernel can be compiled")?;
            cure(&error.to_string())?;
        }
    }
    match Ptxas::find() {
        Ok(ptxas) => line(true, "ptxas", &format!("{}, {}", ptxas.version(), ptxas.path().display()))?,
        Err(_) => {
            line(true, "ptxas", "none (optional: `cargo xtask build` then shows no registers and spills)")?;
            cure("cargo xtask setup --ptxas")?;
        }
    }
    if rust_src.is_err() || !is_pinned {
        bail!("the devices are not examined: the program that does it cannot be built");
    }
    workspace::hand_over(Command::new(program::build()?).arg("doctor"))
}

fn line(is_good: bool, what: &str, found: &str) -> Result<()> {
    output::print(&format!("{} {what:<10} {found}\n", if is_good { "ok     " } else { "MISSING" }))
}

fn cure(text: &str) -> Result<()> {
    text.lines().try_for_each(|line| output::print(&format!("                   {line}\n")))
}
