//! `ferroflash tables`: the parts of README.md that are generated, from the variant list and the committed results.

use crate::bench::Quartiles;
use crate::bench::record::{BENCH_KIND, Cell, CellProblem, Environment, Record, SCHEMA_VERSION};
use crate::format;
use anyhow::{Context, Result, bail, ensure};
use attn_spec::COMPILED_HEAD_DIMS;
use clap::Args;
use ferroflash::{Arch, DType, Kernel, VARIANTS};
use serde::Deserialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Generates the tables of README.md between their markers.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("mode").required(true).args(["write", "check"])))]
pub(crate) struct TablesArgs {
    /// Write them into README.md
    #[arg(long)]
    write: bool,
    /// Fail when README.md differs from what would be written
    #[arg(long)]
    check: bool,
    /// Folder of README.md and docs/benchmarks
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
}

pub(crate) fn run(args: &TablesArgs) -> Result<()> {
    let readme = args.root.join("README.md");
    let before = std::fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let after = replace(&before, "support", &support())?;
    let after = replace(&after, "results", &results(&args.root.join("docs/benchmarks"))?)?;
    if args.write {
        if after != before {
            std::fs::write(&readme, after).with_context(|| format!("cannot write {}", readme.display()))?;
        }
        return Ok(());
    }
    ensure!(before == after, "{} differs from its sources; run `cargo xtask tidy --write`", readme.display());
    Ok(())
}

/// Puts `content` between the markers of `name`.
fn replace(text: &str, name: &str, content: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- generated: {name} -->\n"), format!("<!-- end: {name} -->"));
    let (head, rest) = text.split_once(&begin).with_context(|| format!("README.md lacks the line {}", begin.trim()))?;
    let (_, tail) = rest.split_once(&end).with_context(|| format!("README.md lacks the line {end}"))?;
    Ok(format!("{head}{begin}\n{content}\n{end}{tail}"))
}

/// Everything is written to a `String`, which takes all.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).expect("a string takes all") };
}

/// Which element types and head dims each kernel is compiled for, and with which tiles.
fn support() -> String {
    let mut text = String::new();
    line!(text, "Compiled head dims, and the tile of each: query rows x key rows of one step of a thread block.\n");
    let mut header = vec!["kernel".to_owned(), "type".to_owned()];
    header.extend(COMPILED_HEAD_DIMS.iter().map(|head_dim| format!("head_dim {head_dim}")));
    header.push("compute capability".to_owned());
    table_header(&mut text, &header);
    for kernel in Kernel::ALL {
        for dtype in DType::ALL {
            // Naive's other passes follow the one that reads the keys.
            let pass = kernel.passes()[0];
            let row = |head_dim| VARIANTS.iter().find(|v| v.pass == pass && v.dtype == dtype && v.head_dim == head_dim);
            let variants = COMPILED_HEAD_DIMS.map(row);
            let mut columns = vec![kernel.to_string(), dtype.to_string()];
            columns.extend(variants.iter().map(|v| dash(v.map(|v| format!("{} x {}", v.q_block, v.kv_block)))));
            columns.push(dash(variants.iter().flatten().next().map(|v| compute_capability(v.arch))));
            table_row(&mut text, &columns);
        }
    }
    text
}

/// Which GPUs run PTX for `arch`.
fn compute_capability(arch: Arch) -> String {
    let (major, minor) = arch.least_compute_capability();
    let later = if arch.runs_on((major + 1, 0)) { " and later" } else { "" };
    format!("{major}.{minor}{later}")
}

/// A file of docs/benchmarks.
enum Results {
    Bench(Record),
    Peers(PeersRecord),
}

/// One run of tests/peers/peers_bench.py.
#[derive(Deserialize)]
struct PeersRecord {
    schema_version: u32,
    environment: Environment,
    /// Versions of the peers by name.
    peers: std::collections::BTreeMap<String, String>,
    cells: Vec<PeersCell>,
}

#[derive(Deserialize)]
struct PeersCell {
    problem: CellProblem,
    results: Vec<PeerResult>,
}

