//! The operation that candle applies to q, k and v.

use crate::differentiable::{self, Gradients};
use crate::error::Error;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use ferroflash::{Attention, Mask, Operand, Strides};

/// The options of one attention, as a [`CustomOp3`] of q `[batch, q_rows, q_heads, head_dim]` and k, v `[batch, kv_rows, kv_heads,
/// head_dim]`. The result is a contiguous tensor of q's shape.
///
/// The fields are those of candle-flash-attn's type of this name, so that there is no place to keep the log-sum-exp in, which the
/// gradients take: `bwd` of this operation computes the forward pass again. The functions of this crate keep it.
#[derive(Clone, Debug)]
pub struct FlashAttn {
    /// Factor on the scores.
    pub softmax_scale: f32,
    /// Slopes of the heads, f32 `(q_heads)`: the score of key `j` and row `i` is lowered by the slope times `|i + kv_rows - q_rows - j|`.
    /// They get no gradient; q, k and v do, without a softcap.
    pub alibi_slopes: Option<Tensor>,
    /// Keys visible before the diagonal, which ends at the last row and the last key; `None`, or more than there are keys, is no bound.
    pub window_size_left: Option<usize>,
    /// Keys visible after the diagonal, likewise.
    pub window_size_right: Option<usize>,
    /// Bound of the scores; `None` and 0 are no bound.
    pub softcap: Option<f32>,
}

impl CustomOp3 for FlashAttn {
    fn name(&self) -> &'static str {
        "flash-attn"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, _) = crate::cpu::forward(self.plain(), self.name(), [(q, q_l), (k, k_l), (v, v_l)], false)?;
        Ok((out, q_l.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle_core::CudaStorage,
        q_l: &Layout,
        k: &candle_core::CudaStorage,
        k_l: &Layout,
        v: &candle_core::CudaStorage,
        v_l: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (out, _) = crate::cuda::forward(self.plain(), self.name(), [(q, q_l), (k, k_l), (v, v_l)], false)?;
        Ok((out, q_l.shape().clone()))
    }

    fn bwd(&self, q: &Tensor, k: &Tensor, v: &Tensor, _: &Tensor, dout: &Tensor) -> Result<Gradients> {
        differentiable::again(self, self.name(), [q, k, v], dout)
    }
}

impl FlashAttn {
    /// The options as ferroflash's own, for `kv_rows` keys, without what the slopes say.
    pub(crate) fn attention(&self, kv_rows: usize) -> Attention<'static> {
        let mask = mask(self.window_size_left, self.window_size_right, kv_rows);
        Attention::new().with_mask(mask).with_scale(self.softmax_scale).with_softcap(self.softcap)
    }

    /// The options as those of a call without sinks.
    pub(crate) fn plain(&self) -> Options<'_> {
        Options { options: self, sink: None }
    }

    /// The slopes, which are of the type and the shape that they need.
    pub(crate) fn slopes(&self, op: &'static str, q_heads: usize) -> crate::error::Result<Option<&Tensor>> {
        let Some(slopes) = &self.alibi_slopes else { return Ok(None) };
        if slopes.dtype() != DType::F32 {
            return Err(Error::SlopesType { op, found: slopes.dtype() });
        }
        if slopes.dims() != [q_heads] {
            return Err(Error::SlopesShape { op, found: slopes.dims().to_vec(), q_heads });
        }
        Ok(Some(slopes))
    }
}

/// The options of a call, with the sinks of its heads, for which candle-flash-attn's type has no place.
#[derive(Clone, Copy)]
pub(crate) struct Options<'a> {
    pub(crate) options: &'a FlashAttn,
    /// f32 `(q_heads)`.
    pub(crate) sink: Option<&'a Tensor>,
}

