//! A layer of a training step around attention: a residual stream in f32, its RMSNorm in bf16, and their gradients.
//!
//! `cargo run --release --example 08_norms [-- DEVICE]`, with DEVICE `best` (the default), `cuda:0` or `emulator`.

use ferroflash::operators::Norm;
use ferroflash::{Device, Layout, Tensor, bf16};

fn main() -> ferroflash::Result<()> {
    run(&Device::open(&std::env::args().nth(1).unwrap_or_else(|| "best".to_owned()))?)
}

fn run(device: &Device) -> ferroflash::Result<()> {
    let (tokens, columns) = (6, 256);
    let wave = |n: usize, f: f32| (0..n).map(move |i| (i as f32 * f).sin());

    // What a block adds, in bf16, to a stream that is kept in f32.
    let added: Vec<bf16> = wave(tokens * columns, 0.7).map(bf16::from_f32).collect();
    let stream: Vec<f32> = wave(tokens * columns, 1.3).collect();
    let weight: Vec<f32> = wave(columns, 0.1).map(|x| 0.1 * x).collect();
    let added = Tensor::from_slice(device, &added, [tokens, columns], Layout::RowMajor)?;
    let stream = Tensor::from_slice(device, &stream, [tokens, columns], Layout::RowMajor)?;
    let weight = Tensor::from_slice(device, &weight, [columns], Layout::RowMajor)?;

    let norm =
        Norm::rms(1e-6).with_weight(&weight.view()).zero_centred().with_residual(&stream.view()).with_statistics(true);
    let normed = norm.forward(&added.view())?;
    println!("{}\n", normed.plan);

    // The gradient of the output, and that which comes down the stream itself.
    let saved = normed.saved(&added.view()).expect("statistics were asked for");
    let gradients = norm.backward(&saved, &normed.out.view(), Some(&stream.view()))?;
    println!("{}", gradients.plan);
    let (dx, dstream) =
        (gradients.dx.to_vec::<bf16>()?, gradients.dresidual.expect("f32 is another type").to_vec::<f32>()?);
    // Both addends of one sum have one gradient.
    assert!(dx.iter().zip(&dstream).all(|(dx, &dstream)| *dx == bf16::from_f32(dstream)));
    Ok(())
}

#[cfg(feature = "emulator")]
#[test]
fn both_addends_have_one_gradient() {
    run(&Device::emulator().unwrap()).unwrap();
}
