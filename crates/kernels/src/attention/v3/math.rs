//! A multiplying warpgroup of v3: 64 rows of every tile, from the first scores to the output.

use cuda_std::{sync, thread, tma, wgmma};
use kernel_spec::V3Params;
use kernel_spec::families::forward::memory::WARPGROUP_ROWS;
use kernel_spec::layout::PANEL_BYTES;

use crate::attention::online_softmax::{Alone, OnlineSoftmax, inverse, quad_sum};
use crate::attention::query_block::QueryBlock;
use crate::attention::score;
use crate::attention::v3::config::{Config, Keys, Rings, Rows, Values};
use crate::attention::v3::note::{QueryTile, WarpgroupTile};
use crate::attention::v3::store;
use crate::parts::fragments::Fragments;
use crate::parts::ring::Ring;
use crate::parts::shared_tile::SharedMatrix;
use crate::parts::turn::{FIRST_TURN, Turn};
use crate::parts::warpgroup::{Operands, WARPGROUP, start_out, start_scores};

/// A multiplying warpgroup, as one of its threads sees it.
pub struct Warpgroup<'a, C> {
    p: &'a V3Params,
    rings: Rings<C>,
    turn: Turn,
    /// Number among the multiplying warpgroups.
    warpgroup: u32,
    /// First row of this thread's warp in the tile.
    warp_row: u32,
    /// One thread speaks for the warpgroup.
    elected: bool,
}

/// What a warpgroup carries from step to step of a tile, beside the scores.
struct Work<C: Config> {
    /// Weights of the step before, whose product with its values comes next.
    probs: C::Probs,
    out: C::Acc,
    softmax: OnlineSoftmax<Rows<C>>,
}

impl<'a, C: Config> Warpgroup<'a, C> {
    /// Multiplying warpgroup `warpgroup`.
    ///
    /// # Safety
    /// All threads of the warpgroup, converged, once.
    #[inline(always)]
    pub unsafe fn new(p: &'a V3Params, warpgroup: u32, rings: Rings<C>) -> Self {
        let elected = thread::index() % WARPGROUP == 0;
        let warp_row = warpgroup * WARPGROUP_ROWS + thread::index() % WARPGROUP / 32 * 16;
        // SAFETY: passed on.
        let turn = unsafe { Turn::new(warpgroup, C::WARPGROUPS, C::POLICY.turns) };
        Warpgroup { p, rings, turn, warpgroup, warp_row, elected }
    }

    /// Works on every tile of this thread block.
    ///
    /// # Safety
    /// All threads of the warpgroup, converged, once.
    #[inline(always)]
    pub unsafe fn run(mut self) {
        let mut scores = C::Scores::zero();
        // SAFETY: passed on; rings and turns order shared memory.
        unsafe {
            loop {
                self.rings.q.wait();
                let Some(mut tile) = self.rings.notes.read::<C>(self.rings.q.stage(), self.warpgroup) else { break };
                let mut q = self.take_queries(self.rings.q.buffer());
                self.first_scores(&mut scores, q, &tile);
                let mut work = self.begin(&mut scores, &tile);
                loop {
                    self.steps(&mut scores, &mut work, q, &tile);
                    // Every thread for itself: it has read the note.
                    self.rings.q.release(true);
                    // With one buffer, the next queries are on their way at best.
                    if C::POLICY.q_buffers == 1 {
                        break;
                    }
                    let mut ahead = self.rings.q;
                    ahead.advance();
                    ahead.wait();
                    let Some(following) = self.rings.notes.read::<C>(ahead.stage(), self.warpgroup) else { break };
                    q = self.take_queries(ahead.buffer());
                    self.cross(&mut scores, &mut work, q, &tile, &following);
                    (self.rings.q, tile) = (ahead, following);
                    work = self.begin(&mut scores, &tile);
                }
                self.last_product(&mut work, &tile);
                // No tiles are left, so this could always break. Without skips the outer loop reads the note again instead: an early
                // break makes ptxas 13.0 spill 8 bytes (96 and 128 dims), and lets products with 64 columns run unpaced.
                if C::POLICY.q_buffers > 1 && C::POLICY.skips {
                    break;
                }
                self.rings.q.advance();
            }
        }
    }

