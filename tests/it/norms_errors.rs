//! What RMSNorm and LayerNorm refuse, each with the error that names it, before anything is launched.

use crate::support::device;
use ferroflash::operators::{Norm, NormGradientsViewMut, NormOutputViewMut, NormSaved};
use ferroflash::{DType, Device, Dims, Error, Layout, Operand, OperatorError, Tensor};

fn tensor(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let shape = Dims::new(shape).expect("few axes");
    Tensor::zeros(device, dtype, shape, Layout::RowMajor).expect("a small tensor")
}

#[track_caller]
fn assert_norm_error<T: std::fmt::Debug>(found: ferroflash::Result<T>, expected: OperatorError, text: &str) {
    let found = found.expect_err("the call should be refused");
    assert_eq!(found.to_string(), text);
    assert!(matches!(&found, Error::Operator(found) if *found == expected), "{found:?}");
}

#[test]
fn options_that_mean_nothing() {
    let device = &device::shared().device;
    let x = tensor(device, DType::F16, &[3, 16]);
    for found in [0.0, -1e-5, f32::INFINITY] {
        let text = format!("epsilon {found} is not accepted; it must be above 0 and finite");
        assert_norm_error(Norm::rms(found).forward(&x.view()), OperatorError::Epsilon { found }, &text);
        assert_norm_error(Norm::layer(found).plan(&x.view()), OperatorError::Epsilon { found }, &text);
    }
    let found = Norm::rms(f32::NAN).forward(&x.view()).unwrap_err();
    assert!(matches!(found, Error::Operator(OperatorError::Epsilon { found }) if found.is_nan()));
    assert_norm_error(
        Norm::rms(1e-5).zero_centred().forward(&x.view()),
        OperatorError::Without { given: "zero_centred", needed: "weight" },
        "zero_centred is given, and no weight, without which it means nothing",
    );
}

#[test]
fn shapes_and_types_that_do_not_go_together() {
    let device = &device::shared().device;
    let norm = Norm::layer(1e-5);
    assert_norm_error(
        norm.forward(&tensor(device, DType::F32, &[]).view()),
        OperatorError::NoColumns { tensor: Operand::X },
        "x has no axes; at least the one of the columns is needed",
    );
    assert_norm_error(
        norm.forward(&tensor(device, DType::F32, &[3, 0]).view()),
        OperatorError::Columns { found: 0 },
        "rows have 0 columns; 1 to 16777216 are accepted",
    );
    let one = tensor(device, DType::F16, &[16]);
    let x = tensor(device, DType::F16, &[2, 3, 16]);
    // One row of more columns than f32 counts: of memory that is not there.
    // SAFETY: the call is refused before anything is read.
    let long = unsafe {
        ferroflash::TensorView::from_raw(device, one.address(), (1 << 24) + 1, [(1 << 24) + 1], [1], DType::F16)
    };
    assert!(matches!(norm.plan(&long.unwrap()), Err(Error::Operator(OperatorError::Columns { found: 16_777_217 }))));
    let rows = one.strided(0, [1 << 16, 1 << 16, 16], [0, 0, 1]).unwrap();
    assert_norm_error(
        norm.plan(&rows),
        OperatorError::Rows { found: 1 << 32, limit: (1 << 31) - 1024 },
        "4294967296 rows; fewer than 2147482624 are accepted",
    );
    for (shape, operand) in [([2, 4, 16], Operand::Residual), ([2, 3, 8], Operand::Residual)] {
        let residual = tensor(device, DType::F16, &shape);
        let text = format!("residual has shape {shape:?}; x makes it [2, 3, 16]");
        let expected =
            OperatorError::Shape { tensor: operand, found: shape.to_vec(), of: Operand::X, expected: vec![2, 3, 16] };
        assert_norm_error(norm.with_residual(&residual.view()).forward(&x.view()), expected, &text);
    }
    let short = tensor(device, DType::F16, &[15]);
    let shape = |tensor| OperatorError::Shape { tensor, found: vec![15], of: Operand::X, expected: vec![16] };
    assert_norm_error(
        norm.with_weight(&short.view()).forward(&x.view()),
        shape(Operand::Weight),
        "weight has shape [15]; x makes it [16]",
    );
    assert_norm_error(
        norm.with_bias(&short.view()).forward(&x.view()),
        shape(Operand::Bias),
        "bias has shape [15]; x makes it [16]",
    );
    let other = tensor(device, DType::Bf16, &[16]);
    assert_norm_error(
        norm.with_weight(&other.view()).forward(&x.view()),
        OperatorError::DType { tensor: Operand::Weight, found: DType::Bf16, accepted: vec![DType::F16, DType::F32] },
        "weight holds bf16; f16 or f32 is accepted",
    );
    let wide = tensor(device, DType::F32, &[16]);
    assert_norm_error(
        norm.with_weight(&wide.view()).with_bias(&one.view()).forward(&x.view()),
        OperatorError::DType { tensor: Operand::Bias, found: DType::F16, accepted: vec![DType::F32] },
        "bias holds f16; f32 is accepted",
    );
    let residual = tensor(device, DType::Bf16, &[2, 3, 16]);
    assert_norm_error(
        norm.with_residual(&residual.view()).forward(&x.view()),
        OperatorError::DType { tensor: Operand::Residual, found: DType::Bf16, accepted: vec![DType::F16, DType::F32] },
        "residual holds bf16; f16 or f32 is accepted",
    );
}

