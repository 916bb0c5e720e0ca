//! What a launch is asked to do, and what it did.

use std::time::Duration;

use crate::counters::Counters;
use crate::error::Fault;

/// Dimensions and arguments of a launch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Launch {
    /// CTAs along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared_bytes: u32,
    /// The bytes of each kernel parameter, in order.
    pub params: Vec<Vec<u8>>,
    /// Replaces the emulator's seed for this launch.
    pub seed: Option<u64>,
    /// CTAs of a cluster along x, y, z: the grid is a multiple of it. `None` takes what the entry says, or no clusters.
    pub cluster: Option<[u32; 3]>,
}

impl Launch {
    /// A launch without dynamic shared memory and parameters.
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Launch { grid, block, ..Launch::default() }
    }

    /// Sets the dynamic shared memory.
    pub fn with_dynamic_shared_bytes(mut self, bytes: u32) -> Self {
        self.dynamic_shared_bytes = bytes;
        self
    }

    /// Adds a parameter by its bytes.
    pub fn with_param(mut self, bytes: &[u8]) -> Self {
        self.params.push(bytes.to_vec());
        self
    }

    /// Adds a device address as a parameter.
    pub fn with_ptr(self, ptr: u64) -> Self {
        self.with_param(&ptr.to_le_bytes())
    }

    /// Adds a 32-bit integer as a parameter.
    pub fn with_u32(self, v: u32) -> Self {
        self.with_param(&v.to_le_bytes())
    }

    /// Adds an f32 as a parameter.
    pub fn with_f32(self, v: f32) -> Self {
        self.with_param(&v.to_le_bytes())
    }

    /// Sets the CTAs of a cluster along x, y, z.
    pub fn with_cluster(mut self, cluster: [u32; 3]) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// Sets the seed of this launch.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

/// What a launch did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaunchReport {
    /// Deterministic counts.
    pub counters: Counters,
    /// Findings of [`Severity::Warn`](crate::Severity), one for each instruction that made one, in the order of the text. Of those of
    /// several CTAs it is the first one's in the grid.
    pub warnings: Vec<Fault>,
    /// The seed that the launch ran with.
    pub seed: u64,
    /// Wall time of the launch.
    pub elapsed: Duration,
}
