//! `package`: the crates as a registry would hold them, and a program made of nothing else.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use lexopt::Arg;
use serde_json::Value;

use crate::{arguments, output, setup, table, workspace};

mod program;
mod tree;

const HELP: &str = "\
Usage: cargo xtask package [OPTIONS]

Makes the packages that a registry takes, each built from its package with its siblings from theirs, and a program of the unpacked packages
alone, which computes in the emulator. The kernels' PTX is in the packages ferroflash_ptx_attention and ferroflash_ptx_operators: it is
added in a copy of the repository in target/package-tree, by a commit on top of the one that is packaged. The same commit and rustc give
the same bytes, commit and all. Publishes nothing, and says at its end what does.

Options
  --allow-dirty    package changes too that are not committed
  --no-verify      do not build each package alone; the program is made all the same
";

/// What the public registry takes of one package.
const MAX_BYTES: u64 = 10 << 20;

/// What every package holds beside its sources.
const PAPERS: [&str; 4] = ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"];

pub(crate) fn run(rest: Vec<OsString>) -> Result<()> {
    let mut allow_dirty = false;
    let mut verify = true;
    let mut parser = arguments::parser(rest);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => return output::print(HELP),
            Arg::Long("allow-dirty") => allow_dirty = true,
            Arg::Long("no-verify") => verify = false,
            other => return Err(arguments::unexpected(other, HELP)),
        }
    }
    if !allow_dirty {
        require_clean()?;
    }
    setup::require_rust_src()?;
    let (tree, packages) = make(verify)?;
    program::run(&packages)?;
    let cells: Vec<Vec<String>> =
        packages.iter().map(|package| vec![package.name.clone(), (package.bytes / 1024).to_string()]).collect();
    output::print(&table::format(&["package", "KiB"], &cells))?;
    let (folder, commit) = (tree.folder.display(), &tree.commit);
    output::print(&format!(
        "\nIn {}, from commit {commit}. To publish:\n  git fetch {folder} HEAD && git tag v{} {commit}\n  \
         cd {folder} && cargo publish --workspace\n",
        workspace::target_dir()?.join("package").display(),
        env!("CARGO_PKG_VERSION"),
    ))
}

/// The part of it that `xtask test` runs: the packages are not built one by one, but the program is. What is not committed is packaged too.
pub(crate) fn test() -> Result<()> {
    let mut git = Command::new("git");
    git.args(["rev-parse", "--verify", "--quiet", "HEAD"]).current_dir(workspace::root());
    if !git.output().is_ok_and(|output| output.status.success()) {
        output::note(format_args!("warning: no git repository (or no git), so packages are NOT tested"));
        return Ok(());
    }
    let (_, packages) = make(false)?;
    program::run(&packages)
}

/// Makes the packages, looks into each, and unpacks it. With `verify`, cargo builds each alone before.
fn make(verify: bool) -> Result<(tree::Tree, Vec<tree::Package>)> {
    let tree = tree::make()?;
    let metadata = workspace::metadata()?;
    let names = published(&metadata);
    workspace::step(&format!("packages of {}", names.join(", ")));
    let target = workspace::target_dir()?;
    let made = target.join("package");
    let unpacked = target.join("package-unpacked");
    for old in [&made, &unpacked] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| old.display().to_string())?;
        }
    }
    let mut cargo = workspace::cargo();
    cargo.args(["package", "--quiet", "--locked", "--target-dir"]).arg(&target).current_dir(&tree.folder);
    if !verify {
        cargo.arg("--no-verify");
    }
    for name in &names {
        cargo.args(["--package", name]);
    }
    workspace::run(&mut cargo)?;
    fs::create_dir_all(&unpacked)?;
    let packages = names.iter().map(|name| unpack(name, &made, &unpacked, &tree.commit)).collect::<Result<_>>()?;
    Ok((tree, packages))
}

/// Unpacks a package and checks what a registry and its users look at.
fn unpack(name: &str, made: &Path, unpacked: &Path, commit: &str) -> Result<tree::Package> {
    let stem = format!("{name}-{}", env!("CARGO_PKG_VERSION"));
    let archive = made.join(format!("{stem}.crate"));
    let bytes = archive.metadata().with_context(|| archive.display().to_string())?.len();
    if bytes > MAX_BYTES {
        bail!("{stem}: {bytes} bytes, and a registry takes {MAX_BYTES}");
    }
    workspace::run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(unpacked))?;
    let folder = unpacked.join(stem);
    if let Some(missing) = PAPERS.iter().find(|file| !folder.join(file).is_file()) {
        bail!("{name}: {missing} is not in its package");
    }
    let info = folder.join(".cargo_vcs_info.json");
    let info: Value = serde_json::from_slice(&fs::read(&info).with_context(|| info.display().to_string())?)?;
    check_origin(&info, commit).with_context(|| name.to_string())?;
    Ok(tree::Package { name: name.to_string(), folder, bytes })
}

