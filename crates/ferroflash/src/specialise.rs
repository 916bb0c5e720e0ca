//! What a device loads: an entry, and the features that its text is specialised for.

use crate::error::{Error, Result};
use crate::ptx;
use kernel_spec::{Entry, FeatureSet, specialise};

/// An entry point and what its text is specialised for: what a device loads, and the key of what it has loaded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Specialised {
    /// The entry point.
    pub entry: &'static Entry,
    /// The features that are on; the entry accepts them.
    pub features: FeatureSet,
}

impl Specialised {
    /// The entry without any feature.
    pub fn plain(entry: &'static Entry) -> Specialised {
        Specialised { entry, features: FeatureSet::NONE }
    }

    /// The PTX that is given to the device: for disassemblers, profilers and other launchers.
    ///
    /// # Errors
    /// [`Error::MissingVariant`] when this build holds no such entry point, [`Error::PtxRejected`] when its text is damaged.
    pub fn text(&self) -> Result<String> {
        let Specialised { entry, features } = *self;
        specialise(&ptx::text(entry)?, entry, features)
            .map_err(|error| Error::PtxRejected { symbol: entry.symbol, log: error.to_string() })
    }
}
