//! What softmax refuses, each with the error that names it, before anything is launched.

use crate::support::device;
use ferroflash::operators::Softmax;
use ferroflash::{BoolTensor, DType, Device, Dims, Error, Layout, Operand, OperatorError, Tensor};

fn tensor(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let shape = Dims::new(shape).expect("few axes");
    Tensor::zeros(device, dtype, shape, Layout::RowMajor).expect("a small tensor")
}

#[track_caller]
pub(crate) fn assert_operator_error<T: std::fmt::Debug>(
    found: ferroflash::Result<T>,
    expected: OperatorError,
    text: &str,
) {
    let found = found.expect_err("the call should be refused");
    assert_eq!(found.to_string(), text);
    assert!(matches!(&found, Error::Operator(found) if *found == expected), "{found:?}");
}

#[test]
fn options_that_mean_nothing() {
    let device = &device::shared().device;
    let x = tensor(device, DType::F16, &[3, 16]);
    for found in [f32::INFINITY, f32::NEG_INFINITY] {
        let text = format!("scale {found} is not accepted; it must be finite");
        let softmax = Softmax::new().with_scale(found);
        assert_operator_error(softmax.forward(&x.view()), OperatorError::Scale { found }, &text);
        assert_operator_error(softmax.plan(&x.view()), OperatorError::Scale { found }, &text);
        assert_operator_error(softmax.backward(&x.view(), &x.view()), OperatorError::Scale { found }, &text);
    }
    let found = Softmax::log().with_scale(f32::NAN).forward(&x.view()).unwrap_err();
    assert!(matches!(found, Error::Operator(OperatorError::Scale { found }) if found.is_nan()));
    assert_operator_error(
        Softmax::new().causal(true).forward(&tensor(device, DType::F16, &[16]).view()),
        OperatorError::CausalAxes { tensor: Operand::X, found: 1 },
        "x has 1 axes; causal rows need at least 2, of query rows and of columns",
    );
}

#[test]
fn shapes_and_types_that_do_not_go_together() {
    let device = &device::shared().device;
    let softmax = Softmax::new();
    assert_operator_error(
        softmax.forward(&tensor(device, DType::F32, &[]).view()),
        OperatorError::NoColumns { tensor: Operand::X },
        "x has no axes; at least the one of the columns is needed",
    );
    assert_operator_error(
        softmax.forward(&tensor(device, DType::F32, &[3, 0]).view()),
        OperatorError::Columns { found: 0 },
        "rows have 0 columns; 1 to 16777216 are accepted",
    );
    let x = tensor(device, DType::F16, &[2, 3, 16]);
    let mask = tensor(device, DType::F16, &[3, 16]);
    assert_operator_error(
        softmax.with_mask(&mask.view()).forward(&x.view()),
        OperatorError::Shape { tensor: Operand::Mask, found: vec![3, 16], of: Operand::X, expected: vec![2, 3, 16] },
        "mask has shape [3, 16]; x makes it [2, 3, 16]",
    );
    let bools = BoolTensor::from_bytes(device, &[1; 96], [3, 32]).unwrap();
    assert_operator_error(
        softmax.with_bool_mask(&bools.view()).forward(&x.view()),
        OperatorError::Shape { tensor: Operand::Mask, found: vec![3, 32], of: Operand::X, expected: vec![2, 3, 16] },
        "mask has shape [3, 32]; x makes it [2, 3, 16]",
    );
    assert_operator_error(
        softmax.with_bool_mask(&bools.view()).with_mask(&x.view()).forward(&x.view()),
        OperatorError::Both { first: "mask", second: "bool_mask" },
        "mask and bool_mask are given; one of the two is accepted",
    );
    let apart = bools.strided(0, [2, 3, 16], [48, 0, 2]).unwrap();
    let found = softmax.with_bool_mask(&apart).forward(&x.view()).unwrap_err();
    assert!(matches!(found, Error::LastDimNotContiguous { tensor: Operand::Mask, stride: 2 }), "{found:?}");
    assert!(matches!(bools.strided(1, [96], [1]), Err(Error::StorageTooSmall { needed: 97, available: 96, .. })));
    assert!(matches!(BoolTensor::from_slice(device, &[true; 5], [6]), Err(Error::DataLength { expected: 6, .. })));
    let mask = tensor(device, DType::Bf16, &[2, 3, 16]);
    assert_operator_error(
        softmax.with_mask(&mask.view()).forward(&x.view()),
        OperatorError::DType { tensor: Operand::Mask, found: DType::Bf16, accepted: vec![DType::F16, DType::F32] },
        "mask holds bf16; f16 or f32 is accepted",
    );
    assert_operator_error(
        softmax.backward(&mask.view(), &x.view()),
        OperatorError::DType { tensor: Operand::Out, found: DType::Bf16, accepted: vec![DType::F16] },
        "out holds bf16; f16 is accepted",
    );
    let short = tensor(device, DType::F16, &[2, 3, 8]);
    assert_operator_error(
        softmax.backward(&short.view(), &x.view()),
        OperatorError::Shape {
            tensor: Operand::Out,
            found: vec![2, 3, 8],
            of: Operand::Dout,
            expected: vec![2, 3, 16],
        },
        "out has shape [2, 3, 8]; dout makes it [2, 3, 16]",
    );
}

