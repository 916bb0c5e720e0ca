//! What a run prints: one table for each element type, mask and head dim.

mod sequences;

use super::record::{Cell, CellProblem, Check, Measurement};
use super::stats::Quartiles;
use crate::sheet::Sheet;
use crate::workload::Pass;
use crate::{format, terminal};
use comfy_table::{Attribute, Cell as TableCell, Color};
pub(crate) use sequences::{of_sequences, same_sequences, sequences_title};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Cells that belong into one table: they share everything but the sequence length and the batch.
pub(crate) fn same_group(a: &CellProblem, b: &CellProblem) -> bool {
    let key = |problem: &CellProblem| {
        let CellProblem { dtype, mask, head_dim, q_heads, kv_heads, sequences, .. } = problem;
        (dtype.clone(), *mask, *head_dim, *q_heads, *kv_heads, sequences.clone())
    };
    key(a) == key(b)
}

/// The line above a table.
pub(crate) fn title(problem: &CellProblem) -> String {
    let CellProblem { dtype, head_dim, mask, sequences, .. } = problem;
    let sequences = sequences.as_ref().map_or(String::new(), |sequences| format!(", {sequences}"));
    format!("{dtype}, {mask}, head_dim {head_dim}, heads {}{sequences}", heads(problem))
}

/// Query heads, and the heads that they share.
fn heads(problem: &CellProblem) -> String {
    let CellProblem { q_heads, kv_heads, .. } = problem;
    if kv_heads == q_heads { q_heads.to_string() } else { format!("{q_heads}/{kv_heads}") }
}

/// Rows of q, and those of k where these are others.
fn rows(problem: &CellProblem) -> String {
    let CellProblem { seq, kv_seq, .. } = problem;
    if kv_seq == seq { seq.to_string() } else { format!("{seq}/{kv_seq}") }
}

/// Columns that name a row: seq, batch, kernel; where cells have programs one more.
const KEYS: usize = 3;

/// Times, speeds, memory and errors of the cells of one group.
pub(crate) fn timed(cells: &[Cell], pass: Pass, peers: &[String]) -> Sheet {
    let bounds = cells.iter().any(|cell| cell.roofline.is_some());
    let programs = has_programs(cells);
    let mut header = keys(programs);
    header.extend([pass.time(), "IQR", "TFLOP/s"]);
    header.extend(programs.then_some("over plain"));
    header.extend(bounds.then_some("of bound"));
    header.push("vs naive");
    header.extend((!peers.is_empty()).then_some("vs best peer"));
    header.extend(programs.then_some("first result, second"));
    header.extend(["extra memory", "saved", "max error"]);
    let mut table = Sheet::new(header, KEYS + usize::from(programs), 0);
    each_result(cells, |cell, result| {
        let time = |f: fn(&Quartiles) -> f64| optional(&result.time_ms, |time| format::milliseconds(f(time)));
        let mut row: Vec<TableCell> = vec![
            time(|time| time.median).into(),
            time(Quartiles::range).into(),
            optional(&result.tflops, |&tflops| format::significant(tflops)).into(),
        ];
        if programs {
            row.push(optional(&over_plain(cells, cell, result), |over| format!("{over:.3}")).into());
        }
        if bounds {
            let bound = cell.roofline.as_ref().map_or("", |roofline| &roofline.bound);
            row.push(optional(&result.bound_fraction, |&part| format!("{:.0} % {bound}", 100.0 * part)).into());
        }
        row.push(optional(&result.speedup_over_naive, |&over| format!("{}x", format::significant(over))).into());
        if !peers.is_empty() {
            row.push(ratio(result));
        }
        if programs {
            let both = result.first_result_ms.zip(result.second_result_ms);
            let show = |&(first, second): &(f64, f64)| {
                format!("{}, {}", format::milliseconds(first), format::milliseconds(second))
            };
            row.push(optional(&both, show).into());
        }
        row.extend(memory(result).map(TableCell::from));
        add_row(&mut table, cell, result, programs, row);
    });
    table
}

fn has_programs(cells: &[Cell]) -> bool {
    cells.iter().any(|cell| cell.problem.program.is_some())
}

/// Headings of what names a row.
fn keys(programs: bool) -> Vec<&'static str> {
    let program = programs.then_some("program");
    ["seq", "batch"].into_iter().chain(program).chain(["kernel"]).collect()
}

/// The time with a program over that of the same implementation on the same problem without one.
fn over_plain(cells: &[Cell], cell: &Cell, result: &Measurement) -> Option<f64> {
    cell.problem.program.as_ref()?;
    let problem = CellProblem { program: None, ..cell.problem.clone() };
    let plain = cells.iter().find(|cell| cell.problem == problem)?.result(&result.name)?;
    Some(result.time_ms?.median / plain.time_ms?.median)
}

/// How many times faster than the best peer: green when it is, red when the peer is.
fn ratio(result: &Measurement) -> TableCell {
    let Some(ratio) = result.ratio_to_best_peer else {
        return TableCell::from(if result.peer { "" } else { "-" });
    };
    let cell = TableCell::from(format!("{ratio:.2}"));
    match verdict_on(ratio) {
        Ordering::Greater => cell.fg(Color::Green),
        Ordering::Less => cell.fg(Color::Red),
        Ordering::Equal => cell,
    }
}

/// Who is faster; closer than the two digits that are shown is nobody.
fn verdict_on(ratio: f64) -> Ordering {
    match ratio {
        ratio if ratio >= 1.005 => Ordering::Greater,
        ratio if ratio < 0.995 => Ordering::Less,
        _ => Ordering::Equal,
    }
}

