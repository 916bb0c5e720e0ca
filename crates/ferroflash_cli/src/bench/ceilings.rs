//! What a GPU reaches at most, and how close a cell can come to it.

use super::nvml::{Reading, Sampler};
use super::peers::Peers;
use super::record::{Ceiling, Ceilings, Roofline};
use super::stats::Quartiles;
use crate::values::normal;
use crate::workload::{Case, Pass};
use anyhow::{Context, Result};
use ferroflash::{Device, DeviceInfo, Layout, Shape, Sizes, Tensor, Version};
use kernel_spec::DType;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Bytes of one side of the copy: many times any level-two cache, so that what stays there does not count.
const COPY_BYTES: u64 = 1 << 30;

/// Elements of the random data that is copied over and over: 16 MiB.
const DRAWN_ELEMENTS: usize = 1 << 22;

/// Rows and columns of the matrices: enough products for every multiprocessor, in a few milliseconds.
const MATMUL_SIZE: usize = 8192;

/// Samples of each ceiling.
const SAMPLES: usize = 11;

/// Length of one sample.
const SAMPLE_MS: f64 = 10.0;

/// Time at full load before the samples: clocks fall from their peak to what power allows.
const WARM_UP: Duration = Duration::from_millis(300);

/// Exponentials of one multiprocessor in one cycle: "32-bit floating-point reciprocal, .., base 2 exponential (exp2f)" in the table of
/// arithmetic throughputs of NVIDIA's CUDA C++ Programming Guide, for compute capabilities 7.x to 12.0.
const EXP2_PER_CYCLE: f64 = 16.0;

/// Measures the ceilings of a GPU, for these element types; of reading alone, where a cell `reads` a cache and there are peers.
pub(crate) fn measure(
    device: &Device,
    dtypes: &[DType],
    reads: bool,
    mut peers: Option<&mut Peers>,
    sampler: Option<&Sampler>,
) -> Result<Ceilings> {
    let _ = sampler.map(Sampler::take);
    let copy_bytes_per_second = copy(device).context("bandwidth of a copy")?;
    let mut matmul_flops = BTreeMap::new();
    let mut under_load = Vec::new();
    for &dtype in dtypes {
        let measured = peers.as_deref_mut().and_then(|peers| {
            let _ = sampler.map(Sampler::take);
            let ceiling = matmul(dtype, peers).ok();
            under_load.extend(sampler.map(Sampler::take).unwrap_or_default());
            ceiling
        });
        if let Some(ceiling) = measured.or_else(|| nominal_matmul(device.info(), dtype)) {
            matmul_flops.insert(dtype.name().to_owned(), ceiling);
        }
    }
    let mut read_bytes_per_second = None;
    if let Some(peers) = peers {
        read_bytes_per_second = reads.then(|| read(peers).ok()).flatten();
        peers.release();
    }
    Ok(Ceilings {
        copy_bytes_per_second,
        read_bytes_per_second,
        matmul_flops,
        exp2_per_second: exp2(device.info(), &under_load),
    })
}

fn copy(device: &Device) -> Result<Ceiling> {
    // Two of them have to fit beside what else is there. The emulator, on which this only runs to be tested, is slow.
    let bytes = if device.info().is_emulator() { 1 << 16 } else { COPY_BYTES.min(device.info().memory_bytes / 8) };
    let row = 1024;
    let shape = Shape::new(1, bytes as usize / size_of::<f32>() / row, 1, row);
    let elements = shape.elements().context("the size of the copy")?;
    // Repeated: what lies that far apart no cache or memory takes for the same, and a whole draw takes longer than the copies.
    let drawn = normal::<f32>(elements.min(DRAWN_ELEMENTS), 0);
    let data: Vec<f32> = drawn.iter().copied().cycle().take(elements).collect();
    let from = Tensor::from_slice(device, &data, shape, Layout::Bshd)?;
    drop(data);
    let mut to = Tensor::uninit(device, DType::F32, shape, Layout::Bshd)?;
    let stream = device.default_stream();
    let mut time_ms = |launches: u32| -> Result<f64> {
        let time = device.time(&stream, || (0..launches).try_for_each(|_| to.copy_from(&stream, &from)))?;
        Ok(time.as_secs_f64() * 1e3)
    };
    let ms = sampled(&mut time_ms)?;
    drop((from, to));
    device.trim_memory()?;
    let moved = 2.0 * (shape.elements().unwrap_or_default() * size_of::<f32>()) as f64;
    Ok(Ceiling {
        value: moved / (ms * 1e-3),
        measured: true,
        how: format!(
            "copy of {} MiB of random data on the device, reads and writes counted, median of {SAMPLES}",
            bytes >> 20
        ),
    })
}

