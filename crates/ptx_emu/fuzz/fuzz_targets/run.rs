//! The machine on mutated kernels: `cargo +nightly fuzz run run -- -max_total_time=600`.
//!
//! The first byte picks a kernel, the next ones are edits of it: position, length to remove, byte to insert.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use ptx_emu::{Emulator, EmulatorOptions, Launch, Module};

#[path = "../../tests/kernels/mod.rs"]
mod kernels;

fuzz_target!(|bytes: &[u8]| {
    let [which, seed, edits @ ..] = bytes else { return };
    let (head, body) = [
        (kernels::HEAD_80, kernels::REVERSE),
        (kernels::HEAD_80, kernels::PIPELINE),
        (kernels::HEAD_80, kernels::WARP),
        (kernels::HEAD_80, kernels::MMA),
        (kernels::HEAD_80, kernels::LAST_CTA),
        (kernels::HEAD_90A, kernels::HOPPER),
    ][*which as usize % 6];
    let mut text = body.as_bytes().to_vec();
    for e in edits.chunks_exact(4) {
        let at = u16::from_le_bytes([e[0], e[1]]) as usize % (text.len() + 1);
        let cut = (e[2] as usize % 16).min(text.len() - at);
        text.splice(at..at + cut, std::iter::once(e[3] & 0x7f));
    }
    let Ok(text) = String::from_utf8(text) else { return };
    let Ok(module) = Module::parse(&format!("{head}{text}")) else { return };
    let options = EmulatorOptions::default()
        .with_seed(*seed as u64)
        .with_memory_limit(64 << 20)
        .with_instruction_limit(Some(20_000))
        .with_time_limit(Some(Duration::from_secs(2)))
        .with_threads(1);
    let device = Emulator::new(options);
    let (Ok(a), Ok(b)) = (device.alloc(8192), device.alloc(8192)) else { return };
    if device.fill(a, 1, 8192).is_err() {
        return;
    }
    let entries: Vec<String> = module.entries().map(str::to_owned).collect();
    for entry in entries {
        let Some(info) = module.entry(&entry) else { continue };
        let mut launch = Launch::new([2, 1, 1], info.required_block.unwrap_or([128, 1, 1]));
        launch.dynamic_shared_bytes = 12288;
        for (i, p) in info.params.iter().enumerate() {
            let mut bytes = [a, b, 5][i % 3].to_le_bytes().to_vec();
            bytes.resize(p.bytes as usize, 0);
            launch.params.push(bytes);
        }
        let _ = device.launch(&module, &entry, &launch);
    }
});
