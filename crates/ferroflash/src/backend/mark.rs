//! Points in the work of a device.

use crate::error::{Error, Result};
use std::time::{Duration, Instant};

/// A point in the work of a stream.
#[derive(Debug)]
pub(crate) enum Mark {
    #[cfg(cuda)]
    Cuda(cust::Event),
    /// Of a device whose work is done when a call returns: the time at which it was.
    Host(Instant),
}

impl Mark {
    pub(crate) fn synchronize(&self) -> Result<()> {
        match self {
            #[cfg(cuda)]
            Mark::Cuda(event) => Ok(event.synchronize()?),
            Mark::Host(_) => Ok(()),
        }
    }

    pub(crate) fn is_done(&self) -> Result<bool> {
        match self {
            #[cfg(cuda)]
            Mark::Cuda(event) => Ok(event.is_done()?),
            Mark::Host(_) => Ok(true),
        }
    }

    /// The time since a mark of the same device. Both are done.
    pub(crate) fn elapsed_since(&self, earlier: &Mark) -> Result<Duration> {
        match (self, earlier) {
            #[cfg(cuda)]
            (Mark::Cuda(event), Mark::Cuda(earlier)) => Ok(event.elapsed_since(earlier)?),
            (Mark::Host(time), Mark::Host(earlier)) => time.checked_duration_since(*earlier).ok_or(Error::EventOrder),
            #[cfg(cuda)]
            (Mark::Cuda(_), Mark::Host(_)) | (Mark::Host(_), Mark::Cuda(_)) => {
                unreachable!("marks of one device are of one kind")
            }
        }
    }
}
