//! The registers of a warp, and functions of their 32 lanes in loops that vectorise.

use std::collections::HashMap;

use super::defined::ones;
use crate::ir::{SINK, Slot};
use crate::machine::lanes;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// One slot of the register file.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(128))]
pub(crate) struct Lanes32(pub(crate) [u32; LANES]);

/// The registers of one warp, and which bits of each hold a value that somebody wrote.
#[derive(Debug, Clone)]
pub(crate) struct Regs {
    slots: Vec<Lanes32>,
    /// Lanes all of whose bits are known: nearly always all that matter.
    init: Vec<u32>,
    /// The unknown bits of lanes that `init` has not. Where there is no entry, such lanes know no bit.
    partly: HashMap<Slot, Box<[u64; LANES]>>,
    /// All ones where nobody asks for what is known.
    untracked: u32,
    /// Predicates as lane masks; number 0 is true.
    pub(crate) preds: Vec<u32>,
    pub(crate) pred_init: Vec<u32>,
}

impl Regs {
    pub(crate) fn new(slots: u32, preds: u32, track: bool) -> Self {
        let mut r = Regs {
            slots: vec![Lanes32([0; LANES]); slots as usize + 1],
            init: vec![0; slots as usize + 1],
            partly: HashMap::new(),
            untracked: if track { 0 } else { !0 },
            preds: vec![0; preds as usize],
            pred_init: vec![0; preds as usize],
        };
        r.reset();
        r
    }

    /// Forgets every value; the constants must be set again.
    pub(crate) fn reset(&mut self) {
        self.init.fill(self.untracked);
        self.pred_init.fill(self.untracked);
        self.partly.clear();
        self.slots.fill(Lanes32([0; LANES]));
        self.preds.fill(0);
        self.init[0] = !0;
        self.init[1] = !0;
        self.preds[0] = !0;
        self.pred_init[0] = !0;
    }

    #[inline(always)]
    pub(crate) fn r32(&self, s: Slot) -> &[u32; LANES] {
        &self.slots[s as usize].0
    }

    #[inline(always)]
    pub(crate) fn r32_mut(&mut self, s: Slot) -> &mut [u32; LANES] {
        &mut self.slots[s as usize].0
    }

    #[inline(always)]
    pub(crate) fn r64(&self, s: Slot) -> &[u64; LANES] {
        let two: &[Lanes32] = &self.slots[s as usize..s as usize + 2];
        // SAFETY: two adjacent slots are 256 bytes without padding, aligned to 128, and any bits are a u64.
        unsafe { &*two.as_ptr().cast::<[u64; LANES]>() }
    }

    #[inline(always)]
    pub(crate) fn r64_mut(&mut self, s: Slot) -> &mut [u64; LANES] {
        let two: &mut [Lanes32] = &mut self.slots[s as usize..s as usize + 2];
        // SAFETY: as in `r64`, and the borrow is exclusive.
        unsafe { &mut *two.as_mut_ptr().cast::<[u64; LANES]>() }
    }

    #[inline(always)]
    pub(crate) fn init(&self, s: Slot) -> u32 {
        self.init[s as usize]
    }

    /// Records that the lanes of `mask` were written, with values of which those in `known` are known and the others are not, as a whole.
    #[inline(always)]
    pub(crate) fn set_init(&mut self, s: Slot, mask: u32, known: u32) {
        let known = known | self.untracked;
        let i = &mut self.init[s as usize];
        *i = (*i & !mask) | (known & mask);
        if mask & !known != 0 && !self.partly.is_empty() {
            self.partly_unknown(s, mask & !known);
        }
    }

    #[cold]
    fn partly_unknown(&mut self, s: Slot, mask: u32) {
        if let Some(u) = self.partly.get_mut(&s) {
            lanes(mask).for_each(|l| u[l] = !0);
        }
    }

    /// The unknown bits of a lane.
    #[inline(always)]
    pub(crate) fn unknown(&self, s: Slot, lane: usize) -> u64 {
        if self.init[s as usize] >> lane & 1 == 1 { 0 } else { self.partly.get(&s).map_or(!0, |u| u[lane]) }
    }

    /// Records that the lanes of `mask` were written, with values that have these unknown bits.
    #[cold]
    pub(crate) fn set_unknown(&mut self, s: Slot, wide: bool, mask: u32, unknown: &[u64; LANES]) {
        if s == SINK {
            return;
        }
        let all = ones(if wide { 64 } else { 32 });
        let known = lanes(mask).filter(|&l| unknown[l] & all == 0).fold(0, |m, l| m | 1 << l);
        self.set_init(s, mask, known);
        let left = mask & !known & !self.untracked;
        if lanes(left).all(|l| unknown[l] & all == all) {
            return;
        }
        let u = self.partly.entry(s).or_insert_with(|| Box::new([!0; LANES]));
        lanes(left).for_each(|l| u[l] = unknown[l] & all);
    }

