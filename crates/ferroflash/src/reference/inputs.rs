//! The formula, row by row.

use crate::attention::{Attention, Problem, Sizes};
use crate::dropout::{Dropout, keep};
use crate::error::{Error, Result, Unsupported};
use crate::score::{At, HostTensor, Real, ScoreProgram};
use crate::tensor::{Dims, Element, Shape};
use half::{bf16, f16};
use kernel_spec::{DType, Mask};
use rayon::prelude::*;

/// Result of a reference computation.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceOutput {
    /// `[batch, q_row, q_head, dim]`.
    pub out: Vec<f64>,
    /// Natural log-sum-exp of the scaled scores, and of the sink if there is one, `[batch, q_head, q_row]`; for a row that sees no key minus
    /// infinity, or the sink.
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

pub(super) struct Inputs<'a> {
    pub(super) q: &'a [f64],
    pub(super) k: &'a [f64],
    pub(super) v: &'a [f64],
    pub(super) sizes: Sizes,
    mask: Mask,
    pub(super) scale: f64,
    /// As above, rounded to `f32`.
    pub(super) scale_f32: f32,
    /// Bound of the scores, if there is one.
    pub(super) softcap: Option<f32>,
    program: Option<Program>,
    /// Sinks of the query heads, if there are any.
    sinks: Option<Vec<f64>>,
    dropout: Option<Dropout>,
    /// Number of the first batch entry, for programs.
    first_batch: usize,
}

/// What scores pass through.
struct Program {
    program: ScoreProgram,
    derivative: ScoreProgram,
    tensors: Vec<HostTensor>,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(
        q: &'a [f64],
        k: &'a [f64],
        v: &'a [f64],
        problem: &Problem,
        attention: &Attention,
    ) -> Result<Self> {
        let sizes = problem.sizes()?;
        sizes.validate()?;
        let scale_f32 = attention.scale_for(sizes.head_dim)?;
        // The default scale in full precision; a given one is exactly the f32.
        let scale = attention.scale.map_or_else(|| 1.0 / (sizes.head_dim as f64).sqrt(), f64::from);
        let q_shape = Shape::new(sizes.batch, sizes.q_rows, sizes.q_heads, sizes.head_dim);
        let kv_shape = Shape::new(sizes.batch, sizes.kv_rows, sizes.kv_heads, sizes.head_dim);
        for (data, shape) in [(q, q_shape), (k, kv_shape), (v, kv_shape)] {
            if shape.elements() != Some(data.len()) {
                let expected = shape.elements().unwrap_or(usize::MAX);
                return Err(Error::DataLength { shape: Dims::from(shape).to_vec(), expected, found: data.len() });
            }
        }
        let softcap = attention.softcap_for(scale_f32)?;
        let program = attention.program.map(|bound| {
            let program = bound.program().clone();
            Ok::<_, Error>(Program { derivative: program.derivative(), program, tensors: bound.to_host()? })
        });
        attention.check_sink(sizes.q_heads)?;
        let sinks = attention.sink.map(|sink| sink.to_f64_vec()).transpose()?;
        let (mask, program) = (attention.mask, program.transpose()?);
        let dropout = attention.checked_dropout()?;
        if dropout.is_some_and(|dropout| dropout.seed_and_offset().is_none()) {
            return Err(Error::Unsupported(Unsupported::DropoutOnDevice));
        }
        Ok(Inputs { q, k, v, sizes, mask, scale, scale_f32, softcap, program, sinks, dropout, first_batch: 0 })
    }

    /// The same, as batch entries from this one on.
    pub(super) fn with_first_batch(self, first_batch: usize) -> Self {
        Inputs { first_batch, ..self }
    }

    fn at(&self, row: Row, key: usize) -> At {
        let Sizes { q_rows, kv_rows, .. } = self.sizes;
        At { batch: self.first_batch + row.batch, head: row.q_head, row: row.q_row, key, q_rows, kv_rows }
    }

