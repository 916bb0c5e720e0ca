//! One CTA: what it is made of, how it begins and what must be done at its end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::peers::Peers;
use super::warp::{NO_NODE, Split, Warp};
use super::{BARRIERS, Exec, LaunchCtx, Rng};
use crate::alu::LANES;
use crate::alu::Regs;
use crate::barrier::Barrier;
use crate::counters::Counters;
use crate::error::FaultKind;
use crate::history::CTAS;
use crate::ir::*;
use crate::landing::Landing;
use crate::mbarrier::Mbarrier;
use crate::order::Knowledge;
use crate::release::{Place, Releases};
use crate::shared::{self, Shared};
use crate::tma::BulkOp;
use crate::wgmma::{WarpGroup, WgmmaRegs};

/// mbarriers that can be told apart by the race check.
pub(crate) const MBAR_AGENTS: u32 = 128;

pub(crate) struct Cta<'a> {
    pub(crate) ctx: &'a LaunchCtx<'a>,
    pub(crate) index: u32,
    /// The index as records have it.
    pub(crate) number: u32,
    pub(crate) ctaid: [u32; 3],
    /// Position in the cluster.
    pub(crate) rank: u32,
    /// The CTAs of the cluster by rank, as records have them.
    pub(crate) members: Arc<[u32]>,
    /// Number of the cluster in the grid.
    pub(crate) cluster: u32,
    /// The other CTAs of the cluster, while this one runs.
    pub(crate) peers: Peers<'a>,
    /// All threads have ended: nobody may touch its shared memory any more.
    pub(crate) exited: bool,
    pub(crate) warps: Vec<Warp>,
    pub(crate) shared: Shared,
    pub(crate) bars: Vec<Barrier>,
    /// Destinations of barrier reductions: barrier, warp, lanes, kind, register, predicate.
    pub(crate) red_results: Vec<(u32, u32, u32, BarKind, Slot, u32)>,
    pub(crate) mbars: BTreeMap<u32, Mbarrier>,
    pub(crate) mbar_agents: HashMap<u32, u32>,
    pub(crate) groups: Vec<WarpGroup>,
    pub(crate) bulk: Vec<BulkOp>,
    /// What other CTAs of the cluster have sent here and has not arrived.
    pub(crate) landing: Vec<Landing>,
    pub(crate) rng: Rng,
    pub(crate) counters: Counters,
    pub(crate) clock_base: u32,
    /// The latest clock of an asynchronous access.
    pub(crate) top_clock: u32,
    pub(crate) last_alloc: usize,
    pub(crate) ticks: u64,
    /// What was released at addresses of its shared memory.
    pub(crate) releases: Releases,
    pub(crate) agents: usize,
    /// The warp whose turn is next.
    pub(super) next_warp: usize,
    /// The last turn only looked again at what had not changed.
    pub(crate) polled: bool,
    /// The last turn ended with its share of instructions.
    pub(super) cut: bool,
    /// The last strong read read what it had read before.
    pub(super) repeats: bool,
    /// It did so in the state that it was in before.
    pub(super) stuck: bool,
}

