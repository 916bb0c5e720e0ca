//! The gradients, row by row.
//!
//! With `x_j = q k_j`, `s_j` the score that scale, softcap and program make of it, `p_j = e^(s_j - lse)` and `out = sum_j p_j v_j`
//! (Dao et al. 2022, appendix B.2; the term of the log-sum-exp is the derivative of `ln sum_j e^(s_j)`, which is `p_j`):
//!
//! ```text
//! dv_j += p_j dout                          dp_j = dout v_j              delta = dout out
//! ds_j  = p_j (dp_j - delta + dlse)         dx_j = ds_j ds/dx            ds/dx = scale (1 - tanh^2(scale x_j / cap)) program'
//! dq   += dx_j k_j                          dk_j += dx_j q
//! ```
//!
//! A sink is a score more, of a key without a value: `dsink += e^(sink - lse) (0 - delta + dlse)`.
//!
//! With dropout, `z_j` is 0 or what a probability that is kept grows by: `out = sum_j z_j p_j v_j`, `dv_j += z_j p_j dout` and
//! `dp_j = z_j dout v_j`.

use rayon::prelude::*;

use super::inputs::{Inputs, Row, round};
use crate::attention::Sizes;
use crate::error::{Error, Result};

/// Gradients of a number with respect to q, k and v.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReferenceGradients {
    /// `[batch, q_row, q_head, dim]`.
    pub dq: Vec<f64>,
    /// `[batch, kv_row, kv_head, dim]`, summed over the query heads that share the head.
    pub dk: Vec<f64>,
    /// As `dk`.
    pub dv: Vec<f64>,
    /// With respect to the sinks, `[q_head]`, summed over rows and batch; `None` without sinks.
    pub dsink: Option<Vec<f64>>,
}

/// The gradients of the number with respect to the output and to the log-sum-exp.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a> {
    /// `[batch, q_row, q_head, dim]`.
    pub(super) dout: &'a [f64],
    /// `[batch, q_head, q_row]`, if it is not 0.
    pub(super) dlse: Option<&'a [f64]>,
}

/// What one row and one key that it sees give to the sums.
struct Term {
    key: usize,
    /// Factor on `dout` in `dv`.
    p: f64,
    /// Factor on `k` in `dq` and on `q` in `dk`.
    dx: f64,
}

/// What the query heads over one key-value head give, as `[q_row, head of the group, dim]` and `[kv_row, dim]`.
struct HeadGradients {
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
    /// Of the group's sinks.
    dsink: Vec<f64>,
}

/// What a row gives to the sums.
struct RowTerms {
    terms: Vec<Term>,
    /// To the gradient of the sink.
    dsink: f64,
}

/// How numbers are kept: all of them in f64, or sums in f32 and what is stored in the type of the tensors.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Precision {
    Exact,
    Rounded,
}

