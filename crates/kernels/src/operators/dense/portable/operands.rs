//! The operands of each pass in shared memory, as they lie in global memory:
//!
//! ```text
//!                    a                        b
//! Forward            [rows][depth]            [columns][depth]        products over rows of both                    (ldmatrix)
//! InputGradient      [rows][depth]            [depth][columns]        over rows of one and columns of the other     (ldmatrix, transposed)
//! WeightGradient     [depth][rows]            [depth][columns]        over columns of both
//! ```
//!
//! Tiles lie in strips of 128 bytes a row, one behind the other. Of those with the depth along their rows, a strip is a tile for the products.

use core::marker::PhantomData;

use cuda_std::{bf16, f16};
pub(super) use kernel_spec::families::dense::WARP_COLUMNS;
use kernel_spec::families::dense::{DenseParams, MatrixParams};

use crate::parts::element::Element;
use crate::parts::fragments::RegTile;
use crate::parts::products::{Mul, MulTransposed, TransposedMul};
use crate::parts::rows::{GlobalRows, RowSource, RowWalk};
use crate::parts::shared_tile::{SharedMatrix, SharedTile, ThreadBlock};

/// Rows of a warp.
pub(super) const WARP_ROWS: u32 = 32;

/// A warp's part of the product.
pub type Product = RegTile<{ WARP_ROWS as usize / 16 }, { WARP_COLUMNS as usize / 8 }>;

/// The operands of a pass.
pub trait Operands {
    /// Starts loading those of a tile's `first` row and column, from number `depth` of those that are summed over on, to the shared addresses `to`. What does
    /// not exist becomes zero. `gated`: rows of `b` are those of a gate, and those of what it opens.
    ///
    /// # Safety
    /// As for [`SharedMatrix::load`].
    unsafe fn load<B: ThreadBlock>(p: &DenseParams, gated: bool, first: [u32; 2], depth: u32, to: [u32; 2]);

    /// Adds the product of the operands at these shared addresses, of a warp's rows and columns of the tile.
    ///
    /// # Safety
    /// All threads of the warp, converged; both are complete and behind a barrier.
    unsafe fn multiply(acc: &mut Product, at: [u32; 2], warp: [u32; 2]);
}

/// `a b^T`.
pub struct Forward<T, const ROWS: usize, const COLUMNS: usize, const DEPTH: usize>(PhantomData<T>);

/// As [`Forward`].
pub type Losses<T, const ROWS: usize, const COLUMNS: usize, const DEPTH: usize> = Forward<T, ROWS, COLUMNS, DEPTH>;

/// As [`Forward`].
pub type LogitGradient<T, const ROWS: usize, const COLUMNS: usize, const DEPTH: usize> =
    Forward<T, ROWS, COLUMNS, DEPTH>;

/// `a b`.
pub struct InputGradient<T, const ROWS: usize, const COLUMNS: usize, const DEPTH: usize>(PhantomData<T>);

/// `a^T b`.
pub struct WeightGradient<T, const ROWS: usize, const COLUMNS: usize, const DEPTH: usize>(PhantomData<T>);

/// Tiles of one strip: their columns depend on the type.
pub trait Strips: Element {
    /// So many rows of a strip.
    type Strip<const DEPTH: usize>: SharedMatrix;
}

impl Strips for f32 {
    type Strip<const DEPTH: usize> = SharedTile<f32, DEPTH, 32>;
}

impl Strips for f16 {
    type Strip<const DEPTH: usize> = SharedTile<f16, DEPTH, 64>;
}

impl Strips for bf16 {
    type Strip<const DEPTH: usize> = SharedTile<bf16, DEPTH, 64>;
}

/// The strips of a warp's columns.
type WarpStrips<T, const DEPTH: usize> = SharedTile<T, DEPTH, { WARP_COLUMNS as usize }>;

impl<T: Strips, const ROWS: usize, const COLUMNS: usize, const DEPTH: usize> Operands
    for Forward<T, ROWS, COLUMNS, DEPTH>
where
    Product: MulTransposed<SharedTile<T, ROWS, DEPTH>, SharedTile<T, COLUMNS, DEPTH>>,
{
    #[inline(always)]
    unsafe fn load<B: ThreadBlock>(
        p: &DenseParams,
        gated: bool,
        [row, column]: [u32; 2],
        depth: u32,
        [a, b]: [u32; 2],
    ) {
        let sums = if gated { 2 * p.columns } else { p.columns };
        let weights = Weights { rows: in_rows::<T, DEPTH>(&p.b, sums, p, depth), columns: p.columns, gated };
        // SAFETY: passed on.
        unsafe {
            SharedTile::<T, ROWS, DEPTH>::at(a).load::<B>(&in_rows::<T, DEPTH>(&p.a, p.rows, p, depth), row);
            SharedTile::<T, COLUMNS, DEPTH>::at(b).load::<B>(&weights, column);
        }
    }

    #[inline(always)]
    unsafe fn multiply(acc: &mut Product, [a, b]: [u32; 2], [row, column]: [u32; 2]) {
        let (a, b) = (SharedTile::<T, ROWS, DEPTH>::at(a), SharedTile::<T, COLUMNS, DEPTH>::at(b));
        // SAFETY: passed on.
        unsafe { acc.mul_transposed(a, row, b, column) }
    }
}

