//! Shared memory of one CTA: bytes, which of them were written, and who touched each granule last.
//!
//! Ordering is by vector clocks. Every warp is an agent, and so is every engine that touches shared memory on a warp's
//! behalf: the `wgmma` unit of a warpgroup, the bulk-copy reader of a warp, and each mbarrier that bulk copies complete
//! on. An access is recorded with its agent, the agent's clock and the lanes; a later access by a lane is ordered after it
//! when the lane has learnt of those lanes' clock through a barrier or a wait (see `order`). Strong accesses, and the reads of other
//! CTAs of the cluster, are on record beside (see `side`): they are few.

mod record;
mod side;

use record::Reads;
pub(crate) use record::{Conflict, Record};
pub(crate) use side::{By, Side, What};

use std::cell::Cell;
use std::collections::HashMap;

use crate::emulator::{Checks, Severity};
use crate::holes::Holes;
use crate::order::Knowledge;

/// Bytes of one granule.
const GRANULE: usize = 4;
/// Clocks are 26 bits in a record of reads; above half of that a worker starts again with cleared records.
pub(crate) const CLOCK_RESET: u32 = 1 << 25;

pub(crate) struct Shared {
    pub(crate) bytes: Vec<u8>,
    init: Vec<u64>,
    /// Bits of written bytes that are unknown; nearly always there are none.
    holes: Holes,
    writes: Vec<u64>,
    /// `agent * granules + granule`.
    reads: Vec<u64>,
    /// For each granule, the agents that read it since it was last written, one bit each: their records are those that count.
    readers: Vec<u128>,
    /// The lanes that read each byte, for records that say so.
    mixed: HashMap<usize, [u32; GRANULE]>,
    /// Strong accesses and those of other CTAs, by granule.
    side: HashMap<usize, Vec<Side>>,
    races: bool,
    /// Agents that are warps.
    warps: u32,
    weak_reads: Severity,
    /// A plain read against a strong write, of the last access, that is worth a warning.
    pub(crate) warned: Cell<Option<Conflict>>,
}

impl Shared {
    pub(crate) fn new(size: usize, readers: usize, warps: u32, checks: Checks) -> Self {
        let races = checks.races;
        debug_assert!(readers <= 128, "32 warps, 8 warpgroups and a bulk reader for each warp");
        let granules = if races { size.div_ceil(GRANULE) } else { 0 };
        Shared {
            bytes: vec![0; size],
            init: vec![0; size.div_ceil(64)],
            holes: Holes::default(),
            writes: vec![0; granules],
            reads: vec![0; granules * readers],
            readers: vec![0; granules],
            mixed: HashMap::new(),
            side: HashMap::new(),
            races,
            warps,
            weak_reads: checks.weak_reads,
            warned: Cell::new(None),
        }
    }

    /// Starts a CTA: memory is unwritten again. Records stay: their clocks are below every clock to come.
    pub(crate) fn start(&mut self, clear_records: bool) {
        self.init.fill(0);
        self.holes.clear();
        // A garbage pattern, so that a kernel that relies on zeros fails even with checks off.
        self.bytes.fill(0xcb);
        self.mixed.clear();
        self.side.clear();
        if clear_records {
            self.writes.fill(0);
            // Says which records of reads count.
            self.readers.fill(0);
        }
    }

    pub(crate) fn holds(&self, off: u64, n: u64) -> bool {
        off <= self.bytes.len() as u64 && n <= self.bytes.len() as u64 - off
    }

    pub(crate) fn first_unwritten(&self, off: usize, n: usize) -> Option<usize> {
        let (w, b) = (off / 64, off % 64);
        if b + n <= 64 {
            let want = (!0u64 >> (64 - n)) << b;
            let missing = want & !self.init[w];
            return (missing != 0).then(|| w * 64 + missing.trailing_zeros() as usize);
        }
        (off..off + n).find(|o| self.init[o / 64] >> (o % 64) & 1 == 0)
    }

