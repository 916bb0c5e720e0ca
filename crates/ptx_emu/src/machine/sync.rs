//! What orders the accesses of a warp's lanes: clocks that go on, and knowledge that is published and learnt.

use super::warp::Fenced;
use super::{Cta, lanes};
use crate::ir::Scope;
use crate::order::{Clocks, Knowledge};
use crate::release::{SCOPES, level};

impl Cta<'_> {
    /// The warp's next accesses are later than all so far.
    pub(crate) fn tick(&mut self, w: usize) {
        self.warps[w].now += 1;
    }

    /// bar.warp.sync: these lanes learn of each other.
    pub(super) fn warp_sync(&mut self, w: usize, who: u32) {
        let news = self.publish(w, who);
        self.learn(w, who, &news);
        self.tick(w);
    }

    /// What these lanes did so far, and what they have learnt.
    pub(crate) fn publish(&self, w: usize, who: u32) -> Clocks {
        let warp = &self.warps[w];
        warp.know.publish(who, warp.live, warp.now)
    }

    pub(crate) fn learn(&mut self, w: usize, who: u32, news: &Clocks) {
        let warp = &mut self.warps[w];
        warp.know.learn(who, warp.live, news);
    }

    pub(crate) fn learn_agent(&mut self, w: usize, who: u32, agent: u32, clock: u32) {
        let warp = &mut self.warps[w];
        warp.know.learn_agent(who, warp.live, agent, clock);
    }

    /// fence.{acq_rel, sc} and membar: these lanes take up what their strong reads have seen released, and what they have done and
    /// learnt so far is what their strong writes release.
    pub(super) fn fence(&mut self, w: usize, who: u32, scope: Scope) {
        if !self.ctx.checks.races {
            return;
        }
        let level = level(scope);
        let number = self.number;
        let warp = &mut self.warps[w];
        for (lane, offer) in &warp.offers {
            if who >> lane & 1 == 1 {
                let news = Clocks::imported(&offer[level], number);
                warp.know.learn(1 << lane, warp.live, &news);
            }
        }
        if level + 1 == SCOPES {
            warp.offers.retain(|(lane, _)| who >> lane & 1 == 0);
        }
        let (agents, members) = (self.agents, self.members.clone());
        let (base, now, live) = (self.clock_base, warp.now, warp.live);
        let fenced = warp.fences[level].get_or_insert_with(|| {
            let mut know = Knowledge::new(w as u32, agents);
            know.reset(base);
            know.set_cluster(members);
            Box::new(Fenced { lanes: 0, know })
        });
        fenced.lanes |= who;
        for part in parts(who, live, &warp.know) {
            let news = warp.know.publish(part, live, now);
            fenced.know.learn(part, live, &news);
        }
        self.tick(w);
    }

    /// What these lanes had done and learnt at a fence of this scope or a wider one, which a relaxed arrival hands over.
    pub(crate) fn fenced(&self, w: usize, who: u32, scope: Scope) -> Clocks {
        let mut news = Clocks::default();
        for fenced in self.warps[w].fences[level(scope)..].iter().flatten() {
            for lane in lanes(who & fenced.lanes) {
                news.join(&fenced.know.of_lane(lane as u32));
            }
        }
        news
    }

    /// What a relaxed wait has seen: the lanes take it up at their next fence.
    pub(crate) fn offer(&mut self, w: usize, who: u32, seen: Clocks) {
        let seen = seen.exported(self.number);
        let offers = &mut self.warps[w].offers;
        for lane in lanes(who) {
            match offers.iter_mut().find(|o| o.0 == lane as u32) {
                Some((_, old)) => old.iter_mut().for_each(|old| old.join(&seen)),
                None => offers.push((lane as u32, std::array::from_fn(|_| seen.clone()))),
            }
        }
    }

    /// fence.proxy.async: what these lanes did and learnt so far may be seen by the async proxy.
    pub(super) fn proxy_fence(&mut self, w: usize, who: u32) {
        let warp = &self.warps[w];
        for part in parts(who, warp.live, &warp.know) {
            let news = self.publish(w, part);
            let warp = &mut self.warps[w];
            warp.proxy.learn(part, warp.live, &news);
        }
        self.tick(w);
    }
}

/// Lanes that publish one by one, because a fence orders each with itself alone; all at once where all know and do the same.
fn parts(who: u32, live: u32, know: &Knowledge) -> Vec<u32> {
    if who == live && know.uniform() { vec![who] } else { lanes(who).map(|l| 1 << l).collect() }
}
