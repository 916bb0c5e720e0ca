//! What dense layers refuse, each with the error that names it, before anything is launched.

use crate::support::device;
use ferroflash::operators::{Activation, Dense, DenseOutputViewMut};
use ferroflash::{DType, Device, Dims, Error, Layout, Operand, OperatorError, Tensor};

fn tensor(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let shape = Dims::new(shape).expect("few axes");
    Tensor::zeros(device, dtype, shape, Layout::RowMajor).expect("a small tensor")
}

#[track_caller]
fn assert_dense_error<T: std::fmt::Debug>(found: ferroflash::Result<T>, expected: OperatorError, text: &str) {
    let found = found.expect_err("the call should be refused");
    assert_eq!(found.to_string(), text);
    assert!(matches!(&found, Error::Operator(found) if *found == expected), "{found:?}");
}

#[test]
fn weights_of_another_shape() {
    let device = &device::shared().device;
    let x = tensor(device, DType::F16, &[3, 16]);
    for shape in [&[8, 15][..], &[0, 16], &[16], &[2, 4, 16]] {
        let weight = tensor(device, DType::F16, shape);
        let (found, columns) = (shape.to_vec(), 16);
        let text = format!("weight has shape {shape:?}; [n, 16] is accepted, with at least one row");
        let expected = OperatorError::Weights { found, columns, gated: false };
        assert_dense_error(Dense::new(&weight.view()).forward(&x.view()), expected, &text);
    }
    let weight = tensor(device, DType::F16, &[9, 16]);
    let weight_view = weight.view();
    assert_dense_error(
        Dense::new(&weight_view).with_activation(Activation::SwiGlu).plan(&x.view()),
        OperatorError::Weights { found: vec![9, 16], columns: 16, gated: true },
        "weight has shape [9, 16]; [2 n, 16] is accepted, with at least one row for the gate and as many for what it opens",
    );
    assert_dense_error(
        Dense::new(&weight_view).forward(&tensor(device, DType::F16, &[]).view()),
        OperatorError::NoColumns { tensor: Operand::X },
        "x has no axes; at least the one of the columns is needed",
    );
    assert_dense_error(
        Dense::new(&tensor(device, DType::F16, &[4, 0]).view()).forward(&tensor(device, DType::F16, &[3, 0]).view()),
        OperatorError::Columns { found: 0 },
        "rows have 0 columns; 1 to 16777216 are accepted",
    );
    // More rows of weights than are counted: of memory that is not there.
    let one = tensor(device, DType::F16, &[1]);
    let rows = (1 << 24) + 1;
    // SAFETY: the call is refused before anything is read.
    let many = unsafe { ferroflash::TensorView::from_raw(device, one.address(), rows, [rows, 1], [1, 1], DType::F16) };
    let found = Dense::new(&many.unwrap()).plan(&one.strided(0, [1, 1], [1, 1]).unwrap());
    assert!(matches!(found, Err(Error::Operator(OperatorError::Columns { found: 16_777_217 }))));
}

#[test]
fn shapes_and_types_that_do_not_go_together() {
    let device = &device::shared().device;
    let (x, weight) = (tensor(device, DType::F16, &[2, 3, 16]), tensor(device, DType::F16, &[8, 16]));
    let weight = weight.view();
    let layer = Dense::new(&weight);
    for (dtype, activation, shape, expected) in [
        (DType::F16, Activation::Identity, vec![2, 3, 16], vec![2, 3, 8]),
        (DType::F16, Activation::SwiGlu, vec![2, 3, 8], vec![2, 3, 4]),
    ] {
        let residual = tensor(device, dtype, &shape);
        let text = format!("residual has shape {shape:?}; x makes it {expected:?}");
        let expected = OperatorError::Shape { tensor: Operand::Residual, found: shape, of: Operand::X, expected };
        let layer = layer.with_activation(activation).with_residual(&residual.view());
        assert_dense_error(layer.forward(&x.view()), expected, &text);
    }
    let short = tensor(device, DType::F16, &[7]);
    assert_dense_error(
        layer.with_bias(&short.view()).forward(&x.view()),
        OperatorError::Shape { tensor: Operand::Bias, found: vec![7], of: Operand::Weight, expected: vec![8] },
        "bias has shape [7]; weight makes it [8]",
    );
    let wide = tensor(device, DType::F32, &[8]);
    assert_dense_error(
        layer.with_bias(&wide.view()).forward(&x.view()),
        OperatorError::DType { tensor: Operand::Bias, found: DType::F32, accepted: vec![DType::F16] },
        "bias holds f32; f16 is accepted",
    );
    assert_dense_error(
        layer.forward(&tensor(device, DType::Bf16, &[3, 16]).view()),
        OperatorError::DType { tensor: Operand::Weight, found: DType::F16, accepted: vec![DType::Bf16] },
        "weight holds f16; bf16 is accepted",
    );
    let elsewhere = Device::emulator().unwrap();
    let far = tensor(&elsewhere, DType::F16, &[8]);
    let (there, here) = (elsewhere.info().id(), device.info().id());
    assert_dense_error(
        layer.with_bias(&far.view()).forward(&x.view()),
        OperatorError::Device { tensor: Operand::Bias, found: there.clone(), of: Operand::X, expected: here.clone() },
        &format!("bias is on device {there}, x is on {here}; they must be on the same device"),
    );
}

