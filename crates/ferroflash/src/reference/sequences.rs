//! Sequences of different lengths: each is a problem of its own.

use super::gradients::{Precision, Upstream};
use super::inputs::Inputs;
use super::{ReferenceGradients, ReferenceOutput};
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
    each(tensors, sequences, sizes, |[q, k, v], sizes, sequence| {
        let inputs = Inputs::new(q, k, v, &sizes.into(), attention)?.with_first_batch(sequence);
        Ok(inputs.all_rows(|row, out| inputs.row_f64(row, out)))
    })
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
    each(tensors, sequences, sizes, |[q, k, v], sizes, sequence| {
        let inputs = Inputs::new(q, k, v, &sizes.into(), attention)?.with_first_batch(sequence);
        Ok(inputs.all_rows(|row, out| inputs.row_rounded(row, out)))
    })
}

/// Gradients of each sequence in `f64`, as [`backward`] of it alone: `dout` and `dq` are as q `[row, q_head, dim]`, `dk` and `dv` as k and v
/// `[row, kv_head, dim]`, `dlse` is `[q_head, row]`. Rows of no sequence are NaN.
///
/// `sizes` has the heads, the head dim and the element type; its batch and rows play no part.
///
/// # Errors
/// As [`backward`].
pub fn backward_sequences(
    tensors: [&[f64]; 3],
    dout: &[f64],
    dlse: Option<&[f64]>,
    sequences: &[SequenceRows],
    sizes: Sizes,
    attention: &Attention,
) -> Result<ReferenceGradients> {
    each_backward(tensors, dout, dlse, sequences, (sizes, attention), |[q, k, v], upstream, sizes, sequence| {
        let inputs = Inputs::new(q, k, v, &sizes.into(), attention)?.with_first_batch(sequence);
        inputs.gradients(upstream, Precision::Exact)
    })
}

/// [`backward_sequences`] as a straightforward program in the element type computes it, see [`backward_rounded`].
///
/// # Errors
/// As [`backward`].
pub fn backward_sequences_rounded(
    tensors: [&[f64]; 3],
    dout: &[f64],
    dlse: Option<&[f64]>,
    sequences: &[SequenceRows],
    sizes: Sizes,
    attention: &Attention,
) -> Result<ReferenceGradients> {
    each_backward(tensors, dout, dlse, sequences, (sizes, attention), |[q, k, v], upstream, sizes, sequence| {
        let inputs = Inputs::new(q, k, v, &sizes.into(), attention)?.with_first_batch(sequence);
        inputs.gradients(upstream, Precision::Rounded)
    })
}

/// The rows of a flat tensor in this order.
fn gather(tensor: &[f64], rows: &[usize], width: usize) -> Vec<f64> {
    rows.iter().flat_map(|&row| tensor[row * width..][..width].iter().copied()).collect()
}

fn each_backward(
    [q, k, v]: [&[f64]; 3],
    dout: &[f64],
    dlse: Option<&[f64]>,
    sequences: &[SequenceRows],
    (sizes, attention): (Sizes, &Attention),
    compute: impl Fn([&[f64]; 3], Upstream<'_>, Sizes, usize) -> Result<ReferenceGradients>,
) -> Result<ReferenceGradients> {
    let (q_row, kv_row) = (sizes.q_heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    let tokens = q.len() / q_row;
    let nan = |like: &[f64]| vec![f64::NAN; like.len()];
    let mut all = ReferenceGradients {
        dq: nan(q),
        dk: nan(k),
        dv: nan(v),
        dsink: attention.sink.map(|_| vec![0.0; sizes.q_heads]),
    };
    for (sequence, SequenceRows { q: rows, kv }) in sequences.iter().enumerate() {
        let of_rows = rows.start * q_row..rows.end * q_row;
        let own = if rows.is_empty() {
            // Of no rows there is no problem to pose, and nothing in the sums.
            let nothing = vec![0.0; kv.len() * kv_row];
            ReferenceGradients { dq: Vec::new(), dk: nothing.clone(), dv: nothing, dsink: None }
        } else {
            let (k, v) = (gather(k, kv, kv_row), gather(v, kv, kv_row));
            let dlse: Option<Vec<f64>> =
                dlse.map(|dlse| dlse.chunks_exact(tokens).flat_map(|head| head[rows.clone()].to_vec()).collect());
            let own = Sizes { batch: 1, q_rows: rows.len(), kv_rows: kv.len(), ..sizes };
            let upstream = Upstream { dout: &dout[of_rows.clone()], dlse: dlse.as_deref() };
            compute([&q[of_rows.clone()], &k, &v], upstream, own, sequence)?
        };
        all.dq[of_rows].copy_from_slice(&own.dq);
        for (sum, x) in all.dsink.iter_mut().flatten().zip(own.dsink.iter().flatten()) {
            *sum += x;
        }
        for (&row, (dk, dv)) in kv.iter().zip(own.dk.chunks_exact(kv_row).zip(own.dv.chunks_exact(kv_row))) {
            all.dk[row * kv_row..][..kv_row].copy_from_slice(dk);
            all.dv[row * kv_row..][..kv_row].copy_from_slice(dv);
        }
    }
    Ok(all)
}

fn each(
    [q, k, v]: [&[f64]; 3],
    sequences: &[SequenceRows],
    sizes: Sizes,
    compute: impl Fn([&[f64]; 3], Sizes, usize) -> Result<ReferenceOutput>,
) -> Result<ReferenceOutput> {
    let (q_row, kv_row) = (sizes.q_heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    let tokens = q.len() / q_row;
    let mut out = vec![f64::NAN; q.len()];
    let mut lse = vec![f64::NAN; tokens * sizes.q_heads];
    for (sequence, SequenceRows { q: rows, kv }) in sequences.iter().enumerate() {
        if rows.is_empty() {
            continue;
        }
        let (k, v) = (gather(k, kv, kv_row), gather(v, kv, kv_row));
        let own = Sizes { batch: 1, q_rows: rows.len(), kv_rows: kv.len(), ..sizes };
        let result = compute([&q[rows.start * q_row..rows.end * q_row], &k, &v], own, sequence)?;
        out[rows.start * q_row..rows.end * q_row].copy_from_slice(&result.out);
        for (head, values) in result.lse.chunks_exact(rows.len()).enumerate() {
            lse[head * tokens + rows.start..head * tokens + rows.end].copy_from_slice(values);
        }
    }
    Ok(ReferenceOutput { out, lse })
}
