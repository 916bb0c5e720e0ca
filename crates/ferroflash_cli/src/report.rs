//! `ferroflash report`: a record for people to read.

mod html;
mod markdown;
mod tables;

use crate::bench::record::Record;
use crate::export::ExportArgs;
use crate::files;
use crate::usage::OrUnusable;
use anyhow::{Result, ensure};
use clap::Args;
pub(crate) use html::html;
pub(crate) use markdown::markdown;
use std::path::PathBuf;

/// Draws and tabulates the results that `bench --json` wrote, without measuring again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ferroflash report results.json --html report.html
  ferroflash report results.json --plot pictures --csv results.csv --markdown results.md")]
pub(crate) struct ReportArgs {
    /// A file of `ferroflash bench --json`; - is standard input
    #[arg(value_name = "RECORD")]
    record: PathBuf,
    #[command(flatten)]
    export: ExportArgs,
}

pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    args.check().or_unusable()?;
    args.export.write(&Record::read(RECORD, &args.record)?)
}

const RECORD: &str = "RECORD";

impl ReportArgs {
    fn check(&self) -> Result<()> {
        ensure!(!self.export.is_empty(), "nothing to write: give --plot, --html, --csv or --markdown");
        let read = (!files::is_dash(&self.record)).then_some((RECORD, self.record.as_path()));
        self.export.check(read.as_slice())
    }
}
