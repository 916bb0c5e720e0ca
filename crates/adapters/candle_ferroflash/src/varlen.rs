//! The functions of candle-flash-attn for packed sequences, with its names and arguments.
#![allow(clippy::too_many_arguments, reason = "the arguments of the functions that these stand for")]

use crate::FlashAttn;
use crate::error::{Error, Feature};
use crate::packed::{self, Keys, Packed};
use candle_core::{Result, Tensor};

/// What the errors of these functions name.
const NAME: &str = "flash-attn-varlen";

/// [`flash_attn`](crate::flash_attn) of sequences packed one behind the other: q `(total_q, q_heads, head_dim)`, k and v `(total_kv, kv_heads,
/// head_dim)`. `seqlens_q` and `seqlens_k`, `(batch + 1)` ascending numbers each (u32 or i32), say where every sequence starts and where the last
/// ends; the longest have `max_seqlen_q` and `max_seqlen_k` rows.
///
/// Masks end at the last row and the last key of each sequence. Sequences may have no rows. Rows of no sequence are 0.
///
/// # Errors
/// As [`flash_attn`](crate::flash_attn), and [`Error::Numbers`].
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
    let right = causal.then_some(0);
    flash_attn_varlen_windowed(q, k, v, seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, None, right)
}

/// [`flash_attn_varlen`] in a window; see [`flash_attn_windowed`](crate::flash_attn_windowed). A bound above `max_seqlen_k` is no bound.
///
/// # Errors
/// As [`flash_attn_varlen`].
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
    let options = FlashAttn { softmax_scale, alibi_slopes: None, window_size_left, window_size_right, softcap: None };
    packed::apply([q, k, v], [seqlens_q, seqlens_k], [max_seqlen_q, max_seqlen_k], options, NAME)
}

/// [`flash_attn_varlen`] with a slope for each head; see [`flash_attn_alibi`](crate::flash_attn_alibi). Rows and keys are those of each
/// sequence. Slopes get no gradient.
///
/// # Errors
/// As [`flash_attn_varlen`]; [`Error::SlopesType`], [`Error::SlopesShape`].
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
    let (slopes, right) = (alibi_slopes, causal.then_some(0));
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
    )
}

/// [`flash_attn_varlen_alibi`] in a window.
///
/// # Errors
/// As [`flash_attn_varlen_alibi`].
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
    let alibi_slopes = Some(alibi_slopes.clone());
    let options = FlashAttn { softmax_scale, alibi_slopes, window_size_left, window_size_right, softcap: None };
    packed::apply([q, k, v], [seqlens_q, seqlens_k], [max_seqlen_q, max_seqlen_k], options, NAME)
}

/// [`flash_attn_varlen_windowed`] with scores `s` bounded to `softcap * tanh(s / softcap)` before slopes, where they are given, and the mask; 0 is
/// no bound. Gradients go through a softcap or through slopes, not through both.
///
/// # Errors
/// As [`flash_attn_varlen`], and with `alibi_slopes` as [`flash_attn_varlen_alibi`]; [`ferroflash::Error::Softcap`] for a negative or infinite bound.
/// candle's `backward` is [`ferroflash::Unsupported::CappedProgram`] with both.
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
    let (alibi_slopes, softcap) = (alibi_slopes.cloned(), Some(softcap));
    let options = FlashAttn { softmax_scale, alibi_slopes, window_size_left, window_size_right, softcap };
    packed::apply([q, k, v], [seqlens_q, seqlens_k], [max_seqlen_q, max_seqlen_k], options, NAME)
}

/// [`flash_attn_varlen_windowed`] with keys and values in pages: k and v `(pages, page_block_size, kv_heads, head_dim)`, the pages of each
/// sequence in its row of `block_table`, `(batch, most_pages)` (u32 or i32). `seqlens_k` says how many rows each sequence has; where it starts
/// plays no part, nor does what lies behind the rows of a sequence, in its pages and in its row of the table.
///
/// # Errors
/// As [`flash_attn_varlen`]; [`Feature::PrefixRanges`] with `mm_prefix_ranges`; [`Error::PageRows`]; `backward` is [`Feature::PagedGradients`].
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
    if mm_prefix_ranges.is_some() {
        let op = "flash_attn_varlen_paged_windowed";
        return Err(Error::Missing { op, feature: Feature::PrefixRanges }.into());
    }
    // Another rank is refused with the tensors.
    if let &[_, expected, _, _] = k.dims()
        && expected != page_block_size
    {
        return Err(Error::PageRows { op: NAME, found: page_block_size, expected }.into());
    }
    let options = FlashAttn { softmax_scale, alibi_slopes: None, window_size_left, window_size_right, softcap };
    let keys = Keys::Paged { lengths: packed::lengths(seqlens_k)?, table: block_table.contiguous()? };
    let call = Packed::new(options, NAME, seqlens_q, keys, [max_seqlen_q, max_seqlen_k])?;
    packed::apply_call([q, k, v], call)
}
