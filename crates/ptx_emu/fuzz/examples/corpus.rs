//! Writes what the fuzzers start from: `cargo run --example corpus` fills `corpus/parse` with the kernels and instruction cases
//! of the tests, `corpus/run` with one input for each of them without edits, and `corpus/ptx.dict` with their words.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[path = "../../tests/cases/mod.rs"]
#[allow(dead_code, reason = "only the texts are needed here")]
mod cases;
#[path = "../../tests/kernels/mod.rs"]
mod kernels;

fn main() -> std::io::Result<()> {
    let kernels = [
        (kernels::HEAD_80, kernels::REVERSE),
        (kernels::HEAD_80, kernels::PIPELINE),
        (kernels::HEAD_80, kernels::WARP),
        (kernels::HEAD_80, kernels::MMA),
        (kernels::HEAD_80, kernels::LAST_CTA),
        (kernels::HEAD_90A, kernels::HOPPER),
        (kernels::HEAD_90A, kernels::ELECT),
        (kernels::HEAD_80, kernels::HALVES),
        (kernels::HEAD_80, kernels::EXCHANGE),
    ];
    let mut texts: Vec<String> = kernels.iter().map(|(head, body)| format!("{head}{body}")).collect();
    texts.extend(cases::all().iter().enumerate().map(|(i, c)| c.module(i)));
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in ["parse", "run"] {
        fs::create_dir_all(corpus.join(target))?;
    }
    let mut words = BTreeSet::new();
    for (i, text) in texts.iter().enumerate() {
        fs::write(corpus.join(format!("parse/{i}")), text)?;
        let [low, high] = (i as u16).to_le_bytes();
        // One edit, whose bytes libFuzzer then mutates.
        fs::write(corpus.join(format!("run/{i}")), [low, high, 1, 3, i as u8, 0, (i / 3) as u8, 1])?;
        let opcode_parts = text.split(|c: char| c.is_whitespace() || "[]{}(),;".contains(c)).flat_map(|w| {
            let parts = w.split_inclusive('.').map(|p| p.trim_end_matches('.'));
            parts.map(str::to_owned).collect::<Vec<_>>()
        });
        words.extend(opcode_parts.filter(|w| (2..24).contains(&w.len()) && w.is_ascii() && !w.contains(['"', '\\'])));
    }
    let dictionary: String = words.iter().map(|w| format!("\"{w}\"\n")).collect();
    fs::write(corpus.join("ptx.dict"), dictionary)
}
