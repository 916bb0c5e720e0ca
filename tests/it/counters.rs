//! What the kernels do, counted by the emulator: a performance test that never flakes, and the IO-awareness of FlashAttention in
//! exact numbers.
//!
//! `docs/benchmarks/counters.json` holds the counts and `docs/io.md` the tables made of them. After a change on purpose,
//! `FERROFLASH_UPDATE_COUNTERS=1 cargo test -p ferroflash_tests --test it counters` writes both anew.

use crate::support::device;
use ferroflash::{Attention, DType, Device, EmulatorConfig, Kernel, Layout, Pass, Shape, Tensor, Variant};
use kernel_spec::FeatureSet;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The committed files, so that the check needs no source tree.
const COMMITTED: &str = include_str!("../../docs/benchmarks/counters.json");
const TABLES: &str = include_str!("../../docs/io.md");

const ROWS: [usize; 5] = [128, 256, 512, 1024, 2048];

/// Problems of one head without a mask: kernel, element type, head dim, largest number of rows. f32 kernels compute without tensor
/// instructions, which the emulator is slow at.
const SERIES: [(Kernel, DType, usize, usize); 11] = [
    (Kernel::Naive, DType::Bf16, 64, 2048),
    (Kernel::V1, DType::Bf16, 64, 2048),
    (Kernel::V2, DType::Bf16, 64, 2048),
    (Kernel::V3, DType::Bf16, 64, 2048),
    (Kernel::Naive, DType::Bf16, 128, 2048),
    (Kernel::V1, DType::Bf16, 128, 2048),
    (Kernel::V2, DType::Bf16, 128, 2048),
    (Kernel::V3, DType::Bf16, 128, 2048),
    (Kernel::Naive, DType::F32, 64, 512),
    (Kernel::V1, DType::F32, 64, 512),
    (Kernel::V2, DType::F32, 64, 512),
];

/// Counts that may differ by this share between builds of core by other distributors: the compiler is pinned, the order in which it
/// meets core's functions is not. Everything that is not a number of instructions is exact: bytes, sectors, bank conflicts, tensor
/// operations and special functions follow from the algorithm and its tiles.
const INSTRUCTION_TOLERANCE: f64 = 0.02;

/// Whether the count depends on how the compiler words the same algorithm.
fn is_compilers(counter: &str) -> bool {
    counter.ends_with("_instructions") || counter == "f32_flops"
}

struct Cell {
    kernel: Kernel,
    dtype: DType,
    head_dim: usize,
    rows: usize,
    counters: Vec<(&'static str, u64)>,
}

impl Cell {
    fn name(&self) -> String {
        format!("{} {} d{} s{}", self.kernel, self.dtype, self.head_dim, self.rows)
    }

    fn get(&self, counter: &str) -> u64 {
        self.counters.iter().find(|(name, _)| *name == counter).unwrap_or_else(|| panic!("no counter {counter}")).1
    }
}

fn count(kernel: Kernel, dtype: DType, head_dim: usize, rows: usize) -> Cell {
    // No check is needed to count, and none changes a count.
    let device = Device::emulator_with(EmulatorConfig::default().with_checks(false)).expect("the emulator is built in");
    let shape = Shape::new(1, rows, 1, head_dim);
    // Zeros: with equal scores no maximum grows, so v3 never rescales its output. No byte that is moved depends on a value.
    let [q, k, v] = [(); 3].map(|()| Tensor::zeros(&device, dtype, shape, Layout::Bshd).expect("it fits"));
    let mut out = Tensor::zeros(&device, dtype, shape, Layout::Bshd).expect("it fits");
    let attention = Attention::new().with_kernel(kernel);
    let stream = device.default_stream();
    device.reset_counters();
    attention
        .forward_into(&stream, &q.view(), &k.view(), &v.view(), &mut out.view_mut(), None)
        .unwrap_or_else(|error| panic!("{kernel}: {error}"));
    stream.synchronize().expect("the emulator runs");
    Cell { kernel, dtype, head_dim, rows, counters: device.counters() }
}

fn variant(pass: Pass, cell: &Cell) -> &'static Variant {
    // No mask: every row sees every key.
    Variant::find(pass, cell.dtype, [cell.head_dim as u32; 2], cell.rows as u32, FeatureSet::NONE)
        .expect("a row of the list")
}

