//! AdamW by its definition.

use super::inputs::round;
use crate::error::{Error, Result};
use kernel_spec::DType;

/// A step of AdamW.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceAdamW {
    /// The learning rate.
    pub rate: f64,
    /// What is left of the moments after a step.
    pub betas: [f64; 2],
    /// Is added to the root of the second moment.
    pub epsilon: f64,
    /// The weight decay.
    pub decay: f64,
    /// Is multiplied with gradients.
    pub gradient_scale: f64,
    /// Which step it is, from 1 on.
    pub step: u32,
}

/// Parameters and what a step keeps of them, an element each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceAdamWState {
    /// Parameters.
    pub weight: Vec<f64>,
    /// First moments.
    pub moment: Vec<f64>,
    /// Second moments.
    pub second_moment: Vec<f64>,
}

impl ReferenceAdamW {
    /// In `f64`, what follows a state: what [`crate::operators::AdamW::step`] is checked against.
    ///
    /// # Errors
    /// [`Error::DataLength`] for a slice of another length than the parameters.
    pub fn step(&self, state: &ReferenceAdamWState, gradient: &[f64]) -> Result<ReferenceAdamWState> {
        check(state, gradient)?;
        let [beta1, beta2] = self.betas;
        let [correction1, correction2] = self.betas.map(|beta| 1.0 - beta.powf(self.step.into()));
        let mut next = ReferenceAdamWState::default();
        for (i, gradient) in gradient.iter().enumerate() {
            let g = self.gradient_scale * gradient;
            let m = beta1 * state.moment[i] + (1.0 - beta1) * g;
            let v = beta2 * state.second_moment[i] + (1.0 - beta2) * g * g;
            let direction = (m / correction1) / ((v / correction2).sqrt() + self.epsilon);
            next.weight.push(state.weight[i] - self.rate * self.decay * state.weight[i] - self.rate * direction);
            next.moment.push(m);
            next.second_moment.push(v);
        }
        Ok(next)
    }

    /// As a straightforward program computes it: in `f32`, parameters rounded to `dtype`.
    ///
    /// # Errors
    /// As [`ReferenceAdamW::step`].
    pub fn step_rounded(
        &self,
        state: &ReferenceAdamWState,
        gradient: &[f64],
        dtype: DType,
    ) -> Result<ReferenceAdamWState> {
        check(state, gradient)?;
        let [beta1, beta2] = self.betas.map(|beta| beta as f32);
        let [rest1, rest2] = self.betas.map(|beta| (1.0 - beta) as f32);
        let [correction1, correction2] = self.betas.map(|beta| (1.0 - beta.powf(self.step.into())) as f32);
        let [rate, decay, epsilon] = [self.rate, self.decay, self.epsilon].map(|x| x as f32);
        let mut next = ReferenceAdamWState::default();
        for (i, &gradient) in gradient.iter().enumerate() {
            let g = self.gradient_scale as f32 * gradient as f32;
            let m = beta1 * state.moment[i] as f32 + rest1 * g;
            let v = beta2 * state.second_moment[i] as f32 + rest2 * g * g;
            let weight = state.weight[i] as f32;
            let weight = weight - rate * decay * weight;
            let weight = weight - rate / correction1 * m / (v.sqrt() / correction2.sqrt() + epsilon);
            next.weight.push(round(weight, dtype).into());
            next.moment.push(m.into());
            next.second_moment.push(v.into());
        }
        Ok(next)
    }
}

fn check(state: &ReferenceAdamWState, gradient: &[f64]) -> Result<()> {
    let expected = state.weight.len();
    for found in [state.moment.len(), state.second_moment.len(), gradient.len()] {
        if found != expected {
            return Err(Error::DataLength { shape: vec![expected], expected, found });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::max_abs_difference;

    const ADAMW: ReferenceAdamW =
        ReferenceAdamW { rate: 0.1, betas: [0.9, 0.999], epsilon: 0.0, decay: 0.5, gradient_scale: 2.0, step: 1 };

    fn state(weight: &[f64]) -> ReferenceAdamWState {
        let zeros = vec![0.0; weight.len()];
        ReferenceAdamWState { weight: weight.to_vec(), moment: zeros.clone(), second_moment: zeros }
    }

    #[test]
    fn steps_by_hand() {
        // The first step is the learning rate in the direction of the gradient, beside the decay.
        let first = ADAMW.step(&state(&[1.0, -2.0]), &[0.25, -4.0]).unwrap();
        assert!(max_abs_difference(&first.weight, &[0.95 - 0.1, -1.9 + 0.1]) < 1e-12, "{first:?}");
        assert!(max_abs_difference(&first.moment, &[0.05, -0.8]) < 1e-12);
        assert!(max_abs_difference(&first.second_moment, &[0.00025, 0.064]) < 1e-12);
        // The second with the same gradient is the same again, as the corrections make it.
        let second = ReferenceAdamW { step: 2, decay: 0.0, ..ADAMW }.step(&first, &[0.25, -4.0]).unwrap();
        assert!(max_abs_difference(&second.weight, &[0.75, -1.7]) < 1e-12, "{second:?}");
    }

    /// The least of a parabola is found.
    #[test]
    fn a_parabola_is_descended() {
        let mut at = state(&[3.0]);
        for step in 1..=400 {
            let gradient = [2.0 * (at.weight[0] - 1.0)];
            let adamw = ReferenceAdamW { decay: 0.0, epsilon: 1e-8, step, rate: 0.5 / f64::from(step).sqrt(), ..ADAMW };
            let rounded = adamw.step_rounded(&at, &gradient, DType::F32).unwrap();
            at = adamw.step(&at, &gradient).unwrap();
            assert!(max_abs_difference(&at.weight, &rounded.weight) < 1e-5);
        }
        assert!((at.weight[0] - 1.0).abs() < 1e-2, "{at:?}");
    }

    #[test]
    fn slices_of_another_length_are_errors() {
        let found = ADAMW.step(&state(&[1.0, 2.0]), &[0.0; 3]).unwrap_err();
        assert!(matches!(found, Error::DataLength { found: 3, expected: 2, .. }), "{found:?}");
        let short = ReferenceAdamWState { moment: vec![0.0], ..state(&[1.0, 2.0]) };
        assert!(ADAMW.step_rounded(&short, &[0.0; 2], DType::F32).is_err());
    }
}
