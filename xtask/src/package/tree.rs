//! The repository as it is packaged: a clone of its own, with the kernels' PTX in a commit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use kernel_spec::Unit;
use serde_json::Value;

use crate::workspace;

/// The package with the PTX of a unit.
pub(super) fn package_of(unit: Unit) -> String {
    format!("ferroflash_ptx_{}", unit.feature())
}

/// Where it lies in the repository.
fn folder_of(unit: Unit) -> String {
    format!("crates/{}", package_of(unit))
}

/// The line of its manifest from which on packages have nothing.
const END: &str = "# Not in packages:";

/// How its library takes in what the build script made, and what a package brings.
const INCLUDES: [&str; 2] = [r#"include!(concat!(env!("OUT_DIR"), "/modules.rs"));"#, r#"include!("modules.rs");"#];

/// A package and the folder that it is unpacked in.
pub(super) struct Package {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) bytes: u64,
}

/// A clone and the commit that is checked out in it.
pub(super) struct Tree {
    pub(super) folder: PathBuf,
    pub(super) commit: String,
}

/// Makes the tree from what git tracks or would add, as it is now.
pub(super) fn make() -> Result<Tree> {
    let compiled = compile()?;
    workspace::step("a tree to package");
    let folder = workspace::target_dir()?.join("package-tree");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let root = workspace::root();
    // Objects are shared, and nothing is written into the repository itself.
    workspace::run(Command::new("git").args(["clone", "--quiet", "--shared", "--no-checkout"]).arg(root).arg(&folder))?;
    let author = Author::of(&folder)?;
    workspace::run(git(&folder).arg(argument("--work-tree=", root)).args(["add", "--all"]))?;
    let is_clean = git(&folder).args(["diff", "--cached", "--quiet", "HEAD"]).status()?.success();
    if !is_clean {
        author.commit(&folder, "Changes that are in no commit")?;
    }
    workspace::run(git(&folder).args(["reset", "--quiet", "--hard"]))?;

    for (unit, compiled) in Unit::ALL.into_iter().zip(&compiled) {
        install(compiled, &folder.join(folder_of(unit)))?;
    }
    // The packages need less: what the lock file says of them follows. Nothing new is looked for.
    let mut cargo = workspace::cargo();
    workspace::output(cargo.args(["metadata", "--format-version", "1", "--offline"]).current_dir(&folder))?;
    workspace::run(git(&folder).args(["add", "--all", "--force", "Cargo.lock"]).args(Unit::ALL.map(folder_of)))?;
    author.commit(&folder, "The kernels' PTX, compiled from the commit before")?;
    let commit = workspace::output(git(&folder).args(["rev-parse", "HEAD"]))?.trim().to_owned();
    Ok(Tree { folder, commit })
}

/// Builds the packages of PTX of the workspace, and gives the folders that their build scripts wrote into, in the order of the units.
fn compile() -> Result<Vec<PathBuf>> {
    workspace::step("PTX to package");
    let mut cargo = workspace::cargo();
    // Release builds pack the smallest.
    cargo.args(["build", "--release", "--message-format", "json-render-diagnostics"]);
    for unit in Unit::ALL {
        cargo.args(["--package", &package_of(unit)]);
    }
    // A package holds what this source gives.
    cargo.env_remove("FERROFLASH_PTX_DIR");
    let messages = workspace::output(&mut cargo)?;
    let messages: Vec<Value> = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let folder = |unit: Unit| {
        let package = folder_of(unit);
        let executed = messages.iter().filter(|message| message["reason"] == "build-script-executed");
        let mut own = executed.filter(|message| message["package_id"].as_str().is_some_and(|id| id.contains(&package)));
        let folder = own.find_map(|message| message["out_dir"].as_str().map(PathBuf::from));
        folder.with_context(|| format!("cargo names no output of the build script of {package}"))
    };
    Unit::ALL.into_iter().map(folder).collect()
}

/// Puts what the build script made into the crate, in place of the script.
fn install(compiled: &Path, package: &Path) -> Result<()> {
    let edit = |file: &str, change: fn(&str) -> Result<String>| -> Result<()> {
        let path = package.join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(fs::write(&path, change(&text).with_context(|| path.display().to_string())?)?)
    };
    edit("Cargo.toml", packaged_manifest)?;
    edit("src/lib.rs", packaged_library)?;
    fs::remove_file(package.join("build.rs"))?;
    let table = fs::read_to_string(compiled.join("modules.rs")).with_context(|| compiled.display().to_string())?;
    // By its table: files of entries that are gone may be there from builds before.
    for name in table.split("include_bytes!(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        fs::copy(compiled.join(name), package.join("src").join(name)).with_context(|| name.to_string())?;
    }
    Ok(fs::write(package.join("src/modules.rs"), table)?)
}

