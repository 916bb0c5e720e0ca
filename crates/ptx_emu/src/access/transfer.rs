//! Loads and stores.

use super::atomic::Place;
use super::counting::{Banks, Sectors};
use crate::error::FaultKind;
use crate::history::Kind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes};
use crate::shared::What;

impl Cta<'_> {
    pub(crate) fn load(&mut self, w: usize, pc: u32, active: u32, a: &Access) -> Exec<()> {
        let addrs = self.addresses(w, pc, active, a.addr)?;
        let n = a.bytes as usize * a.count as usize;
        let strong = a.order != Order::Weak;
        let mut hash = Fold::default();
        let mut sectors = Sectors::default();
        let mut banks = Banks::new(n);
        let mut buf = [0u8; 32];
        let mut known_mask = active;
        // Lanes that read one address of global or shared memory are served together: broadcasts are common.
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
                    if strong {
                        let kind = Kind::StrongRead { narrow: a.scope == Scope::Cta };
                        self.read_global_by(w, pc, served, (i, off), out, kind)?;
                        self.acquire(w, lane, Place::Global(addr), a.order, a.scope);
                    } else {
                        if broadcast {
                            served = same(addr) & rest;
                        }
                        self.read_global_by(w, pc, served, (i, off), out, Kind::Read)?;
                    }
                    sectors.add(i, off, n as u64);
                }
                Where::Shared(off) => {
                    if strong {
                        self.read_shared_strong(w, pc, lane, off, out)?;
                        self.acquire(w, lane, Place::Shared(off), a.order, a.scope);
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
                Where::Peer(rank, off) => {
                    let what = if strong { What::StrongRead } else { What::Read };
                    self.read_peer(w, pc, lane, (rank, off), out, what)?;
                    if strong {
                        self.acquire(w, lane, Place::Peer(rank, off), a.order, a.scope);
                    }
                }
                Where::Param(off) => out.copy_from_slice(&self.ctx.params[off..off + n]),
            }
            if strong {
                hash.add(addr, out);
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
        if strong {
            self.note_strong_read(w, pc, active, hash.0);
        }
        Ok(())
    }

    pub(crate) fn store(&mut self, w: usize, pc: u32, active: u32, a: &Access) -> Exec<()> {
        let addrs = self.addresses(w, pc, active, a.addr)?;
        let n = a.bytes as usize * a.count as usize;
        let b = a.bytes as usize;
        let strong = a.order != Order::Weak;
        let mut released = false;
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
                    if strong {
                        released |= self.release(w, lane, Place::Global(addr), (a.order, a.scope), false);
                    }
                    self.write_global(w, pc, lane, (i, off), &buf[..n], strong.then_some(a.scope))?;
                    sectors.add(i, off, n as u64);
                }
                Where::Shared(off) => {
                    if strong {
                        released |= self.release(w, lane, Place::Shared(off), (a.order, a.scope), false);
                        self.write_shared_strong(w, pc, lane, off, &buf[..n])?;
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
                Where::Peer(rank, off) => {
                    if strong {
                        released |= self.release(w, lane, Place::Peer(rank, off), (a.order, a.scope), false);
                    }
                    let what = if strong { What::StrongWrite } else { What::Write };
                    self.write_peer(w, pc, lane, (rank, off), &buf[..n], what, is_known)?;
                }
                Where::Param(_) => {
                    let d = format!("{n} bytes at parameter address {addr:#x}");
                    return Err(self.fault(w, Some(lane as u32), pc, FaultKind::ReadOnlyWrite, d));
                }
            }
        }
        if released {
            self.tick(w);
        }
        self.count_sectors(&sectors, true);
        self.count_banks(&banks);
        Ok(())
    }
}

/// A hash of what a strong read read, to tell when it reads the same again (FNV-1a, 64 bits).
pub(super) struct Fold(pub(super) u64);

impl Default for Fold {
    fn default() -> Self {
        Fold(0xcbf2_9ce4_8422_2325)
    }
}

impl Fold {
    pub(super) fn add(&mut self, addr: u64, bytes: &[u8]) {
        for b in addr.to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ *b as u64).wrapping_mul(0x100_0000_01b3);
        }
    }
}
