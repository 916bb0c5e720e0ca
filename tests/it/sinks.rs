//! Attention sinks: every kernel against the reference, which has a sink as one score more, at extremes, and their gradient.

use crate::backward::{self, for_each_dtype, for_each_half};
use crate::properties;
use crate::sequences;
use crate::support::case::{self, Case, to_f64};
use crate::support::draws::{self, Draws};
use crate::support::gradients::BackwardCase;
use crate::support::programs::NAMED;
use crate::support::{bf16, device, f16};
use ferroflash::reference::{self, SequenceRows};
use ferroflash::{
    Attention, DType, Device, Element, Error, GradientsViewMut, Indices, Kernel, KernelChoice, KvCache, Layout, Lse,
    LseShape, Mask, Operand, OutputGradients, PackedRows, Shape, SinkError, Sizes, Splits, Tensor, TensorView,
    VARIANTS,
};
use kernel_spec::FeatureSet;
use kernel_spec::families::forward::features::{SINK, SOFTCAP};
use kernel_spec::families::sequences::VARIANTS as SEQUENCES;
use proptest::prelude::*;
use std::sync::OnceLock;

/// The device of the tests, for as long as they run: sinks live on it.
fn lasting() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| device::shared().device.clone())
}

fn draws(cases: u32) -> Draws {
    draws::draws(file!(), cases, 256)
}

/// Sinks for as long as the tests run.
fn leak(values: &[f32]) -> TensorView<'static> {
    let tensor = Tensor::from_slice(lasting(), values, [values.len()], Layout::RowMajor).expect("a tensor of numbers");
    Box::leak(Box::new(tensor)).view()
}

/// Sinks of so many heads: beside the scores, above and below them, and none.
pub(crate) fn some(heads: usize, seed: u64) -> TensorView<'static> {
    const SINKS: [f32; 8] = [0.5, -1.25, 3.0, f32::NEG_INFINITY, 7.5, 0.0, -20.0, 1.5];
    let values: Vec<f32> = (0..heads).map(|head| SINKS[(seed as usize).wrapping_add(3 * head) % 8]).collect();
    leak(&values)
}

crate::for_each_kernel_and_dtype!(random_problems_agree_with_the_reference);

fn random_problems_agree_with_the_reference<T: Element>(kernel: Kernel) {
    let cases = properties::cases(kernel, T::DTYPE).prop_map(|mut case| {
        case.attention = case.attention.with_sink(&some(case.problem.q_heads, case.seed));
        // Tiles that take no sinks are no part of this, and v3 has those with them beside.
        if let KernelChoice::Variant(row) = case.attention.kernel
            && !row.entry.accepts.contains(FeatureSet::of(SINK))
        {
            case.attention.kernel = KernelChoice::Kernel(row.pass.kernel());
        }
        case
    });
    draws(device::cases().div_ceil(2)).check(&cases, |case| case.check::<T>(lasting()));
}

crate::for_each_kernel_and_dtype!(every_row_at_its_tile_edges);

/// Alone, and together with a softcap and a program where the row takes them.
fn every_row_at_its_tile_edges<T: Element>(kernel: Kernel) {
    let device = lasting();
    let rows = VARIANTS.iter().filter(|v| v.pass == kernel.passes()[0] && v.dtype == T::DTYPE);
    let rows = rows.filter(|v| v.entry.accepts.contains(FeatureSet::of(SINK)) && device.info().runs(v.entry.arch));
    // Those with lists of blocks are `blocks`' own.
    let rows = rows.filter(|v| !v.is_listed());
    for (i, row) in rows.enumerate() {
        for alone in [true, false] {
            let (q, kv) = (row.q_block as usize, row.kv_block as usize);
            let (q_rows, kv_rows) = if alone { (q + 1, kv - 1) } else { (9, kv + 1) };
            let dim = row.dim_qk as usize;
            let sizes = Sizes { batch: 2, q_rows, kv_rows, q_heads: 4, kv_heads: 2, head_dim: dim, dtype: T::DTYPE };
            let mut case = Case::new(row, sizes, if i % 2 == 0 { Mask::Causal } else { Mask::Full });
            if !kernel.passes()[1..].is_empty() {
                case.attention.kernel = KernelChoice::Kernel(kernel);
            }
            case.attention = case.attention.with_sink(&some(4, i as u64));
            if !alone {
                let takes = |feature| row.entry.accepts.contains(FeatureSet::of(feature));
                case.attention.softcap = takes(SOFTCAP).then_some(5.0);
                case.attention.program = takes(kernel_spec::families::forward::features::PROGRAM)
                    .then(|| NAMED[i % NAMED.len()].bound(device));
                case.attention.scale = Some(-0.3);
            }
            let plan = case.attention.plan(device, sizes).expect("a legal problem");
            assert!(plan.symbols().any(|symbol| symbol == row.entry.symbol), "{}: {plan}", row.entry.symbol);
            assert!(plan.sink && plan.to_string().contains(", sinks\n"), "{plan}");
            case.check::<T>(device).unwrap_or_else(|wrong| panic!("{}: {wrong}", row.entry.symbol));
        }
    }
}

