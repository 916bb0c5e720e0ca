//! Matrices of elements in shared memory: how rows get in and out, and where a lane finds what it multiplies.

use core::marker::PhantomData;

use cuda_std::{copy, math, shared, sync, thread};
use kernel_spec::layout::{CHUNK_BYTES, chunk_offset, fragment_col, fragment_row, panel_bytes, swizzle};

use crate::parts::element::Element;
use crate::parts::fragments::Fragments;
use crate::parts::rows::{RowSource, RowWalk};

/// The threads that work together on tiles: a thread block, unless it is said otherwise.
pub trait ThreadBlock {
    /// How many there are.
    const THREADS: usize;

    /// Which of them this one is.
    #[inline(always)]
    fn thread() -> u32 {
        thread::index()
    }

    /// Waits for all of them; what they have written to shared memory is then there for all.
    ///
    /// # Safety
    /// All of them call it, converged.
    #[inline(always)]
    unsafe fn meet() {
        // SAFETY: passed on.
        unsafe { sync::block() };
    }
}

/// `ROWS x COLS` elements in shared memory, swizzled as `kernel_spec::layout` says.
#[derive(Clone, Copy)]
pub struct SharedTile<T, const ROWS: usize, const COLS: usize> {
    address: u32,
    element: PhantomData<T>,
}

impl<T: Element, const ROWS: usize, const COLS: usize> SharedTile<T, ROWS, COLS> {
    const ROW_BYTES: usize = COLS * T::BYTES;
    const PANEL_BYTES: usize = panel_bytes(Self::ROW_BYTES);
    const PANEL_CHUNKS: usize = Self::PANEL_BYTES / CHUNK_BYTES;
    const PANELS: usize = Self::ROW_BYTES / Self::PANEL_BYTES;
    const CHUNK_ELEMENTS: usize = CHUNK_BYTES / T::BYTES;

    /// [`SharedMatrix::load`] by a team whose passes are no multiple of 8 rows, so that the swizzle of a thread changes from pass to pass, or
    /// that has more threads than the tile has pieces.
    ///
    /// # Safety
    /// As for [`SharedMatrix::load`].
    #[inline(always)]
    unsafe fn load_small<B: ThreadBlock>(self, source: &impl RowSource, first_row: u32) {
        let (passes, rows_per_pass) = const {
            let rows = B::THREADS / Self::PANEL_CHUNKS;
            assert!(ROWS.is_multiple_of(rows) || ROWS < rows, "threads load whole rows in whole passes");
            (ROWS.div_ceil(rows), rows)
        };
        let thread = math::opaque(B::thread());
        let chunk = thread % Self::PANEL_CHUNKS as u32;
        let row = thread / Self::PANEL_CHUNKS as u32;
        if ROWS < rows_per_pass && row >= ROWS as u32 {
            return;
        }
        let offset = chunk as u64 * CHUNK_BYTES as u64;
        if source.whole() && first_row + ROWS as u32 <= source.rows() {
            let mut from = source.walk_tile(first_row, ROWS as u32, row, rows_per_pass as u32, offset);
            let window = self.window(row, chunk);
            for pass in 0..passes {
                let address = from.address();
                for panel in 0..Self::PANELS {
                    let to = window.at(pass * rows_per_pass, panel * Self::PANEL_CHUNKS);
                    // SAFETY: inside both tiles, 16-byte aligned.
                    unsafe { copy::async_16(to, address + (panel * Self::PANEL_BYTES) as u64) };
                }
                from.advance();
            }
            return;
        }
        let from = source.walk(first_row + row, rows_per_pass as u32, offset);
        // Rolled, as there.
        for pass in 0..math::opaque(passes as u32) {
            let row = row + pass * rows_per_pass as u32;
            let (to, address) = (self.window(row, chunk).address, from.ahead(pass));
            let inside = source.has(first_row + row);
            for panel in 0..math::opaque(Self::PANELS as u32) {
                let to = to + panel * (ROWS * Self::PANEL_BYTES) as u32;
                let col = (panel * Self::PANEL_CHUNKS as u32 + chunk) * Self::CHUNK_ELEMENTS as u32;
                let cols = source.cols().saturating_sub(col).min(Self::CHUNK_ELEMENTS as u32);
                let cols = if inside { cols } else { 0 };
                let from = address + panel as u64 * Self::PANEL_BYTES as u64;
                if source.aligned() {
                    // SAFETY: aligned; nothing is read when the chunk lies outside.
                    unsafe { copy::async_16_or_zero(to, from, cols * T::BYTES as u32) };
                } else {
                    for i in 0..math::opaque(Self::CHUNK_ELEMENTS as u32) {
                        let offset = i * T::BYTES as u32;
                        // SAFETY: inside the source (`i < cols`) and the tile.
                        unsafe { T::copy_or_zero(to + offset, from + offset as u64, i < cols) };
                    }
                }
            }
        }
    }

