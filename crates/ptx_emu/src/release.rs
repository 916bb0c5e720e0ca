//! Release and acquire: what strong writes hand over at an address, to whom, and what strong reads and fences take up.
//!
//! PTX ISA, memory consistency model. A *release pattern* at an address is a releasing write, or a fence and then a strong write; what
//! it hands over is what the thread did and had learnt at the release, or at the fence. An *acquire pattern* is an acquiring read, or
//! a strong read and then a fence. They synchronise when the read takes its value from the write or from atomics that followed it,
//! and when each is in the scope of the other. A strong write that is no atomic starts anew: who reads its value learns nothing of
//! what was released there before.

use std::collections::HashMap;

use crate::ir::Scope;
use crate::remote::Remote;

/// Who takes part: a CTA, and the cluster it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) cta: u32,
    pub(crate) cluster: u32,
}

impl Place {
    /// Whether a scope around this place includes the other.
    pub(crate) fn reaches(self, scope: Scope, other: Place) -> bool {
        match scope {
            Scope::Cta => self.cta == other.cta,
            Scope::Cluster => self.cluster == other.cluster,
            Scope::Gpu | Scope::Sys => true,
        }
    }
}

/// Scopes that are told apart: the emulator has one GPU, so that `.sys` is `.gpu`.
pub(crate) const SCOPES: usize = 3;

pub(crate) fn level(scope: Scope) -> usize {
    match scope {
        Scope::Cta => 0,
        Scope::Cluster => 1,
        Scope::Gpu | Scope::Sys => 2,
    }
}

pub(crate) const LEVELS: [Scope; SCOPES] = [Scope::Cta, Scope::Cluster, Scope::Gpu];

/// What a strong read may take up, by the scope at which it is acquired.
pub(crate) type Offer = [Remote; SCOPES];

#[derive(Debug, Clone)]
struct Released {
    by: Place,
    scope: Scope,
    what: Remote,
}

/// What the value at one address carries.
#[derive(Debug, Clone, Default)]
struct Carried {
    each: Vec<Released>,
    /// All that was released to the whole GPU.
    to_all: Remote,
}

/// Addresses through which threads order each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Releases(HashMap<u64, Carried>);

impl Releases {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// A strong write. An atomic keeps what the value carried before.
    pub(crate) fn write(&mut self, addr: u64, by: Place, atomic: bool, released: Vec<(Scope, Remote)>) {
        if released.is_empty() && (atomic || !self.0.contains_key(&addr)) {
            return;
        }
        let carried = self.0.entry(addr).or_default();
        if !atomic {
            *carried = Carried::default();
        }
        for (scope, what) in released {
            if level(scope) == 2 {
                carried.to_all.join(&what);
            }
            match carried.each.iter_mut().find(|r| r.by == by && r.scope == scope) {
                Some(r) => r.what.join(&what),
                None => carried.each.push(Released { by, scope, what }),
            }
        }
    }

    /// What a strong read at a scope may take up.
    pub(crate) fn read(&self, addr: u64, by: Place, scope: Scope) -> Option<Offer> {
        let carried = self.0.get(&addr)?;
        let mut offer = Offer::default();
        for (i, &acquired) in LEVELS.iter().enumerate().take(level(scope) + 1) {
            for r in &carried.each {
                let wide = i == 2 && level(r.scope) == 2;
                if !wide && r.by.reaches(r.scope, by) && by.reaches(acquired, r.by) {
                    offer[i].join(&r.what);
                }
            }
            if i == 2 {
                offer[2].join(&carried.to_all);
            }
        }
        // A fence wider than the read acquires what the read's scope allows.
        for i in level(scope) + 1..SCOPES {
            offer[i] = offer[level(scope)].clone();
        }
        Some(offer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::Clocks;

    const A: Place = Place { cta: 0, cluster: 0 };
    const B: Place = Place { cta: 1, cluster: 0 };
    const C: Place = Place { cta: 2, cluster: 1 };

    fn done(cta: u32) -> Remote {
        Clocks::new(1, 5).exported(cta)
    }

    fn sees(r: &Releases, by: Place, read: Scope, fence: Scope, cta: u32) -> bool {
        r.read(8, by, read).is_some_and(|o| o[level(fence)].has(cta, 0, 0, 5))
    }

    #[test]
    fn each_must_be_in_the_scope_of_the_other() {
        for (scope, to_b, to_c) in [
            (Scope::Cta, false, false),
            (Scope::Cluster, true, false),
            (Scope::Gpu, true, true),
            (Scope::Sys, true, true),
        ] {
            let mut r = Releases::default();
            r.write(8, A, true, vec![(scope, done(0))]);
            assert!(sees(&r, A, Scope::Cta, Scope::Cta, 0));
            assert_eq!(sees(&r, B, Scope::Gpu, Scope::Gpu, 0), to_b, "{scope:?}");
            assert_eq!(sees(&r, C, Scope::Gpu, Scope::Gpu, 0), to_c, "{scope:?}");
            assert!(!sees(&r, B, Scope::Gpu, Scope::Cta, 0) && !sees(&r, B, Scope::Cta, Scope::Gpu, 0));
            assert!(!sees(&r, C, Scope::Gpu, Scope::Cluster, 0) && !sees(&r, C, Scope::Cluster, Scope::Gpu, 0));
        }
    }

    #[test]
    fn atomics_hand_on_and_stores_start_anew() {
        let mut r = Releases::default();
        r.write(8, A, false, vec![(Scope::Gpu, done(0))]);
        r.write(8, B, true, vec![]);
        r.write(8, B, true, vec![(Scope::Gpu, done(1))]);
        assert!(sees(&r, C, Scope::Gpu, Scope::Gpu, 0) && sees(&r, C, Scope::Gpu, Scope::Gpu, 1));
        r.write(8, B, false, vec![(Scope::Gpu, done(1))]);
        assert!(!sees(&r, C, Scope::Gpu, Scope::Gpu, 0) && sees(&r, C, Scope::Gpu, Scope::Gpu, 1));
        r.write(8, B, false, vec![]);
        assert!(!sees(&r, C, Scope::Gpu, Scope::Gpu, 1));
    }
}
