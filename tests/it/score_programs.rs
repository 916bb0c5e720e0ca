//! Programs on scores: random ones and well-known ones against the reference, in every kernel that computes scores, and what they are
//! refused for.

use crate::backward::{self, for_each_dtype};
use crate::properties;
use crate::sequences;
use crate::support::case::{self, Case, to_f64};
use crate::support::draws::{self, Draws};
use crate::support::gradients::BackwardCase;
use crate::support::packed_gradients::PackedCase;
use crate::support::programs::{NAMED, Named, Number, leak, random, tensors};
use crate::support::{bf16, device, f16};
use ferroflash::reference;
use ferroflash::score::{BoundProgram, ProgramTensor, ScoreProgram};
use ferroflash::{
    Arch, Attention, DType, Device, Dims, Element, EmulatorConfig, Error, GradientsViewMut, Indices, Kernel,
    KernelChoice, KvCacheMut, Layout, Lse, LseShape, LseViewMut, Mask, NewRows, Operand, PackedRows, Pass,
    ProgramError, Shape, Sizes, Tensor, TensorViewMut, Unsupported, VARIANTS, Variant,
};
use kernel_spec::families::forward::features::{PROGRAM, SOFTCAP};
use kernel_spec::{COMPILED_HEAD_DIMS, FeatureSet};
use proptest::prelude::*;
use std::sync::OnceLock;

/// The device of the tests, for as long as they run: what programs read lives on it.
pub(crate) fn lasting(device: &Device) -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| device.clone())
}

fn draws(cases: u32) -> Draws {
    // A case on the emulator takes some hundred milliseconds: shrinking ends after about a minute.
    draws::draws(file!(), cases, 256)
}

crate::for_each_kernel_and_dtype!(random_programs_agree_with_the_reference);

fn random_programs_agree_with_the_reference<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let cases = (properties::cases(kernel, T::DTYPE), random()).prop_map(|(mut case, number)| {
        case.attention.program = Some(bound(device, &number));
        // Tiles without hooks are no part of this, and v3 has those with one beside them.
        if let KernelChoice::Variant(row) = case.attention.kernel
            && !row.entry.accepts.contains(FeatureSet::of(PROGRAM))
        {
            case.attention.kernel = KernelChoice::Kernel(row.pass.kernel());
        }
        case
    });
    draws(device::cases().div_ceil(4)).check(&cases, |case| case.check::<T>(device));
}

fn program(number: &Number) -> ScoreProgram {
    ScoreProgram::new("random", |p| number.write(p)).expect("random programs are legal")
}

/// A random program with the tensors of all of them.
fn bound(device: &'static Device, number: &Number) -> &'static BoundProgram<'static> {
    leak(program(number), tensors(device))
}

/// Packed sequences, caches and pages: rows, keys and lengths are those of each sequence.
#[test]
fn random_programs_over_sequences_agree_with_the_reference() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let cases = (sequences::cases::<f16>(), random(), 0..3).prop_map(|(mut case, number, dtype)| {
        case.attention.program = Some(bound(device, &number));
        (case, dtype)
    });
    draws(device::cases()).check(&cases, |(case, dtype)| match dtype {
        0 => case.check::<f16>(device),
        // A tile that is asked for has its type.
        _ if matches!(case.attention.kernel, KernelChoice::Variant(_)) => case.check::<f16>(device),
        1 => case.check::<bf16>(device),
        _ => case.check::<f32>(device),
    });
}

