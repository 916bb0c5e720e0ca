//! Features of attention: the slots of the block at the end of its parameters, and what their values mean.

/// Scores are capped: `s' = tanh(s * value)` takes the place of a score `s`, before keys are hidden.
///
/// The low half of the value holds the bits of an `f32`, `|scale| / cap`; `scale_log2` is then `cap * log2(e)`, so that
/// `softmax(cap * tanh(scale * q k^T / cap))` comes out.
pub const SOFTCAP: u32 = 0;

/// Scores pass through a program, after the softcap and before keys are hidden, and may come out as minus infinity, which hides a key. The
/// program is no part of the entry: its PTX takes the place of the entry's score hooks when it is loaded, see
/// [`specialise`](crate::specialise::specialise).
///
/// The low half of the value holds the bits of an `f32`: what makes a scaled score of a product, the scale or the softcap, sign and all.
/// What comes out is scaled, so that `scale_log2` is `log2(e)`, and nothing is negated. The backward pass takes a program together with its
/// derivative, and no softcap beside it.
pub const PROGRAM: u32 = 1;

/// Keys and values lie in pages, which a table names, see [`SequenceTable`](crate::families::sequences::SequenceTable). The value plays no
/// part.
pub const PAGED: u32 = 2;

/// Every query head has a sink: a logit that takes part in the sum of a row's weights and has no value, so that a row of scores `s_j` gives
/// `sum e^(s_j) v_j / (sum e^(s_j) + e^sink)`, and `ln` of that denominator as its log-sum-exp.
///
/// The value is the device address of the logits, `f32 [q_heads]`, to which no scale is applied. Where the keys are split, the sink is the
/// merge's.
pub const SINK: u32 = 3;

/// Probabilities are dropped, and those that are kept multiplied with a factor, behind the sum of the row: the log-sum-exp knows nothing of
/// it. [`philox`](crate::philox) says which are dropped. The value is that of [`dropout`]; the two slots behind it belong to it.
pub const DROPOUT: u32 = 4;

/// The seed of [`DROPOUT`], or the device address of two numbers of 64 bits, seed and offset, see [`DROPOUT_STATE`].
pub const DROPOUT_SEED: u32 = 5;

/// The offset of [`DROPOUT`], or what is added to the one on the device.
pub const DROPOUT_OFFSET: u32 = 6;

/// The bit of the value of [`DROPOUT`] that says that seed and offset are on the device, so that they may change between two runs of a
/// captured call.
pub const DROPOUT_STATE: u64 = 1 << 63;

/// The value of [`DROPOUT`]: the bits of the factor as an `f32` in the low half, and [`threshold`](crate::philox::threshold) in the high one.
pub const fn dropout(threshold: u32, factor: f32) -> u64 {
    factor.to_bits() as u64 | (threshold as u64) << 32
}

/// Keys come in the order of lists, which name those tiles alone that a program leaves to any of the rows, see
/// [`blocks`](crate::families::blocks). The value is the address of the lists. They belong to the tile of the row that runs.
pub const BLOCKS: u32 = 7;

/// The program only hides keys: it gives the score that it gets, or minus infinity. Tiles that no list says to test skip it. The value plays no
/// part.
pub const MASK_ONLY: u32 = 8;

/// The first of the slots that hold no feature, but what the program reads: addresses, extents and strides of its tensors. They are on
/// where [`PROGRAM`] is.
pub const FIRST_WORD: u32 = 9;

/// How many there are: a bias `[batch, head, row, key]` takes five, slopes of heads two.
pub const WORDS: usize = 8;
