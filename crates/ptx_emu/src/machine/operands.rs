//! Operands: which must hold written values, and addresses made from registers.

use super::Cta;
use super::Exec;
use crate::alu::{LANES, each};
use crate::error::FaultKind;
use crate::ir::*;

impl Cta<'_> {
    /// Every source register of the instruction must hold a written value in the active lanes.
    pub(crate) fn known_operands(&self, w: usize, pc: u32, active: u32) -> Exec<()> {
        let (first, reads, _) = self.ctx.prog.operand_ranges[pc as usize];
        let regs = &self.warps[w].regs;
        for (i, &s) in self.ctx.prog.operand_slots[first as usize..first as usize + reads as usize].iter().enumerate() {
            let missing = active & !regs.init(s);
            if missing != 0 {
                let d = format!("source operand {} holds a value that nobody wrote", i + 1);
                return Err(self.fault(w, Some(missing.trailing_zeros()), pc, FaultKind::UninitializedRegister, d));
            }
        }
        Ok(())
    }

    pub(crate) fn addresses(&self, w: usize, pc: u32, active: u32, a: Addr) -> Exec<[u64; LANES]> {
        let regs = &self.warps[w].regs;
        if self.ctx.checks.uninitialized {
            let missing = active & !regs.init(a.base);
            if missing != 0 {
                let d = "the address depends on a value that nobody wrote".to_owned();
                return Err(self.fault(w, Some(missing.trailing_zeros()), pc, FaultKind::UninitializedRegister, d));
            }
        }
        let off = a.offset as u64;
        Ok(if a.wide {
            let v = regs.r64(a.base);
            each(|i| v[i].wrapping_add(off))
        } else {
            let v = regs.r32(a.base);
            each(|i| v[i].wrapping_add(off as u32) as u64)
        })
    }
}
