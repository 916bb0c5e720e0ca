//! `ferroflash`: attention kernels written in Rust, measured and applied from the command line.

mod attend;
mod bench;
mod compare;
mod completions;
mod doctor;
mod export;
mod files;
mod format;
mod logging;
mod names;
mod output;
mod plot;
mod report;
mod sheet;
mod tables;
mod terminal;
mod usage;
mod values;
mod workload;

use anyhow::Result;
use clap::{ArgAction, CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Exact attention on GPUs, every kernel written in Rust.
#[derive(Parser)]
#[command(name = "ferroflash", version, propagate_version = true)]
struct Cli {
    /// Keep back status, progress and warnings; results and errors remain
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say on standard error what the library does; twice (-vv): each launch. Without it the variable RUST_LOG decides
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
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
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Tables(tables::TablesArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.quiet {
        output::be_quiet();
    } else {
        logging::start(cli.verbose);
    }
    // A finding of `compare` is 1, so that what went wrong has another status, as of `diff`.
    let (result, failure) = match cli.verb {
        Verb::Bench(args) => match args.compare() {
            Some(compare) => (compare::run(compare), 2),
            None => (succeeded(bench::run(&args)), 1),
        },
        Verb::Compare(args) => (compare::run(&args), 2),
        Verb::Report(args) => (succeeded(report::run(&args)), 1),
        Verb::Attend(args) => (succeeded(attend::run(&args)), 1),
        Verb::Doctor(args) => (succeeded(doctor::run(&args)), 1),
        Verb::Completions(args) => (succeeded(completions::run(&args, Cli::command())), 1),
        Verb::Tables(args) => (succeeded(tables::run(&args)), 1),
    };
    match result {
        Ok(status) => status,
        Err(error) if error.is::<output::Closed>() => ExitCode::from(output::CLOSED_STATUS),
        Err(error) => {
            // Nobody may read this either.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(if error.is::<usage::Unusable>() { usage::UNUSABLE_STATUS } else { failure })
        }
    }
}

fn succeeded(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}
