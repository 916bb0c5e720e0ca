//! What a run prints: one table for each element type, mask and head dim.

use super::record::{Cell, CellProblem, Check, Measurement};
use super::stats::Quartiles;
use crate::format;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Attribute, CellAlignment, Color, ContentArrangement, Table};

/// Cells that belong into one table: they share everything but the sequence length and the batch.
pub(crate) fn same_group(a: &CellProblem, b: &CellProblem) -> bool {
    let key = |problem: &CellProblem| {
        (problem.dtype.clone(), problem.mask.clone(), problem.head_dim, problem.q_heads, problem.kv_heads)
    };
    key(a) == key(b)
}

/// The line above a table.
pub(crate) fn title(problem: &CellProblem) -> String {
    let CellProblem { dtype, head_dim, mask, q_heads, kv_heads, .. } = problem;
    let heads = if kv_heads == q_heads { q_heads.to_string() } else { format!("{q_heads}/{kv_heads}") };
    format!("{dtype}, {mask}, head_dim {head_dim}, heads {heads}")
}

/// Times, speeds, memory and errors of the cells of one group.
pub(crate) fn timed(cells: &[Cell]) -> Table {
    let header = ["seq", "batch", "kernel", "time", "IQR", "TFLOP/s", "vs naive", "extra memory", "saved", "max error"];
    let mut table = new_table(&header);
    each_result(cells, |cell, result| {
        let time = |f: fn(&Quartiles) -> f64| optional(&result.time_ms, |time| format::milliseconds(f(time)));
        let mut row = vec![
            time(|time| time.median),
            time(Quartiles::range),
            optional(&result.tflops, |&tflops| format::significant(tflops)),
            optional(&result.speedup_over_naive, |&speedup| format!("{}x", format::significant(speedup))),
        ];
        row.extend(memory(result));
        add_row(&mut table, cell, result, row);
    });
    table
}

/// Counters that are printed, with their headings; a record holds all.
const PRINTED_COUNTERS: [(&str, &str); 6] = [
    ("lane_instructions", "instructions"),
    ("tensor_flops", "tensor FLOP"),
    ("special_functions", "exp2 and rcp"),
    ("global_bytes_read", "global read"),
    ("global_bytes_written", "global written"),
    ("shared_bank_conflicts", "bank conflicts"),
];

/// Counts of the emulator, memory and errors of the cells of one group.
pub(crate) fn counted(cells: &[Cell]) -> Table {
    let mut header = vec!["seq", "batch", "kernel"];
    header.extend(PRINTED_COUNTERS.map(|(_, heading)| heading));
    header.extend(["extra memory", "saved", "max error"]);
    let mut table = new_table(&header);
    each_result(cells, |cell, result| {
        let mut row: Vec<String> = PRINTED_COUNTERS
            .iter()
            .map(|(name, _)| {
                let show = if name.contains("bytes") { format::bytes } else { format::count };
                optional(&result.counters.get(*name), |&&count| show(count))
            })
            .collect();
        row.extend(memory(result));
        add_row(&mut table, cell, result, row);
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

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn each_result<'a>(cells: &'a [Cell], mut visit: impl FnMut(&'a Cell, &'a Measurement)) {
    for cell in cells {
        for result in &cell.results {
            visit(cell, result);
        }
    }
}

/// Adds the cell's sizes in front of `columns` and the verdict behind them.
fn add_row(table: &mut Table, cell: &Cell, result: &Measurement, columns: Vec<String>) {
    let first = std::ptr::eq(result, &cell.results[0]);
    let once = |value: usize| if first { value.to_string() } else { String::new() };
    let mut row = vec![once(cell.problem.seq).into(), once(cell.problem.batch).into(), (&result.name).into()];
    row.extend(columns.into_iter().map(comfy_table::Cell::from));
    row.push(match &result.check {
        Some(check) => verdict(check),
        None => comfy_table::Cell::from("not run"),
    });
    table.add_row(row);
}

/// The largest error beside what is accepted.
fn verdict(check: &Check) -> comfy_table::Cell {
    let text = format!("{} of {}", format::error(check.max_error), format::error(check.bound));
    if check.within {
        comfy_table::Cell::from(format!("{text} ok"))
    } else {
        comfy_table::Cell::from(format!("{text} WRONG")).fg(Color::Red).add_attribute(Attribute::Bold)
    }
}

/// Why results are missing, one line each.
pub(crate) fn skipped(cells: &[Cell]) -> Vec<String> {
    let mut lines = Vec::new();
    each_result(cells, |cell, result| {
        if let Some(reason) = &result.skipped {
            lines.push(format!("not run: {} at seq {}: {reason}", result.name, cell.problem.seq));
        }
    });
    lines
}
