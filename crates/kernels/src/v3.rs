//! FlashAttention-3 (Shah et al., "FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision", 2024,
//! algorithms 1 and 2): [`v2`](crate::v2)'s arithmetic on Hopper's asynchronous units.
//!
//! ```text
//! load warp:          q, then k_j, v_j for every block, as buffers become free
//! warpgroups:         s = q k_0^T                m, l, p = softmax(s)
//!   for blocks j >= 1:  start s = q k_j^T,  start o += p v_{j-1}       one product runs under the softmax of the other
//!                       wait for s              m', l', p' = softmax(s)
//!                       wait for o              o = e^(m - m') o
//!   at the end:         o += p v_last           o = o / l              lse = m + ln(l)
//! ```
//!
//! | who | does | registers |
//! | --- | --- | --- |
//! | warp 0 of warpgroup 0 | starts all loads (TMA); the other three warps have nothing to do | `LOAD_REGISTERS` |
//! | warpgroup `g >= 1` | query rows `64 (g - 1) ..` of the tile: products (wgmma), softmax, output | `MATH_REGISTERS` |
//!
//! | barrier | arrives | waits |
//! | --- | --- | --- |
//! | `full` of a q, k or v buffer | copy engine | warpgroups that read it |
//! | `empty` of a k or v buffer | each warpgroup, after the product that reads it | load warp |
//! | `empty` of a q buffer | each warpgroup, once the output that it staged there has left | load warp |
//! | turn of warpgroup `g` | warpgroup `g - 1`, once its products are started | warpgroup `g`, before it starts its own |
//! | output of warpgroup `g` | its threads | its threads, before one of them stores the staged output |
//!
//! Turns (the paper's ping-pong) keep the softmax of one warpgroup under the products of the others. Thread blocks are persistent:
//! the load warp runs ahead into the next tile while the last output is written. See `attn_spec::v3` for the order of tiles.
//!
//! ```text
//!   one query block (causal):    # # # # # # # # / .     `#` blocks without a mask, `/` blocks with element tests (visited first),
//!   rows ->                      # # # # # # # # # /     `.` blocks that are not visited
//! ```

use attn_spec::{KvBlocks, V3Params};
use cuda_std::wgmma::{self, WarpgroupMma};
use cuda_std::{mbarrier, shared, sync, thread, tma, warp};

use crate::block::QueryBlock;
use crate::element::{Element, TensorCore};
use crate::pipeline::Ring;
use crate::softmax;
use crate::tile::{RegTile, RowValues, SharedTile};
use crate::warpgroup;

/// Threads of a warpgroup.
const WARPGROUP: u32 = 128;

/// Query rows of a warpgroup: what wgmma multiplies.
const GROUP_ROWS: u32 = 64;

/// Columns and bytes of a panel row of a 16-bit tile.
const PANEL_COLS: u32 = 64;
const PANEL_BYTES: u32 = 128;

/// Named barriers: 0 is the block's, then one turn and one output barrier for each math warpgroup.
const FIRST_TURN: u32 = 1;

/// One thread block of v3. A warpgroup holds `S` fragments of 8 keys, `P = S / 2` operands of probabilities and `O` fragments of 8
/// dims; a tile in shared memory has `COLS` columns, the head dim rounded up to whole panels. `maps` is the address of the four
/// tensor maps that `p` starts with.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the variant asks for.
#[inline(always)]
pub unsafe fn forward<
    T: Element + TensorCore + WarpgroupMma<S> + WarpgroupMma<O>,
    const Q_BLOCK: usize,
    const KV_BLOCK: usize,
    const HEAD_DIM: usize,
    const COLS: usize,
    const STAGES: u32,
    const Q_STAGES: u32,
    const S: usize,
    const P: usize,
    const O: usize,
    const TURNS: bool,
    const LOAD_REGISTERS: u32,
    const MATH_REGISTERS: u32,
