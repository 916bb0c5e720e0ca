//! Numbers that public bug reports found other kernels, or these, to fail on: each is here with its kind, and the definition's answer.

use crate::support::device;
use ferroflash::{Attention, Device, Element, Kernel, Layout, Shape, Tensor, bf16, f16, reference};

/// One call on contiguous tensors of one head: output of the first row, and its log-sum-exp.
fn attend<T: Element>(
    device: &Device,
    attention: Attention<'static>,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    dim: usize,
) -> (Vec<f64>, f64) {
    let tensor = |values: &[f64]| {
        let values: Vec<T> = values.iter().map(|&x| T::from_f64(x)).collect();
        let shape = Shape::new(1, values.len() / dim, 1, dim);
        Tensor::from_slice(device, &values, shape, Layout::Bshd).expect("a legal tensor")
    };
    let (q, k, v) = (tensor(q), tensor(k), tensor(v));
    let output = attention.with_lse(true).forward(&q.view(), &k.view(), &v.view()).expect("a legal call");
    let lse = output.lse.expect("asked for").to_vec().expect("read");
    (output.out.to_f64_vec().expect("read"), lse[0].into())
}

/// Every kernel gives `out` in every column and `lse`, to a unit in the last place of the type and 16 of f32.
fn check<T: Element>(
    attention: Attention<'static>,
    [q, k, v]: [&[f64]; 3],
    dim: usize,
    out: f64,
    lse: f64,
    epsilon: f64,
) {
    let shared = device::shared();
    for kernel in Kernel::ALL {
        if !crate::support::case::runs::<T>(&shared.device, kernel) {
            continue;
        }
        let (found, found_lse) = attend::<T>(&shared.device, attention.with_kernel(kernel), q, k, v, dim);
        let expected = T::from_f64(out).to_f64();
        for found in found {
            assert!((found - expected).abs() <= epsilon * expected.abs(), "{kernel}: {found}, not {expected}");
        }
        let bound = 16.0 * f64::from(f32::EPSILON) * lse.abs() + 1e-5;
        assert!(found_lse == lse || (found_lse - lse).abs() <= bound, "{kernel}: log-sum-exp {found_lse}, not {lse}");
    }
}

const BF16: f64 = 1.0 / 128.0;
const F16: f64 = 1.0 / 1024.0;

