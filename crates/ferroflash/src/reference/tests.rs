//! The reference by hand: cases whose result is known without it.

use super::*;
use crate::attention::Sizes;
use crate::error::Error;
use kernel_spec::{DType, Mask};

const D: usize = 8;

fn problem(q_rows: usize, kv_rows: usize, q_heads: usize, kv_heads: usize) -> Sizes {
    Sizes { batch: 1, q_rows, kv_rows, q_heads, kv_heads, head_dim: D, dtype: DType::F32 }
}

fn one_hot(x: f64) -> Vec<f64> {
    let mut row = vec![0.0; D];
    row[0] = x;
    row
}

fn rows(values: &[f64]) -> Vec<f64> {
    values.iter().flat_map(|&x| one_hot(x)).collect()
}

fn first_columns(out: &[f64]) -> Vec<f64> {
    out.chunks(D).map(|row| row[0]).collect()
}

/// Equal scores: the output is the mean of the values seen, the log-sum-exp the logarithm of their number. By hand.
#[test]
fn masks_by_hand() {
    let check = |q_rows, mask, means: &[f64], counts: &[f64]| {
        let v = rows(&[1.0, 10.0, 100.0]);
        let (q, k) = (rows(&vec![0.0; q_rows]), rows(&[0.0; 3]));
        let attention = Attention::new().with_mask(mask);
        let result = forward(&q, &k, &v, problem(q_rows, 3, 1, 1), &attention).unwrap();
        for (found, expected) in first_columns(&result.out).iter().zip(means) {
            assert!((found - expected).abs() < 1e-12, "{mask:?}: {found} {expected}");
        }
        for (found, count) in result.lse.iter().zip(counts) {
            assert!(*found == count.ln() || (found - count.ln()).abs() < 1e-12, "{mask:?}");
        }
    };
    check(2, Mask::Full, &[37.0, 37.0], &[3.0, 3.0]);
    check(2, Mask::Causal, &[5.5, 37.0], &[2.0, 3.0]);
    check(3, Mask::Causal, &[1.0, 5.5, 37.0], &[1.0, 2.0, 3.0]);
    // Five rows, three keys: the first two see nothing.
    check(5, Mask::Causal, &[0.0, 0.0, 1.0, 5.5, 37.0], &[0.0, 0.0, 1.0, 2.0, 3.0]);
    check(3, Mask::Window { left: Some(0), right: Some(0) }, &[1.0, 10.0, 100.0], &[1.0; 3]);
    check(3, Mask::Window { left: Some(1), right: Some(0) }, &[1.0, 5.5, 55.0], &[1.0, 2.0, 2.0]);
    check(3, Mask::Window { left: None, right: Some(1) }, &[5.5, 37.0, 37.0], &[2.0, 3.0, 3.0]);
    check(1, Mask::Window { left: Some(1), right: None }, &[55.0], &[2.0]);
}

#[test]
fn no_keys_give_zero_and_minus_infinity() {
    for compute in [forward, forward_rounded] {
        let result = compute(&rows(&[1.0, 2.0]), &[], &[], problem(2, 0, 1, 1), &Attention::new()).unwrap();
        assert_eq!(result, ReferenceOutput { out: vec![0.0; 2 * D], lse: vec![f64::NEG_INFINITY; 2] });
    }
}

/// Four query heads over two key-value heads: heads 0 and 1 read head 0.
#[test]
fn query_heads_share_key_value_heads_in_order() {
    let (q, k, v) = (rows(&[0.0; 8]), rows(&[0.0; 2]), rows(&[3.0, 7.0]));
    let result = forward(&q, &k, &v, problem(2, 1, 4, 2), &Attention::new()).unwrap();
    assert_eq!(first_columns(&result.out), [3.0, 3.0, 7.0, 7.0, 3.0, 3.0, 7.0, 7.0]);
}

/// Log-sum-exp is `[batch, head, row]` where the output is `[batch, row, head]`; a head's score is its own.
#[test]
fn log_sum_exp_is_head_major() {
    // Scores with the one key of value 1: rows 1 and 2 of head 0, then of head 1.
    let q = rows(&[1.0, 2.0, 3.0, 4.0]);
    let result =
        forward(&q, &rows(&[1.0]), &rows(&[1.0]), problem(2, 1, 2, 1), &Attention::new().with_scale(1.0)).unwrap();
    assert_eq!(result.lse, [1.0, 3.0, 2.0, 4.0]);
}

#[test]
fn scale_zero_negative_and_default() {
    let (q, k, v) = (rows(&[1.0]), rows(&[0.0, 3f64.ln()]), rows(&[0.0, 4.0]));
    let out = |attention: Attention| forward(&q, &k, &v, problem(1, 2, 1, 1), &attention).unwrap().out[0];
    assert!((out(Attention::new().with_scale(0.0)) - 2.0).abs() < 1e-12);
    assert!((out(Attention::new().with_scale(1.0)) - 3.0).abs() < 1e-12);
    assert!((out(Attention::new().with_scale(-1.0)) - 1.0).abs() < 1e-12);
    let weight = 3f64.powf(1.0 / 8f64.sqrt());
    assert!((out(Attention::new()) - 4.0 * weight / (1.0 + weight)).abs() < 1e-12);
}

