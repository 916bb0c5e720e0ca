//! All gradients in one pass over the scores, on Hopper's asynchronous units: five products where [`keys`](super::keys) and
//! [`queries`](super::queries) take seven. A thread block owns a block of keys; what it finds out about queries, other thread blocks find
//! out about too, so `dq` is a sum in device memory that all of them add to.
//!
//! ```text
//! load warp:   k, v, then q_i, dout_i and their statistics for every query block, as buffers become free
//! warpgroups:  for heads of the group, query blocks i:
//!                start s^T = k q_i^T, start dp^T = v dout_i^T
//!                wait for s          p^T = e^(scale s^T - lse)          under dp
//!                wait for dp         ds^T = p^T (dp^T - delta)
//!                start dv += p^T dout_i                                 p is in registers
//!                pass ds^T on through shared memory                     under dv
//!                start dq = ds_(i-1) k
//!                start dk += ds^T q_i                                   ds is in registers
//!                wait for dq         sum of dq_(i-1) += dq              under dk
//!              at the end:           the last dq, dk = scale dk
//! ```
//!
//! | who | does | registers |
//! | --- | --- | --- |
//! | warp 0 of warpgroup 0, [`load`] | starts all loads (TMA); its neighbours do nothing | 24 |
//! | warpgroup `g >= 1`, [`math`] | key rows `64 (g - 1) ..` of the block; of `dq`, 64 rows and 64 columns | 240 |
//!
//! `dq` needs the gradients of all scores of a step, and therefore all warpgroups. FlashAttention-3 (Shah et al., 2024) has them meet for
//! it in every step. Here it is computed a step late: when a warpgroup asks for the others' part, it has long been there, so that they
//! run apart, and what one computes falls under products of the other.
//!
//! | barrier | arrives | waits |
//! | --- | --- | --- |
//! | `full` of a k, v, q or dout buffer | load warp and copy engine | warpgroups that read it |
//! | `empty` of a k, v, q or dout buffer | each of their warps, after the last product that reads it | load warp |
//! | `full` of a buffer of `ds` | each of their warps, once it has written its part | warpgroups, a step later |
//! | `empty` of a buffer of `ds` | each of their warps, after the product that reads it | warpgroups, before they write |

use core::marker::PhantomData;

use cuda_std::{mbarrier, shared, sync, thread, warp, wgmma};
use kernel_spec::families::backward::memory::Fused as Memory;
use kernel_spec::families::backward::{FusedParams, STATISTICS_BYTES, policy};

use crate::attention::backward;
use crate::attention::backward::key_block::KeyBlock;
use crate::parts::element::TensorCore;
use crate::parts::ring::{BARRIER_PAIR, Buffers, Ring};
use crate::parts::shared_tile::SharedMatrix;
use crate::parts::warpgroup::{Accumulator, Operands, WARPGROUP};

mod load;
mod math;
pub(super) mod store;
pub(super) mod sums;

/// What a row makes of this kernel.
pub trait Config: backward::Config<T: TensorCore + wgmma::WarpgroupMma<{ sums::SHARE_FRAGMENTS }>> {
    /// The choices of the row.
    const POLICY: policy::Fused;
    /// Columns that are multiplied; the tiles have whole panels.
    const DIM: usize;
    /// A tile of keys or of values.
    type Kv: SharedMatrix<Element = Self::T>;
    /// A tile of queries or output gradients.
    type Q: SharedMatrix<Element = Self::T>;
    /// Gradients of the scores of a step, queries by keys.
    type Dscores: SharedMatrix<Element = Self::T>;
    /// Scores of a warpgroup: its keys by all queries.
    type Scores: Accumulator<Self::T>;
    /// The same as operands.
    type Weights: Operands<Self::Scores, Self::T>;
    /// A gradient of a warpgroup's keys.
    type Acc: Accumulator<Self::T>;
    /// Warpgroups that have keys.
    const WARPGROUPS: u32 = Self::ROW.kv_block / Memory::WARPGROUP_ROWS;
}

/// Buffers of keys.
struct Keys<C>(PhantomData<C>);
/// Buffers of values.
struct Values<C>(PhantomData<C>);
/// Buffers of queries, with their statistics.
struct Queries<C>(PhantomData<C>);
/// Buffers of output gradients.
struct Douts<C>(PhantomData<C>);
/// Buffers of gradients of scores.
struct Dscores<C>(PhantomData<C>);

impl<C: Config> Buffers for Keys<C> {
    const STAGES: u32 = C::POLICY.kv_stages;
    const BYTES: u32 = C::Kv::BYTES;
}

