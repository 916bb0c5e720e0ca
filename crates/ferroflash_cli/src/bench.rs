//! `ferroflash bench`: how fast, how much memory, how exact.

mod environment;
mod measure;
pub(crate) mod record;
pub(crate) mod stats;
mod sweep;
mod table;

use crate::compare::CompareArgs;
use crate::export::ExportArgs;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
pub(crate) use environment::{commit, environment};
use ferroflash::{Device, Kernel};
use indicatif::{ProgressBar, ProgressStyle};
use measure::Timing;
use record::{BENCH_KIND, Cell, Method, Record, SCHEMA_VERSION, SweepRecord};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;
pub(crate) use sweep::{DTypeName, KernelName};
use sweep::{Sweep, SweepArgs};

/// Measures the kernels and checks every result.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Inputs are standard normal and fresh for each cell. Every output is compared with an f64 reference; a result outside the
tolerance rule makes the exit status 1. On a GPU times come from CUDA events, kernels taking turns; on the emulator there are
counts instead of times.

Examples:
  ferroflash bench
  ferroflash bench --kernel v1,v2 --dtype bf16 --head-dim 128 --seq 1024,4096 --causal
  ferroflash bench --seq 128,512,2048 --batch 1 --json memory.json
  ferroflash bench --json results.json --plot pictures --html report.html
  ferroflash bench compare before.json after.json
  ferroflash bench --device emulator --heads 4 --kv-heads 2"
)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    sweep: SweepArgs,
    /// Device: best, cuda, cuda:N or emulator
    #[arg(long, value_name = "DEVICE", default_value = "best")]
    device: String,
    /// Timed samples of each kernel and cell, at least 3
    #[arg(long, value_name = "N", default_value_t = 21)]
    repeats: u32,
    /// Milliseconds of warm-up of each kernel and cell
    #[arg(long, value_name = "MS", default_value_t = 200)]
    warmup: u64,
    /// Seed of the inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write the results and the environment to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    export: ExportArgs,
    #[command(subcommand)]
    verb: Option<BenchVerb>,
}

/// What `bench` does with records instead of measuring.
#[derive(Subcommand, Debug)]
enum BenchVerb {
    Compare(CompareArgs),
}

