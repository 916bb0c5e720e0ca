//! Dense layers by their definition.

use super::inputs::round;
use crate::error::{Error, Result};
use crate::operators::Activation;
use kernel_spec::DType;

/// A dense layer: `z = x weight^T + bias`, `out = activation(z) + residual`.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceDense<'a> {
    /// Columns of x and of the weights.
    pub depth: usize,
    /// The weights, `[sum, depth]`; of a gated activation, those of the gate first.
    pub weight: &'a [f64],
    /// Biases of the sums.
    pub bias: Option<&'a [f64]>,
    /// What becomes of the sums.
    pub activation: Activation,
}

/// What a dense layer gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceDenseOutput {
    /// The output, `[row, column]`.
    pub out: Vec<f64>,
    /// The sums before the activation, `[row, sum]`.
    pub z: Vec<f64>,
}

impl ReferenceDense<'_> {
    /// In `f64`: what [`crate::operators::Dense::forward`] is checked against.
    ///
    /// # Errors
    /// [`Error::DataLength`] for a slice of another length than the others make it.
    pub fn forward(&self, x: &[f64], residual: Option<&[f64]>) -> Result<ReferenceDenseOutput> {
        let [sums, columns] = self.check(x, residual)?;
        let mut result = ReferenceDenseOutput::default();
        for (row, x) in x.chunks(self.depth).enumerate() {
            let dot = |sum: usize| -> f64 { x.iter().zip(&self.weight[sum * self.depth..]).map(|(x, w)| x * w).sum() };
            let z: Vec<f64> = (0..sums).map(|sum| dot(sum) + self.bias.map_or(0.0, |bias| bias[sum])).collect();
            for column in 0..columns {
                let active = activate(self.activation, z[column]);
                let active = if self.activation.is_gated() { active * z[columns + column] } else { active };
                result.out.push(active + residual.map_or(0.0, |residual| residual[row * columns + column]));
            }
            result.z.extend(z);
        }
        Ok(result)
    }

    /// As a straightforward program computes it: in `f32`, with sums and output rounded to `dtype` where they are stored.
    ///
    /// # Errors
    /// As [`ReferenceDense::forward`].
    pub fn forward_rounded(&self, x: &[f64], residual: Option<&[f64]>, dtype: DType) -> Result<ReferenceDenseOutput> {
        let [sums, columns] = self.check(x, residual)?;
        let mut result = ReferenceDenseOutput::default();
        let stored = |value: f32| f64::from(round(value, dtype));
        for (row, x) in x.chunks(self.depth).enumerate() {
            let z: Vec<f32> = (0..sums)
                .map(|sum| {
                    let weights = &self.weight[sum * self.depth..];
                    let dot = x.iter().zip(weights).fold(0.0f32, |dot, (&x, &w)| dot + x as f32 * w as f32);
                    dot + self.bias.map_or(0.0, |bias| bias[sum] as f32)
                })
                .collect();
            for column in 0..columns {
                let active = activate(self.activation, f64::from(z[column])) as f32;
                let active = if self.activation.is_gated() { active * z[columns + column] } else { active };
                let residual = residual.map_or(0.0, |residual| residual[row * columns + column] as f32);
                result.out.push(stored(active + residual));
            }
            result.z.extend(z.into_iter().map(stored));
        }
        Ok(result)
    }

    /// Sums and columns of the output.
    fn check(&self, x: &[f64], residual: Option<&[f64]>) -> Result<[usize; 2]> {
        let depth = self.depth.max(1);
        let halves = if self.activation.is_gated() { 2 } else { 1 };
        let (rows, sums) = (x.len() / depth, self.weight.len() / depth / halves * halves);
        let columns = sums / halves;
        let wrong = |found: usize, shape: Vec<usize>| {
            let expected = shape.iter().product();
            (found != expected).then_some(Error::DataLength { shape, expected, found })
        };
        let wrong = wrong(x.len(), vec![rows, self.depth])
            .or_else(|| wrong(self.weight.len(), vec![sums, self.depth]))
            .or_else(|| wrong(self.bias?.len(), vec![sums]))
            .or_else(|| wrong(residual?.len(), vec![rows, columns]));
        wrong.map_or(Ok([sums, columns]), Err)
    }
}

