//! Masks as records and sweep files write them.

use kernel_spec::Mask;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A mask with a name: `full`, `causal`, or `window LEFT/RIGHT`, the keys that a row sees before and after the diagonal, `all` where
/// there is no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MaskName(pub(crate) Mask);

impl MaskName {
    /// What the title of a table or a picture says.
    pub(crate) fn title(self) -> String {
        match self.0 {
            Mask::Full => "no mask".to_owned(),
            Mask::Causal => "causal mask".to_owned(),
            _ => self.to_string(),
        }
    }

    /// Masks in the order in which they are shown: none, causal, windows from the narrowest on.
    fn order(self) -> (u8, u32, u32) {
        let bound = |keys: Option<u32>| keys.unwrap_or(u32::MAX);
        match self.0 {
            Mask::Full => (0, 0, 0),
            Mask::Causal => (1, 0, 0),
            Mask::Window { left, right } => (2, bound(left), bound(right)),
            other => unreachable!("{other:?} has no name here"),
        }
    }
}

impl fmt::Display for MaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = |keys: Option<u32>| keys.map_or("all".to_owned(), |keys| keys.to_string());
        match self.0 {
            Mask::Full => f.pad("full"),
            Mask::Causal => f.pad("causal"),
            Mask::Window { left, right } => f.pad(&format!("window {}/{}", bound(left), bound(right))),
            other => unreachable!("{other:?} has no name here"),
        }
    }
}

impl FromStr for MaskName {
    type Err = String;

    fn from_str(name: &str) -> Result<MaskName, String> {
        let bound = |text: &str| match text {
            "all" => Some(None),
            keys => keys.parse().ok().map(Some),
        };
        let window = || {
            let (left, right) = name.strip_prefix("window ")?.split_once('/')?;
            Some(Mask::Window { left: bound(left)?, right: bound(right)? })
        };
        match name {
            "full" => Ok(MaskName(Mask::Full)),
            "causal" => Ok(MaskName(Mask::Causal)),
            _ => window()
                .map(MaskName)
                .ok_or_else(|| format!("unknown variant `{name}`, expected `full`, `causal` or `window LEFT/RIGHT`")),
        }
    }
}

impl PartialOrd for MaskName {
    fn partial_cmp(&self, other: &MaskName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MaskName {
    fn cmp(&self, other: &MaskName) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl Serialize for MaskName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MaskName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<MaskName, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Record;
    use super::*;
    use std::path::Path;

    #[test]
    fn names_are_those_of_older_records() {
        let window = |left, right| Mask::Window { left, right };
        for (mask, name, title) in [
            (Mask::Full, "full", "no mask"),
            (Mask::Causal, "causal", "causal mask"),
            (window(Some(1023), Some(0)), "window 1023/0", "window 1023/0"),
            (window(None, Some(7)), "window all/7", "window all/7"),
        ] {
            let json = format!("{name:?}");
            assert_eq!(serde_json::to_string(&MaskName(mask)).unwrap(), json);
            assert_eq!(serde_json::from_str::<MaskName>(&json).unwrap(), MaskName(mask));
            assert_eq!(MaskName(mask).title(), title);
        }
        for unknown in ["", "Full", "window", "window 1", "window 1/", "window -1/0", "window 1/2/3"] {
            assert!(unknown.parse::<MaskName>().is_err(), "{unknown}");
        }
        assert!(MaskName(Mask::Full) < MaskName(Mask::Causal));
        assert!(MaskName(Mask::Causal) < MaskName(window(Some(9), None)));
        assert!(MaskName(window(Some(9), None)) < MaskName(window(None, Some(0))));
    }

    /// Every committed record is read, and what is read is written as the same values.
    #[test]
    fn committed_records_come_again() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks");
        let mut records = 0;
        for file in folder.read_dir().unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            if value["kind"] != super::super::BENCH_KIND {
                continue;
            }
            let record: Record =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let again = serde_json::to_value(&record).unwrap();
            for (cell, written) in value["cells"].as_array().unwrap().iter().zip(again["cells"].as_array().unwrap()) {
                assert_eq!(cell["problem"], written["problem"], "{}", file.display());
            }
            assert_eq!(again["sweep"], value["sweep"], "{}", file.display());
            records += 1;
        }
        assert!(records > 0, "no record in {}", folder.display());
    }
}
