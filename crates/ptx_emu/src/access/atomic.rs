//! Atomics, and what strong accesses release and acquire.

use super::counting::{Banks, Sectors};
use super::shared::Stored;
use super::transfer::Fold;
use crate::alu;
use crate::cluster::Needs;
use crate::error::FaultKind;
use crate::history::Kind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes, put_lane};
use crate::order::Clocks;
use crate::release::{LEVELS, Releases, level};
use crate::shared::What;

/// An address through which threads order each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Global(u64),
    Shared(usize),
    /// In the CTA of this rank of the cluster.
    Peer(u32, usize),
}

impl Cta<'_> {
    /// A strong write hands over what the lane has done and learnt: until now if it releases, and until its last fences. Says whether
    /// it handed over anything; the caller lets the warp's clock go on then.
    pub(crate) fn release(
        &mut self,
        w: usize,
        lane: usize,
        at: Place,
        (order, scope): (Order, Scope),
        atomic: bool,
    ) -> bool {
        if !self.ctx.checks.races {
            return false;
        }
        let mut released = Vec::new();
        if order.releases() {
            released.push((scope, self.publish(w, 1 << lane).exported(self.number)));
        }
        for (fence, level) in self.warps[w].fences.iter().zip(LEVELS) {
            if let Some(f) = fence
                && f.lanes >> lane & 1 == 1
            {
                released.push((scope.min(level), f.know.of_lane(lane as u32).exported(self.number)));
            }
        }
        let some = !released.is_empty();
        let place = self.place();
        self.with_releases(at, |releases, addr| releases.write(addr, place, atomic, released));
        some
    }

    /// A strong read takes up what was handed over at the address: now if it acquires, else with a fence after it.
    pub(crate) fn acquire(&mut self, w: usize, lane: usize, at: Place, order: Order, scope: Scope) {
        if !self.ctx.checks.races {
            return;
        }
        let place = self.place();
        let Some(offer) = self.with_releases(at, |releases, addr| releases.read(addr, place, scope)) else { return };
        let number = self.number;
        let warp = &mut self.warps[w];
        if matches!(order, Order::Acquire | Order::AcqRel) {
            let news = Clocks::imported(&offer[level(scope)], number);
            warp.know.learn(1 << lane, warp.live, &news);
        }
        match warp.offers.iter_mut().find(|o| o.0 == lane as u32) {
            Some((_, old)) => old.iter_mut().zip(&offer).for_each(|(old, new)| old.join(new)),
            None => warp.offers.push((lane as u32, offer)),
        }
    }

    fn with_releases<T>(&mut self, at: Place, f: impl FnOnce(&mut Releases, u64) -> T) -> T {
        match at {
            Place::Global(addr) => f(&mut self.ctx.releases.lock().unwrap_or_else(|e| e.into_inner()), addr),
            Place::Shared(off) => f(&mut self.releases, off as u64),
            Place::Peer(rank, off) => {
                let peer = self.peers.get_mut(rank).expect("the access before found it");
                f(&mut peer.releases, off as u64)
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
        order: (Order, Scope),
        d: Slot,
        addr: Addr,
        b: &[Slot],
        c: Slot,
    ) -> Exec<()> {
        if self.ctx.checks.uninitialized {
            self.known_operands(w, pc, active)?;
        }
        let addrs = self.addresses(w, pc, active, addr)?;
        let n = (ty.bits() / 8) as usize;
        let wide = ty.wide();
        let mut released = false;
        let mut hash = Fold::default();
        let mut sectors = Sectors::default();
        let mut banks = Banks::new(n);
        for (lane, i) in lanes(active).flat_map(|lane| (0..b.len()).map(move |i| (lane, i))) {
            let bv = self.warps[w].regs.lane(b[i], wide, lane);
            // One element is aligned to itself, several together.
            let align = if i == 0 { n * b.len() } else { n } as u64;
            let addr = addrs[lane] + (i * n) as u64;
            let cv = self.warps[w].regs.lane(c, wide, lane);
            let f = |old: u64, flush| alu::atomic(op, ty, old, bv, cv, flush);
            let old = match self.locate(w, pc, lane, space, addr, n as u64, align)? {
                Where::Global(i, off) => {
                    let a = self.ctx.mem.get(i);
                    if self.ctx.checks.uninitialized
                        && op != AtomOp::Exch
                        && let Some(o) = a.first_unknown(off, n as u64)
                    {
                        let d =
                            format!("byte {o} of the allocation of {} bytes at {:#x} was never written", a.len, a.base);
                        return Err(self.fault(w, Some(lane as u32), pc, FaultKind::UninitializedGlobal, d));
                    }
                    if a.read_only {
                        let d = format!("{n} bytes at {:#x}, a constant of the module", a.base + off);
                        return Err(self.fault(w, Some(lane as u32), pc, FaultKind::ReadOnlyWrite, d));
                    }
                    self.global_access(
                        w,
                        pc,
                        1 << lane,
                        (i, off),
                        n as u64,
                        Kind::StrongWrite { narrow: order.1 == Scope::Cta },
                    )?;
                    released |= self.release(w, lane, Place::Global(addr), order, true);
                    let a = self.ctx.mem.get(i);
                    let old = a.update(off, n as u32, |old| f(old, true));
                    a.mark_written(off, n as u64);
                    self.acquire(w, lane, Place::Global(addr), order.0, order.1);
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
                        self.read_shared_written(w, pc, lane, off, &mut v[..n])?;
                    }
                    let old = u64::from_le_bytes(v);
                    released |= self.release(w, lane, Place::Shared(off), order, true);
                    self.write_shared_strong(w, pc, lane, off, &f(old, false).to_le_bytes()[..n], Stored::Known)?;
                    self.acquire(w, lane, Place::Shared(off), order.0, order.1);
                    banks.add(lane, off);
                    old
                }
                Where::Peer(rank, off) => {
                    let mut v = [0u8; 8];
                    let needs = if op == AtomOp::Exch { Needs::Nothing } else { Needs::Bits };
                    self.peer_bytes(w, pc, lane, (rank, off), &mut v[..n], needs)?;
                    let old = u64::from_le_bytes(v);
                    released |= self.release(w, lane, Place::Peer(rank, off), order, true);
                    let new = f(old, false).to_le_bytes();
                    self.write_peer(w, pc, lane, (rank, off), &new[..n], What::StrongWrite, Stored::Known)?;
                    self.acquire(w, lane, Place::Peer(rank, off), order.0, order.1);
                    old
                }
                _ => {
                    let d = "atomics work on global and shared memory only".to_owned();
                    return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
                }
            };
            put_lane(&mut self.warps[w].regs, d, wide, lane, old);
            hash.add(addr, &old.to_le_bytes());
            self.counters.atomics += 1;
        }
        if released {
            self.tick(w);
        }
        if d != SINK {
            self.warps[w].regs.set_init(d, active, !0);
            self.note_strong_read(w, pc, active, hash.0);
        }
        self.count_sectors(&sectors, false);
        self.count_sectors(&sectors, true);
        self.count_banks(&banks);
        Ok(())
    }
}
