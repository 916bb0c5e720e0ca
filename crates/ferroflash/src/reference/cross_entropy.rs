//! Cross-entropy of rows of logits by its definition.

use super::inputs::round;
use crate::error::{Error, Result};
use kernel_spec::DType;

/// Cross-entropy of rows of `classes` logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReferenceCrossEntropy {
    /// Logits of a row.
    pub classes: usize,
    /// The factor on logits.
    pub scale: f64,
    /// The share of a target that all classes have alike.
    pub smoothing: f64,
    /// The factor on squares of log-sum-exps.
    pub z_loss: f64,
    /// A target whose rows count for nothing.
    pub ignored: Option<i32>,
}

/// What the cross-entropy of rows gives, a number a row each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceCrossEntropyOutput {
    /// Losses, with the part that is of the log-sum-exps. NaN for a target that is no class.
    pub loss: Vec<f64>,
    /// Log-sum-exps of the scaled logits.
    pub lse: Vec<f64>,
    /// The part of the losses that is of the log-sum-exps.
    pub z_losses: Vec<f64>,
}

impl ReferenceCrossEntropy {
    /// In `f64`: what [`crate::operators::CrossEntropy::forward`] is checked against.
    ///
    /// # Errors
    /// [`Error::DataLength`] for logits that are no whole rows, or targets that are not one a row.
    pub fn forward(&self, logits: &[f64], targets: &[i32]) -> Result<ReferenceCrossEntropyOutput> {
        self.check(logits, targets.len())?;
        let mut result = ReferenceCrossEntropyOutput::default();
        for (logits, &target) in logits.chunks(self.classes).zip(targets) {
            let y: Vec<f64> = logits.iter().map(|logit| self.scale * logit).collect();
            let max = y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = y.iter().map(|y| (y - max).exp()).sum::<f64>().ln();
            let lse = max + log_sum;
            let z_loss = if self.z_loss > 0.0 { self.z_loss * lse * lse } else { 0.0 };
            let mean = y.iter().map(|y| y / self.classes as f64).sum::<f64>();
            let level = if self.smoothing > 0.0 { self.smoothing * (lse - mean) } else { 0.0 };
            let loss = self.class(target).map(|class| (1.0 - self.smoothing) * (lse - y[class]) + level + z_loss);
            let is_ignored = self.ignored == Some(target);
            result.loss.push(if is_ignored { 0.0 } else { loss.unwrap_or(f64::NAN) });
            result.lse.push(lse);
            result.z_losses.push(if is_ignored { 0.0 } else { z_loss });
        }
        Ok(result)
    }

    /// As a straightforward program computes it: in `f32`.
    ///
    /// # Errors
    /// As [`ReferenceCrossEntropy::forward`].
    pub fn forward_rounded(&self, logits: &[f64], targets: &[i32]) -> Result<ReferenceCrossEntropyOutput> {
        self.check(logits, targets.len())?;
        let [scale, smoothing, factor] = [self.scale, self.smoothing, self.z_loss].map(|x| x as f32);
        let mut result = ReferenceCrossEntropyOutput::default();
        for (logits, &target) in logits.chunks(self.classes).zip(targets) {
            let y: Vec<f32> = logits.iter().map(|&logit| scale * logit as f32).collect();
            let lse = lse_of(&y);
            let z_loss = if factor > 0.0 { factor * lse * lse } else { 0.0 };
            let mean = y.iter().sum::<f32>() / self.classes as f32;
            let level = if smoothing > 0.0 { smoothing * (lse - mean) } else { 0.0 };
            let loss = self.class(target).map(|class| (1.0 - smoothing) * (lse - y[class]) + level + z_loss);
            let is_ignored = self.ignored == Some(target);
            result.loss.push(if is_ignored { 0.0 } else { f64::from(loss.unwrap_or(f32::NAN)) });
            result.lse.push(lse.into());
            result.z_losses.push(if is_ignored { 0.0 } else { z_loss.into() });
        }
        Ok(result)
    }

