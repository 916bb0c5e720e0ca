//! `ferroflash bench --pass`: the backward pass and training steps.

#[cfg(unix)]
use crate::cli_bench::{FAKE_PYTHON, results_and_status, write_program};
use crate::cli_bench::{SHORT, cells, folder, read, result, utf8, write_sweep};
use crate::support::device;
#[cfg(unix)]
use crate::support::program::ferroflash;
use crate::support::program::{fail, refuses, succeed};
use serde_json::{Value, json};

/// Sizes of the cell of these tests.
const DIM: usize = 32;
const HEADS: usize = 2;
const ROWS: usize = 40;
const KEYS: usize = 56;

/// The options of a cell with a group of two heads.
fn cell<'a>(device: &'a str, pass: &'a str, json: &'a str) -> Vec<&'a str> {
    let options = "--dtype bf16 --head-dim 32 --causal --seq 40 --kv-seq 56 --batch 1 --heads 2 --kv-heads 1";
    let mut arguments = vec!["bench", "--device", device, "--pass", pass, "--json", json];
    arguments.extend(options.split(' '));
    arguments
}

#[test]
fn gradients_are_checked_and_counted() {
    let (folder, device) = (folder(), device::name());
    let forward = folder.path().join("forward.json");
    succeed(&cell(&device, "forward", utf8(&forward)));
    let forward = read(&forward);
    let flops = cells(&forward)[0]["flops"].as_f64().unwrap();
    assert_eq!(forward["method"]["pass"], "forward");
    assert_eq!(result(&cells(&forward)[0], "v2")["check"]["gradients"], json!([]));
    let lse_bytes = HEADS * ROWS * 4;
    // Two numbers for each row of whole blocks of 128, and a sum for each number of dq, in whole tiles of 64 columns.
    let workspace = HEADS * 128 * (8 + 64 * 4);
    for (pass, factor, extra, first) in [("backward", 2.5, workspace, ""), ("both", 3.5, workspace + lse_bytes, "v")] {
        let json = folder.path().join(pass);
        let printed = succeed(&cell(&device, pass, utf8(&json)));
        assert!(printed.contains("1 results compared") && printed.contains("Pass: "), "{printed}");
        let record = read(&json);
        assert_eq!((&record["method"]["pass"], &record["sweep"]["kernels"]), (&json!(pass), &json!(["ferroflash"])));
        let cell = &cells(&record)[0];
        assert_eq!(cell["flops"].as_f64().unwrap(), factor * flops);
        let ours = result(cell, "ferroflash");
        assert_eq!(ours["extra_bytes"].as_u64().unwrap(), extra as u64, "{pass}");
        assert!(ours["symbols"][0].as_str().unwrap().starts_with(first), "{}", ours["symbols"]);
        assert_eq!(
            ours["symbols"].as_array().unwrap().len(),
            if pass == "both" { 4 } else { 3 },
            "{}",
            ours["symbols"]
        );
        let check = &ours["check"];
        assert_eq!((&check["within"], &check["lse"].is_null()), (&json!(true), &(pass == "backward")));
        let tensors: Vec<&Value> = check["gradients"].as_array().unwrap().iter().map(|one| &one["tensor"]).collect();
        assert_eq!(tensors, ["dq", "dk", "dv"]);
        assert_eq!(check["rows"], HEADS * ROWS);
        assert!(check["gradients"].as_array().unwrap().iter().all(|one| one["max_error"].as_f64().unwrap() > 0.0));
        // Every product of a visible pair of row and key is counted.
        if let Some(flops) = ours["counters"]["tensor_flops"].as_f64() {
            assert!(flops >= 2.5 * (4 * HEADS * DIM * ROWS * KEYS / 2) as f64, "{flops}");
        }
    }
}