#[derive(Deserialize)]
struct PeerResult {
    implementation: String,
    time_ms: Option<Quartiles>,
    tflops: Option<f64>,
}

/// What `kind` says in a record of peers_bench.py.
const PEERS_KIND: &str = "ferroflash-peers";

fn results(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    if folder.is_dir() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                files.push(path);
            }
        }
    }
    files.sort();
    if files.is_empty() {
        return Ok(
            "No results are committed for this version; `cargo xtask bench` measures on your machine.\n".to_owned()
        );
    }
    let mut text = String::new();
    for path in &files {
        let results = read(path).with_context(|| path.display().to_string())?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !text.is_empty() {
            text.push('\n');
        }
        match results {
            Results::Bench(record) => bench_section(&mut text, &name, &record),
            Results::Peers(record) => peers_section(&mut text, &name, &record),
        }
    }
    Ok(text)
}

fn read(path: &Path) -> Result<Results> {
    let value: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let results = match value["kind"].as_str() {
        Some(BENCH_KIND) => Results::Bench(serde_json::from_value(value)?),
        Some(PEERS_KIND) => Results::Peers(serde_json::from_value(value)?),
        kind => bail!("kind is {kind:?}; {BENCH_KIND} and {PEERS_KIND} are known"),
    };
    let (version, backend) = match &results {
        Results::Bench(record) => (record.schema_version, &record.environment.backend),
        Results::Peers(record) => (record.schema_version, &record.environment.backend),
    };
    ensure!(version == SCHEMA_VERSION, "schema_version is {version}; this build reads {SCHEMA_VERSION}");
    ensure!(backend == "cuda", "made on {backend}; the README shows results of GPUs");
    Ok(results)
}

fn environment_line(text: &mut String, name: &str, environment: &Environment, rest: &str) {
    let Environment { device, driver, date, commit, .. } = environment;
    let day = date.split('T').next().unwrap_or(date);
    let driver = driver.as_deref().unwrap_or("unknown");
    let commit = commit.as_deref().map_or("unknown".to_owned(), |commit| commit.chars().take(12).collect());
    line!(
        text,
        "{device}, driver for CUDA {driver}, {day}, commit {commit}{rest}, from [{name}](docs/benchmarks/{name})."
    );
}

