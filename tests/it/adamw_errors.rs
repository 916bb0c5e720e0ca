//! What AdamW refuses, each with the error that names it, before anything is launched.

use crate::support::device;
use ferroflash::operators::{AdamW, AdamWTensor, StepNumber};
use ferroflash::{DType, Device, Dims, Error, Indices, Layout, Operand, OperatorError, Tensor, TensorViewMut};

fn tensor(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, Dims::new(shape).expect("few axes"), Layout::RowMajor).expect("a small tensor")
}

/// A parameter, its gradient and moments.
fn four(device: &Device, dtype: DType) -> [Tensor; 4] {
    [dtype, dtype, DType::F32, DType::F32].map(|dtype| tensor(device, dtype, &[4, 3]))
}

fn listed([parameter, gradient, moment, second_moment]: &mut [Tensor; 4]) -> AdamWTensor<'_> {
    AdamWTensor::new(parameter.view_mut(), &gradient.view(), moment.view_mut(), second_moment.view_mut())
}

const FIRST: StepNumber<'static> = StepNumber::Host(1);

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(found: ferroflash::Result<T>, expected: OperatorError, text: &str) {
    let found = found.expect_err("the call should be refused");
    assert_eq!(found.to_string(), text);
    assert!(matches!(&found, Error::Operator(found) if *found == expected), "{found:?}");
}

#[test]
fn options_outside_of_their_range() {
    let device = &device::shared().device;
    let mut held = four(device, DType::F16);
    let list = [listed(&mut held)];
    let adamw = AdamW::new(1e-3);
    let (any, beta) = ("0 or above and finite", "0 or above and below 1");
    for (wrong, name, found, accepted) in [
        (AdamW::new(-1.0), "learning rate", -1.0, any),
        (AdamW::new(f64::INFINITY), "learning rate", f64::INFINITY, any),
        (AdamW::new(1e300), "learning rate", 1e300, any),
        (adamw.with_betas(1.0, 0.9), "beta1", 1.0, beta),
        (adamw.with_betas(0.9, -0.1), "beta2", -0.1, beta),
        (adamw.with_epsilon(-1e-8), "epsilon", -1e-8, any),
        (adamw.with_decay(-0.5), "weight decay", -0.5, any),
    ] {
        let text = format!("{name} {found} is not accepted; it must be {accepted}");
        assert_refused(wrong.plan(FIRST, &list), OperatorError::Hyperparameter { name, found, accepted }, &text);
    }
    assert!(
        AdamW::new(f64::NAN).plan(FIRST, &list).is_err() && adamw.with_betas(f64::NAN, 0.9).plan(FIRST, &list).is_err()
    );
    let found = f32::INFINITY;
    assert_refused(
        adamw.with_gradient_scale(found).plan(FIRST, &list),
        OperatorError::NotFinite { name: "gradient scale", found },
        "gradient scale inf is not accepted; it must be finite",
    );
    assert_refused(
        adamw.plan(StepNumber::Host(0), &list),
        OperatorError::Hyperparameter { name: "step", found: 0.0, accepted: "1 or above" },
        "step 0 is not accepted; it must be 1 or above",
    );
    let two = Indices::from_slice(device, &[1, 2]).unwrap();
    assert_refused(
        adamw.plan(StepNumber::Device(two.view()), &list),
        OperatorError::IndexCount { tensor: Operand::StepCount, found: 2, expected: 1 },
        "the number of the step holds 2 numbers; 1 are needed",
    );
    let half = tensor(device, DType::F16, &[1]);
    assert_refused(
        adamw.with_gradient_factor(&half.view()).plan(FIRST, &list),
        OperatorError::DType { tensor: Operand::GradientFactor, found: DType::F16, accepted: vec![DType::F32] },
        "the factor of the gradients holds f16; f32 is accepted",
    );
    assert_refused(
        adamw.with_device_rate(&half.view()).plan(FIRST, &list),
        OperatorError::DType { tensor: Operand::LearningRate, found: DType::F16, accepted: vec![DType::F32] },
        "the learning rate holds f16; f32 is accepted",
    );
    let two = tensor(device, DType::F32, &[2]);
    let found = adamw.with_gradient_factor(&two.view()).plan(FIRST, &list);
    assert!(matches!(found, Err(Error::Operator(OperatorError::Shape { tensor: Operand::GradientFactor, .. }))));
    let found = adamw.with_device_rate(&two.view()).plan(FIRST, &list);
    assert!(matches!(found, Err(Error::Operator(OperatorError::Shape { tensor: Operand::LearningRate, .. }))));
}