    /// The first byte of the range with a bit that nobody wrote.
    pub(crate) fn first_unknown(&self, off: usize, n: usize) -> Option<usize> {
        let unwritten = self.first_unwritten(off, n);
        if self.holes.is_empty() {
            return unwritten;
        }
        unwritten.into_iter().chain(self.holes.first(off as u64, n as u64).map(|o| o as usize)).min()
    }

    /// The unknown bits of written bytes, if there are any.
    #[inline(always)]
    pub(crate) fn unknown<const N: usize>(&self, off: usize, n: usize) -> Option<[u8; N]> {
        if self.holes.is_empty() { None } else { self.holes.get(off as u64, n) }
    }

    /// The range was written with bytes that have these unknown bits, if any.
    pub(crate) fn mark_stored(&mut self, off: usize, n: usize, unknown: Option<&[u8]>) {
        self.mark_written(off, n);
        if let Some(unknown) = unknown {
            self.holes.put(off as u64, unknown);
        }
    }

    pub(crate) fn mark_written(&mut self, off: usize, n: usize) {
        if !self.holes.is_empty() {
            self.holes.fill(off as u64, n as u64);
        }
        let (mut o, end) = (off, off + n);
        while o < end {
            let (w, b) = (o / 64, o % 64);
            let take = (64 - b).min(end - o);
            self.init[w] |= (!0u64 >> (64 - take)) << b;
            o += take;
        }
    }

    /// The range was written with what nobody wrote.
    #[cold]
    pub(crate) fn mark_unwritten(&mut self, off: usize, n: usize) {
        (off..off + n).for_each(|o| self.init[o / 64] &= !(1 << (o % 64)));
    }

    /// Whether the earlier write is ordered before an access of these lanes.
    #[inline(always)]
    fn write_ordered(other: &Record, know: &Knowledge, who: u32) -> bool {
        !other.in_flight && know.knows(who, other.agent, 1 << other.lane, other.clock)
    }

    /// Checks and records a read by these lanes, or by an engine for them. `reader` is who reads, and at which clock.
    #[inline(always)]
    pub(crate) fn on_read(
        &mut self,
        off: usize,
        n: usize,
        know: &Knowledge,
        who: u32,
        reader: (u32, u32),
    ) -> Option<Conflict> {
        let (agent, clock) = reader;
        // An engine counts as one lane.
        let me = if agent == know.warp() { who } else { 1 };
        let bit = 1u128 << agent;
        let granules = self.writes.len();
        if !self.side.is_empty()
            && let Some(c) = self.side_conflict(off, n, What::Read, agent, &|a, l, c| know.knows(who, a, l, c))
        {
            return Some(c);
        }
        if off.is_multiple_of(GRANULE) && n.is_multiple_of(GRANULE) {
            // Whole granules: neighbours mostly have the same records.
            let (first, count) = (off / GRANULE, n / GRANULE);
            let writes = &self.writes[first..first + count];
            let mut before = 0;
            for (i, &bits) in writes.iter().enumerate() {
                if bits == before {
                    continue;
                }
                let other = Record::unpack(bits);
                if other.mask != 0 && !Self::write_ordered(&other, know, who) {
                    return Some(Conflict::with_write(off + i * GRANULE, &other));
                }
                before = bits;
            }
            let (mut before, mut after) = (!0, 0);
            for g in first..first + count {
                let cell = agent as usize * granules + g;
                if self.readers[g] & bit == 0 {
                    self.readers[g] |= bit;
                    self.reads[cell] = Reads { clock, lanes: me, mask: 15, mixed: false }.pack();
                    continue;
                }
                let bits = self.reads[cell];
                if bits != before {
                    after = self.add_read(cell, know, who, agent, clock, me, 15);
                    before = if Reads::unpack(after).mixed { !0 } else { bits };
                }
                self.reads[cell] = after;
            }
            return None;
        }
        let mut o = off;
        while o < off + n {
            let g = o / GRANULE;
            let b = o % GRANULE;
            let take = (GRANULE - b).min(off + n - o);
            let mask = (((1u32 << take) - 1) << b) as u8;
            let other = Record::unpack(self.writes[g]);
            if other.mask & mask != 0 && !Self::write_ordered(&other, know, who) {
                return Some(Conflict::with_write(o, &other));
            }
            let cell = agent as usize * granules + g;
            self.reads[cell] = if self.readers[g] & bit == 0 {
                self.readers[g] |= bit;
                Reads { clock, lanes: me, mask, mixed: false }.pack()
            } else {
                self.add_read(cell, know, who, agent, clock, me, mask)
            };
            o += take;
        }
        None
    }

