//! Comparisons and tests.

use super::*;

impl<'a> Lower<'a> {
    /// `setp` and `set`.
    pub(super) fn compare(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        let cmp = m.take_map(CMPS).ok_or_else(|| m.bad("a comparison is missing"))?;
        let bool_op = m.take_map(BOOLS);
        let ftz = m.take("ftz");
        let set = m.name() == "set";
        let to = if set { m.ty()? } else { Ty::Pred };
        let ty = m.ty()?;
        if ty == Ty::Pred || ty.bits() == 8 || ty == Ty::F32x2 {
            return Err(m.bad("a type that cannot be compared"));
        }
        if set {
            let ok = match (to, ty) {
                (Ty::U32 | Ty::S32 | Ty::B32, _) => true,
                (Ty::F32, _) => !matches!(ty, Ty::F16 | Ty::BF16 | Ty::F16x2 | Ty::BF16x2),
                (Ty::U16 | Ty::S16, _) => matches!(ty, Ty::F16 | Ty::BF16),
                (Ty::F16x2 | Ty::BF16x2, _) => to == ty,
                (Ty::F16, _) => !matches!(ty, Ty::BF16 | Ty::F16x2 | Ty::BF16x2),
                (Ty::BF16, _) => !matches!(ty, Ty::F16 | Ty::F16x2 | Ty::BF16x2),
                _ => false,
            };
            if !ok {
                return Err(m.bad("a result type that set has not for these operands"));
            }
        }
        self.count(stmt, &[3 + bool_op.is_some() as usize])?;
        let a = self.src(ctx, &ops[1], ty, stmt)?;
        let b = self.src(ctx, &ops[2], ty, stmt)?;
        let combine = match bool_op {
            Some(f) => Some((f, self.pred_src(ctx, &ops[3], stmt)?)),
            None => None,
        };
        if set {
            let d = self.dst(ctx, &ops[0], to, stmt)?;
            return Ok((Op::Set { cmp, ty, to, ftz, combine, d, a, b }, Class::Predicate));
        }
        let (p, q) = match &ops[0] {
            Operand::Pair(p, q) => (self.pred_dst(ctx, p, stmt)?, self.pred_dst(ctx, q, stmt)?),
            p => (self.pred_dst(ctx, p, stmt)?, SINK),
        };
        Ok((Op::Setp { cmp, ty, ftz, combine, p, q, a, b }, Class::Predicate))
    }

    /// `testp`.
    pub(super) fn testp(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        self.count(stmt, &[2])?;
        let kind = m
            .take_map(&[
                ("finite", 0u8),
                ("infinite", 1),
                ("number", 2),
                ("notanumber", 3),
                ("normal", 4),
                ("subnormal", 5),
            ])
            .ok_or_else(|| m.bad("a test that is not known"))?;
        let ty = m.ty()?;
        if !matches!(ty, Ty::F32 | Ty::F64) {
            return Err(m.bad("a type other than f32 and f64"));
        }
        let p = self.pred_dst(ctx, &ops[0], stmt)?;
        let a = self.src(ctx, &ops[1], ty, stmt)?;
        Ok((Op::Testp { kind, ty, p, a }, Class::Predicate))
    }
}
