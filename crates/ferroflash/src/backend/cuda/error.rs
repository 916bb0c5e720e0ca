//! What the driver's failures become.

use crate::error::{Error, Version};

impl From<cust::Error> for Error {
    fn from(error: cust::Error) -> Error {
        match error {
            cust::Error::NoDriver { reason } => Error::NoDriver { reason },
            cust::Error::UnsupportedPlatform => Error::NoDriver { reason: error.to_string() },
            cust::Error::DriverTooOld { found, least } => {
                Error::DriverTooOld { found: version(found), least: version(least) }
            }
            cust::Error::MissingSymbols { symbols } => {
                Error::DriverLacksSymbols { symbols: symbols.into_iter().map(str::to_owned).collect() }
            }
            cust::Error::Call { call, result, name, message } => Error::Cuda { call, code: result.0, name, message },
            cust::Error::Priority { found, greatest, least } => Error::StreamPriority { found, greatest, least },
            cust::Error::EventOrder { .. } => Error::EventOrder,
            error => Error::DriverRefuses(Box::new(error)),
        }
    }
}

pub(super) fn version(version: cust::Version) -> Version {
    Version { major: version.major, minor: version.minor }
}
