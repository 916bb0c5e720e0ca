//! Device memory: what a call holds beyond q, k, v and out grows with the sequence for the flash kernels and with its square for
//! naive. Measured, not computed.

use crate::support::{case, device, f16};
use ferroflash::{Attention, DType, Device, Kernel, Layout, Shape, Sizes, Tensor};

const HEADS: usize = 2;

/// Bytes at the peak of one call, beyond what was allocated before it and the output.
fn extra_bytes(device: &Device, kernel: Kernel, rows: usize) -> u64 {
    let shape = Shape::new(1, rows, HEADS, 32);
    let q = Tensor::zeros(device, DType::F16, shape, Layout::Bshd).unwrap();
    let attention = Attention::new().with_kernel(kernel).with_lse(true);
    let before = device.memory().live_bytes;
    device.reset_peak();
    let output = attention.forward(&q.view(), &q.view(), &q.view()).unwrap();
    device.synchronize().unwrap();
    let memory = device.memory();
    let out_bytes = (output.out.storage_elements() * DType::F16.bytes()) as u64;
    let extra = memory.peak_bytes - before - out_bytes;
    assert_eq!(extra, output.plan.extra_bytes(), "the plan of {kernel} at {rows} rows names another amount");
    drop(output);
    assert_eq!(device.memory().live_bytes, before, "{kernel} keeps memory");
    extra
}

fn lengths() -> &'static [usize] {
    if device::is_gpu() { &[128, 512, 2048] } else { &[32, 128, 256] }
}

#[test]
fn copies_are_exact_and_timed_alone() {
    let device = device::shared().device;
    let data: Vec<f32> = (0..2 * 3 * 4 * 8).map(|i| i as f32).collect();
    let source = Tensor::from_slice(&device, &data, Shape::new(2, 3, 4, 8), Layout::Bhsd).unwrap();
    let mut copy = Tensor::zeros(&device, source.dtype(), source.shape(), Layout::Bhsd).unwrap();
    let stream = device.default_stream();
    let mut turns = 0;
    let times = device
        .time_each(
            &stream,
            3,
            || {
                turns += 1;
                Ok(())
            },
            || copy.copy_from(&stream, &source),
        )
        .unwrap();
    assert_eq!((times.len(), turns), (3, 3));
    assert!(times.iter().all(|time| !time.is_zero()), "{times:?}");
    assert_eq!(copy.to_vec::<f32>().unwrap(), source.to_vec::<f32>().unwrap());
}

#[test]
fn extra_memory_of_the_flash_kernels_is_linear() {
    let exclusive = device::exclusive();
    let runs = |kernel: &Kernel| case::runs::<f16>(&exclusive.device, *kernel);
    for kernel in [Kernel::V1, Kernel::V2, Kernel::V3].into_iter().filter(runs) {
        for &rows in lengths() {
            // The log-sum-exp, and nothing else.
            let expected = (HEADS * rows * DType::F32.bytes()) as u64;
            assert_eq!(extra_bytes(&exclusive.device, kernel, rows), expected, "{kernel}, {rows} rows");
        }
    }
}

#[test]
fn extra_memory_of_naive_is_quadratic() {
    let exclusive = device::exclusive();
    for &rows in lengths() {
        let scores = HEADS * rows * rows;
        let expected = scores * (DType::F32.bytes() + DType::F16.bytes()) + HEADS * rows * DType::F32.bytes();
        assert_eq!(extra_bytes(&exclusive.device, Kernel::Naive, rows), expected as u64, "{rows} rows");
    }
}

/// Memory is given back when a call is refused half-way, and when tensors are dropped.
#[test]
fn nothing_leaks() {
    let exclusive = device::exclusive();
    let device = &exclusive.device;
    let before = device.memory().live_bytes;
    {
        let problem =
            Sizes { batch: 1, q_rows: 9, kv_rows: 9, q_heads: 1, kv_heads: 1, head_dim: 8, dtype: DType::F32 };
        let q = Tensor::zeros(device, problem.dtype, Shape::new(1, 9, 1, 8), Layout::Bshd).unwrap();
        let wrong = Tensor::zeros(device, problem.dtype, Shape::new(1, 9, 1, 16), Layout::Bshd).unwrap();
        assert!(device.memory().live_bytes > before);
        for kernel in Kernel::ALL {
            let attention = Attention::new().with_kernel(kernel).with_lse(true);
            attention.forward(&q.view(), &wrong.view(), &wrong.view()).unwrap_err();
            attention.with_scale(f32::NAN).forward(&q.view(), &q.view(), &q.view()).unwrap_err();
            // f32, which v3 refuses.
            let output = attention.forward(&q.view(), &q.view(), &q.view());
            assert_eq!(output.is_ok(), kernel != Kernel::V3);
        }
    }
    assert_eq!(device.memory().live_bytes, before);
    device.trim_memory().unwrap();
}