/// Gradients of the reference are its own differences, whatever the program.
#[test]
fn gradients_of_random_programs_are_differences() {
    const STEP: f64 = 1e-5;
    let shared = device::shared();
    let device = lasting(&shared.device);
    let sizes = Sizes { batch: 2, q_rows: 3, kv_rows: 5, q_heads: 2, kv_heads: 1, head_dim: 8, dtype: DType::F32 };
    let cases = (random(), prop::option::of(1f32..4.0), any::<u64>());
    draws(device::cases()).check(&cases, |(number, softcap, seed)| {
        let attention = Attention::new().with_softcap(softcap).with_program(bound(device, &number));
        let case = Case { seed, ..Case::new(Kernel::V2, sizes, Mask::Full) };
        let inputs = case.inputs::<f32>();
        let mut all = [&inputs.q, &inputs.k, &inputs.v].map(|x| to_f64(x));
        let dout: Vec<f64> = (0..all[0].len()).map(|i| ((i * 7 + 3) % 11) as f64 / 5.0 - 1.0).collect();
        let number_of = |[q, k, v]: &[Vec<f64>; 3]| -> f64 {
            let out = reference::forward(q, k, v, sizes, &attention).unwrap().out;
            out.iter().zip(&dout).map(|(out, dout)| out * dout).sum()
        };
        let [q, k, v] = &all;
        let gradients = reference::backward([q, k, v], &dout, None, sizes, &attention).unwrap();
        let found = [gradients.dq, gradients.dk, gradients.dv];
        for (tensor, found) in found.iter().enumerate() {
            for i in (0..found.len()).step_by(7) {
                let at = all[tensor][i];
                let mut moved = |by: f64| {
                    all[tensor][i] = at + by;
                    let number = number_of(&all);
                    all[tensor][i] = at;
                    number
                };
                let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                // A corner of the program between the two is no derivative of either side.
                let sides = [moved(2.0 * STEP) - moved(STEP), moved(-STEP) - moved(-2.0 * STEP)].map(|d| d / STEP);
                let is_smooth = (sides[0] - sides[1]).abs() < 1e-2 * (1.0 + difference.abs());
                let close = (found[i] - difference).abs() < 1e-5 * (1.0 + difference.abs());
                if !close && is_smooth {
                    return Err(format!("{tensor}, {i}: {}, not {difference}\n{}", found[i], program(&number)));
                }
            }
        }
        Ok(())
    });
}

for_each_dtype!(gradients_of_random_programs_agree_with_the_reference);

/// Of the portable kernels, and of naive, which see the same problems.
fn gradients_of_random_programs_agree_with_the_reference<T: Element>(portable: Kernel) {
    let shared = device::shared();
    let device = lasting(&shared.device);
    for kernel in [portable, Kernel::Naive] {
        let cases = (backward::cases(kernel, T::DTYPE), random()).prop_map(|(mut case, number)| {
            case.forward.attention.softcap = None;
            case.forward.attention.program = Some(bound(device, &number));
            if let KernelChoice::Variant(_) = case.forward.attention.kernel {
                case.forward.attention.kernel = KernelChoice::Kernel(kernel);
            }
            case
        });
        draws(device::cases().div_ceil(8)).check(&cases, |case| case.check::<T>(device));
    }
}

for_each_dtype!(gradients_of_named_programs_agree_with_the_reference);

/// Every row with a hook.
fn gradients_of_named_programs_agree_with_the_reference<T: Element>(portable: Kernel) {
    let shared = device::shared();
    let device = lasting(&shared.device);
    for (i, head_dim) in COMPILED_HEAD_DIMS.into_iter().enumerate() {
        for (j, kernel) in [(i, portable), (i + 3, Kernel::Naive), (i + 1, portable)] {
            let named = &NAMED[j % NAMED.len()];
            let sizes = backward::sizes::<T>(70, 75, [4, 2], head_dim as usize);
            let mut case = BackwardCase::of(kernel, sizes, if j % 2 == 0 { Mask::Full } else { Mask::Causal });
            case.forward.attention.program = Some(named.bound(device));
            case.forward.attention.scale = (j % 3 == 1).then_some(-0.2);
            case.with_dlse = true;
            let plan = case.forward.attention.backward_plan(device, sizes).expect("a legal problem");
            assert!(plan.to_string().contains(&format!("program {}", named.name)), "{plan}");
            case.check::<T>(device).unwrap_or_else(|wrong| panic!("{}: {wrong}", named.name));
        }
    }
}

for_each_dtype!(packed_gradients_have_the_bits_of_each_sequence_alone);

