//! One CTA: warps with their diverged parts, the scheduler, barriers, and every instruction that is not arithmetic.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crate::alu::{self, LANES, Regs, each};
use crate::barrier::Barrier;
use crate::copies::Copy16;
use crate::counters::Counters;
use crate::emulator::Checks;
use crate::error::{Fault, FaultKind, SourceLocation};
use crate::ir::*;
use crate::mbarrier::{Mbarrier, Wait};
use crate::memory::GlobalView;
use crate::order::{Clocks, Knowledge};
use crate::shared::{self, Shared};
use crate::tma::{BulkGroup, BulkOp};
use crate::wgmma::{WarpGroup, WgmmaRegs};

/// Instructions between two looks at the limits and at the other warps.
const QUANTUM: u32 = 4096;
/// Named barriers of a CTA.
pub(crate) const BARRIERS: usize = 16;
const NO_NODE: u32 = u32::MAX;

pub(crate) type Exec<T> = Result<T, Box<Fault>>;

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

/// Why a part of a warp does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    Barrier(u32),
    WarpSync(u32),
    Mbarrier(u32),
    Wgmma,
}

/// Lanes of a warp that run together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    node: u32,
    pub(crate) block: Option<Block>,
    /// The last mbarrier wait gave up: the next one blocks.
    pub(crate) gave_up: bool,
}

/// A point where parts of a warp meet again.
#[derive(Debug, Clone, Copy)]
struct Node {
    pc: u32,
    /// Lanes that must arrive or exit.
    expect: u32,
    arrived: u32,
    parent: u32,
    used: bool,
}

pub(crate) struct Warp {
    pub(crate) regs: Regs,
    pub(crate) splits: Vec<Split>,
    nodes: Vec<Node>,
    /// Lanes that exist and have not exited.
    pub(crate) live: u32,
    pub(crate) valid: u32,
    pub(crate) local: Vec<u8>,
    pub(crate) local_init: Vec<u8>,
    /// The warp's clock.
    pub(crate) now: u32,
    /// What the lanes have learnt of others, and of each other.
    pub(crate) know: Knowledge,
    pub(crate) carry: u32,
    pub(crate) copies: Vec<Copy16>,
    pub(crate) group: [u32; LANES],
    /// Lanes that executed a membar or fence: their atomics after it release.
    pub(crate) fenced: u32,
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

pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// SplitMix64.
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

pub(crate) struct Cta<'a> {
    pub(crate) ctx: &'a LaunchCtx<'a>,
    pub(crate) index: u32,
    pub(crate) ctaid: [u32; 3],
    pub(crate) warps: Vec<Warp>,
    pub(crate) shared: Shared,
    pub(crate) bars: Vec<Barrier>,
    /// Destinations of barrier reductions: barrier, warp, lanes, kind, register, predicate.
    pub(crate) red_results: Vec<(u32, u32, u32, BarKind, Slot, u32)>,
    pub(crate) mbars: BTreeMap<u32, Mbarrier>,
    pub(crate) mbar_agents: HashMap<u32, u32>,
    pub(crate) groups: Vec<WarpGroup>,
    pub(crate) bulk: Vec<BulkOp>,
    pub(crate) rng: Rng,
    pub(crate) counters: Counters,
    pub(crate) clock_base: u32,
    /// The latest clock of an asynchronous access.
    pub(crate) top_clock: u32,
    pub(crate) last_alloc: usize,
    pub(crate) ticks: u64,
    /// CTAs whose earlier global accesses are ordered before this one's.
    pub(crate) known: HashSet<u32>,
    /// Clocks released at an address within the CTA.
    pub(crate) sync_vars: HashMap<u64, Clocks>,
    pub(crate) agents: usize,
}

/// Where an access lands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Where {
    Global(usize, u64),
    Shared(usize),
    Local(usize),
    Param(usize),
}

