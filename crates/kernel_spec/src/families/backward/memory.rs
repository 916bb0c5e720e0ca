//! Where the pieces of a thread block's shared memory lie, for each pass: the kernels' addresses, and the sizes of the launches.

use super::{Pass, STATISTICS_BYTES, Variant, policy};
use crate::shared::Carve;

/// What a tile starts at a multiple of, in bytes: the swizzle repeats after eight rows of 128.
const TILE_ALIGN: u32 = 1024;

/// What statistics start at a multiple of, for copies of 16 bytes.
const ALIGN: u32 = 16;

/// Of the gradients of keys and values: keys and values, whose places the gradients leave through, and stages of queries and output
/// gradients.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// Keys.
    pub k: u32,
    /// Values.
    pub v: u32,
    /// First stage: queries.
    pub stages: u32,
    /// Output gradients inside a stage, behind the queries.
    pub dout: u32,
    /// From one stage to the next.
    pub stage_bytes: u32,
    /// Statistics of the queries of the first stage.
    pub statistics: u32,
    /// From those to the ones of the next stage.
    pub statistics_bytes: u32,
    /// Where weights pass between the warps that share key rows.
    pub weights: u32,
    /// The same for the gradients of scores.
    pub dscores: u32,
    /// All of it.
    pub total: u32,
}

impl Keys {
    /// For a row of this pass.
    pub const fn of(row: &Variant, policy: policy::Keys) -> Keys {
        let mut carve = Carve::new();
        let k = carve.take(row.kv_tile_bytes(), TILE_ALIGN);
        let v = carve.take(row.kv_tile_bytes(), TILE_ALIGN);
        let mut stage = Carve::new();
        stage.take(row.q_tile_bytes(), TILE_ALIGN);
        let dout = stage.take(row.q_tile_bytes(), TILE_ALIGN);
        let stage_bytes = stage.total();
        let stages = carve.take(policy.stages * stage_bytes, TILE_ALIGN);
        let exchanged = if policy.columns > 1 { row.q_block * row.kv_block * row.dtype.bytes() as u32 } else { 0 };
        let weights = carve.take(exchanged, TILE_ALIGN);
        let dscores = carve.take(exchanged, TILE_ALIGN);
        let statistics_bytes = row.q_block * STATISTICS_BYTES;
        let statistics = carve.take(policy.stages * statistics_bytes, ALIGN);
        Keys { k, v, stages, dout, stage_bytes, statistics, statistics_bytes, weights, dscores, total: carve.total() }
    }
}

/// Of the gradients of queries: queries, whose place the gradients leave through, output gradients, and the slots that values and keys
/// pass through.
#[derive(Clone, Copy, Debug)]
pub struct Queries {
    /// Queries.
    pub q: u32,
    /// Output gradients.
    pub dout: u32,
    /// First slot.
    pub slots: u32,
    /// Statistics of the queries.
    pub statistics: u32,
    /// All of it.
    pub total: u32,
}

impl Queries {
    /// For a row of this pass.
    pub const fn of(row: &Variant, policy: policy::Queries) -> Queries {
        let mut carve = Carve::new();
        let q = carve.take(row.q_tile_bytes(), TILE_ALIGN);
        let dout = carve.take(row.q_tile_bytes(), TILE_ALIGN);
        let slots = carve.take(policy.slots * row.kv_tile_bytes(), TILE_ALIGN);
        let statistics = carve.take(row.q_block * STATISTICS_BYTES, ALIGN);
        Queries { q, dout, slots, statistics, total: carve.total() }
    }
}

/// Of the gradients of the sinks: the sum of each warp.
#[derive(Clone, Copy, Debug)]
pub struct Sinks {
    /// Sums of the warps.
    pub sums: u32,
    /// All of it.
    pub total: u32,
}

impl Sinks {
    /// For a row of this pass.
    pub const fn of(row: &Variant) -> Sinks {
        let mut carve = Carve::new();
        let sums = carve.take(row.warps * 4, ALIGN);
        Sinks { sums, total: carve.total() }
    }
}

/// Of the naive probabilities and their gradients: a tile of queries or output gradients, and one of keys or values.
#[derive(Clone, Copy, Debug)]
pub struct NaiveScores {
    /// Queries or output gradients.
    pub q: u32,
    /// Keys or values.
    pub kv: u32,
    /// All of it.
    pub total: u32,
}

impl NaiveScores {
    /// For a row of this pass.
    pub const fn of(row: &Variant) -> NaiveScores {
        let mut carve = Carve::new();
        let q = carve.take(row.q_tile_bytes(), TILE_ALIGN);
        let kv = carve.take(row.kv_tile_bytes(), TILE_ALIGN);
        NaiveScores { q, kv, total: carve.total() }
    }
}

