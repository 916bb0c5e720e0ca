//! Dropout: outputs and gradients beside the reference, which drops by a definition of its own, and the marks of every kernel, one by one.

use crate::backward::{self, for_each_dtype, sizes};
use crate::properties;
use crate::support::case::Case;
use crate::support::draws::draws;
use crate::support::gradients::BackwardCase;
use crate::support::{bf16, device, f16};
use ferroflash::{
    Attention, DType, Device, Dropout, Element, EmulatorConfig, Error, Gradients, Indices, Kernel, KernelChoice,
    Layout, Mask, Output, Problem, QueryRows, Sequences, Shape, Sizes, Tensor, Unsupported, VARIANTS, Variant, dropout,
    reference, score::ScoreProgram,
};
use kernel_spec::families::backward::{Pass as BackwardPass, Variant as BackwardVariant};
use kernel_spec::families::forward::features::DROPOUT;
use kernel_spec::{COMPILED_HEAD_DIMS, FeatureSet};
use proptest::prelude::*;

/// Kernels that drop.
const KERNELS: [Kernel; 3] = [Kernel::Naive, Kernel::V1, Kernel::V2];

fn has_dropout(variant: &Variant) -> bool {
    variant.entry.accepts.contains(FeatureSet::of(DROPOUT))
}

fn uniform(batch: usize, q_rows: usize, kv_rows: usize, dtype: DType) -> Problem {
    Problem::new(Sequences::Uniform { batch, q_rows, kv_rows }, 2, 1, 64, dtype)
}

crate::for_each_kernel_and_dtype!(every_variant_drops_or_says_that_it_does_not);

/// Every row of the list around its tile, over several heads and batch entries, which have numbers of their own.
fn every_variant_drops_or_says_that_it_does_not<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let rows = VARIANTS.iter().filter(|v| v.pass.kernel() == kernel && v.dtype == T::DTYPE);
    for variant in rows.filter(|v| !v.is_listed()) {
        let (q_rows, kv_rows) = (variant.q_block as usize + 1, variant.kv_block.max(16) as usize + 5);
        let head_dim = variant.head_dim().max(8) as usize;
        let problem = Sizes { batch: 2, q_rows, kv_rows, q_heads: 2, kv_heads: 1, head_dim, dtype: T::DTYPE };
        for (p, mask) in [(0.2, Mask::Full), (0.6, Mask::Causal)] {
            let mut case = Case::new(variant, problem, mask);
            case.attention = case.attention.dropout(p, 0x0123_4567_89ab_cdef, u64::from(u32::MAX) - 40);
            let plan = case.attention.plan(&shared.device, problem);
            if !has_dropout(variant) {
                let Err(Error::KernelUnsupported { kernel: asked, reason }) = plan else { panic!("{plan:?}") };
                let is_named = matches!(reason, Unsupported::Feature { feature: "dropout", .. });
                assert!(asked == kernel && is_named, "{reason}");
                continue;
            }
            let plan = plan.expect("a legal problem");
            assert!(plan.steps.iter().all(|step| step.kernel.features == FeatureSet::of(DROPOUT)), "{plan}");
            case.check::<T>(&shared.device).unwrap_or_else(|wrong| panic!("{}: {wrong}", variant.entry.symbol));
        }
    }
}

/// What is dropped, and by which numbers.
fn dropped() -> impl Strategy<Value = Dropout> {
    let p = prop_oneof![1 => Just(0.5f32), 1 => Just(0.1), 2 => 0.0f32..0.9];
    let number = || prop_oneof![1 => 0u64..100, 1 => any::<u64>()];
    (p, number(), number()).prop_map(|(p, seed, offset)| Dropout::new(p, seed, offset))
}

/// A row for the same that drops, if another one was drawn.
fn with_dropout(mut case: Case, dropout: Dropout) -> Case {
    if let KernelChoice::Variant(variant) = case.attention.kernel
        && !has_dropout(variant)
    {
        case.attention.kernel = variant.pass.kernel().into();
    }
    // The most that v1 drops in f32, which `every_variant_drops_or_says_that_it_does_not` looks at.
    if case.attention.kernel.kernel() == Some(Kernel::V1) && case.problem.dtype == DType::F32 {
        case.problem.head_dim = case.problem.head_dim.min(192);
    }
    case.attention = case.attention.with_dropout(dropout);
    case
}

