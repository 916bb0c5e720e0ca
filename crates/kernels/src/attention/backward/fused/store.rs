//! How gradients leave: from registers.

use cuda_std::{copy, thread, warp};
use kernel_spec::layout::CHUNK_BYTES;

use crate::parts::element::TensorCore;
use crate::parts::fragments::Fragments;
use crate::parts::rows::GlobalRows;

/// Multiplies the warp's 16 rows by `factor`, rounds them and writes them to the target, from row `row` and column `col` on; rows and
/// columns that do not exist there are left out.
///
/// A lane holds two neighbouring columns of every fragment. The four lanes of a row exchange theirs, so that each writes the 16 bytes
/// of one fragment in four.
///
/// # Safety
/// All threads of the warp, converged; no other warp writes these rows and columns. Rows start at multiples of 16 bytes.
#[inline(always)]
pub unsafe fn rows<T: TensorCore, F: Fragments>(tile: &F, factor: f32, target: &GlobalRows<T>, row: u32, col: u32) {
    const { assert!(F::N.is_multiple_of(4), "lanes exchange four fragments at a time") };
    let (row, place) = (row + thread::lane() / 4, thread::lane() % 4);
    for half in 0..2 {
        let row = row + 8 * half as u32;
        let to = target.address + row as u64 * target.row_bytes;
        for first in (0..F::N).step_by(4) {
            let word = |n: usize| {
                let [left, right] = [2 * half, 2 * half + 1].map(|i| tile.at(0, first + n)[i] * factor);
                T::pack(left, right)
            };
            // SAFETY: passed on.
            let chunk = unsafe { warp::quad_transpose([word(0), word(1), word(2), word(3)]) };
            let col = col + 8 * (first as u32 + place);
            let exists = (row < target.rows) & (col < target.cols);
            // SAFETY: a whole chunk inside the target: head dims are multiples of 8.
            unsafe { copy::store_u32x4_if(to + (col as usize / 8 * CHUNK_BYTES) as u64, chunk, exists) };
        }
    }
}
