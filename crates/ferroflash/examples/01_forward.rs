//! Attention on tensors of your own, checked against the definition in f64.
//!
//! `cargo run --release --example 01_forward [-- DEVICE]`, with DEVICE `best` (the default), `cuda:0` or `emulator`.

use ferroflash::{Attention, Device, Layout, Problem, Shape, Tensor, bf16, reference};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "best".to_owned());
    let device = Device::open(&name)?;
    println!("device     {} ({})", device.info().name, device.info().id());

    // Eight query heads share two key-value heads, as in most language models of today.
    let (q_shape, kv_shape) = (Shape::new(2, 100, 8, 64), Shape::new(2, 150, 2, 64));
    let q = Tensor::from_slice(&device, &wave(q_shape, 0.37), q_shape, Layout::Bshd)?;
    let k = Tensor::from_slice(&device, &wave(kv_shape, 0.61), kv_shape, Layout::Bshd)?;
    let v = Tensor::from_slice(&device, &wave(kv_shape, 0.83), kv_shape, Layout::Bshd)?;

    let attention = Attention::new().causal().with_lse(true);
    let output = attention.forward(&q.view(), &k.view(), &v.view())?;
    println!("{}", output.plan);

    let out = output.out.to_f64_vec()?;
    let lse = output.lse.ok_or("the log-sum-exp was asked for")?.to_vec()?;
    println!("out[0, 0, 0, ..4] = {:?}", &out[..4]);
    println!("lse[0, 0, ..4]    = {:?}", &lse[..4]);

    // What the definition says, and how far a plain bf16 computation is from it.
    let problem: Problem = output.plan.problem;
    let (q, k, v) = (q.to_f64_vec()?, k.to_f64_vec()?, v.to_f64_vec()?);
    let exact = reference::forward(&q, &k, &v, problem, &attention)?;
    let rounded = reference::forward_rounded(&q, &k, &v, problem, &attention)?;
    let comparison = reference::Comparison::new(&out, &exact.out, &rounded.out);
    println!("{comparison}");
    if comparison.within { Ok(()) } else { Err("the result is wrong".into()) }
}

/// Values between -1 and 1 without a pattern that attention could hide.
fn wave(shape: Shape, frequency: f32) -> Vec<bf16> {
    let elements = shape.batch * shape.rows * shape.heads * shape.head_dim;
    (0..elements).map(|i| bf16::from_f32((i as f32 * frequency).sin())).collect()
}
