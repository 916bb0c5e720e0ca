//! What all CTAs of a launch share, and the seeded random numbers that schedules are drawn from.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use crate::emulator::Checks;
use crate::error::Fault;
use crate::history::Spilled;
use crate::ir::*;
use crate::memory::GlobalView;
use crate::release::Releases;
use crate::talk::Talk;

/// What all CTAs of a launch share.
pub(crate) struct LaunchCtx<'a> {
    pub(crate) prog: &'a Program,
    pub(crate) mem: &'a GlobalView,
    pub(crate) params: Vec<u8>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: u32,
    pub(crate) checks: Checks,
    pub(crate) seed: u64,
    pub(crate) simd: bool,
    pub(crate) launch: u32,
    /// Constants with the addresses of global variables filled in.
    pub(crate) consts: Vec<(Slot, bool, Const)>,
    pub(crate) instruction_limit: u64,
    pub(crate) deadline: Option<Instant>,
    pub(crate) executed: AtomicU64,
    pub(crate) stop: AtomicBool,
    pub(crate) source: &'a str,
    pub(crate) line_starts: &'a [usize],
    pub(crate) locs: &'a [(u32, u32, u32)],
    pub(crate) files: &'a HashMap<u32, String>,
    /// What was released at addresses of global memory.
    pub(crate) releases: Mutex<Releases>,
    /// Accesses to global memory on record for which a word is not enough.
    pub(crate) spilled: Spilled,
    /// What was found and does not end the launch: by instruction, with the CTA.
    pub(crate) warnings: Mutex<BTreeMap<u32, (u32, Box<Fault>)>>,
    /// How the kernel's CTAs can reach each other.
    pub(crate) talk: Talk,
    /// CTAs of a cluster along x, y, z.
    pub(crate) cluster: [u32; 3],
    /// The launch or the entry asks for clusters.
    pub(crate) explicit_cluster: bool,
    /// Clusters that are resident at a time.
    pub(crate) resident_clusters: u32,
    pub(crate) multiprocessors: u32,
}

impl LaunchCtx<'_> {
    /// Notes a finding of an instruction that does not end the launch.
    pub(crate) fn warn(&self, pc: u32, cta: u32, finding: impl FnOnce() -> Box<Fault>) {
        let mut warnings = self.warnings.lock().unwrap_or_else(|e| e.into_inner());
        if warnings.get(&pc).is_none_or(|(first, _)| cta < *first) {
            warnings.insert(pc, (cta, finding()));
        }
    }

    pub(crate) fn into_warnings(self) -> Vec<Fault> {
        let warnings = self.warnings.into_inner().unwrap_or_else(|e| e.into_inner());
        warnings.into_values().map(|(_, finding)| *finding).collect()
    }

    /// Position of a CTA in the grid.
    pub(crate) fn ctaid(&self, index: u32) -> [u32; 3] {
        let [gx, gy, _] = self.grid;
        [index % gx, index / gx % gy, index / gx / gy]
    }

    /// The CTAs of a cluster, by rank.
    pub(super) fn members(&self, cluster: u32) -> Vec<u32> {
        let [cx, cy, cz] = self.cluster;
        let [gx, gy, _] = self.grid;
        let (nx, ny) = (gx / cx, gy / cy);
        let at = [cluster % nx * cx, cluster / nx % ny * cy, cluster / nx / ny * cz];
        let rank = |r: u32| [r % cx, r / cx % cy, r / cx / cy];
        (0..cx * cy * cz)
            .map(|r| {
                let [x, y, z] = rank(r);
                (at[0] + x) + gx * ((at[1] + y) + gy * (at[2] + z))
            })
            .collect()
    }
}

/// SplitMix64.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}
