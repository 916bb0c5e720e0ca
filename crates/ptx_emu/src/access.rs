//! Loads, stores and atomics with their checks, and the counting of sectors and banks.

use crate::alu::{self, LANES};
use crate::error::{Fault, FaultKind};
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes, put_lane};
use crate::memory;
use crate::shared::{Conflict, Record};

impl Cta<'_> {
    /// Finds the bytes of an access and checks bounds and alignment.
    pub(crate) fn locate(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        space: MemSpace,
        addr: u64,
        n: u64,
        align: u64,
    ) -> Exec<Where> {
        let (space, off) = match space {
            MemSpace::Generic => match addr >> 40 {
                1 => (MemSpace::Shared, addr - SHARED_WINDOW),
                2 => (MemSpace::Local, addr - LOCAL_WINDOW),
                3 => (MemSpace::Param, addr - PARAM_WINDOW),
                _ => (MemSpace::Global, addr),
            },
            MemSpace::SharedCluster => (MemSpace::Shared, addr),
            // A 64-bit shared address may be a generic one that lost its space, which hardware takes by its low bits.
            s => (s, addr),
        };
        debug_assert!(align.is_power_of_two());
        if addr & (align - 1) != 0 {
            let d = format!("address {addr:#x} is not a multiple of the access size of {align} bytes");
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::Misaligned, d));
        }
        match space {
            MemSpace::Shared => {
                let o = off.wrapping_sub(SHARED_BASE as u64);
                if self.shared.holds(o, n) && o <= u32::MAX as u64 {
                    return Ok(Where::Shared(o as usize));
                }
                let size = self.shared.bytes.len();
                let d = format!(
                    "{n} bytes at shared address {off:#x}; the CTA's {size} bytes are at {SHARED_BASE:#x}..{:#x}",
                    SHARED_BASE as usize + size
                );
                Err(self.fault(w, Some(lane as u32), pc, FaultKind::SharedOutOfBounds, d))
            }
            MemSpace::Local | MemSpace::Param => {
                let local = space == MemSpace::Local;
                let size = if local { self.ctx.prog.local_bytes as usize } else { self.ctx.params.len() };
                if off <= size as u64 && n <= size as u64 - off {
                    return Ok(if local {
                        Where::Local(lane * size + off as usize)
                    } else {
                        Where::Param(off as usize)
                    });
                }
                let name = if local { "local" } else { "parameter" };
                let d = format!("{n} bytes at {name} address {off:#x}; the space has {size} bytes");
                Err(self.fault(w, Some(lane as u32), pc, FaultKind::LocalOutOfBounds, d))
            }
            _ => {
                let mem = self.ctx.mem;
                let i = self.last_alloc;
                if i < mem.len() {
                    let a = mem.get(i);
                    let o = addr.wrapping_sub(a.base);
                    if o < a.len && n <= a.len - o {
                        return Ok(Where::Global(i, o));
                    }
                }
                if let Some(i) = mem.find(addr) {
                    let a = mem.get(i);
                    let o = addr - a.base;
                    if n <= a.len - o {
                        self.last_alloc = i;
                        return Ok(Where::Global(i, o));
                    }
                }
                Err(self.global_out_of_bounds(w, pc, lane, addr, n))
            }
        }
    }

    pub(crate) fn global_out_of_bounds(&self, w: usize, pc: u32, lane: usize, addr: u64, n: u64) -> Box<Fault> {
        let mem = self.ctx.mem;
        if let Some((b, len)) = mem.find_freed(addr) {
            let d = format!(
                "{n} bytes at {addr:#x}, byte {} of the allocation of {len} bytes at {b:#x}, which was freed",
                addr - b
            );
            return self.fault(w, Some(lane as u32), pc, FaultKind::GlobalUseAfterFree, d);
        }
        let near = match mem.below(addr) {
            Some(a) => format!(
                "; the closest allocation below it, of {} bytes at {:#x}, ends {} bytes before",
                a.len,
                a.base,
                addr.saturating_add(n).saturating_sub(a.base + a.len)
            ),
            None => String::new(),
        };
        let d = format!("{n} bytes at {addr:#x}, which is in no allocation{near}");
        self.fault(w, Some(lane as u32), pc, FaultKind::GlobalOutOfBounds, d)
    }

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
            let d = format!("{act} of shared address {at:#x} against {what} by {who}, with {missing} between them");
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
        }
        if self.ctx.checks.uninitialized
            && let Some(o) = self.shared.first_unwritten(off, n)
        {
            let d = format!("shared address {:#x} was never written", o as u32 + SHARED_BASE);
            return Err(self.fault(w, Some(lane), pc, FaultKind::UninitializedShared, d));
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
        known: bool,
    ) -> Exec<()> {
        let n = data.len();
        if self.ctx.checks.races {
            let warp = &self.warps[w];
            let same = self.shared.bytes[off..off + n] == *data;
            let rec = Record {
                clock: warp.now,
                agent: w as u32,
                lane: lane as u32,
                mask: 0,
                atomic: false,
                in_flight: false,
            };
            if let Some(c) = self.shared.on_write(off, n, &warp.know, lane as u32, same, rec) {
                return Err(self.shared_conflict(w, pc, Some(lane as u32), c, true));
            }
        }
        self.shared.bytes[off..off + n].copy_from_slice(data);
        if known {
            self.shared.mark_written(off, n);
        }
        self.counters.shared_bytes_written += n as u64;
        Ok(())
    }

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

    pub(crate) fn read_shared_atomic(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        off: usize,
        out: &mut [u8],
    ) -> Exec<()> {
        let n = out.len();
        if self.ctx.checks.races
            && let Some(other) = self.shared.last_write(off)
            && other.in_flight
        {
            let c = Conflict::with_write(off, &other);
            return Err(self.shared_conflict(w, pc, Some(lane as u32), c, false));
        }
        if self.ctx.checks.uninitialized
            && let Some(o) = self.shared.first_unwritten(off, n)
        {
            let d = format!("shared address {:#x} was never written", o as u32 + SHARED_BASE);
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::UninitializedShared, d));
        }
        out.copy_from_slice(&self.shared.bytes[off..off + n]);
        Ok(())
    }

    pub(crate) fn write_shared_atomic(&mut self, w: usize, pc: u32, lane: usize, off: usize, data: &[u8]) -> Exec<()> {
        let n = data.len();
        if self.ctx.checks.races {
            let warp = &self.warps[w];
            let rec =
                Record { clock: warp.now, agent: w as u32, lane: lane as u32, mask: 0, atomic: true, in_flight: false };
            if let Some(c) = self.shared.on_write(off, n, &warp.know, lane as u32, false, rec) {
                return Err(self.shared_conflict(w, pc, Some(lane as u32), c, true));
            }
        }
        self.shared.bytes[off..off + n].copy_from_slice(data);
        self.shared.mark_written(off, n);
        Ok(())
    }

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

    pub(crate) fn count_sectors(&mut self, s: &Sectors, write: bool) {
        for &(alloc, sector) in s.items() {
            let first = self.ctx.mem.get(alloc as usize).touch(sector, write);
            if write {
                self.counters.global_sectors_written += 1;
                self.counters.unique_bytes_written += 32 * first as u64;
            } else {
                self.counters.global_sectors_read += 1;
                self.counters.unique_bytes_read += 32 * first as u64;
            }
        }
    }

    pub(crate) fn count_banks(&mut self, b: &Banks) {
        let (waves, least) = b.wavefronts();
        self.counters.shared_wavefronts += waves;
        self.counters.shared_bank_conflicts += waves - least;
    }
}

