//! The structs that the host writes and the kernels read: kernel parameters, passed by value.

use super::features::{FIRST_WORD, WORDS};
use crate::copy_engine::TensorMap;
use crate::features::Features;
use crate::mask::Band;
use crate::schedule::Schedule;

/// One tensor of shape `[batch, row, head, dim]` in device memory. The last dim is contiguous; the other strides are free and
/// count elements, in 64 bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorParams {
    /// Device address of element `[0, 0, 0, 0]`.
    pub address: u64,
    /// Elements from one batch entry to the next.
    pub batch_stride: u64,
    /// Elements from one row (token) to the next.
    pub row_stride: u64,
    /// Elements from one head to the next.
    pub head_stride: u64,
}

/// Slots for features of attention, and for what programs on scores read.
pub const FORWARD_SLOTS: u32 = FIRST_WORD + WORDS as u32;

/// The features of attention, at the end of its parameters.
pub type ForwardFeatures = Features<{ FORWARD_SLOTS as usize }>;

/// Parameters of one attention forward pass: `out = softmax(scale * q k^T + mask) v`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForwardParams {
    /// Queries, `[batch, q_rows, q_heads, dim_qk]`.
    pub q: TensorParams,
    /// Keys, `[batch, kv_rows, kv_heads, dim_qk]`.
    pub k: TensorParams,
    /// Values, `[batch, kv_rows, kv_heads, dim_v]`.
    pub v: TensorParams,
    /// Output, `[batch, q_rows, q_heads, dim_v]`.
    pub out: TensorParams,
    /// Device address of the log-sum-exp, contiguous `f32 [batch, q_heads, q_rows]`, or 0 when it is not wanted.
    pub lse: u64,
    /// Rows of q and out, `1..MAX_ROWS`.
    pub q_rows: u32,
    /// Rows of k and v, `0..MAX_ROWS`.
    pub kv_rows: u32,
    /// Heads of q and out.
    pub q_heads: u32,
    /// Query heads that share one key-value head: `q_heads / kv_heads`.
    pub group: u32,
    /// Columns of v and out: a multiple of 8, at most the variant's.
    pub dim_v: u32,
    /// `|scale| * log2(e)`, above 0: the kernels work in powers of two, and take maxima before they scale.
    pub scale_log2: f32,
    /// Which keys a row sees.
    pub band: Band,
    /// Columns of q and k, likewise.
    pub dim_qk: u32,
    /// 1 when every address and stride of q, k and v is a multiple of 16 bytes, so that rows move in 16-byte pieces; 0 makes the
    /// kernels move single elements.
    pub aligned: u32,
    /// The same of out, whose elements may be of another type.
    pub out_aligned: u32,
    /// 1 when the scale is negative: the kernels then negate the queries.
    pub negate: u32,
    /// What it does beyond plain attention. Every parameter struct of attention ends in this one, and so in its features.
    pub features: ForwardFeatures,
}

/// Parameters of the three passes of the naive kernel, which keeps scores and probabilities in device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NaiveParams {
    /// Device address of the scores, `f32 [batch, q_heads, q_rows, score_stride]`, natural scale times `log2(e)`.
    pub scores: u64,
    /// Device address of the probabilities, `[batch, q_heads, q_rows, score_stride]` in the element type of q.
    pub probs: u64,
    /// Elements from one score row to the next: `kv_rows` rounded up to a multiple of 8, for 16-byte pieces.
    pub score_stride: u64,
    /// `batch * q_heads * q_rows`, the rows of the softmax pass.
    pub score_rows: u64,
    /// The problem.
    pub forward: ForwardParams,
}

/// Parameters of v3. Its inputs are `[batch, head, row, dim]` to the copy engine, dim innermost.
///
/// Over sequences ([`PackedV3`](crate::Pass::PackedV3), [`SplitV3`](crate::Pass::SplitV3)) the maps wrap: they have the rows a second time in
/// place of the batch entries, see [`WRAPPED`](crate::copy_engine::WRAPPED). Of the schedule, the sections and groups of heads are used, and
/// `forward.q.batch_stride` is the address of the list of tiles, `forward.out.batch_stride` how many numbers the log-sum-exp has for each row of q.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct V3Params {
    /// Map of q; box: 64 dims of `q_block` rows, or of fewer rows of several heads, see [`crate::schedule::packed_heads`].
    pub q: TensorMap,
    /// Map of k; box: 64 dims of `kv_block` rows.
    pub k: TensorMap,
    /// Map of v; box: 64 dims of `kv_block` rows.
    pub v: TensorMap,
    /// Which thread block works on which tiles.
    pub schedule: Schedule,
    /// The problem. Addresses and strides of q, k and v play no part: they are in the maps.
    pub forward: ForwardParams,
}
