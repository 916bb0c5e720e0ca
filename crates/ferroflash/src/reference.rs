//! Attention by its definition, in plain loops on the CPU: what every kernel is checked against.
//!
//! [`forward`] computes in `f64`. [`forward_rounded`] computes the same formula the way a straightforward program in the
//! tensors' own precision would. Their difference is the error that the precision itself brings, and [`Comparison`] allows a kernel
//! twice that:
//!
//! ```text
//! max |out - forward|  <=  2 * max |forward_rounded - forward| + 1e-5
//! ```
//!
//! Nothing here shares arithmetic with the kernels or with the crate `kernel_spec`: a mistake there shows up as a difference.
//!
//! All tensors are slices in logical order `[batch, row, head, dim]`, the log-sum-exp is `[batch, head, row]`.
//!
//! ```
//! use ferroflash::{Attention, DType, Problem, reference};
//! // One query, two keys with scores 0 and ln 3: weights 1/4 and 3/4.
//! let problem = Problem { batch: 1, q_rows: 1, kv_rows: 2, q_heads: 1, kv_heads: 1, head_dim: 8, dtype: DType::F32 };
//! let one_hot = |x: f64| [x, 0., 0., 0., 0., 0., 0., 0.];
//! let q = one_hot(3f64.ln());
//! let k = [one_hot(0.0), one_hot(1.0)].concat();
//! let v = [one_hot(0.0), one_hot(4.0)].concat();
//! let result = reference::forward(&q, &k, &v, &problem, &Attention::new().with_scale(1.0))?;
//! assert!((result.out[0] - 3.0).abs() < 1e-12 && (result.lse[0] - 4f64.ln()).abs() < 1e-12);
//! # Ok::<(), ferroflash::Error>(())
//! ```

use crate::attention::Attention;
use crate::error::{Error, Result};
use crate::plan::Problem;
use crate::tensor::{Element, Shape};
use half::{bf16, f16};
use kernel_spec::{DType, Mask};
use rayon::prelude::*;

/// Result of a reference computation.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceOutput {
    /// `[batch, q_row, q_head, dim]`.
    pub out: Vec<f64>,
    /// Natural log-sum-exp of the scaled scores, `[batch, q_head, q_row]`; minus infinity for a row that sees no key.
    pub lse: Vec<f64>,
}

/// One row of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// Sequence.
    pub batch: usize,
    /// Query head.
    pub q_head: usize,
    /// Query row.
    pub q_row: usize,
}

/// Attention in `f64`.
///
/// # Errors
/// Those of [`Problem::validate`], [`Error::Scale`], and [`Error::DataLength`].
pub fn forward(q: &[f64], k: &[f64], v: &[f64], problem: &Problem, attention: &Attention) -> Result<ReferenceOutput> {
    let inputs = Inputs::new(q, k, v, problem, attention)?;
    Ok(inputs.all_rows(|row, out| inputs.row_f64(row, out)))
}

/// Attention in `f64` for some rows of a problem that is too large to compute in full: `out` is `[row, dim]`, `lse` is `[row]`.
///
/// # Errors
/// As [`forward`], and [`Error::Range`] for a row outside the problem.
pub fn forward_rows(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    problem: &Problem,
    attention: &Attention,
    rows: &[Row],
) -> Result<ReferenceOutput> {
    let inputs = Inputs::new(q, k, v, problem, attention)?;
    inputs.some_rows(rows, |row, out| inputs.row_f64(row, out))
}

/// Attention as a straightforward program in the element type of the problem computes it: scores, softmax and sums in `f32`,
/// probabilities rounded to the element type before they meet the values, and the output rounded to it.
///
/// # Errors
/// As [`forward`].
pub fn forward_rounded(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    problem: &Problem,
    attention: &Attention,
) -> Result<ReferenceOutput> {
    let inputs = Inputs::new(q, k, v, problem, attention)?;
    Ok(inputs.all_rows(|row, out| inputs.row_rounded(row, out)))
}

/// [`forward_rounded`] for some rows: `out` is `[row, dim]`, `lse` is `[row]`.
///
/// # Errors
/// As [`forward_rows`].
pub fn forward_rounded_rows(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    problem: &Problem,
    attention: &Attention,
    rows: &[Row],
) -> Result<ReferenceOutput> {
    let inputs = Inputs::new(q, k, v, problem, attention)?;
    inputs.some_rows(rows, |row, out| inputs.row_rounded(row, out))
}

