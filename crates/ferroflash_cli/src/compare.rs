//! `ferroflash compare`: two records of the same machine, with a verdict for each result.

mod change;
mod significance;
mod table;
#[cfg(test)]
mod tests;

use crate::bench::record::Record;
use crate::files;
use crate::output::say;
use anyhow::{Result, ensure};
use change::{Change, TIME, Verdict, changes};
use clap::Args;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use table::tables;

/// Compares two records of `bench --json`: what became slower, and what only looks so.
#[derive(Args, Debug)]
#[command(after_help = "\
A time is different when its medians lie further apart than the threshold and than the noise floor of either record, and when a
two-sided Mann-Whitney test of the samples says so at 1 %. Records with fewer than five samples are compared by their quartiles
instead: the ranges between them must not overlap. Extra memory is different beyond the threshold. Counts of the emulator are
compared exactly.

Exit status: 0 when nothing of ferroflash is worse, 1 when something is slower, takes more memory, counts more, is wrong or does
not run any more, 2 when the records cannot be compared. Peers are shown, and have no say.

Examples:
  ferroflash bench compare before.json after.json
  ferroflash compare before.json after.json --threshold 5%")]
pub(crate) struct CompareArgs {
    /// The record before; - is standard input
    #[arg(value_name = "BEFORE")]
    before: PathBuf,
    /// The record after; - is standard input
    #[arg(value_name = "AFTER")]
    after: PathBuf,
    /// Least relative difference that matters
    #[arg(long, value_name = "PERCENT", default_value = "2%", value_parser = percent)]
    threshold: f64,
    /// Compare records of different devices or methods all the same
    #[arg(long)]
    across: bool,
    /// Show every result, also those that are the same
    #[arg(long)]
    all: bool,
}

/// `2%` or `2`, as a fraction.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(value / 100.0),
        _ => Err(format!("{text} is no percentage from 0% to 100%")),
    }
}

