//! Features of attention: the slots of the block at the end of its parameters, and what their values mean.

/// Scores are capped: `s' = tanh(s * value)` takes the place of a score `s`, before keys are hidden.
///
/// The low half of the value holds the bits of an `f32`, `|scale| / cap`; `scale_log2` is then `cap * log2(e)`, so that
/// `softmax(cap * tanh(scale * q k^T / cap))` comes out.
pub const SOFTCAP: u32 = 0;

/// Scores pass through a program: `s' = program(s, row, key, value)`, after the softcap and before keys are hidden. The program is no
/// part of the entry: its PTX takes the place of the entry's score hooks when it is loaded, see [`specialise`](crate::specialise::specialise).
///
/// The value is the program's own.
pub const PROGRAM: u32 = 1;

/// Keys and values lie in pages, which a table names, see [`SequenceTable`](crate::families::sequences::SequenceTable). The value plays no
/// part.
pub const PAGED: u32 = 2;
