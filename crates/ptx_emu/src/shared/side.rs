//! Records of shared memory that are few: strong accesses, and whatever other CTAs of the cluster do.
//!
//! Strong accesses (atomics, and loads and stores with an order) do not race with each other, so each stays on record until one that is
//! ordered after it touches the same bytes: an atomic does not hide an earlier plain store, which the records of writes keep.

use super::record::{Conflict, Reads, Record};
use super::{GRANULE, Shared};
use crate::emulator::Severity;
use crate::remote::Foreign;

/// What an access does to the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Read,
    Write,
    StrongRead,
    StrongWrite,
}

impl What {
    fn writes(self) -> bool {
        matches!(self, What::Write | What::StrongWrite)
    }

    fn strong(self) -> bool {
        matches!(self, What::StrongRead | What::StrongWrite)
    }

    fn conflicts(self, other: What) -> bool {
        (self.writes() || other.writes()) && !(self.strong() && other.strong())
    }
}

/// An access on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Side {
    agent: u32,
    lanes: u32,
    clock: u32,
    mask: u8,
    what: What,
}

/// Whether what lanes of an agent did at a clock is ordered before the access: agent, lanes, clock.
pub(crate) trait Before: Fn(u32, u32, u32) -> bool {}
impl<F: Fn(u32, u32, u32) -> bool> Before for F {}

/// Who accesses: agent, lane, clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct By {
    pub(crate) agent: u32,
    pub(crate) lane: u32,
    pub(crate) clock: u32,
}

/// The granules of a range, each with its bytes in the range.
fn granules(off: usize, n: usize) -> impl Iterator<Item = (usize, u8)> {
    (off / GRANULE..(off + n).div_ceil(GRANULE)).map(move |g| {
        let (from, to) = (off.max(g * GRANULE), (off + n).min((g + 1) * GRANULE));
        (g, (((1u32 << (to - from)) - 1) << (from - g * GRANULE)) as u8)
    })
}

impl Shared {
    /// A record beside that a plain access of the CTA conflicts with.
    #[cold]
    pub(super) fn side_conflict(
        &self,
        off: usize,
        n: usize,
        what: What,
        by: u32,
        before: &impl Before,
    ) -> Option<Conflict> {
        granules(off, n).find_map(|(g, mask)| self.side_of_granule(g, mask, what, by, before))
    }

    fn side_of_granule(&self, g: usize, mask: u8, what: What, by: u32, before: &impl Before) -> Option<Conflict> {
        let hit = |s: &&Side| s.mask & mask != 0 && what.conflicts(s.what) && !before(s.agent, s.lanes, s.clock);
        self.side.get(&g)?.iter().filter(hit).find_map(|s| {
            let plain = if what == What::Read { Some(by) } else { (s.what == What::Read).then_some(s.agent) };
            let conflict = Conflict {
                offset: (g * GRANULE) as u32,
                agent: s.agent,
                lanes: s.lanes,
                in_flight: false,
                was_write: s.what.writes(),
                weak_read: plain.is_some_and(|a| self.is_thread(a)) && (what.strong() || s.what.strong()),
            };
            self.graded(conflict)
        })
    }

    /// Whether an agent, of this CTA or another, is a warp: what engines read is no plain read of a thread.
    fn is_thread(&self, agent: u32) -> bool {
        Foreign::decode(agent).map_or(agent, |f| f.agent) < self.warps
    }

    /// What is left of a conflict when plain reads against strong writes are graded.
    fn graded(&self, c: Conflict) -> Option<Conflict> {
        if !c.weak_read || self.weak_reads == Severity::Error {
            return Some(c);
        }
        if self.weak_reads == Severity::Warn {
            self.warned.set(Some(c));
        }
        None
    }

    /// A plain write is ordered after all that it was compared with.
    pub(super) fn side_cover(&mut self, off: usize, n: usize) {
        for (g, mask) in granules(off, n) {
            if let Some(list) = self.side.get_mut(&g) {
                list.retain_mut(|s| {
                    s.mask &= !mask;
                    s.mask != 0
                });
                if list.is_empty() {
                    self.side.remove(&g);
                }
            }
        }
    }

