//! The parser on arbitrary bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        // Refusals are results; a panic, a hang or a runaway allocation is what the fuzzer looks for.
        let _ = ptx_emu::Module::parse(text);
    }
});