impl<'a> Cta<'a> {
    pub(crate) fn new(ctx: &'a LaunchCtx<'a>) -> Self {
        let p = ctx.prog;
        let threads = ctx.block.iter().product::<u32>() as usize;
        let nwarps = threads.div_ceil(LANES);
        let groups = nwarps.div_ceil(4);
        // Readers: warps, wgmma units, bulk readers. Writers only: mbarriers.
        let readers = nwarps + if p.uses_wgmma { groups } else { 0 } + if p.uses_bulk { nwarps } else { 0 };
        let agents = nwarps + groups + nwarps + if p.uses_mbarrier { MBAR_AGENTS as usize } else { 0 };
        let shared_bytes = p.dynamic_shared_offset as usize + ctx.dynamic_shared as usize;
        let shared_bytes = shared_bytes.max(p.static_shared as usize);
        let warps = (0..nwarps)
            .map(|w| Warp {
                regs: Regs::new(p.slots, p.preds, ctx.checks.uninitialized),
                splits: Vec::new(),
                nodes: Vec::new(),
                live: 0,
                valid: 0,
                local: vec![0; p.local_bytes as usize * LANES],
                local_known: vec![0; p.local_bytes as usize * LANES],
                now: 0,
                know: Knowledge::new(w as u32, agents),
                carry: 0,
                carry_known: 0,
                copies: Vec::new(),
                group: [0; LANES],
                fences: Default::default(),
                offers: Vec::new(),
                seen: Vec::new(),
                arrived: 0,
                met: 0,
                proxy: Knowledge::new(w as u32, agents),
                wgmma: WgmmaRegs::new(if p.uses_wgmma { p.slots as usize + 1 } else { 0 }),
                bulk_pending: Vec::new(),
                bulk_open: Vec::new(),
                bulk_next: 0,
                bulk_commits: [0; LANES],
            })
            .collect();
        Cta {
            ctx,
            index: 0,
            number: 0,
            ctaid: [0; 3],
            rank: 0,
            members: Arc::new([]),
            cluster: 0,
            peers: Peers::default(),
            exited: false,
            warps,
            shared: Shared::new(shared_bytes, readers, nwarps as u32, ctx.checks),
            bars: vec![Barrier::default(); BARRIERS],
            red_results: Vec::new(),
            mbars: BTreeMap::new(),
            mbar_agents: HashMap::new(),
            groups: (0..groups).map(|_| WarpGroup::default()).collect(),
            bulk: Vec::new(),
            landing: Vec::new(),
            rng: Rng::new(0),
            counters: Counters::default(),
            clock_base: 0,
            top_clock: 0,
            last_alloc: 0,
            ticks: 0,
            releases: Releases::default(),
            agents,
            next_warp: 0,
            polled: false,
            cut: false,
            repeats: false,
            stuck: false,
        }
    }

    /// Number of the wgmma unit of a warpgroup, as an agent of the race check.
    pub(crate) fn wgmma_agent(&self, group: u32) -> u32 {
        self.warps.len() as u32 + group
    }

    /// Number of the bulk-copy reader of a warp, as an agent: after the warpgroups when the kernel has wgmma.
    pub(crate) fn bulk_agent(&self, warp: u32) -> u32 {
        let groups = if self.ctx.prog.uses_wgmma { self.groups.len() as u32 } else { 0 };
        self.warps.len() as u32 + groups + warp
    }

    /// Where it stands, for scopes.
    pub(crate) fn place(&self) -> Place {
        Place { cta: self.index, cluster: self.cluster }
    }

    /// Begins the CTA of a rank in a cluster, whose CTAs are given by rank.
    pub(super) fn begin_in_cluster(&mut self, ctas: &[u32], rank: usize, cluster: u32) {
        self.rank = rank as u32;
        self.cluster = cluster;
        self.members = ctas.iter().map(|c| c % CTAS).collect();
        self.begin(ctas[rank]);
    }

    pub(super) fn begin(&mut self, index: u32) {
        let ctx = self.ctx;
        self.index = index;
        self.number = index % CTAS;
        self.ctaid = ctx.ctaid(index);
        self.exited = false;
        self.next_warp = 0;
        self.rng = Rng::new(ctx.seed ^ (index as u64).wrapping_mul(0xd134_2543_de82_ef95));
        let top = self.warps.iter().map(|w| w.now).fold(self.top_clock, u32::max);
        // Where CTAs learn of each other, all clocks start from nothing.
        let clear = top > shared::CLOCK_RESET || ctx.talk.talks;
        self.clock_base = if clear { 0 } else { top + 1 };
        self.top_clock = self.clock_base;
        self.shared.start(clear && ctx.checks.races);
        for b in &mut self.bars {
            *b = Barrier::default();
        }
        self.red_results.clear();
        self.mbars.clear();
        self.mbar_agents.clear();
        self.bulk.clear();
        self.landing.clear();
        self.releases.clear();
        for g in &mut self.groups {
            *g = WarpGroup::default();
        }
        let threads = ctx.block.iter().product::<u32>();
        for w in 0..self.warps.len() {
            let first = w as u32 * LANES as u32;
            let n = (threads - first).min(LANES as u32);
            let valid = if n == 32 { !0 } else { (1u32 << n) - 1 };
            let warp = &mut self.warps[w];
            warp.regs.reset();
            warp.splits.clear();
            warp.splits.push(Split { pc: 0, mask: valid, node: NO_NODE, block: None, gave_up: false });
            warp.nodes.clear();
            warp.live = valid;
            warp.valid = valid;
            warp.local_known.fill(0);
            warp.now = self.clock_base + 1;
            warp.know.reset(self.clock_base);
            warp.carry = 0;
            warp.carry_known = 0;
            warp.copies.clear();
            warp.group = [0; LANES];
            warp.fences = Default::default();
            warp.offers.clear();
            warp.seen.clear();
            warp.arrived = 0;
            warp.met = 0;
            warp.know.set_cluster(self.members.clone());
            warp.proxy.reset(self.clock_base);
            warp.wgmma.reset();
            warp.bulk_pending.clear();
            warp.bulk_open.clear();
            warp.bulk_next = 0;
            warp.bulk_commits = [0; LANES];
            self.constants(w);
        }
        self.counters.ctas += 1;
    }

