//! The products of attention for a warpgroup of Hopper (wgmma), over tiles in panels of 64 columns (128 bytes).
//!
//! All of them only start: see `cuda_std::wgmma` for the order of fence, commit and wait.

use cuda_std::wgmma::{self, Descriptor, WarpgroupMma};
use kernel_spec::layout::{PANEL_BYTES, PANEL_COLS};

use crate::parts::element::TensorCore;
use crate::parts::fragments::{Fragments, RegTile};
use crate::parts::shared_tile::SharedMatrix;

/// Threads of a warpgroup.
pub const WARPGROUP: u32 = 128;

/// Elements of the shared axis in one product.
const WGMMA_K: usize = 16;

/// Bytes of them in a 16-bit type.
const WGMMA_K_BYTES: usize = 2 * WGMMA_K;

/// Products along the shared axis in one panel row.
const PANEL_STEPS: usize = PANEL_COLS / WGMMA_K;

/// The tiles that a warpgroup multiplies.
pub trait WarpgroupTiles {
    /// Element type.
    type Operand: TensorCore;
    /// Queries, of which a warpgroup takes 64 rows.
    type Q: SharedMatrix;
    /// Keys.
    type K: SharedMatrix;
    /// Values.
    type V: SharedMatrix;
    /// 64 rows of scores, a column for every key.
    type Scores: Accumulator<Self::Operand>;
    /// The same rows of probabilities.
    type Probs: Operands<Self::Scores, Self::Operand>;
    /// The same rows of the output.
    type Acc: Accumulator<Self::Operand, Rows = <Self::Scores as Fragments>::Rows>;
    /// Columns of queries and keys that are multiplied; the tiles have whole panels.
    const DIM_QK: usize;
}

/// Accumulators of products of `T`, of 64 rows.
pub trait Accumulator<T>: Fragments {
    /// See [`WarpgroupMma::multiply_transposed`].
    ///
    /// # Safety
    /// As there.
    unsafe fn multiply_transposed(&mut self, a: Descriptor, b: Descriptor, accumulate: bool);

    /// See [`WarpgroupMma::multiply`].
    ///
    /// # Safety
    /// As there.
    unsafe fn multiply(&mut self, a: &[u32; 4], b: Descriptor);
}

impl<T: WarpgroupMma<N>, const N: usize> Accumulator<T> for RegTile<1, N> {
    #[inline(always)]
    unsafe fn multiply_transposed(&mut self, a: Descriptor, b: Descriptor, accumulate: bool) {
        // SAFETY: passed on.
        unsafe { T::multiply_transposed(&mut self.0[0], a, b, accumulate) }
    }

    #[inline(always)]
    unsafe fn multiply(&mut self, a: &[u32; 4], b: Descriptor) {
        // SAFETY: passed on.
        unsafe { T::multiply(&mut self.0[0], a, b) }
    }
}

/// Accumulators `S`, rounded to `T` and packed as operands of the next product: two neighbouring fragments are one operand, in the same
/// lanes.
pub trait Operands<S, T>: Copy {
    /// Products that they are operands of.
    const STEPS: usize;

    /// Rounds and packs.
    fn round(accumulators: &S) -> Self;

    /// The operand of one product.
    fn step(&self, step: usize) -> &[u32; 4];
}

impl<T: TensorCore, const N: usize, const P: usize> Operands<RegTile<1, N>, T> for [[u32; 4]; P] {
    const STEPS: usize = P;

    #[inline(always)]
    fn round(accumulators: &RegTile<1, N>) -> Self {
        const { assert!(N == 2 * P, "an operand is two fragments") };
        let mut packed = [[0; 4]; P];
        for (i, packed) in packed.iter_mut().enumerate() {
            let (left, right) = (accumulators.0[0][2 * i], accumulators.0[0][2 * i + 1]);
            *packed = [
                T::pack(left[0], left[1]),
                T::pack(left[2], left[3]),
                T::pack(right[0], right[1]),
                T::pack(right[2], right[3]),
            ];
        }
        packed
    }

    #[inline(always)]
    fn step(&self, step: usize) -> &[u32; 4] {
        &self[step]
    }
}

/// Starts `acc = q k^T`: 64 rows of the query tile from shared address `q` on, all rows of the key tile at `k`.
///
/// # Safety
/// All threads of the warpgroup, converged, after a fence; both operands are complete.
#[inline(always)]
pub unsafe fn start_scores<C: WarpgroupTiles>(acc: &mut C::Scores, q: u32, k: u32) {
    let (first_q, first_k) = (Descriptor::rows(q), Descriptor::rows(k));
    for step in 0..C::DIM_QK / WGMMA_K {
        let (panel, inside) = (step / PANEL_STEPS, step % PANEL_STEPS * WGMMA_K_BYTES);
        let q_bytes = (panel * C::Q::ROWS * PANEL_BYTES + inside) as u32;
        let k_bytes = (panel * C::K::ROWS * PANEL_BYTES + inside) as u32;
        // Whole descriptors of `q` up to 128 columns: ptxas 13.0 then interleaves the softmax a little better (H200, 128 dims: 0.2 to 0.9 %).
        let q = if C::DIM_QK <= 128 { Descriptor::rows(q + q_bytes) } else { first_q.advanced(q_bytes) };
        let k = first_k.advanced(k_bytes);
        // The first product overwrites: the accumulator needs no zeroing.
        // SAFETY: passed on.
        unsafe { acc.multiply_transposed(q, k, step > 0) };
    }
    // SAFETY: passed on.
    unsafe { wgmma::commit() };
}

/// Starts `acc += p v` for probabilities in registers and the value tile at shared address `v`.
///
/// # Safety
/// As for [`start_scores`]; the registers of `probs` stay untouched until the wait.
#[inline(always)]
pub unsafe fn start_out<C: WarpgroupTiles>(acc: &mut C::Acc, probs: &C::Probs, v: u32) {
    let columns = |v: u32| Descriptor::columns(v, (C::V::ROWS * PANEL_BYTES) as u32);
    let first = columns(v);
    for step in 0..C::Probs::STEPS {
        let bytes = (step * WGMMA_K * PANEL_BYTES) as u32;
        // Products with 64 columns last 32 cycles. Started as fast as possible, they keep the registers busy that the softmax of the
        // other warpgroups needs: 447 instead of 481 TFLOP/s (H200, 64 dims, 128 x 128 tiles). A whole descriptor each is pace enough.
        let v = if C::Acc::N * 8 <= 64 { columns(v + bytes) } else { first.advanced(bytes) };
        // SAFETY: passed on.
        unsafe { acc.multiply(probs.step(step), v) };
    }
    // SAFETY: passed on.
    unsafe { wgmma::commit() };
}
