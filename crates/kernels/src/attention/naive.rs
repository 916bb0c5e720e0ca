//! Attention as every framework computed it before 2022: scores and probabilities go through device memory.
//!
//! ```text
//! scores = scale * q k^T, minus infinity where hidden      [`scores`], one tile a thread block
//! probs  = softmax(scores), row by row                     [`softmax`], one row a warp, with its [sink]
//! out    = probs v                                         [`output`], a block of rows a thread block
//! ```
//!
//! Both products run on the tensor cores and both intermediates are written and read once, so the distance to v1 and v2 is what
//! the memory traffic costs. Masked blocks are computed like any other, as a framework's matrix product does.

use core::marker::PhantomData;

use cuda_std::{copy, math, shared, sync, thread, warp};
use kernel_spec::NaiveParams;
use kernel_spec::families::forward::{memory, policy};
use kernel_spec::layout::{fragment_col, fragment_row};

use crate::attention::dropout::Stream;
use crate::attention::exponent::Exponent;
use crate::attention::query_block::QueryBlock;
use crate::attention::{Config, exact, score, sink};
use crate::parts::element::Element;
use crate::parts::fragments::{Fragments, PerRow};
use crate::parts::products::{Mul, MulTransposed};
use crate::parts::rows::GlobalRows;
use crate::parts::shared_tile::SharedMatrix;

/// What a row makes of [`scores`].
pub trait ScoresConfig: Config {
    /// A tile of queries.
    type Q: SharedMatrix;
    /// A tile of keys.
    type K: SharedMatrix;
    /// Scores of a warp: some query rows, all keys of the tile.
    type Scores: Fragments + MulTransposed<Self::Q, Self::K>;
}

/// What a row makes of [`output`].
pub trait OutputConfig: Config {
    /// The choices of the row.
    const POLICY: policy::Output;
    /// A tile of probabilities.
    type P: SharedMatrix;
    /// A tile of values.
    type V: SharedMatrix;
    /// A tile of the output.
    type OutTile: SharedMatrix<Element = Self::Out>;
    /// Output of a warp: some query rows, all dims.
    type Acc: Fragments + Mul<Self::P, Self::V>;
}

/// One tile of the scores, as [exponents](Exponent).
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn scores<C: ScoresConfig>(p: &NaiveParams) {
    let memory = const { memory::Scores::of(C::ROW) };
    // SAFETY: every thread of the block takes the same path; the barrier orders shared memory.
    unsafe {
        // Without keys no block is launched; without this line the divisions could panic.
        core::hint::assert_unchecked(p.forward.kv_rows > 0);
        let kv_blocks = p.forward.kv_rows.div_ceil(C::ROW.kv_block);
        let (cta, kv_block) = (thread::block_index() / kv_blocks, thread::block_index() % kv_blocks);
        let block = QueryBlock::<C>::of(cta, &p.forward);
        let row = thread::warp_index() * 16 * C::Scores::M as u32;
        let key = kv_block * C::ROW.kv_block;
        let q = C::Q::at(shared::dynamic() + memory.q);
        let k = C::K::at(shared::dynamic() + memory.k);

        q.load::<C>(&block.q, block.first_row);
        k.load::<C>(&block.k, key);
        copy::commit_group();
        copy::wait_group::<0>();
        sync::block();

        let mut scores = C::Scores::zero();
        scores.mul_transposed(q, row, k, 0);
        // The sign first, as other kernels negate queries: minus infinity, which a program hides a key by, must keep its own.
        if block.negative_scale {
            scores.scale_rows(&PerRow::splat(-1.0));
        }
        block.modify(&mut scores, block.first_row + row, key);
        scores.scale_rows(&PerRow::splat(block.scale));
        block.hide(&mut scores, block.first_row + row, key);

        let lane = thread::lane();
        let first = p.scores + block.head * block.q.rows as u64 * p.score_stride * 4;
        for m in 0..C::Scores::M {
            for half in 0..2 {
                let row = block.first_row + row + 16 * m as u32 + fragment_row(lane, 2 * half);
                let address = first + (row as u64 * p.score_stride + (key + fragment_col(lane, 0)) as u64) * 4;
                for n in 0..C::Scores::N {
                    // The stride is a multiple of 8, so a fragment lies wholly inside a row of the buffer or wholly outside.
                    if row < block.q.rows && ((key + 8 * n as u32) as u64) < p.score_stride {
                        let pair = [scores.at(m, n)[2 * half as usize], scores.at(m, n)[2 * half as usize + 1]];
                        copy::store_f32x2(address + 32 * n as u64, pair);
                    }
                }
            }
        }
    }
}