/// With slopes of each sequence: each knows which it is.
fn packed_gradients_have_the_bits_of_each_sequence_alone<T: Element>(_: Kernel) {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let lengths = vec![[33, 70], [1, 1], [0, 3], [70, 33]];
    let slopes: Vec<f32> = (0..lengths.len() * 4).map(|i| (i % 7) as f32 * 0.1).collect();
    let slopes = Tensor::from_slice(device, &slopes, [lengths.len(), 4], Layout::RowMajor).unwrap();
    let slopes = Box::leak(Box::new(slopes)).view();
    let of = |rows| leak(ScoreProgram::alibi(), vec![("slopes", slopes.narrow(0, rows).unwrap().into())]);
    for head_dim in [32, 256] {
        let mut case = PackedCase::new(lengths.clone());
        (case.q_heads, case.kv_heads, case.head_dim, case.made_alone) = (4, 2, head_dim, true);
        case.attention.program = Some(of(0..lengths.len()));
        let mut given = case.given::<T>();
        for (i, alone) in given.cases.iter_mut().enumerate() {
            alone.forward.attention.program = Some(of(i..i + 1));
        }
        let computed = case.run(device, &given).unwrap_or_else(|wrong| panic!("{wrong}"));
        for (i, found) in computed.iter().enumerate().filter(|(i, _)| lengths[*i][0] > 0) {
            let alone = given.cases[i].run(device, &given.inputs[i]).unwrap_or_else(|wrong| panic!("{wrong}"));
            for (a, b) in found.iter().zip(&alone) {
                assert!(to_f64(a) == to_f64(b), "head dim {head_dim}, sequence {i}");
            }
        }
    }
}

/// Attention by its definition, with a function written in plain Rust in place of a program.
fn attend(case: &Case, [q, k, v]: [&[f64]; 3], named: &Named) -> Vec<f64> {
    let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim: dim, .. } = case.problem;
    let mut out = vec![0.0; batch * q_rows * q_heads * dim];
    for (index, out) in out.chunks_mut(dim).enumerate() {
        let (head, row, b) = (index % q_heads, index / q_heads % q_rows, index / q_heads / q_rows);
        let q = &q[index * dim..][..dim];
        let place = |key: usize| ((b * kv_rows + key) * kv_heads + head / (q_heads / kv_heads)) * dim;
        let score = |key: usize| {
            let x: f64 = q.iter().zip(&k[place(key)..][..dim]).map(|(q, k)| q * k).sum();
            (named.meaning)(x / (dim as f64).sqrt(), [b, head, row, key, q_rows, kv_rows].map(|x| x as i64))
        };
        let scores: Vec<f64> = (0..kv_rows).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> =
            scores.iter().map(|s| if max == f64::NEG_INFINITY { 0.0 } else { (s - max).exp() }).collect();
        let sum: f64 = weights.iter().sum();
        for (key, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            out.iter_mut().zip(&v[place(key)..][..dim]).for_each(|(o, v)| *o += weight / sum * v);
        }
    }
    out
}

/// The reference evaluates what the programs say, as plain Rust does.
#[test]
fn named_programs_mean_what_they_say() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    for named in &NAMED {
        let sizes =
            Sizes { batch: 2, q_rows: 40, kv_rows: 45, q_heads: 4, kv_heads: 2, head_dim: 16, dtype: DType::F32 };
        let mut case = Case::new(Kernel::V2, sizes, Mask::Full);
        case.attention.program = Some(named.bound(device));
        let inputs = case.inputs::<f32>();
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| to_f64(x));
        let found = reference::forward(&q, &k, &v, sizes, &case.attention).unwrap().out;
        let error = reference::max_abs_difference(&found, &attend(&case, [&q, &k, &v], named));
        // Tensors hold f32.
        assert!(error < 1e-7, "{}: {error}", named.name);
    }
}

crate::for_each_kernel_and_dtype!(named_programs_agree_with_the_reference);

/// Every row with a hook, at the edges of its tiles.
fn named_programs_agree_with_the_reference<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let rows = VARIANTS.iter().filter(|v| v.pass == kernel.passes()[0] && v.dtype == T::DTYPE);
    let rows = rows.filter(|v| v.entry.accepts.contains(FeatureSet::of(PROGRAM)) && device.info().runs(v.entry.arch));
    // Those with lists of blocks are `blocks`' own.
    let rows = rows.filter(|v| !v.is_listed());
    for (i, row) in rows.enumerate() {
        // Each row has two of the programs, and each program several rows.
        for j in [2 * i, 2 * i + 1] {
            let named = &NAMED[j % NAMED.len()];
            let (q, kv) = (row.q_block as usize, row.kv_block as usize);
            let (q_rows, kv_rows) = if j % 4 < 2 { (q + 1, kv + 1) } else { (9, 2 * kv - 1) };
            let dim = row.dim_qk as usize;
            let sizes = Sizes { batch: 2, q_rows, kv_rows, q_heads: 4, kv_heads: 2, head_dim: dim, dtype: T::DTYPE };
            let mut case = Case::new(row, sizes, if j % 3 == 0 { Mask::Causal } else { Mask::Full });
            if !kernel.passes()[1..].is_empty() {
                case.attention.kernel = KernelChoice::Kernel(kernel);
            }
            case.attention.program = Some(named.bound(device));
            let takes_both = row.entry.accepts.contains(FeatureSet::of(SOFTCAP));
            case.attention.softcap = (j % 5 == 0 && takes_both).then_some(4.0);
            case.attention.scale = (j % 4 == 1).then_some(-0.3);
            let plan = case.attention.plan(device, sizes).expect("a legal problem");
            assert!(plan.symbols().any(|symbol| symbol == row.entry.symbol), "{}: {plan}", row.entry.symbol);
            assert!(plan.to_string().contains(&format!("program {}", named.name)), "{plan}");
            case.check::<T>(device).unwrap_or_else(|wrong| panic!("{}, {}: {wrong}", row.entry.symbol, named.name));
        }
    }
}