/// One table for each element type and mask; the first element type open, the others folded away.
fn by_type_and_mask<'a, T>(
    text: &mut String,
    cells: &'a [T],
    problem: impl Fn(&T) -> &CellProblem,
    mut table: impl FnMut(&mut String, &[&'a T]),
) {
    let mut groups: Vec<(String, String, Vec<&'a T>)> = Vec::new();
    for cell in cells {
        let CellProblem { dtype, mask, .. } = problem(cell);
        match groups.iter_mut().find(|group| group.0 == *dtype && group.1 == *mask) {
            Some(group) => group.2.push(cell),
            None => groups.push((dtype.clone(), mask.clone(), vec![cell])),
        }
    }
    let first = groups.first().map(|group| group.0.clone()).unwrap_or_default();
    for (dtype, mask, cells) in &groups {
        let folded = *dtype != first;
        if folded {
            line!(text, "\n<details><summary>{dtype}, {mask}</summary>\n");
        } else {
            line!(text, "\n{dtype}, {mask}:\n");
        }
        table(text, cells);
        if folded {
            line!(text, "\n</details>");
        }
    }
}

fn bench_section(text: &mut String, name: &str, record: &Record) {
    environment_line(text, name, &record.environment, "");
    line!(text, "Median TFLOP/s; extra memory is what one call holds at its peak beyond q, k, v and out.");
    by_type_and_mask(
        text,
        &record.cells,
        |cell| &cell.problem,
        |text, cells| {
            // What ran on none of these problems, such as v3 on f32, has no column.
            let ran = |kernel: &&str| cells.iter().any(|cell| cell.result(kernel).is_some_and(|r| r.skipped.is_none()));
            let kernels: Vec<&str> = cells[0].results.iter().map(|result| result.kernel.as_str()).filter(ran).collect();
            let newest = kernels.last().copied().unwrap_or_default();
            let mut header = problem_header();
            header.extend(kernels.iter().map(|kernel| (*kernel).to_owned()));
            header.push(format!("{newest} over naive"));
            header.extend(kernels.iter().map(|kernel| format!("extra memory {kernel}")));
            header.extend([format!("saved by {newest}"), "largest error / bound".to_owned()]);
            table_header(text, &header);
            for cell in cells {
                table_row(text, &bench_row(cell, &kernels, newest));
            }
        },
    );
}

fn bench_row(cell: &Cell, kernels: &[&str], newest: &str) -> Vec<String> {
    let mut row = problem_columns(&cell.problem);
    let result = |kernel: &str| cell.result(kernel);
    row.extend(kernels.iter().map(|k| dash(result(k).and_then(|r| r.tflops).map(format::significant))));
    let speedup = result(newest).and_then(|r| r.speedup_over_naive);
    row.push(dash(speedup.map(|speedup| format!("{}x", format::significant(speedup)))));
    row.extend(kernels.iter().map(|k| dash(result(k).and_then(|r| r.extra_bytes).map(format::bytes))));
    row.push(dash(result(newest).and_then(|r| r.saved_percent).map(|saved| format!("{saved:.1} %"))));
    // The kernel that comes closest to its bound.
    let checks = cell.results.iter().filter_map(|result| result.check.as_ref());
    let worst = checks.map(|check| (check.max_error, check.bound)).max_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    row.push(dash(worst.map(|(error, bound)| format!("{} / {}", format::error(error), format::error(bound)))));
    row
}

/// Whose time a ratio is made with: ours, the peer's.
const RATIOS: [(&str, &str); 4] = [
    ("ferroflash v3", "torch flash"),
    ("ferroflash v3", "torch cudnn"),
    ("ferroflash v2", "torch flash"),
    ("ferroflash naive", "torch math"),
];

fn peers_section(text: &mut String, name: &str, record: &PeersRecord) {
    let versions: Vec<_> = record.peers.iter().map(|(peer, version)| format!("{peer} {version}")).collect();
    environment_line(text, name, &record.environment, &format!(", beside {}", versions.join(", ")));
    line!(
        text,
        "Median TFLOP/s of launches that take turns in one run; a ratio above 1 means that ferroflash is faster."
    );
    by_type_and_mask(
        text,
        &record.cells,
        |cell| &cell.problem,
        |text, cells| {
            let mut names: Vec<&str> = Vec::new();
            for result in cells.iter().flat_map(|cell| &cell.results) {
                if !names.contains(&result.implementation.as_str()) {
                    names.push(&result.implementation);
                }
            }
            let ratios: Vec<_> =
                RATIOS.into_iter().filter(|(ours, peer)| names.contains(ours) && names.contains(peer)).collect();
            let mut header = problem_header();
            header.extend(names.iter().map(|name| (*name).to_owned()));
            header.extend(ratios.iter().map(|(ours, peer)| format!("{ours} over {peer}")));
            table_header(text, &header);
            for cell in cells {
                let find = |name: &str| cell.results.iter().find(|result| result.implementation == name);
                let mut row = problem_columns(&cell.problem);
                row.extend(names.iter().map(|name| dash(find(name).and_then(|r| r.tflops).map(format::significant))));
                row.extend(ratios.iter().map(|(ours, peer)| {
                    let time = |name| find(name).and_then(|result| result.time_ms);
                    dash(time(ours).zip(time(peer)).map(|(ours, peer)| format!("{:.2}", peer.median / ours.median)))
                }));
                table_row(text, &row);
            }
        },
    );
}

fn problem_header() -> Vec<String> {
    ["head_dim", "seq", "batch x heads"].map(str::to_owned).to_vec()
}

fn problem_columns(problem: &CellProblem) -> Vec<String> {
    let CellProblem { head_dim, seq, batch, q_heads, kv_heads, .. } = problem;
    let heads = if kv_heads == q_heads { q_heads.to_string() } else { format!("{q_heads}/{kv_heads}") };
    vec![head_dim.to_string(), seq.to_string(), format!("{batch} x {heads}")]
}

fn dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

fn table_header(text: &mut String, header: &[String]) {
    table_row(text, header);
    line!(text, "|{}", " ---: |".repeat(header.len()));
}

fn table_row(text: &mut String, row: &[String]) {
    line!(text, "| {} |", row.join(" | "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_goes_between_its_markers() {
        let text = "a\n<!-- generated: x -->\nold\n<!-- end: x -->\nb\n";
        let new = replace(text, "x", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- generated: x -->\n\nnew\n\n<!-- end: x -->\nb\n");
        assert_eq!(replace(&new, "x", "new\n").unwrap(), new);
        assert!(replace(text, "y", "").unwrap_err().to_string().contains("generated: y"));
    }

    #[test]
    fn the_support_table_has_a_row_for_each_kernel_and_type() {
        let text = support();
        for kernel in Kernel::ALL {
            for dtype in DType::ALL {
                assert!(text.contains(&format!("| {kernel} | {dtype} | ")), "{text}");
            }
        }
    }

    fn environment(backend: &str) -> serde_json::Value {
        serde_json::json!({
            "device": "GPU", "backend": backend, "driver": "13.0", "compute_capability": "9.0", "multiprocessors": 1,
            "memory_bytes": 1, "date": "2026-01-02T03:04:05Z", "commit": "0123456789abcdef", "rustc": "rustc",
            "ferroflash": "0.1.0",
        })
    }

    fn problem(dtype: &str) -> serde_json::Value {
        serde_json::json!({
            "dtype": dtype, "head_dim": 64, "mask": "full", "seq": 512, "batch": 2, "q_heads": 4, "kv_heads": 4,
        })
    }

    #[test]
    fn peers_are_set_beside_each_other() {
        let result = |name: &str, ms: f64| serde_json::json!({"implementation": name, "time_ms": {"q1": ms, "median": ms, "q3": ms}, "tflops": 100.0 / ms});
        let folder = tempfile::tempdir().unwrap();
        let record = serde_json::json!({
            "kind": PEERS_KIND, "schema_version": SCHEMA_VERSION, "environment": environment("cuda"),
            "peers": {"torch": "2.11"},
            "cells": [
                {"problem": problem("bf16"), "results": [result("ferroflash v2", 1.0), result("torch flash", 1.5)]},
                {"problem": problem("f16"), "results": [result("ferroflash v2", 2.0)]},
            ],
        });
        std::fs::write(folder.path().join("peers.json"), record.to_string()).unwrap();
        let text = results(folder.path()).unwrap();
        assert!(
            text.contains("GPU, driver for CUDA 13.0, 2026-01-02, commit 0123456789ab, beside torch 2.11"),
            "{text}"
        );
        assert!(text.contains("| 64 | 512 | 2 x 4 | 100 | 66.7 | 1.50 |"), "{text}");
        assert!(text.contains("<details><summary>f16, full</summary>"), "{text}");
    }

    #[test]
    fn results_of_the_emulator_or_of_another_schema_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let message = |version: u32, backend: &str, kind: &str| {
            let record = serde_json::json!({
                "kind": kind, "schema_version": version, "environment": environment(backend), "peers": {}, "cells": [],
            });
            std::fs::write(&path, record.to_string()).unwrap();
            format!("{:#}", results(folder.path()).unwrap_err())
        };
        assert!(message(SCHEMA_VERSION, "emulator", PEERS_KIND).contains("made on emulator"));
        assert!(message(SCHEMA_VERSION + 1, "cuda", PEERS_KIND).contains("schema_version"));
        assert!(message(SCHEMA_VERSION, "cuda", "other").contains("kind is"));
    }

    #[test]
    fn no_results_is_said() {
        let folder = tempfile::tempdir().unwrap();
        assert!(results(&folder.path().join("absent")).unwrap().contains("No results are committed"));
    }
}
