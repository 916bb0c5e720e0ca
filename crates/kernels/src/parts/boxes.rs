//! Tiles that the copy engine loads, panel by panel, into the buffers of a ring.

use cuda_std::tma;
use kernel_spec::copy_engine::WRAPPED;
use kernel_spec::layout::{PANEL_BYTES, PANEL_COLS};

use crate::parts::ring::{Buffers, Ring};
use crate::parts::shared_tile::SharedMatrix;

/// Where a box starts, behind its columns.
#[derive(Clone, Copy)]
pub struct Corner {
    /// First row, head and batch entry.
    pub at: [u32; 3],
    /// Whether the map wraps, see [`WRAPPED`]. A constant.
    pub wraps: bool,
}

impl From<[u32; 3]> for Corner {
    #[inline(always)]
    fn from(at: [u32; 3]) -> Self {
        Corner { at, wraps: false }
    }
}

impl Corner {
    /// Starts loading the box from column `col` on.
    ///
    /// # Safety
    /// See [`tma::load_if`].
    #[inline(always)]
    pub unsafe fn load(self, to: u32, map: u64, col: u32, full: u32, elected: bool) {
        let [row, head, last] = self.at;
        // SAFETY: passed on.
        unsafe {
            if self.wraps {
                tma::load_5d_if(to, map, [col, row, head, last, WRAPPED], full, elected);
            } else {
                tma::load_if(to, map, [col, row, head, last], full, elected);
            }
        }
    }
}

/// Loads the next buffer of a ring, once it is free; see [`load`].
///
/// # Safety
/// The loading warp, converged.
#[inline(always)]
pub unsafe fn load_next<S: SharedMatrix, B: Buffers>(ring: &mut Ring<B>, map: u64, corner: Corner, elected: bool) {
    // SAFETY: passed on; the buffer is free once the ring says so.
    unsafe {
        ring.wait_free();
        let full = ring.announce(elected);
        load::<S>(ring.buffer(), map, corner, full, elected);
    }
    ring.advance();
}

/// Starts loading the rows of a tile, panel by panel.
///
/// # Safety
/// The loading warp, converged; the buffer is acquired.
#[inline(always)]
pub unsafe fn load<S: SharedMatrix>(buffer: u32, map: u64, corner: Corner, full: u32, elected: bool) {
    for panel in 0..(S::COLS / PANEL_COLS) as u32 {
        let to = buffer + panel * (S::ROWS * PANEL_BYTES) as u32;
        // SAFETY: passed on; the panels fill the buffer exactly.
        unsafe { corner.load(to, map, panel * PANEL_COLS as u32, full, elected) };
    }
}
