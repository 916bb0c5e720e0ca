//! The tiles of a persistent thread block.

use cuda_std::{cluster, thread};
use kernel_spec::families::dense::DenseParams;

use crate::operators::dense::hopper::config::Config;

/// The tiles of a thread block, one after the other: a cluster takes as many rows of tiles as it has thread blocks.
pub struct Tiles {
    next: u32,
}

impl Tiles {
    /// All of them.
    #[inline(always)]
    pub fn new<C: Config>() -> Tiles {
        Tiles { next: thread::block_index() / C::CLUSTER }
    }

    /// First row, and column of tiles, of the next tile, if there is one.
    #[inline(always)]
    pub fn next<C: Config>(&mut self, p: &DenseParams) -> Option<[u32; 2]> {
        if self.next >= p.order.tiles {
            return None;
        }
        let [row, column] = p.order.place(self.next);
        self.next += thread::grid_size() / C::CLUSTER;
        Some([(row * C::CLUSTER + rank::<C>()) * C::ROW.tile.rows, column])
    }
}

/// Which thread block of its cluster this one is.
#[inline(always)]
pub fn rank<C: Config>() -> u32 {
    if C::CLUSTER > 1 { cluster::rank() } else { 0 }
}
