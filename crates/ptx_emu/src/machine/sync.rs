//! What orders the accesses of a warp's lanes: clocks that go on, and knowledge that is published and learnt.

use super::{Cta, lanes};
use crate::order::Clocks;

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

    /// fence.proxy.async: what these lanes did and learnt so far may be seen by the async proxy.
    pub(super) fn proxy_fence(&mut self, w: usize, who: u32) {
        let parts = if who == self.warps[w].live && self.warps[w].know.uniform() {
            vec![who]
        } else {
            lanes(who).map(|l| 1 << l).collect()
        };
        for part in parts {
            let news = self.publish(w, part);
            let warp = &mut self.warps[w];
            warp.proxy.learn(part, warp.live, &news);
        }
        self.tick(w);
    }
}
