//! What cargo knows about the kernel crate.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::error::at;
use crate::toolchain::Toolchain;
use crate::{Error, command, fingerprint, flags};

/// The kernel crate and the local packages that it depends on.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Name of the library target, which the output file is called after.
    pub(crate) crate_name: String,
    pub(crate) folder: PathBuf,
    pub(crate) manifest: PathBuf,
    /// Folders of the kernel crate and of its path dependencies.
    local_folders: Vec<PathBuf>,
    lock_file: PathBuf,
    target_dir: PathBuf,
}

impl Package {
    pub(crate) fn read(toolchain: &Toolchain, path: &Path, locked: bool, offline: bool) -> Result<Self, Error> {
        let no_crate = || Error::NoCrate { path: path.to_path_buf() };
        let folder = fs::canonicalize(path).map_err(|_| no_crate())?;
        let manifest = folder.join("Cargo.toml");
        if !manifest.is_file() {
            return Err(no_crate());
        }
        let mut cargo = Command::new(toolchain.cargo());
        cargo.args(["metadata", "--format-version", "1", "--filter-platform", flags::TARGET, "--manifest-path"]);
        cargo.arg(&manifest).current_dir(&folder).env_clear();
        cargo.envs(env::vars_os().filter(|(name, _)| name.to_str().is_none_or(flags::is_inherited)));
        if locked {
            cargo.arg("--locked");
        }
        if offline {
            cargo.arg("--offline");
        }
        let text = command::output(&mut cargo)?;
        let unexpected = |reason: &str| Error::Output { command: "cargo metadata".into(), reason: reason.to_string() };
        let metadata: Value = serde_json::from_str(&text).map_err(|error| unexpected(&error.to_string()))?;
        let string = |value: &Value, key: &str| {
            value[key].as_str().map(str::to_string).ok_or_else(|| unexpected(&format!("no text `{key}`")))
        };
        let packages = metadata["packages"].as_array().ok_or_else(|| unexpected("no `packages`"))?;
        let package = packages
            .iter()
            .find(|package| package["manifest_path"].as_str().is_some_and(|path| Path::new(path) == manifest))
            .ok_or_else(no_crate)?;
        let name = string(package, "name")?;
        let crate_name = library(package).ok_or_else(|| Error::Manifest {
            package: name.clone(),
            reason: "a kernel crate has a library with `crate-type = [\"cdylib\"]`".into(),
        })?;

        // Packages of the resolved graph only: a workspace lists members that the kernel crate does not use.
        let used = closure(&metadata, package["id"].as_str().unwrap_or_default());
        let is_local = |package: &&Value| {
            package["source"].is_null() && package["id"].as_str().is_some_and(|id| used.contains(id))
        };
        let mut local_folders = Vec::new();
        for package in packages.iter().filter(is_local) {
            let manifest = PathBuf::from(string(package, "manifest_path")?);
            local_folders.extend(manifest.parent().map(Path::to_path_buf));
        }
        local_folders.sort();
        Ok(Package {
            name,
            crate_name,
            folder,
            manifest,
            local_folders,
            lock_file: PathBuf::from(string(&metadata, "workspace_root")?).join("Cargo.lock"),
            target_dir: PathBuf::from(string(&metadata, "target_directory")?),
        })
    }

    /// Every file that decides the PTX.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>, Error> {
        let mut files = vec![self.lock_file.clone()];
        for folder in &self.local_folders {
            files.extend(fingerprint::package_files(folder)?);
        }
        Ok(files)
    }

    /// Files that decide the PTX whichever features are on: the lock file and the manifests.
    pub(crate) fn manifests(&self) -> Vec<PathBuf> {
        let manifests = self.local_folders.iter().map(|folder| folder.join("Cargo.toml"));
        manifests.chain([self.lock_file.clone()]).collect()
    }

    /// Source files of a build whose target folder is `dir`, as cargo wrote down: of modules behind features that are off there are none.
    pub(crate) fn sources(&self, dir: &Path) -> Result<Vec<PathBuf>, Error> {
        let file = dir.join(flags::TARGET).join("release").join(format!("{}.d", self.crate_name));
        Ok(rule(&fs::read_to_string(&file).map_err(at(&file))?))
    }

    /// `cuda_builder` in the target folder of the outer build: that of the build script, of the environment, or of the kernel
    /// crate's workspace.
    pub(crate) fn default_target_dir(&self) -> PathBuf {
        let target = match (env::var_os("OUT_DIR"), env::var_os("CARGO_TARGET_DIR")) {
            (Some(out_dir), _) => {
                // cargo marks its target folder, of which OUT_DIR is a part, with this file.
                let out_dir = PathBuf::from(out_dir);
                let target = out_dir.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
                target.unwrap_or(&out_dir).to_path_buf()
            }
            (None, Some(target)) => PathBuf::from(target),
            (None, None) => self.target_dir.clone(),
        };
        target.join("cuda_builder")
    }
}

/// What the first rule of a makefile depends on.
fn rule(text: &str) -> Vec<PathBuf> {
    let (_, names) = text.lines().next().and_then(|line| line.split_once(": ")).unwrap_or_default();
    // A space in a name stands behind a backslash.
    let names = names.replace("\\ ", "\0");
    names.split_whitespace().map(|name| PathBuf::from(name.replace('\0', " "))).collect()
}

/// Name of the `cdylib` target.
fn library(package: &Value) -> Option<String> {
    let is_cdylib = |target: &&Value| {
        target["crate_types"].as_array().is_some_and(|types| types.iter().any(|name| name.as_str() == Some("cdylib")))
    };
    let name = package["targets"].as_array()?.iter().find(is_cdylib)?["name"].as_str()?;
    // rustc's crate names, and with them file names, have underscores.
    Some(name.replace('-', "_"))
}

/// Ids of `root` and of all that it depends on.
fn closure<'a>(metadata: &'a Value, root: &'a str) -> BTreeSet<&'a str> {
    let nodes = metadata["resolve"]["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut used = BTreeSet::from([root]);
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        let node = nodes.iter().find(|node| node["id"].as_str() == Some(id));
        let dependencies = node.and_then(|node| node["dependencies"].as_array()).map(Vec::as_slice).unwrap_or_default();
        for dependency in dependencies.iter().filter_map(Value::as_str) {
            if used.insert(dependency) {
                open.push(dependency);
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_rule_may_have_spaces() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(rule("/a\\ b/k.ptx: /a\\ b/x.rs /c/y.rs\n\n/c/y.rs:\n"), paths(&["/a b/x.rs", "/c/y.rs"]));
        assert_eq!(rule("C:\\t\\k.ptx: C:\\s\\x.rs\n"), paths(&["C:\\s\\x.rs"]));
        assert_eq!(rule(""), paths(&[]));
    }
}