impl BenchArgs {
    /// The comparison that was asked for in the place of a run.
    pub(crate) fn compare(&self) -> Option<&CompareArgs> {
        self.verb.as_ref().map(|BenchVerb::Compare(args)| args)
    }
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    // A quartile of fewer is no quartile.
    ensure!(args.repeats >= 3, "--repeats {} is not accepted; at least 3 samples are needed", args.repeats);
    if let Some(path) = &args.json {
        check_writable(path)?;
    }
    args.export.check()?;
    let device = Device::open(&args.device)?;
    let emulator = device.info().is_emulator();
    let has_instructions = |kernel: &Kernel| kernel.passes().iter().all(|pass| device.info().runs(pass.arch()));
    let runnable: Vec<Kernel> = Kernel::ALL.into_iter().filter(has_instructions).collect();
    let sweep = args.sweep.sweep(emulator, &runnable)?;
    let mut record = Record {
        kind: BENCH_KIND.to_owned(),
        schema_version: SCHEMA_VERSION,
        environment: environment(device.info()),
        method: method(args, emulator),
        sweep: SweepRecord {
            name: "options".to_owned(),
            scaled: None,
            kernels: sweep.kernels.iter().map(|kernel| kernel.name().to_owned()).collect(),
            peers: Vec::new(),
            problems: sweep.cases.iter().map(measure::cell_problem).collect(),
        },
        ceilings: None,
        noise: None,
        cells: Vec::new(),
    };
    print_heading(&record);
    let timing = (!emulator).then_some(Timing { repeats: args.repeats, warmup: Duration::from_millis(args.warmup) });
    run_sweep(&device, &sweep, timing, args.seed, &mut record)?;
    if let Some(path) = &args.json {
        let mut text = serde_json::to_string_pretty(&record).context("the record cannot be written as JSON")?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("results written to {}", path.display());
    }
    args.export.write(&record)?;
    let (checked, wrong) = record.verdict();
    if !wrong.is_empty() {
        bail!("{} of {checked} results are outside the tolerance rule:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    ensure!(checked > 0, "no kernel ran; the reasons are above");
    println!("{checked} results compared with the f64 reference, all within the tolerance rule");
    Ok(())
}

fn method(args: &BenchArgs, emulator: bool) -> Method {
    Method {
        timer: if emulator { "none: counts of the emulator" } else { "CUDA events around the launches of a sample" }
            .to_owned(),
        repeats: if emulator { 0 } else { args.repeats },
        sample_ms: if emulator { 0.0 } else { measure::SAMPLE_MS },
        warmup_seconds: if emulator { 0.0 } else { args.warmup as f64 / 1e3 },
        l2: "warm".to_owned(),
        order: "cells as in the sweep; kernels take turns, each round starting with the next one".to_owned(),
        order_seed: 0,
        seed: args.seed,
        inputs: "standard normal, rounded to the element type".to_owned(),
        flop_rule: "4 * batch * heads * seq * seq * head_dim, half of it when causal".to_owned(),
        tolerance: "max|out - f64| <= 2 * max|naive in the same precision - f64| + 1e-5".to_owned(),
    }
}

/// Finds out before the run that its results could not be kept after it.
fn check_writable(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "--json {}: the folder {} does not exist", path.display(), folder.display());
    ensure!(!path.is_dir(), "--json {} is a folder; a file is needed", path.display());
    Ok(())
}

fn print_heading(record: &Record) {
    let environment = &record.environment;
    print!("{}", environment.device);
    if let (Some(capability), Some(driver)) = (&environment.compute_capability, &environment.driver) {
        print!(", compute capability {capability}, driver for CUDA {driver}");
    }
    println!(", ferroflash {}", environment.ferroflash);
    if environment.backend == "emulator" {
        println!(
            "No GPU: the compiled kernels run in the PTX emulator. The numbers are COUNTS of what they do, not times."
        );
    } else {
        let Method { repeats, warmup_seconds, .. } = &record.method;
        println!(
            "Median and interquartile range of {repeats} samples by CUDA events after {warmup_seconds} s of warm-up."
        );
    }
    println!("max error: largest |out - f64 reference| of what the tolerance rule accepts.");
}

fn run_sweep(device: &Device, sweep: &Sweep, timing: Option<Timing>, seed: u64, record: &mut Record) -> Result<()> {
    let steps = sweep.cases.len() as u64;
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(steps) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} cells, {eta} left: {msg}")
        .context("the template of the progress bar")?;
    bar.set_style(style);
    let mut group: Vec<Cell> = Vec::new();
    for (i, &case) in sweep.cases.iter().enumerate() {
        let problem = measure::cell_problem(&case);
        if group.first().is_some_and(|first| !table::same_group(&first.problem, &problem)) {
            bar.suspend(|| print_group(&group, timing.is_none()));
            group.clear();
        }
        // A seed of its own for each cell: no cell sees the inputs of another.
        let seed = seed.wrapping_mul(steps).wrapping_add(i as u64);
        let cell = measure::measure(device, case, &sweep.kernels, timing, seed, |step| {
            bar.set_message(format!("{problem}: {step}"));
        })
        .with_context(|| problem.to_string())?;
        bar.inc(1);
        group.push(cell.clone());
        record.cells.push(cell);
    }
    bar.finish_and_clear();
    print_group(&group, timing.is_none());
    Ok(())
}

fn print_group(cells: &[Cell], counted: bool) {
    let Some(first) = cells.first() else { return };
    println!("\n{}", table::title(&first.problem));
    println!("{}", if counted { table::counted(cells) } else { table::timed(cells) });
    for line in table::skipped(cells) {
        println!("{line}");
    }
}