    /// One lane's view from row `row` and chunk `chunk` on; see [`Window::at`] for what it can reach.
    #[inline(always)]
    pub fn window(self, row: u32, chunk: u32) -> Window<ROWS, COLS, T> {
        let offset =
            row as usize * Self::PANEL_BYTES + swizzle(row as usize, chunk as usize, Self::PANEL_BYTES) * CHUNK_BYTES;
        Window { address: self.address + offset as u32, element: PhantomData }
    }
}

/// A [`SharedTile`] of some size: what code needs of it that is the same for all sizes.
pub trait SharedMatrix: Copy {
    /// Element type.
    type Element: Element;
    /// Rows.
    const ROWS: usize;
    /// Columns.
    const COLS: usize;
    /// Bytes of the tile.
    const BYTES: u32;

    /// The tile at a shared address that is a multiple of 1024.
    fn at(address: u32) -> Self;

    /// Starts loading rows `first_row..first_row + ROWS`; what lies past the source's rows or columns becomes zero.
    ///
    /// # Safety
    /// All `THREADS` threads of the block call it; nobody reads the tile before waiting for the copies and a barrier.
    unsafe fn load<B: ThreadBlock>(self, source: &impl RowSource, first_row: u32);

    /// Flips the sign of every element of rows `row..row + rows`, by `threads` threads of which this is number `thread`.
    ///
    /// # Safety
    /// Those threads call it, with barriers among them around it; the rows are in the tile.
    unsafe fn negate(self, row: u32, rows: u32, thread: u32, threads: u32);

    /// Rounds fragments to the element type and writes them to rows from `row` and columns from `col` on (multiples of 8).
    ///
    /// # Safety
    /// All threads of the warp call it, converged; the rows and columns lie inside the tile and are this warp's alone.
    unsafe fn write<F: Fragments>(self, row: u32, col: u32, fragments: &F);

    /// [`Self::write`] for fragments of every `parts`th pair of 8 columns, from number `part` on.
    ///
    /// # Safety
    /// As for [`Self::write`].
    unsafe fn write_part<F: Fragments>(self, row: u32, part: u32, parts: u32, fragments: &F);

    /// Copies the tile to rows `first_row..` of global memory; rows and columns that do not exist there are left out.
    ///
    /// # Safety
    /// All `THREADS` threads of the block call it, after a barrier behind the writes to the tile.
    unsafe fn store<B: ThreadBlock>(self, target: &impl RowSource, first_row: u32);
}

impl<T: Element, const ROWS: usize, const COLS: usize> SharedMatrix for SharedTile<T, ROWS, COLS> {
    type Element = T;
    const ROWS: usize = ROWS;
    const COLS: usize = COLS;
    const BYTES: u32 = (ROWS * Self::ROW_BYTES) as u32;

    #[inline(always)]
    fn at(address: u32) -> Self {
        SharedTile { address, element: PhantomData }
    }