crate::for_each_kernel_and_dtype!(causal_as_a_program_has_the_bits_of_causal);

/// Whatever the scale: a program that only hides keys takes scores as they come, and blocks that it hides leave every number as it is.
fn causal_as_a_program_has_the_bits_of_causal<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let device = lasting(&shared.device);
    if !case::runs::<T>(device, kernel) {
        return;
    }
    let causal = ScoreProgram::mask("causal", |p| p.key().le(p.position())).unwrap();
    // More rows than keys: the first see none.
    for [q_rows, kv_rows] in [[150, 150], [70, 200], [150, 100]] {
        let sizes = Sizes { batch: 1, q_rows, kv_rows, q_heads: 2, kv_heads: 1, head_dim: 64, dtype: T::DTYPE };
        let mut with_mask = Case::new(row_with_hooks(kernel, T::DTYPE), sizes, Mask::Causal);
        with_mask.attention.scale = (q_rows == 70).then_some(-0.3);
        let mut with_program = Case { attention: with_mask.attention.with_mask(Mask::Full), ..with_mask.clone() };
        with_program.attention.program = Some(leak(causal.clone(), Vec::new()));
        let inputs = with_mask.inputs::<T>();
        let [a, b] = [with_mask, with_program].map(|case| case.run(device, &inputs));
        assert_eq!(to_f64(&a.out), to_f64(&b.out), "{kernel}, {q_rows} x {kv_rows}");
        assert_eq!(a.lse, b.lse, "{kernel}, {q_rows} x {kv_rows}");
    }
}

/// The row of 64 dims that takes programs: also where calls without one take another.
fn row_with_hooks(kernel: Kernel, dtype: DType) -> KernelChoice {
    match kernel {
        Kernel::Naive => kernel.into(),
        _ => Variant::find(kernel.passes()[0], dtype, [64; 2], 0, FeatureSet::of(PROGRAM)).expect("a row").into(),
    }
}

crate::for_each_kernel_and_dtype!(the_identity_is_the_plain_kernel);

fn the_identity_is_the_plain_kernel<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let device = lasting(&shared.device);
    if !case::runs::<T>(device, kernel) {
        return;
    }
    let identity = leak(ScoreProgram::new("nothing", |p| p.score()).unwrap(), Vec::new());
    let sizes = Sizes { batch: 1, q_rows: 70, kv_rows: 90, q_heads: 2, kv_heads: 1, head_dim: 64, dtype: T::DTYPE };
    let plain = Case::new(kernel, sizes, Mask::Causal);
    let mut with_program = plain.clone();
    with_program.attention.program = Some(identity);
    let plans = [&plain, &with_program].map(|case| case.attention.plan(device, sizes).unwrap());
    assert_eq!(plans[0], plans[1]);
    let inputs = plain.inputs::<T>();
    let [a, b] = [plain, with_program].map(|case| case.run(device, &inputs));
    assert_eq!((to_f64(&a.out), a.lse), (to_f64(&b.out), b.lse));
}

/// Rows whose keys a program hides give 0 and minus infinity, and neighbours are none the wiser.
#[test]
fn rows_that_a_program_hides() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let program = ScoreProgram::mask("every third row", |p| p.row().rem_floor(3).ne(p.int_constant(0))).unwrap();
    let program = leak(program, Vec::new());
    for kernel in Kernel::ALL {
        let sizes =
            Sizes { batch: 1, q_rows: 30, kv_rows: 300, q_heads: 2, kv_heads: 1, head_dim: 64, dtype: DType::F16 };
        let mut case = Case::new(kernel, sizes, Mask::Full);
        case.attention.program = Some(program);
        if case.is_refused(device) {
            continue;
        }
        case.check::<f16>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
        let computed = case.run(device, &case.inputs::<f16>());
        assert!(computed.lse.iter().step_by(3).all(|&lse| lse == f32::NEG_INFINITY), "{kernel}");
        assert!(computed.out[..2 * 64].iter().all(|x| x.to_f64() == 0.0), "{kernel}");
    }
}

