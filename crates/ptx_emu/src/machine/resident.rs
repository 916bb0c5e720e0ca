//! Kernels whose CTAs can talk: as many CTAs are resident as the multiprocessors hold, and one schedule drawn from the seed interleaves
//! them, on the calling thread. The same seed gives the same run.
//!
//! Clusters come in the order of the seed, each as soon as there is room for all of its CTAs, and stay until the last of them ends.
//! Seed 0 gives the resident CTAs a turn each in order. Other seeds draw the CTA and the number of turns.

use super::peers::Peers;
use super::shuffle::Shuffle;
use super::turn::{FRUITLESS, LANDS_AFTER, Turn};
use super::{Cta, Exec, LaunchCtx, Rng};
use crate::counters::Counters;
use crate::error::Fault;

/// Most turns that a CTA has in a row.
const LONGEST: u64 = 64;

/// The CTAs of a cluster; a kernel without clusters has clusters of one.
struct Cluster<'a> {
    peers: Peers<'a>,
    last: Vec<Turn>,
}

pub(super) struct Residents<'a> {
    ctx: &'a LaunchCtx<'a>,
    order: Shuffle,
    clusters: u32,
    /// Position in the order of the next cluster to come.
    next: u32,
    resident: Vec<Cluster<'a>>,
    #[allow(clippy::vec_box, reason = "CTAs move in and out of clusters: a pointer, and not hundreds of bytes")]
    idle: Vec<Box<Cta<'a>>>,
    rng: Rng,
    /// Turns since anything happened.
    fruitless: u64,
}

impl<'a> Residents<'a> {
    pub(super) fn new(ctx: &'a LaunchCtx<'a>, total: u32) -> Self {
        let clusters = total / ctx.cluster.iter().product::<u32>();
        Residents {
            ctx,
            order: Shuffle::new(clusters, ctx.seed),
            clusters,
            next: 0,
            resident: Vec::new(),
            idle: Vec::new(),
            rng: Rng::new(ctx.seed),
            fruitless: 0,
        }
    }

    pub(super) fn run(mut self) -> (Counters, Option<Box<Fault>>) {
        let fault = self.all().err();
        let mut counters = Counters::default();
        let gone = self.resident.into_iter().flat_map(|c| c.peers.into_ctas());
        for cta in self.idle.into_iter().chain(gone) {
            counters.add(&cta.counters);
        }
        (counters, fault)
    }

    fn all(&mut self) -> Exec<()> {
        let mut at = 0;
        loop {
            while self.resident.len() < self.ctx.resident_clusters as usize && self.next < self.clusters {
                self.admit();
            }
            if self.resident.is_empty() {
                return Ok(());
            }
            let random = self.ctx.seed != 0;
            let i = if random { self.rng.below(self.resident.len() as u64) as usize } else { at % self.resident.len() };
            let size = self.resident[i].last.len();
            let first = if random { self.rng.below(size as u64) as usize } else { 0 };
            // With a seed one CTA of the cluster has its turns, else each has as many as it has warps.
            let ranks = if random { 1 } else { size };
            for k in 0..ranks {
                let turns = match random.then(|| self.rng.below(3)) {
                    None => self.resident[i].peers.warps(),
                    Some(0) => 1,
                    Some(_) => 1 + self.rng.below(LONGEST),
                };
                self.turns(i, (first + k) % size, turns)?;
            }
            self.check(i)?;
            if self.resident[i].last.iter().all(|t| *t == Turn::Done) {
                let cluster = self.resident.remove(i);
                self.idle.extend(cluster.peers.into_ctas());
            } else {
                at = i + 1;
            }
        }
    }

    fn admit(&mut self) {
        let cluster = self.order.at(self.next);
        self.next += 1;
        self.fruitless = 0;
        let ctx = self.ctx;
        let numbers = ctx.members(cluster);
        let ctas = (0..numbers.len()).map(|rank| {
            let mut cta = self.idle.pop().unwrap_or_else(|| Box::new(Cta::new(ctx)));
            cta.begin_in_cluster(&numbers, rank, cluster);
            cta
        });
        let peers = Peers::new(ctas);
        self.resident.push(Cluster { last: vec![Turn::Ran; numbers.len()], peers });
    }