/// Of the naive gradients: slots, each with a tile of weights, which are probabilities or gradients of scores, and the rows that it is
/// multiplied with. The gradients leave through the first.
#[derive(Clone, Copy, Debug)]
pub struct NaiveProduct {
    /// Rows inside a slot, behind the weights.
    pub rows: u32,
    /// From one slot to the next.
    pub slot_bytes: u32,
    /// All of it.
    pub total: u32,
}

impl NaiveProduct {
    /// For a row of one of these passes, and the bytes of the tile that it multiplies.
    pub const fn of(row: &Variant, policy: policy::NaiveProduct, tile_bytes: u32) -> NaiveProduct {
        let mut slot = Carve::new();
        slot.take(row.q_block * row.kv_block * row.dtype.bytes() as u32, TILE_ALIGN);
        let rows = slot.take(tile_bytes, TILE_ALIGN);
        let mut carve = Carve::new();
        carve.take(policy.slots * slot.total(), TILE_ALIGN);
        let gradients = [row.q_tile_bytes(), row.kv_tile_bytes()];
        assert!(
            gradients[0] <= carve.total() && gradients[1] <= carve.total(),
            "the gradients leave through the slots"
        );
        NaiveProduct { rows, slot_bytes: slot.total(), total: carve.total() }
    }
}

/// Of all three gradients in one pass.
#[derive(Clone, Copy, Debug)]
pub struct Fused {
    /// First buffer of keys.
    pub k: u32,
    /// First buffer of values.
    pub v: u32,
    /// First buffer of queries.
    pub q: u32,
    /// First buffer of output gradients.
    pub dout: u32,
    /// First buffer of the gradients of scores.
    pub dscores: u32,
    /// Statistics of the queries of the first buffer.
    pub statistics: u32,
    /// From those to the ones of the next buffer.
    pub statistics_bytes: u32,
    /// A pair of barriers for each buffer of keys; likewise the others.
    pub k_barriers: u32,
    /// See [`Self::k_barriers`].
    pub v_barriers: u32,
    /// See [`Self::k_barriers`].
    pub q_barriers: u32,
    /// See [`Self::k_barriers`].
    pub dout_barriers: u32,
    /// See [`Self::k_barriers`].
    pub dscores_barriers: u32,
    /// A pair of barriers for each share of the sums, where they are added to in order.
    pub turn_barriers: u32,
    /// All of it.
    pub total: u32,
}

impl Fused {
    /// Bytes of the two barriers of a buffer: full and empty.
    pub const BARRIER_PAIR_BYTES: u32 = 16;
    /// Key rows of a warpgroup.
    pub const WARPGROUP_ROWS: u32 = 64;
    /// Registers of a thread of the warpgroup that loads.
    pub const LOAD_REGISTERS: u32 = 24;
    /// Registers of a thread of the two others: with the above, all that a multiprocessor has.
    pub const KEY_REGISTERS: u32 = 240;

    /// For a row of this pass.
    pub const fn of(row: &Variant, policy: policy::Fused) -> Fused {
        let mut carve = Carve::new();
        let k = carve.take(policy.kv_stages * row.kv_tile_bytes(), TILE_ALIGN);
        let v = carve.take(policy.kv_stages * row.kv_tile_bytes(), TILE_ALIGN);
        let q = carve.take(policy.stages * row.q_tile_bytes(), TILE_ALIGN);
        let dout = carve.take(policy.stages * row.q_tile_bytes(), TILE_ALIGN);
        let dscores_bytes = row.q_block * row.kv_block * row.dtype.bytes() as u32;
        let dscores = carve.take(policy.dscores_stages * dscores_bytes, TILE_ALIGN);
        let statistics_bytes = row.q_block * STATISTICS_BYTES;
        let statistics = carve.take(policy.stages * statistics_bytes, ALIGN);
        let pair = Self::BARRIER_PAIR_BYTES;
        let k_barriers = carve.take(policy.kv_stages * pair, pair);
        let v_barriers = carve.take(policy.kv_stages * pair, pair);
        let q_barriers = carve.take(policy.stages * pair, pair);
        let dout_barriers = carve.take(policy.stages * pair, pair);
        let dscores_barriers = carve.take(policy.dscores_stages * pair, pair);
        let turns = if matches!(row.pass, Pass::Ordered) { row.shares() } else { 0 };
        let turn_barriers = carve.take(turns * pair, pair);
        Fused {
            k,
            v,
            q,
            dout,
            dscores,
            statistics,
            statistics_bytes,
            k_barriers,
            v_barriers,
            q_barriers,
            dout_barriers,
            dscores_barriers,
            turn_barriers,
            total: carve.total(),
        }
    }
}