impl<C: Config> Buffers for Values<C> {
    const STAGES: u32 = C::POLICY.kv_stages;
    const BYTES: u32 = C::Kv::BYTES;
}

impl<C: Config> Buffers for Queries<C> {
    const STAGES: u32 = C::POLICY.stages;
    const BYTES: u32 = C::Q::BYTES;
    const EXPECTED: u32 = C::Q::BYTES + C::ROW.q_block * STATISTICS_BYTES;
}

impl<C: Config> Buffers for Douts<C> {
    const STAGES: u32 = C::POLICY.stages;
    const BYTES: u32 = C::Q::BYTES;
}

impl<C: Config> Buffers for Dscores<C> {
    const STAGES: u32 = C::POLICY.dscores_stages;
    const BYTES: u32 = C::Dscores::BYTES;
}

/// The rings of a thread block, with the first buffer of statistics.
struct Rings<C> {
    k: Ring<Keys<C>>,
    v: Ring<Values<C>>,
    q: Ring<Queries<C>>,
    dout: Ring<Douts<C>>,
    dscores: Ring<Dscores<C>>,
    statistics: u32,
}

impl<C: Config> Rings<C> {
    const MEMORY: Memory = Memory::of(C::ROW, C::POLICY);

    #[inline(always)]
    fn new() -> Self {
        const { assert!(BARRIER_PAIR == Memory::BARRIER_PAIR_BYTES, "rings lie as the row says") };
        let at = |offset: u32| shared::dynamic() + offset;
        let memory = Self::MEMORY;
        Rings {
            k: Ring::new(at(memory.k), at(memory.k_barriers)),
            v: Ring::new(at(memory.v), at(memory.v_barriers)),
            q: Ring::new(at(memory.q), at(memory.q_barriers)),
            dout: Ring::new(at(memory.dout), at(memory.dout_barriers)),
            dscores: Ring::new(at(memory.dscores), at(memory.dscores_barriers)),
            statistics: at(memory.statistics),
        }
    }

    /// Where the statistics of the current buffer of queries lie.
    #[inline(always)]
    fn statistics(&self) -> u32 {
        self.statistics + self.q.stage() * Self::MEMORY.statistics_bytes
    }
}

/// Registers of the loading warpgroup.
struct LoadRegisters;
/// Registers of the others.
struct MathRegisters;

impl wgmma::Registers for LoadRegisters {
    const COUNT: u32 = Memory::LOAD_REGISTERS;
}

impl wgmma::Registers for MathRegisters {
    const COUNT: u32 = Memory::KEY_REGISTERS;
}

/// The blocks of keys of a thread block, one after the other.
struct Tiles {
    /// Round of the schedule that comes next.
    round: u32,
}

impl Tiles {
    /// The next block, if there is one.
    #[inline(always)]
    fn next<C: Config>(&mut self, p: &FusedParams) -> Option<KeyBlock> {
        let schedule = &p.schedule;
        loop {
            let slot = schedule.slot(self.round, thread::block_index(), thread::grid_size())?;
            self.round += 1;
            let Some(tile) = schedule.tile(slot) else { continue };
            let (batch, kv_head) = schedule.sequence_heads.split(tile.head);
            // A schedule takes the last rows first, which are the longest tiles where rows are queries. Of keys, the first are.
            return Some(KeyBlock::at::<C>(&p.backward, batch, kv_head, schedule.q_blocks - 1 - tile.q_block));
        }
    }
}

/// The warp of the first warpgroup that loads.
const LOAD_WARP: u32 = 0;

/// One thread block: `dk` and `dv` of a block of keys, and its part of the sums of `dq`. `params` is the address of `p`, which starts with
/// four tensor maps.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn gradients<C: Config>(p: &FusedParams, params: u64) {
    let warps = C::WARPGROUPS * WARPGROUP / 32;
    let mut rings = Rings::<C>::new();
    // SAFETY: roles follow whole warpgroups and warps; rings order shared memory as the table above says.
    unsafe {
        let group = warp::broadcast(thread::index() / WARPGROUP, 0);
        if thread::index() == 0 {
            rings.k.init(warps);
            rings.v.init(warps);
            rings.q.init(warps);
            rings.dout.init(warps);
            rings.dscores.init_shared(warps, warps);
            mbarrier::fence_init();
        }
        sync::block();

        if group == 0 {
            wgmma::release_registers::<LoadRegisters>();
            if warp::broadcast(thread::index() / 32, 0) == LOAD_WARP {
                load::run(p, params, &mut rings);
            }
        } else {
            wgmma::take_registers::<MathRegisters>();
            math::run(p, group - 1, &mut rings);
        }
    }
}
