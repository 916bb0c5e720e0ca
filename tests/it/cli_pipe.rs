//! The `ferroflash` program when nobody reads what it prints: `ferroflash doctor | head -1`.
#![cfg(unix)]

use crate::support::program::{ferroflash, succeed, text};
use std::path::Path;
use std::process::{Command, Stdio};

/// What a shell says of a program that SIGPIPE ended.
const CLOSED: i32 = 141;

/// Expects the program to end without a word, with this status, when its standard output is closed.
fn ends_quietly(command: &mut Command, status: i32) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().expect("the program starts");
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(status), ""), "{command:?}");
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A sweep that ends soon, on any machine.
const SHORT: [&str; 12] =
    ["bench", "--device", "emulator", "--kernel", "v2", "--dtype", "f16", "--seq", "16", "--heads", "1", "--full"];

#[test]
fn every_verb_ends_quietly_when_its_reader_leaves() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let at = |name: &str| folder.path().join(name);
    ends_quietly(ferroflash().args(["doctor", "--device", "emulator"]), CLOSED);
    // Help is all there is to do, and it is done.
    ends_quietly(ferroflash().args(["bench", "--help"]), 0);

    // The heading finds nobody: not a cell is measured.
    ends_quietly(ferroflash().args(SHORT).args(["--json", utf8(&at("unread.json"))]), CLOSED);
    let record = at("record.json");
    succeed(&[&SHORT[..], &["--json", utf8(&record)]].concat());
    ends_quietly(ferroflash().args(["compare", utf8(&record), utf8(&record)]), CLOSED);
    ends_quietly(ferroflash().args(["bench", "compare", utf8(&record), utf8(&record)]), CLOSED);

    ends_quietly(ferroflash().args(["report", utf8(&record), "--csv", "/dev/stdout"]), CLOSED);

    // What was asked for is written, and nothing is said there.
    let (plot, html, csv) = (at("pictures"), at("r.html"), at("r.csv"));
    let exports = ["--plot", utf8(&plot), "--html", utf8(&html), "--csv", utf8(&csv)];
    ends_quietly(ferroflash().args(["--quiet", "report", utf8(&record)]).args(exports), 0);
    assert!(plot.is_dir() && html.is_file() && csv.is_file());
}

/// A reader that takes the first lines and leaves, as `head` does, while the program still runs.
#[test]
fn a_reader_may_leave_in_the_middle() {
    use std::io::{BufRead, BufReader};
    let mut child = ferroflash()
        .args(["bench", "--device", "emulator", "--kernel", "naive,v2", "--dtype", "f16", "--seq", "64,128,256", "-q"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut first = String::new();
    lines.read_line(&mut first).expect("a heading");
    assert!(first.contains("ferroflash"), "{first}");
    drop(lines);
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(CLOSED), ""));
}

/// A full disk is no reader who left: it is an error, and says so.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_reported() {
    let full = std::fs::File::create("/dev/full").expect("Linux has it");
    let output = ferroflash().args(SHORT).stdout(full).output().expect("the program starts");
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("error: cannot write to standard output: "), "{error}");
}