crate::for_each_kernel_and_dtype!(extremes);

/// Sinks far above the scores and below, none, and what is no number; rows that see no key, and rows that f32 does not carry.
fn extremes<T: Element>(kernel: Kernel) {
    let device = lasting();
    let [far, none] = [1e4, f32::NEG_INFINITY];
    let sinks = leak(&[far, -far, none, 2.0]);
    for (q_rows, kv_rows, mask) in [(70, 70, Mask::Full), (150, 70, Mask::Causal), (40, 200, Mask::Causal)] {
        let sizes = Sizes { batch: 2, q_rows, kv_rows, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: T::DTYPE };
        let mut case = Case::new(kernel, sizes, mask);
        case.attention = case.attention.with_sink(&sinks);
        let inputs = case.inputs::<T>();
        let found = case.run(device, &inputs);
        case::compare(&found, &case.reference(&inputs)).unwrap_or_else(|wrong| panic!("{kernel}: {wrong}"));
        for (row, lse) in found.lse.iter().enumerate() {
            let (head, row) = (row / q_rows % 4, row % q_rows);
            let sees_no_key = mask == Mask::Causal && row + kv_rows < q_rows;
            match head {
                0 => assert!((lse - far).abs() <= far * 2e-7, "{lse}"),
                1 if sees_no_key => assert!((lse + far).abs() <= far * 2e-7, "{lse}"),
                _ => assert_eq!(*lse == none, head == 2 && sees_no_key, "{kernel} {head} {row}: {lse}"),
            }
        }
        // All the weight is the first head's sink's.
        let out = to_f64(&found.out);
        assert!(out.chunks(64).step_by(4).flatten().all(|&x| x == 0.0), "{kernel}");

        // Sinks of minus infinity, in a tile that takes sinks.
        let nothing = leak(&[none; 4]);
        let mut tiles = VARIANTS.iter().filter(|v| v.pass == kernel.passes()[0] && v.holds(T::DTYPE, [64; 2]));
        let tile = tiles.find(|v| v.dim_qk == 64 && v.entry.accepts.contains(FeatureSet::of(SINK)));
        let mut plain = Case::new(kernel, sizes, mask);
        if kernel.passes().len() == 1 {
            plain.attention.kernel = KernelChoice::Variant(tile.expect("a tile"));
        }
        let with = Case { attention: plain.attention.with_sink(&nothing), ..plain.clone() };
        let [a, b] = [plain, with].map(|case| case.run(device, &inputs));
        assert!(to_f64(&a.out) == to_f64(&b.out) && a.lse == b.lse, "{kernel}: bits without a sink");
    }
    // No number.
    let sizes = Sizes { batch: 1, q_rows: 70, kv_rows: 40, q_heads: 3, kv_heads: 1, head_dim: 64, dtype: T::DTYPE };
    let mut case = Case::new(kernel, sizes, Mask::Causal);
    case.attention = case.attention.with_sink(&leak(&[f32::INFINITY, f32::NAN, 1.0]));
    let found = case.run(device, &case.inputs::<T>());
    for (place, out) in to_f64(&found.out).chunks(64).enumerate() {
        let (row, head) = (place / 3, place % 3);
        assert!(
            out.iter().all(|x| if row < 30 { *x == 0.0 } else { x.is_nan() == (head < 2) }),
            "{kernel} {row} {head}"
        );
        assert_eq!(found.lse[head * 70 + row].is_nan(), head < 2, "{kernel} {row} {head}");
    }
    // Logits that f32 does not carry, and a sink among them; values whose sums overflow.
    for (magnitudes, sink) in [([100.0, 100.0, 1.0], 2e4), ([1.0, 1.0, case::largest::<T>() / 8.0], 3.0)] {
        let mut case = Case::new(kernel, Sizes { q_rows: 20, kv_rows: 300, ..sizes }, Mask::Full);
        (case.magnitudes, case.attention) = (magnitudes, case.attention.with_sink(&leak(&[sink, -sink, 1.0])));
        case.check::<T>(device).unwrap_or_else(|wrong| panic!("{kernel}, sink {sink}: {wrong}"));
    }
    // No keys at all.
    if kernel != Kernel::V3 {
        let mut case = Case::new(kernel, Sizes { kv_rows: 0, ..sizes }, Mask::Full);
        case.attention = case.attention.with_sink(&leak(&[5.0, none, -3.0]));
        case.check::<T>(device).unwrap_or_else(|wrong| panic!("{kernel}, no keys: {wrong}"));
    }
}

