//! Bits of memory that a store left unknown: it wrote the byte, from a register some of whose bits nobody wrote. Structures are copied
//! with their padding, and bit fields are built one after another.

use std::collections::HashMap;

/// The unknown bits of bytes, by offset.
#[derive(Debug, Default)]
pub(crate) struct Holes(HashMap<u64, u8>);

impl Holes {
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The range holds what is known.
    #[cold]
    pub(crate) fn fill(&mut self, off: u64, n: u64) {
        if n > self.0.len() as u64 {
            self.0.retain(|&o, _| !(off..off + n).contains(&o));
        } else {
            (off..off + n).for_each(|o| _ = self.0.remove(&o));
        }
    }

    /// The range holds bytes with these unknown bits.
    #[cold]
    pub(crate) fn put(&mut self, off: u64, unknown: &[u8]) {
        self.fill(off, unknown.len() as u64);
        self.0.extend((off..).zip(unknown).filter(|(_, u)| **u != 0).map(|(o, u)| (o, *u)));
    }

    /// The unknown bits of a range, if it has any.
    #[cold]
    pub(crate) fn get<const N: usize>(&self, off: u64, n: usize) -> Option<[u8; N]> {
        let mut unknown = [0; N];
        for (o, u) in (off..).zip(&mut unknown[..n]) {
            *u = self.0.get(&o).copied().unwrap_or(0);
        }
        (unknown != [0; N]).then_some(unknown)
    }

    /// The first byte of a range that has unknown bits.
    #[cold]
    pub(crate) fn first(&self, off: u64, n: u64) -> Option<u64> {
        if n > self.0.len() as u64 {
            return self.0.keys().copied().filter(|o| (off..off + n).contains(o)).min();
        }
        (off..off + n).find(|o| self.0.contains_key(o))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_those_of_the_last_store() {
        let mut h = Holes::default();
        h.put(10, &[0, 0x0f, 0, 0xff]);
        assert_eq!(h.get::<8>(9, 6), Some([0, 0, 0x0f, 0, 0xff, 0, 0, 0]));
        assert_eq!(
            (h.first(0, 12), h.first(0, 100), h.first(12, 3), h.first(14, 1000)),
            (Some(11), Some(11), Some(13), None)
        );
        h.put(11, &[0, 0x80]);
        assert_eq!(h.get::<4>(10, 4), Some([0, 0, 0x80, 0xff]));
        h.fill(12, 1);
        assert_eq!((h.get::<4>(10, 3), h.first(0, 100)), (None, Some(13)));
        h.fill(0, 1000);
        assert!(h.is_empty());
    }
}
