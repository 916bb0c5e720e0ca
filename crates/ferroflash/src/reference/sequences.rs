//! Sequences of different lengths: each is a problem of its own.

use super::{ReferenceOutput, forward, forward_rounded};
use crate::attention::{Attention, Sizes};
use crate::error::Result;
use std::ops::Range;

/// Which rows of flat tensors belong to one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRows {
    /// Its query rows: rows of q `[row, q_head, dim]`.
    pub q: Range<usize>,
    /// Its keys and values in order: rows of k and v `[row, kv_head, dim]`, wherever a cache or its pages have them.
    pub kv: Vec<usize>,
}

/// Attention of each sequence in `f64`, as [`forward`] of it alone: `out` is `[row, q_head, dim]`, `lse` is `[q_head, row]`. Rows of no
/// sequence are NaN.
///
/// `sizes` has the heads, the head dim and the element type; its batch and rows play no part.
///
/// # Errors
/// As [`forward`].
pub fn forward_sequences(
    tensors: [&[f64]; 3],
    sequences: &[SequenceRows],
    sizes: Sizes,
    attention: &Attention,
) -> Result<ReferenceOutput> {
    each(tensors, sequences, sizes, |[q, k, v], sizes| forward(q, k, v, sizes, attention))
}

/// [`forward_sequences`] as a straightforward program in the element type computes it, see [`forward_rounded`].
///
/// # Errors
/// As [`forward`].
pub fn forward_sequences_rounded(
    tensors: [&[f64]; 3],
    sequences: &[SequenceRows],
    sizes: Sizes,
    attention: &Attention,
) -> Result<ReferenceOutput> {
    each(tensors, sequences, sizes, |[q, k, v], sizes| forward_rounded(q, k, v, sizes, attention))
}

fn each(
    [q, k, v]: [&[f64]; 3],
    sequences: &[SequenceRows],
    sizes: Sizes,
    compute: impl Fn([&[f64]; 3], Sizes) -> Result<ReferenceOutput>,
) -> Result<ReferenceOutput> {
    let (q_row, kv_row) = (sizes.q_heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    let tokens = q.len() / q_row;
    let mut out = vec![f64::NAN; q.len()];
    let mut lse = vec![f64::NAN; tokens * sizes.q_heads];
    for SequenceRows { q: rows, kv } in sequences.iter().filter(|sequence| !sequence.q.is_empty()) {
        let gather = |tensor: &[f64]| -> Vec<f64> {
            kv.iter().flat_map(|&row| tensor[row * kv_row..][..kv_row].iter().copied()).collect()
        };
        let (k, v) = (gather(k), gather(v));
        let own = Sizes { batch: 1, q_rows: rows.len(), kv_rows: kv.len(), ..sizes };
        let result = compute([&q[rows.start * q_row..rows.end * q_row], &k, &v], own)?;
        out[rows.start * q_row..rows.end * q_row].copy_from_slice(&result.out);
        for (head, values) in result.lse.chunks_exact(rows.len()).enumerate() {
            lse[head * tokens + rows.start..head * tokens + rows.end].copy_from_slice(values);
        }
    }
    Ok(ReferenceOutput { out, lse })
}
