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

/// [`flash_attn`](crate::flash_attn) of sequences packed one behind the other: q `(total_q, q_heads, head_dim)`, k and v `(total_kv, kv_heads,
/// head_dim)`. `seqlens_q` and `seqlens_k`, `(batch + 1)` numbers each, say where every sequence starts and where the last ends; the longest
/// have `max_seqlen_q` and `max_seqlen_k` rows.
///
/// # Errors
/// [`Feature::VariableLengths`], always.
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
) -> Result<Tensor> {
    missing("flash_attn_varlen", Feature::VariableLengths)
}

/// [`flash_attn_varlen`] in a window; see [`flash_attn_windowed`](crate::flash_attn_windowed).
///
/// # Errors
/// [`Feature::VariableLengths`], always.
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
) -> Result<Tensor> {
    missing("flash_attn_varlen_windowed", Feature::VariableLengths)
}

/// [`flash_attn_varlen_windowed`] with keys and values in pages: k and v `(pages, page_block_size, kv_heads, head_dim)`, the pages of each
/// sequence in its row of `block_table`, `(batch, most_pages)`. Rows see the keys of the ranges `mm_prefix_ranges`, `(batch, ranges, 2)`,
/// whatever the mask says.
///
/// # Errors
/// [`Feature::PagedCache`], always.
pub fn flash_attn_varlen_paged_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    block_table: &Tensor,
    mm_prefix_ranges: Option<&Tensor>,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    page_block_size: usize,
    softcap: Option<f32>,
) -> Result<Tensor> {
    missing("flash_attn_varlen_paged_windowed", Feature::PagedCache)
}

/// [`flash_attn_varlen`] with a slope for each head; see [`flash_attn_alibi`].
///
/// # Errors
/// [`Feature::VariableLengths`], always.
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
    missing("flash_attn_varlen_alibi", Feature::VariableLengths)
}

/// [`flash_attn_varlen_alibi`] in a window.
///
/// # Errors
/// [`Feature::VariableLengths`], always.
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
    missing("flash_attn_varlen_alibi_windowed", Feature::VariableLengths)
}

/// [`flash_attn_varlen_windowed`] with bounded scores, and a slope for each head where there are any.
///
/// # Errors
/// [`Feature::VariableLengths`], always.
pub fn flash_attn_varlen_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    missing("flash_attn_varlen_alibi_windowed_softcap", Feature::VariableLengths)
}
