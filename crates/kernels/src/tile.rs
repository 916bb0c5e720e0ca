//! Tiles: a matrix of elements in shared memory, rows of one in global memory, fragments in registers.

use core::marker::PhantomData;

use cuda_std::{copy, math, shared, thread};
use kernel_spec::layout::{CHUNK_BYTES, chunk_offset, fragment_col, fragment_row, panel_bytes, swizzle};

use crate::element::Element;

/// The rows of one head of a `[batch, row, head, dim]` tensor in global memory.
#[derive(Clone, Copy)]
pub struct GlobalRows<T> {
    /// Address of element `[0, 0]`.
    pub address: u64,
    /// Bytes from one row to the next.
    pub row_bytes: u64,
    /// Rows that exist.
    pub rows: u32,
    /// Columns that exist.
    pub cols: u32,
    /// Whether address and row stride are multiples of 16 bytes.
    pub aligned: bool,
    /// The element type.
    pub element: PhantomData<T>,
}

/// `ROWS x COLS` elements in shared memory, swizzled as `kernel_spec::layout` says.
#[derive(Clone, Copy)]
pub struct SharedTile<T, const ROWS: usize, const COLS: usize> {
    address: u32,
    element: PhantomData<T>,
}

impl<T: Element, const ROWS: usize, const COLS: usize> SharedTile<T, ROWS, COLS> {
    /// Bytes of the tile.
    pub const BYTES: u32 = (ROWS * Self::ROW_BYTES) as u32;
    const ROW_BYTES: usize = COLS * T::BYTES;
    const PANEL_BYTES: usize = panel_bytes(Self::ROW_BYTES);
    const PANEL_CHUNKS: usize = Self::PANEL_BYTES / CHUNK_BYTES;
    const PANELS: usize = Self::ROW_BYTES / Self::PANEL_BYTES;
    const CHUNK_ELEMENTS: usize = CHUNK_BYTES / T::BYTES;

    /// The tile at a shared address that is a multiple of 1024.
    #[inline(always)]
    pub fn at(address: u32) -> Self {
        SharedTile { address, element: PhantomData }
    }

    /// One lane's view from row `row` and chunk `chunk` on; see [`Window::at`] for what it can reach.
    #[inline(always)]
    pub fn window(self, row: u32, chunk: u32) -> Window<ROWS, COLS, T> {
        let offset =
            row as usize * Self::PANEL_BYTES + swizzle(row as usize, chunk as usize, Self::PANEL_BYTES) * CHUNK_BYTES;
        Window { address: self.address + offset as u32, element: PhantomData }
    }

    /// Starts loading rows `first_row..first_row + ROWS`; what lies past the source's rows or columns becomes zero.
    ///
    /// # Safety
    /// All `THREADS` threads of the block call it; nobody reads the tile before waiting for the copies and a barrier.
    #[inline(always)]
    pub unsafe fn load<const THREADS: usize>(self, source: &GlobalRows<T>, first_row: u32) {
        const { assert!(ROWS.is_multiple_of(THREADS / Self::PANEL_CHUNKS), "threads load whole rows in whole passes") };
        let rows_per_pass = THREADS / Self::PANEL_CHUNKS;
        // Neighbouring threads take the neighbouring 16-byte chunks of a row; the swizzle of a thread never changes, because a
        // pass is a multiple of 8 rows.
        // Opaque: computed anew for every tile, these addresses stay out of the registers of the loop around it.
        let thread = math::opaque(thread::index());
        let chunk = thread % Self::PANEL_CHUNKS as u32;
        let row = thread / Self::PANEL_CHUNKS as u32;
        let to = self.window(row, chunk).address;
        let from = source.address + (first_row + row) as u64 * source.row_bytes + chunk as u64 * CHUNK_BYTES as u64;
        let pass_bytes = rows_per_pass as u64 * source.row_bytes;
        let whole = source.aligned && source.cols == COLS as u32 && first_row + ROWS as u32 <= source.rows;
        if whole {
            let mut from = from;
            for pass in 0..ROWS / rows_per_pass {
                for panel in 0..Self::PANELS {
                    let to = to + ((panel * ROWS + pass * rows_per_pass) * Self::PANEL_BYTES) as u32;
                    // SAFETY: inside both tiles, 16-byte aligned.
                    unsafe { copy::async_16(to, from + (panel * Self::PANEL_BYTES) as u64) };
                }
                from += pass_bytes;
            }
        } else {
            // Rolled, so that the rare case costs no registers in the loop around it.
            let panels = math::opaque(Self::PANELS as u32);
            for panel in 0..panels {
                let col =
                    panel * (Self::PANEL_CHUNKS * Self::CHUNK_ELEMENTS) as u32 + chunk * Self::CHUNK_ELEMENTS as u32;
                let cols = source.cols.saturating_sub(col).min(Self::CHUNK_ELEMENTS as u32);
                for pass in 0..math::opaque((ROWS / rows_per_pass) as u32) {
                    let to = to + (panel * ROWS as u32 + pass * rows_per_pass as u32) * Self::PANEL_BYTES as u32;
                    let from = from + pass as u64 * pass_bytes + panel as u64 * Self::PANEL_BYTES as u64;
                    let inside = first_row + row + pass * (rows_per_pass as u32) < source.rows;
                    let cols = if inside { cols } else { 0 };
                    if source.aligned {
                        // `cols` is 0 or a whole chunk: head dims are multiples of 8.
                        // SAFETY: aligned; nothing is read when the chunk lies outside.
                        unsafe { copy::async_16_or_zero(to, from, cols * T::BYTES as u32) };
                    } else {
                        for i in 0..math::opaque(Self::CHUNK_ELEMENTS as u32) {
                            // SAFETY: inside the source (`i < cols`) and the tile.
                            unsafe {
                                T::copy_or_zero(to + i * T::BYTES as u32, from + (i * T::BYTES as u32) as u64, i < cols)
                            };
                        }
                    }
                }
            }
        }
    }

