//! Gradients of packed sequences against the reference of each sequence alone: every row of the list at the edges of its tiles, lengths of 0
//! anywhere, random problems, and nothing read or written that is not in use.

use crate::backward::for_each_dtype;
use crate::support::draws::draws;
use crate::support::packed_gradients::PackedCase;
use crate::support::{bf16, device, f16};
use ferroflash::{
    Attention, DType, Device, Element, EmulatorConfig, Indices, Kernel, Layout, Mask, PackedRows, Problem, Sequences,
    Tensor,
};
use kernel_spec::families::backward::{Pass, VARIANTS, Variant};
use kernel_spec::families::forward::features::SOFTCAP;
use kernel_spec::{COMPILED_HEAD_DIMS, FeatureSet};
use proptest::prelude::*;

fn check<T: Element>(case: &PackedCase) {
    case.check::<T>(&device::shared().device).unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// One row less than a tile, exactly one, one more, and none, on either side.
fn every_row_at_its_tile_edges<T: Element>(_: Kernel) {
    let shared = device::shared();
    let device = &shared.device;
    for head_dim in COMPILED_HEAD_DIMS {
        let row = |pass| Variant::find_with(pass, T::DTYPE, head_dim, FeatureSet::of(SOFTCAP)).expect("a row");
        let rows = Pass::PACKED.map(row);
        let [q, kv] = [rows[2].q_block as usize, rows[1].kv_block as usize];
        for (i, softcap) in [None, Some(1.5)].into_iter().enumerate() {
            let mut case = PackedCase::new(vec![[q - 1, kv + 1], [0, 5], [q + 1, kv - 1], [3, 0], [q, kv]]);
            (case.q_heads, case.kv_heads, case.head_dim) = ([2, 3][i], 1, head_dim as usize);
            case.attention = if i == 0 { Attention::new().causal() } else { Attention::new().with_scale(-0.4) };
            case.attention = case.attention.with_softcap(softcap);
            (case.with_dlse, case.head_major) = (i == 1, i == 1);
            let [q_rows, kv_rows] = [0, 1].map(|side| *case.starts(side).last().unwrap() as usize);
            let sequences = Sequences::Packed { batch: case.lengths.len(), q_rows, kv_rows };
            let problem = Problem::new(sequences, case.q_heads, 1, head_dim as usize, T::DTYPE);
            let plan = case.attention.backward_plan(device, problem).expect("a legal problem");
            assert!(plan.symbols().eq(rows.map(|row| row.entry.symbol)), "{plan}");
            case.check::<T>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }
}

for_each_dtype!(every_row_at_its_tile_edges);

fn mask() -> impl Strategy<Value = Mask> {
    let bound = || prop::option::weighted(0.7, prop_oneof![0u32..4, 0u32..80]);
    prop_oneof![
        1 => Just(Mask::Full),
        2 => Just(Mask::Causal),
        1 => (bound(), bound()).prop_map(|(left, right)| Mask::Window { left, right }),
    ]
}

fn rows(most: usize) -> impl Strategy<Value = usize> {
    let edges = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129];
    let edges = edges.into_iter().filter(|&n| n <= most).collect::<Vec<_>>();
    prop_oneof![2 => prop::sample::select(edges), 1 => 0..=most]
}

fn cases() -> impl Strategy<Value = PackedCase> {
    let lengths = prop::collection::vec((rows(80), rows(130)).prop_map(|(q, kv)| [q, kv]), 1..5);
    let heads = prop::sample::select(vec![[1usize, 1], [2, 1], [4, 2], [3, 3]]);
    let head_dim = prop_oneof![2 => prop::sample::select(vec![64usize, 128]), 1 => (1usize..=32).prop_map(|n| 8 * n)];
    let options = (mask(), prop::option::weighted(0.25, 0.5f32..20.0), prop::sample::select(vec![None, Some(-0.3f32)]));
    let unused = (prop::array::uniform2(0usize..3), prop::array::uniform2(0usize..3));
    let memory = (any::<bool>(), prop::sample::select(vec![0usize, 8, 3]));
    (lengths, heads, head_dim, options, unused, memory, any::<bool>(), any::<u64>()).prop_map(
        |(
            lengths,
            [q_heads, kv_heads],
            head_dim,
            (mask, softcap, scale),
            (before, slack),
            (head_major, gap),
            with_dlse,
            seed,
        )| {
            let attention = Attention::new().with_mask(mask).with_softcap(softcap);
            let attention = scale.map_or(attention, |scale| attention.with_scale(scale));
            PackedCase {
                before,
                slack,
                q_heads,
                kv_heads,
                head_dim,
                attention,
                head_major,
                gap,
                with_dlse,
                seed,
                ..PackedCase::new(lengths)
            }
        },
    )
}

fn random_sequences_agree_with_the_reference<T: Element>(_: Kernel) {
    let shared = device::shared();
    // Each is four kernels and two references.
    draws(file!(), device::cases().div_ceil(4), 128).check(&cases(), |case| case.check::<T>(&shared.device));
}

for_each_dtype!(random_sequences_agree_with_the_reference);

/// Whether packed sequences have the tiles of equal ones, without features.
fn has_equal_tiles(dtype: DType, head_dim: u32) -> bool {
    Pass::PORTABLE.into_iter().zip(Pass::PACKED).all(|(equal, packed)| {
        let [a, b] = [equal, packed].map(|pass| Variant::find(pass, dtype, head_dim).expect("a row"));
        (a.q_block, a.kv_block, a.warps) == (b.q_block, b.kv_block, b.warps)
    })
}

/// A sequence gets the bits that the dense call gives for it alone, where both have the same tiles.
fn bits_are_those_of_each_sequence_alone<T: Element>(_: Kernel) {
    let device = &device::shared().device;
    let dims: Vec<u32> = COMPILED_HEAD_DIMS.into_iter().filter(|&dim| has_equal_tiles(T::DTYPE, dim)).collect();
    assert!(dims.len() >= 2, "{dims:?}");
    for head_dim in dims {
        let mut case = PackedCase::new(vec![[33, 70], [1, 1], [0, 3], [70, 33], [5, 0]]);
        (case.q_heads, case.kv_heads, case.head_dim) = (4, 2, head_dim as usize);
        (case.before, case.slack, case.made_alone, case.with_dlse) = ([3, 1], [2, 5], true, true);
        let given = case.given::<T>();
        let computed = case.run(device, &given).unwrap_or_else(|wrong| panic!("{wrong}"));
        for (i, found) in computed.iter().enumerate().filter(|(i, _)| case.lengths[*i][0] > 0) {
            let alone = given.cases[i].run(device, &given.inputs[i]).unwrap_or_else(|wrong| panic!("{wrong}"));
            for (a, b) in found.iter().zip(&alone) {
                let [a, b] = [a, b].map(|x| bytemuck::cast_slice::<T, u8>(x));
                assert!(a == b, "head dim {head_dim}, sequence {i}");
            }
        }
    }
}

for_each_dtype!(bits_are_those_of_each_sequence_alone);

/// The same bits from run to run, in whatever order warps and thread blocks come.
#[test]
fn repeats_have_the_same_bits() {
    let mut case = PackedCase::new(vec![[40, 70], [0, 2], [70, 40]]);
    (case.q_heads, case.kv_heads, case.slack) = (4, 2, [1, 1]);
    let given = case.given::<bf16>();
    let seeds: Vec<Device> = if device::is_gpu() {
        (0..20).map(|_| device::shared().device.clone()).collect()
    } else {
        let with_seed = |seed| Device::emulator_with(EmulatorConfig::default().with_seed(seed));
        (0..device::seeds(6).into()).map(|seed| with_seed(seed).expect("the emulator is built in")).collect()
    };
    let run = |device: &Device| case.run(device, &given).unwrap_or_else(|wrong| panic!("{wrong}"));
    let first = run(&seeds[0]);
    for device in &seeds[1..] {
        assert!(run(device) == first);
    }
}

/// More sequences than a warp looks at a time, most of one row or none.
#[test]
fn many_sequences() {
    let lengths = (0..75).map(|i| if i == 40 { [70, 90] } else { [i % 3, (i + 1) % 4] }).collect();
    let mut case = PackedCase::new(lengths);
    (case.head_dim, case.slack, case.with_dlse) = (32, [1, 0], true);
    check::<f16>(&case);
    check::<f32>(&case);
}

/// No sequence has a row, of q or of k and v, or the tensors have none.
#[test]
fn no_rows_at_all() {
    for lengths in [vec![[0, 0]], vec![[0, 7], [0, 2]], vec![[7, 0], [2, 0]], vec![[0, 0]; 40]] {
        for slack in [0, 2] {
            let mut case = PackedCase::new(lengths.clone());
            (case.slack, case.head_dim) = ([slack; 2], 32);
            check::<f16>(&case);
        }
    }
}

/// Starts that are no such numbers: nothing outside the tensors is touched, which the emulator reports, nor what lies between their rows. No
/// two sequences have the same rows, which the emulator reports too.
#[test]
fn starts_outside_the_tensors() {
    let device = &device::shared().device;
    let mut case = PackedCase::new(vec![[30, 40], [20, 20], [9, 70]]);
    (case.gap, case.head_dim) = (8, 32);
    let given = case.given::<f16>();
    let [q_end, kv_end] = [0, 1].map(|side| *case.starts(side).last().unwrap());
    for starts in [
        [[-5, 10, 1000, 7], [-1, 60, i32::MAX, i32::MIN]],
        [[59, 0, 59, 0], [130, 0, 130, 0]],
        [[i32::MAX; 4], [i32::MIN; 4]],
        [[0, q_end, q_end, i32::MAX], [0, 0, kv_end, kv_end]],
    ] {
        let starts = [&starts[0][..], &starts[1][..]];
        let storages = case.run_with(device, &given, starts).unwrap_or_else(|error| panic!("{starts:?}: {error}"));
        for (which, storage) in storages.into_iter().enumerate() {
            let row = [2, 1, 1][which] * case.head_dim;
            let gaps = storage[case.gap..].chunks(row + case.gap).filter_map(|row_and_gap| row_and_gap.get(row..));
            assert!(gaps.flatten().all(|x| x.is_nan()), "{starts:?}: a gap was written");
        }
    }
}

/// From the forward pass to the gradients through the calls that allocate: rows that are not in use get 0, and no more memory is taken than
/// the plan says.
#[test]
fn forward_and_backward() {
    let device = &device::exclusive().device;
    let data = |rows: usize, heads: usize| -> Vec<f32> {
        (0..rows * heads * 32).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect()
    };
    let upload = |data: &[f32], rows: usize, heads: usize| {
        Tensor::from_slice(device, data, [rows, heads, 32], Layout::RowMajor).unwrap()
    };
    let (q, k, v) = (upload(&data(12, 2), 12, 2), upload(&data(20, 1), 20, 1), upload(&data(20, 1), 20, 1));
    let numbers = |numbers: &[i32]| Indices::from_slice(device, numbers).unwrap();
    let (q_starts, q_used, kv_starts, kv_used) =
        (numbers(&[1, 6, 11]), numbers(&[3, 5]), numbers(&[0, 9, 18]), numbers(&[4, 9]));
    let q_rows = PackedRows::new(q_starts.view()).with_used(q_used.view());
    let kv_rows = PackedRows::new(kv_starts.view()).with_used(kv_used.view());
    let attention = Attention::new().with_lse(true);
    let (q, k, v) = (q.view(), k.view(), v.view());
    let output = attention.forward_packed(&q, &k, &v, &q_rows, &kv_rows).unwrap();
    let (out, lse) = (output.out.view(), output.lse.unwrap());
    device.synchronize().unwrap();
    let before = device.memory().live_bytes;
    device.reset_peak();
    let gradients = attention.backward_packed(&q, &k, &v, &out, &lse.view(), q, &q_rows, &kv_rows).unwrap();
    device.synchronize().unwrap();
    let tensors = (12 * 2 + 2 * 20) * 32 * 4;
    assert_eq!(device.memory().peak_bytes - before - tensors, gradients.plan.workspace_bytes());
    // Two numbers for every row in whole blocks, one block a sequence more than the rows fill, of two heads.
    assert_eq!(gradients.plan.workspace_bytes(), 2 * 2 * 128 * 8);
    assert!(gradients.plan.deterministic);
    let planned = attention.backward_plan_packed(&q, &k, &v, &out, &lse.view(), q, &q_rows, &kv_rows, None).unwrap();
    assert_eq!(gradients.plan, planned);
    let used = |tensor: &Tensor, rows: &[std::ops::Range<usize>]| {
        let width = tensor.to_vec::<f32>().unwrap().len() / tensor.view().shape()[0];
        for (row, values) in tensor.to_vec::<f32>().unwrap().chunks(width).enumerate() {
            let is_used = rows.iter().any(|rows| rows.contains(&row));
            assert_eq!(values.iter().any(|&x| x != 0.0), is_used, "row {row}");
        }
    };
    used(&gradients.dq, &[1..4, 6..11]);
    used(&gradients.dk, &[0..4, 9..18]);
    used(&gradients.dv, &[0..4, 9..18]);
}

/// The numbers are read by each call, not when it is planned: those of a captured one may change.
#[test]
fn lengths_are_read_by_each_call() {
    let device = &device::shared().device;
    let data: Vec<f32> = (0..8 * 32).map(|i| (i as f32 * 0.7).sin()).collect();
    let x = Tensor::from_slice(device, &data, [8, 1, 32], Layout::RowMajor).unwrap();
    let x = x.view();
    let mut starts = Indices::from_slice(device, &[0, 3, 8]).unwrap();
    let attention = Attention::new().causal().with_lse(true);
    let mut run = |numbers: &[i32]| {
        starts.write(numbers).unwrap();
        let rows = PackedRows::new(starts.view());
        let output = attention.forward_packed(&x, &x, &x, &rows, &rows).unwrap();
        let (out, lse) = (output.out.view(), output.lse.as_ref().unwrap().view());
        let gradients = attention.backward_packed(&x, &x, &x, &out, &lse, x, &rows, &rows).unwrap();
        gradients.dv.to_vec::<f32>().unwrap()
    };
    let (first, second) = (run(&[0, 3, 8]), run(&[0, 5, 8]));
    assert_ne!(first, second);
    assert_eq!(run(&[0, 3, 8]), first);
}

/// Every row of the list is one that some call launches.
#[test]
fn every_row_is_embedded_and_launched() {
    let embedded: Vec<_> = ferroflash::embedded_entries().map(|entry| entry.symbol).collect();
    for row in VARIANTS.iter().filter(|row| Pass::PACKED.contains(&row.pass)) {
        let found = Variant::find_with(row.pass, row.dtype, row.dim.max(8), row.entry.accepts);
        assert_eq!(found, Some(row), "{}", row.entry.symbol);
        assert!(embedded.contains(&row.entry.symbol), "the build holds no PTX of {}", row.entry.symbol);
    }
}