#[test]
fn every_policy_of_the_cache_times_every_pass() {
    let (folder, device) = (folder(), device::name());
    let json = folder.path().join("r.json");
    for pass in ["backward", "both"] {
        for l2 in ["warm", "flush", "rotate"] {
            let arguments = [&cell(&device, pass, utf8(&json))[..], &SHORT, &["--l2", l2]].concat();
            let printed = succeed(&arguments);
            assert!(printed.contains(&format!("time of {pass}")), "{printed}");
            let record = read(&json);
            let ours = result(&cells(&record)[0], "ferroflash");
            let (tflops, ms) = (ours["tflops"].as_f64().unwrap(), ours["time_ms"]["median"].as_f64().unwrap());
            let flops = cells(&record)[0]["flops"].as_f64().unwrap();
            assert!((tflops * ms * 1e9 / flops - 1.0).abs() < 1e-9, "{pass} {l2}");
            assert_eq!(record["noise"]["pairs"][0]["kernel"], "ferroflash");
        }
    }
}

/// Naive beside what the library chooses: what each holds in memory, and how much is saved.
#[test]
fn naive_is_measured_beside_the_choice() {
    let (folder, device) = (folder(), device::name());
    let json = folder.path().join("r.json");
    let scores = HEADS * ROWS * KEYS;
    for (pass, launches) in [("backward", 6), ("both", 9)] {
        succeed(&[&cell(&device, pass, utf8(&json))[..], &["--kernel", "naive"]].concat());
        let record = read(&json);
        assert_eq!(record["sweep"]["kernels"], json!(["naive", "ferroflash"]));
        let cell = &cells(&record)[0];
        let [naive, chosen] = ["naive", "ferroflash"].map(|name| result(cell, name));
        let bytes = |of: &Value| of["extra_bytes"].as_u64().unwrap() as usize;
        // The log-sum-exp lives on from the forward pass, whose scores do not.
        let lse_bytes = if pass == "both" { HEADS * ROWS * 4 } else { 0 };
        assert_eq!(bytes(naive), 6 * scores + HEADS * 128 * 8 + lse_bytes, "{pass}");
        let saved = 100.0 * (1.0 - bytes(chosen) as f64 / bytes(naive) as f64);
        assert!((chosen["saved_percent"].as_f64().unwrap() - saved).abs() < 1e-9, "{chosen}");
        assert_eq!((naive["symbols"].as_array().unwrap().len(), &naive["check"]["within"]), (launches, &json!(true)));
    }
}

/// Equal bits beside what the library chooses: of more blocks of keys than two, by the kernel that adds in order where there is one.
#[test]
fn equal_bits_are_measured_beside_the_choice() {
    let (folder, device) = (folder(), device::name());
    let json = folder.path().join("r.json");
    let options = "--pass backward --deterministic --dtype bf16 --head-dim 64 --causal --seq 300 --batch 1 --heads 2";
    let arguments =
        [&["bench", "--device", &device, "--json", utf8(&json)][..], &options.split(' ').collect::<Vec<_>>()];
    succeed(&arguments.concat());
    let record = read(&json);
    assert_eq!(record["sweep"]["kernels"], json!(["ferroflash", "deterministic"]));
    let [chosen, ours] = ["ferroflash", "deterministic"].map(|name| result(&cells(&record)[0], name).clone());
    assert_eq!((&chosen["check"]["within"], &ours["check"]["within"]), (&json!(true), &json!(true)));
    // Hopper and the emulator have the fused kernels.
    if chosen["symbols"][1] == "backward_fused_bf16_d64" {
        assert_eq!(ours["symbols"][1], "backward_ordered_bf16_d64");
        // Two heads of 384 rows, a counter for every 32.
        let counters = 2 * 384 / 32 * 4;
        assert_eq!(ours["extra_bytes"].as_u64().unwrap(), chosen["extra_bytes"].as_u64().unwrap() + counters);
    }
    refuses(&["bench", "--device", &device, "--deterministic"], "--deterministic is not accepted with --pass forward");
}

