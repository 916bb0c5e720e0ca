//! How the output of v3 leaves: from registers, while the next tile's queries arrive.

use cuda_std::{copy, thread, warp};
use kernel_spec::layout::CHUNK_BYTES;

use crate::attention::Config;
use crate::attention::query_block::QueryBlock;
use crate::parts::element::TensorCore;
use crate::parts::fragments::{Fragments, PerRow};

/// Whether a lane has met numbers that are not finite: in each of `CHAINS` places 0, or the bits of a NaN.
///
/// A product with 0 is 0 or NaN, and NaN stays: one instruction for each word that leaves, and no branch.
#[derive(Clone, Copy)]
pub struct NotFinite<const CHAINS: usize>([u32; CHAINS]);

impl<const CHAINS: usize> NotFinite<CHAINS> {
    /// None yet.
    pub const NONE: Self = NotFinite([0; CHAINS]);

    /// Takes note of a word of output.
    #[inline(always)]
    fn word<T: TensorCore>(&mut self, chain: usize, word: u32) {
        self.0[chain] = T::fma_pair(word, 0, self.0[chain]);
    }

    /// Whether there was any.
    #[inline(always)]
    pub fn any(self) -> bool {
        let mut bits = 0;
        for chain in self.0 {
            bits |= chain;
        }
        // Without the signs of zeros.
        bits & 0x7fff_7fff != 0
    }
}

/// Multiplies the warp's 16 rows by `factors`, rounds them and writes them to the output of `block`, from row `first_row` on; rows and
/// columns that do not exist there are left out. Says whether the lane has met numbers that are not finite, here or as `met` says.
///
/// A lane holds two neighbouring columns of every fragment. The four lanes of a row exchange theirs, so that each writes the 16 bytes
/// of one fragment in four.
///
/// # Safety
/// All threads of the warp, converged; no other warp writes these rows. Address and row stride are multiples of 16 bytes.
#[inline(always)]
pub unsafe fn store<C: Config<Out: TensorCore>, F: Fragments, const CHAINS: usize>(
    tile: &F,
    factors: &F::Rows,
    block: &QueryBlock<C>,
    first_row: u32,
    mut met: NotFinite<CHAINS>,
) -> NotFinite<CHAINS> {
    const { assert!(F::N.is_multiple_of(4), "lanes exchange four fragments at a time") };
    let (row, place) = (first_row + thread::lane() / 4, thread::lane() % 4);
    for half in 0..2 {
        let row = block.row(row + 8 * half as u32);
        let to = block.out_row(row) + place as u64 * CHUNK_BYTES as u64;
        for first in (0..F::N).step_by(4) {
            let mut word = |n: usize| {
                let [left, right] = [2 * half, 2 * half + 1].map(|i| tile.at(0, first + n)[i] * factors.at(0, half));
                let word = C::Out::pack(left, right);
                met.word::<C::Out>(half % CHAINS, word);
                word
            };
            // SAFETY: passed on.
            let chunk = unsafe { warp::quad_transpose([word(0), word(1), word(2), word(3)]) };
            // By predicate: with a branch here, ptxas serialises all wgmma of the kernel (C7520).
            let exists = (row.row < block.out.rows) & (8 * (first as u32 + place) < block.out.cols);
            // SAFETY: a whole chunk inside the target: head dims are multiples of 8.
            unsafe { copy::store_u32x4_if(to + (first * CHUNK_BYTES) as u64, chunk, exists) };
        }
    }
    met
}