    /// Address of the warpgroup's queries in a full buffer, negated if the scale is negative.
    #[inline(always)]
    unsafe fn take_queries(&self, buffer: u32) -> u32 {
        let warpgroup_row = self.warpgroup * WARPGROUP_ROWS;
        if self.p.forward.negate != 0 {
            let q = C::Q::at(buffer);
            // SAFETY: passed on; the rows are this warpgroup's.
            unsafe {
                q.negate(warpgroup_row, WARPGROUP_ROWS, thread::index() % WARPGROUP, WARPGROUP);
                tma::fence();
                // Barriers for queries follow those of the turns.
                sync::named(FIRST_TURN + C::WARPGROUPS + self.warpgroup, WARPGROUP);
            }
        }
        buffer + warpgroup_row * PANEL_BYTES as u32
    }

    /// Passes over the first block of a tile. Nobody reads this block, but waits go by parity: without this wait the next one would
    /// succeed a phase early. Its buffers are freed only after the first score product, or a slower warp still waiting would hang.
    #[inline(always)]
    unsafe fn skip_first(&mut self, first_values: &Ring<Values<C>>) {
        // SAFETY: passed on.
        unsafe {
            self.rings.k.wait();
            self.rings.k.advance();
            first_values.wait();
        }
    }

    /// Frees the keys of the current step, and those of a skipped one before it.
    #[inline(always)]
    unsafe fn release_keys(&mut self, skipped: &Ring<Keys<C>>, tile: &WarpgroupTile<C>) {
        // SAFETY: passed on; the product that reads them is done.
        unsafe {
            if C::POLICY.skips {
                skipped.release(self.elected && tile.first_step() == 1);
            }
            self.rings.k.release(self.elected);
        }
        self.rings.k.advance();
    }

    /// Frees the values of the current step.
    #[inline(always)]
    unsafe fn release_values(&mut self) {
        // SAFETY: passed on; the product that reads them is done.
        unsafe { self.rings.v.release(self.elected) };
        self.rings.v.advance();
    }

    /// Prologue: the scores of the first tile overlap nothing. With two buffers of queries, later tiles compute theirs under the last
    /// product of the tile before, see [`Self::cross`].
    #[inline(always)]
    unsafe fn first_scores(&mut self, scores: &mut C::Scores, q: u32, tile: &WarpgroupTile<C>) {
        let first_keys = self.rings.k;
        // SAFETY: passed on.
        unsafe {
            if tile.first_step() == 1 {
                let first_values = self.rings.v;
                self.skip_first(&first_values);
            }
            self.rings.k.wait();
            wgmma::fence();
            start_scores::<C>(scores, q, self.rings.k.buffer());
            wgmma::wait::<0>();
            self.release_keys(&first_keys, tile);
        }
    }

    /// The softmax of a tile's first scores: those with element tests, if there are any.
    #[inline(always)]
    unsafe fn begin(&self, scores: &mut C::Scores, tile: &WarpgroupTile<C>) -> Work<C> {
        let masked = tile.first_step() < tile.tested_end();
        self.finish_scores(scores, &tile.tile.block::<C>(self.p), &tile.tile, tile.first_step(), masked);
        // SAFETY: passed on.
        let softmax = unsafe { OnlineSoftmax::first(scores, self.p.forward.scale_log2) };
        Work { probs: C::Probs::round(scores), out: C::Acc::zero(), softmax }
    }

    /// What stands between the product and the softmax of step `i`.
    #[inline(always)]
    fn finish_scores(&self, scores: &mut C::Scores, block: &QueryBlock<C>, tile: &QueryTile, i: u32, masked: bool) {
        let (row, key) = (tile.first_row + self.warp_row, tile.first_key(i, C::ROW.kv_block));
        score::modify::<C, _>(scores, &self.p.forward, row, key);
        if masked {
            block.hide(scores, row, key);
        }
    }

