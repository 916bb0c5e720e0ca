//! The record of one bench run, as `--json` writes it and everything that shows results reads it.
//!
//! Times are milliseconds of one launch of the pass, sizes are bytes, rates are per second. What was not measured is `null` or empty,
//! never 0.

mod cells;
pub(super) mod file;
mod mask;
#[cfg(test)]
pub(crate) mod samples;

use super::stats::Quartiles;
use crate::workload::Pass;
pub(crate) use mask::MaskName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the record; it grows when a field changes its meaning or goes away.
pub(crate) const SCHEMA_VERSION: u32 = 2;

/// What `kind` says in a record of `ferroflash bench`.
pub(crate) const BENCH_KIND: &str = "ferroflash-bench";

/// One run of `ferroflash bench`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`BENCH_KIND`].
    pub(crate) kind: String,
    /// [`SCHEMA_VERSION`].
    pub(crate) schema_version: u32,
    /// Where and with what it ran.
    pub(crate) environment: Environment,
    /// How it measured.
    pub(crate) method: Method,
    /// What it set out to measure.
    pub(crate) sweep: SweepRecord,
    /// What the device reaches at most; `null` on the emulator and when it was not asked for.
    pub(crate) ceilings: Option<Ceilings>,
    /// How far two measurements of one kernel lie apart; `null` on the emulator.
    pub(crate) noise: Option<Noise>,
    /// The cells that are done, in the order of the sweep, whatever the order of the run. Fewer than `sweep.problems` while a run
    /// goes on and after one that was ended.
    pub(crate) cells: Vec<Cell>,
}

/// Where and with what a run was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// Name of the device.
    pub(crate) device: String,
    /// `cuda` or `emulator`.
    pub(crate) backend: String,
    /// CUDA version that the driver supports, such as `13.0`; `null` on the emulator.
    pub(crate) driver: Option<String>,
    /// Release of the driver, such as `580.65.06`; `null` without NVML.
    pub(crate) driver_release: Option<String>,
    /// Compute capability, such as `9.0`; `null` on the emulator.
    pub(crate) compute_capability: Option<String>,
    /// Streaming multiprocessors.
    pub(crate) multiprocessors: u64,
    /// Device memory in bytes.
    pub(crate) memory_bytes: u64,
    /// Level-two cache in bytes; `null` on the emulator.
    pub(crate) l2_bytes: Option<u64>,
    /// What NVML says of the GPU at rest; `null` when it is not there, and then `nvml_missing` says why.
    pub(crate) nvml: Option<NvmlEnvironment>,
    /// Why there is no NVML; `null` when there is, and on the emulator.
    pub(crate) nvml_missing: Option<String>,
    /// Start of the run, UTC, RFC 3339.
    pub(crate) date: String,
    /// Commit of the sources, with `-dirty` when they differed from it; `null` outside a checkout.
    pub(crate) commit: Option<String>,
    /// Compiler of the binary and of its kernels.
    pub(crate) rustc: String,
    /// Release of the ptxas on the path; the driver's own copy makes the machine code that runs. `null` when there is none.
    pub(crate) ptxas: Option<String>,
    /// Version of ferroflash.
    pub(crate) ferroflash: String,
    /// Processor of the host; `null` when the system does not say.
    pub(crate) cpu: Option<String>,
    /// Versions of what the peers run on, by name: `python`, `torch`, `cuda`, `cudnn`, `triton`; and of those that are packages of their
    /// own, by the names of their options: `fa3`, `fa4`. Empty without peers.
    pub(crate) peers: BTreeMap<String, String>,
    /// Why there are no peers although they were asked for.
    pub(crate) peers_missing: Option<String>,
}

/// What NVML says of the GPU before the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NvmlEnvironment {
    /// Version of the library.
    pub(crate) version: String,
    /// Highest clock of the multiprocessors, MHz.
    pub(crate) sm_clock_max_mhz: Option<u32>,
    /// Highest clock of the memory, MHz.
    pub(crate) memory_clock_max_mhz: Option<u32>,
    /// Power limit in force, watts.
    pub(crate) power_limit_watts: Option<f64>,
    /// Whether error correction of the memory is on.
    pub(crate) ecc: Option<bool>,
    /// Whether the driver stays loaded without clients.
    pub(crate) persistence: Option<bool>,
}

