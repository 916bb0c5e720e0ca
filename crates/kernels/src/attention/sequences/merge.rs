//! Splits of the keys, put together: `m = max m_i`, `l = sum e^(m_i - m) l_i`, `o = sum e^(m_i - m) o_i / l`. A warp a row. A
//! [sink](crate::attention::sink) comes in here, once for all splits.

use cuda_std::{cluster, copy, thread, warp};
use kernel_spec::families::sequences::{MAX_SPLITS, SequencesParams};

use crate::attention::exponent::Exponent;
use crate::attention::query_block::QueryRow;
use crate::attention::sequences::mend::mend_row;
use crate::attention::sequences::place::{Place, lse_address, partial_index, row_address};
use crate::attention::sequences::sequence::Sequence;
use crate::attention::{exact, score, sink};

/// Splits whose statistics a lane reads, at most.
const LANE_SPLITS: usize = MAX_SPLITS as usize / 32;

/// Pieces of four columns of a lane, at most: 256 columns.
const LANE_PIECES: usize = 2;

/// Splits that a warp reads at a time.
const AT_A_TIME: usize = 8;

/// What the splits have found for one row.
pub trait Found {
    /// Maximum and sum of the weights of a split.
    ///
    /// # Safety
    /// There is such a split, and it has written them.
    unsafe fn statistics(&self, split: u32) -> [f32; 2];

    /// Four columns of the sum of a split, from `col` on.
    ///
    /// # Safety
    /// As for [`Self::statistics`], and the columns exist.
    unsafe fn four(&self, split: u32, col: u32) -> [f32; 4];
}

/// In the buffers between two kernels.
struct InBuffers<'a> {
    p: &'a SequencesParams,
    q_head: u32,
    token: u32,
}

impl InBuffers<'_> {
    #[inline(always)]
    fn index(&self, split: u32) -> u64 {
        partial_index(self.p, split, self.q_head, self.token)
    }
}

impl Found for InBuffers<'_> {
    #[inline(always)]
    unsafe fn statistics(&self, split: u32) -> [f32; 2] {
        let address = self.p.statistics + self.index(split) * 8;
        // SAFETY: passed on.
        unsafe { [copy::load_f32(address), copy::load_f32(address + 4)] }
    }

    #[inline(always)]
    unsafe fn four(&self, split: u32, col: u32) -> [f32; 4] {
        let row = self.p.partial + self.index(split) * self.p.forward.dim_v as u64 * 4;
        // SAFETY: passed on.
        unsafe { copy::load_f32x4(row + col as u64 * 4) }
    }
}

/// In the shared memory of the thread blocks of a cluster, at the same addresses of each.
pub struct InCluster {
    /// Address of the row's sums.
    pub row: u32,
    /// Address of its statistics.
    pub statistics: u32,
}

impl Found for InCluster {
    #[inline(always)]
    unsafe fn statistics(&self, split: u32) -> [f32; 2] {
        // SAFETY: passed on.
        unsafe { cluster::load_f32x2(cluster::map(self.statistics, split)) }
    }

    #[inline(always)]
    unsafe fn four(&self, split: u32, col: u32) -> [f32; 4] {
        // SAFETY: passed on.
        unsafe { cluster::load_f32x4(cluster::map(self.row, split) + col * 4) }
    }
}

/// One thread block of the merge, of `WARPS` warps: the rows of a tile of the kernel before.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn merge<T: Exponent, const WARPS: u32>(p: &SequencesParams) {
    // SAFETY: every warp takes the same path, and other rows.
    unsafe {
        let Some(place) = Place::of(p, thread::block_index(), p.q_block) else { return };
        let sequence = Sequence::of(p, place.sequence, T::BYTES);
        let rows = sequence.problem.q_rows;
        let first_row = place.tile * p.q_block;
        for index in (thread::warp_index()..p.q_block).step_by(WARPS as usize) {
            let row = first_row + index;
            let at = QueryRow { head: row & ((1 << p.packed_log2) - 1), row: row >> p.packed_log2 };
            if at.row < rows && at.head < place.heads {
                let found = InBuffers { p, q_head: place.q_head + at.head, token: sequence.first_token + at.row };
                if merge_row::<T>(p, &sequence, &place, at, &found) {
                    // Other lanes have written the columns that a lane writes again.
                    warp::sync();
                    mend_row::<T>(p, &sequence, &place, at);
                }
            }
        }
    }
}

