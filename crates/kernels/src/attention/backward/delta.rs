//! The statistics of the rows: `delta = sum(dout out) - dlse`, and the log-sum-exp in powers of two; and the sums of `dq` and the counters
//! of their parts set to 0, where there are any.
//!
//! As many neighbouring lanes as a row has pieces of 16 bytes share it, 32 at most, so that a warp reads several short rows at a time.
//!
//! Heads are padded to whole blocks with rows that weigh nothing, so that the other kernels read blocks of statistics without looking
//! where the rows end.

use cuda_std::{copy, math, thread, warp};
use kernel_spec::families::backward::BackwardParams;
#[cfg(not(target_feature = "sm_90a"))]
use kernel_spec::families::backward::PackedBackwardParams;
use kernel_spec::families::backward::order::COUNTER_ROWS;
use kernel_spec::layout::CHUNK_BYTES;

#[cfg(not(target_feature = "sm_90a"))]
use crate::attention::backward::packed::Own;
use crate::attention::backward::{Config, DELTAS, Statistics, counter_of, head_address, statistics_of};
use crate::attention::exponent::Exponent;
use crate::parts::element::Element;

/// The statistics of `q_block` rows of head `$head` of a problem, from `$first_row` on: all threads of the block.
macro_rules! statistics_of {
    ($C:ident, $p:ident, $head:ident, $first_row:ident) => {
        let chunks = ($p.dim_v as usize * $C::T::BYTES).div_ceil(CHUNK_BYTES) as u32;
        // 1 to 32 lanes.
        let lanes = chunks.next_power_of_two().min(32);
        let per_pass = $C::THREADS as u32 / lanes;
        // SAFETY: every warp walks along whole, and every address below is inside that row of a tensor that has it.
        unsafe {
            for first in (0..$C::ROW.q_block).step_by((ROWS as u32 * per_pass) as usize) {
                let row = |i: usize| first + i as u32 * per_pass + thread::index() / lanes;
                // All loads of all rows first: they take a microsecond, whatever their number.
                let mut sums = [0.0; ROWS];
                for i in 0..ROWS {
                    sums[i] = product::<$C>($p, $head, $first_row + row(i), lanes);
                }
                for i in 0..ROWS {
                    let row = row(i);
                    let found = of_row::<$C::T>($p, $head, $first_row + row, sum_of_lanes(sums[i], lanes));
                    if thread::index() % lanes == 0 && row < $C::ROW.q_block {
                        let to = statistics_of($p, $head, $first_row + row);
                        copy::store_f32(to, found.minus_lse);
                        copy::store_f32(to + DELTAS as u64, found.delta);
                    }
                }
            }
            if $p.sums != 0 {
                // The sums of the block's rows lie in one piece.
                let bytes = $C::ROW.q_block as u64 * $p.sum_cols * 4;
                let from = $p.sums + ($head as u64 * $p.padded_rows as u64 + $first_row as u64) * $p.sum_cols * 4;
                for chunk in (thread::index()..(bytes / CHUNK_BYTES as u64) as u32).step_by($C::THREADS) {
                    copy::store_f32x4(from + chunk as u64 * CHUNK_BYTES as u64, [0.0; 4]);
                }
            }
            if $p.counters != 0 && thread::index() < const { $C::ROW.q_block / COUNTER_ROWS } {
                copy::store_u32(counter_of($p, $head, $first_row, thread::index()), 0);
            }
        }
    };
}

/// One thread block: `q_block` rows of one head.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn statistics<C: Config>(p: &BackwardParams) {
    // SAFETY: the host launches no block for an empty problem. Without this, every division could panic.
    unsafe { core::hint::assert_unchecked(p.padded_rows >= C::ROW.q_block && p.q_heads > 0) };
    let blocks = p.padded_rows / C::ROW.q_block;
    let (head, block) = (thread::block_index() / blocks, thread::block_index() % blocks);
    let first_row = block * C::ROW.q_block;
    statistics_of! { C, p, head, first_row }
}

/// The same of a packed sequence.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
#[cfg(not(target_feature = "sm_90a"))]
pub unsafe fn packed_statistics<C: Config>(p: &PackedBackwardParams) {
    // SAFETY: passed on.
    let Some(Own { problem, head, tile, .. }) = (unsafe { Own::of_statistics::<C>(p) }) else { return };
    let (p, first_row) = (&problem, tile * C::ROW.q_block);
    statistics_of! { C, p, head, first_row }
}

/// Rows that a thread has loads of in flight at a time.
const ROWS: usize = 4;

/// This lane's part of `dout out` of a row, which `lanes` neighbouring lanes share; 0 of one that does not exist.
///
/// # Safety
/// Any threads.
#[inline(always)]
unsafe fn product<C: Config>(p: &BackwardParams, head: u32, row: u32, lanes: u32) -> f32 {
    let (batch, q_head) = (head / p.q_heads, head % p.q_heads);
    let [out, dout] = [&p.out, &p.dout]
        .map(|tensor| head_address::<C>(tensor, batch, q_head) + row as u64 * tensor.row_stride * C::T::BYTES as u64);
    let lane = thread::index() % lanes;
    let mut sum = 0.0;
    if row >= p.q_rows {
        return sum;
    }
    // SAFETY: columns that exist, of a row that exists.
    unsafe {
        if p.aligned != 0 {
            // Head dims are multiples of 8: whole pieces. More than one a lane of long rows only.
            let chunks = (p.dim_v as usize * C::T::BYTES / CHUNK_BYTES) as u32;
            let address = |chunk: u32| [out, dout].map(|row| row + chunk as u64 * CHUNK_BYTES as u64);
            if lane < chunks {
                let [out, dout] = address(lane);
                sum = C::T::dot_chunk(out, dout, sum);
            }
            if lanes + lane < chunks {
                let [out, dout] = address(lanes + lane);
                sum = C::T::dot_chunk(out, dout, sum);
            }
        } else {
            for col in (lane..p.dim_v).step_by(lanes as usize) {
                let offset = (col as usize * C::T::BYTES) as u64;
                sum = math::fma(C::T::load(out + offset), C::T::load(dout + offset), sum);
            }
        }
    }
    sum
}

/// The sum over `lanes` neighbouring lanes, in all of them.
///
/// # Safety
/// All threads of the warp, converged.
#[inline(always)]
unsafe fn sum_of_lanes(mut sum: f32, lanes: u32) -> f32 {
    let mut distance = 1;
    while distance < 32 {
        // All lanes take part, whatever their rows.
        // SAFETY: passed on.
        let other = unsafe { warp::butterfly(sum, distance) };
        sum += if distance < lanes { other } else { 0.0 };
        distance *= 2;
    }
    sum
}

/// The statistics of a row, given the sum of `dout out`.
///
/// # Safety
/// Any thread.
#[inline(always)]
unsafe fn of_row<T: Exponent>(p: &BackwardParams, head: u32, row: u32, sum: f32) -> Statistics {
    if row >= p.q_rows {
        return Statistics::NONE;
    }
    let index = head as u64 * p.q_rows as u64 + row as u64;
    // SAFETY: the row exists.
    unsafe {
        let lse = copy::load_f32(p.lse + index * 4);
        if math::abs(lse) == f32::INFINITY {
            return Statistics::NONE;
        }
        let dlse = if p.dlse == 0 { 0.0 } else { copy::load_f32(p.dlse + index * 4) };
        // By element: as a whole, the compiler keeps the array in local memory.
        let [high, low] = p.lse_to_log2;
        Statistics { minus_lse: T::minus_lse(lse, high, low), delta: sum - dlse }
    }
}
