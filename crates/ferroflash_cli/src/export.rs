//! What a record can be written as, besides JSON.

use crate::bench::record::{Cell, Measurement, Record};
use crate::output::{self, status};
use crate::{files, plot, report};
use anyhow::Result;
use clap::Args;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The formats that `bench` and `report` write on request.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Exports")]
pub(crate) struct ExportArgs {
    /// Draw pictures, SVG and PNG, into this folder: speed, speedup, memory, errors, roofline
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// Write a report in one HTML file that opens offline; - is standard output
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write every result as one line of comma-separated values; - is standard output
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the tables as Markdown; - is standard output
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

const HTML: &str = "--html";
const CSV: &str = "--csv";
const MARKDOWN: &str = "--markdown";

impl ExportArgs {
    /// Whether nothing is asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.plot.is_none() && self.files().next().is_none()
    }

    fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [(HTML, &self.html), (CSV, &self.csv), (MARKDOWN, &self.markdown)];
        files.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?)))
    }

    /// Finds out before a run that its results could not be kept after it. `others` are files of the same command, by their options.
    /// Leaves standard output to the file that is sent there.
    pub(crate) fn check(&self, others: &[(&'static str, &Path)]) -> Result<()> {
        let files: Vec<_> = self.files().collect();
        files.iter().try_for_each(|(flag, path)| files::check_file(flag, path))?;
        files::check_distinct(&[others, &files].concat())?;
        if files.iter().any(|(_, path)| files::is_stdout(path)) {
            output::leave_stdout_to_a_file();
        }
        self.plot.as_deref().map_or(Ok(()), |folder| files::check_folder("--plot", folder))
    }

    /// Writes everything that was asked for, and then says where it is.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let mut written = Vec::new();
        if let Some(folder) = &self.plot {
            let pictures = plot::write(record, folder)?;
            written.push(format!("{} pictures written to {}", pictures.len(), folder.display()));
        }
        for (flag, path) in self.files() {
            let content = match flag {
                HTML => report::html(record)?,
                CSV => csv(record)?,
                _ => report::markdown(record),
            };
            files::write(path, content)?;
            written.push(format!("written: {}", files::written_name(path)));
        }
        written.iter().for_each(|line| status!("{line}"));
        Ok(())
    }
}

