//! Every instruction case loads and runs clean with all checks, and equals its independent definition where it has one.

mod cases;

use cases::{Case, Output, THREADS};
use ptx_emu::{Emulator, Launch, Module};

fn run(case: &Case, index: usize, seed: u64) -> Vec<u32> {
    let text = case.module(index);
    let m = Module::parse(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", case.body));
    let e = Emulator::default();
    let input: Vec<u8> = case.inputs().iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
    let (src, dst) = (e.alloc(input.len() as u64).unwrap(), e.alloc(16 * THREADS as u64).unwrap());
    e.write(src, &input).unwrap();
    let l = Launch::new([THREADS as u32 / 128, 1, 1], [128, 1, 1]).with_ptr(src).with_ptr(dst).with_seed(seed);
    e.launch(&m, &Case::entry(index), &l).unwrap_or_else(|e| panic!("{}: {e}", case.body));
    let mut out = vec![0; 16 * THREADS];
    e.read(dst, &mut out).unwrap();
    out.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}

#[test]
fn every_case_equals_its_definition() {
    let mut compared = 0;
    for (i, case) in cases::all().iter().enumerate() {
        let out = run(case, i, 0);
        let Some(reference) = case.reference else { continue };
        compared += 1;
        for (t, w) in case.inputs().iter().enumerate() {
            let want = reference(w[0], w[1], w[2]);
            let got = match case.output {
                Output::B64 | Output::Quad => out[4 * t] as u64 | (out[4 * t + 1] as u64) << 32,
                _ => out[4 * t] as u64,
            };
            assert_eq!(got, want, "{} of {w:x?}: {got:#x}, {want:#x} expected", case.body);
        }
    }
    assert!(compared > 70, "{compared} cases have a definition");
}

#[test]
fn results_do_not_depend_on_the_seed() {
    for (i, case) in cases::all().iter().enumerate() {
        assert_eq!(run(case, i, 0), run(case, i, 7 + i as u64), "{}", case.body);
    }
}

#[test]
fn approximate_functions_keep_their_bounds() {
    for (i, case) in cases::all().iter().enumerate().filter(|(_, c)| c.family == "approximate") {
        let out = run(case, i, 0);
        for (t, w) in case.inputs().iter().enumerate() {
            let (a, b) = (f32::from_bits(w[0] as u32) as f64, f32::from_bits(w[1] as u32) as f64);
            let flush = case.body.contains(".ftz") && f32::from_bits(w[0] as u32).is_subnormal();
            let a = if flush { 0.0 * a } else { a };
            let exact = match case.body.split('.').next().unwrap() {
                "ex2" => a.exp2(),
                "lg2" => a.log2(),
                "rcp" => 1.0 / a,
                "rsqrt" => 1.0 / a.sqrt(),
                "sqrt" => a.sqrt(),
                "div" => a / b,
                "sin" => a.sin(),
                "cos" => a.cos(),
                _ => a.tanh(),
            } as f32;
            let exact = if case.body.contains(".ftz") && exact.is_subnormal() { 0.0 * exact } else { exact };
            assert!(
                cases::agrees(case.compare, out[4 * t], exact.to_bits()),
                "{} of {a}: {}, {exact} expected",
                case.body,
                f32::from_bits(out[4 * t])
            );
        }
    }
}
