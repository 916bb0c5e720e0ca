//! The products of attention for a warpgroup of Hopper (wgmma), over tiles in panels of 64 columns (128 bytes).
//!
//! All of them only start: see `cuda_std::wgmma` for the order of fence, commit and wait.

use cuda_std::wgmma::{Descriptor, WarpgroupMma};
use cuda_std::{copy, thread, warp};
use kernel_spec::layout::CHUNK_BYTES;

use crate::block::QueryBlock;
use crate::element::{Element, TensorCore};
use crate::tile::{RegTile, RowValues};

/// Threads of a warpgroup.
pub const WARPGROUP: u32 = 128;

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
    let (first_a, first_b) = (Descriptor::rows(a), Descriptor::rows(b));
    for step in 0..D / WGMMA_K {
        let (panel, inside) = (step / PANEL_STEPS, step % PANEL_STEPS * WGMMA_K * 2);
        let a_bytes = (panel * A_ROWS * PANEL_BYTES + inside) as u32;
        let b_bytes = (panel * B_ROWS * PANEL_BYTES + inside) as u32;
        // Whole descriptors of `a` up to 128 columns: ptxas 13.0 then interleaves the softmax a little better (H200, 128 dims: 0.2 to 0.9 %).
        let a = if D <= 128 { Descriptor::rows(a + a_bytes) } else { first_a.advanced(a_bytes) };
        let b = first_b.advanced(b_bytes);
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
    let columns = |v: u32| Descriptor::columns(v, (ROWS * PANEL_BYTES) as u32);
    let first = columns(v);
    for (step, probs) in probs.iter().enumerate() {
        let bytes = (step * WGMMA_K * PANEL_BYTES) as u32;
        // Products with 64 columns last 32 cycles. Started as fast as possible, they keep the registers busy that the softmax of the
        // other warpgroups needs: 447 instead of 481 TFLOP/s (H200, 64 dims, 128 x 128 tiles). A whole descriptor each is pace enough.
        let v = if N * 8 <= 64 { columns(v + bytes) } else { first.advanced(bytes) };
        // SAFETY: passed on.
        unsafe { T::multiply(&mut acc.0[0], probs, v) };
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

/// Multiplies the warp's 16 rows by `factors`, rounds them and writes them to the output of `block`, from row `first_row` on; rows and
/// columns that do not exist there are left out.
///
/// A lane holds two neighbouring columns of every fragment. The four lanes of a row exchange theirs, so that each writes the 16 bytes
/// of one fragment in four.
///
/// # Safety
/// All threads of the warp, converged; no other warp writes these rows. Address and row stride are multiples of 16 bytes.
#[inline(always)]
pub unsafe fn store<T: Element + TensorCore, const N: usize>(
    tile: &RegTile<1, N>,
    factors: &RowValues<1>,
    block: &QueryBlock<T>,
    first_row: u32,
) {
    const { assert!(N.is_multiple_of(4), "lanes exchange four fragments at a time") };
    let (row, place) = (first_row + thread::lane() / 4, thread::lane() % 4);
    for half in 0..2 {
        let row = block.row(row + 8 * half as u32);
        let to = block.out_row(row) + place as u64 * CHUNK_BYTES as u64;
        for first in (0..N).step_by(4) {
            let word = |n: usize| {
                let [left, right] = [2 * half, 2 * half + 1].map(|i| tile.0[0][first + n][i] * factors.0[0][half]);
                T::pack(left, right)
            };
            // SAFETY: passed on.
            let chunk = unsafe { warp::quad_transpose([word(0), word(1), word(2), word(3)]) };
            // By predicate: with a branch here, ptxas serialises all wgmma of the kernel (C7520).
            let exists = (row.row < block.out.rows) & (8 * (first as u32 + place) < block.out.cols);
            // SAFETY: a whole chunk inside the target: head dims are multiples of 8.
            unsafe { copy::store_u32x4_if(to + (first * CHUNK_BYTES) as u64, chunk, exists) };
        }
    }
}
