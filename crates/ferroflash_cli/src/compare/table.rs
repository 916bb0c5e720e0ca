//! The table of a comparison.

use super::change::{Change, TIME, Verdict};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Attribute, CellAlignment, Color, ContentArrangement, Table};

/// One line for each change.
pub(super) fn table<'a>(changes: impl Iterator<Item = &'a Change>) -> Table {
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
