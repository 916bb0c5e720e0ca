//! The call, and what it refuses.

use super::super::list::ListPlan;
use super::super::rows::{check_contiguous, check_device, check_dtype, check_shape};
use super::{AdamW, AdamWTensor, StepNumber};
use crate::device::{Device, Stream};
use crate::error::{Error, Operand, OperatorError, Result};
use crate::plan::run;
use crate::tensor::{Dims, TensorView};
use kernel_spec::DType;

/// Where a tensor is, and whether it is written.
struct Taken {
    operand: Operand,
    start: u64,
    end: u64,
    is_written: bool,
}

impl Taken {
    fn of(operand: Operand, view: &TensorView<'_>, is_written: bool) -> Taken {
        let bytes = view.shape().iter().product::<usize>() * view.dtype().bytes();
        Taken { operand, start: view.address(), end: view.address() + bytes as u64, is_written }
    }
}

impl AdamW<'_> {
    /// Takes a step, on `stream`: parameters, moments and masters are overwritten.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::OutputOverlaps`], [`Error::DeviceMismatch`], [`Error::GridTooLarge`], and those of the device.
    pub fn step(&self, stream: &Stream, number: StepNumber<'_>, tensors: &mut [AdamWTensor<'_>]) -> Result<()> {
        let plan = self.plan(number, tensors)?;
        let Some(first) = tensors.first() else { return Ok(()) };
        let device = first.gradient.device();
        device.check_stream(stream)?;
        let mut single: Vec<(Operand, u64)> = Vec::new();
        if let StepNumber::Device(number) = &number {
            single.push((Operand::StepCount, number.address()));
        }
        single.extend(self.device_rate.map(|rate| (Operand::LearningRate, rate.address())));
        single.extend(self.gradient_factor.map(|factor| (Operand::GradientFactor, factor.address())));
        for (step, taken) in plan.steps.iter().zip(&plan.tensors) {
            // Those of the launch alone: a launch looks for each of its addresses.
            let mut operands = single.clone();
            for &index in taken {
                let AdamWTensor { parameter, gradient, moment, second_moment, master } = &tensors[index];
                operands.extend([
                    (Operand::Parameter(index), parameter.view().address()),
                    (Operand::ParameterGradient(index), gradient.address()),
                    (Operand::Moment(index), moment.view().address()),
                    (Operand::SecondMoment(index), second_moment.view().address()),
                ]);
                operands.extend(master.as_ref().map(|master| (Operand::Master(index), master.view().address())));
            }
            run(device, stream.raw(), std::slice::from_ref(step), &[], &operands)?;
        }
        Ok(())
    }

    /// What [`AdamW::step`] would launch, and why.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn plan(&self, number: StepNumber<'_>, tensors: &[AdamWTensor<'_>]) -> Result<ListPlan> {
        self.check_options(&number)?;
        let Some(first) = tensors.first() else { return Ok(ListPlan::nothing("adamw")) };
        let device = first.gradient.device();
        let mut taken = Vec::with_capacity(5 * tensors.len() + 2);
        if let StepNumber::Device(number) = &number {
            check_device(Operand::StepCount, number.device(), Operand::ParameterGradient(0), device)?;
            let found = number.len();
            if found != 1 {
                return Err(OperatorError::IndexCount { tensor: Operand::StepCount, found, expected: 1 }.into());
            }
            let (operand, start) = (Operand::StepCount, number.address());
            taken.push(Taken { operand, start, end: start + size_of::<i32>() as u64, is_written: false });
        }
        let numbers = [(Operand::LearningRate, &self.device_rate), (Operand::GradientFactor, &self.gradient_factor)];
        for (operand, number) in numbers {
            let Some(number) = number else { continue };
            check_device(operand, number.device(), Operand::ParameterGradient(0), device)?;
            check_dtype(operand, number.dtype(), &[DType::F32])?;
            check_shape(operand, number, Operand::StepCount, &Dims::from([1]))?;
            taken.push(Taken::of(operand, number, false));
        }
        for (index, tensor) in tensors.iter().enumerate() {
            check_tensor(index, tensor, device, &mut taken)?;
        }
        check_apart(taken)?;
        self.plan_of(number, tensors, device)
    }

    fn check_options(&self, number: &StepNumber<'_>) -> Result<()> {
        let [beta1, beta2] = self.betas;
        let from_0 = |x: f64| x >= 0.0 && (x as f32).is_finite();
        let below_1 = |x: f64| (0.0..1.0).contains(&x);
        let (any, beta) = ("0 or above and finite", "0 or above and below 1");
        for (name, found, fits, accepted) in [
            ("learning rate", self.rate, from_0(self.rate), any),
            ("beta1", beta1, below_1(beta1), beta),
            ("beta2", beta2, below_1(beta2), beta),
            ("epsilon", self.epsilon, from_0(self.epsilon), any),
            ("weight decay", self.decay, from_0(self.decay), any),
        ] {
            if !fits {
                return Err(OperatorError::Hyperparameter { name, found, accepted }.into());
            }
        }
        if !self.gradient_scale.is_finite() {
            return Err(OperatorError::NotFinite { name: "gradient scale", found: self.gradient_scale }.into());
        }
        match number {
            StepNumber::Host(0) => {
                Err(OperatorError::Hyperparameter { name: "step", found: 0.0, accepted: "1 or above" }.into())
            }
            _ => Ok(()),
        }
    }
}