    #[inline(always)]
    unsafe fn load<B: ThreadBlock>(self, source: &impl RowSource, first_row: u32) {
        let is_small = const {
            let rows = B::THREADS / Self::PANEL_CHUNKS;
            assert!(ROWS.is_multiple_of(rows) || ROWS < rows, "threads load whole rows in whole passes");
            !rows.is_multiple_of(8) || ROWS < rows
        };
        if is_small {
            // SAFETY: passed on.
            return unsafe { self.load_small::<B>(source, first_row) };
        }
        let rows_per_pass = B::THREADS / Self::PANEL_CHUNKS;
        // Neighbouring threads take the neighbouring 16-byte chunks of a row; the swizzle of a thread never changes, because a
        // pass is a multiple of 8 rows.
        // Opaque: computed anew for every tile, these addresses stay out of the registers of the loop around it.
        let thread = math::opaque(B::thread());
        let chunk = thread % Self::PANEL_CHUNKS as u32;
        let row = thread / Self::PANEL_CHUNKS as u32;
        let to = self.window(row, chunk).address;
        let from = source.walk(first_row + row, rows_per_pass as u32, chunk as u64 * CHUNK_BYTES as u64);
        let whole = source.whole() && first_row + ROWS as u32 <= source.rows();
        if whole {
            let offset = chunk as u64 * CHUNK_BYTES as u64;
            let mut from = source.walk_tile(first_row, ROWS as u32, row, rows_per_pass as u32, offset);
            for pass in 0..ROWS / rows_per_pass {
                let row = from.address();
                for panel in 0..Self::PANELS {
                    let to = to + ((panel * ROWS + pass * rows_per_pass) * Self::PANEL_BYTES) as u32;
                    // SAFETY: inside both tiles, 16-byte aligned.
                    unsafe { copy::async_16(to, row + (panel * Self::PANEL_BYTES) as u64) };
                }
                from.advance();
            }
        } else {
            // Rolled, so that the rare case costs no registers in the loop around it.
            let panels = math::opaque(Self::PANELS as u32);
            for panel in 0..panels {
                let col =
                    panel * (Self::PANEL_CHUNKS * Self::CHUNK_ELEMENTS) as u32 + chunk * Self::CHUNK_ELEMENTS as u32;
                let cols = source.cols().saturating_sub(col).min(Self::CHUNK_ELEMENTS as u32);
                for pass in 0..math::opaque((ROWS / rows_per_pass) as u32) {
                    let to = to + (panel * ROWS as u32 + pass * rows_per_pass as u32) * Self::PANEL_BYTES as u32;
                    let from = from.ahead(pass) + panel as u64 * Self::PANEL_BYTES as u64;
                    let inside = source.has(first_row + row + pass * (rows_per_pass as u32));
                    let cols = if inside { cols } else { 0 };
                    if source.aligned() {
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

    #[inline(always)]
    unsafe fn negate(self, row: u32, rows: u32, thread: u32, threads: u32) {
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

    #[inline(always)]
    unsafe fn write<F: Fragments>(self, row: u32, col: u32, fragments: &F) {
        let lane = thread::lane();
        for m in 0..F::M {
            for n in 0..F::N {
                for half in 0..2 {
                    let row = row + 16 * m as u32 + fragment_row(lane, 2 * half);
                    let byte = (col + 8 * n as u32 + fragment_col(lane, 0)) as usize * T::BYTES;
                    let chunk = chunk_offset(row as usize, byte / CHUNK_BYTES, ROWS, Self::ROW_BYTES);
                    let address = self.address + (chunk + byte % CHUNK_BYTES) as u32;
                    let half = 2 * half as usize;
                    // SAFETY: inside the tile.
                    unsafe { T::store_pair(address, [fragments.at(m, n)[half], fragments.at(m, n)[half + 1]]) };
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn write_part<F: Fragments>(self, row: u32, part: u32, parts: u32, fragments: &F) {
        let lane = thread::lane();
        for m in 0..F::M {
            for n in 0..F::N {
                let col = 16 * (n as u32 / 2 * parts + part) + 8 * (n as u32 % 2);
                for half in 0..2 {
                    let row = row + 16 * m as u32 + fragment_row(lane, 2 * half);
                    let byte = (col + fragment_col(lane, 0)) as usize * T::BYTES;
                    let chunk = chunk_offset(row as usize, byte / CHUNK_BYTES, ROWS, Self::ROW_BYTES);
                    let address = self.address + (chunk + byte % CHUNK_BYTES) as u32;
                    let half = 2 * half as usize;
                    // SAFETY: inside the tile.
                    unsafe { T::store_pair(address, [fragments.at(m, n)[half], fragments.at(m, n)[half + 1]]) };
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store<B: ThreadBlock>(self, target: &impl RowSource, first_row: u32) {
        let (chunks, are_whole_passes) = const {
            let chunks = ROWS * Self::ROW_BYTES / CHUNK_BYTES;
            (chunks as u32, chunks.is_multiple_of(B::THREADS))
        };
        let row_chunks = (Self::ROW_BYTES / CHUNK_BYTES) as u32;
        for i in 0..math::opaque(chunks.div_ceil(B::THREADS as u32)) {
            let index = i * B::THREADS as u32 + B::thread();
            if !are_whole_passes && index >= chunks {
                continue;
            }
            let (row, chunk) = (index / row_chunks, index % row_chunks);
            let col = chunk * Self::CHUNK_ELEMENTS as u32;
            let cols = target.cols().saturating_sub(col).min(Self::CHUNK_ELEMENTS as u32);
            if target.has(first_row + row) && cols > 0 {
                let from = self.address + chunk_offset(row as usize, chunk as usize, ROWS, Self::ROW_BYTES) as u32;
                let to = target.walk(first_row + row, 1, 0).address() + chunk as u64 * CHUNK_BYTES as u64;
                // SAFETY: inside the tile and inside the target's rows and columns.
                unsafe {
                    if target.aligned() {
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
