//! What a build depends on, so that nothing is compiled when nothing changed.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::error::at;

/// The files that a package is built from: everything in its folder but build output, other packages, and hidden files.
///
/// # Errors
/// [`Error::Io`] when a folder cannot be read.
pub(crate) fn package_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(current) = open.pop() {
        for entry in fs::read_dir(&current).map_err(at(&current))? {
            let entry = entry.map_err(at(&current))?;
            let path = entry.path();
            let name = entry.file_name();
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            if path.is_dir() {
                // CACHEDIR.TAG marks cargo's target folders, a manifest another package.
                if !path.join("CACHEDIR.TAG").exists() && !path.join("Cargo.toml").exists() {
                    open.push(path);
                }
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Hash of the names and contents of files and of everything else that decides the output.
pub(crate) fn of(files: &[PathBuf], settings: &impl Hash) -> Result<String, Error> {
    let mut hasher = DefaultHasher::new();
    settings.hash(&mut hasher);
    for file in files {
        file.hash(&mut hasher);
        fs::read(file).map_err(at(file))?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_names_and_settings_count_and_build_output_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let fingerprint = |settings: &str| of(&package_files(dir.path()).unwrap(), &settings).unwrap();
        write("Cargo.toml", "");
        write("src/lib.rs", "a");
        let first = fingerprint("sm_80");
        write("target/CACHEDIR.TAG", "");
        write("target/out.ptx", "x");
        write(".hidden", "x");
        write("inner/Cargo.toml", "");
        assert_eq!(fingerprint("sm_80"), first);
        assert_ne!(fingerprint("sm_90a"), first);
        write("src/lib.rs", "b");
        assert_ne!(fingerprint("sm_80"), first);
        write("src/lib.rs", "a");
        write("src/new.rs", "");
        assert_ne!(fingerprint("sm_80"), first);
    }
}
