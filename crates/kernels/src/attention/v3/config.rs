//! What a row makes of v3.

use core::marker::PhantomData;

use cuda_std::wgmma;
use kernel_spec::families::forward::features::{BLOCKS, PROGRAM, SOFTCAP};
use kernel_spec::families::forward::memory::WARPGROUP_ROWS;
use kernel_spec::families::forward::policy;

use crate::attention;
use crate::parts::element::TensorCore;
use crate::parts::fragments::Fragments;
use crate::parts::ring::Buffers;
use crate::parts::shared_tile::SharedMatrix;
use crate::parts::warpgroup::WarpgroupTiles;

/// What a row makes of v3.
pub trait Config:
    attention::Config<T: TensorCore, Out: TensorCore> + WarpgroupTiles<Operand = <Self as attention::Config>::T>
{
    /// The choices of the row.
    const POLICY: policy::V3;
    /// Whether scores pass through [`score::modify`](crate::attention::score::modify): only in rows that take what changes them.
    const SCORED: bool = Self::ROW.entry.takes(SOFTCAP) || Self::ROW.entry.takes(PROGRAM);
    /// Whether the keys of a tile come in the order of a list, see `kernel_spec::families::blocks`.
    const LISTED: bool = Self::ROW.entry.takes(BLOCKS);
    /// Whether tiles come from a list, see [`packed`](crate::attention::v3::packed).
    const PACKED: bool;
    /// Whether they are tiles of a split of the keys, see [`split`](crate::attention::v3::split). `PACKED`, too.
    const SPLIT: bool;
    /// Warpgroups that multiply.
    const WARPGROUPS: u32 = Self::ROW.q_block / WARPGROUP_ROWS;
}

/// Buffers of queries.
pub struct Queries<C>(PhantomData<C>);
/// Buffers of keys.
pub struct Keys<C>(PhantomData<C>);
/// Buffers of values.
pub struct Values<C>(PhantomData<C>);

impl<C: Config> Buffers for Queries<C> {
    const STAGES: u32 = C::POLICY.q_buffers;
    const BYTES: u32 = C::Q::BYTES;
}

impl<C: Config> Buffers for Keys<C> {
    const STAGES: u32 = C::POLICY.stages;
    const BYTES: u32 = C::K::BYTES;
}

impl<C: Config> Buffers for Values<C> {
    const STAGES: u32 = C::POLICY.stages;
    const BYTES: u32 = C::V::BYTES;
}

/// Registers of the loading warpgroup.
pub struct LoadRegisters<C>(PhantomData<C>);
/// Registers of the others.
pub struct MathRegisters<C>(PhantomData<C>);

impl<C: Config> wgmma::Registers for LoadRegisters<C> {
    const COUNT: u32 = C::POLICY.load_registers;
}

impl<C: Config> wgmma::Registers for MathRegisters<C> {
    const COUNT: u32 = C::POLICY.math_registers;
}

/// One value for each row of a warpgroup's fragments.
pub type Rows<C> = <<C as WarpgroupTiles>::Scores as Fragments>::Rows;
