//! Clusters: addresses in the shared memory of other CTAs, the cluster barrier, and what is sent from one CTA to another.
//!
//! A shared address of the cluster carries the rank of its CTA plus one above its 24 lower bits, so that an address of `.shared::cta`
//! is one of `.shared::cluster` too, and means the executing CTA. All CTAs of a cluster are resident together (see
//! `machine::resident`). Shared memory of another CTA may be touched when it is known that the CTA has begun, and as long as it
//! has not ended: a cluster barrier tells both.

mod barrier;
mod peer;
mod send;

pub(crate) use peer::Needs;

use crate::error::FaultKind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes, put_lane};

/// Bytes of the window of one CTA in the shared addresses of its cluster.
pub(crate) const PEER_BYTES: u64 = 1 << 24;
/// Most CTAs of a cluster on any device (CUDA C++ Programming Guide, thread block clusters: 8 everywhere, 16 where the kernel allows
/// a size that is not portable).
pub(crate) const MOST_CTAS: u32 = 16;

/// The rank that a shared address of the cluster carries.
pub(crate) fn peer_of(addr: u64) -> Option<u32> {
    (PEER_BYTES..(MOST_CTAS as u64 + 1) * PEER_BYTES).contains(&addr).then(|| (addr / PEER_BYTES) as u32 - 1)
}

impl Cta<'_> {
    /// CTAs of the cluster.
    fn cluster_size(&self) -> u32 {
        self.ctx.cluster.iter().product()
    }

    fn cluster_misuse<T>(&self, w: usize, pc: u32, lane: usize, d: String) -> Exec<T> {
        Err(self.fault(w, Some(lane as u32), pc, FaultKind::ClusterMisuse, d))
    }

    /// Finds bytes in the shared memory of another CTA.
    pub(crate) fn locate_peer(&mut self, w: usize, pc: u32, lane: usize, rank: u32, at: u64, n: u64) -> Exec<Where> {
        if rank >= self.cluster_size() {
            let d = format!("shared memory of rank {rank} in a cluster of {} CTAs", self.cluster_size());
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::SharedOutOfBounds, d));
        }
        let off = at.wrapping_sub(SHARED_BASE as u64);
        if !self.shared.holds(off, n) {
            let size = self.shared.bytes.len();
            let d = format!(
                "{n} bytes at shared address {at:#x} of rank {rank}; the CTA's {size} bytes are at {SHARED_BASE:#x}..{:#x}",
                SHARED_BASE as usize + size
            );
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::SharedOutOfBounds, d));
        }
        if self.peers.get(rank).is_none_or(|p| p.exited) {
            let d = format!("access to the shared memory of rank {rank}, a CTA that has ended");
            return self.cluster_misuse(w, pc, lane, d);
        }
        if self.ctx.checks.races && !self.warps[w].know.knows_of(1 << lane, self.members[rank as usize]) {
            let d = format!(
                "access to the shared memory of rank {rank}, a CTA that may not have begun: no cluster barrier, nor anything \
                 else that it did, is ordered before"
            );
            return self.cluster_misuse(w, pc, lane, d);
        }
        Ok(Where::Peer(rank, off as usize))
    }

    /// `mapa`: the address of the same place in another CTA.
    pub(crate) fn mapa(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        d: Slot,
        wide: bool,
        space: MemSpace,
        a: Slot,
        rank: Slot,
    ) -> Exec<()> {
        for lane in lanes(active) {
            let regs = &self.warps[w].regs;
            let (addr, rank) = (regs.lane(a, wide, lane), regs.r32(rank)[lane]);
            let off = self.shared_offset(w, pc, lane, space, addr)?;
            if rank >= self.cluster_size() {
                let d = format!("rank {rank} in a cluster of {} CTAs", self.cluster_size());
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
            }
            let window = if space == MemSpace::Generic { SHARED_WINDOW } else { 0 };
            let mapped = window + (rank as u64 + 1) * PEER_BYTES + off % PEER_BYTES;
            put_lane(&mut self.warps[w].regs, d, wide, lane, mapped);
        }
        self.derived(w, active, d, &[a, rank]);
        Ok(())
    }

    /// `getctarank`: the CTA that an address lies in.
    pub(crate) fn get_cta_rank(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        d: Slot,
        wide: bool,
        space: MemSpace,
        a: Slot,
    ) -> Exec<()> {
        for lane in lanes(active) {
            let addr = self.warps[w].regs.lane(a, wide, lane);
            let off = self.shared_offset(w, pc, lane, space, addr)?;
            let rank = peer_of(off).unwrap_or(self.rank);
            put_lane(&mut self.warps[w].regs, d, false, lane, rank as u64);
        }
        self.derived(w, active, d, &[a]);
        Ok(())
    }

    /// A shared address of the cluster, from one that may be generic.
    fn shared_offset(&self, w: usize, pc: u32, lane: usize, space: MemSpace, addr: u64) -> Exec<u64> {
        match space {
            MemSpace::Generic if addr >> 40 != SHARED_WINDOW >> 40 => Err(self.not_shared(w, pc, lane, addr)),
            MemSpace::Generic => Ok(addr - SHARED_WINDOW),
            _ => Ok(addr),
        }
    }

    /// A result is written where its sources are.
    fn derived(&mut self, w: usize, active: u32, d: Slot, sources: &[Slot]) {
        let regs = &mut self.warps[w].regs;
        if d != SINK {
            let known = sources.iter().fold(!0, |k, &s| k & regs.init(s));
            regs.set_init(d, active, known);
        }
    }
}
