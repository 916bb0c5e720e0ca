//! The instruction loop of one part of a warp.

use super::warp::{NO_NODE, Split};
use super::{Cta, Exec, logic, logic_known};
use crate::alu;
use crate::error::FaultKind;
use crate::ir::*;

/// How the part of a warp goes on after an instruction.
pub(super) enum Step {
    /// At the next one.
    Next,
    /// Where it stands now.
    There,
    /// Not now: it ended, or was put back among the parts of its warp.
    Left,
}

impl Cta<'_> {
    /// Runs a part of a warp for at most so many instructions.
    pub(super) fn run_split(&mut self, w: usize, mut sp: Split, quantum: u32) -> Exec<()> {
        let prog = self.ctx.prog;
        let wgmma_checks = prog.uses_wgmma && self.ctx.checks.asynchronous;
        let mut left = quantum;
        loop {
            if sp.node != NO_NODE && self.warps[w].nodes[sp.node as usize].pc == sp.pc {
                match self.meet(w, sp) {
                    Some(s) => {
                        sp = s;
                        continue;
                    }
                    None => return Ok(()),
                }
            }
            if left == 0 {
                self.cut = true;
                self.warps[w].splits.push(sp);
                return Ok(());
            }
            left -= 1;
            let pc = sp.pc;
            let inst = &prog.code[pc as usize];
            let active = self.guarded(w, &sp, inst.guard)?;
            self.count(inst, active);
            if active == 0 {
                sp.pc += 1;
                continue;
            }
            if wgmma_checks {
                self.check_wgmma_registers(w, pc, inst)?;
            }
            match &inst.op {
                Op::Alu { f, ty, m, d, s } => {
                    let regs = &mut self.warps[w].regs;
                    if self.ctx.checks.uninitialized && *d != SINK {
                        let known = regs.init(s[0]) & regs.init(s[1]) & regs.init(s[2]) & regs.init(s[3]);
                        if known & active == active {
                            regs.set_init(*d, active, !0);
                        } else {
                            alu::define(regs, &prog.wide, *f, *ty, *m, *d, s, active);
                        }
                    }
                    alu::execute(regs, self.ctx.simd, *f, *ty, *m, *d, s, active);
                    self.count_arithmetic(inst, *ty, active);
                }
                Op::Setp { cmp, ty, ftz, combine, p, q, a, b } => {
                    self.setp(w, active, *cmp, *ty, *ftz, *combine, *p, *q, *a, *b);
                }
                op => match self.step(w, &mut sp, active, op)? {
                    Step::Next => {}
                    Step::There => continue,
                    Step::Left => return Ok(()),
                },
            }
            sp.pc += 1;
        }
    }

    /// The lanes of a part that the guard lets execute.
    #[inline(always)]
    fn guarded(&self, w: usize, sp: &Split, g: Pred) -> Exec<u32> {
        if g == TRUE {
            return Ok(sp.mask);
        }
        let regs = &self.warps[w].regs;
        let written = regs.pred_init[g.index as usize];
        if self.ctx.checks.uninitialized && written & sp.mask != sp.mask {
            let lane = (sp.mask & !written).trailing_zeros();
            let d = "the guard predicate depends on a value that nobody wrote".to_owned();
            return Err(self.fault(w, Some(lane), sp.pc, FaultKind::UninitializedRegister, d));
        }
        let p = regs.preds[g.index as usize];
        Ok(sp.mask & if g.negated { !p } else { p })
    }

    #[inline(always)]
    fn count(&mut self, inst: &Inst, active: u32) {
        let lanes = active.count_ones() as u64;
        let c = &mut self.counters;
        c.warp_instructions += 1;
        c.lane_instructions += lanes;
        c.by_class[inst.class as usize] += lanes;
    }

    #[inline(always)]
    pub(super) fn count_arithmetic(&mut self, inst: &Inst, ty: Ty, active: u32) {
        let lanes = active.count_ones() as u64;
        let c = &mut self.counters;
        if inst.flops != 0 {
            let n = lanes * inst.flops as u64;
            match ty {
                Ty::F64 => c.f64_flops += n,
                Ty::F32 | Ty::F32x2 => c.f32_flops += n,
                _ => c.half_flops += n,
            }
        }
        if inst.class == Class::Special {
            c.special_functions += lanes;
        }
    }

    #[inline(always)]
    fn setp(
        &mut self,
        w: usize,
        active: u32,
        cmp: Cmp,
        ty: Ty,
        ftz: bool,
        combine: Option<(BoolOp, Pred)>,
        p: u32,
        q: u32,
        a: Slot,
        b: Slot,
    ) {
        let prog = self.ctx.prog;
        let regs = &mut self.warps[w].regs;
        let known = regs.init(a) & regs.init(b);
        let (lo, hi) = alu::compare(regs, cmp, ty, ftz, a, b);
        let packed = matches!(ty, Ty::F16x2 | Ty::BF16x2);
        let (mut x, mut y) = (lo, if packed { hi } else { !lo });
        let [mut known_x, mut known_y] =
            if known & active == active { [!0; 2] } else { alu::decided(regs, &prog.wide, cmp, ty, a, b, active) };
        if let Some((f, c)) = combine {
            let v = regs.preds[c.index as usize];
            let v = if c.negated { !v } else { v };
            let known = regs.pred_init[c.index as usize];
            known_x = logic_known(f, (x, known_x), (v, known));
            known_y = logic_known(f, (y, known_y), (v, known));
            x = logic(f, x, v);
            y = logic(f, y, v);
        }
        regs.put_pred(p, x, active, known_x);
        regs.put_pred(q, y, active, known_y);
    }
}
