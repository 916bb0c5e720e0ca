//! A dense layer on the tensor cores of every GPU since Ampere, and on the float units for f32:
//!
//! ```text
//! out = activation(a b^T + bias) + residual
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
//! Of a gated activation, half of a warp's columns are rows of the gate, and half those of what it opens. [`epilogue`](super::epilogue) has the rest.

use core::marker::PhantomData;

use cuda_std::{copy, shared, sync, thread};
use kernel_spec::families::dense::DenseParams;
use kernel_spec::families::dense::features::is_gated;

use crate::operators::dense::{self, epilogue};
use crate::parts::element::Element;
use crate::parts::fragments::{Fragments, RegTile};
use crate::parts::products::MulTransposed;
use crate::parts::rows::{GlobalRows, RowSource, RowWalk};
use crate::parts::shared_tile::{SharedMatrix, ThreadBlock};

/// Rows and columns of a warp.
const WARP_ROWS: u32 = 32;
const WARP_COLUMNS: u32 = 64;

/// A warp's part of the product.
pub type Product = RegTile<{ WARP_ROWS as usize / 16 }, { WARP_COLUMNS as usize / 8 }>;

/// What a row makes of this kernel.
pub trait Config: dense::Config {
    /// Element type of all tensors.
    type T: Element;
    /// A buffer of the rows.
    type A: SharedMatrix<Element = Self::T>;
    /// A buffer of the weights.
    type B: SharedMatrix<Element = Self::T>;
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
pub unsafe fn product<C: Config>(p: &DenseParams)
where
    Product: MulTransposed<C::A, C::B>,
{
    let tile = const { C::ROW.tile };
    let warps_across = const { C::ROW.tile.columns / WARP_COLUMNS };
    let [tile_row, tile_col] = p.order.place(thread::block_index());
    let warp = thread::index() / 32;
    let (warp_row, warp_col) = (warp / warps_across * WARP_ROWS, warp % warps_across * WARP_COLUMNS);
    let gated = is_gated(p.features.set());
    let first_row = tile_row * tile.rows;
    let steps = p.depth.div_ceil(tile.depth);
    let buffer = #[inline(always)]
    |stage: u32| {
        let a = shared::dynamic() + C::MEMORY.buffers + stage * C::MEMORY.stage_bytes;
        (C::A::at(a), C::B::at(a + C::MEMORY.a_bytes))
    };
    // SAFETY: passed on; a buffer is read between the barrier behind its wait and the next one, behind which it is filled again.
    unsafe {
        let load = #[inline(always)]
        |step: u32, stage: u32| {
            if step < steps {
                let (a, b) = buffer(stage);
                a.load::<Threads<C>>(&rows::<C>(p, step), first_row);
                let weights = Weights { rows: weights::<C>(p, step), columns: p.columns, gated };
                b.load::<Threads<C>>(&weights, tile_col * tile.columns);
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
            let (a, b) = buffer(stage);
            acc.mul_transposed(a, warp_row, b, warp_col);
            stage = if stage + 1 == tile.stages { 0 } else { stage + 1 };
        }
        let of_output = #[inline(always)]
        |columns: u32| if gated { columns / 2 } else { columns };
        let col = of_output(tile_col * tile.columns + warp_col);
        epilogue::leave::<C::T, Product, false>(p, &acc, first_row + warp_row, col);
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

/// What is left of the rows from a step on.
#[inline(always)]
fn rows<C: Config>(p: &DenseParams, step: u32) -> GlobalRows<C::T> {
    of_step::<C>(p.a.address, p.a.row_stride, p.rows, p, step)
}

/// What is left of the weights from a step on.
#[inline(always)]
fn weights<C: Config>(p: &DenseParams, step: u32) -> GlobalRows<C::T> {
    let gated = is_gated(p.features.set());
    of_step::<C>(p.b.address, p.b.row_stride, if gated { 2 * p.columns } else { p.columns }, p, step)
}

#[inline(always)]
fn of_step<C: Config>(address: u64, row_stride: u64, rows: u32, p: &DenseParams, step: u32) -> GlobalRows<C::T> {
    let depth = const { C::ROW.tile.depth };
    let (before, aligned) = (step * depth, p.aligned != 0);
    GlobalRows {
        address: address + before as u64 * C::T::BYTES as u64,
        row_bytes: row_stride * C::T::BYTES as u64,
        rows,
        cols: p.depth - before,
        aligned,
        whole: aligned & (p.depth - before >= depth),
        element: PhantomData,
    }
}

/// The weights as the rows of tiles: of a gated activation, each warp has rows of the gate and then those of what these open.
#[derive(Clone, Copy)]
struct Weights<T> {
    rows: GlobalRows<T>,
    /// Columns of the output.
    columns: u32,
    gated: bool,
}

impl<T> Weights<T> {
    /// The column of the output that a row of a tile is for, and the row of the weights.
    #[inline(always)]
    fn row(&self, row: u32) -> [u32; 2] {
        const HALF: u32 = WARP_COLUMNS / 2;
        if !self.gated {
            return [row, row];
        }
        let column = row / WARP_COLUMNS * HALF + row % HALF;
        [column, if row % WARP_COLUMNS < HALF { column } else { self.columns + column }]
    }
}

impl<T: Copy> RowSource for Weights<T> {
    type Walk = WeightsWalk<T>;

    #[inline(always)]
    fn rows(&self) -> u32 {
        self.rows.rows
    }

    #[inline(always)]
    fn has(&self, row: u32) -> bool {
        self.row(row)[0] < self.columns
    }

    #[inline(always)]
    fn cols(&self) -> u32 {
        self.rows.cols
    }

    #[inline(always)]
    fn aligned(&self) -> bool {
        self.rows.aligned
    }

    #[inline(always)]
    fn whole(&self) -> bool {
        self.rows.whole
    }

    #[inline(always)]
    fn walk(&self, first: u32, step: u32, offset: u64) -> WeightsWalk<T> {
        WeightsWalk { weights: *self, row: first, step, offset }
    }
}

/// Rows of the weights, as tiles have them.
#[derive(Clone, Copy)]
struct WeightsWalk<T> {
    weights: Weights<T>,
    /// The row of the tile, counted over all of them.
    row: u32,
    step: u32,
    offset: u64,
}

impl<T: Copy> RowWalk for WeightsWalk<T> {
    #[inline(always)]
    fn address(&self) -> u64 {
        self.ahead(0)
    }

    #[inline(always)]
    fn ahead(&self, steps: u32) -> u64 {
        let [_, row] = self.weights.row(self.row + steps * self.step);
        self.weights.rows.address + row as u64 * self.weights.rows.row_bytes + self.offset
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.row += self.step;
    }
}
