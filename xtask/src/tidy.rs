//! `tidy`: what a compiler does not check.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use lexopt::Arg;
use serde_json::Value;

use crate::{adapters, arguments, output, program, setup, workspace};

mod circles;

const HELP: &str = "\
Usage: cargo xtask tidy [--write]

Checks formatting, that the picture of the README and the tables and pictures of docs/benchmarks are what its records and the variant
list generate, who depends on whom, the length of every source file, that files import each other in no circle, and that tracked files
name no place of one machine.

Options
  --write    format, and write the tables and pictures, instead of checking them
";

/// Lines of a source file: what one can read in one sitting.
const MAX_LINES: usize = 450;

/// Lines of a file of tests, which nobody reads from its first line to its last.
const MAX_TEST_LINES: usize = 700;

/// Sources whose files import each other in no circle.
const WITHOUT_CIRCLES: [&str; 5] =
    ["crates/cuda_builder/src", "crates/cuda_std/src", "crates/ferroflash/src", "crates/kernels/src", "xtask/src"];

/// The workspace's own crates that each crate may depend on, in any dependency section.
const ALLOWED_SIBLINGS: &[(&str, &[&str])] = &[
    ("candle-flash-attn", &["candle_ferroflash"]),
    ("candle_ferroflash", &["ferroflash", "ferroflash_cudarc"]),
    ("candle_models", &["candle-flash-attn", "ferroflash"]),
    ("kernel_spec", &[]),
    ("cuda_std", &["cuda_std_macros"]),
    ("cuda_std_macros", &[]),
    (
        "ferroflash",
        &["kernel_spec", "ferroflash_ptx_attention", "ferroflash_ptx_operators", "ferroflash_cust", "ptx_emu"],
    ),
    ("ferroflash_cli", &["kernel_spec", "ferroflash"]),
    ("ferroflash_cuda_builder", &[]),
    ("ferroflash_cudarc", &["ferroflash"]),
    ("ferroflash_cust", &[]),
    ("ferroflash_ptx_attention", &["ptx_pack"]),
    ("ferroflash_ptx_operators", &["ptx_pack"]),
    ("ferroflash_python", &["ferroflash"]),
    ("ferroflash_tests", &["kernel_spec", "ferroflash", "ferroflash_cust", "ptx_emu"]),
    ("kernels", &["kernel_spec", "cuda_std"]),
    ("ptx_emu", &[]),
    ("ptx_pack", &["kernel_spec", "ferroflash_cuda_builder"]),
    ("xtask", &["kernel_spec", "ferroflash_cuda_builder"]),
];

/// Crates that some crates must not pull in: presentation stays in the command line, the driver in the library.
const FORBIDDEN_CRATES: &[(&str, &[&str])] = &[
    // `cust` and `cust_raw` are the registry's: a build script that wants a CUDA toolkit, and symbols of the driver to link against.
    (
        "ferroflash",
        &["anyhow", "candle-core", "clap", "comfy-table", "cudarc", "cust", "cust_raw", "indicatif", "plotters"],
    ),
    ("ferroflash_cuda_builder", &["clap", "tokio"]),
    ("xtask", &["clap", "ferroflash_cust", "plotters"]),
];

pub(crate) fn run(rest: Vec<OsString>) -> Result<()> {
    let mut write = false;
    let mut parser = arguments::parser(rest);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("write") => write = true,
            Arg::Long("help") | Arg::Short('h') => {
                return output::print(HELP);
            }
            other => return Err(arguments::unexpected(other, HELP)),
        }
    }
    let mut findings = Vec::new();
    findings.extend(dependencies()?);
    findings.extend(text()?);
    for folder in WITHOUT_CIRCLES {
        findings.extend(
            circles::check(&workspace::root().join(folder))?.into_iter().map(|circle| format!("{folder}: {circle}")),
        );
    }
    if !findings.is_empty() {
        bail!("{} findings:\n  {}", findings.len(), findings.join("\n  "));
    }

    let [kernels, adapters] = [workspace::kernels(), adapters::root()].map(|folder| folder.join("Cargo.toml"));
    let (kernels, adapters) = (kernels.to_str(), adapters.to_str());
    for arguments in [
        vec!["fmt", "--all"],
        vec!["fmt", "--manifest-path", kernels.context("the path is UTF-8")?],
        vec!["fmt", "--all", "--manifest-path", adapters.context("the path is UTF-8")?],
    ] {
        let mut cargo = workspace::cargo();
        cargo.args(arguments);
        if !write {
            cargo.arg("--check");
        }
        workspace::run(&mut cargo)?;
    }

    setup::require_rust_src()?;
    let mut tables = Command::new(program::build()?);
    tables.current_dir(workspace::root());
    workspace::run(tables.args(["tables", if write { "--write" } else { "--check" }]))?;
    output::print("tidy\n")
}

