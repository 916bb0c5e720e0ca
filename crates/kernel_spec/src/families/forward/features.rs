//! Features of attention: the slots of the block at the end of its parameters, and what their values mean.

/// Scores are capped: `s' = tanh(s * value)` takes the place of a score `s`, before keys are hidden.
///
/// The low half of the value holds the bits of an `f32`, `|scale| / cap`; `scale_log2` is then `cap * log2(e)`, so that
/// `softmax(cap * tanh(scale * q k^T / cap))` comes out.
pub const SOFTCAP: u32 = 0;
