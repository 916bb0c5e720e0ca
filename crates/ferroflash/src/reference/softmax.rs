//! Softmax of rows by its definition.

use super::inputs::round;
use crate::error::{Error, Result};
use kernel_spec::DType;

/// Softmax of rows of `columns` elements, or its logarithm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReferenceSoftmax {
    /// Columns of a row.
    pub columns: usize,
    /// The factor on x.
    pub scale: f64,
    /// Whether it is the logarithm.
    pub log: bool,
    /// Query rows of a causal softmax: of each so many rows, the last sees all columns, and every other one less than the next.
    pub queries: Option<usize>,
}

impl ReferenceSoftmax {
    /// In `f64`, of `x` and a mask that is added, where there is one: what [`crate::operators::Softmax::forward`] is checked against. A row without a number
    /// that it sees is zeros; of the logarithm, minus infinities. One that sees a NaN or plus infinity is NaN.
    ///
    /// # Errors
    /// [`Error::DataLength`] for slices that are no whole rows, or of different lengths.
    pub fn forward(&self, x: &[f64], mask: Option<&[f64]>) -> Result<Vec<f64>> {
        self.check(x, mask)?;
        let mut out = Vec::with_capacity(x.len());
        for (row, x) in x.chunks(self.columns).enumerate() {
            let added = |column: usize| mask.map_or(0.0, |mask| mask[row * self.columns + column]);
            let score = |column: usize| {
                if self.sees(row, column) { self.scale * x[column] + added(column) } else { f64::NEG_INFINITY }
            };
            let scores: Vec<f64> = (0..self.columns).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let is_number = |y: &&f64| **y != f64::NEG_INFINITY;
            let sum: f64 = scores.iter().filter(is_number).map(|y| (y - max).exp()).sum();
            out.extend(scores.iter().map(|y| match (self.log, *y == f64::NEG_INFINITY) {
                _ if sum.is_nan() => f64::NAN,
                (true, true) => f64::NEG_INFINITY,
                (false, true) => 0.0,
                (true, false) => y - max - sum.ln(),
                (false, false) => (y - max).exp() / sum,
            }));
        }
        Ok(out)
    }

    /// As a straightforward program computes it: in `f32`, with the output rounded to `dtype`.
    ///
    /// # Errors
    /// As [`ReferenceSoftmax::forward`].
    pub fn forward_rounded(&self, x: &[f64], mask: Option<&[f64]>, dtype: DType) -> Result<Vec<f64>> {
        self.check(x, mask)?;
        let mut out = Vec::with_capacity(x.len());
        for (row, x) in x.chunks(self.columns).enumerate() {
            let added = |column: usize| mask.map_or(0.0, |mask| mask[row * self.columns + column] as f32);
            let score = |column: usize| match self.sees(row, column) {
                true => self.scale as f32 * x[column] as f32 + added(column),
                false => f32::NEG_INFINITY,
            };
            let scores: Vec<f32> = (0..self.columns).map(score).collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
            let sum: f32 = scores.iter().map(|y| (y - base).exp()).sum();
            out.extend(scores.iter().map(|y| {
                let value = match (self.log, sum == 0.0) {
                    (true, true) => f32::NEG_INFINITY,
                    (false, true) => 0.0,
                    (true, false) => y - base - sum.ln(),
                    (false, false) => (y - base).exp() / sum,
                };
                f64::from(round(value, dtype))
            }));
        }
        Ok(out)
    }