/// A result against the reference under the tolerance rule.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Comparison {
    /// Largest absolute difference between the result and the `f64` reference; infinite when either is NaN where the other is not.
    pub max_error: f64,
    /// Largest absolute difference between [`forward_rounded`] and the `f64` reference.
    pub rounded_error: f64,
    /// Largest error that is accepted: `2 * rounded_error + 1e-5`.
    pub bound: f64,
    /// Whether `max_error <= bound`.
    pub within: bool,
}

impl Comparison {
    /// Compares `out` with the reference. The three slices are in the same order.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn new(out: &[f64], reference: &[f64], rounded: &[f64]) -> Comparison {
        let max_error = max_abs_difference(out, reference);
        let rounded_error = max_abs_difference(rounded, reference);
        let bound = tolerance(rounded_error);
        // An infinite bound comes from a reference or a rounded result that is not finite: nothing to accept against.
        Comparison { max_error, rounded_error, bound, within: max_error <= bound && max_error.is_finite() }
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.within { "within" } else { "OUTSIDE" };
        write!(f, "max error {:.3e} is {word} the bound {:.3e}", self.max_error, self.bound)
    }
}

/// The largest error accepted when the same formula in the same precision is off by `rounded_error`.
///
/// The rule of FlashAttention's test suite: a factor 2 for another order of the same operations, and an absolute part for problems
/// whose rounded result is exact.
pub fn tolerance(rounded_error: f64) -> f64 {
    2.0 * rounded_error + 1e-5
}

/// Largest absolute difference. Infinite where one is NaN, or where they are not both the same infinity; never NaN.
///
/// # Panics
/// When the lengths differ.
pub fn max_abs_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "slices of different tensors are compared");
    let difference = |(&a, &b): (&f64, &f64)| {
        if a == b {
            return 0.0;
        }
        let difference = (a - b).abs();
        if difference.is_nan() { f64::INFINITY } else { difference }
    };
    a.iter().zip(b).map(difference).fold(0.0, f64::max)
}

struct Inputs<'a> {
    q: &'a [f64],
    k: &'a [f64],
    v: &'a [f64],
    problem: &'a Problem,
    mask: Mask,
    scale: f64,
    /// As above, rounded to `f32`.
    scale_f32: f32,
}

impl<'a> Inputs<'a> {
    fn new(q: &'a [f64], k: &'a [f64], v: &'a [f64], problem: &'a Problem, attention: &Attention) -> Result<Self> {
        problem.validate()?;
        let scale_f32 = attention.scale_for(problem.head_dim)?;
        // The default scale in full precision; a given one is exactly the f32.
        let scale = attention.scale.map_or_else(|| 1.0 / (problem.head_dim as f64).sqrt(), f64::from);
        let q_shape = Shape::new(problem.batch, problem.q_rows, problem.q_heads, problem.head_dim);
        let kv_shape = Shape::new(problem.batch, problem.kv_rows, problem.kv_heads, problem.head_dim);
        for (data, shape) in [(q, q_shape), (k, kv_shape), (v, kv_shape)] {
            if shape.elements() != Some(data.len()) {
                let expected = shape.elements().unwrap_or(usize::MAX);
                return Err(Error::DataLength { shape, expected, found: data.len() });
            }
        }
        Ok(Inputs { q, k, v, problem, mask: attention.mask, scale, scale_f32 })
    }

    /// Runs `compute`, which fills one row of the output and returns its log-sum-exp, for every row.
    fn all_rows(&self, compute: impl Fn(Row, &mut [f64]) -> f64 + Sync) -> ReferenceOutput {
        let Problem { batch, q_rows, q_heads, head_dim, .. } = *self.problem;
        let mut out = vec![0.0; batch * q_rows * q_heads * head_dim];
        let in_order: Vec<f64> = out
            .par_chunks_mut(head_dim)
            .enumerate()
            .map(|(index, out)| {
                let (q_head, index) = (index % q_heads, index / q_heads);
                compute(Row { batch: index / q_rows, q_head, q_row: index % q_rows }, out)
            })
            .collect();
        let mut lse = vec![0.0; in_order.len()];
        for (index, value) in in_order.into_iter().enumerate() {
            let (q_head, index) = (index % q_heads, index / q_heads);
            lse[(index / q_rows * q_heads + q_head) * q_rows + index % q_rows] = value;
        }
        ReferenceOutput { out, lse }
    }

