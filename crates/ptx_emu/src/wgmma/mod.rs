//! Warpgroup matrix instructions: asynchronous products of tiles in shared memory and registers.

mod matrix;
mod product;

use std::collections::VecDeque;

use crate::error::FaultKind;
use crate::ir::*;
use crate::machine::{Block, Cta, Exec};
use matrix::{Matrix, Tile};

/// What one warp gave when it issued its quarter.
#[derive(Debug, Clone, Copy)]
struct Part {
    pc: u32,
    a: u64,
    b: u64,
    accumulate: bool,
}

/// The operations of one warpgroup in order of issue.
#[derive(Debug, Clone, Default)]
pub(crate) struct WarpGroup {
    ops: VecDeque<[Option<Part>; 4]>,
    /// Number of the first operation in `ops`: all before are carried out.
    done: u64,
    /// Operations issued by each warp.
    issued: [u64; 4],
    /// Ends of each warp's committed groups that it has not waited for.
    groups: [VecDeque<u64>; 4],
    /// Operations that each warp has waited for.
    waited: [u64; 4],
}

impl WarpGroup {
    /// Whether operations were issued that no warp waited for.
    pub(crate) fn pending(&self) -> bool {
        (0..4).any(|i| self.waited[i] < self.issued[i])
    }
}

/// Registers of a warp as `wgmma` sees them.
#[derive(Debug, Clone, Default)]
pub(crate) struct WgmmaRegs {
    /// For each slot: the operation after which it is free as an accumulator, as an A operand.
    busy_d: Vec<u64>,
    busy_a: Vec<u64>,
    /// For each slot: the fence period in which another instruction wrote it.
    written: Vec<u64>,
    /// Fences executed.
    fences: u64,
}

impl WgmmaRegs {
    pub(crate) fn new(slots: usize) -> Self {
        WgmmaRegs { busy_d: vec![0; slots], busy_a: vec![0; slots], written: vec![0; slots], fences: 0 }
    }

    pub(crate) fn reset(&mut self) {
        self.busy_d.fill(0);
        self.busy_a.fill(0);
        self.written.fill(0);
        self.fences = 0;
    }
}

