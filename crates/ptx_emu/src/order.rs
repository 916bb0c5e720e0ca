//! What happened before what: clocks of warps and of the engines that work for them, and what each lane has learnt of them.
//!
//! A warp's clock advances with everything that may order its accesses after others' or others' after its own. Threads are
//! ordered one by one, as the PTX memory model has it: running in one warp orders nothing, nor do `shfl.sync` and its like.
//! `bar.warp.sync`, barriers, mbarriers and releasing atomics do, for the lanes that execute them. So a lane that arrives at an
//! mbarrier publishes what it did itself and what it has learnt, and of the other lanes of its warp only what a `bar.warp.sync`
//! or a barrier has told it. Nearly always all lanes know the same: that is kept once, and what single lanes know beside it.

use std::sync::Arc;

use crate::alu::LANES;
use crate::machine::lanes;
use crate::remote::{Foreign, Remote};

/// A lane of a warp, up to a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LaneClock {
    agent: u32,
    lane: u32,
    clock: u32,
}

impl LaneClock {
    fn place(&self) -> (u32, u32) {
        (self.agent, self.lane)
    }
}

/// Everything that happened until these clocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Clocks {
    /// For each agent, a clock up to which all of its lanes are included.
    all: Vec<u32>,
    /// Lanes that are included up to a later one, in order of agent and lane.
    some: Vec<LaneClock>,
    /// What happened in other CTAs.
    pub(crate) remote: Remote,
}

impl Clocks {
    pub(crate) fn new(agents: usize, clock: u32) -> Self {
        Clocks { all: vec![clock; agents], some: Vec::new(), remote: Remote::default() }
    }

    fn reset(&mut self, clock: u32) {
        self.all.fill(clock);
        self.some.clear();
        self.remote = Remote::default();
    }

    pub(crate) fn join(&mut self, other: &Clocks) {
        if self.all.len() < other.all.len() {
            self.all.resize(other.all.len(), 0);
        }
        for (x, y) in self.all.iter_mut().zip(&other.all) {
            *x = (*x).max(*y);
        }
        self.remote.join(&other.remote);
        let (mut mine, mut theirs) = (self.some.iter().peekable(), other.some.iter().peekable());
        let mut some = Vec::with_capacity(self.some.len() + other.some.len());
        loop {
            let next = match (mine.peek(), theirs.peek()) {
                (Some(a), Some(b)) if a.place() == b.place() => {
                    let (a, b) = (*mine.next().expect("peeked"), *theirs.next().expect("peeked"));
                    LaneClock { clock: a.clock.max(b.clock), ..a }
                }
                (Some(a), Some(b)) if a.place() < b.place() => *mine.next().expect("peeked"),
                (_, Some(_)) => *theirs.next().expect("peeked"),
                (Some(_), None) => *mine.next().expect("peeked"),
                (None, None) => break,
            };
            if next.clock > self.of_all(next.agent) {
                some.push(next);
            }
        }
        self.some = some;
        self.fold();
    }

    /// The clock up to which all lanes of an agent are included.
    fn of_all(&self, agent: u32) -> u32 {
        self.all.get(agent as usize).copied().unwrap_or(0)
    }

    /// Warps of which every lane is listed are included up to the earliest of them.
    fn fold(&mut self) {
        if self.some.len() < LANES {
            return;
        }
        let mut folded = false;
        for of_agent in self.some.chunk_by(|a, b| a.agent == b.agent).filter(|c| c.len() == LANES) {
            let earliest = of_agent.iter().map(|c| c.clock).fold(u32::MAX, u32::min);
            let agent = of_agent[0].agent as usize;
            self.all.resize(self.all.len().max(agent + 1), 0);
            self.all[agent] = earliest;
            folded = true;
        }
        if folded {
            let all = &self.all;
            self.some.retain(|c| all.get(c.agent as usize).is_none_or(|&a| c.clock > a));
        }
    }

    fn add_lane(&mut self, c: LaneClock) {
        match self.some.binary_search_by_key(&c.place(), LaneClock::place) {
            Ok(i) => self.some[i].clock = self.some[i].clock.max(c.clock),
            Err(i) => self.some.insert(i, c),
        }
    }

    /// Every lane of the agent, up to a clock.
    pub(crate) fn add(&mut self, agent: u32, clock: u32) {
        let c = &mut self.all[agent as usize];
        *c = (*c).max(clock);
        let c = *c;
        self.some.retain(|o| o.agent != agent || o.clock > c);
    }

    pub(crate) fn has(&self, agent: u32, lane: u32, clock: u32) -> bool {
        clock <= self.of_all(agent)
            || self
                .some
                .binary_search_by_key(&(agent, lane), LaneClock::place)
                .is_ok_and(|i| clock <= self.some[i].clock)
    }

    /// Whether `other` includes all of this.
    pub(crate) fn within(&self, other: &Clocks) -> bool {
        self.all.iter().enumerate().all(|(i, x)| *x <= other.of_all(i as u32))
            && self.remote.within(&other.remote)
            && self.some.iter().all(|c| other.has(c.agent, c.lane, c.clock))
    }