    /// Flips the sign of every element of rows `row..row + rows`, by `threads` threads of which this is number `thread`.
    ///
    /// # Safety
    /// Those threads call it, with barriers among them around it; the rows are in the tile.
    #[inline(always)]
    pub unsafe fn negate(self, row: u32, rows: u32, thread: u32, threads: u32) {
        // A panel's rows follow one another, so in any panel they are one run of words.
        let words = rows * (Self::PANEL_BYTES / 4) as u32;
        for panel in 0..math::opaque(Self::PANELS as u32) {
            let first = self.address + (panel * ROWS as u32 + row) * Self::PANEL_BYTES as u32;
            for word in (thread..words).step_by(threads as usize) {
                let address = first + word * 4;
                // SAFETY: inside the tile; every word belongs to one thread.
                unsafe { shared::store_u32(address, shared::load_u32(address) ^ T::SIGN_BITS) };
            }
        }
    }

    /// Rounds fragments to the element type and writes them to rows from `row` and columns from `col` on (multiples of 8).
    ///
    /// # Safety
    /// All threads of the warp call it, converged; the rows and columns lie inside the tile and are this warp's alone.
    #[inline(always)]
    pub unsafe fn write<const M: usize, const N: usize>(self, row: u32, col: u32, fragments: &RegTile<M, N>) {
        let lane = thread::lane();
        for m in 0..M {
            for n in 0..N {
                for half in 0..2 {
                    let row = row + 16 * m as u32 + fragment_row(lane, 2 * half);
                    let byte = (col + 8 * n as u32 + fragment_col(lane, 0)) as usize * T::BYTES;
                    let chunk = chunk_offset(row as usize, byte / CHUNK_BYTES, ROWS, Self::ROW_BYTES);
                    let address = self.address + (chunk + byte % CHUNK_BYTES) as u32;
                    let half = 2 * half as usize;
                    // SAFETY: inside the tile.
                    unsafe { T::store_pair(address, [fragments.0[m][n][half], fragments.0[m][n][half + 1]]) };
                }
            }
        }
    }

    /// Copies the tile to rows `first_row..` of global memory; rows and columns that do not exist there are left out.
    ///
    /// # Safety
    /// All `THREADS` threads of the block call it, after a barrier behind the writes to the tile.
    #[inline(always)]
    pub unsafe fn store<const THREADS: usize>(self, target: &GlobalRows<T>, first_row: u32) {
        let row_chunks = (Self::ROW_BYTES / CHUNK_BYTES) as u32;
        for i in 0..math::opaque(ROWS as u32 * row_chunks / THREADS as u32) {
            let index = i * THREADS as u32 + thread::index();
            let (row, chunk) = (index / row_chunks, index % row_chunks);
            let cols = target.cols.saturating_sub(chunk * Self::CHUNK_ELEMENTS as u32).min(Self::CHUNK_ELEMENTS as u32);
            if first_row + row < target.rows && cols > 0 {
                let from = self.address + chunk_offset(row as usize, chunk as usize, ROWS, Self::ROW_BYTES) as u32;
                let to =
                    target.address + (first_row + row) as u64 * target.row_bytes + chunk as u64 * CHUNK_BYTES as u64;
                // SAFETY: inside the tile and inside the target's rows and columns.
                unsafe {
                    if target.aligned {
                        copy::store_u32x4(to, shared::load_u32x4(from));
                    } else {
                        for e in 0..math::opaque(cols) {
                            T::copy_out(to + (e * T::BYTES as u32) as u64, from + e * T::BYTES as u32);
                        }
                    }
                }
            }
        }
    }
}

