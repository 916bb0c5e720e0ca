//! Where the sums of `dq` lie: as they are added.
//!
//! Of a block of query rows, the share of each warpgroup, 64 rows by 64 columns, is in one piece: of it the four numbers of a fragment that a
//! thread holds, those of its neighbours next to them, and then the next fragment. A warp adds to 512 bytes in a row.

use cuda_std::copy;
use kernel_spec::families::backward::{BackwardParams, SHARE_COLS, SHARE_ROWS};

use crate::parts::fragments::{Fragments, RegTile};
use crate::parts::warpgroup::WARPGROUP;

/// Fragments of 8 columns in a share.
pub const SHARE_FRAGMENTS: usize = SHARE_COLS as usize / 8;

/// What a warpgroup adds at a time.
pub type Share = RegTile<1, SHARE_FRAGMENTS>;

/// Bytes of the four numbers of a fragment that a thread holds.
const FOUR: u32 = 16;

/// Bytes from one fragment of a thread to its next.
const FRAGMENT: u64 = (WARPGROUP * FOUR) as u64;

/// Address of what thread `thread` of a warpgroup holds of share `share` of the rows from `first_row` on, of one head of all,
/// `batch * q_heads + q_head`.
#[inline(always)]
pub fn address(p: &BackwardParams, head: u32, first_row: u32, share: u32, thread: u32) -> u64 {
    let row = head as u64 * p.padded_rows as u64 + first_row as u64;
    let before = row * p.sum_cols + (share * SHARE_ROWS * SHARE_COLS) as u64;
    p.sums + before * 4 + (thread * FOUR) as u64
}

/// Adds a thread's part of a share to the sums at its address.
///
/// # Safety
/// The sums exist, and nobody but this function touches them before the kernel ends.
#[inline(always)]
pub unsafe fn add(share: &Share, address: u64) {
    for n in 0..Share::N {
        // SAFETY: passed on.
        unsafe { copy::add_f32x4(address + n as u64 * FRAGMENT, *share.at(0, n)) };
    }
}

/// A thread's part of the sums at its address.
///
/// # Safety
/// The sums exist, and nobody adds to them any more.
#[inline(always)]
pub unsafe fn read(address: u64) -> Share {
    let mut share = Share::zero();
    for n in 0..Share::N {
        // SAFETY: passed on.
        *share.at_mut(0, n) = unsafe { copy::load_f32x4(address + n as u64 * FRAGMENT) };
    }
    share
}
