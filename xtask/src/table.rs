//! A plain table in columns.

/// Formats rows in aligned columns: numbers to the right, text to the left.
pub(crate) fn format(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let is_number = |column: usize| {
        rows.iter().all(|row| row[column].chars().next().is_none_or(|first| first.is_ascii_digit() || first == '-'))
    };
    let columns: Vec<(usize, bool)> = (0..header.len()).map(|column| (width(column), is_number(column))).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&columns).map(|(cell, &(width, is_number))| {
            if is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    let rules: Vec<String> = columns.iter().map(|&(width, _)| "-".repeat(width)).collect();
    let mut text = line(header.to_vec());
    text.push_str(&line(rules.iter().map(String::as_str).collect()));
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["v2".to_string(), "8".to_string()], vec!["naive".to_string(), "128".to_string()]];
        let text = super::format(&["entry", "threads"], &rows);
        assert_eq!(text, "entry  threads\n-----  -------\nv2           8\nnaive      128\n");
    }
}
