//! Order statistics of repeated measurements.

use serde::{Deserialize, Serialize};

/// Median and quartiles of one quantity, in the unit of its samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Quartiles {
    /// A quarter of the samples lies below.
    pub(crate) q1: f64,
    /// Half of the samples lie below.
    pub(crate) median: f64,
    /// Three quarters of the samples lie below.
    pub(crate) q3: f64,
}

impl Quartiles {
    /// Quartiles of `samples`, with linear interpolation between neighbours (Hyndman and Fan's type 7).
    ///
    /// # Panics
    /// When `samples` is empty or holds a NaN.
    pub(crate) fn of(samples: &[f64]) -> Quartiles {
        let mut sorted = samples.to_vec();
        sorted.sort_by(|a, b| a.partial_cmp(b).expect("samples are numbers"));
        let at = |fraction: f64| {
            let place = fraction * (sorted.len() - 1) as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            sorted[low] + (sorted[high] - sorted[low]) * place.fract()
        };
        Quartiles { q1: at(0.25), median: at(0.5), q3: at(0.75) }
    }

    /// Distance between the quartiles.
    pub(crate) fn range(&self) -> f64 {
        self.q3 - self.q1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_interpolate_between_samples() {
        assert_eq!(Quartiles::of(&[7.0]), Quartiles { q1: 7.0, median: 7.0, q3: 7.0 });
        assert_eq!(Quartiles::of(&[4.0, 1.0, 3.0, 2.0]), Quartiles { q1: 1.75, median: 2.5, q3: 3.25 });
        assert_eq!(Quartiles::of(&[5.0, 1.0, 2.0, 4.0, 3.0]), Quartiles { q1: 2.0, median: 3.0, q3: 4.0 });
        assert_eq!(Quartiles::of(&[1.0, 2.0, 3.0]).range(), 1.0);
    }
}
