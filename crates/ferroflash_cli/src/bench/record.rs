//! The record of one bench run, as `--json` writes it and the tables of the documentation read it.

use super::stats::Quartiles;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the record; it grows when a field changes its meaning or goes away.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// What `kind` says in a record of `ferroflash bench`.
pub(crate) const BENCH_KIND: &str = "ferroflash-bench";

/// One run of `ferroflash bench`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`BENCH_KIND`].
    pub(crate) kind: String,
    /// [`SCHEMA_VERSION`].
    pub(crate) schema_version: u32,
    /// Where and with what it ran.
    pub(crate) environment: Environment,
    /// How it measured.
    pub(crate) method: Method,
    /// Every cell, in the order of the run.
    pub(crate) cells: Vec<Cell>,
}

/// Where and with what a run was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// Name of the device.
    pub(crate) device: String,
    /// `cuda` or `emulator`.
    pub(crate) backend: String,
    /// CUDA version that the driver supports, such as `13.0`; `null` on the emulator.
    pub(crate) driver: Option<String>,
    /// Compute capability, such as `9.0`; `null` on the emulator.
    pub(crate) compute_capability: Option<String>,
    /// Streaming multiprocessors.
    pub(crate) multiprocessors: u64,
    /// Device memory in bytes.
    pub(crate) memory_bytes: u64,
    /// Start of the run, UTC, RFC 3339.
    pub(crate) date: String,
    /// Commit of the sources, with `-dirty` when they differed from it; `null` outside a checkout.
    pub(crate) commit: Option<String>,
    /// Compiler of the binary.
    pub(crate) rustc: String,
    /// Version of ferroflash.
    pub(crate) ferroflash: String,
}

/// How a run measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Method {
    /// Timed samples of each kernel and cell; 0 on the emulator, which counts instead.
    pub(crate) repeats: u32,
    /// Seconds of warm-up of each kernel and cell.
    pub(crate) warmup_seconds: f64,
    /// Seed of the inputs.
    pub(crate) seed: u64,
    /// Distribution of the inputs.
    pub(crate) inputs: String,
    /// Floating-point operations that TFLOP/s counts.
    pub(crate) flop_rule: String,
    /// When a result counts as right.
    pub(crate) tolerance: String,
}

/// One problem, with the results of every kernel on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// What was computed.
    pub(crate) problem: CellProblem,
    /// One per kernel, in the order of the run's kernels.
    pub(crate) results: Vec<KernelResult>,
}

/// The problem of one cell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct CellProblem {
    /// `f32`, `f16` or `bf16`.
    pub(crate) dtype: String,
    /// Columns of q, k, v and out.
    pub(crate) head_dim: usize,
    /// `full` or `causal`.
    pub(crate) mask: String,
    /// Rows of q and of k and v.
    pub(crate) seq: usize,
    /// Batch entries.
    pub(crate) batch: usize,
    /// Heads of q.
    pub(crate) q_heads: usize,
    /// Heads of k and v.
    pub(crate) kv_heads: usize,
}

/// What one kernel did on one problem.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KernelResult {
    /// `naive`, `v1`, `v2` or `v3`.
    pub(crate) kernel: String,
    /// Why it was not run, when it was not.
    pub(crate) skipped: Option<String>,
    /// Entry points that were launched.
    pub(crate) symbols: Vec<String>,
    /// Milliseconds of one forward pass; `null` on the emulator.
    pub(crate) time_ms: Option<Quartiles>,
    /// At the median time.
    pub(crate) tflops: Option<f64>,
    /// Naive's median time divided by this one's.
    pub(crate) speedup_over_naive: Option<f64>,
    /// Device memory beyond q, k, v and out at the peak of one call.
    pub(crate) extra_bytes: Option<u64>,
    /// Percent of naive's extra memory that this kernel does without.
    pub(crate) saved_percent: Option<f64>,
    /// What the emulator counted in one forward pass, by name; empty on a GPU.
    pub(crate) counters: BTreeMap<String, u64>,
    /// Comparison with the reference.
    pub(crate) check: Option<Check>,
}

/// Comparison of one result with the f64 reference.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Check {
    /// Rows of the output that were compared.
    pub(crate) rows: usize,
    /// Rows of the output.
    pub(crate) rows_total: usize,
    /// Largest `|out - reference|`.
    pub(crate) max_error: f64,
    /// What the tolerance rule accepts.
    pub(crate) bound: f64,
    /// Largest `|lse - reference|`.
    pub(crate) lse_max_error: f64,
    /// What is accepted of the log-sum-exp.
    pub(crate) lse_bound: f64,
    /// Whether both are accepted and every element of the output was written.
    pub(crate) within: bool,
}

impl Cell {
    /// The result of the kernel called `kernel`.
    pub(crate) fn result(&self, kernel: &str) -> Option<&KernelResult> {
        self.results.iter().find(|result| result.kernel == kernel)
    }
}

impl Record {
    /// How many results were compared, and the wrong ones as `problem: kernel`.
    pub(crate) fn verdict(&self) -> (usize, Vec<String>) {
        let checked = || self.cells.iter().flat_map(|cell| cell.results.iter().map(move |result| (cell, result)));
        let count = checked().filter(|(_, result)| result.check.is_some()).count();
        let wrong = checked()
            .filter(|(_, result)| result.check.as_ref().is_some_and(|check| !check.within))
            .map(|(cell, result)| format!("{}: {}", cell.problem, result.kernel))
            .collect();
        (count, wrong)
    }
}

impl std::fmt::Display for CellProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let CellProblem { dtype, head_dim, mask, seq, batch, q_heads, kv_heads } = self;
        write!(f, "{dtype} {mask} head_dim {head_dim} seq {seq} batch {batch} heads {q_heads}")?;
        if kv_heads != q_heads { write!(f, "/{kv_heads}") } else { Ok(()) }
    }
}
