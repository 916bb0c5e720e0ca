//! The functions of candle-flash-attn-v3, which have the names of the others and one argument more.
//!
//! `use_gqa_packing` changes no result and is not asked: ferroflash packs the query heads that share a key-value head where that is faster.
//! Which kernel runs is ferroflash's choice too: FlashAttention-3's on compute capability 9.0, wherever addresses and strides permit it, and
//! FlashAttention-2's elsewhere, where candle-flash-attn-v3 does not run.
#![allow(clippy::too_many_arguments, reason = "the arguments of the functions that these stand for")]

use crate::FlashAttn as Options;
use crate::differentiable::{self, Gradients};
use crate::packed;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

/// The options of one attention; see [`crate::FlashAttn`], also for what its gradients take.
#[derive(Clone, Debug)]
pub struct FlashAttn {
    /// Factor on the scores.
    pub softmax_scale: f32,
    /// Slopes of the heads, as there.
    pub alibi_slopes: Option<Tensor>,
    /// Keys visible before the diagonal.
    pub window_size_left: Option<usize>,
    /// Keys visible after the diagonal.
    pub window_size_right: Option<usize>,
    /// Changes no result.
    pub use_gqa_packing: bool,
}

impl FlashAttn {
    fn options(&self) -> Options {
        let FlashAttn { softmax_scale, window_size_left, window_size_right, .. } = *self;
        let alibi_slopes = self.alibi_slopes.clone();
        Options { softmax_scale, alibi_slopes, window_size_left, window_size_right, softcap: None }
    }
}

impl CustomOp3 for FlashAttn {
    fn name(&self) -> &'static str {
        "flash-attn-v3"
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
        let (out, _) = crate::cpu::forward(self.options().plain(), self.name(), [(q, q_l), (k, k_l), (v, v_l)], false)?;
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
        let (out, _) =
            crate::cuda::forward(self.options().plain(), self.name(), [(q, q_l), (k, k_l), (v, v_l)], false)?;
        Ok((out, q_l.shape().clone()))
    }

    fn bwd(&self, q: &Tensor, k: &Tensor, v: &Tensor, _: &Tensor, dout: &Tensor) -> Result<Gradients> {
        differentiable::again(&self.options(), self.name(), [q, k, v], dout)
    }
}

/// [`crate::flash_attn`].
///
/// # Errors
/// As there.
pub fn flash_attn(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    causal: bool,
    use_gqa_packing: bool,
) -> Result<Tensor> {
    flash_attn_windowed(q, k, v, softmax_scale, None, causal.then_some(0), use_gqa_packing)
}

/// [`crate::flash_attn_windowed`].
///
/// # Errors
/// As there.
pub fn flash_attn_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    use_gqa_packing: bool,
) -> Result<Tensor> {
    let alibi_slopes = None;
    let op = FlashAttn { softmax_scale, alibi_slopes, window_size_left, window_size_right, use_gqa_packing };
    differentiable::apply([q, k, v], op.options(), None, op.name())
}

/// [`crate::flash_attn_alibi`].
///
/// # Errors
/// As there.
pub fn flash_attn_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    causal: bool,
    use_gqa_packing: bool,
) -> Result<Tensor> {
    let right = causal.then_some(0);
    flash_attn_alibi_windowed(q, k, v, alibi_slopes, softmax_scale, None, right, use_gqa_packing)
}

/// [`crate::flash_attn_alibi_windowed`].
///
/// # Errors
/// As there.
pub fn flash_attn_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    use_gqa_packing: bool,
) -> Result<Tensor> {
    let alibi_slopes = Some(alibi_slopes.clone());
    let op = FlashAttn { softmax_scale, alibi_slopes, window_size_left, window_size_right, use_gqa_packing };
    differentiable::apply([q, k, v], op.options(), None, op.name())
}

/// [`crate::flash_attn_varlen`].
///
/// # Errors
/// As there.
pub fn flash_attn_varlen(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
    use_gqa_packing: bool,
) -> Result<Tensor> {
    let (right, packing) = (causal.then_some(0), use_gqa_packing);
    let (longest_q, longest_k) = (max_seqlen_q, max_seqlen_k);
    flash_attn_varlen_windowed(q, k, v, seqlens_q, seqlens_k, longest_q, longest_k, softmax_scale, None, right, packing)
}

/// [`crate::flash_attn_varlen_windowed`].
///
/// # Errors
/// As there.
pub fn flash_attn_varlen_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    use_gqa_packing: bool,
) -> Result<Tensor> {
    let alibi_slopes = None;
    let op = FlashAttn { softmax_scale, alibi_slopes, window_size_left, window_size_right, use_gqa_packing };
    let (starts, longest) = ([seqlens_q, seqlens_k], [max_seqlen_q, max_seqlen_k]);
    packed::apply([q, k, v], starts, longest, op.options(), "flash-attn-v3-varlen")
}

/// [`crate::flash_attn_varlen_alibi`].
///
/// # Errors
/// As there.
pub fn flash_attn_varlen_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
    use_gqa_packing: bool,
) -> Result<Tensor> {
    let (slopes, right, packing) = (alibi_slopes, causal.then_some(0), use_gqa_packing);
    let [longest_q, longest_k] = [max_seqlen_q, max_seqlen_k];
    flash_attn_varlen_alibi_windowed(
        q,
        k,
        v,
        slopes,
        seqlens_q,
        seqlens_k,
        longest_q,
        longest_k,
        softmax_scale,
        None,
        right,
        packing,
    )
}

/// [`crate::flash_attn_varlen_alibi_windowed`].
///
/// # Errors
/// As there.
pub fn flash_attn_varlen_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    use_gqa_packing: bool,
) -> Result<Tensor> {
    let alibi_slopes = Some(alibi_slopes.clone());
    let op = FlashAttn { softmax_scale, alibi_slopes, window_size_left, window_size_right, use_gqa_packing };
    let (starts, longest) = ([seqlens_q, seqlens_k], [max_seqlen_q, max_seqlen_k]);
    packed::apply([q, k, v], starts, longest, op.options(), "flash-attn-v3-varlen")
}
