//! How the output of v3 leaves: from registers, while the next tile's queries arrive.

use cuda_std::{copy, thread, warp};
use kernel_spec::layout::CHUNK_BYTES;

use crate::attention::Config;
use crate::attention::query_block::QueryBlock;
use crate::parts::element::TensorCore;
use crate::parts::fragments::{Fragments, PerRow};

/// Multiplies the warp's 16 rows by `factors`, rounds them and writes them to the output of `block`, from row `first_row` on; rows and
/// columns that do not exist there are left out.
///
/// A lane holds two neighbouring columns of every fragment. The four lanes of a row exchange theirs, so that each writes the 16 bytes
/// of one fragment in four.
///
/// # Safety
/// All threads of the warp, converged; no other warp writes these rows. Address and row stride are multiples of 16 bytes.
#[inline(always)]
pub unsafe fn store<C: Config<Out: TensorCore>, F: Fragments>(
    tile: &F,
    factors: &F::Rows,
    block: &QueryBlock<C>,
    first_row: u32,
) {
    const { assert!(F::N.is_multiple_of(4), "lanes exchange four fragments at a time") };
    let (row, place) = (first_row + thread::lane() / 4, thread::lane() % 4);
    for half in 0..2 {
        let row = block.row(row + 8 * half as u32);
        let to = block.out_row(row) + place as u64 * CHUNK_BYTES as u64;
        for first in (0..F::N).step_by(4) {
            let word = |n: usize| {
                let [left, right] = [2 * half, 2 * half + 1].map(|i| tile.at(0, first + n)[i] * factors.at(0, half));
                C::Out::pack(left, right)
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