#[test]
fn other_kernels_are_for_the_forward_pass() {
    let (folder, device) = (folder(), device::name());
    let json = folder.path().join("r.json");
    for pass in ["backward", "both"] {
        let arguments = [&cell(&device, pass, utf8(&json))[..], &["--kernel", "naive,v2"]].concat();
        let expected = format!(
            "kernel v2 is not accepted with --pass {pass}, where there is naive, and beside it always what the library chooses"
        );
        refuses(&arguments, &expected);
        let file = write_sweep(
            folder.path(),
            "kernels = [\"v2\"]\n[[group]]\ndtype = [\"bf16\"]\nhead_dim = [64]\nseq = [8]\nheads = 1\n",
        );
        refuses(
            &["bench", "--device", &device, "--pass", pass, "--sweep", utf8(&file)],
            "--pass forward takes naive, v1",
        );
    }
    refuses(&["bench", "--pass", "sideways"], "forward, backward, both");
}

#[test]
fn only_equal_passes_are_compared() {
    let (folder, device) = (folder(), device::name());
    let paths = ["forward", "backward"].map(|pass| {
        let json = folder.path().join(pass);
        succeed(&cell(&device, pass, utf8(&json)));
        json
    });
    let [forward, backward] = paths.each_ref().map(|path| utf8(path));
    let expected = "the records are of different passes, forward and backward, which cannot be compared";
    refuses(&["compare", forward, backward], expected);
    refuses(&["compare", forward, backward, "--across"], expected);
    succeed(&["compare", backward, backward]);
    // Records had no pass before there was another than forward.
    let mut old = read(&paths[0]);
    assert!(old["method"].as_object_mut().unwrap().remove("pass").is_some());
    let path = folder.path().join("old");
    std::fs::write(&path, old.to_string()).unwrap();
    succeed(&["compare", utf8(&path), forward]);
    assert!(fail(&["compare", utf8(&path), backward]).contains("forward and backward"));
}

/// With one row and one key the weight is 1 whatever q and k are: their gradients are 0, and that of v is that of the output.
#[cfg(unix)]
#[test]
fn gradients_of_peers_are_checked() {
    let (folder, device) = (folder(), device::name());
    let (python, json) = (write_program(folder.path(), "python", FAKE_PYTHON), folder.path().join("r.json"));
    for pass in ["backward", "both"] {
        let mut command = ferroflash();
        command.args(["bench", "--device", &device, "--dtype", "f16", "--head-dim", "32", "--full", "--seq", "1"]);
        command.args(["--batch", "1", "--heads", "2", "--pass", pass, "--peers", "flash,efficient,math"]).args(SHORT);
        let (printed, _) = results_and_status(command.arg("--json").arg(&json).arg("--python").arg(&python));
        assert!(printed.contains("not run: torch math at seq 1: RuntimeError: out of memory"), "{printed}");
        let record = read(&json);
        let cell = &cells(&record)[0];
        let right = result(cell, "torch flash");
        assert_eq!((&right["check"]["within"], &right["time_ms"]["median"]), (&json!(true), &json!(1.0)), "{right}");
        let dv = &right["check"]["gradients"][2];
        assert_eq!((&dv["tensor"], &dv["max_error"]), (&json!("dv"), &json!(0.0)));
        assert_eq!(result(cell, "torch efficient")["check"]["within"], false);
        let asked = std::fs::read_to_string(folder.path().join("python.asked")).unwrap();
        let last: Value = serde_json::from_str(asked.lines().last().unwrap()).unwrap();
        assert_eq!(last["prepare"]["pass"], pass);
    }
}