/// Writes one row. Says, to every lane, whether it has to be computed again.
///
/// # Safety
/// All threads of the warp, converged; the row exists, and nobody else touches it.
#[inline(always)]
pub unsafe fn merge_row<T: Exponent>(
    p: &SequencesParams,
    sequence: &Sequence,
    place: &Place,
    at: QueryRow,
    found: &impl Found,
) -> bool {
    let lane = thread::lane();
    let splits = p.splits.value;
    // SAFETY: inside the buffers and the output; collectives are called by all lanes.
    unsafe {
        let mut max = [f32::NEG_INFINITY; LANE_SPLITS];
        let mut sum = [0.0; LANE_SPLITS];
        for i in 0..LANE_SPLITS {
            let split = 32 * i as u32 + lane;
            // Every lane reads, so that all of them stay together.
            let statistics = found.statistics(split.min(splits - 1));
            [max[i], sum[i]] = if split < splits { statistics } else { [f32::NEG_INFINITY, 0.0] };
        }
        let mut largest = max[0];
        for i in 1..LANE_SPLITS {
            largest = largest.max(max[i]);
        }
        let largest = warp::max(largest);
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let mut weights = [0.0; LANE_SPLITS];
        let mut total = 0.0;
        for i in 0..LANE_SPLITS {
            weights[i] = T::power(max[i] - base);
            total += weights[i] * sum[i];
        }
        let total = warp::sum(total);

        let mut acc = [[0.0_f32; 4]; LANE_PIECES];
        for piece in 0..LANE_PIECES {
            if 128 * piece as u32 >= p.forward.dim_v {
                break;
            }
            // Lanes behind the last column read it again: all of them stay together.
            let col = ((lane + 32 * piece as u32) * 4).min(p.forward.dim_v - 4);
            for i in 0..LANE_SPLITS {
                let splits = splits.saturating_sub(32 * i as u32).min(32);
                for first in (0..splits).step_by(AT_A_TIME) {
                    // Reads first, and then the sums: one after the other, each split would wait for the memory.
                    let mut parts = [[0.0; 4]; AT_A_TIME];
                    for (j, part) in parts.iter_mut().enumerate() {
                        *part = found.four(32 * i as u32 + (first + j as u32).min(splits - 1), col);
                    }
                    for (j, part) in parts.iter().enumerate() {
                        let other = first + j as u32;
                        let weight = warp::shuffle(weights[i], other % 32);
                        // Also of weight 0: an infinite value reaches every row that sees its key, as NaN, and the row is mended.
                        let counts = other < splits;
                        for c in 0..4 {
                            acc[piece][c] += if counts { weight * part[c] } else { 0.0 };
                        }
                    }
                }
            }
        }

        let sink = sink::of_head(&p.forward.features, place.q_head + at.head);
        let without_keys = sequence.problem.band.rows_without_keys(sequence.problem.q_rows, sequence.problem.kv_rows);
        let hidden = score::may_hide(&p.forward.features) & (largest == f32::NEG_INFINITY);
        let factor = if ((at.row as i32) < without_keys) | hidden {
            0.0
        } else {
            exact::factor_with_sink::<T>(largest, total, sink)
        };
        let out = row_address::<T>(&sequence.problem.out, place, at);
        let mut finite = true;
        for piece in 0..LANE_PIECES {
            let col = (lane + 32 * piece as u32) * 4;
            if col < p.forward.dim_v {
                let four = acc[piece].map(|x| x * factor);
                for x in four {
                    finite &= T::rounds_to_number(x);
                }
                let to = out + (col as usize * T::BYTES) as u64;
                if p.forward.out_aligned != 0 {
                    T::store_four(to, four);
                } else {
                    for (c, x) in four.into_iter().enumerate() {
                        T::store(to + (c * T::BYTES) as u64, x);
                    }
                }
            }
        }
        if lane == 0 && sequence.problem.lse != 0 {
            let lse = sink::lse::<T>(largest, total, sink);
            copy::store_f32(lse_address(sequence.problem.lse, p, place.q_head, at), lse);
        }
        warp::any(!finite)
    }
}