/// Packed sequences, caches and pages, split or not.
#[test]
fn sequences_agree_with_the_reference() {
    let cases = (sequences::cases::<f16>(), 0..3).prop_map(|(mut case, dtype)| {
        case.attention = case.attention.with_sink(&some(case.q_heads, case.seed));
        if let KernelChoice::Variant(row) = case.attention.kernel
            && row.pass == kernel_spec::Pass::PackedV3
        {
            case.attention.kernel = KernelChoice::Kernel(Kernel::V3);
        }
        (case, dtype)
    });
    draws(2 * device::cases()).check(&cases, |(case, dtype)| match dtype {
        0 => case.check::<f16>(lasting()),
        // A tile that is asked for has its type, and v3 its types.
        _ if case.attention.kernel != KernelChoice::Auto => case.check::<f16>(lasting()),
        1 => case.check::<bf16>(lasting()),
        _ => case.check::<f32>(lasting()),
    });
}

/// However the keys are split, the sink is in the sum once: by a merge, in a cluster, and of v3.
#[test]
fn splits_have_one_sink() {
    let device = lasting();
    let (heads, dim, keys) = (4, 64, 700);
    let shape = [1, 1, heads, dim];
    let data = |n: usize, step: f64| (0..n).map(move |i| f16::from_f64((i as f64 * step).sin())).collect::<Vec<_>>();
    let q = Tensor::from_slice(device, &data(heads * dim, 0.7), shape, Layout::RowMajor).unwrap();
    let kv = Tensor::from_slice(device, &data(keys * 2 * dim, 0.3), [1, keys, 2, dim], Layout::RowMajor).unwrap();
    let lengths = Indices::from_slice(device, &[keys as i32]).unwrap();
    let cache = KvCache::new(&kv.view(), &kv.view()).with_lengths(lengths.view());
    let attention = Attention::new().with_sink(&leak(&[4.0, 6.0, -1.0, 8.0])).with_lse(true);
    let of = |attention: Attention<'static>| {
        let output = attention.forward_cached(&q.view(), None, &cache).unwrap();
        (to_f64(&output.out.to_vec::<f16>().unwrap()), output.lse.unwrap().to_vec().unwrap(), output.plan)
    };
    let (out, lse, plan) = of(attention.with_splits(Splits::Count(1)).with_kernel(Kernel::V2));
    assert!(plan.splits == 1 && plan.sink, "{plan}");
    let rows = SEQUENCES.iter().filter(|v| v.entry.symbol.starts_with("decode") && v.holds(DType::F16, [64; 2]));
    let rows = rows.filter(|v| v.dim_qk == 64 && device.info().runs(v.entry.arch)).map(KernelChoice::Variant);
    let mut passes = Vec::new();
    for kernel in rows.chain([Kernel::V2.into(), Kernel::V3.into()]) {
        if kernel == KernelChoice::Kernel(Kernel::V3) && !case::runs::<f16>(device, Kernel::V3) {
            continue;
        }
        for count in [2, 5] {
            let (split_out, split_lse, plan) = of(attention.with_splits(Splits::Count(count)).with_kernel(kernel));
            assert_eq!(plan.splits, count, "{plan}");
            passes.extend(plan.symbols());
            assert!(reference::max_abs_difference(&split_out, &out) < 2e-3, "{plan}");
            for (a, b) in split_lse.iter().zip(&lse) {
                assert!((a - b).abs() < 1e-5, "{a} {b}: {plan}");
            }
        }
    }
    assert!(passes.contains(&"merge_f16"), "{passes:?}");
}

