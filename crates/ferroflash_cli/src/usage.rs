//! Command lines that cannot be used, which end the program with a status of their own.

use anyhow::Result;
use std::fmt;

/// Exit status of a command line that cannot be used, as clap has it for those that it refuses itself.
pub(crate) const UNUSABLE_STATUS: u8 = 2;

/// What was asked for cannot be done, whatever the machine and the numbers in the files: found before anything runs.
#[derive(Debug)]
pub(crate) struct Unusable(anyhow::Error);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The whole chain: what wraps this shows it as one message.
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Unusable {}

/// Marks the error of a check of the command line.
pub(crate) trait OrUnusable {
    /// What the check gives.
    type Value;

    /// # Errors
    /// The same error, as [`Unusable`].
    fn or_unusable(self) -> Result<Self::Value>;
}

impl<T, E: Into<anyhow::Error>> OrUnusable for std::result::Result<T, E> {
    type Value = T;

    fn or_unusable(self) -> Result<T> {
        self.map_err(|error| Unusable(error.into()).into())
    }
}

/// The name of a device, for clap: what [`ferroflash::Device::open`] understands, whether the device is there or not.
pub(crate) fn device_name(name: &str) -> Result<String, ferroflash::Error> {
    let ordinal = || name.strip_prefix("cuda:").is_some_and(|ordinal| ordinal.parse::<usize>().is_ok());
    if ["best", "cuda", "emulator"].contains(&name) || ordinal() {
        return Ok(name.to_owned());
    }
    Err(ferroflash::Error::UnknownDevice { name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn the_mark_survives_context_and_the_message_is_told_once() {
        let error = Err::<(), _>(anyhow!("inner").context("outer")).or_unusable().context("around").unwrap_err();
        assert!(error.is::<Unusable>());
        assert_eq!(format!("{error:#}"), "around: outer: inner");
        assert!(!anyhow!("plain").is::<Unusable>());
    }

    #[test]
    fn device_names_are_those_of_the_library() {
        for name in ["best", "cuda", "cuda:0", "cuda:4096", "emulator"] {
            assert_eq!(device_name(name).unwrap(), name);
        }
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA", "emulator:0"] {
            let here = device_name(name).unwrap_err().to_string();
            assert_eq!(here, ferroflash::Device::open(name).unwrap_err().to_string());
        }
    }
}