impl Options<'_> {
    /// The sinks, which are of the type and the shape that they need, and contiguous.
    pub(crate) fn sinks(&self, op: &'static str, q_heads: usize) -> Result<Option<Tensor>> {
        let Some(sink) = self.sink else { return Ok(None) };
        if sink.dtype() != DType::F32 {
            return Err(Error::SinkType { op, found: sink.dtype() }.into());
        }
        if sink.dims() != [q_heads] {
            return Err(Error::SinkShape { op, found: sink.dims().to_vec(), q_heads }.into());
        }
        sink.contiguous().map(Some)
    }
}

/// The keys that candle-flash-attn lets a row see.
///
/// A bound on the left alone brings one of `kv_rows` on the right, which hides the last keys from the first rows where there are more
/// than twice as many queries as keys. The other way round the bound hides nothing.
fn mask(left: Option<usize>, right: Option<usize>, kv_rows: usize) -> Mask {
    // More rows than 32 bits count are refused with the tensors.
    let bound = |keys: Option<usize>| keys.filter(|&keys| keys <= kv_rows).and_then(|keys| u32::try_from(keys).ok());
    match (bound(left), bound(right)) {
        (None, None) => Mask::Full,
        (None, Some(0)) => Mask::Causal,
        (left @ Some(_), None) => Mask::Window { left, right: u32::try_from(kv_rows).ok() },
        (left, right) => Mask::Window { left, right },
    }
}

/// The axes of a tensor of attention.
const HEADS: &[&str] = &["batch", "rows", "heads", "head_dim"];

/// Shape and strides of a tensor of attention.
pub(crate) fn heads(
    op: &'static str,
    operand: Operand,
    layout: &Layout,
) -> crate::error::Result<(ferroflash::Shape, Strides)> {
    let wrong_rank = |_| Error::Rank { op, operand, found: layout.dims().len(), axes: HEADS };
    let shape = ferroflash::Shape::from_dims(layout.dims(), ferroflash::Layout::Bshd).map_err(wrong_rank)?;
    let strides = Strides::from_dims(layout.stride(), ferroflash::Layout::Bshd).map_err(wrong_rank)?;
    Ok((shape, strides))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule of candle-flash-attn's source, row by row: -1 for no bound, then one bound alone brings another of all keys.
    fn sees(left: Option<usize>, right: Option<usize>, q_rows: usize, kv_rows: usize, row: usize, key: usize) -> bool {
        let number = |bound: Option<usize>| bound.filter(|&w| w <= kv_rows).map_or(-1, |w| w as i64);
        let (mut left, mut right) = (number(left), number(right));
        let causal = left < 0 && right == 0;
        if left < 0 && right >= 0 {
            left = kv_rows as i64;
        }
        if left >= 0 && right < 0 {
            right = kv_rows as i64;
        }
        let (diagonal, key) = ((row + kv_rows) as i64 - q_rows as i64, key as i64);
        match (causal, left < 0) {
            (true, _) => key <= diagonal,
            (false, true) => true,
            (false, false) => (diagonal - left..=diagonal + right).contains(&key),
        }
    }

    #[test]
    fn masks_hide_what_the_original_hides() {
        let bounds = [None, Some(0), Some(1), Some(3), Some(4), Some(5), Some(100)];
        for (q_rows, kv_rows) in [(4, 4), (1, 4), (4, 1), (9, 4), (12, 4), (3, 9), (2, 0)] {
            for (left, right) in bounds.iter().flat_map(|&left| bounds.map(|right| (left, right))) {
                let band = mask(left, right, kv_rows).band();
                for (row, key) in (0..q_rows).flat_map(|row| (0..kv_rows).map(move |key| (row, key))) {
                    let ours = band.sees(row as i32, key as i32, kv_rows as i32 - q_rows as i32);
                    let theirs = sees(left, right, q_rows, kv_rows, row, key);
                    assert_eq!(ours, theirs, "{left:?} {right:?}: {q_rows} x {kv_rows}, row {row}, key {key}");
                }
            }
        }
    }
}