/// The 32-byte sectors that one warp instruction touches, each once.
#[derive(Default)]
pub(crate) struct Sectors {
    list: Vec<(u32, u64)>,
}

impl Sectors {
    pub(crate) fn add(&mut self, alloc: usize, off: u64, n: u64) {
        for s in off / 32..=(off + n - 1) / 32 {
            let item = (alloc as u32, s);
            // Lanes mostly go up through memory: the last ones are the likely repeats.
            if !self.list.iter().rev().any(|x| *x == item) {
                self.list.push(item);
            }
        }
    }

    pub(crate) fn items(&self) -> &[(u32, u64)] {
        &self.list
    }
}

/// The words of shared memory that one warp instruction touches, by bank.
pub(crate) struct Banks {
    bytes: usize,
    offs: [u32; LANES],
    mask: u32,
}

impl Banks {
    pub(crate) fn new(bytes: usize) -> Self {
        Banks { bytes, offs: [0; LANES], mask: 0 }
    }

    pub(crate) fn add(&mut self, lane: usize, off: usize) {
        self.offs[lane] = off as u32;
        self.mask |= 1 << lane;
    }

    /// Passes taken, and the passes that conflict-free addresses would take.
    pub(crate) fn wavefronts(&self) -> (u64, u64) {
        if self.mask == 0 {
            return (0, 0);
        }
        // 8-byte accesses go in half warps, 16-byte accesses in quarter warps.
        let group = match self.bytes {
            0..=4 => 32,
            5..=8 => 16,
            _ => 8,
        };
        // Naturally aligned accesses of one size meet in all of their banks or in none: one unit a lane, at most 16 bytes.
        let unit = self.bytes.clamp(4, 16).next_power_of_two() as u32;
        let (shift, banks) = (unit.trailing_zeros(), 128 / unit);
        let (mut total, mut least) = (0, 0);
        for g in (0..LANES).step_by(group) {
            let m = self.mask >> g & (((1u64 << group) - 1) as u32);
            if m == 0 {
                continue;
            }
            let mut seen = [u32::MAX; LANES];
            let mut depth = [0u32; LANES];
            let mut extra: Vec<u32> = Vec::new();
            for l in lanes(m) {
                for k in 0..self.bytes as u32 / 16 + (self.bytes < 16) as u32 {
                    let place = (self.offs[g + l] >> shift) + k;
                    let bank = (place & (banks - 1)) as usize;
                    if seen[bank] == place || (seen[bank] != u32::MAX && extra.contains(&place)) {
                        continue;
                    }
                    if seen[bank] == u32::MAX {
                        seen[bank] = place;
                    } else {
                        extra.push(place);
                    }
                    depth[bank] += 1;
                }
            }
            total += *depth.iter().max().expect("32 banks") as u64;
            least += 1;
        }
        (total, least)
    }
}