    /// Checks and records a strong access, or any access of another CTA but a plain write.
    pub(crate) fn beside(
        &mut self,
        off: usize,
        n: usize,
        what: What,
        by: By,
        before: &impl Before,
    ) -> Option<Conflict> {
        if !self.races {
            return None;
        }
        for (g, mask) in granules(off, n) {
            if let Some(c) = self.conflict(g, mask, what, by.agent, false, before) {
                return Some(c);
            }
            let me = Side { agent: by.agent, lanes: 1 << by.lane, clock: by.clock, mask, what };
            let list = self.side.entry(g).or_default();
            list.retain(|s| {
                let covered = s.mask & !mask == 0 && (s.what == what || (what == What::StrongWrite && s.what.strong()));
                let own = s.agent == me.agent && s.lanes == me.lanes;
                !(covered && (own || before(s.agent, s.lanes, s.clock)))
            });
            let fits = |s: &&mut Side| (s.agent, s.clock, s.mask, s.what) == (me.agent, me.clock, mask, what);
            match list.iter_mut().rev().find(fits) {
                Some(s) => s.lanes |= me.lanes,
                None => list.push(me),
            }
        }
        None
    }

    /// Checks and records a plain write of another CTA, or of an engine on its behalf. `same` says that the bytes already hold the
    /// value, which makes writes of several lanes of one warp harmless.
    pub(crate) fn write_from_outside(
        &mut self,
        off: usize,
        n: usize,
        same: bool,
        record: Record,
        before: &impl Before,
    ) -> Option<Conflict> {
        if !self.races {
            return None;
        }
        for (g, mask) in granules(off, n) {
            if let Some(c) = self.conflict(g, mask, What::Write, record.agent, same, before) {
                return Some(c);
            }
        }
        self.side_cover(off, n);
        let all = self.writes.len();
        for (g, mask) in granules(off, n) {
            let mut agents = self.readers[g];
            while agents != 0 {
                let agent = agents.trailing_zeros();
                agents &= agents - 1;
                let cell = agent as usize * all + g;
                let r = Reads::unpack(self.reads[cell]);
                let left = r.mask & !mask;
                self.reads[cell] = Reads { mask: left, ..r }.pack();
                if left == 0 {
                    self.readers[g] &= !(1 << agent);
                }
            }
            self.writes[g] = Record { mask, ..record }.pack();
        }
        None
    }

    /// The first record of a granule that an access conflicts with, among all there are.
    fn conflict(&self, g: usize, mask: u8, what: What, by: u32, same: bool, before: &impl Before) -> Option<Conflict> {
        let other = Record::unpack(self.writes[g]);
        let harmless = same && other.agent == by && !other.in_flight;
        if other.mask & mask != 0
            && !harmless
            && (other.in_flight || !before(other.agent, 1 << other.lane, other.clock))
        {
            return Some(Conflict::with_write(g * GRANULE, &other));
        }
        if what.writes() {
            let mut agents = self.readers[g];
            while agents != 0 {
                let agent = agents.trailing_zeros();
                agents &= agents - 1;
                let cell = agent as usize * self.writes.len() + g;
                let r = Reads::unpack(self.reads[cell]);
                let lanes = Self::lanes_of(&self.mixed, cell, &r, mask);
                if r.mask & mask != 0 && !before(agent, lanes, r.clock) {
                    let offset = (g * GRANULE) as u32;
                    let weak_read = what == What::StrongWrite && self.is_thread(agent);
                    let c = Conflict { offset, agent, lanes, in_flight: false, was_write: false, weak_read };
                    if let Some(c) = self.graded(c) {
                        return Some(c);
                    }
                }
            }
        }
        self.side_of_granule(g, mask, what, by, before)
    }

    /// Accesses of other CTAs on record, each by its agent, lanes and clock.
    pub(crate) fn outside(&self) -> impl Iterator<Item = (usize, u32, u32, u32)> {
        let read = self.side.iter().flat_map(|(g, list)| list.iter().map(|s| (*g, s.agent, s.lanes, s.clock)));
        let written = self.writes.iter().enumerate().filter_map(|(g, &bits)| {
            let r = Record::unpack(bits);
            (r.mask != 0).then_some((g, r.agent, 1 << r.lane, r.clock))
        });
        read.chain(written)
            .filter(|a| crate::remote::Foreign::decode(a.1).is_some())
            .map(|(g, agent, lanes, clock)| (g * GRANULE, agent, lanes, clock))
    }
}
