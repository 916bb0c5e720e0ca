//! Partial results, put together by the definition.

use super::ReferenceOutput;
use super::inputs::round;
use crate::error::{Error, MergeError, Result};
use crate::tensor::{Dims, Shape};
use kernel_spec::DType;

/// Attention over some of the keys: output `[batch, row, head, dim]`, log-sum-exp `[batch, head, row]`.
pub type ReferencePart<'a> = (&'a [f64], &'a [f64]);

/// Partial results of the same rows over disjoint sets of keys, put together in `f64`: what [`crate::merge`] is checked against.
///
/// ```text
/// lse = ln sum e^lse_i        out = sum e^(lse_i - lse) out_i
/// ```
///
/// A part whose log-sum-exp is minus infinity has seen no key, whatever its output is. Without any other, the row is 0 and minus infinity.
///
/// # Errors
/// [`MergeError::NoParts`], and [`Error::DataLength`] for a slice that does not hold `shape`.
pub fn merge(parts: &[ReferencePart<'_>], shape: Shape) -> Result<ReferenceOutput> {
    each_row(parts, shape, |row: &[(&[f64], f64)], out: &mut [f64]| {
        let largest = row.iter().map(|&(_, lse)| lse).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = row.iter().map(|&(_, lse)| (lse - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for (&(part, _), weight) in row.iter().zip(&weights) {
            out.iter_mut().zip(part).for_each(|(out, x)| *out += weight / sum * x);
        }
        largest + sum.ln()
    })
}

/// [`merge`] as a straightforward program computes it: in `f32`, with the output rounded to `dtype`.
///
/// # Errors
/// As [`merge`].
pub fn merge_rounded(parts: &[ReferencePart<'_>], shape: Shape, dtype: DType) -> Result<ReferenceOutput> {
    each_row(parts, shape, |row: &[(&[f64], f64)], out: &mut [f64]| {
        let largest = row.iter().map(|&(_, lse)| lse as f32).fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = row.iter().map(|&(_, lse)| (lse as f32 - largest).exp()).collect();
        let sum: f32 = weights.iter().sum();
        for (col, out) in out.iter_mut().enumerate() {
            let terms = row.iter().zip(&weights).map(|(&(part, _), weight)| weight / sum * part[col] as f32);
            *out = f64::from(round(terms.sum(), dtype));
        }
        f64::from(largest + sum.ln())
    })
}

/// Hands the parts of each row that have seen a key to `compute`, with zeros to fill; it returns the log-sum-exp.
fn each_row(
    parts: &[ReferencePart<'_>],
    shape: Shape,
    compute: impl Fn(&[(&[f64], f64)], &mut [f64]) -> f64,
) -> Result<ReferenceOutput> {
    if parts.is_empty() {
        return Err(MergeError::NoParts.into());
    }
    let Shape { batch, rows, heads, head_dim } = shape;
    let (elements, all_rows) = (batch * rows * heads * head_dim, batch * rows * heads);
    for (out, lse) in parts {
        for (found, expected, shape) in
            [(out.len(), elements, Dims::from(shape).to_vec()), (lse.len(), all_rows, vec![batch, heads, rows])]
        {
            if found != expected {
                return Err(Error::DataLength { shape, expected, found });
            }
        }
    }
    let mut result = ReferenceOutput { out: vec![0.0; elements], lse: vec![f64::NEG_INFINITY; all_rows] };
    for index in 0..all_rows {
        let (head, row) = (index % heads, index / heads);
        let in_lse = (row / rows * heads + head) * rows + row % rows;
        let own = index * head_dim..(index + 1) * head_dim;
        let seen = parts.iter().map(|(out, lse)| (&out[own.clone()], lse[in_lse]));
        let seen: Vec<_> = seen.filter(|&(_, lse)| lse != f64::NEG_INFINITY).collect();
        if !seen.is_empty() {
            result.lse[in_lse] = compute(&seen, &mut result.out[own]);
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Attention, Sizes};
    use crate::reference::forward;

    const DIM: usize = 8;

    fn same(value: f64) -> [f64; DIM] {
        [value; DIM]
    }

    /// One row over two keys of weights 1 and 3, as two parts: by hand.
    #[test]
    fn two_parts_by_hand() {
        let shape = Shape::new(1, 1, 1, DIM);
        let parts: [(&[f64], &[f64]); 2] = [(&same(8.0), &[0.0]), (&same(4.0), &[3f64.ln()])];
        for result in [merge(&parts, shape).unwrap(), merge_rounded(&parts, shape, DType::F32).unwrap()] {
            assert!(result.out.iter().all(|x| (x - 5.0).abs() < 1e-6), "{result:?}");
            assert!((result.lse[0] - 4f64.ln()).abs() < 1e-6, "{result:?}");
        }
    }

    #[test]
    fn parts_without_keys_play_no_part() {
        let shape = Shape::new(1, 1, 1, DIM);
        let (none, one) = ((&same(f64::NAN)[..], &[f64::NEG_INFINITY][..]), (&same(0.75)[..], &[-3.0][..]));
        for parts in [&[none, one][..], &[one, none, none]] {
            assert_eq!(merge(parts, shape).unwrap(), ReferenceOutput { out: vec![0.75; DIM], lse: vec![-3.0] });
        }
        let empty = ReferenceOutput { out: vec![0.0; DIM], lse: vec![f64::NEG_INFINITY] };
        assert_eq!(merge(&[none, none], shape).unwrap(), empty);
        let nan = merge(&[one, (&same(1.0), &[f64::NAN])], shape).unwrap();
        assert!(nan.lse[0].is_nan() && nan.out.iter().all(|x| x.is_nan()));
    }

    /// Heads lie inside of rows in the output, and outside of them in the log-sum-exp.
    #[test]
    fn attention_over_parts_of_the_keys_is_that_over_all() {
        let (batch, q_rows, heads, keys) = (2, 3, 4, 11);
        let wave = |n: usize, f: f64| (0..n).map(|i| (i as f64 * f).sin()).collect::<Vec<_>>();
        let q = wave(batch * q_rows * heads * DIM, 0.7);
        let (k, v) = (wave(batch * keys * heads * DIM, 1.3), wave(batch * keys * heads * DIM, 2.1));
        let attend = |from: usize, to: usize| {
            let own = |x: &[f64]| -> Vec<f64> {
                x.chunks(keys * heads * DIM).flat_map(|x| x[from * heads * DIM..to * heads * DIM].to_vec()).collect()
            };
            let dtype = DType::F32;
            let sizes =
                Sizes { batch, q_rows, kv_rows: to - from, q_heads: heads, kv_heads: heads, head_dim: DIM, dtype };
            forward(&q, &own(&k), &own(&v), sizes, &Attention::new()).unwrap()
        };
        let parts = [attend(0, 4), attend(4, 4), attend(4, 11)];
        let parts: Vec<_> = parts.iter().map(|part| (&part.out[..], &part.lse[..])).collect();
        let (merged, whole) = (merge(&parts, Shape::new(batch, q_rows, heads, DIM)).unwrap(), attend(0, keys));
        assert!(crate::reference::max_abs_difference(&merged.out, &whole.out) < 1e-14);
        assert!(crate::reference::max_abs_difference(&merged.lse, &whole.lse) < 1e-14);
    }

    #[test]
    fn slices_of_another_shape_are_errors() {
        let shape = Shape::new(1, 2, 1, DIM);
        assert!(matches!(merge(&[], shape), Err(Error::Merge(MergeError::NoParts))));
        assert!(matches!(
            merge(&[(&same(0.0), &[0.0, 0.0])], shape),
            Err(Error::DataLength { expected: 16, found: 8, .. })
        ));
        assert!(matches!(merge(&[(&[0.0; 16], &[0.0])], shape), Err(Error::DataLength { expected: 2, found: 1, .. })));
    }
}