    /// The gradient in `f64` of a number with respect to x, given what forward gave and the gradient with respect to it. Of a logarithm of minus infinity
    /// there is none, and 0 is given.
    ///
    /// # Errors
    /// As [`ReferenceSoftmax::forward`].
    pub fn backward(&self, out: &[f64], dout: &[f64]) -> Result<Vec<f64>> {
        self.check(out, Some(dout))?;
        let mut dx = Vec::with_capacity(out.len());
        for (out, dout) in out.chunks(self.columns).zip(dout.chunks(self.columns)) {
            if self.log {
                let counts = |out: f64| if out == f64::NEG_INFINITY { 0.0 } else { 1.0 };
                let sum: f64 = out.iter().zip(dout).map(|(&out, dout)| counts(out) * dout).sum();
                let term = |(&out, dout): (&f64, &f64)| self.scale * (counts(out) * dout - out.exp() * sum);
                dx.extend(out.iter().zip(dout).map(term));
            } else {
                let sum: f64 = out.iter().zip(dout).map(|(out, dout)| out * dout).sum();
                dx.extend(out.iter().zip(dout).map(|(out, dout)| self.scale * out * (dout - sum)));
            }
        }
        Ok(dx)
    }

    /// [`ReferenceSoftmax::backward`] as a straightforward program computes it: in `f32`, rounded to `dtype`.
    ///
    /// # Errors
    /// As [`ReferenceSoftmax::forward`].
    pub fn backward_rounded(&self, out: &[f64], dout: &[f64], dtype: DType) -> Result<Vec<f64>> {
        self.check(out, Some(dout))?;
        let scale = self.scale as f32;
        let mut dx = Vec::with_capacity(out.len());
        for (out, dout) in out.chunks(self.columns).zip(dout.chunks(self.columns)) {
            let pairs: Vec<[f32; 2]> = out.iter().zip(dout).map(|(&out, &dout)| [out as f32, dout as f32]).collect();
            let counts = |out: f32| if out == f32::NEG_INFINITY { 0.0 } else { 1.0 };
            let term = |[out, dout]: [f32; 2]| if self.log { counts(out) * dout } else { out * dout };
            let sum: f32 = pairs.iter().copied().map(term).sum();
            dx.extend(pairs.iter().map(|&[out, dout]| {
                let value =
                    if self.log { scale * (counts(out) * dout - out.exp() * sum) } else { scale * out * (dout - sum) };
                f64::from(round(value, dtype))
            }));
        }
        Ok(dx)
    }

    /// Whether a row sees a column.
    fn sees(&self, row: usize, column: usize) -> bool {
        self.queries.is_none_or(|queries| column + queries <= row % queries + self.columns)
    }

