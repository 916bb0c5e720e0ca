//! `ferroflash bench --program`: cells whose scores pass through programs.

use crate::cli_bench::{SHORT, cells, folder, read, result, utf8};
use crate::support::case::runs;
use crate::support::program::{fail, refuses, run, succeed, text};
use crate::support::{device, f16};
use ferroflash::Kernel;
use serde_json::{Value, json};

const NAMES: [&str; 10] = [
    "softcap",
    "tight-softcap",
    "sink",
    "alibi",
    "tanh-cap",
    "relative",
    "decay",
    "documents",
    "prefix",
    "neighbourhood",
];

/// The options of small cells, a row of which sees more keys than there are queries before it.
fn cell<'a>(device: &'a str, programs: &'a str, json: &'a str) -> Vec<&'a str> {
    let options = "--dtype bf16 --head-dim 32 --causal --seq 70 --kv-seq 90 --batch 2 --heads 2";
    let mut arguments = vec!["bench", "--device", device, "--program", programs, "--json", json];
    arguments.extend(options.split(' '));
    arguments
}

/// What was measured, `null` for a cell without a program.
fn programs(record: &Value) -> Vec<&Value> {
    cells(record).iter().map(|cell| &cell["problem"]["program"]).collect()
}

#[test]
fn every_program_is_checked_beside_the_plain_kernel() {
    let (folder, device) = (folder(), device::name());
    let json = folder.path().join("r.json");
    let names = NAMES.join(",");
    let newest = if runs::<f16>(&device::shared().device, Kernel::V3) { "v3" } else { "v2" };
    for (pass, kernels) in [("forward", &["v2", newest][..]), ("backward", &["ferroflash"]), ("both", &["ferroflash"])]
    {
        let mut arguments = cell(&device, &names, utf8(&json));
        arguments.extend(["--pass", pass]);
        let named = kernels.join(",");
        if pass == "forward" {
            arguments.extend(["--kernel", if newest == "v2" { "v2" } else { &named }]);
        }
        let printed = succeed(&arguments);
        assert!(printed.contains("program") && printed.contains("plain"), "{printed}");
        let record = read(&json);
        let found = programs(&record);
        assert_eq!(found[0], &Value::Null);
        assert_eq!(found[1..], NAMES.each_ref().map(|name| json!(name)).each_ref()[..]);
        let plain = &cells(&record)[0];
        for cell in cells(&record) {
            assert_eq!((&cell["flops"], &cell["problem"]["mask"]), (&plain["flops"], &json!("causal")));
            for kernel in kernels {
                let result = result(cell, kernel);
                assert_eq!(result["check"]["within"], true, "{pass} {kernel} {}", cell["problem"]);
                assert!(result["check"]["max_error"].as_f64().unwrap() > 0.0);
                // The emulator has no times.
                assert!(result["first_result_ms"].is_null(), "{result}");
            }
        }
        // What a program does is done.
        if let Some(counted) =
            result(plain, kernels[0])["counters"]["lane_instructions"].as_u64().filter(|_| pass == "forward")
        {
            for cell in &cells(&record)[1..] {
                let more = result(cell, kernels[0])["counters"]["lane_instructions"].as_u64().unwrap();
                // A sink is one number for a row, not for each score.
                let least = if cell["problem"]["program"] == "sink" { counted } else { counted + counted / 10 };
                assert!(more > least, "{}: {more} beside {counted}", cell["problem"]);
            }
        }
    }
}

#[test]
fn the_first_result_has_its_time() {
    let (folder, device) = (folder(), device::name());
    let json = folder.path().join("r.json");
    let mut arguments = cell(&device, "alibi,prefix", utf8(&json));
    // Of two batches only the first cell of a program compiles.
    let sizes = arguments.iter().position(|argument| *argument == "--seq").expect("it is there") + 1;
    arguments[sizes] = "70,80";
    arguments.extend(["--kernel", "v2"]);
    arguments.extend(SHORT);
    let printed = succeed(&arguments);
    assert!(printed.contains("over plain") && printed.contains("first result, second"), "{printed}");
    assert!(printed.contains("The driver's cache on disk is "), "{printed}");
    let record = read(&json);
    assert!(record["method"]["driver_cache"].is_boolean(), "{}", record["method"]);
    let mut timed = Vec::new();
    for cell in cells(&record) {
        let result = result(cell, "v2");
        assert!(result["time_ms"]["median"].as_f64().unwrap() > 0.0);
        let both = [&result["first_result_ms"], &result["second_result_ms"]].map(Value::as_f64);
        match both {
            [Some(first), Some(second)] => {
                assert!(first > 0.0 && second > 0.0);
                timed.push(cell["problem"]["program"].as_str().expect("a program"));
            }
            none => assert_eq!(none, [None, None]),
        }
    }
    timed.sort_unstable();
    assert_eq!(timed, ["alibi", "prefix"]);
}

#[test]
fn records_with_and_without_programs_are_compared() {
    let (folder, device) = (folder(), device::name());
    let [with, without] = ["with", "without"].map(|name| folder.path().join(name));
    let mut arguments = cell(&device, "tanh-cap", utf8(&with));
    arguments.extend(["--kernel", "v2"]);
    succeed(&arguments);
    let plain = arguments.iter().position(|argument| *argument == "--program").expect("it is there");
    arguments.drain(plain..plain + 2);
    let json = arguments.iter().position(|argument| *argument == "--json").expect("it is there") + 1;
    arguments[json] = utf8(&without);
    succeed(&arguments);
    assert!(!std::fs::read_to_string(&without).unwrap().contains("program"));
    let printed = succeed(&["compare", utf8(&without), utf8(&with)]);
    assert!(printed.contains("tanh-cap"), "{printed}");
    let [html, csv, pictures] = ["r.html", "r.csv", "pictures"].map(|name| folder.path().join(name));
    succeed(&["report", utf8(&with), "--html", utf8(&html), "--csv", utf8(&csv), "--plot", utf8(&pictures)]);
    assert!(std::fs::read_to_string(&html).unwrap().contains("90 tanh-cap"));
    let lines = std::fs::read_to_string(&csv).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains(",tanh-cap,")).count(), 1, "{lines}");
}

#[test]
fn unknown_programs_are_refused_with_the_names() {
    let device = device::name();
    let output = run(&["bench", "--device", &device, "--program", "alibi,wind"]);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("'wind'") && NAMES.iter().all(|name| error.contains(name)), "{error}");
    let refused = |more: &[&str], expected| refuses(&[&["bench", "--device", &device][..], more].concat(), expected);
    refused(&["--program", "alibi,alibi"], "--program names alibi twice");
    refused(&["--program", "alibi", "--preset", "decode"], "--program is not accepted with --preset decode");
    let error = fail(&["bench", "--device", &device, "--program", "prefix", "--full", "--seq", "64", "--kv-seq", "63"]);
    assert!(error.contains("--kv-seq 63 is not accepted with --program and 64 rows of q"), "{error}");
}
