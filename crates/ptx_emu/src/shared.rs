//! Shared memory of one CTA: bytes, which of them were written, and who touched each granule last.
//!
//! Ordering is by vector clocks. Every warp is an agent, and so is every engine that touches shared memory on a warp's
//! behalf: the `wgmma` unit of a warpgroup, the bulk-copy reader of a warp, and each mbarrier that bulk copies complete
//! on. An access is recorded with its agent and the agent's clock; a later access by warp `w` is ordered after it when
//! `w` has learnt that clock through a barrier or a wait.

/// Bytes of one granule.
const GRANULE: usize = 4;
/// Lane number of a record that several lanes share.
pub(crate) const MANY: u32 = 63;
/// Clocks are 22 bits in a record; above half of that a worker starts again with cleared records.
pub(crate) const CLOCK_RESET: u32 = 1 << 21;

/// An access on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) clock: u32,
    pub(crate) agent: u32,
    pub(crate) lane: u32,
    pub(crate) mask: u8,
    pub(crate) atomic: bool,
    /// A cp.async that has not been waited for.
    pub(crate) in_flight: bool,
}

impl Record {
    fn pack(self) -> u64 {
        (self.clock as u64) << 42
            | (self.lane as u64) << 36
            | (self.mask as u64) << 32
            | (self.atomic as u64) << 31
            | (self.in_flight as u64) << 30
            | self.agent as u64
    }

    fn unpack(b: u64) -> Self {
        Record {
            clock: (b >> 42) as u32,
            lane: (b >> 36) as u32 & 63,
            mask: (b >> 32) as u8 & 15,
            atomic: b >> 31 & 1 == 1,
            in_flight: b >> 30 & 1 == 1,
            agent: b as u32 & 0xffff,
        }
    }
}

/// A conflict: the byte offset, the earlier access, whether that was a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) offset: u32,
    pub(crate) other: Record,
    pub(crate) was_write: bool,
}

pub(crate) struct Shared {
    pub(crate) bytes: Vec<u8>,
    init: Vec<u64>,
    writes: Vec<u64>,
    /// `granule * readers + agent`: clock (22 bits), lane (6), byte mask (4).
    reads: Vec<u32>,
    readers: usize,
}

impl Shared {
    pub(crate) fn new(size: usize, readers: usize, races: bool) -> Self {
        let granules = size.div_ceil(GRANULE);
        Shared {
            bytes: vec![0; size],
            init: vec![0; size.div_ceil(64)],
            writes: vec![0; if races { granules } else { 0 }],
            reads: vec![0; if races { granules * readers } else { 0 }],
            readers,
        }
    }

    /// Starts a CTA: memory is unwritten again. Records stay: their clocks are below every clock to come.
    pub(crate) fn start(&mut self, clear_records: bool) {
        self.init.fill(0);
        // A garbage pattern, so that a kernel that relies on zeros fails even with checks off.
        self.bytes.fill(0xcb);
        if clear_records {
            self.writes.fill(0);
            self.reads.fill(0);
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

    pub(crate) fn mark_written(&mut self, off: usize, n: usize) {
        let (mut o, end) = (off, off + n);
        while o < end {
            let (w, b) = (o / 64, o % 64);
            let take = (64 - b).min(end - o);
            self.init[w] |= (!0u64 >> (64 - take)) << b;
            o += take;
        }
    }

    /// Whether the earlier write is ordered before an access of `warp`, `lane`.
    #[inline(always)]
    fn write_ordered(other: &Record, warp: u32, lane: u32, atomic: bool, clocks: &[u32]) -> bool {
        if other.in_flight {
            return false;
        }
        if other.atomic && atomic {
            return true;
        }
        if other.agent == warp {
            return other.lane == lane || other.clock < clocks[warp as usize];
        }
        other.clock <= clocks[other.agent as usize]
    }

    /// Checks and records a read by a lane. `record` is the agent that reads, at `clock`, when it is not the warp itself.
    #[inline(always)]
    pub(crate) fn on_read(
        &mut self,
        off: usize,
        n: usize,
        warp: u32,
        lane: u32,
        clocks: &[u32],
        record: Option<(u32, u32)>,
    ) -> Option<Conflict> {
        let mut o = off;
        let (agent, clock) = record.unwrap_or((warp, clocks[warp as usize]));
        while o < off + n {
            let g = o / GRANULE;
            let b = o % GRANULE;
            let take = (GRANULE - b).min(off + n - o);
            let mask = (((1u32 << take) - 1) << b) as u8;
            let other = Record::unpack(self.writes[g]);
            if other.mask & mask != 0 && !Self::write_ordered(&other, warp, lane, false, clocks) {
                return Some(Conflict { offset: o as u32, other, was_write: true });
            }
            let r = &mut self.reads[g * self.readers + agent as usize];
            if *r >> 10 == clock {
                let lane = if (*r >> 4) & 63 == lane { lane } else { MANY };
                *r = clock << 10 | lane << 4 | (*r & 15) | mask as u32;
            } else {
                *r = clock << 10 | lane << 4 | mask as u32;
            }
            o += take;
        }
        None
    }

    /// Checks and records a write by a lane. `same` says that the bytes already hold the value, which makes writes of
    /// several lanes of one warp harmless. `record` replaces what is put on record.
    #[inline(always)]
    pub(crate) fn on_write(
        &mut self,
        off: usize,
        n: usize,
        warp: u32,
        lane: u32,
        clocks: &[u32],
        same: bool,
        record: Record,
    ) -> Option<Conflict> {
        let mut o = off;
        while o < off + n {
            let g = o / GRANULE;
            let b = o % GRANULE;
            let take = (GRANULE - b).min(off + n - o);
            let mask = (((1u32 << take) - 1) << b) as u8;
            let other = Record::unpack(self.writes[g]);
            if other.mask & mask != 0
                && !Self::write_ordered(&other, warp, lane, record.atomic, clocks)
                && !(same && other.agent == warp && !other.in_flight)
            {
                return Some(Conflict { offset: o as u32, other, was_write: true });
            }
            let row = &self.reads[g * self.readers..(g + 1) * self.readers];
            for (a, &r) in row.iter().enumerate() {
                if r & 15 & mask as u32 == 0 {
                    continue;
                }
                let (clock, l) = (r >> 10, (r >> 4) & 63);
                let ordered = if a == warp as usize { l == lane || clock < clocks[a] } else { clock <= clocks[a] };
                // An atomic reads and writes at once; its own record as a reader is of an atomic too.
                if !ordered {
                    let other = Record { clock, agent: a as u32, lane: l, mask, atomic: false, in_flight: false };
                    return Some(Conflict { offset: o as u32, other, was_write: false });
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
