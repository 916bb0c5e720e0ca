//! The order in which the CTAs of a grid come to their turn.

use super::Rng;

/// A permutation of `0..n` drawn from a seed; seed 0 is the identity. Grids have up to 2^31 CTAs, so it is computed and not stored: a
/// Feistel network over the next even number of bits, walked until it comes back into the range.
pub(super) struct Shuffle {
    n: u64,
    half: u32,
    keys: [u64; 4],
}

impl Shuffle {
    pub(super) fn new(n: u32, seed: u64) -> Self {
        let bits = u64::BITS - (n as u64).saturating_sub(1).leading_zeros();
        let mut rng = Rng::new(seed);
        let half = if seed == 0 { 0 } else { bits.div_ceil(2).max(1) };
        Shuffle { n: n as u64, half, keys: std::array::from_fn(|_| rng.next()) }
    }

    pub(super) fn at(&self, i: u32) -> u32 {
        if self.half == 0 {
            return i;
        }
        let low = (1u64 << self.half) - 1;
        let mut v = i as u64;
        loop {
            let (mut l, mut r) = (v >> self.half, v & low);
            for key in self.keys {
                (l, r) = (r, l ^ (Rng::new(r ^ key).next() & low));
            }
            v = l << self.half | r;
            if v < self.n {
                return v as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cta_comes_once_and_seeds_differ() {
        for n in [1, 2, 3, 5, 16, 100, 1025] {
            for seed in 0..20 {
                let s = Shuffle::new(n, seed);
                let order: Vec<u32> = (0..n).map(|i| s.at(i)).collect();
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..n).collect::<Vec<_>>(), "{n} CTAs, seed {seed}");
                assert_eq!(seed == 0 && order == sorted, seed == 0);
            }
        }
        let first = |seed| Shuffle::new(1000, seed).at(0);
        assert!((1..20).map(first).collect::<std::collections::HashSet<_>>().len() > 10);
    }
}
