//! The launches that attention is made of.

use super::{ForwardParams, Kernel, NaiveParams, V3Params};
use crate::entry::Arch;
use crate::families::sequences::{AppendParams, SequencesParams, SplitV3Params, TilesParams};

/// One launch. The flash kernels are one pass, the naive kernel is three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pass {
    /// Naive: `scores = scale * q k^T`, hidden elements at minus infinity.
    Scores,
    /// Naive: `probs = softmax(scores)` row by row, and the log-sum-exp.
    Softmax,
    /// Naive: `out = probs v`.
    Output,
    /// All of v1.
    V1,
    /// All of v2.
    V2,
    /// All of v3.
    V3,
    /// Sequences of few query rows, see [`sequences`](crate::families::sequences).
    Decode,
    /// The same, whose splits of the keys are the thread blocks of a cluster.
    ClusterDecode,
    /// Sequences of more.
    Prefill,
    /// All of v3, over packed sequences or contiguous caches.
    PackedV3,
    /// The same up to sums that are not yet divided, of one split of the keys; caches may be in pages.
    SplitV3,
    /// The list of their tiles.
    Tiles,
    /// Splits of the keys, put together.
    Merge,
    /// New keys and values, written to a cache.
    Append,
}

impl Pass {
    /// The instruction set that it is compiled for.
    pub const fn arch(self) -> Arch {
        match self {
            Pass::V3 | Pass::PackedV3 | Pass::SplitV3 | Pass::ClusterDecode => Arch::Sm90a,
            _ => Arch::Sm80,
        }
    }

    /// Whether its text has a hook for programs on scores: whether it computes scores, if only to mend.
    pub const fn has_score_hook(self) -> bool {
        !matches!(self, Pass::Softmax | Pass::Tiles | Pass::Append)
    }

    /// Bytes of its parameter struct.
    pub const fn params_bytes(self) -> u32 {
        let bytes = match self {
            Pass::Scores | Pass::Softmax | Pass::Output => size_of::<NaiveParams>(),
            Pass::V1 | Pass::V2 => size_of::<ForwardParams>(),
            Pass::V3 | Pass::PackedV3 => size_of::<V3Params>(),
            Pass::SplitV3 => size_of::<SplitV3Params>(),
            Pass::Decode | Pass::ClusterDecode | Pass::Prefill | Pass::Merge => size_of::<SequencesParams>(),
            Pass::Append => size_of::<AppendParams>(),
            Pass::Tiles => size_of::<TilesParams>(),
        };
        bytes as u32
    }

    /// Thread blocks of a cluster, at most.
    pub const fn max_cluster(self) -> u32 {
        // Hopper has up to 16, but few places for them: of 10 on, 8 clusters took 1.5 times as long as of 8 (H200, docs/perf-log.md).
        if matches!(self, Pass::ClusterDecode) { 8 } else { 1 }
    }

    /// The kernel that this pass belongs to.
    pub const fn kernel(self) -> Kernel {
        match self {
            Pass::Scores | Pass::Softmax | Pass::Output => Kernel::Naive,
            Pass::V1 => Kernel::V1,
            // Those of sequences have its algorithm.
            Pass::V2 | Pass::Decode | Pass::ClusterDecode | Pass::Prefill | Pass::Merge | Pass::Append => Kernel::V2,
            Pass::V3 | Pass::PackedV3 | Pass::SplitV3 | Pass::Tiles => Kernel::V3,
        }
    }
}
