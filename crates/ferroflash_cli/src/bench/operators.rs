//! Operators on rows, measured beside their peers: bytes a second, where attention has operations. What they share with it are the timing, the
//! process of the peers, and the environment of a record.

mod cell;
mod compared;
mod cross_entropy;
mod dense;
mod embedding;
mod linear_cross_entropy;
mod lists;
mod norm;
mod problem;
pub(crate) mod record;
mod rotary;
mod shapes;
mod softmax;

use super::measure::Timing;
use super::nvml::Gpu;
use super::peers::{Operation as PeerOperation, PeerName, Peers};
use super::stats::Quartiles;
use super::{BenchArgs, environment};
use crate::files;
use crate::format::{milliseconds, significant};
use crate::output::{say, status};
use crate::sheet::Sheet;
use crate::usage::OrUnusable;
use crate::workload::L2;
use anyhow::{Result, bail};
use cell::Cell;
use clap::{Args, ValueEnum};
use ferroflash::Device;
use problem::Problem;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use record::{OPERATORS_KIND, OPERATORS_VERSION, OURS, OperatorCell, OperatorRecord, OperatorResult};
use std::time::Instant;

/// Operators on rows, in the place of attention.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct OperatorArgs {
    /// Measure operators on rows in the place of attention, comma separated: GB/s of forward or backward, beside --peers eager,compile,quack
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        ignore_case = true,
        conflicts_with_all = [
            "preset", "pages", "sweep", "kernel", "head_dim", "seq", "kv_seq", "batch", "heads", "kv_heads", "tokens", "causal", "full",
            "window", "program", "deterministic", "l2", "cold", "ceilings", "resume", "plot", "html", "csv", "markdown",
        ]
    )]
    operator: Vec<OperatorName>,
    /// Rows of operators, comma separated, each with all of --columns [default: 67 M elements, of 128 to 131072 columns]
    #[arg(long, value_delimiter = ',', value_name = "N", requires_all = ["operator", "columns"])]
    rows: Vec<usize>,
    /// Columns of operators, comma separated
    #[arg(long, value_delimiter = ',', value_name = "N", requires_all = ["operator", "rows"])]
    columns: Vec<usize>,
    /// Columns of x and of the weights of dense layers, comma separated, with --rows and --columns, which are those of the output
    #[arg(long, value_delimiter = ',', value_name = "N", requires_all = ["operator", "rows", "columns"])]
    depth: Vec<usize>,
}

impl OperatorArgs {
    pub(super) fn is_empty(&self) -> bool {
        self.operator.is_empty()
    }
}

/// An operator on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OperatorName {
    /// x / sqrt(mean(x^2) + 1e-6) * weight
    Rmsnorm,
    /// (x - mean) / sqrt(variance + 1e-6) * weight + bias
    Layernorm,
    /// exp(x - max) / sum(exp(x - max))
    Softmax,
    /// ln(sum(exp(logits))) - logits[target], a loss a row; columns are classes
    #[value(name = "cross_entropy")]
    CrossEntropy,
    /// Rotary embedding of heads of so many columns, 32 heads a token
    Rotary,
    /// Rows of a table, 50257 or four for each of --rows, or its gradient
    Embedding,
    /// x weight^T + bias
    Dense,
    /// gelu(x weight^T + bias), by tanh
    DenseGelu,
    /// silu(x gate^T) * (x up^T)
    Swiglu,
    /// Cross-entropy of the logits x weight^T, which are not written; columns are classes
    LinearCrossEntropy,
    /// A step of AdamW for --rows tensors of --columns elements each, or for the parameters of a model
    Adamw,
    /// The norm of all gradients of such a list
    GradientNorm,
}

impl OperatorName {
    pub(super) fn name(self) -> &'static str {
        match self {
            OperatorName::Rmsnorm => "rmsnorm",
            OperatorName::Layernorm => "layernorm",
            OperatorName::Softmax => "softmax",
            OperatorName::CrossEntropy => "cross_entropy",
            OperatorName::Rotary => "rotary",
            OperatorName::Embedding => "embedding",
            OperatorName::Dense => "dense",
            OperatorName::DenseGelu => "dense-gelu",
            OperatorName::Swiglu => "swiglu",
            OperatorName::LinearCrossEntropy => "linear-cross-entropy",
            OperatorName::Adamw => "adamw",
            OperatorName::GradientNorm => "gradient-norm",
        }
    }

    /// Bytes of all tensors of a problem, each counted once.
    fn bytes(self, cell: &Cell) -> u64 {
        match self {
            OperatorName::Rmsnorm | OperatorName::Layernorm => norm::bytes(cell),
            OperatorName::Softmax => softmax::bytes(cell),
            OperatorName::CrossEntropy => cross_entropy::bytes(cell),
            OperatorName::Rotary => rotary::bytes(cell),
            OperatorName::Embedding => embedding::bytes(cell),
            OperatorName::Dense | OperatorName::DenseGelu | OperatorName::Swiglu => dense::bytes(cell),
            OperatorName::LinearCrossEntropy => linear_cross_entropy::bytes(cell),
            OperatorName::Adamw | OperatorName::GradientNorm => lists::bytes(cell),
        }
    }

    /// Whether a problem is a list of tensors.
    fn is_list(self) -> bool {
        matches!(self, OperatorName::Adamw | OperatorName::GradientNorm)
    }

    /// Whether a problem has a depth, too, and its operations count: those of a product of matrices.
    fn is_product(self) -> bool {
        let layer = matches!(self, OperatorName::Dense | OperatorName::DenseGelu | OperatorName::Swiglu);
        layer || self == OperatorName::LinearCrossEntropy
    }
}

