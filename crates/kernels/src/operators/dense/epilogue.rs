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

use cuda_std::{shared, thread, warp};
use kernel_spec::families::dense::DenseParams;
use kernel_spec::families::dense::features::{WIDE_OUT, WIDE_RESIDUAL};
use kernel_spec::layout::fragment_col;

use crate::operators::dense::activation::activation;
use crate::operators::dense::columns::{Columns, FOUR, Four};
use crate::operators::dense::{Biases, Config, Epilogue, Outlet};
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
