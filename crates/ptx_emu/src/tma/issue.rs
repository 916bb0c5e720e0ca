//! The issue of a bulk copy: what it will touch is checked and recorded at once, and moved later.

use super::{BulkOp, Piece};
use crate::access::Sectors;
use crate::error::FaultKind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where};
use crate::remote::Foreign;
use crate::shared::{By, Record, What};

impl Cta<'_> {
    /// Starts a copy of the pieces; `mbar` is the address to complete on of a copy into shared memory, and `rank` the CTA of the cluster that it goes to.
    pub(super) fn issue_bulk(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        pieces: Vec<Piece>,
        fill: [u8; 16],
        b: &Bulk,
        mbar: Option<u64>,
        bytes: u32,
        rank: u32,
    ) -> Exec<()> {
        self.counters.async_copies += 1;
        let ranks = b.multicast.map_or(1 << rank, |mask| self.warps[w].regs.r32(mask)[lane] & 0xffff);
        if let Some(m) = mbar
            && (b.multicast.is_some() || rank != self.rank)
        {
            let (mbar_rank, off) = self.in_cluster(w, pc, lane, MemSpace::SharedCluster, m, 8, 8)?;
            if mbar_rank != rank {
                let d = format!(
                    "a copy to rank {rank} that completes on an mbarrier of rank {mbar_rank}; both are in one CTA"
                );
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
            }
            let op = BulkOp { warp: w, lane, pc, pieces, fill, mbar: None, bytes, phase: 0, group: 0, reduce: None };
            return self.issue_to_cluster(w, pc, lane, op, ranks, off as u32);
        }
        let (mut mbar_off, mut phase, mut group) = (None, 0, 0);
        if let Some(m) = mbar {
            let (off, now, record) = self.complete_on(w, pc, lane, m)?;
            (mbar_off, phase) = (Some(off), now);
            self.issue_load(w, pc, lane, &pieces, record)?;
            self.counters.shared_bytes_written += bytes as u64;
        } else {
            group = self.bulk_group(w, lane as u32);
            self.issue_store(w, pc, lane, &pieces, group, b.reduce.is_some())?;
            self.counters.shared_bytes_read += bytes as u64;
        }
        self.bulk.push(BulkOp {
            warp: w,
            lane,
            pc,
            pieces,
            fill,
            mbar: mbar_off,
            bytes,
            phase,
            group,
            reduce: b.reduce,
        });
        Ok(())
    }

    /// Offset and phase of the mbarrier at this address, and what a copy that completes on it leaves in the records.
    fn complete_on(&mut self, w: usize, pc: u32, lane: usize, mbar: u64) -> Exec<(u32, u32, Record)> {
        let Where::Shared(off) = self.locate(w, pc, lane, MemSpace::Shared, mbar, 8, 8)? else {
            return Err(self.not_shared(w, pc, lane, mbar));
        };
        let base = self.clock_base;
        let asynchronous = self.ctx.checks.asynchronous;
        let bar = self.mbar_use(w, pc, lane, off as u32)?;
        if asynchronous && !bar.fenced {
            let d = format!(
                "the copy completes on the mbarrier at {:#x}, initialised with no fence.proxy.async or \
                 fence.mbarrier_init since",
                off as u32 + SHARED_BASE
            );
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::MissingProxyFence, d));
        }
        let phase = bar.phase;
        bar.copied_phase = Some(phase);
        let clock = base + phase + 1;
        let record = Record { clock, agent: bar.agent, lane: 0, mask: 0, in_flight: false };
        self.top_clock = self.top_clock.max(clock);
        Ok((off as u32, phase, record))
    }

    fn issue_load(&mut self, w: usize, pc: u32, lane: usize, pieces: &[Piece], record: Record) -> Exec<()> {
        let mut sectors = Sectors::default();
        for p in pieces {
            if self.ctx.checks.races {
                let know = &self.warps[w].know;
                let (o, n) = (p.shared as usize, p.bytes as usize);
                if let Some(c) = self.shared.on_write(o, n, know, lane as u32, false, record) {
                    return Err(self.shared_conflict(w, pc, Some(lane as u32), c, true));
                }
            }
            if p.hi > 0 {
                let mut sink = [0u8; 16];
                let n = p.hi as usize;
                self.read_global(w, pc, lane, (p.alloc as usize, p.off), &mut sink[..n], false)?;
                sectors.add(p.alloc as usize, p.off, n as u64);
            }
        }
        self.count_sectors(&sectors, false);
        Ok(())
    }

    fn issue_store(&mut self, w: usize, pc: u32, lane: usize, pieces: &[Piece], group: u64, atomic: bool) -> Exec<()> {
        let mut sectors = Sectors::default();
        let agent = self.bulk_agent(w as u32);
        let clock = self.clock_base + 1 + group as u32;
        for p in pieces {
            let (o, n) = (p.shared as usize, p.bytes as usize);
            self.async_read(w, pc, 1 << lane, o, n, agent, clock)?;
            if p.hi > 0 {
                let n = p.hi as u64;
                let data = self.ctx.mem.get(p.alloc as usize);
                if data.read_only {
                    let d = format!("{n} bytes at {:#x}, a constant of the module", data.base + p.off);
                    return Err(self.fault(w, Some(lane as u32), pc, FaultKind::ReadOnlyWrite, d));
                }
                // A reduction reads what it changes.
                if atomic
                    && self.ctx.checks.uninitialized
                    && let Some(o) = data.first_unknown(p.off, n)
                {
                    let d = format!(
                        "byte {o} of the allocation of {} bytes at {:#x} was never written",
                        data.len, data.base
                    );
                    return Err(self.fault(w, Some(lane as u32), pc, FaultKind::UninitializedGlobal, d));
                }
                self.write_race(w, pc, lane, (p.alloc as usize, p.off), n, atomic)?;
                self.counters.global_bytes_written += n;
                sectors.add(p.alloc as usize, p.off, n);
            }
        }
        self.count_sectors(&sectors, true);
        Ok(())
    }

    /// Checks and records the read of its source by a copy to another CTA, whose mbarrier tells that it is done.
    pub(crate) fn read_by_copy(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        off: usize,
        n: usize,
        by: (Foreign, u32),
    ) -> Exec<()> {
        let (reader, clock) = by;
        self.async_source(w, pc, 1 << lane, off, n)?;
        if !self.ctx.checks.races {
            return Ok(());
        }
        let know = &self.warps[w].know;
        let before = |agent, lanes, at| know.knows(1 << lane, agent, lanes, at);
        // A copy within the CTA is on record as the CTA's own mbarrier.
        let agent = if reader.rank == self.rank { reader.agent } else { reader.encode() };
        let by = By { agent, lane: 0, clock };
        match self.shared.beside(off, n, What::Read, by, &before) {
            Some(c) => Err(self.shared_conflict(w, pc, Some(lane as u32), c, false)),
            None => Ok(()),
        }
    }

    /// Checks and records a read of shared memory through the async proxy by these lanes.
    pub(crate) fn async_read(
        &mut self,
        w: usize,
        pc: u32,
        who: u32,
        off: usize,
        n: usize,
        agent: u32,
        clock: u32,
    ) -> Exec<()> {
        let faulty = who.is_power_of_two().then_some(who.trailing_zeros());
        if self.ctx.checks.races {
            let know = &self.warps[w].know;
            if let Some(c) = self.shared.on_read(off, n, know, who, (agent, clock)) {
                return Err(self.shared_conflict(w, pc, faulty, c, false));
            }
            self.top_clock = self.top_clock.max(clock);
        }
        self.async_source(w, pc, who, off, n)
    }

    /// What the async proxy reads must be written, and made visible to it.
    fn async_source(&mut self, w: usize, pc: u32, who: u32, off: usize, n: usize) -> Exec<()> {
        let faulty = who.is_power_of_two().then_some(who.trailing_zeros());
        if self.ctx.checks.races {
            let nw = self.warps.len() as u32;
            // The fence may be the writer's, after its write, or the reader's, after it learnt of the write.
            let unfenced = |rec: &Record| {
                rec.agent < nw
                    && rec.clock > self.clock_base
                    && !self.warps[rec.agent as usize].proxy.learnt(1 << rec.lane, rec.agent, rec.lane, rec.clock)
                    && !self.warps[w].proxy.learnt(who, rec.agent, rec.lane, rec.clock)
            };
            if self.ctx.checks.asynchronous
                && let Some((o, rec)) = self.shared.find_write(off, n, unfenced)
            {
                let d = format!(
                    "the async proxy reads shared address {:#x}, written by warp {} with no fence.proxy.async since",
                    o as u32 + SHARED_BASE,
                    rec.agent
                );
                return Err(self.fault(w, faulty, pc, FaultKind::MissingProxyFence, d));
            }
        }
        if self.ctx.checks.uninitialized
            && let Some(o) = self.shared.first_unwritten(off, n)
        {
            let d = format!("shared address {:#x} was never written", o as u32 + SHARED_BASE);
            return Err(self.fault(w, faulty, pc, FaultKind::UninitializedShared, d));
        }
        Ok(())
    }
}
