//! `ferroflash bench`: presets, sweep files, peers, resuming, colours.

use crate::support::case::runs;
use crate::support::json::assert_same;
use crate::support::program::{fail, ferroflash, refuses, succeed, text};
use crate::support::{device, f16};
use ferroflash::Kernel;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder for the test")
}

pub(crate) fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a record")).expect("JSON")
}

pub(crate) fn cells(record: &Value) -> &[Value] {
    record["cells"].as_array().expect("cells")
}

/// A result of a cell.
pub(crate) fn result<'a>(cell: &'a Value, name: &str) -> &'a Value {
    let results = cell["results"].as_array().expect("results");
    let names = || results.iter().map(|result| &result["name"]).collect::<Vec<_>>();
    results.iter().find(|result| result["name"] == name).unwrap_or_else(|| panic!("{name} is not among {:?}", names()))
}

/// Times of few and short samples, also on the emulator, where they only show that the parts work together.
pub(crate) const SHORT: [&str; 8] = ["--clock", "host", "--repeats", "3", "--warmup", "1", "--sample", "0.01"];

pub(crate) fn write_sweep(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("sweep.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[cfg(unix)]
pub(crate) fn write_program(folder: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

pub(crate) fn utf8(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A Python that knows no attention: it gives as much of v as q has, which of one row is right, because the softmax of one score is 1. `cudnn`
/// does so in 2 ms a launch and with more memory than two of them find, `flash` in 1 ms, 16 behind a launch of its own, `efficient` gives q
/// and in the end something else, `math` refuses, and `triton` dies at its first launch. It has `fa4`, which does as `flash`, and no `fa3`.
/// What it was started with and asked to prepare is in a file beside it. Of a backward pass the gradient of v is that of the output, and the
/// others are 0.
#[cfg(unix)]
pub(crate) const FAKE_PYTHON: &str = r#"#!/bin/sh
echo "some warning" >&2
echo "$3 $4" >>"$0.asked"
peers=
for peer in $(echo "$4" | tr , ' '); do
    case "$peer" in
    fa3) import='{"missing": "NoResult: no library"}' ;;
    quack) import='{"missing": "ModuleNotFoundError: No module named quack"}' ;;
    fa4) import='{"version": "4.0.0b1"}' ;;
    *) import='{"version": "9.8.7"}' ;;
    esac
    peers="$peers${peers:+, }\"$peer\": $import"
done
echo "{\"hello\": {\"versions\": {\"torch\": \"9.8.7\"}, \"peers\": {$peers}}}"
while read -r line; do
    case "$line" in '{"prepare"'*) echo "$line" >>"$0.asked" ;; esac
    case "$line" in
    '{"prepare"'*) data=$(expr "$line" : '.*"folder":"\([^"]*\)"'); echo '{"prepared": true}' ;;
    '{"check"'*'"math"'*) echo '{"skipped": "RuntimeError: out of memory"}' ;;
    '{"check"'*)
        out=$(expr "$line" : '.*"out":"\([^"]*\)"')
        case "$line" in *efficient*) cp "$data/q" "$out" ;; *) head -c "$(wc -c <"$data/q")" "$data/v" >"$out" ;; esac
        if [ -f "$data/checked_dout" ]; then
            cp "$data/checked_dout" "$out.dv"
            for of in q k; do head -c "$(wc -c <"$data/$of")" /dev/zero >"$out.d$of"; done
            case "$line" in *efficient*) cp "$data/q" "$out.dv" ;; esac
        fi
        case "$line" in *cudnn*) extra=100000000000 ;; *) extra=4096 ;; esac
        echo "{\"checked\": {\"extra_bytes\": $extra, \"graph\": true}}" ;;
    '{"time"'*'"triton"'*) echo "a fatal error" >&2; exit 1 ;;
    '{"time"'*)
        launches=$(expr "$line" : '.*"launches":\([0-9]*\)')
        case "$line" in *cudnn*) each=2 ;; *'"lead":true'*) each=16 ;; *) each=1 ;; esac
        echo "{\"ms\": $((launches * each))}" ;;
    '{"verify"'*'"efficient"'*) echo '{"skipped": "another result than the one that was checked"}' ;;
    '{"verify"'*) echo '{"verified": true}' ;;
    '{"matmul"'*) launches=$(expr "$line" : '.*"launches":\([0-9]*\)'); echo "{\"ms\": $((launches * 2))}" ;;
    '{"read"'*) launches=$(expr "$line" : '.*"launches":\([0-9]*\)'); echo "{\"ms\": $launches}" ;;
    '{"trim"'*) echo '{"trimmed": true}' ;;
    '{"release"'*) echo '{"released": true}' ;;
    esac
