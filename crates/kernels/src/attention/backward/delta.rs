//! The statistics of the rows: `delta = sum(dout out) - dlse`, and the log-sum-exp in powers of two. A warp for each row.
//!
//! Heads are padded to whole blocks with rows that weigh nothing, so that the other kernels read blocks of statistics without looking
//! where the rows end.

use cuda_std::{copy, math, thread, warp};
use kernel_spec::families::backward::BackwardParams;

use crate::attention::backward::{Config, DELTAS, Statistics, head_address, statistics_of};
use crate::parts::element::Element;

/// One thread block: a row for each warp.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn statistics<C: Config>(p: &BackwardParams) {
    // SAFETY: a whole warp works on one row, and every address below is inside that row of a tensor that has it.
    unsafe {
        // The host launches no block for an empty problem. Without this, every division could panic.
        core::hint::assert_unchecked(p.padded_rows >= C::ROW.q_block && p.q_heads > 0);
        let blocks = p.padded_rows / C::ROW.q_block;
        let (head, block) = (thread::block_index() / blocks, thread::block_index() % blocks);
        let row = block * C::ROW.q_block + thread::warp_index();
        let found = if row < p.q_rows { of_row::<C>(p, head, row) } else { Statistics::NONE };
        if thread::lane() == 0 {
            let to = statistics_of(p, head, row);
            copy::store_f32(to, found.minus_lse_log2);
            copy::store_f32(to + DELTAS as u64, found.delta);
        }
        if p.sums != 0 {
            // Which row's numbers these are plays no part: all are set to 0.
            let row = (head as u64 * p.padded_rows as u64 + row as u64) * p.sum_cols;
            for four in (thread::lane()..p.sum_cols as u32 / 4).step_by(32) {
                copy::store_f32x4(p.sums + (row + 4 * four as u64) * 4, [0.0; 4]);
            }
        }
    }
}

/// Of a row that exists.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
unsafe fn of_row<C: Config>(p: &BackwardParams, head: u32, row: u32) -> Statistics {
    let (batch, q_head) = (head / p.q_heads, head % p.q_heads);
    let [out, dout] = [&p.out, &p.dout]
        .map(|tensor| head_address::<C>(tensor, batch, q_head) + row as u64 * tensor.row_stride * C::T::BYTES as u64);
    // SAFETY: columns that exist, and a row of the log-sum-exp and its gradient.
    unsafe {
        let mut sum = 0.0;
        for col in (thread::lane()..p.dim_v).step_by(32) {
            let offset = (col as usize * C::T::BYTES) as u64;
            sum = math::fma(C::T::load(out + offset), C::T::load(dout + offset), sum);
        }
        let sum = warp::sum(sum);
        let index = head as u64 * p.q_rows as u64 + row as u64;
        let lse = copy::load_f32(p.lse + index * 4);
        if math::abs(lse) == f32::INFINITY {
            return Statistics::NONE;
        }
        let dlse = if p.dlse == 0 { 0.0 } else { copy::load_f32(p.dlse + index * 4) };
        let [high, low] = p.lse_to_log2;
        Statistics { minus_lse_log2: math::fma(-lse, high, -lse * low), delta: sum - dlse }
    }
}