>(
    p: &V3Params,
    maps: u64,
) {
    let groups = Q_BLOCK as u32 / GROUP_ROWS;
    let q_bytes = SharedTile::<T, Q_BLOCK, COLS>::BYTES;
    let kv_bytes = SharedTile::<T, KV_BLOCK, COLS>::BYTES;
    let k_buffers = shared::dynamic() + Q_STAGES * q_bytes;
    let v_buffers = k_buffers + STAGES * kv_bytes;
    let barriers = v_buffers + STAGES * kv_bytes;
    let kv_barriers = barriers + Ring::<Q_STAGES>::BARRIER_BYTES;
    let mut q_ring = Ring::<Q_STAGES>::new(shared::dynamic(), q_bytes, barriers);
    let mut k_ring = Ring::<STAGES>::new(k_buffers, kv_bytes, kv_barriers);
    let mut v_ring = Ring::<STAGES>::new(v_buffers, kv_bytes, kv_barriers + Ring::<STAGES>::BARRIER_BYTES);

    // SAFETY: roles follow whole warpgroups; rings and named barriers order shared memory as the tables above say.
    unsafe {
        // From one lane to all: the assembler then knows the role as uniform and keeps wgmma asynchronous in its branch.
        let group = warp::broadcast(thread::index() / WARPGROUP, 0);
        if thread::index() == 0 {
            q_ring.init(groups);
            k_ring.init(groups);
            v_ring.init(groups);
            mbarrier::fence_init();
        }
        sync::block();

        let mut tiles = Tiles { round: 0 };
        if group == 0 {
            wgmma::release_registers::<LOAD_REGISTERS>();
            let elected = thread::index() == 0;
            // The whole warp walks along, one thread of it acts: addresses then live in uniform registers.
            if warp::broadcast(thread::index() / 32, 0) == 0 {
                let [q_map, k_map, v_map] = [maps, maps + 128, maps + 256];
                while let Some(tile) = tiles.next::<Q_BLOCK, KV_BLOCK>(p) {
                    let full = q_ring.acquire(elected);
                    let rows = [tile.first_row, tile.q_head, tile.batch];
                    load::<Q_BLOCK, COLS>(q_ring.buffer(), q_map, rows, full, elected);
                    q_ring.advance();
                    for i in 0..tile.blocks.count() {
                        let rows = [visit(tile.blocks, i) * KV_BLOCK as u32, tile.kv_head, tile.batch];
                        let full = k_ring.acquire(elected);
                        load::<KV_BLOCK, COLS>(k_ring.buffer(), k_map, rows, full, elected);
                        k_ring.advance();
                        let full = v_ring.acquire(elected);
                        load::<KV_BLOCK, COLS>(v_ring.buffer(), v_map, rows, full, elected);
                        v_ring.advance();
                    }
                }
            }
        } else {
            wgmma::take_registers::<MATH_REGISTERS>();
            let group = group - 1;
            let elected = thread::index() % WARPGROUP == 0;
            let group_row = group * GROUP_ROWS;
            let warp_row = group_row + thread::index() % WARPGROUP / 32 * 16;
            let turn = Turn::<TURNS>::new(group, groups);
            let mut leaving = Leaving { ring: q_ring, pending: false };

            while let Some(tile) = tiles.next::<Q_BLOCK, KV_BLOCK>(p) {
                let block = QueryBlock::<T>::at(
                    &p.forward,
                    tile.batch,
                    tile.q_head,
                    tile.kv_head,
                    tile.first_row,
                    Q_BLOCK as u32,
                    KV_BLOCK as u32,
                );
                let (blocks, scale_log2) = (tile.blocks, block.scale_log2);
                let masked = blocks.count() - blocks.unmasked_count();
                let row = tile.first_row + warp_row;
                let staged = SharedTile::<T, Q_BLOCK, COLS>::at(q_ring.buffer());
                let q = q_ring.buffer() + group_row * PANEL_BYTES;
                q_ring.wait();
                if block.negative_scale {
                    staged.negate(group_row, GROUP_ROWS, thread::index() % WARPGROUP, WARPGROUP);
                    tma::fence();
                    sync::named(FIRST_TURN + groups + group, WARPGROUP);
                }

                let mut max = RowValues::<1>::splat(f32::NEG_INFINITY);
                let mut sum = RowValues::<1>::splat(0.0);
                let mut out = RegTile::<1, O>::zero();
                if blocks.count() > 0 {
                    let mut scores = RegTile::<1, S>::zero();
                    k_ring.wait();
                    wgmma::fence();
                    warpgroup::start_mul_transposed::<T, Q_BLOCK, KV_BLOCK, HEAD_DIM, S>(
                        &mut scores,
                        q,
                        k_ring.buffer(),
                    );
                    wgmma::commit();
                    wgmma::wait::<0>();
                    k_ring.release(elected);
                    k_ring.advance();
                    // The first block has the most hidden elements, if any; tests on a full one change nothing.
                    block.hide(&mut scores, row, visit(blocks, 0) * KV_BLOCK as u32);
                    max = softmax::row_max(&scores);
                    sum = softmax::exponentiate(&mut scores, &max, scale_log2);
                    let mut probs = warpgroup::pack::<T, S, P>(&scores);
                    leaving.free_buffer(elected);

                    let mut step = #[inline(always)]
                    |i: u32, masked: bool| {
                        k_ring.wait();
                        turn.wait();
                        wgmma::fence();
                        warpgroup::start_mul_transposed::<T, Q_BLOCK, KV_BLOCK, HEAD_DIM, S>(
                            &mut scores,
                            q,
                            k_ring.buffer(),
                        );
                        wgmma::commit();
                        v_ring.wait();
                        warpgroup::start_mul_probs::<T, KV_BLOCK, P, O>(&mut out, &probs, v_ring.buffer());
                        wgmma::commit();
                        turn.pass_on();
                        wgmma::wait::<1>();
                        k_ring.release(elected);
                        k_ring.advance();
                        if masked {
                            block.hide(&mut scores, row, visit(blocks, i) * KV_BLOCK as u32);
                        }

                        let new_max = max.zip(&softmax::row_max(&scores), f32::max);
                        let rescale = softmax::rescale(&max, &new_max, scale_log2);
                        let probs_sum = softmax::exponentiate(&mut scores, &new_max, scale_log2);
                        max = new_max;
                        sum = sum.zip(&rescale, |l, alpha| l * alpha).zip(&probs_sum, |l, p| l + p);

                        wgmma::wait::<0>();
                        v_ring.release(elected);
                        v_ring.advance();
                        out.scale_rows(&rescale);
                        probs = warpgroup::pack::<T, S, P>(&scores);
                    };
                    for i in 1..masked {
                        step(i, true);
                    }
                    for i in masked.max(1)..blocks.count() {
                        step(i, false);
                    }

                    v_ring.wait();
                    wgmma::fence();
                    warpgroup::start_mul_probs::<T, KV_BLOCK, P, O>(&mut out, &probs, v_ring.buffer());
                    wgmma::commit();
                    wgmma::wait::<0>();
                    v_ring.release(elected);
                    v_ring.advance();
                }
                let sum = softmax::quad_sum(&sum);
                out.scale_rows(&softmax::inverse(&sum));
                block.store_lse(row, &max, &sum);

                // The output leaves through the queries' buffer, each warpgroup's through its own rows.
                let lane = thread::lane();
                warpgroup::store::<T, O, Q_BLOCK, COLS>(&out, staged.window(warp_row + lane % 16, lane / 16));
                tma::fence();
                sync::named(FIRST_TURN + groups + group, WARPGROUP);
                if elected {
                    let rows = [tile.first_row + group_row, tile.q_head, tile.batch];
                    for panel in 0..COLS as u32 / PANEL_COLS {
                        let [row, head, batch] = rows;
                        tma::store(
                            q + panel * Q_BLOCK as u32 * PANEL_BYTES,
                            maps + 384,
                            [panel * PANEL_COLS, row, head, batch],
                        );
                    }
                    tma::commit_stores();
                }
                leaving.free_buffer(elected);
                leaving = Leaving { ring: q_ring, pending: true };
                if Q_STAGES == 1 {
                    leaving.free_buffer(elected);
                }
                q_ring.advance();
            }
            // Shared memory outlives the last stores that read it.
            leaving.free_buffer(elected);
        }
    }
}

