//! Tables that are no wider than what shows them.

use crate::terminal;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use std::fmt;
use std::ops::Range;

/// A table whose first columns say what a row is about. Where it is too wide, its columns are shown in several tables below each other,
/// each beginning with those.
pub(crate) struct Sheet {
    header: Vec<String>,
    /// How many columns name a row.
    keys: usize,
    /// How many columns stand at the left; the others hold numbers.
    left: usize,
    rows: Vec<Vec<Cell>>,
}

impl Sheet {
    /// A table without rows: the first `keys` columns name a row, the first `left` hold words.
    pub(crate) fn new<S: Into<String>>(header: impl IntoIterator<Item = S>, keys: usize, left: usize) -> Sheet {
        Sheet { header: header.into_iter().map(Into::into).collect(), keys, left, rows: Vec::new() }
    }

    /// Adds a row of as many cells as the header has.
    pub(crate) fn add_row(&mut self, row: Vec<Cell>) {
        debug_assert_eq!(row.len(), self.header.len());
        self.rows.push(row);
    }

    /// Characters of the widest entry of a column.
    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].content().chars().count());
        cells.chain([self.header[column].chars().count()]).max().unwrap_or(0)
    }

    /// The columns of each table besides the keys, for tables of at most `width` characters; wider only where a single column is.
    fn parts(&self, width: usize) -> Vec<Range<usize>> {
        // A space on each side and the line after it; the first line stands before all.
        let taken = |column| self.width(column) + 3;
        let keys: usize = 1 + (0..self.keys).map(taken).sum::<usize>();
        let mut parts = Vec::new();
        let (mut start, mut used) = (self.keys, keys);
        for column in self.keys..self.header.len() {
            if column > start && used + taken(column) > width {
                parts.push(start..column);
                (start, used) = (column, keys);
            }
            used += taken(column);
        }
        parts.push(start..self.header.len());
        parts
    }

    /// The tables, in colour or not.
    fn render(&self, width: usize, colors: bool) -> String {
        let tables = self.parts(width).into_iter().map(|part| {
            let columns: Vec<usize> = (0..self.keys).chain(part).collect();
            let mut table = Table::new();
            table
                .load_style(UTF8_FULL_CONDENSED)
                .set_content_arrangement(ContentArrangement::Disabled)
                .set_header(columns.iter().map(|&column| &self.header[column]));
            if colors {
                table.enforce_styling();
            } else {
                table.force_no_tty();
            }
            for row in &self.rows {
                table.add_row(columns.iter().map(|&column| row[column].clone()));
            }
            for (column, &from) in table.column_iter_mut().zip(&columns) {
                column.set_cell_alignment(if from < self.left { CellAlignment::Left } else { CellAlignment::Right });
            }
            table.to_string()
        });
        tables.collect::<Vec<_>>().join("\n")
    }
}

impl fmt::Display for Sheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(terminal::columns(), terminal::colors()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use comfy_table::Color;

    fn sheet() -> Sheet {
        let mut sheet = Sheet::new(["seq", "kernel", "time", "a longer heading", "verdict"], 2, 2);
        for (seq, time) in [("512", "1.25 ms"), ("16384", "930 us")] {
            let cells = [seq, "v3", time, "7"].map(Cell::new);
            sheet.add_row(cells.into_iter().chain([Cell::new("ok").fg(Color::Green)]).collect());
        }
        sheet
    }

    #[test]
    fn no_line_is_wider_than_asked_and_nothing_is_lost() {
        let whole = sheet().render(1000, false);
        let widest = |text: &str| text.lines().map(|line| line.chars().count()).max().unwrap();
        // The narrowest that is possible: keys and the widest column.
        let least = 1 + (5 + 3) + (6 + 3) + (16 + 3);
        for width in least..=widest(&whole) {
            let text = sheet().render(width, false);
            assert!(widest(&text) <= width, "{width}:\n{text}");
            for entry in ["seq", "16384", "v3", "time", "930 us", "a longer heading", "verdict", "ok"] {
                assert!(text.contains(entry), "{entry} at {width}:\n{text}");
            }
        }
        assert_eq!(sheet().parts(widest(&whole)).len(), 1);
        assert_eq!(sheet().parts(widest(&whole) - 1).len(), 2);
        // What cannot fit is shown all the same, one column at a time.
        assert_eq!(sheet().parts(10).len(), 3);
    }

    #[test]
    fn colours_are_written_only_when_asked_for() {
        assert!(sheet().render(100, true).contains('\x1b'));
        assert!(!sheet().render(100, false).contains('\x1b'));
    }
}
