//! What is known of other CTAs: how far the agents of each had come.
//!
//! It travels within the clocks of a CTA (see `order`): a thread that acquires what another CTA released learns it, and hands it on
//! with every barrier, mbarrier and release of its own. Nearly all threads know the same of other CTAs, so it is shared and copied
//! only where it changes. A kernel whose CTAs cannot order each other never has any.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::order::Clocks;

/// An agent of another CTA of the cluster, as records of shared memory number it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) rank: u32,
    pub(crate) agent: u32,
}

/// Above the numbers of a CTA's own agents, and within the 16 bits that a record has for them.
const FOREIGN: u32 = 1 << 15;
const AGENT_BITS: u32 = 11;

impl Foreign {
    pub(crate) fn encode(self) -> u32 {
        FOREIGN | self.rank << AGENT_BITS | self.agent
    }

    pub(crate) fn decode(agent: u32) -> Option<Foreign> {
        (agent & FOREIGN != 0)
            .then_some(Foreign { rank: (agent & (FOREIGN - 1)) >> AGENT_BITS, agent: agent & ((1 << AGENT_BITS) - 1) })
    }
}

/// Clocks of other CTAs by their number in the grid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Remote(Option<Arc<BTreeMap<u32, Clocks>>>);

impl Remote {
    pub(crate) fn of(&self, cta: u32) -> Option<&Clocks> {
        self.0.as_ref()?.get(&cta)
    }

    pub(crate) fn has(&self, cta: u32, agent: u32, lane: u32, clock: u32) -> bool {
        self.of(cta).is_some_and(|c| c.has(agent, lane, clock))
    }

    pub(crate) fn add(&mut self, cta: u32, clocks: Clocks) {
        let map = Arc::make_mut(self.0.get_or_insert_default());
        map.entry(cta).or_default().join(&clocks);
    }

    pub(crate) fn join(&mut self, other: &Remote) {
        let Some(theirs) = &other.0 else { return };
        let Some(mine) = &mut self.0 else {
            self.0 = Some(theirs.clone());
            return;
        };
        if Arc::ptr_eq(mine, theirs) || covers(mine, theirs) {
            return;
        }
        if covers(theirs, mine) {
            *mine = theirs.clone();
            return;
        }
        let mine = Arc::make_mut(mine);
        for (&cta, clocks) in theirs.iter() {
            mine.entry(cta).or_default().join(clocks);
        }
    }

    pub(crate) fn within(&self, other: &Remote) -> bool {
        match (&self.0, &other.0) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs) || covers(theirs, mine),
        }
    }
}

/// Whether `a` includes all of `b`.
fn covers(a: &BTreeMap<u32, Clocks>, b: &BTreeMap<u32, Clocks>) -> bool {
    b.len() <= a.len() && b.iter().all(|(cta, clocks)| a.get(cta).is_some_and(|c| clocks.within(c)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::Knowledge;

    const ALL: u32 = !0;

    #[test]
    fn what_a_cta_released_is_handed_on_through_a_third() {
        let mut k: Vec<Knowledge> = (0..3).map(|_| Knowledge::new(0, 2)).collect();
        let first = k[0].publish(1 << 4, ALL, 7).exported(10);
        k[1].learn(1 << 2, ALL, &Clocks::imported(&first, 11));
        assert!(k[1].knows_remote(1 << 2, 10, 0, 1 << 4, 7) && !k[1].knows_remote(1 << 3, 10, 0, 1 << 4, 7));
        assert!(!k[1].knows_remote(1 << 2, 10, 0, 1 << 4, 8) && !k[1].knows_remote(1 << 2, 10, 0, 1 << 5, 1));
        let second = k[1].publish(1 << 2, ALL, 3).exported(11);
        k[2].learn(ALL, ALL, &Clocks::imported(&second, 12));
        assert!(k[2].knows_remote(ALL, 10, 0, 1 << 4, 7) && k[2].knows_remote(ALL, 11, 0, 1 << 2, 3));
        // It comes back to the first one, which learns of its own lane 4 what the others of its lanes did not know.
        let third = k[2].publish(ALL, ALL, 5).exported(12);
        assert!(!k[0].knows(1 << 9, 0, 1 << 4, 7));
        k[0].learn(ALL, ALL, &Clocks::imported(&third, 10));
        assert!(k[0].knows(1 << 9, 0, 1 << 4, 7) && k[0].knows_remote(ALL, 12, 0, ALL, 5));
    }

    #[test]
    fn agents_of_other_ctas_are_numbered_apart() {
        let f = Foreign { rank: 15, agent: 1100 };
        assert_eq!(Foreign::decode(f.encode()), Some(f));
        assert!(f.encode() <= 0xffff && Foreign::decode(1100).is_none());
    }
}
