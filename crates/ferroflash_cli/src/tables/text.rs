//! Tables of Markdown, in a text that takes all.

use std::fmt::Write;

/// Adds a line. Everything is written to a `String`, which takes all.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).expect("a string takes all") };
}
pub(super) use line;

/// One table for all cells of a key, which is an element type and what else they share, in the order in which keys come; the first element type open, the
/// others folded away.
pub(super) fn by_type_and<C, K: PartialEq + std::fmt::Display>(
    text: &mut String,
    cells: &[C],
    key: impl Fn(&C) -> (&str, K),
    mut table: impl FnMut(&mut String, &[&C]),
) {
    let mut groups: Vec<(&str, K, Vec<&C>)> = Vec::new();
    for cell in cells {
        let (dtype, rest) = key(cell);
        match groups.iter_mut().find(|group| group.0 == dtype && group.1 == rest) {
            Some(group) => group.2.push(cell),
            None => groups.push((dtype, rest, vec![cell])),
        }
    }
    let first = groups.first().map_or("", |group| group.0);
    for (dtype, rest, cells) in &groups {
        let folded = *dtype != first;
        if folded {
            line!(text, "\n<details><summary>{dtype}, {rest}</summary>\n");
        } else {
            line!(text, "\n{dtype}, {rest}:\n");
        }
        table(text, cells);
        if folded {
            line!(text, "\n</details>");
        }
    }
}

pub(super) fn dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

pub(super) fn table_header(text: &mut String, header: &[String]) {
    table_row(text, header);
    line!(text, "|{}", " ---: |".repeat(header.len()));
}

pub(super) fn table_row(text: &mut String, row: &[String]) {
    line!(text, "| {} |", row.join(" | "));
}
