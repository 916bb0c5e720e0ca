//! A table of embeddings in bf16 with a master in f32, trained by AdamW to give each token the row that belongs to it.
//!
//! `cargo run --release --example 11_adamw [-- DEVICE]`, with DEVICE `best` (the default), `cuda:0` or `emulator`.

use ferroflash::operators::{AdamW, AdamWTensor, Embedding, StepNumber};
use ferroflash::{DType, Device, Indices, Layout, Tensor, bf16};

fn main() -> ferroflash::Result<()> {
    run(&Device::open(&std::env::args().nth(1).unwrap_or_else(|| "best".to_owned()))?)
}

fn run(device: &Device) -> ferroflash::Result<()> {
    let (vocabulary, columns, steps) = (50, 32, 60);
    let ids: Vec<i32> = (0..200).map(|i| i * i % 47).collect();
    let wanted = |id: i32, column: usize| ((id * 31) as f32 + column as f32 * 0.7).sin();

    let mut table = Tensor::zeros(device, DType::Bf16, [vocabulary, columns], Layout::RowMajor)?;
    // What is kept of each parameter: itself in f32, and two moments.
    let kept = || Tensor::zeros(device, DType::F32, [vocabulary, columns], Layout::RowMajor);
    let (mut master, mut moment, mut second_moment) = (kept()?, kept()?, kept()?);
    let tokens = Indices::from_slice(device, &ids)?;
    let stream = device.default_stream();
    let mut losses = Vec::new();
    for step in 1..=steps {
        let view = table.view();
        let embedding = Embedding::new(&view);
        let rows = embedding.forward(&tokens.view())?.out.to_vec::<bf16>()?;
        // Half of the squared distance to what is wanted, whose gradient is the distance.
        let distance: Vec<f32> =
            rows.iter().enumerate().map(|(i, x)| x.to_f32() - wanted(ids[i / columns], i % columns)).collect();
        losses.push(distance.iter().map(|x| x * x / 2.0).sum::<f32>() / ids.len() as f32);
        let dout: Vec<bf16> = distance.iter().map(|&x| bf16::from_f32(x)).collect();
        let dout = Tensor::from_slice(device, &dout, [ids.len(), columns], Layout::RowMajor)?;
        let dtable = embedding.backward(&tokens.view(), &dout.view())?.dtable;

        let parameter = AdamWTensor::new(table.view_mut(), &dtable.view(), moment.view_mut(), second_moment.view_mut());
        let adamw = AdamW::new(0.1).with_decay(0.0).with_betas(0.9, 0.95);
        adamw.step(&stream, StepNumber::Host(step), &mut [parameter.with_master(master.view_mut())])?;
    }
    println!("loss {:.4} before, {:.4} after {steps} steps", losses[0], losses[losses.len() - 1]);
    assert!(losses[losses.len() - 1] < losses[0] / 50.0, "{losses:?}");
    // A row that no token names is where it was.
    let table = table.to_vec::<bf16>()?;
    assert!(table[48 * columns..].iter().all(|x| x.to_f32() == 0.0));
    Ok(())
}

#[cfg(feature = "emulator")]
#[test]
fn the_loss_goes_down() {
    run(&Device::emulator().unwrap()).unwrap();
}
