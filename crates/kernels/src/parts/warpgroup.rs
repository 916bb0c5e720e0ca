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

/// Bytes of a panel of as many rows as it has columns.
const SQUARE_BYTES: u32 = (PANEL_COLS * PANEL_BYTES) as u32;

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

    /// See [`WarpgroupMma::overwrite_transposed`].
    ///
    /// # Safety
    /// As there.
    unsafe fn overwrite_transposed(&mut self, a: Descriptor, b: Descriptor);

    /// See [`WarpgroupMma::multiply_shared`].
    ///
    /// # Safety
    /// As there.
    unsafe fn multiply_shared(&mut self, a: Descriptor, b: Descriptor);

    /// See [`WarpgroupMma::overwrite_shared`].
    ///
    /// # Safety
    /// As there.
    unsafe fn overwrite_shared(&mut self, a: Descriptor, b: Descriptor);

    /// See [`WarpgroupMma::multiply_columns`].
    ///
    /// # Safety
    /// As there.
    unsafe fn multiply_columns(&mut self, a: Descriptor, b: Descriptor);

    /// See [`WarpgroupMma::overwrite_columns`].
    ///
    /// # Safety
    /// As there.
    unsafe fn overwrite_columns(&mut self, a: Descriptor, b: Descriptor);

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
    unsafe fn overwrite_transposed(&mut self, a: Descriptor, b: Descriptor) {
        // SAFETY: passed on.
        unsafe { T::overwrite_transposed(&mut self.0[0], a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_shared(&mut self, a: Descriptor, b: Descriptor) {
        // SAFETY: passed on.
        unsafe { T::multiply_shared(&mut self.0[0], a, b) }
    }

    #[inline(always)]
    unsafe fn overwrite_shared(&mut self, a: Descriptor, b: Descriptor) {
        // SAFETY: passed on.
        unsafe { T::overwrite_shared(&mut self.0[0], a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_columns(&mut self, a: Descriptor, b: Descriptor) {
        // SAFETY: passed on.
        unsafe { T::multiply_columns(&mut self.0[0], a, b) }
    }

    #[inline(always)]
    unsafe fn overwrite_columns(&mut self, a: Descriptor, b: Descriptor) {
        // SAFETY: passed on.
        unsafe { T::overwrite_columns(&mut self.0[0], a, b) }
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
        let (q_bytes, k_bytes) = (step_bytes::<C::Q>(step), step_bytes::<C::K>(step));
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

/// Bytes from a row of a tile to what product `step` along its columns reads of it.
#[inline(always)]
fn step_bytes<M: SharedMatrix>(step: usize) -> u32 {
    (step / PANEL_STEPS * M::ROWS * PANEL_BYTES + step % PANEL_STEPS * WGMMA_K_BYTES) as u32
}

/// Starts `acc += p v` for probabilities in registers and the value tile at shared address `v`.
///
/// # Safety
/// As for [`start_scores`]; the registers of `probs` stay untouched until the wait.
#[inline(always)]
pub unsafe fn start_out<C: WarpgroupTiles>(acc: &mut C::Acc, probs: &C::Probs, v: u32) {
    // SAFETY: passed on.
    unsafe { start_weighted::<C::Operand, C::V, _, _, _>(acc, probs, v) }
}

/// Starts `acc += w b` for operands in registers and all columns of the tile `B` at shared address `b`.
///
/// # Safety
/// As for [`start_out`].
#[inline(always)]
pub unsafe fn start_weighted<T, B: SharedMatrix, S, W: Operands<S, T>, A: Accumulator<T>>(
    acc: &mut A,
    weights: &W,
    b: u32,
) {
    let columns = |b: u32| Descriptor::columns(b, (B::ROWS * PANEL_BYTES) as u32);
    let first = columns(b);
    for step in 0..W::STEPS {
        let bytes = (step * WGMMA_K * PANEL_BYTES) as u32;
        // Products with 64 columns last 32 cycles. Started as fast as possible, they keep the registers busy that the softmax of the
        // other warpgroups needs: 447 instead of 481 TFLOP/s (H200, 64 dims, 128 x 128 tiles). A whole descriptor each is pace enough.
        let b = if A::N * 8 <= 64 { columns(b + bytes) } else { first.advanced(bytes) };
        // SAFETY: passed on.
        unsafe { acc.multiply(weights.step(step), b) };
    }
    // SAFETY: passed on.
    unsafe { wgmma::commit() };
}

/// Starts `acc = a b^T` over `dim` columns, whatever `acc` holds: 64 rows of a tile `A` from shared address `a` on, all rows of the tile `B`
/// at `b`.
///
/// # Safety
/// As for [`start_scores`].
#[inline(always)]
pub unsafe fn start_transposed<T, A: SharedMatrix, B: SharedMatrix, S: Accumulator<T>>(
    acc: &mut S,
    a: u32,
    b: u32,
    dim: usize,
) {
    let (first_a, first_b) = (Descriptor::rows(a), Descriptor::rows(b));
    for step in 0..dim / WGMMA_K {
        let (a, b) = (first_a.advanced(step_bytes::<A>(step)), first_b.advanced(step_bytes::<B>(step)));
        // SAFETY: passed on.
        unsafe { if step == 0 { acc.overwrite_transposed(a, b) } else { acc.multiply_transposed(a, b, true) } };
    }
    // SAFETY: passed on.
    unsafe { wgmma::commit() };
}

/// Starts `acc += a b^T`, or `acc = a b^T` if `first`, a constant: 64 rows of one panel from shared address `a` on, and as many rows of one at `b` as the
/// accumulator has columns.
///
/// # Safety
/// As for [`start_scores`].
#[inline(always)]
pub unsafe fn start_panel<T, S: Accumulator<T>>(acc: &mut S, a: u32, b: u32, first: bool) {
    let (first_a, first_b) = (Descriptor::rows(a), Descriptor::rows(b));
    for step in 0..PANEL_STEPS {
        let bytes = (step * WGMMA_K_BYTES) as u32;
        let (a, b) = (first_a.advanced(bytes), first_b.advanced(bytes));
        // SAFETY: passed on.
        unsafe {
            if first && step == 0 { acc.overwrite_transposed(a, b) } else { acc.multiply_transposed(a, b, true) }
        };
    }
    // SAFETY: passed on.
    unsafe { wgmma::commit() };
}

/// Starts `acc += a b`, or `acc = a b` if `first`, a constant: 64 rows of one panel from shared address `a` on; of `b`, 64 rows of as many columns as the
/// accumulator has, a panel behind the other from `b` on.
///
/// # Safety
/// As for [`start_scores`].
#[inline(always)]
pub unsafe fn start_panel_shared<T, S: Accumulator<T>>(acc: &mut S, a: u32, b: u32, first: bool) {
    let (first_a, first_b) = (Descriptor::rows(a), Descriptor::columns(b, SQUARE_BYTES));
    for step in 0..PANEL_STEPS {
        let a = first_a.advanced((step * WGMMA_K_BYTES) as u32);
        let b = first_b.advanced((step * WGMMA_K * PANEL_BYTES) as u32);
        // SAFETY: passed on.
        unsafe { if first && step == 0 { acc.overwrite_shared(a, b) } else { acc.multiply_shared(a, b) } };
    }
    // SAFETY: passed on.
    unsafe { wgmma::commit() };
}

/// Starts `acc += a^T b`, or `acc = a^T b` if `first`, a constant: 64 rows of the 64 columns of one panel from shared address `a` on; `b` as for
/// [`start_panel_shared`].
///
/// # Safety
/// As for [`start_scores`].
#[inline(always)]
pub unsafe fn start_panel_columns<T, S: Accumulator<T>>(acc: &mut S, a: u32, b: u32, first: bool) {
    let [first_a, first_b] = [a, b].map(|operand| Descriptor::columns(operand, SQUARE_BYTES));
    for step in 0..PANEL_STEPS {
        let bytes = (step * WGMMA_K * PANEL_BYTES) as u32;
        let (a, b) = (first_a.advanced(bytes), first_b.advanced(bytes));
        // SAFETY: passed on.
        unsafe { if first && step == 0 { acc.overwrite_columns(a, b) } else { acc.multiply_columns(a, b) } };
    }
    // SAFETY: passed on.
    unsafe { wgmma::commit() };
}

/// Starts `acc = a b`: 64 rows of the tile `A` from shared address `a` on, all of its columns, and as many columns of the tile `B` as the
/// accumulator has, in whole panels from shared address `b` on.
///
/// # Safety
/// As for [`start_scores`].
#[inline(always)]
pub unsafe fn start_shared<T, A: SharedMatrix, B: SharedMatrix, S: Accumulator<T>>(acc: &mut S, a: u32, b: u32) {
    let (first_a, first_b) = (Descriptor::rows(a), Descriptor::columns(b, (B::ROWS * PANEL_BYTES) as u32));
    for step in 0..A::COLS / WGMMA_K {
        let a = first_a.advanced(step_bytes::<A>(step));
        let b = first_b.advanced((step * WGMMA_K * PANEL_BYTES) as u32);
        // SAFETY: passed on.
        unsafe { if step == 0 { acc.overwrite_shared(a, b) } else { acc.multiply_shared(a, b) } };
    }
    // SAFETY: passed on.
    unsafe { wgmma::commit() };
}
