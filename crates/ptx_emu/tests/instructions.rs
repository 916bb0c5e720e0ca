//! Every instruction case loads and runs clean with all checks, and equals its independent definition where it has one.

mod cases;

use cases::{BLOCK, Case, Compare, Input, Output, THREADS, agrees};
use ptx_emu::{EmuError, Emulator, FaultKind, Launch, Module, TensorMap};

/// Thread blocks of a case.
const BLOCKS: usize = THREADS / BLOCK;

fn run(case: &Case, index: usize, seed: u64) -> Vec<u32> {
    run_on(case, index, &case.inputs(), seed)
}

/// Runs a case on other inputs than its own, one row for each thread.
fn run_on(case: &Case, index: usize, inputs: &[[u64; 3]], seed: u64) -> Vec<u32> {
    launch(case, index, inputs, seed).unwrap_or_else(|e| panic!("{}: {e}", case.body))
}

fn launch(case: &Case, index: usize, inputs: &[[u64; 3]], seed: u64) -> Result<Vec<u32>, EmuError> {
    launch_blocks(case, index, &case.module(index), BLOCKS, inputs, seed)
}

/// Runs `blocks` thread blocks of a case's text.
fn launch_blocks(
    case: &Case,
    index: usize,
    text: &str,
    blocks: usize,
    inputs: &[[u64; 3]],
    seed: u64,
) -> Result<Vec<u32>, EmuError> {
    let m = Module::parse(text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", case.body));
    let e = Emulator::default();
    let input: Vec<u8> = inputs.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
    let (src, dst) = (e.alloc(input.len() as u64).unwrap(), e.alloc(16 * THREADS as u64).unwrap());
    e.write(src, &input).unwrap();
    e.fill(dst, 0, 16 * THREADS as u64).unwrap();
    let map = e.alloc(128).unwrap();
    if let Some(tensor) = &case.tensor {
        e.write(map, TensorMap::encode(&tensor.spec(src, dst)).unwrap().as_bytes()).unwrap();
    }
    let l = Launch::new([blocks as u32, 1, 1], [BLOCK as u32, 1, 1]);
    let l = l.with_ptr(src).with_ptr(dst).with_ptr(map).with_seed(seed);
    e.launch(&m, &Case::entry(index), &l)?;
    let mut out = vec![0; 16 * THREADS];
    e.read(dst, &mut out).unwrap();
    Ok(out.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect())
}

/// The cases that give a result, with their numbers.
fn accepted() -> impl Iterator<Item = (usize, Case)> {
    cases::all().into_iter().enumerate().filter(|(_, c)| c.compare != Compare::Refused)
}

#[test]
fn every_case_equals_its_definition() {
    let mut compared = 0;
    for (i, case) in accepted() {
        let out = run(&case, i, 0);
        if let Some(definition) = case.definition {
            let inputs = case.inputs();
            for (t, got) in out.chunks_exact(4).enumerate() {
                assert_eq!(got, definition(&inputs, t), "thread {t} of {}", case.body);
            }
        }
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
    for (i, case) in accepted() {
        assert_eq!(run(&case, i, 0), run(&case, i, 7 + i as u64), "{}", case.body);
    }
}

#[test]
fn what_hardware_refuses_is_a_fault() {
    let refused: Vec<_> = cases::all().into_iter().enumerate().filter(|(_, c)| c.compare == Compare::Refused).collect();
    assert!(!refused.is_empty());
    for (i, case) in refused {
        let error = launch(&case, i, &case.inputs(), 0).expect_err(&case.body);
        assert!(is_refusal(&error), "{}: {error}", case.body);
    }
}

/// Whether the instruction itself is what is refused.
fn is_refusal(error: &EmuError) -> bool {
    let kind = error.fault().map(|f| f.kind);
    matches!(kind, Some(FaultKind::InvalidOperand | FaultKind::Misaligned))
}

/// Thread blocks run side by side, and the first fault is the one that is told: a block that writes where another does would be told as
/// a race now and then, in place of what the case is about. So each block of a case that chooses its own places in the output runs alone
/// here, and touches its own part only, or is refused for the same reason as all together.
#[test]
fn no_block_touches_the_memory_of_another() {
    let chooses = |case: &Case| case.output == Output::Own || case.compare == Compare::Refused;
    let mut seen = 0;
    for (i, case) in cases::all().into_iter().enumerate().filter(|(_, case)| chooses(case) && case.cluster == 0) {
        let text = case.module(i);
        assert!(text.contains(", %ctaid.x;"), "{text}");
        let mut refused = 0;
        for block in 0..BLOCKS {
            let alone = text.replace(", %ctaid.x;", &format!(", {block};"));
            match launch_blocks(&case, i, &alone, 1, &case.inputs(), 0) {
                Ok(out) => {
                    let own = block * BLOCK * 4..(block + 1) * BLOCK * 4;
                    let other = out.iter().enumerate().find(|(at, word)| !own.contains(at) && **word != 0);
                    assert_eq!(other, None, "block {block} of {}", case.body);
                }
                Err(error) => {
                    assert!(is_refusal(&error), "block {block} of {}: {error}", case.body);
                    refused += 1;
                }
            }
        }
        assert_eq!(refused > 0, case.compare == Compare::Refused, "{refused} blocks of {}", case.body);
        seen += 1;
    }
    assert!(seen > 70, "{seen} cases");
}

#[test]
fn approximate_functions_keep_their_bounds() {
    for (i, case) in cases::all().iter().enumerate().filter(|(_, c)| c.family == "approximate") {
        let out = run(case, i, 0);
        if let Compare::HalfUlps { bf16, .. } = case.compare {
            for (t, w) in case.inputs().iter().enumerate() {
                let exact = |h: u64| {
                    let x = half_value(h as u16, bf16);
                    half_bits(if case.body.starts_with("ex2") { x.exp2() } else { x.tanh() }, bf16) as u32
                };
                let want = exact(w[0]) | exact(w[0] >> 16) << 16;
                assert!(agrees(case.compare, w, out[4 * t], want), "{} of {:x?}: {:x}", case.body, w[0], out[4 * t]);
            }
            continue;
        }
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
                agrees(case.compare, w, out[4 * t], exact.to_bits()),
                "{} of {a}: {}, {exact} expected",
                case.body,
                f32::from_bits(out[4 * t])
            );
        }
    }
}

