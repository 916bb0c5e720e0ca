//! Instructions through which the lanes of a warp see each other's values, and the checks of convergence.

use super::{Cta, Exec, lanes};
use crate::alu::{self, LANES};
use crate::error::FaultKind;
use crate::ir::*;

impl Cta<'_> {
    /// shfl.sync.
    pub(super) fn shfl(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        mode: ShflMode,
        d: Slot,
        p: u32,
        a: Slot,
        b: Slot,
        c: Slot,
        mask: Slot,
    ) -> Exec<()> {
        let groups = self.groups(w, pc, active, mask)?;
        let regs = &mut self.warps[w].regs;
        let (av, bv, cv) = (*regs.r32(a), *regs.r32(b), *regs.r32(c));
        let src_known = regs.init(a);
        // Lanes that know where their value comes from.
        let placed = if regs.init(b) & regs.init(c) & active == active {
            active
        } else {
            let open = |l: usize| regs.unknown(b, l) & 31 | regs.unknown(c, l) & 0x1f1f;
            lanes(active).filter(|&l| open(l) == 0).fold(0, |m, l| m | 1 << l)
        };
        let mut out = av;
        let (mut pm, mut known) = (0u32, 0u32);
        let mut unknown = [0; LANES];
        for (lane, members) in groups.each_lane() {
            let b = bv[lane] & 31;
            let cval = cv[lane] & 31;
            let seg = cv[lane] >> 8 & 31;
            let l = lane as u32;
            let max = (l & seg) | (cval & !seg);
            let min = l & seg;
            let (j, ok) = match mode {
                ShflMode::Up => (l.wrapping_sub(b), l as i32 - b as i32 >= max as i32),
                ShflMode::Down => (l + b, l + b <= max),
                ShflMode::Bfly => (l ^ b, l ^ b <= max),
                ShflMode::Idx => (min | (b & !seg), min | (b & !seg) <= max),
            };
            let j = if ok { j & 31 } else { l };
            out[lane] = av[j as usize];
            pm |= (ok as u32) << lane;
            // A lane that does not take part has no value to give.
            let there = members & (1 << j) != 0 && placed >> lane & 1 == 1;
            if there && src_known >> j & 1 == 1 {
                known |= 1 << lane;
            } else {
                unknown[lane] = if there { regs.unknown(a, j as usize) } else { !0 };
            }
        }
        regs.put32(d, &out, active);
        if known == active && d != SINK {
            regs.set_init(d, active, !0);
        } else {
            regs.set_unknown(d, false, active, &unknown);
        }
        regs.put_pred(p, pm, active, placed);
        Ok(())
    }

    /// vote.sync.
    pub(super) fn vote(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        mode: VoteMode,
        d: Slot,
        p: u32,
        a: Pred,
        mask: Slot,
    ) -> Exec<()> {
        let groups = self.groups(w, pc, active, mask)?;
        let regs = &mut self.warps[w].regs;
        let v = regs.preds[a.index as usize];
        let v = if a.negated { !v } else { v };
        let written = regs.pred_init[a.index as usize];
        for members in groups.each() {
            let v = v & members;
            let open = members & !written;
            let (yes, no) = (v & !open, members & !v & !open);
            let decided = match mode {
                _ if open == 0 => true,
                VoteMode::Ballot => false,
                VoteMode::All => no != 0,
                VoteMode::Any => yes != 0,
                VoteMode::Uni => yes != 0 && no != 0,
            };
            let known = if decided { !0 } else { 0 };
            match mode {
                VoteMode::Ballot => {
                    regs.put32(d, &[v; LANES], members);
                    regs.set_unknown(d, false, members, &[open as u64; LANES]);
                }
                VoteMode::All => regs.put_pred(p, if v == members { !0 } else { 0 }, members, known),
                VoteMode::Any => regs.put_pred(p, if v != 0 { !0 } else { 0 }, members, known),
                VoteMode::Uni => {
                    regs.put_pred(p, if v == members || v == 0 { !0 } else { 0 }, members, known);
                }
            }
        }
        Ok(())
    }

    /// match.sync.
    pub(super) fn match_sync(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        all: bool,
        wide: bool,
        d: Slot,
        p: u32,
        a: Slot,
        mask: Slot,
    ) -> Exec<()> {
        let groups = self.groups(w, pc, active, mask)?;
        let regs = &mut self.warps[w].regs;
        let mut out = [0u32; LANES];
        let (mut pm, mut known) = (0, 0);
        for members in groups.each() {
            for lane in lanes(members) {
                let me = regs.lane(a, wide, lane);
                let same = lanes(members).filter(|&l| regs.lane(a, wide, l) == me).fold(0u32, |m, l| m | 1 << l);
                if all {
                    let yes = same == members;
                    out[lane] = if yes { members } else { 0 };
                    pm |= (yes as u32) << lane;
                } else {
                    out[lane] = same;
                }
            }
            if regs.init(a) & members == members {
                known |= members;
            }
        }
        regs.put32(d, &out, active);
        if d != SINK {
            regs.set_init(d, active, known);
        }
        regs.put_pred(p, pm, active, known);
        Ok(())
    }

    /// redux.sync.
    pub(super) fn redux(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        op: AtomOp,
        ty: Ty,
        d: Slot,
        a: Slot,
        mask: Slot,
    ) -> Exec<()> {
        let groups = self.groups(w, pc, active, mask)?;
        let regs = &mut self.warps[w].regs;
        for members in groups.each() {
            let mut values = lanes(members).map(|l| regs.r32(a)[l] as u64);
            let first = values.next().unwrap_or(0);
            let v = values.fold(first, |x, y| alu::atomic(op, ty, x, y, 0, false)) as u32;
            let of = |l: usize| (regs.r32(a)[l] as u64, regs.unknown(a, l));
            let any = lanes(members).fold(0, |u, l| u | of(l).1);
            // A known 0 decides the bit of an `and`, a known 1 that of an `or`.
            let decided = match op {
                AtomOp::And => lanes(members).fold(0, |u, l| u | !(of(l).0 | of(l).1)),
                AtomOp::Or => lanes(members).fold(0, |u, l| u | (of(l).0 & !of(l).1)),
                _ => 0,
            };
            let bitwise = matches!(op, AtomOp::And | AtomOp::Or | AtomOp::Xor);
            let unknown = if bitwise || any == 0 { any & !decided } else { !0 };
            regs.put32(d, &[v; LANES], members);
            regs.set_unknown(d, false, members, &[unknown; LANES]);
        }
        Ok(())
    }

    /// elect.sync.
    pub(super) fn elect(&mut self, w: usize, pc: u32, active: u32, d: Slot, p: u32, mask: Slot) -> Exec<()> {
        let groups = self.groups(w, pc, active, mask)?;
        let regs = &mut self.warps[w].regs;
        for members in groups.each() {
            let leader = members.trailing_zeros();
            regs.put32(d, &[leader; LANES], members);
            if d != SINK {
                regs.set_init(d, members, !0);
            }
            regs.put_pred(p, 1 << leader, members, !0);
        }
        Ok(())
    }

    /// The lanes that execute it together.
    pub(super) fn activemask(&mut self, w: usize, active: u32, d: Slot) {
        let regs = &mut self.warps[w].regs;
        regs.put32(d, &[active; LANES], active);
        if d != SINK {
            regs.set_init(d, active, !0);
        }
    }

    /// movmatrix: transposes an 8 by 8 matrix of 16-bit elements.
    pub(super) fn move_matrix(&mut self, w: usize, pc: u32, active: u32, d: Slot, a: Slot) -> Exec<()> {
        self.aligned(w, pc, active)?;
        let regs = &mut self.warps[w].regs;
        let a_v = *regs.r32(a);
        let at = |row: usize, col: usize| (a_v[row * 4 + col / 2] >> (16 * (col & 1))) & 0xffff;
        let v = std::array::from_fn(|t| at(2 * (t % 4), t / 4) | at(2 * (t % 4) + 1, t / 4) << 16);
        regs.put32(d, &v, active);
        if d != SINK {
            let known = if regs.init(a) == !0 { !0 } else { 0 };
            regs.set_init(d, active, known);
        }
        Ok(())
    }

    /// `.aligned` instructions need every live lane of the warp.
    pub(crate) fn aligned(&self, w: usize, pc: u32, active: u32) -> Exec<()> {
        let live = self.warps[w].live;
        if self.ctx.checks.convergence && active != live {
            let d = format!(
                "lanes {active:#010x} execute it while lanes {:#010x} of the warp are elsewhere",
                live & !active
            );
            return Err(self.fault(w, Some(active.trailing_zeros()), pc, FaultKind::DivergentCollective, d));
        }
        Ok(())
    }

    /// A member mask must be written.
    pub(super) fn known_mask(&self, w: usize, pc: u32, active: u32, mask: Slot) -> Exec<()> {
        let missing = active & !self.warps[w].regs.init(mask);
        if missing != 0 {
            let d = "the member mask depends on a value that nobody wrote".to_owned();
            return Err(self.fault(w, Some(missing.trailing_zeros()), pc, FaultKind::UninitializedRegister, d));
        }
        Ok(())
    }

    /// The lanes that take part in a `.sync` instruction, in groups that name the same lanes. Each lane gives a mask of its own (PTX ISA,
    /// `membermask`): tiles of a warp execute one instruction with a mask for each. A mask must hold the lane that gives it, and
    /// all of its lanes must be here with the same one.
    pub(super) fn groups(&self, w: usize, pc: u32, active: u32, mask: Slot) -> Exec<Groups> {
        self.known_mask(w, pc, active, mask)?;
        let warp = &self.warps[w];
        let masks = warp.regs.r32(mask);
        let groups = Groups::of(active, masks);
        if !self.ctx.checks.convergence {
            return Ok(groups);
        }
        for members in groups.each() {
            let first = members.trailing_zeros();
            let m = masks[first as usize];
            if members & !m != 0 {
                let d =
                    format!("lanes {members:#010x} execute it with member mask {m:#010x}, which has not all of them");
                let lane = (members & !m).trailing_zeros();
                return Err(self.fault(w, Some(lane), pc, FaultKind::DivergentCollective, d));
            }
            if let Some(lane) = lanes(m & active & !members).next() {
                let other = masks[lane];
                let d = format!(
                    "the member mask {m:#010x} of lane {first} names lane {lane}, whose own member mask is {other:#010x}"
                );
                return Err(self.fault(w, Some(first), pc, FaultKind::DivergentCollective, d));
            }
            let missing = m & warp.live & !members;
            if missing != 0 {
                let d = format!("the member mask {m:#010x} names lanes {missing:#010x}, which are elsewhere");
                return Err(self.fault(w, Some(missing.trailing_zeros()), pc, FaultKind::DivergentCollective, d));
            }
        }
        Ok(groups)
    }
}

/// The lanes that execute an instruction, by the member mask that they give.
pub(super) struct Groups {
    lanes: [u32; LANES],
    count: usize,
}

impl Groups {
    pub(super) fn of(active: u32, masks: &[u32; LANES]) -> Groups {
        let mut groups = Groups { lanes: [0; LANES], count: 0 };
        let mut rest = active;
        while rest != 0 {
            let mask = masks[rest.trailing_zeros() as usize];
            let group = lanes(rest).filter(|&l| masks[l] == mask).fold(0u32, |m, l| m | 1 << l);
            groups.lanes[groups.count] = group;
            groups.count += 1;
            rest &= !group;
        }
        groups
    }

    pub(super) fn each(&self) -> impl Iterator<Item = u32> {
        self.lanes[..self.count].iter().copied()
    }

    /// Every lane with its group.
    fn each_lane(&self) -> impl Iterator<Item = (usize, u32)> {
        self.each().flat_map(|group| lanes(group).map(move |lane| (lane, group)))
    }
}
