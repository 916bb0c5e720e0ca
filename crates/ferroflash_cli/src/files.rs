//! Files: written whole or not at all where the system lets that be, and `-` for standard input and output.

mod check;
mod place;

use crate::output::Closed;
use crate::usage::OrUnusable;
use anyhow::{Context, Result, anyhow};
pub(crate) use check::{check_distinct, check_file, check_folder};
use place::{Place, folder};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use tempfile::NamedTempFile;

/// Standard input where a file is read, standard output where one is written. A file of this name is `./-`.
pub(crate) const DASH: &str = "-";

/// Whether this stands for standard input or output.
pub(crate) fn is_dash(path: &Path) -> bool {
    path.as_os_str() == DASH
}

/// Whether what is written goes to standard output, as `-` or by a name such as `/dev/stdout`.
pub(crate) fn is_stdout(path: &Path) -> bool {
    matches!(Place::of(path), Ok(Place::Stdout))
}

/// Whether what is written here cannot be written again: standard output, a pipe, a device.
pub(crate) fn is_stream(path: &Path) -> bool {
    matches!(Place::of(path), Ok(Place::Stdout | Place::Stream(_)))
}

/// How messages call a file that is read.
pub(crate) fn read_name(path: &Path) -> String {
    if is_dash(path) { "standard input".to_owned() } else { path.display().to_string() }
}

/// How messages call a file that is written.
pub(crate) fn written_name(path: &Path) -> String {
    if is_dash(path) { "standard output".to_owned() } else { path.display().to_string() }
}

/// All bytes of a file, or of standard input. `flag` is the option that named it.
///
/// # Errors
/// A file that is not there or cannot be read, as a command line that cannot be used.
pub(crate) fn read(flag: &str, path: &Path) -> Result<Vec<u8>> {
    if is_dash(path) {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
        return Ok(bytes);
    }
    let shown = path.display();
    let read = fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!("cannot read {flag} {shown}: it does not exist"),
        ErrorKind::IsADirectory => anyhow!("cannot read {flag} {shown}: it is a folder; a file is needed"),
        _ => anyhow!("cannot read {flag} {shown}: {error}"),
    });
    read.or_unusable()
}

/// The same of a text in UTF-8.
///
/// # Errors
/// Those of [`read`], and a file that is no text.
pub(crate) fn read_to_string(flag: &str, path: &Path) -> Result<String> {
    String::from_utf8(read(flag, path)?).map_err(|error| anyhow!("{} is no text: {error}", read_name(path)))
}

/// Writes a file in one step: whoever reads it at any time finds what was there before or all of `bytes`, and a failure leaves what was
/// there. Who may read and write it, and whose it is, stays. What cannot be replaced is written to as it is: a stream, and a file in a
/// folder that takes no other, or that something is mounted on.
///
/// # Errors
/// A file that cannot be written.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let bytes = bytes.as_ref();
    let written = Place::of(path).and_then(|place| match place {
        Place::Stdout => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
        // Behind what is there: a descriptor may belong to a file that others write to, `(ferroflash ..; ..) > log`.
        Place::Stream(path) => OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(bytes)),
        Place::File(path) => replace(&path, bytes),
    });
    match written {
        // A pipe that nobody reads on: `ferroflash report a.json --csv - | head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        written => written.with_context(|| format!("cannot write {}", written_name(path))),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let before = match fs::metadata(path) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let replaced = beside(path, before.as_ref(), bytes).and_then(|file| {
        let _: () = drop(file.persist(path)?);
        Ok(())
    });
    match replaced {
        Err(error) if before.is_some() && is_about_the_place(&error) => in_place(path, bytes),
        replaced => replaced,
    }
}

/// A file with all the bytes in the same folder, which differs from the one that it shall replace in its name alone. That name is drawn,
/// so that no other process meets it, and it is deleted when it is dropped.
fn beside(path: &Path, before: Option<&Metadata>, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".ferroflash-");
    #[cfg(unix)]
    if before.is_none() {
        // Those of any new file: the system takes away what the umask names.
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder(path))?;
    if let Some(before) = before {
        same_owner(file.as_file(), before)?;
        file.as_file().set_permissions(before.permissions())?;
    }
    file.write_all(bytes)?;
    Ok(file)
}

