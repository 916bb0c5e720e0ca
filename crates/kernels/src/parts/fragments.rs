//! Matrices in registers, spread over the lanes of a warp as the tensor cores want them.
//!
//! `kernel_spec::layout` has a picture of which elements a lane holds.

use cuda_std::math;

use crate::parts::element::Element;

/// `M x N` accumulator fragments of 16 x 8 elements.
///
/// `0[m][n][i]` is row `16 m + fragment_row(lane, i)`, column `8 n + fragment_col(lane, i)`.
#[derive(Clone, Copy)]
pub struct RegTile<const M: usize, const N: usize>(pub [[[f32; 4]; N]; M]);

/// One value for each row of a [`RegTile`] that a lane holds: rows `16 m + lane / 4` and 8 below.
#[derive(Clone, Copy)]
pub struct RowValues<const M: usize>(pub [[f32; 2]; M]);

/// A [`RegTile`] of some size: what code needs of it that is the same for all sizes.
pub trait Fragments: Copy {
    /// Fragments of 16 rows.
    const M: usize;
    /// Fragments of 8 columns.
    const N: usize;
    /// One value for each row.
    type Rows: PerRow;

    /// All zero.
    fn zero() -> Self;

    /// The elements of one fragment that this lane holds.
    fn at(&self, m: usize, n: usize) -> &[f32; 4];

    /// The same, to be changed.
    fn at_mut(&mut self, m: usize, n: usize) -> &mut [f32; 4];

    /// Multiplies every row by its value.
    #[inline(always)]
    fn scale_rows(&mut self, factors: &Self::Rows) {
        for m in 0..Self::M {
            for n in 0..Self::N {
                for i in 0..4 {
                    self.at_mut(m, n)[i] *= factors.at(m, i / 2);
                }
            }
        }
    }

    /// Whether any number of this lane becomes no finite element when it is rounded.
    #[inline(always)]
    fn any_not_finite<Out: Element>(&self) -> bool {
        let (mut any, mut zero) = (false, 0.0);
        for m in 0..Self::M {
            for n in 0..Self::N {
                for i in 0..4 {
                    if const { Out::TOO_LARGE == f32::INFINITY } {
                        // A product with 0 is 0 or NaN, and NaN stays. At 256 dims the comparison spills.
                        zero = math::fma(self.at(m, n)[i], 0.0, zero);
                    } else {
                        any |= !Out::rounds_to_number(self.at(m, n)[i]);
                    }
                }
            }
        }
        any | zero.is_nan()
    }

    /// `self += other`.
    #[inline(always)]
    fn add(&mut self, other: &Self) {
        for m in 0..Self::M {
            for n in 0..Self::N {
                for i in 0..4 {
                    self.at_mut(m, n)[i] += other.at(m, n)[i];
                }
            }
        }
    }

    /// Takes `sum`, a sum of rows that weigh `weight` together, into an average: `self += (sum - weight self) inverse_total`.
    #[inline(always)]
    fn average_in(&mut self, sum: &Self, weight: &Self::Rows, inverse_total: &Self::Rows) {
        for m in 0..Self::M {
            for n in 0..Self::N {
                for i in 0..4 {
                    let average = self.at(m, n)[i];
                    let difference = math::fma(-weight.at(m, i / 2), average, sum.at(m, n)[i]);
                    self.at_mut(m, n)[i] = math::fma(difference, inverse_total.at(m, i / 2), average);
                }
            }
        }
    }
}

impl<const M: usize, const N: usize> Fragments for RegTile<M, N> {
    const M: usize = M;
    const N: usize = N;
    type Rows = RowValues<M>;

    #[inline(always)]
    fn zero() -> Self {
        RegTile([[[0.0; 4]; N]; M])
    }

    #[inline(always)]
    fn at(&self, m: usize, n: usize) -> &[f32; 4] {
        &self.0[m][n]
    }

    #[inline(always)]
    fn at_mut(&mut self, m: usize, n: usize) -> &mut [f32; 4] {
        &mut self.0[m][n]
    }
}

/// [`RowValues`] of some number of rows.
pub trait PerRow: Copy {
    /// Fragments of 16 rows.
    const M: usize;

    /// The same value for every row.
    fn splat(value: f32) -> Self;

    /// The value of the lane's upper (`half = 0`) or lower row of a fragment.
    fn at(&self, m: usize, half: usize) -> f32;

    /// The same, to be changed.
    fn at_mut(&mut self, m: usize, half: usize) -> &mut f32;

    /// `f` of every row.
    #[inline(always)]
    fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        self.zip(self, |a, _| f(a))
    }

    /// `f` of every row of `self` and `other`.
    #[inline(always)]
    fn zip(&self, other: &Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut result = Self::splat(0.0);
        for m in 0..Self::M {
            for half in 0..2 {
                *result.at_mut(m, half) = f(self.at(m, half), other.at(m, half));
            }
        }
        result
    }
}

impl<const M: usize> PerRow for RowValues<M> {
    const M: usize = M;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        RowValues([[value; 2]; M])
    }

    #[inline(always)]
    fn at(&self, m: usize, half: usize) -> f32 {
        self.0[m][half]
    }

    #[inline(always)]
    fn at_mut(&mut self, m: usize, half: usize) -> &mut f32 {
        &mut self.0[m][half]
    }
}
