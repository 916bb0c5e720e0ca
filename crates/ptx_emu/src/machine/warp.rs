//! A warp: its registers, its diverged parts and the points where they meet again.

use super::Block;
use super::polling::Seen;
use crate::alu::{LANES, Regs};
use crate::copies::Copy16;
use crate::order::Knowledge;
use crate::release::{Offer, SCOPES};
use crate::tma::BulkGroup;
use crate::wgmma::WgmmaRegs;

/// "No meeting point": the lanes meet again only when they exit.
pub(super) const NO_NODE: u32 = u32::MAX;

/// Lanes of a warp that run together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(super) node: u32,
    pub(crate) block: Option<Block>,
    /// The last mbarrier wait gave up: the next one blocks.
    pub(crate) gave_up: bool,
}

/// A point where parts of a warp meet again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) pc: u32,
    /// Lanes that must arrive or exit.
    pub(super) expect: u32,
    pub(super) arrived: u32,
    pub(super) parent: u32,
    pub(super) used: bool,
}

/// What lanes had done and learnt at a fence.
#[derive(Debug, Clone)]
pub(crate) struct Fenced {
    pub(crate) lanes: u32,
    pub(crate) know: Knowledge,
}

pub(crate) struct Warp {
    pub(crate) regs: Regs,
    pub(crate) splits: Vec<Split>,
    pub(super) nodes: Vec<Node>,
    /// Lanes that exist and have not exited.
    pub(crate) live: u32,
    pub(crate) valid: u32,
    pub(crate) local: Vec<u8>,
    /// The bits of local memory that somebody wrote.
    pub(crate) local_known: Vec<u8>,
    /// The warp's clock.
    pub(crate) now: u32,
    /// What the lanes have learnt of others, and of each other.
    pub(crate) know: Knowledge,
    pub(crate) carry: u32,
    /// Lanes whose carry depends on nothing but what somebody wrote.
    pub(crate) carry_known: u32,
    pub(crate) copies: Vec<Copy16>,
    pub(crate) group: [u32; LANES],
    /// What lanes had done and learnt at their last fence of each scope: what their strong writes release.
    pub(crate) fences: [Option<Box<Fenced>>; SCOPES],
    /// What lanes may take up with a fence, from strong reads before it.
    pub(crate) offers: Vec<(u32, Offer)>,
    /// The last strong reads.
    pub(super) seen: Vec<Seen>,
    /// Lanes that have arrived at the cluster barrier of the phase in progress.
    pub(crate) arrived: u32,
    /// Lanes whose phase of the cluster barrier is complete and that have not waited for it.
    pub(crate) met: u32,
    /// What the lanes had done and learnt at their last fence.proxy.async.
    pub(crate) proxy: Knowledge,
    pub(crate) wgmma: WgmmaRegs,
    /// Bulk groups committed and not waited for.
    pub(crate) bulk_pending: Vec<BulkGroup>,
    /// The open group of each lane that has copies in it.
    pub(crate) bulk_open: Vec<(u32, u64)>,
    /// Number of the next group.
    pub(crate) bulk_next: u64,
    /// Groups that each lane has committed, empty ones too.
    pub(crate) bulk_commits: [u64; LANES],
}
