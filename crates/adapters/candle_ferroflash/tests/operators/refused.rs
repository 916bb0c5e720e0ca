//! What operators refuse, before anything is launched.

use crate::support::values;
use candle_core::{DType, Device, Tensor, Var};
use candle_ferroflash::operators::{
    Activation, AdamW, CrossEntropy, Dense, Dropout, LinearCrossEntropy, Norm, Softmax, cross_entropy, dense,
    embedding, layer_norm, linear, linear_cross_entropy, rms_norm, rope, rope_thd, softmax,
};
use candle_ferroflash::{Error, emulate_cpu};
use candle_nn::Optimizer;
use ferroflash::{Operand, OperatorError};

/// The error of this crate in candle's.
fn refused<T>(result: candle_core::Result<T>) -> String {
    let error = result.err().expect("an error");
    Error::find(&error).unwrap_or_else(|| panic!("{error}")).to_string()
}

/// That ferroflash itself refuses it, for a reason.
fn by_ferroflash<T>(result: candle_core::Result<T>, reason: impl Fn(&OperatorError) -> bool) {
    let error = result.err().expect("an error");
    match Error::find(&error) {
        Some(Error::Ferroflash(ferroflash::Error::Operator(found))) if reason(found) => {}
        _ => panic!("{error}"),
    }
}

/// That ferroflash refuses a mask whose columns do not lie side by side.
fn by_mask<T>(result: candle_core::Result<T>) {
    let error = result.err().expect("an error");
    match Error::find(&error) {
        Some(Error::Ferroflash(ferroflash::Error::LastDimNotContiguous { tensor: Operand::Mask, .. })) => {}
        _ => panic!("{error}"),
    }
}

#[test]
fn types() {
    emulate_cpu(true);
    let (x, weight) = (values(&[2, 8], 1, DType::F64), values(&[8], 2, DType::F32));
    assert_eq!(refused(rms_norm(&x, &weight, 1e-5)), "rms-norm: x holds F64; f16, bf16 and f32 are accepted");
    assert_eq!(refused(softmax(&x, 1)), "softmax: x holds F64; f16, bf16 and f32 are accepted");
    let logits = values(&[2, 8], 1, DType::F32);
    let targets = Tensor::new(&[1i64, 2], &Device::Cpu).unwrap();
    let said = "cross-entropy expects targets to hold u32 or i32; it holds I64";
    assert_eq!(refused(cross_entropy(&logits, &targets)), said);
    assert_eq!(refused(CrossEntropy::new().with_ignored(-1).mean(&logits, &targets)), said);
    for dtype in [DType::U32, DType::F64] {
        let mask = Tensor::zeros((2, 8), dtype, &Device::Cpu).unwrap();
        let said = refused(Softmax::new().with_mask(&mask).forward(&logits));
        let accepted =
            "u8, which shows the columns where it is not 0, and f16, bf16 and f32, which are added, are accepted";
        assert_eq!(said, format!("softmax: mask holds {dtype:?}; {accepted}"));
    }
    let bytes = Tensor::zeros((2, 8), DType::U8, &Device::Cpu).unwrap();
    assert_eq!(refused(softmax(&bytes, 1)), "softmax: x holds U8; f16, bf16 and f32 are accepted");
    by_mask(Softmax::new().with_mask(&bytes.get(0).unwrap().unsqueeze(1).unwrap()).forward(&values(
        &[8, 8],
        1,
        DType::F32,
    )));
    let half = values(&[2, 8], 1, DType::F16);
    let other = values(&[8], 1, DType::BF16);
    by_ferroflash(rms_norm(&half, &other, 1e-5), |error| {
        matches!(error, OperatorError::DType { tensor: Operand::Weight, .. })
    });
}

#[test]
fn shapes_and_strides() {
    emulate_cpu(true);
    let x = values(&[2, 8], 1, DType::F32);
    let [weight, bias] = [8, 7].map(|columns| values(&[columns], 2, DType::F32));
    by_ferroflash(layer_norm(&x, &weight, &bias, 1e-5), |error| {
        matches!(error, OperatorError::Shape { tensor: Operand::Bias, .. })
    });
    by_ferroflash(cross_entropy(&x, &Tensor::new(&[1u32, 2, 3], &Device::Cpu).unwrap()), |error| {
        matches!(error, OperatorError::Count { tensor: Operand::Targets, found: 3, expected: 2, .. })
    });
    let turned = x.t().unwrap();
    let said = refused(Softmax::new().forward(&turned));
    assert!(said.contains("contiguous"), "{said}");
    assert_eq!(refused(softmax(&x, 0)), "softmax works along the last axis of a tensor, 1 of 2; axis 0 was asked for");
    assert!(Softmax::new().with_mask(&values(&[3, 8], 1, DType::F32)).forward(&x).is_err());
}

