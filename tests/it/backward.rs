//! Gradients against the reference: every row of the list at the edges of its tiles, random problems, and the cases that have no number to
//! compare with.

use crate::properties;
use crate::support::case::Memory;
use crate::support::draws::draws;
use crate::support::gradients::BackwardCase;
use crate::support::{bf16, device, f16};
use ferroflash::{
    Attention, DType, Device, Element, EmulatorConfig, Kernel, Layout, Lse, Mask, RawTensor, Shape, Sizes, Step, Tensor,
};
use kernel_spec::families::backward::{Pass, VARIANTS, Variant};
use kernel_spec::families::forward::features::SOFTCAP;
use kernel_spec::{COMPILED_HEAD_DIMS, FeatureSet};
use proptest::prelude::*;

/// Makes one test for each of some element types, of what a kernel gives.
macro_rules! for_each_type {
    ($check:ident, $kernel:expr, $($type:ident)+) => {
        mod $check {
            #[allow(unused_imports, reason = "f32 is a builtin")]
            use $crate::support::{bf16, f16};

            $(
                #[test]
                fn $type() {
                    super::$check::<$type>($kernel);
                }
            )+
        }
    };
}
pub(crate) use for_each_type;

/// The same for every element type, of the portable kernels or of another.
macro_rules! for_each_dtype {
    ($check:ident) => {
        for_each_dtype!($check, ferroflash::Kernel::V2);
    };
    ($check:ident, $kernel:expr) => {
        $crate::backward::for_each_type!($check, $kernel, f32 f16 bf16);
    };
}
pub(crate) use for_each_dtype;

/// The same for the types of 16 bits.
macro_rules! for_each_half {
    ($check:ident, $kernel:expr) => {
        $crate::backward::for_each_type!($check, $kernel, f16 bf16);
    };
}
pub(crate) use for_each_half;

/// Whether the backward pass has such a kernel for a problem: v3 has rows up to 128 columns, and no use for a problem without keys.
fn has(kernel: Kernel, head_dim: usize, kv_rows: usize) -> bool {
    kernel != Kernel::V3 || (head_dim <= 128 && kv_rows > 0)
}

pub(crate) fn check<T: Element>(case: &BackwardCase) {
    case.check::<T>(&device::shared().device).unwrap_or_else(|wrong| panic!("{wrong}"));
}

pub(crate) fn sizes<T: Element>(
    q_rows: usize,
    kv_rows: usize,
    [q_heads, kv_heads]: [usize; 2],
    head_dim: usize,
) -> Sizes {
    Sizes { batch: 1, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype: T::DTYPE }
}

/// One row less than a tile, exactly one tile, one row more, with masks that cut through it.
pub(crate) fn every_row_at_its_tile_edges<T: Element>(kernel: Kernel) {
    let passes = match kernel {
        Kernel::Naive => &[Pass::NaiveScores, Pass::NaiveQueries, Pass::NaiveKeys][..],
        Kernel::V3 => &[Pass::Fused, Pass::Ordered],
        _ => &[Pass::Keys, Pass::Queries],
    };
    for head_dim in COMPILED_HEAD_DIMS.into_iter().filter(|&dim| has(kernel, dim as usize, 1)) {
        for &pass in passes {
            let row = Variant::find(pass, T::DTYPE, head_dim).expect("a row of the list");
            let (q, kv) = (row.q_block as usize, row.kv_block as usize);
            let window = Mask::Window { left: Some(kv as u32 / 2), right: Some(3) };
            // With two blocks of keys or fewer there is nothing to order.
            let more = if pass == Pass::Ordered { 2 * kv } else { 0 };
            let edges = [
                (q - 1, kv + 1, Mask::Full),
                (q, kv, Mask::Causal),
                (q + 1, kv - 1, Mask::Causal),
                (q + 1, 2 * kv + 1, window),
            ];
            for (i, (q_rows, kv_rows, mask)) in edges.into_iter().enumerate() {
                let mut case =
                    BackwardCase::of(kernel, sizes::<T>(q_rows, kv_rows + more, [2, 1], head_dim as usize), mask);
                case.forward.attention.deterministic = pass == Pass::Ordered;
                case.forward = case.forward.with_layout(if i % 2 == 0 { Layout::Bshd } else { Layout::Bhsd });
                case.forward.seed = i as u64;
                let plan = case.forward.attention.backward_plan(&device::shared().device, case.forward.problem);
                let plan = plan.expect("a legal problem");
                assert!(plan.symbols().any(|symbol| symbol == row.entry.symbol), "{}: {plan}", row.entry.symbol);
                check::<T>(&case);
            }
        }
    }
}

