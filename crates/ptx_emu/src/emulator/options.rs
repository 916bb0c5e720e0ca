//! Settings of a device and what its launches look for.

use std::time::Duration;

/// What is made of a finding that callers may see differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Severity {
    /// Nobody looks for it.
    Ignore,
    /// The launch goes on, and its report has the finding among its [warnings](crate::LaunchReport::warnings).
    Warn,
    /// The launch fails with it.
    #[default]
    Error,
}

/// Which errors a launch looks for beyond bounds and alignment, which are always checked.
///
/// All of them together take 1.2 times the time of none on tensor instructions, 1.45 times on scalar loops over shared
/// memory (`cargo bench -p ptx_emu`), and memory for records: see [`EmulatorOptions::memory_limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Reads of global and shared memory that nobody wrote, and uses of bits of registers and of local memory that nobody wrote.
    pub uninitialized: bool,
    /// Data races in shared and global memory. The dearest check: it keeps a record for each four bytes.
    pub races: bool,
    /// Asynchronous operations: copies not waited for, wgmma registers touched in flight, copies in flight at exit.
    /// The use of memory in flight is found through the records of `races`.
    pub asynchronous: bool,
    /// Divergent execution of `.aligned` and full-mask instructions.
    pub convergence: bool,
    /// Of `races`: a plain read that nothing orders with an atomic or another strong write of the same bytes. `old = *p` before a loop of
    /// `atomicCAS`, as in the CUDA C++ Programming Guide, and a look at `*p` before `atomicMax` are such reads. They are data races by
    /// the memory consistency model, so that a compiler may repeat or split them, and they order nothing; but whoever makes up
    /// for an old value, as those two do, gets one on every GPU. Plain writes against atomics are always errors.
    pub weak_reads: Severity,
}

impl Checks {
    /// Every check.
    pub const fn all() -> Self {
        Checks { uninitialized: true, races: true, asynchronous: true, convergence: true, weak_reads: Severity::Error }
    }

    /// Only bounds, alignment, barriers and deadlock, which no launch can do without.
    pub const fn none() -> Self {
        Checks {
            uninitialized: false,
            races: false,
            asynchronous: false,
            convergence: false,
            weak_reads: Severity::Ignore,
        }
    }

    /// Sets what is made of plain reads against atomics.
    pub const fn with_weak_reads(mut self, severity: Severity) -> Self {
        self.weak_reads = severity;
        self
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self::all()
    }
}

/// Settings of an [`Emulator`](crate::Emulator).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmulatorOptions {
    /// Errors to look for.
    pub checks: Checks,
    /// 0 runs warps in order and completes every asynchronous operation at the last legal moment. Any other seed picks
    /// the interleaving of warps and diverged parts and the moment of each completion; the same seed picks the same. Under odd seeds
    /// no bulk copy completes before nothing else can go on.
    pub seed: u64,
    /// Bytes of device memory. The records of the checks come on top: up to 4.2 bytes for each byte that is touched, 6.2 where strong
    /// accesses touch it, and more where several threads that nothing orders read the same bytes.
    pub memory_limit: u64,
    /// Warp instructions of one launch, over all CTAs; `None` sets no limit.
    pub instruction_limit: Option<u64>,
    /// Wall time of one launch; `None` sets no limit.
    pub time_limit: Option<Duration>,
    /// Compute capability of the device, as in `sm_90`: modules for a later one are refused.
    pub sm_target: u32,
    /// Most shared memory of a CTA, static and dynamic, in bytes.
    pub max_shared_bytes: u32,
    /// Threads that run CTAs; 0 takes one per processor, 1 the caller's own. CTAs that can talk to each other run on one.
    pub threads: usize,
    /// Multiprocessors of the device. They hold as many CTAs of a launch at a time as [`Emulator::resident_ctas`] tells; kernels
    /// whose CTAs can talk to each other see the difference, for a barrier of more CTAs than are resident never ends.
    ///
    /// [`Emulator::resident_ctas`]: crate::Emulator::resident_ctas
    pub multiprocessors: u32,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        EmulatorOptions {
            checks: Checks::all(),
            seed: 0,
            memory_limit: 4 << 30,
            instruction_limit: None,
            time_limit: Some(Duration::from_secs(600)),
            sm_target: 90,
            // What a Hopper CTA can have.
            max_shared_bytes: 227 << 10,
            threads: 0,
            // The largest cluster fits with a multiprocessor for each CTA, and memory holds all that are resident.
            multiprocessors: 16,
        }
    }
}

impl EmulatorOptions {
    /// Sets the checks.
    pub fn with_checks(mut self, checks: Checks) -> Self {
        self.checks = checks;
        self
    }

    /// Sets the seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the bytes of device memory.
    pub fn with_memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// Sets the warp instructions that a launch may execute.
    pub fn with_instruction_limit(mut self, limit: Option<u64>) -> Self {
        self.instruction_limit = limit;
        self
    }

    /// Sets the time that a launch may take.
    pub fn with_time_limit(mut self, limit: Option<Duration>) -> Self {
        self.time_limit = limit;
        self
    }

    /// Sets the compute capability, as in 90 for `sm_90`.
    pub fn with_sm_target(mut self, sm: u32) -> Self {
        self.sm_target = sm;
        self
    }

    /// Sets the most shared memory of a CTA.
    pub fn with_max_shared_bytes(mut self, bytes: u32) -> Self {
        self.max_shared_bytes = bytes;
        self
    }

    /// Sets the number of multiprocessors; 0 counts as 1.
    pub fn with_multiprocessors(mut self, n: u32) -> Self {
        self.multiprocessors = n;
        self
    }

    /// Sets the number of threads; 0 takes one per processor.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }
}
