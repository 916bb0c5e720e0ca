//! Tables of sequences in caches or packed: one for each place of their rows, whatever their heads.

use super::{error, heads, optional, ratio, rows};
use crate::bench::record::{Ceilings, Cell, CellProblem, Measurement};
use crate::bench::stats::Quartiles;
use crate::format;
use crate::sheet::Sheet;
use comfy_table::Cell as TableCell;

/// Cells that belong into one table.
pub(crate) fn same_sequences(a: &CellProblem, b: &CellProblem) -> bool {
    let key = |problem: &CellProblem| {
        let CellProblem { dtype, mask, sequences, .. } = problem;
        (dtype.clone(), *mask, sequences.clone())
    };
    key(a) == key(b)
}

/// The line above such a table.
pub(crate) fn sequences_title(problem: &CellProblem) -> String {
    let CellProblem { dtype, mask, sequences, .. } = problem;
    format!("{dtype}, {mask}, {}", sequences.as_deref().unwrap_or("equal sequences"))
}

/// Times, rates and errors of such cells. Versions of peers stand in the heading of the run.
pub(crate) fn of_sequences(cells: &[Cell], ceilings: Option<&Ceilings>, peers: &[String]) -> Sheet {
    let cached = cells.iter().any(|cell| cell.kv_bytes.is_some());
    let reading = ceilings.map(|ceilings| match &ceilings.read_bytes_per_second {
        Some(read) => ("of read", read.value),
        None => ("of copy", ceilings.copy_bytes_per_second.value),
    });
    let reading = reading.filter(|_| cached);
    let mut header = vec!["batch", "heads", "dim", "rows", "kernel", "time"];
    header.extend(cached.then_some("GB/s"));
    header.extend(reading.map(|(name, _)| name));
    header.push("TFLOP/s");
    header.extend((!peers.is_empty()).then_some("vs best peer"));
    header.extend(["splits", "IQR", "extra memory", "max error"]);
    let mut table = Sheet::new(header, 5, 0);
    for cell in cells {
        for (i, result) in cell.results.iter().enumerate() {
            let once = |value: String| TableCell::from(if i == 0 { value } else { String::new() });
            let problem = &cell.problem;
            let mut row = vec![
                once(problem.batch.to_string()),
                once(heads(problem)),
                once(problem.head_dim.to_string()),
                once(rows(problem)),
                result.name.as_str().into(),
            ];
            row.extend(rates(result, cached, reading.map(|(_, ceiling)| ceiling)));
            if !peers.is_empty() {
                row.push(ratio(result));
            }
            row.push(optional(&result.splits, u32::to_string).into());
            row.push(optional(&result.time_ms, |time| format::milliseconds(Quartiles::range(time))).into());
            row.push(optional(&result.extra_bytes, |&bytes| format::bytes(bytes)).into());
            row.push(error(result));
            table.add_row(row);
        }
    }
    table
}

/// The time, and what it is in bytes, as part of a ceiling, and in operations.
fn rates(result: &Measurement, cached: bool, ceiling: Option<f64>) -> Vec<TableCell> {
    let mut row = vec![optional(&result.time_ms, |time| format::milliseconds(time.median))];
    if cached {
        row.push(optional(&result.kv_bytes_per_second, |rate| format::significant(rate / 1e9)));
    }
    if let Some(ceiling) = ceiling {
        row.push(optional(&result.kv_bytes_per_second, |rate| format!("{:.0} %", 100.0 * rate / ceiling)));
    }
    row.push(optional(&result.tflops, |&tflops| format::significant(tflops)));
    row.into_iter().map(TableCell::from).collect()
}
