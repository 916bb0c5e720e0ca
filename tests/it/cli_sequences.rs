//! `ferroflash bench --preset decode`, `--preset prefill` and `--preset varlen`.

#[cfg(unix)]
use crate::cli_bench::{FAKE_PYTHON, results_and_status, write_program};
use crate::cli_bench::{SHORT, cells, folder, read, result, utf8};
use crate::support::device;
#[cfg(unix)]
use crate::support::program::ferroflash;
use crate::support::program::{refuses, succeed};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The preset on the device of the tests: on a GPU the cells that are small there too.
fn bench(preset: &str, json: &str, more: &[&str]) -> String {
    let device = device::name();
    let mut arguments = vec!["bench", "--device", &device, "--preset", preset, "--json", json];
    if device::is_gpu() {
        arguments.extend(["--batch", if preset == "varlen" { "64" } else { "1" }]);
        arguments.extend(["--repeats", "3", "--warmup", "1", "--sample", "0.01"]);
    }
    arguments.extend(more);
    succeed(&arguments)
}

/// The names of where the rows of the cells are.
fn places(record: &Value) -> BTreeSet<&str> {
    cells(record).iter().map(|cell| cell["problem"]["sequences"].as_str().unwrap_or("equal")).collect()
}

#[test]
fn prefill_visits_caches_and_pages() {
    let folder = folder();
    let json = folder.path().join("r.json");
    bench("prefill", utf8(&json), &[]);
    let record = read(&json);
    let count = if device::is_gpu() { 6 } else { 10 };
    assert_eq!((cells(&record).len(), places(&record)), (count, BTreeSet::from(["cache", "pages of 64"])));
}

#[test]
fn decode_visits_caches_and_pages() {
    let folder = folder();
    let json = folder.path().join("r.json");
    let printed = bench("decode", utf8(&json), &[]);
    let record = read(&json);
    let count = if device::is_gpu() { 8 } else { 28 };
    assert_eq!((cells(&record).len(), places(&record)), (count, BTreeSet::from(["cache", "pages of 64"])));
    assert!(printed.contains(&format!("{count} results compared")), "{printed}");
    assert_eq!(record["sweep"]["kernels"], json!(["ferroflash"]));
    assert_eq!(record["sweep"]["scaled"].is_string(), !device::is_gpu());
    for cell in cells(&record) {
        let problem = &cell["problem"];
        let number = |name: &str| problem[name].as_u64().unwrap();
        let [batch, rows, keys, dim] = ["batch", "seq", "kv_seq", "head_dim"].map(number);
        assert_eq!(cell["kv_bytes"], json!(2 * batch * keys * number("kv_heads") * dim * 2));
        // Each row sees one key more than the one before it; the last sees all.
        let seen = rows * keys - rows * (rows - 1) / 2;
        assert_eq!(cell["flops"].as_f64().unwrap(), (4 * batch * number("q_heads") * seen * dim) as f64);
        let ours = result(cell, "ferroflash");
        let splits = ours["splits"].as_u64().unwrap();
        // One that attends, and one that puts splits together. v3, for 16 rows of 4 heads, has a list of tiles before, and puts pages together, too.
        let symbols: Vec<_> =
            ours["symbols"].as_array().unwrap().iter().map(|symbol| symbol.as_str().unwrap()).collect();
        let merges = splits > 1 || symbols.iter().any(|symbol| symbol.starts_with("v3_split"));
        let lists = symbols[0] == "packed_tiles";
        assert_eq!(symbols.len(), 1 + usize::from(merges) + usize::from(lists), "{ours}");
        if !device::is_gpu() {
            assert!(ours["counters"]["global_bytes_read"].as_f64().unwrap() > cell["kv_bytes"].as_f64().unwrap());
            assert_eq!(ours["kv_bytes_per_second"], Value::Null);
        }
    }
    // The record is a record like others.
    let compared = succeed(&["compare", utf8(&json), utf8(&json)]);
    assert!(compared.contains("0 worse"), "{compared}");
}

#[test]
fn varlen_visits_packed_sequences_and_equal_ones() {
    let folder = folder();
    let json = folder.path().join("r.json");
    bench("varlen", utf8(&json), &[]);
    let record = read(&json);
    if device::is_gpu() {
        assert_eq!(places(&record), BTreeSet::from(["equal", "packed 1x32k+63x512", "packed 64x1024"]));
        return;
    }
    let lengths = ["equal", "packed 1x256+7x16", "packed 16x32", "packed short trace"];
    assert_eq!((cells(&record).len(), places(&record)), (8, BTreeSet::from(lengths)));
    let cell = cells(&record).iter().find(|cell| cell["problem"]["sequences"] == lengths[1]).unwrap();
    let problem = &cell["problem"];
    assert_eq!((&problem["batch"], &problem["seq"], &problem["kv_seq"]), (&json!(8), &json!(368), &json!(368)));
    let seen = (256 * 257 + 7 * 16 * 17) / 2;
    assert_eq!(cell["flops"].as_f64().unwrap(), f64::from(4 * 2 * 128 * seen));
    let ours = result(cell, "ferroflash");
    assert_eq!((&ours["splits"], &cell["kv_bytes"]), (&json!(1), &Value::Null));
}

