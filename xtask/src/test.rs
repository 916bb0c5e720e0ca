//! `test`: what a change has to pass, the same here and in CI.

use std::ffi::OsString;

use anyhow::{Result, bail};
use kernel_spec::Unit;
use lexopt::{Arg, ValueExt};

use crate::seed::{self, Seed};
use crate::{adapters, arguments, build, deny, output, package, setup, wheel, workspace};

const HELP: &str = "\
Usage: cargo xtask test [OPTIONS] [-- CARGO-TEST-ARGUMENTS]

Formatting, lints, the kernels to PTX, and `cargo test` of the workspace: units, documentation examples, and every kernel against
the f64 reference on one device. Then, unless CARGO-TEST-ARGUMENTS say what to test, the adapters of crates/adapters and the Python wheel,
without a GPU, and the packages as a registry would hold them, by a program that is made of them alone. Random cases are drawn from a
seed of the last commit's sources: what has passed once passes again, and another commit draws others.

Options
  --device NAME    cuda, cuda:N or emulator; one that is not there is a failure [best: a GPU, else the emulator]
  --seed SEED      draw random cases from this number, or from one that is drawn by `random`

Examples
  cargo xtask test
  cargo xtask test --device emulator
  cargo xtask test --device cuda:1 -- --package ferroflash_tests conformance
";

const KERNEL_LINTS: &[&str] = &[
    "-Dwarnings",
    // A register tile is an array whose indices are constants after unrolling: loops over indices show that, iterators hide it.
    "-Aclippy::needless_range_loop",
    // `lane % 4 == 0` is how the fragment tables of the PTX manual read.
    "-Aclippy::manual_is_multiple_of",
];

pub(crate) fn run(rest: Vec<OsString>) -> Result<()> {
    let (mut device, mut seed) = (None, None);
    let mut parser = arguments::parser(rest);
    let mut cargo_arguments = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("device") => device = Some(parser.value()?),
            Arg::Long("seed") => seed = Some(parser.value()?.string()?),
            Arg::Long("help") | Arg::Short('h') => {
                return output::print(HELP);
            }
            // lexopt hands out what follows `--` as values, which this verb has none of.
            Arg::Value(value) => {
                cargo_arguments.push(value);
                cargo_arguments.extend(parser.raw_args()?);
            }
            other => return Err(arguments::unexpected(other, HELP)),
        }
    }
    let seed = Seed::choose(seed.as_deref())?;
    setup::require_rust_src()?;
    workspace::step(&format!("random cases follow from --seed {}, {}", seed.value, seed.from));

    workspace::step("formatting");
    workspace::run(workspace::cargo().args(["fmt", "--all", "--check"]))?;
    // Not members of the workspace.
    workspace::run(
        workspace::cargo().args(["fmt", "--check", "--manifest-path"]).arg(workspace::kernels().join("Cargo.toml")),
    )?;
    workspace::run(adapters::cargo().args(["fmt", "--all", "--check"]))?;

    let modules = build::kernels(None)?;
    if modules.iter().any(|module| !module.warnings.trim().is_empty()) {
        bail!("the kernels compile with warnings");
    }
    if let Some((module, kernel)) = modules
        .iter()
        .flat_map(|module| module.kernels.iter().map(move |kernel| (module, kernel)))
        .find(|(_, kernel)| kernel.uses_local_memory())
    {
        bail!("{}: `{}` uses local memory; `cargo xtask build` shows all entries", module.arch, kernel.name);
    }

    workspace::step("lints");
    for unit in Unit::ALL {
        build::builder(unit)?.lint(KERNEL_LINTS)?;
    }
    workspace::run(workspace::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;

    let of_everything = cargo_arguments.is_empty();
    if of_everything {
        workspace::step("dependencies");
        deny::check()?;
        semver_is_not_checked();
        workspace::step("lints of the adapters");
        adapters::lint()?;
    }

    workspace::step("tests");
    let mut cargo = workspace::cargo();
    cargo.arg("test").env(seed::VARIABLE, seed.value.to_string());
    if of_everything {
        // All failures in one run.
        cargo.args(["--workspace", "--no-fail-fast"]);
    }
    if let Some(device) = device {
        cargo.env("FERROFLASH_TEST_DEVICE", device);
    }
    workspace::hand_over(cargo.args(cargo_arguments))?;
    if of_everything {
        workspace::step("tests of the adapters");
        adapters::test(&seed)?;
        workspace::step("tests of the Python wheel");
        wheel::test()?;
        package::test()?;
    }
    Ok(())
}

/// There is nothing to compare the API with before a first release, which cargo-semver-checks would take from a registry or a tag.
fn semver_is_not_checked() {
    output::note(format_args!("warning: no version is released yet, so that the API is compared with none"));
}