#[test]
fn memory_that_kernels_do_not_read() {
    let device = &device::shared().device;
    let norm = Norm::rms(1e-5);
    let storage = tensor(device, DType::F16, &[10_000]);
    let apart = storage.strided(0, [3, 16], [40, 2]).unwrap();
    let found = norm.forward(&apart).unwrap_err();
    assert!(matches!(found, Error::LastDimNotContiguous { tensor: Operand::X, stride: 2 }), "{found:?}");
    let weight = storage.strided(0, [16], [2]).unwrap();
    let x = tensor(device, DType::F16, &[3, 16]);
    assert_norm_error(
        norm.with_weight(&weight).forward(&x.view()),
        OperatorError::NotContiguous { tensor: Operand::Weight, shape: vec![16], strides: vec![2] },
        "weight has shape [16] and strides [2]; it must be contiguous",
    );
    // Four axes of rows, of which none continues another; three are taken.
    let four = storage.strided(0, [2, 2, 2, 2, 16], [1000, 400, 150, 50, 1]).unwrap();
    assert_norm_error(
        norm.forward(&four),
        OperatorError::RowAxes { extents: vec![2; 4], found: 4 },
        "the axes before the last, of extents [2, 2, 2, 2], are 4 that cannot be read as one another's continuation in all tensors; up to 3 are \
         accepted",
    );
    assert!(norm.forward(&storage.strided(0, [2, 2, 2, 1, 16], [1000, 400, 150, 7, 1]).unwrap()).is_ok());

    let mut out = tensor(device, DType::F16, &[100, 16]);
    let stream = device.default_stream();
    let itself = out.strided_mut(0, [3, 16], [8, 1]).unwrap();
    let found = norm.forward_into(&stream, &x.view(), &mut NormOutputViewMut::new(itself)).unwrap_err();
    assert!(matches!(found, Error::OutputOverlapsItself { .. }), "{found:?}");
    let taken = storage.strided(0, [3, 16], [16, 1]).unwrap();
    // SAFETY: the call is refused before anything is written.
    let over = unsafe {
        ferroflash::TensorViewMut::from_raw(device, storage.address() + 32, 100, [3, 16], [16, 1], DType::F16).unwrap()
    };
    let found = norm.forward_into(&stream, &taken, &mut NormOutputViewMut::new(over)).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Out, other: Operand::X }), "{found:?}");
    let elsewhere = Device::emulator().unwrap();
    let far = tensor(&elsewhere, DType::F16, &[16]);
    let (there, here) = (elsewhere.info().id(), device.info().id());
    assert_norm_error(
        norm.with_weight(&far.view()).forward(&x.view()),
        OperatorError::Device { tensor: Operand::Weight, found: there.clone(), of: Operand::X, expected: here.clone() },
        &format!("weight is on device {there}, x is on {here}; they must be on the same device"),
    );
    let mut out = tensor(device, DType::F16, &[3, 16]);
    let mut into = NormOutputViewMut::new(out.view_mut());
    let found = norm.forward_into(&elsewhere.default_stream(), &x.view(), &mut into).unwrap_err();
    assert!(matches!(&found, Error::DeviceMismatch { what, .. } if what == "the stream"), "{found:?}");
}

