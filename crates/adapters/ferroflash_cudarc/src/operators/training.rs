//! Steps of training, on lists of slices.

use super::tensors::{Tensors, operate};
use crate::Result;
use cudarc::driver::CudaStream;
use ferroflash::Operand;
use ferroflash::operators::{AdamW, AdamWTensor, GradientNorm, StepNumber};

/// A step of AdamW over a list: see [`AdamW::step`]. `number` is that of the step, from 1 on, where `StepCount` is not given.
///
/// Writes `Parameter(i)`, `Moment(i)` and `SecondMoment(i)`, and optionally `Master(i)`, and reads `ParameterGradient(i)`, all of each `i` from 0 on;
/// reads optionally `GradientFactor`, `LearningRate`, which takes the place of that of the options, and `StepCount` as a number.
///
/// # Errors
/// As [`norm`](super::norm()).
pub fn adamw(stream: &CudaStream, adamw: AdamW<'static>, number: u32, tensors: Tensors<'_>) -> Result<()> {
    // Where one has more, the other misses some, which is an error below.
    let parameters = tensors.count(|operand| matches!(operand, Operand::Parameter(_)));
    let count = parameters.max(tensors.count(|operand| matches!(operand, Operand::ParameterGradient(_))));
    let of_each = |i| {
        use Operand::{Master, Moment, Parameter, ParameterGradient, SecondMoment};
        [Parameter(i), ParameterGradient(i), Moment(i), SecondMoment(i), Master(i)]
    };
    let of_all = [Operand::GradientFactor, Operand::LearningRate, Operand::StepCount];
    let known: Vec<_> = (0..count).flat_map(of_each).chain(of_all).collect();
    operate(stream, &known, tensors, |stream, views| {
        let mut list = Vec::with_capacity(count);
        for i in 0..count {
            let parameter = views.out(Operand::Parameter(i))?;
            let gradient = views.tensor(Operand::ParameterGradient(i))?;
            let (moment, second) = (views.out(Operand::Moment(i))?, views.out(Operand::SecondMoment(i))?);
            let mut tensor = AdamWTensor::new(parameter, &gradient, moment, second);
            tensor.master = views.find_out(Operand::Master(i));
            list.push(tensor);
        }
        let factor = views.find(Operand::GradientFactor);
        let adamw = factor.map_or(adamw, |factor| adamw.with_gradient_factor(&factor));
        let rate = views.find(Operand::LearningRate);
        let adamw = rate.map_or(adamw, |rate| adamw.with_device_rate(&rate));
        let number = views.find_numbers(Operand::StepCount).map_or(StepNumber::Host(number), StepNumber::Device);
        Ok(adamw.step(stream, number, &mut list)?)
    })
}

/// The norm of a list of gradients, and the coefficient of clipping: see [`GradientNorm::measure`].
///
/// Reads `ParameterGradient(i)` of each `i` from 0 on; writes `Out`, `f32 [2]`.
///
/// # Errors
/// As [`norm`](super::norm()).
pub fn gradient_norm(stream: &CudaStream, norm: GradientNorm, tensors: Tensors<'_>) -> Result<()> {
    let count = tensors.count(|operand| matches!(operand, Operand::ParameterGradient(_)));
    let known: Vec<_> = (0..count).map(Operand::ParameterGradient).chain([Operand::Out]).collect();
    operate(stream, &known, tensors, |stream, views| {
        let list = (0..count).map(|i| views.tensor(Operand::ParameterGradient(i))).collect::<Result<Vec<_>>>()?;
        Ok(norm.measure(stream, &list, &mut views.out(Operand::Out)?)?)
    })
}