/// Compares, prints, and gives the exit status of a comparison that was possible.
///
/// # Errors
/// Records that cannot be read or compared.
pub(crate) fn run(args: &CompareArgs) -> Result<ExitCode> {
    ensure!(
        !(files::is_dash(&args.before) && files::is_dash(&args.after)),
        "BEFORE and AFTER are both standard input, which holds one record"
    );
    let (before, after) = (Record::read("BEFORE", &args.before)?, Record::read("AFTER", &args.after)?);
    let comparison = compare(&before, &after, args.threshold, args.across)?;
    print(&comparison, args)?;
    Ok(if comparison.worse().next().is_some() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

#[derive(Debug)]
struct Comparison {
    changes: Vec<Change>,
    /// Results that one record has and the other has not, as lines to print.
    missing: Vec<String>,
    /// The least difference of times that counts.
    threshold: f64,
    /// Median difference of the times of all peers.
    peers: Option<f64>,
}

impl Comparison {
    fn worse(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| change.verdict == Verdict::Worse && !change.peer)
    }
}

/// # Errors
/// Records of times and counts, or of different passes; of different devices or methods (unless `across`); and records without a common
/// result.
fn compare(before: &Record, after: &Record, threshold: f64, across: bool) -> Result<Comparison> {
    comparable(before, after, across)?;
    let floor = [before, after].into_iter().filter_map(|record| record.noise.as_ref());
    let floor = floor.map(|noise| noise.floor_percent / 100.0).fold(0.0, f64::max);
    let times = threshold.max(floor);
    let mut comparison = Comparison { changes: Vec::new(), missing: Vec::new(), threshold: times, peers: None };
    for cell in &before.cells {
        let Some(other) = after.cells.iter().find(|other| other.problem == cell.problem) else {
            comparison.missing.push(format!("only before: {}", cell.problem));
            continue;
        };
        for result in &cell.results {
            match other.result(&result.name) {
                Some(now) => comparison.changes.extend(changes(&cell.problem, result, now, times, threshold)),
                None => comparison.missing.push(format!("only before: {} on {}", result.name, cell.problem)),
            }
        }
        let new = other.results.iter().filter(|result| cell.result(&result.name).is_none());
        comparison.missing.extend(new.map(|result| format!("only after: {} on {}", result.name, cell.problem)));
    }
    let new = after.cells.iter().filter(|cell| before.cells.iter().all(|other| other.problem != cell.problem));
    comparison.missing.extend(new.map(|cell| format!("only after: {}", cell.problem)));
    comparison
        .missing
        .extend(lone_counters(before, after).into_iter().map(|name| format!("only before: the count {name}")));
    comparison
        .missing
        .extend(lone_counters(after, before).into_iter().map(|name| format!("only after: the count {name}")));
    ensure!(!comparison.changes.is_empty(), "the records have no result in common");
    let peers = comparison.changes.iter().filter(|change| change.peer && change.quantity == TIME);
    let mut peers: Vec<f64> = peers.filter_map(|change| change.difference).collect();
    peers.sort_by(f64::total_cmp);
    comparison.peers = peers.get(peers.len() / 2).copied();
    Ok(comparison)
}

fn comparable(before: &Record, after: &Record, across: bool) -> Result<()> {
    let (a, b) = (&before.environment, &after.environment);
    ensure!(
        a.backend == b.backend,
        "times and counts cannot be compared: before was made on {}, after on {}",
        a.backend,
        b.backend
    );
    let (a_pass, b_pass) = (before.method.pass, after.method.pass);
    ensure!(a_pass == b_pass, "the records are of different passes, {a_pass} and {b_pass}, which cannot be compared");
    if across {
        return Ok(());
    }
    ensure!(
        a.device == b.device,
        "the records are of different devices, {} and {}; --across compares them all the same",
        a.device,
        b.device
    );
    let (a, b) = (&before.method, &after.method);
    let (a_spacing, b_spacing) = (a.spacing(), b.spacing());
    for (what, a, b) in [
        ("rest of the device between samples", &a_spacing, &b_spacing),
        ("state of the level-two cache", &a.l2, &b.l2),
        ("inputs", &a.inputs, &b.inputs),
        ("rule for FLOP", &a.flop_rule, &b.flop_rule),
    ] {
        ensure!(a == b, "the records differ in {what}, `{a}` and `{b}`; --across compares them all the same");
    }
    Ok(())
}

/// Counts that only one of two results has; versions of the emulator count different things.
fn lone_counters<'a>(a: &'a Record, b: &'a Record) -> Vec<&'a str> {
    fn all(record: &Record) -> BTreeSet<&str> {
        let results = record.cells.iter().flat_map(|cell| &cell.results);
        results.flat_map(|result| result.counters.keys().map(String::as_str)).collect()
    }
    all(a).difference(&all(b)).copied().collect()
}

fn print(comparison: &Comparison, args: &CompareArgs) -> Result<()> {
    let shown = |change: &&Change| args.all || change.verdict != Verdict::Same;
    let changes: Vec<&Change> = comparison.changes.iter().filter(shown).collect();
    tables(&changes).iter().try_for_each(|(problem, sheet)| say!("{problem}\n{sheet}\n"))?;
    comparison.missing.iter().try_for_each(|line| say!("{line}"))?;
    let count = |verdict| comparison.changes.iter().filter(|change| !change.peer && change.verdict == verdict).count();
    let timed = comparison.changes.iter().any(|change| change.quantity == TIME);
    let from = if timed {
        format!("; differences of times count from {:.2} % on", 100.0 * comparison.threshold)
    } else {
        String::new()
    };
    say!(
        "of ferroflash: {} worse, {} better, {} same, {} no clearer than the noise{from}",
        count(Verdict::Worse),
        count(Verdict::Better),
        count(Verdict::Same),
        count(Verdict::Noise),
    )?;
    match comparison.peers {
        Some(peers) => say!("times of the peers, which did not change, moved by {:+.2} % in the median", 100.0 * peers),
        None => Ok(()),
    }
}
