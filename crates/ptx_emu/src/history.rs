//! The history of global memory that tells races: for each four bytes, the accesses that no later one has made superfluous.
//!
//! Three sets are kept for a granule: plain writes, plain reads, and strong accesses (atomics, and loads and stores with an order).
//! Strong accesses do not race with each other, so they never replace a plain one: a thread's atomic does not hide its earlier store.
//! An access leaves its set when a later one of the same set is ordered after it and touches all of its bytes, since whoever is
//! ordered after the later one is ordered after both; a plain write that races with nothing empties the other two sets.
//!
//! A set nearly always has one member, which fits in a word. Others lie in a table beside (`Spilled`), except for one kind: in a
//! kernel whose CTAs cannot order each other, two CTAs that both touched the bytes say all that matters (`Many`), for whoever
//! conflicts with one of them is reported.
//!
//! CTAs on several threads work on the same words. Each records its access before it looks for the others', with atomic exchanges,
//! so that of two conflicting accesses the second one sees the first.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Bytes of one granule.
pub(crate) const GRANULE: u64 = 4;

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    /// `same`: memory held the value already, so that lanes of one warp that write it do not race.
    Write {
        same: bool,
    },
    /// A load with an order.
    StrongRead,
    /// An atomic or a store with an order.
    StrongWrite,
}

/// An access on record: lanes of one warp, at the warp's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Linear number of the CTA, modulo 2^21.
    pub(crate) cta: u32,
    pub(crate) warp: u32,
    pub(crate) lanes: u32,
    /// Bytes of the granule.
    pub(crate) mask: u8,
    /// In the set of strong accesses: it writes.
    pub(crate) writes: bool,
    /// The warp's clock since the CTA began. `UNKNOWN` stands for none.
    pub(crate) clock: u32,
}

/// CTA numbers that records tell apart.
pub(crate) const CTAS: u32 = 1 << 21;
/// Launches that records tell apart.
pub(crate) const LAUNCHES: u32 = 1 << 9;
const CLOCK_BITS: u32 = 17;
/// A clock that a record cannot hold: the access is taken as ordered.
const UNKNOWN: u32 = (1 << CLOCK_BITS) - 1;

/// A set in a word: tag in bits 62 and 63, launch in 53 to 61.
#[derive(Debug, Clone, Copy)]
enum Set {
    Empty,
    One(Access),
    /// Two CTAs that both touched the bytes, and whether any did with a strong write.
    Many(u32, u32, u8, bool),
    Spilled,
}

impl Set {
    fn pack(self, launch: u64) -> u64 {
        let head = |tag: u64| tag << 62 | launch << 53;
        match self {
            Set::Empty => 0,
            Set::One(a) => {
                head(1)
                    | (a.cta as u64) << 32
                    | (a.warp as u64) << 27
                    | (a.lanes.trailing_zeros() as u64) << 22
                    | (a.mask as u64) << 18
                    | (a.writes as u64) << 17
                    | a.clock.min(UNKNOWN) as u64
            }
            Set::Many(a, b, mask, writes) => {
                head(2) | (a as u64) << 32 | (b as u64) << 11 | (mask as u64) << 1 | writes as u64
            }
            Set::Spilled => head(3),
        }
    }

    #[inline(always)]
    fn unpack(bits: u64, launch: u64) -> Set {
        if bits == 0 || bits >> 53 & (LAUNCHES as u64 - 1) != launch {
            return Set::Empty;
        }
        let cta = (bits >> 32) as u32 & (CTAS - 1);
        match bits >> 62 {
            1 => Set::One(Access {
                cta,
                warp: (bits >> 27) as u32 & 31,
                lanes: 1 << (bits >> 22 & 31),
                mask: (bits >> 18) as u8 & 15,
                writes: bits >> 17 & 1 == 1,
                clock: bits as u32 & UNKNOWN,
            }),
            2 => Set::Many(cta, (bits >> 11) as u32 & (CTAS - 1), (bits >> 1) as u8 & 15, bits & 1 == 1),
            _ => Set::Spilled,
        }
    }
}

