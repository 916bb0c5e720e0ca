//! What a row makes of the fused kernel: its types and its rings of buffers.

use core::marker::PhantomData;

use cuda_std::{shared, wgmma};
use kernel_spec::families::backward::memory::Fused as Memory;
use kernel_spec::families::backward::{Pass, STATISTICS_BYTES, policy};

use crate::attention::backward;
use crate::attention::backward::fused::sums;
use crate::parts::element::TensorCore;
use crate::parts::ring::{BARRIER_PAIR, Buffers, Ring};
use crate::parts::shared_tile::SharedMatrix;
use crate::parts::warpgroup::{Accumulator, Operands};

/// What a row makes of this kernel.
pub trait Config: backward::Config<T: TensorCore + wgmma::WarpgroupMma<{ sums::SHARE_FRAGMENTS }>> {
    /// The choices of the row.
    const POLICY: policy::Fused;
    /// Columns that are multiplied; the tiles have whole panels.
    const DIM: usize;
    /// A tile of keys or of values.
    type Kv: SharedMatrix<Element = Self::T>;
    /// A tile of queries or output gradients.
    type Q: SharedMatrix<Element = Self::T>;
    /// Gradients of the scores of a step, queries by keys.
    type Dscores: SharedMatrix<Element = Self::T>;
    /// Scores of a warpgroup: its keys by all queries.
    type Scores: Accumulator<Self::T>;
    /// The same as operands.
    type Weights: Operands<Self::Scores, Self::T>;
    /// A gradient of a warpgroup's keys.
    type Acc: Accumulator<Self::T>;
    /// Whether the sums of dq get their parts in an order that does not depend on time.
    const IN_ORDER: bool = matches!(Self::ROW.pass, Pass::Ordered);
    /// Warpgroups that have keys.
    const WARPGROUPS: u32 = Self::ROW.kv_block / Memory::WARPGROUP_ROWS;
}

/// Buffers of keys.
pub struct Keys<C>(PhantomData<C>);
/// Buffers of values.
pub struct Values<C>(PhantomData<C>);
/// Buffers of queries, with their statistics.
pub struct Queries<C>(PhantomData<C>);
/// Buffers of output gradients.
pub struct Douts<C>(PhantomData<C>);
/// Buffers of gradients of scores.
pub struct Dscores<C>(PhantomData<C>);

impl<C: Config> Buffers for Keys<C> {
    const STAGES: u32 = C::POLICY.kv_stages;
    const BYTES: u32 = C::Kv::BYTES;
}

impl<C: Config> Buffers for Values<C> {
    const STAGES: u32 = C::POLICY.kv_stages;
    const BYTES: u32 = C::Kv::BYTES;
}

impl<C: Config> Buffers for Queries<C> {
    const STAGES: u32 = C::POLICY.stages;
    const BYTES: u32 = C::Q::BYTES;
    const EXPECTED: u32 = C::Q::BYTES + C::ROW.q_block * STATISTICS_BYTES;
}

impl<C: Config> Buffers for Douts<C> {
    const STAGES: u32 = C::POLICY.stages;
    const BYTES: u32 = C::Q::BYTES;
}

impl<C: Config> Buffers for Dscores<C> {
    const STAGES: u32 = C::POLICY.dscores_stages;
    const BYTES: u32 = C::Dscores::BYTES;
}

/// Turns to add to the sums of dq, which have no buffers.
pub struct Turns;

impl Buffers for Turns {
    const STAGES: u32 = 1;
    const BYTES: u32 = 0;
}

/// The rings of a thread block, with the first buffer of statistics.
pub struct Rings<C> {
    /// Of keys.
    pub k: Ring<Keys<C>>,
    /// Of values.
    pub v: Ring<Values<C>>,
    /// Of queries.
    pub q: Ring<Queries<C>>,
    /// Of output gradients.
    pub dout: Ring<Douts<C>>,
    /// Of gradients of scores.
    pub dscores: Ring<Dscores<C>>,
    /// Of the first warpgroup's turns.
    turns: u32,
    statistics: u32,
}

impl<C: Config> Rings<C> {
    /// Where its pieces lie.
    pub const MEMORY: Memory = Memory::of(C::ROW, C::POLICY);

    #[inline(always)]
    pub fn new() -> Self {
        const { assert!(BARRIER_PAIR == Memory::BARRIER_PAIR_BYTES, "rings lie as the row says") };
        let at = |offset: u32| shared::dynamic() + offset;
        let memory = Self::MEMORY;
        Rings {
            k: Ring::new(at(memory.k), at(memory.k_barriers)),
            v: Ring::new(at(memory.v), at(memory.v_barriers)),
            q: Ring::new(at(memory.q), at(memory.q_barriers)),
            dout: Ring::new(at(memory.dout), at(memory.dout_barriers)),
            dscores: Ring::new(at(memory.dscores), at(memory.dscores_barriers)),
            turns: at(memory.turn_barriers),
            statistics: at(memory.statistics),
        }
    }

    /// The turns of a warpgroup.
    #[inline(always)]
    pub fn turns(&self, group: u32) -> Ring<Turns> {
        Ring::new(0, self.turns + group * BARRIER_PAIR)
    }

    /// Where the statistics of the current buffer of queries lie.
    #[inline(always)]
    pub fn statistics(&self) -> u32 {
        self.statistics + self.q.stage() * Self::MEMORY.statistics_bytes
    }
}
