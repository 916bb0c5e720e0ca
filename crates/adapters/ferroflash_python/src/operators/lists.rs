//! AdamW and the norm of gradients: operators over lists of tensors.

use super::{Caller, Given, Slot};
use crate::errors;
use ferroflash::Operand;
use ferroflash::operators::{AdamW, AdamWTensor, GradientNorm, StepNumber};
use pyo3::prelude::*;

/// The options of a step, as Python says them: rate, betas, epsilon, decay, and the factor of the host on gradients.
type Options = (f64, f64, f64, f64, f64, f64);

/// What a step may read from the device, one number each.
const NUMBERS: [Slot; 3] = [
    Slot::read(Operand::GradientFactor).or_none(),
    Slot::read(Operand::LearningRate).or_none(),
    Slot::numbers(Operand::StepCount).or_none(),
];

/// Takes a step. Each tensor is a parameter, its gradient, its moments and, if there is one, its master; all but gradients are written. `numbers` are on the
/// device: the factor on gradients, the rate, which takes the place of that of the options, and the step, which takes the place of `step`.
#[pyfunction]
#[pyo3(signature = (tensors, numbers, step, stream, device, options, /))]
pub(super) fn adamw(
    py: Python<'_>,
    tensors: Vec<[Given<'_>; 5]>,
    numbers: [Given<'_>; 3],
    step: u64,
    stream: usize,
    device: Option<usize>,
    options: Options,
) -> PyResult<()> {
    let (rate, beta1, beta2, epsilon, decay, scale) = options;
    let Ok(step) = u32::try_from(step) else {
        return Err(errors::of_input(py, format!("step is {step}; numbers below {} are accepted", 1u64 << 32)));
    };
    let slots = (0..tensors.len()).flat_map(|index| {
        [
            Slot::written(Operand::Parameter(index)),
            Slot::read(Operand::ParameterGradient(index)),
            Slot::written(Operand::Moment(index)),
            Slot::written(Operand::SecondMoment(index)),
            Slot::written(Operand::Master(index)).or_none(),
        ]
    });
    let slots = slots.chain(NUMBERS);
    let given = tensors.iter().flatten().chain(&numbers);
    let with_master: Vec<usize> = (0..tensors.len()).filter(|&index| tensors[index][4].is_some()).collect();
    Caller { py, stream, gpu: device }.run(slots, given, |device, stream, operands| {
        let mut adamw = AdamW::new(rate).with_betas(beta1, beta2).with_epsilon(epsilon).with_decay(decay);
        adamw = adamw.with_gradient_scale(scale as f32);
        if let Some(factor) = operands.view(device, Operand::GradientFactor)? {
            adamw = adamw.with_gradient_factor(&factor);
        }
        if let Some(rate) = operands.view(device, Operand::LearningRate)? {
            adamw = adamw.with_device_rate(&rate);
        }
        let number = operands.indices(device, Operand::StepCount)?.map_or(StepNumber::Host(step), StepNumber::Device);
        let parameters = operands.views_mut(device, |operand| matches!(operand, Operand::Parameter(_)))?;
        let gradients = operands.views(device, |operand| matches!(operand, Operand::ParameterGradient(_)))?;
        let moments = operands.views_mut(device, |operand| matches!(operand, Operand::Moment(_)))?;
        let second_moments = operands.views_mut(device, |operand| matches!(operand, Operand::SecondMoment(_)))?;
        let masters = operands.views_mut(device, |operand| matches!(operand, Operand::Master(_)))?;
        let moments = moments.into_iter().zip(second_moments);
        let all = parameters.into_iter().zip(&gradients).zip(moments);
        let all =
            all.map(|((parameter, gradient), (first, second))| AdamWTensor::new(parameter, gradient, first, second));
        let mut list: Vec<AdamWTensor<'_>> = all.collect();
        for (&index, master) in with_master.iter().zip(masters) {
            list[index].master = Some(master);
        }
        adamw.step(stream, number, &mut list)
    })
}

/// Writes the norm of all gradients, and the coefficient that clips them to `most`, into `result`, `f32 [2]`.
#[pyfunction]
#[pyo3(signature = (gradients, result, stream, device, most, scale, /))]
pub(super) fn gradient_norm(
    py: Python<'_>,
    gradients: Vec<Given<'_>>,
    result: Given<'_>,
    stream: usize,
    device: Option<usize>,
    most: Option<f64>,
    scale: f64,
) -> PyResult<()> {
    let slots = (0..gradients.len()).map(|index| Slot::read(Operand::ParameterGradient(index)));
    let slots = slots.chain([Slot::written(Operand::Out)]);
    Caller { py, stream, gpu: device }.run(slots, gradients.iter().chain([&result]), |device, stream, operands| {
        let views = operands.views(device, |operand| matches!(operand, Operand::ParameterGradient(_)))?;
        let norm = GradientNorm::new().with_most(most.map(|most| most as f32)).with_gradient_scale(scale as f32);
        norm.measure(stream, &views, &mut operands.given_mut(device, Operand::Out)?)
    })
}