/// A program changes nothing but its words from call to call: tensors of other sizes and places run the text that is there.
#[test]
fn tensors_of_other_sizes_have_the_same_text() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let of = |heads: usize| {
        let values: Vec<f32> = (0..heads).map(|i| i as f32).collect();
        let tensor = Tensor::from_slice(device, &values, [1, heads], Layout::RowMajor).unwrap();
        let bound = ScoreProgram::alibi().bind(&[("slopes", tensor.view().into())]).unwrap();
        bound.text().to_owned()
    };
    assert_eq!(of(3), of(70));
}

/// Every program of the list, as it prints.
#[test]
fn programs_print_readably() {
    let printed: Vec<String> = NAMED.iter().map(|named| (named.program)().to_string()).collect();
    let expected = [
        "relative(table: float[2 axes])\n  score + table[head, max(min(((row + kv_rows) - q_rows) - key, 15), -16) + 16]",
        "capped()\n  5.0 * tanh(score / 5.0)",
        "decay(slopes: float[1 axis])\n  score - (slopes[head] * ln(float(abs(((row + kv_rows) - q_rows) - key)) + 1.0))",
        "documents(ids: int[2 axes])\n  if (ids[batch, row] == ids[batch, key]) { score } else { -inf }",
        "prefix window()\n  let x1 = (row + kv_rows) - q_rows\n  \
         if ((key < 7) or ((key <= x1) and ((x1 - key) < 12))) { score } else { -inf }",
        "neighbours()\n  if (max(abs((row div 6) - (key div 6)), abs((row mod 6) - (key mod 6))) <= 2) { score } else { -inf }",
    ];
    assert_eq!(printed, expected);
    let derivative = (NAMED[1].program)().derivative().to_string();
    assert_eq!(
        derivative,
        "derivative of capped()\n  let x1 = tanh(score / 5.0)\n  5.0 * ((1.0 - (x1 * x1)) * (1.0 / 5.0))"
    );
}