    /// The record of reads in a cell with one more.
    #[inline(always)]
    fn add_read(&mut self, cell: usize, know: &Knowledge, who: u32, agent: u32, clock: u32, me: u32, mask: u8) -> u64 {
        let old = Reads::unpack(self.reads[cell]);
        // Whoever knows of this read knows of the old ones when they are ordered before it; then it replaces them. Else both
        // stay, at the clock of the old ones, which other lanes may not have published.
        if old.mask == 0
            || (old.clock != clock && (agent != know.warp() || know.knows(who, agent, old.lanes, old.clock)))
        {
            return Reads { clock, lanes: me, mask, mixed: false }.pack();
        }
        let mixed = old.mixed || (old.mask != mask && old.lanes != me);
        if mixed {
            self.add_mixed(cell, &old, me, mask);
        }
        Reads { clock: old.clock, lanes: old.lanes | me, mask: old.mask | mask, mixed }.pack()
    }

    #[cold]
    fn add_mixed(&mut self, cell: usize, old: &Reads, me: u32, mask: u8) {
        let by_byte = self.mixed.entry(cell).or_default();
        for (b, lanes) in by_byte.iter_mut().enumerate() {
            if !old.mixed {
                *lanes = if old.mask >> b & 1 == 1 { old.lanes } else { 0 };
            }
            if mask >> b & 1 == 1 {
                *lanes |= me;
            }
        }
    }

    /// The lanes of a record that read any of the bytes in `mask`.
    #[inline(always)]
    fn lanes_of(mixed: &HashMap<usize, [u32; GRANULE]>, cell: usize, r: &Reads, mask: u8) -> u32 {
        if !r.mixed {
            return r.lanes;
        }
        let by_byte = mixed.get(&cell).copied().unwrap_or([r.lanes; GRANULE]);
        (0..GRANULE).filter(|b| (mask & r.mask) >> b & 1 == 1).fold(0, |m, b| m | by_byte[b])
    }

    /// Checks and records a write by a lane. `same` says that the bytes already hold the value, which makes writes of
    /// several lanes of one warp harmless. `record` is what is put on record.
    #[inline(always)]
    pub(crate) fn on_write(
        &mut self,
        off: usize,
        n: usize,
        know: &Knowledge,
        lane: u32,
        same: bool,
        record: Record,
    ) -> Option<Conflict> {
        let granules = self.writes.len();
        if !self.side.is_empty() {
            let before = |a, l, c| know.knows(1 << lane, a, l, c);
            if let Some(c) = self.side_conflict(off, n, What::Write, know.warp(), &before) {
                return Some(c);
            }
            self.side_cover(off, n);
        }
        if off.is_multiple_of(GRANULE) && n.is_multiple_of(GRANULE) {
            return self.on_write_whole(off / GRANULE, n / GRANULE, know, lane, same, record);
        }
        let mut o = off;
        while o < off + n {
            let g = o / GRANULE;
            let b = o % GRANULE;
            let take = (GRANULE - b).min(off + n - o);
            let mask = (((1u32 << take) - 1) << b) as u8;
            let other = Record::unpack(self.writes[g]);
            let harmless = same && other.agent == know.warp() && !other.in_flight;
            if other.mask & mask != 0 && !harmless && !Self::write_ordered(&other, know, 1 << lane) {
                return Some(Conflict::with_write(o, &other));
            }
            let mut agents = self.readers[g];
            while agents != 0 {
                let agent = agents.trailing_zeros();
                agents &= agents - 1;
                let cell = agent as usize * granules + g;
                let r = Reads::unpack(self.reads[cell]);
                if r.mask & mask == 0 {
                    continue;
                }
                if let Some(c) = self.read_conflict(o, agent, cell, &r, mask, know, lane) {
                    return Some(c);
                }
                // Whoever is ordered after this write is ordered after the reads.
                let left = r.mask & !mask;
                self.reads[cell] = Reads { mask: left, ..r }.pack();
                if left == 0 {
                    self.readers[g] &= !(1 << agent);
                }
            }
            // A write to other bytes of the granule at the same time keeps both masks.
            let keep = if other.agent == record.agent
                && other.clock == record.clock
                && other.lane == record.lane
                && other.in_flight == record.in_flight
            {
                other.mask
            } else {
                0
            };
            self.writes[g] = Record { mask: mask | keep, ..record }.pack();
            o += take;
        }
        None
    }