for_each_dtype!(every_row_at_its_tile_edges);

/// Every row with a softcap: strong, so that most scores are bent, and weak; scales of both signs.
pub(crate) fn every_row_with_a_softcap<T: Element>(kernel: Kernel) {
    let passes = match kernel {
        Kernel::Naive => &[Pass::NaiveScores][..],
        _ => &[Pass::Keys, Pass::Queries],
    };
    for head_dim in COMPILED_HEAD_DIMS {
        for (i, (cap, scale, mask)) in [(1.5, -0.4, Mask::Full), (20.0, 0.7, Mask::Causal)].into_iter().enumerate() {
            let mut case = BackwardCase::of(kernel, sizes::<T>(70, 75, [2, 1], head_dim as usize), mask);
            case.forward.attention.softcap = Some(cap);
            case.forward.attention.scale = Some(scale);
            case.forward.seed = i as u64;
            case.with_dlse = true;
            let plan = case.forward.attention.backward_plan(&device::shared().device, case.forward.problem);
            let plan = plan.expect("a legal problem");
            for &pass in passes {
                let row =
                    Variant::find_with(pass, T::DTYPE, head_dim, FeatureSet::of(SOFTCAP)).expect("a row of the list");
                let is_capped = |step: &Step| {
                    step.kernel.entry.symbol == row.entry.symbol && step.kernel.features == FeatureSet::of(SOFTCAP)
                };
                assert!(plan.steps.iter().any(is_capped), "{}: {plan}", row.entry.symbol);
            }
            check::<T>(&case);
        }
    }
}

for_each_dtype!(every_row_with_a_softcap);

/// A case of the forward pass, whose memories also serve the gradients, with a gradient of the output that may be the same for all heads.
pub(crate) fn cases(kernel: Kernel, dtype: DType) -> impl Strategy<Value = BackwardCase> {
    // v3 takes 16-byte pieces alone, and nothing that repeats.
    let v3 = kernel == Kernel::V3;
    let memory = if v3 { properties::memory_in_pieces().boxed() } else { properties::memory(false).boxed() };
    let memories = prop_oneof![2 => Just(None), 1 => prop::array::uniform4(memory).prop_map(Some)];
    let expanded = if v3 { Just(false).boxed() } else { prop::bool::weighted(0.1).boxed() };
    (properties::cases(kernel, dtype), memories, prop::bool::ANY, expanded, prop::bool::ANY).prop_map(
        move |(mut forward, memories, with_dlse, expanded, deterministic)| {
            if v3 {
                forward.attention.softcap = None;
            }
            forward.attention.deterministic = deterministic;
            let [mut dout, dq, dk, dv] = memories.unwrap_or([Memory::contiguous(forward.q.layout); 4]);
            dout.one_head |= expanded;
            BackwardCase { forward, dout, gradients: [dq, dk, dv], with_dlse }
        },
    )
}

pub(crate) fn random_problems_agree_with_the_reference<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let cases = cases(kernel, T::DTYPE).prop_filter("a kernel of this problem", move |case| {
        let (forward, problem) = (&case.forward, &case.forward.problem);
        let in_pieces = [&forward.q, &forward.k, &forward.v, &forward.out].into_iter().all(Memory::is_in_pieces);
        has(kernel, problem.head_dim, problem.kv_rows) && (kernel != Kernel::V3 || in_pieces)
    });
    // Each is five kernels and two references that cost several times those of the forward pass. Shrinking ends after about a minute.
    draws(file!(), device::cases().div_ceil(2), 256).check(&cases, |case| case.check::<T>(&shared.device));
}

