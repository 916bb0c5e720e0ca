//! The MLP of a transformer's block: SwiGLU, then a layer back to the width of the stream, which is added.
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

    let inner = Dense::new(&open_tensor.view()).with_activation(Activation::SwiGlu).forward(&x.view())?;
    let outer = Dense::new(&close_tensor.view()).with_residual(&x.view()).forward(&inner.out.view())?;
    println!("{}\n{}", inner.plan, outer.plan);

    let wide = |data: &[bf16]| data.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    let (stream, open, close) = (wide(&stream), wide(&open), wide(&close));
    let first = ReferenceDense { depth: width, weight: &open, bias: None, activation: Activation::SwiGlu };
    let second = ReferenceDense { depth: hidden, weight: &close, bias: None, activation: Activation::Identity };
    let exact = second.forward(&first.forward(&stream, None)?.out, Some(&stream))?.out;
    let between = first.forward_rounded(&stream, None, DType::Bf16)?.out;
    let rounded = second.forward_rounded(&between, Some(&stream), DType::Bf16)?.out;
    let error = max_abs_difference(&outer.out.to_f64_vec()?, &exact);
    assert!(error <= tolerance(max_abs_difference(&rounded, &exact)), "{error}");
    Ok(())
}

#[cfg(feature = "emulator")]
#[test]
fn two_layers_are_those_of_the_definition() {
    run(&Device::emulator().unwrap()).unwrap();
}
