//! Tables of operators: rates of ours beside those of each peer.

use super::text::{by_type_and, dash, line, table_header, table_row};
use crate::bench::operators::record::{OURS, OperatorCell, OperatorRecord};
use crate::format;
use std::fmt::Write;

/// What the rates of a cell count.
fn unit(cell: &OperatorCell) -> &'static str {
    if cell.operations.is_some() { "TFLOP/s" } else { "GB/s" }
}

/// A table for each operator, pass and element type.
pub(super) fn section(text: &mut String, record: &OperatorRecord) {
    line!(
        text,
        "Medians of launches that take turns in one run: GB/s of all tensors, each counted once, or TFLOP/s of products; a ratio above 1 means \
         that ferroflash is faster."
    );
    let key = |cell: &OperatorCell| format!("{} {}, {}", cell.operator, cell.pass, unit(cell));
    by_type_and(text, &record.cells, |cell| (&cell.dtype, key(cell)), table);
}

fn table(text: &mut String, cells: &[&OperatorCell]) {
    let mut names: Vec<&str> = Vec::new();
    for result in cells.iter().flat_map(|cell| &cell.results).filter(|result| result.time_ms.is_some()) {
        if !names.contains(&result.name.as_str()) {
            names.push(&result.name);
        }
    }
    let has_depth = cells.iter().any(|cell| cell.depth.is_some());
    let mut header = vec!["rows".to_owned(), "columns".to_owned()];
    header.extend(has_depth.then(|| "depth".to_owned()));
    header.extend(names.iter().map(|name| (*name).to_owned()));
    header.extend([format!("{OURS} over the best peer"), "largest error / bound".to_owned()]);
    table_header(text, &header);
    for cell in cells {
        // Tensors of a model are no rows of a matrix.
        let mut row = match &cell.model {
            Some(model) => vec![format!("{} tensors of {model}", cell.rows), format!("{} together", cell.columns)],
            None => vec![cell.rows.to_string(), cell.columns.to_string()],
        };
        row.extend(has_depth.then(|| dash(cell.depth.map(|depth| depth.to_string()))));
        row.extend(names.iter().map(|name| dash(rate(cell, name))));
        row.push(dash(cell.ratio_to_best_peer().map(|ratio| format!("{ratio:.2}"))));
        let check = cell.result(OURS).and_then(|ours| ours.max_error.zip(ours.bound));
        row.push(dash(check.map(|(error, bound)| format!("{} / {}", format::error(error), format::error(bound)))));
        table_row(text, &row);
    }
}

/// In the unit of the cell.
fn rate(cell: &OperatorCell, name: &str) -> Option<String> {
    let result = cell.result(name)?;
    let rate = if cell.operations.is_some() { cell.flops(result)? / 1e12 } else { result.bytes_per_second? / 1e9 };
    Some(format::significant(rate))
}

#[cfg(test)]
mod tests {
    use super::super::{gallery, page};
    use super::*;
    use crate::bench::operators::record::{OPERATORS_KIND, OperatorResult};
    use crate::bench::record::samples::sample;
    use crate::bench::stats::Quartiles;

    /// A problem of three million bytes, with the milliseconds of some and whether their results are right.
    fn cell(operator: &str, dtype: &str, depth: Option<usize>, times: &[(&str, f64, bool)]) -> OperatorCell {
        let results = times.iter().map(|&(name, ms, right)| {
            let mut result = OperatorResult::new(name);
            result.time_ms = Some(Quartiles::of(&[ms]));
            result.bytes_per_second = Some(3e9 / ms);
            (result.max_error, result.bound) = (Some(if right { 1e-3 } else { 1.0 }), Some(2e-3));
            result
        });
        OperatorCell {
            operator: operator.to_owned(),
            pass: "forward".to_owned(),
            dtype: dtype.to_owned(),
            rows: 128,
            columns: 64,
            model: None,
            depth,
            operations: depth.map(|depth| 1_000_000_000 * depth as u64),
            bytes: 3_000_000,
            results: results.collect(),
        }
    }

    fn record(cells: Vec<OperatorCell>) -> OperatorRecord {
        let environment = sample("GPU", "cuda", Vec::new()).environment;
        let (kind, method) = (OPERATORS_KIND.to_owned(), "in turns".to_owned());
        OperatorRecord { kind, schema_version: 1, environment, method, seed: 0, cells }
    }

    /// The page is made of what `bench` writes, which is no record of attention.
    #[test]
    fn records_of_operators_are_on_the_page() {
        let folder = tempfile::tempdir().unwrap();
        let mut record =
            record(vec![cell("softmax", "bf16", None, &[("ferroflash", 1.0, true), ("a peer", 2.0, true)])]);
        record.environment.peers.insert("quack".to_owned(), "0.6.5".to_owned());
        record.write(&folder.path().join("a-operators.json")).unwrap();
        assert!(gallery::read(folder.path()).unwrap().is_empty());
        let read = gallery::read_operators(folder.path()).unwrap();
        assert_eq!(read, [("a-operators".to_owned(), record)]);
        let page = page(&[], &read);
        let heading = "## Operators\n\nWhat is counted is said in [benchmarking.md](../benchmarking.md#operators).\n\n\
                       ### a-operators\n\n\
                       GPU, driver for CUDA 13.0, 2026-01-02, commit 0123456789ab, beside quack 0.6.5; [a-operators.json](a-operators.json).\n";
        assert!(page.contains(heading) && page.contains("| 128 | 64 | 3.00 | 1.50 | 2.00 |"), "{page}");
        assert!(page.contains("\n\n## Kernels\n"), "{page}");
    }

    #[test]
    fn rates_are_set_beside_each_other() {
        let mut model = cell("adamw", "bf16", None, &[("ferroflash", 1.0, true)]);
        model.model = Some("a model".to_owned());
        let record = record(vec![
            // The fastest is wrong, and is no peer to compare with.
            cell("rmsnorm", "bf16", None, &[("ferroflash", 1.0, true), ("a peer", 1.5, true), ("another", 0.5, false)]),
            cell("rmsnorm", "bf16", None, &[("ferroflash", 2.0, true), ("another", 1.0, true)]),
            cell("rmsnorm", "f16", None, &[("ferroflash", 1.0, true)]),
            cell("dense", "bf16", Some(32), &[("ferroflash", 0.1, true), ("a peer", 0.2, true)]),
            model,
        ]);
        let mut text = String::new();
        section(&mut text, &record);
        let rows = "bf16, rmsnorm forward, GB/s:\n\n\
                    | rows | columns | ferroflash | a peer | another | ferroflash over the best peer | largest error / bound |\n\
                    | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n\
                    | 128 | 64 | 3.00 | 2.00 | 6.00 | 1.50 | 1.0e-3 / 2.0e-3 |\n\
                    | 128 | 64 | 1.50 | - | 3.00 | 0.50 | 1.0e-3 / 2.0e-3 |\n";
        assert!(text.contains(rows), "{text}");
        let products = "bf16, dense forward, TFLOP/s:\n\n\
                        | rows | columns | depth | ferroflash | a peer | ferroflash over the best peer | largest error / bound |\n";
        assert!(text.contains(products) && text.contains("| 128 | 64 | 32 | 320 | 160 | 2.00 |"), "{text}");
        assert!(text.contains("<details><summary>f16, rmsnorm forward, GB/s</summary>"), "{text}");
        assert!(text.contains("| 128 tensors of a model | 64 together | 3.00 | - |"), "{text}");
    }
}