/// The part of a shared tile that one lane reads: a base address and compile-time steps from it.
#[derive(Clone, Copy)]
pub struct Window<const ROWS: usize, const COLS: usize, T> {
    address: u32,
    element: PhantomData<T>,
}

impl<const ROWS: usize, const COLS: usize, T: Element> Window<ROWS, COLS, T> {
    /// Moves the window by `bytes` inside a chunk.
    #[inline(always)]
    pub fn inside_chunk(self, bytes: u32) -> Self {
        Window { address: self.address + bytes, element: PhantomData }
    }

    /// Address `row` rows and `chunk` chunks away.
    ///
    /// The swizzle is a XOR with the row's low bits, so steps combine with it by XOR as long as they do not carry: `row` is a
    /// multiple of 8 or the window starts at one, and `chunk` has no bit in common with the window's own.
    #[inline(always)]
    pub fn at(self, row: usize, chunk: usize) -> u32 {
        let panel_bytes = panel_bytes(COLS * T::BYTES);
        let (panel, chunk) = (chunk / (panel_bytes / CHUNK_BYTES), chunk % (panel_bytes / CHUNK_BYTES));
        let turned = (swizzle(row, chunk, panel_bytes) * CHUNK_BYTES) as u32;
        (self.address ^ turned) + ((panel * ROWS + row) * panel_bytes) as u32
    }
}

/// `M x N` accumulator fragments of 16 x 8 elements, spread over the lanes of a warp as `mma.m16n8k16` wants them.
///
/// `0[m][n][i]` is row `16 m + fragment_row(lane, i)`, column `8 n + fragment_col(lane, i)`.
#[derive(Clone, Copy)]
pub struct RegTile<const M: usize, const N: usize>(pub [[[f32; 4]; N]; M]);

/// One value for each row of a [`RegTile`] that a lane holds: rows `16 m + lane / 4` and 8 below.
#[derive(Clone, Copy)]
pub struct RowValues<const M: usize>(pub [[f32; 2]; M]);

impl<const M: usize, const N: usize> RegTile<M, N> {
    /// All zero.
    #[inline(always)]
    pub fn zero() -> Self {
        RegTile([[[0.0; 4]; N]; M])
    }

    /// Multiplies every row by its value.
    #[inline(always)]
    pub fn scale_rows(&mut self, factors: &RowValues<M>) {
        for m in 0..M {
            for n in 0..N {
                for i in 0..4 {
                    self.0[m][n][i] *= factors.0[m][i / 2];
                }
            }
        }
    }

    /// `self += other`.
    #[inline(always)]
    pub fn add(&mut self, other: &Self) {
        for m in 0..M {
            for n in 0..N {
                for i in 0..4 {
                    self.0[m][n][i] += other.0[m][n][i];
                }
            }
        }
    }

    /// Takes `sum`, a sum of rows that weigh `weight` together, into an average: `self += (sum - weight self) inverse_total`.
    #[inline(always)]
    pub fn average_in(&mut self, sum: &Self, weight: &RowValues<M>, inverse_total: &RowValues<M>) {
        for m in 0..M {
            for n in 0..N {
                for i in 0..4 {
                    let average = self.0[m][n][i];
                    let difference = math::fma(-weight.0[m][i / 2], average, sum.0[m][n][i]);
                    self.0[m][n][i] = math::fma(difference, inverse_total.0[m][i / 2], average);
                }
            }
        }
    }
}

impl<const M: usize> RowValues<M> {
    /// The same value for every row.
    #[inline(always)]
    pub fn splat(value: f32) -> Self {
        RowValues([[value; 2]; M])
    }

    /// `f` of every row.
    #[inline(always)]
    pub fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        self.zip(self, |a, _| f(a))
    }

    /// `f` of every row of `self` and `other`.
    #[inline(always)]
    pub fn zip(&self, other: &Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut result = Self::splat(0.0);
        for m in 0..M {
            for half in 0..2 {
                result.0[m][half] = f(self.0[m][half], other.0[m][half]);
            }
        }
        result
    }
}