/// Whole tiles of v3 over packed sequences take no sinks: those of a single split do, and a merge brings them.
#[test]
fn packed_v3_is_tiles_of_one_split() {
    let device = lasting();
    if !case::runs::<f16>(device, Kernel::V3) {
        return;
    }
    let x = Tensor::zeros(device, DType::F16, [300, 2, 64], Layout::RowMajor).unwrap();
    let starts = Indices::from_slice(device, &[0, 100, 300]).unwrap();
    let rows = PackedRows::new(starts.view());
    let attention = Attention::new().with_kernel(Kernel::V3);
    let plan = |attention: &Attention| attention.plan_packed(&x.view(), &x.view(), &x.view(), &rows, &rows);
    let symbols: Vec<_> = plan(&attention).unwrap().symbols().collect();
    assert!(symbols.iter().any(|symbol| symbol.starts_with("v3_packed")), "{symbols:?}");
    let symbols: Vec<_> = plan(&attention.with_sink(&some(2, 0))).unwrap().symbols().collect();
    assert_eq!(symbols, ["packed_tiles", "v3_split_f16_d64", "merge_f16"]);
    let whole = SEQUENCES.iter().find(|v| v.entry.symbol == "v3_packed_f16_d64").expect("a row");
    let error = plan(&attention.with_kernel(whole).with_sink(&some(2, 0))).unwrap_err();
    assert_eq!(error.to_string(), "kernel v3 cannot run this: no compiled entry accepts sinks for f16 and head dim 64");
}

/// Gradients of the reference are its own differences, those of the sinks too.
#[test]
fn gradients_of_the_reference_are_differences() {
    const STEP: f64 = 1e-5;
    let sizes = Sizes { batch: 2, q_rows: 5, kv_rows: 3, q_heads: 4, kv_heads: 2, head_dim: 8, dtype: DType::F32 };
    let values = [0.5f32, -1.0, 2.0, f32::NEG_INFINITY];
    for (mask, softcap) in [(Mask::Full, None), (Mask::Causal, Some(2.0))] {
        let attention = Attention::new().with_mask(mask).with_softcap(softcap);
        let case = Case::new(Kernel::V2, sizes, mask);
        let inputs = case.inputs::<f32>();
        let mut all = [&inputs.q, &inputs.k, &inputs.v].map(|x| to_f64(x));
        let dout: Vec<f64> = (0..all[0].len()).map(|i| ((i * 7 + 3) % 11) as f64 / 5.0 - 1.0).collect();
        let dlse: Vec<f64> = (0..2 * 4 * 5).map(|i| ((i * 5 + 1) % 7) as f64 / 3.0 - 1.0).collect();
        let number = |[q, k, v]: &[Vec<f64>; 3], sinks: &[f32]| -> f64 {
            let result = reference::forward(q, k, v, sizes, &attention.with_sink(&leak(sinks))).unwrap();
            let of_out: f64 = result.out.iter().zip(&dout).map(|(out, d)| out * d).sum();
            let of_lse = result.lse.iter().zip(&dlse).filter(|(lse, _)| lse.is_finite());
            of_out + of_lse.map(|(lse, d)| lse * d).sum::<f64>()
        };
        let [q, k, v] = &all;
        let attention = attention.with_sink(&leak(&values));
        let found = reference::backward([q, k, v], &dout, Some(&dlse), sizes, &attention).unwrap();
        let dsink = found.dsink.expect("there are sinks");
        for (tensor, found) in [found.dq, found.dk, found.dv].iter().enumerate() {
            for i in (0..found.len()).step_by(3) {
                let at = all[tensor][i];
                let mut moved = |by: f64| {
                    all[tensor][i] = at + by;
                    let number = number(&all, &values);
                    all[tensor][i] = at;
                    number
                };
                let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                assert!((found[i] - difference).abs() < 1e-7, "{mask:?} {tensor} {i}: {} {difference}", found[i]);
            }
        }
        for head in 0..4 {
            // Sinks are f32: steps that it holds, of which the difference is exact to their square.
            let moved = |by: f32| {
                let mut values = values;
                values[head] += by;
                number(&all, &values)
            };
            let difference = (moved(1.0 / 4096.0) - moved(-1.0 / 4096.0)) * 2048.0;
            assert!((dsink[head] - difference).abs() < 1e-5, "{mask:?} {head}: {} {difference}", dsink[head]);
        }
        assert_eq!(dsink[3], 0.0);
    }
}