type Place = (u64, u8);

/// Sets of more than one member, by the address of the granule and the kind of the set.
pub(crate) struct Spilled {
    shards: Vec<Mutex<HashMap<Place, Vec<Access>>>>,
}

/// More than threads that are likely to meet.
const SHARDS: u64 = 64;

impl Default for Spilled {
    fn default() -> Self {
        Spilled { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Spilled {
    fn with<T>(&self, place: Place, f: impl FnOnce(&mut HashMap<Place, Vec<Access>>) -> T) -> T {
        let shard = &self.shards[((place.0 / GRANULE) % SHARDS) as usize];
        f(&mut shard.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

/// Who accesses, and what is ordered before.
pub(crate) struct Actor<'a, F: Fn(&Access) -> bool> {
    pub(crate) launch: u32,
    /// Its record, for all bytes.
    pub(crate) me: Access,
    pub(crate) kind: Kind,
    /// Whether an earlier access by others is ordered before this one.
    pub(crate) ordered: F,
    /// CTAs of the kernel can order each other.
    pub(crate) ctas_order: bool,
    pub(crate) spilled: &'a Spilled,
}

/// An earlier access that the new one races with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Race {
    pub(crate) off: u64,
    pub(crate) other: Access,
    pub(crate) other_writes: bool,
    pub(crate) other_strong: bool,
}

const WRITES: u8 = 0;
const READS: u8 = 1;
const STRONG: u8 = 2;

/// The sets of an allocation.
pub(crate) struct History {
    base: u64,
    sets: [Box<[AtomicU64]>; 2],
    strong: std::sync::OnceLock<Box<[AtomicU64]>>,
}

impl History {
    pub(crate) fn new(base: u64, len: u64) -> Self {
        let n = len.div_ceil(GRANULE) as usize;
        let zeroed = crate::memory::zeroed;
        History { base, sets: [zeroed(n), zeroed(n)], strong: std::sync::OnceLock::new() }
    }

    pub(crate) fn clear(&self) {
        for cell in self.sets.iter().chain(self.strong.get()).flat_map(|s| s.iter()) {
            cell.store(0, SeqCst);
        }
    }

    /// Records an access to a range and returns an earlier one that it races with.
    pub(crate) fn access<F: Fn(&Access) -> bool>(&self, off: u64, n: u64, actor: &Actor<'_, F>) -> Option<Race> {
        let mut o = off;
        while o < off + n {
            let g = (o / GRANULE) as usize;
            let b = o % GRANULE;
            let take = (GRANULE - b).min(off + n - o);
            let me = Access { mask: (((1u32 << take) - 1) << b) as u8, ..actor.me };
            if let Some((other, set)) = self.granule(g, me, actor) {
                let writes = set == WRITES || (set == STRONG && other.writes);
                return Some(Race { off: o, other, other_writes: writes, other_strong: set == STRONG });
            }
            o += take;
        }
        None
    }

    #[inline(always)]
    fn granule<F: Fn(&Access) -> bool>(&self, g: usize, me: Access, actor: &Actor<'_, F>) -> Option<(Access, u8)> {
        let cell = |set: u8| match set {
            STRONG => self.strong.get().map(|s| &s[g]),
            set => Some(&self.sets[set as usize][g]),
        };
        let place = |set: u8| (self.base + g as u64 * GRANULE, set);
        let check = |set: u8, counts: fn(&Access) -> bool| {
            let cell = cell(set)?;
            conflict(cell, place(set), me, counts, actor).map(|a| (a, set))
        };
        match actor.kind {
            Kind::Read => {
                record(&self.sets[READS as usize][g], place(READS), me, actor);
                check(WRITES, |_| true).or_else(|| check(STRONG, |a| a.writes))
            }
            Kind::Write { .. } => {
                // The new record replaces the old ones, so those are looked at in the same step.
                let own = record(&self.sets[WRITES as usize][g], place(WRITES), me, actor).map(|a| (a, WRITES));
                let found = own.or_else(|| check(READS, |_| true)).or_else(|| check(STRONG, |_| true));
                if found.is_none() {
                    for set in [READS, STRONG] {
                        if let Some(cell) = cell(set) {
                            cover(cell, place(set), me.mask, actor);
                        }
                    }
                }
                found
            }
            Kind::StrongRead | Kind::StrongWrite => {
                let writes = actor.kind == Kind::StrongWrite;
                let strong = self.strong.get_or_init(|| crate::memory::zeroed(self.sets[0].len()));
                record(&strong[g], place(STRONG), Access { writes, ..me }, actor);
                check(WRITES, |_| true).or_else(|| if writes { check(READS, |_| true) } else { None })
            }
        }
    }
}

/// Whether two accesses are of one thread. Several lanes count as one only where they are the same.
fn same_thread(a: &Access, b: &Access) -> bool {
    a.cta == b.cta && a.warp == b.warp && a.lanes & b.lanes == a.lanes
}

fn ordered<F: Fn(&Access) -> bool>(a: &Access, me: &Access, actor: &Actor<'_, F>) -> bool {
    (a.clock == UNKNOWN && (a.cta == me.cta || actor.ctas_order))
        || (same_thread(a, me) && me.lanes.is_power_of_two())
        || (a.clock != UNKNOWN && (actor.ordered)(a))
}

fn races<F: Fn(&Access) -> bool>(a: &Access, me: &Access, actor: &Actor<'_, F>) -> bool {
    if a.mask & me.mask == 0 || ordered(a, me, actor) {
        return false;
    }
    !(actor.kind == Kind::Write { same: true } && a.cta == me.cta && a.warp == me.warp)
}

/// The members of `Many` as single accesses, of which nothing but the CTA is known.
fn expand(a: u32, b: u32, mask: u8, writes: bool) -> [Access; 2] {
    [a, b].map(|cta| Access { cta, warp: 0, lanes: !0, mask, writes, clock: UNKNOWN })
}

/// The first member of a set that counts and that the access races with.
#[inline(always)]
fn conflict<F: Fn(&Access) -> bool>(
    cell: &AtomicU64,
    place: Place,
    me: Access,
    counts: fn(&Access) -> bool,
    actor: &Actor<'_, F>,
) -> Option<Access> {
    let bits = cell.load(SeqCst);
    let hit = |a: &Access| counts(a) && races(a, &me, actor);
    match Set::unpack(bits, actor.launch as u64) {
        Set::Empty => None,
        Set::One(a) => hit(&a).then_some(a),
        Set::Many(a, b, mask, writes) => expand(a, b, mask, writes).into_iter().find(hit),
        Set::Spilled => actor.spilled.with(place, |map| map.get(&place).and_then(|v| v.iter().copied().find(hit))),
    }
}

/// Puts an access into a set. For a plain write, returns a member that it races with.
#[inline(always)]
fn record<F: Fn(&Access) -> bool>(cell: &AtomicU64, place: Place, me: Access, actor: &Actor<'_, F>) -> Option<Access> {
    let launch = actor.launch as u64;
    let writes = matches!(actor.kind, Kind::Write { .. });
    let alone = me.lanes.is_power_of_two();
    loop {
        let bits = cell.load(SeqCst);
        let next = match Set::unpack(bits, launch) {
            Set::Empty if alone => Set::One(me),
            Set::One(a) => {
                if writes && races(&a, &me, actor) {
                    return Some(a);
                }
                if alone && a.mask & !me.mask == 0 && a.writes <= me.writes && ordered(&a, &me, actor) {
                    Set::One(me)
                } else if a.cta != me.cta && a.mask == me.mask && !actor.ctas_order {
                    Set::Many(a.cta, me.cta, me.mask, a.writes | me.writes)
                } else {
                    Set::Spilled
                }
            }
            Set::Many(a, b, mask, strong) if me.mask & !mask == 0 => Set::Many(a, b, mask, strong | me.writes),
            _ => Set::Spilled,
        };
        if let Set::Spilled = next {
            match spill(cell, place, bits, me, actor) {
                Ok(found) => return found,
                Err(()) => continue,
            }
        }
        let next = next.pack(launch);
        if next == bits || cell.compare_exchange(bits, next, SeqCst, SeqCst).is_ok() {
            return None;
        }
    }
}

/// Puts an access into a set that needs the table. Fails when another thread changed the set meanwhile.
#[cold]
fn spill<F: Fn(&Access) -> bool>(
    cell: &AtomicU64,
    place: Place,
    bits: u64,
    me: Access,
    actor: &Actor<'_, F>,
) -> Result<Option<Access>, ()> {
    let launch = actor.launch as u64;
    actor.spilled.with(place, |map| {
        if cell.load(SeqCst) != bits {
            return Err(());
        }
        let list = map.entry(place).or_default();
        match Set::unpack(bits, launch) {
            Set::Empty => list.clear(),
            Set::One(a) => *list = vec![a],
            Set::Many(a, b, mask, writes) => *list = expand(a, b, mask, writes).to_vec(),
            Set::Spilled => {}
        }
        if matches!(actor.kind, Kind::Write { .. })
            && let Some(a) = list.iter().find(|a| races(a, &me, actor))
        {
            let a = *a;
            return if cell.compare_exchange(bits, Set::Spilled.pack(launch), SeqCst, SeqCst).is_ok() {
                Ok(Some(a))
            } else {
                Err(())
            };
        }
        list.retain(|a| {
            let superfluous = a.mask & !me.mask == 0 && (a.writes <= me.writes) && ordered(a, &me, actor);
            !superfluous || a.clock == UNKNOWN
        });
        let fits = |a: &&mut Access| {
            (a.cta, a.warp, a.mask, a.writes, a.clock) == (me.cta, me.warp, me.mask, me.writes, me.clock)
        };
        match list.iter_mut().rev().find(fits) {
            Some(a) => a.lanes |= me.lanes,
            None => list.push(me),
        }
        let other = list.iter().find(|a| a.cta != me.cta && a.mask == me.mask).map(|a| a.cta);
        let next = match other {
            Some(cta) if !actor.ctas_order && list.iter().all(|a| a.mask & !me.mask == 0) => {
                Set::Many(cta, me.cta, me.mask, list.iter().any(|a| a.writes))
            }
            _ => Set::Spilled,
        };
        let kept = matches!(next, Set::Spilled);
        let done = cell.compare_exchange(bits, next.pack(launch), SeqCst, SeqCst).is_ok();
        if !kept || !done {
            map.remove(&place);
        }
        if done { Ok(None) } else { Err(()) }
    })
}

/// A plain write that races with nothing is ordered after all members of a set: its bytes need them no more.
#[inline(always)]
fn cover<F: Fn(&Access) -> bool>(cell: &AtomicU64, place: Place, mask: u8, actor: &Actor<'_, F>) {
    let launch = actor.launch as u64;
    let bits = cell.load(SeqCst);
    let next = match Set::unpack(bits, launch) {
        Set::Empty => return,
        Set::One(a) if a.mask & !mask == 0 => Set::Empty,
        Set::One(a) => Set::One(Access { mask: a.mask & !mask, ..a }),
        // Nobody could write without a race.
        Set::Many(..) => return,
        Set::Spilled => {
            return actor.spilled.with(place, |map| {
                let Some(list) = map.get_mut(&place) else { return };
                list.retain_mut(|a| {
                    a.mask &= !mask;
                    a.mask != 0
                });
                if list.is_empty() && cell.compare_exchange(bits, 0, SeqCst, SeqCst).is_ok() {
                    map.remove(&place);
                }
            });
        }
    };
    // Another thread that changed it meanwhile races with this one, which one of them finds.
    let _ = cell.compare_exchange(bits, next.pack(launch), SeqCst, SeqCst);
}
