//! Cross-entropy of the logits of a dense layer by its definition.

use super::cross_entropy::{ReferenceCrossEntropy, ReferenceCrossEntropyOutput};
use super::dense::{ReferenceDense, ReferenceDenseGradients};
use crate::error::Result;
use kernel_spec::DType;

/// A dense layer whose outputs are logits, and their cross-entropy.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceLinearCrossEntropy<'a> {
    /// The layer; its activation is the identity.
    pub layer: ReferenceDense<'a>,
    /// The loss, of as many classes as the layer has weights.
    pub loss: ReferenceCrossEntropy,
}

impl ReferenceLinearCrossEntropy<'_> {
    /// In `f64`: what [`crate::operators::LinearCrossEntropy::forward`] is checked against.
    ///
    /// # Errors
    /// As [`ReferenceDense::forward`] and [`ReferenceCrossEntropy::forward`].
    pub fn forward(&self, x: &[f64], targets: &[i32]) -> Result<ReferenceCrossEntropyOutput> {
        self.loss.forward(&self.layer.forward(x, None)?.out, targets)
    }

    /// As a straightforward program computes it that keeps its logits as they are: in `f32`.
    ///
    /// # Errors
    /// As [`ReferenceLinearCrossEntropy::forward`].
    pub fn forward_rounded(&self, x: &[f64], targets: &[i32]) -> Result<ReferenceCrossEntropyOutput> {
        self.loss.forward_rounded(&self.layer.forward_rounded(x, None, DType::F32)?.out, targets)
    }

    /// Gradients in `f64` of a number with respect to x, weights and biases, given those with respect to the losses.
    ///
    /// # Errors
    /// As [`ReferenceDense::backward`] and [`ReferenceCrossEntropy::backward`].
    pub fn backward(&self, x: &[f64], targets: &[i32], dloss: &[f64]) -> Result<ReferenceDenseGradients> {
        let logits = self.layer.forward(x, None)?.out;
        self.layer.backward(x, Some(&logits), &self.loss.backward(&logits, targets, dloss)?)
    }

    /// [`ReferenceLinearCrossEntropy::backward`] as a straightforward program computes it: in `f32`, with gradients of logits and results rounded to `dtype`.
    ///
    /// # Errors
    /// As [`ReferenceLinearCrossEntropy::backward`].
    pub fn backward_rounded(
        &self,
        x: &[f64],
        targets: &[i32],
        dloss: &[f64],
        dtype: DType,
    ) -> Result<ReferenceDenseGradients> {
        let logits = self.layer.forward_rounded(x, None, DType::F32)?.out;
        let dlogits = self.loss.backward_rounded(&logits, targets, dloss, dtype)?;
        self.layer.backward_rounded(x, Some(&logits), &dlogits, dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::Activation;
    use crate::reference::max_abs_difference;

    fn wave(n: usize, f: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * f).sin()).collect()
    }

    const LOSS: ReferenceCrossEntropy =
        ReferenceCrossEntropy { classes: 5, scale: 0.5, smoothing: 0.1, z_loss: 1e-2, ignored: Some(-100) };

    fn of<'a>(weight: &'a [f64], bias: &'a [f64]) -> ReferenceLinearCrossEntropy<'a> {
        let layer = ReferenceDense { depth: 4, weight, bias: Some(bias), activation: Activation::Identity };
        ReferenceLinearCrossEntropy { layer, loss: LOSS }
    }

    /// Two classes whose logits are 0 and ln 3, which the bias brings.
    #[test]
    fn a_row_by_hand() {
        let layer = ReferenceDense {
            depth: 1,
            weight: &[2.0, 2.0],
            bias: Some(&[-2.0, 3f64.ln() - 2.0]),
            activation: Activation::Identity,
        };
        let loss = ReferenceCrossEntropy { classes: 2, scale: 1.0, smoothing: 0.0, z_loss: 0.0, ignored: None };
        let of = ReferenceLinearCrossEntropy { layer, loss };
        assert!((of.forward(&[1.0], &[0]).unwrap().loss[0] - 4f64.ln()).abs() < 1e-12);
        let gradients = of.backward(&[1.0], &[0], &[2.0]).unwrap();
        assert!(max_abs_difference(&gradients.dbias, &[-1.5, 1.5]) < 1e-12);
        assert!(max_abs_difference(&gradients.dweight, &[-1.5, 1.5]) < 1e-12 && gradients.dx[0].abs() < 1e-12);
    }

    /// Each gradient is the difference of the weighted losses that a small step makes.
    #[test]
    fn gradients_are_those_of_differences() {
        const STEP: f64 = 1e-6;
        let (x, weight, bias, dloss) = (wave(3 * 4, 0.7), wave(5 * 4, 1.9), wave(5, 0.4), wave(3, 0.9));
        let targets = [4, -100, 1];
        let value = |x: &[f64], weight: &[f64], bias: &[f64]| -> f64 {
            let losses = of(weight, bias).forward(x, &targets).unwrap().loss;
            losses.iter().zip(&dloss).map(|(loss, dloss)| loss * dloss).sum()
        };
        let differences = |data: &[f64], at: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
            let moved = |i: usize, by: f64| {
                let mut data = data.to_vec();
                data[i] += by;
                at(&data)
            };
            (0..data.len()).map(|i| (moved(i, STEP) - moved(i, -STEP)) / (2.0 * STEP)).collect()
        };
        let found = of(&weight, &bias).backward(&x, &targets, &dloss).unwrap();
        let near = |found: &[f64], expected: &[f64]| {
            assert!(max_abs_difference(found, expected) < 1e-7, "{found:?} {expected:?}");
        };
        near(&found.dx, &differences(&x, &|x| value(x, &weight, &bias)));
        near(&found.dweight, &differences(&weight, &|weight| value(&x, weight, &bias)));
        near(&found.dbias, &differences(&bias, &|bias| value(&x, &weight, bias)));
        assert!(found.dx[4..8].iter().all(|&dx| dx == 0.0), "of the ignored row");
    }

    #[test]
    fn rounded_differs_by_the_precision_alone() {
        let (x, weight, bias, dloss) = (wave(3 * 4, 0.7), wave(5 * 4, 1.9), wave(5, 0.4), wave(3, 0.9));
        let (of, targets) = (of(&weight, &bias), [4, -100, 1]);
        let (exact, rounded) = (of.forward(&x, &targets).unwrap(), of.forward_rounded(&x, &targets).unwrap());
        assert!(max_abs_difference(&exact.loss, &rounded.loss) < 1e-6 && exact.loss != rounded.loss);
        let exact = of.backward(&x, &targets, &dloss).unwrap();
        let rounded = of.backward_rounded(&x, &targets, &dloss, DType::Bf16).unwrap();
        let error = max_abs_difference(&exact.dx, &rounded.dx);
        assert!(error > 1e-5 && error < 1e-2, "{error}");
    }

    #[test]
    fn slices_of_another_length_are_errors() {
        let (weight, bias) = (wave(20, 1.9), wave(5, 0.4));
        assert!(of(&weight, &bias).forward(&[0.0; 7], &[0, 0]).is_err());
        assert!(of(&weight, &bias).forward(&[0.0; 8], &[0]).is_err());
        assert!(of(&weight, &bias).backward(&[0.0; 8], &[0, 0], &[0.0]).is_err());
        assert!(of(&weight[..16], &bias[..4]).forward(&[0.0; 8], &[0, 0]).is_err(), "four classes of five");
    }
}
