//! Records for tests of what reads them.

use super::super::stats::Quartiles;
use super::*;
use kernel_spec::Mask;

/// A run on `device` that is done.
pub(crate) fn sample(device: &str, backend: &str, cells: Vec<Cell>) -> Record {
    let names = |peer| {
        let mut names: Vec<String> = Vec::new();
        for result in cells.iter().flat_map(|cell| &cell.results) {
            if result.peer == peer && !names.contains(&result.name) {
                names.push(result.name.clone());
            }
        }
        names
    };
    Record {
        kind: BENCH_KIND.to_owned(),
        schema_version: SCHEMA_VERSION,
        environment: Environment {
            device: device.to_owned(),
            backend: backend.to_owned(),
            driver: Some("13.0".to_owned()),
            driver_release: None,
            compute_capability: Some("9.0".to_owned()),
            multiprocessors: 132,
            memory_bytes: 1 << 37,
            l2_bytes: Some(50 << 20),
            nvml: None,
            nvml_missing: None,
            date: "2026-01-02T03:04:05Z".to_owned(),
            commit: Some("0123456789abcdef".to_owned()),
            rustc: "rustc".to_owned(),
            ptxas: None,
            ferroflash: "0.1.0".to_owned(),
            cpu: None,
            peers: BTreeMap::new(),
            peers_missing: None,
        },
        method: Method {
            pass: Pass::Forward,
            timer: "CUDA events".to_owned(),
            repeats: 5,
            sample_ms: 5.0,
            rest_ms: 0,
            warmup_seconds: 0.2,
            l2: "warm".to_owned(),
            driver_cache: None,
            order: "shuffled".to_owned(),
            order_seed: 0,
            seed: 0,
            inputs: "standard normal".to_owned(),
            flop_rule: "4 * batch * heads * seq * kv_seq * head_dim, half of it when causal".to_owned(),
            tolerance: "max|out - f64| <= 2 * max|naive in the same precision - f64| + 1e-5".to_owned(),
        },
        sweep: SweepRecord {
            name: "options".to_owned(),
            scaled: None,
            kernels: names(false),
            peers: names(true),
            problems: cells.iter().map(|cell| cell.problem.clone()).collect(),
        },
        ceilings: None,
        noise: None,
        cells,
    }
}

/// A cell of head dim 64 without a mask, with the median milliseconds of some implementations: names with a space are peers.
pub(crate) fn sample_cell(dtype: &str, seq: usize, times: &[(&str, f64)]) -> Cell {
    let problem = CellProblem {
        dtype: dtype.to_owned(),
        head_dim: 64,
        mask: MaskName(Mask::Full),
        seq,
        kv_seq: seq,
        batch: 2,
        q_heads: 4,
        kv_heads: 4,
        sequences: None,
        program: None,
    };
    let flops = 4.0 * 2.0 * 4.0 * (seq * seq * 64) as f64;
    let results = times.iter().map(|&(name, ms)| {
        let mut result = Measurement::new(name, name.contains(' '));
        // One percent to each side.
        result.samples_ms = [0.99, 0.995, 1.0, 1.005, 1.01].map(|factor| factor * ms).to_vec();
        result.launches = Some(10);
        result.time_ms = Some(Quartiles::of(&result.samples_ms));
        result.tflops = Some(flops / (ms * 1e9));
        result.check = Some(Check {
            rows: 132,
            rows_total: 8 * seq,
            max_error: 1e-3,
            error_quantiles: Some(ErrorQuantiles { p50: 1e-4, p90: 2e-4, p99: 4e-4, p999: 8e-4 }),
            rounded_error: 1e-3,
            bound: 2.01e-3,
            lse: None,
            gradients: Vec::new(),
            within: true,
        });
        result
    });
    Cell { problem, flops, kv_bytes: None, roofline: None, telemetry: None, results: results.collect() }
}
