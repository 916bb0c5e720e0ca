//! Attention in a CUDA graph: captured once, replayed with one call a step. Where there is no GPU, the emulator computes the same steps
//! one by one.
//!
//! `cargo run --release --example 04_graph_capture [-- DEVICE]`, with DEVICE `best` (the default), `cuda:0` or `emulator`.

use ferroflash::{Attention, DType, Device, Layout, Shape, Stream, Tensor, bf16};

/// Calls of attention in a step, as a model of so many layers has them.
const LAYERS: usize = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "best".to_owned());
    let device = Device::open(&name)?;
    // The emulator computes thousands of times slower than a GPU.
    let shape = if device.info().is_emulator() { Shape::new(1, 64, 2, 64) } else { Shape::new(4, 128, 16, 64) };
    let ones = vec![bf16::ONE; shape.batch * shape.rows * shape.heads * shape.head_dim];
    let q = Tensor::from_slice(&device, &ones, shape, Layout::Bshd)?;
    let mut out = Tensor::uninit(&device, DType::Bf16, shape, Layout::Bshd)?;
    let attention = Attention::new().causal();

    // No kernel can be loaded during a capture, so it is loaded ahead.
    device.prepare(&attention.plan_for(&q.view(), &q.view(), &q.view(), Some(&out.view()))?)?;
    let mut layers = |stream: &Stream| -> ferroflash::Result<()> {
        for _ in 0..LAYERS {
            attention.forward_into(stream, &q.view(), &q.view(), &q.view(), &mut out.view_mut(), None)?;
        }
        Ok(())
    };

    let stream = device.stream()?;
    if device.info().is_emulator() {
        println!("{}: graphs are of GPUs alone, so {LAYERS} layers are computed one by one", device.info().name);
        layers(&stream)?;
    } else {
        let graph = device.capture(&mut layers)?;
        println!("{}: a graph of {} nodes for {LAYERS} layers", device.info().name, graph.node_count());
        // Both once before they are timed, so that the GPU is awake.
        layers(&stream)?;
        // SAFETY: q and out are there until the end of `main`, and nobody else works on them.
        unsafe { graph.launch(&stream) }?;
        let calls = device.time(&stream, || layers(&stream))?;
        // SAFETY: as above.
        let replay = device.time(&stream, || unsafe { graph.launch(&stream) })?;
        println!("{LAYERS} calls take {calls:?}, one launch of the graph {replay:?}");
    }
    stream.synchronize()?;

    // Every mean of ones is one.
    let right = out.to_vec::<bf16>()?.iter().all(|&x| x == bf16::ONE);
    println!("the result is {}", if right { "right" } else { "wrong" });
    if right { Ok(()) } else { Err("wrong result".into()) }
}
