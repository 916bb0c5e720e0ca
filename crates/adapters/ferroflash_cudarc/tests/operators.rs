//! Operators on slices and streams of cudarc, against a driver that is a test fixture.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits};
use fake::{log, with_driver};
use ferroflash::operators::{Activation, AdamW, CrossEntropy, GradientNorm, Norm, Softmax};
use ferroflash::{Operand, OperatorError, bf16};
use ferroflash_cudarc::operators::{
    EmbeddingOptions, RotaryOptions, Tensors, adamw, cross_entropy, cross_entropy_backward, dense, dense_backward,
    embedding, embedding_backward, gradient_norm, linear_cross_entropy, linear_cross_entropy_backward, norm,
    norm_backward, rotary, rotary_backward, softmax, softmax_backward,
};
use ferroflash_cudarc::{Error, Result};
use std::sync::Arc;

#[path = "../../../cust/tests/support/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod fake;

fn zeros<T: DeviceRepr + ValidAsZeroBits>(stream: &Arc<CudaStream>, len: usize) -> CudaSlice<T> {
    stream.alloc_zeros::<T>(len).unwrap()
}

fn new_stream() -> Arc<CudaStream> {
    CudaContext::new(0).unwrap().new_stream().unwrap()
}

fn launches() -> Vec<String> {
    log().into_iter().filter(|line| line.starts_with("launch")).collect()
}

/// One launch, told where the slices lie; before it the stream waits for their writers, and behind it the use is recorded.
#[test]
fn slices_are_used_where_they_lie() {
    with_driver(&[], &[], || {
        let stream = new_stream();
        let (x, weight) = (zeros::<bf16>(&stream, 8 * 64 + 16), zeros::<f32>(&stream, 64));
        let (mut out, mut rstd) = (zeros::<bf16>(&stream, 6 * 64), zeros::<f32>(&stream, 6));
        let mut call = || {
            let tensors = Tensors::new()
                .read_strided(Operand::X, &x, [6, 64], [80, 1])
                .read(Operand::Weight, &weight, [64])
                .write(Operand::Out, &mut out, [6, 64])
                .write(Operand::Rstd, &mut rstd, [6]);
            norm(&stream, Norm::rms(1e-6), tensors).unwrap();
        };
        // Kernels are loaded by the first.
        call();
        let start = log().len();
        call();
        let lines: Vec<String> = log().into_iter().skip(start).collect();
        let launch = lines.iter().position(|line| line.starts_with("launch")).unwrap();
        // What the kernel is told first is where x is.
        let first = format!("param {:#x}", x.device_ptr(&stream).0);
        assert!(lines[launch].contains("norm") && lines[launch].ends_with(&first), "{}", lines[launch]);
        let count = |lines: &[String], start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!(count(&lines, "launch"), 1, "{lines:?}");
        // Of what is read its writers, of what is written its readers too.
        assert_eq!(count(&lines[..launch], "stream 5 waits for event"), 2 + 2 * 2, "{lines:?}");
        assert_eq!(count(&lines[launch..], "record event"), 4, "{lines:?}");
    });
}