    /// The gradient in `f64` of a number with respect to the logits, given those with respect to the losses.
    ///
    /// # Errors
    /// As [`ReferenceCrossEntropy::forward`], and for `dloss` as for targets.
    pub fn backward(&self, logits: &[f64], targets: &[i32], dloss: &[f64]) -> Result<Vec<f64>> {
        self.check(logits, dloss.len())?;
        let lse = self.forward(logits, targets)?.lse;
        let mut dlogits = Vec::with_capacity(logits.len());
        for (row, logits) in logits.chunks(self.classes).enumerate() {
            let factor = self.scale * dloss[row];
            for (class, logit) in logits.iter().enumerate() {
                let p = (self.scale * logit - lse[row]).exp();
                let slope = if self.z_loss > 0.0 { 1.0 + 2.0 * self.z_loss * lse[row] } else { 1.0 };
                let of_all = self.smoothing / self.classes as f64;
                let value = match self.class(targets[row]) {
                    _ if self.ignored == Some(targets[row]) => 0.0,
                    None => f64::NAN,
                    Some(target) => {
                        let of_target = if class == target { 1.0 - self.smoothing } else { 0.0 };
                        factor * (p * slope - of_all - of_target)
                    }
                };
                dlogits.push(value);
            }
        }
        Ok(dlogits)
    }

    /// [`ReferenceCrossEntropy::backward`] as a straightforward program computes it: in `f32`, rounded to `dtype`.
    ///
    /// # Errors
    /// As [`ReferenceCrossEntropy::backward`].
    pub fn backward_rounded(&self, logits: &[f64], targets: &[i32], dloss: &[f64], dtype: DType) -> Result<Vec<f64>> {
        self.check(logits, dloss.len())?;
        self.check(logits, targets.len())?;
        let [scale, smoothing, z_loss] = [self.scale, self.smoothing, self.z_loss].map(|x| x as f32);
        let mut dlogits = Vec::with_capacity(logits.len());
        for (row, logits) in logits.chunks(self.classes).enumerate() {
            let y: Vec<f32> = logits.iter().map(|&logit| scale * logit as f32).collect();
            let lse = lse_of(&y);
            let factor = scale * dloss[row] as f32;
            let slope = if z_loss > 0.0 { 1.0 + 2.0 * z_loss * lse } else { 1.0 };
            for (class, y) in y.iter().enumerate() {
                let value = match self.class(targets[row]) {
                    _ if self.ignored == Some(targets[row]) => 0.0,
                    None => f32::NAN,
                    Some(target) => {
                        let of_target = if class == target { 1.0 - smoothing } else { 0.0 };
                        factor * ((y - lse).exp() * slope - smoothing / self.classes as f32 - of_target)
                    }
                };
                dlogits.push(f64::from(round(value, dtype)));
            }
        }
        Ok(dlogits)
    }

    /// The class that a target is, if it is one.
    fn class(&self, target: i32) -> Option<usize> {
        usize::try_from(target).ok().filter(|&class| class < self.classes)
    }

    fn check(&self, logits: &[f64], rows: usize) -> Result<()> {
        let expected = rows * self.classes;
        if logits.len() == expected {
            return Ok(());
        }
        Err(Error::DataLength { shape: vec![rows, self.classes], expected, found: logits.len() })
    }
}

