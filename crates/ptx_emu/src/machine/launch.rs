//! What all CTAs of a launch share, and the seeded random numbers that schedules are drawn from.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use crate::emulator::Checks;
use crate::error::Fault;
use crate::history::Spilled;
use crate::host::Printed;
use crate::ir::*;
use crate::memory::GlobalView;
use crate::release::Releases;
use crate::talk::Talk;

/// Bytes of printed text that a launch keeps.
const MOST_PRINTED: usize = 16 << 20;

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
    /// What was printed, with the CTA, and the bytes that it takes.
    pub(crate) printed: Mutex<(Vec<(u32, Printed)>, usize)>,
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

    /// What a thread of a CTA prints.
    pub(crate) fn print(&self, cta: u32, text: Printed) {
        let mut printed = self.printed.lock().unwrap_or_else(|e| e.into_inner());
        let (lines, bytes) = &mut *printed;
        *bytes += size_of::<Printed>() + text.text.len();
        lines.push((cta, text));
        // Kernels that print without end do not take all memory.
        if *bytes > MOST_PRINTED {
            lines.drain(..lines.len().div_ceil(2));
            *bytes = lines.iter().map(|l| size_of::<Printed>() + l.1.text.len()).sum();
        }
    }

    /// The warnings, and what was printed: CTAs that run side by side come in their order.
    pub(crate) fn into_words(self) -> (Vec<Fault>, Vec<Printed>) {
        let warnings = self.warnings.into_inner().unwrap_or_else(|e| e.into_inner());
        let (mut printed, _) = self.printed.into_inner().unwrap_or_else(|e| e.into_inner());
        if !self.talk.talks {
            printed.sort_by_key(|p| p.0);
        }
        let warnings = warnings.into_values().map(|(_, finding)| *finding).collect();
        (warnings, printed.into_iter().map(|p| p.1).collect())
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