/// Every function launches a kernel of its name, with all tensors that it takes.
#[test]
fn every_function_launches() {
    with_driver(&[], &[], || {
        let stream = new_stream();
        let [x, dout, of_columns, of_rows] = [6 * 64, 6 * 64, 64, 6].map(|len| zeros::<f32>(&stream, len));
        let numbers = zeros::<i32>(&stream, 6);
        let (mut out, mut more) = (zeros::<f32>(&stream, 6 * 64), zeros::<f32>(&stream, 6 * 64));
        let [mut line, mut second] = [64, 64].map(|len| zeros::<f32>(&stream, len));
        let launched = |start: usize, name: &str, result: Result<()>| {
            result.unwrap_or_else(|error| panic!("{name}: {error}"));
            let lines: Vec<_> = launches().split_off(start);
            assert!(!lines.is_empty() && lines.iter().any(|line| line.contains(name)), "{name}: {lines:?}");
            start + lines.len()
        };
        let rows = [6, 64];
        let tensors = Tensors::new()
            .read(Operand::X, &x, rows)
            .read(Operand::Residual, &dout, rows)
            .read(Operand::Weight, &of_columns, [64])
            .read(Operand::Bias, &of_columns, [64])
            .write(Operand::Out, &mut out, rows)
            .write(Operand::ResidualOut, &mut more, rows)
            .write(Operand::Rstd, &mut line, [6])
            .write(Operand::Mean, &mut second, [6]);
        let at = launched(0, "norm", norm(&stream, Norm::layer(1e-5), tensors));
        let tensors = Tensors::new()
            .read(Operand::Normalised, &x, rows)
            .read(Operand::Dout, &dout, rows)
            .read(Operand::DresidualOut, &dout, rows)
            .read(Operand::Rstd, &of_rows, [6])
            .read(Operand::Mean, &of_rows, [6])
            .read(Operand::Weight, &of_columns, [64])
            .write(Operand::Dx, &mut out, rows)
            .write(Operand::Dresidual, &mut more, rows)
            .write(Operand::Dweight, &mut line, [64]);
        let at = launched(at, "norm_backward", norm_backward(&stream, Norm::layer(1e-5), tensors));
        let tensors = Tensors::new()
            .read(Operand::X, &x, rows)
            .read_strided(Operand::Mask, &of_columns, rows, [0, 1])
            .write(Operand::Out, &mut out, rows);
        let at = launched(at, "softmax", softmax(&stream, Softmax::new().causal(true), tensors));
        let seen = zeros::<u8>(&stream, 64);
        let of_softmax = |out| Tensors::new().read(Operand::X, &x, rows).write(Operand::Out, out, rows);
        let tensors = of_softmax(&mut out).booleans_strided(Operand::Mask, &seen, rows, [0, 1]);
        let at = launched(at, "softmax", softmax(&stream, Softmax::new(), tensors));
        let tensors = Tensors::new().read(Operand::Out, &x, rows).read(Operand::Dout, &dout, rows).write(
            Operand::Dx,
            &mut out,
            rows,
        );
        let at = launched(at, "softmax_backward", softmax_backward(&stream, Softmax::log(), tensors));
        let tensors = Tensors::new()
            .read(Operand::Logits, &x, rows)
            .numbers(Operand::Targets, &numbers)
            .write(Operand::Loss, &mut line, [6])
            .write(Operand::Lse, &mut second, [6])
            .write(Operand::ZLosses, &mut more, [6]);
        let at = launched(at, "cross_entropy", cross_entropy(&stream, CrossEntropy::new(), tensors));
        let tensors = Tensors::new()
            .read(Operand::Logits, &x, rows)
            .read(Operand::Lse, &of_rows, [6])
            .read(Operand::Dloss, &of_rows, [6])
            .numbers(Operand::Targets, &numbers)
            .write(Operand::Dlogits, &mut out, rows);
        let at = launched(at, "cross_entropy_backward", cross_entropy_backward(&stream, CrossEntropy::new(), tensors));
        let heads = [1, 6, 2, 32];
        let tables = || Tensors::new().read(Operand::Cos, &dout, [20, 16]).read(Operand::Sin, &dout, [20, 16]);
        let tensors = tables().read(Operand::X, &x, heads).write(Operand::Out, &mut out, heads);
        let at = launched(at, "rotary", rotary(&stream, RotaryOptions { offset: 14, ..Default::default() }, tensors));
        let tensors = tables().read(Operand::Dout, &x, heads).numbers(Operand::Positions, &numbers).write(
            Operand::Dx,
            &mut out,
            heads,
        );
        let interleaved = RotaryOptions { interleaved: true, ..Default::default() };
        let at = launched(at, "rotary", rotary_backward(&stream, interleaved, tensors));
        let tensors = Tensors::new().read(Operand::Table, &x, [12, 32]).numbers(Operand::Ids, &numbers).write(
            Operand::Out,
            &mut out,
            [6, 32],
        );
        let at = launched(at, "embedding", embedding(&stream, EmbeddingOptions::default(), tensors));
        let tensors = Tensors::new()
            .read(Operand::Table, &x, [12, 32])
            .read(Operand::Dout, &dout, [6, 32])
            .numbers(Operand::Ids, &numbers)
            .write(Operand::Dtable, &mut out, [12, 32]);
        let at = launched(at, "embedding", embedding_backward(&stream, EmbeddingOptions::default(), tensors));
        let tensors = Tensors::new()
            .read(Operand::X, &x, [4, 32])
            .read(Operand::Weight, &dout, [10, 32])
            .read(Operand::Bias, &of_columns, [10])
            .read(Operand::Residual, &x, [4, 5])
            .write(Operand::Out, &mut out, [4, 5])
            .write(Operand::Z, &mut more, [4, 10]);
        let at = launched(at, "dense", dense(&stream, Activation::SwiGlu, tensors));
        let of_layer = || {
            let tensors = Tensors::new().read(Operand::X, &x, [4, 32]).read(Operand::Weight, &dout, [10, 32]);
            tensors.read(Operand::Bias, &of_columns, [10]).read(Operand::Dout, &x, [4, 5])
        };
        let tensors = of_layer()
            .read(Operand::Z, &x, [4, 10])
            .write(Operand::Dx, &mut out, [4, 32])
            .write(Operand::Dweight, &mut more, [10, 32])
            .write(Operand::Dbias, &mut line, [10]);
        let before = at;
        let at = launched(at, "dense_dz", dense_backward(&stream, Activation::SwiGlu, tensors));
        // What goes through the activation with parts of the sums for the biases, these, and two products.
        assert_eq!(at - before, 4);
        let tensors = of_layer().write(Operand::Dbias, &mut line, [10]);
        let before = at;
        let at = launched(at, "dense_dz", dense_backward(&stream, Activation::SwiGlu, tensors));
        // z is computed again, and there are no products for what is not given.
        assert_eq!(at - before, 3);
        let of_losses = || {
            let tensors = Tensors::new().read(Operand::X, &x, [6, 32]).read(Operand::Weight, &dout, [10, 32]);
            tensors.read(Operand::Bias, &of_columns, [10]).numbers(Operand::Targets, &numbers)
        };
        let tensors = of_losses().write(Operand::Loss, &mut line, [6]).write(Operand::Lse, &mut second, [6]).write(
            Operand::ZLosses,
            &mut more,
            [6],
        );
        let before = at;
        let at = launched(at, "linear_cross_entropy", linear_cross_entropy(&stream, CrossEntropy::new(), tensors));
        // Parts of the losses, and what merges these.
        assert_eq!(at - before, 2);
        let tensors = of_losses()
            .read(Operand::Lse, &of_rows, [6])
            .read(Operand::Dloss, &of_rows, [6])
            .write(Operand::Dx, &mut out, [6, 32])
            .write(Operand::Dweight, &mut more, [10, 32])
            .write(Operand::Dbias, &mut line, [10]);
        let before = at;
        let gradients = linear_cross_entropy_backward(&stream, CrossEntropy::new(), tensors);
        let at = launched(at, "linear_cross_entropy_dlogits", gradients);
        // Gradients of logits, sums for the biases in two launches, and two products.
        assert_eq!(at - before, 5);
        let tensors = Tensors::new()
            .read(Operand::ParameterGradient(0), &x, rows)
            .read(Operand::ParameterGradient(1), &of_rows, [6])
            .write(Operand::Out, &mut line, [2]);
        let at = launched(at, "squares", gradient_norm(&stream, GradientNorm::new().with_most(1.0), tensors));
        let [mut parameter, mut small] = [6 * 64, 6].map(|len| zeros::<f32>(&stream, len));
        let step = zeros::<i32>(&stream, 1);
        let [mut moment, mut v] = [6, 6].map(|len| zeros::<f32>(&stream, len));
        let tensors = Tensors::new()
            .write(Operand::Parameter(0), &mut parameter, rows)
            .read(Operand::ParameterGradient(0), &x, rows)
            .write(Operand::Moment(0), &mut out, rows)
            .write(Operand::SecondMoment(0), &mut more, rows)
            .write(Operand::Parameter(1), &mut small, [6])
            .read(Operand::ParameterGradient(1), &of_rows, [6])
            .write(Operand::Moment(1), &mut moment, [6])
            .write(Operand::SecondMoment(1), &mut v, [6])
            .read(Operand::GradientFactor, &line, [1])
            .read(Operand::LearningRate, &second, [1])
            .numbers(Operand::StepCount, &step);
        launched(at, "adamw", adamw(&stream, AdamW::new(0.1), 1, tensors));
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let stream = new_stream();
        let (x, of_rows) = (zeros::<f32>(&stream, 6 * 64), zeros::<f32>(&stream, 6));
        let mut out = zeros::<f32>(&stream, 6 * 64);
        let of_x = |rows: usize| Tensors::new().read(Operand::X, &x, [rows, 64]);

        let found = norm(&stream, Norm::rms(1e-6), of_x(6)).unwrap_err();
        assert!(matches!(found, Error::NotGiven { operand: Operand::Out }), "{found:?}");
        assert_eq!(found.to_string(), "out is not among the tensors of the call, which needs it");
        let found = norm(&stream, Norm::rms(1e-6), Tensors::new().write(Operand::Out, &mut out, [6, 64])).unwrap_err();
        assert!(matches!(found, Error::NotGiven { operand: Operand::X }), "{found:?}");
        let found = softmax(&stream, Softmax::new(), of_x(6).read(Operand::Weight, &x, [64])).unwrap_err();
        assert!(matches!(found, Error::NotTaken { operand: Operand::Weight }), "{found:?}");
        let found = softmax(&stream, Softmax::new(), of_x(6).read(Operand::X, &x, [6, 64])).unwrap_err();
        assert!(matches!(found, Error::NotTaken { operand: Operand::X }), "{found:?}");

        let tensors = of_x(7).write(Operand::Out, &mut out, [7, 64]);
        let found = softmax(&stream, Softmax::new(), tensors).unwrap_err();
        assert!(matches!(found, Error::Ferroflash(ferroflash::Error::StorageTooSmall { .. })), "{found:?}");
        let tensors = of_x(6).write(Operand::Out, &mut out, [5, 64]);
        let found = softmax(&stream, Softmax::new(), tensors).unwrap_err();
        let Error::Ferroflash(ferroflash::Error::Operator(found)) = found else { panic!("{found:?}") };
        assert!(matches!(found, OperatorError::Shape { tensor: Operand::Out, .. }), "{found:?}");

        let seen = zeros::<u8>(&stream, 64);
        let tensors = of_x(6).write(Operand::Out, &mut out, [6, 64]).booleans(Operand::Mask, &seen, [6, 64]);
        let found = softmax(&stream, Softmax::new(), tensors).unwrap_err();
        assert!(matches!(found, Error::Ferroflash(ferroflash::Error::StorageTooSmall { .. })), "{found:?}");
        let tensors = of_x(6).write(Operand::Out, &mut out, [6, 64]).booleans(Operand::Mask, &seen, [1, 64]);
        let found = softmax(&stream, Softmax::new(), tensors).unwrap_err();
        let Error::Ferroflash(ferroflash::Error::Operator(found)) = found else { panic!("{found:?}") };
        assert!(matches!(found, OperatorError::Shape { tensor: Operand::Mask, .. }), "{found:?}");
        let tensors = of_x(6).write(Operand::Out, &mut out, [6, 64]).booleans(Operand::Weight, &seen, [64]);
        let found = softmax(&stream, Softmax::new(), tensors).unwrap_err();
        assert!(matches!(found, Error::NotTaken { operand: Operand::Weight }), "{found:?}");

        let of_layer = || of_x(6).read(Operand::Weight, &x, [4, 64]).read(Operand::Dout, &x, [6, 4]);
        let by_ferroflash = |found: Error| match found {
            Error::Ferroflash(ferroflash::Error::Operator(found)) => found,
            found => panic!("{found:?}"),
        };
        let found = by_ferroflash(dense_backward(&stream, Activation::Relu, of_layer()).unwrap_err());
        assert!(matches!(found, OperatorError::NothingAsked { .. }), "{found:?}");
        let tensors = of_layer().write(Operand::Dbias, &mut out, [4]);
        let found = by_ferroflash(dense_backward(&stream, Activation::Relu, tensors).unwrap_err());
        assert!(matches!(found, OperatorError::Unwanted { tensor: Operand::Dbias, .. }), "{found:?}");
        let tensors = of_layer().read(Operand::Z, &x, [6, 4]).write(Operand::Dx, &mut out, [6, 64]);
        let found = by_ferroflash(dense_backward(&stream, Activation::Identity, tensors).unwrap_err());
        assert!(matches!(found, OperatorError::Unwanted { tensor: Operand::Z, .. }), "{found:?}");
        let tensors = of_x(6).read(Operand::Weight, &x, [4, 64]).write(Operand::Dx, &mut out, [6, 64]);
        let found = dense_backward(&stream, Activation::Relu, tensors).unwrap_err();
        assert!(matches!(found, Error::NotGiven { operand: Operand::Dout }), "{found:?}");
        let tensors = of_layer().read(Operand::Residual, &x, [6, 4]).write(Operand::Dx, &mut out, [6, 64]);
        let found = dense_backward(&stream, Activation::Relu, tensors).unwrap_err();
        assert!(matches!(found, Error::NotTaken { operand: Operand::Residual }), "{found:?}");

        // Lists have no gaps, and what belongs to one entry is all there.
        let tensors = Tensors::new().write(Operand::Parameter(1), &mut out, [6, 64]).read(
            Operand::ParameterGradient(1),
            &x,
            [6, 64],
        );
        let found = adamw(&stream, AdamW::new(0.1), 1, tensors).unwrap_err();
        assert!(matches!(found, Error::NotTaken { operand: Operand::ParameterGradient(1) }), "{found:?}");
        let tensors = Tensors::new().write(Operand::Parameter(0), &mut out, [6, 64]);
        let found = adamw(&stream, AdamW::new(0.1), 1, tensors).unwrap_err();
        assert!(matches!(found, Error::NotGiven { operand: Operand::ParameterGradient(0) }), "{found:?}");

        let [mut moment, mut v] = [(); 2].map(|()| zeros::<f32>(&stream, 6 * 64));
        let tensors = Tensors::new()
            .write(Operand::Parameter(0), &mut out, [6, 64])
            .read(Operand::ParameterGradient(0), &x, [6, 64])
            .write(Operand::Moment(0), &mut moment, [6, 64])
            .write(Operand::SecondMoment(0), &mut v, [6, 64])
            .read(Operand::LearningRate, &of_rows, [6]);
        let found = by_ferroflash(adamw(&stream, AdamW::new(0.1), 1, tensors).unwrap_err());
        assert!(matches!(found, OperatorError::Shape { tensor: Operand::LearningRate, .. }), "{found:?}");

        let far = zeros::<f32>(&CudaContext::new(1).unwrap().new_stream().unwrap(), 6 * 64);
        let tensors = Tensors::new().read(Operand::X, &far, [6, 64]).write(Operand::Out, &mut out, [6, 64]);
        let found = softmax(&stream, Softmax::new(), tensors).unwrap_err();
        let is_far = matches!(found, Error::ContextMismatch { operand: Operand::X, found: 1, expected: 0 });
        assert!(is_far, "{found:?}");
        assert!(launches().is_empty());
    });
}
