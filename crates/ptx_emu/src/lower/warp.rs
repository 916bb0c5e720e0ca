//! Collectives of a warp.

use super::*;

impl<'a> Lower<'a> {
    /// `shfl.sync`.
    pub(super) fn shfl(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        m.take("sync").then_some(()).ok_or_else(|| m.bad("only the .sync form is accepted"))?;
        let mode = m
            .take_map(&[
                ("idx", ShflMode::Idx),
                ("up", ShflMode::Up),
                ("down", ShflMode::Down),
                ("bfly", ShflMode::Bfly),
            ])
            .ok_or_else(|| m.bad("a mode is missing"))?;
        let ty = m.ty()?;
        if ty.bits() != 32 {
            return Err(m.bad("a type other than b32"));
        }
        self.count(stmt, &[5])?;
        let (d, p) = match &ops[0] {
            Operand::Pair(d, p) => (self.dst(ctx, d, ty, stmt)?, self.pred_dst(ctx, p, stmt)?),
            d => (self.dst(ctx, d, ty, stmt)?, SINK),
        };
        let a = self.src(ctx, &ops[1], ty, stmt)?;
        let b = self.src(ctx, &ops[2], Ty::U32, stmt)?;
        let c = self.src(ctx, &ops[3], Ty::U32, stmt)?;
        let mask = self.src(ctx, &ops[4], Ty::U32, stmt)?;
        Ok((Op::Shfl { mode, d, p, a, b, c, mask }, Class::Warp))
    }

    /// `vote.sync`.
    pub(super) fn vote(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        m.take("sync").then_some(()).ok_or_else(|| m.bad("only the .sync form is accepted"))?;
        let mode = m
            .take_map(&[
                ("all", VoteMode::All),
                ("any", VoteMode::Any),
                ("uni", VoteMode::Uni),
                ("ballot", VoteMode::Ballot),
            ])
            .ok_or_else(|| m.bad("a mode is missing"))?;
        let ty = m.ty()?;
        self.count(stmt, &[3])?;
        let (d, p) = if mode == VoteMode::Ballot {
            (self.dst(ctx, &ops[0], ty, stmt)?, SINK)
        } else {
            (SINK, self.pred_dst(ctx, &ops[0], stmt)?)
        };
        let a = self.pred_src(ctx, &ops[1], stmt)?;
        let mask = self.src(ctx, &ops[2], Ty::U32, stmt)?;
        Ok((Op::Vote { mode, d, p, a, mask }, Class::Warp))
    }

    /// `match.sync`.
    pub(super) fn match_(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        let all = m.take("all");
        if !all && !m.take("any") {
            return Err(m.bad(".any or .all is missing"));
        }
        m.take("sync").then_some(()).ok_or_else(|| m.bad("only the .sync form is accepted"))?;
        let ty = m.ty()?;
        self.count(stmt, &[3])?;
        let (d, p) = match &ops[0] {
            Operand::Pair(d, p) if all => (self.dst(ctx, d, Ty::B32, stmt)?, self.pred_dst(ctx, p, stmt)?),
            d => (self.dst(ctx, d, Ty::B32, stmt)?, SINK),
        };
        let a = self.src(ctx, &ops[1], ty, stmt)?;
        let mask = self.src(ctx, &ops[2], Ty::U32, stmt)?;
        Ok((Op::Match { all, wide: ty.wide(), d, p, a, mask }, Class::Warp))
    }

    /// `redux.sync`.
    pub(super) fn redux(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        m.take("sync").then_some(()).ok_or_else(|| m.bad("only the .sync form is accepted"))?;
        let op = m.take_map(ATOM_OPS).ok_or_else(|| m.bad("an operation is missing"))?;
        let ty = m.ty()?;
        if !matches!(ty, Ty::U32 | Ty::S32 | Ty::B32)
            || matches!(op, AtomOp::Inc | AtomOp::Dec | AtomOp::Exch | AtomOp::Cas)
        {
            return Err(m.bad("an operation or type that redux has not"));
        }
        self.count(stmt, &[3])?;
        let d = self.dst(ctx, &ops[0], ty, stmt)?;
        let a = self.src(ctx, &ops[1], ty, stmt)?;
        let mask = self.src(ctx, &ops[2], Ty::U32, stmt)?;
        Ok((Op::Redux { op, ty, d, a, mask }, Class::Warp))
    }

    /// `elect.sync`.
    pub(super) fn elect(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        m.take("sync").then_some(()).ok_or_else(|| m.bad("only the .sync form is accepted"))?;
        self.count(stmt, &[2])?;
        let Operand::Pair(d, p) = &ops[0] else { return Err(self.err(stmt, "the destination must be d|p")) };
        let d = self.dst(ctx, d, Ty::B32, stmt)?;
        let p = self.pred_dst(ctx, p, stmt)?;
        let mask = self.src(ctx, &ops[1], Ty::U32, stmt)?;
        Ok((Op::Elect { d, p, mask }, Class::Warp))
    }

    /// `activemask`.
    pub(super) fn activemask(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        m.ty()?;
        self.count(stmt, &[1])?;
        Ok((Op::Activemask { d: self.dst(ctx, &ops[0], Ty::B32, stmt)? }, Class::Warp))
    }
}
