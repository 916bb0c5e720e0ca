//! Programs on scores: functions of your own inside of the attention kernels, with gradients.
//!
//! Three documents are packed into one sequence. A row sees the keys of its own document alone, up to itself, and scores fall with the
//! distance, each head by a slope of its own. No mask of the library says that; a program of six lines does.
//!
//! `cargo run --release --example 07_programs [-- DEVICE]`, with DEVICE `best` (the default), `cuda:0` or `emulator`.

use ferroflash::score::{ProgramTensor, ScoreProgram};
use ferroflash::{Attention, Device, Indices, Layout, Shape, Tensor};

const HEADS: usize = 2;
const HEAD_DIM: usize = 32;
/// Rows of each document.
const DOCUMENTS: [usize; 3] = [20, 7, 13];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "best".to_owned());
    let device = Device::open(&name)?;
    println!("device {} ({})", device.info().name, device.info().id());
    println!("documents see themselves alone: results differ from those of each alone by {:.1e}", run(&device)?);
    Ok(())
}

#[test]
fn documents_see_themselves_alone() {
    assert!(run(&Device::emulator().unwrap()).unwrap() < 1e-6);
}

/// The largest difference between the output of all documents in one call and that of each in a call of its own.
fn run(device: &Device) -> ferroflash::Result<f32> {
    let program = ScoreProgram::new("documents with a decay", |p| {
        let distance = (p.position() - p.key()).abs().to_float();
        let decayed = p.score() - p.floats("slopes").at([p.head()]) * distance;
        let ids = p.ints("documents");
        let same = ids.at([p.batch(), p.row()]).eq(ids.at([p.batch(), p.key()]));
        same.select(decayed, p.hidden())
    })?;
    println!("{program}\nits derivative is\n{}", program.derivative());

    let rows: usize = DOCUMENTS.iter().sum();
    let ids: Vec<i32> = DOCUMENTS.iter().zip(0..).flat_map(|(&rows, id)| vec![id; rows]).collect();
    let (slopes, ids) =
        (Tensor::from_slice(device, &[0.5f32, 0.125], [HEADS], Layout::RowMajor)?, Indices::from_slice(device, &ids)?);
    let tensors = [("slopes", slopes.view().into()), ("documents", ProgramTensor::ints(ids.view(), [1, rows])?)];
    let bound = program.bind(&tensors)?;
    let attention = Attention::new().causal().with_lse(true).with_program(&bound);

    let wave =
        |seed: usize| -> Vec<f32> { (0..rows * HEADS * HEAD_DIM).map(|i| ((i * 7 + seed) as f32).sin()).collect() };
    let (q, k, v) = (wave(1), wave(2), wave(3));
    let tensor = |data: &[f32]| {
        let shape = Shape::new(1, data.len() / (HEADS * HEAD_DIM), HEADS, HEAD_DIM);
        Tensor::from_slice(device, data, shape, Layout::Bshd)
    };
    let (all_q, all_k, all_v) = (tensor(&q)?, tensor(&k)?, tensor(&v)?);
    let (qv, kv, vv) = (all_q.view(), all_k.view(), all_v.view());
    let together = attention.forward(&qv, &kv, &vv)?;
    println!("{}", together.plan);

    // Gradients go through the program.
    let lse = together.lse.as_ref().expect("asked for");
    let gradients = attention.backward(&qv, &kv, &vv, &together.out.view(), &lse.view(), qv)?;
    println!("{}", gradients.plan);

    // Each document alone needs no mask but causal, and no ids.
    let alone = ScoreProgram::alibi();
    let slopes = slopes.view().reshape([1, HEADS])?;
    let bound = alone.bind(&[("slopes", slopes.into())])?;
    let attention = Attention::new().causal().with_program(&bound);
    let together = together.out.to_vec::<f32>()?;
    let (mut first, mut largest) = (0, 0f32);
    for rows in DOCUMENTS {
        let own = first * HEADS * HEAD_DIM..(first + rows) * HEADS * HEAD_DIM;
        let [q, k, v] = [&q, &k, &v].map(|data| tensor(&data[own.clone()]));
        let out = attention.forward(&q?.view(), &k?.view(), &v?.view())?.out.to_vec::<f32>()?;
        let difference = out.iter().zip(&together[own]).map(|(a, b)| (a - b).abs());
        largest = difference.fold(largest, f32::max);
        first += rows;
    }
    Ok(largest)
}