fn floats(device: &'static Device, shape: &[usize]) -> ProgramTensor<'static> {
    let elements = shape.iter().product::<usize>();
    let shape = ferroflash::Dims::new(shape).unwrap();
    let tensor = Tensor::from_slice(device, &vec![0f32; elements], shape, Layout::RowMajor).unwrap();
    Box::leak(Box::new(tensor)).view().into()
}

#[test]
fn what_a_program_is_refused_for() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let wrong = |result: ferroflash::Result<ScoreProgram>| match result {
        Err(Error::Program(error)) => error,
        other => panic!("{other:?}"),
    };
    let found = wrong(ScoreProgram::new("p", |p| p.score() + p.row().div_floor(0).to_float()));
    assert_eq!(found, ProgramError::Divisor { found: 0 });
    assert_eq!(found.to_string(), "the program divides by 0; whole numbers are divided by constants above 0");
    let found = wrong(ScoreProgram::new("p", |p| p.floats("a").at([p.row()]) + p.floats("a").at([p.row(), p.key()])));
    assert_eq!(found, ProgramError::DeclaredTwice { name: "a".to_owned() });
    let found = wrong(ScoreProgram::new("p", |p| (0..300).fold(p.score(), |x, i| x * 0.5 + p.constant(i as f32))));
    assert_eq!(found, ProgramError::TooManyOperations { limit: 256 });

    let program = ScoreProgram::new("p", |p| {
        p.score() + p.floats("a").at([p.row()]) + p.ints("b").at([p.head(), p.key()]).to_float()
    });
    let program = program.unwrap();
    let a = floats(device, &[3]);
    let numbers = Box::leak(Box::new(Indices::from_slice(device, &[1, 2, 3, 4]).unwrap())).view();
    let b = ProgramTensor::ints(numbers, [2, 2]).unwrap();
    assert!(program.bind(&[("b", b), ("a", a)]).is_ok(), "in any order");
    let refused = |tensors: &[(&str, ProgramTensor<'static>)], words: &str| {
        let error = program.bind(tensors).unwrap_err();
        assert!(matches!(error, Error::Program(_)), "{error:?}");
        assert_eq!(error.to_string(), words);
    };
    refused(&[("a", a)], "the program reads b, which is not bound");
    refused(&[("a", a), ("b", b), ("c", a)], r#"the program does not read c; it reads ["a", "b"]"#);
    refused(&[("a", a), ("b", b), ("a", a)], "a is bound twice");
    refused(&[("a", floats(device, &[3, 1])), ("b", b)], "a has 2 axes; the program reads it with 1");
    refused(&[("a", a), ("b", floats(device, &[2, 2]))], "b holds numbers; the program reads whole numbers");
    refused(
        &[("a", floats(device, &[0])), ("b", b)],
        "axis 0 of a has extent 0; programs read tensors of 1 element or more",
    );
    refused(
        &[("a", ProgramTensor::ints(numbers, [4]).unwrap()), ("b", b)],
        "a holds whole numbers; the program reads numbers",
    );
    assert!(matches!(ProgramTensor::ints(numbers, [3]), Err(Error::DataLength { expected: 3, found: 4, .. })));
    let wide = ScoreProgram::new("wide", |p| {
        let at = [p.batch(), p.head(), p.row(), p.key()];
        p.floats("a").at(at) + p.floats("b").at(at)
    });
    let error = wide.unwrap().bind(&[("a", floats(device, &[1; 4])), ("b", floats(device, &[1; 4]))]).unwrap_err();
    assert_eq!(error.to_string(), "the program's tensors and their axes take 10 words, one each; 8 are accepted");
}

#[test]
fn calls_that_a_program_is_refused_for() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let slopes = Tensor::zeros(device, DType::F16, [1, 2], Layout::RowMajor).unwrap();
    let bound = ScoreProgram::alibi().bind(&[("slopes", slopes.view().into())]).unwrap();
    let attention = Attention::new().with_program(&bound);
    let problem = Sizes { batch: 1, q_rows: 4, kv_rows: 4, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: DType::F16 };
    // Gradients through a softcap and a program, and by a kernel without hooks.
    let error = attention.with_softcap(2.0).backward_plan(device, problem).unwrap_err();
    let name = "alibi".to_owned();
    assert!(
        matches!(&error, Error::Unsupported(Unsupported::CappedProgram { program }) if *program == name),
        "{error:?}"
    );
    let error = attention.with_kernel(Kernel::V3).backward_plan(device, problem).unwrap_err();
    assert!(matches!(error, Error::KernelUnsupported { kernel: Kernel::V3, .. }), "{error:?}");
    let plan = attention.backward_plan(device, problem).unwrap();
    if device.info().runs(Arch::Sm90a) {
        assert!(plan.reason.contains("no compiled entry accepts a program on scores"), "{plan}");
    }
    // Tiles that have no hooks.
    let plain = VARIANTS.iter().filter(|v| v.entry.accepts.is_empty() && device.info().runs(v.entry.arch));
    for row in plain.filter(|v| matches!(v.pass, Pass::V2 | Pass::V3)) {
        let sizes = Sizes { head_dim: row.dim_qk as usize, dtype: row.dtype, ..problem };
        let error = attention.with_kernel(row).plan(device, sizes).unwrap_err();
        assert!(error.to_string().contains("a program on scores"), "{}: {error}", row.entry.symbol);
    }
    // Another device.
    if !device::is_gpu() {
        let other = Device::emulator_with(EmulatorConfig::default()).unwrap();
        let q = Tensor::zeros(&other, DType::F16, Shape::new(1, 4, 2, 64), Layout::Bshd).unwrap();
        let error = attention.forward(&q.view(), &q.view(), &q.view()).unwrap_err();
        assert!(matches!(&error, Error::DeviceMismatch { what, .. } if what == "slopes"), "{error:?}");
    }
}

/// Outputs, gradients, and caches that new rows go into: none may lie where the call's program reads.
#[test]
fn nothing_that_a_program_reads_is_written() {
    let shared = device::shared();
    let device = &shared.device;
    let stream = device.default_stream();
    let mut slopes = Tensor::zeros(device, DType::F16, [1, 512], Layout::RowMajor).unwrap();
    slopes.fill_bytes(0xff).unwrap();
    let address = slopes.address();
    let bound = ScoreProgram::alibi().bind(&[("slopes", slopes.view().into())]).unwrap();
    let attention = Attention::new().with_program(&bound);
    // All 512 of them; the refused calls do not touch them.
    let there = |shape: &[usize]| {
        let shape = Dims::new(shape).unwrap();
        let strides: Vec<usize> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        // SAFETY: as many elements as there are, and nothing else uses them.
        unsafe { TensorViewMut::from_raw(device, address, 512, shape, Dims::new(&strides).unwrap(), DType::F16) }
            .unwrap()
    };
    let refused = |output: Operand, result: ferroflash::Result<()>| {
        let error = result.expect_err("the call should be refused");
        let words = "overlaps slopes in memory, which the program reads; outputs need memory of their own";
        assert_eq!(error.to_string(), format!("{output} {words}"));
        let expected = ProgramError::OutputOverlaps { output, name: "slopes".to_owned() };
        assert!(matches!(&error, Error::Program(found) if *found == expected), "{error:?}");
    };
    let tensor =
        |shape: &[usize]| Tensor::zeros(device, DType::F16, Dims::new(shape).unwrap(), Layout::RowMajor).unwrap();
    let lse_shape = LseShape { batch: 1, heads: 2, rows: 4 };
    let lse = Lse::uninit(device, lse_shape).unwrap();

    let shape = [1, 4, 2, 64];
    let (x, mut spare) = (tensor(&shape), [tensor(&shape), tensor(&shape), tensor(&shape)]);
    let x = x.view();
    refused(Operand::Out, attention.forward_into(&stream, &x, &x, &x, &mut there(&shape), None));
    // SAFETY: 8 numbers in 1024 bytes, and nothing else uses them.
    let mut of_rows = unsafe { LseViewMut::from_raw(device, address, 256, lse_shape) }.unwrap();
    let out = &mut spare[0].view_mut();
    refused(Operand::Lse, attention.forward_into(&stream, &x, &x, &x, out, Some(&mut of_rows)));
    for (i, gradient) in [Operand::Dq, Operand::Dk, Operand::Dv].into_iter().enumerate() {
        let mut views = spare.each_mut().map(Tensor::view_mut);
        views[i] = there(&shape);
        let [dq, dk, dv] = views;
        let into = &mut GradientsViewMut::new(dq, dk, dv);
        refused(gradient, attention.backward_into(&stream, &x, &x, &x, &x, &lse.view(), x, into));
    }

    let shape = [4, 2, 64];
    let (x, mut spare) = (tensor(&shape), [tensor(&shape), tensor(&shape), tensor(&shape)]);
    let x = x.view();
    let starts = Indices::from_slice(device, &[0, 1, 4]).unwrap();
    let rows = PackedRows::new(starts.view());
    let out = &mut there(&shape);
    refused(Operand::Out, attention.forward_packed_into(&stream, &x, &x, &x, &rows, &rows, out, None));
    for (i, gradient) in [Operand::Dq, Operand::Dk, Operand::Dv].into_iter().enumerate() {
        let mut views = spare.each_mut().map(Tensor::view_mut);
        views[i] = there(&shape);
        let [dq, dk, dv] = views;
        let into = &mut GradientsViewMut::new(dq, dk, dv);
        let lse = lse.view();
        refused(gradient, attention.backward_packed_into(&stream, &x, &x, &x, &x, &lse, x, &rows, &rows, into));
    }

    let (q, mut spare, mut out) = (tensor(&[1, 1, 2, 64]), tensor(&[1, 4, 2, 64]), tensor(&[1, 1, 2, 64]));
    let lengths = Indices::from_slice(device, &[2]).unwrap();
    let q = q.view();
    let new = NewRows::new(&q, &q);
    for name in [Operand::K, Operand::V] {
        let (mut k, mut v) = (spare.view_mut(), there(&[1, 4, 2, 64]));
        if name == Operand::K {
            std::mem::swap(&mut k, &mut v);
        }
        let mut cache = KvCacheMut::new(k, v).with(|cache| cache.with_lengths(lengths.view()));
        refused(name, attention.forward_appending(&q, None, &mut cache, &new).map(drop));
        let out = &mut out.view_mut();
        refused(name, attention.forward_appending_into(&stream, &q, None, &mut cache, &new, out, None));
        // A cache that is read is no output.
        attention.plan_cached(&q, None, &cache.view(), None).unwrap();
    }
    assert!(slopes.to_f64_vec().unwrap().iter().all(|x| x.is_nan()), "something was written");
}
