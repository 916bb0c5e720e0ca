//! Accesses to the shared memory of another CTA of the cluster, and arrivals at its mbarriers.

use crate::access::{Stored, WEAK_READ};
use crate::error::{Fault, FaultKind};
use crate::ir::*;
use crate::machine::{Cta, Exec};
use crate::order::{Clocks, Knowledge};
use crate::remote::Foreign;
use crate::shared::{By, Conflict, Record, What};

/// What a thread of the CTA of rank `me` knows of the records in the shared memory of rank `home`.
pub(super) fn view<'a>(
    know: &'a Knowledge,
    who: u32,
    me: u32,
    home: u32,
    members: &'a [u32],
) -> impl Fn(u32, u32, u32) -> bool + 'a {
    move |agent, of, clock| {
        let (rank, agent) = Foreign::decode(agent).map_or((home, agent), |f| (f.rank, f.agent));
        if rank == me {
            return know.knows(who, agent, of, clock);
        }
        members.get(rank as usize).is_some_and(|&cta| know.knows_remote(who, cta, agent, of, clock))
    }
}

/// What a read needs to be written before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// A load carries on the bits that are unknown.
    Bytes,
    Bits,
}

impl Cta<'_> {
    /// A warp of this CTA, as others record it.
    pub(super) fn foreign(&self, agent: u32) -> u32 {
        Foreign { rank: self.rank, agent }.encode()
    }

    /// Checks and records an access to the shared memory of a peer; `same` is that of `write_from_outside`.
    fn touch_peer(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: (u32, usize),
        n: usize,
        what: What,
        same: bool,
    ) -> Exec<()> {
        if !self.ctx.checks.races {
            return Ok(());
        }
        let (rank, off) = at;
        let (agent, lane32) = (self.foreign(w as u32), lane as u32);
        let warp = &self.warps[w];
        let before = view(&warp.know, 1 << lane, self.rank, rank, &self.members);
        let shared = &mut self.peers.get_mut(rank).expect("located before").shared;
        let conflict = if what == What::Write {
            let record = Record { clock: warp.now, agent, lane: lane32, mask: 0, in_flight: false };
            shared.write_from_outside(off, n, same, record, &before)
        } else {
            shared.beside(off, n, what, By { agent, lane: lane32, clock: warp.now }, &before)
        };
        if let Some(c) = conflict {
            return Err(self.peer_conflict(w, pc, lane, rank, c, what));
        }
        if let Some(c) = shared.warned.take() {
            self.ctx.warn(pc, self.index, || self.peer_conflict(w, pc, lane, rank, c, what));
        }
        Ok(())
    }

    pub(super) fn peer_conflict(
        &self,
        w: usize,
        pc: u32,
        lane: usize,
        home: u32,
        c: Conflict,
        what: What,
    ) -> Box<Fault> {
        let (rank, agent) = Foreign::decode(c.agent).map_or((home, c.agent), |f| (f.rank, f.agent));
        let act = if matches!(what, What::Write | What::StrongWrite) { "write" } else { "read" };
        let other = if c.was_write { "the write" } else { "the read" };
        let who = if agent < self.warps.len() as u32 {
            format!("warp {agent}, lane {}", c.lanes.trailing_zeros())
        } else {
            "an asynchronous operation".to_owned()
        };
        let d = format!(
            "{act} of shared address {:#x} of rank {home} against {other} by rank {rank}, {who}, with no ordering between them{}",
            c.offset + SHARED_BASE,
            if c.weak_read { WEAK_READ } else { "" }
        );
        self.fault(w, Some(lane as u32), pc, FaultKind::SharedRace, d)
    }

    /// Bytes of a peer, which must be written where the checks say so.
    pub(crate) fn peer_bytes(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        (rank, off): (u32, usize),
        out: &mut [u8],
        needs: Needs,
    ) -> Exec<()> {
        let shared = &self.peers.get(rank).expect("located before").shared;
        let n = out.len();
        let first = match needs {
            Needs::Nothing => None,
            Needs::Bytes => shared.first_unwritten(off, n),
            Needs::Bits => shared.first_unknown(off, n),
        };
        if self.ctx.checks.uninitialized
            && let Some(o) = first
        {
            let d = format!("shared address {:#x} of rank {rank} was never written", o as u32 + SHARED_BASE);
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::UninitializedShared, d));
        }
        out.copy_from_slice(&shared.bytes[off..off + out.len()]);
        Ok(())
    }

    pub(crate) fn read_peer(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: (u32, usize),
        out: &mut [u8],
        what: What,
    ) -> Exec<()> {
        self.touch_peer(w, pc, lane, at, out.len(), what, false)?;
        self.peer_bytes(w, pc, lane, at, out, Needs::Bytes)?;
        self.counters.shared_bytes_read += out.len() as u64;
        Ok(())
    }

    pub(crate) fn write_peer(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: (u32, usize),
        data: &[u8],
        what: What,
        stored: Stored<'_>,
    ) -> Exec<()> {
        let peer = self.peers.get(at.0).expect("located before");
        let same = peer.shared.bytes[at.1..at.1 + data.len()] == *data;
        self.touch_peer(w, pc, lane, at, data.len(), what, same)?;
        let shared = &mut self.peers.get_mut(at.0).expect("located before").shared;
        shared.bytes[at.1..at.1 + data.len()].copy_from_slice(data);
        stored.mark(shared, at.1, data.len());
        self.counters.shared_bytes_written += data.len() as u64;
        Ok(())
    }

    /// The mbarrier of a peer must be there, and its initialisation ordered before.
    fn peer_mbar(&self, w: usize, pc: u32, lane: usize, (rank, off): (u32, usize)) -> Exec<()> {
        let peer = self.peers.get(rank).expect("located before");
        if !peer.mbars.contains_key(&(off as u32)) {
            let d =
                format!("no mbarrier was initialised at shared address {:#x} of rank {rank}", off as u32 + SHARED_BASE);
            return self.mbar_misuse(w, pc, lane, d);
        }
        let before = view(&self.warps[w].know, 1 << lane, self.rank, rank, &self.members);
        if self.ctx.checks.races
            && let Some(r) = peer.shared.last_write(off)
            && !before(r.agent, 1 << r.lane, r.clock)
        {
            let d = format!(
                "the initialisation of the mbarrier at {:#x} of rank {rank} is not ordered before this use",
                off as u32 + SHARED_BASE
            );
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::SharedRace, d));
        }
        Ok(())
    }

    /// `mbarrier.arrive.shared::cluster`: it releases to the cluster.
    pub(crate) fn arrive_at_peer(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: (u32, usize),
        n: u32,
        expect: Option<u32>,
        drop: bool,
        news: Clocks,
    ) -> Exec<()> {
        self.peer_mbar(w, pc, lane, at)?;
        let (rank, off) = (at.0, at.1 as u32);
        let news = news.exported(self.number);
        let peer = self.peers.get_mut(rank).expect("located before");
        let news = Clocks::imported(&news, peer.number);
        if drop {
            let m = peer.mbars.get_mut(&off).expect("looked up above");
            m.expected = m.expected.saturating_sub(1);
        }
        let done = match expect {
            Some(bytes) => peer.expect_bytes(off, bytes),
            None => Ok(()),
        };
        match done.and_then(|()| peer.arrived(off, n, false, &news)) {
            Ok(()) => Ok(()),
            Err(d) => self.mbar_misuse(w, pc, lane, format!("rank {rank}: {d}")),
        }
    }

    /// `mbarrier.expect_tx` and `complete_tx` on a peer's mbarrier; what is wrong with the count comes back.
    pub(crate) fn count_at_peer(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        at: (u32, usize),
        n: i64,
    ) -> Exec<Result<(), String>> {
        self.peer_mbar(w, pc, lane, at)?;
        let peer = self.peers.get_mut(at.0).expect("located before");
        Ok(peer.count_bytes(at.1 as u32, n).map_err(|d| format!("rank {}: {d}", at.0)))
    }
}
