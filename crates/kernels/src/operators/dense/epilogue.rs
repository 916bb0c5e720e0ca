//! How a product leaves: from registers, with biases, activation and residual.
//!
//! ```text
//! lane of a quad        0        1        2        3
//! fragment 0          z z      z z      z z      z z          columns 0 to 7, two a lane; three more fragments to the right of it
//!
//! lane writes       fragment 0   1        2        3          16 bytes, once the lanes have exchanged theirs
//! ```
//!
//! Of a gated activation, the first half of a warp's fragments are sums for the gate, and the second half those for what it opens: both are in one lane.

use core::marker::PhantomData;

use cuda_std::{copy, shared, thread, warp};
use kernel_spec::families::dense::features::{WIDE_OUT, WIDE_RESIDUAL};
use kernel_spec::families::dense::{DenseParams, MatrixParams};
use kernel_spec::layout::{CHUNK_BYTES, fragment_col};

use crate::operators::dense::activation::activation;
use crate::operators::dense::{Biases, Config, Epilogue, FOUR, Four, Outlet};
use crate::parts::element::Element;
use crate::parts::fragments::Fragments;

/// Biases in global memory, where rows go from registers too.
#[derive(Clone, Copy)]
pub struct Global;

impl Biases for Global {
    #[inline(always)]
    unsafe fn of<T: Element>(&self, p: &DenseParams, columns: (u32, bool), _first: usize, before: u32) -> Four {
        let (col, aligned) = columns;
        // SAFETY: passed on.
        unsafe { Columns::<T>::new(col, aligned).biases(p, before) }
    }
}

impl Outlet for Global {
    #[inline(always)]
    unsafe fn begin(&mut self, _first: usize) {}

    #[inline(always)]
    unsafe fn put<T: Element>(
        &mut self,
        p: &DenseParams,
        own: &Columns<T>,
        row: u32,
        _place: [usize; 2],
        values: Four,
    ) {
        // SAFETY: passed on.
        unsafe { own.store(&p.out, p, row, 0, values) }
    }

    #[inline(always)]
    unsafe fn end(&mut self, _first: usize) {}
}

/// Biases of a 16-bit type in shared memory, at this address, in the order of the columns of the product's tile: loads from global memory for each four
/// fragments, one after the other, take as long as several steps of a product.
#[derive(Clone, Copy)]
pub struct Shared(pub u32);

impl Biases for Shared {
    #[inline(always)]
    unsafe fn of<T: Element>(&self, _p: &DenseParams, _columns: (u32, bool), first: usize, _before: u32) -> Four {
        let mut biases = [[0.0; 2]; FOUR];
        // For the assembler alone, which otherwise begins with the loads of all fragments: they do not fit the registers.
        // SAFETY: converged, as the caller guarantees.
        unsafe { warp::sync() };
        for n in 0..FOUR {
            let column = 8 * (first + n) as u32 + fragment_col(thread::lane(), 0);
            // SAFETY: the caller has written those of all columns of the tile.
            let two = unsafe { shared::load_u32(self.0 + column * 2) };
            let [low, high, ..] = T::widen_chunk([two, 0, 0, 0]);
            biases[n] = [low, high];
        }
        biases
    }
}

/// A layer: the output, in the type of the operands, and `z` where it is kept. The gradient of x may come in f32, and be added to what is there in f32, so that
/// products over parts of the depth add up to one that is rounded once.
pub struct Layer;

impl Epilogue for Layer {
    type Params = DenseParams;

    #[inline(always)]
    fn product(p: &DenseParams) -> &DenseParams {
        p
    }

    #[inline(always)]
    unsafe fn leave<C: Config, T: Element, F: Fragments, const ALIGNED: bool>(
        p: &DenseParams,
        acc: &F,
        biases: impl Biases,
        mut outlet: impl Outlet,
        row: u32,
        col: u32,
    ) {
        let which = C::activation(p);
        let gated = C::is_gated(p);
        let fragments = if gated { F::N / 2 } else { F::N };
        for m in 0..F::M {
            let mut four = #[inline(always)]
            |first: usize| {
                if first >= fragments {
                    return;
                }
                let own = Columns::<T>::new(col + 8 * first as u32, ALIGNED || p.out_aligned != 0);
                // SAFETY: passed on.
                unsafe {
                    let bias = biases.of::<T>(p, own.place(), first, 0);
                    let up_bias =
                        if gated { biases.of::<T>(p, own.place(), first + F::N / 2, p.columns) } else { bias };
                    let wide = C::is_wide(p, WIDE_OUT);
                    if !wide {
                        outlet.begin(first);
                    }
                    for half in 0..2 {
                        let row = row + 16 * m as u32 + 8 * half as u32 + thread::lane() / 4;
                        let z = sums(acc, [m, first, half], &bias);
                        own.store(&p.kept, p, row, 0, z);
                        let mut out = z.map(|two| two.map(|z| activation(which, z)));
                        if gated {
                            let up = sums(acc, [m, first + F::N / 2, half], &up_bias);
                            own.store(&p.kept, p, row, p.columns, up);
                            for n in 0..FOUR {
                                for i in 0..2 {
                                    out[n][i] *= up[n][i];
                                }
                            }
                        }
                        if C::is_wide(p, WIDE_RESIDUAL) {
                            own.of_type::<f32>().add_residual(p, row, &mut out);
                        } else {
                            own.add_residual(p, row, &mut out);
                        }
                        if wide {
                            own.of_type::<f32>().store(&p.out, p, row, 0, out);
                        } else {
                            outlet.put(p, &own, row, [first, half], out);
                        }
                    }
                    if !wide {
                        outlet.end(first);
                    }
                }
            };
            // Two at a time, which outlets tell apart: a loop whose turns differ LLVM leaves rolled.
            for first in (0..F::N).step_by(2 * FOUR) {
                four(first);
                four(first + FOUR);
            }
        }
    }
}

/// The upper (`half = 0`) or lower row of four fragments of a product, with the biases.
#[inline(always)]
pub(super) fn sums<F: Fragments>(acc: &F, [m, first, half]: [usize; 3], bias: &Four) -> Four {
    let mut sums = *bias;
    for n in 0..FOUR {
        for i in 0..2 {
            sums[n][i] += acc.at(m, first + n)[2 * half + i];
        }
    }
    sums
}

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
    fn of_type<U: Element>(&self) -> Columns<U> {
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
    unsafe fn biases(&self, p: &DenseParams, before: u32) -> Four {
        // SAFETY: without biases nothing is read.
        unsafe { self.load(p.bias, before, if p.bias == 0 { 0 } else { p.columns }) }
    }

    /// Adds the residual, if there is one.
    #[inline(always)]
    unsafe fn add_residual(&self, p: &DenseParams, row: u32, out: &mut Four) {
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