for_each_dtype!(random_problems_agree_with_the_reference);

/// Logits of some hundreds: one key has nearly all the weight of a row, and everything stays finite.
pub(crate) fn large_logits<T: Element>(kernel: Kernel) {
    let dims = [(64, Mask::Full), (128, Mask::Causal), (256, Mask::Full)];
    for (head_dim, mask) in dims.into_iter().filter(|&(dim, _)| has(kernel, dim, 1)) {
        let mut case = BackwardCase::of(kernel, sizes::<T>(70, 90, [4, 2], head_dim), mask);
        case.forward.magnitudes = [5.0, 3.0, 3.0];
        check::<T>(&case);
    }
}

for_each_dtype!(large_logits);

/// One key, which has all the weight of every row, whatever its score: nothing of a score of hundreds may be left in the weight.
pub(crate) fn one_key_of_large_scores<T: Element>(kernel: Kernel) {
    for (scale, mask) in [(1.7, Mask::Full), (-1.3, Mask::Causal)] {
        let mut case = BackwardCase::of(kernel, Sizes { batch: 2, ..sizes::<T>(16, 1, [1, 1], 96) }, mask);
        case.forward.attention.scale = Some(scale);
        case.forward.deviation = 3.0;
        check::<T>(&case);
    }
}

for_each_dtype!(one_key_of_large_scores);

/// Scores of some hundreds between which the weight is shared: f32 loses no more of them than the plain formula does. The mean of the errors
/// tells; the largest is that of one rare row. With exponents of 2 it was 1.3 times the formula's at least, with those of e it is 1.02 times
/// at most, over 54 times six draws of this problem.
pub(crate) fn large_scores_lose_what_the_formula_loses<T: Element>(kernel: Kernel) {
    let (mut squares, mut of_formula) = (0.0, 0.0);
    for seed in 0..6 {
        let mut case = BackwardCase::of(kernel, sizes::<T>(174, 191, [4, 2], 8), Mask::Full);
        case.forward.attention.scale = Some(1.7);
        case.forward.deviation = 3.0;
        case.forward.seed = seed;
        let given = case.inputs::<T>();
        let computed = case.run(&device::shared().device, &given).unwrap_or_else(|wrong| panic!("{wrong}"));
        let [ours, formula] = case.squared_errors_of_dq(&given, &computed);
        (squares, of_formula) = (squares + ours, of_formula + formula);
    }
    let times = (squares / of_formula).sqrt();
    assert!(times < 1.15, "{times:.3} times the error of the formula in f32");
}

for_each_type!(large_scores_lose_what_the_formula_loses, ferroflash::Kernel::V2, f32);

/// Rows that see no key get 0 and give nothing, keys that no row sees get 0, and so does everything where there are no keys.
pub(crate) fn rows_and_keys_that_see_nothing<T: Element>(kernel: Kernel) {
    let window = |left, right| Mask::Window { left: Some(left), right: Some(right) };
    for with_dlse in [false, true] {
        for (q_rows, kv_rows, mask) in [
            (70, 0, Mask::Full),
            (150, 3, Mask::Causal),
            (3, 150, window(0, 0)),
            (200, 70, window(5, 1)),
            (1, 1, Mask::Full),
        ]
        .into_iter()
        .filter(|&(_, kv_rows, _)| has(kernel, 40, kv_rows))
        {
            let mut case = BackwardCase::of(kernel, sizes::<T>(q_rows, kv_rows, [2, 2], 40), mask);
            case.with_dlse = with_dlse;
            check::<T>(&case);
        }
    }
}

for_each_dtype!(rows_and_keys_that_see_nothing);

/// Blocks of keys that no row sees are never read, whatever they hold; their gradients are 0.
#[test]
fn nan_in_key_blocks_that_no_row_sees() {
    let device = &device::shared().device;
    let case = BackwardCase::new(sizes::<f16>(40, 600, [2, 1], 64), Mask::Window { left: Some(10), right: Some(0) });
    let clean = case.inputs::<f16>();
    let expected = case.run(device, &clean).unwrap_or_else(|wrong| panic!("{wrong}"));
    // Rows see keys from 550 on, and blocks have at most 128.
    let mut spoiled = case.inputs::<f16>();
    spoiled.spoil_keys(0..400 * 64, f16::NAN);
    let found = case.run(device, &spoiled).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert_eq!(found, expected);
}

