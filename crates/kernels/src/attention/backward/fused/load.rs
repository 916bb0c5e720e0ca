//! The load warp: for every block its keys and values, then queries, their statistics and output gradients, step by step.

use cuda_std::{thread, tma};
use kernel_spec::TensorMap;
use kernel_spec::families::backward::FusedParams;

use crate::attention::backward::fused::config::{Config, Douts, Keys, Rings, Values};
use crate::attention::backward::fused::tiles::Tiles;
use crate::attention::backward::statistics_of;
use crate::parts::boxes::{load, load_next};

/// All loads of the thread block. `maps` is the address of the tensor maps of q, k, v and dout.
///
/// # Safety
/// The load warp, converged; the rings are initialised, and the warpgroups that read them run beside it.
#[rustc_force_inline]
pub(super) unsafe fn run<C: Config>(p: &FusedParams, maps: u64, rings: &mut Rings<C>) {
    // SAFETY: buffers are free once the ring says so.
    unsafe {
        let [q_map, k_map, v_map, dout_map] = [0, 1, 2, 3].map(|map| maps + map * TensorMap::BYTES as u64);
        // A whole warp walks along, one thread of it acts: addresses then live in uniform registers.
        let elected = thread::lane() == 0;
        let mut tiles = Tiles { round: 0 };
        while let Some(walk) = tiles.next::<C>(p) {
            let (p, block) = (&p.backward, &walk.keys);
            let kv_rows = [block.first_row, block.kv_head, block.batch].into();
            let mut first = true;
            for head in 0..p.group {
                let q_head = block.kv_head * p.group + head;
                for i in 0..block.q_blocks.count() {
                    let row = walk.q_block(i) * C::ROW.q_block;
                    if first {
                        load_next::<C::Kv, Keys<C>>(&mut rings.k, k_map, kv_rows, elected);
                    }
                    rings.q.wait_free();
                    let full = rings.q.announce(elected);
                    load::<C::Q>(rings.q.buffer(), q_map, [row, q_head, block.batch].into(), full, elected);
                    let statistics = statistics_of(p, block.batch * p.q_heads + q_head, row);
                    tma::load_bytes_if(
                        rings.statistics(),
                        statistics,
                        Rings::<C>::MEMORY.statistics_bytes,
                        full,
                        elected,
                    );
                    rings.q.advance();
                    if first {
                        load_next::<C::Kv, Values<C>>(&mut rings.v, v_map, kv_rows, elected);
                        first = false;
                    }
                    load_next::<C::Q, Douts<C>>(&mut rings.dout, dout_map, [row, q_head, block.batch].into(), elected);
                }
            }
        }
    }
}
