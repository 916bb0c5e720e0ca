//! The history of global memory that tells races: for each four bytes, the accesses that no later one has made superfluous.
//!
//! Three sets are kept for a granule: plain writes, plain reads, and strong accesses (atomics, and loads and stores with an order).
//! Strong accesses in each other's scope do not race, so they never replace a plain one: a thread's atomic does not hide its earlier store.
//! An access leaves its set when a later one of the same set is ordered after it and touches all of its bytes, since whoever is
//! ordered after the later one is ordered after both; a plain write that races with nothing empties the other two sets.
//!
//! A set nearly always has one member, which fits in a word. Others lie in a table beside (`Spilled`), except for one kind: in a
//! kernel whose CTAs cannot order each other, two CTAs that both touched the bytes say all that matters (`Many`), for whoever
//! conflicts with one of them is reported.
//!
//! CTAs on several threads work on the same words. Each records its access before it looks for the others', with atomic exchanges,
//! so that of two conflicting accesses the second one sees the first.

mod set;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};

pub(crate) use set::{Access, CTAS, LAUNCHES};
use set::{Set, UNKNOWN};

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
    /// A load with an order. `narrow`: its scope is the CTA, so that for other CTAs it is a plain one.
    StrongRead {
        narrow: bool,
    },
    /// An atomic or a store with an order.
    StrongWrite {
        narrow: bool,
    },
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
    /// Plain reads against strong writes count as races.
    pub(crate) weak_reads: bool,
    pub(crate) spilled: &'a Spilled,
}

/// An earlier access that the new one races with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Race {
    pub(crate) off: u64,
    pub(crate) other: Access,
    pub(crate) other_writes: bool,
    pub(crate) other_strong: bool,
    /// Of a plain read against a strong write in whose scope it is.
    pub(crate) weak_read: bool,
}

const WRITES: u8 = 0;
const READS: u8 = 1;
const STRONG: u8 = 2;
/// Strong accesses whose scope is the CTA.
const NARROW: u8 = 3;

/// The sets of an allocation.
pub(crate) struct History {
    base: u64,
    sets: [Box<[AtomicU64]>; 2],
    /// Of strong accesses, which few kernels make: `STRONG` and `NARROW`.
    strong: [OnceLock<Box<[AtomicU64]>>; 2],
}

impl History {
    pub(crate) fn new(base: u64, len: u64) -> Self {
        let n = len.div_ceil(GRANULE) as usize;
        let zeroed = crate::memory::zeroed;
        History { base, sets: [zeroed(n), zeroed(n)], strong: Default::default() }
    }

    pub(crate) fn clear(&self) {
        for cell in self.sets.iter().chain(self.strong.iter().filter_map(OnceLock::get)).flat_map(|s| s.iter()) {
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
                let strong = set >= STRONG;
                let writes = set == WRITES || (strong && other.writes);
                let weak_read = match actor.kind {
                    Kind::Read => strong && !(set == NARROW && other.cta != me.cta),
                    Kind::StrongWrite { narrow } => set == READS && !(narrow && other.cta != me.cta),
                    _ => false,
                };
                return Some(Race { off: o, other, other_writes: writes, other_strong: strong, weak_read });
            }
            o += take;
        }
        None
    }

    /// The word of a set, if any access was ever put into it.
    #[inline(always)]
    fn cell(&self, g: usize, set: u8) -> Option<&AtomicU64> {
        match set {
            WRITES | READS => Some(&self.sets[set as usize][g]),
            _ => self.strong[(set - STRONG) as usize].get().map(|s| &s[g]),
        }
    }

    fn place(&self, g: usize, set: u8) -> Place {
        (self.base + g as u64 * GRANULE, set)
    }

    /// A member of a set that counts and that the access races with.
    #[inline(always)]
    fn check<F: Fn(&Access) -> bool>(
        &self,
        g: usize,
        set: u8,
        me: Access,
        counts: impl Fn(&Access) -> bool,
        actor: &Actor<'_, F>,
    ) -> Option<(Access, u8)> {
        conflict(self.cell(g, set)?, self.place(g, set), me, counts, actor).map(|a| (a, set))
    }

    #[inline(always)]
    fn granule<F: Fn(&Access) -> bool>(&self, g: usize, me: Access, actor: &Actor<'_, F>) -> Option<(Access, u8)> {
        let all = |_: &Access| true;
        match actor.kind {
            Kind::Read => {
                record(&self.sets[READS as usize][g], self.place(g, READS), me, actor);
                let strict = actor.weak_reads;
                self.check(g, WRITES, me, all, actor)
                    .or_else(|| if strict { self.check(g, STRONG, me, |a| a.writes, actor) } else { None })
                    .or_else(|| self.check(g, NARROW, me, |a| a.writes && (strict || a.cta != me.cta), actor))
            }
            Kind::Write { .. } => {
                // The new record replaces the old ones, so those are looked at in the same step.
                let own = record(&self.sets[WRITES as usize][g], self.place(g, WRITES), me, actor);
                let found = own
                    .map(|a| (a, WRITES))
                    .or_else(|| [READS, STRONG, NARROW].into_iter().find_map(|s| self.check(g, s, me, all, actor)));
                if found.is_none() {
                    for set in [READS, STRONG, NARROW] {
                        if let Some(cell) = self.cell(g, set) {
                            cover(cell, self.place(g, set), me.mask, actor);
                        }
                    }
                }
                found
            }
            Kind::StrongRead { narrow } => self.strong_access(g, Access { writes: false, ..me }, narrow, actor),
            Kind::StrongWrite { narrow } => self.strong_access(g, Access { writes: true, ..me }, narrow, actor),
        }
    }

    fn strong_access<F: Fn(&Access) -> bool>(
        &self,
        g: usize,
        me: Access,
        narrow: bool,
        actor: &Actor<'_, F>,
    ) -> Option<(Access, u8)> {
        let set = if narrow { NARROW } else { STRONG };
        let cells = self.strong[(set - STRONG) as usize].get_or_init(|| crate::memory::zeroed(self.sets[0].len()));
        record(&cells[g], self.place(g, set), me, actor);
        // Strong accesses race when one of them is not in the scope of the other.
        let apart = |a: &Access| a.cta != me.cta && (a.writes || me.writes);
        self.check(g, WRITES, me, |_| true, actor)
            .or_else(|| {
                let counts = |a: &Access| me.writes && (actor.weak_reads || (narrow && a.cta != me.cta));
                self.check(g, READS, me, counts, actor)
            })
            .or_else(|| self.check(g, NARROW, me, apart, actor))
            .or_else(|| if narrow { self.check(g, STRONG, me, apart, actor) } else { None })
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
    a.mask & me.mask != 0 && !ordered(a, me, actor)
}

