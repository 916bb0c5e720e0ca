//! A report as Markdown.

use super::tables::{self, Table};
use crate::bench::record::Record;

/// Tables of every result, environment and method.
pub(crate) fn markdown(record: &Record) -> String {
    let mut text = format!("# {}\n", escape(&tables::heading(record)));
    for line in tables::introduction(record) {
        text += &format!("\n{}\n", escape(&line));
    }
    let speeds = tables::speeds(record);
    if !speeds.is_empty() {
        text += "\n## Speed\n";
        speeds.iter().for_each(|t| table(&mut text, t));
    }
    text += "\n## All results\n";
    tables::results(record).iter().for_each(|t| table(&mut text, t));
    let left_out = tables::left_out(record);
    if !left_out.is_empty() {
        text += "\n## Not run\n\n";
        left_out.iter().for_each(|line| text += &format!("- {}\n", escape(line)));
    }
    for list in tables::lists(record) {
        text += &format!("\n## {}\n\n| | |\n| --- | --- |\n", list.title);
        list.entries.iter().for_each(|(name, value)| text += &format!("| {} | {} |\n", escape(name), escape(value)));
    }
    text
}

fn table(text: &mut String, table: &Table) {
    *text += &format!("\n### {}\n\n", escape(&table.title));
    let row = |fields: Vec<String>| format!("| {} |\n", fields.join(" | "));
    *text += &row(table.header.iter().map(|heading| escape(heading)).collect());
    *text += &format!("|{}\n", " ---: |".repeat(table.header.len()));
    for fields in &table.rows {
        let bold = |text: String, bad: bool| if bad { format!("**{text}**") } else { text };
        *text += &row(fields.iter().map(|field| bold(escape(&field.text), field.bad)).collect());
    }
}

/// Text that Markdown takes as it is, in a table too.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => escaped.push(' '),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\\' | '|' | '*' | '_' | '`' | '[' | ']' | '#' | '~' => {
                escaped.push('\\');
                escaped.push(c);
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::samples::{sample, sample_cell};

    #[test]
    fn every_row_has_the_columns_of_its_header() {
        let mut cell = sample_cell("bf16", 512, &[("naive", 4.0), ("v3", 1.0), ("torch flash", 2.0)]);
        cell.results[2].skipped = Some("a | b\n<c> *d*".to_owned());
        let text = markdown(&sample("GPU | 1", "cuda", vec![cell]));
        assert!(text.starts_with("# Attention on GPU \\| 1\n"), "{text}");
        assert!(text.contains("- torch flash on bf16 full") && text.contains("a \\| b &lt;c&gt; \\*d\\*"), "{text}");
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        let lines: Vec<&str> = text.lines().collect();
        let mut tables = 0;
        for (i, line) in
            lines.iter().enumerate().filter(|(_, line)| line.starts_with("| ---") || line.starts_with("| ---:"))
        {
            tables += 1;
            for row in lines[i..].iter().take_while(|row| row.starts_with('|')) {
                assert_eq!(columns(row), columns(lines[i - 1]), "{row}");
            }
            assert!(columns(line) > 1);
        }
        // Speed, all results, environment, method at least.
        assert!(tables >= 4, "{text}");
    }

    #[test]
    fn counts_are_called_counts() {
        let mut cell = sample_cell("f16", 64, &[("v2", 1.0)]);
        cell.results[0].time_ms = None;
        cell.results[0].tflops = None;
        cell.results[0].counters.insert("tensor_flops".to_owned(), 12_345_678);
        let text = markdown(&sample("emulator", "emulator", vec![cell]));
        assert!(text.contains("counts of what they do, not times") && !text.contains("TFLOP/s |"), "{text}");
        assert!(text.contains("| tensor flops |") && text.contains("| 12.3 M |"), "{text}");
    }
}
