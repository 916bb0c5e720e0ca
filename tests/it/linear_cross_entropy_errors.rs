//! What cross-entropy of a dense layer's logits refuses, each with the error that names it, before anything is launched.

use crate::support::device;
use ferroflash::operators::{
    CrossEntropy, CrossEntropyOutputViewMut, DenseGradientsViewMut, LinearCrossEntropy, LinearCrossEntropySaved,
};
use ferroflash::{DType, Device, Dims, Error, Indices, Layout, Operand, Tensor, TensorViewMut};

fn tensor(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, Dims::new(shape).expect("few axes"), Layout::RowMajor).expect("a small tensor")
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(found: ferroflash::Result<T>, text: &str) {
    let found = found.expect_err("the call should be refused");
    assert!(matches!(&found, Error::Operator(_)), "{found:?}");
    assert_eq!(found.to_string(), text);
}

#[test]
fn options_that_mean_nothing() {
    let device = &device::shared().device;
    let (x, weight) = (tensor(device, DType::F16, &[3, 16]), tensor(device, DType::F16, &[8, 16]));
    let (targets, weight) = (Indices::from_slice(device, &[0; 3]).unwrap(), weight.view());
    let lse = tensor(device, DType::F32, &[3]);
    let saved = LinearCrossEntropySaved::new(&x.view(), &targets.view(), &lse.view());
    for loss in [
        CrossEntropy::new().with_scale(0.0),
        CrossEntropy::new().with_scale(f32::NAN),
        CrossEntropy::new().with_smoothing(1.5),
        CrossEntropy::new().with_z_loss(-1.0),
    ] {
        // Those of the loss by itself.
        let logits = tensor(device, DType::F16, &[3, 8]);
        let text = loss.plan(&logits.view(), &targets.view()).expect_err("refused there too").to_string();
        let of = LinearCrossEntropy::new(&weight).with_loss(loss);
        assert_refused(of.forward(&x.view(), &targets.view()), &text);
        assert_refused(of.backward(&saved, &lse.view()), &text);
    }
}

#[test]
fn tensors_that_do_not_go_together() {
    let device = &device::shared().device;
    let (x, weight) = (tensor(device, DType::F16, &[2, 3, 16]), tensor(device, DType::F16, &[8, 16]));
    let targets = Indices::from_slice(device, &[0; 6]).unwrap();
    let weight_view = weight.view();
    let of = LinearCrossEntropy::new(&weight_view);
    let narrow = tensor(device, DType::F16, &[8, 15]);
    assert_refused(
        LinearCrossEntropy::new(&narrow.view()).forward(&x.view(), &targets.view()),
        "weight has shape [8, 15]; [n, 16] is accepted, with at least one row",
    );
    let wide = tensor(device, DType::F32, &[8, 16]);
    assert_refused(
        LinearCrossEntropy::new(&wide.view()).forward(&x.view(), &targets.view()),
        "weight holds f32; f16 is accepted",
    );
    let short = tensor(device, DType::F16, &[7]);
    assert_refused(
        of.with_bias(&short.view()).forward(&x.view(), &targets.view()),
        "bias has shape [7]; weight makes it [8]",
    );
    let few = Indices::from_slice(device, &[0; 5]).unwrap();
    assert_refused(of.forward(&x.view(), &few.view()), "targets are 5; x has 6 rows, and needs one for each");
    let lse = tensor(device, DType::F32, &[2, 3]);
    let flat = tensor(device, DType::F32, &[6]);
    let saved = LinearCrossEntropySaved::new(&x.view(), &targets.view(), &flat.view());
    assert_refused(of.backward(&saved, &lse.view()), "lse has shape [6]; x makes it [2, 3]");
    let saved = LinearCrossEntropySaved::new(&x.view(), &targets.view(), &lse.view());
    let half = tensor(device, DType::F16, &[2, 3]);
    assert_refused(of.backward(&saved, &half.view()), "dloss holds f16; f32 is accepted");
    let apart = of.forward(&x.strided(0, [2, 3, 8], [48, 16, 2]).unwrap(), &targets.view());
    assert!(matches!(
        apart,
        Err(Error::LastDimNotContiguous { tensor: Operand::X, stride: 2 }) | Err(Error::Operator(_))
    ));
    // Three axes of rows that no one stride steps through.
    let rows = tensor(device, DType::F16, &[4, 4, 16]);
    let view = rows.strided(0, [2, 3, 16], [64, 16, 1]).unwrap();
    let found = of.forward(&view, &targets.view()).expect_err("refused").to_string();
    assert!(found.contains("stride"), "{found}");
}

