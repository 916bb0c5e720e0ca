//! What a device loads: an entry, and the features that its text is specialised for.

use crate::error::{Error, Result};
use crate::ptx;
use kernel_spec::families::forward::features::PROGRAM;
use kernel_spec::{Entry, FeatureSet, specialise};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// An entry point and what its text is specialised for: what a device loads, and the key of what it has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specialised {
    /// The entry point.
    pub entry: &'static Entry,
    /// The features that are on; the entry accepts them.
    pub features: FeatureSet,
    /// What scores pass through, where the feature for programs is on; see `kernel_spec::specialise` for how it is written. `None` is
    /// the identity.
    pub program: Option<Arc<str>>,
}

impl Hash for Specialised {
    /// Every launch looks its kernel up: of the entry its name goes into it, which no other entry has.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.entry.symbol.hash(state);
        self.features.hash(state);
        self.program.hash(state);
    }
}

impl Specialised {
    /// The entry without any feature.
    pub fn plain(entry: &'static Entry) -> Specialised {
        Specialised::with_features(entry, FeatureSet::NONE)
    }

    /// The entry with these features, and no program.
    pub fn with_features(entry: &'static Entry, features: FeatureSet) -> Specialised {
        Specialised { entry, features, program: None }
    }

    /// The PTX that is given to the device: for disassemblers, profilers and other launchers.
    ///
    /// # Errors
    /// [`Error::MissingVariant`] when this build holds no such entry point, [`Error::PtxRejected`] when its text is
    /// damaged, [`Error::NotSpecialised`] when it does not take the features or the program.
    pub fn text(&self) -> Result<String> {
        let Specialised { entry, features, ref program } = *self;
        if program.is_some() && !features.contains(FeatureSet::of(PROGRAM)) {
            let reason = "a program on scores, and its feature is off".to_owned();
            return Err(Error::NotSpecialised { symbol: entry.symbol, reason });
        }
        specialise(&ptx::text(entry)?, entry, features, program.as_deref())
            .map_err(|error| Error::NotSpecialised { symbol: entry.symbol, reason: error.to_string() })
    }
}
