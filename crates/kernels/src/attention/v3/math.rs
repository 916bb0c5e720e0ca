//! A warpgroup of v3 that multiplies: products, softmax and output of its 64 rows of every tile.

use cuda_std::{sync, thread, tma, wgmma};
use kernel_spec::V3Params;
use kernel_spec::families::forward::memory::WARPGROUP_ROWS;
use kernel_spec::layout::PANEL_BYTES;

use crate::attention::exact;
use crate::attention::online_softmax::{Alone, OnlineSoftmax, quad_sum};
use crate::attention::v3::config::{Config, Keys, Queries, Rows, Values};
use crate::attention::v3::mend;
use crate::attention::v3::note::{QueryTile, TileNotes, WarpgroupTile};
use crate::attention::v3::split;
use crate::attention::v3::store::{self, NotFinite};
use crate::parts::fragments::Fragments;
use crate::parts::ring::Ring;
use crate::parts::shared_tile::SharedMatrix;
use crate::parts::turn::{FIRST_TURN, Turn};
use crate::parts::warpgroup::{self, Operands, WARPGROUP};

/// The rows of warpgroup `group`, counted without the one that loads, in all tiles of the thread block. `again` is the shared address of
/// the word that says whether there are rows to compute again.
///
/// # Safety
/// All threads of the warpgroup, converged; the rings are initialised, and the load warp runs beside it.
#[rustc_force_inline]
pub unsafe fn run<C: Config>(
    p: &V3Params,
    group: u32,
    q_ring: &mut Ring<Queries<C>>,
    k_ring: &mut Ring<Keys<C>>,
    v_ring: &mut Ring<Values<C>>,
    notes: TileNotes,
    again: u32,
) {
    // SAFETY: passed on; buffers are read between the wait for them and their release.
    unsafe {
        let elected = thread::index() % WARPGROUP == 0;
        let group_row = group * WARPGROUP_ROWS;
        let warp_row = group_row + thread::index() % WARPGROUP / 32 * 16;
        let turn = Turn::new(group, C::WARPGROUPS, C::POLICY.turns);
        let scale_log2 = p.forward.scale_log2;

        let mut scores = C::Scores::zero();
        let take_queries = #[inline(always)]
        |buffer: u32| {
            if p.forward.negate != 0 {
                let q = C::Q::at(buffer);
                q.negate(group_row, WARPGROUP_ROWS, thread::index() % WARPGROUP, WARPGROUP);
                tma::fence();
                // Barriers for queries follow those of the turns.
                sync::named(FIRST_TURN + C::WARPGROUPS + group, WARPGROUP);
            }
            buffer + group_row * PANEL_BYTES as u32
        };
        // Passes over the first block of a tile. Nobody reads this block, but waits go by parity: without this wait the next one
        // would succeed a phase early. Its buffers are freed only after the first score product, or a slower warp still waiting
        // would hang.
        let skip = #[inline(always)]
        |k_ring: &mut Ring<Keys<C>>, first_values: &Ring<Values<C>>| {
            k_ring.wait();
            k_ring.advance();
            first_values.wait();
        };
        // The first scores of a tile: those with element tests, if there are any.
        let first_softmax = #[inline(always)]
        |scores: &mut C::Scores, mine: &WarpgroupTile<C>| {
            let tile = &mine.tile;
            let block = tile.block::<C>(p);
            if C::SCORED {
                let (row, key) = (tile.first_row + warp_row, tile.first_key::<C>(p, mine.first_step()));
                if C::LISTED && block.is_mask_only() && !mine.starts_with_tests() {
                    block.modify_seen(scores, row, key);
                } else {
                    block.modify(scores, row, key);
                }
            }
            // `QueryTile::first_key`, with the count taken before the test: behind it, LLVM folds the count into other sums, and
            // ptxas 13.0 then orders the stores of the output differently.
            let steps = tile.blocks.count();
            if mine.starts_with_tests() {
                let key = if C::LISTED {
                    tile.first_key::<C>(p, mine.first_step())
                } else {
                    tile.blocks.visit(steps - 1 - mine.first_step()) * C::ROW.kv_block
                };
                block.hide(scores, tile.first_row + warp_row, key);
            }
            OnlineSoftmax::first::<C::T, _>(scores, scale_log2)
        };
        let mut met = NotFinite::<1>::NONE;
        // The end of a tile. `under_scores`: the first scores of the next one are being computed. They are awaited before the output
        // leaves: left to itself, ptxas 13.0 puts that wait before, between or behind the stores, as other lines happen to fall.
        let mut finish = #[inline(always)]
        |out: &C::Acc, online: &OnlineSoftmax<Rows<C>>, tile: &QueryTile, under_scores: bool| {
            let (block, row) = (tile.block::<C>(p), tile.first_row + warp_row);
            let sum = quad_sum(&online.sum);
            if C::SPLIT {
                if under_scores {
                    wgmma::wait::<0>();
                }
                return split::store(p, &tile.sequence, &block, row, out, [&online.max, &sum]);
            }
            if !C::POLICY.lse_last && !C::PACKED {
                block.store_lse(row, &online.max, &sum);
            }
            let factors = exact::factors(&block, row, &online.max, &sum);
            if under_scores {
                wgmma::wait::<0>();
            }
            if C::POLICY.remembers {
                // In one register: another one would live through the steps.
                met = store::store(out, &factors, &block, row, met);
            } else {
                mend::note(again, store::store(out, &factors, &block, row, NotFinite::<2>::NONE));
            }
            if C::POLICY.lse_last && !C::PACKED {
                block.store_lse(row, &online.max, &sum);
            }
            if C::PACKED {
                block.store_packed_lse(row, &online.max, &sum);
            }
        };

        loop {
            q_ring.wait();
            let Some(mut mine) = notes.read::<C>(q_ring.stage(), group) else { break };
            // Prologue: the scores of the first tile overlap nothing. With two buffers of queries, later tiles compute theirs under
            // the last product of the tile before.
            let mut q = take_queries(q_ring.buffer());
            let mut first_keys = *k_ring;
            if mine.first_step() == 1 {
                skip(k_ring, v_ring);
            }
            k_ring.wait();
            wgmma::fence();
            warpgroup::start_scores::<C>(&mut scores, q, k_ring.buffer());
            wgmma::wait::<0>();
            if C::POLICY.skips {
                first_keys.release(elected && mine.first_step() == 1);
            }
            k_ring.release(elected);
            k_ring.advance();
            let mut online = first_softmax(&mut scores, &mine);
            let mut probs = C::Probs::round(&scores);
            let mut out = C::Acc::zero();
            loop {
                // Take and pass the turn for a skipped step too: every warpgroup passes it equally often.
                if mine.first_step() == 1 {
                    turn.wait();
                    turn.pass_on();
                    v_ring.release(elected);
                    v_ring.advance();
                }
                let tile = &mine.tile;
                let block = tile.block::<C>(p);
                let mut step = #[inline(always)]
                |i: u32, masked: bool| {
                    k_ring.wait();
                    turn.wait();
                    wgmma::fence();
                    warpgroup::start_scores::<C>(&mut scores, q, k_ring.buffer());
                    v_ring.wait();
                    warpgroup::start_out::<C>(&mut out, &probs, v_ring.buffer());
                    turn.pass_on();
                    wgmma::wait::<1>();
                    k_ring.release(elected);
                    k_ring.advance();
                    // Where a list says that all keys are seen, a program that only hides has nothing to do.
                    let seen = C::LISTED && !masked && block.is_mask_only();
                    if C::SCORED {
                        let (row, key) = (tile.first_row + warp_row, tile.first_key::<C>(p, i));
                        if seen {
                            block.modify_seen(&mut scores, row, key);
                        } else {
                            block.modify(&mut scores, row, key);
                        }
                    }
                    if masked {
                        block.hide(&mut scores, tile.first_row + warp_row, tile.first_key::<C>(p, i));
                    }

                    let mut wait_for_out = #[inline(always)]
                    || {
                        wgmma::wait::<0>();
                        v_ring.release(elected);
                        v_ring.advance();
                    };
                    let masked = masked | (!seen && block.may_hide());
                    if C::POLICY.lazy {
                        let found = online.lazy_step::<C::T, _>(&mut scores, scale_log2, masked);
                        wait_for_out();
                        // Before the branch: packing and exponentials interleave, and the vote has long been counted.
                        probs = C::Probs::round(&scores);
                        online.take_in::<C::T, _>(&found, &mut out);
                    } else {
                        let found = online.step::<C::T, _>(&mut scores, scale_log2, masked, &Alone);
                        wait_for_out();
                        out.scale_rows(&found.rescale);
                        probs = C::Probs::round(&scores);
                    }
                };
                let (second, tested_end) = (mine.first_step() + 1, mine.tested_end());
                for i in second..tested_end {
                    step(i, true);
                }
                for i in tested_end.max(second)..tile.blocks.count() {
                    step(i, false);
                }

                // Every thread for itself: it has read the note.
                q_ring.release(true);
                // With one buffer, the next queries are on their way at best.
                if C::POLICY.q_buffers == 1 {
                    break;
                }
                let mut ahead = *q_ring;
                ahead.advance();
                ahead.wait();
                let Some(following) = notes.read::<C>(ahead.stage(), group) else { break };
                q = take_queries(ahead.buffer());
                first_keys = *k_ring;
                if following.first_step() == 1 {
                    let mut first_values = *v_ring;
                    first_values.advance();
                    skip(k_ring, &first_values);
                }
                turn.wait();
                v_ring.wait();
                wgmma::fence();
                warpgroup::start_out::<C>(&mut out, &probs, v_ring.buffer());
                k_ring.wait();
                warpgroup::start_scores::<C>(&mut scores, q, k_ring.buffer());
                turn.pass_on();
                wgmma::wait::<1>();
                v_ring.release(elected);
                v_ring.advance();
                finish(&out, &online, &mine.tile, true);
                if C::POLICY.skips {
                    first_keys.release(elected && following.first_step() == 1);
                }
                k_ring.release(elected);
                k_ring.advance();
                (*q_ring, mine) = (ahead, following);
                online = first_softmax(&mut scores, &mine);
                probs = C::Probs::round(&scores);
                out = C::Acc::zero();
            }
            v_ring.wait();
            wgmma::fence();
            warpgroup::start_out::<C>(&mut out, &probs, v_ring.buffer());
            wgmma::wait::<0>();
            v_ring.release(elected);
            v_ring.advance();
            finish(&out, &online, &mine.tile, false);
            // No tiles are left, so this could always break. Without skips the outer loop reads the note again instead: an early
            // break makes ptxas 13.0 spill 8 bytes (96 and 128 dims).
            if C::POLICY.q_buffers > 1 && C::POLICY.skips {
                break;
            }
            q_ring.advance();
        }
        if C::SPLIT {
            // Whoever puts the splits together mends.
            return;
        }
        if C::POLICY.remembers {
            mend::note(again, met);
        }
        mend::done::<C>();
    }
}