pub(super) fn run(args: &BenchArgs) -> Result<()> {
    args.validate(PeerOperation::RowOperators).or_unusable()?;
    let device = Device::open(&args.device)?;
    let emulator = device.info().is_emulator();
    let timed = !emulator || args.clock == super::Clock::Host;
    let cells = shapes::cells(args, emulator).or_unusable()?;
    let gpu = if emulator { Err(String::new()) } else { Gpu::open(device.info()) };
    let mut environment = environment::environment(device.info(), &gpu);
    let mut peers = None;
    match args.start_peers(&device, timed, PeerOperation::RowOperators)? {
        Some(Ok(started)) => {
            environment.peers = started.versions.clone();
            peers = Some(started);
        }
        Some(Err(reason)) => environment.peers_missing = Some(reason),
        None => {}
    }
    let timing = Timing { l2: L2::Rotate, ..args.timing() };
    let method = format!(
        "launches go round copies of the tensors that together are twice the level-two cache and more, so that little is in it; {} samples of {} ms, in turns \
         in a drawn order; bytes a second are those of all tensors, each counted once",
        timing.repeats, timing.sample_ms
    );
    let mut record = OperatorRecord {
        kind: OPERATORS_KIND.to_owned(),
        schema_version: OPERATORS_VERSION,
        environment,
        method,
        seed: args.seed,
        cells: Vec::new(),
    };
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (i, cell) in cells.iter().enumerate() {
        status!("{cell}");
        let results = measure(&device, cell, args, timed.then_some(timing), &mut peers, args.seed + i as u64)?;
        for result in &results {
            if let (Some(error), Some(bound)) = (result.max_error, result.bound) {
                checked += 1;
                if error > bound {
                    wrong.push(format!("{cell}: {} is off by {error:.3e}, {bound:.3e} is accepted", result.name));
                }
            }
        }
        record.cells.push(OperatorCell {
            operator: cell.operator.name().to_owned(),
            pass: cell.pass_name().to_owned(),
            dtype: cell.dtype.name().to_owned(),
            rows: cell.rows,
            columns: cell.columns,
            model: cell.model.map(|model| model.name().to_owned()),
            depth: cell.depth,
            operations: cell.depth.map(|_| dense::operations(cell)),
            bytes: cell.operator.bytes(cell),
            results,
        });
        if let Some(path) = args.json.as_deref().filter(|path| !files::is_stream(path)) {
            record.write(path)?;
        }
    }
    print(&record)?;
    if let Some(path) = &args.json {
        record.write(path)?;
        status!("results written to {}", files::written_name(path));
    }
    if !wrong.is_empty() {
        bail!("{} of {checked} results are outside the tolerance rule:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    say!("{checked} results compared with the f64 reference, all within the tolerance rule")
}

/// One that takes turns.
#[derive(Clone, Copy, PartialEq)]
enum Who {
    Ours,
    Peer(PeerName),
}

fn measure(
    device: &Device,
    cell: &Cell,
    args: &BenchArgs,
    timing: Option<Timing>,
    peers: &mut Option<Peers>,
    seed: u64,
) -> Result<Vec<OperatorResult>> {
    let mut problem = Problem::new(device, *cell, args.values, seed)?;
    let mut ours = OperatorResult::new(OURS);
    let plan = problem.plan()?;
    ours.symbols = plan.symbols().into_iter().map(str::to_owned).collect();
    // Of a list, one for all launches of an entry.
    ours.symbols.dedup();
    ours.workspace_bytes = Some(plan.workspace_bytes());
    let (error, bound) = problem.check()?;
    (ours.max_error, ours.bound) = (Some(error), Some(bound));
    let mut results = vec![ours];
    let mut contestants = vec![(Who::Ours, 1u32)];
    if let Some(peers) = peers {
        device.synchronize()?;
        let names = peers.imported();
        let prepared = peers.prepare_rows(|folder| problem.write_inputs(folder))?;
        for name in names {
            let mut result = OperatorResult::new(name.name());
            result.version = peers.import(name).ok().map(str::to_owned);
            match prepared.clone().and_then(|()| peers.run_rows(name)) {
                Ok(out) => {
                    let (error, bound) = problem.check_files(&out)?;
                    // The next peer that writes nothing must not be judged by this one's.
                    for file in problem.result_files(&out) {
                        let _ = std::fs::remove_file(file);
                    }
                    (result.max_error, result.bound) = (Some(error), Some(bound));
                    contestants.push((Who::Peer(name), 1));
                }
                Err(reason) => result.skipped = Some(reason),
            }
            results.push(result);
        }
    }
    let Some(timing) = timing else { return Ok(results) };
    problem.capture()?;
    let together = problem.sets() as u32;
    let mut order = SmallRng::seed_from_u64(timing.order_seed ^ seed);
    let mut failed: Vec<Option<String>> = vec![None; contestants.len()];
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); contestants.len()];
    let mut sample = |who: Who, launches: u32, problem: &Problem| -> Result<std::result::Result<f64, String>> {
        std::thread::sleep(timing.rest);
        Ok(match (who, peers.as_mut()) {
            (Who::Ours, _) => Ok(problem.time_ms(launches)?),
            (Who::Peer(name), Some(peers)) => peers.time_ms(name, launches, false),
            (Who::Peer(_), None) => Err("no peers".to_owned()),
        })
    };
    for (i, (who, launches)) in contestants.iter_mut().enumerate() {
        *launches = together;
        let start = Instant::now();
        while failed[i].is_none() {
            match sample(*who, *launches, &problem)? {
                Ok(ms) => *launches = timing.launches(*launches, ms, together),
                Err(reason) => failed[i] = Some(reason),
            }
            if start.elapsed() >= timing.warmup {
                break;
            }
        }
    }
    let mut turns: Vec<usize> = (0..contestants.len()).collect();
    for _ in 0..timing.repeats {
        turns.shuffle(&mut order);
        for &turn in &turns {
            let (who, launches) = contestants[turn];
            if failed[turn].is_some() {
                continue;
            }
            match sample(who, launches, &problem)? {
                // Tenths of a nanosecond: further digits are noise, of which records would have pages.
                Ok(ms) => samples[turn].push((ms / f64::from(launches) * 1e7).round() / 1e7),
                Err(reason) => failed[turn] = Some(reason),
            }
        }
    }
    for (turn, (who, _)) in contestants.iter().enumerate() {
        if let (Who::Peer(name), Some(peers), None) = (who, peers.as_mut(), &failed[turn]) {
            failed[turn] = peers.verify(*name).err();
        }
    }
    for (((who, _), samples), failed) in contestants.iter().zip(samples).zip(failed) {
        let name = match who {
            Who::Ours => OURS,
            Who::Peer(peer) => peer.name(),
        };
        let result = results.iter_mut().find(|result| result.name == name).expect("it was checked");
        result.skipped = failed;
        if result.skipped.is_none() {
            let time = Quartiles::of(&samples);
            result.bytes_per_second = Some(cell.operator.bytes(cell) as f64 / (time.median * 1e-3));
            (result.samples_ms, result.time_ms) = (samples, Some(time));
        }
    }
    if let Some(peers) = peers {
        peers.release();
    }
    drop(problem);
    device.trim_memory()?;
    Ok(results)
}