impl<T: Strips, const ROWS: usize, const COLUMNS: usize, const DEPTH: usize> Operands
    for InputGradient<T, ROWS, COLUMNS, DEPTH>
where
    Product: Mul<SharedTile<T, ROWS, DEPTH>, WarpStrips<T, DEPTH>>,
{
    #[inline(always)]
    unsafe fn load<B: ThreadBlock>(p: &DenseParams, _: bool, [row, column]: [u32; 2], depth: u32, [a, b]: [u32; 2]) {
        // SAFETY: passed on.
        unsafe {
            SharedTile::<T, ROWS, DEPTH>::at(a).load::<B>(&in_rows::<T, DEPTH>(&p.a, p.rows, p, depth), row);
            let b = SharedTile::<T, DEPTH, COLUMNS>::at(b);
            b.load::<B>(&along_rows::<T, COLUMNS>(&p.b, p.columns, p, column), depth);
        }
    }

    #[inline(always)]
    unsafe fn multiply(acc: &mut Product, [a, b]: [u32; 2], [row, column]: [u32; 2]) {
        // SAFETY: passed on.
        unsafe { acc.mul(SharedTile::<T, ROWS, DEPTH>::at(a), row, warp_strips::<T, DEPTH>(b, column)) }
    }
}

impl<T: Strips, const ROWS: usize, const COLUMNS: usize, const DEPTH: usize> Operands
    for WeightGradient<T, ROWS, COLUMNS, DEPTH>
where
    Product: TransposedMul<T::Strip<DEPTH>, WarpStrips<T, DEPTH>>,
{
    #[inline(always)]
    unsafe fn load<B: ThreadBlock>(p: &DenseParams, _: bool, [row, column]: [u32; 2], depth: u32, [a, b]: [u32; 2]) {
        // SAFETY: passed on.
        unsafe {
            let a = SharedTile::<T, DEPTH, ROWS>::at(a);
            a.load::<B>(&along_rows::<T, ROWS>(&p.a, p.rows, p, row), depth);
            let b = SharedTile::<T, DEPTH, COLUMNS>::at(b);
            b.load::<B>(&along_rows::<T, COLUMNS>(&p.b, p.columns, p, column), depth);
        }
    }

    #[inline(always)]
    unsafe fn multiply(acc: &mut Product, [a, b]: [u32; 2], [row, column]: [u32; 2]) {
        let columns = const { <T::Strip<DEPTH> as SharedMatrix>::COLS as u32 };
        let strip = T::Strip::<DEPTH>::at(a + row / columns * const { <T::Strip<DEPTH> as SharedMatrix>::BYTES });
        // SAFETY: passed on.
        unsafe { acc.transposed_mul(strip, row % columns, warp_strips::<T, DEPTH>(b, column)) }
    }
}

/// The strips of the columns from `column` on, of the tile at `tile`.
#[inline(always)]
fn warp_strips<T: Element, const DEPTH: usize>(tile: u32, column: u32) -> WarpStrips<T, DEPTH> {
    WarpStrips::<T, DEPTH>::at(tile + column * const { DEPTH as u32 * T::BYTES as u32 })
}

/// Rows of a matrix whose columns are summed over, from number `depth` of these on.
#[inline(always)]
fn in_rows<T: Element, const DEPTH: usize>(
    matrix: &MatrixParams,
    rows: u32,
    p: &DenseParams,
    depth: u32,
) -> GlobalRows<T> {
    columns_from::<T, DEPTH>(matrix, [rows, p.depth], p.aligned != 0, depth)
}

/// Rows of a matrix that are summed over, and its columns from `column` on.
#[inline(always)]
fn along_rows<T: Element, const COLUMNS: usize>(
    matrix: &MatrixParams,
    columns: u32,
    p: &DenseParams,
    column: u32,
) -> GlobalRows<T> {
    columns_from::<T, COLUMNS>(matrix, [p.depth, columns], p.aligned != 0, column)
}

/// What is left of a matrix from a column on, of which tiles have `COLUMNS`.
#[inline(always)]
fn columns_from<T: Element, const COLUMNS: usize>(
    matrix: &MatrixParams,
    [rows, columns]: [u32; 2],
    aligned: bool,
    before: u32,
) -> GlobalRows<T> {
    GlobalRows {
        address: matrix.address + before as u64 * T::BYTES as u64,
        row_bytes: matrix.row_stride * T::BYTES as u64,
        rows,
        cols: columns - before,
        aligned,
        whole: aligned & (columns - before >= COLUMNS as u32),
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
