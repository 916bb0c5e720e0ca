//! mbarriers: arrival counts, expected bytes, phases, and what a wait on them orders.

use crate::access::Stored;
use crate::error::FaultKind;
use crate::ir::*;
use crate::landing;
use crate::machine::{Block, Cta, Exec, MBAR_AGENTS, Where, lanes, put_lane};
use crate::order::Clocks;

/// One mbarrier object; its 8 bytes in shared memory are opaque.
#[derive(Debug, Clone)]
pub(crate) struct Mbarrier {
    /// Phases completed.
    pub(crate) phase: u32,
    /// Arrivals that complete a phase.
    pub(crate) expected: u32,
    pub(crate) pending: u32,
    /// Bytes expected and not yet copied in this phase.
    pub(crate) tx: i64,
    /// What the arrivals of the phase in progress release, and of all phases before.
    clocks: Clocks,
    done_clocks: Clocks,
    /// Its number among the agents of the race check.
    pub(crate) agent: u32,
    /// The phase with bulk copies that nobody has waited for.
    pub(crate) copied_phase: Option<u32>,
    /// Warp and lane that initialised it, and the warp's clock then.
    initialized: (u32, u32, u32),
    /// A fence has made the initialisation visible to the async proxy.
    pub(crate) fenced: bool,
}

/// What a wait found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Done,
    /// The phase of the one mbarrier that all lanes wait for is in progress.
    Incomplete(u32),
    /// Lanes wait for different mbarriers or phases.
    Mixed,
}

/// The largest arrival count that the object holds.
const MAX_COUNT: u32 = (1 << 20) - 1;

/// Pending arrivals that a phase token was made with.
pub(crate) fn state_pending(state: u64) -> u32 {
    state as u32 & MAX_COUNT
}