for_each_dtype!(random_problems_of_v2, ferroflash::Kernel::V2);
for_each_dtype!(random_problems_of_v1, ferroflash::Kernel::V1);
for_each_dtype!(random_problems_of_naive, ferroflash::Kernel::Naive);

fn random_problems_of_v2<T: Element>(kernel: Kernel) {
    random_problems::<T>(kernel);
}

fn random_problems_of_v1<T: Element>(kernel: Kernel) {
    random_problems::<T>(kernel);
}

fn random_problems_of_naive<T: Element>(kernel: Kernel) {
    random_problems::<T>(kernel);
}

fn random_problems<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let cases = (properties::cases(kernel, T::DTYPE), dropped()).prop_map(|(case, d)| with_dropout(case, d));
    draws(file!(), device::cases(), 256).check(&cases, |case| case.check::<T>(&shared.device));
}

for_each_dtype!(rows_that_f32_does_not_carry_drop_the_same, ferroflash::Kernel::V2);

/// Scores beyond f32 and hidden keys: those rows are computed again in f64, by the same numbers. Values are ordinary, since what is kept grows.
fn rows_that_f32_does_not_carry_drop_the_same<T: Element>(_: Kernel) {
    let shared = device::shared();
    for kernel in KERNELS {
        let cases = (properties::cases_of_every_size::<T>(kernel), dropped()).prop_map(|(mut case, dropout)| {
            case.magnitudes[2] = 1.0;
            with_dropout(case, dropout)
        });
        draws(file!(), device::cases(), 64).check(&cases, |case| case.check::<T>(&shared.device));
    }
}

/// One key, whose score f32 does not carry, and which most rows drop: nothing of their output says that they have to be computed again, but their
/// log-sum-exp is that of the key all the same. (naive gave minus infinity.)
#[test]
fn rows_that_drop_the_only_key_have_its_score() {
    let shared = device::shared();
    for kernel in KERNELS {
        let mut case = Case::new(kernel, sizes::<f32>(16, 1, [2, 1], 32), Mask::Full);
        case.attention = case.attention.with_scale(-1.6450214e-23).dropout(0.84, 88, 6034864775014032511);
        (case.deviation, case.magnitudes) = (0.1, [1.5e38, 4e16, 1.0]);
        case.check::<f32>(&shared.device).unwrap_or_else(|wrong| panic!("{kernel}: {wrong}"));
    }
}

for_each_dtype!(gradients_of_every_row, ferroflash::Kernel::V2);
for_each_dtype!(naive_gradients_of_every_row, ferroflash::Kernel::Naive);

fn naive_gradients_of_every_row<T: Element>(kernel: Kernel) {
    gradients_of_every_row::<T>(kernel);
}

fn gradients_of_every_row<T: Element>(kernel: Kernel) {
    let passes = match kernel {
        Kernel::Naive => &[BackwardPass::NaiveScores][..],
        _ => &[BackwardPass::Keys, BackwardPass::Queries],
    };
    for head_dim in COMPILED_HEAD_DIMS {
        for (i, (p, mask)) in [(0.15, Mask::Causal), (0.5, Mask::Full)].into_iter().enumerate() {
            let problem = Sizes { batch: 2, ..sizes::<T>(70, 75, [2, 1], head_dim as usize) };
            let mut case = BackwardCase::of(kernel, problem, mask);
            case.forward.attention = case.forward.attention.dropout(p, 99, u64::MAX - 30);
            case.forward.seed = i as u64;
            case.with_dlse = true;
            let plan = case.forward.attention.backward_plan(&device::shared().device, case.forward.problem);
            let plan = plan.expect("a legal problem");
            for &pass in passes {
                let dropping = FeatureSet::of(DROPOUT);
                let row = BackwardVariant::find_with(pass, T::DTYPE, head_dim, dropping).expect("a row of the list");
                let symbol = row.entry.symbol;
                let mut own = plan.steps.iter().filter(|step| step.kernel.entry.symbol == symbol).peekable();
                assert!(own.peek().is_some(), "{symbol}: {plan}");
                assert!(own.all(|step| step.kernel.features == dropping), "{symbol}: {plan}");
            }
            backward::check::<T>(&case);
        }
    }
}