fn read(peers: &mut Peers) -> Result<Ceiling> {
    let ms = sampled(|launches| peers.read_ms(COPY_BYTES, launches).map_err(anyhow::Error::msg))?;
    Ok(Ceiling {
        value: COPY_BYTES as f64 / (ms * 1e-3),
        measured: true,
        how: format!("torch.sum of {} MiB of random data, median of {SAMPLES}", COPY_BYTES >> 20),
    })
}

fn matmul(dtype: DType, peers: &mut Peers) -> Result<Ceiling> {
    let ms = sampled(|launches| peers.matmul_ms(dtype.name(), MATMUL_SIZE, launches).map_err(anyhow::Error::msg))?;
    Ok(Ceiling {
        value: 2.0 * (MATMUL_SIZE as f64).powi(3) / (ms * 1e-3),
        measured: true,
        how: format!("torch.matmul of {MATMUL_SIZE} x {MATMUL_SIZE} random matrices, median of {SAMPLES}"),
    })
}

/// Median milliseconds of one launch, after a warm-up.
fn sampled(mut time_ms: impl FnMut(u32) -> Result<f64>) -> Result<f64> {
    let start = Instant::now();
    let mut launches = 1;
    loop {
        let ms = time_ms(launches)?;
        launches = (SAMPLE_MS * f64::from(launches) / ms).ceil().clamp(1.0, 100.0) as u32;
        if start.elapsed() >= WARM_UP {
            break;
        }
    }
    let samples = (0..SAMPLES).map(|_| Ok(time_ms(launches)? / f64::from(launches))).collect::<Result<Vec<_>>>()?;
    Ok(Quartiles::of(&samples).median)
}

/// Floating-point operations of one multiprocessor in one cycle, dense, with sums in f32; `None` for a chip that the table lacks.
///
/// From NVIDIA's architecture whitepapers (A100, GA102, Ada, H100, Blackwell): twice the fused multiply-adds of its tensor cores, or
/// for f32 of its FP32 lanes. What a chip's product line may run at half rate counts in full.
fn flops_per_cycle(Version { major, minor }: Version, dtype: DType) -> Option<f64> {
    let half = dtype != DType::F32;
    let flops = match (major, minor) {
        (8, 0) => [2048, 128],
        (8, _) => [1024, 256],
        (9, 0) => [4096, 256],
        (10, _) => [8192, 256],
        (12, _) => [1024, 256],
        _ => return None,
    };
    Some(f64::from(flops[usize::from(!half)]))
}

fn nominal_matmul(device: &DeviceInfo, dtype: DType) -> Option<Ceiling> {
    if device.is_emulator() {
        return None;
    }
    let per_cycle = flops_per_cycle(device.compute_capability(), dtype)?;
    let khz = device.clock_khz?;
    Some(Ceiling {
        value: per_cycle * f64::from(device.multiprocessors) * f64::from(khz) * 1e3,
        measured: false,
        how: format!(
            "nominal: {} multiprocessors, {per_cycle} operations a cycle, highest clock {} MHz",
            device.multiprocessors,
            khz / 1000
        ),
    })
}

/// From the clock under the load of the matrix products where it was read; otherwise the highest.
fn exp2(device: &DeviceInfo, under_load: &[Reading]) -> Ceiling {
    let clocks: Vec<f64> = under_load.iter().filter_map(|reading| reading.sm_clock_mhz).map(f64::from).collect();
    let (mhz, which) = if clocks.is_empty() {
        (f64::from(device.clock_khz.unwrap_or_default()) / 1e3, "highest clock")
    } else {
        (Quartiles::of(&clocks).median, "clock under the matrix products")
    };
    Ceiling {
        value: EXP2_PER_CYCLE * f64::from(device.multiprocessors) * mhz * 1e6,
        measured: false,
        how: format!("{} multiprocessors, {EXP2_PER_CYCLE} a cycle, {which} {mhz:.0} MHz", device.multiprocessors),
    }
}

