//! Bulk copies: cp.async.bulk and cp.async.bulk.tensor, with the moment of completion left to the scheduler.

mod issue;
mod tile;

use crate::alu;
use crate::error::FaultKind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes};

/// Up to 16 bytes of shared memory and the global bytes that belong to a part of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) shared: u32,
    pub(crate) bytes: u8,
    /// The first `hi` bytes lie in the tensor, from this allocation and offset on.
    pub(crate) hi: u8,
    pub(crate) alloc: u32,
    pub(crate) off: u64,
}

/// Bulk copies of a lane from shared memory, committed together and not waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BulkGroup {
    lane: u32,
    /// Among the groups of the warp.
    number: u64,
    /// Groups that the lane had closed before.
    closed: u64,
}

/// A bulk copy between its issue and its completion.
#[derive(Debug, Clone)]
pub(crate) struct BulkOp {
    warp: usize,
    lane: usize,
    pc: u32,
    pub(crate) pieces: Vec<Piece>,
    fill: [u8; 16],
    /// Loads: the mbarrier to complete on, and the bytes to count there.
    pub(crate) mbar: Option<u32>,
    pub(crate) bytes: u32,
    /// The mbarrier's phase at the issue.
    pub(crate) phase: u32,
    /// Stores: the group.
    group: u64,
    reduce: Option<(AtomOp, Ty)>,
}

