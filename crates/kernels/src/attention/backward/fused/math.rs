//! A warpgroup that multiplies: scores and weights of its 64 keys with every query, the gradients of its keys and values, and a share of
//! those of the queries.

use cuda_std::{math, mma, shared, thread, tma, warp, wgmma};
use kernel_spec::families::backward::memory::Fused as Memory;
use kernel_spec::families::backward::{FusedParams, SHARE_ROWS, STATISTICS_BYTES};
use kernel_spec::layout::{CHUNK_BYTES, PANEL_BYTES, PANEL_COLS, fragment_col, swizzle};

use crate::attention::backward::fused::config::{Config, Rings, Turns};
use crate::attention::backward::fused::store;
use crate::attention::backward::fused::sums::{self, Share};
use crate::attention::backward::fused::tiles::Tiles;
use crate::attention::backward::{DELTAS, Scores, target};
use crate::attention::exponent::Exponent;
use crate::parts::fragments::Fragments;
use crate::parts::ring::Ring;
use crate::parts::shared_tile::SharedMatrix;
use crate::parts::warpgroup::{Operands, WARPGROUP, start_shared, start_transposed, start_weighted};

/// All steps of warpgroup `group`, counted without the one that loads.
///
/// # Safety
/// All threads of the warpgroup, converged; the rings are initialised, and the load warp runs beside it.
#[rustc_force_inline]
pub(super) unsafe fn run<C: Config>(p: &FusedParams, group: u32, rings: &mut Rings<C>) {
    let group_row = group * Memory::WARPGROUP_ROWS;
    let (thread, elected) = (thread::index() % WARPGROUP, thread::lane() == 0);
    // This warpgroup's share of `dq`: rows of the gradients of scores, columns of the keys.
    let (share_row, share_panel) = const { if C::ROW.q_block > SHARE_ROWS { (1, 0) } else { (0, 1) } };
    let share_rows = group * share_row * SHARE_ROWS * PANEL_BYTES as u32;
    let share_keys = group * share_panel * (C::Kv::ROWS * PANEL_BYTES) as u32;
    // SAFETY: buffers are read between the wait for them and their release, and written between the wait and the announcement.
    unsafe {
        let place = dscores_place::<C>(group, thread / 32);
        let mut tiles = Tiles { round: 0 };
        let mut turns = rings.turns(group);
        while let Some(walk) = tiles.next::<C>(p) {
            let (p, block, blocks) = (&p.backward, &walk.keys, walk.keys.q_blocks);
            let warp_row = block.first_row + group_row + thread / 32 * 16;
            let (mut dk, mut dv) = (C::Acc::zero(), C::Acc::zero());
            // Keys that do not exist have weights too, however large: here they would reach the sums of their queries.
            let is_partial = block.first_row + C::ROW.kv_block > p.kv_rows;
            let tested = blocks.count() - if is_partial { 0 } else { blocks.unmasked_count() };
            // The gradients of scores of the step before, and where the sums of its queries are.
            let (mut before, mut sums) = (rings.dscores, 0);
            if blocks.count() > 0 {
                rings.k.wait();
                rings.v.wait();
            }
            let mut step = #[inline(always)]
            |head: u32, i: u32, first: bool| {
                let q_block = walk.q_block(i);
                let first_query = q_block * C::ROW.q_block;
                // Opaque: computed anew in every step, the descriptors of a tile stay out of the registers of the loop.
                let [k, v] = [rings.k.buffer(), rings.v.buffer()].map(math::opaque);
                let group_rows = group_row * PANEL_BYTES as u32;
                let (mut scores, mut dscores, mut share) = (C::Scores::zero(), C::Scores::zero(), Share::zero());
                rings.q.wait();
                wgmma::fence();
                start_transposed::<C::T, C::Kv, C::Q, _>(&mut scores, k + group_rows, rings.q.buffer(), C::DIM);
                rings.dout.wait();
                start_transposed::<C::T, C::Kv, C::Q, _>(&mut dscores, v + group_rows, rings.dout.buffer(), C::DIM);
                wgmma::wait::<1>();
                let statistics = rings.statistics();
                weigh::<C::T, _>(&mut scores, statistics, C::T::scale(p.scale_log2));
                wgmma::wait::<0>();
                differentiate(&scores, &mut dscores, statistics);
                // One loop for all: a branch, while no product runs, costs less than the registers of two.
                let is_tested = match &walk.order {
                    Some(order) => is_partial | order.is_tested(q_block),
                    None => i < tested,
                };
                if is_tested {
                    Scores::transposed(p).hide([&mut scores, &mut dscores], warp_row, first_query);
                }
                let weights = C::Weights::round(&scores);
                let operands = C::Weights::round(&dscores);
                wgmma::fence();
                start_weighted::<C::T, C::Q, C::Scores, _, _>(&mut dv, &weights, rings.dout.buffer());
                rings.dscores.wait_free();
                for step in 0..C::Weights::STEPS {
                    // 16 queries a step.
                    let to = rings.dscores.buffer() + place + (step * 16 * PANEL_BYTES) as u32;
                    mma::store_matrix_x4_transposed(to, *operands.step(step));
                }
                tma::fence();
                warp::sync();
                rings.dscores.announce_none(elected);
                if !first {
                    before.wait();
                    start_shared::<C::T, C::Dscores, C::Kv, _>(
                        &mut share,
                        before.buffer() + share_rows,
                        k + share_keys,
                    );
                }
                start_weighted::<C::T, C::Q, C::Scores, _, _>(&mut dk, &operands, rings.q.buffer());
                if first {
                    wgmma::wait::<1>();
                } else {
                    wgmma::wait::<2>();
                }
                rings.dout.release(elected);
                rings.dout.advance();
                if !first {
                    wgmma::wait::<1>();
                    before.release(elected);
                    before.advance();
                    add::<C>(&share, sums, &mut turns, elected);
                }
                let q_head = block.batch * p.q_heads + block.kv_head * p.group + head;
                sums = sums::address(p, q_head, first_query, group, thread);
                rings.dscores.advance();
                wgmma::wait::<0>();
                // By every thread: each has read statistics of its own, which lie there too.
                rings.q.release(true);
                rings.q.advance();
            };
            if blocks.count() > 0 {
                step(0, 0, true);
                let (mut head, mut i) = (0, 1);
                loop {
                    if i == blocks.count() {
                        (head, i) = (head + 1, 0);
                        if head == p.group {
                            break;
                        }
                    }
                    step(head, i, false);
                    i += 1;
                }
                rings.v.release(elected);
                rings.v.advance();
                let mut share = Share::zero();
                before.wait();
                wgmma::fence();
                let keys = rings.k.buffer() + share_keys;
                start_shared::<C::T, C::Dscores, C::Kv, _>(&mut share, before.buffer() + share_rows, keys);
                wgmma::wait::<0>();
                before.release(elected);
                rings.k.release(elected);
                rings.k.advance();
                add::<C>(&share, sums, &mut turns, elected);
            }
            let rows = [block.batch, block.kv_head, p.kv_rows];
            store::rows::<C::T, _>(&dk, p.scale, &target::<C>(&p.dk, rows, p.dim_qk, true), warp_row, 0);
            store::rows::<C::T, _>(&dv, 1.0, &target::<C>(&p.dv, rows, p.dim_v, true), warp_row, 0);
        }
    }
}

