//! The barrier of all threads of a cluster, and what must be over when a CTA leaves it.

use std::collections::BTreeSet;

use crate::error::FaultKind;
use crate::ir::*;
use crate::machine::{Block, Cta, Exec, lanes};
use crate::order::Clocks;
use crate::release::level;
use crate::remote::{Foreign, Remote};

impl Cta<'_> {
    /// `barrier.cluster.arrive`. A relaxed one hands over what the threads had fenced, no more.
    pub(crate) fn cluster_arrive(&mut self, w: usize, pc: u32, active: u32, release: bool, aligned: bool) -> Exec<()> {
        if aligned {
            self.aligned(w, pc, active)?;
        }
        let warp = &self.warps[w];
        let again = active & (warp.arrived | warp.met);
        if again != 0 {
            let d = "arrives at the cluster barrier again, without a wait since it arrived before".to_owned();
            return self.cluster_misuse(w, pc, again.trailing_zeros() as usize, d);
        }
        let news = if release {
            self.publish(w, active).exported(self.number)
        } else {
            // That the CTA has begun is known in any case.
            let mut news = Remote::default();
            news.add(self.number, Clocks::default());
            for fenced in warp.fences[level(Scope::Cluster)..].iter().flatten() {
                for lane in lanes(active & fenced.lanes) {
                    news.join(&fenced.know.of_lane(lane as u32).exported(self.number));
                }
            }
            news
        };
        self.peers.barrier.arriving.join(&news);
        self.warps[w].arrived |= active;
        self.tick(w);
        self.try_meet_cluster();
        Ok(())
    }

    /// `barrier.cluster.wait`, which acquires; false when the phase is not complete.
    pub(crate) fn cluster_wait(&mut self, w: usize, pc: u32, active: u32, aligned: bool) -> Exec<bool> {
        if aligned {
            self.aligned(w, pc, active)?;
        }
        let warp = &mut self.warps[w];
        let never = active & !(warp.arrived | warp.met);
        if never != 0 {
            let d = "waits for the cluster barrier without having arrived at it".to_owned();
            return self.cluster_misuse(w, pc, never.trailing_zeros() as usize, d);
        }
        if warp.met & active != active {
            return Ok(false);
        }
        warp.met &= !active;
        let news = Clocks::imported(&self.peers.barrier.complete, self.number);
        self.learn(w, active, &news);
        Ok(true)
    }

    /// Threads of the cluster that have neither ended nor arrived.
    pub(crate) fn missing(&self) -> u32 {
        let of = |cta: &Cta<'_>| cta.warps.iter().map(|w| (w.live & !w.arrived).count_ones()).sum::<u32>();
        of(self) + self.peers.ctas().map(of).sum::<u32>()
    }

    /// Ends the phase of the cluster barrier when nobody is missing.
    pub(crate) fn try_meet_cluster(&mut self) {
        let any = |cta: &Cta<'_>| cta.warps.iter().any(|w| w.arrived != 0);
        if !(any(self) || self.peers.ctas().any(any)) || self.missing() != 0 {
            return;
        }
        let barrier = &mut self.peers.barrier;
        let arriving = barrier.arriving.clone();
        barrier.complete.join(&arriving);
        let mut meet = |cta: &mut Cta<'_>| {
            for warp in &mut cta.warps {
                warp.met |= std::mem::take(&mut warp.arrived);
                warp.splits.iter_mut().filter(|s| s.block == Some(Block::Cluster)).for_each(|s| s.block = None);
            }
        };
        self.peers.ctas_mut().for_each(&mut meet);
        meet(self);
    }

    /// The CTA has ended: what others did in its shared memory must be ordered before, for afterwards there is none.
    pub(crate) fn leave_cluster(&mut self) -> Exec<()> {
        if !self.peers.others() || !self.ctx.checks.races {
            return Ok(());
        }
        let mut checked = BTreeSet::new();
        for (off, agent, who, clock) in self.shared.outside() {
            if !checked.insert((agent, who, clock)) {
                continue;
            }
            let known = |w: &crate::machine::Warp| lanes(w.valid).any(|l| w.know.knows(1 << l, agent, who, clock));
            if !self.warps.iter().any(known) {
                let rank = Foreign::decode(agent).map_or(0, |f| f.rank);
                let d = format!(
                    "the CTA, of rank {rank_of} in its cluster, ends with an access of rank {rank} to its shared address {:#x} that \
                     is not ordered before: a cluster barrier is missing",
                    off as u32 + SHARED_BASE,
                    rank_of = self.rank
                );
                return Err(self.fault(0, None, NO_PC, FaultKind::ClusterMisuse, d));
            }
        }
        Ok(())
    }
}