done
"#;

/// One query and key of f16 in two heads, with peers.
#[cfg(unix)]
fn bench_with_peers(python: &Path, json: &Path, more: &[&str]) -> Command {
    let mut command = ferroflash();
    command.args(["bench", "--device", &device::name(), "--dtype", "f16", "--head-dim", "32", "--full", "--seq", "1"]);
    command.args(["--batch", "1", "--heads", "2", "--kernel", "naive,v2", "--json", utf8(json)]).args(SHORT).args(more);
    command.arg("--python").arg(python);
    command
}

#[cfg(unix)]
fn output(command: &mut Command) -> String {
    results_and_status(command).0
}

/// What a run that succeeds says on standard output and on standard error.
#[cfg(unix)]
pub(crate) fn results_and_status(command: &mut Command) -> (String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    assert!(status.success(), "{status}\n{}\n{}", text(&stdout), text(&stderr));
    (text(&stdout), text(&stderr))
}

#[cfg(unix)]
#[test]
fn peers_take_turns_and_are_checked() {
    let folder = folder();
    let (python, json) = (write_program(folder.path(), "python", FAKE_PYTHON), folder.path().join("r.json"));
    // Both masks: after a death, the next question starts another process.
    let (printed, said) = results_and_status(&mut bench_with_peers(&python, &json, &["--peers", "--causal"]));
    assert!(printed.contains("(torch 9.8.7)"), "{printed}");
    assert!(said.contains("x torch flash (") || said.contains("x FlashAttention-4 ("), "{said}");
    // Who is not there is left out, with one line that says why.
    let left_out = said.lines().filter(|line| line.contains("left out")).collect::<Vec<_>>();
    assert!(matches!(&left_out[..], [line] if line.contains("fa3") && line.contains("no library")), "{left_out:?}");
    assert!(printed.contains("FlashAttention-4 4.0.0b1") && printed.contains("torch flash 9.8.7"), "{printed}");
    assert!(printed.contains("not run: torch math at seq 1: RuntimeError: out of memory"), "{printed}");
    assert!(printed.contains("the Python process ended: no answer (a fatal error)"), "{printed}");
    assert!(printed.contains("WRONG") && printed.contains("4 results compared"), "{printed}");
    let record = read(&json);
    assert_eq!(record["environment"]["peers"]["torch"], "9.8.7");
    let names = ["torch cudnn", "torch flash", "torch efficient", "torch math", "triton flex", "FlashAttention-4"];
    assert_eq!(record["sweep"]["peers"], json!(names));
    assert_eq!(cells(&record).len(), 2);
    for cell in cells(&record) {
        let right = [
            ("torch cudnn", "9.8.7", 2.0, 100_000_000_000_u64),
            ("torch flash", "9.8.7", 1.0, 4096),
            ("FlashAttention-4", "4.0.0b1", 1.0, 4096),
        ];
        for (name, version, ms, extra) in right {
            let peer = result(cell, name);
            assert_eq!(peer["version"], version, "{name}");
            assert_eq!(
                (&peer["peer"], &peer["graph"], &peer["extra_bytes"]),
                (&json!(true), &json!(true), &json!(extra))
            );
            assert_eq!((&peer["time_ms"]["median"], &peer["check"]["within"]), (&json!(ms), &json!(true)));
            assert_eq!(peer["samples_ms"].as_array().unwrap().len(), 3);
        }
    }
    let cell = &cells(&record)[1];
    // Wrong, and after it was timed wrong in another way: there is no time.
    let wrong = result(cell, "torch efficient");
    assert_eq!((&wrong["check"]["within"], &wrong["time_ms"]), (&json!(false), &Value::Null));
    assert!(wrong["skipped"].as_str().unwrap().contains("another result"), "{wrong}");
    assert!(result(cell, "torch math")["check"].is_null());
    // It was right before it died, and has no time.
    let dead = result(cell, "triton flex");
    assert!(dead["skipped"].is_string() && dead["time_ms"].is_null() && dead["samples_ms"] == json!([]), "{dead}");
    // Of those that are right, flash is the fastest.
    let v2 = result(cell, "v2");
    let ratio = 1.0 / v2["time_ms"]["median"].as_f64().unwrap();
    assert!((v2["ratio_to_best_peer"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-9, "{v2}");
    // 2 * 8192^3 operations in 2 ms.
    let product = record["ceilings"]["matmul_flops"]["f16"]["value"].as_f64().unwrap();
    assert!((product / 5.4976e14 - 1.0).abs() < 1e-3, "{product}");
    assert_eq!(record["noise"]["pairs"][0]["kernel"], "v2");
}

#[cfg(unix)]
#[test]
fn colours_are_for_those_who_want_them() {
    let folder = folder();
    let (python, json) = (write_program(folder.path(), "python", FAKE_PYTHON), folder.path().join("r.json"));
    let printed = |variables: &[(&str, &str)]| {
        let mut command = bench_with_peers(&python, &json, &["--peers=flash"]);
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").envs(variables.iter().copied());
        output(&mut command)
    };
    assert!(printed(&[("CLICOLOR_FORCE", "1")]).contains('\x1b'));
    assert!(!printed(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).contains('\x1b'));
    assert!(!printed(&[]).contains('\x1b'));
}

/// Each sample of naive, v2, v2 again and a peer after its rest, with a launch ahead.
#[cfg(unix)]
#[test]
fn the_device_rests_before_samples() {
    let folder = folder();
    let (python, json) = (write_program(folder.path(), "python", FAKE_PYTHON), folder.path().join("r.json"));
    let start = Instant::now();
    let printed = output(&mut bench_with_peers(&python, &json, &["--peers", "flash", "--rest", "40"]));
    assert!(start.elapsed() >= Duration::from_millis(4 * 3 * 40), "{:?}", start.elapsed());
    assert!(printed.contains("samples of 0.01 ms 40 ms of rest apart by"), "{printed}");
    let record = read(&json);
    assert_eq!(record["method"]["rest_ms"], 40);
    assert_eq!(result(&cells(&record)[0], "torch flash")["time_ms"]["median"], 16.0);
    let error = bench_with_peers(&python, &json, &["--peers", "flash", "--resume"]).output().unwrap();
    assert!(text(&error.stderr).contains("method.rest_ms is 40 in the file, 0 now"), "{}", text(&error.stderr));
}

#[cfg(unix)]
#[test]
fn without_peers_the_bench_goes_on() {
    let folder = folder();
    let json = folder.path().join("r.json");
    let silent = write_program(folder.path(), "silent", "#!/bin/sh\necho nothing here >&2\n");
    let unavailable = write_program(
        folder.path(),
        "unavailable",
        "#!/bin/sh\necho '{\"unavailable\": \"PyTorch cannot be imported\"}'\n",
    );
    for (python, reason) in [
        (Path::new("/absent/python"), "No such file"),
        (&*silent, "the Python process ended: no answer (nothing here)"),
        (&*unavailable, "PyTorch cannot be imported"),
    ] {
        let printed = output(&mut bench_with_peers(python, &json, &["--peers"]));
        let line = printed.lines().find(|line| line.starts_with("No peers: ")).unwrap_or_else(|| panic!("{printed}"));
        assert!(line.contains(reason) && line.contains(utf8(python)), "{line}");
        let record = read(&json);
        assert!(record["environment"]["peers_missing"].as_str().unwrap().contains(reason));
        assert_eq!((&record["sweep"]["peers"], cells(&record).len()), (&json!([]), 1));
    }
    if !device::is_gpu() {
        let mut command = ferroflash();
        command.args(["bench", "--device", "emulator", "--seq", "8", "--dtype", "f16", "--kernel", "v2", "--peers"]);
        let printed = output(&mut command);
        assert!(printed.contains("No peers: they need a GPU, and this is the emulator"), "{printed}");
    }
    refuses(&["bench", "--python", "python3"], "--peers");
    refuses(&["bench", "--peers", "jax"], "possible values");
    refuses(&["bench", "--peers", "math,math"], "--peers names math twice");
}

/// Who was named and is not there ends the run before the first cell.
#[cfg(unix)]
#[test]
fn a_named_peer_has_to_be_there() {
    let folder = folder();
    let (python, json) = (write_program(folder.path(), "python", FAKE_PYTHON), folder.path().join("r.json"));
    let error = |python: &Path, more: &[&str]| {
        let Output { status, stderr, .. } = bench_with_peers(python, &json, more).output().expect("the program starts");
        assert!(!json.exists(), "{more:?}");
        (status.code(), text(&stderr))
    };
    let (status, said) = error(&python, &["--peers", "fa4,fa3"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("--peers fa3") && said.contains("no library") && said.contains(utf8(&python)), "{said}");
    let (status, said) = error(Path::new("/absent/python"), &["--peers=cudnn,fa3"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("--peers cudnn,fa3: /absent/python: No such file"), "{said}");
    // What is for another operation cannot be used, wherever it is.
    for (peer, operation) in [("flashmla", "decode with multi-head latent attention"), ("quack", "norms, softmax")] {
        let (status, said) = error(&python, &["--peers", &format!("flash,{peer}")]);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains(&format!("--peers {peer} is not accepted")) && said.contains(operation), "{said}");
    }
    if !device::is_gpu() {
        let said = fail(&["bench", "--device", "emulator", "--peers", "fa4", "--kernel", "v2"]);
        assert!(said.contains("--peers fa4: they need a GPU, and this is the emulator"), "{said}");
    }
}

#[cfg(unix)]
#[test]
fn peers_are_listed_without_a_device() {
    let folder = folder();
    let python = write_program(folder.path(), "python", FAKE_PYTHON);
    let printed = succeed(&["bench", "peers", "--python", utf8(&python)]);
    assert!(printed.contains(&format!("{}: torch 9.8.7", utf8(&python))), "{printed}");
    let line =
        |word: &str| printed.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("{word}: {printed}"));
    assert!(line("FlashAttention-4").contains("4.0.0b1") && line("FlashAttention-4").contains("forward attention"));
    assert!(line("FlashMLA").contains("decode with multi-head latent attention"));
    assert!(line("fa3 cannot be imported").contains("no library") && line("quack cannot").contains("No module"));
    let asked = std::fs::read_to_string(folder.path().join("python.asked")).unwrap();
    assert_eq!(asked, "- cudnn,flash,efficient,math,triton,fa3,fa4,flashmla,eager,compile,quack\n");
    let error = fail(&["bench", "peers", "--python", "/absent/python"]);
    assert!(error.contains("no peers: /absent/python"), "{error}");
}

/// The process hears of masks as bounds, and windows are measured beside it.
#[cfg(unix)]
#[test]
fn peers_are_told_the_window() {
    let folder = folder();
    let (python, json) = (write_program(folder.path(), "python", FAKE_PYTHON), folder.path().join("r.json"));
    let more = ["--peers", "fa4", "--causal", "--window", "7/0,all/2", "--kv-seq", "3", "--order-seed", "3"];
    let printed = output(&mut bench_with_peers(&python, &json, &more));
    assert!(printed.contains("window 7/0") && printed.contains("window all/2"), "{printed}");
    let asked = std::fs::read_to_string(folder.path().join("python.asked")).unwrap();
    let mut lines = asked.lines();
    assert_eq!(lines.next(), Some("cuda:0 fa4"));
    let mut bounds: Vec<_> = lines
        .map(|line| {
            let prepare = &serde_json::from_str::<Value>(line).unwrap()["prepare"];
            assert_eq!((&prepare["seq"], &prepare["kv_seq"], &prepare["dtype"]), (&json!(1), &json!(3), &json!("f16")));
            (prepare["window_left"].as_u64(), prepare["window_right"].as_u64())
        })
        .collect();
    bounds.sort();
    assert_eq!(bounds, [(None, None), (None, Some(0)), (None, Some(2)), (Some(7), Some(0))]);
    let record = read(&json);
    assert!(record["method"]["flop_rule"].as_str().unwrap().contains("of windows"), "{}", record["method"]);
    // Row 0 stands at key 2 and sees the keys 0 to 2: of two heads of 32 dims.
    let windowed = cells(&record).iter().find(|cell| cell["problem"]["mask"] == "window 7/0").unwrap();
    assert_eq!(windowed["flops"], 4.0 * 2.0 * 3.0 * 32.0);
}

#[test]
fn presets_are_named_and_scaled() {
    if device::is_gpu() {
        // The full sizes take minutes; the sizes themselves have tests beside the presets.
        return;
    }
    let folder = folder();
    let json = folder.path().join("r.json");
    // One kernel and one head dim of the 36 cells.
    let printed = succeed(&[
        "bench",
        "--preset",
        "paper",
        "--device",
        "emulator",
        "--kernel",
        "v2",
        "--head-dim",
        "64",
        "--json",
        utf8(&json),
    ]);
    assert!(printed.contains("Sweep: paper with options, 12 cells"), "{printed}");
    assert!(
        printed.contains("Smaller than on a GPU: tokens and sequence lengths are those of the papers over 32"),
        "{printed}"
    );
    assert!(printed.contains("COUNTS"), "{printed}");
    let record = read(&json);
    assert!(record["sweep"]["scaled"].is_string() && record["ceilings"].is_null() && record["noise"].is_null());
    assert_eq!(cells(&record).len(), 12);
    for cell in cells(&record) {
        let problem = &cell["problem"];
        let number = |name: &str| problem[name].as_u64().unwrap();
        assert_eq!((number("batch") * number("seq"), number("q_heads")), (512, 4));
        assert!(result(cell, "v2")["counters"]["tensor_flops"].as_u64().unwrap() > 0);
        assert!(result(cell, "v2")["time_ms"].is_null());
    }
    refuses(&["bench", "--preset", "huge"], "possible values: paper, memory, seqlen, quick");
}

#[test]
fn sweeps_come_from_files() {
    let folder = folder();
    let sweep = write_sweep(
        folder.path(),
        "kernels = [\"v2\"]\n[[group]]\ndtype = [\"f16\"]\nmask = [\"causal\"]\nhead_dim = [32]\nseq = [3]\nkv_seq = 40\n\
         heads = 2\nkv_heads = 1\n[[group]]\ndtype = [\"f32\"]\nmask = [\"full\"]\nhead_dim = [32]\nseq = [5]\nheads = 1\n",
    );
    let json = folder.path().join("r.json");
    let bench = |more: &[&str]| {
        let device = device::name();
        let fixed = ["bench", "--device", &device, "--sweep", utf8(&sweep), "--json", utf8(&json)];
        succeed(&[&fixed[..], &["--repeats", "3", "--warmup", "1"], more].concat());
        read(&json)
    };
    let record = bench(&[]);
    assert_eq!(record["sweep"]["name"], utf8(&sweep));
    assert_eq!(record["sweep"]["kernels"], json!(["v2"]));
    let problem = &cells(&record)[0]["problem"];
    assert_eq!((&problem["seq"], &problem["kv_seq"], &problem["kv_heads"]), (&json!(3), &json!(40), &json!(1)));
    assert_eq!(cells(&record)[1]["problem"]["dtype"], "f32");
    // The command line has the last word.
    assert_eq!(bench(&["--kernel", "naive"])["sweep"]["kernels"], json!(["naive"]));

    refuses(&["bench", "--sweep", "/absent/sweep.toml"], "cannot read --sweep /absent/sweep.toml");
    let wrong = write_sweep(folder.path(), "[[group]]\ndtype = [\"f16\"]\nhead_dim = [12]\nseq = [8]\n");
    refuses(
        &["bench", "--device", &device::name(), "--sweep", utf8(&wrong)],
        "sweep.toml:1: in this group: head_dim 12 is not accepted",
    );
    refuses(&["bench", "--sweep", utf8(&wrong), "--seq", "8"], "cannot be used with");
}

/// Cells without what is measured anew in another run of the same sweep: times, ceilings, clocks.
fn comparable(record: &Value) -> Value {
    let mut record = record.clone();
    for cell in record["cells"].as_array_mut().unwrap() {
        cell["telemetry"] = Value::Null;
        cell["roofline"] = Value::Null;
        for result in cell["results"].as_array_mut().unwrap() {
            for field in ["launches", "samples_ms", "time_ms", "tflops", "speedup_over_naive", "bound_fraction"] {
                result[field] = Value::Null;
            }
        }
    }
    record
}

#[test]
fn a_killed_sweep_goes_on() {
    let folder = folder();
    let json = |name: &str| folder.path().join(name);
    let command = |json: &Path, more: &[&str]| {
        let mut command = ferroflash();
        command.args(["bench", "--device", &device::name(), "--dtype", "f16", "--head-dim", "64", "--causal"]);
        command.args(["--seq", "32,64,96,128,160,192,224,256", "--batch", "1", "--heads", "2", "--kernel", "naive,v2"]);
        command.args(["--repeats", "3", "--warmup", "100", "--json", utf8(json)]).args(more);
        command
    };
    let (killed, whole) = (json("killed.json"), json("whole.json"));
    let mut child = command(&killed, &[]).stdout(std::process::Stdio::null()).spawn().expect("the program starts");
    let deadline = Instant::now() + Duration::from_secs(120);
    // The file is whole at any time, so that it can be read while the sweep runs.
    while !killed.exists() || cells(&read(&killed)).is_empty() {
        assert!(Instant::now() < deadline, "no cell was written");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = read(&killed);
    let done = cells(&before).len();
    assert!((1..8).contains(&done), "{done} cells were done");

    let resume = || command(&killed, &["--resume"]).output().expect("the program starts");
    let printed = resume();
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    let (printed, said) = (text(&printed.stdout), text(&printed.stderr));
    assert!(printed.contains(&format!("8 cells, of which {done} were done before")), "{printed}");
    assert!(said.contains(&format!("[{0}/{0}", 8 - done)), "{said}");
    assert!(printed.contains("16 results compared"), "{printed}");
    let after = read(&killed);
    assert_same(&after["environment"], &before["environment"], "the environment");
    for cell in cells(&before) {
        let problem = &cell["problem"];
        let kept = cells(&after).iter().find(|kept| kept["problem"] == *problem);
        assert_same(kept.unwrap_or(&Value::Null), cell, &format!("what was done before of {problem}"));
    }
    assert!(command(&whole, &[]).output().unwrap().status.success());
    assert_same(&comparable(&after)["cells"], &comparable(&read(&whole))["cells"], "a resumed sweep");
    // Nothing is left to do: the file stays as it is.
    let text_before = std::fs::read_to_string(&killed).unwrap();
    assert!(resume().status.success());
    let same = std::fs::read_to_string(&killed).unwrap() == text_before;
    assert!(same, "a sweep with nothing left to do changed its file");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn only_the_same_sweep_is_resumed() {
    let folder = folder();
    let json = folder.path().join("r.json");
    let device = device::name();
    let run = |more: &[&str], works: bool| {
        let fixed = ["bench", "--device", &device, "--dtype", "f16", "--head-dim", "32", "--causal", "--batch", "1"];
        let rest = ["--heads", "1", "--kernel", "v2", "--repeats", "3", "--warmup", "1", "--json", utf8(&json)];
        let arguments = [&fixed[..], &rest[..], more].concat();
        if works { succeed(&arguments) } else { fail(&arguments) }
    };
    // Nothing there yet is a start.
    run(&["--seq", "8", "--resume"], true);
    let error = run(&["--seq", "8,16", "--resume"], false);
    assert!(error.contains("it holds another run") && error.contains("sweep.problems"), "{error}");
    let error = run(&["--seq", "8", "--seed", "1", "--resume"], false);
    assert!(error.contains("method.seed is 0 in the file, 1 now"), "{error}");
    std::fs::write(&json, "{\"kind\": \"ferroflash-bench\", \"schema_version\": 1}").unwrap();
    let error = run(&["--seq", "8", "--resume"], false);
    assert!(error.contains("schema_version is 1; this build reads 2"), "{error}");
    // Without --resume the file is written anew.
    run(&["--seq", "8"], true);
    refuses(&["bench", "--resume"], "--json");
}

#[test]
fn every_policy_of_the_cache_measures() {
    let folder = folder();
    let json = folder.path().join("r.json");
    for l2 in ["warm", "flush", "rotate"] {
        let device = device::name();
        let fixed = ["bench", "--device", &device, "--dtype", "f16", "--head-dim", "32", "--seq", "24", "--batch", "1"];
        let rest = ["--heads", "1", "--full", "--l2", l2, "--json", utf8(&json)];
        succeed(&[&fixed[..], &rest[..], &SHORT[..]].concat());
        let record = read(&json);
        assert_eq!(record["method"]["l2"], l2);
        for result in cells(&record)[0]["results"].as_array().unwrap() {
            assert_eq!(result["samples_ms"].as_array().unwrap().len(), 3, "{l2}: {result}");
            assert!(result["time_ms"]["median"].as_f64().unwrap() > 0.0);
        }
    }
    refuses(&["bench", "--sample", "0"], "--sample 0 is not accepted");
}

#[test]
fn values_are_named_and_belong_to_the_method() {
    let folder = folder();
    let json = folder.path().join("r.json");
    let device = device::name();
    let cell = [
        "bench",
        "--device",
        &device,
        "--dtype",
        "f16,bf16",
        "--head-dim",
        "32",
        "--seq",
        "24",
        "--batch",
        "1",
        "--full",
    ];
    let run = |values: &str, more: &[&str]| {
        let rest = ["--heads", "1", "--kernel", "v2", "--values", values, "--json", utf8(&json)];
        [&cell[..], &rest[..], &SHORT[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let succeed = |args: Vec<String>| succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    for (values, described) in [("normal", "rounded to the element type"), ("bf16", "rounded to bf16 and then")] {
        succeed(run(values, &[]));
        let inputs = read(&json)["method"]["inputs"].as_str().unwrap().to_owned();
        assert!(inputs.contains(described), "{inputs}");
    }
    let other = run("normal", &["--resume"]);
    refuses(&other.iter().map(String::as_str).collect::<Vec<_>>(), "inputs");
}

#[test]
fn ceilings_are_measured_alone() {
    if !device::is_gpu() {
        refuses(&["bench", "--ceilings", "--device", "emulator"], "--ceilings needs a GPU");
    }
    let folder = folder();
    let json = folder.path().join("r.json");
    let device = device::name();
    let printed = succeed(&["bench", "--ceilings", "--device", &device, "--clock", "host", "--json", utf8(&json)]);
    assert!(printed.contains("Ceilings:") && !printed.contains("TFLOP/s;"), "{printed}");
    let record = read(&json);
    assert!(record["ceilings"]["copy_bytes_per_second"]["value"].as_f64().unwrap() > 0.0);
    assert_eq!(record["ceilings"]["copy_bytes_per_second"]["measured"], true);
    assert_eq!(cells(&record).len(), 0);
    // Where v3 runs, the table of nominal rates knows the chip.
    if device::is_gpu() && runs::<f16>(&device::shared().device, Kernel::V3) {
        assert!(record["ceilings"]["matmul_flops"]["bf16"]["value"].as_f64().unwrap() > 1e14);
    }
}