/// mbarriers that can be told apart by the race check.
pub(crate) const MBAR_AGENTS: u32 = 128;

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
                regs: Regs::new(p.slots, p.preds),
                splits: Vec::new(),
                nodes: Vec::new(),
                live: 0,
                valid: 0,
                local: vec![0; p.local_bytes as usize * LANES],
                local_init: vec![0; p.local_bytes as usize * LANES],
                now: 0,
                know: Knowledge::new(w as u32, agents),
                carry: 0,
                copies: Vec::new(),
                group: [0; LANES],
                fenced: 0,
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
            ctaid: [0; 3],
            warps,
            shared: Shared::new(shared_bytes, readers, ctx.checks.races),
            bars: vec![Barrier::default(); BARRIERS],
            red_results: Vec::new(),
            mbars: BTreeMap::new(),
            mbar_agents: HashMap::new(),
            groups: (0..groups).map(|_| WarpGroup::default()).collect(),
            bulk: Vec::new(),
            rng: Rng::new(0),
            counters: Counters::default(),
            clock_base: 0,
            top_clock: 0,
            last_alloc: 0,
            ticks: 0,
            known: HashSet::new(),
            sync_vars: HashMap::new(),
            agents,
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

    fn begin(&mut self, index: u32) {
        let ctx = self.ctx;
        let [gx, gy, _] = ctx.grid;
        self.index = index;
        self.ctaid = [index % gx, index / gx % gy, index / gx / gy];
        self.rng = Rng::new(ctx.seed ^ (index as u64).wrapping_mul(0xd134_2543_de82_ef95));
        let top = self.warps.iter().map(|w| w.now).fold(self.top_clock, u32::max);
        let clear = top > shared::CLOCK_RESET;
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
        self.known.clear();
        self.sync_vars.clear();
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
            warp.local_init.fill(0);
            warp.now = self.clock_base + 1;
            warp.know.reset(self.clock_base);
            warp.carry = 0;
            warp.copies.clear();
            warp.group = [0; LANES];
            warp.fenced = 0;
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

    fn constants(&mut self, w: usize) {
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
                        Special::SmId => self.index % 132,
                        Special::NSmId => 132,
                        Special::ClusterId(a) => self.ctaid[a as usize],
                        Special::NClusterId(a) => ctx.grid[a as usize],
                        Special::ClusterCtaid(_) | Special::ClusterCtaRank => 0,
                        Special::ClusterNctaid(_) | Special::ClusterNctaRank => 1,
                        Special::IsExplicitCluster => ctx.prog.cluster.required.is_some() as u32,
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

    /// Runs one CTA to its end.
    pub(crate) fn run(&mut self, index: u32) -> Exec<()> {
        self.begin(index);
        let random = self.ctx.seed != 0;
        // Under odd seeds no bulk copy lands before nothing else can go on: some then come later than any that was started after them.
        let late = self.ctx.seed % 2 == 1;
        let mut next = 0usize;
        let n = self.warps.len();
        loop {
            if random && !late && !self.bulk.is_empty() && self.rng.below(4) == 0 {
                let i = self.rng.below(self.bulk.len() as u64) as usize;
                self.complete_bulk(i)?;
            }
            if random && self.rng.below(8) == 0 {
                let w = self.rng.below(n as u64) as usize;
                self.complete_some_copy(w);
            }
            // A ready part of a warp: the next in order, or any by the seed.
            let start = if random { self.rng.below(n as u64) as usize } else { next };
            let mut pick = None;
            for i in 0..n {
                let w = (start + i) % n;
                let splits = &self.warps[w].splits;
                let from = if random && splits.len() > 1 { self.rng.below(splits.len() as u64) as usize } else { 0 };
                if let Some(s) =
                    (0..splits.len()).map(|k| (from + k) % splits.len()).find(|&k| splits[k].block.is_none())
                {
                    pick = Some((w, s));
                    break;
                }
            }
            let Some((w, s)) = pick else {
                if !self.bulk.is_empty() {
                    let i = if random { self.rng.below(self.bulk.len() as u64) as usize } else { 0 };
                    self.complete_bulk(i)?;
                    continue;
                }
                if self.warps.iter().all(|w| w.splits.is_empty()) {
                    return self.end();
                }
                return Err(self.deadlock());
            };
            let quantum = if !random {
                QUANTUM
            } else {
                match self.rng.below(4) {
                    0 => 1 + self.rng.below(4) as u32,
                    1 => 1 + self.rng.below(64) as u32,
                    _ => QUANTUM,
                }
            };
            let split = self.warps[w].splits.swap_remove(s);
            let before = self.counters.warp_instructions;
            self.run_split(w, split, quantum)?;
            let done = self.counters.warp_instructions - before;
            self.limits(w, done)?;
            // A part that still can run lets the others go first.
            next = (w + 1) % n;
        }
    }

    fn limits(&mut self, w: usize, done: u64) -> Exec<()> {
        let ctx = self.ctx;
        let total = ctx.executed.fetch_add(done, Relaxed) + done;
        if ctx.stop.load(Relaxed) {
            return Err(self.fault(w, None, NO_PC, FaultKind::TimeLimit, "stopped: another CTA failed".to_owned()));
        }
        if total > ctx.instruction_limit {
            let d = format!("{} warp instructions; the limit is {}", total, ctx.instruction_limit);
            return Err(self.fault(w, None, NO_PC, FaultKind::InstructionLimit, d));
        }
        if let Some(deadline) = ctx.deadline
            && Instant::now() > deadline
        {
            let d = format!("after {total} warp instructions");
            return Err(self.fault(w, None, NO_PC, FaultKind::TimeLimit, d));
        }
        Ok(())
    }

    fn end(&mut self) -> Exec<()> {
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
        Ok(())
    }

    fn deadlock(&self) -> Box<Fault> {
        let mut lines = Vec::new();
        let mut first = None;
        for (w, warp) in self.warps.iter().enumerate() {
            for s in &warp.splits {
                let pc = match s.block {
                    Some(Block::Mbarrier(_) | Block::Wgmma) => s.pc,
                    _ => s.pc.saturating_sub(1),
                };
                first.get_or_insert((w, s.pc));
                let line = self.ctx.prog.code[pc as usize].line;
                let what = match s.block {
                    Some(Block::Barrier(id)) => {
                        let b = &self.bars[id as usize];
                        let want = b.expected.map_or("all threads".to_owned(), |e| format!("{e} threads"));
                        format!("barrier {id} ({} threads arrived of {want})", b.arrived)
                    }
                    Some(Block::WarpSync(m)) => format!("bar.warp.sync with mask {m:#x}"),
                    Some(Block::Mbarrier(a)) => match self.mbars.get(&a) {
                        Some(m) => format!(
                            "mbarrier at {:#x} (phase {}, {} of {} arrivals pending, {} bytes expected)",
                            a + SHARED_BASE,
                            m.phase,
                            m.pending,
                            m.expected,
                            m.tx
                        ),
                        None => format!("mbarrier at {:#x}, which is not initialised", a + SHARED_BASE),
                    },
                    Some(Block::Wgmma) => "wgmma that the other warps of its group have not issued".to_owned(),
                    None => continue,
                };
                lines.push(format!("warp {w} lanes {:#x} at PTX line {line} waits for {what}", s.mask));
            }
            for n in warp.nodes.iter().filter(|n| n.used && n.arrived != 0) {
                lines.push(format!("warp {w} lanes {:#x} wait to meet lanes {:#x}", n.arrived, n.expect & !n.arrived));
            }
        }
        let (w, pc) = first.unwrap_or((0, NO_PC));
        let mut f = self.fault(w, None, pc, FaultKind::Deadlock, lines.join("; "));
        if let Some(s) = self.warps[w].splits.first()
            && !matches!(s.block, Some(Block::Mbarrier(_) | Block::Wgmma))
        {
            f = self.fault(w, None, s.pc.saturating_sub(1), FaultKind::Deadlock, f.detail);
        }
        f
    }

    pub(crate) fn fault(&self, w: usize, lane: Option<u32>, pc: u32, kind: FaultKind, detail: String) -> Box<Fault> {
        let ctx = self.ctx;
        let inst = ctx.prog.code.get(pc as usize);
        let line = inst.map_or(0, |i| i.line);
        let instruction = if line == 0 {
            String::new()
        } else {
            let start = ctx.line_starts.get(line as usize - 1).copied().unwrap_or(0);
            let end = ctx.line_starts.get(line as usize).copied().unwrap_or(ctx.source.len());
            ctx.source[start..end].trim().chars().take(200).collect()
        };
        let source = inst.and_then(|i| ctx.locs.get(i.loc as usize)).map(|&(f, l, c)| SourceLocation {
            file: ctx.files.get(&f).cloned().unwrap_or_else(|| format!("file {f}")),
            line: l,
            column: c,
        });
        let mut operands = String::new();
        if let (Some(_), Some(lane)) = (inst, lane) {
            let (first, reads, _) = ctx.prog.operand_ranges[pc as usize];
            let slots = &ctx.prog.operand_slots[first as usize..first as usize + reads as usize];
            let regs = &self.warps[w].regs;
            let values: Vec<String> = slots
                .iter()
                .take(8)
                .map(|&s| {
                    let wide = s != ZERO && self.is_wide(s);
                    if regs.init(s) >> lane & 1 == 1 {
                        format!("{:#x}", regs.lane(s, wide, lane as usize))
                    } else {
                        "unwritten".to_owned()
                    }
                })
                .collect();
            if !values.is_empty() {
                operands = format!("source operands: {}", values.join(", "));
            }
        }
        Box::new(Fault {
            kind,
            detail,
            kernel: ctx.prog.name.clone(),
            ptx_line: line,
            instruction,
            source,
            cta: self.ctaid,
            warp: w as u32,
            lane,
            operands,
            seed: ctx.seed,
        })
    }

    fn is_wide(&self, slot: Slot) -> bool {
        self.ctx.prog.wide[slot as usize]
    }

    // ---- divergence ----

    fn node(&mut self, w: usize, n: Node) -> u32 {
        let nodes = &mut self.warps[w].nodes;
        match nodes.iter().position(|n| !n.used) {
            Some(i) => {
                nodes[i] = n;
                i as u32
            }
            None => {
                nodes.push(n);
                nodes.len() as u32 - 1
            }
        }
    }

    /// The split reached its meeting point: it waits there, or goes on with all others.
    fn meet(&mut self, w: usize, sp: Split) -> Option<Split> {
        let node = &mut self.warps[w].nodes[sp.node as usize];
        node.arrived |= sp.mask;
        if node.arrived == node.expect {
            node.used = false;
            return Some(Split { pc: node.pc, mask: node.expect, node: node.parent, block: None, gave_up: false });
        }
        None
    }

    /// Lanes ended: no meeting point waits for them any more.
    fn exit_lanes(&mut self, w: usize, mask: u32, node: u32) -> Exec<()> {
        let warp = &mut self.warps[w];
        warp.live &= !mask;
        let mut n = node;
        while n != NO_NODE {
            let nd = &mut warp.nodes[n as usize];
            nd.expect &= !mask;
            let parent = nd.parent;
            if nd.used && nd.expect == nd.arrived {
                nd.used = false;
                if nd.expect != 0 {
                    let s = Split { pc: nd.pc, mask: nd.expect, node: parent, block: None, gave_up: false };
                    warp.splits.push(s);
                }
            }
            n = parent;
        }
        self.wake_warp_sync(w);
        if self.warps[w].live == 0 {
            for id in 0..BARRIERS as u32 {
                self.try_release(id)?;
            }
        }
        Ok(())
    }

    fn wake_warp_sync(&mut self, w: usize) {
        let live = self.warps[w].live;
        // Groups of blocked parts that name the same mask and together are all of it.
        let masks: Vec<u32> = self.warps[w]
            .splits
            .iter()
            .filter_map(|s| if let Some(Block::WarpSync(m)) = s.block { Some(m) } else { None })
            .collect();
        for m in masks {
            let have =
                self.warps[w].splits.iter().filter(|s| s.block == Some(Block::WarpSync(m))).fold(0, |a, s| a | s.mask);
            if have == m & live {
                for s in &mut self.warps[w].splits {
                    if s.block == Some(Block::WarpSync(m)) {
                        s.block = None;
                    }
                }
                self.warp_sync(w, have);
            }
        }
    }

    /// The warp's next accesses are later than all so far.
    pub(crate) fn tick(&mut self, w: usize) {
        self.warps[w].now += 1;
    }

    /// bar.warp.sync: these lanes learn of each other.
    fn warp_sync(&mut self, w: usize, who: u32) {
        let news = self.publish(w, who);
        self.learn(w, who, &news);
        self.tick(w);
    }

    /// What these lanes did so far, and what they have learnt.
    pub(crate) fn publish(&self, w: usize, who: u32) -> Clocks {
        let warp = &self.warps[w];
        warp.know.publish(who, warp.live, warp.now)
    }

    pub(crate) fn learn(&mut self, w: usize, who: u32, news: &Clocks) {
        let warp = &mut self.warps[w];
        warp.know.learn(who, warp.live, news);
    }

    pub(crate) fn learn_agent(&mut self, w: usize, who: u32, agent: u32, clock: u32) {
        let warp = &mut self.warps[w];
        warp.know.learn_agent(who, warp.live, agent, clock);
    }

    /// fence.proxy.async: what these lanes did and learnt so far may be seen by the async proxy.
    fn proxy_fence(&mut self, w: usize, who: u32) {
        let parts = if who == self.warps[w].live && self.warps[w].know.uniform() {
            vec![who]
        } else {
            lanes(who).map(|l| 1 << l).collect()
        };
        for part in parts {
            let news = self.publish(w, part);
            let warp = &mut self.warps[w];
            warp.proxy.learn(part, warp.live, &news);
        }
        self.tick(w);
    }

    // ---- the instruction loop ----

    fn run_split(&mut self, w: usize, mut sp: Split, quantum: u32) -> Exec<()> {
        let prog = self.ctx.prog;
        let checks = self.ctx.checks;
        let wgmma_checks = prog.uses_wgmma && checks.asynchronous;
        let mut left = quantum;
        loop {
            if sp.node != NO_NODE && self.warps[w].nodes[sp.node as usize].pc == sp.pc {
                match self.meet(w, sp) {
                    Some(s) => {
                        sp = s;
                        continue;
                    }
                    None => return Ok(()),
                }
            }
            if left == 0 {
                self.warps[w].splits.push(sp);
                return Ok(());
            }
            left -= 1;
            let pc = sp.pc;
            let inst = &prog.code[pc as usize];
            let mut active = sp.mask;
            if inst.guard != TRUE {
                let regs = &self.warps[w].regs;
                let g = inst.guard;
                if checks.uninitialized && regs.pred_init[g.index as usize] & sp.mask != sp.mask {
                    let lane = (sp.mask & !regs.pred_init[g.index as usize]).trailing_zeros();
                    let d = "the guard predicate depends on a value that nobody wrote".to_owned();
                    return Err(self.fault(w, Some(lane), pc, FaultKind::UninitializedRegister, d));
                }
                let p = regs.preds[g.index as usize];
                active &= if g.negated { !p } else { p };
            }
            let lanes = active.count_ones() as u64;
            let c = &mut self.counters;
            c.warp_instructions += 1;
            c.lane_instructions += lanes;
            c.by_class[inst.class as usize] += lanes;
            if active == 0 {
                sp.pc += 1;
                continue;
            }
            if wgmma_checks {
                self.check_wgmma_registers(w, pc, inst)?;
            }
            match &inst.op {
                Op::Alu { f, ty, m, d, s } => {
                    let regs = &mut self.warps[w].regs;
                    if checks.uninitialized && *d != SINK {
                        let known = regs.init(s[0]) & regs.init(s[1]) & regs.init(s[2]) & regs.init(s[3]);
                        regs.set_init(*d, active, known);
                    }
                    alu::execute(regs, self.ctx.simd, *f, *ty, *m, *d, s, active);
                    if inst.flops != 0 {
                        let n = lanes * inst.flops as u64;
                        match ty {
                            Ty::F64 => self.counters.f64_flops += n,
                            Ty::F32 | Ty::F32x2 => self.counters.f32_flops += n,
                            _ => self.counters.half_flops += n,
                        }
                    }
                    if inst.class == Class::Special {
                        self.counters.special_functions += lanes;
                    }
                }
                Op::Setp { cmp, ty, ftz, combine, p, q, a, b } => {
                    let regs = &mut self.warps[w].regs;
                    let known = regs.init(*a) & regs.init(*b);
                    let (lo, hi) = alu::compare(regs, *cmp, *ty, *ftz, *a, *b);
                    let packed = matches!(ty, Ty::F16x2 | Ty::BF16x2);
                    let (mut x, mut y) = (lo, if packed { hi } else { !lo });
                    let mut known = if checks.uninitialized { known } else { !0 };
                    if let Some((f, c)) = combine {
                        let v = regs.preds[c.index as usize];
                        let v = if c.negated { !v } else { v };
                        known &= regs.pred_init[c.index as usize];
                        x = logic(*f, x, v);
                        y = logic(*f, y, v);
                    }
                    regs.put_pred(*p, x, active, known);
                    regs.put_pred(*q, y, active, known);
                }
                Op::Bra { target, reconverge } => {
                    if active == sp.mask {
                        sp.pc = *target;
                        continue;
                    }
                    self.counters.divergent_branches += 1;
                    let stay = sp.mask & !active;
                    if sp.node == NO_NODE || self.warps[w].nodes[sp.node as usize].pc != *reconverge {
                        let n = Node { pc: *reconverge, expect: sp.mask, arrived: 0, parent: sp.node, used: true };
                        sp.node = self.node(w, n);
                    }
                    let taken = Split { pc: *target, mask: active, node: sp.node, block: None, gave_up: false };
                    let other = Split { pc: pc + 1, mask: stay, node: sp.node, block: None, gave_up: false };
                    let first = self.ctx.seed != 0 && self.rng.below(2) == 0;
                    let (run, wait) = if first { (taken, other) } else { (other, taken) };
                    // A side that starts at the meeting point has arrived already.
                    if wait.node != NO_NODE && wait.pc == *reconverge {
                        let done = self.meet(w, wait);
                        debug_assert!(done.is_none());
                    } else {
                        self.warps[w].splits.push(wait);
                    }
                    sp = run;
                    continue;
                }
                // Counted as the branch, and as the instruction that it leads to.
                Op::BraExit => {
                    let c = &mut self.counters;
                    c.lane_instructions += lanes;
                    c.by_class[inst.class as usize] += lanes;
                    if active == sp.mask {
                        c.warp_instructions += 1;
                    } else {
                        c.divergent_branches += 1;
                    }
                    self.exit_lanes(w, active, sp.node)?;
                    sp.mask &= !active;
                    if sp.mask == 0 {
                        return Ok(());
                    }
                }
                Op::Exit => {
                    self.exit_lanes(w, active, sp.node)?;
                    sp.mask &= !active;
                    if sp.mask == 0 {
                        return Ok(());
                    }
                }
                Op::Trap => {
                    let lane = active.trailing_zeros();
                    return Err(self.fault(w, Some(lane), pc, FaultKind::Trap, "the kernel trapped".to_owned()));
                }
                Op::Unsupported(what) => {
                    let lane = active.trailing_zeros();
                    return Err(self.fault(w, Some(lane), pc, FaultKind::Unsupported, what.clone()));
                }
                Op::WarpSync { mask } => {
                    let m = self.warps[w].regs.r32(*mask)[active.trailing_zeros() as usize];
                    if active & !m != 0 {
                        let d = format!("lanes {active:#x} execute it with mask {m:#x}, which has not all of them");
                        return Err(self.fault(
                            w,
                            Some((active & !m).trailing_zeros()),
                            pc,
                            FaultKind::DivergentCollective,
                            d,
                        ));
                    }
                    sp.pc += 1;
                    if active == m & self.warps[w].live {
                        self.warp_sync(w, active);
                        continue;
                    }
                    sp.block = Some(Block::WarpSync(m));
                    self.warps[w].splits.push(sp);
                    self.wake_warp_sync(w);
                    return Ok(());
                }
                Op::Bar { kind, aligned, id, count, has_count, d, p, a } => {
                    let blocked = self.barrier(w, pc, active, *kind, *aligned, *id, *count, *has_count, *d, *p, *a)?;
                    sp.pc += 1;
                    if let Some(id) = blocked {
                        sp.block = Some(Block::Barrier(id));
                        self.warps[w].splits.push(sp);
                        self.counters.barrier_waits += 1;
                        self.try_release(id)?;
                        return Ok(());
                    }
                    continue;
                }
                Op::MbarWait { addr, space, p, on, blocking, .. } => {
                    let wait = self.mbar_wait(w, pc, active, *addr, *space, *p, *on)?;
                    match wait {
                        // A blocking wait may time out: the first one does, so that a missing loop shows.
                        Wait::Incomplete(off) if *blocking && sp.gave_up => {
                            sp.block = Some(Block::Mbarrier(off));
                            sp.gave_up = false;
                            self.counters.barrier_waits += 1;
                        }
                        Wait::Incomplete(_) => {
                            sp.gave_up = self.ctx.seed == 0 || self.rng.below(2) == 0;
                            sp.pc += 1;
                        }
                        Wait::Mixed => sp.pc += 1,
                        Wait::Done => {
                            sp.gave_up = false;
                            sp.pc += 1;
                            continue;
                        }
                    }
                    // Polling: the others go on before the next look.
                    self.warps[w].splits.push(sp);
                    return Ok(());
                }
                Op::WgmmaWait(n) => {
                    if !self.wgmma_wait(w, pc, active, *n)? {
                        sp.block = Some(Block::Wgmma);
                        self.warps[w].splits.push(sp);
                        return Ok(());
                    }
                }
                Op::Nanosleep => {
                    sp.pc += 1;
                    self.warps[w].splits.push(sp);
                    return Ok(());
                }
                op => self.other(w, pc, active, op)?,
            }
            sp.pc += 1;
        }
    }

    fn other(&mut self, w: usize, pc: u32, active: u32, op: &Op) -> Exec<()> {
        let checks = self.ctx.checks;
        let track = checks.uninitialized;
        match op {
            Op::Carry { f, ty, carry_in, carry_out, d, s } => {
                let warp = &mut self.warps[w];
                let wide = ty.wide();
                let bits = ty.bits();
                let low = |v: u128| v & ((1u128 << bits) - 1);
                let mut out = warp.carry;
                for lane in lanes(active) {
                    let v: [u128; 3] = std::array::from_fn(|i| warp.regs.lane(s[i], wide, lane) as u128);
                    let cin = if *carry_in { (warp.carry >> lane & 1) as u128 } else { 0 };
                    let signed = ty.signed();
                    let product = || {
                        if signed {
                            let sx = |v: u128| ((v << (128 - bits)) as i128) >> (128 - bits);
                            sx(v[0]).wrapping_mul(sx(v[1])) as u128
                        } else {
                            v[0].wrapping_mul(v[1])
                        }
                    };
                    let full = match f {
                        Alu::Add => v[0] + v[1] + cin,
                        Alu::Sub => (1u128 << bits) + v[0] - v[1] - cin,
                        Alu::MadLo => low(product()) + v[2] + cin,
                        _ => low(product() >> bits) + v[2] + cin,
                    };
                    let carry = full >> bits != 0;
                    // Subtraction keeps a borrow.
                    let carry = if *f == Alu::Sub { !carry } else { carry };
                    out = (out & !(1 << lane)) | (carry as u32) << lane;
                    put_lane(&mut warp.regs, *d, wide, lane, low(full) as u64);
                }
                if *carry_out {
                    warp.carry = out;
                }
                if *d != SINK {
                    let known = warp.regs.init(s[0]) & warp.regs.init(s[1]) & warp.regs.init(s[2]);
                    warp.regs.set_init(*d, active, known);
                }
            }
            Op::Cvt { to, from, round, int_round, ftz, sat, relu, d, wide_d, s } => {
                let regs = &mut self.warps[w].regs;
                if *d == SINK {
                    return Ok(());
                }
                let wide_a = from.wide();
                // The conversions that kernels do most, in loops that vectorise.
                let fast = active == !0 && !*ftz && !*sat && !*relu && *round == crate::float::Round::NearestEven;
                if *wide_d && !wide_a && to.wide() && matches!(from, Ty::U32 | Ty::S32) && !to.is_float() && !*sat {
                    let a = *regs.r32(s[0]);
                    let v = if *from == Ty::S32 { each(|i| a[i] as i32 as i64 as u64) } else { each(|i| a[i] as u64) };
                    regs.put64(*d, &v, active);
                } else if wide_a && !*wide_d && !from.is_float() && !to.is_float() && to.bits() == 32 && !*sat {
                    let a = regs.r64(s[0]);
                    let v = each(|i| a[i] as u32);
                    regs.put32(*d, &v, active);
                } else if fast && matches!(to, Ty::F16x2 | Ty::BF16x2) && *from == Ty::F32 {
                    use crate::float::{f32_to_bf16, f32_to_f16};
                    let (hi, lo) = (*regs.r32(s[0]), *regs.r32(s[1]));
                    let bf = *to == Ty::BF16x2;
                    let one =
                        |b: u32| if bf { f32_to_bf16(f32::from_bits(b)) } else { f32_to_f16(f32::from_bits(b)) } as u32;
                    let v = each(|i| one(lo[i]) | one(hi[i]) << 16);
                    regs.put32(*d, &v, active);
                } else {
                    for lane in lanes(active) {
                        let a = regs.lane(s[0], wide_a, lane);
                        let b = if s[1] == ZERO { 0 } else { regs.lane(s[1], false, lane) };
                        let mut v = alu::convert(*to, *from, *round, *int_round, *ftz, *sat, *relu, a, b);
                        // A narrow signed result fills its register with its sign.
                        if to.signed() && to.bits() < 64 {
                            let sh = 64 - to.bits();
                            v = (((v << sh) as i64) >> sh) as u64;
                        }
                        put_lane(regs, *d, *wide_d, lane, v);
                    }
                }
                let known = regs.init(s[0]) & regs.init(s[1]);
                regs.set_init(*d, active, known);
            }
            Op::Pack { d, wide, bits, s, n } => {
                let regs = &mut self.warps[w].regs;
                let mut v = [0u64; LANES];
                let m = (1u64 << bits) - 1;
                for (i, &src) in s[..*n as usize].iter().enumerate() {
                    let a = regs.r32(src);
                    for lane in 0..LANES {
                        v[lane] |= (a[lane] as u64 & m) << (i as u32 * bits);
                    }
                }
                if *wide {
                    regs.put64(*d, &v, active);
                } else {
                    regs.put32(*d, &v.map(|v| v as u32), active);
                }
                if *d != SINK {
                    let known = s.iter().fold(!0, |k, &s| k & regs.init(s));
                    regs.set_init(*d, active, known);
                }
            }
            Op::Unpack { a, wide, bits, d, n } => {
                let regs = &mut self.warps[w].regs;
                let v: [u64; LANES] = if *wide { *regs.r64(*a) } else { regs.r32(*a).map(|v| v as u64) };
                let m = (1u64 << bits) - 1;
                let known = regs.init(*a);
                for (i, &dst) in d[..*n as usize].iter().enumerate() {
                    if dst == SINK {
                        continue;
                    }
                    regs.put32(dst, &v.map(|v| (v >> (i as u32 * bits) & m) as u32), active);
                    regs.set_init(dst, active, known);
                }
            }
            Op::Set { cmp, ty, to, ftz, combine, d, a, b } => {
                let regs = &mut self.warps[w].regs;
                let mut known = regs.init(*a) & regs.init(*b);
                let (mut x, _) = alu::compare(regs, *cmp, *ty, *ftz, *a, *b);
                if let Some((f, c)) = combine {
                    let v = regs.preds[c.index as usize];
                    known &= regs.pred_init[c.index as usize];
                    x = logic(*f, x, if c.negated { !v } else { v });
                }
                let yes = if *to == Ty::F32 { 1f32.to_bits() } else { !0 };
                regs.put32(*d, &each(|i| if x >> i & 1 == 1 { yes } else { 0 }), active);
                regs.set_init(*d, active, known);
            }
            Op::Testp { kind, ty, p, a } => {
                let regs = &mut self.warps[w].regs;
                let mut m = 0;
                for lane in lanes(active) {
                    let v = regs.lane(*a, ty.wide(), lane);
                    let class =
                        if *ty == Ty::F64 { f64::from_bits(v).classify() } else { f32::from_bits(v as u32).classify() };
                    use std::num::FpCategory::*;
                    let yes = match kind {
                        0 => !matches!(class, Infinite | Nan),
                        1 => class == Infinite,
                        2 => class != Nan,
                        3 => class == Nan,
                        // Zeros count as normal (PTX ISA, testp).
                        4 => matches!(class, Normal | Zero),
                        _ => class == Subnormal,
                    };
                    m |= (yes as u32) << lane;
                }
                let known = regs.init(*a);
                regs.put_pred(*p, m, active, known);
            }
            Op::Selp { wide, d, a, b, p } => {
                let regs = &mut self.warps[w].regs;
                let v = regs.preds[p.index as usize];
                let v = if p.negated { !v } else { v };
                let known = regs.pred_init[p.index as usize] & ((regs.init(*a) & v) | (regs.init(*b) & !v));
                if *wide {
                    let (x, y) = (regs.r64(*a), regs.r64(*b));
                    let r = each(|i| if v >> i & 1 == 1 { x[i] } else { y[i] });
                    regs.put64(*d, &r, active);
                } else {
                    let (x, y) = (regs.r32(*a), regs.r32(*b));
                    let r = each(|i| if v >> i & 1 == 1 { x[i] } else { y[i] });
                    regs.put32(*d, &r, active);
                }
                if *d != SINK {
                    regs.set_init(*d, active, known);
                }
            }
            Op::Slct { wide, float, ftz, d, a, b, c } => {
                let regs = &mut self.warps[w].regs;
                let pick = |v: u32| {
                    if *float {
                        let f = f32::from_bits(v);
                        (if *ftz { crate::float::ftz(f) } else { f }) >= 0.0
                    } else {
                        v as i32 >= 0
                    }
                };
                for lane in lanes(active) {
                    let s = if pick(regs.r32(*c)[lane]) { *a } else { *b };
                    let v = regs.lane(s, *wide, lane);
                    put_lane(regs, *d, *wide, lane, v);
                }
                let known = regs.init(*a) & regs.init(*b) & regs.init(*c);
                if *d != SINK {
                    regs.set_init(*d, active, known);
                }
            }
            Op::PredLogic { f, p, a, b } => {
                let regs = &mut self.warps[w].regs;
                let val = |x: &Pred| {
                    let v = regs.preds[x.index as usize];
                    if x.negated { !v } else { v }
                };
                let (x, y) = (val(a), val(b));
                let (ka, kb) = (regs.pred_init[a.index as usize], regs.pred_init[b.index as usize]);
                // A known false decides an `and`, a known true an `or`.
                let known = match f {
                    BoolOp::And => (ka & kb) | (ka & !x) | (kb & !y),
                    BoolOp::Or => (ka & kb) | (ka & x) | (kb & y),
                    BoolOp::Xor => ka & kb,
                };
                regs.put_pred(*p, logic(*f, x, y), active, known);
            }
            Op::Isspacep { space, p, a } => {
                let regs = &mut self.warps[w].regs;
                let mut m = 0;
                for lane in lanes(active) {
                    let window = regs.r64(*a)[lane] >> 40 << 40;
                    let is = match space {
                        MemSpace::Shared | MemSpace::SharedCluster => window == SHARED_WINDOW,
                        MemSpace::Local => window == LOCAL_WINDOW,
                        MemSpace::Param => window == PARAM_WINDOW,
                        _ => window >= 1 << 44,
                    };
                    m |= (is as u32) << lane;
                }
                let known = regs.init(*a);
                regs.put_pred(*p, m, active, known);
            }
            Op::Ld(a) => self.load(w, pc, active, a)?,
            Op::St(a) => self.store(w, pc, active, a)?,
            Op::LocalCopy { dst, src, bytes } => {
                let size = self.ctx.prog.local_bytes as usize;
                let warp = &mut self.warps[w];
                for lane in lanes(active) {
                    let (from, to) = (lane * size + *src as usize, lane * size + *dst as usize);
                    warp.local.copy_within(from..from + *bytes as usize, to);
                    warp.local_init.copy_within(from..from + *bytes as usize, to);
                }
            }
            Op::Prefetch | Op::GridDep { .. } | Op::SetMaxNReg { .. } => {
                if let Op::SetMaxNReg { .. } = op {
                    self.aligned(w, pc, active)?;
                }
            }
            Op::Atom { space, op, ty, order, scope: _, d, addr, b, c } => {
                self.atomic(w, pc, active, *space, *op, *ty, *order, *d, *addr, *b, *c)?;
            }
            Op::Shfl { mode, d, p, a, b, c, mask } => {
                self.members(w, pc, active, *mask)?;
                let regs = &mut self.warps[w].regs;
                let (av, bv, cv) = (*regs.r32(*a), *regs.r32(*b), *regs.r32(*c));
                let src_known = regs.init(*a);
                let mut out = av;
                let (mut pm, mut known) = (0u32, 0u32);
                for lane in lanes(active) {
                    let b = bv[lane] & 31;
                    let cval = cv[lane] & 31;
                    let seg = cv[lane] >> 8 & 31;
                    let l = lane as u32;
                    let max = (l & seg) | (cval & !seg);
                    let min = l & seg;
                    let (j, ok) = match mode {
                        ShflMode::Up => (l.wrapping_sub(b), l as i32 - b as i32 >= max as i32),
                        ShflMode::Down => (l + b, l + b <= max),
                        ShflMode::Bfly => (l ^ b, l ^ b <= max),
                        ShflMode::Idx => (min | (b & !seg), min | (b & !seg) <= max),
                    };
                    let j = if ok { j & 31 } else { l };
                    out[lane] = av[j as usize];
                    pm |= (ok as u32) << lane;
                    // A lane that does not take part has no value to give.
                    if src_known & active & (1 << j) != 0 {
                        known |= 1 << lane;
                    }
                }
                regs.put32(*d, &out, active);
                if *d != SINK {
                    regs.set_init(*d, active, known);
                }
                regs.put_pred(*p, pm, active, !0);
            }
            Op::Vote { mode, d, p, a, mask } => {
                let members = self.members(w, pc, active, *mask)?;
                let regs = &mut self.warps[w].regs;
                let v = regs.preds[a.index as usize];
                let v = (if a.negated { !v } else { v }) & members;
                let known = if regs.pred_init[a.index as usize] & members == members { !0 } else { 0 };
                match mode {
                    VoteMode::Ballot => {
                        regs.put32(*d, &[v; LANES], active);
                        if *d != SINK {
                            regs.set_init(*d, active, known);
                        }
                    }
                    VoteMode::All => regs.put_pred(*p, if v == members { !0 } else { 0 }, active, known),
                    VoteMode::Any => regs.put_pred(*p, if v != 0 { !0 } else { 0 }, active, known),
                    VoteMode::Uni => {
                        regs.put_pred(*p, if v == members || v == 0 { !0 } else { 0 }, active, known);
                    }
                }
            }
            Op::Match { all, wide, d, p, a, mask } => {
                let members = self.members(w, pc, active, *mask)?;
                let regs = &mut self.warps[w].regs;
                let mut out = [0u32; LANES];
                let mut pm = 0;
                for lane in lanes(active) {
                    let me = regs.lane(*a, *wide, lane);
                    let same = lanes(members).filter(|&l| regs.lane(*a, *wide, l) == me).fold(0u32, |m, l| m | 1 << l);
                    if *all {
                        let yes = same == members;
                        out[lane] = if yes { members } else { 0 };
                        pm |= (yes as u32) << lane;
                    } else {
                        out[lane] = same;
                    }
                }
                let known = if regs.init(*a) & members == members { !0 } else { 0 };
                regs.put32(*d, &out, active);
                if *d != SINK {
                    regs.set_init(*d, active, known);
                }
                regs.put_pred(*p, pm, active, known);
            }
            Op::Redux { op, ty, d, a, mask } => {
                let members = self.members(w, pc, active, *mask)?;
                let regs = &mut self.warps[w].regs;
                let mut values = lanes(members).map(|l| regs.r32(*a)[l] as u64);
                let first = values.next().unwrap_or(0);
                let v = values.fold(first, |x, y| alu::atomic(*op, *ty, x, y, 0, false)) as u32;
                let known = if regs.init(*a) & members == members { !0 } else { 0 };
                regs.put32(*d, &[v; LANES], active);
                if *d != SINK {
                    regs.set_init(*d, active, known);
                }
            }
            Op::Elect { d, p, mask } => {
                let members = self.members(w, pc, active, *mask)?;
                let regs = &mut self.warps[w].regs;
                let leader = members.trailing_zeros();
                regs.put32(*d, &[leader; LANES], active);
                if *d != SINK {
                    regs.set_init(*d, active, !0);
                }
                regs.put_pred(*p, 1 << (leader & 31), active, !0);
            }
            Op::Activemask { d } => {
                let regs = &mut self.warps[w].regs;
                regs.put32(*d, &[active; LANES], active);
                if *d != SINK {
                    regs.set_init(*d, active, !0);
                }
            }
            Op::Fence(kind) => match kind {
                FenceKind::Memory(_) => self.warps[w].fenced |= active,
                FenceKind::ProxyAsync => {
                    self.mbar_fence(w, active);
                    self.proxy_fence(w, active);
                }
                FenceKind::MbarrierInit => self.mbar_fence(w, active),
                FenceKind::Other => {}
            },
            Op::CpAsync { dst, src, bytes, src_size, ignore } => {
                self.cp_async(w, pc, active, *dst, *src, *bytes, *src_size, *ignore)?;
            }
            Op::CpAsyncCommit => {
                for lane in lanes(active) {
                    self.warps[w].group[lane] += 1;
                }
            }
            Op::CpAsyncWait(n) => self.cp_async_wait(w, active, *n),
            Op::CpAsyncMbarArrive { addr, no_inc } => self.cp_async_arrive(w, pc, active, *addr, *no_inc)?,
            Op::MbarInit { addr, space, count } => self.mbar_init(w, pc, active, *addr, *space, *count)?,
            Op::MbarInval { addr, space } => self.mbar_inval(w, pc, active, *addr, *space)?,
            Op::MbarArrive(a) => self.mbar_arrive(w, pc, active, a)?,
            Op::MbarTx { addr, space, tx, complete } => self.mbar_tx(w, pc, active, *addr, *space, *tx, *complete)?,
            Op::MbarPending { d, state } => {
                let regs = &mut self.warps[w].regs;
                let v = regs.r64(*state).map(crate::mbarrier::state_pending);
                regs.put32(*d, &v, active);
                if *d != SINK {
                    let known = regs.init(*state);
                    regs.set_init(*d, active, known);
                }
            }
            Op::ClusterArrive { .. }
            | Op::ClusterWait { .. }
            | Op::Mapa { .. }
            | Op::GetCtaRank { .. }
            | Op::AsyncStore(_) => self.cluster_op(w, pc, active, op)?,
            Op::Bulk(b) | Op::BulkTensor(b) if b.multicast.is_some() => self.cluster_op(w, pc, active, op)?,
            Op::Bulk(b) => self.bulk_copy(w, pc, active, b)?,
            Op::BulkTensor(b) => self.bulk_tensor(w, pc, active, b)?,
            Op::BulkCommit => self.bulk_commit(w, active),
            Op::BulkWait { pending } => self.bulk_wait(w, active, *pending)?,
            Op::Mma(m) => {
                self.aligned(w, pc, active)?;
                if track {
                    self.known_operands(w, pc, active)?;
                }
                self.mma(w, m);
                self.counters.tensor_flops += 2 * 16 * m.n as u64 * m.k as u64;
            }
            Op::LdMatrix { d, n, trans, space, addr } => self.ldmatrix(w, pc, active, d, *n, *trans, *space, *addr)?,
            Op::StMatrix { s, n, trans, space, addr } => self.stmatrix(w, pc, active, s, *n, *trans, *space, *addr)?,
            Op::MoveMatrix { d, a } => {
                self.aligned(w, pc, active)?;
                let regs = &mut self.warps[w].regs;
                let a_v = *regs.r32(*a);
                let at = |row: usize, col: usize| (a_v[row * 4 + col / 2] >> (16 * (col & 1))) & 0xffff;
                let v = std::array::from_fn(|t| at(2 * (t % 4), t / 4) | at(2 * (t % 4) + 1, t / 4) << 16);
                regs.put32(*d, &v, active);
                if *d != SINK {
                    let known = if regs.init(*a) == !0 { !0 } else { 0 };
                    regs.set_init(*d, active, known);
                }
            }
            Op::Wgmma(g) => self.wgmma(w, pc, active, g)?,
            Op::WgmmaFence => {
                self.aligned(w, pc, active)?;
                self.wgmma_fence(w);
            }
            Op::WgmmaCommit => {
                self.aligned(w, pc, active)?;
                self.wgmma_commit(w);
            }
            Op::Clock { d, wide, global } => {
                self.ticks += 1;
                let t = self.ticks * if *global { 32 } else { 8 };
                let regs = &mut self.warps[w].regs;
                for lane in lanes(active) {
                    put_lane(regs, *d, *wide, lane, t);
                }
                if *d != SINK {
                    regs.set_init(*d, active, !0);
                }
            }
            Op::Alu { .. }
            | Op::Setp { .. }
            | Op::Bra { .. }
            | Op::BraExit
            | Op::Exit
            | Op::Trap
            | Op::Unsupported(_)
            | Op::WarpSync { .. }
            | Op::Bar { .. }
            | Op::MbarWait { .. }
            | Op::WgmmaWait(_)
            | Op::Nanosleep => unreachable!("executed by the instruction loop"),
        }
        Ok(())
    }

    // ---- checks of convergence and of operands ----

    /// `.aligned` instructions need every live lane of the warp.
    pub(crate) fn aligned(&self, w: usize, pc: u32, active: u32) -> Exec<()> {
        let live = self.warps[w].live;
        if self.ctx.checks.convergence && active != live {
            let d = format!(
                "lanes {active:#010x} execute it while lanes {:#010x} of the warp are elsewhere",
                live & !active
            );
            return Err(self.fault(w, Some(active.trailing_zeros()), pc, FaultKind::DivergentCollective, d));
        }
        Ok(())
    }

    /// The lanes that take part in a `.sync` instruction.
    fn members(&self, w: usize, pc: u32, active: u32, mask: Slot) -> Exec<u32> {
        let warp = &self.warps[w];
        let m = warp.regs.r32(mask);
        let first = m[active.trailing_zeros() as usize];
        if self.ctx.checks.convergence {
            if let Some(lane) = lanes(active).find(|&l| m[l] != first) {
                let d = format!("member masks {first:#x} and {:#x} in one instruction", m[lane]);
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::DivergentCollective, d));
            }
            if active & !first != 0 {
                let d = format!(
                    "lanes {active:#010x} execute it with member mask {first:#010x}, which has not all of them"
                );
                let lane = (active & !first).trailing_zeros();
                return Err(self.fault(w, Some(lane), pc, FaultKind::DivergentCollective, d));
            }
            let missing = first & warp.live & !active;
            if missing != 0 {
                let d = format!("the member mask {first:#010x} names lanes {missing:#010x}, which are elsewhere");
                return Err(self.fault(w, Some(missing.trailing_zeros()), pc, FaultKind::DivergentCollective, d));
            }
        }
        Ok(first & active)
    }

    /// Every source register of the instruction must hold a written value in the active lanes.
    pub(crate) fn known_operands(&self, w: usize, pc: u32, active: u32) -> Exec<()> {
        let (first, reads, _) = self.ctx.prog.operand_ranges[pc as usize];
        let regs = &self.warps[w].regs;
        for (i, &s) in self.ctx.prog.operand_slots[first as usize..first as usize + reads as usize].iter().enumerate() {
            let missing = active & !regs.init(s);
            if missing != 0 {
                let d = format!("source operand {} holds a value that nobody wrote", i + 1);
                return Err(self.fault(w, Some(missing.trailing_zeros()), pc, FaultKind::UninitializedRegister, d));
            }
        }
        Ok(())
    }

    pub(crate) fn addresses(&self, w: usize, pc: u32, active: u32, a: Addr) -> Exec<[u64; LANES]> {
        let regs = &self.warps[w].regs;
        if self.ctx.checks.uninitialized {
            let missing = active & !regs.init(a.base);
            if missing != 0 {
                let d = "the address depends on a value that nobody wrote".to_owned();
                return Err(self.fault(w, Some(missing.trailing_zeros()), pc, FaultKind::UninitializedRegister, d));
            }
        }
        let off = a.offset as u64;
        Ok(if a.wide {
            let v = regs.r64(a.base);
            each(|i| v[i].wrapping_add(off))
        } else {
            let v = regs.r32(a.base);
            each(|i| v[i].wrapping_add(off as u32) as u64)
        })
    }
}

/// The set lanes of a mask, in order.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut m = mask;
    std::iter::from_fn(move || {
        if m == 0 {
            return None;
        }
        let l = m.trailing_zeros() as usize;
        m &= m - 1;
        Some(l)
    })
}

fn logic(f: BoolOp, a: u32, b: u32) -> u32 {
    match f {
        BoolOp::And => a & b,
        BoolOp::Or => a | b,
        BoolOp::Xor => a ^ b,
    }
}

pub(crate) fn put_lane(regs: &mut Regs, d: Slot, wide: bool, lane: usize, v: u64) {
    if d == SINK {
        return;
    }
    if wide {
        regs.r64_mut(d)[lane] = v;
    } else {
        regs.r32_mut(d)[lane] = v as u32;
    }
}
