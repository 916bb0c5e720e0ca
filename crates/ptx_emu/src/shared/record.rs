//! What is on record of accesses to shared memory, packed in words.

/// A write on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) clock: u32,
    pub(crate) agent: u32,
    pub(crate) lane: u32,
    pub(crate) mask: u8,
    /// A cp.async that has not been waited for.
    pub(crate) in_flight: bool,
}

impl Record {
    #[inline(always)]
    pub(super) fn pack(self) -> u64 {
        (self.clock as u64) << 32
            | (self.lane as u64) << 24
            | (self.mask as u64) << 20
            | (self.in_flight as u64) << 18
            | self.agent as u64
    }

    #[inline(always)]
    pub(super) fn unpack(b: u64) -> Self {
        Record {
            clock: (b >> 32) as u32,
            lane: (b >> 24) as u32 & 31,
            mask: (b >> 20) as u8 & 15,
            in_flight: b >> 18 & 1 == 1,
            agent: b as u32 & 0xffff,
        }
    }
}

/// Reads on record, of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reads {
    pub(super) clock: u32,
    /// Lanes that read any of the bytes.
    pub(super) lanes: u32,
    pub(super) mask: u8,
    /// The lanes did not all read the same bytes: `Shared::mixed` has them.
    pub(super) mixed: bool,
}

impl Reads {
    #[inline(always)]
    pub(super) fn pack(self) -> u64 {
        (self.clock as u64) << 37 | (self.lanes as u64) << 5 | (self.mixed as u64) << 4 | self.mask as u64
    }

    #[inline(always)]
    pub(super) fn unpack(b: u64) -> Self {
        Reads { clock: (b >> 37) as u32, lanes: (b >> 5) as u32, mixed: b >> 4 & 1 == 1, mask: b as u8 & 15 }
    }
}

/// A conflict: the byte offset and the earlier access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) offset: u32,
    pub(crate) agent: u32,
    pub(crate) lanes: u32,
    pub(crate) in_flight: bool,
    pub(crate) was_write: bool,
    /// Of a plain read with a strong write.
    pub(crate) weak_read: bool,
}

impl Conflict {
    pub(crate) fn with_write(offset: usize, other: &Record) -> Self {
        Conflict {
            offset: offset as u32,
            agent: other.agent,
            lanes: 1 << other.lane,
            in_flight: other.in_flight,
            was_write: true,
            weak_read: false,
        }
    }
}
