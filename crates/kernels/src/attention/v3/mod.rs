//! FlashAttention-3 (Shah et al., "FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision", 2024,
//! algorithms 1 and 2): [`v2`](crate::attention::v2)'s arithmetic on Hopper's asynchronous units.
//!
//! ```text
//! load warp:          q, then k_j, v_j for every block, as buffers become free
//! warpgroups:         s = q k_0^T                m, l, p = softmax(s)
//!   for blocks j >= 1:  start s = q k_j^T,  start o += p v_{j-1}       one product runs under the softmax of the other
//!                       wait for s              m', l', p' = softmax(s)
//!                       wait for o              o = e^(m - m') o
//!   at the end:         start o += p v_last,  start s = q' k_0^T of the next tile
//!                       wait for o              o = o / l              lse = m + ln(l)
//!                       wait for s              m', l', p' = softmax(s)
//! ```
//!
//! | who | does | registers |
//! | --- | --- | --- |
//! | warp 0 of warpgroup 0 | finds the tiles, notes each beside its queries, starts all loads (TMA); its neighbours do nothing | `load_registers` |
//! | warpgroup `g >= 1` | query rows `64 (g - 1) ..` of the tile: products (wgmma), softmax, output | `math_registers` |
//!
//! | barrier | arrives | waits |
//! | --- | --- | --- |
//! | `full` of a q, k or v buffer | load warp and copy engine | warpgroups that read it |
//! | `empty` of a k or v buffer | each warpgroup, after the product that reads it, or the next one if it skips it | load warp |
//! | `empty` of a q buffer | each thread of the warpgroups, after the last scores of the tile | load warp |
//! | turn of warpgroup `g` | warpgroup `g - 1`, once its products are started | warpgroup `g`, before it starts its own |
//! | queries of warpgroup `g` | its threads | its threads, once they have negated the queries (negative scale) |
//!
//! A row with the policy `skips` lets a warpgroup pass over the first block of keys where none of its own rows sees any of it: under a
//! causal mask, the rows of a tile end at different blocks.
//!
//! One with `lazy` keeps the old maximum until a row exceeds a limit, see [`OnlineSoftmax::lazy_step`]; `o` and `l` share it, so the
//! result is unchanged. A warp whose rows are all below theirs rescales nothing: at 256 dims 130 of 450 instructions of a step.
//!
//! Turns (the paper's ping-pong) keep the softmax of one warpgroup under the products of the others. Thread blocks are persistent,
//! see `kernel_spec::schedule` for the order of tiles: the load warp runs ahead into the next tile, and the output leaves from registers, so
//! that queries make room as soon as they are read. Where a second buffer of queries fits, tiles overlap as above; where not, the
//! next queries arrive under the last product and the output.
//!
//! ```text
//!   one query block (causal):    # # # # # # # # / .     `#` blocks without a mask, `/` blocks with element tests (visited first),
//!   rows ->                      # # # # # # # # # /     `.` blocks that are not visited
//! ```
//!
//! A row that accepts features has the seam of [`score`]; the plain rows are compiled without. A test of features that are off, which
//! the assembler removes, still moves its schedule: 1 to 3 % at 64 and 256 dims.
//!
//! Both roles stay closures of one function. As functions of their own, LLVM simplifies each before it knows where it is called from, and
//! ptxas 13.0 then starts the products of 64 dims at another pace: up to 4 % slower (docs/perf-log.md).
//!
//! [`OnlineSoftmax::lazy_step`]: crate::attention::online_softmax::OnlineSoftmax::lazy_step

use cuda_std::{mbarrier, shared, sync, thread, tma, warp, wgmma};
use kernel_spec::families::forward::memory::{self, WARPGROUP_ROWS};
use kernel_spec::layout::{PANEL_BYTES, PANEL_COLS};
use kernel_spec::{TensorMap, V3Params};

use crate::attention::online_softmax::{Alone, OnlineSoftmax, inverse, quad_sum};
use crate::attention::v3::config::{Keys, LoadRegisters, MathRegisters, Queries, Rows, Values};
use crate::attention::v3::note::{QueryTile, TileNotes, Tiles, WarpgroupTile};
use crate::parts::fragments::Fragments;
use crate::parts::ring::{BARRIER_PAIR, Buffers, Ring};
use crate::parts::rows::BoxSource;
use crate::parts::shared_tile::SharedMatrix;
use crate::parts::turn::{FIRST_TURN, Turn};
use crate::parts::warpgroup::{self, Operands, WARPGROUP};

mod config;
mod note;
mod store;

pub use config::Config;

/// The warp of the first warpgroup that loads; the other three have nothing to do.
const LOAD_WARP: u32 = 0;

