//! What a row makes of v3, and the rings that follow from it.

use core::marker::PhantomData;

use cuda_std::{shared, wgmma};
use kernel_spec::families::forward::memory;
use kernel_spec::families::forward::memory::WARPGROUP_ROWS;
use kernel_spec::families::forward::policy;

use crate::attention;
use crate::attention::v3::note::TileNotes;
use crate::parts::element::TensorCore;
use crate::parts::fragments::Fragments;
use crate::parts::ring::{BARRIER_PAIR, Buffers, Ring};
use crate::parts::shared_tile::SharedMatrix;
use crate::parts::warpgroup::{WARPGROUP, WarpgroupTiles};

/// What a row makes of v3.
pub trait Config:
    attention::Config<T: TensorCore, Out: TensorCore> + WarpgroupTiles<Operand = <Self as attention::Config>::T>
{
    /// The choices of the row.
    const POLICY: policy::V3;
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

/// One role's view of the rings, and the notes beside the queries.
pub struct Rings<C> {
    /// Queries.
    pub q: Ring<Queries<C>>,
    /// Keys.
    pub k: Ring<Keys<C>>,
    /// Values.
    pub v: Ring<Values<C>>,
    /// A note for every buffer of queries.
    pub notes: TileNotes,
}

impl<C: Config> Rings<C> {
    /// The rings from their start.
    #[inline(always)]
    pub fn new() -> Self {
        const { assert!(BARRIER_PAIR == memory::V3::BARRIER_PAIR_BYTES, "rings lie as the row says") };
        let memory = const { memory::V3::of(C::ROW, C::POLICY) };
        let at = |offset: u32| shared::dynamic() + offset;
        Rings {
            q: Ring::new(at(memory.q), at(memory.q_barriers)),
            k: Ring::new(at(memory.k), at(memory.k_barriers)),
            v: Ring::new(at(memory.v), at(memory.v_barriers)),
            notes: TileNotes { address: at(memory.notes), bytes: memory.note_bytes },
        }
    }

    /// Sets up their barriers.
    ///
    /// # Safety
    /// One thread, before anybody uses them.
    #[inline(always)]
    pub unsafe fn init(&self) {
        // SAFETY: passed on.
        unsafe {
            self.q.init(C::WARPGROUPS * WARPGROUP);
            self.k.init(C::WARPGROUPS);
            self.v.init(C::WARPGROUPS);
        }
    }
}
