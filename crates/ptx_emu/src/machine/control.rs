//! Instructions after which a part of a warp does not simply go on: branches, exits, and everything that waits.

use super::collective::Groups;
use super::run::Step;
use super::warp::{NO_NODE, Node, Split};
use super::{Block, Cta, Exec};
use crate::error::FaultKind;
use crate::ir::*;
use crate::mbarrier::Wait;

impl Cta<'_> {
    /// Executes an instruction that is neither arithmetic nor a comparison.
    pub(super) fn step(&mut self, w: usize, sp: &mut Split, active: u32, op: &Op) -> Exec<Step> {
        let pc = sp.pc;
        match op {
            Op::Bra { target, reconverge } => return Ok(self.branch(w, sp, active, *target, *reconverge)),
            Op::BraExit => {
                self.count_branch_to_exit(sp, active);
                return self.exit(w, sp, active);
            }
            Op::Exit => return self.exit(w, sp, active),
            Op::Trap => {
                let lane = active.trailing_zeros();
                return Err(self.fault(w, Some(lane), pc, FaultKind::Trap, "the kernel trapped".to_owned()));
            }
            Op::Unsupported(what) => {
                let lane = active.trailing_zeros();
                return Err(self.fault(w, Some(lane), pc, FaultKind::Unsupported, what.clone()));
            }
            Op::WarpSync { mask } => return self.wait_for_warp(w, sp, active, *mask),
            Op::Bar { kind, aligned, id, count, has_count, d, p, a } => {
                let blocked = self.barrier(w, pc, active, *kind, *aligned, *id, *count, *has_count, *d, *p, *a)?;
                if let Some(id) = blocked {
                    sp.pc += 1;
                    self.block(w, sp, Block::Barrier(id));
                    self.try_release(id)?;
                    return Ok(Step::Left);
                }
            }
            Op::MbarWait { addr, space, p, on, blocking, order, .. } => {
                let wait = self.mbar_wait(w, pc, active, *addr, *space, *p, *on, *order)?;
                if !blocking && let Wait::Incomplete(off) = wait {
                    self.note_strong_read(w, pc, active, off as u64);
                }
                return Ok(self.waited(w, sp, wait, *blocking));
            }
            Op::ClusterWait { aligned } => {
                if !self.cluster_wait(w, pc, active, *aligned)? {
                    self.block(w, sp, Block::Cluster);
                    return Ok(Step::Left);
                }
            }
            Op::WgmmaWait(n) => {
                if !self.wgmma_wait(w, pc, active, *n)? {
                    sp.block = Some(Block::Wgmma);
                    self.warps[w].splits.push(*sp);
                    return Ok(Step::Left);
                }
            }
            Op::Nanosleep => return Ok(self.others_first(w, sp)),
            op => {
                self.execute(w, pc, active, op)?;
                if self.repeats {
                    self.repeats = false;
                    self.polled = self.stuck;
                    return Ok(self.others_first(w, sp));
                }
            }
        }
        Ok(Step::Next)
    }

    /// The part goes on behind the instruction after the others had their turn.
    fn others_first(&mut self, w: usize, sp: &mut Split) -> Step {
        sp.pc += 1;
        self.warps[w].splits.push(*sp);
        Step::Left
    }

    fn block(&mut self, w: usize, sp: &mut Split, on: Block) {
        sp.block = Some(on);
        self.counters.barrier_waits += 1;
        self.warps[w].splits.push(*sp);
    }

    fn branch(&mut self, w: usize, sp: &mut Split, active: u32, target: u32, reconverge: u32) -> Step {
        if active == sp.mask {
            sp.pc = target;
            return Step::There;
        }
        self.counters.divergent_branches += 1;
        let stay = sp.mask & !active;
        if sp.node == NO_NODE || self.warps[w].nodes[sp.node as usize].pc != reconverge {
            let n = Node { pc: reconverge, expect: sp.mask, arrived: 0, parent: sp.node, used: true };
            sp.node = self.node(w, n);
        }
        let taken = Split { pc: target, mask: active, node: sp.node, block: None, gave_up: false };
        let other = Split { pc: sp.pc + 1, mask: stay, node: sp.node, block: None, gave_up: false };
        let first = self.ctx.seed != 0 && self.rng.below(2) == 0;
        let (run, wait) = if first { (taken, other) } else { (other, taken) };
        // A side that starts at the meeting point has arrived already.
        if wait.node != NO_NODE && wait.pc == reconverge {
            let done = self.meet(w, wait);
            debug_assert!(done.is_none());
        } else {
            self.warps[w].splits.push(wait);
        }
        *sp = run;
        Step::There
    }

    fn exit(&mut self, w: usize, sp: &mut Split, active: u32) -> Exec<Step> {
        self.exit_lanes(w, active, sp.node)?;
        sp.mask &= !active;
        Ok(if sp.mask == 0 { Step::Left } else { Step::Next })
    }

    /// A branch to the common return counts as the branch, and as the instruction that it leads to.
    fn count_branch_to_exit(&mut self, sp: &Split, active: u32) {
        let lanes = active.count_ones() as u64;
        let class = self.ctx.prog.code[sp.pc as usize].class;
        let c = &mut self.counters;
        c.lane_instructions += lanes;
        c.by_class[class as usize] += lanes;
        if active == sp.mask {
            c.warp_instructions += 1;
        } else {
            c.divergent_branches += 1;
        }
    }

    /// bar.warp.sync. Lanes wait for those that their own mask names; those that have all of them here go on.
    fn wait_for_warp(&mut self, w: usize, sp: &mut Split, active: u32, mask: Slot) -> Exec<Step> {
        self.known_mask(w, sp.pc, active, mask)?;
        let masks = *self.warps[w].regs.r32(mask);
        let live = self.warps[w].live;
        let mut waiting = Vec::new();
        for group in Groups::of(active, &masks).each() {
            let mut m = masks[group.trailing_zeros() as usize];
            if group & !m != 0 {
                if self.ctx.checks.convergence {
                    let d = format!("lanes {group:#x} execute it with mask {m:#x}, which has not all of them");
                    let lane = (group & !m).trailing_zeros();
                    return Err(self.fault(w, Some(lane), sp.pc, FaultKind::DivergentCollective, d));
                }
                m |= group;
            }
            if group == m & live {
                self.warp_sync(w, group);
            } else {
                waiting.push((m, group));
            }
        }
        sp.pc += 1;
        for &(m, group) in &waiting {
            sp.mask &= !group;
            self.warps[w].splits.push(Split { mask: group, block: Some(Block::WarpSync(m)), ..*sp });
        }
        if !waiting.is_empty() {
            self.wake_warp_sync(w);
        }
        Ok(if sp.mask == 0 { Step::Left } else { Step::There })
    }

    /// After a look at an mbarrier. Who polls lets the others go on before the next look.
    fn waited(&mut self, w: usize, sp: &mut Split, wait: Wait, blocking: bool) -> Step {
        match wait {
            // A blocking wait may time out: the first one does, so that a missing loop shows.
            Wait::Incomplete(off) if blocking && sp.gave_up => {
                sp.gave_up = false;
                self.block(w, sp, Block::Mbarrier(off));
                Step::Left
            }
            Wait::Incomplete(_) => {
                sp.gave_up = self.ctx.seed == 0 || self.rng.below(2) == 0;
                self.polled = !blocking && self.stuck;
                self.repeats = false;
                self.others_first(w, sp)
            }
            Wait::Mixed => self.others_first(w, sp),
            Wait::Done => {
                sp.gave_up = false;
                Step::Next
            }
        }
    }
}