    fn some_rows(&self, rows: &[Row], compute: impl Fn(Row, &mut [f64]) -> f64 + Sync) -> Result<ReferenceOutput> {
        let Problem { batch, q_rows, q_heads, head_dim, .. } = *self.problem;
        for row in rows {
            for (axis, index, len) in
                [("batch", row.batch, batch), ("heads", row.q_head, q_heads), ("rows", row.q_row, q_rows)]
            {
                if index >= len {
                    return Err(Error::Range { axis, start: index, end: index + 1, len });
                }
            }
        }
        let mut out = vec![0.0; rows.len() * head_dim];
        let lse = out.par_chunks_mut(head_dim).zip(rows).map(|(out, &row)| compute(row, out)).collect();
        Ok(ReferenceOutput { out, lse })
    }

    /// The definition of the masks: which keys this row sees, counted from the bottom-right corner of the score matrix.
    fn sees(&self, q_row: usize, kv_row: usize) -> bool {
        let diagonal = q_row as i64 + self.problem.kv_rows as i64 - self.problem.q_rows as i64;
        let distance = kv_row as i64 - diagonal;
        match self.mask {
            Mask::Full => true,
            Mask::Causal => distance <= 0,
            Mask::Window { left, right } => {
                left.is_none_or(|left| distance >= -i64::from(left))
                    && right.is_none_or(|right| distance <= i64::from(right))
            }
        }
    }

    fn q_row(&self, row: Row) -> &[f64] {
        let Problem { q_rows, q_heads, head_dim, .. } = *self.problem;
        let start = ((row.batch * q_rows + row.q_row) * q_heads + row.q_head) * head_dim;
        &self.q[start..start + head_dim]
    }

    /// The row of k or v that `row` meets at `kv_row`.
    fn kv_row<'t>(&self, tensor: &'t [f64], row: Row, kv_row: usize) -> &'t [f64] {
        let Problem { kv_rows, q_heads, kv_heads, head_dim, .. } = *self.problem;
        let kv_head = row.q_head / (q_heads / kv_heads);
        let start = ((row.batch * kv_rows + kv_row) * kv_heads + kv_head) * head_dim;
        &tensor[start..start + head_dim]
    }

    fn visible(&self, row: Row) -> impl Iterator<Item = usize> {
        (0..self.problem.kv_rows).filter(move |&kv_row| self.sees(row.q_row, kv_row))
    }

    fn row_f64(&self, row: Row, out: &mut [f64]) -> f64 {
        let q = self.q_row(row);
        let visible: Vec<usize> = self.visible(row).collect();
        let scores: Vec<f64> = visible
            .iter()
            .map(|&j| self.scale * q.iter().zip(self.kv_row(self.k, row, j)).map(|(q, k)| q * k).sum::<f64>())
            .collect();
        // A row that sees no key: no maximum, no sum, output 0.
        if scores.is_empty() {
            out.fill(0.0);
            return f64::NEG_INFINITY;
        }
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        out.fill(0.0);
        for (&j, weight) in visible.iter().zip(&weights) {
            for (o, v) in out.iter_mut().zip(self.kv_row(self.v, row, j)) {
                *o += weight / sum * v;
            }
        }
        max + sum.ln()
    }

    fn row_rounded(&self, row: Row, out: &mut [f64]) -> f64 {
        let q = self.q_row(row);
        let visible: Vec<usize> = self.visible(row).collect();
        let dot = |k: &[f64]| q.iter().zip(k).map(|(&q, &k)| q as f32 * k as f32).sum::<f32>();
        let scores: Vec<f32> = visible.iter().map(|&j| self.scale_f32 * dot(self.kv_row(self.k, row, j))).collect();
        if scores.is_empty() {
            out.fill(0.0);
            return f64::NEG_INFINITY;
        }
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f32 = weights.iter().sum();
        let dtype = self.problem.dtype;
        let mut accumulator = vec![0f32; out.len()];
        for (&j, weight) in visible.iter().zip(&weights) {
            let probability = round(weight / sum, dtype);
            for (o, &v) in accumulator.iter_mut().zip(self.kv_row(self.v, row, j)) {
                *o += probability * v as f32;
            }
        }
        for (o, sum) in out.iter_mut().zip(accumulator) {
            *o = f64::from(round(sum, dtype));
        }
        f64::from(max + sum.ln())
    }
}

