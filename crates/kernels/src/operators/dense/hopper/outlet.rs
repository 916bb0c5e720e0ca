//! How the output leaves Hopper's kernel: by way of shared memory, from where the copy engine takes it, so that a warp multiplies again while its tile is still
//! on its way.
//!
//! ```text
//!              16 rows of 64 columns, twice                      a piece:    8 fragments, each two matrices of 8 x 8 (stmatrix)
//! warp 0       [ piece 0 ] [ piece 1 ]                           waits:      until the copy engine has read what the place held
//! warp 1       [         ] [         ]                           leaves:     by one copy, once all lanes have written
//!  ..
//! ```
//!
//! Each warp has places of its own, so that no warp waits for another one. Columns of a tile behind its last whole piece go from registers.

use core::marker::PhantomData;

use cuda_std::{mma, shared, thread, tma, warp};
use kernel_spec::families::dense::{DenseParams, OUT_PIECE_BYTES, OUT_PIECE_ROWS, OUT_PIECES};
use kernel_spec::layout::{CHUNK_BYTES, PANEL_BYTES, PANEL_COLS, swizzle};

use crate::operators::dense::Outlet;
use crate::operators::dense::columns::{Columns, FOUR};
use crate::operators::dense::hopper::config::Config;
use crate::parts::element::Element;

/// Columns of a fragment.
const FRAGMENT: usize = 8;

/// Fragments of a piece.
const PIECE: usize = PANEL_COLS / FRAGMENT;

/// Whether fragment `first` of the output is in a whole piece; those that are not go from registers.
const fn is_in_piece<C: Config>(first: usize) -> bool {
    first < C::ROW.tile.columns as usize / PANEL_COLS * PIECE
}

/// Rows of the matrices that stmatrix stores, one for each of eight lanes.
const MATRIX_ROWS: u32 = 8;

/// The places of a warp, and where its rows go.
pub struct Pieces<C> {
    /// Where the lane stores its row of the matrices of a piece's first fragments.
    lane: u32,
    /// The next place, as the distance from the first.
    place: u32,
    /// Address of the map of the output.
    map: u64,
    /// Column and row of the tile's part that is this warp's.
    at: [u32; 2],
    config: PhantomData<C>,
}

impl<C: Config> Pieces<C> {
    /// Those of warp `warp` of all that multiply.
    #[inline(always)]
    pub fn new(warp: u32, map: u64) -> Pieces<C> {
        const { assert!(OUT_PIECES == 2, "one is written while the other is read") };
        let first = shared::dynamic() + C::MEMORY.out + warp * const { OUT_PIECES * OUT_PIECE_BYTES };
        let (row, matrix) = (thread::lane() % MATRIX_ROWS, thread::lane() / MATRIX_ROWS);
        let chunk = swizzle(row as usize, matrix as usize, PANEL_BYTES) as u32;
        let lane = first + row * PANEL_BYTES as u32 + chunk * CHUNK_BYTES as u32;
        Pieces { lane, place: 0, map, at: [0; 2], config: PhantomData }
    }

    /// Of the tile whose part starts at this row and column.
    #[inline(always)]
    pub fn at(&mut self, row: u32, col: u32) {
        self.at = [col, row];
    }

    /// Waits until the copy engine has read all places.
    #[inline(always)]
    pub fn finish(&self) {
        if const { C::ROW.pass.has_output() } {
            tma::wait_group_read::<0>();
        }
    }
}

impl<C: Config> Outlet for &mut Pieces<C> {
    #[inline(always)]
    unsafe fn begin(&mut self, first: usize) {
        if first.is_multiple_of(PIECE) && is_in_piece::<C>(first) {
            // The copy before the last one was from here. One lane has started all; of the others, no copy is on its way.
            tma::wait_group_read::<1>();
            // SAFETY: converged, as the caller guarantees.
            unsafe { warp::sync() };
        }
    }

    #[inline(always)]
    unsafe fn put<T: Element>(
        &mut self,
        p: &DenseParams,
        own: &Columns<T>,
        row: u32,
        [first, half]: [usize; 2],
        values: [[f32; 2]; FOUR],
    ) {
        const { assert!(T::BYTES == 2 && PIECE == 2 * FOUR, "matrices of 16 bits, four at a time") };
        if !is_in_piece::<C>(first) {
            // SAFETY: passed on.
            unsafe { own.store(&p.out, p, row, 0, values) };
            return;
        }
        let words = values.map(|[low, high]| T::round_chunk([low, high, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])[0]);
        // The second four fragments have the other half of a row's chunks: whatever the row, its pattern leaves that bit alone.
        let chunks = if first.is_multiple_of(PIECE) { 0 } else { (FOUR * CHUNK_BYTES) as u32 };
        let rows = half as u32 * const { MATRIX_ROWS * PANEL_BYTES as u32 };
        // SAFETY: the place is the warp's, and each row of a matrix one lane's.
        unsafe { mma::store_matrix_x4(((self.lane + self.place) ^ chunks) + rows, words) };
    }

    #[inline(always)]
    unsafe fn end(&mut self, first: usize) {
        if !(first + FOUR).is_multiple_of(PIECE) || !is_in_piece::<C>(first) {
            return;
        }
        tma::fence();
        let start = self.lane + self.place;
        let [col, row] = self.at;
        let at = [col + (FRAGMENT * (first + FOUR - PIECE)) as u32, row, 0, 0];
        // SAFETY: converged; all lanes have written, and the place is written again once it is read. The first lane's place is the piece's.
        unsafe {
            warp::sync();
            tma::store_if(self.map, at, start, thread::lane() == 0);
        }
        tma::commit_group();
        self.place ^= OUT_PIECE_BYTES;
    }
}

const _: () = assert!(OUT_PIECE_ROWS == 2 * MATRIX_ROWS, "both halves of a fragment");