/// The gradient of the sinks of a case: of the call, of the reference, and of the same formula in the tensors' precision.
fn dsink<T: Element>(case: &BackwardCase) -> [Vec<f64>; 3] {
    let device = lasting();
    let Case { problem, attention, .. } = case.forward;
    let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, .. } = problem;
    let given = case.inputs::<T>();
    let ([q, k, v, dout], dlse) = given.data();
    let q_shape = Shape::new(batch, q_rows, q_heads, head_dim);
    let kv_shape = Shape::new(batch, kv_rows, kv_heads, head_dim);
    let tensor = |data: &[T], shape| Tensor::from_slice(device, data, shape, Layout::Bshd).unwrap();
    let tensors = [tensor(q, q_shape), tensor(k, kv_shape), tensor(v, kv_shape), tensor(dout, q_shape)];
    let [q_view, k_view, v_view, dout_view] = tensors.each_ref().map(Tensor::view);
    let made = attention.with_lse(true).forward(&q_view, &k_view, &v_view).unwrap();
    let lse = made.lse.unwrap();
    let shape = LseShape { batch, heads: q_heads, rows: q_rows };
    let dlse_view = dlse.map(|dlse| Lse::from_slice(device, dlse, shape).unwrap());
    let mut upstream = OutputGradients::new(dout_view);
    if let Some(dlse) = &dlse_view {
        upstream = upstream.with_dlse(dlse.view());
    }
    let gradients = attention.backward(&q_view, &k_view, &v_view, &made.out.view(), &lse.view(), upstream).unwrap();
    assert!(gradients.plan.sink && gradients.plan.symbols().any(|symbol| symbol == "backward_sinks"));
    let found = gradients.dsink.expect("there are sinks");
    assert_eq!(found.shape()[..], [q_heads]);
    let [q, k, v, dout] = [q, k, v, dout].map(|x| to_f64(x));
    let dlse: Option<Vec<f64>> = dlse.map(|dlse| dlse.iter().map(|&x| x.into()).collect());
    let (tensors, dlse) = ([&q[..], &k, &v], dlse.as_deref());
    let exact = reference::backward(tensors, &dout, dlse, problem, &attention).expect("a legal problem");
    let rounded = reference::backward_rounded(tensors, &dout, dlse, problem, &attention).expect("a legal problem");
    let [exact, rounded] = [exact, rounded].map(|gradients| gradients.dsink.expect("there are sinks"));
    [to_f64(&found.to_vec::<f32>().unwrap()), exact, rounded]
}

