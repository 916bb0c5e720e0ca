//! Reads and writes of global memory with all checks.

use crate::error::FaultKind;
use crate::machine::{Cta, Exec};
use crate::memory;

impl Cta<'_> {
    pub(crate) fn global_race(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: (usize, u64),
        n: u64,
        write: bool,
        atomic: bool,
    ) -> Exec<()> {
        if !self.ctx.checks.races {
            return Ok(());
        }
        let warp = &self.warps[w];
        let me = memory::Access {
            launch: self.ctx.launch & 0x3ff,
            cta: self.index & 0x3f_ffff,
            warp: w as u32,
            lane: lane as u32,
            mask: 0,
            atomic,
            clock: warp.now - self.clock_base,
        };
        let base = self.clock_base;
        let known = &self.known;
        let ordered = |o: &memory::Access| {
            if o.cta != me.cta {
                return known.contains(&o.cta);
            }
            o.clock >= memory::MAX_CLOCK || warp.know.knows(1 << lane, o.warp, 1 << o.lane, o.clock + base)
        };
        let a = self.ctx.mem.get(at.0);
        if let Some((off, other, was_write)) = a.race(at.1, n, write, me, ordered) {
            let d = format!(
                "{} of {:#x} ({n} bytes) against {} by CTA {}, warp {}, lane {}, with no ordering between them",
                if write { "write" } else { "read" },
                a.base + off,
                if was_write { "a write" } else { "a read" },
                other.cta,
                other.warp,
                other.lane
            );
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::GlobalRace, d));
        }
        Ok(())
    }

    /// Reads global memory with all checks.
    pub(crate) fn read_global(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: (usize, u64),
        out: &mut [u8],
        atomic: bool,
    ) -> Exec<()> {
        let n = out.len() as u64;
        let a = self.ctx.mem.get(at.0);
        if self.ctx.checks.uninitialized
            && let Some(o) = a.first_unwritten(at.1, n)
        {
            let d = format!("byte {o} of the allocation of {} bytes at {:#x} was never written", a.len, a.base);
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::UninitializedGlobal, d));
        }
        self.global_race(w, pc, lane, at, n, false, atomic)?;
        self.ctx.mem.get(at.0).load(at.1, out);
        self.counters.global_bytes_read += n;
        Ok(())
    }

    /// Writes global memory with all checks.
    pub(crate) fn write_global(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: (usize, u64),
        data: &[u8],
        atomic: bool,
    ) -> Exec<()> {
        let n = data.len() as u64;
        let a = self.ctx.mem.get(at.0);
        if a.read_only {
            let d = format!("{n} bytes at {:#x}, a constant of the module", a.base + at.1);
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::ReadOnlyWrite, d));
        }
        self.global_race(w, pc, lane, at, n, true, atomic)?;
        let a = self.ctx.mem.get(at.0);
        a.store(at.1, data);
        a.mark_written(at.1, n);
        self.counters.global_bytes_written += n;
        Ok(())
    }
}
