//! What cross-entropy refuses, each with the error that names it, before anything is launched.

use crate::softmax_errors::assert_operator_error;
use crate::support::device;
use ferroflash::operators::{CrossEntropy, CrossEntropyOutputViewMut, CrossEntropySaved};
use ferroflash::{
    DType, Device, Dims, Error, Indices, Layout, Operand, OperatorError, Tensor, TensorView, TensorViewMut,
};

fn tensor(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let shape = Dims::new(shape).expect("few axes");
    Tensor::zeros(device, dtype, shape, Layout::RowMajor).expect("a small tensor")
}

#[test]
fn options_that_mean_nothing() {
    let device = &device::shared().device;
    let logits = tensor(device, DType::F16, &[3, 16]);
    let targets = Indices::from_slice(device, &[0; 3]).unwrap();
    let run = |of: CrossEntropy| of.forward(&logits.view(), &targets.view());
    for found in [0.0, -1.0, f32::INFINITY, 3e38] {
        let text = format!(
            "logit scale {found} is not accepted; it must be above 0, and finite also after multiplication with log2(e), in f32"
        );
        assert_operator_error(run(CrossEntropy::new().with_scale(found)), OperatorError::LogitScale { found }, &text);
    }
    for found in [-0.1, 1.5] {
        let text = format!("label smoothing {found} is not accepted; 0 to 1 is");
        assert_operator_error(
            run(CrossEntropy::new().with_smoothing(found)),
            OperatorError::Smoothing { found },
            &text,
        );
    }
    for found in [-1e-4, f32::INFINITY] {
        let text = format!("z-loss factor {found} is not accepted; it must be 0 or above, and finite");
        assert_operator_error(run(CrossEntropy::new().with_z_loss(found)), OperatorError::ZLoss { found }, &text);
    }
    for of in [
        CrossEntropy::new().with_scale(f32::NAN),
        CrossEntropy::new().with_smoothing(f32::NAN),
        CrossEntropy::new().with_z_loss(f32::NAN),
    ] {
        assert!(matches!(run(of), Err(Error::Operator(_))), "{of:?}");
        let lse = tensor(device, DType::F32, &[3]);
        let saved = CrossEntropySaved::new(&logits.view(), &targets.view(), &lse.view());
        assert!(matches!(of.plan_backward(&saved, &lse.view()), Err(Error::Operator(_))), "{of:?}");
    }
}

#[test]
fn shapes_and_types_that_do_not_go_together() {
    let device = &device::shared().device;
    let of = CrossEntropy::new();
    let stream = device.default_stream();
    let six = Indices::from_slice(device, &[0; 6]).unwrap();
    assert_operator_error(
        of.forward(&tensor(device, DType::F32, &[]).view(), &six.view()),
        OperatorError::NoColumns { tensor: Operand::Logits },
        "logits has no axes; at least the one of the columns is needed",
    );
    let logits = tensor(device, DType::F16, &[2, 3, 16]);
    let five = Indices::from_slice(device, &[0; 5]).unwrap();
    assert_operator_error(
        of.forward(&logits.view(), &five.view()),
        OperatorError::Count { tensor: Operand::Targets, found: 5, of: Operand::Logits, expected: 6 },
        "targets are 5; logits has 6 rows, and needs one for each",
    );
    let mut loss = tensor(device, DType::F32, &[6]);
    assert_operator_error(
        of.forward_into(&stream, &logits.view(), &six.view(), &mut CrossEntropyOutputViewMut::new(loss.view_mut())),
        OperatorError::Shape { tensor: Operand::Loss, found: vec![6], of: Operand::Logits, expected: vec![2, 3] },
        "loss has shape [6]; logits makes it [2, 3]",
    );
    let mut loss = tensor(device, DType::F16, &[2, 3]);
    assert_operator_error(
        of.forward_into(&stream, &logits.view(), &six.view(), &mut CrossEntropyOutputViewMut::new(loss.view_mut())),
        OperatorError::DType { tensor: Operand::Loss, found: DType::F16, accepted: vec![DType::F32] },
        "loss holds f16; f32 is accepted",
    );
    let [lse, dloss] = [&[2, 3][..], &[3, 2]].map(|shape| tensor(device, DType::F32, shape));
    let saved = CrossEntropySaved::new(&logits.view(), &six.view(), &lse.view());
    assert_operator_error(
        of.backward(&saved, &dloss.view()),
        OperatorError::Shape { tensor: Operand::Dloss, found: vec![3, 2], of: Operand::Logits, expected: vec![2, 3] },
        "dloss has shape [3, 2]; logits makes it [2, 3]",
    );
    let apart = dloss.strided(0, [2, 3], [1, 2]).unwrap();
    assert_operator_error(
        of.backward(&saved, &apart),
        OperatorError::NotContiguous { tensor: Operand::Dloss, shape: vec![2, 3], strides: vec![1, 2] },
        "dloss has shape [2, 3] and strides [1, 2]; it must be contiguous",
    );
    let mut dlogits = tensor(device, DType::Bf16, &[2, 3, 16]);
    assert_operator_error(
        of.backward_into(&stream, &saved, &lse.view(), &mut dlogits.view_mut()),
        OperatorError::DType { tensor: Operand::Dlogits, found: DType::Bf16, accepted: vec![DType::F16] },
        "dlogits holds bf16; f16 is accepted",
    );
}

