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
//! | warp 0 of warpgroup 0, [`load`] | finds the tiles, notes each beside its queries, starts all loads (TMA); its neighbours do nothing | `load_registers` |
//! | warpgroup `g >= 1`, [`math`] | query rows `64 (g - 1) ..` of the tile: products (wgmma), softmax, output | `math_registers` |
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
//! The two roles are functions, [`load::run`] and [`math::run`], that rustc puts into this one before LLVM sees them, with the rings by
//! reference: LLVM would simplify a function of its own, or rings of its own, before it knows what surrounds them, and ptxas 13.0 then
//! orders the steps differently: up to 4 % slower at 64 dims (docs/perf-log.md). For the same reason closures mention what they capture in an
//! order that is kept: that order becomes the order of registers.
//!
//! [`OnlineSoftmax::lazy_step`]: crate::attention::online_softmax::OnlineSoftmax::lazy_step

use cuda_std::{mbarrier, shared, sync, thread, warp, wgmma};
use kernel_spec::V3Params;
use kernel_spec::families::forward::memory::{self, WARPGROUP_ROWS};

use crate::attention::v3::config::{Keys, LoadRegisters, MathRegisters, Queries, Values};
use crate::attention::v3::note::TileNotes;
use crate::parts::ring::{BARRIER_PAIR, Ring};
use crate::parts::warpgroup::WARPGROUP;

mod config;
mod listed;
mod load;
mod math;
mod mend;
mod note;
mod packed;
mod split;
mod store;

pub use config::Config;

/// The warp of the first warpgroup that loads; the other three have nothing to do.
const LOAD_WARP: u32 = 0;

/// One thread block of v3. `params` is the address of `p`, which starts with three tensor maps.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn forward<C: Config>(p: &V3Params, params: u64) {
    const { assert!(BARRIER_PAIR == memory::V3::BARRIER_PAIR_BYTES, "rings lie as the row says") };
    let groups = const { C::ROW.q_block / WARPGROUP_ROWS };
    let memory = const { memory::V3::of(C::ROW, C::POLICY) };
    let at = |offset: u32| shared::dynamic() + offset;
    let notes = TileNotes { address: at(memory.notes), bytes: memory.note_bytes };
    let again = at(memory.again);
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
            shared::store_u32(again, 0);
            mbarrier::fence_init();
        }
        sync::block();

        if group == 0 {
            wgmma::release_registers::<LoadRegisters<C>>();
            if warp::broadcast(thread::index() / 32, 0) == LOAD_WARP {
                load::run::<C>(p, params, &mut q_ring, &mut k_ring, &mut v_ring, notes);
            }
            if !C::SPLIT {
                mend::run::<C>(params, again);
            }
        } else {
            wgmma::take_registers::<MathRegisters<C>>();
            math::run::<C>(p, group - 1, &mut q_ring, &mut k_ring, &mut v_ring, notes, again);
        }
    }
}
