//! The blocks of keys of a persistent thread block.

use cuda_std::thread;
use kernel_spec::families::backward::FusedParams;
use kernel_spec::families::backward::order::Order;

use crate::attention::backward::fused::config::Config;
use crate::attention::backward::key_block::KeyBlock;

/// The blocks of keys of a thread block, one after the other.
pub struct Tiles {
    /// Round of the schedule that comes next.
    pub round: u32,
}

/// A block of keys, and how it walks over the blocks of queries that see it.
pub struct Walk {
    pub keys: KeyBlock,
    /// Where the sums are added to in order.
    pub order: Option<Order>,
}

impl Walk {
    /// The block of queries of a step.
    #[inline(always)]
    pub fn q_block(&self, i: u32) -> u32 {
        match &self.order {
            Some(order) => order.q_block(i),
            None => self.keys.q_blocks.step(i),
        }
    }
}

impl Tiles {
    /// The next block, if there is one.
    #[inline(always)]
    pub fn next<C: Config>(&mut self, p: &FusedParams) -> Option<Walk> {
        let schedule = &p.schedule;
        loop {
            let (round, ctas) = (self.round, thread::grid_size());
            let slot = schedule.slot(round, thread::block_index(), ctas)?;
            self.round += 1;
            let Some(tile) = schedule.tile(slot) else { continue };
            let (batch, kv_head) = schedule.sequence_heads.split(tile.head);
            // A schedule takes the last rows first, which are the longest tiles where rows are queries. Of keys, the first are.
            let index = schedule.q_blocks - 1 - tile.q_block;
            let keys = KeyBlock::at::<C>(&p.backward, batch, kv_head, index);
            let order = C::IN_ORDER.then(|| Order {
                index,
                round: schedule.same_round(slot, round, ctas),
                q_blocks: keys.q_blocks,
                all: schedule.alternate == 0,
            });
            return Some(Walk { keys, order });
        }
    }
}
