//! The launches that there are.

use super::{BackwardParams, FusedParams, NaiveBackwardParams, PackedBackwardParams, SinkParams};
use crate::entry::Arch;
use crate::families::forward::features::{DROPOUT, PROGRAM, SOFTCAP};
use crate::features::FeatureSet;

/// One launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pass {
    /// Statistics of the rows: `delta = sum(dout out) - dlse`, and the log-sum-exp in powers of two.
    Delta,
    /// Gradients of keys and values.
    Keys,
    /// Gradients of queries.
    Queries,
    /// [`Pass::Delta`] over packed sequences.
    PackedDelta,
    /// [`Pass::Keys`] over packed sequences.
    PackedKeys,
    /// [`Pass::Queries`] over packed sequences.
    PackedQueries,
    /// All three gradients, those of queries as sums.
    Fused,
    /// The same, with sums that do not depend on which thread block is faster, see [`order`](super::order).
    Ordered,
    /// Rounds the sums.
    Round,
    /// Gradients of the sinks, of uniform and of packed sequences, from the statistics. Behind any of the others that has the first.
    Sinks,
    /// Naive: probabilities from scores and statistics, or the gradients of scores from `dout v^T`, in their place.
    NaiveScores,
    /// Naive: gradients of queries.
    NaiveQueries,
    /// Naive: gradients of values, or of keys.
    NaiveKeys,
}

impl Pass {
    /// Those with an owner for every sum, in launch order.
    pub const PORTABLE: [Pass; 3] = [Pass::Delta, Pass::Keys, Pass::Queries];

    /// The same over packed sequences.
    pub const PACKED: [Pass; 3] = [Pass::PackedDelta, Pass::PackedKeys, Pass::PackedQueries];

    /// Those of Hopper, in launch order.
    pub const FUSED: [Pass; 3] = [Pass::Delta, Pass::Fused, Pass::Round];

    /// The same with sums in order.
    pub const ORDERED: [Pass; 3] = [Pass::Delta, Pass::Ordered, Pass::Round];

    /// Those that only the naive kernel has. They come after [`Pass::Delta`], some of them twice.
    pub const NAIVE: [Pass; 3] = [Pass::NaiveScores, Pass::NaiveQueries, Pass::NaiveKeys];

    /// Instruction set that its entries are compiled for.
    pub const fn arch(self) -> Arch {
        match self {
            Pass::Fused | Pass::Ordered | Pass::Round => Arch::Sm90a,
            _ => Arch::Sm80,
        }
    }

    /// The features that its entries run with.
    pub const fn accepts(self) -> FeatureSet {
        match self {
            Pass::Keys | Pass::Queries | Pass::NaiveScores => {
                FeatureSet::of(SOFTCAP).union(FeatureSet::of(PROGRAM)).union(FeatureSet::of(DROPOUT))
            }
            Pass::PackedKeys | Pass::PackedQueries => FeatureSet::of(SOFTCAP).union(FeatureSet::of(PROGRAM)),
            _ => FeatureSet::NONE,
        }
    }

    /// Whether its thread blocks wait for each other.
    pub const fn is_cooperative(self) -> bool {
        matches!(self, Pass::Ordered)
    }

    /// Bytes of its parameter struct.
    pub const fn params_bytes(self) -> u32 {
        let bytes = match self {
            Pass::Delta | Pass::Keys | Pass::Queries | Pass::Round => size_of::<BackwardParams>(),
            Pass::PackedDelta | Pass::PackedKeys | Pass::PackedQueries => size_of::<PackedBackwardParams>(),
            Pass::Fused | Pass::Ordered => size_of::<FusedParams>(),
            Pass::Sinks => size_of::<SinkParams>(),
            Pass::NaiveScores | Pass::NaiveQueries | Pass::NaiveKeys => size_of::<NaiveBackwardParams>(),
        };
        bytes as u32
    }
}
