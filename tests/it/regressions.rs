//! Problems that once went wrong, or that sit where implementations of attention have gone wrong elsewhere.

use crate::support::case::{Case, Memory, runs, v3_tiles};
use crate::support::device;
use ferroflash::reference;
use ferroflash::{
    Attention, DType, Device, Element, EmulatorConfig, Error, Kernel, KernelChoice, Layout, Mask, Shape, Sizes,
    Strides, Tensor, TensorView, TensorViewMut, Variant, bf16, f16,
};
use kernel_spec::FeatureSet;

fn check_all(problem: Sizes, mask: Mask, adjust: impl Fn(&mut Case)) {
    let shared = device::shared();
    for kernel in Kernel::ALL {
        for dtype in DType::ALL {
            let mut case = Case::new(kernel, Sizes { dtype, ..problem }, mask);
            adjust(&mut case);
            let result = match dtype {
                DType::F32 => case.check::<f32>(&shared.device),
                DType::F16 => case.check::<f16>(&shared.device),
                DType::Bf16 => case.check::<bf16>(&shared.device),
                other => panic!("no test of {other}"),
            };
            result.unwrap_or_else(|wrong| panic!("{kernel}: {wrong}"));
        }
    }
}

fn problem(q_rows: usize, kv_rows: usize) -> Sizes {
    Sizes { batch: 1, q_rows, kv_rows, q_heads: 2, kv_heads: 1, head_dim: 64, dtype: DType::F32 }
}

/// Output 0 and log-sum-exp minus infinity, not NaN: there is no maximum to subtract.
#[test]
fn no_keys_at_all() {
    for mask in [Mask::Full, Mask::Causal, Mask::Window { left: Some(1), right: None }] {
        check_all(problem(70, 0), mask, |_| {});
    }
}

/// Whole blocks of rows see nothing, then a block in which some rows do.
#[test]
fn causal_with_more_queries_than_keys() {
    check_all(problem(200, 3), Mask::Causal, |_| {});
    check_all(problem(131, 64), Mask::Causal, |_| {});
}

/// A window that lies past the last key for the last rows, and before the first key for the first ones.
#[test]
fn windows_beyond_the_keys() {
    let window = |left, right| Mask::Window { left: Some(left), right: Some(right) };
    check_all(problem(100, 40), window(5, 0), |_| {});
    check_all(problem(40, 100), window(0, 0), |_| {});
    check_all(problem(65, 65), window(1, 70), |_| {});
    // Rows above the diagonal's start see keys only through the right bound.
    check_all(problem(90, 20), window(0, 60), |_| {});
}

/// One query, one key; one query over a few tiles of keys.
#[test]
fn single_rows() {
    check_all(problem(1, 1), Mask::Full, |_| {});
    check_all(problem(1, 200), Mask::Causal, |_| {});
    check_all(problem(200, 1), Mask::Full, |_| {});
}

/// The stride of an axis of extent 1 may be anything. Tiles hold more rows than one, and the address of a row that does not exist
/// still has to suit the instruction that fills it with zeros.
#[test]
fn single_rows_with_odd_strides() {
    for (q_rows, kv_rows) in [(1, 1), (1, 70), (70, 1)] {
        check_all(problem(q_rows, kv_rows), Mask::Full, |case| {
            let odd = |shape: Shape| Memory { outer_gap: usize::from(shape.rows == 1), ..Memory::default() };
            let (q, kv) = (odd(case.q_shape()), odd(case.kv_shape()));
            [case.q, case.k, case.v, case.out] = [q, kv, kv, q];
        });
    }
}

/// A persistent thread block works on one tile after the other, and loads the next one's queries while it stores the last one's
/// output: more than three tiles for each multiprocessor, of heads that see different keys.
#[test]
fn more_tiles_than_multiprocessors() {
    let shared = device::shared();
    let device = &shared.device;
    if !runs::<bf16>(device, Kernel::V3) {
        return;
    }
    // Three rounds of tiles with few rows, which the reference is quick with; then heads of several tiles.
    let batch = (device.info().multiprocessors as usize).div_ceil(2);
    let check = |head_dim, (q_rows, kv_rows), batch, mask| {
        let problem = Sizes { batch, q_rows, kv_rows, q_heads: 6, kv_heads: 2, head_dim, dtype: DType::Bf16 };
        let case = Case::new(Kernel::V3, problem, mask);
        let plan = case.attention.plan(device, problem).unwrap();
        assert_eq!(plan.steps[0].ctas, device.info().multiprocessors, "{plan}");
        case.check::<bf16>(device).unwrap_or_else(|wrong| panic!("head_dim {head_dim}: {wrong}"));
    };
    for head_dim in [64, 96, 128, 192, 256] {
        for mask in [Mask::Full, Mask::Causal, Mask::Window { left: Some(40), right: Some(70) }] {
            check(head_dim, (20, 300), batch, mask);
        }
    }
    check(64, (300, 150), batch.div_ceil(5), Mask::Causal);
    check(128, (300, 150), batch.div_ceil(5), Mask::Causal);
}

