//! What each kernel launches and allocates, and how long it takes: the memory of the naive kernel grows with the square of the
//! sequence, that of the others does not.
//!
//! `cargo run --release --example 03_plan_and_kernels [-- DEVICE]`, with DEVICE `best` (the default), `cuda:0` or `emulator`.

use ferroflash::{Attention, DType, Device, Error, Kernel, Layout, Shape, Sizes, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("devices of this machine:");
    for info in Device::list() {
        println!("  {:10} {}", info.id(), info.name);
    }
    let name = std::env::args().nth(1).unwrap_or_else(|| "best".to_owned());
    let device = Device::open(&name)?;

    println!("\nplans on {}:", device.info().id());
    for rows in [128, 1024, 16384] {
        let problem = Sizes {
            batch: 1,
            q_rows: rows,
            kv_rows: rows,
            q_heads: 16,
            kv_heads: 16,
            head_dim: 64,
            dtype: DType::Bf16,
        };
        for kernel in Kernel::ALL {
            match Attention::new().with_kernel(kernel).plan(&device, problem) {
                Ok(plan) => println!("  {rows:6} rows, {kernel:5}: {:>12} bytes of extra memory", plan.extra_bytes()),
                Err(error @ Error::WorkspaceTooLarge { .. }) => println!("  {rows:6} rows, {kernel:5}: {error}"),
                Err(error) => return Err(error.into()),
            }
        }
    }

    // The emulator computes thousands of times slower than a GPU.
    let shape = if device.info().is_emulator() { Shape::new(1, 128, 2, 64) } else { Shape::new(4, 2048, 16, 64) };
    println!("\nkernels on {shape}:");
    let [q, k, v] = [(); 3].map(|()| Tensor::zeros(&device, DType::Bf16, shape, Layout::Bshd));
    let (q, k, v) = (q?, k?, v?);
    let stream = device.default_stream();
    for kernel in Kernel::ALL {
        let attention = Attention::new().causal().with_kernel(kernel);
        let mut out = Tensor::uninit(&device, DType::Bf16, shape, Layout::Bshd)?;
        // The first call loads the kernel.
        attention.forward_into(&stream, &q.view(), &k.view(), &v.view(), &mut out.view_mut(), None)?;
        device.reset_peak();
        let before = device.memory().live_bytes;
        let time = device.time(&stream, || {
            attention.forward_into(&stream, &q.view(), &k.view(), &v.view(), &mut out.view_mut(), None)
        })?;
        let extra = device.memory().peak_bytes - before;
        let clock = if device.info().is_emulator() { "of the host's clock, emulated" } else { "on the GPU" };
        println!("  {kernel:5}: {time:?} {clock}, {extra} bytes of extra memory");
    }
    Ok(())
}
