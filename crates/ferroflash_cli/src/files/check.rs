//! What is found out of files before the work that they are to keep.

use super::place::{Place, folder};
use super::{is_stdout, written_name};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, OpenOptions};
use std::path::Path;

/// Finds out before the work that its result could not be kept after it. `flag` is the option that named the file.
///
/// # Errors
/// A file that [`write`](super::write) could not write, as far as can be told without writing it.
pub(crate) fn check_file(flag: &str, path: &Path) -> Result<()> {
    let shown = path.display();
    ensure!(!path.as_os_str().is_empty(), "{flag} names no file");
    ensure!(!path.is_dir(), "{flag} {shown} is a folder; a file is needed");
    let place = Place::of(path).with_context(|| format!("{flag} {shown} cannot be written"))?;
    let Place::File(file) = place else { return Ok(()) };
    let folder = folder(&file);
    ensure!(folder.is_dir(), "{flag} {shown}: the folder {} does not exist", folder.display());
    let Ok(before) = fs::metadata(&file) else {
        return takes_files(folder).with_context(|| format!("{flag} {shown}"));
    };
    // Also of who could write it all the same: that it is not to be changed was said by somebody.
    ensure!(!before.permissions().readonly(), "{flag} {shown} is read-only");
    // Where its folder takes no file, it is written in place.
    OpenOptions::new().write(true).open(&file).with_context(|| format!("{flag} {shown} cannot be written"))?;
    Ok(())
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

/// Refuses a place that two options name: the second would overwrite the first, or both be mixed. A file that is only read may be
/// among them.
///
/// # Errors
/// The two.
pub(crate) fn check_distinct(files: &[(&str, &Path)]) -> Result<()> {
    for (i, (flag, path)) in files.iter().enumerate() {
        if let Some((other, _)) = files[..i].iter().find(|(_, other)| are_one(other, path)) {
            bail!("{other} and {flag} both name {}; each needs a file of its own", written_name(path));
        }
    }
    Ok(())
}

fn are_one(a: &Path, b: &Path) -> bool {
    if is_stdout(a) || is_stdout(b) {
        return is_stdout(a) && is_stdout(b);
    }
    // Other streams may take from several.
    let (Ok(Place::File(a)), Ok(Place::File(b))) = (Place::of(a), Place::of(b)) else { return false };
    // The file itself may not be there yet; its folder is.
    let place = |path: &Path| {
        let folder = fs::canonicalize(folder(path)).ok()?;
        Some(folder.join(path.file_name()?))
    };
    place(&a).is_some_and(|at| place(&b) == Some(at)) || is_same_file(&a, &b)
}

/// Whether two names are of one file, as hard links are.
#[cfg(unix)]
fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    id(a).is_some_and(|a| id(b) == Some(a))
}

#[cfg(not(unix))]
fn is_same_file(_: &Path, _: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_cannot_be_written_is_found_before_the_work() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        let of_file = |path: &Path| format!("{:#}", check_file("--json", path).unwrap_err());
        assert!(of_file(&at("absent/x")).contains("absent does not exist"));
        assert!(of_file(temporary.path()).contains("is a folder; a file is needed"));
        assert!(of_file(Path::new("")).contains("--json names no file"));
        fs::write(at("file"), "").unwrap();
        let mut permissions = fs::metadata(at("file")).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(at("file"), permissions).unwrap();
        assert!(of_file(&at("file")).contains("is read-only"));
        assert!(of_file(&at(&"x".repeat(300))).contains("cannot be written: "));
        check_file("--json", &at(&"x".repeat(250))).unwrap();
        let of_folder = |path: &Path| format!("{:#}", check_folder("--plot", path).unwrap_err());
        assert!(of_folder(&at("file")).contains("is a file; a folder is needed"));
        assert!(of_folder(&at("file/deeper")).contains("is a file; a folder is needed"));
        check_folder("--plot", &at("new/and/deeper")).unwrap();
        // A file system that nobody can write to, whoever they are.
        if cfg!(target_os = "linux") {
            assert!(of_file(Path::new("/proc/x.json")).contains("no file can be made in /proc"));
            assert!(of_folder(Path::new("/proc/pictures")).contains("no file can be made in /proc"));
        }
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_place_for_two_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        let (a, b) = (at("a"), at("b"));
        check_distinct(&[("--json", &a), ("--csv", &b)]).unwrap();
        let refuses = |files: &[(&str, &Path)]| {
            let error = check_distinct(files).unwrap_err().to_string();
            assert!(error.contains("--json and --csv both name"), "{error}");
        };
        refuses(&[("--json", &a), ("--html", &b), ("--csv", &a)]);
        refuses(&[("--json", &a), ("--csv", &temporary.path().join(".").join("a"))]);
        refuses(&[("--json", Path::new("-")), ("--csv", Path::new("-"))]);
        if cfg!(unix) {
            refuses(&[("--json", Path::new("-")), ("--csv", Path::new("/dev/stdout"))]);
            check_distinct(&[("--json", Path::new("/dev/null")), ("--csv", Path::new("/dev/null"))]).unwrap();
            fs::write(&a, "").unwrap();
            fs::hard_link(&a, &b).unwrap();
            refuses(&[("--json", &a), ("--csv", &b)]);
        }
    }
}