/// Crates that depend on what the house plan does not let them.
fn dependencies() -> Result<Vec<String>> {
    let mut packages = workspace::metadata()?["packages"].as_array().cloned().unwrap_or_default();
    // Not members of the workspace.
    for folder in [workspace::kernels(), adapters::root()] {
        let mut cargo = workspace::cargo();
        cargo.args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"]);
        let of_it: Value = serde_json::from_str(&workspace::output(cargo.arg(folder.join("Cargo.toml")))?)?;
        packages.extend(of_it["packages"].as_array().cloned().unwrap_or_default());
    }
    let graph: BTreeMap<String, Vec<String>> = packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
            (name(package), dependencies.iter().map(name).collect())
        })
        .collect();
    Ok(check_dependencies(&graph))
}

fn name(value: &Value) -> String {
    value["name"].as_str().unwrap_or_default().to_string()
}

fn check_dependencies(graph: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut findings = Vec::new();
    for (package, dependencies) in graph {
        let Some((_, allowed)) = ALLOWED_SIBLINGS.iter().find(|(name, _)| name == package) else {
            findings.push(format!("{package}: not in the table of dependencies in xtask's tidy.rs"));
            continue;
        };
        let forbidden = FORBIDDEN_CRATES.iter().find(|(name, _)| name == package).map_or(&[][..], |(_, crates)| crates);
        for dependency in dependencies {
            if graph.contains_key(dependency) && !allowed.contains(&dependency.as_str()) {
                findings.push(format!("{package} must not depend on {dependency}"));
            }
            if forbidden.contains(&dependency.as_str()) {
                findings.push(format!("{package} must not depend on {dependency}"));
            }
        }
    }
    findings
}

/// Findings in the text of tracked files.
fn text() -> Result<Vec<String>> {
    let files = workspace::output(Command::new("git").args(["ls-files", "-z"]).current_dir(workspace::root()))?;
    let mut findings = Vec::new();
    for file in files.split('\0').filter(|file| !file.is_empty()) {
        let path = workspace::root().join(file);
        // Deleted, and not committed yet.
        if !path.exists() {
            continue;
        }
        let Ok(text) = String::from_utf8(fs::read(&path).with_context(|| file.to_string())?) else {
            findings.push(format!("{file}: not text; build output is not committed"));
            continue;
        };
        if is_output(Path::new(file)) {
            findings.push(format!("{file}: build output is not committed"));
        }
        findings.extend(too_long(file, &text));
        // cargo writes the registry's address into every lock file.
        if !file.ends_with("Cargo.lock") {
            findings.extend(places(file, &text));
        }
    }
    Ok(findings)
}

/// Every source file of the repository has a limit, examples, benchmarks and fuzz targets too. Files of tests are those under a
/// folder `tests` and those named `tests.rs`.
fn too_long(file: &str, text: &str) -> Option<String> {
    let path = Path::new(file);
    if path.extension().is_none_or(|extension| extension != "rs") {
        return None;
    }
    let is_test = path.file_name().is_some_and(|name| name == "tests.rs")
        || path.parent().is_some_and(|folders| folders.iter().any(|folder| folder == "tests"));
    let most = if is_test { MAX_TEST_LINES } else { MAX_LINES };
    let lines = text.lines().count();
    (lines > most).then(|| format!("{file}: {lines} lines, at most {most} wanted"))
}