/// Bytes that a kernel reads and writes, from the sizes of its tiles: `N` rows of `d` dims of `e` bytes, one head, no mask.
///
/// `v1`, `v2` and `v3` read every query once, and all keys and values for each of the `N / B_r` blocks of queries; they write the output
/// once. `naive` reads a block of queries and one of keys for every tile of scores, writes the scores in f32, reads them three times
/// (maximum, sum, probabilities), writes the probabilities and reads them once with all values for each block of queries.
fn predicted(cell: &Cell) -> [u64; 2] {
    let (n, d, e) = (cell.rows as u64, cell.head_dim as u64, cell.dtype.bytes() as u64);
    let tensor = n * d * e;
    let blocks = |block: u32| n.div_ceil(block as u64);
    if cell.kernel == Kernel::Naive {
        let (scores, output) = (variant(Pass::Scores, cell), variant(Pass::Output, cell));
        let tiles = blocks(scores.kv_block) + blocks(scores.q_block);
        let read = tensor * tiles + 3 * n * n * 4 + n * n * e + tensor * blocks(output.q_block);
        return [read, n * n * 4 + n * n * e + tensor];
    }
    let [pass] = cell.kernel.passes() else { panic!("one pass") };
    [tensor + 2 * tensor * blocks(variant(*pass, cell).q_block), tensor]
}

/// Algorithm 1 of the FlashAttention paper, which walks over key blocks outside and query blocks inside: keys and values once; queries
/// and the output so far for each of `N / B_c` blocks of keys, the output written as often, with the f32 row maxima and sums.
fn paper(cell: &Cell, kv_block: u32) -> u64 {
    let (n, d, e) = (cell.rows as u64, cell.head_dim as u64, cell.dtype.bytes() as u64);
    let (tensor, blocks) = (n * d * e, n.div_ceil(kv_block as u64));
    2 * tensor + blocks * (3 * tensor + 4 * n * 4)
}

/// All cells, counted on a thread for each processor.
fn cells() -> Vec<Cell> {
    let list = SERIES.iter().flat_map(|&(kernel, dtype, head_dim, most)| {
        ROWS.into_iter().filter(move |&rows| rows <= most).map(move |rows| (kernel, dtype, head_dim, rows))
    });
    list.map(|(kernel, dtype, head_dim, rows)| count(kernel, dtype, head_dim, rows)).collect()
}