#[test]
fn gradients_that_nobody_has_asked_for() {
    let device = &device::shared().device;
    let (x, weight) = (tensor(device, DType::F16, &[3, 16]), tensor(device, DType::F16, &[8, 16]));
    let (targets, weight) = (Indices::from_slice(device, &[0; 3]).unwrap(), weight.view());
    let lse = tensor(device, DType::F32, &[3]);
    let saved = LinearCrossEntropySaved::new(&x.view(), &targets.view(), &lse.view());
    let (of, stream) = (LinearCrossEntropy::new(&weight), device.default_stream());
    assert_refused(
        of.backward_into(&stream, &saved, &lse.view(), &mut DenseGradientsViewMut::new()),
        "no gradient of linear-cross-entropy is asked for; at least one of dx, dweight and dbias is needed",
    );
    let mut dbias = tensor(device, DType::F16, &[8]);
    let mut into = DenseGradientsViewMut::new().with_dbias(dbias.view_mut());
    assert_refused(
        of.backward_into(&stream, &saved, &lse.view(), &mut into),
        "dbias is given, and the call has no bias",
    );
    let mut dx = tensor(device, DType::F16, &[3, 8]);
    let mut into = DenseGradientsViewMut::new().with_dx(dx.view_mut());
    assert_refused(
        of.backward_into(&stream, &saved, &lse.view(), &mut into),
        "dx has shape [3, 8]; x makes it [3, 16]",
    );
}

#[test]
fn outputs_over_inputs_and_each_other() {
    let device = &device::shared().device;
    let (x, weight) = (tensor(device, DType::F32, &[3, 16]), tensor(device, DType::F32, &[8, 16]));
    let (targets, weight_view) = (Indices::from_slice(device, &[0; 3]).unwrap(), weight.view());
    let (of, stream) = (LinearCrossEntropy::new(&weight_view), device.default_stream());
    let over = |address: u64, elements: usize, shape: &[usize]| {
        let (shape, strides) = (Dims::new(shape).unwrap(), Dims::new(if shape.len() == 2 { &[16, 1] } else { &[1] }));
        // SAFETY: the calls are refused before anything is written.
        unsafe { TensorViewMut::from_raw(device, address, elements, shape, strides.unwrap(), DType::F32).unwrap() }
    };
    let mut into = CrossEntropyOutputViewMut::new(over(x.address(), 48, &[3]));
    let found = of.forward_into(&stream, &x.view(), &targets.view(), &mut into).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Loss, other: Operand::X }), "{found:?}");
    let mut into = CrossEntropyOutputViewMut::new(over(targets.view().address(), 3, &[3]));
    let found = of.forward_into(&stream, &x.view(), &targets.view(), &mut into).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Loss, other: Operand::Targets }), "{found:?}");
    let lse = tensor(device, DType::F32, &[3]);
    let saved = LinearCrossEntropySaved::new(&x.view(), &targets.view(), &lse.view());
    let mut into = DenseGradientsViewMut::new().with_dweight(over(weight.address(), 128, &[8, 16]));
    let found = of.backward_into(&stream, &saved, &lse.view(), &mut into).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Dweight, other: Operand::Weight }), "{found:?}");
    let mut into = DenseGradientsViewMut::new().with_dx(over(x.address(), 48, &[3, 16]));
    let found = of.backward_into(&stream, &saved, &lse.view(), &mut into).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Dx, other: Operand::X }), "{found:?}");
}
