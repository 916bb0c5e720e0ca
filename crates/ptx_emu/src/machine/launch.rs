//! What all CTAs of a launch share, and the seeded random numbers that schedules are drawn from.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use crate::emulator::Checks;
use crate::ir::*;
use crate::memory::GlobalView;

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
    /// Global addresses through which CTAs order each other, with the CTAs that released there.
    pub(crate) syncs: Mutex<HashMap<u64, HashSet<u32>>>,
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