impl Inputs<'_> {
    pub(super) fn gradients(&self, upstream: Upstream<'_>, precision: Precision) -> Result<ReferenceGradients> {
        let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, .. } = self.sizes;
        let lengths = [(upstream.dout.len(), vec![batch, q_rows, q_heads, head_dim])];
        let lse = upstream.dlse.map(|dlse| (dlse.len(), vec![batch, q_heads, q_rows]));
        for (found, shape) in lengths.into_iter().chain(lse) {
            let expected = shape.iter().product();
            if found != expected {
                return Err(Error::DataLength { shape, expected, found });
            }
        }

        let heads: Vec<HeadGradients> = (0..batch * kv_heads)
            .into_par_iter()
            .map(|index| self.of_head(index / kv_heads, index % kv_heads, upstream, precision))
            .collect();
        let group = q_heads / kv_heads;
        let mut result = ReferenceGradients {
            dq: vec![0.0; self.q.len()],
            dk: vec![0.0; self.k.len()],
            dv: vec![0.0; self.k.len()],
            dsink: self.has_sinks().then(|| vec![0.0; q_heads]),
        };
        // Heads lie inside of rows.
        let scatter = |to: &mut [f64], from: &[f64], index: usize, rows: usize, width: usize| {
            let (batch, head) = (index / kv_heads, index % kv_heads);
            for (row, from) in from.chunks(width).enumerate() {
                to[((batch * rows + row) * kv_heads + head) * width..][..width].copy_from_slice(from);
            }
        };
        for (index, head) in heads.iter().enumerate() {
            scatter(&mut result.dq, &head.dq, index, q_rows, group * head_dim);
            scatter(&mut result.dk, &head.dk, index, kv_rows, head_dim);
            scatter(&mut result.dv, &head.dv, index, kv_rows, head_dim);
            let of_group = result.dsink.iter_mut().flat_map(|all| &mut all[index % kv_heads * group..][..group]);
            of_group.zip(&head.dsink).for_each(|(sum, x)| *sum += x);
        }
        Ok(result)
    }

    fn of_head(&self, batch: usize, kv_head: usize, upstream: Upstream<'_>, precision: Precision) -> HeadGradients {
        let Sizes { q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype, .. } = self.sizes;
        let group = q_heads / kv_heads;
        let mut sums = HeadGradients {
            dq: vec![0.0; q_rows * group * head_dim],
            dk: vec![0.0; kv_rows * head_dim],
            dv: vec![0.0; kv_rows * head_dim],
            dsink: vec![0.0; group],
        };
        let add = |sums: &mut [f64], factor: f64, row: &[f64]| {
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum = match precision {
                    Precision::Exact => *sum + factor * x,
                    Precision::Rounded => f64::from(*sum as f32 + factor as f32 * *x as f32),
                };
            }
        };
        for q_row in 0..q_rows {
            for of_group in 0..group {
                let row = Row { batch, q_head: kv_head * group + of_group, q_row };
                let place = (row.batch * q_rows + q_row) * q_heads + row.q_head;
                let dout = &upstream.dout[place * head_dim..][..head_dim];
                let dlse = upstream.dlse.map_or(0.0, |dlse| dlse[(batch * q_heads + row.q_head) * q_rows + q_row]);
                let RowTerms { terms, dsink } = match precision {
                    Precision::Exact => self.terms_f64(row, dout, dlse),
                    Precision::Rounded => self.terms_rounded(row, dout, dlse),
                };
                add(&mut sums.dsink[of_group..][..1], 1.0, &[dsink]);
                for Term { key, p, dx } in terms {
                    add(
                        &mut sums.dq[(q_row * group + of_group) * head_dim..][..head_dim],
                        dx,
                        self.kv_row(self.k, row, key),
                    );
                    add(&mut sums.dk[key * head_dim..][..head_dim], dx, self.q_row(row));
                    add(&mut sums.dv[key * head_dim..][..head_dim], p, dout);
                }
            }
        }
        if precision == Precision::Rounded {
            for gradients in [&mut sums.dq, &mut sums.dk, &mut sums.dv] {
                gradients.iter_mut().for_each(|x| *x = f64::from(round(*x as f32, dtype)));
            }
        }
        sums
    }

    /// The terms of a row in `f64`; none if it sees no key, but for the sink's.
    fn terms_f64(&self, row: Row, dout: &[f64], dlse: f64) -> RowTerms {
        let mut out = vec![0.0; dout.len()];
        let lse = self.row_f64(row, &mut out);
        let q = self.q_row(row);
        let delta: f64 = dout.iter().zip(&out).map(|(dout, out)| dout * out).sum();
        let term = |key: usize| {
            let x = self.scale * dot(q, self.kv_row(self.k, row, key));
            let (score, slope) = (self.score(x, row, key), self.slope(x, row, key));
            // A key that minus infinity hides is no part of the sum, and moves nothing.
            (score != f64::NEG_INFINITY).then(|| {
                let p = (score - lse).exp();
                let kept = self.kept(row, key).map_or(1.0, f64::from);
                let ds = p * (kept * dot(dout, self.kv_row(self.v, row, key)) - delta + dlse);
                Term { key, p: kept * p, dx: ds * slope * self.scale }
            })
        };
        // The weight of the sink has no value: of its gradient, the average and the log-sum-exp are left.
        let sink = self.sink(row);
        let dsink = if sink == f64::NEG_INFINITY { 0.0 } else { (sink - lse).exp() * (dlse - delta) };
        RowTerms { terms: self.visible(row).filter_map(term).collect(), dsink }
    }

    /// As a program in the tensors' type has them: scores in `f32`, probabilities and gradients of scores rounded before they meet a
    /// tensor, and the output that `delta` reads rounded as it was stored.
    fn terms_rounded(&self, row: Row, dout: &[f64], dlse: f64) -> RowTerms {
        let mut out = vec![0.0; dout.len()];
        let lse = self.row_rounded(row, &mut out) as f32;
        let (q, dtype) = (self.q_row(row), self.sizes.dtype);
        let delta = dot_f32(dout, &out);
        let term = |key: usize| {
            let x = self.scale_f32 * dot_f32(q, self.kv_row(self.k, row, key));
            let (score, slope) = (self.score(x, row, key), self.slope(x, row, key));
            (score != f32::NEG_INFINITY).then(|| {
                let p = (score - lse).exp();
                let kept = self.kept(row, key).unwrap_or(1.0);
                let ds = p * (kept * dot_f32(dout, self.kv_row(self.v, row, key)) - delta + dlse as f32);
                let (p, ds) = (round(kept * p, dtype), round(ds * slope, dtype));
                Term { key, p: p.into(), dx: f64::from(ds * self.scale_f32) }
            })
        };
        let sink = self.sink(row) as f32;
        let dsink = if sink == f32::NEG_INFINITY { 0.0 } else { (sink - lse).exp() * (dlse as f32 - delta) };
        RowTerms { terms: self.visible(row).filter_map(term).collect(), dsink: dsink.into() }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn dot_f32(a: &[f64], b: &[f64]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| a as f32 * b as f32).sum()
}

#[cfg(test)]
mod tests;
