//! The struct that the host writes and the kernels read.

use crate::copy_engine::TensorMap;
use crate::divisor::Divisor;
use crate::families::forward::{FORWARD_SLOTS, TensorParams};
use crate::families::sequences::SequenceTable;
use crate::features::Features;
use crate::mask::Band;
use crate::schedule::Schedule;

/// Slots for features of the backward pass, and for what programs on scores read: those of the
/// [forward pass](crate::families::forward::features).
pub const BACKWARD_SLOTS: u32 = FORWARD_SLOTS;

/// Parameters of all passes of attention's backward pass.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackwardParams {
    /// Queries, `[batch, q_rows, q_heads, dim_qk]`.
    pub q: TensorParams,
    /// Keys, `[batch, kv_rows, kv_heads, dim_qk]`.
    pub k: TensorParams,
    /// Values, `[batch, kv_rows, kv_heads, dim_v]`.
    pub v: TensorParams,
    /// Output of the forward pass, `[batch, q_rows, q_heads, dim_v]`.
    pub out: TensorParams,
    /// Gradient with respect to the output, as `out`.
    pub dout: TensorParams,
    /// Gradient with respect to q, as `q`.
    pub dq: TensorParams,
    /// Gradient with respect to k, as `k`.
    pub dk: TensorParams,
    /// Gradient with respect to v, as `v`.
    pub dv: TensorParams,
    /// Device address of the natural log-sum-exp of the forward pass, contiguous `f32 [batch, q_heads, q_rows]`.
    pub lse: u64,
    /// Device address of the gradient with respect to it, likewise, or 0 when that is 0.
    pub dlse: u64,
    /// Device address of the rows' statistics, `[batch, q_heads, padded_rows]` two `f32` each: minus the log-sum-exp, natural
    /// for f32 tensors and in powers of two for others, minus infinity for a row whose keys all weigh nothing, and `delta`, the sum of
    /// `dout out` without the gradient of the log-sum-exp. Rows lie in pairs, both log-sum-exps and then both deltas.
    pub statistics: u64,
    /// Device address of the sums of dq, `f32 [batch, q_heads, padded_rows, sum_cols]` in the order of the fused pass, or 0 for none: the
    /// first pass sets them to 0, the second adds, the third rounds.
    pub sums: u64,
    /// Device address of the counters of the parts that sums have, where these are added in order, `u32 [batch, q_heads, padded_rows /
    /// COUNTER_ROWS]`, or 0 for none: the first pass sets them to 0. A share of the sums of a block of queries counts in that of its
    /// first row and its own number.
    pub counters: u64,
    /// Columns of a row of the sums.
    pub sum_cols: u64,
    /// Rows of q, `1..MAX_ROWS`.
    pub q_rows: u32,
    /// Rows of k and v, `0..MAX_ROWS`.
    pub kv_rows: u32,
    /// `q_rows` rounded up to a multiple of [`STATISTICS_ROWS`](super::STATISTICS_ROWS); rows that do not exist weigh nothing.
    pub padded_rows: u32,
    /// Heads of q.
    pub q_heads: u32,
    /// Query heads that share one key-value head: `q_heads / kv_heads`.
    pub group: u32,
    /// Columns of q and k: a multiple of 8, at most the variant's.
    pub dim_qk: u32,
    /// Columns of v and out, likewise.
    pub dim_v: u32,
    /// Factor on the scores, of any sign.
    pub scale: f32,
    /// `scale * log2(e)`: the kernels work in powers of two. With a softcap `cap * log2(e)`.
    pub scale_log2: f32,
    /// What turns a log-sum-exp into the powers of two in which the kernels have scores: `scale_log2 / scale`, nearly `log2(e)`, as the
    /// sum of two numbers. A large score and its log-sum-exp cancel in the weight, and have to be rounded by the same factor.
    pub lse_to_log2: [f32; 2],
    /// Which keys a row sees.
    pub band: Band,
    /// 1 when every address and stride of q, k, v and dout is a multiple of 16 bytes, so that rows move in 16-byte pieces; 0 makes the
    /// kernels move single elements.
    pub aligned: u32,
    /// The same of dq.
    pub dq_aligned: u32,
    /// The same of dk and dv.
    pub dkv_aligned: u32,
    /// What it does beyond plain attention.
    pub features: Features<{ BACKWARD_SLOTS as usize }>,
}

/// Parameters of the passes over packed sequences.
///
/// In `backward`, q, out, dout and dq are `[q_rows, q_heads, dim]` with the rows of all sequences, k, v, dk and dv likewise; the log-sum-exp
/// and its gradient are `[q_heads, q_rows]`, the statistics `[q_heads, padded_rows]` in the places that
/// [`statistics_start`](super::packed::statistics_start) gives to sequences.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PackedBackwardParams {
    /// The sequences: starts, and rows in use.
    pub table: SequenceTable,
    /// Tiles of a head, at most: see [`most_tiles`](super::packed::most_tiles).
    pub tiles: Divisor,
    /// Rows of q over all sequences: what lies between the log-sum-exps of neighbouring heads.
    pub tokens: u32,
    /// The problem, with the rows of all sequences.
    pub backward: BackwardParams,
}

/// Parameters of the gradients of the sinks, over uniform sequences, whose table has no starts, and over packed ones.
///
/// Log-sum-exp and statistics are those of [`BackwardParams`], or of [`PackedBackwardParams`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkParams {
    /// The sequences: starts, and rows in use.
    pub table: SequenceTable,
    /// Device address of the natural log-sum-exp.
    pub lse: u64,
    /// Device address of the rows' statistics, of which delta is read.
    pub statistics: u64,
    /// Device address of the sinks, `f32 [q_heads]`.
    pub sink: u64,
    /// Device address of their gradients, likewise.
    pub dsink: u64,
    /// Rows of q of each sequence, or of all where they are packed.
    pub q_rows: u32,
    /// Rows of the statistics of a head, as of [`BackwardParams`].
    pub padded_rows: u32,
    /// Heads of q.
    pub q_heads: u32,
    /// Nothing.
    pub unused: u32,
    /// None yet.
    pub features: Features<{ BACKWARD_SLOTS as usize }>,
}

/// Parameters of the fused pass. Its inputs are `[batch, head, row, dim]` to the copy engine, dim innermost.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FusedParams {
    /// Map of q; box: 64 dims of `q_block` rows.
    pub q: TensorMap,
    /// Map of k; box: 64 dims of `kv_block` rows.
    pub k: TensorMap,
    /// Map of v; box: 64 dims of `kv_block` rows.
    pub v: TensorMap,
    /// Map of dout; box: 64 dims of `q_block` rows.
    pub dout: TensorMap,
    /// Which thread block works on which blocks of keys, in the place of queries.
    pub schedule: Schedule,
    /// The problem. Addresses and strides of q, k, v and dout play no part: they are in the maps.
    pub backward: BackwardParams,
}