#[test]
fn memory_that_kernels_do_not_read_or_write() {
    let device = &device::shared().device;
    let softmax = Softmax::new();
    let stream = device.default_stream();
    let storage = tensor(device, DType::F16, &[10_000]);
    let x = tensor(device, DType::F16, &[3, 16]);
    let apart = storage.strided(0, [3, 16], [40, 2]).unwrap();
    let last_dim = |found: Error, operand: Operand| {
        assert!(matches!(found, Error::LastDimNotContiguous { tensor, stride: 2 } if tensor == operand), "{found:?}");
    };
    last_dim(softmax.forward(&apart).unwrap_err(), Operand::X);
    last_dim(softmax.with_mask(&apart).forward(&x.view()).unwrap_err(), Operand::Mask);
    last_dim(softmax.backward(&apart, &x.view()).unwrap_err(), Operand::Out);
    let four = storage.strided(0, [2, 2, 2, 2, 16], [1000, 400, 150, 50, 1]).unwrap();
    let found = softmax.forward(&four).unwrap_err();
    assert!(matches!(found, Error::Operator(OperatorError::RowAxes { found: 4, .. })), "{found:?}");

    let mut out = tensor(device, DType::F16, &[100, 16]);
    let mut itself = out.strided_mut(0, [3, 16], [8, 1]).unwrap();
    let found = softmax.forward_into(&stream, &x.view(), &mut itself).unwrap_err();
    assert!(matches!(found, Error::OutputOverlapsItself { .. }), "{found:?}");
    let taken = storage.strided(0, [3, 16], [16, 1]).unwrap();
    // Also where it is the very memory: softmax has no such call.
    for ahead in [0, 32] {
        // SAFETY: the call is refused before anything is written.
        let mut over = unsafe {
            let address = storage.address() + ahead;
            ferroflash::TensorViewMut::from_raw(device, address, 100, [3, 16], [16, 1], DType::F16).unwrap()
        };
        let found = softmax.forward_into(&stream, &taken, &mut over).unwrap_err();
        assert!(matches!(found, Error::OutputOverlaps { output: Operand::Out, other: Operand::X }), "{found:?}");
        let found = softmax.with_mask(&taken).forward_into(&stream, &x.view(), &mut over).unwrap_err();
        assert!(matches!(found, Error::OutputOverlaps { output: Operand::Out, other: Operand::Mask }), "{found:?}");
        let found = softmax.backward_into(&stream, &x.view(), &taken, &mut over).unwrap_err();
        assert!(matches!(found, Error::OutputOverlaps { output: Operand::Dx, other: Operand::Dout }), "{found:?}");
    }
    let elsewhere = Device::emulator().unwrap();
    let far = tensor(&elsewhere, DType::F16, &[3, 16]);
    let found = softmax.with_mask(&far.view()).forward(&x.view()).unwrap_err();
    assert!(matches!(&found, Error::Operator(OperatorError::Device { tensor: Operand::Mask, .. })), "{found:?}");
    let mut out = tensor(device, DType::F16, &[3, 16]);
    let found = softmax.forward_into(&elsewhere.default_stream(), &x.view(), &mut out.view_mut()).unwrap_err();
    assert!(matches!(&found, Error::DeviceMismatch { what, .. } if what == "the stream"), "{found:?}");
}
