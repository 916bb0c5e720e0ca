//! What is sent into the shared memory of a CTA of the cluster and counted by an mbarrier there: `st.async`, `red.async`, and bulk
//! copies to one or several CTAs.

use super::peer::view;
use crate::access::Sectors;
use crate::error::FaultKind;
use crate::ir::*;
use crate::landing::{Landing, Sent};
use crate::machine::{Cta, Exec, Where, lanes};
use crate::remote::Foreign;
use crate::shared::{By, Record, What};
use crate::tma::BulkOp;

/// Where something goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) rank: u32,
    /// Offset of the mbarrier that counts it.
    pub(crate) mbar: u32,
    /// Through the async proxy, to which the mbarrier must have been made visible.
    pub(crate) proxy: bool,
    /// A reduction, which is relaxed.
    pub(crate) strong: bool,
}

impl Cta<'_> {
    /// Rank and offset of a shared address of the cluster.
    pub(crate) fn in_cluster(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        space: MemSpace,
        addr: u64,
        n: u64,
        align: u64,
    ) -> Exec<(u32, usize)> {
        let space = if space == MemSpace::Generic { space } else { MemSpace::SharedCluster };
        match self.locate(w, pc, lane, space, addr, n, align)? {
            Where::Shared(off) => Ok((self.rank, off)),
            Where::Peer(rank, off) => Ok((rank, off)),
            _ => Err(self.not_shared(w, pc, lane, addr)),
        }
    }

    /// `st.async` and `red.async`.
    pub(crate) fn async_store(&mut self, w: usize, pc: u32, active: u32, s: &AsyncStore) -> Exec<()> {
        if self.ctx.checks.uninitialized {
            self.known_operands(w, pc, active)?;
        }
        let dst = self.addresses(w, pc, active, s.dst)?;
        let mbar = self.addresses(w, pc, active, s.mbar)?;
        let n = s.bytes as usize * s.count as usize;
        for lane in lanes(active) {
            let (rank, off) = self.in_cluster(w, pc, lane, s.space, dst[lane], n as u64, n as u64)?;
            let (mbar_rank, bar) = self.in_cluster(w, pc, lane, s.space, mbar[lane], 8, 8)?;
            if rank != mbar_rank {
                let d =
                    format!("a store to rank {rank} that an mbarrier of rank {mbar_rank} counts; both are in one CTA");
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
            }
            let regs = &self.warps[w].regs;
            let mut data = [0u8; 16];
            for (k, &slot) in s.regs[..s.count as usize].iter().enumerate() {
                let b = s.bytes as usize;
                data[k * b..(k + 1) * b].copy_from_slice(&regs.lane(slot, s.wide, lane).to_le_bytes()[..b]);
            }
            let sent = match s.reduce {
                None => Sent::Store { off, data, n },
                Some((op, ty)) => Sent::Reduce { off, op, ty, value: regs.lane(s.regs[0], s.wide, lane) },
            };
            let to = Target { rank, mbar: bar as u32, proxy: false, strong: s.reduce.is_some() };
            let (phase, _) = self.announce(w, pc, lane, to, [(off, n)].into_iter())?;
            let landing = Landing { pc, mbar: to.mbar, phase, bytes: n as u32, sent };
            self.of_rank(rank).landing.push(landing);
            self.counters.shared_bytes_written += n as u64;
        }
        Ok(())
    }

    /// The CTA of a rank, this one or another.
    fn of_rank(&mut self, rank: u32) -> &mut Self {
        // The lifetimes of a CTA and of its peers are the same, which `self` alone does not tell.
        if rank == self.rank {
            return self;
        }
        self.peers.get_mut(rank).expect("located before")
    }

    /// Checks and records what will be written, as done by the mbarrier that counts it. Returns the phase, and the mbarrier's number
    /// among the agents with the clock of the phase.
    fn announce(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        to: Target,
        writes: impl Iterator<Item = (usize, usize)>,
    ) -> Exec<(u32, (u32, u32))> {
        let Target { rank, mbar, proxy, strong } = to;
        let checks = self.ctx.checks;
        let own = rank == self.rank;
        let (mbars, shared, base) = if own {
            (&mut self.mbars, &mut self.shared, self.clock_base)
        } else {
            let peer = self.peers.get_mut(rank).expect("located before");
            (&mut peer.mbars, &mut peer.shared, peer.clock_base)
        };
        let before = view(&self.warps[w].know, 1 << lane, self.rank, rank, &self.members);
        let at = mbar + SHARED_BASE;
        let Some(bar) = mbars.get_mut(&mbar) else {
            let d = format!("no mbarrier was initialised at shared address {at:#x} of rank {rank}");
            return self.mbar_misuse(w, pc, lane, d);
        };
        let unordered = |r: &Record| !before(r.agent, 1 << r.lane, r.clock);
        if checks.races && shared.last_write(mbar as usize).as_ref().is_some_and(unordered) {
            let d =
                format!("the initialisation of the mbarrier at {at:#x} of rank {rank} is not ordered before this use");
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::SharedRace, d));
        }
        if proxy && checks.asynchronous && !bar.fenced {
            let d = format!(
                "the copy completes on the mbarrier at {at:#x} of rank {rank}, initialised with no fence.proxy.async or \
                 fence.mbarrier_init since"
            );
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::MissingProxyFence, d));
        }
        let (agent, phase) = (bar.agent, bar.phase);
        bar.copied_phase = Some(phase);
        let clock = base + phase + 1;
        for (off, n) in writes {
            let record = Record { clock, agent, lane: 0, mask: 0, in_flight: false };
            let (what, conflict) = if strong {
                let by = By { agent, lane: 0, clock };
                (What::StrongWrite, shared.beside(off, n, What::StrongWrite, by, &before))
            } else {
                (What::Write, shared.write_from_outside(off, n, false, record, &before))
            };
            if let Some(c) = conflict {
                return Err(self.peer_conflict(w, pc, lane, rank, c, what));
            }
        }
        if own {
            self.top_clock = self.top_clock.max(clock);
        }
        Ok((phase, (agent, clock)))
    }

    /// A bulk copy from global memory into one or several CTAs, to the same place in each.
    pub(crate) fn issue_to_cluster(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        op: BulkOp,
        ranks: u32,
        mbar: u32,
    ) -> Exec<()> {
        let beyond = ranks >> self.cluster_size();
        if ranks == 0 || beyond != 0 {
            let size = self.cluster_size();
            let d = format!("a multicast to the ranks {ranks:#x} of a cluster of {size} CTAs");
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
        }
        let mut sectors = Sectors::default();
        for p in op.pieces.iter().filter(|p| p.hi > 0) {
            let mut sink = [0u8; 16];
            let n = p.hi as usize;
            self.read_global(w, pc, lane, (p.alloc as usize, p.off), &mut sink[..n], false)?;
            sectors.add(p.alloc as usize, p.off, n as u64);
        }
        self.count_sectors(&sectors, false);
        for rank in lanes(ranks).map(|r| r as u32) {
            if rank != self.rank {
                self.locate_peer(w, pc, lane, rank, (mbar + SHARED_BASE) as u64, 8)?;
            }
            let to = Target { rank, mbar, proxy: true, strong: false };
            let writes = op.pieces.iter().map(|p| (p.shared as usize, p.bytes as usize));
            let (phase, _) = self.announce(w, pc, lane, to, writes)?;
            self.counters.shared_bytes_written += op.bytes as u64;
            let mut copy = op.clone();
            (copy.mbar, copy.phase) = (Some(mbar), phase);
            self.of_rank(rank).bulk.push(copy);
        }
        Ok(())
    }

    /// A bulk copy from the CTA's own shared memory into that of a CTA of the cluster.
    pub(crate) fn issue_from_shared(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        src: usize,
        (rank, dst): (u32, usize),
        (mbar_rank, mbar): (u32, usize),
        n: usize,
    ) -> Exec<()> {
        if rank != mbar_rank {
            let d =
                format!("a copy to rank {rank} that completes on an mbarrier of rank {mbar_rank}; both are in one CTA");
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
        }
        let to = Target { rank, mbar: mbar as u32, proxy: true, strong: false };
        let (phase, (agent, clock)) = self.announce(w, pc, lane, to, [(dst, n)].into_iter())?;
        // Who has waited for the copy, there, knows that it has read its source.
        self.read_by_copy(w, pc, lane, src, n, (Foreign { rank, agent }, clock))?;
        let sent = Sent::FromShared { rank: self.rank, src, dst, n };
        self.of_rank(rank).landing.push(Landing { pc, mbar: mbar as u32, phase, bytes: n as u32, sent });
        self.counters.shared_bytes_read += n as u64;
        self.counters.shared_bytes_written += n as u64;
        self.counters.async_copies += 1;
        Ok(())
    }
}