/// The sign of the scale decides which score is the maximum: taking it before the scaling is wrong for negative scales.
#[test]
fn scales_of_either_sign_and_zero() {
    for scale in [-1.0, -0.125, 0.0, 1e-30, 3.0] {
        check_all(problem(65, 70), Mask::Causal, |case| case.attention.scale = Some(scale));
    }
}

/// Scores far outside the range of exp: only subtracting the maximum keeps them finite.
#[test]
fn scores_far_outside_the_range_of_exp() {
    check_all(problem(66, 130), Mask::Full, |case| {
        case.attention.scale = Some(1.0);
        case.deviation = 8.0;
    });
}

/// Every score is far below zero, so a maximum that starts at 0, or hidden elements at a finite minimum, shows.
#[test]
fn scores_that_are_all_very_negative() {
    let shared = device::shared();
    fn check<T: Element>(kernel: Kernel, device: &ferroflash::Device) {
        if !runs::<T>(device, kernel) {
            return;
        }
        let mut case = Case::new(kernel, Sizes { dtype: T::DTYPE, ..problem(70, 90) }, Mask::Causal);
        case.attention.scale = Some(1.0);
        let mut inputs = case.inputs::<T>();
        // The first columns alone add -20000 to every score.
        for (data, value) in [(&mut inputs.q, -200.0), (&mut inputs.k, 100.0)] {
            data.chunks_mut(64).for_each(|row| row[0] = T::from_f64(value));
        }
        let computed = case.run(device, &inputs);
        let reference = case.reference(&inputs);
        crate::support::case::compare(&computed, &reference)
            .unwrap_or_else(|wrong| panic!("{kernel}: {wrong}\n{case:#?}"));
        assert!(reference.lse.iter().filter(|lse| lse.is_finite()).all(|&lse| lse < -19_000.0));
    }
    for kernel in Kernel::ALL {
        check::<f32>(kernel, &shared.device);
        check::<f16>(kernel, &shared.device);
        check::<bf16>(kernel, &shared.device);
    }
}

/// `q_rows` rows of one head and 500 keys, for `kernels` at head dim 64 and every tile of v3 at its own. The scale is ln 2: the score of a
/// key is the logarithm to base 2 of its weight.
fn powers_of_two<T: Element>(device: &Device, kernels: &[Kernel], q_rows: usize, deviation: f64) -> Vec<Case> {
    let tiles = v3_tiles::<T>(device).map(|tile| (tile.into(), tile.head_dim() as usize));
    let all = kernels.iter().map(|&kernel| (KernelChoice::from(kernel), 64)).chain(tiles);
    let case = |(kernel, head_dim)| {
        let (heads, kv_rows, dtype) = (1, 500, T::DTYPE);
        let problem = Sizes { batch: 1, q_rows, kv_rows, q_heads: heads, kv_heads: heads, head_dim, dtype };
        let mut case = Case { deviation, ..Case::new(kernel, problem, Mask::Full) };
        case.attention.scale = Some(std::f32::consts::LN_2);
        case
    };
    all.map(case).collect()
}

/// Scores that rise or fall from one key to the next, so that every block of keys has a new maximum: above or below the limits of
/// v3's lazy rescaling, in whichever order a kernel visits the blocks.
#[test]
fn maxima_that_grow_with_every_block() {
    let shared = device::shared();
    fn check<T: Element>(device: &Device) {
        for case in powers_of_two::<T>(device, &[Kernel::Naive, Kernel::V1, Kernel::V2], 70, 0.1) {
            let head_dim = case.problem.head_dim;
            // From key to key; blocks have 16 to 128 keys.
            for rise in [0.002, 0.02, 0.07, -0.005, -0.05, -1.0] {
                let mut inputs = case.inputs::<T>();
                inputs.q.chunks_mut(head_dim).for_each(|row| row[0] = T::from_f64(1.0));
                for (j, row) in inputs.k.chunks_mut(head_dim).enumerate() {
                    row[0] = T::from_f64(rise * j as f64);
                }
                let computed = case.run(device, &inputs);
                crate::support::case::compare(&computed, &case.reference(&inputs))
                    .unwrap_or_else(|wrong| panic!("rise {rise}: {wrong}\n{case:#?}"));
            }
        }
    }
    check::<f32>(&shared.device);
    check::<f16>(&shared.device);
    check::<bf16>(&shared.device);
}

