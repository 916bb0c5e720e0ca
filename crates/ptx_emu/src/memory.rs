//! Global memory: allocations with guard gaps, a record of written bytes, and the history of accesses for the race check.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::error::EmuError;
use crate::history::{History, LAUNCHES};
use crate::holes::Holes;

/// First address that is ever given out: above every window of the generic address space.
const FIRST_ADDRESS: u64 = 1 << 44;
/// Alignment of an allocation, as `cuMemAlloc` gives.
const ALIGN: u64 = 256;
/// Unbacked bytes after each allocation, so that an access past the end never reaches the next one.
const GUARD: u64 = 1 << 20;

/// One allocation.
pub(crate) struct Alloc {
    pub(crate) base: u64,
    pub(crate) len: u64,
    words: Box<[AtomicU64]>,
    /// One bit a byte: somebody wrote it.
    init: Box<[AtomicU64]>,
    /// Bits of written bytes that are unknown; nearly always there are none.
    holes: OnceLock<Mutex<Holes>>,
    /// The accesses of the running launch, for the race check.
    history: OnceLock<History>,
    /// One bit a 32-byte sector touched by the running launch: reads, writes.
    touched: OnceLock<[Box<[AtomicU64]>; 2]>,
    pub(crate) read_only: bool,
}

pub(crate) fn zeroed(n: usize) -> Box<[AtomicU64]> {
    // The system hands out zero pages lazily, so a shadow that nobody touches costs no memory.
    let v: Vec<u64> = vec![0; n];
    let mut v = std::mem::ManuallyDrop::new(v);
    // SAFETY: AtomicU64 has the size, alignment and bit validity of u64; pointer, length and capacity are those of `v`.
    unsafe { Vec::from_raw_parts(v.as_mut_ptr().cast::<AtomicU64>(), v.len(), v.capacity()).into_boxed_slice() }
}

impl Alloc {
    fn new(base: u64, len: u64) -> Self {
        let words = len.div_ceil(8) as usize;
        Alloc {
            base,
            len,
            words: zeroed(words),
            init: zeroed(len.div_ceil(64) as usize),
            holes: OnceLock::new(),
            history: OnceLock::new(),
            touched: OnceLock::new(),
            read_only: false,
        }
    }

    fn ptr(&self, off: u64) -> *mut u8 {
        debug_assert!(off < self.len);
        // The cells are atomics, so writing through the shared pointer is allowed.
        self.words.as_ptr().cast_mut().cast::<u8>().wrapping_add(off as usize)
    }

    /// Reads `out.len()` bytes (a power of two up to 16, aligned to it; or any length byte by byte).
    pub(crate) fn load(&self, off: u64, out: &mut [u8]) {
        let p = self.ptr(off);
        // SAFETY: the caller checked the bounds; the address is aligned to the access because allocations are aligned
        // to 256 and `off` is a multiple of the size; concurrent accesses of other CTAs are atomic as well.
        unsafe {
            match out.len() {
                1 => out[0] = AtomicU8::from_ptr(p).load(Relaxed),
                2 if off.is_multiple_of(2) => {
                    out.copy_from_slice(&AtomicU16::from_ptr(p.cast()).load(Relaxed).to_le_bytes());
                }
                4 if off.is_multiple_of(4) => {
                    out.copy_from_slice(&AtomicU32::from_ptr(p.cast()).load(Relaxed).to_le_bytes());
                }
                n if n.is_multiple_of(8) && off.is_multiple_of(8) => {
                    for (i, c) in out.chunks_exact_mut(8).enumerate() {
                        c.copy_from_slice(&self.words[off as usize / 8 + i].load(Relaxed).to_le_bytes());
                    }
                }
                _ => {
                    for (i, b) in out.iter_mut().enumerate() {
                        *b = AtomicU8::from_ptr(p.add(i)).load(Relaxed);
                    }
                }
            }
        }
    }

    /// Writes bytes, with the conditions of `load`.
    pub(crate) fn store(&self, off: u64, data: &[u8]) {
        let p = self.ptr(off);
        // SAFETY: as in `load`.
        unsafe {
            match data.len() {
                1 => AtomicU8::from_ptr(p).store(data[0], Relaxed),
                2 if off.is_multiple_of(2) => {
                    AtomicU16::from_ptr(p.cast()).store(u16::from_le_bytes([data[0], data[1]]), Relaxed);
                }
                4 if off.is_multiple_of(4) => {
                    let v = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
                    AtomicU32::from_ptr(p.cast()).store(v, Relaxed);
                }
                n if n.is_multiple_of(8) && off.is_multiple_of(8) => {
                    for (i, c) in data.chunks_exact(8).enumerate() {
                        let v = u64::from_le_bytes(c.try_into().expect("eight bytes"));
                        self.words[off as usize / 8 + i].store(v, Relaxed);
                    }
                }
                _ => {
                    for (i, b) in data.iter().enumerate() {
                        AtomicU8::from_ptr(p.add(i)).store(*b, Relaxed);
                    }
                }
            }
        }
    }