/// How a run measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Method {
    /// What of a training step one launch is; forward in records older than the field.
    #[serde(default)]
    pub(crate) pass: Pass,
    /// What the times are taken with; on the emulator that nothing is timed.
    pub(crate) timer: String,
    /// Timed samples of each kernel and cell; 0 on the emulator, which counts instead.
    pub(crate) repeats: u32,
    /// Milliseconds that one sample is meant to last.
    pub(crate) sample_ms: f64,
    /// Milliseconds that the device rests before each sample; 0 in records older than the field.
    #[serde(default)]
    pub(crate) rest_ms: u64,
    /// Seconds of warm-up of each kernel and cell.
    pub(crate) warmup_seconds: f64,
    /// What a launch finds in the level-two cache: `warm`, `flush` or `rotate`.
    pub(crate) l2: String,
    /// Whether the driver may take kernels of earlier runs from its cache on disk, where they are compiled for programs; `null` without
    /// programs, and in records older than the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) driver_cache: Option<bool>,
    /// In which order cells, and kernels within a cell, are measured.
    pub(crate) order: String,
    /// Seed of that order.
    pub(crate) order_seed: u64,
    /// Seed of the inputs.
    pub(crate) seed: u64,
    /// Distribution of the inputs.
    pub(crate) inputs: String,
    /// Floating-point operations that TFLOP/s counts.
    pub(crate) flop_rule: String,
    /// When a result counts as right.
    pub(crate) tolerance: String,
}

impl Method {
    /// How samples follow each other.
    pub(crate) fn spacing(&self) -> String {
        if self.rest_ms == 0 { "back to back".to_owned() } else { format!("{} ms of rest apart", self.rest_ms) }
    }
}

/// What a run set out to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SweepRecord {
    /// Name of the preset, `default`, path of the sweep file, or `options` when the command line named the cells.
    pub(crate) name: String,
    /// How a preset was made smaller for the emulator; `null` when it was not.
    pub(crate) scaled: Option<String>,
    /// Every kernel of ours, or `ferroflash` where the library chooses, in the order of the results.
    pub(crate) kernels: Vec<String>,
    /// Every peer, in the order of the results.
    pub(crate) peers: Vec<String>,
    /// Every problem, done or not.
    pub(crate) problems: Vec<CellProblem>,
}

/// What the device reaches at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ceilings {
    /// Bytes per second of a large copy within device memory, reads and writes counted.
    pub(crate) copy_bytes_per_second: Ceiling,
    /// Bytes per second of a large sum; `null` where no cell reads a cache, without peers, and in records older than the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) read_bytes_per_second: Option<Ceiling>,
    /// Floating-point operations per second of a large matrix product, by element type: `bf16`, `f16`, `f32`.
    pub(crate) matmul_flops: BTreeMap<String, Ceiling>,
    /// Base-2 exponentials per second.
    pub(crate) exp2_per_second: Ceiling,
}

/// One rate that the device does not exceed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ceiling {
    /// The rate.
    pub(crate) value: f64,
    /// Whether it was measured in this run; otherwise it follows from properties of the device.
    pub(crate) measured: bool,
    /// How it was found.
    pub(crate) how: String,
}

/// Measurements of the same kernel against itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Noise {
    /// Largest difference of the medians of a pair, in percent of the smaller: differences below it mean nothing.
    pub(crate) floor_percent: f64,
    /// The pairs.
    pub(crate) pairs: Vec<NoisePair>,
}

/// One kernel as two contestants of one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NoisePair {
    /// What was computed.
    pub(crate) problem: CellProblem,
    /// The kernel.
    pub(crate) kernel: String,
    /// Samples of the first contestant, milliseconds of one launch, in the order of the rounds.
    pub(crate) a_ms: Vec<f64>,
    /// Samples of the second.
    pub(crate) b_ms: Vec<f64>,
    /// Difference of the medians, in percent of the smaller.
    pub(crate) difference_percent: f64,
}

