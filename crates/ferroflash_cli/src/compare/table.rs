//! The tables of a comparison.

use super::change::{Change, TIME, Verdict};
use crate::sheet::Sheet;
use comfy_table::{Attribute, Cell, Color};

/// One table for each problem, with a line for each change: the problem, and its table.
pub(super) fn tables(changes: &[&Change]) -> Vec<(String, Sheet)> {
    let by_problem = changes.chunk_by(|a, b| a.problem == b.problem);
    by_problem.map(|changes| (changes[0].problem.to_string(), table(changes))).collect()
}

fn table(changes: &[&Change]) -> Sheet {
    let header = ["implementation", "quantity", "before", "after", "difference", "p", "verdict"];
    let mut sheet = Sheet::new(header, 2, 2);
    for change in changes {
        let optional = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let cells = [
            change.name.clone(),
            change.quantity.clone(),
            change.before.clone(),
            change.after.clone(),
            optional(change.difference.map(|difference| format!("{:+.2} %", 100.0 * difference))),
            optional(change.p_value.map(|p| if p < 1e-4 { "< 1e-4".to_owned() } else { format!("{p:.4}") })),
        ];
        let verdict = match (change.verdict, change.quantity.as_str()) {
            (Verdict::Same, _) => Cell::new("same"),
            (Verdict::Noise, _) => Cell::new("noise"),
            (Verdict::Better, TIME) => Cell::new("faster").fg(Color::Green),
            (Verdict::Better, _) => Cell::new("better").fg(Color::Green),
            (Verdict::Worse, TIME) => bad("SLOWER"),
            (Verdict::Worse, _) => bad("WORSE"),
        };
        sheet.add_row(cells.into_iter().map(Cell::new).chain([verdict]).collect());
    }
    sheet
}

fn bad(text: &str) -> Cell {
    Cell::new(text).fg(Color::Red).add_attribute(Attribute::Bold)
}
