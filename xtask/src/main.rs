//! `cargo xtask VERB`: sets the machine up, builds kernels, runs tests, benchmarks and checks.

mod adapters;
mod arguments;
mod build;
mod bundle;
mod deny;
mod doctor;
mod output;
mod package;
mod program;
mod seed;
mod setup;
mod table;
mod test;
mod tidy;
mod wheel;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
Usage: cargo xtask VERB [OPTIONS]

For users
  bench    measure every kernel on the best device there is, and check each result
  compare  what became slower between two records of bench
  report   pictures and tables of a record of bench
  attend   attention on the tensors q, k, v of a safetensors file
  test     everything that a change has to pass
  doctor   what this machine has, and the cure for what is missing

For developers
  setup    install what the build needs: the library source of rustc; with --ptxas NVIDIA's assembler
  build    compile the kernels to PTX and tabulate them
  bundle   one folder that runs bench, test and attend on a GPU machine without Rust
  package  the crates as they would be published, each built from its package
  wheel    the package for Python
  tidy     formatting, generated tables, rules of dependencies and text

`cargo xtask VERB --help` says more. Every verb that compiles kernels runs `setup` first.
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<output::Closed>() => ExitCode::from(output::CLOSED_STATUS),
        Err(error) => {
            output::note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().map(|verb| verb.to_string_lossy().into_owned()).unwrap_or_default();
    let rest: Vec<_> = arguments.collect();
    match verb.as_str() {
        "setup" => setup::run(rest),
        "build" => build::run(rest),
        "test" => test::run(rest),
        "bench" | "compare" | "report" | "attend" => program::hand_over(&verb, rest),
        "bundle" => bundle::run(rest),
        "package" => package::run(rest),
        "wheel" => wheel::run(rest),
        "doctor" => doctor::run(rest),
        "tidy" => tidy::run(rest),
        "help" | "--help" | "-h" => output::print(HELP),
        "" => bail!("no verb given\n\n{HELP}"),
        other => bail!("unknown verb `{other}`\n\n{HELP}"),
    }
}