    pub(super) fn constants(&mut self, w: usize) {
        let ctx = self.ctx;
        let [bx, by, bz] = ctx.block;
        for &(slot, wide, c) in &ctx.consts {
            let mut v = [0u64; LANES];
            for (lane, v) in v.iter_mut().enumerate() {
                let t = w as u32 * LANES as u32 + lane as u32;
                *v = match c {
                    Const::Bits(b) => b,
                    Const::GlobalVar(..) => 0,
                    Const::Special(s) => u64::from(match s {
                        Special::Tid(0) => t % bx,
                        Special::Tid(1) => t / bx % by,
                        Special::Tid(_) => t / bx / by,
                        Special::Ntid(0) => bx,
                        Special::Ntid(1) => by,
                        Special::Ntid(_) => bz,
                        Special::Ctaid(a) => self.ctaid[a as usize],
                        Special::Nctaid(a) => ctx.grid[a as usize],
                        Special::LaneId => lane as u32,
                        Special::WarpId => w as u32,
                        Special::NWarpId => self.warps.len() as u32,
                        Special::LaneMask(m) => {
                            let (eq, lt) = (1u32 << lane, (1u32 << lane) - 1);
                            match m {
                                Cmp2::Eq => eq,
                                Cmp2::Lt => lt,
                                Cmp2::Le => lt | eq,
                                Cmp2::Ge => !lt,
                                Cmp2::Gt => !(lt | eq),
                            }
                        }
                        Special::DynamicSharedSize => ctx.dynamic_shared,
                        Special::TotalSharedSize => self.shared.bytes.len() as u32,
                        Special::GridId => ctx.launch,
                        Special::SmId => self.index % ctx.multiprocessors,
                        Special::NSmId => ctx.multiprocessors,
                        Special::ClusterId(a) => self.ctaid[a as usize] / ctx.cluster[a as usize],
                        Special::NClusterId(a) => ctx.grid[a as usize] / ctx.cluster[a as usize],
                        Special::ClusterCtaid(a) => self.ctaid[a as usize] % ctx.cluster[a as usize],
                        Special::ClusterCtaRank => self.rank,
                        Special::ClusterNctaid(a) => ctx.cluster[a as usize],
                        Special::ClusterNctaRank => ctx.cluster.iter().product(),
                        Special::IsExplicitCluster => ctx.explicit_cluster as u32,
                    }),
                };
            }
            let regs = &mut self.warps[w].regs;
            if wide {
                regs.put64(slot, &v, !0);
            } else {
                regs.put32(slot, &v.map(|v| v as u32), !0);
            }
            regs.set_init(slot, !0, !0);
        }
    }

    pub(super) fn end(&mut self) -> Exec<()> {
        if self.ctx.checks.asynchronous {
            for w in 0..self.warps.len() {
                if let Some(c) = self.warps[w].copies.first().copied() {
                    let d = format!(
                        "cp.async of {} bytes to shared address {:#x} was never waited for",
                        c.bytes,
                        c.dst + SHARED_BASE
                    );
                    return Err(self.fault(w, Some(c.lane), NO_PC, FaultKind::CopiesInFlightAtExit, d));
                }
                if !self.warps[w].bulk_pending.is_empty() || !self.warps[w].bulk_open.is_empty() {
                    let d = "a bulk copy from shared memory was never waited for".to_owned();
                    return Err(self.fault(w, None, NO_PC, FaultKind::CopiesInFlightAtExit, d));
                }
            }
            if let Some(b) = self.bulk_unwaited() {
                let d = format!("a bulk copy into shared address {b:#x} was never waited for");
                return Err(self.fault(0, None, NO_PC, FaultKind::CopiesInFlightAtExit, d));
            }
            if let Some(g) = self.groups.iter().position(WarpGroup::pending) {
                let d = format!("wgmma of warpgroup {g} was never waited for");
                return Err(self.fault(4 * g, None, NO_PC, FaultKind::CopiesInFlightAtExit, d));
            }
        }
        self.exited = true;
        self.leave_cluster()
    }
}