    fn check(&self, x: &[f64], other: Option<&[f64]>) -> Result<()> {
        let columns = self.columns.max(1);
        let expected = x.len() / columns * columns;
        let found = [Some(x.len()), other.map(<[f64]>::len)].into_iter().flatten().find(|&found| found != expected);
        match found {
            Some(found) => Err(Error::DataLength { shape: vec![expected / columns, columns], expected, found }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::max_abs_difference;

    const PLAIN: ReferenceSoftmax = ReferenceSoftmax { columns: 3, scale: 1.0, log: false, queries: None };
    const HIDDEN: f64 = f64::NEG_INFINITY;

    fn wave(n: usize, f: f64) -> Vec<f64> {
        (0..n).map(|i| 2.0 * (i as f64 * f).sin()).collect()
    }

    #[test]
    fn rows_by_hand() {
        let (x, ln) = ([0.0, 3f64.ln(), 0.0, 1e300, HIDDEN, 1e300], f64::ln);
        let out = PLAIN.forward(&x, None).unwrap();
        assert!(max_abs_difference(&out, &[0.2, 0.6, 0.2, 0.5, 0.0, 0.5]) < 1e-12);
        let log = ReferenceSoftmax { log: true, ..PLAIN }.forward(&x, None).unwrap();
        assert!(max_abs_difference(&log, &[ln(0.2), ln(0.6), ln(0.2), ln(0.5), HIDDEN, ln(0.5)]) < 1e-12);
        // Twice the logarithm is the square; a mask adds.
        let doubled = ReferenceSoftmax { scale: 2.0, ..PLAIN };
        let out = doubled.forward(&x[..3], Some(&[0.0, 0.0, HIDDEN])).unwrap();
        assert!(max_abs_difference(&out, &[0.1, 0.9, 0.0]) < 1e-12);
        let nothing = [HIDDEN; 3];
        assert_eq!(PLAIN.forward(&nothing, None).unwrap(), [0.0; 3]);
        assert_eq!(ReferenceSoftmax { log: true, ..PLAIN }.forward(&nothing, None).unwrap(), nothing);
        for found in [f64::NAN, f64::INFINITY] {
            let out = PLAIN.forward(&[found, 0.0, HIDDEN], None).unwrap();
            assert!(out.iter().all(|x| x.is_nan()), "{out:?}");
        }
    }

    #[test]
    fn query_rows_are_aligned_to_the_end() {
        // Two query rows of three columns: the first sees two. Then five, of which the first two see nothing.
        let seen = |queries: usize| {
            let causal = ReferenceSoftmax { queries: Some(queries), ..PLAIN };
            let out = causal.forward(&vec![0.0; 3 * queries], None).unwrap();
            out.chunks(3).map(|row| row.iter().filter(|&&x| x > 0.0).count()).collect::<Vec<_>>()
        };
        assert_eq!(seen(2), [2, 3]);
        assert_eq!(seen(5), [0, 0, 1, 2, 3]);
        let twice = ReferenceSoftmax { queries: Some(2), ..PLAIN }.forward(&[0.0; 12], None).unwrap();
        assert_eq!(twice[..6], twice[6..]);
    }

    #[test]
    fn rounded_differs_by_the_precision_alone() {
        let (x, dout) = (wave(60, 0.7), wave(60, 1.3));
        for log in [false, true] {
            let softmax = ReferenceSoftmax { log, scale: 1.5, queries: Some(4), ..PLAIN };
            let (exact, rounded) = (
                softmax.forward(&x, Some(&dout)).unwrap(),
                softmax.forward_rounded(&x, Some(&dout), DType::F32).unwrap(),
            );
            assert!(max_abs_difference(&exact, &rounded) < 1e-5 && exact != rounded);
            let (exact, rounded) = (
                softmax.backward(&exact, &dout).unwrap(),
                softmax.backward_rounded(&exact, &dout, DType::F32).unwrap(),
            );
            assert!(max_abs_difference(&exact, &rounded) < 1e-5 && exact != rounded);
        }
    }

    /// Every derivative of a weighted sum of the output against central differences.
    #[test]
    fn gradients_are_those_of_differences() {
        let (x, mask, dout) = (wave(12, 0.7), wave(12, 2.9), wave(12, 1.3));
        for log in [false, true] {
            for queries in [None, Some(2)] {
                let softmax = ReferenceSoftmax { log, queries, scale: -0.75, ..PLAIN };
                let value = |x: &[f64]| {
                    let out = softmax.forward(x, Some(&mask)).unwrap();
                    // What is hidden is no number of the logarithm.
                    out.iter().zip(&dout).filter(|(out, _)| out.is_finite()).map(|(out, dout)| out * dout).sum::<f64>()
                };
                let found = softmax.backward(&softmax.forward(&x, Some(&mask)).unwrap(), &dout).unwrap();
                let step = 1e-5;
                for i in 0..x.len() {
                    let moved = |by: f64| {
                        let mut moved = x.clone();
                        moved[i] += by;
                        value(&moved)
                    };
                    let expected = (moved(step) - moved(-step)) / (2.0 * step);
                    assert!((found[i] - expected).abs() < 1e-8, "{softmax:?} {i}: {} {expected}", found[i]);
                }
            }
        }
    }

    #[test]
    fn slices_of_another_length_are_errors() {
        let found = PLAIN.forward(&[0.0; 7], None).unwrap_err();
        assert!(matches!(found, Error::DataLength { found: 7, expected: 6, .. }), "{found:?}");
        assert!(PLAIN.forward(&[0.0; 6], Some(&[0.0; 3])).is_err() && PLAIN.backward(&[0.0; 6], &[0.0; 5]).is_err());
    }
}