#[test]
fn tensors_that_do_not_go_together() {
    let device = &device::shared().device;
    let adamw = AdamW::new(1e-3);
    let [mut good, mut other] = [four(device, DType::F16), four(device, DType::F16)];
    other[1] = tensor(device, DType::F16, &[3, 4]);
    assert_refused(
        adamw.plan(FIRST, &[listed(&mut good), listed(&mut other)]),
        OperatorError::Shape {
            tensor: Operand::ParameterGradient(1),
            found: vec![3, 4],
            of: Operand::Parameter(1),
            expected: vec![4, 3],
        },
        "the gradient of parameter 1 has shape [3, 4]; parameter 1 makes it [4, 3]",
    );
    let dtype = |tensor, found, accepted| OperatorError::DType { tensor, found, accepted };
    other = four(device, DType::F16);
    other[1] = tensor(device, DType::Bf16, &[4, 3]);
    assert_refused(
        adamw.plan(FIRST, &[listed(&mut other)]),
        dtype(Operand::ParameterGradient(0), DType::Bf16, vec![DType::F16, DType::F32]),
        "the gradient of parameter 0 holds bf16; f16 or f32 is accepted",
    );
    for (place, operand, name) in [(2, Operand::Moment(0), "moment"), (3, Operand::SecondMoment(0), "second moment")] {
        other = four(device, DType::F16);
        other[place] = tensor(device, DType::F16, &[4, 3]);
        let text = format!("the {name} of parameter 0 holds f16; f32 is accepted");
        let expected = dtype(operand, DType::F16, vec![DType::F32]);
        assert_refused(adamw.plan(FIRST, &[listed(&mut other)]), expected, &text);
    }
    let mut master = tensor(device, DType::F32, &[4, 3]);
    let mut wide = four(device, DType::F32);
    assert_refused(
        adamw.plan(FIRST, &[listed(&mut wide).with_master(master.view_mut())]),
        OperatorError::Unwanted { tensor: Operand::Master(0), needed: "parameter of 16 bits" },
        "the master of parameter 0 is given, and the call has no parameter of 16 bits",
    );
    let mut storage = tensor(device, DType::F16, &[100]);
    let [_, gradient, moment, second_moment] = &mut good;
    let apart = storage.strided_mut(0, [4, 3], [4, 1]).unwrap();
    let list = AdamWTensor::new(apart, &gradient.view(), moment.view_mut(), second_moment.view_mut());
    assert_refused(
        adamw.plan(FIRST, &[list]),
        OperatorError::NotContiguous { tensor: Operand::Parameter(0), shape: vec![4, 3], strides: vec![4, 1] },
        "parameter 0 has shape [4, 3] and strides [4, 1]; it must be contiguous",
    );
    let elsewhere = Device::emulator().unwrap();
    let mut far = four(&elsewhere, DType::F16);
    let (there, here) = (elsewhere.info().id(), device.info().id());
    assert_refused(
        adamw.plan(FIRST, &[listed(&mut good), listed(&mut far)]),
        OperatorError::Device {
            tensor: Operand::Parameter(1),
            found: there.clone(),
            of: Operand::ParameterGradient(0),
            expected: here.clone(),
        },
        &format!(
            "parameter 1 is on device {there}, the gradient of parameter 0 is on {here}; they must be on the same device"
        ),
    );
    let found = adamw.step(&elsewhere.default_stream(), FIRST, &mut [listed(&mut good)]).unwrap_err();
    assert!(matches!(&found, Error::DeviceMismatch { what, .. } if what == "the stream"), "{found:?}");
}

#[test]
fn memory_that_is_there_twice() {
    let device = &device::shared().device;
    let adamw = AdamW::new(1e-3);
    let [mut a, mut b] = [four(device, DType::F16), four(device, DType::F16)];
    // SAFETY: the calls are refused before anything is written.
    let over =
        |address: u64, dtype| unsafe { TensorViewMut::from_raw(device, address, 12, [4, 3], [3, 1], dtype).unwrap() };
    // Onto its end, and as a whole.
    for offset in [0, 16] {
        let taken = a[2].address() + offset;
        let [parameter, gradient, moment, _] = &mut b;
        let second =
            AdamWTensor::new(parameter.view_mut(), &gradient.view(), moment.view_mut(), over(taken, DType::F32));
        let found = adamw.plan(FIRST, &[listed(&mut a), second]).unwrap_err();
        let pair = |a, b| [(a, b), (b, a)];
        let Error::OutputOverlaps { output, other } = found else { panic!("{found:?}") };
        assert!(pair(Operand::SecondMoment(1), Operand::Moment(0)).contains(&(output, other)), "{output} {other}");
    }
    // Onto a gradient, which is read alone, so that it is never the output of the two.
    let taken = a[1].address();
    let [_, gradient, moment, second_moment] = &mut b;
    let second =
        AdamWTensor::new(over(taken, DType::F16), &gradient.view(), moment.view_mut(), second_moment.view_mut());
    let found = adamw.plan(FIRST, &[listed(&mut a), second]).unwrap_err();
    let expected = (Operand::Parameter(1), Operand::ParameterGradient(0));
    assert!(matches!(found, Error::OutputOverlaps { output, other } if (output, other) == expected), "{found:?}");
    // Gradients may be shared.
    let shared = tensor(device, DType::F16, &[4, 3]);
    let [parameter, _, moment, second_moment] = &mut a;
    let first = AdamWTensor::new(parameter.view_mut(), &shared.view(), moment.view_mut(), second_moment.view_mut());
    let [parameter, _, moment, second_moment] = &mut b;
    let second = AdamWTensor::new(parameter.view_mut(), &shared.view(), moment.view_mut(), second_moment.view_mut());
    assert!(adamw.plan(FIRST, &[first, second]).is_ok());
}