    /// Replaces a value of 2, 4 or 8 bytes by `f` of it, atomically; returns the old one.
    pub(crate) fn update(&self, off: u64, bytes: u32, f: impl Fn(u64) -> u64) -> u64 {
        let p = self.ptr(off);
        // SAFETY: as in `load`; the caller checked the alignment.
        unsafe {
            match bytes {
                2 => {
                    let a = AtomicU16::from_ptr(p.cast());
                    a.fetch_update(Relaxed, Relaxed, |v| Some(f(v as u64) as u16)).unwrap_or_default() as u64
                }
                4 => {
                    let a = AtomicU32::from_ptr(p.cast());
                    a.fetch_update(Relaxed, Relaxed, |v| Some(f(v as u64) as u32)).unwrap_or_default() as u64
                }
                _ => {
                    let a = AtomicU64::from_ptr(p.cast());
                    a.fetch_update(Relaxed, Relaxed, |v| Some(f(v))).unwrap_or_default()
                }
            }
        }
    }

    /// Offset of the first byte of the range that nobody wrote.
    pub(crate) fn first_unwritten(&self, off: u64, n: u64) -> Option<u64> {
        let (w, b) = ((off / 64) as usize, off % 64);
        if b + n <= 64 {
            let want = (!0u64 >> (64 - n)) << b;
            let missing = want & !self.init[w].load(Relaxed);
            return (missing != 0).then(|| (w as u64) * 64 + missing.trailing_zeros() as u64);
        }
        (off..off + n).find(|o| self.init[(o / 64) as usize].load(Relaxed) >> (o % 64) & 1 == 0)
    }

    #[cold]
    fn fill_holes(&self, off: u64, n: u64) {
        if let Some(mut holes) = self.holes() {
            holes.fill(off, n);
        }
    }

    #[cold]
    fn holes(&self) -> Option<MutexGuard<'_, Holes>> {
        self.holes.get().map(|h| h.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// Offset of the first byte of the range with a bit that nobody wrote.
    pub(crate) fn first_unknown(&self, off: u64, n: u64) -> Option<u64> {
        let hole = self.holes().and_then(|h| h.first(off, n));
        let unwritten = self.first_unwritten(off, n);
        hole.into_iter().chain(unwritten).min()
    }

    /// The unknown bits of written bytes, if there are any.
    #[inline(always)]
    pub(crate) fn unknown<const N: usize>(&self, off: u64, n: usize) -> Option<[u8; N]> {
        if self.holes.get().is_none() { None } else { self.holes()?.get(off, n) }
    }

    /// The range was written with bytes that have these unknown bits, if any.
    pub(crate) fn mark_stored(&self, off: u64, n: u64, unknown: Option<&[u8]>) {
        self.mark_written(off, n);
        if let Some(unknown) = unknown {
            let holes = self.holes.get_or_init(Mutex::default);
            holes.lock().unwrap_or_else(|e| e.into_inner()).put(off, unknown);
        }
    }

    /// The range, of whole words of the record, is as if nobody had written it.
    pub(crate) fn mark_unwritten(&self, off: u64, n: u64) {
        debug_assert!(off.is_multiple_of(64) && n.is_multiple_of(64));
        (off / 64..(off + n) / 64).for_each(|w| self.init[w as usize].store(0, Relaxed));
    }

    pub(crate) fn mark_written(&self, off: u64, n: u64) {
        if self.holes.get().is_some() {
            self.fill_holes(off, n);
        }
        let mut o = off;
        let end = off + n;
        while o < end {
            let (w, b) = ((o / 64) as usize, o % 64);
            let take = (64 - b).min(end - o);
            let bits = (!0u64 >> (64 - take)) << b;
            if self.init[w].load(Relaxed) & bits != bits {
                self.init[w].fetch_or(bits, Relaxed);
            }
            o += take;
        }
    }

    /// Notes a touched sector; true when it is the first touch of this launch.
    pub(crate) fn touch(&self, sector: u64, write: bool) -> bool {
        let t = self.touched.get_or_init(|| {
            let n = self.len.div_ceil(32 * 64) as usize;
            [zeroed(n), zeroed(n)]
        });
        let cell = &t[write as usize][(sector / 64) as usize];
        let bit = 1 << (sector % 64);
        cell.load(Relaxed) & bit == 0 && cell.fetch_or(bit, Relaxed) & bit == 0
    }

    fn start_launch(&self, clear_races: bool) {
        if let Some(t) = self.touched.get() {
            for cell in t.iter().flat_map(|b| b.iter()) {
                cell.store(0, Relaxed);
            }
        }
        if clear_races && let Some(h) = self.history.get() {
            h.clear();
        }
    }

    pub(crate) fn history(&self) -> &History {
        self.history.get_or_init(|| History::new(self.base, self.len))
    }
}

/// All allocations of an emulator.
pub(crate) struct GlobalMemory {
    live: BTreeMap<u64, Arc<Alloc>>,
    freed: BTreeMap<u64, u64>,
    next: u64,
    in_use: u64,
    limit: u64,
    launches: u32,
}

impl GlobalMemory {
    pub(crate) fn new(limit: u64) -> Self {
        GlobalMemory {
            live: BTreeMap::new(),
            freed: BTreeMap::new(),
            next: FIRST_ADDRESS,
            in_use: 0,
            limit,
            launches: 0,
        }
    }