    #[inline(always)]
    pub(crate) fn put32(&mut self, s: Slot, v: &[u32; LANES], mask: u32) {
        if s == SINK {
            return;
        }
        let d = &mut self.slots[s as usize].0;
        if mask == !0 {
            *d = *v;
        } else {
            for i in 0..LANES {
                let m = 0u32.wrapping_sub((mask >> i) & 1);
                d[i] = (v[i] & m) | (d[i] & !m);
            }
        }
    }

    #[inline(always)]
    pub(crate) fn put64(&mut self, s: Slot, v: &[u64; LANES], mask: u32) {
        if s == SINK {
            return;
        }
        let d = self.r64_mut(s);
        if mask == !0 {
            *d = *v;
        } else {
            for i in 0..LANES {
                let m = 0u64.wrapping_sub(((mask >> i) & 1) as u64);
                d[i] = (v[i] & m) | (d[i] & !m);
            }
        }
    }

    #[inline(always)]
    pub(crate) fn lane(&self, s: Slot, wide: bool, lane: usize) -> u64 {
        if wide { self.r64(s)[lane] } else { self.r32(s)[lane] as u64 }
    }

    #[inline(always)]
    pub(crate) fn put_pred(&mut self, p: u32, v: u32, mask: u32, known: u32) {
        if p == SINK {
            return;
        }
        let d = &mut self.preds[p as usize];
        *d = (*d & !mask) | (v & mask);
        let i = &mut self.pred_init[p as usize];
        *i = (*i & !mask) | ((known | self.untracked) & mask);
    }
}

/// A function of each lane. A plain loop: the closures of `array::map` and `array::from_fn` are not inlined in time for the
/// loop to vectorise (three times the time on the attention kernels, by `cargo bench -p ptx_emu`).
#[inline(always)]
pub(crate) fn each<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; LANES] {
    let mut v = [T::default(); LANES];
    for (i, x) in v.iter_mut().enumerate() {
        *x = f(i);
    }
    v
}

/// A type of lane values.
pub(super) trait Lane: Copy + Default {
    fn get(r: &Regs, s: Slot) -> [Self; LANES];
    fn put(r: &mut Regs, s: Slot, v: &[Self; LANES], mask: u32);
}

#[inline(always)]
fn same<T>(x: T) -> T {
    x
}

macro_rules! lane {
    ($t:ty, $raw:ty, $get:ident, $put:ident, $from:expr, $to:expr) => {
        impl Lane for $t {
            #[inline(always)]
            fn get(r: &Regs, s: Slot) -> [Self; LANES] {
                let v = r.$get(s);
                each(|i| $from(v[i]))
            }
            #[inline(always)]
            fn put(r: &mut Regs, s: Slot, v: &[Self; LANES], mask: u32) {
                r.$put(s, &each(|i| $to(v[i])), mask)
            }
        }
    };
}
lane!(u32, u32, r32, put32, same, same);
lane!(i32, u32, r32, put32, (|x: u32| x as i32), (|x: i32| x as u32));
lane!(f32, u32, r32, put32, f32::from_bits, f32::to_bits);
lane!(u16, u32, r32, put32, (|x: u32| x as u16), (|x: u16| x as u32));
lane!(i16, u32, r32, put32, (|x: u32| x as i16), (|x: i16| x as u16 as u32));
lane!(u64, u64, r64, put64, same, same);
lane!(i64, u64, r64, put64, (|x: u64| x as i64), (|x: i64| x as u64));
lane!(f64, u64, r64, put64, f64::from_bits, f64::to_bits);

#[inline(always)]
pub(super) fn map1<A: Lane, D: Lane>(r: &mut Regs, d: Slot, s: &[Slot; 4], mask: u32, f: impl Fn(A) -> D) {
    let a = A::get(r, s[0]);
    let v = each(|i| f(a[i]));
    D::put(r, d, &v, mask);
}

#[inline(always)]
pub(super) fn map2<A: Lane, B: Lane, D: Lane>(r: &mut Regs, d: Slot, s: &[Slot; 4], mask: u32, f: impl Fn(A, B) -> D) {
    let (a, b) = (A::get(r, s[0]), B::get(r, s[1]));
    let v = each(|i| f(a[i], b[i]));
    D::put(r, d, &v, mask);
}

#[inline(always)]
pub(super) fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(
    r: &mut Regs,
    d: Slot,
    s: &[Slot; 4],
    mask: u32,
    f: impl Fn(A, B, C) -> D,
) {
    let (a, b, c) = (A::get(r, s[0]), B::get(r, s[1]), C::get(r, s[2]));
    let v = each(|i| f(a[i], b[i], c[i]));
    D::put(r, d, &v, mask);
}