fn check_tensor(index: usize, tensor: &AdamWTensor<'_>, device: &Device, taken: &mut Vec<Taken>) -> Result<()> {
    let AdamWTensor { parameter, gradient, moment, second_moment, master } = tensor;
    let own = parameter.view();
    let (of, shape, dtype) = (Operand::Parameter(index), own.shape(), own.dtype());
    let (moment, second_moment) = (moment.view(), second_moment.view());
    let master = master.as_ref().map(|master| master.view());
    if master.is_some() && dtype == DType::F32 {
        return Err(OperatorError::Unwanted { tensor: Operand::Master(index), needed: "parameter of 16 bits" }.into());
    }
    let all = [
        (of, Some(own), [dtype; 2], true),
        (Operand::ParameterGradient(index), Some(*gradient), [dtype, DType::F32], false),
        (Operand::Moment(index), Some(moment), [DType::F32; 2], true),
        (Operand::SecondMoment(index), Some(second_moment), [DType::F32; 2], true),
        (Operand::Master(index), master, [DType::F32; 2], true),
    ];
    for (operand, view, accepted, is_written) in all {
        let Some(view) = view else { continue };
        check_device(operand, view.device(), Operand::ParameterGradient(0), device)?;
        check_shape(operand, &view, of, &shape)?;
        check_dtype(operand, view.dtype(), &accepted)?;
        check_contiguous(operand, &view)?;
        taken.push(Taken::of(operand, &view, is_written));
    }
    Ok(())
}

/// That what is written is nothing else of the call. All are runs of bytes: in the order of their starts, each is beside those that it could overlap.
fn check_apart(mut taken: Vec<Taken>) -> Result<()> {
    taken.retain(|taken| taken.start < taken.end);
    taken.sort_unstable_by_key(|taken| taken.start);
    // Those that reach furthest so far, of what is written and of all.
    let (mut written, mut any): (Option<&Taken>, Option<&Taken>) = (None, None);
    for next in &taken {
        let overlapped = if next.is_written { any } else { written }.filter(|before| before.end > next.start);
        if let Some(before) = overlapped {
            let (output, other) = if next.is_written { (next, before) } else { (before, next) };
            return Err(Error::OutputOverlaps { output: output.operand, other: other.operand });
        }
        let further = |reach: Option<&Taken>| reach.is_none_or(|reach| next.end > reach.end);
        if next.is_written && further(written) {
            written = Some(next);
        }
        if further(any) {
            any = Some(next);
        }
    }
    Ok(())
}
