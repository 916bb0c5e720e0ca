//! Loads and stores.

use super::atomic::Place;
use super::counting::{Banks, Sectors};
use super::shared::Stored;
use crate::alu::{LANES, Regs, extend};
use crate::error::FaultKind;
use crate::history::Kind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes};
use crate::shared::What;

/// Bits that a load found unknown, by lane and byte.
#[derive(Default)]
struct Unknown {
    bytes: Option<Box<[[u8; 32]; LANES]>>,
}

impl Unknown {
    #[cold]
    fn add(&mut self, served: u32, unknown: [u8; 32]) {
        let bytes = self.bytes.get_or_insert_with(|| Box::new([[0; 32]; LANES]));
        lanes(served).for_each(|l| bytes[l] = unknown);
    }
}

impl Access {
    /// The unknown bits of what a lane stores, if there are any.
    #[cold]
    fn unknown(&self, regs: &Regs, lane: usize) -> Option<[u8; 32]> {
        let (mut u, b) = ([0u8; 32], self.bytes as usize);
        for (k, &slot) in self.regs[..self.count as usize].iter().enumerate() {
            u[k * b..(k + 1) * b].copy_from_slice(&regs.unknown(slot, lane).to_le_bytes()[..b]);
        }
        Some(u).filter(|u| *u != [0; 32])
    }

    /// What becomes of an element's bytes in its register; of their unknown bits too.
    #[inline(always)]
    fn register(&self, e: &[u8]) -> u64 {
        let v = match e.len() {
            1 => e[0] as u64,
            2 => u16::from_le_bytes([e[0], e[1]]) as u64,
            4 => u32::from_le_bytes([e[0], e[1], e[2], e[3]]) as u64,
            _ => u64::from_le_bytes([e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7]]),
        };
        if self.signed { extend(v, 8 * self.bytes as u32, true) } else { v }
    }
}

impl Cta<'_> {
    pub(crate) fn load(&mut self, w: usize, pc: u32, active: u32, a: &Access) -> Exec<()> {
        let addrs = self.addresses(w, pc, active, a.addr)?;
        let n = a.bytes as usize * a.count as usize;
        let strong = a.order != Order::Weak;
        let mut hash = Fold::default();
        let mut sectors = Sectors::default();
        let mut banks = Banks::new(n);
        let mut buf = [0u8; 32];
        let mut unknown = Unknown::default();
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
                    if let Some(u) = self.ctx.mem.get(i).unknown::<32>(off, n) {
                        unknown.add(served, u);
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
                    if let Some(u) = self.shared.unknown::<32>(off, n) {
                        unknown.add(served, u);
                    }
                    for l in lanes(served) {
                        banks.add(l, off);
                    }
                }
                Where::Local(off) => {
                    let warp = &self.warps[w];
                    out.copy_from_slice(&warp.local[off..off + n]);
                    let known = &warp.local_known[off..off + n];
                    if known.iter().any(|k| *k != 0xff) {
                        let mut u = [0; 32];
                        u.iter_mut().zip(known).for_each(|(u, k)| *u = !k);
                        unknown.add(served, u);
                    }
                }
                Where::Peer(rank, off) => {
                    let what = if strong { What::StrongRead } else { What::Read };
                    self.read_peer(w, pc, lane, (rank, off), out, what)?;
                    if let Some(u) = self.peers.get(rank).and_then(|p| p.shared.unknown::<32>(off, n)) {
                        unknown.add(served, u);
                    }
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
                let v = a.register(&buf[k * b..(k + 1) * b]);
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
        for (k, &slot) in a.regs[..a.count as usize].iter().enumerate() {
            if slot == SINK {
                continue;
            }
            match &unknown.bytes {
                None => regs.set_init(slot, active, !0),
                Some(bytes) => {
                    let b = a.bytes as usize;
                    let of_lane = bytes.map(|u| a.register(&u[k * b..(k + 1) * b]));
                    regs.set_unknown(slot, a.wide, active, &of_lane);
                }
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
        let known = a.regs[..a.count as usize].iter().fold(!0, |k, &slot| k & self.warps[w].regs.init(slot));
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
            let unknown = if known >> lane & 1 == 1 { None } else { a.unknown(regs, lane) };
            let stored = match &unknown {
                None => Stored::Known,
                // Padding goes along with what it belongs to.
                Some(u) if u[..n].iter().any(|u| *u != 0xff) => Stored::Partly(&u[..n]),
                Some(_) => Stored::Unknown,
            };
            match self.locate(w, pc, lane, a.space, addr, n as u64, n as u64)? {
                Where::Global(i, off) => {
                    if let Stored::Unknown = stored {
                        let d = "the stored value depends on one that nobody wrote".to_owned();
                        return Err(self.fault(w, Some(lane as u32), pc, FaultKind::UninitializedRegister, d));
                    }
                    if strong {
                        released |= self.release(w, lane, Place::Global(addr), (a.order, a.scope), false);
                    }
                    let unknown = unknown.as_ref().map(|u| &u[..n]);
                    self.write_global(w, pc, lane, (i, off), &buf[..n], unknown, strong.then_some(a.scope))?;
                    sectors.add(i, off, n as u64);
                }
                Where::Shared(off) => {
                    if strong {
                        released |= self.release(w, lane, Place::Shared(off), (a.order, a.scope), false);
                        self.write_shared_strong(w, pc, lane, off, &buf[..n], stored)?;
                    } else {
                        self.write_shared(w, pc, lane, off, &buf[..n], stored)?;
                    }
                    banks.add(lane, off);
                }
                Where::Local(off) => {
                    let warp = &mut self.warps[w];
                    warp.local[off..off + n].copy_from_slice(&buf[..n]);
                    let known = &mut warp.local_known[off..off + n];
                    match &unknown {
                        None => known.fill(0xff),
                        Some(u) => known.iter_mut().zip(u).for_each(|(k, u)| *k = !u),
                    }
                }
                Where::Peer(rank, off) => {
                    if strong {
                        released |= self.release(w, lane, Place::Peer(rank, off), (a.order, a.scope), false);
                    }
                    let what = if strong { What::StrongWrite } else { What::Write };
                    self.write_peer(w, pc, lane, (rank, off), &buf[..n], what, stored)?;
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