/// A package says which commit it was made of, and that it is of nothing else.
fn check_origin(info: &Value, commit: &str) -> Result<()> {
    // cargo leaves `dirty` out when it is false.
    if info["git"]["sha1"] != commit || info["git"]["dirty"] == true {
        bail!("not made of commit {commit} alone: {info}");
    }
    Ok(())
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
    use kernel_spec::Unit;

    use super::*;

    /// The packages of this workspace that may be published.
    fn packages() -> Vec<Value> {
        let metadata = workspace::metadata().unwrap();
        let published = published(&metadata);
        assert!(published.contains(&"ferroflash") && !published.contains(&"xtask"), "{published:?}");
        let is = |package: &&Value| published.contains(&package["name"].as_str().unwrap());
        metadata["packages"].as_array().unwrap().iter().filter(is).cloned().collect()
    }

    #[test]
    fn what_is_not_for_a_registry_is_left_out() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "public", "publish": null },
            { "name": "private", "publish": [] },
            { "name": "elsewhere", "publish": ["own"] },
        ] });
        assert_eq!(published(&metadata), ["public", "elsewhere"]);
    }

    #[test]
    fn a_package_of_another_commit_or_of_changes_is_refused() {
        let info = |git: Value| serde_json::json!({ "git": git, "path_in_vcs": "crates/x" });
        assert!(check_origin(&info(serde_json::json!({ "sha1": "a1" })), "a1").is_ok());
        assert!(check_origin(&info(serde_json::json!({ "sha1": "a1", "dirty": false })), "a1").is_ok());
        assert!(check_origin(&info(serde_json::json!({ "sha1": "a1", "dirty": true })), "a1").is_err());
        assert!(check_origin(&info(serde_json::json!({ "sha1": "a1" })), "b2").is_err());
        assert!(check_origin(&serde_json::json!({}), "b2").is_err());
    }

    /// A release that names a crate which is not released is built with whatever has that name on the registry.
    #[test]
    fn what_is_published_needs_only_what_is_published() {
        let packages = packages();
        let is_published = |name: &str| packages.iter().any(|package| package["name"] == name);
        // What their build scripts need stays here, with these.
        let without_script = Unit::ALL.map(tree::package_of);
        for package in &packages {
            for dependency in package["dependencies"].as_array().unwrap() {
                let is_sibling = !dependency["path"].is_null();
                let is_of_script =
                    dependency["kind"] == "build" && without_script.iter().any(|name| package["name"] == **name);
                let stays_here = dependency["kind"] == "dev" || is_of_script;
                let name = dependency["name"].as_str().unwrap();
                assert!(!is_sibling || stays_here || is_published(name), "{} needs {name}", package["name"]);
            }
        }
    }

    /// Host and kernels read the same structures: a compatible version is not enough.
    #[test]
    fn the_two_sides_of_a_launch_are_of_one_version() {
        let mut seen = std::collections::BTreeSet::new();
        let sides: Vec<String> =
            Unit::ALL.map(tree::package_of).into_iter().chain(["kernel_spec".to_owned()]).collect();
        for package in packages() {
            for dependency in package["dependencies"].as_array().unwrap() {
                if let Some(side) = sides.iter().find(|side| dependency["name"] == ***side) {
                    assert_eq!(dependency["req"], concat!("=", env!("CARGO_PKG_VERSION")), "{}", package["name"]);
                    seen.insert(side);
                }
            }
        }
        assert_eq!(seen.len(), sides.len(), "{seen:?}");
    }

    /// The registry's rules, and what its page of a crate shows.
    #[test]
    fn every_package_has_the_fields_that_a_registry_asks_for() {
        for package in packages() {
            let name = package["name"].as_str().unwrap();
            let list = |key: &str| package[key].as_array().unwrap().clone();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            assert!(text(&package["description"]).ends_with('.'), "{name}: {}", package["description"]);
            assert_eq!(package["license"], "MIT OR Apache-2.0", "{name}");
            assert_eq!(package["readme"], "README.md", "{name}");
            assert_eq!(package["version"], env!("CARGO_PKG_VERSION"), "{name}");
            assert!(!package["rust_version"].is_null(), "{name}");
            assert!((1..=5).contains(&list("categories").len()), "{name}");
            assert!((1..=5).contains(&list("keywords").len()), "{name}");
            for keyword in list("keywords").iter().map(text) {
                let allowed = |c: char| c.is_ascii_alphanumeric() || "_-+".contains(c);
                assert!(keyword.starts_with(|c: char| c.is_ascii_alphanumeric()), "{name}: {keyword}");
                assert!(keyword.len() <= 20 && keyword.chars().all(allowed), "{name}: {keyword}");
            }
            let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
            for paper in PAPERS {
                assert!(folder.join(paper).is_file(), "{name}: {paper}");
            }
            // A page of the registry has no repository for them to point into.
            let readme = fs::read_to_string(folder.join("README.md")).unwrap();
            for link in readme.split("](").skip(1).map(|rest| rest.split(')').next().unwrap_or_default()) {
                assert!(link.starts_with("https://") || link.starts_with('#'), "{name}: {link}");
            }
        }
    }
}
