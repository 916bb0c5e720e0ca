//! `ferroflash tables`: the parts of README.md that are generated, from the variant list and the committed results, and the pictures
//! and reports beside those.

mod gallery;

use crate::bench::record::{Cell, CellProblem, Environment, MaskName, Record};
use crate::format;
use anyhow::{Context, Result, bail};
use clap::Args;
use ferroflash::{Arch, DType, Kernel, VARIANTS};
use gallery::Entry;
use kernel_spec::COMPILED_HEAD_DIMS;
use std::fmt::Write;
use std::path::PathBuf;

/// Generates the tables of README.md between their markers, and the pictures and reports of docs/benchmarks.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("mode").required(true).args(["write", "check"])))]
pub(crate) struct TablesArgs {
    /// Write them
    #[arg(long)]
    write: bool,
    /// Fail when a file differs from what would be written
    #[arg(long)]
    check: bool,
    /// Folder of README.md and docs/benchmarks
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
}

pub(crate) fn run(args: &TablesArgs) -> Result<()> {
    let readme = args.root.join("README.md");
    let before = std::fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let folder = args.root.join("docs/benchmarks");
    let entries = gallery::read(&folder)?;
    let files = gallery::generate(&entries)?;
    let after = replace(&before, "hero", &hero(&entries))?;
    let after = replace(&after, "support", &support())?;
    let after = replace(&after, "results", &results(&entries))?;
    if args.write {
        if after != before {
            std::fs::write(&readme, after).with_context(|| format!("cannot write {}", readme.display()))?;
        }
        return gallery::write(&folder, &files);
    }
    let mut differing: Vec<_> = gallery::differing(&folder, &files)?.iter().map(|name| folder.join(name)).collect();
    differing.extend((before != after).then_some(readme));
    if !differing.is_empty() {
        let names: Vec<_> = differing.iter().map(|path| path.display().to_string()).collect();
        bail!("{} differ from their sources; run `cargo xtask tidy --write`", names.join(", "));
    }
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
    line!(
        text,
        "Compiled head dims, and the tile of each: query rows x key rows of one step of a thread block; a second one is for rows that see many keys.\n"
    );
    let mut header = vec!["kernel".to_owned(), "type".to_owned()];
    header.extend(COMPILED_HEAD_DIMS.iter().map(|head_dim| format!("head_dim {head_dim}")));
    header.push("compute capability".to_owned());
    table_header(&mut text, &header);
    for kernel in Kernel::ALL {
        for dtype in DType::ALL {
            // Naive's other passes follow the one that reads the keys.
            let pass = kernel.passes()[0];
            let tiles = |head_dim| {
                let rows = VARIANTS
                    .iter()
                    .filter(|v| v.pass == pass && v.dtype == dtype && v.head_dim() == head_dim && v.runs_plain());
                let tiles: Vec<_> = rows.map(|v| format!("{} x {}", v.q_block, v.kv_block)).collect();
                dash((!tiles.is_empty()).then(|| tiles.join(", ")))
            };
            let mut columns = vec![kernel.to_string(), dtype.to_string()];
            columns.extend(COMPILED_HEAD_DIMS.map(tiles));
            let arch =
                VARIANTS.iter().find(|v| v.pass == pass && v.dtype == dtype).map(|v| compute_capability(v.entry.arch));
            columns.push(dash(arch));
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

const NO_RESULTS: &str = "No results are committed for this version; `cargo xtask bench` measures on your machine.\n";

/// The picture that says most: speed beside the most peers, or speed alone.
fn hero(entries: &[Entry]) -> String {
    let of_gpus = || entries.iter().filter(|entry| entry.record.environment.backend == "cuda");
    let peers = |entry: &&Entry| entry.record.sweep.peers.len();
    // The first of equals: `max_by_key` would take the last.
    let entry = of_gpus().rev().max_by_key(peers);
    let picture = entry.and_then(|entry| entry.pictures.iter().find(|picture| picture.stem.contains("-tflops-")));
    let (Some(entry), Some(picture)) = (entry, picture) else { return NO_RESULTS.to_owned() };
    let mut text = image(picture);
    line!(text, "\n{} ([report](docs/benchmarks/{}.html))", picture.description, entry.stem);
    text
}

fn image(picture: &gallery::Picture) -> String {
    // An attribute of the page that shows it.
    let alt = crate::plot::escape(&picture.description);
    let stem = &picture.stem;
    format!(
        "<a href=\"docs/benchmarks/{stem}.svg\"><img src=\"docs/benchmarks/{stem}.svg\" alt=\"{alt}\" width=\"960\"/></a>\n"
    )
}

fn results(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return NO_RESULTS.to_owned();
    }
    let mut text = String::new();
    for (i, entry) in entries.iter().enumerate() {
        let Entry { stem, record, pictures } = entry;
        if i > 0 {
            text.push('\n');
        }
        environment_line(&mut text, stem, record);
        if record.environment.backend == "emulator" {
            counts_section(&mut text, record);
        } else if record.sweep.peers.is_empty() {
            bench_section(&mut text, record);
        } else {
            peers_section(&mut text, record);
        }
        if !pictures.is_empty() {
            line!(text, "\n<details><summary>Pictures of {stem}</summary>");
            for picture in pictures {
                line!(text, "\n{}\n", picture.description);
                text.push_str(&image(picture));
            }
            line!(text, "\n</details>");
        }
    }
    text
}

fn environment_line(text: &mut String, name: &str, record: &Record) {
    let Environment { device, driver, date, commit, peers, .. } = &record.environment;
    let day = date.split('T').next().unwrap_or(date);
    let driver = driver.as_ref().map(|driver| format!(", driver for CUDA {driver}")).unwrap_or_default();
    let commit = commit.as_deref().map_or("unknown".to_owned(), |commit| commit.chars().take(12).collect());
    let peers: Vec<_> = peers.iter().map(|(peer, version)| format!("{peer} {version}")).collect();
    let rest = if peers.is_empty() { String::new() } else { format!(", beside {}", peers.join(", ")) };
    let links = format!("[{name}.json](docs/benchmarks/{name}.json), [report](docs/benchmarks/{name}.html)");
    line!(text, "{device}{driver}, {day}, commit {commit}{rest}; {links}.");
}

/// One table for each element type and mask; the first element type open, the others folded away.
fn by_type_and_mask(text: &mut String, cells: &[Cell], mut table: impl FnMut(&mut String, &[&Cell])) {
    let mut groups: Vec<(String, MaskName, Vec<&Cell>)> = Vec::new();
    for cell in cells {
        let CellProblem { dtype, mask, .. } = &cell.problem;
        match groups.iter_mut().find(|group| group.0 == *dtype && group.1 == *mask) {
            Some(group) => group.2.push(cell),
            None => groups.push((dtype.clone(), *mask, vec![cell])),
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

/// What a record of the emulator says best: work and traffic.
const COUNTS: [(&str, &str); 5] = [
    ("lane_instructions", "instructions"),
    ("tensor_flops", "tensor FLOP"),
    ("global_bytes_read", "global read"),
    ("global_bytes_written", "global written"),
    ("shared_bank_conflicts", "bank conflicts"),
];

fn counts_section(text: &mut String, record: &Record) {
    line!(text, "Counts of what the kernels do, from the emulator; these are not times.");
    by_type_and_mask(text, &record.cells, |text, cells| {
        let mut header = problem_header();
        header.push("kernel".to_owned());
        header.extend(COUNTS.iter().map(|(_, heading)| (*heading).to_owned()));
        header.push("extra memory".to_owned());
        table_header(text, &header);
        for (cell, result) in cells.iter().flat_map(|cell| cell.results.iter().map(move |result| (cell, result))) {
            let mut row = problem_columns(&cell.problem);
            row.push(result.name.clone());
            row.extend(COUNTS.iter().map(|(counter, _)| {
                let show = if counter.contains("bytes") { format::bytes } else { format::count };
                dash(result.counters.get(*counter).copied().map(show))
            }));
            row.push(dash(result.extra_bytes.map(format::bytes)));
            table_row(text, &row);
        }
    });
}

fn bench_section(text: &mut String, record: &Record) {
    line!(text, "Median TFLOP/s; extra memory is what one call holds at its peak beyond q, k, v and out.");
    by_type_and_mask(text, &record.cells, |text, cells| {
        // What ran on none of these problems, such as v3 on f32, has no column.
        let ran = |kernel: &&str| cells.iter().any(|cell| cell.result(kernel).is_some_and(|r| r.skipped.is_none()));
        let kernels: Vec<&str> = cells[0].results.iter().map(|result| result.name.as_str()).filter(ran).collect();
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
    });
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
const RATIOS: [(&str, &str); 4] =
    [("v3", "torch flash"), ("v3", "torch cudnn"), ("v2", "torch flash"), ("naive", "torch math")];

fn peers_section(text: &mut String, record: &Record) {
    line!(
        text,
        "Median TFLOP/s of launches that take turns in one run; a ratio above 1 means that ferroflash is faster."
    );
    by_type_and_mask(text, &record.cells, |text, cells| {
        let mut names: Vec<&str> = Vec::new();
        for result in cells.iter().flat_map(|cell| &cell.results).filter(|result| result.skipped.is_none()) {
            if !names.contains(&result.name.as_str()) {
                names.push(&result.name);
            }
        }
        let newest = cells.iter().flat_map(|cell| &cell.results).rfind(|r| !r.peer && r.skipped.is_none());
        let newest = newest.map(|result| result.name.as_str()).unwrap_or_default();
        let ratios: Vec<_> =
            RATIOS.into_iter().filter(|(ours, peer)| names.contains(ours) && names.contains(peer)).collect();
        let mut header = problem_header();
        header.extend(names.iter().map(|name| (*name).to_owned()));
        header.push(format!("{newest} over the best peer"));
        header.extend(ratios.iter().map(|(ours, peer)| format!("{ours} over {peer}")));
        table_header(text, &header);
        for cell in cells {
            let find = |name: &str| cell.result(name);
            let mut row = problem_columns(&cell.problem);
            row.extend(names.iter().map(|name| dash(find(name).and_then(|r| r.tflops).map(format::significant))));
            row.push(dash(find(newest).and_then(|r| r.ratio_to_best_peer).map(|ratio| format!("{ratio:.2}"))));
            row.extend(ratios.iter().map(|(ours, peer)| {
                let time = |name| find(name).and_then(|result| result.time_ms);
                dash(time(ours).zip(time(peer)).map(|(ours, peer)| format!("{:.2}", peer.median / ours.median)))
            }));
            table_row(text, &row);
        }
    });
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
    use crate::bench::record::samples::{sample, sample_cell};

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

    fn record(device: &str, backend: &str, peers: &[(&str, &str)], cells: Vec<Cell>) -> Record {
        let mut record = sample(device, backend, cells);
        record.environment.peers = peers.iter().map(|(name, version)| ((*name).into(), (*version).into())).collect();
        record.sweep.peers = peers.iter().map(|(name, _)| (*name).to_owned()).collect();
        record
    }

    fn entries(record: &Record) -> Vec<Entry> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.json"), serde_json::to_string(record).unwrap()).unwrap();
        gallery::read(folder.path()).unwrap()
    }

    #[test]
    fn peers_are_set_beside_each_other() {
        let mut cells = vec![
            sample_cell("bf16", 512, &[("v2", 1.0), ("torch flash", 1.5)]),
            sample_cell("f16", 512, &[("v2", 2.0)]),
        ];
        cells[0].results[0].ratio_to_best_peer = Some(1.5);
        let entries = entries(&record("GPU", "cuda", &[("torch", "2.11")], cells));
        let text = results(&entries);
        assert!(
            text.contains("GPU, driver for CUDA 13.0, 2026-01-02, commit 0123456789ab, beside torch 2.11"),
            "{text}"
        );
        assert!(text.contains("| 64 | 512 | 2 x 4 | 0.54 | 0.36 | 1.50 | 1.50 |"), "{text}");
        assert!(text.contains("<details><summary>f16, full</summary>"), "{text}");
        assert!(text.contains("<img src=\"docs/benchmarks/a-errors-bf16.svg\""), "{text}");
        let hero = hero(&entries);
        assert!(hero.starts_with("<a href=\"docs/benchmarks/a-tflops-bf16.svg\"><img"), "{hero}");
        assert!(hero.contains("times the speed of the best peer. ([report](docs/benchmarks/a.html))"), "{hero}");
    }

    #[test]
    fn results_of_the_emulator_are_called_counts() {
        let mut cell = sample_cell("bf16", 64, &[("v2", 1.0)]);
        cell.results[0].counters.insert("tensor_flops".to_owned(), 12_345_678);
        let entries = entries(&record("CPU", "emulator", &[], vec![cell]));
        let text = results(&entries);
        assert!(text.contains("these are not times") && text.contains("| v2 | - | 12.3 M | - |"), "{text}");
        assert_eq!(hero(&entries), NO_RESULTS);
    }

    #[test]
    fn no_results_is_said() {
        assert_eq!((results(&[]), hero(&[])), (NO_RESULTS.to_owned(), NO_RESULTS.to_owned()));
    }
}
