//! Going through the cells of a sweep.

use super::measure::{self, Bench};
use super::record::Record;
use super::sweep::Sweep;
use super::{BenchArgs, print};
use crate::output::{self, status};
use crate::workload::{Case, Pass};
use crate::{format, terminal};
use anyhow::{Context, Result, ensure};
use ferroflash::Device;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use std::time::Instant;

/// Finds out before the run that a cell is too large: a library limit, or tensors that the device does not hold.
pub(super) fn check_size(case: &Case, pass: Pass, device: &Device) -> Result<()> {
    case.problem.validate().with_context(|| measure::cell_problem(case).to_string())?;
    let (needed, available) = (pass.tensor_bytes(case), device.info().memory_bytes);
    ensure!(
        needed <= available,
        "{}: q, k, v and out{} take {}, the device has {}",
        measure::cell_problem(case),
        if pass.has_backward() { ", and their gradients," } else { "" },
        format::bytes(needed),
        format::bytes(available)
    );
    Ok(())
}

/// Measures what the record lacks, and keeps each cell as soon as it is done.
pub(super) fn run_sweep(mut bench: Bench<'_>, sweep: &Sweep, args: &BenchArgs, record: &mut Record) -> Result<()> {
    let done = |record: &Record, i: usize| record.cells.iter().any(|cell| cell.problem == record.sweep.problems[i]);
    let mut todo: Vec<usize> = (0..sweep.cases.len()).filter(|&i| !done(record, i)).collect();
    if bench.timing.is_some() {
        // What drifts in the course of a run then does not look like an effect of the length.
        todo.shuffle(&mut SmallRng::seed_from_u64(args.order_seed));
    }
    let steps = todo.len() as u64;
    let bar = console::user_attended_stderr() && terminal::stderr_escapes() && !output::is_quiet();
    let bar = if bar { ProgressBar::new(steps) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} cells, {eta} left: {msg}")
        .context("the template of the progress bar")?;
    bar.set_style(style);
    let start = Instant::now();
    for (count, i) in todo.into_iter().enumerate() {
        let case = sweep.cases[i];
        let problem = measure::cell_problem(&case);
        // A seed of its own for each cell: no cell sees the inputs of another.
        let seed = args.seed.wrapping_mul(sweep.cases.len() as u64).wrapping_add(i as u64);
        let (cell, pair) = bench
            .measure(case, seed, |step| bar.set_message(format!("{problem}: {step}")))
            .with_context(|| problem.to_string())?;
        bar.inc(1);
        let count = count as u64 + 1;
        let left = start.elapsed().mul_f64((steps - count) as f64 / count as f64);
        let line = print::progress(&cell, count, steps, left);
        record.insert(cell, pair);
        // Before anything is printed: a reader who left does not cost a cell.
        args.keep(record)?;
        bar.suspend(|| status!("{line}"));
    }
    bar.finish_and_clear();
    Ok(())
}
