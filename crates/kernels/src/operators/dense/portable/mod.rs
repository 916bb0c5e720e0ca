//! A dense layer on the tensor cores of every GPU since Ampere, and on the float units for f32:
//!
//! ```text
//! out = activation(a b^T + bias) + residual          of gradients: a b + residual, a^T b + residual
//!
//!            b^T   64 columns a warp                 thread block: one tile
//!          +-------+-------+                         for steps of `depth` numbers:
//!  a     0 |   0   |   1   |                           wait for the buffer of the step          (cp.async, as many on their way as there are
//!  32    1 |   2   |   3   |  rows a warp              start copying a later one                 buffers, less one)
//!  rows  2 |   4   |   5   |                           acc += a b^T
//!  each  3 |   6   |   7   |                         out = epilogue(acc)
//!          +-------+-------+
//! ```
//!
//! Of a gated activation, half of a warp's columns are rows of the gate, and half those of what it opens. [`epilogue`](super::epilogue) has the rest, and
//! [`operands`] how the operands of each pass lie in shared memory.

use core::marker::PhantomData;

use cuda_std::{copy, shared, sync, thread};

use crate::operators::dense::epilogue::Global;
use crate::operators::dense::{self, Epilogue};
use crate::parts::element::Element;
use crate::parts::fragments::Fragments;
use crate::parts::shared_tile::ThreadBlock;

mod operands;

pub use operands::{Forward, InputGradient, LogitGradient, Losses, WeightGradient};
use operands::{Operands, Product, WARP_COLUMNS, WARP_ROWS};

/// What a row makes of this kernel.
pub trait Config: dense::Config {
    /// Element type of all tensors.
    type T: Element;
    /// Its operands.
    type Operands: Operands;
}

/// The threads of the thread block.
struct Threads<C>(PhantomData<C>);

impl<C: Config> ThreadBlock for Threads<C> {
    const THREADS: usize = C::ROW.entry.threads as usize;
}

/// One thread block: one tile.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn product<C: Config>(params: &<C::Epilogue as Epilogue>::Params) {
    let p = C::Epilogue::product(params);
    let tile = const { C::ROW.tile };
    let warps_across = const { C::ROW.tile.columns / WARP_COLUMNS };
    let [tile_row, tile_col] = p.order.place(thread::block_index());
    let warp = thread::index() / 32;
    let (warp_row, warp_col) = (warp / warps_across * WARP_ROWS, warp % warps_across * WARP_COLUMNS);
    let gated = C::is_gated(p);
    let first_row = tile_row * tile.rows;
    let steps = p.depth.div_ceil(tile.depth);
    let buffer = #[inline(always)]
    |stage: u32| {
        let a = shared::dynamic() + C::MEMORY.buffers + stage * C::MEMORY.stage_bytes;
        [a, a + C::MEMORY.a_bytes]
    };
    // SAFETY: passed on; a buffer is read between the barrier behind its wait and the next one, behind which it is filled again.
    unsafe {
        let load = #[inline(always)]
        |step: u32, stage: u32| {
            if step < steps {
                let first = [first_row, tile_col * tile.columns];
                C::Operands::load::<Threads<C>>(p, gated, first, step * tile.depth, buffer(stage));
            }
            // Also without copies: the groups are counted.
            copy::commit_group();
        };
        for stage in 0..tile.stages - 1 {
            load(stage, stage);
        }
        let mut acc = Product::zero();
        let mut stage = 0;
        for step in 0..steps {
            wait_for_step::<C>();
            // Behind it, all have read the buffer of the step before, which is filled next.
            sync::block();
            let last = if stage == 0 { tile.stages - 1 } else { stage - 1 };
            load(step + tile.stages - 1, last);
            C::Operands::multiply(&mut acc, buffer(stage), [warp_row, warp_col]);
            stage = if stage + 1 == tile.stages { 0 } else { stage + 1 };
        }
        let of_output = #[inline(always)]
        |columns: u32| if gated { columns / 2 } else { columns };
        let col = of_output(tile_col * tile.columns + warp_col);
        C::Epilogue::leave::<C, C::T, Product, false>(params, &acc, Global, Global, first_row + warp_row, col);
    }
}

/// Waits for this thread's copies of a step: those of as many later ones as there are buffers but two may still be on their way.
#[inline(always)]
fn wait_for_step<C: Config>() {
    match const { C::ROW.tile.stages } {
        3 => copy::wait_group::<1>(),
        4 => copy::wait_group::<2>(),
        _ => const { assert!(C::ROW.tile.stages == 3 || C::ROW.tile.stages == 4, "three or four buffers") },
    }
}
