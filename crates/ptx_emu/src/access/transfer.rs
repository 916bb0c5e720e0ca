//! Loads and stores.

use super::counting::{Banks, Sectors};
use crate::error::FaultKind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes};

impl Cta<'_> {
    pub(crate) fn load(&mut self, w: usize, pc: u32, active: u32, a: &Access) -> Exec<()> {
        let addrs = self.addresses(w, pc, active, a.addr)?;
        let n = a.bytes as usize * a.count as usize;
        let atomic = a.order != Order::Weak;
        let mut sectors = Sectors::default();
        let mut banks = Banks::new(n);
        let mut buf = [0u8; 32];
        let mut known_mask = active;
        // Lanes that read one address of shared memory are served together: broadcasts are common.
        let same = |addr: u64| addrs.iter().enumerate().fold(0, |m, (l, &a)| m | ((a == addr) as u32) << l);
        let broadcast = (same(addrs[active.trailing_zeros() as usize]) & active).count_ones() > 1;
        let mut rest = active;
        while rest != 0 {
            let lane = rest.trailing_zeros() as usize;
            let addr = addrs[lane];
            let out = &mut buf[..n];
            let mut served = 1 << lane;
            match self.locate(w, pc, lane, a.space, addr, n as u64, n as u64)? {
                Where::Global(i, off) => {
                    self.read_global(w, pc, lane, (i, off), out, atomic)?;
                    sectors.add(i, off, n as u64);
                    if atomic {
                        self.acquire(w, lane, addr);
                    }
                }
                Where::Shared(off) => {
                    if atomic {
                        self.read_shared_atomic(w, pc, lane, off, out)?;
                        self.acquire(w, lane, off as u64);
                    } else {
                        if broadcast {
                            served = same(addr) & rest;
                        }
                        self.read_shared(w, pc, served, off, out)?;
                    }
                    for l in lanes(served) {
                        banks.add(l, off);
                    }
                }
                Where::Local(off) => {
                    let warp = &self.warps[w];
                    out.copy_from_slice(&warp.local[off..off + n]);
                    if warp.local_init[off..off + n].contains(&0) {
                        known_mask &= !(1 << lane);
                    }
                }
                Where::Param(off) => out.copy_from_slice(&self.ctx.params[off..off + n]),
            }
            rest &= !served;
            let regs = &mut self.warps[w].regs;
            let b = a.bytes as usize;
            for (k, &slot) in a.regs[..a.count as usize].iter().enumerate() {
                if slot == SINK {
                    continue;
                }
                let e = &buf[k * b..(k + 1) * b];
                let v = match b {
                    1 => e[0] as u64,
                    2 => u16::from_le_bytes([e[0], e[1]]) as u64,
                    4 => u32::from_le_bytes([e[0], e[1], e[2], e[3]]) as u64,
                    _ => u64::from_le_bytes([e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7]]),
                };
                let v = if a.signed && b < 8 {
                    let sh = 64 - 8 * b as u32;
                    (((v << sh) as i64) >> sh) as u64
                } else {
                    v
                };
                if a.wide {
                    let to = regs.r64_mut(slot);
                    lanes(served).for_each(|l| to[l] = v);
                } else {
                    let to = regs.r32_mut(slot);
                    lanes(served).for_each(|l| to[l] = v as u32);
                }
            }
        }
        let regs = &mut self.warps[w].regs;
        let known = if self.ctx.checks.uninitialized { known_mask } else { !0 };
        for &slot in &a.regs[..a.count as usize] {
            if slot != SINK {
                regs.set_init(slot, active, known);
            }
        }
        self.count_sectors(&sectors, false);
        self.count_banks(&banks);
        Ok(())
    }

    pub(crate) fn store(&mut self, w: usize, pc: u32, active: u32, a: &Access) -> Exec<()> {
        let addrs = self.addresses(w, pc, active, a.addr)?;
        let n = a.bytes as usize * a.count as usize;
        let b = a.bytes as usize;
        let atomic = a.order != Order::Weak;
        let mut known = !0;
        if self.ctx.checks.uninitialized {
            for &slot in &a.regs[..a.count as usize] {
                known &= self.warps[w].regs.init(slot);
            }
        }
        let mut sectors = Sectors::default();
        let mut banks = Banks::new(n);
        let mut buf = [0u8; 32];
        for lane in lanes(active) {
            let addr = addrs[lane];
            let regs = &self.warps[w].regs;
            for (k, &slot) in a.regs[..a.count as usize].iter().enumerate() {
                let v = if a.wide { regs.r64(slot)[lane] } else { regs.r32(slot)[lane] as u64 };
                buf[k * b..(k + 1) * b].copy_from_slice(&v.to_le_bytes()[..b]);
            }
            let is_known = known >> lane & 1 == 1;
            match self.locate(w, pc, lane, a.space, addr, n as u64, n as u64)? {
                Where::Global(i, off) => {
                    if !is_known {
                        let d = "the stored value depends on one that nobody wrote".to_owned();
                        return Err(self.fault(w, Some(lane as u32), pc, FaultKind::UninitializedRegister, d));
                    }
                    if atomic {
                        self.release(w, lane, addr, a.order);
                    }
                    self.write_global(w, pc, lane, (i, off), &buf[..n], atomic)?;
                    sectors.add(i, off, n as u64);
                }
                Where::Shared(off) => {
                    if atomic {
                        self.release(w, lane, off as u64, a.order);
                        self.write_shared_atomic(w, pc, lane, off, &buf[..n])?;
                    } else {
                        self.write_shared(w, pc, lane, off, &buf[..n], is_known)?;
                    }
                    banks.add(lane, off);
                }
                Where::Local(off) => {
                    let warp = &mut self.warps[w];
                    warp.local[off..off + n].copy_from_slice(&buf[..n]);
                    warp.local_init[off..off + n].fill(is_known as u8);
                }
                Where::Param(_) => {
                    let d = format!("{n} bytes at parameter address {addr:#x}");
                    return Err(self.fault(w, Some(lane as u32), pc, FaultKind::ReadOnlyWrite, d));
                }
            }
        }
        if atomic {
            self.tick(w);
        }
        self.count_sectors(&sectors, true);
        self.count_banks(&banks);
        Ok(())
    }
}