/// One problem, with the results of everything that ran on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// What was computed.
    pub(crate) problem: CellProblem,
    /// Floating-point operations of one launch by the rule of the method.
    pub(crate) flops: f64,
    /// Bytes of the keys and values in a cache; `null` where there is no cache, and in records older than the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kv_bytes: Option<u64>,
    /// Least times of this problem by the ceilings; `null` without ceilings.
    pub(crate) roofline: Option<Roofline>,
    /// The GPU while this cell was timed; `null` without NVML.
    pub(crate) telemetry: Option<Telemetry>,
    /// Kernels first, then peers, each in the order of the sweep.
    pub(crate) results: Vec<Measurement>,
}

/// The problem of one cell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct CellProblem {
    /// `f32`, `f16` or `bf16`.
    pub(crate) dtype: String,
    /// Columns of q, k, v and out.
    pub(crate) head_dim: usize,
    /// `full`, `causal` or a window.
    pub(crate) mask: MaskName,
    /// Rows of q.
    pub(crate) seq: usize,
    /// Rows of k and v.
    pub(crate) kv_seq: usize,
    /// Batch entries.
    pub(crate) batch: usize,
    /// Heads of q.
    pub(crate) q_heads: usize,
    /// Heads of k and v.
    pub(crate) kv_heads: usize,
    /// Where the rows are: `cache` and `pages of 64` of keys and values, or the lengths of `packed` sequences, whose rows are counted
    /// together; `null` of tensors of equal sequences, and in records older than the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sequences: Option<String>,
    /// The program that scores pass through, by its name on the command line; `null` where there is none, and in records older than the
    /// field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) program: Option<String>,
}

/// The least time of one problem, were each unit of the device busy without a pause and all of them at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Roofline {
    /// The unit that takes longest: `tensor`, `fma` (f32 has no tensor cores), `exp` or `hbm`.
    pub(crate) bound: String,
    /// What it takes.
    pub(crate) bound_ms: f64,
    /// The matrix products of the pass at the ceiling of the matrix product.
    pub(crate) matmul_ms: f64,
    /// One exponential for each visible score, and in each pass.
    pub(crate) exp_ms: f64,
    /// What each pass takes read once, and what it gives written once, the log-sum-exp among them.
    pub(crate) hbm_ms: f64,
}

/// Samples of NVML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Telemetry {
    /// How many samples there were.
    pub(crate) samples: usize,
    /// Clock of the multiprocessors, MHz.
    pub(crate) sm_clock_mhz: Option<Range>,
    /// Clock of the memory, MHz.
    pub(crate) memory_clock_mhz: Option<Range>,
    /// Power drawn, watts.
    pub(crate) power_watts: Option<Range>,
    /// Temperature of the GPU, degrees Celsius.
    pub(crate) temperature_celsius: Option<Range>,
    /// Reasons for lower clocks that were in force in any sample, such as `sw_power_cap`; an idle GPU is none.
    pub(crate) throttle_reasons: Vec<String>,
}

/// Least, middle and greatest of some samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Range {
    /// Least.
    pub(crate) min: f64,
    /// Median.
    pub(crate) median: f64,
    /// Greatest.
    pub(crate) max: f64,
}

