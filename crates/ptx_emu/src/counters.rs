//! What a launch did, in numbers that do not depend on time or on the machine.

use crate::ir::CLASSES;

/// Deterministic counts of one launch.
///
/// Every number follows from the PTX and its inputs alone: two launches of a race-free kernel count the same, whatever
/// the seed, except [`barrier_waits`](Self::barrier_waits) and the instructions of polling loops, which depend on the
/// interleaving that the seed picks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Instructions, once a warp (or diverged part of a warp).
    pub warp_instructions: u64,
    /// Instructions, once a lane that executes them.
    pub lane_instructions: u64,
    /// Lane instructions by class, in the order of [`InstructionClass::ALL`].
    pub by_class: [u64; CLASSES],
    /// Operations on f32 outside of tensor instructions; a fused multiply-add is two.
    pub f32_flops: u64,
    /// Operations on f16 and bf16 outside of tensor instructions.
    pub half_flops: u64,
    /// Operations on f64.
    pub f64_flops: u64,
    /// Operations of `mma` and `wgmma`.
    pub tensor_flops: u64,
    /// Lanes that executed a special function (ex2, lg2, rcp, sqrt, div, ...).
    pub special_functions: u64,
    /// Bytes that lanes asked of global memory, copies included.
    pub global_bytes_read: u64,
    /// Bytes that lanes wrote to global memory, copies included.
    pub global_bytes_written: u64,
    /// 32-byte sectors read, each once per warp instruction: coalescing.
    pub global_sectors_read: u64,
    /// 32-byte sectors written, each once per warp instruction.
    pub global_sectors_written: u64,
    /// Bytes of the sectors that were read at least once in the launch: traffic with an endless cache.
    pub unique_bytes_read: u64,
    /// Bytes of the sectors that were written at least once in the launch.
    pub unique_bytes_written: u64,
    /// Bytes that lanes read from shared memory.
    pub shared_bytes_read: u64,
    /// Bytes that lanes wrote to shared memory.
    pub shared_bytes_written: u64,
    /// Passes over the 32 banks that the shared accesses took.
    pub shared_wavefronts: u64,
    /// Passes more than the accesses' size alone asks for.
    pub shared_bank_conflicts: u64,
    /// Times that a warp had to wait at a barrier or mbarrier.
    pub barrier_waits: u64,
    /// Atomic operations, once a lane.
    pub atomics: u64,
    /// Lane copies by cp.async and bulk copies.
    pub async_copies: u64,
    /// Branches at which a warp diverged.
    pub divergent_branches: u64,
    /// CTAs that ran.
    pub ctas: u64,
}

/// Classes of instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum InstructionClass {
    Integer,
    Float,
    Half,
    Double,
    Special,
    Convert,
    Move,
    Predicate,
    Control,
    GlobalMemory,
    SharedMemory,
    LocalMemory,
    Atomic,
    Warp,
    Barrier,
    Async,
    Tensor,
}

impl InstructionClass {
    /// All classes, in the order of [`Counters::by_class`].
    pub const ALL: [InstructionClass; CLASSES] = [
        Self::Integer,
        Self::Float,
        Self::Half,
        Self::Double,
        Self::Special,
        Self::Convert,
        Self::Move,
        Self::Predicate,
        Self::Control,
        Self::GlobalMemory,
        Self::SharedMemory,
        Self::LocalMemory,
        Self::Atomic,
        Self::Warp,
        Self::Barrier,
        Self::Async,
        Self::Tensor,
    ];
}

impl Counters {
    /// Lane instructions of one class.
    pub fn class(&self, class: InstructionClass) -> u64 {
        self.by_class[class as usize]
    }

    /// Adds the counts of another launch.
    pub fn add(&mut self, o: &Counters) {
        self.warp_instructions += o.warp_instructions;
        self.lane_instructions += o.lane_instructions;
        for (a, b) in self.by_class.iter_mut().zip(o.by_class) {
            *a += b;
        }
        self.f32_flops += o.f32_flops;
        self.half_flops += o.half_flops;
        self.f64_flops += o.f64_flops;
        self.tensor_flops += o.tensor_flops;
        self.special_functions += o.special_functions;
        self.global_bytes_read += o.global_bytes_read;
        self.global_bytes_written += o.global_bytes_written;
        self.global_sectors_read += o.global_sectors_read;
        self.global_sectors_written += o.global_sectors_written;
        self.unique_bytes_read += o.unique_bytes_read;
        self.unique_bytes_written += o.unique_bytes_written;
        self.shared_bytes_read += o.shared_bytes_read;
        self.shared_bytes_written += o.shared_bytes_written;
        self.shared_wavefronts += o.shared_wavefronts;
        self.shared_bank_conflicts += o.shared_bank_conflicts;
        self.barrier_waits += o.barrier_waits;
        self.atomics += o.atomics;
        self.async_copies += o.async_copies;
        self.divergent_branches += o.divergent_branches;
        self.ctas += o.ctas;
    }
}
