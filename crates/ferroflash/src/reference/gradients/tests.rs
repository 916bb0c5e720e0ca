//! Gradients beside the differences that they are the limit of, and cases whose result is known without them.

use crate::attention::{Attention, Sizes};
use crate::error::Error;
use crate::reference::{SequenceRows, backward, backward_rounded, backward_sequences, forward, max_abs_difference};
use kernel_spec::{DType, Mask};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const D: usize = 8;

fn sizes(q_rows: usize, kv_rows: usize, q_heads: usize, kv_heads: usize) -> Sizes {
    Sizes { batch: 2, q_rows, kv_rows, q_heads, kv_heads, head_dim: D, dtype: DType::F32 }
}

/// q, k, v, dout and dlse of a problem.
fn draw(s: Sizes, rng: &mut SmallRng) -> [Vec<f64>; 5] {
    let q = s.batch * s.q_rows * s.q_heads;
    let kv = s.batch * s.kv_rows * s.kv_heads;
    [q * D, kv * D, kv * D, q * D, q].map(|len| (0..len).map(|_| rng.random_range(-2.0..2.0)).collect())
}

/// Every element of every gradient, for masks with and without empty rows, grouped heads, scales, softcaps and a term of the log-sum-exp.
#[test]
fn gradients_are_the_limit_of_differences() {
    let mut rng = SmallRng::seed_from_u64(17);
    let window = |left, right| Mask::Window { left, right };
    for (s, mask) in [
        (sizes(3, 4, 2, 2), Mask::Full),
        (sizes(4, 3, 4, 2), Mask::Causal),
        (sizes(2, 5, 3, 1), Mask::Causal),
        (sizes(5, 3, 1, 1), window(Some(1), Some(0))),
        (sizes(3, 3, 2, 1), window(None, Some(1))),
    ] {
        for (scale, softcap) in [(None, None), (Some(-0.7), None), (Some(1.3), Some(2.0)), (Some(0.0), None)] {
            let mut attention = Attention::new().with_mask(mask);
            (attention.scale, attention.softcap) = (scale, softcap);
            let [q, k, v, dout, dlse] = draw(s, &mut rng);
            let found = backward([&q, &k, &v], &dout, Some(&dlse), s, &attention).unwrap();
            let loss = |tensors: &[Vec<f64>; 3]| -> f64 {
                let [q, k, v] = tensors;
                let result = forward(q, k, v, s, &attention).unwrap();
                let of_out: f64 = result.out.iter().zip(&dout).map(|(out, d)| out * d).sum();
                // Minus infinity for a row that sees no key, whatever the inputs: a constant.
                let of_lse = result.lse.iter().zip(&dlse).filter(|(lse, _)| lse.is_finite());
                of_out + of_lse.map(|(lse, d)| lse * d).sum::<f64>()
            };
            let mut tensors = [q, k, v];
            for (tensor, gradient) in [&found.dq, &found.dk, &found.dv].into_iter().enumerate() {
                for (i, &gradient) in gradient.iter().enumerate() {
                    // The error of a central difference is step^2 times a third derivative of about 10, and 1e-15 / step by rounding.
                    let step = 1e-5;
                    let x = tensors[tensor][i];
                    tensors[tensor][i] = x + step;
                    let above = loss(&tensors);
                    tensors[tensor][i] = x - step;
                    let below = loss(&tensors);
                    tensors[tensor][i] = x;
                    let difference = (above - below) / (2.0 * step);
                    assert!(
                        (gradient - difference).abs() < 1e-7,
                        "{mask:?} {scale:?} {softcap:?}: {tensor} {i}: {gradient} {difference}"
                    );
                }
            }
        }
    }
}

/// One key: its weight is 1 whatever its score, so that only the log-sum-exp depends on it.
#[test]
fn one_key_by_hand() {
    let s = Sizes { batch: 1, ..sizes(2, 1, 1, 1) };
    let (q, k, v) = (vec![0.5; 2 * D], vec![0.25; D], vec![3.0; D]);
    let dout = [vec![1.0; D], vec![10.0; D]].concat();
    for compute in [backward, backward_rounded] {
        let attention = Attention::new().with_scale(2.0);
        let found = compute([&q, &k, &v], &dout, None, s, &attention).unwrap();
        assert_eq!((found.dq, found.dk, found.dv), (vec![0.0; 2 * D], vec![0.0; D], vec![11.0; D]));
        let found = compute([&q, &k, &v], &dout, Some(&[1.0, -3.0]), s, &attention).unwrap();
        assert_eq!(found.dq, [vec![0.5; D], vec![-1.5; D]].concat());
        assert_eq!((found.dk, found.dv), (vec![-2.0; D], vec![11.0; D]));
    }
}

