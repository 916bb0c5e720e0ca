//! RMSNorm and LayerNorm by their definitions.

use super::inputs::round;
use crate::error::{Error, Result};
use kernel_spec::DType;

/// RMSNorm or LayerNorm of rows of `columns` elements.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceNorm<'a> {
    /// Columns of a row.
    pub columns: usize,
    /// Whether the mean is taken off: LayerNorm.
    pub takes_mean_off: bool,
    /// What is added to the variance.
    pub epsilon: f64,
    /// Weights of the columns, as they multiply; 1 where there are none.
    pub weight: Option<&'a [f64]>,
    /// Biases of the columns.
    pub bias: Option<&'a [f64]>,
}

/// What a norm of rows gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceNormOutput {
    /// The output, `[row, column]`.
    pub out: Vec<f64>,
    /// The sum of x and the residual, `[row, column]`.
    pub sum: Vec<f64>,
    /// Means of the rows; zeros without.
    pub mean: Vec<f64>,
    /// Reciprocal deviations of the rows.
    pub rstd: Vec<f64>,
}

/// Gradients of a norm of rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceNormGradients {
    /// With respect to the rows that were normalised, and to each addend of them, `[row, column]`.
    pub dx: Vec<f64>,
    /// With respect to the weights, `[column]`.
    pub dweight: Vec<f64>,
    /// With respect to the biases, `[column]`.
    pub dbias: Vec<f64>,
}