#[test]
fn memory_that_kernels_do_not_read() {
    let device = &device::shared().device;
    let storage = tensor(device, DType::F16, &[10_000]);
    let (x, weight) = (tensor(device, DType::F16, &[3, 16]), tensor(device, DType::F16, &[8, 16]));
    let weight = weight.view();
    let layer = Dense::new(&weight);
    let apart = storage.strided(0, [3, 16], [40, 2]).unwrap();
    let found = layer.forward(&apart).unwrap_err();
    assert!(matches!(found, Error::LastDimNotContiguous { tensor: Operand::X, stride: 2 }), "{found:?}");
    let found = Dense::new(&storage.strided(0, [8, 16], [1, 8]).unwrap()).forward(&x.view()).unwrap_err();
    assert!(matches!(found, Error::LastDimNotContiguous { tensor: Operand::Weight, stride: 8 }), "{found:?}");
    assert_dense_error(
        layer.with_bias(&storage.strided(0, [8], [2]).unwrap()).forward(&x.view()),
        OperatorError::NotContiguous { tensor: Operand::Bias, shape: vec![8], strides: vec![2] },
        "bias has shape [8] and strides [2]; it must be contiguous",
    );
    let two = storage.strided(0, [2, 3, 16], [100, 16, 1]).unwrap();
    assert_dense_error(
        layer.forward(&two),
        OperatorError::RowStrides { extents: vec![2, 3], found: 2 },
        "the axes before the last, of extents [2, 3], are 2 that cannot be read as one another's continuation in all tensors; one stride between rows \
         is accepted",
    );
    assert!(layer.forward(&storage.strided(0, [2, 3, 16], [120, 40, 1]).unwrap()).is_ok());

    let mut out = tensor(device, DType::F16, &[100, 8]);
    let stream = device.default_stream();
    let itself = out.strided_mut(0, [3, 8], [4, 1]).unwrap();
    let found = layer.forward_into(&stream, &x.view(), &mut DenseOutputViewMut::new(itself)).unwrap_err();
    assert!(matches!(found, Error::OutputOverlapsItself { .. }), "{found:?}");
    let taken = storage.strided(0, [3, 16], [16, 1]).unwrap();
    // SAFETY: the call is refused before anything is written.
    let over = unsafe {
        ferroflash::TensorViewMut::from_raw(device, storage.address() + 32, 100, [3, 8], [8, 1], DType::F16).unwrap()
    };
    let found = layer.forward_into(&stream, &taken, &mut DenseOutputViewMut::new(over)).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Out, other: Operand::X }), "{found:?}");
    let mut narrow = tensor(device, DType::F16, &[3, 4]);
    let mut out = tensor(device, DType::F16, &[3, 8]);
    let mut into = DenseOutputViewMut::new(out.view_mut()).with_z(narrow.view_mut());
    assert_dense_error(
        layer.forward_into(&stream, &x.view(), &mut into),
        OperatorError::Shape { tensor: Operand::Z, found: vec![3, 4], of: Operand::X, expected: vec![3, 8] },
        "z has shape [3, 4]; x makes it [3, 8]",
    );
    let elsewhere = Device::emulator().unwrap();
    let mut into = DenseOutputViewMut::new(out.view_mut());
    let found = layer.forward_into(&elsewhere.default_stream(), &x.view(), &mut into).unwrap_err();
    assert!(matches!(&found, Error::DeviceMismatch { what, .. } if what == "the stream"), "{found:?}");
}