#[test]
fn rows_without_keys_give_nothing() {
    let mut rng = SmallRng::seed_from_u64(5);
    for compute in [backward, backward_rounded] {
        let s = sizes(3, 0, 2, 1);
        let [q, k, v, dout, dlse] = draw(s, &mut rng);
        let found = compute([&q, &k, &v], &dout, Some(&dlse), s, &Attention::new()).unwrap();
        assert_eq!((found.dq, found.dk.len(), found.dv.len()), (vec![0.0; q.len()], 0, 0));
        // Of five rows over two keys the first three see none, and no row sees the key that infinity hides.
        let s = Sizes { batch: 1, ..sizes(5, 2, 1, 1) };
        let [_, _, v, dout, dlse] = draw(s, &mut rng);
        let q = vec![1.0; 5 * D];
        let mut k = vec![0.5; 2 * D];
        k[D] = f64::NEG_INFINITY;
        let found = compute([&q, &k, &v], &dout, Some(&dlse), s, &Attention::new().causal()).unwrap();
        assert!(found.dq[..3 * D].iter().chain(&found.dk[D..]).chain(&found.dv[D..]).all(|&x| x == 0.0));
        assert!(found.dq.iter().chain(&found.dk).chain(&found.dv).all(|x| x.is_finite()));
    }
}

/// What rounding costs is a few units of the type, in every gradient.
#[test]
fn rounded_gradients_are_near() {
    let mut rng = SmallRng::seed_from_u64(29);
    for (dtype, unit) in [(DType::F32, 1e-6), (DType::F16, 1.0 / 2048.0), (DType::Bf16, 1.0 / 256.0)] {
        let s = Sizes { dtype, ..sizes(9, 12, 4, 2) };
        let [q, k, v, dout, dlse] = draw(s, &mut rng);
        let attention = Attention::new().causal().with_softcap(3.0);
        let exact = backward([&q, &k, &v], &dout, Some(&dlse), s, &attention).unwrap();
        let rounded = backward_rounded([&q, &k, &v], &dout, Some(&dlse), s, &attention).unwrap();
        for (a, b) in [(exact.dq, rounded.dq), (exact.dk, rounded.dk), (exact.dv, rounded.dv)] {
            let largest = a.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
            let error = max_abs_difference(&a, &b);
            assert!(error > 0.0 && error < 8.0 * unit * largest, "{dtype}: {error} of {largest}");
        }
    }
}

#[test]
fn upstream_gradients_have_the_shapes_of_the_results() {
    let s = sizes(3, 2, 2, 1);
    let [q, k, v, dout, dlse] = draw(s, &mut SmallRng::seed_from_u64(1));
    let call = |dout: &[f64], dlse: &[f64]| backward([&q, &k, &v], dout, Some(dlse), s, &Attention::new());
    assert!(call(&dout, &dlse).is_ok());
    let shape = |result| match result {
        Err(Error::DataLength { shape, expected, found }) => (shape, expected, found),
        other => panic!("{other:?}"),
    };
    assert_eq!(shape(call(&dout[1..], &dlse)), (vec![2, 3, 2, D], 96, 95));
    assert_eq!(shape(call(&dout, &dlse[2..])), (vec![2, 2, 3], 12, 10));
}

/// Two sequences of a batch of 2, packed: the second's keys in the opposite order, and a third sequence that has none of either. Rows of
/// nobody are NaN; keys without queries get 0.
#[test]
fn gradients_of_sequences_are_those_of_each_alone() {
    let s = sizes(3, 4, 2, 1);
    let [q, k, v, dout, dlse] = draw(s, &mut SmallRng::seed_from_u64(23));
    let attention = Attention::new().with_mask(Mask::Causal);
    let expected = backward([&q, &k, &v], &dout, Some(&dlse), s, &attention).unwrap();
    // One row of nobody behind the six of q, one of k and v, and one that has no query.
    let (q_row, kv_row) = (s.q_heads * D, s.kv_heads * D);
    let padded = |tensor: &[f64], rows: usize, width: usize| [tensor, &vec![7.0; rows * width]].concat();
    let reversed = |tensor: &[f64]| -> Vec<f64> {
        let (first, second) = tensor.split_at(4 * kv_row);
        first.iter().copied().chain(second.chunks(kv_row).rev().flatten().copied()).collect()
    };
    let (q, dout) = (padded(&q, 1, q_row), padded(&dout, 1, q_row));
    let (k, v) = (padded(&reversed(&k), 2, kv_row), padded(&reversed(&v), 2, kv_row));
    // `[batch, head, row]` becomes `[head, token]`.
    let of_head = |head: usize| {
        let of = |batch: usize| dlse[(batch * s.q_heads + head) * 3..][..3].to_vec();
        [of(0), of(1), vec![7.0]].concat()
    };
    let dlse = [of_head(0), of_head(1)].concat();
    let rows = |q, kv| SequenceRows { q, kv };
    let sequences =
        [rows(0..3, (0..4).collect()), rows(3..6, (4..8).rev().collect()), rows(6..6, vec![8]), rows(0..0, vec![])];
    let found = backward_sequences([&q, &k, &v], &dout, Some(&dlse), &sequences, s, &attention).unwrap();
    assert_eq!(found.dq[..6 * q_row], expected.dq);
    assert!(found.dq[6 * q_row..].iter().all(|x| x.is_nan()));
    for (found, expected) in [(&found.dk, &expected.dk), (&found.dv, &expected.dv)] {
        assert_eq!(found[..8 * kv_row], reversed(expected));
        assert!(found[8 * kv_row..9 * kv_row].iter().all(|&x| x == 0.0));
        assert!(found[9 * kv_row..].iter().all(|x| x.is_nan()));
    }
}
