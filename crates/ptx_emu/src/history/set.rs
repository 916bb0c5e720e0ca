//! Accesses on record, and a set of them in a word.

/// An access on record: lanes of one warp, at the warp's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Linear number of the CTA, modulo 2^21.
    pub(crate) cta: u32,
    pub(crate) warp: u32,
    pub(crate) lanes: u32,
    /// Bytes of the granule.
    pub(crate) mask: u8,
    /// In the set of strong accesses: it writes.
    pub(crate) writes: bool,
    /// The warp's clock since the CTA began. `UNKNOWN` stands for none.
    pub(crate) clock: u32,
}

/// CTA numbers that records tell apart.
pub(crate) const CTAS: u32 = 1 << 21;
/// Launches that records tell apart.
pub(crate) const LAUNCHES: u32 = 1 << 9;
const CLOCK_BITS: u32 = 17;
/// A clock that a record cannot hold: the access is taken as ordered.
pub(super) const UNKNOWN: u32 = (1 << CLOCK_BITS) - 1;

/// A set in a word: tag in bits 62 and 63, launch in 53 to 61.
#[derive(Debug, Clone, Copy)]
pub(super) enum Set {
    Empty,
    One(Access),
    /// Two CTAs that both touched the bytes, and whether any did with a strong write.
    Many(u32, u32, u8, bool),
    Spilled,
}

impl Set {
    pub(super) fn pack(self, launch: u64) -> u64 {
        let head = |tag: u64| tag << 62 | launch << 53;
        match self {
            Set::Empty => 0,
            Set::One(a) => {
                head(1)
                    | (a.cta as u64) << 32
                    | (a.warp as u64) << 27
                    | (a.lanes.trailing_zeros() as u64) << 22
                    | (a.mask as u64) << 18
                    | (a.writes as u64) << 17
                    | a.clock.min(UNKNOWN) as u64
            }
            Set::Many(a, b, mask, writes) => {
                head(2) | (a as u64) << 32 | (b as u64) << 11 | (mask as u64) << 1 | writes as u64
            }
            Set::Spilled => head(3),
        }
    }

    #[inline(always)]
    pub(super) fn unpack(bits: u64, launch: u64) -> Set {
        if bits == 0 || bits >> 53 & (LAUNCHES as u64 - 1) != launch {
            return Set::Empty;
        }
        let cta = (bits >> 32) as u32 & (CTAS - 1);
        match bits >> 62 {
            1 => Set::One(Access {
                cta,
                warp: (bits >> 27) as u32 & 31,
                lanes: 1 << (bits >> 22 & 31),
                mask: (bits >> 18) as u8 & 15,
                writes: bits >> 17 & 1 == 1,
                clock: bits as u32 & UNKNOWN,
            }),
            2 => Set::Many(cta, (bits >> 11) as u32 & (CTAS - 1), (bits >> 1) as u8 & 15, bits & 1 == 1),
            _ => Set::Spilled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_in_words_are_what_went_in() {
        let a = Access { cta: CTAS - 1, warp: 31, lanes: 1 << 31, mask: 15, writes: true, clock: UNKNOWN - 1 };
        for launch in [0, 1, LAUNCHES as u64 - 1] {
            assert!(matches!(Set::unpack(Set::One(a).pack(launch), launch), Set::One(b) if a == b));
            let many = Set::Many(CTAS - 1, 3, 9, true).pack(launch);
            assert!(matches!(Set::unpack(many, launch), Set::Many(a, 3, 9, true) if a == CTAS - 1));
            assert!(matches!(Set::unpack(Set::Spilled.pack(launch), launch), Set::Spilled));
            // Another launch left nothing.
            assert!(matches!(Set::unpack(many, launch + 1), Set::Empty));
        }
    }
}
