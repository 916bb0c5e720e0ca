//! `ferroflash`: attention kernels written in Rust, measured and applied from the command line.

mod attend;
mod bench;
mod compare;
mod doctor;
mod export;
mod files;
mod format;
mod output;
mod plot;
mod report;
mod tables;
mod values;
mod workload;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Exact attention on GPUs, every kernel written in Rust.
#[derive(Parser)]
#[command(name = "ferroflash", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Bench(Box<bench::BenchArgs>),
    Compare(compare::CompareArgs),
    Report(report::ReportArgs),
    Attend(attend::AttendArgs),
    Doctor(doctor::DoctorArgs),
    #[command(hide = true)]
    Tables(tables::TablesArgs),
}

fn main() -> ExitCode {
    // A finding of `compare` is 1, so that what went wrong has another status, as of `diff`.
    let (result, failure) = match Cli::parse().verb {
        Verb::Bench(args) => match args.compare() {
            Some(compare) => (compare::run(compare), 2),
            None => (succeeded(bench::run(&args)), 1),
        },
        Verb::Compare(args) => (compare::run(&args), 2),
        Verb::Report(args) => (succeeded(report::run(&args)), 1),
        Verb::Attend(args) => (succeeded(attend::run(&args)), 1),
        Verb::Doctor(args) => (succeeded(doctor::run(&args)), 1),
        Verb::Tables(args) => (succeeded(tables::run(&args)), 1),
    };
    match result {
        Ok(status) => status,
        Err(error) if error.is::<output::Closed>() => ExitCode::from(output::CLOSED_STATUS),
        Err(error) => {
            // Nobody may read this either.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(failure)
        }
    }
}

fn succeeded(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}