/// Bits of the fraction and bias of the exponent.
fn half_format(bf16: bool) -> (i32, i32) {
    if bf16 { (7, 127) } else { (10, 15) }
}

/// A normal number.
fn half_value(h: u16, bf16: bool) -> f64 {
    let (bits, bias) = half_format(bf16);
    let exponent = (h as i32 & 0x7fff) >> bits;
    let fraction = 1.0 + (h as i32 & ((1 << bits) - 1)) as f64 / (1 << bits) as f64;
    (if h >> 15 == 1 { -1.0 } else { 1.0 }) * fraction * 2f64.powi(exponent - bias)
}

/// The normal number nearest to `x`.
fn half_bits(x: f64, bf16: bool) -> u16 {
    let (bits, bias) = half_format(bf16);
    let exponent = x.abs().log2().floor() as i32;
    let fraction = (x.abs() / 2f64.powi(exponent - bits)).round_ties_even() as i32;
    // A fraction that rounds up to the next power of two carries into the exponent.
    (((exponent + bias - 1) << bits) + fraction) as u16 | if x < 0.0 { 0x8000 } else { 0 }
}

/// The first result word of one instruction for each row of inputs.
fn results(body: &'static str, output: Output, rows: &[[u32; 3]]) -> Vec<u32> {
    let case = Case {
        family: "corner",
        body: body.into(),
        input: Input::Bits,
        output,
        compare: Compare::Bits,
        sm: "sm_80",
        reference: None,
        definition: None,
        tensor: None,
        cluster: 0,
    };
    let mut inputs: Vec<[u64; 3]> = rows.iter().map(|r| r.map(|w| w as u64 | (w as u64) << 32)).collect();
    inputs.resize(THREADS, [0; 3]);
    run_on(&case, 0, &inputs, 0).chunks_exact(4).take(rows.len()).map(|q| q[0]).collect()
}

const MINUS_ZERO: u32 = 0x8000_0000;

