//! Rotary embedding of the queries and keys of a fused projection, of requests that are at positions of their own, and the gradient, which turns back.
//!
//! `cargo run --release --example 10_rotary [-- DEVICE]`, with DEVICE `best` (the default), `cuda:0` or `emulator`.

use ferroflash::operators::{Rotary, RotaryPositions};
use ferroflash::{Device, Indices, Layout, Tensor, bf16};

fn main() -> ferroflash::Result<()> {
    run(&Device::open(&std::env::args().nth(1).unwrap_or_else(|| "best".to_owned()))?)
}

fn run(device: &Device) -> ferroflash::Result<()> {
    let (batch, rows, q_heads, kv_heads, dim, positions) = (2, 5, 4, 2, 64, 4096);
    let heads = q_heads + 2 * kv_heads;

    // Angles of all positions, in f32: 10000^(-2 i / dim) turns a position.
    let angle = |i: usize| (i / (dim / 2)) as f32 * 10_000f32.powf(-2.0 * (i % (dim / 2)) as f32 / dim as f32);
    let table = |of: fn(f32) -> f32| {
        let numbers: Vec<f32> = (0..positions * dim / 2).map(|i| of(angle(i))).collect();
        Tensor::from_slice(device, &numbers, [positions, dim / 2], Layout::RowMajor)
    };
    let (cos, sin) = (table(f32::cos)?, table(f32::sin)?);

    // What one projection gives: queries, keys and values side by side.
    let data: Vec<bf16> = (0..batch * rows * heads * dim).map(|i| bf16::from_f32((i as f32 * 0.37).sin())).collect();
    let mut projection = Tensor::from_slice(device, &data, [batch, rows, heads, dim], Layout::RowMajor)?;

    // One request is at its first token, the other at its thousandth. Queries and keys are one view, and one launch; values stay.
    let offsets = Indices::from_slice(device, &[0, 1000])?;
    let rotary = Rotary::new(&cos.view(), &sin.view()).with_positions(RotaryPositions::Offsets(offsets.view()));
    let stream = device.default_stream();
    let mut queries_and_keys = projection.view_mut().into_narrow(2, 0..q_heads + kv_heads)?;
    println!("{}", rotary.plan_in_place(&queries_and_keys)?);
    rotary.in_place(&stream, &mut queries_and_keys)?;

    // The turn back, which is that of gradients too: what rounding twice leaves is small.
    let turned = projection.to_vec::<bf16>()?;
    let mut queries_and_keys = projection.view_mut().into_narrow(2, 0..q_heads + kv_heads)?;
    rotary.conjugate().in_place(&stream, &mut queries_and_keys)?;
    let back = projection.to_vec::<bf16>()?;
    let is_value = |i: usize| i / dim % heads >= q_heads + kv_heads;
    assert!((0..data.len()).filter(|&i| is_value(i)).all(|i| turned[i] == data[i]));
    assert!(turned != data && back.iter().zip(&data).all(|(a, b)| (a.to_f32() - b.to_f32()).abs() < 0.02));
    Ok(())
}

#[cfg(feature = "emulator")]
#[test]
fn values_stay_and_turns_go_back() {
    run(&Device::emulator().unwrap()).unwrap();
}
