//! The share of a thread block that owns keys.

use cuda_std::warp;
use kernel_spec::KvBlocks;
use kernel_spec::families::backward::BackwardParams;

use crate::attention::backward::Config;

/// What one thread block works on: a block of keys of one head, and the query blocks that see any of them.
///
/// Without the parameters: a reference to them that is kept in memory, where an `Option` may put it, moves all of them to local memory.
pub(super) struct KeyBlock {
    pub(super) batch: u32,
    /// The same, or the sequence, of programs on scores.
    pub(super) entry: u32,
    pub(super) kv_head: u32,
    pub(super) first_row: u32,
    /// Query blocks in the place of key blocks: the mask is transposed.
    pub(super) q_blocks: KvBlocks,
}

impl KeyBlock {
    /// The share of thread block `cta`: key blocks are numbered first row first, then heads, then batch.
    ///
    /// First rows first: under a causal mask they are seen by the most queries, and the long blocks should not come at the end.
    /// Neighbouring blocks share heads, so that queries and output gradients are read from L2.
    #[inline(always)]
    pub(super) fn of<C: Config>(cta: u32, p: &BackwardParams) -> Self {
        // SAFETY: the host launches no block for an empty problem. Without this, every division could panic.
        unsafe { core::hint::assert_unchecked(p.kv_rows > 0 && p.q_heads > 0 && p.group > 0 && p.group <= p.q_heads) };
        let kv_blocks = p.kv_rows.div_ceil(C::ROW.kv_block);
        let kv_heads = p.q_heads / p.group;
        let (head, index) = (cta / kv_blocks, cta % kv_blocks);
        // From one lane to all: ptxas then keeps what follows from these in uniform registers.
        // SAFETY: the first thing that a whole block does.
        let [batch, kv_head, index] =
            [head / kv_heads, head % kv_heads, index].map(|x| unsafe { warp::broadcast(x, 0) });
        Self::at::<C>(p, batch, kv_head, index)
    }

    /// Block `index` of the keys of a head.
    #[inline(always)]
    pub(super) fn at<C: Config>(p: &BackwardParams, batch: u32, kv_head: u32, index: u32) -> Self {
        let first_row = index * C::ROW.kv_block;
        let band = p.band.transposed();
        let q_blocks = band.kv_blocks(first_row, C::ROW.kv_block, p.kv_rows, p.q_rows, C::ROW.q_block);
        KeyBlock { batch, entry: batch, kv_head, first_row, q_blocks }
    }
}