    /// Some turns of one CTA, until it cannot go on by itself.
    fn turns(&mut self, i: usize, rank: usize, turns: u64) -> Exec<()> {
        let cluster = &mut self.resident[i];
        if cluster.last[rank] == Turn::Done {
            return Ok(());
        }
        for _ in 0..turns {
            let turn = cluster.peers.with(rank, Cta::turn)?;
            // Who waited may go on when this one has done something.
            match turn {
                Turn::Ran | Turn::Done => self.fruitless = 0,
                Turn::Cut => {}
                Turn::Polled | Turn::Blocked => self.fruitless += 1,
            }
            if !matches!(turn, Turn::Polled | Turn::Blocked) {
                cluster.last.iter_mut().filter(|t| **t == Turn::Blocked).for_each(|t| *t = Turn::Ran);
            }
            cluster.last[rank] = turn;
            if !matches!(turn, Turn::Ran | Turn::Cut) {
                break;
            }
        }
        Ok(())
    }

    /// Looks whether a cluster, or everything, waits for what will never come.
    fn check(&mut self, i: usize) -> Exec<()> {
        let cluster = &mut self.resident[i];
        let stuck = |t: &Turn| matches!(t, Turn::Blocked | Turn::Done);
        if cluster.last.contains(&Turn::Blocked) && cluster.last.iter().all(stuck) {
            if Self::land(cluster, &mut self.rng, self.ctx.seed)? {
                self.fruitless = 0;
                return Ok(());
            }
            let rank = cluster.last.iter().position(|t| *t == Turn::Blocked).unwrap_or(0);
            return Err(cluster.peers.with(rank, |cta| cta.deadlock()));
        }
        // Not even one part of a warp in each cluster has had so many.
        if self.fruitless <= LANDS_AFTER * self.resident.len() as u64 {
            return Ok(());
        }
        // Turns that each part gets one of, be they drawn by the CTA.
        let most = self.resident.iter().map(|c| c.peers.runnable()).max().unwrap_or(1);
        let n = most * self.resident.iter().map(|c| c.last.len() as u64).sum::<u64>();
        if self.fruitless > LANDS_AFTER * n && self.fruitless.is_multiple_of(LANDS_AFTER) {
            for cluster in &mut self.resident {
                if Self::land(cluster, &mut self.rng, self.ctx.seed)? {
                    self.fruitless = 0;
                    return Ok(());
                }
            }
        }
        if self.fruitless > FRUITLESS * n { Err(self.spinning()) } else { Ok(()) }
    }

    /// One copy in flight of the cluster lands: of any CTA by the seed.
    fn land(cluster: &mut Cluster<'a>, rng: &mut Rng, seed: u64) -> Exec<bool> {
        let size = cluster.last.len();
        let first = if seed != 0 { rng.below(size as u64) as usize } else { 0 };
        for k in 0..size {
            if cluster.peers.with((first + k) % size, Cta::land_one)? {
                cluster.last.iter_mut().filter(|t| **t == Turn::Blocked).for_each(|t| *t = Turn::Ran);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Everybody looks again and again at what nobody will change.
    fn spinning(&mut self) -> Box<Fault> {
        let resident: u32 = self.resident.iter().map(|c| c.last.len() as u32).sum();
        let (mut lines, mut more) = (Vec::new(), 0);
        for cluster in &mut self.resident {
            for rank in 0..cluster.last.len() {
                match cluster.peers.with(rank, |cta| cta.who_waits()) {
                    Some(line) if lines.len() < 8 => lines.push(line),
                    Some(_) => more += 1,
                    None => {}
                }
            }
        }
        let mut detail = lines.join("; ");
        if more != 0 {
            detail += &format!("; and {more} CTAs more");
        }
        let left = (self.clusters - self.next) * self.ctx.cluster.iter().product::<u32>();
        if left != 0 {
            detail += &format!(
                "; {left} CTAs wait for a place: the {} multiprocessors are full with {resident} CTAs of this kernel, so that what \
                 all CTAs of the grid wait for together never comes",
                self.ctx.multiprocessors
            );
        }
        let first = self.resident.iter_mut().find_map(|c| {
            let rank = c.last.iter().position(|t| *t != Turn::Done)?;
            Some(c.peers.with(rank, |cta| cta.deadlock()))
        });
        let mut fault = first.expect("somebody spins");
        fault.detail = detail;
        fault
    }
}