/// Checks all gradients of a case, those of the sinks by the rule for sums over a group.
fn check<T: Element>(case: &BackwardCase) {
    case.check::<T>(lasting()).unwrap_or_else(|wrong| panic!("{wrong}"));
    let [found, exact, rounded] = dsink::<T>(case);
    // Few numbers: further draws tell the error of the precision.
    let mut error = reference::max_abs_difference(&rounded, &exact);
    for seed in 1..8 {
        let mut draw = case.clone();
        draw.forward.seed = draw.forward.seed.wrapping_add(seed);
        let [_, exact, rounded] = dsink::<T>(&draw);
        error = error.max(reference::max_abs_difference(&rounded, &exact));
    }
    let (bound, off) = (3.0 * error + 1e-5, reference::max_abs_difference(&found, &exact));
    assert!(off <= bound && off.is_finite(), "dsink: max error {off:.3e} is outside the bound {bound:.3e}\n{case:#?}");
}

for_each_dtype!(gradients_agree_with_the_reference);
for_each_half!(fused_gradients_agree_with_the_reference, ferroflash::Kernel::V3);

/// Of the portable kernels, and of naive, which see the same problems.
fn gradients_agree_with_the_reference<T: Element>(portable: Kernel) {
    for kernel in [portable, Kernel::Naive] {
        gradients_of_a_kernel::<T>(kernel);
    }
}

fn fused_gradients_agree_with_the_reference<T: Element>(kernel: Kernel) {
    if case::runs::<T>(lasting(), kernel) {
        gradients_of_a_kernel::<T>(kernel);
    }
}

/// Rows that see no key among them, whose log-sum-exp is the sink.
fn gradients_of_a_kernel<T: Element>(kernel: Kernel) {
    for (i, (q_rows, kv_rows, heads, mask)) in [
        (70, 75, [4, 2], Mask::Full),
        (200, 130, [3, 1], Mask::Causal),
        (129, 300, [2, 2], Mask::Window { left: Some(40), right: Some(7) }),
        (1, 1, [1, 1], Mask::Full),
    ]
    .into_iter()
    .enumerate()
    {
        let sizes = Sizes { batch: 2, ..backward::sizes::<T>(q_rows, kv_rows, heads, [64, 40, 128, 96][i]) };
        let mut case = BackwardCase::of(kernel, sizes, mask);
        case.forward.attention = case.forward.attention.with_sink(&some(heads[0], i as u64));
        case.forward.attention.deterministic = i == 1;
        case.with_dlse = i % 2 == 1;
        if kernel != Kernel::V3 && i == 0 {
            case.forward.attention.softcap = Some(3.0);
        }
        check::<T>(&case);
    }
}

/// Sinks far above and below: nothing but 0 and numbers.
#[test]
fn gradients_of_far_sinks() {
    let sizes = backward::sizes::<f16>(70, 40, [3, 1], 64);
    let mut case = BackwardCase::new(sizes, Mask::Causal);
    case.forward.attention = case.forward.attention.with_sink(&leak(&[1e4, -1e4, f32::NEG_INFINITY]));
    case.with_dlse = true;
    case.check::<f16>(lasting()).unwrap_or_else(|wrong| panic!("{wrong}"));
    let [found, exact, _] = dsink::<f16>(&case);
    // All weight is the first sink's: the sum of what comes in for the log-sum-exp. Of the second, rows without keys are left.
    assert!(reference::max_abs_difference(&found, &exact) < 1e-4, "{found:?} {exact:?}");
    assert_eq!(found[2], 0.0);
}