/// `value` rounded to `dtype`, ties to even.
fn round(value: f32, dtype: DType) -> f32 {
    fn through<T: Element>(value: f32) -> f32 {
        T::from_f64(value.into()).to_f64() as f32
    }
    match dtype {
        DType::F32 => value,
        DType::F16 => through::<f16>(value),
        DType::Bf16 => through::<bf16>(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: usize = 8;

    fn problem(q_rows: usize, kv_rows: usize, q_heads: usize, kv_heads: usize) -> Problem {
        Problem { batch: 1, q_rows, kv_rows, q_heads, kv_heads, head_dim: D, dtype: DType::F32 }
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
            let result = forward(&q, &k, &v, &problem(q_rows, 3, 1, 1), &attention).unwrap();
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
            let result = compute(&rows(&[1.0, 2.0]), &[], &[], &problem(2, 0, 1, 1), &Attention::new()).unwrap();
            assert_eq!(result, ReferenceOutput { out: vec![0.0; 2 * D], lse: vec![f64::NEG_INFINITY; 2] });
        }
    }

    /// Four query heads over two key-value heads: heads 0 and 1 read head 0.
    #[test]
    fn query_heads_share_key_value_heads_in_order() {
        let (q, k, v) = (rows(&[0.0; 8]), rows(&[0.0; 2]), rows(&[3.0, 7.0]));
        let result = forward(&q, &k, &v, &problem(2, 1, 4, 2), &Attention::new()).unwrap();
        assert_eq!(first_columns(&result.out), [3.0, 3.0, 7.0, 7.0, 3.0, 3.0, 7.0, 7.0]);
    }

    /// Log-sum-exp is `[batch, head, row]` where the output is `[batch, row, head]`; a head's score is its own.
    #[test]
    fn log_sum_exp_is_head_major() {
        // Scores with the one key of value 1: rows 1 and 2 of head 0, then of head 1.
        let q = rows(&[1.0, 2.0, 3.0, 4.0]);
        let result =
            forward(&q, &rows(&[1.0]), &rows(&[1.0]), &problem(2, 1, 2, 1), &Attention::new().with_scale(1.0)).unwrap();
        assert_eq!(result.lse, [1.0, 3.0, 2.0, 4.0]);
    }

    #[test]
    fn scale_zero_negative_and_default() {
        let (q, k, v) = (rows(&[1.0]), rows(&[0.0, 3f64.ln()]), rows(&[0.0, 4.0]));
        let out = |attention: Attention| forward(&q, &k, &v, &problem(1, 2, 1, 1), &attention).unwrap().out[0];
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
        let p = Problem { dtype: DType::Bf16, ..problem(1, 3, 1, 1) };
        let rounded = forward_rounded(&q, &k, &v, &p, &Attention::new()).unwrap();
        assert_eq!(rounded.out[0], 174.0 / 512.0);
        let exact = forward(&q, &k, &v, &p, &Attention::new()).unwrap();
        let comparison = Comparison::new(&rounded.out, &exact.out, &rounded.out);
        let error = 174.0 / 512.0 - 130.0 / 384.0;
        assert!(comparison.within && (comparison.max_error - error).abs() < 1e-12, "{comparison}");
    }

    #[test]
    fn some_rows_are_those_of_all_rows() {
        let p = Problem { batch: 2, ..problem(3, 4, 2, 1) };
        let wave = |n: usize, f: f64| (0..n).map(|i| (i as f64 * f).sin()).collect::<Vec<_>>();
        let (q, k, v) = (wave(2 * 3 * 2 * D, 0.7), wave(2 * 4 * D, 1.3), wave(2 * 4 * D, 2.1));
        let attention = Attention::new().causal();
        let all = forward(&q, &k, &v, &p, &attention).unwrap();
        let row = Row { batch: 1, q_head: 1, q_row: 2 };
        let some = forward_rows(&q, &k, &v, &p, &attention, &[row]).unwrap();
        assert_eq!(some.out, all.out[((3 + 2) * 2 + 1) * D..][..D]);
        assert_eq!(some.lse, all.lse[(2 + 1) * 3 + 2..][..1]);
        let outside = forward_rows(&q, &k, &v, &p, &attention, &[Row { batch: 2, q_head: 0, q_row: 0 }]);
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
}