#[test]
fn exact_zero_sums_are_negative_when_rounding_down() {
    let (one, minus_one) = (1f32.to_bits(), (-1f32).to_bits());
    let rows = [[0, MINUS_ZERO, 0], [MINUS_ZERO, 0, 0], [one, minus_one, 0], [0, 0, 0], [MINUS_ZERO, MINUS_ZERO, 0]];
    let down = [MINUS_ZERO, MINUS_ZERO, MINUS_ZERO, 0, MINUS_ZERO];
    assert_eq!(results("add.rm.f32 %d0, %a, %b;", Output::B32, &rows), down);
    assert_eq!(results("add.rm.ftz.f32 %d0, %a, %b;", Output::B32, &rows), down);
    // The other roundings give +0, but for two terms of -0.
    for body in ["add.rn.f32 %d0, %a, %b;", "add.rz.f32 %d0, %a, %b;", "add.rp.f32 %d0, %a, %b;"] {
        assert_eq!(results(body, Output::B32, &rows), [0, 0, 0, 0, MINUS_ZERO], "{body}");
    }
    let negated = rows.map(|[a, b, c]| [a, b ^ MINUS_ZERO, c]);
    assert_eq!(results("sub.rm.f32 %d0, %a, %b;", Output::B32, &negated), down);
    // a * 1 + c, and a product of opposite zeros.
    let fused = rows.map(|[a, b, _]| [a, one, b]);
    assert_eq!(results("fma.rm.f32 %d0, %a, %b, %c;", Output::B32, &fused), down);
    let products = [[0, minus_one, 0], [0, minus_one, MINUS_ZERO], [MINUS_ZERO, minus_one, 0]];
    assert_eq!(results("fma.rm.f32 %d0, %a, %b, %c;", Output::B32, &products), [MINUS_ZERO, MINUS_ZERO, 0]);
    // A product has the sign of its factors in every rounding.
    assert_eq!(results("mul.rm.f32 %d0, %a, %b;", Output::B32, &rows[..3]), [MINUS_ZERO, MINUS_ZERO, minus_one]);
}

#[test]
fn relu_gives_plus_zero_for_minus_zero() {
    // -0, the negative number nearest to it, -1, 1, NaN with a sign.
    let rows = [0x8000_0000, 0x8000_0001, 0xbf80_0000, 0x3f80_0000, 0xffc0_0000].map(|a| [a, a, 0]);
    for (body, output, one, nan) in [
        ("cvt.rn.relu.f16.f32 %hd, %a;", Output::B16, 0x3c00, 0x7fff),
        ("cvt.rz.relu.bf16.f32 %hd, %a;", Output::B16, 0x3f80, 0x7fff),
        ("cvt.rn.relu.f16x2.f32 %d0, %a, %b;", Output::B32, 0x3c00_3c00, 0x7fff_7fff),
        ("cvt.rn.relu.bf16x2.f32 %d0, %a, %b;", Output::B32, 0x3f80_3f80, 0x7fff_7fff),
        ("cvt.rn.relu.tf32.f32 %d0, %a;", Output::B32, 0x3f80_0000, 0x7fff_e000),
        ("cvt.rn.satfinite.relu.e4m3x2.f32 %hd, %a, %b;", Output::B16, 0x3838, 0x7f7f),
        ("cvt.rn.satfinite.relu.e5m2x2.f32 %hd, %a, %b;", Output::B16, 0x3c3c, 0x7f7f),
    ] {
        assert_eq!(results(body, output, &rows), [0, 0, 0, one, nan], "{body}");
    }
    // e4m3 -0 and -1 in both halves.
    let bytes = [[0x8080, 0, 0], [0xb8b8, 0, 0], [0x3838, 0, 0]];
    let body = "cvt.rn.relu.f16x2.e4m3x2 %d0, %ha;";
    assert_eq!(results(body, Output::B32, &bytes), [0, 0, 0x3c00_3c00], "{body}");
    // -0 * 1 + -0 in both halves.
    let half = [[0x8000_8000, 0x3c00_3c00, 0x8000_8000]];
    assert_eq!(results("fma.rn.relu.f16x2 %d0, %a, %b, %c;", Output::B32, &half), [0]);
    assert_eq!(results("fma.rn.f16x2 %d0, %a, %b, %c;", Output::B32, &half), [0x8000_8000]);
    let half = [[0x8000_8000, 0x3f80_3f80, 0x8000_8000]];
    assert_eq!(results("fma.rn.relu.bf16x2 %d0, %a, %b, %c;", Output::B32, &half), [0]);
}

#[test]
fn tf32_to_nearest_away_masks_what_is_not_finite() {
    let table = [
        (0x7fc0_0000, 0x7fc0_0000),
        (0xffc0_0000, 0xffc0_0000),
        (0x7fff_ffff, 0x7fff_e000),
        (0x7f80_0001, 0x7f80_0000),
        (0xff80_0000, 0xff80_0000),
        // Finite: half of the last bit kept goes away from zero, and the largest number to infinity.
        (0x3f80_1000, 0x3f80_2000),
        (0xbf80_0fff, 0xbf80_0000),
        (0x7f7f_ffff, 0x7f80_0000),
    ];
    let rows = table.map(|(a, _)| [a, 0, 0]);
    assert_eq!(results("cvt.rna.tf32.f32 %d0, %a;", Output::B32, &rows), table.map(|(_, d)| d));
}