    /// `on_write` of whole granules. Neighbours mostly have the same records: each is looked at once.
    #[inline(always)]
    fn on_write_whole(
        &mut self,
        first: usize,
        count: usize,
        know: &Knowledge,
        lane: u32,
        same: bool,
        record: Record,
    ) -> Option<Conflict> {
        let granules = self.writes.len();
        let all = first..first + count;
        let (mut before, mut agents) = (0, 0);
        for g in all.clone() {
            agents |= self.readers[g];
            let bits = self.writes[g];
            if bits == before {
                continue;
            }
            let other = Record::unpack(bits);
            let harmless = same && other.agent == know.warp() && !other.in_flight;
            if other.mask != 0 && !harmless && !Self::write_ordered(&other, know, 1 << lane) {
                return Some(Conflict::with_write(g * GRANULE, &other));
            }
            before = bits;
        }
        while agents != 0 {
            let agent = agents.trailing_zeros();
            agents &= agents - 1;
            let mut before = 0;
            for g in all.clone() {
                let cell = agent as usize * granules + g;
                let bits = self.reads[cell];
                if self.readers[g] >> agent & 1 == 0 || bits == before {
                    continue;
                }
                let r = Reads::unpack(bits);
                if let Some(c) = self.read_conflict(g * GRANULE, agent, cell, &r, 15, know, lane) {
                    return Some(c);
                }
                before = if r.mixed { 0 } else { bits };
            }
        }
        // Whoever is ordered after this write is ordered after the reads.
        self.readers[all.clone()].fill(0);
        self.writes[all].fill(Record { mask: 15, ..record }.pack());
        None
    }

    /// A record of reads that is not ordered before a write of some of its bytes.
    #[inline(always)]
    fn read_conflict(
        &self,
        offset: usize,
        agent: u32,
        cell: usize,
        r: &Reads,
        mask: u8,
        know: &Knowledge,
        lane: u32,
    ) -> Option<Conflict> {
        let lanes = Self::lanes_of(&self.mixed, cell, r, mask);
        (!know.knows(1 << lane, agent, lanes, r.clock)).then_some(Conflict {
            offset: offset as u32,
            agent,
            lanes,
            in_flight: false,
            was_write: false,
            weak_read: false,
        })
    }

    /// The first write on record in a range that the predicate holds for.
    #[inline(always)]
    pub(crate) fn find_write(&self, off: usize, n: usize, is: impl Fn(&Record) -> bool) -> Option<(usize, Record)> {
        let mut before = 0;
        for g in off / GRANULE..(off + n).div_ceil(GRANULE) {
            let bits = self.writes[g];
            if bits != before {
                before = bits;
                let record = Record::unpack(bits);
                if record.mask != 0 && is(&record) {
                    return Some((g * GRANULE, record));
                }
            }
        }
        None
    }

    /// The last write on record for a byte.
    pub(crate) fn last_write(&self, off: usize) -> Option<Record> {
        let r = Record::unpack(*self.writes.get(off / GRANULE)?);
        (r.mask >> (off % GRANULE) & 1 == 1).then_some(r)
    }

    /// Replaces the record of an asynchronous write that has been waited for.
    pub(crate) fn settle(&mut self, off: usize, n: usize, record: Record) {
        for g in off / GRANULE..(off + n).div_ceil(GRANULE) {
            let old = Record::unpack(self.writes[g]);
            if old.in_flight && old.agent == record.agent && old.lane == record.lane {
                self.writes[g] = Record { mask: old.mask, ..record }.pack();
            }
        }
    }
}
