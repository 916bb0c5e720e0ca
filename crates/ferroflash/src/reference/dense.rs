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

/// Gradients of a dense layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceDenseGradients {
    /// With respect to x, `[row, depth]`.
    pub dx: Vec<f64>,
    /// With respect to the weights, `[sum, depth]`.
    pub dweight: Vec<f64>,
    /// With respect to the biases, `[sum]`.
    pub dbias: Vec<f64>,
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

    /// Gradients in `f64`: what [`crate::operators::Dense::backward`] is checked against. `z` are the sums that forward kept, `[row, sum]`; without them they are
    /// computed.
    ///
    /// # Errors
    /// [`Error::DataLength`] for a slice of another length than the others make it.
    pub fn backward(&self, x: &[f64], z: Option<&[f64]>, dout: &[f64]) -> Result<ReferenceDenseGradients> {
        let [sums, columns] = self.check_gradients(x, z, dout)?;
        let depth = self.depth;
        let z = z.map_or_else(|| self.forward(x, None).map(|result| result.z), |z| Ok(z.to_vec()))?;
        let mut result = ReferenceDenseGradients {
            dx: vec![0.0; x.len()],
            dweight: vec![0.0; sums * depth],
            dbias: vec![0.0; sums],
        };
        for (row, x) in x.chunks(depth).enumerate() {
            let (z, dout) = (&z[row * sums..][..sums], &dout[row * columns..][..columns]);
            for (sum, dz) in self.through(z, dout).into_iter().enumerate() {
                let weight = &self.weight[sum * depth..][..depth];
                result.dx[row * depth..].iter_mut().zip(weight).for_each(|(dx, weight)| *dx += dz * weight);
                result.dweight[sum * depth..].iter_mut().zip(x).for_each(|(dweight, x)| *dweight += dz * x);
                result.dbias[sum] += dz;
            }
        }
        Ok(result)
    }

    /// Gradients as a straightforward program computes them: in `f32`, with sums, their gradients and results rounded to `dtype` where they are stored.
    ///
    /// # Errors
    /// As [`ReferenceDense::backward`].
    pub fn backward_rounded(
        &self,
        x: &[f64],
        z: Option<&[f64]>,
        dout: &[f64],
        dtype: DType,
    ) -> Result<ReferenceDenseGradients> {
        let [sums, columns] = self.check_gradients(x, z, dout)?;
        let depth = self.depth;
        let z = z.map_or_else(|| self.forward_rounded(x, None, dtype).map(|result| result.z), |z| Ok(z.to_vec()))?;
        let (mut dx, mut dweight, mut dbias) = (vec![0f32; x.len()], vec![0f32; sums * depth], vec![0f32; sums]);
        for (row, x) in x.chunks(depth).enumerate() {
            let (z, dout) = (&z[row * sums..][..sums], &dout[row * columns..][..columns]);
            for (sum, dz) in self.through(z, dout).into_iter().enumerate() {
                let dz = round(dz as f32, dtype);
                let weight = &self.weight[sum * depth..][..depth];
                dx[row * depth..].iter_mut().zip(weight).for_each(|(dx, &weight)| *dx += dz * weight as f32);
                dweight[sum * depth..].iter_mut().zip(x).for_each(|(dweight, &x)| *dweight += dz * x as f32);
                dbias[sum] += dz;
            }
        }
        let stored = |values: Vec<f32>| values.into_iter().map(|value| f64::from(round(value, dtype))).collect();
        Ok(ReferenceDenseGradients { dx: stored(dx), dweight: stored(dweight), dbias: stored(dbias) })
    }

    /// Gradients of the sums of a row, from those of its output.
    fn through(&self, z: &[f64], dout: &[f64]) -> Vec<f64> {
        let columns = dout.len();
        let of = |sum: usize| {
            if !self.activation.is_gated() {
                dout[sum] * slope(self.activation, z[sum])
            } else if sum < columns {
                dout[sum] * z[columns + sum] * slope(self.activation, z[sum])
            } else {
                dout[sum - columns] * activate(self.activation, z[sum - columns])
            }
        };
        (0..z.len()).map(of).collect()
    }

    /// Sums and columns of the output, of a backward pass.
    fn check_gradients(&self, x: &[f64], z: Option<&[f64]>, dout: &[f64]) -> Result<[usize; 2]> {
        // Of the same shape as a residual.
        let [sums, columns] = self.check(x, Some(dout))?;
        let shape = vec![x.len() / self.depth.max(1), sums];
        let expected = shape.iter().product();
        match z.map(<[f64]>::len).filter(|&found| found != expected) {
            Some(found) => Err(Error::DataLength { shape, expected, found }),
            None => Ok([sums, columns]),
        }
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

/// The slope of the activation at a sum: of a gated one, that of the gate.
fn slope(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::Identity => 1.0,
        Activation::Relu => f64::from(u8::from(z > 0.0)),
        Activation::GeluTanh => {
            let (factor, cube) = ((2.0 / std::f64::consts::PI).sqrt(), 0.044715);
            let tanh = (factor * (z + cube * z.powi(3))).tanh();
            (1.0 + tanh) / 2.0 + z * (1.0 - tanh * tanh) / 2.0 * factor * (1.0 + 3.0 * cube * z * z)
        }
        Activation::GeluErf => {
            let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            (1.0 + erf(z / std::f64::consts::SQRT_2)) / 2.0 + z * density
        }
        Activation::Silu | Activation::SwiGlu => {
            let open = 1.0 / (1.0 + (-z).exp());
            open + z * open * (1.0 - open)
        }
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

    /// Each gradient is the difference of the output that a small step makes, in the direction of `dout`.
    #[test]
    fn gradients_are_those_of_differences() {
        const STEP: f64 = 1e-6;
        let (x, weight, bias, dout) = (wave(3 * 4, 0.7), wave(6 * 4, 1.9), wave(6, 0.4), wave(18, 0.9));
        for activation in Activation::ALL {
            let dout = &dout[..if activation.is_gated() { 9 } else { 18 }];
            let value = |x: &[f64], weight: &[f64], bias: &[f64]| -> f64 {
                let dense = ReferenceDense { depth: 4, weight, bias: Some(bias), activation };
                let out = dense.forward(x, None).unwrap().out;
                out.iter().zip(dout).map(|(out, dout)| out * dout).sum()
            };
            let differences = |data: &[f64], at: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
                let moved = |i: usize, by: f64| {
                    let mut data = data.to_vec();
                    data[i] += by;
                    at(&data)
                };
                (0..data.len()).map(|i| (moved(i, STEP) - moved(i, -STEP)) / (2.0 * STEP)).collect()
            };
            let dense = ReferenceDense { depth: 4, weight: &weight, bias: Some(&bias), activation };
            let found = dense.backward(&x, None, dout).unwrap();
            let near = |found: &[f64], expected: &[f64]| {
                assert!(max_abs_difference(found, expected) < 1e-7, "{activation}: {found:?} {expected:?}");
            };
            near(&found.dx, &differences(&x, &|x| value(x, &weight, &bias)));
            near(&found.dweight, &differences(&weight, &|weight| value(&x, weight, &bias)));
            near(&found.dbias, &differences(&bias, &|bias| value(&x, &weight, bias)));
            let rounded = dense.backward_rounded(&x, None, dout, DType::F32).unwrap();
            assert!(max_abs_difference(&found.dx, &rounded.dx) < 1e-5 && found.dx != rounded.dx, "{activation}");
        }
    }

    #[test]
    fn slices_of_another_length_are_errors() {
        let dense = ReferenceDense { depth: 4, weight: &[0.0; 12], bias: None, activation: Activation::Identity };
        let found = dense.forward(&[0.0; 7], None).unwrap_err();
        assert!(matches!(found, Error::DataLength { found: 7, expected: 4, .. }), "{found:?}");
        assert!(dense.forward(&[0.0; 8], Some(&[0.0; 5])).is_err());
        assert!(
            dense.backward(&[0.0; 8], None, &[0.0; 5]).is_err() && dense.backward(&[0.0; 8], None, &[0.0; 6]).is_ok()
        );
        assert!(dense.backward_rounded(&[0.0; 8], Some(&[0.0; 5]), &[0.0; 6], DType::F16).is_err());
        assert!(ReferenceDense { bias: Some(&[1.0; 4]), ..dense }.forward(&[0.0; 8], None).is_err());
        assert!(ReferenceDense { activation: Activation::SwiGlu, ..dense }.forward(&[0.0; 8], None).is_err());
    }
}
