//! Reads and writes of global memory with all checks.

use crate::emulator::Severity;
use crate::error::{Fault, FaultKind};
use crate::history::{Access, Actor, Kind, Race};
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes};

/// What a message says of a plain read against a strong write.
pub(crate) const WEAK_READ: &str = " (`Checks::weak_reads` grades plain reads against atomics)";

impl Cta<'_> {
    /// Looks for a race of an access by lanes of a warp, and records it.
    pub(crate) fn global_access(
        &mut self,
        w: usize,
        pc: u32,
        who: u32,
        at: (usize, u64),
        n: u64,
        kind: Kind,
    ) -> Exec<()> {
        match self.global_race(w, who, at, n, kind, self.ctx.checks.weak_reads != Severity::Ignore) {
            Some(race) => self.graded_race(w, pc, who, at, n, kind, race),
            None => Ok(()),
        }
    }

    /// A race is an error, but for plain reads against atomics where they are warned of and nothing else is wrong.
    #[cold]
    fn graded_race(
        &mut self,
        w: usize,
        pc: u32,
        who: u32,
        at: (usize, u64),
        n: u64,
        kind: Kind,
        race: Race,
    ) -> Exec<()> {
        if !race.weak_read || self.ctx.checks.weak_reads != Severity::Warn {
            return Err(self.report_race(w, pc, who, at, n, kind, race));
        }
        self.ctx.warn(pc, self.index, || self.report_race(w, pc, who, at, n, kind, race));
        match self.global_race(w, who, at, n, kind, false) {
            Some(race) => Err(self.report_race(w, pc, who, at, n, kind, race)),
            None => Ok(()),
        }
    }

    fn global_race(
        &mut self,
        w: usize,
        who: u32,
        at: (usize, u64),
        n: u64,
        kind: Kind,
        weak_reads: bool,
    ) -> Option<Race> {
        if !self.ctx.checks.races {
            return None;
        }
        let warp = &self.warps[w];
        let (number, base) = (self.number, self.clock_base);
        let actor = Actor {
            launch: self.ctx.launch,
            me: Access { cta: number, warp: w as u32, lanes: who, mask: 0, writes: false, clock: warp.now - base },
            kind,
            ordered: |o: &Access| {
                if o.cta == number {
                    warp.know.knows(who, o.warp, o.lanes, o.clock + base)
                } else {
                    warp.know.knows_remote(who, o.cta, o.warp, o.lanes, o.clock)
                }
            },
            ctas_order: self.ctx.talk.orders,
            weak_reads,
            spilled: &self.ctx.spilled,
        };
        self.ctx.mem.get(at.0).history().access(at.1, n, &actor)
    }

    fn report_race(&self, w: usize, pc: u32, who: u32, at: (usize, u64), n: u64, kind: Kind, race: Race) -> Box<Fault> {
        let act = match kind {
            Kind::Read => "read",
            Kind::Write { .. } => "write",
            Kind::StrongRead { .. } => "strong read",
            Kind::StrongWrite { .. } => "atomic or strong write",
        };
        let other = match (race.other_strong, race.other_writes) {
            (false, false) => "a read",
            (false, true) => "a write",
            (true, false) => "a strong read",
            (true, true) => "an atomic or strong write",
        };
        let by = if race.other.lanes == !0 {
            format!("CTA {}", race.other.cta)
        } else {
            let lane = race.other.lanes.trailing_zeros();
            format!("CTA {}, warp {}, lane {lane}", race.other.cta, race.other.warp)
        };
        let d = format!(
            "{act} of {:#x} ({n} bytes) against {other} by {by}, with no ordering between them{}",
            self.ctx.mem.get(at.0).base + race.off,
            if race.weak_read { WEAK_READ } else { "" }
        );
        self.fault(w, Some(who.trailing_zeros()), pc, FaultKind::GlobalRace, d)
    }

    /// Reads global memory with all checks.
    pub(crate) fn read_global(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: (usize, u64),
        out: &mut [u8],
        strong: bool,
    ) -> Exec<()> {
        let kind = if strong { Kind::StrongRead { narrow: false } } else { Kind::Read };
        self.read_global_by(w, pc, 1 << lane, at, out, kind)
    }

    /// Reads global memory with all checks, for lanes that give the same address.
    pub(crate) fn read_global_by(
        &mut self,
        w: usize,
        pc: u32,
        who: u32,
        at: (usize, u64),
        out: &mut [u8],
        kind: Kind,
    ) -> Exec<()> {
        let n = out.len() as u64;
        let a = self.ctx.mem.get(at.0);
        if self.ctx.checks.uninitialized
            && let Some(o) = a.first_unwritten(at.1, n)
        {
            let d = format!("byte {o} of the allocation of {} bytes at {:#x} was never written", a.len, a.base);
            return Err(self.fault(w, Some(who.trailing_zeros()), pc, FaultKind::UninitializedGlobal, d));
        }
        self.global_access(w, pc, who, at, n, kind)?;
        self.ctx.mem.get(at.0).load(at.1, out);
        self.counters.global_bytes_read += n * who.count_ones() as u64;
        Ok(())
    }

    /// Writes global memory with all checks; `unknown` has the bits that nobody wrote.
    pub(crate) fn write_global(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: (usize, u64),
        data: &[u8],
        unknown: Option<&[u8]>,
        strong: Option<Scope>,
    ) -> Exec<()> {
        let n = data.len() as u64;
        let a = self.ctx.mem.get(at.0);
        if a.read_only {
            let d = format!("{n} bytes at {:#x}, a constant of the module", a.base + at.1);
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::ReadOnlyWrite, d));
        }
        if let Some(scope) = strong {
            self.global_access(w, pc, 1 << lane, at, n, Kind::StrongWrite { narrow: scope == Scope::Cta })?;
        } else if let Some(race) = self.global_race(w, 1 << lane, at, n, Kind::Write { same: false }, true) {
            // Lanes of one warp may write the same value.
            let own = race.other.cta == self.number && race.other.warp == w as u32;
            let again = Kind::Write { same: true };
            if !own || !self.holds(at, data) || self.global_race(w, 1 << lane, at, n, again, true).is_some() {
                return Err(self.report_race(w, pc, 1 << lane, at, n, Kind::Write { same: false }, race));
            }
        }
        let a = self.ctx.mem.get(at.0);
        a.store(at.1, data);
        a.mark_stored(at.1, n, unknown);
        self.counters.global_bytes_written += n;
        Ok(())
    }

    /// discard: who reads the bytes before somebody writes them reads anything.
    pub(crate) fn discard(&mut self, w: usize, pc: u32, active: u32, space: MemSpace, addr: Addr) -> Exec<()> {
        let addrs = self.addresses(w, pc, active, addr)?;
        for lane in lanes(active) {
            let at = match self.locate(w, pc, lane, space, addrs[lane], CACHE_LINE, CACHE_LINE)? {
                Where::Global(i, off) => (i, off),
                _ => {
                    let d = format!("address {:#x} is not in global memory", addrs[lane]);
                    return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
                }
            };
            self.global_access(w, pc, 1 << lane, at, CACHE_LINE, Kind::Write { same: false })?;
            self.ctx.mem.get(at.0).mark_unwritten(at.1, CACHE_LINE);
        }
        Ok(())
    }

    /// Whether memory holds the bytes already.
    fn holds(&self, at: (usize, u64), data: &[u8]) -> bool {
        let a = self.ctx.mem.get(at.0);
        let mut old = [0u8; 32];
        let old = &mut old[..data.len()];
        a.load(at.1, old);
        old == data && a.first_unwritten(at.1, data.len() as u64).is_none()
    }
}
