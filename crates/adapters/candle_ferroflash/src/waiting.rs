//! Functions of candle-flash-attn that wait for a feature of ferroflash: each is an error that names it, whatever its arguments are.
#![allow(unused_variables, clippy::too_many_arguments, reason = "the arguments of the functions that these stand for")]

use crate::error::{Error, Feature};
use candle_core::{Result, Tensor};

pub(crate) fn missing(op: &'static str, feature: Feature) -> Result<Tensor> {
    Err(Error::Missing { op, feature }.into())
}

/// [`flash_attn`](crate::flash_attn) with a slope for each head, `alibi_slopes` of shape `(q_heads)`: scores are lowered by the slope times the
/// distance of the key from the diagonal.
///
/// # Errors
/// [`Feature::Alibi`], always.
pub fn flash_attn_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    missing("flash_attn_alibi", Feature::Alibi)
}

/// [`flash_attn_windowed`](crate::flash_attn_windowed) with a slope for each head.
///
/// # Errors
/// [`Feature::Alibi`], always.
pub fn flash_attn_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    missing("flash_attn_alibi_windowed", Feature::Alibi)
}

/// [`flash_attn_varlen`](crate::flash_attn_varlen) with a slope for each head; see [`flash_attn_alibi`].
///
/// # Errors
/// [`Feature::Alibi`], always.
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
) -> Result<Tensor> {
    missing("flash_attn_varlen_alibi", Feature::Alibi)
}

/// [`flash_attn_varlen_alibi`] in a window.
///
/// # Errors
/// [`Feature::Alibi`], always.
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
) -> Result<Tensor> {
    missing("flash_attn_varlen_alibi_windowed", Feature::Alibi)
}