for_each_dtype!(random_gradients, ferroflash::Kernel::V2);
for_each_dtype!(random_naive_gradients, ferroflash::Kernel::Naive);

fn random_naive_gradients<T: Element>(kernel: Kernel) {
    random_gradients::<T>(kernel);
}

fn random_gradients<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let cases = (backward::cases(kernel, T::DTYPE), dropped()).prop_map(|(mut case, dropout)| {
        case.forward = with_dropout(case.forward, dropout);
        if kernel != Kernel::Naive {
            // An error, which is looked at below.
            case.forward.attention.softcap = None;
        }
        case
    });
    draws(file!(), device::cases(), 64).check(&cases, |case| case.check::<T>(&shared.device));
}

/// Query rows, and keys.
const ROWS: usize = 150;
const KEYS: usize = 300;
const HEADS: usize = 3;
const BATCH: usize = 2;

/// One row in its memory: 1 in a column, 0 in the others.
fn one_hot(tensor: &mut [f32], row: usize, dim: usize, col: usize) {
    tensor[row * dim + col] = 1.0;
}

/// Which of some keys are kept, as the output tells: all weights are equal, and each of the values from `first` on has a column of its own.
fn kept_by_output(
    device: &Device,
    attention: Attention<'_>,
    dim: usize,
    first: usize,
    count: usize,
    dtype: DType,
) -> Vec<bool> {
    let (q_shape, kv_shape) = (Shape::new(BATCH, ROWS, HEADS, dim), Shape::new(BATCH, KEYS, 1, dim));
    let mut v = vec![0.0; BATCH * KEYS * dim];
    for batch in 0..BATCH {
        (0..count).for_each(|i| one_hot(&mut v, batch * KEYS + first + i, dim, i));
    }
    let upload = |data: &[f32], shape| upload(device, data, shape, dtype);
    let (q, k) = (upload(&vec![0.0; BATCH * ROWS * HEADS * dim], q_shape), upload(&vec![0.0; v.len()], kv_shape));
    let out = attention.forward(&q.view(), &k.view(), &upload(&v, kv_shape).view()).expect("a legal call").out;
    let out = out.to_f64_vec().expect("read");
    out.chunks_exact(dim).flat_map(|row| row[..count].iter().map(|&x| x > 0.0)).collect()
}

fn upload(device: &Device, data: &[f32], shape: Shape, dtype: DType) -> Tensor {
    fn of<T: Element>(device: &Device, data: &[f32], shape: Shape) -> Tensor {
        let data: Vec<T> = data.iter().map(|&x| T::from_f64(x.into())).collect();
        Tensor::from_slice(device, &data, shape, Layout::Bshd).expect("a legal tensor")
    }
    match dtype {
        DType::F16 => of::<f16>(device, data, shape),
        DType::Bf16 => of::<bf16>(device, data, shape),
        _ => of::<f32>(device, data, shape),
    }
}

/// By the definition, in the order of the output.
fn kept_by_definition([seed, offset]: [u64; 2], p: f32, first: usize, count: usize) -> Vec<bool> {
    let rows = (0..BATCH).flat_map(|b| (0..ROWS).flat_map(move |r| (0..HEADS).map(move |h| (b, r, h))));
    rows.flat_map(|(b, r, h)| {
        (first..first + count).map(move |key| dropout::keep(seed, offset, b, HEADS, h, r, key, p))
    })
    .collect()
}

