//! The mask of a call, from its options.

use anyhow::{Result, ensure};
use clap::Args;
use ferroflash::Mask;
use std::str::FromStr;

/// Which keys a query sees.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct MaskArgs {
    /// A query sees no key after its own place, counted from the last query and the last key
    #[arg(long)]
    causal: bool,
    /// A query sees at most this many keys before its own place; -1, as without the option: all of them
    #[arg(long, value_name = "KEYS", allow_negative_numbers = true)]
    window_left: Option<Bound>,
    /// A query sees at most this many keys after its own place; -1, as without the option: all of them
    #[arg(long, value_name = "KEYS", allow_negative_numbers = true)]
    window_right: Option<Bound>,
}

/// One side of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Keys(u32),
    /// Written -1, as in FlashAttention's `window_size`.
    Unbounded,
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Bound, String> {
        if text == "-1" {
            return Ok(Bound::Unbounded);
        }
        let accepted = || format!("accepted are 0 to {}, and -1 for no bound", u32::MAX);
        text.parse().map(Bound::Keys).map_err(|_| accepted())
    }
}

impl Bound {
    fn keys(side: Option<Bound>) -> Option<u32> {
        match side {
            Some(Bound::Keys(keys)) => Some(keys),
            Some(Bound::Unbounded) | None => None,
        }
    }
}

impl MaskArgs {
    /// # Errors
    /// A window that lets a query see what `--causal` hides.
    pub(super) fn mask(self) -> Result<Mask> {
        let (left, right) = (Bound::keys(self.window_left), Bound::keys(self.window_right));
        if self.causal {
            ensure!(
                right.unwrap_or(0) == 0,
                "--window-right {} cannot be used with --causal, under which a query sees no key after its own place; leave out \
                 one of them",
                right.unwrap_or(0)
            );
            return Ok(if left.is_none() { Mask::Causal } else { Mask::Window { left, right: Some(0) } });
        }
        Ok(if left.is_none() && right.is_none() { Mask::Full } else { Mask::Window { left, right } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_written_as_in_flash_attention() {
        let mask = |causal, left: Option<&str>, right: Option<&str>| {
            let bound = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            MaskArgs { causal, window_left: bound(left), window_right: bound(right) }.mask()
        };
        for none in [None, Some("-1")] {
            assert_eq!(mask(false, none, none).unwrap(), Mask::Full);
            assert_eq!(mask(true, none, none).unwrap(), Mask::Causal);
            assert_eq!(mask(false, Some("7"), none).unwrap(), Mask::Window { left: Some(7), right: None });
            assert_eq!(mask(false, none, Some("0")).unwrap(), Mask::Window { left: None, right: Some(0) });
            assert_eq!(mask(true, Some("7"), none).unwrap(), Mask::Window { left: Some(7), right: Some(0) });
        }
        assert_eq!(mask(true, None, Some("0")).unwrap(), Mask::Causal);
        assert_eq!(mask(true, Some("0"), Some("0")).unwrap(), Mask::Window { left: Some(0), right: Some(0) });
        assert!(mask(true, None, Some("3")).unwrap_err().to_string().contains("--window-right 3 cannot be used with"));
        for wrong in ["-2", "4294967296", "", "all", "1.5"] {
            assert!(wrong.parse::<Bound>().unwrap_err().contains("-1 for no bound"), "{wrong}");
        }
    }
}
