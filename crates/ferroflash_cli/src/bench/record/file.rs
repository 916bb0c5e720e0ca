//! Records in files: reading, writing, going on with an earlier run.

use super::{BENCH_KIND, Record, SCHEMA_VERSION};
use crate::files;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

impl Record {
    /// Reads a record, from the file that `flag` names.
    ///
    /// # Errors
    /// A file that cannot be read, is no JSON, is no record of `ferroflash bench`, or has another schema version than
    /// [`SCHEMA_VERSION`].
    pub(crate) fn read(flag: &str, path: &Path) -> Result<Record> {
        read(flag, path, BENCH_KIND, SCHEMA_VERSION)
    }

    /// Writes the record, all of it or nothing: whoever reads the file at any time finds a whole record.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        write(self, path)
    }

    /// Takes over what an earlier run of the same sweep has finished.
    ///
    /// # Errors
    /// What differs between the two runs, when anything does that could change a result.
    pub(crate) fn resume(&mut self, earlier: Record) -> Result<()> {
        let differences = [
            differences("environment", &self.environment, &earlier.environment)?,
            differences("method", &self.method, &earlier.method)?,
            differences("sweep", &self.sweep, &earlier.sweep)?,
        ]
        .concat();
        ensure!(
            differences.is_empty(),
            "it holds another run:\n  {}\nresume with the same options on the same machine, or write to another file",
            differences.join("\n  ")
        );
        let Record { environment, ceilings, noise, cells, .. } = earlier;
        // The date of the record is that of its first cell.
        self.environment = environment;
        self.ceilings = ceilings;
        self.noise = noise;
        self.cells = cells;
        Ok(())
    }
}

/// Reads a record of this kind and version.
pub(in crate::bench) fn read<T: DeserializeOwned>(flag: &str, path: &Path, kind: &str, version: u32) -> Result<T> {
    parse(&files::read_to_string(flag, path)?, kind, version).with_context(|| files::read_name(path))
}

fn parse<T: DeserializeOwned>(text: &str, kind: &str, version: u32) -> Result<T> {
    let value: serde_json::Value = serde_json::from_str(text).context("not JSON")?;
    let found = value["kind"].as_str().unwrap_or("missing");
    ensure!(found == kind, "no record of `ferroflash bench`: kind is {found}, {kind} is read");
    // Looked at before the rest: another version has other fields, and their absence would say nothing.
    let found = &value["schema_version"];
    ensure!(
        found.as_u64() == Some(version.into()),
        "schema_version is {found}; this build reads {version}: measure again, or read it with the version of ferroflash \
         that wrote it"
    );
    serde_json::from_value(value).context("not a complete record")
}

/// Writes a record, all of it or nothing.
pub(in crate::bench) fn write<T: Serialize>(record: &T, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(record).context("the record cannot be written as JSON")?;
    files::write(path, one_line_each(&text))
}

/// Fields of `now` that `before` has otherwise, one line each.
fn differences<T: Serialize>(section: &str, now: &T, before: &T) -> Result<Vec<String>> {
    // Differs between two runs that are alike in everything else.
    const DATE: &str = "date";
    let (now, before) = (serde_json::to_value(now)?, serde_json::to_value(before)?);
    let fields = now.as_object().into_iter().flatten();
    let lines = fields.filter(|&(name, value)| name != DATE && before[name] != *value).map(|(name, value)| {
        let short = |value: &serde_json::Value| {
            let text = value.to_string();
            if text.len() > 120 { format!("{}..", text.chars().take(120).collect::<String>()) } else { text }
        };
        format!("{section}.{name} is {} in the file, {} now", short(&before[name]), short(value))
    });
    Ok(lines.collect())
}

/// Puts what people read as one thing into one line: lists of numbers or words, and objects inside the sections of a record that hold no
/// list of others. A result is then a line, and a record has a quarter of the lines and six tenths of the bytes.
fn one_line_each(pretty: &str) -> String {
    let lines: Vec<&str> = pretty.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let opens = |line: &str| line.ends_with(['[', '{']);
    let mut text = String::new();
    let mut at = 0;
    while at < lines.len() {
        let first = lines[at];
        text.push_str(first);
        // Objects of the record itself are its sections, in steps of two spaces.
        if first.ends_with('[') || first.ends_with('{') && indent(first) >= 4 {
            let is_end = |line: &&str| indent(line) == indent(first) && line.trim_start().starts_with([']', '}']);
            let end = at + 1 + lines[at + 1..].iter().position(is_end).expect("brackets come in pairs");
            let holds_a_list = lines[at..end].windows(2).any(|pair| pair[0].ends_with('[') && opens(pair[1]));
            if !holds_a_list {
                for item in &lines[at + 1..=end] {
                    text.push_str(item.trim_start());
                    // Between two items stands a space behind the comma.
                    if item.ends_with(',') {
                        text.push(' ');
                    }
                }
                at = end;
            }
        }
        at += 1;
        let trimmed = text.trim_end().len();
        text.truncate(trimmed);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::samples::{sample, sample_cell};
    use super::*;

    #[test]
    fn other_kinds_and_versions_are_refused_before_their_fields() {
        let message = |text: &str| format!("{:#}", parse::<Record>(text, BENCH_KIND, SCHEMA_VERSION).unwrap_err());
        assert!(message("{").contains("not JSON"));
        assert!(message("{}").contains("kind is missing"));
        assert!(message(r#"{"kind": "other"}"#).contains("kind is other"));
        let old = message(r#"{"kind": "ferroflash-bench", "schema_version": 1}"#);
        assert!(old.contains("schema_version is 1; this build reads 2: measure again"), "{old}");
        let cut = message(r#"{"kind": "ferroflash-bench", "schema_version": 2}"#);
        assert!(cut.contains("not a complete record") && cut.contains("environment"), "{cut}");
    }

    #[test]
    fn a_record_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let mut record = sample("GPU", "cuda", vec![sample_cell("bf16", 512, &[("v2", 0.1 + 0.2)])]);
        // Text that looks like the end of a line does not change how lines are put together.
        record.cells[0].results[0].symbols = vec!["a, [b".to_owned(), "c [".to_owned(), "{".to_owned()];
        record.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""symbols": ["a, [b", "c [", "{"], "#), "{text}");
        assert!(text.starts_with("{\n  \"kind\"") && text.ends_with("}\n"), "{text}");
        let results = text.lines().filter(|line| line.trim_start().starts_with(r#"{"name": "#)).count();
        assert_eq!(results, record.cells[0].results.len(), "{text}");
        assert!(text.lines().all(|line| !line.ends_with(' ')), "{text}");
        assert_eq!(Record::read("RECORD", &path).unwrap(), record);
        // As they were written before.
        std::fs::write(&path, serde_json::to_string_pretty(&record).unwrap()).unwrap();
        assert_eq!(Record::read("RECORD", &path).unwrap(), record);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_the_same_run_is_resumed() {
        let cells = vec![sample_cell("bf16", 64, &[("v2", 1.0)])];
        let earlier = sample("GPU", "cuda", cells);
        let mut now = Record { cells: Vec::new(), ..earlier.clone() };
        now.environment.date = "2027-01-01T00:00:00Z".to_owned();
        now.resume(earlier.clone()).unwrap();
        assert_eq!(now, earlier);
        now.environment.commit = Some("other".to_owned());
        now.method.repeats = 7;
        now.sweep.problems.clear();
        let error = now.resume(earlier).unwrap_err().to_string();
        for part in [
            "environment.commit is \"0123456789abcdef\" in the file, \"other\" now",
            "method.repeats",
            "sweep.problems",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