/// The same bits from run to run, whatever the order in which warps and thread blocks come: there is one for every sum.
pub(crate) fn repeats_have_the_same_bits<T: Element>(kernel: Kernel) {
    for head_dim in [64, 256].into_iter().filter(|&dim| has(kernel, dim, 1)) {
        let mut case = BackwardCase::of(kernel, sizes::<T>(100, 150, [4, 2], head_dim), Mask::Causal);
        case.with_dlse = true;
        let given = case.inputs::<T>();
        let seeds: Vec<Device> = if device::is_gpu() {
            (0..20).map(|_| device::shared().device.clone()).collect()
        } else {
            let with_seed = |seed| Device::emulator_with(EmulatorConfig::default().with_seed(seed));
            (0..device::seeds(6).into()).map(|seed| with_seed(seed).expect("the emulator is built in")).collect()
        };
        let run = |device: &Device| case.run(device, &given).unwrap_or_else(|wrong| panic!("{wrong}"));
        let first = run(&seeds[0]);
        for device in &seeds[1..] {
            let again = run(device);
            for (a, b) in first.iter().zip(&again) {
                assert_eq!(bytemuck::cast_slice::<T, u8>(a), bytemuck::cast_slice::<T, u8>(b), "head dim {head_dim}");
            }
        }
    }
}

for_each_dtype!(repeats_have_the_same_bits);

/// From the forward pass to the gradients through the calls that allocate: within the rule, and no more memory than the plan says.
pub(crate) fn forward_and_backward<T: Element>(kernel: Kernel) {
    let device = &device::exclusive().device;
    let case = BackwardCase::of(kernel, sizes::<T>(130, 100, [6, 2], 72), Mask::Causal);
    let given = case.inputs::<T>();
    let (q_shape, kv_shape) = (case.forward.q_shape(), case.forward.kv_shape());
    let upload = |data: &[T], shape| Tensor::from_slice(device, data, shape, Layout::Bshd).unwrap();
    let [q, k, v, dout] = given.tensors([q_shape, kv_shape, kv_shape, q_shape], upload);
    let attention = case.forward.attention.with_lse(true);
    let output = attention.forward(&q.view(), &k.view(), &v.view()).unwrap();
    let lse = output.lse.unwrap();
    device.synchronize().unwrap();
    let before = device.memory().live_bytes;
    device.reset_peak();
    let (q, k, v, out) = (q.view(), k.view(), v.view(), output.out.view());
    let gradients = attention.backward(&q, &k, &v, &out, &lse.view(), dout.view()).unwrap();
    device.synchronize().unwrap();
    let bytes = |tensor: &Tensor| (tensor.storage_elements() * T::DTYPE.bytes()) as u64;
    let tensors: u64 = [&gradients.dq, &gradients.dk, &gradients.dv].into_iter().map(bytes).sum();
    assert_eq!(device.memory().peak_bytes - before - tensors, gradients.plan.workspace_bytes());
    assert_eq!(gradients.plan, attention.backward_plan(device, case.forward.problem).unwrap());
    let computed = [&gradients.dq, &gradients.dk, &gradients.dv].map(|tensor| tensor.to_vec::<T>().unwrap());
    case.compare(&given, &computed).unwrap_or_else(|wrong| panic!("{wrong}"));
}

for_each_dtype!(forward_and_backward);

