//! The parser on arbitrary bytes: `cargo +nightly fuzz run parse -- -max_total_time=600`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = ptx_emu::Module::parse(text);
    }
});
