//! The warp that waits in place of a warpgroup: sums of `dq` get their parts in an order that does not depend on time
//! ([`order`](kernel_spec::families::backward::order)), so that they have the same bits from run to run.
//!
//! ```text
//! for heads of the group, query blocks i:
//!     wait until the sums of i have as many parts as come before     in device memory
//!     tell the warpgroup, wait until it has added                    barriers of the thread block
//!     count its part                                                 in device memory
//! ```
//!
//! What takes time, to see a counter and to have one seen, falls under the products of the warpgroup.

use cuda_std::{copy, thread};
use kernel_spec::families::backward::FusedParams;

use crate::attention::backward::counter_of;
use crate::attention::backward::fused::config::{Config, Turns};
use crate::attention::backward::fused::tiles::Tiles;
use crate::parts::ring::Ring;

/// All turns of warpgroup `group`, whose share of the sums has that number, too.
///
/// # Safety
/// One warp, converged; the barriers of the turns are initialised, the warpgroup runs beside it, and so do all thread blocks of the launch.
#[rustc_force_inline]
pub(super) unsafe fn run<C: Config>(p: &FusedParams, group: u32, mut turns: Ring<Turns>) {
    let elected = thread::lane() == 0;
    let mut tiles = Tiles { round: 0 };
    while let Some(walk) = tiles.next::<C>(p) {
        let (p, block) = (&p.backward, &walk.keys);
        let Some(order) = &walk.order else { return };
        for head in 0..p.group {
            let q_head = block.batch * p.q_heads + block.kv_head * p.group + head;
            for i in 0..block.q_blocks.count() {
                let q_block = order.q_block(i);
                let first_row = q_block * C::ROW.q_block;
                let seen = p.band.kv_blocks(first_row, C::ROW.q_block, p.q_rows, p.kv_rows, C::ROW.kv_block);
                let before = order.before(q_block, [seen.first, seen.end]);
                let counter = counter_of(p, q_head, first_row, group);
                // SAFETY: the counters exist, and count what thread blocks have added that all run at the same time.
                unsafe {
                    copy::wait_for_u32(counter, before);
                    turns.announce_none(elected);
                    turns.advance();
                    turns.wait_free();
                    copy::count_if(counter, elected);
                }
            }
        }
    }
}