/// Rows without keys whose log-sum-exp is plus infinity, as other programs write it, are rows without keys.
#[test]
fn plus_infinity_is_a_row_without_keys() {
    let device = &device::shared().device;
    let (q_shape, kv_shape) = (Shape::new(1, 5, 1, 16), Shape::new(1, 2, 1, 16));
    let ones =
        |shape: Shape| Tensor::from_slice(device, &vec![1f32; shape.elements().unwrap()], shape, Layout::Bshd).unwrap();
    let (q, kv) = (ones(q_shape), ones(kv_shape));
    let attention = Attention::new().causal().with_lse(true);
    let output = attention.forward(&q.view(), &kv.view(), &kv.view()).unwrap();
    let lse = output.lse.unwrap();
    let values = lse.to_vec().unwrap();
    assert_eq!(values.iter().filter(|&&x| x == f32::NEG_INFINITY).count(), 3, "three rows see no key");
    let turned: Vec<f32> = values.iter().map(|&x| if x == f32::NEG_INFINITY { -x } else { x }).collect();
    let turned = Lse::from_slice(device, &turned, lse.shape()).unwrap();
    let gradients = [&lse, &turned].map(|lse| {
        let (q, kv, out) = (q.view(), kv.view(), output.out.view());
        let gradients = attention.backward(&q, &kv, &kv, &out, &lse.view(), q).unwrap();
        [&gradients.dq, &gradients.dk, &gradients.dv].map(|tensor| tensor.to_vec::<f32>().unwrap())
    });
    assert_eq!(gradients[0], gradients[1]);
    assert!(gradients[0][2].iter().any(|&x| x > 0.5), "values have gradients");
}

/// Addresses and strides, which is all that other frameworks have, give the bits of views.
#[test]
fn raw_addresses_give_the_same_bits() {
    let device = &device::shared().device;
    let case = BackwardCase::new(sizes::<bf16>(40, 70, [2, 1], 64), Mask::Causal);
    let (q_shape, kv_shape) = (case.forward.q_shape(), case.forward.kv_shape());
    let upload = |data: &[bf16], shape| Tensor::from_slice(device, data, shape, Layout::Bhsd).unwrap();
    let [q, k, v, dout] = case.inputs::<bf16>().tensors([q_shape, kv_shape, kv_shape, q_shape], upload);
    let attention = case.forward.attention.with_lse(true);
    let output = attention.forward(&q.view(), &k.view(), &v.view()).unwrap();
    let lse = output.lse.unwrap();
    let (q_view, k_view, v_view) = (q.view(), k.view(), v.view());
    let expected = attention.backward(&q_view, &k_view, &v_view, &output.out.view(), &lse.view(), dout.view()).unwrap();
    let new = |shape| Tensor::zeros(device, DType::Bf16, shape, Layout::Bshd).unwrap();
    let (dq, dk, dv) = (new(q_shape), new(kv_shape), new(kv_shape));
    let raw = |tensor: &Tensor| RawTensor::from(tensor.view().as_heads(Layout::Bshd).unwrap());
    // SAFETY: tensors of the device, used by nothing else until it is done.
    unsafe {
        let (null, problem) = (std::ptr::null_mut(), case.forward.problem);
        let inputs = [&q, &k, &v, &output.out, &dout].map(raw);
        let [q, k, v, out, dout] = inputs;
        let [dq, dk, dv] = [&dq, &dk, &dv].map(raw);
        attention
            .backward_raw(device, null, problem, q, k, v, out, lse.address(), dout, None, dq, dk, dv, None)
            .unwrap();
    }
    device.synchronize().unwrap();
    for (found, expected) in [(&dq, &expected.dq), (&dk, &expected.dk), (&dv, &expected.dv)] {
        assert_eq!(found.to_vec::<bf16>().unwrap(), expected.to_vec::<bf16>().unwrap());
    }
}

/// Every row of the list is one that some call launches, and this build holds its PTX: the tests above visit no less.
#[test]
fn every_row_is_embedded_and_launched() {
    let embedded: Vec<_> = ferroflash::embedded_entries().map(|entry| entry.symbol).collect();
    for row in VARIANTS {
        let symbol = row.entry.symbol;
        let found = Variant::find_with(row.pass, row.dtype, row.dim.max(8), row.entry.accepts);
        assert_eq!(found, Some(row), "{symbol}");
        assert!(embedded.contains(&symbol), "the build holds no PTX of {symbol}");
    }
}