/// 1/3 in bfloat16 is 171/512. Times 130/128 that is 173.67/512, which rounds to 174/512; a probability that is not rounded
/// gives 173.33/512 and then 173/512.
#[test]
fn rounded_rounds_probabilities_and_output() {
    let (q, k, v) = (rows(&[0.0]), rows(&[0.0; 3]), rows(&[130.0 / 128.0, 0.0, 0.0]));
    let p = Sizes { dtype: DType::Bf16, ..problem(1, 3, 1, 1) };
    let rounded = forward_rounded(&q, &k, &v, p, &Attention::new()).unwrap();
    assert_eq!(rounded.out[0], 174.0 / 512.0);
    let exact = forward(&q, &k, &v, p, &Attention::new()).unwrap();
    let comparison = Comparison::new(&rounded.out, &exact.out, &rounded.out);
    let error = 174.0 / 512.0 - 130.0 / 384.0;
    assert!(comparison.within && (comparison.max_error - error).abs() < 1e-12, "{comparison}");
}

#[test]
fn some_rows_are_those_of_all_rows() {
    let p = Sizes { batch: 2, ..problem(3, 4, 2, 1) };
    let wave = |n: usize, f: f64| (0..n).map(|i| (i as f64 * f).sin()).collect::<Vec<_>>();
    let (q, k, v) = (wave(2 * 3 * 2 * D, 0.7), wave(2 * 4 * D, 1.3), wave(2 * 4 * D, 2.1));
    let attention = Attention::new().causal();
    let all = forward(&q, &k, &v, p, &attention).unwrap();
    let row = Row { batch: 1, q_head: 1, q_row: 2 };
    let some = forward_rows(&q, &k, &v, p, &attention, &[row]).unwrap();
    assert_eq!(some.out, all.out[((3 + 2) * 2 + 1) * D..][..D]);
    assert_eq!(some.lse, all.lse[(2 + 1) * 3 + 2..][..1]);
    let outside = forward_rows(&q, &k, &v, p, &attention, &[Row { batch: 2, q_head: 0, q_row: 0 }]);
    assert!(matches!(outside, Err(Error::Range { axis: "batch", start: 2, len: 2, .. })));
}

#[test]
fn comparison_never_accepts_nan() {
    for (a, b) in [(f64::NAN, 0.0), (0.0, f64::NAN), (f64::NAN, f64::NAN), (f64::INFINITY, 0.0)] {
        assert!(!Comparison::new(&[a], &[b], &[0.0]).within);
        assert_eq!(max_abs_difference(&[a], &[b]), f64::INFINITY);
    }
    assert_eq!(max_abs_difference(&[f64::NEG_INFINITY], &[f64::NEG_INFINITY]), 0.0);
    assert!(Comparison::new(&[1.00002], &[1.0], &[1.000005]).within);
    assert!(!Comparison::new(&[1.00003], &[1.0], &[1.000005]).within);
}

/// Twice the error of the precision and 1e-5, no more: what is just inside is accepted, what is just outside is not.
#[test]
fn the_bound_is_twice_the_error_of_the_precision() {
    for rounded_error in [0.0, 1e-7, 1e-5, 0.004, 0.25, 3.0] {
        let bound = 2.0 * rounded_error + 1e-5;
        assert!((tolerance(rounded_error) - bound).abs() < 1e-12, "{rounded_error}");
        // In one element of several, of either sign.
        let compare = |error: f64| {
            let reference = [4.0, -7.0, 0.0];
            Comparison::new(&[4.0, -7.0 + error, 0.0], &reference, &[4.0 - rounded_error, -7.0, 0.0])
        };
        for sign in [1.0, -1.0] {
            assert!(compare(sign * 0.999 * bound).within, "{rounded_error}");
            assert!(!compare(sign * 1.001 * bound).within, "{rounded_error}");
        }
        let comparison = compare(bound / 2.0);
        assert!((comparison.bound - bound).abs() < 1e-12 && (comparison.rounded_error - rounded_error).abs() < 1e-12);
    }
}

/// Scores 3 and -3 under a cap of 2: 2 tanh(1.5) and its negative, in output and log-sum-exp. A large cap changes nothing.
#[test]
fn softcap_bounds_the_scores() {
    let (q, k, v) = (rows(&[3.0]), rows(&[1.0, -1.0]), rows(&[1.0, 0.0]));
    let attention = Attention::new().with_scale(1.0);
    let with = |attention: Attention| forward(&q, &k, &v, problem(1, 2, 1, 1), &attention).unwrap();
    let bounded = 2.0 * 1.5f64.tanh();
    let result = with(attention.with_softcap(2.0));
    assert!((result.out[0] - 1.0 / (1.0 + (-2.0 * bounded).exp())).abs() < 1e-12, "{result:?}");
    assert!((result.lse[0] - (bounded.exp() + (-bounded).exp()).ln()).abs() < 1e-12, "{result:?}");
    let (plain, wide) = (with(attention), with(attention.with_softcap(1e6)));
    assert!((plain.out[0] - wide.out[0]).abs() < 1e-9 && with(attention.with_softcap(0.0)) == plain);
    let rounded = forward_rounded(&q, &k, &v, problem(1, 2, 1, 1), &attention.with_softcap(2.0)).unwrap();
    assert!((rounded.out[0] - result.out[0]).abs() < 1e-6);
}