/// The marks themselves: every tile of every kernel keeps what the definition keeps, no more and no less.
#[test]
fn every_tile_keeps_the_same_keys() {
    let device = &device::shared().device;
    let (numbers, p) = ([0xfeed_0000_beef, u64::from(u32::MAX) - 60], 0.4);
    for variant in VARIANTS.iter().filter(|v| has_dropout(v) && v.pass.kernel().passes().last() == Some(&v.pass)) {
        let dim = variant.head_dim() as usize;
        let attention = Attention::new().with_kernel(variant).dropout(p, numbers[0], numbers[1]);
        // Keys of the first blocks, and the last ones.
        let first = KEYS - dim;
        let found = kept_by_output(device, attention, dim, first, dim, variant.dtype);
        assert!(found == kept_by_definition(numbers, p, first, dim), "{}", variant.entry.symbol);
    }
}

/// Which rows keep a key, as the gradient of values tells: each of the gradients of the output has a column of its own.
#[test]
fn gradients_keep_the_same_keys() {
    let device = &device::shared().device;
    let (p, seed, offset) = (0.4, 77, 5);
    for kernel in [Kernel::Naive, Kernel::V2] {
        for dtype in DType::ALL {
            for dim in COMPILED_HEAD_DIMS.map(|dim| dim as usize) {
                let attention = Attention::new().with_kernel(kernel).with_lse(true).dropout(p, seed, offset);
                let (q_shape, kv_shape) = (Shape::new(1, ROWS, 1, dim), Shape::new(1, KEYS, 1, dim));
                let (first, count) = (ROWS.saturating_sub(dim), dim.min(ROWS));
                let mut dout = vec![0.0; ROWS * dim];
                (0..count).for_each(|i| one_hot(&mut dout, first + i, dim, i));
                let q = upload(device, &vec![0.0; ROWS * dim], q_shape, dtype);
                let k = upload(device, &vec![0.0; KEYS * dim], kv_shape, dtype);
                let dout = upload(device, &dout, q_shape, dtype);
                let Output { out, lse, .. } = attention.forward(&q.view(), &k.view(), &k.view()).expect("a legal call");
                let lse = lse.expect("asked for");
                let gradients =
                    attention.backward(&q.view(), &k.view(), &k.view(), &out.view(), &lse.view(), dout.view());
                let dv = gradients.expect("a legal call").dv.to_f64_vec().expect("read");
                for key in 0..KEYS {
                    for i in 0..count {
                        let keeps = dropout::keep(seed, offset, 0, 1, 0, first + i, key, p);
                        assert_eq!(
                            dv[key * dim + i] > 0.0,
                            keeps,
                            "{kernel} {dtype} {dim}: row {}, key {key}",
                            first + i
                        );
                    }
                }
            }
        }
    }
}

/// Inputs of a small problem, and what forward and backward pass make of them.
struct Small {
    inputs: [Tensor; 4],
}

impl Small {
    fn new(device: &Device) -> Small {
        let (q_shape, kv_shape) = (Shape::new(2, 33, 4, 16), Shape::new(2, 70, 2, 16));
        let values = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
        let [q, kv] = [q_shape, kv_shape].map(|shape| values(shape.elements().expect("few")));
        let of = |data: &[f32], shape| upload(device, data, shape, DType::F32);
        Small { inputs: [of(&q, q_shape), of(&kv, kv_shape), of(&kv, kv_shape), of(&q, q_shape)] }
    }

    /// Output, log-sum-exp and gradients, as bits.
    fn run(&self, attention: Attention<'_>) -> [Vec<u32>; 5] {
        let [q, k, v, dout] = self.inputs.each_ref().map(Tensor::view);
        let Output { out, lse, .. } = attention.with_lse(true).forward(&q, &k, &v).expect("a legal call");
        let lse = lse.expect("asked for");
        let Gradients { dq, dk, dv, .. } =
            attention.backward(&q, &k, &v, &out.view(), &lse.view(), dout).expect("a legal call");
        let bits = |data: Vec<f32>| data.into_iter().map(f32::to_bits).collect();
        let read = |tensor: &Tensor| bits(tensor.to_vec().expect("read"));
        [read(&out), bits(lse.to_vec().expect("read")), read(&dq), read(&dk), read(&dv)]
    }
}

