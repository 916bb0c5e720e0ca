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
//! | warp 0 of warpgroup 0, [`load`] | starts all loads (TMA) | 24 |
//! | warp `g` of warpgroup 0, [`turns`] | where sums are added to in order, tells warpgroup `g` when it is its turn; else nothing | 24 |
//! | warpgroup `g >= 1`, [`math`] | key rows `64 (g - 1) ..` of the block; of `dq`, 64 rows and 64 columns | 240 |
//!
//! `dq` needs the gradients of all scores of a step, and therefore all warpgroups. FlashAttention-3 (Shah et al., 2024) has them meet for
//! it in every step. Here it is computed a step late: when a warpgroup asks for the others' part, it has long been there, so that they
//! run apart, and what one computes falls under products of the other.
//!
//! | barrier | arrives | waits |
//! | --- | --- | --- |
//! | `full` of a k, v, q or dout buffer | load warp and copy engine | warpgroups that read it |
//! | `empty` of a k, v or dout buffer | each of their warps, after the last product that reads it | load warp |
//! | `empty` of a q buffer | each of their threads, which read statistics there | load warp |
//! | `full` of a buffer of `ds` | each of their warps, once it has written its part | warpgroups, a step later |
//! | `empty` of a buffer of `ds` | each of their warps, after the product that reads it | warpgroups, before they write |
//! | `full` of a turn | the warp of the turns, once the sums have all parts that come before | its warpgroup, before it adds |
//! | `empty` of a turn | each warp of the warpgroup, once it has added | the warp of the turns, before it tells the other thread blocks |
//!
//! The `empty` barriers of v, of dout and of three buffers of `ds` order nothing that those of k and q do not: these are freed later and
//! waited for earlier. They stay because without them, and the wait for dv in front of one, 64 dims are 2 % slower.

use cuda_std::{mbarrier, sync, thread, warp, wgmma};
use kernel_spec::families::backward::FusedParams;
use kernel_spec::families::backward::memory::Fused as Memory;

use crate::attention::backward::fused::config::Rings;
use crate::parts::warpgroup::WARPGROUP;

mod config;
mod load;
mod math;
pub(super) mod store;
pub(super) mod sums;
mod tiles;
mod turns;

pub use config::Config;

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
            rings.q.init(32 * warps);
            rings.dout.init(warps);
            rings.dscores.init_shared(warps, warps);
            if C::IN_ORDER {
                for group in 0..C::WARPGROUPS {
                    rings.turns(group).init(WARPGROUP / 32);
                }
            }
            mbarrier::fence_init();
        }
        sync::block();

        if group == 0 {
            wgmma::release_registers::<LoadRegisters>();
            let warp = warp::broadcast(thread::index() / 32, 0);
            if warp == LOAD_WARP {
                load::run(p, params, &mut rings);
            } else if C::IN_ORDER && warp - 1 < C::WARPGROUPS {
                turns::run::<C>(p, warp - 1, rings.turns(warp - 1));
            }
        } else {
            wgmma::take_registers::<MathRegisters>();
            math::run(p, group - 1, &mut rings);
        }
    }
}