/// Gradients may be written over the logits, element for element, and over nothing else.
#[test]
fn memory_of_gradients() {
    let device = &device::shared().device;
    let of = CrossEntropy::new();
    let stream = device.default_stream();
    let storage = tensor(device, DType::F32, &[2000]);
    let targets = Indices::from_slice(device, &[0; 3]).unwrap();
    let [lse, dloss] = [0, 1].map(|_| tensor(device, DType::F32, &[3]));
    let logits = storage.strided(0, [3, 16], [16, 1]).unwrap();
    let run = |logits: &TensorView<'_>, lse: &TensorView<'_>, ahead: u64, strides: [usize; 2]| {
        // SAFETY: nothing else uses the storage.
        let mut over = unsafe {
            let address = storage.address() + ahead;
            TensorViewMut::from_raw(device, address, 1000, [3, 16], strides, DType::F32).unwrap()
        };
        of.backward_into(&stream, &CrossEntropySaved::new(logits, &targets.view(), lse), &dloss.view(), &mut over)
    };
    run(&logits, &lse.view(), 0, [16, 1]).unwrap();
    // A row, an element, or another stride makes it another tensor.
    for (ahead, strides) in [(64, [16, 1]), (16, [16, 1]), (0, [20, 1])] {
        let found = run(&logits, &lse.view(), ahead, strides).unwrap_err();
        assert!(
            matches!(found, Error::OutputOverlaps { output: Operand::Dlogits, other: Operand::Logits }),
            "{found:?}"
        );
    }
    // In place or not, what else is read is not written.
    let inside = storage.strided(4, [3], [1]).unwrap();
    let found = run(&logits, &inside, 0, [16, 1]).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Dlogits, other: Operand::Lse }), "{found:?}");
    // The rows of logits that lie on one another cannot be written.
    let rows = storage.strided(0, [3, 16], [0, 1]).unwrap();
    let found = run(&rows, &lse.view(), 0, [0, 1]).unwrap_err();
    assert!(matches!(found, Error::OutputOverlapsItself { .. }), "{found:?}");

    let over_targets = targets.view().address();
    // SAFETY: the call is refused before anything is written.
    let loss = unsafe { TensorViewMut::from_raw(device, over_targets, 3, [3], [1], DType::F32).unwrap() };
    let found =
        of.forward_into(&stream, &logits, &targets.view(), &mut CrossEntropyOutputViewMut::new(loss)).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Loss, other: Operand::Targets }), "{found:?}");
    let elsewhere = Device::emulator().unwrap();
    let far = Indices::from_slice(&elsewhere, &[0; 3]).unwrap();
    let found = of.forward(&logits, &far.view()).unwrap_err();
    assert!(matches!(&found, Error::Operator(OperatorError::Device { tensor: Operand::Targets, .. })), "{found:?}");
}