#[cfg(unix)]
fn same_owner(file: &File, before: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    let now = file.metadata()?;
    let changed = |now: u32, before: u32| (now != before).then_some(before);
    let (user, group) = (changed(now.uid(), before.uid()), changed(now.gid(), before.gid()));
    if user.is_none() && group.is_none() { Ok(()) } else { fchown(file, user, group) }
}

#[cfg(not(unix))]
fn same_owner(_: &File, _: &Metadata) -> io::Result<()> {
    Ok(())
}

/// Whether a file could not be made or renamed because of where it is. A full disk is no such reason: it would not take the bytes in
/// place either, and then what was there would be lost.
fn is_about_the_place(error: &io::Error) -> bool {
    use ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem, ResourceBusy, Unsupported};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | ResourceBusy | CrossesDevices | Unsupported)
}

fn in_place(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Not emptied before the new bytes are there: that something is wrong may show at the first of them.
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(bytes).and_then(|()| file.set_len(bytes.len() as u64)).map_err(|error| {
        io::Error::new(error.kind(), format!("{error}; it could only be written in place, and may hold a part now"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        // What other programs call so is theirs.
        fs::write(folder.path().join("a.partial"), "kept").unwrap();
        for text in ["first", "second"] {
            check_file("--json", &path).unwrap();
            write(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(names(folder.path()), ["a", "a.partial"]);
        assert_eq!(fs::read_to_string(folder.path().join("a.partial")).unwrap(), "kept");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "first").unwrap();
        // To a file, to another link, and to a file that is not there yet.
        for (target, link) in [("a", "link"), ("link", "second"), ("new", "dangling")] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        write(&at("second"), "second").unwrap();
        assert!(at("link").is_symlink() && at("second").is_symlink());
        assert_eq!(fs::read_to_string(at("a")).unwrap(), "second");
        write(&at("dangling"), "third").unwrap();
        assert!(at("dangling").is_symlink() && !at("new").is_symlink());
        assert_eq!(fs::read_to_string(at("new")).unwrap(), "third");
        std::os::unix::fs::symlink("circle", at("circle")).unwrap();
        assert!(check_file("--csv", &at("circle")).is_err() && write(&at("circle"), "").is_err());
        let null = Path::new("/dev/null");
        check_file("--csv", null).unwrap();
        write(null, "gone").unwrap();
        assert!(!null.is_file());
    }

    #[cfg(unix)]
    #[test]
    fn permissions_stay_and_those_of_a_new_file_are_the_usual() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o7777;
        for wanted in [0o600, 0o644, 0o660, 0o640] {
            fs::write(at("old"), "before, and longer").unwrap();
            fs::set_permissions(at("old"), fs::Permissions::from_mode(wanted)).unwrap();
            write(&at("old"), "after").unwrap();
            assert_eq!((mode("old"), fs::read_to_string(at("old")).unwrap().as_str()), (wanted, "after"));
        }
        write(&at("new"), "").unwrap();
        fs::write(at("of std"), "").unwrap();
        assert_eq!(mode("new"), mode("of std"));
    }

    #[test]
    fn in_place_leaves_no_more_than_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "before, and longer").unwrap();
        in_place(&path, b"after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        // Nothing is made where nothing was.
        assert!(in_place(&folder.path().join("b"), b"").is_err());
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error() {
        let error = format!("{:#}", write(Path::new("/dev/full"), "text").unwrap_err());
        assert!(error.starts_with("cannot write /dev/full: "), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_option() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| read_to_string("--sweep", path).unwrap_err().to_string();
        assert!(message(&folder.path().join("absent")).starts_with("cannot read --sweep "));
        assert!(message(folder.path()).ends_with("it is a folder; a file is needed"));
        fs::write(folder.path().join("binary"), [0xff]).unwrap();
        assert!(message(&folder.path().join("binary")).contains("is no text"));
    }
}
