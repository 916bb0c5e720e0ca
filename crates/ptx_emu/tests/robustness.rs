//! Whatever the text, the parser and the machine answer: no panic, no hang, no unbounded memory.

mod kernels;

use std::time::Duration;

use proptest::prelude::*;
use ptx_emu::{Checks, Emulator, EmulatorOptions, Launch, Module};

const SOURCES: [(&str, &str); 9] = [
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

/// Loads a text and launches every entry of it with two pointers and a number, in a small machine.
fn try_everything(text: &str, seed: u64, checks: Checks) {
    let Ok(module) = Module::parse(text) else { return };
    let options = EmulatorOptions::default()
        .with_checks(checks)
        .with_seed(seed)
        .with_memory_limit(64 << 20)
        .with_instruction_limit(Some(20_000))
        .with_time_limit(Some(Duration::from_secs(5)))
        .with_threads(1);
    let device = Emulator::new(options);
    let a = device.alloc(8192).unwrap();
    device.fill(a, 1, 8192).unwrap();
    let b = device.alloc(8192).unwrap();
    let entries: Vec<String> = module.entries().map(str::to_owned).collect();
    for entry in entries {
        let info = module.entry(&entry).unwrap();
        let mut launch = Launch::new([2, 1, 1], info.required_block.unwrap_or([128, 1, 1]));
        launch.dynamic_shared_bytes = 12288;
        for (i, p) in info.params.iter().enumerate() {
            let mut bytes = [a, b, 5][i % 3].to_le_bytes().to_vec();
            bytes.resize(p.bytes as usize, 0);
            launch.params.push(bytes);
        }
        // Any answer will do; that there is one is the test.
        let _ = device.launch(&module, &entry, &launch);
    }
}

/// A text with some of its words replaced by others of it, removed, or repeated.
fn scramble(text: &str, edits: &[(prop::sample::Index, prop::sample::Index, u8)]) -> String {
    let mut words: Vec<&str> = text.split_inclusive([' ', '\n', ',', ';', '.']).collect();
    let pool = words.clone();
    for (at, from, kind) in edits {
        let i = at.index(words.len());
        match kind % 4 {
            0 => words[i] = pool[from.index(pool.len())],
            1 => {
                words.remove(i);
            }
            2 => words.insert(i, pool[from.index(pool.len())]),
            _ => {
                let j = from.index(words.len());
                words.swap(i, j);
            }
        }
        if words.is_empty() {
            break;
        }
    }
    words.concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_text_gets_an_answer(text in "\\PC*") {
        try_everything(&text, 0, Checks::all());
    }

    #[test]
    fn ptx_like_text_gets_an_answer(text in "(\\.(version|target|entry|reg|shared|b32|param|align)|[a-z%$_]{1,4}|[0-9]{1,12}|0[xfd][0-9A-F]{0,16}|[{}()\\[\\];,:@!|<>=+-]| |\n){0,60}") {
        try_everything(&format!("{}{text}", kernels::HEAD_80), 0, Checks::all());
    }

    #[test]
    fn scrambled_kernels_get_an_answer(
        which in 0..SOURCES.len(),
        edits in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index, u8)>(), 1..6),
        seed in 0..8u64,
        checked in any::<bool>(),
    ) {
        let (head, body) = SOURCES[which];
        let text = format!("{head}{}", scramble(body, &edits));
        try_everything(&text, seed, if checked { Checks::all() } else { Checks::none() });
    }
}

#[test]
fn what_doubles_with_every_level_is_refused() {
    let mut text = String::from(kernels::HEAD_80);
    text.push_str(".func f40() { ret; }\n");
    for i in (0..40).rev() {
        text.push_str(&format!(".func f{i}() {{ call f{0}; call f{0}; ret; }}\n", i + 1));
    }
    text.push_str(".visible .entry k() { call f0; ret; }\n");
    assert!(Module::parse(&text).is_err());
}

#[test]
fn large_declarations_are_refused_or_counted() {
    for body in [
        ".reg .b32 %r<4000000000>; ret;",
        ".local .b8 x[600000]; .reg .b64 %rd; mov.b64 %rd, x; ret;",
        ".shared .b8 x[1000000000]; .reg .b32 %r; mov.b32 %r, x; ret;",
        ".shared .b8 x[99999999999999]; ret;",
        ".reg .b32 %r<1000000>; ret;",
    ] {
        let text = format!("{}.visible .entry k() {{ {body} }}", kernels::HEAD_80);
        let Ok(m) = Module::parse(&text) else { continue };
        let e = Emulator::new(EmulatorOptions::default().with_memory_limit(1 << 20));
        assert!(e.launch(&m, "k", &Launch::new([1, 1, 1], [1024, 1, 1])).is_err(), "{body}");
    }
}

/// Found by fuzzing: the number of registers overflowed.
#[test]
fn a_register_range_without_bounds_is_refused() {
    let head = ".version 8.0\n.target sm_80\n.address_size 64\n";
    let text = format!("{head}.entry k() {{ .reg .b32 %a, %r<18446744073709551615>; ret; }}");
    assert!(Module::parse(&text).unwrap_err().to_string().contains("registers in a function"));
}