/// Starts loading `ROWS` rows of a head, panel by panel; `rows` is the first row, the head and the batch entry.
///
/// # Safety
/// The loading warp, converged; the buffer is acquired.
#[inline(always)]
unsafe fn load<const ROWS: usize, const COLS: usize>(buffer: u32, map: u64, rows: [u32; 3], full: u32, elected: bool) {
    let [row, head, batch] = rows;
    for panel in 0..COLS as u32 / PANEL_COLS {
        let to = buffer + panel * ROWS as u32 * PANEL_BYTES;
        // SAFETY: passed on; the panels fill the buffer exactly.
        unsafe { tma::load_if(to, map, [panel * PANEL_COLS, row, head, batch], full, elected) };
    }
}

/// The key block of step `i`: those with element tests first, because the first step always tests.
#[inline(always)]
fn visit(blocks: KvBlocks, i: u32) -> u32 {
    blocks.visit(blocks.count() - 1 - i)
}

/// The tiles of this thread block, one after the other; every role walks over them by itself.
struct Tiles {
    round: u32,
}

/// A block of query rows and the key blocks that it visits.
struct Tile {
    batch: u32,
    q_head: u32,
    kv_head: u32,
    first_row: u32,
    blocks: KvBlocks,
}

impl Tiles {
    #[inline(always)]
    fn next<const Q_BLOCK: usize, const KV_BLOCK: usize>(&mut self, p: &V3Params) -> Option<Tile> {
        let (f, schedule) = (&p.forward, &p.schedule);
        // SAFETY: the host launches no empty problem. Without this, every division could panic.
        unsafe {
            core::hint::assert_unchecked(schedule.section_rounds > 0 && schedule.section_slots > 0);
            core::hint::assert_unchecked(schedule.section_heads > 0 && f.q_heads > 0 && f.group > 0);
        }
        loop {
            let slot = schedule.slot(self.round, thread::block_index(), thread::grid_size())?;
            self.round += 1;
            let Some(tile) = schedule.tile(slot) else { continue };
            let (batch, q_head) = (tile.head / f.q_heads, tile.head % f.q_heads);
            let first_row = tile.q_block * Q_BLOCK as u32;
            let blocks = f.band.kv_blocks(first_row, Q_BLOCK as u32, f.q_rows, f.kv_rows, KV_BLOCK as u32);
            return Some(Tile { batch, q_head, kv_head: q_head / f.group, first_row, blocks });
        }
    }
}

