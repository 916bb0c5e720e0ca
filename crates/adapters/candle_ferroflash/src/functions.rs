//! The functions of candle-flash-attn, with its names and arguments.

use crate::FlashAttn;
use crate::differentiable;
use candle_core::{CustomOp3, Result, Tensor};

/// Attention, `softmax(softmax_scale * q k^T) v`, of q `(batch, q_rows, q_heads, head_dim)` and k, v `(batch, kv_rows, kv_heads,
/// head_dim)`, where `q_heads` is a multiple of `kv_heads`. The result has the shape of q.
///
/// With `causal`, row `i` sees the keys up to `i + kv_rows - q_rows`: the mask ends at the last row and the last key.
///
/// candle's `backward` gives the gradients of q, k and v: for the same tensors those of k and v have the same bits, and those of q may
/// differ in the last bits from run to run on GPUs of compute capability 9.0. A call of which one is wanted keeps the log-sum-exp for it,
/// an `f32` for each row of each head.
///
/// # Errors
/// [`crate::Error`], or candle's own for tensors on different devices or of different types.
pub fn flash_attn(q: &Tensor, k: &Tensor, v: &Tensor, softmax_scale: f32, causal: bool) -> Result<Tensor> {
    flash_attn_windowed(q, k, v, softmax_scale, None, causal.then_some(0))
}

/// [`flash_attn`] in which row `i` sees `window_size_left` keys before and `window_size_right` keys after key `i + kv_rows - q_rows`, and
/// that one. `None`, and a bound above `kv_rows`, is no bound; `None` on the left and `Some(0)` on the right is the causal mask.
///
/// # Errors
/// As [`flash_attn`].
pub fn flash_attn_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    apply([q, k, v], None, softmax_scale, [window_size_left, window_size_right], None)
}

/// [`flash_attn`] with a slope for each head, `alibi_slopes` f32 `(q_heads)`: the score of row `i` and key `j` is lowered by the slope times
/// `|i + kv_rows - q_rows - j|`, the distance of the key from the one where the row stands. q, k and v get gradients through slopes; the slopes
/// themselves get none.
///
/// # Errors
/// As [`flash_attn`]; [`Error::SlopesType`](crate::Error::SlopesType), [`Error::SlopesShape`](crate::Error::SlopesShape).
pub fn flash_attn_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    flash_attn_alibi_windowed(q, k, v, alibi_slopes, softmax_scale, None, causal.then_some(0))
}

/// [`flash_attn_windowed`] with a slope for each head; see [`flash_attn_alibi`].
///
/// # Errors
/// As [`flash_attn_alibi`].
pub fn flash_attn_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    apply([q, k, v], Some(alibi_slopes), softmax_scale, [window_size_left, window_size_right], None)
}

/// [`flash_attn_windowed`] with scores `s` bounded to `softcap * tanh(s / softcap)` before slopes, where they are given, and the mask; 0 is no
/// bound. Gradients go through a softcap or through slopes, not through both.
///
/// # Errors
/// As [`flash_attn`], and with `alibi_slopes` as [`flash_attn_alibi`]; [`ferroflash::Error::Softcap`] for a negative or infinite bound.
/// candle's `backward` is [`ferroflash::Unsupported::CappedProgram`] with both.
#[allow(clippy::too_many_arguments, reason = "the arguments of the function that it stands for")]
pub fn flash_attn_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    apply([q, k, v], alibi_slopes, softmax_scale, [window_size_left, window_size_right], Some(softcap))
}

/// [`flash_attn`] with a sink for each head, `sinks` f32 `(q_heads)`: a logit that takes part in the softmax of the head's rows and has no value. A
/// row with scores `s` gives `sum(exp(s) v) / (sum(exp(s)) + exp(sink))`; sinks are not multiplied with `softmax_scale`, and minus infinity is none.
/// candle-flash-attn has no such function.
///
/// q, k and v get gradients; the sinks themselves get none, as an operation of candle has three inputs.
///
/// # Errors
/// As [`flash_attn`]; [`Error::SinkType`](crate::Error::SinkType), [`Error::SinkShape`](crate::Error::SinkShape).
pub fn flash_attn_sink(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sinks: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    flash_attn_sink_windowed(q, k, v, sinks, softmax_scale, None, causal.then_some(0))
}

/// [`flash_attn_windowed`] with a sink for each head; see [`flash_attn_sink`].
///
/// # Errors
/// As [`flash_attn_sink`].
pub fn flash_attn_sink_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sinks: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let op = FlashAttn { softmax_scale, alibi_slopes: None, window_size_left, window_size_right, softcap: None };
    differentiable::apply([q, k, v], op, Some(sinks), "flash-attn-sink")
}

fn apply(
    tensors: [&Tensor; 3],
    alibi_slopes: Option<&Tensor>,
    softmax_scale: f32,
    [window_size_left, window_size_right]: [Option<usize>; 2],
    softcap: Option<f32>,
) -> Result<Tensor> {
    let alibi_slopes = alibi_slopes.cloned();
    let op = FlashAttn { softmax_scale, alibi_slopes, window_size_left, window_size_right, softcap };
    let name = op.name();
    differentiable::apply(tensors, op, None, name)
}