/// What one implementation did on one problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measurement {
    /// One of our kernels, `naive`, `v1`, `v2` or `v3`, `ferroflash` for what the library chooses, or a peer such as `torch cudnn` or `FlashAttention-3`.
    pub(crate) name: String,
    /// Whether it is a peer.
    pub(crate) peer: bool,
    /// Version of a peer; `null` for our kernels, and in records older than the field.
    #[serde(default)]
    pub(crate) version: Option<String>,
    /// Why it was not run, when it was not.
    pub(crate) skipped: Option<String>,
    /// Entry points that were launched; empty for a peer.
    pub(crate) symbols: Vec<String>,
    /// Launches of each sample; `null` when it was not timed.
    pub(crate) launches: Option<u32>,
    /// Whether those were replays of a CUDA graph, which spares a peer the time that Python takes for a call.
    pub(crate) graph: bool,
    /// Every sample in the order of the rounds, milliseconds of one launch; empty when it was not timed.
    pub(crate) samples_ms: Vec<f64>,
    /// Quartiles of the samples.
    pub(crate) time_ms: Option<Quartiles>,
    /// At the median time.
    pub(crate) tflops: Option<f64>,
    /// Bytes of the cache per second, at the median time; `null` where there is no cache, and in records older than the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kv_bytes_per_second: Option<f64>,
    /// Parts that the keys are split into; `null` of peers, of tensors of equal sequences, and in records older than the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) splits: Option<u32>,
    /// Milliseconds on the host from a program to the first result of its kernels, which are compiled in this time; `null` without a program,
    /// without times, where an earlier cell compiled the same, and in records older than the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first_result_ms: Option<f64>,
    /// The same once more, with kernels that are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) second_result_ms: Option<f64>,
    /// The median time of `naive` divided by this one's.
    pub(crate) speedup_over_naive: Option<f64>,
    /// The median time of the fastest peer whose result is right divided by this one's: above 1, this is faster. `null` for peers.
    pub(crate) ratio_to_best_peer: Option<f64>,
    /// The time of the roofline's bound over the median time; above 1, this is faster than the measured ceiling.
    pub(crate) bound_fraction: Option<f64>,
    /// Device memory beyond the tensors that go in and come out at the peak of one call, measured. The log-sum-exp counts where a
    /// forward pass makes it.
    pub(crate) extra_bytes: Option<u64>,
    /// Percent of naive's extra memory that this one does without.
    pub(crate) saved_percent: Option<f64>,
    /// What the emulator counted in one launch, by name; empty on a GPU.
    pub(crate) counters: BTreeMap<String, u64>,
    /// Comparison with the reference.
    pub(crate) check: Option<Check>,
}

/// Comparison of one result with the f64 reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Check {
    /// Rows of the output that were compared.
    pub(crate) rows: usize,
    /// Rows of the output.
    pub(crate) rows_total: usize,
    /// Largest `|out - reference|`; `null` in the file when it is infinite, as of a NaN where the reference has a number.
    #[serde(with = "null_is_infinite")]
    pub(crate) max_error: f64,
    /// Quantiles of `|out - reference|` over the elements of the compared rows; `null` when an error is infinite.
    pub(crate) error_quantiles: Option<ErrorQuantiles>,
    /// Largest error of the same formula in the precision of the tensors, which the bound comes from.
    pub(crate) rounded_error: f64,
    /// What the tolerance rule accepts.
    pub(crate) bound: f64,
    /// Comparison of the log-sum-exp; `null` for a peer, which returns none.
    pub(crate) lse: Option<LseCheck>,
    /// Comparisons of dq, dk and dv where there is a backward pass; the numbers above are then those of the tensor that comes nearest to
    /// its bound.
    #[serde(default)]
    pub(crate) gradients: Vec<GradientCheck>,
    /// Whether all is accepted and every element of the output was written.
    pub(crate) within: bool,
}

/// Comparison of one log-sum-exp with the f64 reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LseCheck {
    /// Largest `|lse - reference|`; `null` in the file when it is infinite.
    #[serde(with = "null_is_infinite")]
    pub(crate) max_error: f64,
    /// What is accepted.
    pub(crate) bound: f64,
}

/// Comparison of one gradient with the f64 reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GradientCheck {
    /// `dq`, `dk` or `dv`.
    pub(crate) tensor: String,
    /// Largest difference; `null` in the file when it is infinite.
    #[serde(with = "null_is_infinite")]
    pub(crate) max_error: f64,
    /// What is accepted.
    pub(crate) bound: f64,
}

/// JSON has no infinity, and an error can be infinite.
mod null_is_infinite {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(error: &f64, to: S) -> Result<S::Ok, S::Error> {
        Some(*error).filter(|error| error.is_finite()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(f64::INFINITY))
    }
}

/// How errors are distributed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ErrorQuantiles {
    /// Half of the elements lie below.
    pub(crate) p50: f64,
    /// Nine in ten lie below.
    pub(crate) p90: f64,
    /// 99 in a hundred lie below.
    pub(crate) p99: f64,
    /// 999 in a thousand lie below.
    pub(crate) p999: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_infinite_error_survives_the_file() {
        let lse = LseCheck { max_error: f64::INFINITY, bound: 1.0 };
        let text = serde_json::to_string(&lse).unwrap();
        assert_eq!(text, r#"{"max_error":null,"bound":1.0}"#);
        assert_eq!(serde_json::from_str::<LseCheck>(&text).unwrap(), lse);
    }
}
