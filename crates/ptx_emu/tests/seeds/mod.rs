//! Kernels over an array of words, run under every seed.

use ptx_emu::*;

pub(crate) const SEEDS: u64 = 20;
/// Words of memory that a kernel is given.
const WORDS: usize = 1024;

/// An entry over a zeroed array of words: `%rd0` is its address, `%t` the thread, `%c` the CTA, `%own` the address of the thread's word.
pub(crate) fn kernel(body: &str) -> Module {
    let text = format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n\
         .visible .entry k(.param .u64 words)\n{{\n.shared .align 16 .b8 tile[256];\n.local .align 16 .b8 own[64];\n\
         .reg .pred %p<9>;\n.reg .b16 %h<9>;\n.reg .b32 %r<40>, %t, %c;\n.reg .f32 %f<9>;\n.reg .b64 %rd<20>, %own;\n\
         ld.param.u64 %rd0, [words];\nmov.u32 %t, %tid.x;\nmov.u32 %c, %ctaid.x;\nmul.wide.u32 %own, %t, 4;\n\
         add.s64 %own, %own, %rd0;\n{body}\n}}\n"
    );
    Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

pub(crate) fn launch(m: &Module, ctas: u32, threads: u32, seed: u64, checks: Checks) -> Result<Vec<u32>, EmuError> {
    let e = Emulator::new(EmulatorOptions::default().with_checks(checks).with_threads(2));
    let words = e.alloc(4 * WORDS as u64)?;
    e.fill(words, 0, 4 * WORDS as u64)?;
    e.launch(m, "k", &Launch::new([ctas, 1, 1], [threads, 1, 1]).with_ptr(words).with_seed(seed))?;
    let mut out = vec![0; 4 * WORDS];
    e.read(words, &mut out)?;
    Ok(out.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect())
}

/// The first words, which must be the same under every seed.
pub(crate) fn words(body: &str, ctas: u32, threads: u32, n: usize) -> Vec<u32> {
    let m = kernel(body);
    let first = launch(&m, ctas, threads, 0, Checks::all()).unwrap_or_else(|e| panic!("{body}\n{e}"));
    for seed in 1..SEEDS {
        let out = launch(&m, ctas, threads, seed, Checks::all()).unwrap_or_else(|e| panic!("{body}\n{e}"));
        assert_eq!(out, first, "seed {seed}: {body}");
    }
    first[..n].to_vec()
}

/// The same fault under every seed.
pub(crate) fn fault(body: &str, ctas: u32, threads: u32, kind: FaultKind) -> Fault {
    let m = kernel(body);
    let of = |seed| match launch(&m, ctas, threads, seed, Checks::all()) {
        Err(EmuError::Fault(f)) => *f,
        other => panic!("seed {seed}: a fault expected, got {other:?}\n{body}"),
    };
    for seed in 0..SEEDS {
        let f = of(seed);
        assert_eq!(f.kind, kind, "{f}\n{body}");
    }
    of(0)
}
