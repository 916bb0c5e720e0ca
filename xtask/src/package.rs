//! `package`: the crates as a registry would hold them, each built from its package alone.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use lexopt::Arg;
use serde_json::Value;

use crate::{arguments, build, output, setup, workspace};

const HELP: &str = "\
Usage: cargo xtask package [--allow-dirty]

Compiles the kernels into crates/ferroflash/ptx, which a release carries so that its users need no rust-src, and has cargo package and
build every crate that may be published: each from its package, with its siblings from theirs. Publishes nothing: that is `cargo publish
--allow-dirty` afterwards, because the PTX is in no commit.

Options
  --allow-dirty    package changes too that are not committed
";

pub(crate) fn run(rest: Vec<OsString>) -> Result<()> {
    let mut allow_dirty = false;
    let mut parser = arguments::parser(rest);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => return output::print(HELP),
            Arg::Long("allow-dirty") => allow_dirty = true,
            other => return Err(arguments::unexpected(other, HELP)),
        }
    }
    if !allow_dirty {
        require_clean()?;
    }
    setup::require_rust_src()?;
    let ptx = workspace::root().join("crates/ferroflash/ptx");
    if ptx.exists() {
        // An entry that is no longer in the list would be published for ever.
        fs::remove_dir_all(&ptx).with_context(|| ptx.display().to_string())?;
    }
    build::kernels(Some(ptx))?;

    let metadata = workspace::metadata()?;
    let names = published(&metadata);
    if names.is_empty() {
        bail!("no crate of the workspace may be published");
    }
    workspace::step(&format!("packages of {}", names.join(", ")));
    let mut cargo = workspace::cargo();
    // cargo counts the PTX as a change. Whether there are others was looked at.
    cargo.args(["package", "--allow-dirty"]);
    for name in &names {
        cargo.args(["--package", name]);
    }
    workspace::run(&mut cargo)?;
    let folder = workspace::target_dir()?.join("package");
    output::print(&format!("{} packages in {}\n", names.len(), folder.display()))
}

/// Refuses changes that are in no commit: nobody could tell what a release of them was made of.
fn require_clean() -> Result<()> {
    let changes =
        workspace::output(Command::new("git").args(["status", "--porcelain"]).current_dir(workspace::root()))?;
    if !changes.is_empty() {
        bail!("there are changes that are not committed; --allow-dirty packages them too:\n{}", changes.trim_end());
    }
    Ok(())
}

/// The crates of the workspace that do not say `publish = false`.
fn published(metadata: &Value) -> Vec<&str> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    // `cargo metadata` gives the registries that a package may go to: null for all, an empty list for none.
    let may = |package: &&Value| package["publish"].as_array().is_none_or(|registries| !registries.is_empty());
    packages.iter().filter(may).filter_map(|package| package["name"].as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_for_a_registry_is_left_out() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "public", "publish": null },
            { "name": "private", "publish": [] },
            { "name": "elsewhere", "publish": ["own"] },
        ] });
        assert_eq!(published(&metadata), ["public", "elsewhere"]);
    }

    /// A release that names a crate which is not released is built with whatever has that name on the registry.
    #[test]
    fn what_is_published_needs_only_what_is_published() {
        let metadata = workspace::metadata().unwrap();
        let published = published(&metadata);
        assert!(published.contains(&"ferroflash") && !published.contains(&"xtask"), "{published:?}");
        let packages = metadata["packages"].as_array().unwrap();
        for package in packages.iter().filter(|package| published.contains(&package["name"].as_str().unwrap())) {
            for dependency in package["dependencies"].as_array().unwrap() {
                let is_sibling = !dependency["path"].is_null();
                let is_dev = dependency["kind"] == "dev";
                let name = dependency["name"].as_str().unwrap();
                assert!(!is_sibling || is_dev || published.contains(&name), "{} needs {name}", package["name"]);
            }
        }
    }
}