/// One thread block of v3. `maps` is the address of the three tensor maps that `p` starts with.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn forward<C: Config>(p: &V3Params, maps: u64) {
    const { assert!(BARRIER_PAIR == memory::V3::BARRIER_PAIR_BYTES, "rings lie as the row says") };
    let groups = const { C::ROW.q_block / WARPGROUP_ROWS };
    let memory = const { memory::V3::of(C::ROW, C::POLICY) };
    let at = |offset: u32| shared::dynamic() + offset;
    let notes = TileNotes { address: at(memory.notes), bytes: memory.note_bytes };
    let mut q_ring = Ring::<Queries<C>>::new(at(memory.q), at(memory.q_barriers));
    let mut k_ring = Ring::<Keys<C>>::new(at(memory.k), at(memory.k_barriers));
    let mut v_ring = Ring::<Values<C>>::new(at(memory.v), at(memory.v_barriers));

    // SAFETY: roles follow whole warpgroups and warps; rings and named barriers order shared memory as the table above says.
    unsafe {
        // From one lane to all: the assembler then knows the role as uniform and keeps wgmma asynchronous in its branch.
        let group = warp::broadcast(thread::index() / WARPGROUP, 0);
        if thread::index() == 0 {
            q_ring.init(groups * WARPGROUP);
            k_ring.init(groups);
            v_ring.init(groups);
            mbarrier::fence_init();
        }
        sync::block();

        if group == 0 {
            wgmma::release_registers::<LoadRegisters<C>>();
            if warp::broadcast(thread::index() / 32, 0) == LOAD_WARP {
                let [q_map, k_map, v_map] = [0, 1, 2].map(|map| maps + map * TensorMap::BYTES as u64);
                // A whole warp walks along, one thread of it acts: addresses then live in uniform registers.
                let elected = thread::lane() == 0;
                // Queries with their note; after the last tile, a note that there are no more.
                let mut load_queries = #[inline(always)]
                |tile: Option<&QueryTile>| {
                    q_ring.wait_free();
                    notes.write::<C>(q_ring.stage(), tile, p, elected);
                    match tile {
                        Some(tile) => {
                            let full = q_ring.announce(elected);
                            load::<C::Q>(q_ring.buffer(), q_map, tile.query_rows(p), full, elected);
                        }
                        None => q_ring.announce_none(elected),
                    }
                    q_ring.advance();
                };
                let mut load_keys = #[inline(always)]
                |tile: &QueryTile, i: u32| {
                    load_next::<C::K, Keys<C>>(
                        &mut k_ring,
                        k_map,
                        tile.kv_rows().coordinates(tile.first_key(i, C::ROW.kv_block)),
                        elected,
                    )
                };
                let mut load_values = #[inline(always)]
                |tile: &QueryTile, i: u32| {
                    load_next::<C::V, Values<C>>(
                        &mut v_ring,
                        v_map,
                        tile.kv_rows().coordinates(tile.first_key(i, C::ROW.kv_block)),
                        elected,
                    )
                };

                let mut tiles = Tiles { round: 0 };
                if C::POLICY.q_buffers == 1 {
                    while let Some(tile) = tiles.next::<C>(p) {
                        // A buffer of keys is free before that of the queries: the tile before still reads them.
                        load_keys(&tile, 0);
                        load_queries(Some(&tile));
                        load_values(&tile, 0);
                        for i in 1..tile.blocks.count() {
                            load_keys(&tile, i);
                            load_values(&tile, i);
                        }
                    }
                    load_queries(None);
                } else {
                    let mut next = tiles.next::<C>(p);
                    load_queries(next.as_ref());
                    while let Some(tile) = next {
                        // Queries go a tile ahead, once the rings of keys and values are full: their buffer becomes free last.
                        let first_blocks = tile.blocks.count().min(C::POLICY.stages);
                        for i in 0..first_blocks {
                            load_keys(&tile, i);
                            load_values(&tile, i);
                        }
                        next = tiles.next::<C>(p);
                        load_queries(next.as_ref());
                        for i in first_blocks..tile.blocks.count() {
                            load_keys(&tile, i);
                            load_values(&tile, i);
                        }
                    }
                }
            }
        } else {
            wgmma::take_registers::<MathRegisters<C>>();
            let group = group - 1;
            let elected = thread::index() % WARPGROUP == 0;
            let group_row = group * WARPGROUP_ROWS;
            let warp_row = group_row + thread::index() % WARPGROUP / 32 * 16;
            let turn = Turn::new(group, groups, C::POLICY.turns);
            let scale_log2 = p.forward.scale_log2;

            let mut scores = C::Scores::zero();
            let take_queries = #[inline(always)]
            |buffer: u32| {
                if p.forward.negate != 0 {
                    let q = C::Q::at(buffer);
                    q.negate(group_row, WARPGROUP_ROWS, thread::index() % WARPGROUP, WARPGROUP);
                    tma::fence();
                    // Barriers for queries follow those of the turns.
                    sync::named(FIRST_TURN + groups + group, WARPGROUP);
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
                    block.modify(scores, tile.first_row + warp_row, tile.first_key(mine.first_step(), C::ROW.kv_block));
                }
                // `QueryTile::first_key`, with the count taken before the test: behind it, LLVM folds the count into other sums, and
                // ptxas 13.0 then orders the stores of the output differently.
                let steps = tile.blocks.count();
                if mine.starts_with_tests() {
                    let key = tile.blocks.visit(steps - 1 - mine.first_step()) * C::ROW.kv_block;
                    block.hide(scores, tile.first_row + warp_row, key);
                }
                OnlineSoftmax::first(scores, scale_log2)
            };
            let finish = #[inline(always)]
            |out: &C::Acc, max: &Rows<C>, sum: &Rows<C>, tile: &QueryTile| {
                let sum = quad_sum(sum);
                let block = tile.block::<C>(p);
                block.store_lse(tile.first_row + warp_row, max, &sum);
                store::store(out, &inverse(&sum), &block, tile.first_row + warp_row);
            };

            loop {
                q_ring.wait();
                let Some(mut mine) = notes.read::<C>(q_ring.stage(), group) else { break };
                // Prologue: the scores of the first tile overlap nothing. With two buffers of queries, later tiles compute theirs under
                // the last product of the tile before.
                let mut q = take_queries(q_ring.buffer());
                let mut first_keys = k_ring;
                if mine.first_step() == 1 {
                    skip(&mut k_ring, &v_ring);
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
                        if C::SCORED {
                            block.modify(&mut scores, tile.first_row + warp_row, tile.first_key(i, C::ROW.kv_block));
                        }
                        if masked {
                            block.hide(&mut scores, tile.first_row + warp_row, tile.first_key(i, C::ROW.kv_block));
                        }

                        let mut wait_for_out = #[inline(always)]
                        || {
                            wgmma::wait::<0>();
                            v_ring.release(elected);
                            v_ring.advance();
                        };
                        if C::POLICY.lazy {
                            let found = online.lazy_step(&mut scores, scale_log2, masked);
                            wait_for_out();
                            // Before the branch: packing and exponentials interleave, and the vote has long been counted.
                            probs = C::Probs::round(&scores);
                            online.take_in(&found, &mut out);
                        } else {
                            let found = online.step(&mut scores, scale_log2, masked, &Alone);
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
                    let mut ahead = q_ring;
                    ahead.advance();
                    ahead.wait();
                    let Some(following) = notes.read::<C>(ahead.stage(), group) else { break };
                    q = take_queries(ahead.buffer());
                    first_keys = k_ring;
                    if following.first_step() == 1 {
                        let mut first_values = v_ring;
                        first_values.advance();
                        skip(&mut k_ring, &first_values);
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
                    finish(&out, &online.max, &online.sum, &mine.tile);
                    wgmma::wait::<0>();
                    if C::POLICY.skips {
                        first_keys.release(elected && following.first_step() == 1);
                    }
                    k_ring.release(elected);
                    k_ring.advance();
                    (q_ring, mine) = (ahead, following);
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
                finish(&out, &online.max, &online.sum, &mine.tile);
                // No tiles are left, so this could always break. Without skips the outer loop reads the note again instead: an early
                // break makes ptxas 13.0 spill 8 bytes (96 and 128 dims), and lets products with 64 columns run unpaced.
                if C::POLICY.q_buffers > 1 && C::POLICY.skips {
                    break;
                }
                q_ring.advance();
            }
        }
    }
}

/// Loads the next buffer of a ring, once it is free; see [`load`].
///
/// # Safety
/// The loading warp, converged.
#[inline(always)]
unsafe fn load_next<S: SharedMatrix, B: Buffers>(ring: &mut Ring<B>, map: u64, rows: [u32; 3], elected: bool) {
    // SAFETY: passed on; the buffer is free once the ring says so.
    unsafe {
        ring.wait_free();
        let full = ring.announce(elected);
        load::<S>(ring.buffer(), map, rows, full, elected);
    }
    ring.advance();
}

/// Starts loading the rows of a tile, panel by panel; `rows` is the first row, the head and the batch entry.
///
/// # Safety
/// The loading warp, converged; the buffer is acquired.
#[inline(always)]
unsafe fn load<S: SharedMatrix>(buffer: u32, map: u64, rows: [u32; 3], full: u32, elected: bool) {
    let [row, head, batch] = rows;
    for panel in 0..(S::COLS / PANEL_COLS) as u32 {
        let to = buffer + panel * (S::ROWS * PANEL_BYTES) as u32;
        // SAFETY: passed on; the panels fill the buffer exactly.
        unsafe { tma::load_if(to, map, [panel * PANEL_COLS as u32, row, head, batch], full, elected) };
    }
}
