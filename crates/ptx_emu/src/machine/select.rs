//! Instructions that compare, select and work on predicates.

use super::{Cta, lanes, logic, logic_known, put_lane};
use crate::alu::{self, LANES, Regs, each};
use crate::cluster::peer_of;
use crate::ir::*;

impl Cta<'_> {
    /// Comparison to a mask or to 1.0.
    pub(super) fn set(
        &mut self,
        w: usize,
        active: u32,
        cmp: Cmp,
        ty: Ty,
        to: Ty,
        ftz: bool,
        combine: Option<(BoolOp, Pred)>,
        d: Slot,
        a: Slot,
        b: Slot,
    ) {
        let prog = self.ctx.prog;
        let regs = &mut self.warps[w].regs;
        let known = regs.init(a) & regs.init(b);
        let (lo, hi) = alu::compare(regs, cmp, ty, ftz, a, b);
        let known =
            if known & active == active { [!0; 2] } else { alu::decided(regs, &prog.wide, cmp, ty, a, b, active) };
        // A result for each half of packed types; else one, which fills the register of its type.
        let packed = matches!(ty, Ty::F16x2 | Ty::BF16x2);
        let yes: u32 = match to {
            Ty::F32 => 1f32.to_bits(),
            Ty::F16 | Ty::F16x2 => 0x3c00,
            Ty::BF16 | Ty::BF16x2 => 0x3f80,
            Ty::U16 | Ty::S16 => 0xffff,
            _ if packed => 0xffff,
            _ => !0,
        };
        let (mut out, mut unknown) = ([0u32; LANES], [0u64; LANES]);
        for (sh, x, known) in [(0, lo, known[0]), (16, hi, known[1])].into_iter().take(1 + packed as usize) {
            let (mut x, mut known) = (x, known);
            if let Some((f, c)) = combine {
                let v = regs.preds[c.index as usize];
                let v = if c.negated { !v } else { v };
                known = logic_known(f, (x, known), (v, regs.pred_init[c.index as usize]));
                x = logic(f, x, v);
            }
            for i in 0..LANES {
                out[i] |= if x >> i & 1 == 1 { yes << sh } else { 0 };
                unknown[i] |= if known >> i & 1 == 0 { (yes as u64) << sh } else { 0 };
            }
        }
        regs.put32(d, &out, active);
        regs.set_unknown(d, false, active, &unknown);
    }

    /// The class of a floating-point number.
    pub(super) fn testp(&mut self, w: usize, active: u32, kind: u8, ty: Ty, p: u32, a: Slot) {
        let regs = &mut self.warps[w].regs;
        let mut m = 0;
        for lane in lanes(active) {
            let v = regs.lane(a, ty.wide(), lane);
            let class = if ty == Ty::F64 { f64::from_bits(v).classify() } else { f32::from_bits(v as u32).classify() };
            use std::num::FpCategory::*;
            let yes = match kind {
                0 => !matches!(class, Infinite | Nan),
                1 => class == Infinite,
                2 => class != Nan,
                3 => class == Nan,
                // Zeros count as normal (PTX ISA, testp).
                4 => matches!(class, Normal | Zero),
                _ => class == Subnormal,
            };
            m |= (yes as u32) << lane;
        }
        let known = regs.init(a);
        regs.put_pred(p, m, active, known);
    }

    /// Selection by a predicate.
    pub(super) fn selp(&mut self, w: usize, active: u32, wide: bool, d: Slot, a: Slot, b: Slot, p: Pred) {
        let prog = self.ctx.prog;
        let regs = &mut self.warps[w].regs;
        let v = regs.preds[p.index as usize];
        let v = if p.negated { !v } else { v };
        let decided = regs.pred_init[p.index as usize];
        let known = decided & ((regs.init(a) & v) | (regs.init(b) & !v));
        let unknown = (known & active != active).then(|| selected(regs, &prog.wide, active, a, b, v, decided));
        if wide {
            let (x, y) = (regs.r64(a), regs.r64(b));
            let r = each(|i| if v >> i & 1 == 1 { x[i] } else { y[i] });
            regs.put64(d, &r, active);
        } else {
            let (x, y) = (regs.r32(a), regs.r32(b));
            let r = each(|i| if v >> i & 1 == 1 { x[i] } else { y[i] });
            regs.put32(d, &r, active);
        }
        if d != SINK {
            match unknown {
                None => regs.set_init(d, active, !0),
                Some(u) => regs.set_unknown(d, wide, active, &u),
            }
        }
    }

    /// Selection by a sign.
    pub(super) fn slct(
        &mut self,
        w: usize,
        active: u32,
        wide: bool,
        float: bool,
        ftz: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    ) {
        let prog = self.ctx.prog;
        let regs = &mut self.warps[w].regs;
        let pick = |v: u32| {
            if float {
                let f = f32::from_bits(v);
                (if ftz { crate::float::ftz(f) } else { f }) >= 0.0
            } else {
                v as i32 >= 0
            }
        };
        let first = lanes(active).filter(|&l| pick(regs.r32(c)[l])).fold(0, |m, l| m | 1 << l);
        let known = regs.init(a) & regs.init(b) & regs.init(c);
        // Of a number that is known in part, the sign.
        let sign = |l: usize| regs.unknown(c, l) & if float { alu::ones(32) } else { 1 << 31 } == 0;
        let decided = lanes(active).filter(|&l| sign(l)).fold(0, |m, l| m | 1 << l);
        let unknown = (known & active != active).then(|| selected(regs, &prog.wide, active, a, b, first, decided));
        for lane in lanes(active) {
            let v = regs.lane(if first >> lane & 1 == 1 { a } else { b }, wide, lane);
            put_lane(regs, d, wide, lane, v);
        }
        if d != SINK {
            match unknown {
                None => regs.set_init(d, active, !0),
                Some(u) => regs.set_unknown(d, wide, active, &u),
            }
        }
    }

    /// Logic of two predicates.
    pub(super) fn pred_logic(&mut self, w: usize, active: u32, f: BoolOp, p: u32, a: Pred, b: Pred) {
        let regs = &mut self.warps[w].regs;
        let val = |x: &Pred| {
            let v = regs.preds[x.index as usize];
            if x.negated { !v } else { v }
        };
        let (x, y) = (val(&a), val(&b));
        let (ka, kb) = (regs.pred_init[a.index as usize], regs.pred_init[b.index as usize]);
        let mut known = logic_known(f, (x, ka), (y, kb));
        // A predicate and itself, or its opposite.
        if a.index == b.index && (f == BoolOp::Xor || a.negated != b.negated) {
            known = !0;
        }
        regs.put_pred(p, logic(f, x, y), active, known);
    }

    /// The state space of a generic address.
    pub(super) fn isspacep(&mut self, w: usize, active: u32, space: MemSpace, p: u32, a: Slot) {
        let rank = self.rank;
        let own = |addr: u64| peer_of(addr).is_none_or(|r| r == rank);
        let regs = &mut self.warps[w].regs;
        let mut m = 0;
        for lane in lanes(active) {
            let window = regs.r64(a)[lane] >> 40 << 40;
            let is = match space {
                // The window of the cluster holds that of the CTA.
                MemSpace::SharedCluster => window == SHARED_WINDOW,
                MemSpace::Shared => window == SHARED_WINDOW && own(regs.r64(a)[lane] - SHARED_WINDOW),
                MemSpace::Local => window == LOCAL_WINDOW,
                MemSpace::Param => window == PARAM_WINDOW,
                _ => window >= 1 << 44,
            };
            m |= (is as u32) << lane;
        }
        let known = regs.init(a);
        regs.put_pred(p, m, active, known);
    }
}

/// The unknown bits of a selection: `first` has the lanes that take `a`, where `decided` says that they are known.
#[cold]
fn selected(regs: &Regs, wide: &[bool], active: u32, a: Slot, b: Slot, first: u32, decided: u32) -> [u64; LANES] {
    let mut unknown = [0; LANES];
    for lane in lanes(active) {
        let (x, y) = (alu::bits(regs, wide, a, lane), alu::bits(regs, wide, b, lane));
        unknown[lane] = match (decided >> lane & 1, first >> lane & 1) {
            (1, 1) => x.unknown,
            (1, _) => y.unknown,
            // Whichever it is, bits in which both agree.
            _ => x.unknown | y.unknown | (x.value ^ y.value),
        };
    }
    unknown
}
