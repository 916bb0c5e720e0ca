//! The loading warp of v3: finds the tiles, notes each beside its queries, starts all loads.

use cuda_std::{thread, tma};
use kernel_spec::layout::{PANEL_BYTES, PANEL_COLS};
use kernel_spec::{TensorMap, V3Params};

use crate::attention::v3::config::{Config, Rings};
use crate::attention::v3::note::{QueryTile, Tiles};
use crate::parts::ring::{Buffers, Ring};
use crate::parts::rows::BoxSource;
use crate::parts::shared_tile::SharedMatrix;

/// The loading warp.
pub struct Loader<'a, C> {
    p: &'a V3Params,
    /// Addresses of the maps of queries, keys and values.
    maps: [u64; 3],
    rings: Rings<C>,
    /// A whole warp walks along, one thread of it acts: addresses then live in uniform registers.
    elected: bool,
}

impl<'a, C: Config> Loader<'a, C> {
    /// The loader of a thread block; `maps` is the address of the first of the three maps.
    #[inline(always)]
    pub fn new(p: &'a V3Params, maps: u64, rings: Rings<C>) -> Self {
        let maps = [0, 1, 2].map(|map| maps + map * TensorMap::BYTES as u64);
        Loader { p, maps, rings, elected: thread::lane() == 0 }
    }

    /// Loads every tile of this thread block.
    ///
    /// # Safety
    /// The loading warp, converged, once.
    #[inline(always)]
    pub unsafe fn run(mut self) {
        let mut tiles = Tiles { round: 0 };
        // SAFETY: passed on.
        unsafe {
            if C::POLICY.q_buffers == 1 {
                while let Some(tile) = tiles.next::<C>(self.p) {
                    // A buffer of keys is free before that of the queries: the tile before still reads them.
                    self.keys(&tile, 0);
                    self.queries(Some(&tile));
                    self.values(&tile, 0);
                    for i in 1..tile.blocks.count() {
                        self.keys(&tile, i);
                        self.values(&tile, i);
                    }
                }
                self.queries(None);
            } else {
                let mut next = tiles.next::<C>(self.p);
                self.queries(next.as_ref());
                while let Some(tile) = next {
                    // Queries go a tile ahead, once the rings of keys and values are full: their buffer becomes free last.
                    let first_blocks = tile.blocks.count().min(C::POLICY.stages);
                    for i in 0..first_blocks {
                        self.keys(&tile, i);
                        self.values(&tile, i);
                    }
                    next = tiles.next::<C>(self.p);
                    self.queries(next.as_ref());
                    for i in first_blocks..tile.blocks.count() {
                        self.keys(&tile, i);
                        self.values(&tile, i);
                    }
                }
            }
        }
    }

    /// Queries with their note; after the last tile, a note that there are no more.
    #[inline(always)]
    unsafe fn queries(&mut self, tile: Option<&QueryTile>) {
        let ring = &mut self.rings.q;
        // SAFETY: passed on; the buffer is free once the ring says so.
        unsafe {
            ring.wait_free();
            self.rings.notes.write::<C>(ring.stage(), tile, self.p, self.elected);
            match tile {
                Some(tile) => {
                    let full = ring.announce(self.elected);
                    load::<C::Q>(ring.buffer(), self.maps[0], tile.query_rows(self.p), full, self.elected);
                }
                None => ring.announce_none(self.elected),
            }
        }
        ring.advance();
    }

    /// The keys of step `i`.
    #[inline(always)]
    unsafe fn keys(&mut self, tile: &QueryTile, i: u32) {
        let rows = tile.kv_rows().coordinates(tile.first_key(i, C::ROW.kv_block));
        // SAFETY: passed on.
        unsafe { load_next::<C::K, _>(&mut self.rings.k, self.maps[1], rows, self.elected) };
    }

    /// The values of step `i`.
    #[inline(always)]
    unsafe fn values(&mut self, tile: &QueryTile, i: u32) {
        let rows = tile.kv_rows().coordinates(tile.first_key(i, C::ROW.kv_block));
        // SAFETY: passed on.
        unsafe { load_next::<C::V, _>(&mut self.rings.v, self.maps[2], rows, self.elected) };
    }
}

/// Loads the next buffer of a ring, once it is free; see [`load`].
///
/// # Safety
/// The loading warp, converged.
#[inline(always)]
unsafe fn load_next<S: SharedMatrix, B: Buffers>(ring: &mut Ring<B>, map: u64, rows: [u32; 3], elected: bool) {
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
unsafe fn load<S: SharedMatrix>(buffer: u32, map: u64, rows: [u32; 3], full: u32, elected: bool) {
    let [row, head, batch] = rows;
    for panel in 0..(S::COLS / PANEL_COLS) as u32 {
        let to = buffer + panel * (S::ROWS * PANEL_BYTES) as u32;
        // SAFETY: passed on; the panels fill the buffer exactly.
        unsafe { tma::load_if(to, map, [panel * PANEL_COLS as u32, row, head, batch], full, elected) };
    }
}