    pub(crate) fn alloc(&mut self, bytes: u64) -> Result<u64, EmuError> {
        let len = bytes.max(1);
        if len > self.limit.saturating_sub(self.in_use) {
            return Err(EmuError::OutOfMemory { requested: bytes, in_use: self.in_use, limit: self.limit });
        }
        let base = self.next;
        self.next += len.div_ceil(ALIGN) * ALIGN + GUARD;
        self.in_use += len;
        self.live.insert(base, Arc::new(Alloc::new(base, len)));
        Ok(base)
    }

    pub(crate) fn protect(&mut self, base: u64) {
        if let Some(a) = self.live.get_mut(&base).and_then(Arc::get_mut) {
            a.read_only = true;
        }
    }

    pub(crate) fn free(&mut self, ptr: u64) -> Result<(), EmuError> {
        match self.live.remove(&ptr) {
            Some(a) => {
                self.in_use -= a.len;
                self.freed.insert(ptr, a.len);
                Ok(())
            }
            None => Err(EmuError::InvalidDeviceAddress {
                address: ptr,
                bytes: 0,
                what: match self.freed.get(&ptr) {
                    Some(n) => format!("this allocation of {n} bytes was freed before"),
                    None => "not the start of an allocation".to_owned(),
                },
            }),
        }
    }

    /// The allocation that holds the whole range, and the offset in it.
    pub(crate) fn range(&self, ptr: u64, bytes: u64) -> Result<(&Arc<Alloc>, u64), EmuError> {
        let bad = |what: String| EmuError::InvalidDeviceAddress { address: ptr, bytes, what };
        if let Some((_, a)) = self.live.range(..=ptr).next_back() {
            let off = ptr - a.base;
            if off <= a.len && bytes <= a.len - off {
                return Ok((a, off));
            }
            if off < a.len {
                return Err(bad(format!("reaches past the end of the allocation of {} bytes at {:#x}", a.len, a.base)));
            }
        }
        if let Some((&b, &n)) = self.freed.range(..=ptr).next_back()
            && ptr - b < n
        {
            return Err(bad(format!("in the allocation of {n} bytes at {b:#x}, which was freed")));
        }
        Err(bad("in no allocation".to_owned()))
    }

    /// The view that a launch works on, and the launch's number.
    pub(crate) fn snapshot(&mut self) -> (GlobalView, u32) {
        self.launches = self.launches.wrapping_add(1);
        // Records carry the number modulo `LAUNCHES`: clear them before a number comes round again.
        let clear = self.launches.is_multiple_of(LAUNCHES);
        for a in self.live.values() {
            a.start_launch(clear);
        }
        let view = GlobalView {
            allocs: self.live.values().cloned().collect(),
            freed: self.freed.iter().map(|(&b, &n)| (b, n)).collect(),
        };
        (view, self.launches % LAUNCHES)
    }
}

/// The allocations as they are during one launch, sorted by address.
pub(crate) struct GlobalView {
    allocs: Vec<Arc<Alloc>>,
    freed: Vec<(u64, u64)>,
}

impl GlobalView {
    /// Index of the allocation that holds the address.
    pub(crate) fn find(&self, addr: u64) -> Option<usize> {
        let i = self.allocs.partition_point(|a| a.base <= addr);
        (i > 0 && addr - self.allocs[i - 1].base < self.allocs[i - 1].len).then(|| i - 1)
    }

    pub(crate) fn get(&self, i: usize) -> &Alloc {
        &self.allocs[i]
    }

    pub(crate) fn len(&self) -> usize {
        self.allocs.len()
    }

    /// The freed allocation that held the address.
    pub(crate) fn find_freed(&self, addr: u64) -> Option<(u64, u64)> {
        let i = self.freed.partition_point(|a| a.0 <= addr);
        self.freed[..i].last().copied().filter(|(b, n)| addr - b < *n)
    }

    /// The closest allocation below the address, for messages.
    pub(crate) fn below(&self, addr: u64) -> Option<&Alloc> {
        let i = self.allocs.partition_point(|a| a.base <= addr);
        self.allocs[..i].last().map(|a| &**a)
    }
}
