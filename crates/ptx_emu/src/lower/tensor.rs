//! Matrix products and their fragments.

use super::*;

impl<'a> Lower<'a> {
    /// `mma.sync`.
    pub(super) fn mma(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        for p in ["sync", "aligned", "row", "col"] {
            m.require(p)?;
        }
        let (n, k) = m
            .take_map(&[("m16n8k4", (8, 4)), ("m16n8k8", (8, 8)), ("m16n8k16", (8, 16)), ("m16n8k32", (8, 32))])
            .ok_or_else(|| m.bad("a shape other than m16n8k4, k8, k16 and k32"))?;
        let sat = m.take("satfinite");
        let acc = m.ty()?;
        let a_ty = m.ty()?;
        let b_ty = m.ty()?;
        let c_ty = m.ty()?;
        let bits = a_ty.bits();
        let ok = acc == c_ty
            && match (a_ty, b_ty) {
                (Ty::F16, Ty::F16) => matches!(k, 8 | 16) && matches!(acc, Ty::F32 | Ty::F16),
                (Ty::BF16, Ty::BF16) => matches!(k, 8 | 16) && acc == Ty::F32,
                (Ty::TF32, Ty::TF32) => matches!(k, 4 | 8) && acc == Ty::F32,
                (Ty::E4M3 | Ty::E5M2, Ty::E4M3 | Ty::E5M2) => matches!(k, 16 | 32) && matches!(acc, Ty::F32 | Ty::F16),
                (Ty::S8 | Ty::U8, Ty::S8 | Ty::U8) => matches!(k, 16 | 32) && acc == Ty::S32,
                _ => false,
            };
        if !ok || (sat && acc != Ty::S32) {
            return Err(m.bad("a combination of shape and types that is not known"));
        }
        self.count(stmt, &[4])?;
        let na = (16 * k * bits / 32 / 32) as usize;
        let nb = (8 * k * bits / 32 / 32) as usize;
        let nc = if acc == Ty::F16 { 2 } else { 4 };
        let d = self.slots(ctx, &stmt.operands[0], Ty::B32, true, stmt)?;
        let a = self.slots(ctx, &stmt.operands[1], Ty::B32, false, stmt)?;
        let b = self.slots(ctx, &stmt.operands[2], Ty::B32, false, stmt)?;
        let c = self.slots_f(ctx, &stmt.operands[3], stmt)?;
        if d.len() != nc || c.len() != nc || a.len() != na || b.len() != nb {
            return Err(self.err(stmt, format!("fragments need {nc}, {na}, {nb} and {nc} registers")));
        }
        Ok(Op::Mma(Box::new(Mma { n, k, a_ty, b_ty, acc, sat, d, a, b, c })))
    }