    /// The steps of a tile behind its first.
    #[inline(always)]
    unsafe fn steps(&mut self, scores: &mut C::Scores, work: &mut Work<C>, q: u32, tile: &WarpgroupTile<C>) {
        // SAFETY: passed on.
        unsafe {
            // Take and pass the turn for a skipped step too: every warpgroup passes it equally often.
            if tile.first_step() == 1 {
                self.turn.wait();
                self.turn.pass_on();
                self.release_values();
            }
            // Before the steps, for the addresses of the output too: computed behind them, they would be waited for (up to 3 % of short
            // rows, H200).
            let block = tile.tile.block::<C>(self.p);
            let (second, tested_end) = (tile.first_step() + 1, tile.tested_end());
            for i in second..tested_end {
                self.step(scores, work, q, &block, &tile.tile, i, true);
            }
            for i in tested_end.max(second)..tile.tile.blocks.count() {
                self.step(scores, work, q, &block, &tile.tile, i, false);
            }
        }
    }

    /// Step `i`: its scores under way beside the product of the step before, then its softmax.
    #[inline(always)]
    unsafe fn step(
        &mut self,
        scores: &mut C::Scores,
        work: &mut Work<C>,
        q: u32,
        block: &QueryBlock<C>,
        tile: &QueryTile,
        i: u32,
        masked: bool,
    ) {
        let scale_log2 = self.p.forward.scale_log2;
        // SAFETY: passed on.
        unsafe {
            self.rings.k.wait();
            self.turn.wait();
            wgmma::fence();
            start_scores::<C>(scores, q, self.rings.k.buffer());
            self.rings.v.wait();
            start_out::<C>(&mut work.out, &work.probs, self.rings.v.buffer());
            self.turn.pass_on();
            wgmma::wait::<1>();
            self.rings.k.release(self.elected);
            self.rings.k.advance();
            self.finish_scores(scores, block, tile, i, masked);

            if C::POLICY.lazy {
                let found = work.softmax.lazy_step(scores, scale_log2, masked);
                wgmma::wait::<0>();
                self.release_values();
                // Before the branch: packing and exponentials interleave, and the vote has long been counted.
                work.probs = C::Probs::round(scores);
                work.softmax.take_in(&found, &mut work.out);
            } else {
                let found = work.softmax.step(scores, scale_log2, masked, &Alone);
                wgmma::wait::<0>();
                self.release_values();
                work.out.scale_rows(&found.rescale);
                work.probs = C::Probs::round(scores);
            }
        }
    }

    /// From one tile to the next: the last product of `tile` under way beside the first scores of `following`, then the output of `tile`.
    #[inline(always)]
    unsafe fn cross(
        &mut self,
        scores: &mut C::Scores,
        work: &mut Work<C>,
        q: u32,
        tile: &WarpgroupTile<C>,
        following: &WarpgroupTile<C>,
    ) {
        let first_keys = self.rings.k;
        // SAFETY: passed on.
        unsafe {
            if following.first_step() == 1 {
                let mut first_values = self.rings.v;
                first_values.advance();
                self.skip_first(&first_values);
            }
            self.turn.wait();
            self.rings.v.wait();
            wgmma::fence();
            start_out::<C>(&mut work.out, &work.probs, self.rings.v.buffer());
            self.rings.k.wait();
            start_scores::<C>(scores, q, self.rings.k.buffer());
            self.turn.pass_on();
            wgmma::wait::<1>();
            self.release_values();
            self.store(work, &tile.tile);
            wgmma::wait::<0>();
            self.release_keys(&first_keys, following);
        }
    }

    /// The last product of a tile that no other follows yet, and its output.
    #[inline(always)]
    unsafe fn last_product(&mut self, work: &mut Work<C>, tile: &WarpgroupTile<C>) {
        // SAFETY: passed on.
        unsafe {
            self.rings.v.wait();
            wgmma::fence();
            start_out::<C>(&mut work.out, &work.probs, self.rings.v.buffer());
            wgmma::wait::<0>();
            self.release_values();
            self.store(work, &tile.tile);
        }
    }

    /// Writes output and log-sum-exp.
    #[inline(always)]
    unsafe fn store(&self, work: &Work<C>, tile: &QueryTile) {
        let row = tile.first_row + self.warp_row;
        let block = tile.block::<C>(self.p);
        // SAFETY: passed on; these rows are this warp's.
        unsafe {
            let sum = quad_sum(&work.softmax.sum);
            block.store_lse(row, &work.softmax.max, &sum);
            store::store(&work.out, &inverse(&sum), &block, row);
        }
    }
}
