//! What a launch needs to know of a compiled entry point, whatever it computes.

use crate::features::FeatureSet;

/// One compiled entry point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its name in the PTX.
    pub symbol: &'static str,
    /// Instruction set that it is compiled for.
    pub arch: Arch,
    /// Threads of one thread block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of one thread block.
    pub shared_bytes: u32,
    /// Thread blocks that must fit on one multiprocessor, which bounds the registers of a thread.
    pub min_ctas: u32,
    /// Bytes of its only parameter, a struct passed by value.
    pub params_bytes: u32,
    /// Slots of the [`Features`](crate::Features) block at the end of that struct, without the one for the set itself.
    pub feature_slots: u32,
    /// The features that it runs with, each and together: `cargo xtask build` assembles all their combinations and fails on a spill.
    pub accepts: FeatureSet,
    /// Whether its thread blocks wait for each other, so that all of a launch have to fit on the GPU at a time.
    pub cooperative: bool,
    /// Thread blocks of a cluster, at most; 1 for an entry that knows nothing of clusters.
    pub max_cluster: u32,
}

impl Entry {
    /// Whether it runs with the feature of a slot.
    ///
    /// Kernels ask in a `const` block, or LLVM finds out too late, and the loops of plain v3 come out in another order.
    pub const fn takes(&self, slot: u32) -> bool {
        self.accepts.contains(FeatureSet::of(slot))
    }
}

/// Instruction set that an entry is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Arch {
    /// PTX for compute capability 8.0; the driver compiles it for every later GPU too.
    Sm80,
    /// PTX for compute capability 9.0 alone: wgmma, register reallocation.
    Sm90a,
}

impl Arch {
    /// Least compute capability that runs it, as `(major, minor)`.
    pub const fn least_compute_capability(self) -> (u32, u32) {
        match self {
            Arch::Sm80 => (8, 0),
            Arch::Sm90a => (9, 0),
        }
    }

    /// Whether a GPU of this compute capability runs it.
    pub const fn runs_on(self, compute_capability: (u32, u32)) -> bool {
        match self {
            Arch::Sm80 => compute_capability.0 >= 8,
            // The `a` features are promised to no later GPU.
            Arch::Sm90a => compute_capability.0 == 9 && compute_capability.1 == 0,
        }
    }

    /// PTX version of its entries, as `(major, minor)`, where it is not the least that knows the architecture.
    pub const fn ptx_version(self) -> Option<(u32, u32)> {
        match self {
            Arch::Sm80 => None,
            // The first with `red` of several floats (PTX ISA, release notes).
            Arch::Sm90a => Some((8, 1)),
        }
    }

    /// Name of the target as rustc and ptxas write it.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm90a => "sm_90a",
        }
    }

    /// Shared memory that every GPU of the architecture gives one thread block, in bytes.
    pub const fn shared_bytes(self) -> u32 {
        match self {
            // sm_86 and sm_89 have the least of all since sm_80.
            Arch::Sm80 => 99 * 1024,
            Arch::Sm90a => 227 * 1024,
        }
    }
}
