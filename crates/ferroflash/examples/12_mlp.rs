//! The MLP of a transformer's block: SwiGLU, then a layer back to the width of the stream, which is added; and its gradients.
//!
//! `cargo run --release --example 12_mlp [-- DEVICE]`, with DEVICE `best` (the default), `cuda:0` or `emulator`.

use ferroflash::operators::{Activation, Dense};
use ferroflash::reference::{ReferenceDense, max_abs_difference, tolerance};
use ferroflash::{DType, Device, Layout, Tensor, bf16};

fn main() -> ferroflash::Result<()> {
    run(&Device::open(&std::env::args().nth(1).unwrap_or_else(|| "best".to_owned()))?)
}

fn run(device: &Device) -> ferroflash::Result<()> {
    let (tokens, width, hidden) = (20, 64, 136);
    let wave = |n: usize, f: f32, size: f32| -> Vec<bf16> {
        (0..n).map(|i| bf16::from_f32(size * (i as f32 * f).sin())).collect()
    };
    let stream = wave(tokens * width, 0.7, 1.0);
    // Gates first, then what they open; the other layer has a row for each number of the stream.
    let (open, close) = (wave(2 * hidden * width, 1.3, 0.2), wave(width * hidden, 2.1, 0.2));
    let upload = |data: &[bf16], shape: [usize; 2]| Tensor::from_slice(device, data, shape, Layout::RowMajor);
    let x = upload(&stream, [tokens, width])?;
    let (open_tensor, close_tensor) = (upload(&open, [2 * hidden, width])?, upload(&close, [width, hidden])?);

    let (open_view, close_view) = (open_tensor.view(), close_tensor.view());
    let opening = Dense::new(&open_view).with_activation(Activation::SwiGlu).with_z(true);
    let closing = Dense::new(&close_view).with_residual(&x.view());
    let inner = opening.forward(&x.view())?;
    let outer = closing.forward(&inner.out.view())?;
    println!("{}\n{}", inner.plan, outer.plan);

    // Backward, from the gradient of what leaves: the last layer first. What it has added has that gradient too.
    let dout = wave(tokens * width, 0.9, 1.0);
    let dout_tensor = upload(&dout, [tokens, width])?;
    let last = closing.backward(&inner.out.view(), None, &dout_tensor.view())?;
    let z = inner.z.as_ref().map(Tensor::view);
    let first = opening.backward(&x.view(), z.as_ref(), &last.dx.view())?;
    println!("{}\n{}", last.plan, first.plan);

    let wide = |data: &[bf16]| data.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    let (stream, open, close, dout) = (wide(&stream), wide(&open), wide(&close), wide(&dout));
    let opening = ReferenceDense { depth: width, weight: &open, bias: None, activation: Activation::SwiGlu };
    let closing = ReferenceDense { depth: hidden, weight: &close, bias: None, activation: Activation::Identity };
    let between = opening.forward(&stream, None)?.out;
    let between_rounded = opening.forward_rounded(&stream, None, DType::Bf16)?.out;
    let check = |name: &str, found: &Tensor, exact: &[f64], rounded: &[f64]| -> ferroflash::Result<()> {
        let error = max_abs_difference(&found.to_f64_vec()?, exact);
        assert!(error <= tolerance(max_abs_difference(rounded, exact)), "{name}: {error}");
        Ok(())
    };
    let exact = closing.forward(&between, Some(&stream))?.out;
    check("out", &outer.out, &exact, &closing.forward_rounded(&between_rounded, Some(&stream), DType::Bf16)?.out)?;
    let exact = closing.backward(&between, None, &dout)?;
    let rounded = closing.backward_rounded(&between_rounded, None, &dout, DType::Bf16)?;
    check("the last layer's weights", &last.dweight, &exact.dweight, &rounded.dweight)?;
    let exact = opening.backward(&stream, None, &exact.dx)?;
    let rounded = opening.backward_rounded(&stream, None, &rounded.dx, DType::Bf16)?;
    check("the first layer's weights", &first.dweight, &exact.dweight, &rounded.dweight)?;
    check("x", &first.dx, &exact.dx, &rounded.dx)
}

#[cfg(feature = "emulator")]
#[test]
fn two_layers_are_those_of_the_definition() {
    run(&Device::emulator().unwrap()).unwrap();
}
