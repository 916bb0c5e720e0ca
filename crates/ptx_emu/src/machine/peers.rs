//! The CTAs of a cluster. The one that runs holds the others, so that it can reach their shared memory.

use super::Cta;
use crate::remote::Remote;

/// The barrier of all threads of a cluster (PTX ISA, barrier.cluster).
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterBarrier {
    /// What the arrivals of the phase in progress release, and of all phases before.
    pub(crate) arriving: Remote,
    /// What the phases that are complete released.
    pub(crate) complete: Remote,
}

/// CTAs of a cluster by rank, without the one that runs.
#[derive(Default)]
pub(crate) struct Peers<'a> {
    ctas: Vec<Option<Box<Cta<'a>>>>,
    pub(crate) barrier: ClusterBarrier,
}

impl<'a> Peers<'a> {
    pub(super) fn new(ctas: impl Iterator<Item = Box<Cta<'a>>>) -> Self {
        Peers { ctas: ctas.map(Some).collect(), barrier: ClusterBarrier::default() }
    }

    /// Whether the cluster has more than one CTA.
    pub(crate) fn others(&self) -> bool {
        self.ctas.len() > 1
    }

    pub(crate) fn get(&self, rank: u32) -> Option<&Cta<'a>> {
        self.ctas.get(rank as usize)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, rank: u32) -> Option<&mut Cta<'a>> {
        self.ctas.get_mut(rank as usize)?.as_deref_mut()
    }

    pub(crate) fn ctas(&self) -> impl Iterator<Item = &Cta<'a>> {
        self.ctas.iter().flatten().map(|c| &**c)
    }

    pub(crate) fn ctas_mut(&mut self) -> impl Iterator<Item = &mut Cta<'a>> {
        self.ctas.iter_mut().flatten().map(|c| &mut **c)
    }

    /// Lets the CTA of a rank do something, with the others in its reach.
    pub(super) fn with<T>(&mut self, rank: usize, f: impl FnOnce(&mut Cta<'a>) -> T) -> T {
        let mut cta = self.ctas[rank].take().expect("nobody else runs");
        cta.peers = std::mem::take(self);
        let result = f(&mut cta);
        *self = std::mem::take(&mut cta.peers);
        self.ctas[rank] = Some(cta);
        result
    }

    /// Warps of a CTA.
    pub(super) fn warps(&self) -> u64 {
        self.ctas().next().map_or(1, |c| c.warps.len() as u64)
    }

    /// Parts of warps that can run, of the CTA that has most.
    pub(super) fn runnable(&self) -> u64 {
        self.ctas().filter(|c| !c.exited).map(Cta::runnable).max().unwrap_or(1)
    }

    pub(super) fn into_ctas(self) -> impl Iterator<Item = Box<Cta<'a>>> {
        self.ctas.into_iter().flatten()
    }
}