fn print(record: &OperatorRecord) -> Result<()> {
    let mut table = Sheet::new(
        ["operator", "pass", "type", "rows", "columns", "depth", "who", "GB/s", "TFLOP/s", "time", "max error"],
        7,
        4,
    );
    for cell in &record.cells {
        for result in &cell.results {
            let number = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            let row = [
                cell.model.as_ref().map_or_else(|| cell.operator.clone(), |model| format!("{} {model}", cell.operator)),
                cell.pass.clone(),
                cell.dtype.clone(),
                cell.rows.to_string(),
                cell.columns.to_string(),
                number(cell.depth.map(|depth| depth.to_string())),
                result.name.clone(),
                number(result.bytes_per_second.map(|rate| significant(rate / 1e9))),
                number(cell.flops(result).map(|rate| significant(rate / 1e12))),
                number(result.time_ms.map(|time| milliseconds(time.median))),
                number(result.max_error.map(|error| format!("{error:.1e}"))),
            ];
            table.add_row(row.map(Into::into).into());
        }
    }
    say!("{table}")?;
    for cell in &record.cells {
        for result in &cell.results {
            if let Some(reason) = &result.skipped {
                say!("{} {} of {} x {}: {}: {reason}", cell.operator, cell.pass, cell.rows, cell.columns, result.name)?;
            }
        }
    }
    Ok(())
}
