//! The products of attention for each element type, over tiles: `q k^T` and `p v`.
//!
//! 16-bit types use the tensor cores (`ldmatrix`, `mma.sync`). `f32` uses the ordinary float units, so that no bit of the inputs
//! is dropped, but keeps the accumulators in the same lanes; everything around the products is therefore written once.

use cuda_std::{math, thread};

use crate::parts::element::Element;
use crate::parts::fragments::RegTile;
use crate::parts::shared_tile::SharedTile;

mod float;
mod tensor_core;

/// An element type that attention can be computed in.
pub trait Products: Element {
    /// Probabilities of this type, in the lanes of their [`RegTile`].
    type Probs<const M: usize, const K: usize>: Copy;

    /// `acc += a b^T` for 16 M rows of `a` from `a_row` on and 8 N rows of `b` from `b_row` on.
    ///
    /// # Safety
    /// All threads of the warp, converged; both tiles are complete and behind a barrier.
    unsafe fn mul_transposed<const M: usize, const N: usize, const AR: usize, const BR: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<Self, AR, D>,
        a_row: u32,
        b: SharedTile<Self, BR, D>,
        b_row: u32,
    );

    /// Rounds probabilities to the element type.
    fn round_probs<const M: usize, const K: usize>(probs: &RegTile<M, K>) -> Self::Probs<M, K>;

    /// `acc += p v` for probabilities in registers and 8 K rows of `v` from `v_row` on.
    ///
    /// # Safety
    /// As for [`Products::mul_transposed`].
    unsafe fn mul_probs<const M: usize, const K: usize, const N: usize, const BR: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        probs: &Self::Probs<M, K>,
        v: SharedTile<Self, BR, D>,
        v_row: u32,
    );

    /// `acc += a v` for 16 M rows of `a` from `a_row` on.
    ///
    /// # Safety
    /// As for [`Products::mul_transposed`].
    unsafe fn mul<const M: usize, const N: usize, const AR: usize, const K: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<Self, AR, K>,
        a_row: u32,
        v: SharedTile<Self, K, D>,
    );

    /// [`Products::mul`] for some columns of `v`: of its `D / 16` pairs of 8 columns, number `part` and every `D / 8 N`th from there on,
    /// whose fragments `acc` holds one after the other.
    ///
    /// A step from one to the next changes no bit of a chunk's number that `part` does: a lane's addresses are one address and constants.
    ///
    /// # Safety
    /// As for [`Products::mul_transposed`].
    unsafe fn mul_part<const M: usize, const N: usize, const AR: usize, const K: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<Self, AR, K>,
        a_row: u32,
        v: SharedTile<Self, K, D>,
        part: u32,
    );

    /// `acc += a^T b` for 16 M columns of `a` from `a_col` on, a multiple of 16 M.
    ///
    /// # Safety
    /// As for [`Products::mul_transposed`].
    unsafe fn transposed_mul<const M: usize, const N: usize, const K: usize, const AC: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<Self, K, AC>,
        a_col: u32,
        b: SharedTile<Self, K, D>,
    );
}

/// Accumulators that hold `a b^T` of tiles `A` and `B`.
pub trait MulTransposed<A, B> {
    /// `self += a b^T`, see [`Products::mul_transposed`].
    ///
    /// # Safety
    /// As for [`Products::mul_transposed`].
    unsafe fn mul_transposed(&mut self, a: A, a_row: u32, b: B, b_row: u32);
}

impl<T: Products, const M: usize, const N: usize, const AR: usize, const BR: usize, const D: usize>
    MulTransposed<SharedTile<T, AR, D>, SharedTile<T, BR, D>> for RegTile<M, N>
{
    #[inline(always)]
    unsafe fn mul_transposed(&mut self, a: SharedTile<T, AR, D>, a_row: u32, b: SharedTile<T, BR, D>, b_row: u32) {
        // SAFETY: passed on.
        unsafe { T::mul_transposed(self, a, a_row, b, b_row) }
    }
}

/// Accumulators that hold `a v` of tiles `A` and `V`.
pub trait Mul<A, V> {
    /// `self += a v`, see [`Products::mul`].
    ///
    /// # Safety
    /// As for [`Products::mul_transposed`].
    unsafe fn mul(&mut self, a: A, a_row: u32, v: V);
}

impl<T: Products, const M: usize, const N: usize, const AR: usize, const K: usize, const D: usize>
    Mul<SharedTile<T, AR, K>, SharedTile<T, K, D>> for RegTile<M, N>
{
    #[inline(always)]
    unsafe fn mul(&mut self, a: SharedTile<T, AR, K>, a_row: u32, v: SharedTile<T, K, D>) {
        // SAFETY: passed on.
        unsafe { T::mul(self, a, a_row, v) }
    }
}

/// Accumulators that hold `a^T b` of tiles `A` and `B`.
pub trait TransposedMul<A, B> {
    /// `self += a^T b`, see [`Products::transposed_mul`].
    ///
    /// # Safety
    /// As for [`Products::mul_transposed`].
    unsafe fn transposed_mul(&mut self, a: A, a_col: u32, b: B);
}

impl<T: Products, const M: usize, const N: usize, const K: usize, const AC: usize, const D: usize>
    TransposedMul<SharedTile<T, K, AC>, SharedTile<T, K, D>> for RegTile<M, N>
{
    #[inline(always)]
    unsafe fn transposed_mul(&mut self, a: SharedTile<T, K, AC>, a_col: u32, b: SharedTile<T, K, D>) {
        // SAFETY: passed on.
        unsafe { T::transposed_mul(self, a, a_col, b) }
    }
}

/// Probabilities that are rounded to an element type, in the lanes of the [`RegTile`] that they come from.
#[derive(Clone, Copy)]
pub struct Probs<T: Products, const M: usize, const K: usize>(T::Probs<M, K>);

/// What `S`, probabilities in `f32`, are rounded to.
pub trait Rounded<S> {
    /// Rounds them.
    fn round(probs: &S) -> Self;
}

impl<T: Products, const M: usize, const K: usize> Rounded<RegTile<M, K>> for Probs<T, M, K> {
    #[inline(always)]
    fn round(probs: &RegTile<M, K>) -> Self {
        Probs(T::round_probs(probs))
    }
}

/// Accumulators that hold `p v` of probabilities `P` in registers and tiles `V`.
pub trait MulProbs<P, V> {
    /// `self += p v`, see [`Products::mul_probs`].
    ///
    /// # Safety
    /// As for [`Products::mul_transposed`].
    unsafe fn mul_probs(&mut self, probs: &P, v: V, v_row: u32);
}

impl<T: Products, const M: usize, const K: usize, const N: usize, const BR: usize, const D: usize>
    MulProbs<Probs<T, M, K>, SharedTile<T, BR, D>> for RegTile<M, N>
{
    #[inline(always)]
    unsafe fn mul_probs(&mut self, probs: &Probs<T, M, K>, v: SharedTile<T, BR, D>, v_row: u32) {
        // SAFETY: passed on.
        unsafe { T::mul_probs(self, &probs.0, v, v_row) }
    }
}

/// The lane, opaque to the optimiser: what a product derives from it is computed anew at every step (a dozen integer
/// instructions) and holds no registers in between. v2 at head dim 128 spills otherwise.
#[inline(always)]
fn fresh_lane() -> u32 {
    math::opaque(thread::lane())
}