/// The activation of a sum: of a gated one, that of the gate.
fn activate(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::Identity => z,
        Activation::Relu => z.max(0.0),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3));
            z * (1.0 + u.tanh()) / 2.0
        }
        Activation::GeluErf => z * (1.0 + erf(z / std::f64::consts::SQRT_2)) / 2.0,
        Activation::Silu | Activation::SwiGlu => z / (1.0 + (-z).exp()),
    }
}

/// The error function, by the series of Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 7.1.6, all of whose terms have one sign.
fn erf(x: f64) -> f64 {
    // From there on it is 1 to the last place.
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > sum.abs() * 1e-18 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::max_abs_difference;

    fn wave(n: usize, f: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * f).sin()).collect()
    }

    /// Tables of the handbook, and its limits.
    #[test]
    fn the_error_function_is_that_of_tables() {
        for (x, expected) in
            [(0.0, 0.0), (0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (2.0, 0.9953222650189527), (9.0, 1.0)]
        {
            assert!((erf(x) - expected).abs() < 1e-15 && (erf(-x) + expected).abs() < 1e-15, "{x}");
        }
    }

    #[test]
    fn layers_by_hand() {
        let weight = [1.0, 0.0, 1.0, 1.0];
        let dense = |activation| ReferenceDense { depth: 2, weight: &weight, bias: Some(&[0.0, -4.0]), activation };
        let run = |activation, residual| dense(activation).forward(&[1.0, 2.0], residual).unwrap();
        let identity = run(Activation::Identity, None);
        assert_eq!((&identity.out[..], &identity.z), (&[1.0, -1.0][..], &identity.out));
        assert_eq!(run(Activation::Relu, Some(&[10.0, 20.0])).out, [11.0, 20.0]);
        let near = |found: &[f64], expected: &[f64]| assert!(max_abs_difference(found, expected) < 1e-6, "{found:?}");
        near(&run(Activation::GeluErf, None).out, &[0.8413447, -0.1586553]);
        near(&run(Activation::GeluTanh, None).out, &[0.8411920, -0.1588080]);
        near(&run(Activation::Silu, None).out, &[0.7310586, -0.2689414]);
        let swiglu = run(Activation::SwiGlu, None);
        near(&swiglu.out, &[-0.7310586]);
        assert_eq!(swiglu.z, [1.0, -1.0]);
    }

    #[test]
    fn rounded_differs_by_the_precision_alone() {
        let (x, weight, residual) = (wave(6 * 4, 0.7), wave(10 * 4, 1.9), wave(60, 0.3));
        for activation in Activation::ALL {
            let dense = ReferenceDense { depth: 4, weight: &weight, bias: None, activation };
            let residual = &residual[..if activation.is_gated() { 30 } else { 60 }];
            let exact = dense.forward(&x, Some(residual)).unwrap();
            let rounded = dense.forward_rounded(&x, Some(residual), DType::F32).unwrap();
            assert!(max_abs_difference(&exact.out, &rounded.out) < 1e-6 && exact.out != rounded.out, "{activation}");
        }
    }

    #[test]
    fn slices_of_another_length_are_errors() {
        let dense = ReferenceDense { depth: 4, weight: &[0.0; 12], bias: None, activation: Activation::Identity };
        let found = dense.forward(&[0.0; 7], None).unwrap_err();
        assert!(matches!(found, Error::DataLength { found: 7, expected: 4, .. }), "{found:?}");
        assert!(dense.forward(&[0.0; 8], Some(&[0.0; 5])).is_err());
        assert!(ReferenceDense { bias: Some(&[1.0; 4]), ..dense }.forward(&[0.0; 8], None).is_err());
        assert!(ReferenceDense { activation: Activation::SwiGlu, ..dense }.forward(&[0.0; 8], None).is_err());
    }
}