#[test]
fn one_key_weighs_one_however_large_its_score() {
    let (large, small) = (bf16::from_f64(133_120.0), f16::from_f64(6932.0));
    let (large, small) = (f64::from(large), f64::from(small));
    check::<bf16>(Attention::new(), [&[large; 64]; 3], 64, large, 8.0 * large * large, BF16);
    check::<f16>(Attention::new(), [&[small; 64]; 3], 64, small, 8.0 * small * small, F16);
    let one_hot = |x: f64| [x, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let key = f64::from(f16::from_f64(1.1));
    for scale in [5e3_f32, 5e8, 1e9, 3e9, 1e10, 1e38, -1e38] {
        let attention = Attention::new().with_scale(scale);
        check::<f16>(attention, [&one_hot(1.0), &one_hot(key), &[1.0; 8]], 8, 1.0, f64::from(scale) * key, F16);
    }
}

#[test]
fn the_smallest_scales_make_large_scores_what_they_are() {
    // Two keys whose scores are 4e37 and minus that.
    let (q, keys, values) = ([1e32; 8], [[5e4; 8], [-5e4; 8]].concat(), [[1.0; 8], [3.0; 8]].concat());
    check::<f32>(Attention::new().with_scale(0.0), [&q, &keys, &values], 8, 2.0, 2f64.ln(), 1e-6);
    // Below the smallest normal number: weights of e^(4e-3) and e^(-4e-3).
    let scale = 1e-40_f32;
    let score = f64::from(scale) * 8.0 * f64::from(1e32_f32) * 5e4;
    let (more, less) = (score.exp(), (-score).exp());
    let out = (more + 3.0 * less) / (more + less);
    check::<f32>(Attention::new().with_scale(scale), [&q, &keys, &values], 8, out, (more + less).ln(), 1e-6);
}

#[test]
fn keys_of_minus_infinity_are_not_seen() {
    let infinity = f64::NEG_INFINITY;
    let keys = |count: usize, dim: usize, hidden: std::ops::Range<usize>| {
        let mut k = vec![0.0; count * dim];
        hidden.for_each(|row| k[row * dim] = infinity);
        k
    };
    check::<f32>(Attention::new(), [&[1.0; 8], &keys(33, 8, 0..32), &[1.0; 33 * 8]], 8, 1.0, 0.0, 1e-6);
    check::<bf16>(
        Attention::new(),
        [&[1.0; 64], &keys(257, 64, 128..257), &[1.0; 257 * 64]],
        64,
        1.0,
        128f64.ln(),
        BF16,
    );
    // All of them, in a tile and over several: as for a row that sees no key.
    for count in [1, 33, 300] {
        check::<f16>(
            Attention::new(),
            [&[1.0; 64], &keys(count, 64, 0..count), &vec![1.0; count * 64]],
            64,
            0.0,
            infinity,
            F16,
        );
        check::<f32>(
            Attention::new(),
            [&[1.0; 64], &keys(count, 64, 0..count), &vec![1.0; count * 64]],
            64,
            0.0,
            infinity,
            1e-6,
        );
    }
    let sizes = ferroflash::Sizes {
        batch: 1,
        q_rows: 1,
        kv_rows: 2,
        q_heads: 1,
        kv_heads: 1,
        head_dim: 8,
        dtype: ferroflash::DType::F32,
    };
    let result = reference::forward(&[1.0; 8], &keys(2, 8, 0..2), &[1.0; 16], sizes, &Attention::new())
        .expect("a legal problem");
    assert!(result.out.iter().all(|&x| x == 0.0) && result.lse == [infinity]);
}

#[test]
fn averages_of_large_values_are_in_range() {
    for keys in [2, 100, 700] {
        let (q, k) = (vec![0.0; 8], vec![0.0; keys * 8]);
        check::<f32>(Attention::new(), [&q, &k, &vec![3e38; keys * 8]], 8, 3e38, (keys as f64).ln(), 1e-5);
        let large = f64::from(bf16::from_f64(3e38));
        check::<bf16>(Attention::new(), [&q, &k, &vec![large; keys * 8]], 8, large, (keys as f64).ln(), BF16);
        check::<f16>(Attention::new(), [&q, &k, &vec![65504.0; keys * 8]], 8, 65504.0, (keys as f64).ln(), F16);
    }
}

/// Weights that are rounded up are more than one all together: of values as large as the type holds, more than it holds.
#[test]
fn averages_of_the_largest_values_are_in_range() {
    averages_of_the_largest_values::<f16>(F16);
    averages_of_the_largest_values::<bf16>(BF16);
}

fn averages_of_the_largest_values<T: Element>(epsilon: f64) {
    let (most, keys) = (crate::support::case::largest::<T>(), 300);
    let round = |x: f64| T::from_f64(x).to_f64();
    // One key of score 0, and others of a smaller one: the score whose weight loses most, whether it is divided by their sum before or after it is
    // rounded.
    let excess = |score: f64| {
        let (weight, others) = (score.exp(), f64::from(keys - 1));
        let sum = 1.0 + others * weight;
        let [after, before] = [(1.0 + others * round(weight)) / sum, round(1.0 / sum) + others * round(weight / sum)];
        after.min(before)
    };
    let scores = (1..2000).map(|i| round(-f64::from(i) / 2000.0));
    let score = scores.max_by(|a, b| excess(*a).total_cmp(&excess(*b))).expect("some");
    assert!(round(most * excess(score)).is_infinite(), "a score of {score} overflows nothing");

    let one_hot = |x: f64| [x, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let k: Vec<f64> = (0..keys).flat_map(|key| one_hot(if key == 0 { 0.0 } else { score })).collect();
    let v: Vec<f64> = (0..8 * keys).map(|i| if i % 2 == 0 { most } else { -most }).collect();
    let lse = (1.0 + f64::from(keys - 1) * score.exp()).ln();
    let shared = device::shared();
    for kernel in Kernel::ALL {
        if !crate::support::case::runs::<T>(&shared.device, kernel) {
            continue;
        }
        let attention = Attention::new().with_scale(1.0).with_kernel(kernel);
        let (found, found_lse) = attend::<T>(&shared.device, attention, &one_hot(1.0), &k, &v, 8);
        for (found, expected) in found.into_iter().zip([most, -most].into_iter().cycle()) {
            assert!((found - expected).abs() <= epsilon * most, "{kernel}: {found}, not {expected}");
        }
        let bound = 16.0 * f64::from(f32::EPSILON) * lse.abs() + 1e-5;
        assert!((found_lse - lse).abs() <= bound, "{kernel}: log-sum-exp {found_lse}, not {lse}");
    }
}

#[test]
fn products_beyond_f32_still_have_a_largest() {
    // Scores of 64 * 1e40 and twice that: f32 has neither, the second key has all the weight.
    let q = [1e20; 64];
    let k = [[1e20; 64], [2e20; 64]].concat();
    let v = [[1.0; 64], [2.0; 64]].concat();
    for (scale, out) in [(1e-10_f32, 2.0), (-1e-10, 1.0)] {
        let key = if out == 2.0 { 2e20 } else { 1e20 };
        let round = |x: f64| f64::from(bf16::from_f64(x));
        let lse = f64::from(scale) * 64.0 * round(1e20) * round(key);
        check::<bf16>(Attention::new().with_scale(scale), [&q, &k, &v], 64, out, lse, BF16);
    }
}

#[test]
fn nan_in_a_row_stays_nan() {
    let shared = device::shared();
    let (q, k, v) = (vec![f64::NAN; 64], vec![1.0; 33 * 64], vec![1.0; 33 * 64]);
    for kernel in Kernel::ALL {
        let (out, lse) = attend::<f16>(&shared.device, Attention::new().with_kernel(kernel), &q, &k, &v, 64);
        assert!(out.iter().all(|x| x.is_nan()) && lse.is_nan(), "{kernel}: {out:?}, log-sum-exp {lse}");
    }
}

#[test]
fn what_hidden_keys_hold_never_matters() {
    let shared = device::shared();
    // Key and value 40 on are hidden from the rows before; 71 rows are more than a tile of every kernel that has small ones.
    let (rows, dim, from) = (71, 64, 40);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let (q, mut k, mut v) = (vec![1.0; rows * dim], vec![0.5; rows * dim], vec![1.0; rows * dim]);
        k[from * dim..].fill(bad);
        v[from * dim..].fill(bad);
        for kernel in Kernel::ALL {
            let attention = Attention::new().causal().with_kernel(kernel);
            let (out, _) = attend::<f16>(&shared.device, attention, &q, &k, &v, dim);
            let (before, after) = out.split_at(from * dim);
            assert!(before.iter().all(|&x| (x - 1.0).abs() <= F16), "{kernel}, {bad}: {before:?}");
            // A score of minus infinity hides its key, too.
            let hidden = bad == f64::NEG_INFINITY;
            assert!(after.iter().all(|&x| if hidden { x == 1.0 } else { x.is_nan() }), "{kernel}, {bad}: {after:?}");
        }
    }
}

#[test]
fn infinity_in_a_value_stays_in_its_column() {
    let shared = device::shared();
    let (rows, dim) = (33, 64);
    let (q, k, mut v) = (vec![1.0; rows * dim], vec![0.5; rows * dim], vec![1.0; rows * dim]);
    v[20 * dim + 3] = f64::INFINITY;
    for kernel in Kernel::ALL {
        let (out, lse) = attend::<f16>(&shared.device, Attention::new().with_kernel(kernel), &q, &k, &v, dim);
        for (i, &x) in out.iter().enumerate() {
            assert!(if i % dim == 3 { x == f64::INFINITY } else { (x - 1.0).abs() <= F16 }, "{kernel}: {i} is {x}");
        }
        assert!(lse.is_finite(), "{kernel}: {lse}");
    }
}