/// A probability of 0 is no dropout, and the log-sum-exp never knows of it.
#[test]
fn nothing_is_dropped_with_a_probability_of_0() {
    let device = &device::shared().device;
    let small = Small::new(device);
    for kernel in KERNELS {
        let plain = Attention::new().causal().with_kernel(kernel);
        let problem = uniform(1, 100, 100, DType::F16);
        assert_eq!(plain.dropout(0.0, 3, 4).plan(device, problem).unwrap(), plain.plan(device, problem).unwrap());
        assert_eq!(small.run(plain), small.run(plain.dropout(0.0, 3, 4)), "{kernel}");
        let [_, lse, ..] = small.run(plain);
        let dropping = small.run(plain.dropout(0.3, 3, 4));
        assert_eq!(dropping[1], lse, "{kernel}");
        assert_ne!(dropping, small.run(plain.dropout(0.3, 4, 4)), "{kernel}: another seed");
        assert_ne!(dropping, small.run(plain.dropout(0.3, 3, 36)), "{kernel}: another offset");
        assert_eq!(dropping, small.run(plain.dropout(0.3, 3, 4)), "{kernel}: the same");
    }
}

/// Two numbers of 64 bits on the device do what the same numbers in the call do.
#[test]
fn seed_and_offset_may_be_on_the_device() {
    let device = &device::shared().device;
    let small = Small::new(device);
    let [seed, offset] = [0x8765_4321_0fed_cba9_u64, 0xffff_fff0];
    let words = [seed, offset].map(|x| [x as i32, (x >> 32) as i32]).concat();
    let mut state = Indices::from_slice(device, &words).unwrap();
    for kernel in KERNELS {
        let attention = Attention::new().with_kernel(kernel);
        // SAFETY: as many bytes, which live as long as the test and change below alone.
        let on_device = |more| unsafe { Dropout::from_device(0.3, state.view().address(), more) };
        assert_eq!(
            small.run(attention.with_dropout(on_device(0))),
            small.run(attention.dropout(0.3, seed, offset)),
            "{kernel}"
        );
        assert_eq!(
            small.run(attention.with_dropout(on_device(320))),
            small.run(attention.dropout(0.3, seed, offset + 320)),
            "{kernel}"
        );
    }
    // The same plan with other numbers in their place.
    let attention = Attention::new().with_kernel(Kernel::V2);
    // SAFETY: see above.
    let on_device = attention.with_dropout(unsafe { Dropout::from_device(0.3, state.view().address(), 0) });
    state.write(&[5, 0, 6, 0]).unwrap();
    assert_eq!(small.run(on_device), small.run(attention.dropout(0.3, 5, 6)));
    // The reference has no device.
    let problem = Problem::new(Sequences::Uniform { batch: 1, q_rows: 1, kv_rows: 1 }, 1, 1, 8, DType::F32);
    let error = reference::forward(&[0.0; 8], &[0.0; 8], &[0.0; 8], problem, &on_device).unwrap_err();
    assert!(matches!(error, Error::Unsupported(Unsupported::DropoutOnDevice)), "{error}");
}

#[test]
fn what_is_no_probability_is_refused() {
    let device = &device::shared().device;
    let problem = uniform(1, 10, 10, DType::F16);
    for p in [1.0, -0.1, f32::NAN, 2.0] {
        let attention = Attention::new().dropout(p, 0, 0);
        let errors = [
            attention.plan(device, problem).map(|_| ()).unwrap_err(),
            attention.backward_plan(device, problem).map(|_| ()).unwrap_err(),
            reference::forward(&[0.0; 1280], &[0.0; 640], &[0.0; 640], problem, &attention).map(|_| ()).unwrap_err(),
        ];
        for error in errors {
            let expected = format!("dropout of {p} is not accepted; probabilities from 0 to below 1 are");
            assert_eq!(error.to_string(), expected);
        }
    }
    for address in [0, 4, 12, 17] {
        // SAFETY: nothing is launched.
        let attention = Attention::new().with_dropout(unsafe { Dropout::from_device(0.5, address, 0) });
        let error = attention.plan(device, problem).unwrap_err();
        let expected = format!(
            "seed and offset of dropout are at address {address:#x}; multiples of 8 bytes above 0 are accepted"
        );
        assert_eq!(error.to_string(), expected);
    }
}