/// One key weighs as much as a fifth to a half of all 500, and alone has a value: the output is its weight. Measured against itself the
/// weight is 1 and nothing but the output is rounded; against an older maximum, in another block, it would be rounded twice.
#[test]
fn the_largest_weight_is_rounded_once() {
    let shared = device::shared();
    fn check<T: Element>(device: &Device, ulp: f64) {
        // Sixteen weights, one a row; all else is 0.
        for case in powers_of_two::<T>(device, &[Kernel::V1, Kernel::V2], 16, 0.0) {
            let Sizes { head_dim, kv_rows, .. } = case.problem;
            for at in [0, kv_rows - 1] {
                let mut inputs = case.inputs::<T>();
                // Row by row another weight, 2^7 to 2^9.
                for (row, q) in inputs.q.chunks_mut(head_dim).enumerate() {
                    q[0] = T::from_f64(7.0 + row as f64 / 8.0);
                    q[1] = T::from_f64(1.0);
                }
                // A little growth in a block between the first and the last, after which the kernel may think that it has time.
                inputs.k[kv_rows / 2 * head_dim + 1] = T::from_f64(0.5);
                inputs.k[at * head_dim] = T::from_f64(1.0);
                inputs.v[at * head_dim..][..head_dim].fill(T::from_f64(1.0));
                let computed = case.run(device, &inputs);
                for (row, out) in computed.out.chunks(head_dim).enumerate() {
                    let weight = inputs.q[row * head_dim].to_f64().exp2();
                    let exact = weight / (weight + 0.5f64.exp2() + (kv_rows - 2) as f64);
                    // Half the distance between neighbours of that size, and 2^-18 for what f32 rounds on the way.
                    let bound = 0.5 * ulp * exact.log2().floor().exp2() + exact * 2f64.powi(-18);
                    let error = reference::max_abs_difference(
                        &out.iter().map(|x| x.to_f64()).collect::<Vec<_>>(),
                        &vec![exact; head_dim],
                    );
                    assert!(error <= bound, "key {at}, row {row}: {error:.3e} of {bound:.3e}\n{case:#?}");
                }
            }
        }
    }
    check::<f16>(&shared.device, 2f64.powi(-10));
    check::<bf16>(&shared.device, 2f64.powi(-7));
}

/// Scores of some hundreds, so that one key has all the weight in nearly every row, and errors of the scores show in the few rows with two
/// keys that nearly tie. In one row of the first draw attention in f32 is luckier than it is in the mean; over many, the kernels, which
/// sum in pieces, are the more precise ones.
#[test]
fn nearly_tied_keys() {
    let shared = device::shared();
    let problem = Sizes { q_rows: 64, kv_rows: 31, q_heads: 6, kv_heads: 3, head_dim: 256, ..problem(64, 31) };
    for kernel in [Kernel::Naive, Kernel::V1, Kernel::V2] {
        let (mut squares, mut rounded_squares) = (0.0, 0.0);
        for seed in [14117250956549874605, 1, 2, 3, 4, 5, 6, 7] {
            let mut case = Case::new(kernel, problem, Mask::Causal).with_layout(Layout::Bhsd);
            case.attention.scale = Some(1.7);
            (case.deviation, case.seed) = (3.0, seed);
            let inputs = case.inputs::<f32>();
            let computed = case.run(&shared.device, &inputs);
            crate::support::case::compare(&computed, &case.reference(&inputs))
                .unwrap_or_else(|wrong| panic!("{kernel}, seed {seed}: {wrong}"));
            let [q, k, v] =
                [&inputs.q, &inputs.k, &inputs.v].map(|x| x.iter().map(|&x| x.into()).collect::<Vec<f64>>());
            let exact = reference::forward(&q, &k, &v, problem, &case.attention).unwrap().out;
            let rounded = reference::forward_rounded(&q, &k, &v, problem, &case.attention).unwrap().out;
            for ((out, rounded), exact) in computed.out.iter().zip(&rounded).zip(&exact) {
                squares += (f64::from(*out) - exact).powi(2);
                rounded_squares += (rounded - exact).powi(2);
            }
        }
        assert!(
            squares <= rounded_squares,
            "{kernel}: sum of squared errors {squares:.3e}, naive {rounded_squares:.3e}"
        );
    }
}

