//! A report as one HTML file: nothing is loaded from anywhere.

use super::tables::{self, Field, List, Table};
use crate::bench::record::Record;
use crate::plot::{self, escape};
use anyhow::Result;
use std::fmt::Write;

/// Everything of the record, pictures included.
pub(crate) fn html(record: &Record) -> Result<String> {
    let heading = escape(&tables::heading(record));
    let mut text = String::new();
    // The policy holds even should a text of the record find a way to be markup.
    write!(
        text,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src \
         'unsafe-inline'\"/>\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{heading}</title>\n\
         <style>\n{}@media screen and (prefers-color-scheme: dark) {{{}}}\n</style>\n</head>\n<body>\n<main>\n<h1>{heading}</h1>\n",
        include_str!("report.css"),
        plot::dark_rules("svg "),
    )?;
    let wrong = !record.verdict().1.is_empty();
    let introduction = tables::introduction(record);
    for line in &introduction {
        let class = if wrong && line.contains("NOT accepted") { " class=\"bad\"" } else { "" };
        writeln!(text, "<p{class}>{}</p>", escape(line))?;
    }
    let speeds = tables::speeds(record);
    let results = tables::results(record);
    let lists = tables::lists(record);
    let left_out = tables::left_out(record);
    let sections = [
        ("pictures", "Pictures", true),
        ("speed", "Speed", !speeds.is_empty()),
        ("results", "All results", true),
        ("left-out", "Not run", !left_out.is_empty()),
        ("about", "Environment and method", true),
    ];
    text.push_str("<nav aria-label=\"Sections\"><ul>\n");
    for (id, title, _) in sections.iter().filter(|section| section.2) {
        writeln!(text, "<li><a href=\"#{id}\">{title}</a></li>")?;
    }
    text.push_str("</ul></nav>\n");

    open(&mut text, sections[0])?;
    for figure in plot::figures(record) {
        let svg = plot::inline_svg(&figure)?;
        let title = escape(&figure.title);
        writeln!(
            text,
            "<figure>\n{}\n{svg}</div>\n<figcaption>{}</figcaption>\n</figure>",
            scroll(&title),
            escape(&figure.description)
        )?;
    }
    text.push_str("</section>\n");
    if !speeds.is_empty() {
        open(&mut text, sections[1])?;
        text.push_str("<p>Press a heading to sort by it.</p>\n");
        for table in &speeds {
            writeln!(text, "<h3>{}</h3>", escape(&table.title))?;
            write_table(&mut text, table)?;
        }
        text.push_str("</section>\n");
    }
    open(&mut text, sections[2])?;
    for table in &results {
        writeln!(text, "<details>\n<summary>{}: {} results</summary>", escape(&table.title), table.rows.len())?;
        write_table(&mut text, table)?;
        text.push_str("</details>\n");
    }
    text.push_str("</section>\n");
    if !left_out.is_empty() {
        open(&mut text, sections[3])?;
        text.push_str("<ul>\n");
        for line in &left_out {
            writeln!(text, "<li>{}</li>", escape(line))?;
        }
        text.push_str("</ul>\n</section>\n");
    }
    open(&mut text, sections[4])?;
    for list in &lists {
        write_list(&mut text, list)?;
    }
    write!(text, "</section>\n</main>\n<script>\n{}</script>\n</body>\n</html>\n", include_str!("report.js"))?;
    Ok(text)
}

fn open(text: &mut String, (id, title, _): (&str, &str, bool)) -> Result<()> {
    Ok(writeln!(text, "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>")?)
}

/// What is wider than a phone scrolls by itself, with the keyboard too.
fn scroll(label: &str) -> String {
    format!("<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{label}\">")
}

