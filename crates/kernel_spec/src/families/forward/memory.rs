//! Where the pieces of a thread block's shared memory lie, for each pass: the kernels' addresses, and the sizes of the launches.

use super::{Policy, Variant, policy};
use crate::shared::Carve;

/// What a tile starts at a multiple of, in bytes: the swizzle repeats after eight rows of 128.
const TILE_ALIGN: u32 = 1024;

/// What everything else starts at a multiple of, for accesses of 16 bytes.
const ALIGN: u32 = 16;

/// Query rows of a warpgroup: what wgmma multiplies.
pub const WARPGROUP_ROWS: u32 = 64;

/// Warps of a warpgroup.
pub const WARPGROUP_WARPS: u32 = 4;

/// Bytes of a partial sum, a maximum and other scalars, all `f32`.
const F32_BYTES: u32 = 4;

/// Of the naive scores.
#[derive(Clone, Copy, Debug)]
pub struct Scores {
    /// Queries.
    pub q: u32,
    /// Keys.
    pub k: u32,
    /// All of it.
    pub total: u32,
}

impl Scores {
    /// For a row of this pass.
    pub const fn of(row: &Variant) -> Scores {
        let mut carve = Carve::new();
        let q = carve.take(row.q_tile_bytes(), TILE_ALIGN);
        let k = carve.take(row.k_tile_bytes(), TILE_ALIGN);
        Scores { q, k, total: carve.total() }
    }
}

/// Of the naive product with the values: slots, each with a tile of probabilities and the values that it is multiplied with. The
/// output leaves through the first.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Values inside a slot, behind the probabilities.
    pub v: u32,
    /// From one slot to the next.
    pub slot_bytes: u32,
    /// All of it.
    pub total: u32,
}

impl Output {
    /// For a row of this pass.
    pub const fn of(row: &Variant, policy: policy::Output) -> Output {
        let mut slot = Carve::new();
        slot.take(row.q_block * row.kv_block * row.dtype.bytes() as u32, TILE_ALIGN);
        let v = slot.take(row.v_tile_bytes(), TILE_ALIGN);
        let mut carve = Carve::new();
        carve.take(policy.slots * slot.total(), TILE_ALIGN);
        assert!(row.out_tile_bytes() <= carve.total(), "the output leaves through the slots");
        Output { v, slot_bytes: slot.total(), total: carve.total() }
    }
}

/// Of v1 and v2: queries, whose place the output leaves through, and the slots that keys and values pass through.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Queries, and then the output.
    pub q: u32,
    /// First slot.
    pub slots: u32,
    /// From one slot to the next.
    pub slot_bytes: u32,
    /// v1's partial outputs, of every warp in `f32`.
    pub partial: u32,
    /// v1's maxima and sums, one of each for every warp and row.
    pub statistics: u32,
    /// All of it.
    pub total: u32,
}

impl Stream {
    /// For a row of v1 or v2 with so many slots.
    pub const fn of(row: &Variant, slots: u32) -> Stream {
        let mut carve = Carve::new();
        let q = carve.take(max(row.q_tile_bytes(), row.out_tile_bytes()), TILE_ALIGN);
        let slot_bytes = max(row.k_tile_bytes(), row.v_tile_bytes());
        let slots = carve.take(slots * slot_bytes, TILE_ALIGN);
        let (mut partial, mut statistics) = (0, 0);
        if matches!(row.policy, Policy::V1(_)) {
            let warp_rows = row.warps * row.q_block;
            partial = carve.take(warp_rows * row.dim_v * F32_BYTES, ALIGN);
            statistics = carve.take(2 * warp_rows * F32_BYTES, ALIGN);
        }
        Stream { q, slots, slot_bytes, partial, statistics, total: carve.total() }
    }
}

/// Of v3: rings of buffers, notes of the tiles that the queries belong to, and the barriers of the rings.
#[derive(Clone, Copy, Debug)]
pub struct V3 {
    /// First buffer of queries.
    pub q: u32,
    /// First buffer of keys.
    pub k: u32,
    /// First buffer of values.
    pub v: u32,
    /// First note, one for each buffer of queries.
    pub notes: u32,
    /// A word that says whether there are rows to compute again.
    pub again: u32,
    /// Barriers of the queries' ring.
    pub q_barriers: u32,
    /// Barriers of the keys' ring.
    pub k_barriers: u32,
    /// Barriers of the values' ring.
    pub v_barriers: u32,
    /// From one note to the next: which tile it is, and where warpgroups skip blocks, what each does in its steps.
    pub note_bytes: u32,
    /// All of it.
    pub total: u32,
}

impl V3 {
    /// Bytes of the part of a note that says which tile it is: eight numbers.
    pub const NOTE_TILE_BYTES: u32 = 32;

    /// Bytes of the part of a note that says what one warpgroup does: two numbers.
    pub const NOTE_STEPS_BYTES: u32 = 8;

    /// Bytes of the part of a note, the last, that says where the sequence of a packed tile lies: five numbers.
    pub const NOTE_SEQUENCE_BYTES: u32 = 32;

    /// Bytes of the two barriers of a buffer, full and empty.
    pub const BARRIER_PAIR_BYTES: u32 = 16;

    /// For a row of v3.
    pub const fn of(row: &Variant, policy: policy::V3) -> V3 {
        let mut carve = Carve::new();
        let q = carve.take(policy.q_buffers * row.q_tile_bytes(), TILE_ALIGN);
        let k = carve.take(policy.stages * row.k_tile_bytes(), TILE_ALIGN);
        let v = carve.take(policy.stages * row.v_tile_bytes(), TILE_ALIGN);
        let steps = if policy.skips { row.q_block / WARPGROUP_ROWS * V3::NOTE_STEPS_BYTES } else { 0 };
        let sequence =
            if matches!(row.policy, Policy::PackedV3(_) | Policy::SplitV3(_)) { V3::NOTE_SEQUENCE_BYTES } else { 0 };
        let note_bytes = V3::NOTE_TILE_BYTES + steps.next_multiple_of(ALIGN) + sequence;
        let notes = carve.take(policy.q_buffers * note_bytes, ALIGN);
        let again = carve.take(4, ALIGN);
        let q_barriers = carve.take(policy.q_buffers * V3::BARRIER_PAIR_BYTES, ALIGN);
        let k_barriers = carve.take(policy.stages * V3::BARRIER_PAIR_BYTES, ALIGN);
        let v_barriers = carve.take(policy.stages * V3::BARRIER_PAIR_BYTES, ALIGN);
        V3 { q, k, v, notes, again, q_barriers, k_barriers, v_barriers, note_bytes, total: carve.total() }
    }
}

// `Ord::max` is no const fn.
const fn max(a: u32, b: u32) -> u32 {
    if a > b { a } else { b }
}