#[test]
fn division_by_zero_gives_all_ones() {
    let rows = [[7, 0, 0], [0, 0, 0], [0x93ac_2b24, 0, 0], [!0, 0, 0]];
    for body in ["rem.u32", "div.u32", "rem.s32", "div.s32"] {
        let body: &'static str = Box::leak(format!("{body} %d0, %a, %b;").into_boxed_str());
        assert_eq!(results(body, Output::B32, &rows), [!0; 4], "{body}");
    }
    for body in ["rem.u16", "div.u16", "rem.s16", "div.s16"] {
        let body: &'static str = Box::leak(format!("{body} %hd, %ha, %hb;").into_boxed_str());
        assert_eq!(results(body, Output::B16, &rows), [0xffff; 4], "{body}");
    }
    for body in ["rem.u64", "div.u64", "rem.s64", "div.s64"] {
        // The low and the high word of the result are both ones.
        let body: &'static str = Box::leak(
            format!("{body} %ld, %la, %lb;\nmov.b64 {{%a, %b}}, %ld;\nand.b32 %d0, %a, %b;").into_boxed_str(),
        );
        assert_eq!(results(body, Output::B32, &rows), [!0; 4], "{body}");
    }
}

#[test]
fn lg2_is_compared_by_its_documented_bound() {
    let agree = |x: f32, a: f32, b: f32| agrees(Compare::Lg2, &[x.to_bits() as u64, 0, 0], a.to_bits(), b.to_bits());
    // One unit in the last place below -4: 4.8e-7, of 1.07e-6 allowed.
    let x = f32::from_bits(0x3d35_97de);
    assert!(agree(x, f32::from_bits(0xc08f_da97), f32::from_bits(0xc08f_da96)));
    assert!(!agree(x, f32::from_bits(0xc08f_da97), f32::from_bits(0xc08f_da9a)));
    // In (0.5, 2) the bound is absolute: 2^-23 from the logarithm is near enough, 2^-21 is not.
    let (x, exact) = (1.5f32, 1.5f64.log2());
    let (near, far) = ((exact + 2f64.powi(-23)) as f32, (exact - 2f64.powi(-21)) as f32);
    assert!(agree(x, exact as f32, near));
    assert!(!agree(x, exact as f32, far));
    assert!(!agree(x, far, exact as f32));
    assert!(agree(-1.0, f32::NAN, -f32::NAN));
    assert!(!agree(-1.0, f32::NAN, 0.0));
    assert!(!agree(0.0, f32::NEG_INFINITY, f32::MIN));
}

/// Words of an H200, each for one thread's inputs.
#[test]
fn words_measured_on_hardware() {
    // A NaN through an addition becomes the canonical one; through a shift it keeps its bits.
    for (body, input, word) in [
        ("neg.f32 %d0, %a;", 0xffc0_0000, 0x7fff_ffff),
        ("neg.ftz.f32 %d0, %a;", 0x7fc0_0000, 0x7fff_ffff),
        ("abs.f32 %d0, %a;", 0x7fc0_0000, 0x7fff_ffff),
        ("neg.f16x2 %d0, %a;", 0x7e00_7bff, 0x7fff_fbff),
        ("abs.f16x2 %d0, %a;", 0x7e00_7bff, 0x7fff_7bff),
        ("neg.bf16x2 %d0, %a;", 0x7fc0_7f7f, 0x7fff_ff7f),
        ("abs.bf16x2 %d0, %a;", 0x7fc0_7f7f, 0x7fff_7f7f),
        ("neg.bf16 %hd, %ha;\ncvt.u32.u16 %d0, %hd;", 0x7f7f_7fc0, 0x7fff),
        ("mov.b32 {%hd, %ha}, %a;\ncvt.f32.bf16 %d0, %hd;", 0x7f7f_7fc0, 0x7fc0_0000),
    ] {
        assert_eq!(results(body, Output::B32, &[[input, 0, 0]]), [word], "{body}");
    }
    // Zeros are normal numbers, subnormals are not.
    assert_eq!(results("testp.normal.f32 %q, %a;", Output::Pred, &[[0; 3], [MINUS_ZERO, 0, 0], [1, 0, 0]]), [1, 1, 0]);
    // The sign counts before the width does.
    assert_eq!(results("cvt.sat.u64.s32 %ld, %a;", Output::B64, &[[0x99a6_5a82, 0, 0], [7, 0, 0]]), [0, 7]);
    // f32 sums flush subnormals in global memory, and keep them in shared memory.
    let global = "mul.wide.u32 %ld, %i, 16;\nadd.s64 %lc, %out, %ld;\nst.global.u32 [%lc], %a;\n\
                  atom.global.add.f32 %d1, [%lc], %a;\nld.global.u32 %d0, [%lc];";
    let shared = "mov.u32 %t0, %tid.x;\nshl.b32 %t0, %t0, 2;\nmov.u32 %t1, buffer;\nadd.s32 %t0, %t0, %t1;\n\
                  st.shared.u32 [%t0], %a;\natom.shared.add.f32 %d1, [%t0], %a;\nld.shared.u32 %d0, [%t0];";
    assert_eq!(results(global, Output::Quad, &[[1, 0, 0], [0x3f80_0000, 0, 0]]), [0, 0x4000_0000]);
    assert_eq!(results(shared, Output::Quad, &[[1, 0, 0], [0x3f80_0000, 0, 0]]), [2, 0x4000_0000]);
}