    /// The same as other CTAs see it, this one's number being `cta`.
    pub(crate) fn exported(mut self, cta: u32) -> Remote {
        let mut remote = std::mem::take(&mut self.remote);
        let used = self.all.iter().rposition(|&c| c != 0).map_or(0, |i| i + 1);
        self.all.truncate(used);
        remote.add(cta, self);
        remote
    }

    /// What was exported, as the CTA `cta` sees it.
    pub(crate) fn imported(remote: &Remote, cta: u32) -> Clocks {
        let mut clocks = remote.of(cta).cloned().unwrap_or_default();
        clocks.remote = remote.clone();
        clocks
    }
}

/// What the lanes of a warp have learnt.
#[derive(Debug, Clone)]
pub(crate) struct Knowledge {
    warp: u32,
    /// The CTAs of the cluster by rank, where there is one.
    cluster: Arc<[u32]>,
    /// Known to every lane.
    common: Clocks,
    /// What single lanes know beside it.
    own: Vec<(u32, Clocks)>,
}

impl Knowledge {
    pub(crate) fn new(warp: u32, agents: usize) -> Self {
        Knowledge { warp, cluster: Arc::new([]), common: Clocks::new(agents, 0), own: Vec::new() }
    }

    pub(crate) fn reset(&mut self, clock: u32) {
        self.common.reset(clock);
        self.own.clear();
    }

    /// Whether what the lanes `who` of an agent did at a clock is ordered before what the lanes `by` do now. What a lane did itself
    /// is.
    #[inline(always)]
    pub(crate) fn knows(&self, by: u32, agent: u32, who: u32, clock: u32) -> bool {
        self.common.all.get(agent as usize).is_some_and(|&c| clock <= c) || self.knows_more(by, agent, who, clock)
    }

    #[cold]
    fn knows_more(&self, by: u32, agent: u32, who: u32, clock: u32) -> bool {
        if let Some(f) = Foreign::decode(agent) {
            let cta = self.cluster.get(f.rank as usize);
            return cta.is_some_and(|&cta| self.knows_remote(by, cta, f.agent, who, clock));
        }
        lanes(by).all(|lane| {
            let own = self.own_of_lane(lane as u32);
            own.is_some_and(|o| clock <= o.of_all(agent))
                || lanes(who).all(|l| {
                    (agent == self.warp && l == lane)
                        || self.common.has(agent, l as u32, clock)
                        || own.is_some_and(|o| o.has(agent, l as u32, clock))
                })
        })
    }

    /// As `knows` for one lane of an agent, of what was learnt alone: what a lane did itself does not count.
    pub(crate) fn learnt(&self, by: u32, agent: u32, who: u32, clock: u32) -> bool {
        self.common.has(agent, who, clock)
            || lanes(by).all(|lane| self.own_of_lane(lane as u32).is_some_and(|o| o.has(agent, who, clock)))
    }

    /// As `knows`, of what lanes of another CTA's agent did.
    #[cold]
    pub(crate) fn knows_remote(&self, by: u32, cta: u32, agent: u32, who: u32, clock: u32) -> bool {
        lanes(by).all(|lane| {
            let own = self.own_of_lane(lane as u32);
            lanes(who).all(|l| {
                self.common.remote.has(cta, agent, l as u32, clock)
                    || own.is_some_and(|o| o.remote.has(cta, agent, l as u32, clock))
            })
        })
    }

    /// Whether these lanes know of anything that another CTA did.
    pub(crate) fn knows_of(&self, by: u32, cta: u32) -> bool {
        lanes(by).all(|lane| {
            let own = self.own_of_lane(lane as u32);
            self.common.remote.of(cta).is_some() || own.is_some_and(|o| o.remote.of(cta).is_some())
        })
    }

    /// Everything that a lane has learnt.
    pub(crate) fn of_lane(&self, lane: u32) -> Clocks {
        let mut c = self.common.clone();
        if let Some(own) = self.own_of_lane(lane) {
            c.join(own);
        }
        c
    }

    /// The CTAs of the cluster by rank, for accesses to each other's shared memory.
    pub(crate) fn set_cluster(&mut self, ctas: Arc<[u32]>) {
        self.cluster = ctas;
    }

    fn own_of_lane(&self, lane: u32) -> Option<&Clocks> {
        self.own.iter().find(|o| o.0 == lane).map(|o| &o.1)
    }

    /// All that these lanes did until `now`, and what they had learnt.
    pub(crate) fn publish(&self, who: u32, live: u32, now: u32) -> Clocks {
        let mut c = self.common.clone();
        for (lane, own) in &self.own {
            if who >> lane & 1 == 1 {
                c.join(own);
            }
        }
        if who == live {
            c.add(self.warp, now);
        } else {
            for lane in lanes(who) {
                c.add_lane(LaneClock { agent: self.warp, lane: lane as u32, clock: now });
            }
        }
        c
    }