#[test]
fn outputs_that_a_call_does_not_have() {
    let device = &device::shared().device;
    let stream = device.default_stream();
    let x = tensor(device, DType::F16, &[3, 16]);
    let [mut out, mut sum] = [0, 1].map(|_| tensor(device, DType::F16, &[3, 16]));
    let mut mean = tensor(device, DType::F32, &[3]);
    let mut into = NormOutputViewMut::new(out.view_mut()).with_residual_out(sum.view_mut());
    assert_norm_error(
        Norm::rms(1e-5).forward_into(&stream, &x.view(), &mut into),
        OperatorError::Unwanted { tensor: Operand::ResidualOut, needed: "residual" },
        "residual_out is given, and the call has no residual",
    );
    let mut into = NormOutputViewMut::new(out.view_mut()).with_mean(mean.view_mut());
    assert!(matches!(
        Norm::rms(1e-5).forward_into(&stream, &x.view(), &mut into),
        Err(Error::Operator(OperatorError::Unwanted { tensor: Operand::Mean, .. }))
    ));
    let mut short = tensor(device, DType::F32, &[2]);
    let mut into = NormOutputViewMut::new(out.view_mut()).with_rstd(short.view_mut());
    assert_norm_error(
        Norm::rms(1e-5).forward_into(&stream, &x.view(), &mut into),
        OperatorError::Shape { tensor: Operand::Rstd, found: vec![2], of: Operand::X, expected: vec![3] },
        "rstd has shape [2]; x makes it [3]",
    );

    let rstd = tensor(device, DType::F32, &[3]);
    let saved = NormSaved::new(&x.view(), &rstd.view());
    assert_norm_error(
        Norm::layer(1e-5).backward(&saved, &x.view(), None),
        OperatorError::Missing { operator: "layernorm", tensor: Operand::Mean },
        "gradients of layernorm are computed from mean, which is not given",
    );
    assert!(matches!(
        Norm::rms(1e-5).backward(&saved.with_mean(&mean.view()), &x.view(), None),
        Err(Error::Operator(OperatorError::Unwanted { tensor: Operand::Mean, .. }))
    ));
    let wide = tensor(device, DType::F32, &[3, 16]);
    assert_norm_error(
        Norm::rms(1e-5).backward(&saved, &x.view(), Some(&wide.view())),
        OperatorError::DType { tensor: Operand::DresidualOut, found: DType::F32, accepted: vec![DType::F16] },
        "dresidual_out holds f32; f16 is accepted",
    );
    let mut dweight = tensor(device, DType::F16, &[16]);
    for is_weight in [true, false] {
        let into = NormGradientsViewMut::new(out.view_mut());
        let mut into =
            if is_weight { into.with_dweight(dweight.view_mut()) } else { into.with_dbias(dweight.view_mut()) };
        let (tensor, needed) = if is_weight { (Operand::Dweight, "weight") } else { (Operand::Dbias, "bias") };
        let found = Norm::rms(1e-5).backward_into(&stream, &saved, &x.view(), None, &mut into);
        let text = format!("{tensor} is given, and the call has no {needed}");
        assert_norm_error(found, OperatorError::Unwanted { tensor, needed }, &text);
    }
    let short = tensor(device, DType::F16, &[4, 16]);
    assert_norm_error(
        Norm::rms(1e-5).backward(&saved, &short.view(), None),
        OperatorError::Shape {
            tensor: Operand::Normalised,
            found: vec![3, 16],
            of: Operand::Dout,
            expected: vec![4, 16],
        },
        "what was normalised has shape [3, 16]; dout makes it [4, 16]",
    );
}
