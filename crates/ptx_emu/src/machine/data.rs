//! Instructions that move and convert values within a lane.

use super::{Cta, lanes, put_lane};
use crate::alu::{self, LANES, each};
use crate::float::Round;
use crate::ir::*;

impl Cta<'_> {
    /// add, sub and mad with carry.
    pub(super) fn carry(
        &mut self,
        w: usize,
        active: u32,
        f: Alu,
        ty: Ty,
        carry_in: bool,
        carry_out: bool,
        d: Slot,
        s: [Slot; 3],
    ) {
        let warp = &mut self.warps[w];
        let wide = ty.wide();
        let bits = ty.bits();
        let low = |v: u128| v & ((1u128 << bits) - 1);
        let (mut out, mut out_known) = (warp.carry, warp.carry_known);
        let mut unknown = [0; LANES];
        for lane in lanes(active) {
            let v: [u128; 3] = std::array::from_fn(|i| warp.regs.lane(s[i], wide, lane) as u128);
            let cin = if carry_in { (warp.carry >> lane & 1) as u128 } else { 0 };
            let signed = ty.signed();
            let result = |v: [u128; 3], cin: u128| {
                let product = || {
                    if signed {
                        let sx = |v: u128| ((v << (128 - bits)) as i128) >> (128 - bits);
                        sx(v[0]).wrapping_mul(sx(v[1])) as u128
                    } else {
                        v[0].wrapping_mul(v[1])
                    }
                };
                match f {
                    Alu::Add => v[0] + v[1] + cin,
                    Alu::Sub => (1u128 << bits) + v[0] - v[1] - cin,
                    Alu::MadLo => low(product()) + v[2] + cin,
                    _ => low(product() >> bits) + v[2] + cin,
                }
            };
            let full = result(v, cin);
            // The least and the largest result, of a factor none but itself.
            let u: [u128; 3] = std::array::from_fn(|i| low(warp.regs.unknown(s[i], lane) as u128));
            let open = (carry_in && warp.carry_known >> lane & 1 == 0) as u128;
            let differ = if u == [0; 3] && open == 0 {
                0
            } else if matches!(f, Alu::Add | Alu::Sub) {
                let (least, largest) = ([v[0] & !u[0], v[1] & !u[1]], [v[0] | u[0], v[1] | u[1]]);
                let (c0, c1) = (cin & !open, cin | open);
                let (lo, hi) = if f == Alu::Add {
                    (result([least[0], least[1], 0], c0), result([largest[0], largest[1], 0], c1))
                } else {
                    (result([least[0], largest[1], 0], c1), result([largest[0], least[1], 0], c0))
                };
                (lo ^ hi) | u[0] | u[1] | open
            } else {
                !0
            };
            unknown[lane] = low(differ) as u64;
            let carry = full >> bits != 0;
            // Subtraction keeps a borrow.
            let carry = if f == Alu::Sub { !carry } else { carry };
            out = (out & !(1 << lane)) | (carry as u32) << lane;
            out_known = (out_known & !(1 << lane)) | ((differ >> bits & 1 == 0) as u32) << lane;
            put_lane(&mut warp.regs, d, wide, lane, low(full) as u64);
        }
        if carry_out {
            (warp.carry, warp.carry_known) = (out, out_known);
        }
        if unknown == [0; LANES] && d != SINK {
            warp.regs.set_init(d, active, !0);
        } else {
            warp.regs.set_unknown(d, wide, active, &unknown);
        }
    }

    /// Conversions.
    pub(super) fn cvt(
        &mut self,
        w: usize,
        active: u32,
        to: Ty,
        from: Ty,
        round: Round,
        int_round: Option<IntRound>,
        ftz: bool,
        sat: bool,
        relu: bool,
        d: Slot,
        wide_d: bool,
        s: [Slot; 2],
    ) {
        let regs = &mut self.warps[w].regs;
        if d == SINK {
            return;
        }
        let wide_a = from.wide();
        // The conversions that kernels do most, in loops that vectorise.
        let fast = active == !0 && !ftz && !sat && !relu && round == crate::float::Round::NearestEven;
        if wide_d && !wide_a && to.wide() && matches!(from, Ty::U32 | Ty::S32) && !to.is_float() && !sat {
            let a = *regs.r32(s[0]);
            let v = if from == Ty::S32 { each(|i| a[i] as i32 as i64 as u64) } else { each(|i| a[i] as u64) };
            regs.put64(d, &v, active);
        } else if wide_a && !wide_d && !from.is_float() && !to.is_float() && to.bits() == 32 && !sat {
            let a = regs.r64(s[0]);
            let v = each(|i| a[i] as u32);
            regs.put32(d, &v, active);
        } else if fast && matches!(to, Ty::F16x2 | Ty::BF16x2) && from == Ty::F32 {
            use crate::float::{f32_to_bf16, f32_to_f16};
            let (hi, lo) = (*regs.r32(s[0]), *regs.r32(s[1]));
            let bf = to == Ty::BF16x2;
            let one = |b: u32| if bf { f32_to_bf16(f32::from_bits(b)) } else { f32_to_f16(f32::from_bits(b)) } as u32;
            let v = each(|i| one(lo[i]) | one(hi[i]) << 16);
            regs.put32(d, &v, active);
        } else {
            for lane in lanes(active) {
                let a = regs.lane(s[0], wide_a, lane);
                let b = if s[1] == ZERO { 0 } else { regs.lane(s[1], false, lane) };
                let mut v = alu::convert(to, from, round, int_round, ftz, sat, relu, a, b);
                // A narrow signed result fills its register with its sign.
                if to.signed() && to.bits() < 64 {
                    let sh = 64 - to.bits();
                    v = (((v << sh) as i64) >> sh) as u64;
                }
                put_lane(regs, d, wide_d, lane, v);
            }
        }
        let known = regs.init(s[0]) & regs.init(s[1]);
        if known & active == active {
            return regs.set_init(d, active, !0);
        }
        let plain = !sat && int_round.is_none();
        let mut unknown = [0; LANES];
        for lane in lanes(active) {
            unknown[lane] = alu::converted(to, from, plain, regs.unknown(s[0], lane), regs.unknown(s[1], lane));
        }
        regs.set_unknown(d, wide_d, active, &unknown);
    }

    /// mov of a vector into a register.
    pub(super) fn pack(&mut self, w: usize, active: u32, d: Slot, wide: bool, bits: u32, s: [Slot; 4], n: u8) {
        let regs = &mut self.warps[w].regs;
        let mut v = [0u64; LANES];
        let m = (1u64 << bits) - 1;
        for (i, &src) in s[..n as usize].iter().enumerate() {
            let a = regs.r32(src);
            for lane in 0..LANES {
                v[lane] |= (a[lane] as u64 & m) << (i as u32 * bits);
            }
        }
        if wide {
            regs.put64(d, &v, active);
        } else {
            regs.put32(d, &v.map(|v| v as u32), active);
        }
        if d == SINK {
            return;
        }
        let known = s.iter().fold(!0, |k, &s| k & regs.init(s));
        if known & active == active {
            return regs.set_init(d, active, !0);
        }
        let mut unknown = [0; LANES];
        for lane in lanes(active) {
            let part = |(i, s): (usize, &Slot)| (regs.unknown(*s, lane) & m) << (i as u32 * bits);
            unknown[lane] = s[..n as usize].iter().enumerate().map(part).fold(0, |u, p| u | p);
        }
        regs.set_unknown(d, wide, active, &unknown);
    }

    /// mov of a register into a vector.
    pub(super) fn unpack(&mut self, w: usize, active: u32, a: Slot, wide: bool, bits: u32, d: [Slot; 4], n: u8) {
        let regs = &mut self.warps[w].regs;
        let v: [u64; LANES] = if wide { *regs.r64(a) } else { regs.r32(a).map(|v| v as u64) };
        let m = (1u64 << bits) - 1;
        let known = regs.init(a) & active == active;
        // A destination may be the source.
        let unknown: [u64; LANES] = if known { [0; LANES] } else { each(|l| regs.unknown(a, l)) };
        for (i, &dst) in d[..n as usize].iter().enumerate() {
            if dst == SINK {
                continue;
            }
            regs.put32(dst, &v.map(|v| (v >> (i as u32 * bits) & m) as u32), active);
            if known {
                regs.set_init(dst, active, !0);
            } else {
                regs.set_unknown(dst, false, active, &unknown.map(|u| u >> (i as u32 * bits) & m));
            }
        }
    }

    /// Call parameters from one place of local memory to another.
    pub(super) fn local_copy(&mut self, w: usize, active: u32, dst: u32, src: u32, bytes: u32) {
        let size = self.ctx.prog.local_bytes as usize;
        let warp = &mut self.warps[w];
        for lane in lanes(active) {
            let (from, to) = (lane * size + src as usize, lane * size + dst as usize);
            warp.local.copy_within(from..from + bytes as usize, to);
            warp.local_known.copy_within(from..from + bytes as usize, to);
        }
    }

    /// A clock that goes on with every look at it.
    pub(super) fn clock(&mut self, w: usize, active: u32, d: Slot, wide: bool, global: bool) {
        self.ticks += 1;
        // Time goes on: whoever waits for it does not wait for others.
        self.warps[w].seen.clear();
        let t = self.ticks * if global { 32 } else { 8 };
        let regs = &mut self.warps[w].regs;
        for lane in lanes(active) {
            put_lane(regs, d, wide, lane, t);
        }
        if d != SINK {
            regs.set_init(d, active, !0);
        }
    }
}
