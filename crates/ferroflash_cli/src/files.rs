//! Files that are written whole or not at all.

use crate::output::Closed;
use anyhow::{Context, Result, ensure};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Writes a file in one step: whoever reads it at any time finds what was there before or all of `bytes`, and a failure leaves what was
/// there. What is no regular file, such as `/dev/stdout`, is written to as it is.
///
/// # Errors
/// A file that cannot be written.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let written = match target(path) {
        None => match std::fs::write(path, bytes) {
            // A pipe that nobody reads on: `ferroflash report a.json --csv /dev/stdout | head`.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Err(Closed.into()),
            written => written,
        },
        Some(target) => {
            let partial = partial(&target);
            let written = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, &target));
            if written.is_err() {
                // A disk that is full has better use for the room; that it cannot be removed is not the error to report.
                let _ = std::fs::remove_file(&partial);
            }
            written
        }
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// The file that is replaced, behind any symbolic links; `None` for what cannot be replaced.
fn target(path: &Path) -> Option<PathBuf> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => None,
        _ => Some(std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())),
    }
}

/// Where the bytes lie until all are there. Always the same name: what a killed run left is overwritten by the next.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Finds out before the work that its result could not be kept after it. `flag` is the option that named the file.
///
/// # Errors
/// A file that [`write`] could not write, as far as can be told without writing it.
pub(crate) fn check_file(flag: &str, path: &Path) -> Result<()> {
    let shown = path.display();
    ensure!(!path.as_os_str().is_empty(), "{flag} names no file");
    ensure!(!path.is_dir(), "{flag} {shown} is a folder; a file is needed");
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "{flag} {shown}: the folder {} does not exist", folder.display());
    let Some(target) = target(path) else { return Ok(()) };
    let read_only = std::fs::metadata(&target).is_ok_and(|metadata| metadata.permissions().readonly());
    ensure!(!read_only, "{flag} {shown} is read-only");
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    takes_files(folder).with_context(|| format!("{flag} {shown}"))
}

/// The same of a folder, which is made when it is not there.
///
/// # Errors
/// A folder that cannot be made, or takes no files.
pub(crate) fn check_folder(flag: &str, path: &Path) -> Result<()> {
    let shown = path.display();
    ensure!(!path.as_os_str().is_empty(), "{flag} names no folder");
    // What exists of it; a relative path begins in the current folder.
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    ensure!(existing.is_dir(), "{flag} {shown}: {} is a file; a folder is needed", existing.display());
    takes_files(existing).with_context(|| format!("{flag} {shown}"))
}

fn takes_files(folder: &Path) -> Result<()> {
    // Gone as soon as it is there.
    tempfile::tempfile_in(folder).map(drop).with_context(|| format!("no file can be made in {}", folder.display()))
}

/// Refuses a place that two options name: the second would overwrite the first.
///
/// # Errors
/// The two.
pub(crate) fn check_distinct(files: &[(&str, &Path)]) -> Result<()> {
    let place = |path: &Path| {
        // The file itself may not be there yet.
        let known = std::fs::canonicalize(path).or_else(|_| std::path::absolute(path));
        known.unwrap_or_else(|_| path.to_owned())
    };
    for (i, (flag, path)) in files.iter().enumerate() {
        // A device takes from several.
        let is_file = target(path).is_some();
        if let Some((other, _)) = files[..i].iter().find(|(_, other)| is_file && place(other) == place(path)) {
            anyhow::bail!("{other} and {flag} both name {}; each needs a file of its own", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for text in ["first", "second"] {
            check_file("--json", &path).unwrap();
            write(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a"), folder.path().join("link"));
        std::fs::write(&path, "first").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&link, "second").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second");
        let null = Path::new("/dev/null");
        check_file("--csv", null).unwrap();
        write(null, "gone").unwrap();
        assert!(!null.is_file());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error() {
        let error = format!("{:#}", write(Path::new("/dev/full"), "text").unwrap_err());
        assert!(error.starts_with("cannot write /dev/full: "), "{error}");
    }

    #[test]
    fn what_fails_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "kept").unwrap();
        // The way there is blocked.
        std::fs::create_dir(partial(&path)).unwrap();
        assert!(write(&path, "new").is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_found_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let of_file = |path: &Path| format!("{:#}", check_file("--json", path).unwrap_err());
        assert!(of_file(&at("absent/x")).contains("absent does not exist"));
        assert!(of_file(folder.path()).contains("is a folder; a file is needed"));
        assert!(of_file(Path::new("")).contains("--json names no file"));
        std::fs::write(at("file"), "").unwrap();
        let mut permissions = std::fs::metadata(at("file")).unwrap().permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(at("file"), permissions).unwrap();
        assert!(of_file(&at("file")).contains("is read-only"));
        let of_folder = |path: &Path| format!("{:#}", check_folder("--plot", path).unwrap_err());
        assert!(of_folder(&at("file")).contains("is a file; a folder is needed"));
        assert!(of_folder(&at("file/deeper")).contains("is a file; a folder is needed"));
        check_folder("--plot", &at("new/and/deeper")).unwrap();
        // A file system that nobody can write to, whoever they are.
        if cfg!(target_os = "linux") {
            assert!(of_file(Path::new("/proc/x.json")).contains("no file can be made in /proc"));
            assert!(of_folder(Path::new("/proc/pictures")).contains("no file can be made in /proc"));
        }
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn one_place_for_two_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        check_distinct(&[("--json", &a), ("--csv", &b)]).unwrap();
        let error = check_distinct(&[("--json", &a), ("--html", &b), ("--csv", &a)]).unwrap_err().to_string();
        assert!(error.contains("--json and --csv both name"), "{error}");
    }
}
