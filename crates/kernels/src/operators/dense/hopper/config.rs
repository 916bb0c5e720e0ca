//! What a row makes of the kernel: its types, and the buffers of its ring.

use core::marker::PhantomData;

use crate::operators::dense;
use crate::parts::element::TensorCore;
use crate::parts::ring::Buffers;
use crate::parts::warpgroup::Accumulator;

/// What a row makes of this kernel.
pub trait Config: dense::Config {
    /// Element type of all tensors.
    type T: TensorCore;
    /// Sums of a warpgroup: 64 rows, all columns of a tile.
    type Acc: Accumulator<Self::T>;
    /// Thread blocks of a cluster.
    const CLUSTER: u32 = Self::ROW.tile.cluster;
}

/// Buffers of both operands.
pub struct Operands<C>(PhantomData<C>);

impl<C: Config> Buffers for Operands<C> {
    const STAGES: u32 = C::ROW.tile.stages;
    const BYTES: u32 = C::MEMORY.stage_bytes;
}