/// Whether a plain write races with an earlier one. Lanes of one warp may write the same value.
fn writes_race<F: Fn(&Access) -> bool>(a: &Access, me: &Access, actor: &Actor<'_, F>) -> bool {
    let same = actor.kind == Kind::Write { same: true } && a.cta == me.cta && a.warp == me.warp;
    !same && races(a, me, actor)
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
    counts: impl Fn(&Access) -> bool,
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
                if writes && writes_race(&a, &me, actor) {
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
            && let Some(a) = list.iter().find(|a| writes_race(a, &me, actor))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn access(cta: u32, warp: u32, lanes: u32, clock: u32) -> Access {
        Access { cta, warp, lanes, mask: 0, writes: false, clock }
    }

    /// Accesses that nothing orders, of CTAs that cannot order each other.
    fn touch(h: &History, spilled: &Spilled, off: u64, n: u64, me: Access, kind: Kind) -> Option<Race> {
        h.access(
            off,
            n,
            &Actor { launch: 5, me, kind, ordered: |_: &Access| false, ctas_order: false, weak_reads: true, spilled },
        )
    }

    #[test]
    fn bytes_of_a_granule_are_told_apart() {
        let (h, s) = (History::new(4096, 64), Spilled::default());
        for lane in 0..4 {
            assert_eq!(touch(&h, &s, 8 + lane, 1, access(0, 0, 1 << lane, 1), Kind::Write { same: false }), None);
        }
        let race = touch(&h, &s, 10, 2, access(0, 0, 1 << 9, 1), Kind::Read).unwrap();
        assert_eq!((race.other.lanes, race.other_writes), (1 << 2, true));
        assert_eq!(touch(&h, &s, 12, 4, access(0, 0, 1 << 9, 1), Kind::Read), None);
    }

    #[test]
    fn of_two_threads_that_conflict_at_once_one_is_told() {
        // Many CTAs read and one writes, on as many threads: whoever comes second sees the other.
        for round in 0..200 {
            let (h, s) = (History::new(4096, 64), Spilled::default());
            let found: usize = std::thread::scope(|scope| {
                let (h, s) = (&h, &s);
                let run = move |cta: u32| {
                    let kind = if cta == round % 4 { Kind::Write { same: false } } else { Kind::Read };
                    touch(h, s, 0, 4, access(cta, 0, 1, 1), kind).is_some() as usize
                };
                let threads: Vec<_> = (0..4).map(|cta| scope.spawn(move || run(cta))).collect();
                threads.into_iter().map(|t| t.join().expect("it ends")).sum()
            });
            assert!(found > 0, "round {round}");
        }
    }
}
