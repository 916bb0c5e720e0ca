//! Measuring one cell.

use super::record::{Cell, CellProblem, Measurement};
use super::stats::Quartiles;
use crate::workload::{Case, Workload};
use anyhow::Result;
use attn_spec::{Kernel, Mask};
use ferroflash::{Device, Error};
use std::time::{Duration, Instant};

/// Length of one timed sample: long beside the microseconds that two events and an idle GPU cost, short enough to alternate.
pub(crate) const SAMPLE_MS: f64 = 5.0;

/// Samples and warm-up of one cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Timed samples of each kernel.
    pub(crate) repeats: u32,
    /// Warm-up of each kernel: long enough for the clocks to settle under its load.
    pub(crate) warmup: Duration,
}

/// Runs every kernel on one problem. `timing` is `None` on the emulator, which counts instead.
///
/// A kernel whose memory does not fit or that does not run this problem is left out with the reason; every other failure ends the
/// run.
pub(crate) fn measure(
    device: &Device,
    case: Case,
    kernels: &[Kernel],
    timing: Option<Timing>,
    seed: u64,
    mut progress: impl FnMut(&str),
) -> Result<Cell> {
    progress("inputs and reference");
    let mut workload = Workload::new(device, case, seed)?;
    let mut results = Vec::new();
    for &kernel in kernels {
        progress(kernel.name());
        results.push(check(&mut workload, device, &case, kernel)?);
    }
    if let Some(timing) = timing {
        progress("timing");
        let runnable: Vec<usize> = (0..kernels.len()).filter(|&i| results[i].skipped.is_none()).collect();
        let samples = time(&mut workload, &runnable.iter().map(|&i| kernels[i]).collect::<Vec<_>>(), timing)?;
        for (i, samples) in runnable.into_iter().zip(samples) {
            let quartiles = Quartiles::of(&samples);
            results[i].time_ms = Some(quartiles);
            results[i].samples_ms = samples;
            // Milliseconds to seconds, operations to 10^12.
            results[i].tflops = Some(case.flops() / (quartiles.median * 1e-3) / 1e12);
        }
    }
    drop(workload);
    // Freed here, so that a cell never runs short because of what the one before it kept.
    device.trim_memory()?;
    compare_with_naive(&mut results);
    Ok(Cell { problem: cell_problem(&case), flops: case.flops(), roofline: None, telemetry: None, results })
}

/// Memory, correctness and, on the emulator, counters.
fn check(workload: &mut Workload, device: &Device, case: &Case, kernel: Kernel) -> Result<Measurement> {
    let mut result = Measurement::new(kernel.name(), false);
    let measured = || -> ferroflash::Result<()> {
        let plan = workload.attention(kernel).plan(device, &case.problem)?;
        result.symbols = plan.symbols().map(str::to_owned).collect();
        result.extra_bytes = Some(workload.extra_bytes(kernel)?);
        device.reset_counters();
        result.check = Some(workload.check(kernel)?);
        result.counters = device.counters().into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        Ok(())
    }();
    match measured {
        Ok(()) => {}
        Err(
            error @ (Error::OutOfMemory { .. } | Error::WorkspaceTooLarge { .. } | Error::KernelUnsupported { .. }),
        ) => {
            device.trim_memory()?;
            result.skipped = Some(error.to_string());
        }
        Err(error) => return Err(error.into()),
    }
    Ok(result)
}

/// Milliseconds of one forward pass, `repeats` samples for each kernel. Kernels take turns, each round starting with the next
/// one, so that drifting clocks and temperatures meet all alike.
fn time(workload: &mut Workload, kernels: &[Kernel], timing: Timing) -> ferroflash::Result<Vec<Vec<f64>>> {
    let mut launches = Vec::new();
    for &kernel in kernels {
        launches.push(warm_up(workload, kernel, timing.warmup)?);
    }
    let mut samples = vec![Vec::new(); kernels.len()];
    for round in 0..timing.repeats as usize {
        for turn in 0..kernels.len() {
            let i = (round + turn) % kernels.len();
            samples[i].push(workload.time_ms(kernels[i], launches[i])? / f64::from(launches[i]));
        }
    }
    Ok(samples)
}

/// Runs `kernel` for `warmup` and returns how many launches fill one sample.
fn warm_up(workload: &mut Workload, kernel: Kernel, warmup: Duration) -> ferroflash::Result<u32> {
    let start = Instant::now();
    let mut launches = 1;
    loop {
        let ms = workload.time_ms(kernel, launches)?;
        // At least one launch; at most 1000, which a queue of launches holds without stalling the host.
        launches = (SAMPLE_MS * f64::from(launches) / ms).ceil().clamp(1.0, 1000.0) as u32;
        if start.elapsed() >= warmup {
            return Ok(launches);
        }
    }
}

fn compare_with_naive(results: &mut [Measurement]) {
    let Some(naive) = results.iter().find(|result| result.name == Kernel::Naive.name()) else { return };
    let (naive_time, naive_bytes) = (naive.time_ms, naive.extra_bytes);
    for result in results.iter_mut().filter(|result| result.name != Kernel::Naive.name()) {
        result.saved_percent = naive_bytes
            .zip(result.extra_bytes)
            .filter(|&(naive, _)| naive > 0)
            .map(|(naive, this)| 100.0 * (1.0 - this as f64 / naive as f64));
    }
    for result in results {
        result.speedup_over_naive = naive_time.zip(result.time_ms).map(|(naive, this)| naive.median / this.median);
    }
}

/// The problem as the record and the tables name it.
pub(crate) fn cell_problem(case: &Case) -> CellProblem {
    CellProblem {
        dtype: case.problem.dtype.name().to_owned(),
        head_dim: case.problem.head_dim,
        mask: if case.mask == Mask::Causal { "causal" } else { "full" }.to_owned(),
        seq: case.problem.q_rows,
        kv_seq: case.problem.kv_rows,
        batch: case.problem.batch,
        q_heads: case.problem.q_heads,
        kv_heads: case.problem.kv_heads,
    }
}
