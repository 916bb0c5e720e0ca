//! The machine on mutated kernels.
//!
//! The first two bytes pick a kernel of `tests/kernels` or an instruction case of `tests/cases`, the third one the seed. Every
//! five bytes after that are an edit: of whole lines, so that most mutants still load; of words, which mixes operands, types and
//! modifiers; or of single bytes.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use ptx_emu::{Emulator, EmulatorOptions, Launch, Module, TensorMap};

#[path = "../../tests/cases/mod.rs"]
#[allow(dead_code, reason = "only the texts and their tensors are needed here")]
mod cases;
#[path = "../../tests/kernels/mod.rs"]
mod kernels;

/// A text to start from, and what its tensor map describes.
type Start = (String, Option<cases::Tensor>);

static STARTS: LazyLock<Vec<Start>> = LazyLock::new(|| {
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
    let kernels = kernels.into_iter().map(|(head, body)| (format!("{head}{body}"), None));
    kernels.chain(cases::all().into_iter().enumerate().map(|(i, c)| (c.module(i), c.tensor))).collect()
});

/// Bytes of each of the three buffers: what the instruction cases take.
const BUFFER: u64 = 24 * cases::THREADS as u64;

fn edit(text: &mut String, [kind, a, b, c, d]: [u8; 5]) {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.is_empty() {
        return;
    }
    let at = u16::from_le_bytes([a, b]) as usize;
    let other = u16::from_le_bytes([c, d]) as usize;
    let (line, from) = (at % lines.len(), other % lines.len());
    match kind % 6 {
        0 => drop(lines.remove(line)),
        1 => lines.insert(line, lines[from].clone()),
        2 => lines.swap(line, from),
        // A word of one line in the place of a word of another.
        3 | 4 => {
            let words = |l: &str| -> Vec<(usize, usize)> {
                let mut out = Vec::new();
                let mut start = None;
                for (i, ch) in l.char_indices().chain([(l.len(), ' ')]) {
                    let inside = ch.is_ascii_alphanumeric() || matches!(ch, '%' | '_' | '.' | '-' | ':');
                    match (inside, start) {
                        (true, None) => start = Some(i),
                        (false, Some(s)) => {
                            out.push((s, i));
                            start = None;
                        }
                        _ => {}
                    }
                }
                out
            };
            let (here, there) = (words(&lines[line]), words(&lines[from]));
            if here.is_empty() || there.is_empty() {
                return;
            }
            let (s, e) = there[at / lines.len() % there.len()];
            let word = lines[from][s..e].to_owned();
            let (s, e) = here[other / lines.len() % here.len()];
            lines[line].replace_range(s..e, &word);
        }
        _ => {
            let mut bytes = std::mem::take(text).into_bytes();
            let at = at % (bytes.len() + 1);
            let cut = (c as usize % 16).min(bytes.len() - at);
            bytes.splice(at..at + cut, std::iter::once(d & 0x7f));
            *text = String::from_utf8(bytes).unwrap_or_default();
            return;
        }
    }
    *text = lines.join("\n");
}

fuzz_target!(|bytes: &[u8]| {
    let [low, high, seed, edits @ ..] = bytes else { return };
    let (text, tensor) = &STARTS[u16::from_le_bytes([*low, *high]) as usize % STARTS.len()];
    let mut text = text.clone();
    for e in edits.as_chunks().0.iter().take(32) {
        edit(&mut text, *e);
    }
    let Ok(module) = Module::parse(&text) else { return };
    let options = EmulatorOptions::default()
        .with_seed(*seed as u64)
        .with_memory_limit(64 << 20)
        .with_instruction_limit(Some(20_000))
        .with_time_limit(Some(Duration::from_secs(2)))
        .with_threads(1);
    let device = Emulator::new(options);
    let (Ok(a), Ok(b), Ok(map)) = (device.alloc(BUFFER), device.alloc(BUFFER), device.alloc(256)) else { return };
    if device.fill(a, 1, BUFFER).is_err() || device.fill(b, 0, BUFFER).is_err() {
        return;
    }
    if let Some(tensor) = tensor
        && let Ok(encoded) = TensorMap::encode(&tensor.spec(a, b))
        && device.write(map, encoded.as_bytes()).is_err()
    {
        return;
    }
    let entries: Vec<String> = module.entries().map(str::to_owned).collect();
    for entry in entries {
        let Some(info) = module.entry(&entry) else { continue };
        let mut launch = Launch::new([2, 1, 1], info.required_block.unwrap_or([128, 1, 1]));
        launch.dynamic_shared_bytes = 12288;
        for (i, p) in info.params.iter().enumerate() {
            let mut bytes = [a, b, map][i % 3].to_le_bytes().to_vec();
            bytes.resize(p.bytes as usize, 0);
            launch.params.push(bytes);
        }
        // An error is as good as a result; a panic, a hang or a runaway allocation is what the fuzzer looks for.
        let _ = device.launch(&module, &entry, &launch);
    }
});