#[test]
fn options() {
    emulate_cpu(true);
    let x = values(&[2, 8], 1, DType::F32);
    by_ferroflash(Norm::rms(0.0).forward(&x), |error| matches!(error, OperatorError::Epsilon { .. }));
    for p in [1.0, -0.5, f32::NAN] {
        let norm = Norm::rms(1e-6).with_dropout(Dropout::new(p, 0, 0));
        for result in [norm.forward(&x), norm.forward_residual(&x, &x).map(|(out, _)| out)] {
            assert!(matches!(
                Error::find(&result.unwrap_err()),
                Some(Error::Ferroflash(ferroflash::Error::Dropout(_)))
            ));
        }
    }
    let of_rows = |rows, dtype| Norm::rms(1e-6).with_rowscale(&values(&[rows], 1, dtype)).forward(&x);
    by_ferroflash(of_rows(3, DType::F32), |error| {
        matches!(error, OperatorError::Shape { tensor: Operand::Rowscale, .. })
    });
    by_ferroflash(of_rows(2, DType::F16), |error| {
        matches!(error, OperatorError::DType { tensor: Operand::Rowscale, .. })
    });
    by_ferroflash(Softmax::new().with_scale(f32::NAN).forward(&x), |error| {
        matches!(error, OperatorError::Scale { .. })
    });
    let targets = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
    by_ferroflash(CrossEntropy::new().with_smoothing(2.0).losses(&x, &targets), |error| {
        matches!(error, OperatorError::Smoothing { .. })
    });
}

#[test]
fn tables() {
    emulate_cpu(true);
    let (x, cos) = (values(&[1, 2, 3, 8], 1, DType::F32), values(&[3, 4], 2, DType::F32));
    by_ferroflash(rope_thd(&x, &cos, &values(&[3, 3], 3, DType::F32)), |error| {
        matches!(error, OperatorError::RotaryTable { tensor: Operand::Sin, .. })
    });
    let short = values(&[2, 4], 2, DType::F32);
    by_ferroflash(rope(&x, &short, &short), |error| matches!(error, OperatorError::PastTable { last: 2, .. }));
    let of_two = values(&[2, 3, 4], 2, DType::F32);
    by_ferroflash(rope(&x, &of_two, &of_two), |error| {
        matches!(error, OperatorError::IndexCount { tensor: Operand::Offsets, found: 2, expected: 1 })
    });
    let said = refused(rope(&x.squeeze(0).unwrap(), &cos, &cos));
    assert_eq!(said, "rotary-emb expects x of rank 4 (batch, heads, rows, columns); it has rank 3");
    let ids = Tensor::new(&[1u8, 2], &Device::Cpu).unwrap();
    assert_eq!(refused(embedding(&ids, &cos)), "embedding expects ids to hold u32 or i32; it holds U8");
    let ids = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
    by_ferroflash(embedding(&ids, &cos.unsqueeze(0).unwrap()), |error| {
        matches!(error, OperatorError::AxisCount { tensor: Operand::Table, .. })
    });
}

#[test]
fn optimisers() {
    emulate_cpu(true);
    let var = |dtype| Var::from_tensor(&values(&[4], 1, dtype)).unwrap();
    let (first, second) = (var(DType::F32), var(DType::F32));
    assert_eq!(
        refused(AdamW::new_lr(vec![first.clone(), var(DType::F64)], 0.1)),
        "adamw: parameter 1 holds F64; f16, bf16 and f32 are accepted"
    );
    assert_eq!(
        refused(AdamW::new_lr(vec![first.clone(), second.clone(), first.clone()], 0.1)),
        "adamw: parameter 2 is parameter 0 again; each variable is accepted once"
    );
    let loss = (first.as_tensor() + second.as_tensor()).unwrap().sum_all().unwrap();
    let mut grads = loss.backward().unwrap();
    let mut adamw = AdamW::new_lr(vec![first.clone(), second.clone()], f64::NAN).unwrap();
    by_ferroflash(adamw.step(&grads), |error| matches!(error, OperatorError::Hyperparameter { .. }));
    adamw.set_learning_rate(0.1);
    grads.insert(&second, values(&[5], 1, DType::F32));
    by_ferroflash(adamw.step(&grads), |error| {
        matches!(error, OperatorError::Shape { tensor: Operand::ParameterGradient(1), .. })
    });
    grads.insert(&second, values(&[4], 1, DType::F32));
    let with_rate = |rate: candle_core::Result<Tensor>| {
        let adamw = AdamW::new_lr(vec![first.clone(), second.clone()], 0.1).unwrap();
        adamw.with_device_rate(&rate.unwrap()).step(&grads)
    };
    by_ferroflash(with_rate(Tensor::new(&[0.1f32, 0.1], &Device::Cpu)), |error| {
        matches!(error, OperatorError::Shape { tensor: Operand::LearningRate, .. })
    });
    let said = "adamw expects the learning rate to hold f32; it holds F64";
    assert_eq!(refused(with_rate(Tensor::new(0.1f64, &Device::Cpu))), said);
    // Nothing was launched, of the first variable neither.
    assert_eq!(first.to_vec1::<f32>().unwrap(), values(&[4], 1, DType::F32).to_vec1::<f32>().unwrap());
}