/// Keys and values that no row sees may hold NaN or infinity in whole blocks: those are never loaded into a sum.
///
/// Within a block that some row sees, hidden values meet a probability of 0, and 0 * NaN is NaN in every implementation.
#[test]
fn nan_in_key_blocks_that_no_row_sees() {
    let shared = device::shared();
    for kernel in [Kernel::V1, Kernel::V2, Kernel::V3] {
        if !runs::<f16>(&shared.device, kernel) {
            continue;
        }
        let head_dim = problem(1, 1).head_dim as u32;
        let tile = Variant::find(kernel.passes()[0], DType::F16, [head_dim; 2], 0, FeatureSet::NONE)
            .expect("every kernel has variants");
        let hidden_rows = tile.kv_block as usize;
        // 64 queries at the end see the 127 last keys, none of those in the tiles before.
        let mask = Mask::Window { left: Some(63), right: Some(0) };
        let case = Case::new(kernel, Sizes { dtype: DType::F16, ..problem(64, hidden_rows + 128) }, mask);
        let mut inputs = case.inputs::<f16>();
        let hidden = hidden_rows * case.problem.head_dim;
        let reference = case.reference(&inputs);
        inputs.k[..hidden].fill(f16::NAN);
        inputs.v[..hidden].fill(f16::INFINITY);
        let computed = case.run(&shared.device, &inputs);
        crate::support::case::compare(&computed, &reference).unwrap_or_else(|wrong| panic!("{kernel}: {wrong}"));
    }
}

/// More keys than 16 bits count, of equal weight: their sum is their number, and the keys beyond 2^16 have values of their own.
fn more_keys_than_16_bits_count(kernel: Kernel) {
    const KEYS: usize = (1 << 16) + 4465;
    let shared = device::shared();
    // Without checks the emulator takes a third of the time, and those are for other tests.
    let quick = || Device::emulator_with(EmulatorConfig::default().with_checks(false)).unwrap();
    let device = &if device::is_gpu() { shared.device.clone() } else { quick() };
    if !runs::<f16>(device, kernel) {
        return;
    }
    let sizes = Sizes { batch: 1, q_rows: 1, kv_rows: KEYS, q_heads: 1, kv_heads: 1, head_dim: 32, dtype: DType::F16 };
    let case = Case::new(kernel, sizes, Mask::Causal);
    let mut inputs = case.inputs::<f16>();
    inputs.q.fill(f16::ZERO);
    // Columns 0 and 1 tell the keys on either side of 2^16 apart.
    for (key, row) in inputs.v.chunks_exact_mut(32).enumerate() {
        row.fill(f16::ONE);
        row[usize::from(key < 1 << 16)] = f16::ZERO;
    }
    let computed = case.run(device, &inputs);
    let (keys, beyond) = (KEYS as f64, (KEYS - (1 << 16)) as f64);
    let weight = match kernel {
        // Weights of this kernel are rounded to f16 when they have been divided by their sum.
        Kernel::Naive => f64::from(f16::from_f64(1.0 / keys)),
        _ => 1.0 / keys,
    };
    for (column, out) in computed.out.iter().enumerate() {
        let expected = match column {
            0 => (keys - beyond) * weight,
            1 => beyond * weight,
            _ => keys * weight,
        };
        let error = (f64::from(*out) - expected).abs();
        // One rounding to f16, of 11 bits.
        assert!(error <= expected * 2f64.powi(-11), "{kernel}, column {column}: {out}, {expected} expected");
    }
    assert!((f64::from(computed.lse[0]) - keys.ln()).abs() < 1e-5, "{kernel}: {}", computed.lse[0]);
}

#[test]
fn more_keys_than_16_bits_count_naive() {
    more_keys_than_16_bits_count(Kernel::Naive);
}

#[test]
fn more_keys_than_16_bits_count_v1() {
    more_keys_than_16_bits_count(Kernel::V1);
}

#[test]
fn more_keys_than_16_bits_count_v2() {
    more_keys_than_16_bits_count(Kernel::V2);
}

#[test]
fn more_keys_than_16_bits_count_v3() {
    more_keys_than_16_bits_count(Kernel::V3);
}

