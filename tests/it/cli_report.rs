//! `ferroflash report`, `compare` and the exports of `bench`: from a run to what a reader gets.

use crate::support::program::{refuses, run, succeed, text};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A folder with the record of one small run on the emulator, made once for all tests.
fn record() -> &'static Path {
    static RECORD: std::sync::OnceLock<(tempfile::TempDir, PathBuf)> = std::sync::OnceLock::new();
    let (_, path) = RECORD.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("record.json");
        let sweep =
            ["--device", "emulator", "--kernel", "naive,v2", "--dtype", "bf16", "--seq", "16,32", "--heads", "1"];
        let arguments: Vec<&str> = ["bench"].into_iter().chain(sweep).chain(["--json", utf8(&path)]).collect();
        succeed(&arguments);
        (folder, path)
    });
    path
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A copy of the record with a change, in `folder`.
fn changed(folder: &Path, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut value = json(record());
    change(&mut value);
    let path = folder.join(name);
    std::fs::write(&path, value.to_string()).unwrap();
    path
}

/// Exit status and everything printed.
fn compare(arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(arguments);
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn every_export_has_every_result() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (plot, html, csv, markdown) = (at("plot"), at("r.html"), at("r.csv"), at("r.md"));
    let exports = [("--plot", &plot), ("--html", &html), ("--csv", &csv), ("--markdown", &markdown)];
    let mut arguments = vec!["report", utf8(record())];
    arguments.extend(exports.iter().flat_map(|(flag, path)| [*flag, utf8(path)]));
    succeed(&arguments);
    // Two masks, two lengths, two kernels.
    let record = json(record());
    let results: usize =
        record["cells"].as_array().unwrap().iter().map(|c| c["results"].as_array().unwrap().len()).sum();
    assert_eq!(results, 8);
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    assert_eq!(read(&csv).lines().count(), 1 + results);
    assert_eq!(read(&html).matches("<tr><td").count(), results);
    let rows = read(&markdown).lines().filter(|line| line.starts_with("| 64 |")).count();
    assert_eq!(rows, results);
    let mut pictures: Vec<_> =
        std::fs::read_dir(&plot).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    pictures.sort();
    let expected = ["errors-bf16", "instructions-bf16", "memory-bf16", "traffic-bf16"];
    let expected: Vec<String> =
        expected.iter().flat_map(|name| [format!("{name}.png"), format!("{name}.svg")]).collect();
    assert_eq!(pictures, expected);
    for picture in pictures {
        let bytes = std::fs::read(plot.join(&picture)).unwrap();
        let start: &[u8] = if picture.ends_with("png") { b"\x89PNG\r\n\x1a\n" } else { b"<svg xmlns=" };
        assert!(bytes.starts_with(start), "{picture}");
    }
}

#[test]
fn bench_exports_what_report_does() {
    let folder = tempfile::tempdir().unwrap();
    let (json_path, csv, again) =
        (folder.path().join("r.json"), folder.path().join("a.csv"), folder.path().join("b.csv"));
    let sweep = ["--device", "emulator", "--kernel", "v2", "--dtype", "f16", "--seq", "16", "--heads", "1", "--full"];
    let files = ["--json", utf8(&json_path), "--csv", utf8(&csv)];
    succeed(&["bench"].into_iter().chain(sweep).chain(files).collect::<Vec<_>>());
    succeed(&["report", utf8(&json_path), "--csv", utf8(&again)]);
    let lines = |path: &Path| std::fs::read_to_string(path).unwrap().split('\n').map(str::to_owned).collect::<Vec<_>>();
    let (of_bench, of_report) = (lines(&csv), lines(&again));
    assert_eq!(of_bench.len(), of_report.len());
    for (of_bench, of_report) in of_bench.iter().zip(&of_report) {
        assert_eq!(of_bench, of_report);
    }
}

#[test]
fn what_cannot_be_written_or_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    refuses(&["report", utf8(record())], "nothing to write");
    let absent = folder.path().join("absent");
    refuses(&["report", utf8(&absent), "--csv", utf8(&folder.path().join("r.csv"))], "cannot read");
    let nowhere = absent.join("r.html");
    refuses(&["report", utf8(record()), "--html", utf8(&nowhere)], "does not exist");
    // Before the run, not after it.
    refuses(&["bench", "--device", "emulator", "--html", utf8(&nowhere)], "does not exist");
    let old = changed(folder.path(), "old.json", |record| record["schema_version"] = 1.into());
    refuses(&["report", utf8(&old), "--csv", utf8(&folder.path().join("r.csv"))], "schema_version is 1");
}

#[test]
fn the_same_counts_compare_as_the_same() {
    for verb in [&["compare"][..], &["bench", "compare"]] {
        let (status, printed) = compare(&[verb, &[utf8(record()), utf8(record())]].concat());
        assert_eq!(status, Some(0), "{printed}");
        assert!(printed.contains("0 worse, 0 better"), "{printed}");
        // There are no times to tell apart.
        assert!(!printed.contains("times"), "{printed}");
    }
}

#[test]
fn one_count_more_is_a_regression() {
    let folder = tempfile::tempdir().unwrap();
    let more = changed(folder.path(), "more.json", |record| {
        let count = &mut record["cells"][0]["results"][1]["counters"]["global_bytes_read"];
        *count = (count.as_u64().unwrap() + 1).into();
    });
    let (status, printed) = compare(&["bench", "compare", utf8(record()), utf8(&more)]);
    assert_eq!(status, Some(1), "{printed}");
    assert!(printed.contains("global bytes read") && printed.contains("WORSE"), "{printed}");
    // The other way round it is an improvement.
    let (status, printed) = compare(&["bench", "compare", utf8(&more), utf8(record())]);
    assert_eq!(status, Some(0), "{printed}");
    assert!(printed.contains("0 worse, 1 better"), "{printed}");
}

#[test]
fn a_result_that_is_gone_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let fewer = changed(folder.path(), "fewer.json", |record| {
        record["cells"].as_array_mut().unwrap().pop();
    });
    let (status, printed) = compare(&["compare", utf8(record()), utf8(&fewer)]);
    assert_eq!(status, Some(0), "{printed}");
    assert!(printed.contains("only before: bf16"), "{printed}");
}

#[test]
fn records_that_cannot_be_compared_give_status_2() {
    let folder = tempfile::tempdir().unwrap();
    let other = changed(folder.path(), "other.json", |record| record["environment"]["device"] = "another".into());
    let old = changed(folder.path(), "old.json", |record| record["schema_version"] = 1.into());
    let empty = changed(folder.path(), "empty.json", |record| record["cells"] = Vec::<Value>::new().into());
    let absent = folder.path().join("absent.json");
    for (path, message) in [
        (&other, "different devices"),
        (&old, "schema_version"),
        (&empty, "no result in common"),
        (&absent, "cannot read"),
    ] {
        let (status, printed) = compare(&["bench", "compare", utf8(record()), utf8(path)]);
        assert_eq!(status, Some(2), "{printed}");
        assert!(printed.contains(message), "{printed}");
    }
    let (status, printed) = compare(&["compare", utf8(record()), utf8(&other), "--across"]);
    assert_eq!(status, Some(0), "{printed}");
    // Usage has the same status.
    for wrong in [&["bench", "compare"][..], &["compare", utf8(record()), utf8(record()), "--threshold", "x"]] {
        assert_eq!(compare(wrong).0, Some(2));
    }
}
