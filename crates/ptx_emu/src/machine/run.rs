//! The instruction loop of one diverged part of a warp, with everything that ends or blocks it.

use super::warp::{NO_NODE, Node, Split};
use super::{Block, Cta, Exec, logic};
use crate::alu;
use crate::error::FaultKind;
use crate::ir::*;
use crate::mbarrier::Wait;

impl Cta<'_> {
    pub(super) fn run_split(&mut self, w: usize, mut sp: Split, quantum: u32) -> Exec<()> {
        let prog = self.ctx.prog;
        let checks = self.ctx.checks;
        let wgmma_checks = prog.uses_wgmma && checks.asynchronous;
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
            let mut active = sp.mask;
            if inst.guard != TRUE {
                let regs = &self.warps[w].regs;
                let g = inst.guard;
                if checks.uninitialized && regs.pred_init[g.index as usize] & sp.mask != sp.mask {
                    let lane = (sp.mask & !regs.pred_init[g.index as usize]).trailing_zeros();
                    let d = "the guard predicate depends on a value that nobody wrote".to_owned();
                    return Err(self.fault(w, Some(lane), pc, FaultKind::UninitializedRegister, d));
                }
                let p = regs.preds[g.index as usize];
                active &= if g.negated { !p } else { p };
            }
            let lanes = active.count_ones() as u64;
            let c = &mut self.counters;
            c.warp_instructions += 1;
            c.lane_instructions += lanes;
            c.by_class[inst.class as usize] += lanes;
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
                    if checks.uninitialized && *d != SINK {
                        let known = regs.init(s[0]) & regs.init(s[1]) & regs.init(s[2]) & regs.init(s[3]);
                        regs.set_init(*d, active, known);
                    }
                    alu::execute(regs, self.ctx.simd, *f, *ty, *m, *d, s, active);
                    if inst.flops != 0 {
                        let n = lanes * inst.flops as u64;
                        match ty {
                            Ty::F64 => self.counters.f64_flops += n,
                            Ty::F32 | Ty::F32x2 => self.counters.f32_flops += n,
                            _ => self.counters.half_flops += n,
                        }
                    }
                    if inst.class == Class::Special {
                        self.counters.special_functions += lanes;
                    }
                }
                Op::Setp { cmp, ty, ftz, combine, p, q, a, b } => {
                    let regs = &mut self.warps[w].regs;
                    let known = regs.init(*a) & regs.init(*b);
                    let (lo, hi) = alu::compare(regs, *cmp, *ty, *ftz, *a, *b);
                    let packed = matches!(ty, Ty::F16x2 | Ty::BF16x2);
                    let (mut x, mut y) = (lo, if packed { hi } else { !lo });
                    let mut known = if checks.uninitialized { known } else { !0 };
                    if let Some((f, c)) = combine {
                        let v = regs.preds[c.index as usize];
                        let v = if c.negated { !v } else { v };
                        known &= regs.pred_init[c.index as usize];
                        x = logic(*f, x, v);
                        y = logic(*f, y, v);
                    }
                    regs.put_pred(*p, x, active, known);
                    regs.put_pred(*q, y, active, known);
                }
                Op::Bra { target, reconverge } => {
                    if active == sp.mask {
                        sp.pc = *target;
                        continue;
                    }
                    self.counters.divergent_branches += 1;
                    let stay = sp.mask & !active;
                    if sp.node == NO_NODE || self.warps[w].nodes[sp.node as usize].pc != *reconverge {
                        let n = Node { pc: *reconverge, expect: sp.mask, arrived: 0, parent: sp.node, used: true };
                        sp.node = self.node(w, n);
                    }
                    let taken = Split { pc: *target, mask: active, node: sp.node, block: None, gave_up: false };
                    let other = Split { pc: pc + 1, mask: stay, node: sp.node, block: None, gave_up: false };
                    let first = self.ctx.seed != 0 && self.rng.below(2) == 0;
                    let (run, wait) = if first { (taken, other) } else { (other, taken) };
                    // A side that starts at the meeting point has arrived already.
                    if wait.node != NO_NODE && wait.pc == *reconverge {
                        let done = self.meet(w, wait);
                        debug_assert!(done.is_none());
                    } else {
                        self.warps[w].splits.push(wait);
                    }
                    sp = run;
                    continue;
                }
                // Counted as the branch, and as the instruction that it leads to.
                Op::BraExit => {
                    let c = &mut self.counters;
                    c.lane_instructions += lanes;
                    c.by_class[inst.class as usize] += lanes;
                    if active == sp.mask {
                        c.warp_instructions += 1;
                    } else {
                        c.divergent_branches += 1;
                    }
                    self.exit_lanes(w, active, sp.node)?;
                    sp.mask &= !active;
                    if sp.mask == 0 {
                        return Ok(());
                    }
                }
                Op::Exit => {
                    self.exit_lanes(w, active, sp.node)?;
                    sp.mask &= !active;
                    if sp.mask == 0 {
                        return Ok(());
                    }
                }
                Op::Trap => {
                    let lane = active.trailing_zeros();
                    return Err(self.fault(w, Some(lane), pc, FaultKind::Trap, "the kernel trapped".to_owned()));
                }
                Op::Unsupported(what) => {
                    let lane = active.trailing_zeros();
                    return Err(self.fault(w, Some(lane), pc, FaultKind::Unsupported, what.clone()));
                }
                Op::WarpSync { mask } => {
                    let m = self.warps[w].regs.r32(*mask)[active.trailing_zeros() as usize];
                    if active & !m != 0 {
                        let d = format!("lanes {active:#x} execute it with mask {m:#x}, which has not all of them");
                        return Err(self.fault(
                            w,
                            Some((active & !m).trailing_zeros()),
                            pc,
                            FaultKind::DivergentCollective,
                            d,
                        ));
                    }
                    sp.pc += 1;
                    if active == m & self.warps[w].live {
                        self.warp_sync(w, active);
                        continue;
                    }
                    sp.block = Some(Block::WarpSync(m));
                    self.warps[w].splits.push(sp);
                    self.wake_warp_sync(w);
                    return Ok(());
                }
                Op::Bar { kind, aligned, id, count, has_count, d, p, a } => {
                    let blocked = self.barrier(w, pc, active, *kind, *aligned, *id, *count, *has_count, *d, *p, *a)?;
                    sp.pc += 1;
                    if let Some(id) = blocked {
                        sp.block = Some(Block::Barrier(id));
                        self.warps[w].splits.push(sp);
                        self.counters.barrier_waits += 1;
                        self.try_release(id)?;
                        return Ok(());
                    }
                    continue;
                }
                Op::MbarWait { addr, space, p, on, blocking, order, .. } => {
                    let wait = self.mbar_wait(w, pc, active, *addr, *space, *p, *on, *order)?;
                    match wait {
                        // A blocking wait may time out: the first one does, so that a missing loop shows.
                        Wait::Incomplete(off) if *blocking && sp.gave_up => {
                            sp.block = Some(Block::Mbarrier(off));
                            sp.gave_up = false;
                            self.counters.barrier_waits += 1;
                        }
                        Wait::Incomplete(_) => {
                            sp.gave_up = self.ctx.seed == 0 || self.rng.below(2) == 0;
                            self.polled = !*blocking;
                            sp.pc += 1;
                        }
                        Wait::Mixed => sp.pc += 1,
                        Wait::Done => {
                            sp.gave_up = false;
                            sp.pc += 1;
                            continue;
                        }
                    }
                    // Polling: the others go on before the next look.
                    self.warps[w].splits.push(sp);
                    return Ok(());
                }
                Op::WgmmaWait(n) => {
                    if !self.wgmma_wait(w, pc, active, *n)? {
                        sp.block = Some(Block::Wgmma);
                        self.warps[w].splits.push(sp);
                        return Ok(());
                    }
                }
                Op::Nanosleep => {
                    sp.pc += 1;
                    self.warps[w].splits.push(sp);
                    return Ok(());
                }
                Op::ClusterWait { aligned } => {
                    if !self.cluster_wait(w, pc, active, *aligned)? {
                        sp.block = Some(Block::Cluster);
                        self.counters.barrier_waits += 1;
                        self.warps[w].splits.push(sp);
                        return Ok(());
                    }
                }
                op => {
                    self.execute(w, pc, active, op)?;
                    if self.repeats {
                        self.repeats = false;
                        self.polled = true;
                        sp.pc += 1;
                        self.warps[w].splits.push(sp);
                        return Ok(());
                    }
                }
            }
            sp.pc += 1;
        }
    }
}