impl Cta<'_> {
    pub(crate) fn bulk_copy(&mut self, w: usize, pc: u32, active: u32, b: &Bulk) -> Exec<()> {
        if self.ctx.checks.uninitialized {
            self.known_operands(w, pc, active)?;
        }
        let dst = self.addresses(w, pc, active, b.dst)?;
        let src = self.addresses(w, pc, active, b.src)?;
        let mbar = match b.mbar {
            Some(m) => Some(self.addresses(w, pc, active, m)?),
            None => None,
        };
        for lane in lanes(active) {
            let n = self.warps[w].regs.r32(b.size)[lane];
            if !n.is_multiple_of(16) || n == 0 {
                let d = format!("a bulk copy of {n} bytes; multiples of 16 are accepted");
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
            }
            if b.from_shared {
                let Where::Shared(from) = self.locate(w, pc, lane, MemSpace::Shared, src[lane], n as u64, 16)? else {
                    return Err(self.not_shared(w, pc, lane, src[lane]));
                };
                let to = self.in_cluster(w, pc, lane, MemSpace::SharedCluster, dst[lane], n as u64, 16)?;
                let m = mbar.map_or(0, |m| m[lane]);
                let m = self.in_cluster(w, pc, lane, MemSpace::SharedCluster, m, 8, 8)?;
                self.issue_from_shared(w, pc, lane, from, to, m, n as usize)?;
                continue;
            }
            let (sh, gl) = if b.to_global { (src[lane], dst[lane]) } else { (dst[lane], src[lane]) };
            let (rank, s_off) = self.bulk_tile(w, pc, lane, b, sh, n as u64, 16)?;
            let Where::Global(alloc, off) = self.locate(w, pc, lane, MemSpace::Global, gl, n as u64, 16)? else {
                unreachable!("the space is global")
            };
            let pieces = (0..n / 16)
                .map(|i| Piece {
                    shared: s_off as u32 + 16 * i,
                    bytes: 16,
                    hi: 16,
                    alloc: alloc as u32,
                    off: off + 16 * i as u64,
                })
                .collect();
            let m = mbar.map(|m| m[lane]);
            self.issue_bulk(w, pc, lane, pieces, [0; 16], b, m, n, rank)?;
        }
        Ok(())
    }

    /// Rank and offset of the shared side of a copy: only its destination may be in another CTA.
    fn bulk_tile(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        b: &Bulk,
        addr: u64,
        n: u64,
        align: u64,
    ) -> Exec<(u32, usize)> {
        if !b.to_global && b.cluster {
            return self.in_cluster(w, pc, lane, MemSpace::SharedCluster, addr, n, align);
        }
        match self.locate(w, pc, lane, MemSpace::Shared, addr, n, align)? {
            Where::Shared(off) => Ok((self.rank, off)),
            _ => Err(self.not_shared(w, pc, lane, addr)),
        }
    }

    /// Number of the bulk group that the lane fills now.
    fn bulk_group(&mut self, w: usize, lane: u32) -> u64 {
        let warp = &mut self.warps[w];
        if let Some(open) = warp.bulk_open.iter().find(|g| g.0 == lane) {
            return open.1;
        }
        warp.bulk_open.push((lane, warp.bulk_next));
        warp.bulk_next += 1;
        warp.bulk_next - 1
    }

    /// Carries out one copy in flight.
    pub(crate) fn complete_bulk(&mut self, i: usize) -> Exec<()> {
        let op = self.bulk.swap_remove(i);
        if let Some(m) = op.mbar {
            for p in &op.pieces {
                let mut data = op.fill;
                let mut unknown = None;
                if p.hi > 0 {
                    let a = self.ctx.mem.get(p.alloc as usize);
                    a.load(p.off, &mut data[..p.hi as usize]);
                    unknown = a.unknown::<16>(p.off, p.hi as usize);
                }
                let o = p.shared as usize;
                self.shared.bytes[o..o + 16].copy_from_slice(&data);
                self.shared.mark_stored(o, 16, unknown.as_ref().map(|u| &u[..]));
            }
            let Some(bar) = self.mbars.get_mut(&m) else {
                let d = format!("a copy completes on the mbarrier at {:#x}, which is gone", m + SHARED_BASE);
                return self.mbar_misuse(op.warp, op.pc, op.lane, d);
            };
            bar.tx -= op.bytes as i64;
            return self.try_complete(op.warp, op.pc, op.lane, m);
        }
        for p in &op.pieces {
            if p.hi == 0 {
                continue;
            }
            let o = p.shared as usize;
            let data = &self.shared.bytes[o..o + p.hi as usize];
            let a = self.ctx.mem.get(p.alloc as usize);
            match op.reduce {
                None => a.store(p.off, data),
                Some((f, ty)) => {
                    let e = (ty.bits() / 8) as usize;
                    for (k, c) in data.chunks_exact(e).enumerate() {
                        let mut v = [0u8; 8];
                        v[..e].copy_from_slice(c);
                        let b = u64::from_le_bytes(v);
                        a.update(p.off + (k * e) as u64, e as u32, |old| {
                            // Unlike `red`, sums of f32 keep subnormals here.
                            alu::atomic(f, ty, old, b, 0, false)
                        });
                    }
                }
            }
            let unknown = self.shared.unknown::<16>(o, p.hi as usize);
            a.mark_stored(p.off, p.hi as u64, unknown.as_ref().map(|u| &u[..p.hi as usize]));
        }
        Ok(())
    }

    /// Each lane closes its group of bulk copies.
    pub(crate) fn bulk_commit(&mut self, w: usize, active: u32) {
        let warp = &mut self.warps[w];
        for lane in lanes(active) {
            let closed = warp.bulk_commits[lane];
            warp.bulk_commits[lane] += 1;
            // An empty group counts in later waits, and nobody needs to wait for it.
            if let Some(i) = warp.bulk_open.iter().position(|g| g.0 == lane as u32) {
                let (lane, number) = warp.bulk_open.swap_remove(i);
                warp.bulk_pending.push(BulkGroup { lane, number, closed });
            }
        }
    }

    /// Completes all but the last `pending` groups of each lane.
    pub(crate) fn bulk_wait(&mut self, w: usize, active: u32, pending: u32) -> Exec<()> {
        let warp = &mut self.warps[w];
        let commits = warp.bulk_commits;
        let done: Vec<BulkGroup> = warp
            .bulk_pending
            .extract_if(.., |g| active >> g.lane & 1 == 1 && g.closed + (pending as u64) < commits[g.lane as usize])
            .collect();
        for group in done {
            while let Some(i) =
                self.bulk.iter().position(|b| b.mbar.is_none() && b.warp == w && b.group == group.number)
            {
                self.complete_bulk(i)?;
            }
            let agent = self.bulk_agent(w as u32);
            self.learn_agent(w, 1 << group.lane, agent, self.clock_base + 1 + group.number as u32);
        }
        Ok(())
    }

    /// Shared address of an mbarrier whose copies nobody waited for.
    pub(crate) fn bulk_unwaited(&self) -> Option<u32> {
        if let Some(b) = self.bulk.first() {
            return Some(b.pieces.first().map_or(0, |p| p.shared) + SHARED_BASE);
        }
        self.mbars.iter().find(|(_, m)| m.copied_phase.is_some()).map(|(a, _)| a + SHARED_BASE)
    }
}
