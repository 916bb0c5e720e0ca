//! The share of a thread block that owns keys.

use cuda_std::warp;
use kernel_spec::KvBlocks;
use kernel_spec::families::backward::BackwardParams;

use crate::attention::backward::Config;

/// What one thread block works on: a block of keys of one head, and the query blocks that see any of them.
pub(super) struct KeyBlock<'a> {
    pub(super) p: &'a BackwardParams,
    pub(super) batch: u32,
    pub(super) kv_head: u32,
    pub(super) first_row: u32,
    /// Query blocks in the place of key blocks: the mask is transposed.
    pub(super) q_blocks: KvBlocks,
}

impl<'a> KeyBlock<'a> {
    /// The share of thread block `cta`: key blocks are numbered first row first, then heads, then batch.
    ///
    /// First rows first: under a causal mask they are seen by the most queries, and the long blocks should not come at the end.
    /// Neighbouring blocks share heads, so that queries and output gradients are read from L2.
    #[inline(always)]
    pub(super) fn of<C: Config>(cta: u32, p: &'a BackwardParams) -> Self {
        let (q_block, kv_block) = (C::ROW.q_block, C::ROW.kv_block);
        // SAFETY: the host launches no block for an empty problem. Without this, every division could panic.
        unsafe { core::hint::assert_unchecked(p.kv_rows > 0 && p.q_heads > 0 && p.group > 0 && p.group <= p.q_heads) };
        let kv_blocks = p.kv_rows.div_ceil(kv_block);
        let kv_heads = p.q_heads / p.group;
        let (head, index) = (cta / kv_blocks, cta % kv_blocks);
        // From one lane to all: ptxas then keeps what follows from these in uniform registers.
        // SAFETY: the first thing that a whole block does.
        let [batch, kv_head, index] =
            [head / kv_heads, head % kv_heads, index].map(|x| unsafe { warp::broadcast(x, 0) });
        let first_row = index * kv_block;
        let q_blocks = p.band.transposed().kv_blocks(first_row, kv_block, p.kv_rows, p.q_rows, q_block);
        KeyBlock { p, batch, kv_head, first_row, q_blocks }
    }
}