/// The least time of a problem; `None` when the ceilings lack its element type, or a rate that is more than 0.
pub(crate) fn roofline(case: &Case, pass: Pass, ceilings: &Ceilings) -> Option<Roofline> {
    let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = case.problem;
    let product = |factors: &[usize]| factors.iter().map(|&factor| factor as f64).product::<f64>();
    let ms = |work: f64, rate: f64| (rate > 0.0).then(|| work / rate * 1e3);
    let matmul_ms = ms(pass.flops(case), ceilings.matmul_flops.get(dtype.name())?.value)?;
    // Exponentials for each score; times that q, k, v and out, or their gradients, are moved; times that the log-sum-exp is.
    let (exps, tensors, lses) = match pass {
        Pass::Forward => (1.0, 1.0, 1.0),
        Pass::Backward => (1.0, 2.0, 1.0),
        Pass::Both => (2.0, 3.0, 2.0),
    };
    let exp_ms = ms(exps * case.scores(), ceilings.exp2_per_second.value)?;
    let elements = product(&[2, batch, head_dim]) * (product(&[q_rows, q_heads]) + product(&[kv_rows, kv_heads]));
    let lse_bytes = product(&[batch, q_heads, q_rows, size_of::<f32>()]);
    let bytes = tensors * elements * dtype.bytes() as f64 + lses * lse_bytes;
    let hbm_ms = ms(bytes, ceilings.copy_bytes_per_second.value)?;
    let matmul = if dtype == DType::F32 { "fma" } else { "tensor" };
    let bounds = [(matmul, matmul_ms), ("exp", exp_ms), ("hbm", hbm_ms)];
    let (bound, bound_ms) = bounds.into_iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(Roofline { bound: bound.to_owned(), bound_ms, matmul_ms, exp_ms, hbm_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_spec::Mask;

    fn case(seq: usize, head_dim: usize, dtype: DType, mask: Mask) -> Case {
        let problem = Sizes { batch: 2, q_rows: seq, kv_rows: seq, q_heads: 8, kv_heads: 2, head_dim, dtype };
        Case::new(problem, mask)
    }

    fn ceilings() -> Ceilings {
        let ceiling = |value| Ceiling { value, measured: true, how: String::new() };
        Ceilings {
            copy_bytes_per_second: ceiling(4e12),
            read_bytes_per_second: None,
            matmul_flops: BTreeMap::from([("bf16".to_owned(), ceiling(8e14)), ("f32".to_owned(), ceiling(5e13))]),
            exp2_per_second: ceiling(4e12),
        }
    }

    #[test]
    fn the_unit_that_takes_longest_is_the_bound() {
        let found = |seq, head_dim, dtype, mask| {
            roofline(&case(seq, head_dim, dtype, mask), Pass::Forward, &ceilings()).unwrap()
        };
        let long = found(8192, 128, DType::Bf16, Mask::Full);
        // 4 * 2 * 8 * 8192 * 8192 * 128 operations.
        assert!((long.matmul_ms - 549_755_813_888.0 / 8e14 * 1e3).abs() < 1e-9, "{long:?}");
        assert!((long.exp_ms - 1_073_741_824.0 / 4e12 * 1e3).abs() < 1e-9, "{long:?}");
        assert_eq!((long.bound.as_str(), long.bound_ms), ("tensor", long.matmul_ms));
        // 4 * 32 operations for one exponential are fewer than 8e14 / 4e12.
        assert_eq!(found(8192, 32, DType::Bf16, Mask::Full).bound, "exp");
        assert_eq!(found(8192, 128, DType::F32, Mask::Full).bound, "fma");
        let short = found(16, 128, DType::Bf16, Mask::Full);
        assert_eq!(short.bound, "hbm");
        // q and out of 8 heads, k and v of 2, two bytes an element, and the log-sum-exp.
        assert!(
            (short.hbm_ms - f64::from(2 * 16 * (2 * 8 + 2 * 2) * 128 * 2 + 2 * 8 * 16 * 4) / 4e12 * 1e3).abs() < 1e-15
        );
        let causal = found(8192, 128, DType::Bf16, Mask::Causal);
        assert_eq!((causal.matmul_ms * 2.0, causal.exp_ms * 2.0), (long.matmul_ms, long.exp_ms));
        assert_eq!(roofline(&case(64, 64, DType::F16, Mask::Full), Pass::Forward, &ceilings()), None);
    }

    #[test]
    fn a_training_step_is_a_forward_and_a_backward_pass() {
        let case = case(512, 128, DType::Bf16, Mask::Full);
        let of = |pass| roofline(&case, pass, &ceilings()).unwrap();
        let (forward, backward, both) = (of(Pass::Forward), of(Pass::Backward), of(Pass::Both));
        assert!((backward.matmul_ms / forward.matmul_ms - 2.5).abs() < 1e-9);
        for (sum, both) in [
            (forward.matmul_ms + backward.matmul_ms, both.matmul_ms),
            (forward.exp_ms + backward.exp_ms, both.exp_ms),
            (forward.hbm_ms + backward.hbm_ms, both.hbm_ms),
        ] {
            assert!((sum / both - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn nominal_rates_are_those_of_the_datasheets() {
        // 132 multiprocessors at 1830 MHz: 989 TFLOP/s of an H100 SXM; 108 at 1410 MHz: 312 and 19.5 of an A100.
        let tflops =
            |version, dtype, count: f64, mhz: f64| flops_per_cycle(version, dtype).unwrap() * count * mhz * 1e-6;
        let version = |major, minor| Version { major, minor };
        assert!((tflops(version(9, 0), DType::Bf16, 132.0, 1830.0) - 989.4).abs() < 1.0);
        assert!((tflops(version(8, 0), DType::F16, 108.0, 1410.0) - 311.9).abs() < 1.0);
        assert!((tflops(version(8, 0), DType::F32, 108.0, 1410.0) - 19.5).abs() < 0.1);
        assert_eq!(flops_per_cycle(version(7, 5), DType::F16), None);
    }
}
