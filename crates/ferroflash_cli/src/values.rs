//! The numbers that a bench multiplies.

use clap::ValueEnum;
use ferroflash::Element;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;
use rayon::prelude::*;

/// The numbers that kernels and peers multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Values {
    /// Standard normal, rounded to the element type of the cell
    Normal,
    /// Standard normal, rounded to bf16 first: the same numbers for every element type, so that none draws more power for longer mantissas
    Bf16,
}

impl Values {
    /// What the record says.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Values::Normal => "standard normal, rounded to the element type; the same for all",
            Values::Bf16 => "standard normal, rounded to bf16 and then to the element type; the same for all",
        }
    }

    /// Values for the tensor, the same for the same seed on every machine.
    pub(crate) fn draw<T: Element>(self, elements: usize, seed: u64) -> Vec<T> {
        match self {
            Values::Normal => normal::<T>(elements, seed),
            Values::Bf16 => normal::<half::bf16>(elements, seed).par_iter().map(|x| T::from_f64(x.to_f64())).collect(),
        }
    }
}

/// Elements that one generator draws: enough that its start does not count, few enough that all cores have work.
const CHUNK: usize = 1 << 16;

/// Standard normal values rounded to the element type, the same for the same seed on every machine.
pub(crate) fn normal<T: Element>(elements: usize, seed: u64) -> Vec<T> {
    let mut data = vec![T::from_f64(0.0); elements];
    data.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, data)| {
        // seed_from_u64 hashes, so neighbouring seeds give unrelated streams.
        let mut rng = SmallRng::seed_from_u64(seed.wrapping_shl(20).wrapping_add(chunk as u64));
        for x in data {
            *x = T::from_f64(rng.sample(StandardNormal));
        }
    });
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_standard_normal_and_differ_by_seed() {
        let data = normal::<f32>(3 * CHUNK + 5, 7);
        let n = data.len() as f64;
        let mean = data.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = data.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n - mean * mean;
        // Five standard errors.
        assert!(mean.abs() < 5.0 / n.sqrt() && (variance - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{mean} {variance}");
        assert_ne!(data[..8], normal::<f32>(8, 8)[..]);
        assert_ne!(data[..8], data[CHUNK..CHUNK + 8]);
    }

    #[test]
    fn values_of_bf16_are_the_same_in_every_type() {
        let draw = |values: Values| (values.draw::<half::f16>(999, 3), values.draw::<half::bf16>(999, 3));
        let differ = |(a, b): (Vec<half::f16>, Vec<half::bf16>)| {
            a.iter().zip(&b).filter(|(a, b)| a.to_f64() != b.to_f64()).count()
        };
        assert_eq!(differ(draw(Values::Bf16)), 0);
        assert!(differ(draw(Values::Normal)) > 800);
    }
}
