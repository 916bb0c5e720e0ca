//! Architectures and versions from what users write.

use std::str::FromStr;

use crate::{Arch, Error, PtxVersion};

impl FromStr for Arch {
    type Err = Error;

    /// Reads a name such as `sm_90a`.
    ///
    /// # Errors
    /// [`Error::UnknownArch`] lists the accepted names.
    fn from_str(name: &str) -> Result<Self, Error> {
        Arch::ALL
            .iter()
            .copied()
            .find(|arch| arch.name() == name)
            .ok_or_else(|| Error::UnknownArch { name: name.into() })
    }
}

impl PtxVersion {
    /// The versions from 7.0 on that rustc 1.95 knows as target features (`rustc --print target-features`).
    const ACCEPTED: &[u32] = &[70, 71, 72, 73, 74, 75, 76, 77, 78, 80, 81, 82, 83, 84, 85, 86, 87];

    /// PTX `major.minor`.
    ///
    /// # Errors
    /// [`Error::UnknownPtxVersion`] when rustc has no target feature for it.
    pub fn new(major: u32, minor: u32) -> Result<Self, Error> {
        let number = major.saturating_mul(10).saturating_add(minor);
        if minor < 10 && Self::ACCEPTED.contains(&number) {
            Ok(PtxVersion(number))
        } else {
            Err(Error::UnknownPtxVersion { major, minor })
        }
    }
}