    /// These lanes learn what was published.
    pub(crate) fn learn(&mut self, who: u32, live: u32, news: &Clocks) {
        if who & live == live {
            self.common.join(news);
            let common = &self.common;
            self.own.retain(|(_, own)| !own.within(common));
        } else {
            for lane in lanes(who) {
                self.own_of(lane as u32).join(news);
            }
        }
    }

    /// These lanes learn of an engine's work up to a clock.
    pub(crate) fn learn_agent(&mut self, who: u32, live: u32, agent: u32, clock: u32) {
        if who & live == live {
            self.common.add(agent, clock);
        } else {
            for lane in lanes(who) {
                self.own_of(lane as u32).add(agent, clock);
            }
        }
    }

    fn own_of(&mut self, lane: u32) -> &mut Clocks {
        let i = self.own.iter().position(|o| o.0 == lane).unwrap_or_else(|| {
            self.own.push((lane, self.common.clone()));
            self.own.len() - 1
        });
        &mut self.own[i].1
    }

    #[inline(always)]
    pub(crate) fn warp(&self) -> u32 {
        self.warp
    }

    /// Whether all lanes know the same.
    pub(crate) fn uniform(&self) -> bool {
        self.own.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = !0;

    #[test]
    fn an_elected_lane_publishes_itself_alone() {
        let (mut a, mut b) = (Knowledge::new(0, 3), Knowledge::new(1, 3));
        let news = a.publish(1 << 5, ALL, 7);
        b.learn(ALL, ALL, &news);
        assert!(b.knows(1 << 0, 0, 1 << 5, 7) && !b.knows(1 << 0, 0, 1 << 5, 8));
        assert!(!b.knows(1 << 0, 0, 1 << 6, 1) && !b.knows(1 << 0, 0, 1 << 5 | 1 << 6, 1));
        // After a bar.warp.sync of its warp it speaks for all.
        let news = a.publish(ALL, ALL, 8);
        a.learn(ALL, ALL, &news);
        b.learn(ALL, ALL, &a.publish(1 << 5, ALL, 9));
        assert!(b.knows(1 << 0, 0, ALL, 8) && !b.knows(1 << 0, 0, ALL, 9) && b.knows(1 << 0, 0, 1 << 5, 9));
    }

    #[test]
    fn what_one_lane_learns_the_others_do_not_know() {
        let mut k = Knowledge::new(0, 3);
        k.learn_agent(1 << 3, ALL, 2, 4);
        assert!(k.knows(1 << 3, 2, 1, 4) && !k.knows(1 << 4, 2, 1, 4) && !k.knows(ALL, 2, 1, 4));
        assert!(!k.uniform());
        // Half of the warp synchronises: the lane's half knows then.
        let half = k.publish(0xffff, ALL, 9);
        k.learn(0xffff, ALL, &half);
        assert!(k.knows(1 << 4, 2, 1, 4) && !k.knows(1 << 16, 2, 1, 4));
        assert!(k.knows(1 << 4, 0, 0xffff, 9) && !k.knows(1 << 4, 0, 1 << 16, 1) && k.knows(1 << 16, 0, 1 << 16, 1));
        let whole = k.publish(ALL, ALL, 10);
        k.learn(ALL, ALL, &whole);
        assert!(k.uniform() && k.knows(ALL, 2, 1, 4) && k.knows(1 << 20, 0, ALL, 10));
    }

    #[test]
    fn joined_clocks_hold_the_later_of_each_lane() {
        let mut k = Knowledge::new(0, 2);
        let mut c = Clocks::default();
        for (lane, now) in [(3, 5), (1, 6), (3, 9), (2, 7), (1, 4)] {
            c.join(&k.publish(1 << lane, ALL, now));
        }
        assert!(c.has(0, 3, 9) && !c.has(0, 3, 10) && c.has(0, 1, 6) && !c.has(0, 1, 7) && c.has(0, 2, 7));
        k.learn(1 << 8, ALL, &c);
        assert!(k.knows(1 << 8, 0, 1 << 1 | 1 << 3, 6) && !k.knows(1 << 8, 0, 1 << 1 | 1 << 3, 7));
        assert!(!k.knows(1 << 9 | 1 << 8, 0, 1 << 3, 1));
        // All lanes together leave nothing to list, nor do all lanes one by one.
        let mut one_by_one = Clocks::default();
        let fresh = Knowledge::new(0, 2);
        (0..32).for_each(|lane| one_by_one.join(&fresh.publish(1 << lane, ALL, 8)));
        assert_eq!(one_by_one, Clocks { all: vec![8, 0], ..Clocks::default() });
        c.join(&k.publish(ALL, ALL, 10));
        assert_eq!(c, Clocks { all: vec![10, 0], ..Clocks::default() });
    }

    #[test]
    fn lanes_that_exited_are_waited_for_by_nobody() {
        let mut k = Knowledge::new(0, 1);
        let live = 0xff;
        let news = k.publish(live, live, 3);
        k.learn(live, live, &news);
        assert!(k.knows(1 << 0, 0, live, 3) && k.uniform());
    }
}
