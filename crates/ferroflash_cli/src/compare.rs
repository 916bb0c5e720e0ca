//! `ferroflash compare`: two records of the same machine, with a verdict for each result.

mod significance;

use crate::bench::record::{CellProblem, Measurement, Record};
use crate::format;
use anyhow::{Result, ensure};
use clap::Args;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Attribute, CellAlignment, Color, ContentArrangement, Table};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Chance of a difference where there is none, for each result that is compared.
const ALPHA: f64 = 0.01;

/// Samples of fewer rounds cannot be told apart at [`ALPHA`]: five against five come in 252 orders.
const FEWEST_SAMPLES: usize = 5;

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
    /// The record before
    #[arg(value_name = "BEFORE")]
    before: PathBuf,
    /// The record after
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

/// Compares, prints and says how it went.
pub(crate) fn run(args: &CompareArgs) -> ExitCode {
    match compare_files(&args.before, &args.after, args) {
        Ok(comparison) => {
            print(&comparison, args);
            if comparison.worse().next().is_some() { ExitCode::from(1) } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn compare_files(before: &Path, after: &Path, args: &CompareArgs) -> Result<Comparison> {
    let before = Record::read(before)?;
    let after = Record::read(after)?;
    compare(&before, &after, args.threshold, args.across)
}

/// What became of one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Better,
    Worse,
    /// Far apart, but not beyond what the samples vary by themselves.
    Noise,
}

/// One line of the table: one quantity of one result.
#[derive(Clone, Debug, PartialEq)]
struct Change {
    problem: CellProblem,
    name: String,
    peer: bool,
    quantity: String,
    before: String,
    after: String,
    /// After over before, less one.
    difference: Option<f64>,
    /// Of the Mann-Whitney test; `None` where there was none.
    p_value: Option<f64>,
    verdict: Verdict,
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
/// Records of different devices or of different methods (unless `across`), and records without a common result.
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
    for (what, a, b) in [
        ("state of the level-two cache", &a.l2, &b.l2),
        ("inputs", &a.inputs, &b.inputs),
        ("rule for FLOP", &a.flop_rule, &b.flop_rule),
    ] {
        ensure!(a == b, "the records differ in {what}, `{a}` and `{b}`; --across compares them all the same");
    }
    Ok(())
}

const TIME: &str = "time";

/// Everything that can be compared of one result.
fn changes(
    problem: &CellProblem,
    before: &Measurement,
    after: &Measurement,
    times: f64,
    threshold: f64,
) -> Vec<Change> {
    let change = |quantity: &str, before_text: String, after_text: String, verdict| Change {
        problem: problem.clone(),
        name: before.name.clone(),
        peer: before.peer,
        quantity: quantity.to_owned(),
        before: before_text,
        after: after_text,
        difference: None,
        p_value: None,
        verdict,
    };
    match (&before.skipped, &after.skipped) {
        (None, None) => {}
        (Some(reason), Some(_)) => {
            let reason = format!("not run: {reason}");
            return vec![change("run", reason.clone(), reason, Verdict::Same)];
        }
        (None, Some(reason)) => {
            return vec![change("run", "runs".to_owned(), format!("not run: {reason}"), Verdict::Worse)];
        }
        (Some(reason), None) => {
            return vec![change("run", format!("not run: {reason}"), "runs".to_owned(), Verdict::Better)];
        }
    }
    let mut changes = Vec::new();
    if let (Some(a), Some(b)) = (before.time_ms, after.time_ms) {
        let difference = b.median / a.median - 1.0;
        let enough = before.samples_ms.len().min(after.samples_ms.len()) >= FEWEST_SAMPLES;
        let p_value = enough.then(|| significance::mann_whitney(&before.samples_ms, &after.samples_ms));
        let apart = p_value.map_or(a.q3 < b.q1 || b.q3 < a.q1, |p| p < ALPHA);
        let verdict = if difference.abs() < times {
            Verdict::Same
        } else if !apart {
            Verdict::Noise
        } else {
            worse_if(difference > 0.0)
        };
        let texts = [a, b].map(|time| format::milliseconds(time.median));
        let [before, after] = texts;
        changes.push(Change { difference: Some(difference), p_value, ..change(TIME, before, after, verdict) });
    }
    if let (Some(a), Some(b)) = (before.extra_bytes, after.extra_bytes) {
        let difference = if a == b { 0.0 } else { b as f64 / a as f64 - 1.0 };
        let verdict = if difference.abs() < threshold || a == b { Verdict::Same } else { worse_if(b > a) };
        let change = change("extra memory", format::bytes(a), format::bytes(b), verdict);
        changes.push(Change { difference: Some(difference), ..change });
    }
    for (counter, &a) in &before.counters {
        let Some(&b) = after.counters.get(counter) else { continue };
        let verdict = if a == b { Verdict::Same } else { worse_if(b > a) };
        let difference = if a == b { 0.0 } else { b as f64 / a as f64 - 1.0 };
        let change = change(&counter.replace('_', " "), a.to_string(), b.to_string(), verdict);
        changes.push(Change { difference: Some(difference), ..change });
    }
    if let (Some(a), Some(b)) = (&before.check, &after.check) {
        let text = |within| if within { "accepted" } else { "WRONG" }.to_owned();
        let verdict = if a.within == b.within { Verdict::Same } else { worse_if(a.within) };
        changes.push(change("result", text(a.within), text(b.within), verdict));
    }
    changes
}

fn worse_if(worse: bool) -> Verdict {
    if worse { Verdict::Worse } else { Verdict::Better }
}

/// Counts that only one of two results has; versions of the emulator count different things.
fn lone_counters<'a>(a: &'a Record, b: &'a Record) -> Vec<&'a str> {
    fn all(record: &Record) -> BTreeSet<&str> {
        let results = record.cells.iter().flat_map(|cell| &cell.results);
        results.flat_map(|result| result.counters.keys().map(String::as_str)).collect()
    }
    all(a).difference(&all(b)).copied().collect()
}

fn print(comparison: &Comparison, args: &CompareArgs) {
    let shown = |change: &&Change| args.all || change.verdict != Verdict::Same;
    if comparison.changes.iter().any(|change| shown(&change)) {
        println!("{}", table(comparison.changes.iter().filter(shown)));
    }
    for line in &comparison.missing {
        println!("{line}");
    }
    let count = |verdict| comparison.changes.iter().filter(|change| !change.peer && change.verdict == verdict).count();
    println!(
        "of ferroflash: {} worse, {} better, {} same, {} no clearer than the noise; differences of times count from {:.2} % on",
        count(Verdict::Worse),
        count(Verdict::Better),
        count(Verdict::Same),
        count(Verdict::Noise),
        100.0 * comparison.threshold
    );
    if let Some(peers) = comparison.peers {
        println!("times of the peers, which did not change, moved by {:+.2} % in the median", 100.0 * peers);
    }
}

fn table<'a>(changes: impl Iterator<Item = &'a Change>) -> Table {
    let mut table = Table::new();
    let header = ["problem", "implementation", "quantity", "before", "after", "difference", "p", "verdict"];
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for change in changes {
        let optional = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let cells = [
            change.problem.to_string(),
            change.name.clone(),
            change.quantity.clone(),
            change.before.clone(),
            change.after.clone(),
            optional(change.difference.map(|difference| format!("{:+.2} %", 100.0 * difference))),
            optional(change.p_value.map(|p| if p < 1e-4 { "< 1e-4".to_owned() } else { format!("{p:.4}") })),
        ];
        let verdict = match (change.verdict, change.quantity.as_str()) {
            (Verdict::Same, _) => comfy_table::Cell::new("same"),
            (Verdict::Noise, _) => comfy_table::Cell::new("noise"),
            (Verdict::Better, TIME) => comfy_table::Cell::new("faster").fg(Color::Green),
            (Verdict::Better, _) => comfy_table::Cell::new("better").fg(Color::Green),
            (Verdict::Worse, TIME) => bad("SLOWER"),
            (Verdict::Worse, _) => bad("WORSE"),
        };
        table.add_row(cells.into_iter().map(comfy_table::Cell::new).chain([verdict]));
    }
    table
}

fn bad(text: &str) -> comfy_table::Cell {
    comfy_table::Cell::new(text).fg(Color::Red).add_attribute(Attribute::Bold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::samples::{sample, sample_cell};
    use crate::bench::record::{Noise, Record};

    const THRESHOLD: f64 = 0.02;

    fn record(times: &[(&str, f64)]) -> Record {
        sample("GPU", "cuda", vec![sample_cell("bf16", 512, times), sample_cell("bf16", 1024, times)])
    }

    fn verdicts(before: &Record, after: &Record) -> Vec<(String, String, Verdict)> {
        let comparison = compare(before, after, THRESHOLD, false).unwrap();
        let all = comparison.changes.iter().map(|c| (c.name.clone(), c.quantity.clone(), c.verdict));
        all.filter(|(_, quantity, _)| quantity == TIME).collect()
    }

    #[test]
    fn the_same_record_is_the_same() {
        let record = record(&[("naive", 4.0), ("torch flash", 2.0)]);
        let comparison = compare(&record, &record, THRESHOLD, false).unwrap();
        assert_eq!(comparison.changes.len(), 8);
        assert!(comparison.changes.iter().all(|change| change.verdict == Verdict::Same));
        assert_eq!((comparison.missing.len(), comparison.peers), (0, Some(0.0)));
    }

    #[test]
    fn slower_is_worse_and_faster_is_better() {
        let (before, slower) = (record(&[("v2", 1.0)]), record(&[("v2", 1.05)]));
        assert!(verdicts(&before, &slower).iter().all(|verdict| verdict.2 == Verdict::Worse));
        assert_eq!(compare(&before, &slower, THRESHOLD, false).unwrap().worse().count(), 2);
        assert!(verdicts(&slower, &before).iter().all(|verdict| verdict.2 == Verdict::Better));
        assert_eq!(compare(&slower, &before, THRESHOLD, false).unwrap().worse().count(), 0);
    }

    #[test]
    fn what_is_below_the_threshold_or_the_noise_floor_is_the_same() {
        // Every sample is later than every one before, by 1.9 % in the median.
        let mut before = record(&[("v2", 1.0)]);
        let mut after = record(&[("v2", 1.019)]);
        for record in [&mut before, &mut after] {
            for result in record.cells.iter_mut().flat_map(|cell| &mut cell.results) {
                let median = result.time_ms.unwrap().median;
                result.samples_ms = (0..21).map(|i| median * (1.0 + 1e-5 * f64::from(i))).collect();
            }
        }
        assert!(verdicts(&before, &after).iter().all(|verdict| verdict.2 == Verdict::Same));
        assert_eq!(compare(&before, &after, 0.01, false).unwrap().worse().count(), 2);
        after.noise = Some(Noise { floor_percent: 3.0, pairs: Vec::new() });
        let comparison = compare(&before, &after, 0.01, false).unwrap();
        assert_eq!((comparison.worse().count(), comparison.threshold), (0, 0.03));
    }

    #[test]
    fn far_apart_within_wide_samples_is_noise() {
        let mut before = record(&[("v2", 1.0)]);
        let mut after = record(&[("v2", 1.05)]);
        for (record, shift) in [(&mut before, 0.0), (&mut after, 0.05)] {
            for result in record.cells.iter_mut().flat_map(|cell| &mut cell.results) {
                result.samples_ms = [0.5, 0.8, 1.0, 1.3, 1.6].map(|time| time + shift).to_vec();
            }
        }
        assert!(verdicts(&before, &after).iter().all(|verdict| verdict.2 == Verdict::Noise));
    }

    #[test]
    fn without_samples_the_quartiles_decide() {
        let mut before = record(&[("v2", 1.0)]);
        let mut after = record(&[("v2", 1.05)]);
        for result in [&mut before, &mut after].into_iter().flat_map(|r| &mut r.cells).flat_map(|c| &mut c.results) {
            result.samples_ms.clear();
        }
        assert!(verdicts(&before, &after).iter().all(|verdict| verdict.2 == Verdict::Worse));
        for result in after.cells.iter_mut().flat_map(|cell| &mut cell.results) {
            result.time_ms.as_mut().unwrap().q1 = 1.0;
        }
        assert!(verdicts(&before, &after).iter().all(|verdict| verdict.2 == Verdict::Noise));
    }

    #[test]
    fn peers_have_no_say() {
        let before = record(&[("v2", 1.0), ("torch flash", 1.0)]);
        let after = record(&[("v2", 1.0), ("torch flash", 1.5)]);
        let comparison = compare(&before, &after, THRESHOLD, false).unwrap();
        assert_eq!(comparison.worse().count(), 0);
        assert!((comparison.peers.unwrap() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn what_one_record_lacks_is_named() {
        let mut before = record(&[("v2", 1.0), ("v1", 2.0)]);
        let mut after = record(&[("v2", 1.0), ("v3", 0.5)]);
        before.cells.push(sample_cell("f16", 64, &[("v2", 1.0)]));
        after.cells.push(sample_cell("f16", 128, &[("v2", 1.0)]));
        let missing = compare(&before, &after, THRESHOLD, false).unwrap().missing;
        let expected =
            ["only before: v1 on bf16 full", "only after: v3 on bf16 full", "only before: f16", "only after: f16"];
        for line in expected {
            assert!(missing.iter().any(|found| found.starts_with(line)), "{line}: {missing:?}");
        }
        let other = sample("GPU", "cuda", vec![sample_cell("f32", 512, &[("v2", 1.0)])]);
        let error = compare(&before, &other, THRESHOLD, false).unwrap_err().to_string();
        assert!(error.contains("no result in common"), "{error}");
    }

    #[test]
    fn memory_wrong_results_and_what_does_not_run_any_more_are_regressions() {
        let before = record(&[("v2", 1.0)]);
        let worse = |change: fn(&mut Measurement)| {
            let mut before = before.clone();
            before.cells[0].results[0].extra_bytes = Some(1000);
            let mut after = before.clone();
            change(&mut after.cells[0].results[0]);
            let forth: Vec<_> = compare(&before, &after, THRESHOLD, false).unwrap().worse().cloned().collect();
            assert_eq!(compare(&after, &before, THRESHOLD, false).unwrap().worse().count(), 0);
            forth.into_iter().map(|change| change.quantity).collect::<Vec<_>>()
        };
        assert_eq!(worse(|result| result.extra_bytes = Some(1100)), ["extra memory"]);
        assert_eq!(worse(|result| result.extra_bytes = Some(1010)), [""; 0]);
        assert_eq!(worse(|result| result.check.as_mut().unwrap().within = false), ["result"]);
        assert_eq!(worse(|result| result.skipped = Some("no memory".to_owned())), ["run"]);
    }

    #[test]
    fn counts_are_compared_exactly() {
        let counted = |count: u64| {
            let mut cell = sample_cell("bf16", 64, &[("v2", 1.0)]);
            cell.results[0].time_ms = None;
            cell.results[0].samples_ms.clear();
            cell.results[0].counters.insert("global_bytes_read".to_owned(), count);
            sample("emulator", "emulator", vec![cell])
        };
        let worse = |a, b| {
            let comparison = compare(&counted(a), &counted(b), 0.5, false).unwrap();
            comparison.worse().map(|change| change.quantity.clone()).collect::<Vec<_>>()
        };
        assert_eq!(worse(1_000_000, 1_000_001), ["global bytes read"]);
        assert!(worse(1_000_000, 1_000_000).is_empty() && worse(1_000_001, 1_000_000).is_empty());
        let mut lone = counted(1);
        lone.cells[0].results[0].counters.insert("new_count".to_owned(), 1);
        let missing = compare(&counted(1), &lone, 0.5, false).unwrap().missing;
        assert_eq!(missing, ["only after: the count new_count"]);
    }

    #[test]
    fn other_machines_and_methods_are_refused() {
        let before = record(&[("v2", 1.0)]);
        let mut after = before.clone();
        after.environment.device = "other GPU".to_owned();
        let error = |after: &Record| compare(&before, after, THRESHOLD, false).unwrap_err().to_string();
        assert!(error(&after).contains("GPU and other GPU; --across"), "{}", error(&after));
        assert!(compare(&before, &after, THRESHOLD, true).is_ok());
        after.environment.backend = "emulator".to_owned();
        assert!(compare(&before, &after, THRESHOLD, true).unwrap_err().to_string().contains("cannot be compared"));
        let mut after = before.clone();
        after.method.l2 = "flush".to_owned();
        assert!(error(&after).contains("level-two cache, `warm` and `flush`"), "{}", error(&after));
    }

    #[test]
    fn a_threshold_is_a_percentage() {
        assert_eq!((percent("2%"), percent("0.5"), percent("100 %")), (Ok(0.02), Ok(0.005), Ok(1.0)));
        for wrong in ["", "x", "-1", "101%", "nan"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }
}
