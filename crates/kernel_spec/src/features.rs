//! Features: what a kernel does beyond its plain form, decided when it is loaded.
//!
//! A feature costs nothing where it is off. Every parameter struct ends in a [`Features`] block of 8-byte
//! slots. The kernel's source tests [`Features::has`] at run time; the host, before the driver or the emulator compiles the text of
//! the entry, replaces the loads of [`Features::on`] by the set that a call has, and the loads of the slots that are off by zero. What
//! the tests guard is then dead code for the compiler, and a call without features runs the machine code of a kernel that has none.
//! An assembler may still order what is left differently: where that shows, as in v3, the plain row and that with features are two.
//!
//! A slot has 8 bytes of its own because LLVM merges neighbouring loads of 4 bytes into one of 8, which no longer is the load of one
//! slot.

/// A set of features of one family of kernels: bit `i` is slot `i` of its [`Features`] block.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeatureSet(u32);

impl FeatureSet {
    /// No feature: the plain kernel.
    pub const NONE: FeatureSet = FeatureSet(0);

    /// The set of the feature in slot `slot` alone, from 0 to 31.
    pub const fn of(slot: u32) -> FeatureSet {
        assert!(slot < u32::BITS, "a slot from 0 to 31");
        FeatureSet(1 << slot)
    }

    /// Features that are in one of the two.
    pub const fn union(self, other: FeatureSet) -> FeatureSet {
        FeatureSet(self.0 | other.0)
    }

    /// Features that are in both.
    pub const fn intersection(self, other: FeatureSet) -> FeatureSet {
        FeatureSet(self.0 & other.0)
    }

    /// Features that are in this one and not in the other.
    pub const fn without(self, other: FeatureSet) -> FeatureSet {
        FeatureSet(self.0 & !other.0)
    }

    /// Whether all features of `other` are in this set.
    #[inline(always)]
    pub const fn contains(self, other: FeatureSet) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether there is no feature in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as a number: bit `i` is slot `i`.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Every set of features that are in this one, the empty one first.
    pub fn subsets(self) -> impl Iterator<Item = FeatureSet> {
        // Counts through the bits of the set alone: the carry runs over those between them.
        let mut next = Some(0_u32);
        core::iter::from_fn(move || {
            let current = next?;
            next = Some((current | !self.0).wrapping_add(1) & self.0).filter(|&bits| bits != 0);
            Some(FeatureSet(current))
        })
    }
}

/// The block at the end of a parameter struct: which features are on, and a value for each.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features<const SLOTS: usize> {
    /// The features that are on, a [`FeatureSet`] in 8 bytes. A constant in the text that runs.
    on: u64,
    /// A value for each slot: an address, or the bits of a number. A load that is on stays a load, so that a value may change from
    /// launch to launch.
    values: [u64; SLOTS],
}

impl<const SLOTS: usize> Features<SLOTS> {
    /// The plain kernel.
    pub const OFF: Features<SLOTS> = Features { on: 0, values: [0; SLOTS] };

    /// Bytes of the block.
    pub const BYTES: usize = size_of::<Features<SLOTS>>();

    /// The block with the feature of `slot` on and this value.
    pub const fn with(mut self, slot: u32, value: u64) -> Features<SLOTS> {
        self.on |= FeatureSet::of(slot).0 as u64;
        self.values[slot as usize] = value;
        self
    }

    /// The block with this value in `slot`, which holds no feature.
    pub const fn with_word(mut self, slot: u32, value: u64) -> Features<SLOTS> {
        self.values[slot as usize] = value;
        self
    }

    /// The features that are on.
    #[inline(always)]
    pub const fn set(&self) -> FeatureSet {
        FeatureSet(self.on as u32)
    }

    /// Whether the feature of `slot` is on.
    #[inline(always)]
    pub const fn has(&self, slot: u32) -> bool {
        self.set().contains(FeatureSet::of(slot))
    }

    /// The value of `slot`, 0 where it is off.
    #[inline(always)]
    pub const fn value(&self, slot: u32) -> u64 {
        self.values[slot as usize]
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn subsets_are_all_there_once() {
        let set = FeatureSet::of(0).union(FeatureSet::of(3)).union(FeatureSet::of(31));
        let mut subsets: Vec<_> = set.subsets().collect();
        assert_eq!(subsets[0], FeatureSet::NONE);
        assert!(subsets.iter().all(|&subset| set.contains(subset)));
        subsets.sort();
        subsets.dedup();
        assert_eq!(subsets.len(), 8);
        assert_eq!(FeatureSet::NONE.subsets().collect::<Vec<_>>(), [FeatureSet::NONE]);
    }

    #[test]
    fn sets_are_sets() {
        let (a, b) = (FeatureSet::of(0).union(FeatureSet::of(3)), FeatureSet::of(3).union(FeatureSet::of(31)));
        // What is in both is in the union.
        let all = a.union(b);
        assert_eq!(all.bits(), 1 | 1 << 3 | 1 << 31);
        assert!(all.contains(a) && all.contains(b) && !a.contains(b) && !b.contains(a) && a.contains(FeatureSet::NONE));
        assert_eq!(all.without(b), FeatureSet::of(0));
        assert!(FeatureSet::NONE.is_empty() && !a.is_empty());
    }

    #[test]
    fn a_block_is_one_slot_for_the_set_and_one_for_each_value() {
        let features = Features::<3>::OFF.with(1, 7);
        assert_eq!(Features::<3>::BYTES, 4 * 8);
        assert!(features.has(1) && !features.has(0) && !features.has(2));
        assert_eq!([features.value(0), features.value(1), features.value(2)], [0, 7, 0]);
    }
}