/// One row of probabilities and its log-sum-exp, by one warp. Columns between the keys and the stride become 0. Where the row of the list
/// `DROPS`, some become 0 behind the sum, and the others grow.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn softmax<T: Exponent, const DROPS: bool>(p: &NaiveParams) {
    // SAFETY: a whole warp works on one row, and every address below is inside that row of a buffer.
    unsafe {
        let row = thread::block_index() as u64 * (thread::block_size() / 32) as u64 + thread::warp_index() as u64;
        if row >= p.score_rows {
            return;
        }
        let lane = thread::lane();
        let scores = p.scores + row * p.score_stride * 4;
        let probs = p.probs + row * p.score_stride * T::BYTES as u64;
        let stride = p.score_stride as u32;
        // Four columns a lane at a time; the scores pass wrote minus infinity up to the stride.
        let load = |col: u32| copy::load_f32x4(scores + col as u64 * 4);

        let mut max = f32::NEG_INFINITY;
        for col in (4 * lane..stride).step_by(128) {
            max = load(col).into_iter().fold(max, math::max);
        }
        let max = warp::max(max);
        let offset = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sum = 0.0;
        for col in (4 * lane..stride).step_by(128) {
            sum = load(col).into_iter().fold(sum, |sum, s| sum + T::power(s - offset));
        }
        let sum = warp::sum(sum);
        core::hint::assert_unchecked(p.forward.q_rows > 0 && p.forward.q_heads > 0);
        let head = (row / p.forward.q_rows as u64 % p.forward.q_heads as u64) as u32;
        let sink = sink::of_head(&p.forward.features, head);
        let inverse = if (math::abs(max) <= T::scale(f32::LARGEST_MAX_LOG2)) & (sum < f32::INFINITY) {
            exact::factor_of_carried::<T>(max, sum, sink)
        } else {
            // A row without keys is 0. One with scores that f32 does not carry becomes NaN, and `output` computes it again.
            let row_of_head = (row % p.forward.q_rows as u64) as i32;
            let without_keys = row_of_head < p.forward.band.rows_without_keys(p.forward.q_rows, p.forward.kv_rows);
            let without_keys = without_keys | (score::may_hide(&p.forward.features) & (max == f32::NEG_INFINITY));
            if without_keys { 0.0 } else { f32::NAN }
        };
        let store_lse = || {
            if p.forward.lse != 0 && lane == 0 {
                copy::store_f32(p.forward.lse + row * 4, sink::lse::<T>(max, sum, sink));
            }
        };
        if const { DROPS } {
            core::hint::assert_unchecked(p.forward.q_rows > 0);
            let random = Stream::of(&p.forward.features, (row / p.forward.q_rows as u64) as u32);
            let row_of_head = (row % p.forward.q_rows as u64) as u32;
            // Of a row that f32 does not carry, NaN: with every probability dropped, `output` would not know that it has to compute the row again.
            let dropped = inverse * 0.0;
            for col in (4 * lane..stride).step_by(128) {
                let [keeps_a, keeps_b] = random.keeps_pair(row_of_head, col);
                let [keeps_c, keeps_d] = random.keeps_pair(row_of_head, col + 2);
                let [a, b, c, d] = load(col);
                let p = |keeps, s: f32| if keeps { T::power(s - offset) * inverse * random.factor } else { dropped };
                let four = [p(keeps_a, a), p(keeps_b, b), p(keeps_c, c), p(keeps_d, d)];
                T::store_four(probs + (col as usize * T::BYTES) as u64, four);
            }
            store_lse();
            return;
        }
        for col in (4 * lane..stride).step_by(128) {
            let [a, b, c, d] = load(col);
            let p = |s: f32| T::power(s - offset) * inverse;
            T::store_four(probs + (col as usize * T::BYTES) as u64, [p(a), p(b), p(c), p(d)]);
        }
        store_lse();
    }
}

/// A block of rows of `out = probs v`. Slot `j % 2` holds a tile of probabilities and a tile of values.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn output<C: OutputConfig>(p: &NaiveParams) {
    let memory = const { memory::Output::of(C::ROW, C::POLICY) };
    const { assert!(C::POLICY.slots == 2, "one tile is loaded while the last is multiplied") };
    // SAFETY: every thread of the block takes the same path; the barriers order shared memory.
    unsafe {
        let block = QueryBlock::<C>::of(thread::block_index(), &p.forward);
        let row = thread::warp_index() * 16 * C::Acc::M as u32;
        let row_bytes = p.score_stride * C::T::BYTES as u64;
        let slot = |j: u32| shared::dynamic() + j % C::POLICY.slots * memory.slot_bytes;
        let probs = |j: u32| C::P::at(slot(j));
        let v = |j: u32| C::V::at(slot(j) + memory.v);
        let kv_blocks = p.forward.kv_rows.div_ceil(C::ROW.kv_block);
        let load = |j: u32| {
            if j < kv_blocks {
                let first_col = j * C::ROW.kv_block;
                let cols = (p.score_stride as u32 - first_col).min(C::ROW.kv_block);
                let source = GlobalRows {
                    address: p.probs
                        + block.head * block.q.rows as u64 * row_bytes
                        + (first_col as usize * C::T::BYTES) as u64,
                    row_bytes,
                    rows: block.q.rows,
                    cols,
                    aligned: true,
                    whole: cols == C::ROW.kv_block,
                    element: PhantomData::<C::T>,
                };
                probs(j).load::<C>(&source, block.first_row);
                v(j).load::<C>(&block.v, first_col);
            }
            copy::commit_group();
        };

        let mut out = C::Acc::zero();
        load(0);
        for j in 0..kv_blocks {
            load(j + 1);
            copy::wait_group::<1>();
            sync::block();
            out.mul(probs(j), row, v(j));
            sync::block();
        }
        block.store_out::<C, _>(C::OutTile::at(shared::dynamic()), row, 0, &out);
        exact::mend::<C>(&p.forward, out.any_not_finite::<C::Out>());
    }
}
