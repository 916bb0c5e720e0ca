//! The gradients of the sinks, logits of query heads that take part in the sums of the weights and have no value: with the weight
//! `e^(sink - lse)` of a sink in a row,
//!
//! ```text
//! dsink = -sum over the rows of e^(sink - lse) delta            delta = sum(dout out) - dlse
//! ```
//!
//! One thread block adds all rows of a head, of all sequences, each thread its own in one order, then the lanes of a warp, then the warps:
//! the same bits from run to run. It reads twelve bytes a row.

use core::f32::consts::LOG2_E;

use cuda_std::{copy, math, shared, sync, thread, warp};
use kernel_spec::families::backward::packed::statistics_start;
use kernel_spec::families::backward::{STATISTICS_BYTES, SinkParams, memory};

use crate::attention::backward::{Config, DELTAS, offset_of_row};
use crate::attention::sequences::sequence::query_rows;

/// Rows that a thread has loads of in flight at a time.
const ROWS: usize = 4;

/// One thread block: a head.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn gradients<C: Config>(p: &SinkParams) {
    let memory = const { memory::Sinks::of(C::ROW) };
    let head = thread::block_index();
    // SAFETY: all threads take the same path around the barrier; addresses are inside of what the parameters say, for rows that exist.
    unsafe {
        let sink = copy::load_f32(p.sink + head as u64 * 4);
        let mut sum = 0.0;
        for sequence in 0..p.table.batch {
            let [first, rows] = query_rows(&p.table, p.q_rows, sequence);
            let (index, start) = if p.table.q_starts == 0 {
                (sequence as u64 * p.q_heads as u64 + head as u64, 0)
            } else {
                (head as u64, statistics_start(first, sequence))
            };
            let lse = p.lse + (index * p.q_rows as u64 + first as u64) * 4;
            let deltas =
                p.statistics + (index * p.padded_rows as u64 + start as u64) * STATISTICS_BYTES as u64 + DELTAS as u64;
            for from in (thread::index()..rows).step_by(ROWS * C::THREADS) {
                // All loads first: they take a microsecond, whatever their number.
                let mut found = [(f32::NEG_INFINITY, 0.0); ROWS];
                for i in 0..ROWS {
                    let row = from + i as u32 * C::THREADS as u32;
                    if row < rows {
                        let delta = copy::load_f32(deltas + offset_of_row(row) as u64);
                        found[i] = (copy::load_f32(lse + row as u64 * 4), delta);
                    }
                }
                for (lse, delta) in found {
                    // Infinite for a row that weighs nothing, as everywhere in the backward pass.
                    let weight = math::exp2((sink - lse) * LOG2_E);
                    sum -= if math::abs(lse) == f32::INFINITY { 0.0 } else { weight * delta };
                }
            }
        }
        let sum = warp::sum(sum);
        let sums = shared::dynamic() + memory.sums;
        if thread::lane() == 0 {
            shared::store_f32(sums + thread::index() / 32 * 4, sum);
        }
        sync::block();
        if thread::index() == 0 {
            let mut total = 0.0;
            for warp in 0..C::THREADS as u32 / 32 {
                total += shared::load_f32(sums + warp * 4);
            }
            copy::store_f32(p.dsink + head as u64 * 4, total);
        }
    }
}
