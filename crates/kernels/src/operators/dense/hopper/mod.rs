//! A dense layer on Hopper's asynchronous units: `out = activation(a b^T + bias) + residual`, of 16-bit types; and its gradients, `a b + residual` and
//! `a^T b + residual`.
//!
//! ```text
//!                       b^T                            load warp:    for tiles, steps of 64 numbers:
//!            +-----------------------+                                 wait until the buffer is free, start copying a and b (TMA)
//!   a        |      warpgroup 1      |  64 rows
//!            +-----------------------+                 warpgroups:   for tiles:
//!            |      warpgroup 2      |                                 for steps: wait for the buffer, start acc += a b^T,
//!            +-----------------------+                                            wait for the product before, free its buffer
//!   a of the other thread block of the cluster:                        wait for the last product, free its buffer
//!            |          ..           |                                 out = epilogue(acc), by way of shared memory (TMA, [`outlet`])
//! ```
//!
//! | who | does | registers |
//! | --- | --- | --- |
//! | warp 0 of warpgroup 0, [`load`] | starts all copies; its neighbours do nothing | 24 |
//! | warpgroup `g >= 1`, [`math`] | rows `64 (g - 1) ..` of every tile: products (wgmma) and epilogue | 240 |
//!
//! | barrier | arrives | waits |
//! | --- | --- | --- |
//! | `full` of a buffer | the load warp, and the copy engine for each piece, also for what other thread blocks of the cluster load | warpgroups |
//! | `empty` of a buffer | each warpgroup of all thread blocks of the cluster, after the product that reads it | load warp |
//! | named barriers 1, 2 | a warpgroup whose biases are copied, once a tile | the same |
//!
//! The thread blocks of a cluster have tiles on top of one another, and the same columns: each loads a part of `b` and sends it to all (multicast).
//!
//! Operands of gradients that have a row for each number that is summed over come in squares of 64 x 64, which the tensor cores read as they lie.
//!
//! Thread blocks are persistent, and the load warp runs ahead into the next tile; `kernel_spec::families::dense::order` has the order of tiles.

use cuda_std::{cluster, mbarrier, shared, sync, thread, warp, wgmma};
use kernel_spec::TensorMap;
use kernel_spec::families::dense::{LOAD_REGISTERS, MATH_REGISTERS, Memory, WARPGROUP_ROWS};

use crate::operators::dense::Epilogue;
use crate::parts::ring::{BARRIER_PAIR, Ring};
use crate::parts::warpgroup::WARPGROUP;

mod config;
mod load;
mod math;
mod outlet;
mod tiles;

pub use config::Config;
use config::Operands;

/// Registers of the loading warpgroup.
struct LoadRegisters;
/// Registers of the others.
struct MathRegisters;

impl wgmma::Registers for LoadRegisters {
    const COUNT: u32 = LOAD_REGISTERS;
}

impl wgmma::Registers for MathRegisters {
    const COUNT: u32 = MATH_REGISTERS;
}

/// The warp of the first warpgroup that loads.
const LOAD_WARP: u32 = 0;

/// One thread block. `maps` is the address of the tensor maps of both operands and of the output, which the parameters start with.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory and the clusters that the row asks for.
#[inline(always)]
pub unsafe fn product<C: Config>(p: &<C::Epilogue as Epilogue>::Params, maps: u64) {
    const { assert!(BARRIER_PAIR == Memory::BARRIER_PAIR_BYTES, "rings lie as the row says") };
    let groups = const { C::ROW.tile.rows / WARPGROUP_ROWS };
    let mut ring =
        Ring::<Operands<C>>::new(shared::dynamic() + C::MEMORY.buffers, shared::dynamic() + C::MEMORY.barriers);
    // SAFETY: roles follow whole warpgroups and warps; the ring orders shared memory as the table above says.
    unsafe {
        // From one lane to all: the assembler then knows the role as uniform and keeps wgmma asynchronous in its branch.
        let group = warp::broadcast(thread::index() / WARPGROUP, 0);
        if thread::index() == 0 {
            ring.init(groups * C::CLUSTER);
            mbarrier::fence_init();
        }
        meet::<C>();

        if group == 0 {
            wgmma::release_registers::<LoadRegisters>();
            if warp::broadcast(thread::index() / 32, 0) == LOAD_WARP {
                load::run::<C>(C::Epilogue::product(p), maps, &mut ring);
            }
        } else {
            wgmma::take_registers::<MathRegisters>();
            math::run::<C>(p, maps + const { 2 * TensorMap::BYTES as u64 }, group - 1, &mut ring);
        }
        if C::CLUSTER > 1 {
            // What the others still send here and count here needs this thread block's memory.
            cluster::sync();
        }
    }
}

/// Waits for all threads that use the barriers.
///
/// # Safety
/// All threads of the thread block, and of its cluster, converged.
#[inline(always)]
unsafe fn meet<C: Config>() {
    // SAFETY: passed on.
    unsafe { if C::CLUSTER > 1 { cluster::sync() } else { sync::block() } }
}
