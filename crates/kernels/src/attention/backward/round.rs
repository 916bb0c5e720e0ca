//! From the sums of the [fused](super::fused) pass to `dq`: multiplied by the scale and rounded.

use cuda_std::thread;
use kernel_spec::families::backward::{BackwardParams, SHARE_COLS, SHARE_ROWS};
use kernel_spec::layout::fragment_row;

use crate::attention::backward::fused::store;
use crate::attention::backward::fused::sums::{self, Share};
use crate::attention::backward::{self, Statistics, target};
use crate::parts::element::TensorCore;
use crate::parts::fragments::Fragments;
use crate::parts::warpgroup::WARPGROUP;

/// What a row makes of this kernel.
pub trait Config: backward::Config<T: TensorCore> {}

/// One thread block, a warpgroup for every share: a block of queries of one head.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn gradients<C: Config>(p: &BackwardParams) {
    // SAFETY: the host launches no block for an empty problem. Without this, every division could panic.
    unsafe { core::hint::assert_unchecked(p.q_rows > 0 && p.q_heads > 0) };
    let blocks = p.q_rows.div_ceil(C::ROW.q_block);
    let (head, first_row) = (thread::block_index() / blocks, thread::block_index() % blocks * C::ROW.q_block);
    let (share, thread) = (thread::index() / WARPGROUP, thread::index() % WARPGROUP);
    let col_shares = const { C::ROW.tile_cols() / SHARE_COLS };
    let row = first_row + share / col_shares * SHARE_ROWS + thread / 32 * 16;
    let to = target::<C>(&p.dq, [head / p.q_heads, head % p.q_heads, p.q_rows], p.dim_qk, true);
    // SAFETY: whole blocks of sums and statistics exist; warps have rows of their own, which start at multiples of 16 bytes.
    unsafe {
        let mut sums = sums::read(sums::address(p, head, first_row, share, thread));
        for half in 0..2 {
            // Not by a factor of 0: keys of minus infinity, which give a row no weight, are no numbers in the sum.
            if Statistics::load(p, head, row + fragment_row(thread::lane(), 2 * half)).is_weightless() {
                for n in 0..Share::N {
                    sums.at_mut(0, n)[2 * half as usize..][..2].fill(0.0);
                }
            }
        }
        store::rows::<C::T, _>(&sums, p.scale, &to, row, share % col_shares * SHARE_COLS);
    }
}