    /// Accumulator sources: registers, or immediates of either kind.
    fn slots_f(&mut self, ctx: &mut Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<Vec<Slot>> {
        let mut out = Vec::new();
        for e in self.vector(o) {
            let ty = if matches!(e, Operand::Imm(Imm::F64(_))) { Ty::F32 } else { Ty::B32 };
            out.push(self.src(ctx, e, ty, stmt)?);
        }
        Ok(out)
    }

    /// Everything whose opcode is `wgmma`.
    pub(super) fn wgmma(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let action = m
            .take_map(&[("fence", 0), ("commit_group", 1), ("wait_group", 2), ("mma_async", 3)])
            .ok_or_else(|| m.bad("an action is missing"))?;
        for p in ["sync", "aligned"] {
            m.require(p)?;
        }
        match action {
            0 | 1 => {
                self.count(stmt, &[0])?;
                Ok((if action == 0 { Op::WgmmaFence } else { Op::WgmmaCommit }, Class::Barrier))
            }
            2 => {
                self.count(stmt, &[1])?;
                let n = self.immediate(&stmt.operands[0], stmt)?;
                if n > 7 {
                    return Err(self.err(stmt, "a group count above 7"));
                }
                Ok((Op::WgmmaWait(n as u32), Class::Barrier))
            }
            _ => Ok((self.mma_async(ctx, stmt, m)?, Class::Tensor)),
        }
    }

    /// `d, a, b, scale-d, imm-scale-a, imm-scale-b{, imm-trans-a}{, imm-trans-b}`: A of registers has no transpose.
    fn mma_async(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let ops = &stmt.operands;
        let (n, k) = wgmma_shape(m)?;
        let (acc, a_ty, b_ty) = (m.ty()?, m.ty()?, m.ty()?);
        let want_k = match (a_ty, b_ty) {
            (Ty::F16, Ty::F16) if matches!(acc, Ty::F32 | Ty::F16) => 16,
            (Ty::BF16, Ty::BF16) if acc == Ty::F32 => 16,
            (Ty::TF32, Ty::TF32) if acc == Ty::F32 => 8,
            (Ty::E4M3 | Ty::E5M2, Ty::E4M3 | Ty::E5M2) if matches!(acc, Ty::F32 | Ty::F16) => 32,
            _ => return Err(m.bad("a combination of types that is not known")),
        };
        if k != want_k || n % 8 != 0 || !(8..=256).contains(&n) {
            return Err(m.bad("a shape that these types have not"));
        }
        let trans_operands = matches!(a_ty, Ty::F16 | Ty::BF16);
        if ops.len() < 6 {
            return Err(m.bad("too few operands"));
        }
        let d = self.slots(ctx, &ops[0], Ty::B32, true, stmt)?;
        let want = (n / 8 * if acc == Ty::F16 { 2 } else { 4 }) as usize;
        if d.contains(&SINK) {
            return Err(self.err(stmt, "an accumulator that is `_`"));
        }
        if d.len() != want {
            return Err(self.err(stmt, format!("{} accumulators given, {want} accepted", d.len())));
        }
        let from_regs = matches!(&ops[1], Operand::Vector(_));
        let a = if from_regs {
            let v = self.slots(ctx, &ops[1], Ty::B32, false, stmt)?;
            WgmmaA::Regs(v.try_into().map_err(|_| self.err(stmt, "A in registers takes 4"))?)
        } else {
            WgmmaA::Desc(self.src(ctx, &ops[1], Ty::B64, stmt)?)
        };
        let b = self.src(ctx, &ops[2], Ty::B64, stmt)?;
        let scale_d = self.pred_src(ctx, &ops[3], stmt)?;
        let sign = |this: &Self, o: &Operand| match this.immediate(o, stmt)? as i64 {
            1 => Ok(false),
            -1 => Ok(true),
            _ => Err(this.err(stmt, "a scale other than 1 and -1")),
        };
        let flag = |this: &Self, o: &Operand| match this.immediate(o, stmt)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(this.err(stmt, "a transpose flag other than 0 and 1")),
        };
        let neg_a = sign(self, &ops[4])?;
        let neg_b = sign(self, &ops[5])?;
        let (mut trans_a, mut trans_b) = (false, false);
        let want_ops = 6 + if trans_operands { 2 - from_regs as usize } else { 0 };
        self.count(stmt, &[want_ops])?;
        if trans_operands {
            if !from_regs {
                trans_a = flag(self, &ops[6])?;
            }
            trans_b = flag(self, &ops[want_ops - 1])?;
        }
        Ok(Op::Wgmma(Box::new(Wgmma { n, k, a_ty, b_ty, acc, d, a, b, scale_d, neg_a, neg_b, trans_a, trans_b })))
    }

    /// `ldmatrix` and `stmatrix`.
    pub(super) fn matrix_access(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        let name = m.name();
        let load = name == "ldmatrix";
        m.take("sync");
        m.take("aligned").then_some(()).ok_or_else(|| m.bad("only the .sync.aligned form is accepted"))?;
        m.take("m8n8").then_some(()).ok_or_else(|| m.bad("a shape other than m8n8"))?;
        let n = m.take_map(&[("x1", 1u8), ("x2", 2), ("x4", 4)]).ok_or_else(|| m.bad("a count is missing"))?;
        let trans = m.take("trans");
        let space = m.space();
        if !matches!(space, MemSpace::Shared | MemSpace::Generic) {
            return Err(m.bad("a state space other than shared"));
        }
        if m.ty()?.bits() != 16 {
            return Err(m.bad("a type other than b16"));
        }
        self.count(stmt, &[2])?;
        let (regs, mem) = if load { (&ops[0], &ops[1]) } else { (&ops[1], &ops[0]) };
        let v = self.slots(ctx, regs, Ty::B32, load, stmt)?;
        if v.len() != n as usize {
            return Err(self.err(stmt, format!("{} registers given, {n} accepted", v.len())));
        }
        let mut s = [ZERO; 4];
        s[..v.len()].copy_from_slice(&v);
        let addr = self.mem(ctx, mem, stmt)?;
        let op =
            if load { Op::LdMatrix { d: s, n, trans, space, addr } } else { Op::StMatrix { s, n, trans, space, addr } };
        Ok((op, Class::SharedMemory))
    }

    /// `movmatrix`.
    pub(super) fn movmatrix(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        for p in ["sync", "aligned", "m8n8", "trans"] {
            m.require(p)?;
        }
        m.ty()?;
        self.count(stmt, &[2])?;
        let d = self.dst(ctx, &ops[0], Ty::B32, stmt)?;
        let a = self.src(ctx, &ops[1], Ty::B32, stmt)?;
        Ok((Op::MoveMatrix { d, a }, Class::Warp))
    }
}

/// N and k of `.m64nNkK`.
fn wgmma_shape(m: &mut Parts<'_>) -> Res<(u32, u32)> {
    let shape = m.take_prefix("m64n").ok_or_else(|| m.bad("a shape is missing"))?;
    shape[4..]
        .split_once('k')
        .and_then(|(n, k)| Some((n.parse().ok()?, k.parse().ok()?)))
        .ok_or_else(|| m.bad("a shape that is not known"))
}
