//! `ferroflash bench peers`: which peers a Python can import.

use super::{NO_DEVICE, PeerName, Peers};
use crate::output::say;
use crate::sheet::Sheet;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Says which implementations `--peers` can measure, with their versions, and what the others need.
#[derive(Args, Debug)]
#[command(after_help = "\
Nothing is measured, and no GPU is needed. Exit status 1 when there is no Python with PyTorch.
FERROFLASH_FA3_LIBRARY and FERROFLASH_FLASHMLA_LIBRARY name the libraries of vLLM's builds, _vllm_fa3_C.abi3.so and
_flashmla_C.abi3.so; without them the packages are looked for that docs/benchmarking.md lists.

Examples:
  ferroflash bench peers
  FERROFLASH_FA3_LIBRARY=fa3/_vllm_fa3_C.abi3.so ferroflash bench peers --python venv/bin/python3")]
pub(crate) struct ListArgs {
    /// The Python that has PyTorch [default: python3 or python of the path]
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
}

/// Prints a line for each peer.
///
/// # Errors
/// No Python that has PyTorch, with the reason.
pub(crate) fn list(args: &ListArgs) -> Result<()> {
    let peers = match Peers::start_on(NO_DEVICE.to_owned(), args.python.as_deref(), PeerName::value_variants())? {
        Ok(peers) => peers,
        Err(reason) => bail!("no peers: {reason}"),
    };
    let mut versions = Vec::new();
    for name in ["python", "torch", "cuda"] {
        versions.extend(peers.versions.get(name).map(|version| format!("{name} {version}")));
    }
    say!("{}: {}", peers.python().display(), versions.join(", "))?;
    let mut table = Sheet::new(["peer", "name", "operation", "version"], 2, 4);
    let mut missing = Vec::new();
    for &name in PeerName::value_variants() {
        let version = match peers.import(name) {
            Ok(version) => version.to_owned(),
            Err(reason) => {
                missing.push(format!("{name} cannot be imported: {reason}"));
                "-".to_owned()
            }
        };
        let row = [name.to_string(), name.name().to_owned(), name.operation().to_string(), version];
        table.add_row(row.map(Into::into).into());
    }
    say!("{table}")?;
    missing.iter().try_for_each(|line| say!("{line}"))
}