/// Packed sequences, some without rows and some with rows that are not in use: the sum over all that are.
#[test]
fn packed_gradients_are_sums_over_sequences() {
    let device = lasting();
    let (heads, dim) = ([4, 2], 32);
    let (starts, used) = ([3, 40, 40, 170, 300], [30, 0, 130, 129]);
    let attention = Attention::new().causal().with_sink(&leak(&[0.5, -1.0, 3.0, f32::NEG_INFINITY])).with_lse(true);
    let data = |heads: usize, step: f64| -> Vec<f32> {
        (0..300 * heads * dim).map(|i| (i as f64 * step).sin() as f32 * 1.5).collect()
    };
    // What is in no use is NaN.
    let spoiled = |mut data: Vec<f32>, heads: usize| {
        let rows: Vec<usize> = (0..4).flat_map(|i| starts[i] as usize..(starts[i] + used[i]) as usize).collect();
        for (row, values) in data.chunks_mut(heads * dim).enumerate() {
            if !rows.contains(&row) {
                values.fill(f32::NAN);
            }
        }
        data
    };
    let [q, k, v, dout] = [(heads[0], 0.37), (heads[1], 0.91), (heads[1], 0.53), (heads[0], 0.71)]
        .map(|(heads, step)| (spoiled(data(heads, step), heads), heads));
    let tensor = |(data, heads): &(Vec<f32>, usize)| {
        Tensor::from_slice(device, data, [300, *heads, dim], Layout::RowMajor).unwrap()
    };
    let tensors = [&q, &k, &v, &dout].map(tensor);
    let [q_view, k_view, v_view, dout_view] = tensors.each_ref().map(Tensor::view);
    let (start_numbers, used_numbers) =
        (Indices::from_slice(device, &starts).unwrap(), Indices::from_slice(device, &used).unwrap());
    let rows = PackedRows::new(start_numbers.view()).with_used(Some(used_numbers.view()));
    let made = attention.forward_packed(&q_view, &k_view, &v_view, &rows, &rows).unwrap();
    let lse = made.lse.unwrap();
    let run = || {
        let gradients = attention
            .backward_packed(&q_view, &k_view, &v_view, &made.out.view(), &lse.view(), dout_view, &rows, &rows)
            .unwrap();
        gradients.dsink.expect("there are sinks").to_vec::<f32>().unwrap()
    };
    let found = run();
    assert_eq!(found, run(), "equal bits");
    let [q, k, v, dout] = [&q, &k, &v, &dout].map(|(data, _)| to_f64(data));
    let of = |i: usize| starts[i] as usize..(starts[i] + used[i]) as usize;
    let sequences: Vec<_> = (0..4).map(|i| SequenceRows { q: of(i), kv: of(i).collect() }).collect();
    let sizes = Sizes { batch: 1, q_rows: 0, kv_rows: 0, q_heads: 4, kv_heads: 2, head_dim: dim, dtype: DType::F32 };
    let expected = reference::backward_sequences([&q, &k, &v], &dout, None, &sequences, sizes, &attention).unwrap();
    let expected = expected.dsink.unwrap();
    assert!(reference::max_abs_difference(&to_f64(&found), &expected) < 1e-4, "{found:?} {expected:?}");
    assert!(expected[..3].iter().all(|x| x.abs() > 1e-2) && expected[3] == 0.0, "{expected:?}");
}

fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    match *shape {
        [a] => Tensor::zeros(device, dtype, [a], Layout::RowMajor).unwrap(),
        [a, b] => Tensor::zeros(device, dtype, [a, b], Layout::RowMajor).unwrap(),
        _ => unreachable!("{shape:?}"),
    }
}

