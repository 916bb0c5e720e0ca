//! Choices that a row makes for its pass. They change how fast a kernel is, never what it computes.

/// None.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Delta {}

/// Of the gradients of keys and values, where they have a pass of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keys {
    /// Places in shared memory that blocks of queries and output gradients pass through: 2 load one while the other is multiplied, 1
    /// leaves that to other thread blocks of the multiprocessor.
    pub stages: u32,
    /// Warps that share key rows and split the columns of their gradients: 2 where one warp has no registers for the gradients of 16
    /// keys and of their values. Weights then pass between them through shared memory; with 1, they stay in registers.
    pub columns: u32,
}

/// Of the gradients of queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Queries {
    /// Places in shared memory that tiles of values and keys pass through in turn.
    pub slots: u32,
}

/// Over packed sequences: as over equal ones.
pub type PackedDelta = Delta;

/// The same.
pub type PackedKeys = Keys;

/// The same.
pub type PackedQueries = Queries;

/// Of all three gradients in one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fused {
    /// Buffers of keys, and as many of values: with two, those of the next block arrive while the last one's gradients leave.
    pub kv_stages: u32,
    /// Buffers of queries, and as many of output gradients.
    pub stages: u32,
    /// Buffers of the gradients of scores: how far one warpgroup may run ahead of the others.
    pub dscores_stages: u32,
}

/// The same.
pub type Ordered = Fused;

/// Of the rounding of the sums that [`Fused`] leaves: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Round {}

/// Of the gradients of the sinks: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sinks {}

/// None: a tile a thread block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NaiveScores {}

/// Of the naive gradients, a product with what is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NaiveProduct {
    /// Places in shared memory that tiles pass through in turn.
    pub slots: u32,
}

/// Of the gradients of queries.
pub type NaiveQueries = NaiveProduct;

/// Of the gradients of keys or values.
pub type NaiveKeys = NaiveProduct;
