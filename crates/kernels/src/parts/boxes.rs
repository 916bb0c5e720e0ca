//! Tiles that the copy engine loads, panel by panel, into the buffers of a ring.

use cuda_std::tma;
use kernel_spec::layout::{PANEL_BYTES, PANEL_COLS};

use crate::parts::ring::{Buffers, Ring};
use crate::parts::shared_tile::SharedMatrix;

/// Loads the next buffer of a ring, once it is free; see [`load`].
///
/// # Safety
/// The loading warp, converged.
#[inline(always)]
pub unsafe fn load_next<S: SharedMatrix, B: Buffers>(ring: &mut Ring<B>, map: u64, rows: [u32; 3], elected: bool) {
    // SAFETY: passed on; the buffer is free once the ring says so.
    unsafe {
        ring.wait_free();
        let full = ring.announce(elected);
        load::<S>(ring.buffer(), map, rows, full, elected);
    }
    ring.advance();
}

/// Starts loading the rows of a tile, panel by panel; `rows` is the first row, the head and the batch entry.
///
/// # Safety
/// The loading warp, converged; the buffer is acquired.
#[inline(always)]
pub unsafe fn load<S: SharedMatrix>(buffer: u32, map: u64, rows: [u32; 3], full: u32, elected: bool) {
    let [row, head, batch] = rows;
    for panel in 0..(S::COLS / PANEL_COLS) as u32 {
        let to = buffer + panel * (S::ROWS * PANEL_BYTES) as u32;
        // SAFETY: passed on; the panels fill the buffer exactly.
        unsafe { tma::load_if(to, map, [panel * PANEL_COLS as u32, row, head, batch], full, elected) };
    }
}
