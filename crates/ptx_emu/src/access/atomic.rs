//! Atomics, and what strong accesses release and acquire.

use super::counting::{Banks, Sectors};
use crate::alu;
use crate::error::FaultKind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes, put_lane};

impl Cta<'_> {
    /// A strong write publishes what the lane did and learnt before its last fence. The caller lets the warp's clock go on after it.
    pub(crate) fn release(&mut self, w: usize, lane: usize, addr: u64, order: Order) {
        if !self.ctx.checks.races || !(order.releases() || self.warps[w].fenced >> lane & 1 == 1) {
            return;
        }
        let news = self.publish(w, 1 << lane);
        self.sync_vars.entry(addr).or_default().join(&news);
        if addr >= 1 << 44 {
            let mut syncs = self.ctx.syncs.lock().unwrap_or_else(|e| e.into_inner());
            let set = syncs.entry(addr).or_default();
            set.insert(self.index & 0x3f_ffff);
            set.extend(&self.known);
        }
    }

    /// A strong read learns what was published at the address.
    pub(crate) fn acquire(&mut self, w: usize, lane: usize, addr: u64) {
        if !self.ctx.checks.races {
            return;
        }
        if let Some(v) = self.sync_vars.get(&addr) {
            let warp = &mut self.warps[w];
            warp.know.learn(1 << lane, warp.live, v);
        }
        if addr >= 1 << 44 {
            let syncs = self.ctx.syncs.lock().unwrap_or_else(|e| e.into_inner());
            if let Some(set) = syncs.get(&addr) {
                self.known.extend(set);
            }
        }
    }

    pub(crate) fn atomic(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        space: MemSpace,
        op: AtomOp,
        ty: Ty,
        order: Order,
        d: Slot,
        addr: Addr,
        b: Slot,
        c: Slot,
    ) -> Exec<()> {
        if self.ctx.checks.uninitialized {
            self.known_operands(w, pc, active)?;
        }
        let addrs = self.addresses(w, pc, active, addr)?;
        let n = (ty.bits() / 8) as usize;
        let wide = ty.wide();
        let mut sectors = Sectors::default();
        let mut banks = Banks::new(n);
        for lane in lanes(active) {
            let bv = self.warps[w].regs.lane(b, wide, lane);
            let cv = self.warps[w].regs.lane(c, wide, lane);
            let f = |old: u64, flush| alu::atomic(op, ty, old, bv, cv, flush);
            let old = match self.locate(w, pc, lane, space, addrs[lane], n as u64, n as u64)? {
                Where::Global(i, off) => {
                    let a = self.ctx.mem.get(i);
                    if self.ctx.checks.uninitialized
                        && op != AtomOp::Exch
                        && let Some(o) = a.first_unwritten(off, n as u64)
                    {
                        let d =
                            format!("byte {o} of the allocation of {} bytes at {:#x} was never written", a.len, a.base);
                        return Err(self.fault(w, Some(lane as u32), pc, FaultKind::UninitializedGlobal, d));
                    }
                    if a.read_only {
                        let d = format!("{n} bytes at {:#x}, a constant of the module", a.base + off);
                        return Err(self.fault(w, Some(lane as u32), pc, FaultKind::ReadOnlyWrite, d));
                    }
                    self.global_race(w, pc, lane, (i, off), n as u64, true, true)?;
                    self.release(w, lane, addrs[lane], order);
                    let a = self.ctx.mem.get(i);
                    let old = a.update(off, n as u32, |old| f(old, true));
                    a.mark_written(off, n as u64);
                    self.acquire(w, lane, addrs[lane]);
                    self.counters.global_bytes_read += n as u64;
                    self.counters.global_bytes_written += n as u64;
                    sectors.add(i, off, n as u64);
                    old
                }
                Where::Shared(off) => {
                    let mut v = [0u8; 8];
                    if op == AtomOp::Exch {
                        v[..n].copy_from_slice(&self.shared.bytes[off..off + n]);
                    } else {
                        self.read_shared_atomic(w, pc, lane, off, &mut v[..n])?;
                    }
                    let old = u64::from_le_bytes(v);
                    self.release(w, lane, off as u64, order);
                    self.write_shared_atomic(w, pc, lane, off, &f(old, false).to_le_bytes()[..n])?;
                    self.acquire(w, lane, off as u64);
                    banks.add(lane, off);
                    old
                }
                _ => {
                    let d = "atomics work on global and shared memory only".to_owned();
                    return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
                }
            };
            put_lane(&mut self.warps[w].regs, d, wide, lane, old);
            self.counters.atomics += 1;
        }
        self.tick(w);
        if d != SINK {
            self.warps[w].regs.set_init(d, active, !0);
        }
        self.count_sectors(&sectors, false);
        self.count_sectors(&sectors, true);
        self.count_banks(&banks);
        Ok(())
    }
}
