//! Where the pieces of a thread block's shared memory lie.

use crate::families::forward::Variant;
use crate::shared::Carve;

/// What a tile starts at a multiple of, in bytes: the swizzle repeats after eight rows of 128.
const TILE_ALIGN: u32 = 1024;

/// What everything else starts at a multiple of, for accesses of 16 bytes.
const ALIGN: u32 = 16;

/// Of decode: queries, whose place the output leaves through, and a ring of slots for each warp. What the warps tell each other at the
/// end takes the place of the slots.
#[derive(Clone, Copy, Debug)]
pub struct Decode {
    /// Queries, and then the output.
    pub q: u32,
    /// First slot of the first warp.
    pub slots: u32,
    /// From one warp's slots to the next one's.
    pub warp_bytes: u32,
    /// The warps' partial outputs, in `f32`.
    pub partial: u32,
    /// Their maxima and sums.
    pub statistics: u32,
    /// What a thread block of a cluster has found, for the others: the sums of its queries, in `f32`.
    pub found: u32,
    /// Its maximum and sum of weights of each query row.
    pub found_statistics: u32,
    /// All of it.
    pub total: u32,
}

impl Decode {
    /// For a row of decode with so many slots.
    pub const fn of(row: &Variant, slots: u32) -> Decode {
        let mut carve = Carve::new();
        let q = carve.take(max(row.q_tile_bytes(), row.out_tile_bytes()), TILE_ALIGN);
        let slot_bytes = max(row.k_tile_bytes(), row.v_tile_bytes()).next_multiple_of(TILE_ALIGN);
        let warp_bytes = slots * slot_bytes;
        let slots = carve.take(row.warps * warp_bytes, TILE_ALIGN);
        let warp_rows = row.warps * row.q_block;
        let mut after = Carve::new();
        after.take(slots, TILE_ALIGN);
        let partial = after.take(warp_rows * row.dim_v * 4, ALIGN);
        let statistics = after.take(2 * warp_rows * 4, ALIGN);
        let found = after.take(row.q_block * row.dim_v * 4, ALIGN);
        let found_statistics = after.take(row.q_block * 8, ALIGN);
        let total = max(carve.total(), after.total());
        Decode { q, slots, warp_bytes, partial, statistics, found, found_statistics, total }
    }
}

/// Of the list of tiles: how many tiles there are of each of so many lengths, and the longest.
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    /// First count.
    pub counts: u32,
    /// The longest.
    pub longest: u32,
    /// All of it.
    pub total: u32,
}

impl Tiles {
    /// Lengths that are told apart.
    pub const LENGTHS: u32 = 256;

    /// The places.
    pub const fn places() -> Tiles {
        let mut carve = Carve::new();
        let counts = carve.take(Tiles::LENGTHS * 4, ALIGN);
        let longest = carve.take(4, 4);
        Tiles { counts, longest, total: carve.total() }
    }
}

// `Ord::max` is no const fn.
const fn max(a: u32, b: u32) -> u32 {
    if a > b { a } else { b }
}