impl Cta<'_> {
    fn mbar_at(&mut self, w: usize, pc: u32, lane: usize, space: MemSpace, addr: u64) -> Exec<u32> {
        match self.locate(w, pc, lane, space, addr, 8, 8)? {
            Where::Shared(off) => Ok(off as u32),
            _ => Err(self.not_shared(w, pc, lane, addr)),
        }
    }

    pub(crate) fn mbar_misuse<T>(&self, w: usize, pc: u32, lane: usize, d: String) -> Exec<T> {
        Err(self.fault(w, Some(lane as u32), pc, FaultKind::MbarrierMisuse, d))
    }

    /// The mbarrier at an offset, for use: it must be there, and its initialisation must be ordered before.
    pub(crate) fn mbar_use(&mut self, w: usize, pc: u32, lane: usize, off: u32) -> Exec<&mut Mbarrier> {
        if !self.mbars.contains_key(&off) {
            let d = format!("no mbarrier was initialised at shared address {:#x}", off + SHARED_BASE);
            return self.mbar_misuse(w, pc, lane, d);
        }
        if self.ctx.checks.races
            && let Some(rec) = self.shared.last_write(off as usize)
            && !self.warps[w].know.knows(1 << lane, rec.agent, 1 << rec.lane, rec.clock)
        {
            let d = format!(
                "the initialisation of the mbarrier at {:#x} by warp {}, lane {} is not ordered before this use",
                off + SHARED_BASE,
                rec.agent,
                rec.lane
            );
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::SharedRace, d));
        }
        Ok(self.mbars.get_mut(&off).expect("looked up above"))
    }

    pub(crate) fn mbar_init(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        addr: Addr,
        space: MemSpace,
        count: Slot,
    ) -> Exec<()> {
        let addrs = self.addresses(w, pc, active, addr)?;
        for lane in lanes(active) {
            let off = self.mbar_at(w, pc, lane, space, addrs[lane])?;
            let n = self.warps[w].regs.r32(count)[lane];
            if n == 0 || n > MAX_COUNT {
                let d = format!("an arrival count of {n}; 1 to {MAX_COUNT} are accepted");
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
            }
            if self.mbars.contains_key(&off) {
                let d = format!("the mbarrier at {:#x} is initialised again without mbarrier.inval", off + SHARED_BASE);
                return self.mbar_misuse(w, pc, lane, d);
            }
            self.write_shared(w, pc, lane, off as usize, &(n as u64).to_le_bytes(), Stored::Known)?;
            let next = self.mbar_agents.len() as u32;
            let slot = *self.mbar_agents.entry(off).or_insert(next);
            if slot >= MBAR_AGENTS {
                let d = format!("more than {MBAR_AGENTS} mbarriers in a CTA");
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::Unsupported, d));
            }
            let agent = self.agents as u32 - MBAR_AGENTS + slot;
            // A barrier at an address used before goes on counting, so that old clocks stay below new ones.
            let zero = Clocks::new(self.agents, 0);
            let clock = self.warps[w].now;
            self.mbars.insert(
                off,
                Mbarrier {
                    phase: 0,
                    expected: n,
                    pending: n,
                    tx: 0,
                    clocks: zero.clone(),
                    done_clocks: zero,
                    agent,
                    copied_phase: None,
                    initialized: (w as u32, lane as u32, clock),
                    fenced: false,
                },
            );
        }
        Ok(())
    }

    /// Makes the initialisations that the lanes know of visible to the async proxy.
    pub(crate) fn mbar_fence(&mut self, w: usize, active: u32) {
        let know = &self.warps[w].know;
        for m in self.mbars.values_mut().filter(|m| !m.fenced) {
            let (warp, lane, clock) = m.initialized;
            m.fenced = lanes(active).any(|l| know.knows(1 << l, warp, 1 << lane, clock));
        }
    }

    pub(crate) fn mbar_inval(&mut self, w: usize, pc: u32, active: u32, addr: Addr, space: MemSpace) -> Exec<()> {
        let addrs = self.addresses(w, pc, active, addr)?;
        for lane in lanes(active) {
            let off = self.mbar_at(w, pc, lane, space, addrs[lane])?;
            self.mbar_use(w, pc, lane, off)?;
            if self.bulk.iter().any(|b| b.mbar == Some(off)) || landing::any_for(&self.landing, off) {
                let d = format!("the mbarrier at {:#x} is invalidated while copies complete on it", off + SHARED_BASE);
                return self.mbar_misuse(w, pc, lane, d);
            }
            if let Some(m) = self.mbars.remove(&off)
                && m.tx != 0
            {
                let d = format!("the mbarrier at {:#x} ends with {} bytes expected", off + SHARED_BASE, m.tx);
                return self.mbar_misuse(w, pc, lane, d);
            }
        }
        Ok(())
    }

    pub(crate) fn mbar_arrive(&mut self, w: usize, pc: u32, active: u32, a: &MbarArrive) -> Exec<()> {
        let addrs = self.addresses(w, pc, active, a.addr)?;
        let first = addrs[active.trailing_zeros() as usize];
        // A relaxed arrival hands over what its lane had fenced, any other what it has done.
        let released = |cta: &Self, who: u32| match a.order {
            Order::Relaxed => cta.fenced(w, who, a.scope),
            _ => cta.publish(w, who),
        };
        // Lanes that arrive at one mbarrier together publish together.
        let together = lanes(active).all(|l| addrs[l] == first).then(|| released(self, active));
        for lane in lanes(active) {
            let regs = &self.warps[w].regs;
            let n = a.count.map_or(1, |c| regs.r32(c)[lane]);
            let tx = a.expect.map(|t| regs.r32(t)[lane]);
            let off = match self.locate(w, pc, lane, a.space, addrs[lane], 8, 8)? {
                Where::Shared(off) => off as u32,
                Where::Peer(rank, off) => {
                    let news = together.clone().unwrap_or_else(|| released(self, 1 << lane));
                    self.arrive_at_peer(w, pc, lane, (rank, off), n, tx, a.drop, news)?;
                    continue;
                }
                _ => return Err(self.not_shared(w, pc, lane, addrs[lane])),
            };
            self.mbar_use(w, pc, lane, off)?;
            if let Some(tx) = tx
                && let Err(d) = self.expect_bytes(off, tx)
            {
                return self.mbar_misuse(w, pc, lane, d);
            }
            let m = self.mbars.get_mut(&off).expect("used above");
            let state = (m.phase as u64) << 32 | m.pending as u64;
            if a.drop {
                m.expected = m.expected.saturating_sub(1);
            }
            put_lane(&mut self.warps[w].regs, a.state, true, lane, state);
            if a.state != SINK {
                self.warps[w].regs.set_init(a.state, 1 << lane, !0);
            }
            match &together {
                Some(news) => self.arrive(w, pc, lane, off, n, a.no_complete, news)?,
                None => self.arrive(w, pc, lane, off, n, a.no_complete, &released(self, 1 << lane))?,
            }
        }
        self.tick(w);
        Ok(())
    }

    /// `n` arrivals, which release what was published.
    fn arrive(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        off: u32,
        n: u32,
        no_complete: bool,
        news: &Clocks,
    ) -> Exec<()> {
        match self.arrived(off, n, no_complete, news) {
            Ok(()) => Ok(()),
            Err(d) => self.mbar_misuse(w, pc, lane, d),
        }
    }

    /// `n` arrivals at an mbarrier of this CTA, whoever arrives. Tells what is wrong with them.
    pub(crate) fn arrived(&mut self, off: u32, n: u32, no_complete: bool, news: &Clocks) -> Result<(), String> {
        let m = self.mbars.get_mut(&off).expect("the caller looked it up");
        if n == 0 || n > m.pending {
            return Err(format!(
                "{n} arrivals at the mbarrier at {:#x}, which has {} of {} pending",
                off + SHARED_BASE,
                m.pending,
                m.expected
            ));
        }
        m.pending -= n;
        m.clocks.join(news);
        if no_complete && m.pending == 0 {
            return Err(format!("arrive.noComplete completes the phase of the mbarrier at {:#x}", off + SHARED_BASE));
        }
        self.complete_phase(off)
    }

    /// Ends the phase when all arrivals and all bytes are there.
    pub(crate) fn try_complete(&mut self, w: usize, pc: u32, lane: usize, off: u32) -> Exec<()> {
        match self.complete_phase(off) {
            Ok(()) => Ok(()),
            Err(d) => self.mbar_misuse(w, pc, lane, d),
        }
    }

    /// Bytes that an arrival announces.
    pub(crate) fn expect_bytes(&mut self, off: u32, bytes: u32) -> Result<(), String> {
        let m = self.mbars.get_mut(&off).expect("the caller looked it up");
        m.tx += bytes as i64;
        if m.tx > MAX_COUNT as i64 {
            return Err(format!("{} bytes expected; an mbarrier holds at most {MAX_COUNT}", m.tx));
        }
        Ok(())
    }

    /// `expect_tx` of `n` bytes, or `complete_tx` of `-n`, which may end the phase.
    pub(crate) fn count_bytes(&mut self, off: u32, n: i64) -> Result<(), String> {
        self.mbars.get_mut(&off).expect("the caller looked it up").tx += n;
        if n < 0 { self.complete_phase(off) } else { Ok(()) }
    }

    pub(crate) fn complete_phase(&mut self, off: u32) -> Result<(), String> {
        let m = self.mbars.get_mut(&off).expect("the caller looked it up");
        if m.pending != 0 {
            return Ok(());
        }
        if m.tx < 0 {
            return Err(format!(
                "{} bytes more were copied than expect_tx announced for phase {} of the mbarrier at {:#x}",
                -m.tx,
                m.phase,
                off + SHARED_BASE
            ));
        }
        if m.tx != 0 {
            return Ok(());
        }
        let flying = self.bulk.iter().find(|b| b.mbar == Some(off) && b.phase == m.phase).map(|b| b.bytes);
        if let Some(bytes) = flying.or_else(|| landing::bytes_in_flight(&self.landing, off, m.phase)) {
            return Err(format!(
                "phase {} of the mbarrier at {:#x} completes while a copy of {bytes} bytes for it is in flight: expect_tx \
                 announced too few bytes, or after the copies",
                m.phase,
                off + SHARED_BASE
            ));
        }
        m.phase += 1;
        m.pending = m.expected;
        let Mbarrier { clocks, done_clocks, .. } = m;
        done_clocks.join(clocks);
        for warp in &mut self.warps {
            for s in &mut warp.splits {
                if s.block == Some(Block::Mbarrier(off)) {
                    s.block = None;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn mbar_tx(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        addr: Addr,
        space: MemSpace,
        tx: Slot,
        complete: bool,
    ) -> Exec<()> {
        let addrs = self.addresses(w, pc, active, addr)?;
        for lane in lanes(active) {
            let n = self.warps[w].regs.r32(tx)[lane] as i64;
            let n = if complete { -n } else { n };
            let done = match self.locate(w, pc, lane, space, addrs[lane], 8, 8)? {
                Where::Shared(off) => {
                    self.mbar_use(w, pc, lane, off as u32)?;
                    self.count_bytes(off as u32, n)
                }
                Where::Peer(rank, off) => self.count_at_peer(w, pc, lane, (rank, off), n)?,
                _ => return Err(self.not_shared(w, pc, lane, addrs[lane])),
            };
            if let Err(d) = done {
                return self.mbar_misuse(w, pc, lane, d);
            }
        }
        Ok(())
    }

    /// Tests the phase, sets the predicate, and learns what the completed phases released.
    pub(crate) fn mbar_wait(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        addr: Addr,
        space: MemSpace,
        p: u32,
        on: WaitOn,
        order: Order,
    ) -> Exec<Wait> {
        let addrs = self.addresses(w, pc, active, addr)?;
        let mut done = 0u32;
        let mut first = None;
        let mut one_address = true;
        for lane in lanes(active) {
            let off = self.mbar_at(w, pc, lane, space, addrs[lane])?;
            one_address &= *first.get_or_insert(off) == off;
            let regs = &self.warps[w].regs;
            let (parity, state) = match on {
                WaitOn::Parity(s) => (regs.r32(s)[lane], 0),
                WaitOn::State(s) => (0, regs.r64(s)[lane]),
            };
            let m = self.mbar_use(w, pc, lane, off)?;
            let yes = match on {
                WaitOn::Parity(_) => {
                    if parity > 1 {
                        let d = format!("a phase parity of {parity}; 0 and 1 are accepted");
                        return self.mbar_misuse(w, pc, lane, d);
                    }
                    m.phase & 1 != parity
                }
                WaitOn::State(_) => {
                    let token = (state >> 32) as u32;
                    if token > m.phase || token + 1 < m.phase {
                        let d = format!("a token of phase {token} while phase {} is in progress", m.phase);
                        return self.mbar_misuse(w, pc, lane, d);
                    }
                    token < m.phase
                }
            };
            done |= (yes as u32) << lane;
        }
        if done == 0 && one_address {
            self.warps[w].regs.put_pred(p, 0, active, !0);
            return Ok(first.map_or(Wait::Mixed, Wait::Incomplete));
        }
        let mut rest = done;
        while rest != 0 {
            let lane = rest.trailing_zeros() as usize;
            let who = lanes(rest).filter(|&l| addrs[l] == addrs[lane]).fold(0, |m, l| m | 1 << l);
            rest &= !who;
            let off = self.mbar_at(w, pc, lane, space, addrs[lane])?;
            let base = self.clock_base;
            let m = self.mbars.get_mut(&off).expect("used above");
            if m.copied_phase.is_some_and(|c| c < m.phase) {
                m.copied_phase = None;
            }
            let (agent, clock) = (m.agent, base + m.phase);
            if order == Order::Relaxed {
                let mut seen = m.done_clocks.clone();
                seen.add(agent, clock);
                self.offer(w, who, seen);
            } else {
                let warp = &mut self.warps[w];
                warp.know.learn(who, warp.live, &m.done_clocks);
                self.learn_agent(w, who, agent, clock);
            }
        }
        self.warps[w].regs.put_pred(p, done, active, !0);
        Ok(if done == active { Wait::Done } else { Wait::Mixed })
    }

    /// The arrival of cp.async: the emulator lets the lane's copies land now and arrives for them.
    pub(crate) fn cp_async_arrive(&mut self, w: usize, pc: u32, active: u32, addr: Addr, no_inc: bool) -> Exec<()> {
        let addrs = self.addresses(w, pc, active, addr)?;
        for lane in lanes(active) {
            let off = self.mbar_at(w, pc, lane, MemSpace::Shared, addrs[lane])?;
            self.settle_copies(w, |c| c.lane == lane as u32);
            let m = self.mbar_use(w, pc, lane, off)?;
            if !no_inc {
                m.pending += 1;
            }
            let news = self.publish(w, 1 << lane);
            self.arrive(w, pc, lane, off, 1, false, &news)?;
        }
        self.tick(w);
        Ok(())
    }

    /// Arrivals that a phase token saw pending.
    pub(crate) fn mbar_pending(&mut self, w: usize, active: u32, d: Slot, state: Slot) {
        let regs = &mut self.warps[w].regs;
        let v = regs.r64(state).map(state_pending);
        regs.put32(d, &v, active);
        if d != SINK {
            let known = regs.init(state);
            regs.set_init(d, active, known);
        }
    }
}
