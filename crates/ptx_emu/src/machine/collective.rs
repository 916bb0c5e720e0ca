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
        self.members(w, pc, active, mask)?;
        let regs = &mut self.warps[w].regs;
        let (av, bv, cv) = (*regs.r32(a), *regs.r32(b), *regs.r32(c));
        let src_known = regs.init(a);
        let mut out = av;
        let (mut pm, mut known) = (0u32, 0u32);
        for lane in lanes(active) {
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
            if src_known & active & (1 << j) != 0 {
                known |= 1 << lane;
            }
        }
        regs.put32(d, &out, active);
        if d != SINK {
            regs.set_init(d, active, known);
        }
        regs.put_pred(p, pm, active, !0);
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
        let members = self.members(w, pc, active, mask)?;
        let regs = &mut self.warps[w].regs;
        let v = regs.preds[a.index as usize];
        let v = (if a.negated { !v } else { v }) & members;
        let known = if regs.pred_init[a.index as usize] & members == members { !0 } else { 0 };
        match mode {
            VoteMode::Ballot => {
                regs.put32(d, &[v; LANES], active);
                if d != SINK {
                    regs.set_init(d, active, known);
                }
            }
            VoteMode::All => regs.put_pred(p, if v == members { !0 } else { 0 }, active, known),
            VoteMode::Any => regs.put_pred(p, if v != 0 { !0 } else { 0 }, active, known),
            VoteMode::Uni => {
                regs.put_pred(p, if v == members || v == 0 { !0 } else { 0 }, active, known);
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
        let members = self.members(w, pc, active, mask)?;
        let regs = &mut self.warps[w].regs;
        let mut out = [0u32; LANES];
        let mut pm = 0;
        for lane in lanes(active) {
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
        let known = if regs.init(a) & members == members { !0 } else { 0 };
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
        let members = self.members(w, pc, active, mask)?;
        let regs = &mut self.warps[w].regs;
        let mut values = lanes(members).map(|l| regs.r32(a)[l] as u64);
        let first = values.next().unwrap_or(0);
        let v = values.fold(first, |x, y| alu::atomic(op, ty, x, y, 0, false)) as u32;
        let known = if regs.init(a) & members == members { !0 } else { 0 };
        regs.put32(d, &[v; LANES], active);
        if d != SINK {
            regs.set_init(d, active, known);
        }
        Ok(())
    }

    /// elect.sync.
    pub(super) fn elect(&mut self, w: usize, pc: u32, active: u32, d: Slot, p: u32, mask: Slot) -> Exec<()> {
        let members = self.members(w, pc, active, mask)?;
        let regs = &mut self.warps[w].regs;
        let leader = members.trailing_zeros();
        regs.put32(d, &[leader; LANES], active);
        if d != SINK {
            regs.set_init(d, active, !0);
        }
        regs.put_pred(p, 1 << (leader & 31), active, !0);
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

    /// The lanes that take part in a `.sync` instruction.
    pub(super) fn members(&self, w: usize, pc: u32, active: u32, mask: Slot) -> Exec<u32> {
        let warp = &self.warps[w];
        let m = warp.regs.r32(mask);
        let first = m[active.trailing_zeros() as usize];
        if self.ctx.checks.convergence {
            if let Some(lane) = lanes(active).find(|&l| m[l] != first) {
                let d = format!("member masks {first:#x} and {:#x} in one instruction", m[lane]);
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::DivergentCollective, d));
            }
            if active & !first != 0 {
                let d = format!(
                    "lanes {active:#010x} execute it with member mask {first:#010x}, which has not all of them"
                );
                let lane = (active & !first).trailing_zeros();
                return Err(self.fault(w, Some(lane), pc, FaultKind::DivergentCollective, d));
            }
            let missing = first & warp.live & !active;
            if missing != 0 {
                let d = format!("the member mask {first:#010x} names lanes {missing:#010x}, which are elsewhere");
                return Err(self.fault(w, Some(missing.trailing_zeros()), pc, FaultKind::DivergentCollective, d));
            }
        }
        Ok(first & active)
    }
}