impl Cta<'_> {
    /// Registers of asynchronous operations must not be touched; other writes are noted for the fence check.
    pub(crate) fn check_wgmma_registers(&mut self, w: usize, pc: u32, inst: &Inst) -> Exec<()> {
        if matches!(inst.op, Op::Wgmma(_)) {
            return Ok(());
        }
        let (first, reads, writes) = self.ctx.prog.operand_ranges[pc as usize];
        let slots = &self.ctx.prog.operand_slots[first as usize..];
        let waited = self.groups[w / 4].waited[w % 4];
        let regs = &mut self.warps[w].wgmma;
        for (i, &s) in slots[..(reads + writes) as usize].iter().enumerate() {
            let write = i >= reads as usize;
            let s = s as usize;
            if regs.busy_d[s] > waited || (write && regs.busy_a[s] > waited) {
                let role = if regs.busy_d[s] > waited { "an accumulator" } else { "an A operand" };
                let act = if write { "writes" } else { "reads" };
                let d = format!("the instruction {act} a register that is {role} of wgmma in flight");
                return Err(self.fault(w, None, pc, FaultKind::WgmmaRegisterInFlight, d));
            }
            if write {
                // A move keeps its source's age: compilers put them between the fence and wgmma to bring values into the
                // accumulators, and the assembler orders those by itself.
                regs.written[s] = match &inst.op {
                    Op::Alu { f: Alu::Mov, s, .. } => regs.written[s[0] as usize],
                    _ => regs.fences + 1,
                };
            }
        }
        Ok(())
    }

    pub(crate) fn wgmma_fence(&mut self, w: usize) {
        self.warps[w].wgmma.fences += 1;
    }

    pub(crate) fn wgmma(&mut self, w: usize, pc: u32, active: u32, g: &Wgmma) -> Exec<()> {
        self.aligned(w, pc, active)?;
        let (group, quarter) = (w / 4, w % 4);
        if self.warps.len() < 4 * group + 4 {
            let d = format!("warpgroup {group} has only {} warps", self.warps.len() - 4 * group);
            return Err(self.fault(w, None, pc, FaultKind::InvalidOperand, d));
        }
        let regs = &self.warps[w].regs;
        let accumulate = regs.preds[g.scale_d.index as usize] & 1 != 0;
        let accumulate = accumulate != g.scale_d.negated;
        let desc_a = match g.a {
            WgmmaA::Desc(s) => regs.r64(s)[0],
            WgmmaA::Regs(_) => 0,
        };
        let desc_b = regs.r64(g.b)[0];
        let index = self.groups[group].issued[quarter];
        self.check_wgmma_operands(w, pc, g, accumulate)?;
        // What the operation will read of shared memory, checked and recorded now: it may be read from here on.
        let agent = self.wgmma_agent(group as u32);
        let clock = self.clock_base + 1 + index as u32;
        let e = g.a_ty.bits() / 8;
        if let WgmmaA::Desc(_) = g.a {
            let m = Matrix::new(desc_a, e, g.trans_a);
            self.check_matrix(w, pc, &m, 16 * quarter as u32, 16, g.k, agent, clock)?;
        }
        let m = Matrix::new(desc_b, e, g.trans_b);
        self.check_matrix(w, pc, &m, 0, g.n, g.k, agent, clock)?;
        let wg = &mut self.warps[w].wgmma;
        for &s in &g.d {
            wg.busy_d[s as usize] = index + 1;
        }
        if let WgmmaA::Regs(a) = &g.a {
            for &s in a {
                wg.busy_a[s as usize] = index + 1;
            }
        }
        for &s in &g.d {
            self.warps[w].regs.set_init(s, !0, !0);
        }
        let grp = &mut self.groups[group];
        let at = (index - grp.done) as usize;
        while grp.ops.len() <= at {
            grp.ops.push_back([None; 4]);
        }
        grp.ops[at][quarter] = Some(Part { pc, a: desc_a, b: desc_b, accumulate });
        grp.issued[quarter] += 1;
        self.counters.tensor_flops += 2 * 16 * g.n as u64 * g.k as u64;
        for v in 4 * group..4 * group + 4 {
            for s in &mut self.warps[v].splits {
                if s.block == Some(Block::Wgmma) {
                    s.block = None;
                }
            }
        }
        if self.ctx.seed != 0 && self.rng.below(2) == 0 {
            let ready = self.issued_by_all(group);
            self.carry_out(group, ready)?;
        }
        Ok(())
    }

    /// The registers of an operation: fenced since they were written, and written at all.
    fn check_wgmma_operands(&self, w: usize, pc: u32, g: &Wgmma, accumulate: bool) -> Exec<()> {
        let a_regs: &[Slot] = if let WgmmaA::Regs(a) = &g.a { a } else { &[] };
        if self.ctx.checks.asynchronous {
            let r = &self.warps[w].wgmma;
            let stale = |s: Slot| r.fences == 0 || r.written[s as usize] == r.fences + 1;
            if let Some(s) = g.d.iter().chain(a_regs).find(|&&s| stale(s)) {
                let what = if a_regs.contains(s) { "an A operand" } else { "an accumulator" };
                let d = format!("{what} was written, or never used by wgmma, with no wgmma.fence since");
                return Err(self.fault(w, None, pc, FaultKind::MissingWgmmaFence, d));
            }
        }
        if self.ctx.checks.uninitialized {
            let regs = &self.warps[w].regs;
            let d_regs: &[Slot] = if accumulate { &g.d } else { &[] };
            if let Some(&s) = a_regs.iter().chain(d_regs).find(|&&s| regs.init(s) != !0) {
                let lane = (!regs.init(s)).trailing_zeros();
                let what = if a_regs.contains(&s) { "A operand" } else { "accumulator" };
                let d = format!("an {what} register holds a value that nobody wrote");
                return Err(self.fault(w, Some(lane), pc, FaultKind::UninitializedRegister, d));
            }
        }
        Ok(())
    }

    fn check_matrix(
        &mut self,
        w: usize,
        pc: u32,
        m: &Matrix,
        first: u32,
        count: u32,
        k: u32,
        agent: u32,
        clock: u32,
    ) -> Exec<()> {
        // Pieces of 16 bytes along the contiguous side are never split by a swizzle.
        let per = 16 / m.e;
        let live = self.warps[w].live;
        let mut check = |mn: u32, kk: u32| {
            let addr = m.address(mn, kk);
            let off = addr.wrapping_sub(SHARED_BASE) as u64;
            if addr < SHARED_BASE || !self.shared.holds(off, 16) {
                let d = format!("the descriptor reaches shared address {addr:#x}, outside of the CTA's memory");
                return Err(self.fault(w, None, pc, FaultKind::SharedOutOfBounds, d));
            }
            self.async_read(w, pc, live, off as usize, 16, agent, clock)?;
            self.whole_shared(w, pc, None, off as usize, 16)
        };
        if m.mn_major {
            for kk in 0..k {
                for mn in (first..first + count).step_by(per as usize) {
                    check(mn, kk)?;
                }
            }
        } else {
            for mn in first..first + count {
                for kk in (0..k).step_by(per as usize) {
                    check(mn, kk)?;
                }
            }
        }
        Ok(())
    }

    fn issued_by_all(&self, group: usize) -> u64 {
        self.groups[group].issued.iter().copied().min().unwrap_or(0)
    }

    pub(crate) fn wgmma_commit(&mut self, w: usize) {
        let g = &mut self.groups[w / 4];
        let end = g.issued[w % 4];
        g.groups[w % 4].push_back(end);
    }

    /// Waits until at most `n` groups of the warp are pending; false when the other warps have not issued yet.
    pub(crate) fn wgmma_wait(&mut self, w: usize, pc: u32, active: u32, n: u32) -> Exec<bool> {
        self.aligned(w, pc, active)?;
        let (group, quarter) = (w / 4, w % 4);
        let g = &self.groups[group];
        let groups = &g.groups[quarter];
        if groups.len() <= n as usize {
            return Ok(true);
        }
        let target = groups[groups.len() - 1 - n as usize];
        if self.issued_by_all(group) < target {
            return Ok(false);
        }
        self.carry_out(group, target)?;
        let agent = self.wgmma_agent(group as u32);
        let g = &mut self.groups[group];
        while g.groups[quarter].len() > n as usize {
            g.groups[quarter].pop_front();
        }
        g.waited[quarter] = g.waited[quarter].max(target);
        self.learn_agent(w, active, agent, self.clock_base + target as u32);
        Ok(true)
    }

    /// Carries out the operations of the group before number `end`, all four quarters of each.
    fn carry_out(&mut self, group: usize, end: u64) -> Exec<()> {
        while self.groups[group].done < end {
            let Some(parts) = self.groups[group].ops.pop_front() else { break };
            self.groups[group].done += 1;
            // The quarters read the same B, at the same time.
            let mut b: Option<(u64, Tile)> = None;
            for (quarter, p) in parts.iter().enumerate() {
                let Some(p) = p else { continue };
                let prog = self.ctx.prog;
                let Op::Wgmma(g) = &prog.code[p.pc as usize].op else { unreachable!("parts are made by wgmma") };
                let tile = match b.take() {
                    Some((desc, tile)) if desc == p.b => tile,
                    _ => self.tile(&Matrix::new(p.b, g.b_ty.bits() / 8, g.trans_b), 0, g.n, g.k, g.b_ty),
                };
                self.quarter(4 * group + quarter, quarter as u32, g, p, &tile);
                b = Some((p.b, tile));
            }
        }
        Ok(())
    }
}
