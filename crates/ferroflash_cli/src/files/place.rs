//! What a name stands for.

use super::is_dash;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Symbolic links that are followed, as many as Linux follows.
const MAX_LINKS: usize = 40;

/// Where bytes go that are written to a name.
#[derive(Debug, PartialEq)]
pub(super) enum Place {
    /// Standard output: `-`, `/dev/stdout`, or a link to it.
    Stdout,
    /// A pipe, a device or another descriptor of this process, which takes bytes as they come.
    Stream(PathBuf),
    /// A file behind any links, which may not be there yet.
    File(PathBuf),
}

impl Place {
    /// # Errors
    /// A name that stands for nothing and could not: too long, links in a circle, a folder on the way that may not be entered.
    pub(super) fn of(path: &Path) -> io::Result<Place> {
        if is_dash(path) {
            return Ok(Place::Stdout);
        }
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            // Before the link behind it is followed: `/dev/fd/1` leads to the file that standard output was sent to, and a new file of
            // that name would not be where the shell wrote to.
            if is_descriptor(&path) {
                let stdout = path.file_name().is_some_and(|name| name == "1");
                return Ok(if stdout { Place::Stdout } else { Place::Stream(path) });
            }
            match fs::read_link(&path) {
                Ok(next) => path = folder(&path).join(next),
                // No link, or not there: what it is comes next.
                Err(_) => break,
            }
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Ok(Place::File(path)),
            Ok(_) => Ok(Place::Stream(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Place::File(path)),
            Err(error) => Err(error),
        }
    }
}

/// Whether this is a descriptor of this process: `/dev/fd/N`, which Linux keeps in `/proc/PID/fd`.
fn is_descriptor(path: &Path) -> bool {
    let descriptors = fs::canonicalize("/dev/fd");
    descriptors.is_ok_and(|descriptors| fs::canonicalize(folder(path)).is_ok_and(|folder| folder == descriptors))
}

/// The folder that a file is in.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn standard_output_is_known_by_each_of_its_names() {
        let temporary = tempfile::tempdir().unwrap();
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink("/dev/stdout", &link).unwrap();
        for name in [Path::new("-"), Path::new("/dev/stdout"), Path::new("/dev/fd/1"), &link] {
            assert_eq!(Place::of(name).unwrap(), Place::Stdout, "{}", name.display());
        }
        for name in ["/dev/stderr", "/dev/fd/2", "/dev/null"] {
            assert!(matches!(Place::of(Path::new(name)).unwrap(), Place::Stream(_)), "{name}");
        }
        for name in ["./-", "a", "1"] {
            assert_eq!(Place::of(Path::new(name)).unwrap(), Place::File(name.into()));
        }
        let long = temporary.path().join("x".repeat(256));
        assert_eq!(Place::of(&long).unwrap_err().kind(), ErrorKind::InvalidFilename);
    }
}