/// What the registers of the portable kernels do not hold.
#[test]
fn a_softcap_and_dropout_have_gradients_by_naive_alone() {
    let device = &device::shared().device;
    let problem = uniform(1, 10, 10, DType::F16);
    let both = Attention::new().with_softcap(5.0).dropout(0.5, 1, 2);
    assert!(both.plan(device, problem).is_ok());
    assert!(both.with_kernel(Kernel::Naive).backward_plan(device, problem).is_ok());
    for attention in [both, both.with_kernel(Kernel::V2), both.with_kernel(Kernel::V1)] {
        let error = attention.backward_plan(device, problem).unwrap_err();
        assert!(matches!(error, Error::Unsupported(Unsupported::CappedDropout)), "{error}");
    }
    for alone in [Attention::new().with_softcap(5.0), both.with_softcap(None)] {
        assert!(alone.backward_plan(device, problem).is_ok());
    }
}

/// Packed sequences and caches have no dropout yet.
#[test]
fn sequences_refuse_dropout() {
    let device = &device::shared().device;
    let attention = Attention::new().dropout(0.5, 1, 2);
    let packed = Problem::new(Sequences::Packed { batch: 2, q_rows: 10, kv_rows: 10 }, 2, 1, 64, DType::F16);
    let capacity = 100;
    let cached = Sequences::Cached { batch: 2, q_rows: QueryRows::Each(1), capacity };
    let cached = Problem::new(cached, 2, 1, 64, DType::F16);
    let errors = [
        (attention.plan(device, packed).map(|_| ()), "packed"),
        (attention.backward_plan(device, packed).map(|_| ()), "packed"),
        (attention.plan(device, cached).map(|_| ()), "cached"),
    ];
    for (found, kind) in errors {
        let expected = format!("not supported: dropout over {kind} sequences; uniform ones are accepted with it");
        assert_eq!(found.unwrap_err().to_string(), expected);
    }
    assert!(attention.with_dropout(None).plan(device, packed).is_ok());
}

/// Scores pass through a program as they do without dropout, in both directions.
#[test]
fn programs_and_dropout_go_together() {
    let device = &device::shared().device;
    let small = Small::new(device);
    // Doubling scores is doubling the scale.
    let program = ScoreProgram::new("twice", |p| p.score() * 2.0).unwrap();
    let bound = program.bind(&[]).unwrap();
    for kernel in KERNELS {
        let attention = Attention::new().causal().with_kernel(kernel).dropout(0.3, 7, 8);
        let found = small.run(attention.with_scale(0.125).with_program(&bound));
        assert_eq!(found, small.run(attention.with_scale(0.25)), "{kernel}");
    }
}

/// Hopper's kernels have no dropout, and plans say so.
#[test]
fn plans_say_why_other_kernels_drop() {
    let device = Device::emulator_with(EmulatorConfig::default()).expect("the emulator is everywhere");
    let problem = uniform(2, 500, 500, DType::Bf16);
    let attention = Attention::new().dropout(0.1, 7, 8);
    let plan = attention.plan(&device, problem).unwrap();
    assert_eq!(plan.kernel, Kernel::V2);
    let why = "without v3: no compiled entry accepts dropout for bf16 and head dim 64";
    assert!(plan.reason.ends_with(why), "{}", plan.reason);
    assert!(plan.to_string().contains(", dropout 0.1, seed 7, offset 8\n"), "{plan}");
    let gradients = attention.backward_plan(&device, problem).unwrap();
    assert!(gradients.reason.ends_with("no compiled entry accepts dropout for bf16 and head dim 64"), "{gradients}");
    assert!(gradients.to_string().contains(", dropout 0.1, seed 7, offset 8\n"), "{gradients}");
    let asked = attention.with_kernel(Kernel::V3);
    for error in [asked.plan(&device, problem).map(|_| ()), asked.backward_plan(&device, problem).map(|_| ())] {
        let Err(Error::KernelUnsupported { kernel: Kernel::V3, reason }) = error else { panic!("{error:?}") };
        assert!(matches!(reason, Unsupported::Feature { feature: "dropout", .. }), "{reason}");
    }
}
