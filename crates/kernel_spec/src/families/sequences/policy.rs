//! Choices that a row makes for its pass. They change how fast a kernel is, never what it computes.

/// Of decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decode {
    /// Places in shared memory that each warp's tiles of keys and values pass through in turn.
    pub slots: u32,
}

/// Of decode in clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterDecode {
    /// As of [`Decode`].
    pub slots: u32,
}

/// Of prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefill {
    /// Places in shared memory that tiles of keys and values pass through in turn.
    pub slots: u32,
    /// As of [`V2`](crate::families::forward::policy::V2).
    pub early_values: bool,
}

/// None: a warp a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Merge {}

/// None: a warp a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Append {}

/// None.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {}

pub use crate::families::forward::policy::V3 as PackedV3;
pub use crate::families::forward::policy::V3 as SplitV3;