/// Times of the emulator say nothing; that there are some, with what follows from them, does.
#[test]
fn times_of_caches_are_bytes_a_second() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (json, csv, html, plot) = (at("r.json"), at("r.csv"), at("r.html"), at("plot"));
    let mut more = vec!["--pages", "none,1,16", "--kv-seq", if device::is_gpu() { "1024" } else { "16" }, "--cold"];
    more.extend(SHORT);
    more.extend(["--csv", utf8(&csv), "--html", utf8(&html), "--plot", utf8(&plot)]);
    let printed = succeed(
        &[&["bench", "--device", &device::name(), "--preset", "decode", "--json", utf8(&json)], &more[..]].concat(),
    );
    assert!(printed.contains("bf16, causal, pages of 16") && printed.contains("GB/s"), "{printed}");
    assert!(printed.contains("of copy") && printed.contains("level-two cache rotate"), "{printed}");
    assert!(printed.lines().all(|line| !line.contains('│') || line.chars().count() <= 100), "{printed}");
    let record = read(&json);
    assert_eq!(record["sweep"]["name"], "decode with options");
    assert_eq!(places(&record), BTreeSet::from(["cache", "pages of 1", "pages of 16"]));
    for cell in cells(&record) {
        let ours = result(cell, "ferroflash");
        let rate = cell["kv_bytes"].as_f64().unwrap() / (ours["time_ms"]["median"].as_f64().unwrap() * 1e-3);
        assert!((ours["kv_bytes_per_second"].as_f64().unwrap() / rate - 1.0).abs() < 1e-9, "{ours}");
        if device::is_gpu() {
            // A graph has 20 calls at least, on each copy of the tensors as many.
            assert!(ours["launches"].as_u64().unwrap() >= 20, "{ours}");
        }
    }
    let csv = std::fs::read_to_string(csv).unwrap();
    assert!(csv.lines().next().unwrap().contains(",sequences,kv_bytes,") && csv.contains("pages of 1,"), "{csv}");
    assert!(std::fs::read_to_string(html).unwrap().contains("pages of 16"));
}

/// The process hears where the rows are.
#[cfg(unix)]
#[test]
fn peers_are_told_where_the_rows_are() {
    let folder = folder();
    let python = write_program(folder.path(), "python", FAKE_PYTHON);
    let prepared = |preset: &str, more: &[&str]| -> (Vec<Value>, Value) {
        let json = folder.path().join("r.json");
        let asked = folder.path().join("python.asked");
        let _ = std::fs::remove_file(&asked);
        let mut command = ferroflash();
        command.args(["bench", "--device", &device::name(), "--preset", preset, "--json", utf8(&json)]);
        command.args(SHORT).args(["--peers", "flash", "--python"]).arg(&python).args(more);
        let (printed, _) = results_and_status(&mut command);
        assert!(printed.contains("vs best peer"), "{printed}");
        let asked = std::fs::read_to_string(asked).unwrap();
        let lines = asked.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        (lines.map(|line| line["prepare"].clone()).collect(), read(&json))
    };
    let keys = if device::is_gpu() { "1024" } else { "16" };
    let (asked, record) = prepared("decode", &["--kv-seq", keys, "--order-seed", "1"]);
    let places: Vec<&Value> = asked.iter().map(|prepare| &prepare["sequences"]).collect();
    assert!(places.contains(&&json!("cache")) && places.contains(&&json!({"pages": 64})), "{places:?}");
    // 2^30 bytes in 1 ms.
    let read = record["ceilings"]["read_bytes_per_second"]["value"].as_f64().unwrap();
    assert!((read / 1.073_741_824e12 - 1.0).abs() < 1e-6, "{read}");
    for cell in cells(&record) {
        let peer = result(cell, "torch flash");
        assert_eq!((&peer["time_ms"]["median"], &peer["splits"]), (&json!(1.0), &Value::Null));
        let rate = cell["kv_bytes"].as_f64().unwrap() * 1e3;
        assert!((peer["kv_bytes_per_second"].as_f64().unwrap() / rate - 1.0).abs() < 1e-9, "{peer}");
    }
    if !device::is_gpu() {
        let (asked, record) = prepared("varlen", &["--heads", "4", "--seq", "301"]);
        assert_eq!(asked[0]["sequences"], json!({"packed": {"sequences": 16, "longest": 78}}));
        assert_eq!((&asked[0]["batch"], &asked[0]["seq"], &asked[0]["calls"]), (&json!(1), &json!(301), &json!(1)));
        assert!(record["ceilings"].get("read_bytes_per_second").is_none(), "{}", record["ceilings"]);
    }
}

#[test]
fn what_these_presets_do_not_take_is_refused() {
    let refused = |arguments: &[&str], message: &str| {
        refuses(&[&["bench", "--device", &device::name()], arguments].concat(), message);
    };
    refused(&["--preset", "varlen", "--pages", "16"], "--pages is for --preset decode and prefill");
    refused(&["--preset", "decode", "--pages", "0"], "none for a contiguous cache");
    refused(&["--preset", "decode", "--kernel", "v2"], "the library chooses the kernels");
    refused(&["--preset", "decode", "--l2", "flush"], "--l2 rotate is");
    refused(&["--preset", "decode", "--l2", "warm", "--cold"], "cannot be used with");
    refused(&["--preset", "varlen", "--pass", "backward"], "which is of forward passes");
    refused(&["--preset", "varlen", "--batch", "5"], "no cell of --preset varlen");
}
