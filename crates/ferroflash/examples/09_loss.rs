//! The loss of training steps: cross-entropy of rows of logits, averaged over those that count, and its gradient, which takes the place of the logits.
//!
//! `cargo run --release --example 09_loss [-- DEVICE]`, with DEVICE `best` (the default), `cuda:0` or `emulator`.

use ferroflash::operators::{CrossEntropy, Softmax};
use ferroflash::{Device, Indices, Layout, Tensor};

/// The target of padding.
const IGNORED: i32 = -100;

fn main() -> ferroflash::Result<()> {
    run(&Device::open(&std::env::args().nth(1).unwrap_or_else(|| "best".to_owned()))?)
}

fn run(device: &Device) -> ferroflash::Result<()> {
    let (rows, classes) = (6, 300);
    // What a model would compute; here the logits themselves are what is trained.
    let mut weights: Vec<f32> = (0..rows * classes).map(|i| (i as f32 * 0.7).sin()).collect();
    let classes_of_rows = [7, 299, 0, 42, IGNORED, IGNORED];
    let targets = Indices::from_slice(device, &classes_of_rows)?;
    let counted = classes_of_rows.iter().filter(|&&target| target != IGNORED).count() as f32;
    // The mean is a factor on the gradients of the losses.
    let dloss = Tensor::from_slice(device, &[1.0 / counted; 6], [rows], Layout::RowMajor)?;
    let of = CrossEntropy::new().with_smoothing(0.1).with_z_loss(1e-4).with_ignored(IGNORED).with_lse(true);

    let mut losses = Vec::new();
    for step in 0..5 {
        let mut logits = Tensor::from_slice(device, &weights, [rows, classes], Layout::RowMajor)?;
        let found = of.forward(&logits.view(), &targets.view())?;
        losses.push(found.loss.to_vec::<f32>()?.iter().sum::<f32>() / counted);
        println!("step {step}: loss {:.4}", losses[step]);
        if step == 0 {
            println!("{}\n", found.plan);
        }
        let lse = found.lse.expect("log-sum-exps were asked for");
        let stream = device.default_stream();
        of.backward_in_place(&stream, &mut logits.view_mut(), &targets.view(), &lse.view(), &dloss.view())?;
        let dlogits = logits.to_vec::<f32>()?;
        weights.iter_mut().zip(dlogits).for_each(|(weight, gradient)| *weight -= 10.0 * gradient);
    }
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");

    // What the last logits say of each class.
    let logits = Tensor::from_slice(device, &weights, [rows, classes], Layout::RowMajor)?;
    let probabilities = Softmax::new().forward(&logits.view())?.out.to_vec::<f32>()?;
    println!("\nrow 0 is of class 7 with a probability of {:.3}", probabilities[7]);
    Ok(())
}

#[cfg(feature = "emulator")]
#[test]
fn the_loss_falls() {
    run(&Device::emulator().unwrap()).unwrap();
}