fn write_table(text: &mut String, table: &Table) -> Result<()> {
    writeln!(text, "{}\n<table>\n<thead>\n<tr>", scroll(&escape(&table.title)))?;
    for heading in &table.header {
        writeln!(text, "<th scope=\"col\"><button type=\"button\">{}</button></th>", escape(heading))?;
    }
    text.push_str("</tr>\n</thead>\n<tbody>\n");
    for row in &table.rows {
        text.push_str("<tr>");
        for Field { text: shown, value, bad } in row {
            // An error can be infinite; a number all the same, for the sort.
            let value = value.map(|value| {
                format!(" data-value=\"{}\"", if value.is_finite() { value.to_string() } else { "Infinity".to_owned() })
            });
            let class = if *bad { " class=\"bad\"" } else { "" };
            write!(text, "<td{}{class}>{}</td>", value.unwrap_or_default(), escape(shown))?;
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody>\n</table>\n</div>\n");
    Ok(())
}

fn write_list(text: &mut String, list: &List) -> Result<()> {
    writeln!(text, "<h3>{}</h3>\n<table class=\"list\">\n<tbody>", escape(list.title))?;
    for (name, value) in &list.entries {
        writeln!(text, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name), escape(value))?;
    }
    text.push_str("</tbody>\n</table>\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::samples::{sample, sample_cell};

    /// Checks that elements close in the order they opened, and gives the names of all.
    fn elements(html: &str) -> Vec<String> {
        const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
        let (mut open, mut all) = (Vec::new(), Vec::new());
        let mut rest = html;
        while let Some(start) = rest.find('<') {
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap().to_owned();
            if tag.starts_with('/') {
                assert_eq!(open.pop().as_ref(), Some(&name), "before {}", &rest[..rest.len().min(80)]);
                continue;
            }
            assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
            all.push(name.clone());
            if VOID.contains(&name.as_str()) || tag.ends_with('/') {
                continue;
            }
            // Raw text: `<` is no tag in there.
            if name == "script" || name == "style" {
                let end = rest.find(&format!("</{name}>")).expect("it ends");
                rest = &rest[end..];
            }
            open.push(name);
        }
        assert!(open.is_empty(), "{open:?}");
        all
    }

    fn record() -> Record {
        let times = [("naive", 4.0), ("v3", 1.0), ("torch flash", 2.0)];
        let mut cells: Vec<_> = [512, 1024].map(|seq| sample_cell("bf16", seq, &times)).to_vec();
        cells[1].results[2].skipped = Some("<script>alert('x')</script>".to_owned());
        cells[1].results[2].time_ms = None;
        cells[1].results[2].tflops = None;
        sample("GPU & \"co\"", "cuda", cells)
    }

    #[test]
    fn it_is_well_formed_and_loads_nothing() {
        let html = html(&record()).unwrap();
        let elements = elements(&html);
        let count = |name: &str| elements.iter().filter(|element| *element == name).count();
        assert_eq!((count("script"), count("style"), count("h1")), (1, 1, 1));
        for loads in ["img", "link", "iframe", "object", "image", "use", "video", "audio", "source", "embed", "base"] {
            assert_eq!(count(loads), 0, "{loads}");
        }
        for address in ["http:", "https:", "//", "url(", "@import", " src=", "fetch("] {
            let found = html.find(address).map(|at| &html[at.saturating_sub(40)..at + 40]);
            // Comments of the script are the only double slashes.
            assert!(found.is_none_or(|found| address == "//" && found.contains("// ")), "{found:?}");
        }
        assert!(html.contains("GPU &amp; &quot;co&quot;") && html.contains("&lt;script&gt;alert(&#39;x&#39;)"));
        assert_eq!(count("svg"), plot::figures(&record()).len());
        assert_eq!(count("svg"), count("title") - 1, "every picture has a title");
    }

    #[test]
    fn every_result_is_a_row() {
        let record = record();
        let html = html(&record).unwrap();
        let (_, results) = html.split_once("id=\"results\"").unwrap();
        let (results, _) = results.split_once("</section>").unwrap();
        let rows: Vec<&str> = results.lines().filter(|line| line.starts_with("<tr><td")).collect();
        assert_eq!(rows.len(), record.cells.iter().map(|cell| cell.results.len()).sum::<usize>());
        for cell in &record.cells {
            for result in &cell.results {
                let of_it = |row: &&&str| {
                    row.contains(&format!("<td data-value=\"{0}\">{0}</td>", cell.problem.seq))
                        && row.contains(&format!("<td>{}</td>", result.name))
                };
                assert_eq!(rows.iter().filter(of_it).count(), 1, "{} {}", cell.problem, result.name);
            }
        }
        assert_eq!(results.matches("<td>not run</td>").count(), 1);
    }

    #[test]
    fn a_wrong_result_stands_out() {
        let mut record = record();
        record.cells[0].results[1].check.as_mut().unwrap().within = false;
        let html = html(&record).unwrap();
        let bad: Vec<&str> = html.lines().filter(|line| line.starts_with("<p class=\"bad\">")).collect();
        assert!(bad.len() == 1 && bad[0].contains("1 of 4 results"), "{bad:?}");
        assert!(html.contains("class=\"bad\">WRONG</td>"));
    }
}