#[test]
fn sixty_four_bit_integers_round_to_f64_in_every_direction() {
    let case = |body: &'static str| Case {
        family: "corner",
        body: body.into(),
        input: Input::Bits,
        output: Output::B64,
        compare: Compare::Bits,
        sm: "sm_80",
        reference: None,
        definition: None,
        tensor: None,
        cluster: 0,
    };
    for (signed, down, up, zero) in [
        (false, "cvt.rm.f64.u64 %ld, %la;", "cvt.rp.f64.u64 %ld, %la;", "cvt.rz.f64.u64 %ld, %la;"),
        (true, "cvt.rm.f64.s64 %ld, %la;", "cvt.rp.f64.s64 %ld, %la;", "cvt.rz.f64.s64 %ld, %la;"),
    ] {
        let words = |body| {
            let quads = run(&case(body), 0, 0);
            quads.chunks_exact(4).map(|q| f64::from_bits(q[0] as u64 | (q[1] as u64) << 32)).collect::<Vec<_>>()
        };
        let (down, up, zero) = (words(down), words(up), words(zero));
        let mut inexact = 0;
        for (t, w) in case("").inputs().iter().enumerate() {
            let exact = if signed { w[0] as i64 as i128 } else { w[0] as i128 };
            let (lo, hi) = (down[t] as i128, up[t] as i128);
            assert!(lo <= exact && exact <= hi, "{exact}: {lo} and {hi}");
            // The bounds are the number itself, or neighbours.
            assert!(lo == hi || down[t].next_up() == up[t], "{exact}: {lo} and {hi}");
            assert_eq!(zero[t], if exact < 0 { up[t] } else { down[t] }, "{exact}");
            inexact += (lo != hi) as usize;
        }
        assert!(inexact > THREADS / 4, "{inexact} inputs are inexact");
    }
}

/// Found by fuzzing: an arrival at an mbarrier without operands. No instruction takes its operands for granted.
#[test]
fn instructions_without_some_of_their_operands_get_an_answer() {
    let mut seen = std::collections::HashSet::new();
    for (i, case) in cases::all().iter().enumerate() {
        let text = case.module(i);
        for (at, line) in text.match_indices(';').map(|(end, _)| {
            let start = text[..end].rfind([';', '{', '}', '\n']).map_or(0, |s| s + 1);
            (start, &text[start..end])
        }) {
            let Some((opcode, operands)) = line.trim().split_once(' ') else { continue };
            if opcode.starts_with('.') || !seen.insert(line.trim().to_owned()) {
                continue;
            }
            let operands: Vec<&str> = operands.split(',').collect();
            for n in 0..operands.len() {
                for kept in [&operands[..n], &operands[operands.len() - n..]] {
                    let broken = format!("{}{opcode} {}{}", &text[..at], kept.join(","), &text[at + line.len()..]);
                    // Some leave out an operand that is optional: any answer will do.
                    let _ = Module::parse(&broken);
                }
            }
        }
    }
    assert!(seen.len() > 1000, "{} statements", seen.len());
}
