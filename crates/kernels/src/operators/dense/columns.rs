//! The columns of the output that a lane has, and how they are read and written.

use core::marker::PhantomData;

use cuda_std::{copy, thread, warp};
use kernel_spec::families::dense::{DenseParams, MatrixParams};
use kernel_spec::layout::{CHUNK_BYTES, fragment_col};

use crate::parts::element::Element;

/// Fragments whose lanes exchange what they write.
pub const FOUR: usize = 4;

/// A lane's numbers of a row, of four neighbouring fragments.
pub type Four = [[f32; 2]; FOUR];

/// The columns of four neighbouring fragments.
pub struct Columns<T> {
    /// The first.
    pub(super) col: u32,
    /// Whether they move in whole pieces.
    aligned: bool,
    element: PhantomData<T>,
}

impl<T: Element> Columns<T> {
    /// Those from column `col` on; `aligned`: they move in whole pieces.
    #[inline(always)]
    pub(super) fn new(col: u32, aligned: bool) -> Columns<T> {
        Columns { col, aligned, element: PhantomData }
    }

    /// The first, and whether they move in whole pieces.
    #[inline(always)]
    pub(super) fn place(&self) -> (u32, bool) {
        (self.col, self.aligned)
    }

    /// The same of a matrix of another type.
    #[inline(always)]
    pub(super) fn of_type<U: Element>(&self) -> Columns<U> {
        Columns::new(self.col, self.aligned)
    }

    /// A lane's first column of fragment `n`.
    #[inline(always)]
    pub(super) fn of_lane(&self, n: usize) -> u32 {
        self.col + 8 * n as u32 + fragment_col(thread::lane(), 0)
    }

    /// A lane's two numbers of each fragment of a row at `address`, and zeros where none are.
    #[inline(always)]
    unsafe fn load(&self, address: u64, before: u32, bound: u32) -> Four {
        let mut values = [[0.0; 2]; FOUR];
        for n in 0..FOUR {
            let col = self.of_lane(n);
            let at = address + (before + col) as u64 * T::BYTES as u64;
            // SAFETY: nothing is read behind the bound.
            values[n] = unsafe {
                if self.aligned {
                    T::load_two_within(at, col, bound)
                } else {
                    [T::load_within(at, col, bound), T::load_within(at + T::BYTES as u64, col + 1, bound)]
                }
            };
        }
        values
    }

    /// Biases, `before` columns further on; zeros without.
    #[inline(always)]
    pub(super) unsafe fn biases(&self, p: &DenseParams, before: u32) -> Four {
        // SAFETY: without biases nothing is read.
        unsafe { self.load(p.bias, before, if p.bias == 0 { 0 } else { p.columns }) }
    }

    /// Adds the residual, if there is one.
    #[inline(always)]
    pub(super) unsafe fn add_residual(&self, p: &DenseParams, row: u32, out: &mut Four) {
        if p.residual.address == 0 {
            return;
        }
        let bound = if row < p.rows { p.columns } else { 0 };
        // SAFETY: the row exists, or nothing of it is read.
        let residual = unsafe { self.load(row_of::<T>(&p.residual, row), 0, bound) };
        for n in 0..FOUR {
            for i in 0..2 {
                out[n][i] += residual[n][i];
            }
        }
    }

    /// Rounds and writes a row of four fragments, `before` columns further on, where there is such a matrix.
    ///
    /// # Safety
    /// All threads of the warp, converged; no other warp writes there.
    #[inline(always)]
    pub(super) unsafe fn store(&self, to: &MatrixParams, p: &DenseParams, row: u32, before: u32, values: Four) {
        if to.address == 0 {
            return;
        }
        let bound = if row < p.rows { p.columns } else { 0 };
        let start = row_of::<T>(to, row) + before as u64 * T::BYTES as u64;
        // SAFETY: the row exists, or nothing of it is written.
        unsafe {
            if !self.aligned {
                for n in 0..FOUR {
                    for i in 0..2 {
                        let col = self.of_lane(n) + i as u32;
                        T::store_within(start + col as u64 * T::BYTES as u64, values[n][i], col, bound);
                    }
                }
            } else if T::BYTES == 2 {
                let words = values.map(|two| T::round_chunk([two[0], two[1], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])[0]);
                let chunk = warp::quad_transpose(words);
                let col = self.col + 8 * (thread::lane() % 4);
                copy::store_u32x4_within(start + (col as usize / 8 * CHUNK_BYTES) as u64, chunk, col, bound);
            } else {
                for n in 0..FOUR {
                    let col = self.of_lane(n);
                    copy::store_f32x2_if(start + col as u64 * 4, values[n], col < bound);
                }
            }
        }
    }
}

/// The address of a row. Of one that does not exist it is never read.
#[inline(always)]
fn row_of<T: Element>(matrix: &MatrixParams, row: u32) -> u64 {
    matrix.address + row as u64 * matrix.row_stride * T::BYTES as u64
}