fn is_output(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["ptx", "cubin", "fatbin", "o", "so", "whl", "deb"].contains(&extension)
}

/// Lines with paths of one machine, or hosts that tools know by themselves.
fn places(file: &str, text: &str) -> Vec<String> {
    // In two pieces, so that this file passes.
    let hosts = [
        concat!("crates", ".io"),
        concat!("pypi", ".org"),
        concat!("pythonhosted", ".org"),
        concat!("rust-lang", ".org/dist"),
        concat!("debian", ".org"),
        concat!("archive.ubuntu", ".com"),
    ];
    let folders = ["work", "opt", "root", "tmp", "home", "mnt"];
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let host = hosts.iter().find(|host| line.contains(*host)).map(|host| (*host).to_string());
        let folder = folders.iter().find_map(|folder| {
            let path = format!("/{folder}/");
            // At the start of a path, not inside of a longer one (`src/mnt/`, `$HOME/tmp/`).
            line.match_indices(&path).find_map(|(at, _)| {
                let before = line[..at].chars().next_back();
                let starts = before.is_none_or(|c| !(c.is_alphanumeric() || "._-/}$)".contains(c)));
                // Where distributions put the toolkit.
                (starts && !line[at..].starts_with("/opt/cuda")).then(|| path.clone())
            })
        });
        for place in host.into_iter().chain(folder) {
            findings.push(format!("{file}:{}: names `{place}`", number + 1));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_against_the_plan_is_found() {
        let graph = |edges: &[(&str, &[&str])]| -> BTreeMap<String, Vec<String>> {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect();
            edges.iter().map(|(package, dependencies)| ((*package).to_string(), owned(dependencies))).collect()
        };
        let fine = graph(&[("kernel_spec", &[]), ("ferroflash", &["kernel_spec", "half"]), ("ptx_emu", &["rayon"])]);
        assert!(check_dependencies(&fine).is_empty());
        let bad =
            graph(&[("kernel_spec", &[]), ("ptx_emu", &["kernel_spec"]), ("ferroflash", &["clap"]), ("new", &[])]);
        let findings = check_dependencies(&bad);
        assert_eq!(
            findings,
            [
                "ferroflash must not depend on clap",
                "new: not in the table of dependencies in xtask's tidy.rs",
                "ptx_emu must not depend on kernel_spec",
            ]
        );
    }

    #[test]
    fn long_files_are_found_wherever_they_are() {
        let long = "line\n".repeat(MAX_LINES + 1);
        let fits = &long["line\n".len()..];
        for file in [
            "xtask/src/main.rs",
            "crates/ptx_emu/src/lower/mod.rs",
            "crates/ptx_emu/fuzz/fuzz_targets/run.rs",
            "x/examples/a.rs",
        ] {
            assert!(too_long(file, &long).is_some_and(|finding| finding.contains("451 lines, at most 450")), "{file}");
            assert_eq!(too_long(file, fits), None, "{file}");
        }
        let longer = "line\n".repeat(MAX_TEST_LINES + 1);
        for file in ["tests/it/mutants.rs", "crates/ptx_emu/tests/cases/mod.rs", "crates/ferroflash/src/plan/tests.rs"]
        {
            assert_eq!(too_long(file, &longer["line\n".len()..]), None, "{file}");
            assert!(
                too_long(file, &longer).is_some_and(|finding| finding.contains("701 lines, at most 700")),
                "{file}"
            );
        }
        assert_eq!(too_long("docs/benchmarking.md", &longer), None);
        // Named like a file of tests, and none.
        assert!(too_long("crates/x/src/tests_of.rs", &long).is_some());
    }

    #[test]
    fn places_of_one_machine_are_found() {
        let bad = format!("see {}work/x\nfine\nhttps://{}/x", '/', concat!("pypi", ".org"));
        assert_eq!(places("f", &bad).len(), 2);
        assert!(places("f", "src/mnt/x, target/tmp/y, $HOME/tmp/z, and/or, `/opt/cuda`").is_empty());
    }
}