    /// The score that softcap and program make of a scaled product.
    pub(super) fn score<F: Real>(&self, x: F, row: Row, key: usize) -> F {
        let bounded = self.softcap.map_or(x, |cap| F::bounded(x, cap));
        let Some(Program { program, tensors, .. }) = &self.program else { return bounded };
        program.evaluate(bounded, self.at(row, key), tensors)
    }

    /// Its derivative with respect to the scaled product.
    pub(super) fn slope<F: Real>(&self, x: F, row: Row, key: usize) -> F {
        let (bounded, slope) =
            self.softcap.map_or((x, F::of_f64(1.0)), |cap| (F::bounded(x, cap), F::slope_of_bounded(x, cap)));
        let Some(Program { derivative, tensors, .. }) = &self.program else { return slope };
        derivative.evaluate(bounded, self.at(row, key), tensors).times(slope)
    }

    /// What dropout multiplies the probability of a key with: 0, or what those that are kept grow by; `None` where nothing is dropped.
    pub(super) fn kept(&self, row: Row, key: usize) -> Option<f32> {
        let dropout = self.dropout?;
        let [seed, offset] = dropout.seed_and_offset()?;
        let (batch, heads) = (self.first_batch + row.batch, self.sizes.q_heads);
        let keeps = keep(seed, offset, batch, heads, row.q_head, row.q_row, key, dropout.p());
        Some(if keeps { 1.0 / (1.0 - dropout.p()) } else { 0.0 })
    }