/// Elements whose offset from the first one needs more than 32 bits, along each axis. The tensors lie in one storage of 8.6 GB. On a GPU it
/// is full of NaN: an offset that wraps reads NaN, or leaves NaN where the output should be. On the emulator nobody has written it, which
/// says the same and costs no memory.
#[test]
fn offsets_beyond_32_bits() {
    const FAR: usize = 1 << 32;
    let shared = device::exclusive();
    let is_gpu = device::is_gpu();
    // An emulator with as much memory as this takes, which its default is not.
    let roomy = || Device::emulator_with(EmulatorConfig::default().with_memory_bytes(16 << 30)).unwrap();
    let device = &if is_gpu { shared.device.clone() } else { roomy() };
    let elements = FAR + (1 << 20);
    let storage_shape = Shape::new(1, 1, 1, elements);
    let allocate = || Tensor::uninit(device, DType::F16, storage_shape, Layout::Bshd);
    let mut storage = match allocate() {
        Ok(storage) => storage,
        // Such a tensor cannot exist on a GPU with less memory.
        Err(Error::OutOfMemory { requested, free, .. }) if is_gpu => return assert!(free < requested),
        Err(error) => panic!("{error}"),
    };
    let near = Strides::new(1 << 14, 1 << 10, 1 << 7);
    for (shape, strides) in [
        (Shape::new(2, 3, 2, 64), Strides { batch: FAR + 64, ..near }),
        (Shape::new(1, 3, 2, 64), Strides { row: FAR / 2 + 64, ..near }),
        (Shape::new(1, 3, 2, 64), Strides { head: FAR + 64, ..near }),
    ] {
        for kernel in Kernel::ALL.into_iter().filter(|&kernel| runs::<f16>(device, kernel)) {
            if is_gpu {
                storage.fill_bytes(0xff).unwrap();
            } else {
                // Memory that nobody has written, without what the last kernel left there.
                drop(storage);
                storage = allocate().unwrap();
            }
            check_far_apart(device, &storage, shape, strides, kernel);
        }
    }
}

/// Runs `kernel` with q, k, v and out of the same shape and strides, side by side in `storage`.
fn check_far_apart(device: &Device, storage: &Tensor, shape: Shape, strides: Strides, kernel: Kernel) {
    // Further apart than the near strides reach.
    let address = |tensor: usize| storage.address() + (tensor * (1 << 16) * DType::F16.bytes()) as u64;
    let reach = storage.storage_elements() - 3 * (1 << 16);
    let problem = Sizes {
        batch: shape.batch,
        q_rows: shape.rows,
        kv_rows: shape.rows,
        q_heads: shape.heads,
        kv_heads: shape.heads,
        head_dim: shape.head_dim,
        dtype: DType::F16,
    };
    let case = Case::new(kernel, problem, Mask::Causal);
    let inputs = case.inputs::<f16>();
    // One row of one head at a time: writing or reading a whole view would copy what lies between its elements, too.
    let rows = || {
        let heads = move |(b, r)| (0..shape.heads).map(move |h| b * strides.batch + r * strides.row + h * strides.head);
        (0..shape.batch).flat_map(move |b| (0..shape.rows).map(move |r| (b, r))).flat_map(heads)
    };
    let row_shape = Shape::new(1, 1, 1, shape.head_dim);
    for (tensor, data) in [&inputs.q, &inputs.k, &inputs.v].into_iter().enumerate() {
        for (offset, row) in rows().zip(data.chunks_exact(shape.head_dim)) {
            let at = address(tensor) + (offset * DType::F16.bytes()) as u64;
            let near = Strides::new(0, 0, 0);
            // SAFETY: the row lies within `storage`; nobody else uses it meanwhile.
            let view = unsafe { TensorViewMut::from_raw(device, at, shape.head_dim, row_shape, near, DType::F16) };
            view.unwrap().write(row).unwrap();
        }
    }
    // SAFETY: the views lie within `storage` and do not overlap; nobody else uses it meanwhile.
    let view =
        |tensor| unsafe { TensorView::from_raw(device, address(tensor), reach, shape, strides, DType::F16) }.unwrap();
    // SAFETY: as above.
    let mut out = unsafe { TensorViewMut::from_raw(device, address(3), reach, shape, strides, DType::F16) }.unwrap();
    let attention: Attention = case.attention;
    let stream = device.default_stream();
    attention.forward_into(&stream, &view(0), &view(1), &view(2), &mut out, None).unwrap();
    stream.synchronize().unwrap();
    let mut computed = Vec::new();
    for offset in rows() {
        let at = address(3) + (offset * DType::F16.bytes()) as u64;
        let near = Strides::new(0, 0, 0);
        // SAFETY: as above.
        let view = unsafe { TensorView::from_raw(device, at, shape.head_dim, row_shape, near, DType::F16) };
        computed.extend(view.unwrap().to_f64_vec().unwrap());
    }
    let expected = case.reference(&inputs);
    let error = reference::max_abs_difference(&computed, &expected.out);
    assert!(error <= expected.bound, "{kernel}, strides {strides}: error {error:.3e}, accepted {:.3e}", expected.bound);
    assert!(expected.out.iter().any(|x| x.abs() > 0.1), "the reference is not trivial");
}