#[test]
fn dense_layers() {
    emulate_cpu(true);
    let [x, weight, residual] = [[2, 8], [6, 8], [2, 6]].map(|shape| values(&shape, 1, DType::F32));
    let bias = values(&[6], 1, DType::F32);
    by_ferroflash(linear(&x, &values(&[6, 7], 1, DType::F32), None), |error| {
        matches!(error, OperatorError::Weights { columns: 8, gated: false, .. })
    });
    by_ferroflash(linear(&x, &bias, None), |error| matches!(error, OperatorError::Weights { .. }));
    by_ferroflash(dense(&x, &values(&[5, 8], 1, DType::F32), None, Activation::SwiGlu), |error| {
        matches!(error, OperatorError::Weights { gated: true, .. })
    });
    by_ferroflash(linear(&x, &weight, Some(&x.get(0).unwrap())), |error| {
        matches!(error, OperatorError::Shape { tensor: Operand::Bias, .. })
    });
    let turned = values(&[3, 2, 8], 1, DType::F32).transpose(0, 1).unwrap();
    by_ferroflash(linear(&turned, &weight, None), |error| matches!(error, OperatorError::RowStrides { found: 2, .. }));
    // Whichever operation of the graph the residual is a part of.
    let short = Var::from_tensor(&residual.narrow(0, 0, 1).unwrap()).unwrap();
    for bias in [bias.clone(), Var::from_tensor(&bias).unwrap().into_inner()] {
        by_ferroflash(Dense::new(&weight).with_bias(&bias).with_residual(&short).forward(&x), |error| {
            matches!(error, OperatorError::Shape { tensor: Operand::Residual, .. })
        });
    }
}

#[test]
fn losses_of_layers() {
    emulate_cpu(true);
    let (x, weight, bias) =
        (values(&[2, 8], 1, DType::F32), values(&[6, 8], 2, DType::F32), values(&[5], 3, DType::F32));
    let targets = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
    by_ferroflash(linear_cross_entropy(&x, &bias, None, &targets), |error| {
        matches!(error, OperatorError::Weights { columns: 8, .. })
    });
    by_ferroflash(linear_cross_entropy(&x, &weight, Some(&bias), &targets), |error| {
        matches!(error, OperatorError::Shape { tensor: Operand::Bias, .. })
    });
    by_ferroflash(linear_cross_entropy(&x, &weight, None, &targets.narrow(0, 0, 1).unwrap()), |error| {
        matches!(error, OperatorError::Count { tensor: Operand::Targets, found: 1, expected: 2, .. })
    });
    by_ferroflash(linear_cross_entropy(&x, &weight.to_dtype(DType::F16).unwrap(), None, &targets), |error| {
        matches!(error, OperatorError::DType { tensor: Operand::Weight, .. })
    });
    let of = LinearCrossEntropy::new(&weight);
    by_ferroflash(of.clone().with_loss(CrossEntropy::new().with_scale(0.0)).losses(&x, &targets), |error| {
        matches!(error, OperatorError::LogitScale { .. })
    });
    let turned = values(&[3, 2, 8], 1, DType::F32).transpose(0, 1).unwrap();
    let six = Tensor::zeros(6, DType::U32, &Device::Cpu).unwrap();
    by_ferroflash(of.losses(&turned, &six), |error| matches!(error, OperatorError::RowStrides { found: 2, .. }));
    let wide = values(&[2, 8], 1, DType::F64);
    let said = "linear-cross-entropy: x holds F64; f16, bf16 and f32 are accepted";
    assert_eq!(refused(linear_cross_entropy(&wide, &weight, None, &targets)), said);
    let targets = Tensor::new(&[1i64, 2], &Device::Cpu).unwrap();
    let said = "linear-cross-entropy expects targets to hold u32 or i32; it holds I64";
    assert_eq!(refused(linear_cross_entropy(&x, &weight, None, &targets)), said);
}