    /// Runs `compute`, which fills one row of the output and returns its log-sum-exp, for every row.
    pub(super) fn all_rows(&self, compute: impl Fn(Row, &mut [f64]) -> f64 + Sync) -> ReferenceOutput {
        let Sizes { batch, q_rows, q_heads, head_dim, .. } = self.sizes;
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

    pub(super) fn some_rows(
        &self,
        rows: &[Row],
        compute: impl Fn(Row, &mut [f64]) -> f64 + Sync,
    ) -> Result<ReferenceOutput> {
        let Sizes { batch, q_rows, q_heads, head_dim, .. } = self.sizes;
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
        let diagonal = q_row as i64 + self.sizes.kv_rows as i64 - self.sizes.q_rows as i64;
        let distance = kv_row as i64 - diagonal;
        match self.mask {
            Mask::Full => true,
            Mask::Causal => distance <= 0,
            Mask::Window { left, right } => {
                left.is_none_or(|left| distance >= -i64::from(left))
                    && right.is_none_or(|right| distance <= i64::from(right))
            }
            other => unreachable!("{other:?} has no definition here"),
        }
    }

    pub(super) fn q_row(&self, row: Row) -> &[f64] {
        let Sizes { q_rows, q_heads, head_dim, .. } = self.sizes;
        let start = ((row.batch * q_rows + row.q_row) * q_heads + row.q_head) * head_dim;
        &self.q[start..start + head_dim]
    }

    /// The row of k or v that `row` meets at `kv_row`.
    pub(super) fn kv_row<'t>(&self, tensor: &'t [f64], row: Row, kv_row: usize) -> &'t [f64] {
        let Sizes { kv_rows, q_heads, kv_heads, head_dim, .. } = self.sizes;
        let kv_head = row.q_head / (q_heads / kv_heads);
        let start = ((row.batch * kv_rows + kv_row) * kv_heads + kv_head) * head_dim;
        &tensor[start..start + head_dim]
    }

    /// The sink of a row's head, minus infinity where there is none: a score more in the sum.
    pub(super) fn sink(&self, row: Row) -> f64 {
        self.sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| sinks[row.q_head])
    }

    /// Whether heads have sinks.
    pub(super) fn has_sinks(&self) -> bool {
        self.sinks.is_some()
    }

    pub(super) fn visible(&self, row: Row) -> impl Iterator<Item = usize> {
        (0..self.sizes.kv_rows).filter(move |&kv_row| self.sees(row.q_row, kv_row))
    }

    pub(super) fn row_f64(&self, row: Row, out: &mut [f64]) -> f64 {
        let q = self.q_row(row);
        let visible: Vec<usize> = self.visible(row).collect();
        let scores = visible
            .iter()
            .map(|&j| (j, self.scale * q.iter().zip(self.kv_row(self.k, row, j)).map(|(q, k)| q * k).sum::<f64>()))
            .map(|(j, x)| self.score(x, row, j));
        // A key with a score of minus infinity is one that the row does not see.
        let (visible, scores): (Vec<usize>, Vec<f64>) =
            visible.iter().copied().zip(scores).filter(|&(_, score)| score != f64::NEG_INFINITY).unzip();
        let sink = self.sink(row);
        // A row that sees no key: no sum but that of a sink, output 0.
        if scores.is_empty() {
            out.fill(0.0);
            return sink;
        }
        let max = scores.iter().copied().fold(sink, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = weights.iter().sum::<f64>() + (sink - max).exp();
        out.fill(0.0);
        for (&j, weight) in visible.iter().zip(&weights) {
            let kept = self.kept(row, j);
            // What is dropped is no term of the sum, whatever the value.
            if kept == Some(0.0) {
                continue;
            }
            for (o, v) in out.iter_mut().zip(self.kv_row(self.v, row, j)) {
                *o += f64::from(kept.unwrap_or(1.0)) * weight / sum * v;
            }
        }
        max + sum.ln()
    }

    pub(super) fn row_rounded(&self, row: Row, out: &mut [f64]) -> f64 {
        let q = self.q_row(row);
        let visible: Vec<usize> = self.visible(row).collect();
        let dot = |k: &[f64]| q.iter().zip(k).map(|(&q, &k)| q as f32 * k as f32).sum::<f32>();
        let scores = visible.iter().map(|&j| (j, self.scale_f32 * dot(self.kv_row(self.k, row, j))));
        let scores: Vec<f32> = scores.map(|(j, x)| self.score(x, row, j)).collect();
        // Scores that f32 does not hold are not what is asked of it: only the rounding of the result is left.
        let exact = |&j: &usize| {
            let x: f64 = q.iter().zip(self.kv_row(self.k, row, j)).map(|(q, k)| q * k).sum();
            // What a program hides is hidden on purpose.
            if self.program.is_some() { self.score(self.scale * x, row, j) } else { x }
        };
        if visible.iter().zip(&scores).any(|(j, score)| !score.is_finite() && exact(j).is_finite()) {
            let lse = self.row_f64(row, out);
            out.iter_mut().for_each(|o| *o = f64::from(round(*o as f32, self.sizes.dtype)));
            return f64::from(lse as f32);
        }
        let (visible, scores): (Vec<usize>, Vec<f32>) =
            visible.into_iter().zip(scores).filter(|&(_, score)| score != f32::NEG_INFINITY).unzip();
        let sink = self.sink(row) as f32;
        if scores.is_empty() {
            out.fill(0.0);
            return sink.into();
        }
        let max = scores.iter().copied().fold(sink, f32::max);
        let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f32 = weights.iter().sum::<f32>() + (sink - max).exp();
        let dtype = self.sizes.dtype;
        let mut accumulator = vec![0f32; out.len()];
        for (&j, weight) in visible.iter().zip(&weights) {
            let kept = self.kept(row, j);
            if kept == Some(0.0) {
                continue;
            }
            let probability = round(weight / sum * kept.unwrap_or(1.0), dtype);
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
pub(super) fn round(value: f32, dtype: DType) -> f32 {
    fn through<T: Element>(value: f32) -> f32 {
        T::from_f64(value.into()).to_f64() as f32
    }
    match dtype {
        DType::F32 => value,
        DType::F16 => through::<f16>(value),
        DType::Bf16 => through::<bf16>(value),
        other => unreachable!("{other} is no `Element`"),
    }
}