fn to_json(cells: &[Cell]) -> String {
    let cells: Map<String, Value> = cells
        .iter()
        .map(|cell| {
            let counters: Map<_, _> =
                cell.counters.iter().filter(|(_, n)| *n > 0).map(|(name, n)| ((*name).to_owned(), json!(n))).collect();
            (cell.name(), Value::Object(counters))
        })
        .collect();
    let record = json!({ "kind": "ferroflash-counters", "schema_version": 1, "cells": cells });
    format!("{}\n", serde_json::to_string_pretty(&record).expect("maps of numbers"))
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// Bytes with a unit, to three digits.
fn bytes(n: u64) -> String {
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1000.0 && unit < 3 {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {}", ["B", "KiB", "MiB", "GiB"][unit])
}

/// `docs/io.md`.
fn tables(cells: &[Cell]) -> String {
    let mut text = String::from(include_str!("io_intro.md"));
    let mut line = |s: String| writeln!(text, "{s}").expect("a string takes all");
    for (dtype, head_dim) in [(DType::Bf16, 64), (DType::Bf16, 128), (DType::F32, 64)] {
        line(format!("\n## {dtype}, head dim {head_dim}\n"));
        let of = |kernel, rows| {
            cells.iter().find(|c| c.kernel == kernel && c.dtype == dtype && c.head_dim == head_dim && c.rows == rows)
        };
        let kernels: Vec<Kernel> = Kernel::ALL.into_iter().filter(|&k| of(k, 128).is_some()).collect();
        let traffic = |c: &Cell| c.get("global_bytes_read") + c.get("global_bytes_written");
        let names: Vec<String> = kernels.iter().map(Kernel::to_string).collect();
        line(format!("| rows | {} | paper, algorithm 1 | q, k, v and out once | naive over v2 |", names.join(" | ")));
        line(format!("|{}", " ---: |".repeat(kernels.len() + 4)));
        for rows in ROWS {
            let Some(v2) = of(Kernel::V2, rows) else { continue };
            let row: Vec<String> = kernels.iter().filter_map(|&k| of(k, rows)).map(|c| bytes(traffic(c))).collect();
            let naive = of(Kernel::Naive, rows).expect("counted for every size");
            line(format!(
                "| {rows} | {} | {} | {} | {:.1} |",
                row.join(" | "),
                bytes(paper(v2, variant(Pass::V2, v2).kv_block)),
                bytes(4 * (rows * head_dim * dtype.bytes()) as u64),
                traffic(naive) as f64 / traffic(v2) as f64
            ));
        }
    }
    let most = |kernel| cells.iter().rfind(move |c| c.kernel == kernel && c.head_dim == 64 && c.dtype == DType::Bf16);
    line("\n## Everything counted: bf16, head dim 64, 2048 rows\n".to_owned());
    let largest: Vec<&Cell> = Kernel::ALL.into_iter().filter_map(most).collect();
    let names: Vec<String> = largest.iter().map(|c| c.kernel.to_string()).collect();
    line(format!("| counter | {} |", names.join(" | ")));
    line(format!("| --- |{}", " ---: |".repeat(largest.len())));
    for (i, (name, _)) in largest[0].counters.iter().enumerate() {
        let values: Vec<u64> = largest.iter().map(|c| c.counters[i].1).collect();
        // That there are no conflicts is worth a line.
        if *name == "shared_bank_conflicts" || values.iter().any(|&v| v > 0) {
            let values: Vec<String> = values.iter().map(u64::to_string).collect();
            line(format!("| {} | {} |", name.replace('_', " "), values.join(" | ")));
        }
    }
    text
}

/// The counts are those committed, and bytes are those of the closed form. One test, so that the kernels run once.
#[test]
fn counters_are_as_committed_and_as_predicted() {
    if device::is_gpu() {
        return;
    }
    let cells = cells();
    let mut wrong = String::new();
    let mut say = |what: String| writeln!(wrong, "{what}").expect("a string takes all");
    for cell in &cells {
        let [read, written] = predicted(cell);
        for (counter, want) in [("global_bytes_read", read), ("global_bytes_written", written)] {
            let got = cell.get(counter);
            if got != want {
                say(format!("{}: {counter} {got}, {want} by the closed form", cell.name()));
            }
        }
        // Every byte that is moved is in a sector of its own: no access wastes any.
        for direction in ["read", "written"] {
            let (sectors, moved) =
                (cell.get(&format!("global_sectors_{direction}")), cell.get(&format!("global_bytes_{direction}")));
            if sectors * 32 != moved {
                say(format!("{}: {sectors} sectors {direction} for {moved} bytes", cell.name()));
            }
        }
    }
    if std::env::var_os("FERROFLASH_UPDATE_COUNTERS").is_some() {
        std::fs::write(docs().join("benchmarks/counters.json"), to_json(&cells)).expect("docs can be written");
        std::fs::write(docs().join("io.md"), tables(&cells)).expect("docs can be written");
        assert!(wrong.is_empty(), "{wrong}");
        return;
    }
    let committed: Value = serde_json::from_str(COMMITTED).expect("counters.json is JSON");
    let committed = committed["cells"].as_object().expect("counters.json has cells");
    if committed.len() != cells.len() {
        say(format!("{} cells committed, {} counted", committed.len(), cells.len()));
    }
    for cell in &cells {
        for &(counter, got) in &cell.counters {
            let want = committed.get(&cell.name()).and_then(|c| c.get(counter)).and_then(Value::as_u64).unwrap_or(0);
            let tolerance = if is_compilers(counter) { INSTRUCTION_TOLERANCE * want as f64 } else { 0.0 };
            if got.abs_diff(want) as f64 > tolerance {
                say(format!("{}: {counter} {got}, committed {want}", cell.name()));
            }
        }
    }
    // The tables that follow from exact counts alone; the last one also lists instructions.
    let exact = |text: &str| text.split("\n## Everything").next().map(str::to_owned);
    if exact(&tables(&cells)) != exact(TABLES) {
        say("docs/io.md differs from what is counted".to_owned());
    }
    assert!(
        wrong.is_empty(),
        "{wrong}after a change on purpose: FERROFLASH_UPDATE_COUNTERS=1 cargo test -p ferroflash_tests --test it counters"
    );
}