fn lse_of(y: &[f32]) -> f32 {
    let max = y.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    max + y.iter().map(|y| (y - max).exp()).sum::<f32>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::max_abs_difference;

    const PLAIN: ReferenceCrossEntropy =
        ReferenceCrossEntropy { classes: 4, scale: 1.0, smoothing: 0.0, z_loss: 0.0, ignored: None };
    const ALL: ReferenceCrossEntropy =
        ReferenceCrossEntropy { scale: 0.5, smoothing: 0.1, z_loss: 1e-2, ignored: Some(-100), ..PLAIN };

    fn wave(n: usize, f: f64) -> Vec<f64> {
        (0..n).map(|i| 2.0 * (i as f64 * f).sin()).collect()
    }

    #[test]
    fn rows_by_hand() {
        let ln = f64::ln;
        // Probabilities 0.1, 0.2, 0.3 and 0.4, and those of the square roots.
        let logits = [ln(1.0), ln(2.0), ln(3.0), ln(4.0)];
        let found = PLAIN.forward(&logits, &[2]).unwrap();
        assert!((found.loss[0] + ln(0.3)).abs() < 1e-12 && (found.lse[0] - ln(10.0)).abs() < 1e-12);
        assert_eq!(found.z_losses, [0.0]);
        let smooth = ReferenceCrossEntropy { smoothing: 0.2, ..PLAIN }.forward(&logits, &[2]).unwrap();
        let expected = -0.8 * ln(0.3) - 0.05 * [0.1, 0.2, 0.3, 0.4].map(ln).iter().sum::<f64>();
        assert!((smooth.loss[0] - expected).abs() < 1e-12);
        let z = ReferenceCrossEntropy { z_loss: 0.5, ..PLAIN }.forward(&logits, &[0]).unwrap();
        assert!((z.loss[0] - ln(10.0) - 0.5 * ln(10.0) * ln(10.0)).abs() < 1e-12);
        assert!((z.z_losses[0] - 0.5 * ln(10.0) * ln(10.0)).abs() < 1e-12);
        let none = ALL.forward(&logits, &[-100]).unwrap();
        assert_eq!((none.loss[0], none.z_losses[0]), (0.0, 0.0));
        assert_eq!(ALL.backward(&logits, &[-100], &[1.0]).unwrap(), [0.0; 4]);
        for target in [-1, 4, i32::MAX] {
            assert!(ALL.forward(&logits, &[target]).unwrap().loss[0].is_nan());
            assert!(ALL.backward(&logits, &[target], &[1.0]).unwrap().iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn rounded_differs_by_the_precision_alone() {
        let (logits, dloss, targets) = (wave(40, 0.7), wave(10, 1.3), [0, 1, 2, 3, -100, 3, 2, 1, 0, 2]);
        let (exact, rounded) =
            (ALL.forward(&logits, &targets).unwrap(), ALL.forward_rounded(&logits, &targets).unwrap());
        assert!(max_abs_difference(&exact.loss, &rounded.loss) < 1e-5 && exact.loss != rounded.loss);
        assert!(max_abs_difference(&exact.lse, &rounded.lse) < 1e-5);
        assert!(max_abs_difference(&exact.z_losses, &rounded.z_losses) < 1e-5);
        let exact = ALL.backward(&logits, &targets, &dloss).unwrap();
        let rounded = ALL.backward_rounded(&logits, &targets, &dloss, DType::F32).unwrap();
        assert!(max_abs_difference(&exact, &rounded) < 1e-5 && exact != rounded);
    }

    /// Every derivative of a weighted sum of the losses against central differences.
    #[test]
    fn gradients_are_those_of_differences() {
        let (logits, dloss, targets) = (wave(16, 0.7), wave(4, 1.3), [3, -100, 0, 1]);
        for cross_entropy in [PLAIN, ALL] {
            let of = ReferenceCrossEntropy { ignored: Some(-100), ..cross_entropy };
            let value = |logits: &[f64]| {
                of.forward(logits, &targets).unwrap().loss.iter().zip(&dloss).map(|(a, b)| a * b).sum::<f64>()
            };
            let found = of.backward(&logits, &targets, &dloss).unwrap();
            let step = 1e-5;
            for i in 0..logits.len() {
                let moved = |by: f64| {
                    let mut moved = logits.clone();
                    moved[i] += by;
                    value(&moved)
                };
                let expected = (moved(step) - moved(-step)) / (2.0 * step);
                assert!((found[i] - expected).abs() < 1e-8, "{of:?} {i}: {} {expected}", found[i]);
            }
        }
    }

    #[test]
    fn slices_of_another_length_are_errors() {
        let found = PLAIN.forward(&[0.0; 7], &[0, 0]).unwrap_err();
        assert!(matches!(found, Error::DataLength { found: 7, expected: 8, .. }), "{found:?}");
        assert!(PLAIN.backward(&[0.0; 8], &[0, 0], &[0.0]).is_err());
        assert!(PLAIN.backward_rounded(&[0.0; 8], &[0], &[0.0, 0.0], DType::F32).is_err());
    }
}