/// Operators on rows have a record of their own, and refuse what means nothing for them.
#[test]
fn operators_are_measured_and_checked() {
    if device::is_gpu() {
        // The same through the same code, but 67 million elements a cell.
        return;
    }
    let folder = folder();
    let json = folder.path().join("r.json");
    let operators =
        ["bench", "--operator", "rmsnorm,layernorm,softmax,cross_entropy,rotary,embedding", "--device", "emulator"];
    for pass in ["forward", "backward"] {
        let printed = succeed(&[&operators[..], &["--pass", pass, "--json", utf8(&json)]].concat());
        assert!(printed.contains("12 results compared with the f64 reference"), "{printed}");
        let record = read(&json);
        assert_eq!(record["kind"], "ferroflash operators");
        let cells = cells(&record);
        let named = |name: &str| cells.iter().filter(|cell| cell["operator"] == name && cell["pass"] == pass).count();
        let names = ["rmsnorm", "layernorm", "softmax", "cross_entropy", "rotary", "embedding"];
        assert_eq!(names.map(named), [2; 6], "{record}");
        // x and out, and 128 weights; or x, dout and dx, weights and their gradients, and one statistic a row.
        let expected = if pass == "forward" { (2 * 16 + 1) * 256 } else { (3 * 16 + 2) * 256 + 16 * 4 };
        assert_eq!(cells[0]["bytes"], expected, "{record}");
        // x and out; or out, dout and dx. Logits, and a target and a loss a row; or logits and their gradients, and three numbers a row.
        let (softmax, cross_entropy) = if pass == "forward" { (2, 16 * (256 + 8)) } else { (3, 16 * (2 * 256 + 12)) };
        assert_eq!((&cells[4]["bytes"], &cells[6]["bytes"]), (&json!(softmax * 16 * 256), &json!(cross_entropy)));
        // x and out, and both tables of f32; out, ids and as many rows of the table, or dout, ids and a gradient of four times as many.
        assert_eq!(cells[8]["bytes"], 2 * 16 * 256 + 2 * 16 * 64 * 4, "{record}");
        let tables = if pass == "forward" { 16 } else { 64 };
        assert_eq!(cells[10]["bytes"], (16 + tables) * 256 + 16 * 4, "{record}");
        let losses = ["bench", "--operator", "linear-cross-entropy", "--device", "emulator"];
        let printed = succeed(&[&losses[..], &["--pass", pass, "--json", utf8(&json)]].concat());
        assert!(printed.contains("2 results compared with the f64 reference"), "{printed}");
        // 16 rows of 64 numbers and 24 classes, with a target and a loss a row; or these twice, with three numbers a row.
        let (twice, numbers) = if pass == "forward" { (1, 2) } else { (2, 3) };
        let record = read(&json);
        assert_eq!(self::cells(&record)[0]["bytes"], twice * (16 + 24) * 64 * 2 + 16 * numbers * 4, "{record}");
    }
    let lists = ["bench", "--operator", "adamw,gradient-norm", "--device", "emulator", "--dtype", "bf16,f32"];
    let sizes = ["--rows", "3", "--columns", "1000", "--json", utf8(&json)];
    let printed = succeed(&[&lists[..], &sizes].concat());
    assert!(printed.contains("4 results compared with the f64 reference"), "{printed}");
    let record = read(&json);
    // Parameters and moments twice, gradients once; and gradients alone.
    let bytes: Vec<&Value> = cells(&record).iter().map(|cell| &cell["bytes"]).collect();
    assert_eq!(bytes, [&json!(3000 * 22), &json!(3000 * 28), &json!(3000 * 2), &json!(3000 * 4)], "{record}");
    refuses(&[&lists[..], &["--pass", "backward"]].concat(), "adamw has one pass");
    for (more, said) in [
        (&["--head-dim", "64"][..], "cannot be used with"),
        (&["--l2", "flush"], "cannot be used with"),
        (&["--pass", "both"], "--pass both is not accepted with --operator"),
        (&["--rows", "0", "--columns", "8"], "--rows and --columns of 0 are not accepted"),
        (&["--peers", "fa4"], "--peers fa4 is not accepted"),
    ] {
        refuses(&[&operators[..], more].concat(), said);
    }
}
