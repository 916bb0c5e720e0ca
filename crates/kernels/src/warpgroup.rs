//! The products of attention for a warpgroup of Hopper (wgmma), over tiles in panels of 64 columns (128 bytes).
//!
//! All of them only start: see `cuda_std::wgmma` for the order of fence, commit and wait.

use cuda_std::mma;
use cuda_std::wgmma::{Descriptor, WarpgroupMma};

use crate::element::TensorCore;
use crate::tile::{RegTile, Window};

/// Elements of the shared axis in one product.
const WGMMA_K: usize = 16;

/// Bytes of a panel row.
const PANEL_BYTES: usize = 128;

/// Products along the shared axis in one panel row.
const PANEL_STEPS: usize = PANEL_BYTES / 2 / WGMMA_K;

/// Starts `acc = a b^T`: 64 rows at shared address `a` of a tile of `A_ROWS`, the `8 N = B_ROWS` rows of the tile at `b`, over `D`
/// columns.
///
/// # Safety
/// All threads of the warpgroup, converged, between fence and commit; both operands are complete.
#[inline(always)]
pub unsafe fn start_mul_transposed<
    T: WarpgroupMma<N>,
    const A_ROWS: usize,
    const B_ROWS: usize,
    const D: usize,
    const N: usize,
>(
    acc: &mut RegTile<1, N>,
    a: u32,
    b: u32,
) {
    for step in 0..D / WGMMA_K {
        let (panel, inside) = (step / PANEL_STEPS, step % PANEL_STEPS * WGMMA_K * 2);
        let a = Descriptor::rows(a + (panel * A_ROWS * PANEL_BYTES + inside) as u32);
        let b = Descriptor::rows(b + (panel * B_ROWS * PANEL_BYTES + inside) as u32);
        // The first product overwrites: the accumulator needs no zeroing.
        // SAFETY: passed on.
        unsafe { T::multiply_transposed(&mut acc.0[0], a, b, step > 0) };
    }
}

/// Starts `acc += p v` for probabilities in registers and the tile of `ROWS` rows at shared address `v`.
///
/// # Safety
/// As for [`start_mul_transposed`]; the registers of `probs` stay untouched until the wait.
#[inline(always)]
pub unsafe fn start_mul_probs<T: WarpgroupMma<N>, const ROWS: usize, const P: usize, const N: usize>(
    acc: &mut RegTile<1, N>,
    probs: &[[u32; 4]; P],
    v: u32,
) {
    for (step, probs) in probs.iter().enumerate() {
        let v = v + (step * WGMMA_K * PANEL_BYTES) as u32;
        // SAFETY: passed on.
        unsafe { T::multiply(&mut acc.0[0], probs, Descriptor::columns(v, (ROWS * PANEL_BYTES) as u32)) };
    }
}

/// Rounds accumulators to operands of [`start_mul_probs`]: two neighbouring fragments are one operand, in the same lanes.
#[inline(always)]
pub fn pack<T: TensorCore, const N: usize, const P: usize>(tile: &RegTile<1, N>) -> [[u32; 4]; P] {
    const { assert!(N == 2 * P, "an operand is two fragments") };
    let mut packed = [[0; 4]; P];
    for (i, packed) in packed.iter_mut().enumerate() {
        *packed = pack_pair::<T, N>(tile, i);
    }
    packed
}

#[inline(always)]
fn pack_pair<T: TensorCore, const N: usize>(tile: &RegTile<1, N>, i: usize) -> [u32; 4] {
    let (left, right) = (tile.0[0][2 * i], tile.0[0][2 * i + 1]);
    [T::pack(left[0], left[1]), T::pack(left[2], left[3]), T::pack(right[0], right[1]), T::pack(right[2], right[3])]
}

/// Rounds the warp's 16 rows and writes them to a shared tile; `window` is at row `lane % 16` of them and chunk `lane / 16`.
///
/// # Safety
/// All threads of the warp, converged; the rows are this warp's alone.
#[inline(always)]
pub unsafe fn store<T: TensorCore, const N: usize, const ROWS: usize, const COLS: usize>(
    tile: &RegTile<1, N>,
    window: Window<ROWS, COLS, T>,
) {
    for i in 0..N / 2 {
        // SAFETY: passed on; 16 x 16 elements.
        unsafe { mma::store_matrix_x4(window.at(0, 2 * i), pack_pair::<T, N>(tile, i)) };
    }
}