/// One line for each implementation and problem, in the units of the record; an empty field is what was not measured.
pub(crate) fn csv(record: &Record) -> Result<String> {
    let results = || record.cells.iter().flat_map(|cell| cell.results.iter().map(move |result| (cell, result)));
    let counters: BTreeSet<&str> = results().flat_map(|(_, r)| r.counters.keys().map(String::as_str)).collect();
    let mut writer = csv::Writer::from_writer(Vec::new());
    let fixed = COLUMNS.iter().map(|column| column.0);
    writer.write_record(fixed.chain(counters.iter().copied()))?;
    for (cell, result) in results() {
        let fixed = COLUMNS.iter().map(|column| (column.1)(record, cell, result));
        let counted = counters.iter().map(|counter| optional(result.counters.get(*counter)));
        writer.write_record(fixed.chain(counted))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

type Column = (&'static str, fn(&Record, &Cell, &Measurement) -> String);

const COLUMNS: &[Column] = &[
    ("device", |record, _, _| record.environment.device.clone()),
    ("backend", |record, _, _| record.environment.backend.clone()),
    ("date", |record, _, _| record.environment.date.clone()),
    ("commit", |record, _, _| optional(record.environment.commit.as_ref())),
    ("pass", |record, _, _| record.method.pass.name().to_owned()),
    ("dtype", |_, cell, _| cell.problem.dtype.clone()),
    ("head_dim", |_, cell, _| cell.problem.head_dim.to_string()),
    ("mask", |_, cell, _| cell.problem.mask.to_string()),
    ("seq", |_, cell, _| cell.problem.seq.to_string()),
    ("kv_seq", |_, cell, _| cell.problem.kv_seq.to_string()),
    ("batch", |_, cell, _| cell.problem.batch.to_string()),
    ("q_heads", |_, cell, _| cell.problem.q_heads.to_string()),
    ("kv_heads", |_, cell, _| cell.problem.kv_heads.to_string()),
    ("sequences", |_, cell, _| optional(cell.problem.sequences.as_ref())),
    ("kv_bytes", |_, cell, _| optional(cell.kv_bytes)),
    ("flops", |_, cell, _| cell.flops.to_string()),
    ("program", |_, cell, _| optional(cell.problem.program.as_ref())),
    ("implementation", |_, _, result| result.name.clone()),
    ("peer", |_, _, result| result.peer.to_string()),
    ("version", |_, _, result| optional(result.version.as_ref())),
    ("skipped", |_, _, result| optional(result.skipped.as_ref())),
    ("samples", |_, _, result| result.samples_ms.len().to_string()),
    ("time_ms_q1", |_, _, result| optional(result.time_ms.map(|time| time.q1))),
    ("time_ms_median", |_, _, result| optional(result.time_ms.map(|time| time.median))),
    ("time_ms_q3", |_, _, result| optional(result.time_ms.map(|time| time.q3))),
    ("tflops", |_, _, result| optional(result.tflops)),
    ("first_result_ms", |_, _, result| optional(result.first_result_ms)),
    ("second_result_ms", |_, _, result| optional(result.second_result_ms)),
    ("kv_bytes_per_second", |_, _, result| optional(result.kv_bytes_per_second)),
    ("splits", |_, _, result| optional(result.splits)),
    ("speedup_over_naive", |_, _, result| optional(result.speedup_over_naive)),
    ("ratio_to_best_peer", |_, _, result| optional(result.ratio_to_best_peer)),
    ("bound", |_, cell, _| optional(cell.roofline.as_ref().map(|roofline| &roofline.bound))),
    ("bound_ms", |_, cell, _| optional(cell.roofline.as_ref().map(|roofline| roofline.bound_ms))),
    ("bound_fraction", |_, _, result| optional(result.bound_fraction)),
    ("extra_bytes", |_, _, result| optional(result.extra_bytes)),
    ("saved_percent", |_, _, result| optional(result.saved_percent)),
    ("max_error", |_, _, result| optional(result.check.as_ref().map(|check| check.max_error))),
    ("error_p50", |_, _, result| quantile(result, |q| q.p50)),
    ("error_p90", |_, _, result| quantile(result, |q| q.p90)),
    ("error_p99", |_, _, result| quantile(result, |q| q.p99)),
    ("error_p999", |_, _, result| quantile(result, |q| q.p999)),
    ("error_bound", |_, _, result| optional(result.check.as_ref().map(|check| check.bound))),
    ("lse_max_error", |_, _, result| optional(result.check.as_ref().and_then(|check| Some(check.lse?.max_error)))),
    ("lse_bound", |_, _, result| optional(result.check.as_ref().and_then(|check| Some(check.lse?.bound)))),
    ("within", |_, _, result| optional(result.check.as_ref().map(|check| check.within))),
];

fn quantile(result: &Measurement, of: fn(&crate::bench::record::ErrorQuantiles) -> f64) -> String {
    optional(result.check.as_ref().and_then(|check| check.error_quantiles.as_ref().map(of)))
}

fn optional<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::samples::{sample, sample_cell};

    #[test]
    fn a_comma_a_quote_and_a_line_break_stay_in_their_field() {
        let mut cell = sample_cell("bf16", 512, &[("naive", 4.0), ("torch flash", 2.0)]);
        cell.results[1].skipped = Some("out of memory, \"80 GiB\"\nasked for".to_owned());
        cell.results[0].counters.insert("tensor_flops".to_owned(), 7);
        let record = sample("GPU, large", "cuda", vec![cell]);
        let text = csv(&record).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers().unwrap().clone();
        let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        let field = |row: usize, name: &str| rows[row].get(header.iter().position(|h| h == name).unwrap()).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(field(0, "device"), "GPU, large");
        assert_eq!((field(0, "implementation"), field(0, "time_ms_median"), field(0, "peer")), ("naive", "4", "false"));
        assert_eq!((field(0, "tensor_flops"), field(1, "tensor_flops")), ("7", ""));
        assert_eq!(field(1, "skipped"), "out of memory, \"80 GiB\"\nasked for");
    }

    #[test]
    fn every_option_is_checked_before_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let absent = Some(folder.path().join("absent/file"));
        let message = |args: ExportArgs| args.check(&[]).unwrap_err().to_string();
        assert!(message(ExportArgs { html: absent.clone(), ..Default::default() }).contains("--html"));
        assert!(message(ExportArgs { csv: absent.clone(), ..Default::default() }).contains("--csv"));
        assert!(message(ExportArgs { markdown: absent, ..Default::default() }).contains("--markdown"));
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(message(ExportArgs { plot: Some(file.clone()), ..Default::default() }).contains("--plot"));
        let csv = ExportArgs { csv: Some(file.clone()), ..Default::default() };
        csv.check(&[]).unwrap();
        let error = csv.check(&[("--json", &file)]).unwrap_err().to_string();
        assert!(error.contains("--json and --csv both name"), "{error}");
        assert!(ExportArgs::default().is_empty() && !csv.is_empty());
    }
}
