//! The seed that the random cases of a run of the tests follow from.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::workspace;

/// What tells proptest, in every crate: `tests/it/support/draws.rs` makes a seed of each test out of it.
pub(crate) const VARIABLE: &str = "PROPTEST_RNG_SEED";

/// A seed, and where it is from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seed {
    pub(crate) value: u64,
    pub(crate) from: &'static str,
}

impl Seed {
    /// Of `--seed`, or of the sources: what has passed once passes again, and other sources draw other cases.
    pub(crate) fn choose(asked: Option<&str>) -> Result<Seed> {
        match asked {
            None => Ok(Seed::of_sources(workspace::root())),
            // As short as a number that is typed.
            Some("random") => Ok(Seed { value: RandomState::new().hash_one(()) >> 32, from: "at random" }),
            Some(text) => match text.parse() {
                Ok(value) => Ok(Seed { value, from: "as asked for" }),
                Err(_) => bail!("--seed {text} is not accepted; a whole number of 64 bits or `random` is needed"),
            },
        }
    }

    /// Of the folder as it was committed last, whatever has changed since; of the version where nothing is committed.
    fn of_sources(root: &Path) -> Seed {
        let mut git = Command::new("git");
        // The tree of this folder, which may be one of another repository.
        git.args(["rev-parse", "--verify", "--quiet", "HEAD:./"]).current_dir(root);
        let tree = git.output().ok().filter(|output| output.status.success());
        let tree = tree.and_then(|output| String::from_utf8(output.stdout).ok());
        match tree.and_then(|tree| u32::from_str_radix(tree.get(..8)?, 16).ok()) {
            Some(value) => Seed { value: value.into(), from: "of the last commit's sources" },
            None => {
                let mut hasher = DefaultHasher::new();
                env!("CARGO_PKG_VERSION").hash(&mut hasher);
                Seed { value: hasher.finish() >> 32, from: "of the version, where no commit is known" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_seed_is_a_number_or_random() {
        let value = |text| Seed::choose(Some(text)).map(|seed| seed.value);
        assert_eq!(value("0").unwrap(), 0);
        assert_eq!(value("18446744073709551615").unwrap(), u64::MAX);
        assert_ne!(value("random").unwrap(), value("random").unwrap());
        for wrong in ["", "-1", "1.5", "18446744073709551616", "Random"] {
            let error = value(wrong).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--seed {wrong} is not accepted")), "{error}");
        }
    }

    #[test]
    fn a_commit_has_a_seed_of_its_own_and_keeps_it() {
        if Command::new("git").arg("--version").output().is_err() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| {
            let mut git = Command::new("git");
            git.args(["-c", "user.name=a", "-c", "user.email=b", "-c", "commit.gpgsign=false"]);
            workspace::output(git.args(arguments).current_dir(folder.path())).unwrap()
        };
        let version = Seed::of_sources(folder.path());
        assert_eq!(version.from, "of the version, where no commit is known");
        git(&["init", "--quiet"]);
        // Nothing is committed.
        assert_eq!(Seed::of_sources(folder.path()), version);
        let commit = |text: &str| {
            fs::write(folder.path().join("file"), text).unwrap();
            git(&["add", "file"]);
            git(&["commit", "--quiet", "--message", "c"]);
            Seed::of_sources(folder.path())
        };
        let (first, second) = (commit("1"), commit("2"));
        assert!(first != version && first != second, "{first:?}, {second:?}, {version:?}");
        fs::write(folder.path().join("file"), "3").unwrap();
        assert_eq!(Seed::of_sources(folder.path()), second);
        assert_eq!(commit("1"), first);
    }
}
