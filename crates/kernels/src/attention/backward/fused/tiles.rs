//! The blocks of keys of a persistent thread block.

use cuda_std::thread;
use kernel_spec::families::backward::FusedParams;

use crate::attention::backward::fused::config::Config;
use crate::attention::backward::key_block::KeyBlock;

/// The blocks of keys of a thread block, one after the other.
pub struct Tiles {
    /// Round of the schedule that comes next.
    pub round: u32,
}

impl Tiles {
    /// The next block, if there is one.
    #[inline(always)]
    pub fn next<C: Config>(&mut self, p: &FusedParams) -> Option<KeyBlock> {
        let schedule = &p.schedule;
        loop {
            let slot = schedule.slot(self.round, thread::block_index(), thread::grid_size())?;
            self.round += 1;
            let Some(tile) = schedule.tile(slot) else { continue };
            let (batch, kv_head) = schedule.sequence_heads.split(tile.head);
            // A schedule takes the last rows first, which are the longest tiles where rows are queries. Of keys, the first are.
            return Some(KeyBlock::at::<C>(&p.backward, batch, kv_head, schedule.q_blocks - 1 - tile.q_block));
        }
    }
}
