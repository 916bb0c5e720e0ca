//! The load warp of v3: it finds the tiles of its thread block, and starts the copies of their queries, keys and values.

use cuda_std::thread;
use kernel_spec::{TensorMap, V3Params};

use crate::attention::v3::config::{Config, Keys, Queries, Values};
use crate::attention::v3::listed::ListedTiles;
use crate::attention::v3::note::{QueryTile, TileNotes, Tiles};
use crate::attention::v3::split;
use crate::parts::boxes::{load, load_next};
use crate::parts::ring::Ring;

/// All tiles of the thread block, and a note behind them that there are no more. `maps` is the address of the tensor maps of q, k and v.
///
/// # Safety
/// The load warp, converged; the rings are initialised, and every warpgroup of [`math`](super::math) runs beside it.
#[rustc_force_inline]
pub unsafe fn run<C: Config>(
    p: &V3Params,
    maps: u64,
    q_ring: &mut Ring<Queries<C>>,
    k_ring: &mut Ring<Keys<C>>,
    v_ring: &mut Ring<Values<C>>,
    notes: TileNotes,
) {
    // SAFETY: buffers are free once the ring says so.
    unsafe {
        let [q_map, k_map, v_map] = [0, 1, 2].map(|map| maps + map * TensorMap::BYTES as u64);
        // A whole warp walks along, one thread of it acts: addresses then live in uniform registers.
        let elected = thread::lane() == 0;
        // Queries with their note; after the last tile, a note that there are no more.
        let mut load_queries = #[inline(always)]
        |tile: Option<&QueryTile>| {
            q_ring.wait_free();
            notes.write::<C>(q_ring.stage(), tile, p, elected);
            match tile {
                Some(tile) => {
                    let full = q_ring.announce(elected);
                    load::<C::Q>(q_ring.buffer(), q_map, tile.query_rows::<C>(p), full, elected);
                }
                None => q_ring.announce_none(elected),
            }
            q_ring.advance();
        };
        let mut load_keys = #[inline(always)]
        |tile: &QueryTile, i: u32| {
            if C::SPLIT {
                let first = tile.first_key::<C>(p, i);
                return split::load_next::<C, C::K, Keys<C>>(k_ring, k_map, maps, p, tile, first, elected);
            }
            load_next::<C::K, Keys<C>>(k_ring, k_map, tile.kv_rows::<C>(p, tile.first_key::<C>(p, i)), elected)
        };
        let mut load_values = #[inline(always)]
        |tile: &QueryTile, i: u32| {
            if C::SPLIT {
                let first = tile.first_key::<C>(p, i);
                return split::load_next::<C, C::V, Values<C>>(v_ring, v_map, maps, p, tile, first, elected);
            }
            load_next::<C::V, Values<C>>(v_ring, v_map, tile.kv_rows::<C>(p, tile.first_key::<C>(p, i)), elected)
        };

        if C::LISTED {
            let mut tiles = ListedTiles::new(p);
            let mut next = tiles.next::<C>(p);
            if C::POLICY.q_buffers > 1 {
                load_queries(next.as_ref());
            }
            while let Some(tile) = next {
                // The next tile is asked for in front of this block and taken behind it. Late, where the rings still hold what is left: whoever
                // has the longest tile should not have taken another.
                let late = tile.blocks.count().saturating_sub(C::POLICY.stages).max(1) - 1;
                for i in 0..tile.blocks.count() {
                    if i == late {
                        tiles.ask(p);
                    }
                    load_keys(&tile, i);
                    if C::POLICY.q_buffers == 1 && i == 0 {
                        load_queries(Some(&tile));
                    }
                    load_values(&tile, i);
                    if i == late {
                        next = tiles.next::<C>(p);
                        if C::POLICY.q_buffers > 1 {
                            load_queries(next.as_ref());
                        }
                    }
                }
            }
            if C::POLICY.q_buffers == 1 {
                load_queries(None);
            }
            return;
        }
        let mut tiles = Tiles { round: 0 };
        if C::POLICY.q_buffers == 1 {
            while let Some(tile) = tiles.next::<C>(p) {
                // A buffer of keys is free before that of the queries: the tile before still reads them.
                load_keys(&tile, 0);
                load_queries(Some(&tile));
                load_values(&tile, 0);
                for i in 1..tile.blocks.count() {
                    load_keys(&tile, i);
                    load_values(&tile, i);
                }
            }
            load_queries(None);
        } else {
            let mut next = tiles.next::<C>(p);
            load_queries(next.as_ref());
            while let Some(tile) = next {
                // Queries go a tile ahead, once the rings of keys and values are full: their buffer becomes free last.
                let first_blocks = tile.blocks.count().min(C::POLICY.stages);
                for i in 0..first_blocks {
                    load_keys(&tile, i);
                    load_values(&tile, i);
                }
                next = tiles.next::<C>(p);
                load_queries(next.as_ref());
                for i in first_blocks..tile.blocks.count() {
                    load_keys(&tile, i);
                    load_values(&tile, i);
                }
            }
        }
    }
}