fn packaged_manifest(text: &str) -> Result<String> {
    let Some((kept, cut)) = text.split_once(END) else { bail!("no line starts with `{END}`") };
    // What comes to stand there one day must not be lost without a word.
    let sections: Vec<_> = cut.lines().filter(|line| line.starts_with('[')).collect();
    if sections != ["[build-dependencies]"] {
        bail!("`{END}` stands in front of {sections:?}, not of build dependencies alone");
    }
    Ok(format!("{}\n", kept.trim_end()))
}

fn packaged_library(text: &str) -> Result<String> {
    let [built, packaged] = INCLUDES;
    if text.matches(built).count() != 1 {
        bail!("not one line `{built}`");
    }
    Ok(text.replace(built, packaged))
}

/// Who made the commit that is packaged, and when: commits on top of it say the same, so that they are the same whoever makes them.
struct Author(Vec<(&'static str, String)>);

impl Author {
    fn of(folder: &Path) -> Result<Author> {
        let names = [
            "GIT_AUTHOR_NAME",
            "GIT_AUTHOR_EMAIL",
            "GIT_AUTHOR_DATE",
            "GIT_COMMITTER_NAME",
            "GIT_COMMITTER_EMAIL",
            "GIT_COMMITTER_DATE",
        ];
        let values = workspace::output(git(folder).args(["log", "-1", "--format=%an%n%ae%n%aI%n%cn%n%ce%n%cI"]))?;
        Ok(Author(names.into_iter().zip(values.lines().map(str::to_owned)).collect()))
    }

    fn commit(&self, folder: &Path, message: &str) -> Result<()> {
        let mut git = git(folder);
        git.args(["-c", "commit.gpgSign=false", "-c", "core.hooksPath=/dev/null"]);
        workspace::run(git.args(["commit", "--quiet", "--message", message]).envs(self.0.iter().cloned()))
    }
}

/// git on the clone, wherever it is started from.
fn git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    // A hook, or a rebase that runs this, has them point at the repository itself.
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        git.env_remove(name);
    }
    git.current_dir(folder).arg(argument("--git-dir=", &folder.join(".git")));
    git
}

fn argument(option: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(option);
    argument.push(path);
    argument
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(unit: Unit, file: &str) -> String {
        fs::read_to_string(workspace::root().join(folder_of(unit)).join(file)).unwrap()
    }

    #[test]
    fn a_package_has_no_build_script() {
        for unit in Unit::ALL {
            let manifest = packaged_manifest(&source(unit, "Cargo.toml")).unwrap();
            assert!(manifest.contains("[lints]") && !manifest.contains("ptx_pack"), "{manifest}");
            let library = packaged_library(&source(unit, "src/lib.rs")).unwrap();
            assert!(library.contains(INCLUDES[1]) && !library.contains("OUT_DIR"), "{library}");
            assert!(source(unit, "build.rs").contains(&format!("Unit::{unit:?})")), "a build script of another unit");
        }
    }

    #[test]
    fn sources_that_are_not_as_expected_are_refused() {
        assert!(packaged_manifest("[package]\n").is_err());
        assert!(packaged_manifest(&format!("{END} x\n[build-dependencies]\n[features]\n")).is_err());
        assert!(packaged_library("pub fn f() {}").is_err());
        assert!(packaged_library(&INCLUDES[0].repeat(2)).is_err());
    }

    /// Entries that are gone leave files behind, which no package may carry.
    #[test]
    fn what_the_table_names_is_installed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (compiled, package) = (folder.path().join("out"), folder.path().join("package"));
        fs::create_dir_all(package.join("src")).unwrap();
        fs::create_dir(&compiled).unwrap();
        let [unit, ..] = Unit::ALL;
        for file in ["Cargo.toml", "src/lib.rs", "build.rs"] {
            fs::write(package.join(file), source(unit, file)).unwrap();
        }
        fs::write(compiled.join("modules.rs"), "include_bytes!(\"a.ptx.lzma\") }, include_bytes!(\"b.ptx.lzma\")")
            .unwrap();
        for file in ["a.ptx.lzma", "b.ptx.lzma", "gone.ptx.lzma"] {
            fs::write(compiled.join(file), file).unwrap();
        }
        install(&compiled, &package).unwrap();
        let mut files: Vec<_> =
            fs::read_dir(package.join("src")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["a.ptx.lzma", "b.ptx.lzma", "lib.rs", "modules.rs"]);
        assert_eq!(fs::read_to_string(package.join("src/b.ptx.lzma")).unwrap(), "b.ptx.lzma");
        assert!(!package.join("build.rs").exists());
        fs::remove_file(compiled.join("b.ptx.lzma")).unwrap();
        fs::write(package.join("build.rs"), "").unwrap();
        fs::write(package.join("src/lib.rs"), source(unit, "src/lib.rs")).unwrap();
        fs::write(package.join("Cargo.toml"), source(unit, "Cargo.toml")).unwrap();
        assert!(install(&compiled, &package).is_err(), "a module is missing");
    }
}