impl ReferenceNorm<'_> {
    /// In `f64`, of `x` and a residual where there is one: what [`crate::operators::Norm::forward`] is checked against.
    ///
    /// # Errors
    /// [`Error::DataLength`] for a slice of another length than the others make it.
    pub fn forward(&self, x: &[f64], residual: Option<&[f64]>) -> Result<ReferenceNormOutput> {
        self.check(x, residual)?;
        let mut result = ReferenceNormOutput::default();
        for (row, x) in x.chunks(self.columns).enumerate() {
            let h: Vec<f64> = match residual {
                Some(residual) => x.iter().zip(&residual[row * self.columns..]).map(|(x, r)| x + r).collect(),
                None => x.to_vec(),
            };
            let count = self.columns as f64;
            let mean = if self.takes_mean_off { h.iter().map(|h| h / count).sum() } else { 0.0 };
            let variance: f64 = h.iter().map(|h| (h - mean) * (h - mean) / count).sum();
            let rstd = 1.0 / (variance + self.epsilon).sqrt();
            for (column, h) in h.iter().enumerate() {
                let weight = self.weight.map_or(1.0, |weight| weight[column]);
                let bias = self.bias.map_or(0.0, |bias| bias[column]);
                result.out.push((h - mean) * rstd * weight + bias);
            }
            result.sum.extend(h);
            result.mean.push(mean);
            result.rstd.push(rstd);
        }
        Ok(result)
    }

    /// As a straightforward program computes it: in `f32`, with the output rounded to `dtype`, the sum to `sum_dtype`.
    ///
    /// # Errors
    /// As [`ReferenceNorm::forward`].
    pub fn forward_rounded(
        &self,
        x: &[f64],
        residual: Option<&[f64]>,
        [dtype, sum_dtype]: [DType; 2],
    ) -> Result<ReferenceNormOutput> {
        self.check(x, residual)?;
        let mut result = ReferenceNormOutput::default();
        for (row, x) in x.chunks(self.columns).enumerate() {
            let added = |column: usize| residual.map_or(0.0, |residual| residual[row * self.columns + column] as f32);
            let h: Vec<f32> = x.iter().enumerate().map(|(column, &x)| x as f32 + added(column)).collect();
            let count = self.columns as f32;
            let mean = if self.takes_mean_off { h.iter().sum::<f32>() / count } else { 0.0 };
            let variance = h.iter().map(|h| (h - mean) * (h - mean)).sum::<f32>() / count;
            let rstd = 1.0 / (variance + self.epsilon as f32).sqrt();
            for (column, h) in h.iter().enumerate() {
                let weight = self.weight.map_or(1.0, |weight| weight[column] as f32);
                let bias = self.bias.map_or(0.0, |bias| bias[column] as f32);
                result.out.push(f64::from(round((h - mean) * rstd * weight + bias, dtype)));
            }
            result.sum.extend(h.iter().map(|&h| f64::from(round(h, sum_dtype))));
            result.mean.push(mean.into());
            result.rstd.push(rstd.into());
        }
        Ok(result)
    }

    /// Gradients in `f64` of a number with respect to the rows `h` that were normalised, to weights and biases, given those with respect to the output,
    /// and to the rows themselves, where the number depends on these in another way too. The statistics are those of `h`.
    ///
    /// # Errors
    /// As [`ReferenceNorm::forward`].
    pub fn backward(&self, h: &[f64], dout: &[f64], dh: Option<&[f64]>) -> Result<ReferenceNormGradients> {
        self.check(h, Some(dout))?;
        self.check(h, dh)?;
        let statistics = self.forward(h, None)?;
        let columns = self.columns;
        let zeros = || vec![0.0; columns];
        let mut result = ReferenceNormGradients { dx: Vec::new(), dweight: zeros(), dbias: zeros() };
        for (row, (h, dout)) in h.chunks(columns).zip(dout.chunks(columns)).enumerate() {
            let (mean, rstd) = (statistics.mean[row], statistics.rstd[row]);
            let normed: Vec<f64> = h.iter().map(|h| (h - mean) * rstd).collect();
            let weight = |column: usize| self.weight.map_or(1.0, |weight| weight[column]);
            let g: Vec<f64> = dout.iter().enumerate().map(|(column, dout)| dout * weight(column)).collect();
            let count = columns as f64;
            let along: f64 = g.iter().zip(&normed).map(|(g, n)| g * n / count).sum();
            let level = if self.takes_mean_off { g.iter().map(|g| g / count).sum() } else { 0.0 };
            for column in 0..columns {
                let upstream = dh.map_or(0.0, |dh| dh[row * columns + column]);
                result.dx.push(rstd * (g[column] - level - normed[column] * along) + upstream);
                result.dweight[column] += dout[column] * normed[column];
                result.dbias[column] += dout[column];
            }
        }
        Ok(result)
    }

    /// [`ReferenceNorm::backward`] as a straightforward program computes it: in `f32`, `dx` rounded to `dtype`, the others to `weight_dtype`.
    ///
    /// # Errors
    /// As [`ReferenceNorm::forward`].
    pub fn backward_rounded(
        &self,
        h: &[f64],
        dout: &[f64],
        dh: Option<&[f64]>,
        [dtype, weight_dtype]: [DType; 2],
    ) -> Result<ReferenceNormGradients> {
        self.check(h, Some(dout))?;
        self.check(h, dh)?;
        let statistics = self.forward_rounded(h, None, [DType::F32; 2])?;
        let columns = self.columns;
        let (mut dweight, mut dbias) = (vec![0.0f32; columns], vec![0.0f32; columns]);
        let mut dx = Vec::new();
        for (row, (h, dout)) in h.chunks(columns).zip(dout.chunks(columns)).enumerate() {
            let (mean, rstd) = (statistics.mean[row] as f32, statistics.rstd[row] as f32);
            let normed: Vec<f32> = h.iter().map(|&h| (h as f32 - mean) * rstd).collect();
            let weight = |column: usize| self.weight.map_or(1.0, |weight| weight[column] as f32);
            let g: Vec<f32> = dout.iter().enumerate().map(|(column, &dout)| dout as f32 * weight(column)).collect();
            let count = columns as f32;
            let along = g.iter().zip(&normed).map(|(g, n)| g * n).sum::<f32>() / count;
            let level = if self.takes_mean_off { g.iter().sum::<f32>() / count } else { 0.0 };
            for column in 0..columns {
                let upstream = dh.map_or(0.0, |dh| dh[row * columns + column] as f32);
                let value = rstd * (g[column] - level - normed[column] * along) + upstream;
                dx.push(f64::from(round(value, dtype)));
                dweight[column] += dout[column] as f32 * normed[column];
                dbias[column] += dout[column] as f32;
            }
        }
        let rounded = |sums: Vec<f32>| sums.into_iter().map(|x| f64::from(round(x, weight_dtype))).collect();
        Ok(ReferenceNormGradients { dx, dweight: rounded(dweight), dbias: rounded(dbias) })
    }

    fn check(&self, x: &[f64], other: Option<&[f64]>) -> Result<()> {
        let columns = self.columns;
        let of_rows = |found: usize, expected: usize| {
            (found != expected).then_some((found, expected, vec![expected / columns.max(1), columns]))
        };
        let of_columns = |found: usize| (found != columns).then_some((found, columns, vec![columns]));
        let whole = x.len() / columns.max(1) * columns;
        let wrong = of_rows(x.len(), whole)
            .or_else(|| of_rows(other?.len(), whole))
            .or_else(|| of_columns(self.weight?.len()))
            .or_else(|| of_columns(self.bias?.len()));
        match wrong {
            Some((found, expected, shape)) => Err(Error::DataLength { shape, expected, found }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::max_abs_difference;

    fn wave(n: usize, f: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * f).sin()).collect()
    }

    fn norm(takes_mean_off: bool) -> ReferenceNorm<'static> {
        ReferenceNorm { columns: 4, takes_mean_off, epsilon: 1e-12, weight: None, bias: None }
    }

    #[test]
    fn rows_by_hand() {
        let rms = norm(false).forward(&[3.0, 4.0, 0.0, 0.0], None).unwrap();
        assert!(max_abs_difference(&rms.out, &[1.2, 1.6, 0.0, 0.0]) < 1e-12 && (rms.rstd[0] - 0.4).abs() < 1e-12);
        let layer = norm(true).forward(&[1.0, 1.0, 3.0, 3.0], Some(&[5.0, 5.0, 5.0, 5.0])).unwrap();
        assert!(max_abs_difference(&layer.out, &[-1.0, -1.0, 1.0, 1.0]) < 1e-11);
        assert_eq!((layer.mean[0], &layer.sum[..]), (7.0, &[6.0, 6.0, 8.0, 8.0][..]));
        let (weight, bias) = ([2.0, 1.0, 1.0, -1.0], [0.0, 10.0, 0.0, 1.0]);
        let weighted = ReferenceNorm { weight: Some(&weight), bias: Some(&bias), ..norm(true) };
        let weighted = weighted.forward(&[1.0, 1.0, 3.0, 3.0], None).unwrap();
        assert!(max_abs_difference(&weighted.out, &[-2.0, 9.0, 1.0, 0.0]) < 1e-11);
    }

    #[test]
    fn rounded_differs_by_the_precision_alone() {
        let (x, residual) = (wave(6 * 4, 0.7), wave(6 * 4, 1.9));
        for takes_mean_off in [false, true] {
            let exact = norm(takes_mean_off).forward(&x, Some(&residual)).unwrap();
            let rounded = norm(takes_mean_off).forward_rounded(&x, Some(&residual), [DType::F32; 2]).unwrap();
            assert!(max_abs_difference(&exact.out, &rounded.out) < 1e-5 && exact.out != rounded.out);
            assert!(max_abs_difference(&exact.rstd, &rounded.rstd) < 1e-5);
            let gradients = norm(takes_mean_off).backward(&x, &residual, None).unwrap();
            let rounded = norm(takes_mean_off).backward_rounded(&x, &residual, None, [DType::F32; 2]).unwrap();
            assert!(max_abs_difference(&gradients.dx, &rounded.dx) < 1e-5 && gradients.dx != rounded.dx);
        }
    }

    /// Every derivative of a weighted sum of the output, and of the sum of the rows themselves, against central differences.
    #[test]
    fn gradients_are_those_of_differences() {
        const COLUMNS: usize = 5;
        let (h, dout, dh) = (wave(3 * COLUMNS, 0.7), wave(3 * COLUMNS, 1.3), wave(3 * COLUMNS, 2.9));
        let (weight, bias) = (wave(COLUMNS, 0.4), wave(COLUMNS, 5.1));
        for takes_mean_off in [false, true] {
            let value = |h: &[f64], weight: &[f64], bias: &[f64]| {
                let norm = ReferenceNorm {
                    columns: COLUMNS,
                    takes_mean_off,
                    epsilon: 1e-3,
                    weight: Some(weight),
                    bias: Some(bias),
                };
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                dot(&norm.forward(h, None).unwrap().out, &dout) + dot(h, &dh)
            };
            let norm = ReferenceNorm {
                columns: COLUMNS,
                takes_mean_off,
                epsilon: 1e-3,
                weight: Some(&weight),
                bias: Some(&bias),
            };
            let found = norm.backward(&h, &dout, Some(&dh)).unwrap();
            let step = 1e-5;
            let differences = |of: &[f64], value: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
                let moved = |i: usize, by: f64| {
                    let mut moved = of.to_vec();
                    moved[i] += by;
                    value(&moved)
                };
                (0..of.len()).map(|i| (moved(i, step) - moved(i, -step)) / (2.0 * step)).collect()
            };
            let by_h = differences(&h, &|h| value(h, &weight, &bias));
            let by_weight = differences(&weight, &|weight| value(&h, weight, &bias));
            let by_bias = differences(&bias, &|bias| value(&h, &weight, bias));
            for (found, expected) in [(&found.dx, by_h), (&found.dweight, by_weight), (&found.dbias, by_bias)] {
                assert!(max_abs_difference(found, &expected) < 1e-8, "{found:?} {expected:?}");
            }
        }
    }

    #[test]
    fn slices_of_another_length_are_errors() {
        let found = norm(false).forward(&[0.0; 7], None).unwrap_err();
        assert!(matches!(found, Error::DataLength { found: 7, expected: 4, .. }), "{found:?}");
        assert!(norm(false).forward(&[0.0; 8], Some(&[0.0; 4])).is_err());
        assert!(ReferenceNorm { weight: Some(&[1.0; 3]), ..norm(false) }.forward(&[0.0; 8], None).is_err());
        assert!(ReferenceNorm { bias: Some(&[1.0; 5]), ..norm(false) }.forward(&[0.0; 8], None).is_err());
    }
}