/// What sinks are refused for, before anything is launched.
#[test]
fn refusals() {
    let device = lasting();
    let shape = Shape::new(1, 5, 2, 32);
    let x = Tensor::zeros(device, DType::F32, shape, Layout::Bshd).unwrap();
    let x = x.view();
    let with = |sink: &TensorView<'_>| Attention::new().with_sink(sink).forward(&x, &x, &x).map(|_| ()).unwrap_err();
    let zeros = |dtype, shape: &[usize]| zeros(device, dtype, shape);
    let error = with(&zeros(DType::F16, &[2]).view());
    assert!(matches!(error, Error::Sink(SinkError::DType { tensor: Operand::Sink, found: DType::F16 })), "{error:?}");
    assert_eq!(error.to_string(), "sink holds f16; f32 is accepted, whatever q holds");
    for wrong in [&[3][..], &[1, 2]] {
        let error = with(&zeros(DType::F32, wrong).view());
        assert_eq!(
            error.to_string(),
            format!("sink has shape {wrong:?}; [2] is accepted, a number for each query head")
        );
        let sink = zeros(DType::F32, wrong);
        let attention = Attention::new().with_sink(&sink.view());
        let sizes = Sizes { batch: 1, q_rows: 5, kv_rows: 5, q_heads: 2, kv_heads: 2, head_dim: 32, dtype: DType::F32 };
        assert!(matches!(attention.plan(device, sizes), Err(Error::Sink(SinkError::Shape { .. }))));
        assert!(matches!(attention.backward_plan(device, sizes), Err(Error::Sink(SinkError::Shape { .. }))));
        let data = vec![0.0; 5 * 2 * 32];
        let reference = reference::forward(&data, &data, &data, sizes, &attention);
        assert!(matches!(reference, Err(Error::Sink(SinkError::Shape { .. }))));
    }
    let spread = zeros(DType::F32, &[2, 2]);
    let spread = spread.view().narrow(1, 0..1).unwrap().reshape([2]);
    if let Ok(spread) = spread {
        let error = with(&spread);
        assert!(matches!(error, Error::LastDimNotContiguous { tensor: Operand::Sink, stride: 2 }), "{error:?}");
    }
    let other = Device::emulator().unwrap();
    let elsewhere = Tensor::zeros(&other, DType::F32, [2], Layout::RowMajor).unwrap();
    let error = with(&elsewhere.view());
    assert!(matches!(&error, Error::DeviceMismatch { what, .. } if what == "sink"), "{error:?}");

    // Outputs where the sinks are.
    let mut both = Tensor::zeros(device, DType::F32, shape, Layout::Bshd).unwrap();
    let address = both.address();
    // SAFETY: memory of `both`, which the refused calls do not touch.
    let sink = unsafe { TensorView::from_raw(device, address + 64, 2, [2], [1], DType::F32).unwrap() };
    let attention = Attention::new().with_sink(&sink);
    let stream = device.default_stream();
    let error = attention.forward_into(&stream, &x, &x, &x, &mut both.view_mut(), None).unwrap_err();
    assert_eq!(error.to_string(), "out overlaps sink in memory; outputs need memory of their own");
    let lse = Lse::uninit(device, LseShape { batch: 1, heads: 2, rows: 5 }).unwrap();
    let [mut a, mut b] = [0, 1].map(|_| Tensor::zeros(device, DType::F32, shape, Layout::Bshd).unwrap());
    let mut c = Tensor::zeros(device, DType::F32, shape, Layout::Bshd).unwrap();
    let mut numbers = Tensor::zeros(device, DType::F32, [2], Layout::RowMajor).unwrap();
    let own = zeros(DType::F32, &[2]);
    {
        let mut into = GradientsViewMut::new(both.view_mut(), a.view_mut(), b.view_mut());
        let error = attention.backward_into(&stream, &x, &x, &x, &x, &lse.view(), x, &mut into).unwrap_err();
        assert_eq!(error.to_string(), "dq overlaps sink in memory; outputs need memory of their own");
    }
    // A gradient that belongs to nothing, is of another kind, or lies where another does.
    let mut refused = |attention: Attention<'_>, dsink: ferroflash::TensorViewMut<'_>| {
        let into = GradientsViewMut::new(a.view_mut(), b.view_mut(), c.view_mut());
        let mut into = into.with_dsink(dsink);
        attention.backward_into(&stream, &x, &x, &x, &x, &lse.view(), x, &mut into).unwrap_err().to_string()
    };
    assert_eq!(
        refused(Attention::new(), numbers.view_mut()),
        "dsink was given for a call without sinks; it is accepted together with `Attention::with_sink`"
    );
    let own = own.view();
    let attention = Attention::new().with_sink(&own);
    let mut halves = zeros(DType::F16, &[2]);
    assert_eq!(refused(attention, halves.view_mut()), "dsink holds f16; f32 is accepted, whatever q holds");
    let mut three = zeros(DType::F32, &[3]);
    assert!(refused(attention, three.view_mut()).starts_with("dsink has shape [3]"));
    // SAFETY: as above.
    let on_sink =
        unsafe { ferroflash::TensorViewMut::from_raw(device, own.address(), 2, [2], [1], DType::F32).unwrap() };
    assert_eq!(refused(attention, on_sink), "dsink overlaps sink in memory; outputs need memory of their own");
    // SAFETY: as above.
    let on_q = unsafe { ferroflash::TensorViewMut::from_raw(device, x.address(), 2, [2], [1], DType::F32).unwrap() };
    assert_eq!(refused(attention, on_q), "dsink overlaps q in memory; outputs need memory of their own");
}