/// The turns of the math warpgroups at starting products.
#[derive(Clone, Copy)]
struct Turn<const ON: bool> {
    own: u32,
    next: u32,
}

impl<const ON: bool> Turn<ON> {
    /// Threads at a turn barrier: the warpgroup that waits and the one that passes on.
    const THREADS: u32 = 2 * WARPGROUP;

    /// # Safety
    /// All threads of the warpgroup, converged, once.
    #[inline(always)]
    unsafe fn new(group: u32, groups: u32) -> Self {
        let last = group + 1 == groups;
        let turn = Turn { own: FIRST_TURN + group, next: if last { FIRST_TURN } else { FIRST_TURN + group + 1 } };
        if last {
            // The first turn is the first warpgroup's.
            // SAFETY: passed on.
            unsafe { turn.pass_on() };
        }
        turn
    }

    #[inline(always)]
    unsafe fn wait(self) {
        if ON {
            // SAFETY: passed on.
            unsafe { sync::named(self.own, Self::THREADS) };
        }
    }

    #[inline(always)]
    unsafe fn pass_on(self) {
        if ON {
            // SAFETY: passed on.
            unsafe { sync::arrive(self.next, Self::THREADS) };
        }
    }
}

/// The output that is leaving through a buffer of queries.
struct Leaving<const STAGES: u32> {
    ring: Ring<STAGES>,
    pending: bool,
}

impl<const STAGES: u32> Leaving<STAGES> {
    /// Waits until the output has left its buffer, if there is one, and frees the buffer for the next queries.
    ///
    /// # Safety
    /// All threads of the warpgroup, converged.
    #[inline(always)]
    unsafe fn free_buffer(&mut self, elected: bool) {
        if self.pending {
            if elected {
                tma::wait_stores_read();
            }
            // SAFETY: passed on.
            unsafe { self.ring.release(elected) };
            self.pending = false;
        }
    }
}
