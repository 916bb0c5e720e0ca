//! Reads and writes of shared memory with all checks.

use super::global::WEAK_READ;
use crate::error::{Fault, FaultKind};
use crate::ir::*;
use crate::machine::{Cta, Exec};
use crate::remote::Foreign;
use crate::shared::{By, Conflict, Record, Shared, What};

/// What is known of the bits of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stored<'a> {
    Known,
    /// These bits of its bytes are not.
    Partly(&'a [u8]),
    /// No bit is: its bytes are unwritten again.
    Unknown,
}

impl Stored<'_> {
    pub(crate) fn new(known: bool) -> Self {
        if known { Stored::Known } else { Stored::Unknown }
    }

    pub(crate) fn mark(self, shared: &mut Shared, off: usize, n: usize) {
        match self {
            Stored::Known => shared.mark_written(off, n),
            Stored::Partly(unknown) => shared.mark_stored(off, n, Some(unknown)),
            Stored::Unknown => shared.mark_unwritten(off, n),
        }
    }
}

impl Cta<'_> {
    /// The message for a conflict in shared memory.
    pub(crate) fn shared_conflict(
        &self,
        w: usize,
        pc: u32,
        lane: Option<u32>,
        c: Conflict,
        writing: bool,
    ) -> Box<Fault> {
        let nw = self.warps.len() as u32;
        let at = c.offset + SHARED_BASE;
        let o = &c;
        let act = if writing { "write" } else { "read" };
        let groups = if self.ctx.prog.uses_wgmma { self.groups.len() as u32 } else { 0 };
        if let Some(f) = Foreign::decode(o.agent) {
            let what = if o.was_write { "the write" } else { "the read" };
            let who = if f.agent < nw {
                format!("CTA rank {} of the cluster, warp {}, lane {}", f.rank, f.agent, o.lanes.trailing_zeros())
            } else {
                format!("a copy of CTA rank {} of the cluster", f.rank)
            };
            let d = format!(
                "{act} of shared address {at:#x} against {what} by {who}, with no ordering between them{}",
                if c.weak_read { WEAK_READ } else { "" }
            );
            return self.fault(w, lane, pc, FaultKind::SharedRace, d);
        }
        if o.agent < nw {
            let who = if o.lanes.is_power_of_two() {
                format!("warp {}, lane {}", o.agent, o.lanes.trailing_zeros())
            } else {
                format!("warp {}, lanes {:#x}", o.agent, o.lanes)
            };
            if o.in_flight {
                let d = format!("{act} of shared address {at:#x}, into which a cp.async of {who} is in flight");
                return self.fault(w, lane, pc, FaultKind::AsyncCopyNotWaited, d);
            }
            let what = if o.was_write { "the write" } else { "the read" };
            // Lanes of one warp are ordered by nothing less than a barrier of their own.
            let missing = if o.agent == w as u32 { "no bar.warp.sync" } else { "no barrier" };
            let d = format!(
                "{act} of shared address {at:#x} against {what} by {who}, with {missing} between them{}",
                if c.weak_read { WEAK_READ } else { "" }
            );
            return self.fault(w, lane, pc, FaultKind::SharedRace, d);
        }
        if o.agent < nw + groups && !o.was_write {
            let d =
                format!("{act} of shared address {at:#x}, which wgmma of warpgroup {} may still read", o.agent - nw);
            return self.fault(w, lane, pc, FaultKind::AsyncReadOverwritten, d);
        }
        if !o.was_write {
            let d = format!(
                "{act} of shared address {at:#x}, which a bulk copy of warp {} may still read",
                o.agent - nw - groups
            );
            return self.fault(w, lane, pc, FaultKind::AsyncReadOverwritten, d);
        }
        let d = format!("{act} of shared address {at:#x}, into which a bulk copy writes that was not waited for");
        self.fault(w, lane, pc, FaultKind::AsyncCopyNotWaited, d)
    }

    /// Reads shared memory with all checks, for lanes that give the same address.
    pub(crate) fn read_shared(&mut self, w: usize, pc: u32, who: u32, off: usize, out: &mut [u8]) -> Exec<()> {
        let n = out.len();
        let lane = who.trailing_zeros();
        if self.ctx.checks.races {
            let warp = &self.warps[w];
            if let Some(c) = self.shared.on_read(off, n, &warp.know, who, (w as u32, warp.now)) {
                return Err(self.shared_conflict(w, pc, Some(lane), c, false));
            }
            self.warn_of_shared(w, pc, lane, false);
        }
        if self.ctx.checks.uninitialized
            && let Some(o) = self.shared.first_unwritten(off, n)
        {
            return Err(self.unwritten_shared(w, pc, Some(lane), o));
        }
        out.copy_from_slice(&self.shared.bytes[off..off + n]);
        self.counters.shared_bytes_read += n as u64 * who.count_ones() as u64;
        Ok(())
    }

    pub(crate) fn write_shared(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        off: usize,
        data: &[u8],
        stored: Stored<'_>,
    ) -> Exec<()> {
        let n = data.len();
        if self.ctx.checks.races {
            let warp = &self.warps[w];
            let same = self.shared.bytes[off..off + n] == *data;
            let rec = Record { clock: warp.now, agent: w as u32, lane: lane as u32, mask: 0, in_flight: false };
            if let Some(c) = self.shared.on_write(off, n, &warp.know, lane as u32, same, rec) {
                return Err(self.shared_conflict(w, pc, Some(lane as u32), c, true));
            }
        }
        self.shared.bytes[off..off + n].copy_from_slice(data);
        stored.mark(&mut self.shared, off, n);
        self.counters.shared_bytes_written += n as u64;
        Ok(())
    }

    /// The bytes of shared memory, written before; an atomic's own check of races comes with its write.
    pub(crate) fn read_shared_written(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        off: usize,
        out: &mut [u8],
    ) -> Exec<()> {
        self.whole_shared(w, pc, Some(lane as u32), off, out.len())?;
        out.copy_from_slice(&self.shared.bytes[off..off + out.len()]);
        Ok(())
    }

    pub(crate) fn read_shared_strong(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        off: usize,
        out: &mut [u8],
    ) -> Exec<()> {
        self.shared_strong(w, pc, lane, off, out.len(), What::StrongRead)?;
        if self.ctx.checks.uninitialized
            && let Some(o) = self.shared.first_unwritten(off, out.len())
        {
            return Err(self.unwritten_shared(w, pc, Some(lane as u32), o));
        }
        out.copy_from_slice(&self.shared.bytes[off..off + out.len()]);
        Ok(())
    }

    pub(crate) fn write_shared_strong(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        off: usize,
        data: &[u8],
        stored: Stored<'_>,
    ) -> Exec<()> {
        self.shared_strong(w, pc, lane, off, data.len(), What::StrongWrite)?;
        self.shared.bytes[off..off + data.len()].copy_from_slice(data);
        stored.mark(&mut self.shared, off, data.len());
        Ok(())
    }

    fn unwritten_shared(&self, w: usize, pc: u32, lane: Option<u32>, o: usize) -> Box<Fault> {
        let d = format!("shared address {:#x} was never written", o as u32 + SHARED_BASE);
        self.fault(w, lane, pc, FaultKind::UninitializedShared, d)
    }

    /// Every bit of the range must be written, for those who cannot carry on what is unknown.
    pub(crate) fn whole_shared(&self, w: usize, pc: u32, lane: Option<u32>, off: usize, n: usize) -> Exec<()> {
        if self.ctx.checks.uninitialized
            && let Some(o) = self.shared.first_unknown(off, n)
        {
            return Err(self.unwritten_shared(w, pc, lane, o));
        }
        Ok(())
    }

    fn shared_strong(&mut self, w: usize, pc: u32, lane: usize, off: usize, n: usize, what: What) -> Exec<()> {
        if !self.ctx.checks.races {
            return Ok(());
        }
        let warp = &self.warps[w];
        let by = By { agent: w as u32, lane: lane as u32, clock: warp.now };
        let before = |agent, lanes, clock| warp.know.knows(1 << lane, agent, lanes, clock);
        if let Some(c) = self.shared.beside(off, n, what, by, &before) {
            return Err(self.shared_conflict(w, pc, Some(lane as u32), c, what == What::StrongWrite));
        }
        self.warn_of_shared(w, pc, lane as u32, what == What::StrongWrite);
        Ok(())
    }

    /// The last access was, or met, a plain read against a strong write that is worth a warning.
    #[inline(always)]
    fn warn_of_shared(&self, w: usize, pc: u32, lane: u32, writing: bool) {
        if let Some(c) = self.shared.warned.take() {
            self.ctx.warn(pc, self.index, || self.shared_conflict(w, pc, Some(lane), c, writing));
        }
    }
}
