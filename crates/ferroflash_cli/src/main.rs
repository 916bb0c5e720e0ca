//! `ferroflash`: attention kernels written in Rust, measured and applied from the command line.

mod attend;
mod bench;
mod compare;
mod doctor;
mod export;
mod format;
mod plot;
mod report;
mod tables;
mod workload;

use clap::{Parser, Subcommand};
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
    let result = match Cli::parse().verb {
        Verb::Bench(args) => match args.compare() {
            Some(compare) => return compare::run(compare),
            None => bench::run(&args),
        },
        Verb::Compare(args) => return compare::run(&args),
        Verb::Report(args) => report::run(&args),
        Verb::Attend(args) => attend::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Tables(args) => tables::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