/// Our fastest kernel beside the best peer, in colour for a terminal; `None` without peers.
pub(crate) fn beside_the_best_peer(cell: &Cell) -> Option<String> {
    let best = super::ratios::best_peer(&cell.results)?;
    let ours = cell.results.iter().filter_map(|result| Some((&result.name, result.ratio_to_best_peer?)));
    let (name, ratio) = ours.max_by(|a, b| a.1.total_cmp(&b.1))?;
    // It is a line of progress.
    let colored = terminal::stderr_escapes();
    // The foreground colours of ECMA-48.
    let (on, off) = match verdict_on(ratio) {
        Ordering::Greater if colored => ("\x1b[32m", "\x1b[39m"),
        Ordering::Less if colored => ("\x1b[31m", "\x1b[39m"),
        _ => ("", ""),
    };
    let speed = match best.time_ms {
        Some(time) if cell.kv_bytes.is_some() => format::milliseconds(time.median),
        _ => best.tflops.map(format::significant).unwrap_or_default(),
    };
    Some(format!("{name} {on}{ratio:.2}x{off} {} ({speed})", best.name))
}

/// Counters that are printed, with their headings; a record holds all.
const PRINTED_COUNTERS: [(&str, &str); 9] = [
    ("lane_instructions", "instructions"),
    ("tensor_flops", "tensor FLOP"),
    ("f32_flops", "f32 FLOP"),
    ("special_functions", "exp2 and rcp"),
    ("global_bytes_read", "global read"),
    ("global_bytes_written", "global written"),
    ("global_sectors_read", "sectors read"),
    ("global_sectors_written", "sectors written"),
    ("shared_bank_conflicts", "bank conflicts"),
];

/// Counts of the emulator, memory and errors of the cells of one group.
pub(crate) fn counted(cells: &[Cell]) -> Sheet {
    let programs = has_programs(cells);
    let mut header = keys(programs);
    header.extend(PRINTED_COUNTERS.map(|(_, heading)| heading));
    header.extend(["extra memory", "saved", "max error"]);
    let mut table = Sheet::new(header, KEYS + usize::from(programs), 0);
    each_result(cells, |cell, result| {
        let mut row: Vec<TableCell> = PRINTED_COUNTERS
            .iter()
            .map(|(name, _)| {
                let show = if name.contains("bytes") { format::bytes } else { format::count };
                optional(&result.counters.get(*name), |&&count| show(count)).into()
            })
            .collect();
        row.extend(memory(result).map(TableCell::from));
        add_row(&mut table, cell, result, programs, row);
    });
    table
}

fn memory(result: &Measurement) -> [String; 2] {
    [
        optional(&result.extra_bytes, |&bytes| format::bytes(bytes)),
        optional(&result.saved_percent, |saved| format!("{saved:.1} %")),
    ]
}

fn optional<T>(value: &Option<T>, show: impl FnOnce(&T) -> String) -> String {
    value.as_ref().map_or_else(|| "-".to_owned(), show)
}

fn each_result<'a>(cells: &'a [Cell], mut visit: impl FnMut(&'a Cell, &'a Measurement)) {
    for cell in cells {
        for result in &cell.results {
            visit(cell, result);
        }
    }
}

/// Adds the cell's sizes in front of `columns` and the verdict behind them.
fn add_row(table: &mut Sheet, cell: &Cell, result: &Measurement, programs: bool, columns: Vec<TableCell>) {
    let first = std::ptr::eq(result, &cell.results[0]);
    let once = |value: String| if first { value } else { String::new() };
    let batch = cell.problem.batch.to_string();
    let mut row: Vec<TableCell> = vec![once(rows(&cell.problem)).into(), once(batch).into()];
    if programs {
        row.push(once(cell.problem.program.clone().unwrap_or_else(|| "plain".to_owned())).into());
    }
    row.push(result.title().into());
    row.extend(columns);
    row.push(error(result));
    table.add_row(row);
}

/// The largest error, where there is a result.
fn error(result: &Measurement) -> TableCell {
    result.check.as_ref().map_or_else(|| TableCell::from("not run"), verdict)
}

/// The largest error beside what is accepted.
fn verdict(check: &Check) -> TableCell {
    let text = format!("{} of {}", format::error(check.max_error), format::error(check.bound));
    if check.within {
        TableCell::from(format!("{text} ok"))
    } else {
        TableCell::from(format!("{text} WRONG")).fg(Color::Red).add_attribute(Attribute::Bold)
    }
}

/// Why results are missing, one line each.
pub(crate) fn skipped(cells: &[Cell]) -> Vec<String> {
    let mut lines = Vec::new();
    each_result(cells, |cell, result| {
        if let Some(reason) = &result.skipped {
            let place = match &cell.problem.sequences {
                None if cell.problem.program.is_none() => format!("seq {}", cell.problem.seq),
                _ => cell.problem.to_string(),
            };
            lines.push(format!("not run: {} at {place}: {reason}", result.name));
        }
    });
    lines
}

/// In how many of these cells the clocks were lowered and why, one line each.
pub(crate) fn throttled(cells: &[Cell]) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in cells.iter().filter_map(|cell| cell.telemetry.as_ref()).flat_map(|gpu| &gpu.throttle_reasons) {
        *counts.entry(reason).or_default() += 1;
    }
    let line = |(reason, count)| format!("THROTTLED: {reason} lowered the clocks in {count} of {} cells", cells.len());
    counts.into_iter().map(line).collect()
}