/// Adds a share to its sums, where they are in order when it is its turn.
///
/// # Safety
/// As for [`sums::add`]; all threads of the warpgroup, converged.
#[inline(always)]
unsafe fn add<C: Config>(share: &Share, sums: u64, turns: &mut Ring<Turns>, elected: bool) {
    // SAFETY: passed on.
    unsafe {
        if C::IN_ORDER {
            turns.wait();
        }
        sums::add(share, sums);
        if C::IN_ORDER {
            // All lanes have added.
            warp::sync();
            turns.release(elected);
            turns.advance();
        }
    }
}

/// Where the lane's row of the first matrices of gradients of scores goes in a buffer: query rows, the warpgroup's keys in a panel.
///
/// An operand of 16 queries is four matrices of 8 keys by 8 queries: keys, 8 keys below, and the same of the next 8 queries. Stored
/// transposed, lane `l` has query `l % 8` of matrix `l / 8`.
#[inline(always)]
fn dscores_place<C: Config>(group: u32, warp: u32) -> u32 {
    const { assert!(Memory::WARPGROUP_ROWS as usize == PANEL_COLS, "a warpgroup's keys are a panel") };
    let lane = thread::lane();
    let (matrix, query) = (lane / 8, lane / 16 * 8 + lane % 8);
    let chunk = swizzle(query as usize, (2 * warp + matrix % 2) as usize, PANEL_BYTES);
    group * (C::Dscores::ROWS * PANEL_BYTES) as u32 + query * PANEL_BYTES as u32 + (chunk * CHUNK_BYTES) as u32
}

/// Turns scores without scale into weights; columns are queries, whose statistics are at a shared address.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn weigh<T: Exponent, F: Fragments>(scores: &mut F, statistics: u32, scale: f32) {
    let first = statistics + fragment_col(thread::lane(), 0) * STATISTICS_BYTES;
    for n in 0..F::N {
        // SAFETY: passed on; a lane's two columns are a pair.
        let minus_lse = unsafe { shared::load_f32x2(first + 8 * n as u32 * STATISTICS_BYTES) };
        for m in 0..F::M {
            for i in 0..4 {
                let x = &mut scores.at_mut(m, n)[i];
                *x = T::weight(*x, scale, minus_lse[i % 2]);
            }
        }
    }
}

/// Turns gradients of weights into gradients of scaled scores.
///
/// # Safety
/// As for [`weigh`].
#[inline(always)]
unsafe fn differentiate<F: Fragments>(weights: &F, dweights: &mut F, statistics: u32) {
    let first = statistics + fragment_col(thread::lane(), 0) * STATISTICS_BYTES;
    for n in 0..F::N {
        // SAFETY: passed on.
        let delta = unsafe { shared::load_f32x2(first + 8 * n as u32 * STATISTICS_BYTES + DELTAS) };
        for m in 0..F::M {
            for i in 0..4 {
                let x = &mut dweights.at_mut(m, n)[i];
                *x = weights.at(m, n)[i] * (*x - delta[i % 2]);
            }
        }
    }
}
