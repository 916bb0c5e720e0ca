//! Barriers of a CTA, fences, and what else waits. mbarriers are in `mbarrier.rs`.

use super::*;

impl<'a> Lower<'a> {
    /// `bar`, `barrier.cta`, `bar.warp` and `barrier.cluster`.
    pub(super) fn barrier(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let ops = &stmt.operands;
        if m.name() == "barrier" && m.take("cluster") {
            return self.cluster_barrier(stmt, m);
        }
        if m.take("warp") {
            m.take("sync");
            self.count(stmt, &[1])?;
            return Ok(Op::WarpSync { mask: self.src(ctx, &ops[0], Ty::U32, stmt)? });
        }
        m.take("cta");
        let kind = m
            .take_map(&[("sync", BarKind::Sync), ("arrive", BarKind::Arrive), ("red", BarKind::RedPopc)])
            .ok_or_else(|| m.bad("an action is missing"))?;
        // `bar` is `barrier` with `.aligned`.
        let aligned = m.take("aligned") || m.name() == "bar";
        if kind != BarKind::RedPopc {
            self.count(stmt, &[1, 2])?;
            let id = self.src(ctx, &ops[0], Ty::U32, stmt)?;
            let has_count = ops.len() == 2;
            let count = if has_count { self.src(ctx, &ops[1], Ty::U32, stmt)? } else { ZERO };
            if kind == BarKind::Arrive && !has_count {
                return Err(m.bad("arrive needs a thread count"));
            }
            return Ok(Op::Bar { kind, aligned, id, count, has_count, d: SINK, p: SINK, a: TRUE });
        }
        let kind = m
            .take_map(&[("popc", BarKind::RedPopc), ("and", BarKind::RedAnd), ("or", BarKind::RedOr)])
            .ok_or_else(|| m.bad("a reduction is missing"))?;
        m.ty()?;
        self.count(stmt, &[3, 4])?;
        let (d, p) = if kind == BarKind::RedPopc {
            (self.dst(ctx, &ops[0], Ty::U32, stmt)?, SINK)
        } else {
            (SINK, self.pred_dst(ctx, &ops[0], stmt)?)
        };
        let id = self.src(ctx, &ops[1], Ty::U32, stmt)?;
        let has_count = ops.len() == 4;
        let count = if has_count { self.src(ctx, &ops[2], Ty::U32, stmt)? } else { ZERO };
        let a = self.pred_src(ctx, &ops[ops.len() - 1], stmt)?;
        Ok(Op::Bar { kind, aligned, id, count, has_count, d, p, a })
    }

    /// `membar` and `fence`.
    pub(super) fn fence(&mut self, stmt: &Stmt, m: &mut Parts<'a>) -> Res<FenceKind> {
        // fence.proxy.tensormap has an address and a size.
        self.count(stmt, &[0, 2])?;
        if m.take("proxy") {
            let kind = m
                .take_map(&[
                    ("async", FenceKind::ProxyAsync),
                    ("async::generic", FenceKind::Other),
                    ("alias", FenceKind::Other),
                    ("tensormap::generic", FenceKind::Other),
                ])
                .ok_or_else(|| m.bad("a proxy that is not known"))?;
            m.space();
            m.take_order();
            m.take_scope();
            return Ok(kind);
        }
        let order = m.take_order();
        let scope = m.take_scope();
        if m.take("mbarrier_init") {
            if (order, scope) != (Some(Order::Release), Some(Scope::Cluster)) {
                return Err(m.bad("an order other than .release.cluster"));
            }
            return Ok(FenceKind::MbarrierInit);
        }
        m.take("sc");
        Ok(FenceKind::Memory(scope.ok_or_else(|| m.bad("a scope is missing"))?))
    }

    /// `setmaxnreg`.
    pub(super) fn setmaxnreg(&mut self, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        let inc = m.take("inc");
        if !inc && !m.take("dec") {
            return Err(m.bad(".inc or .dec is missing"));
        }
        m.take("sync");
        m.take("aligned").then_some(()).ok_or_else(|| m.bad("only the .sync.aligned form is accepted"))?;
        m.ty()?;
        self.count(stmt, &[1])?;
        let count = self.immediate(&ops[0], stmt)? as u32;
        if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
            return Err(self.err(stmt, "a count that is not a multiple of 8 from 24 to 256"));
        }
        Ok((Op::SetMaxNReg { count, inc }, Class::Control))
    }

    /// `griddepcontrol`.
    pub(super) fn griddepcontrol(&mut self, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        self.count(stmt, &[0])?;
        let wait = m
            .take_map(&[("wait", true), ("launch_dependents", false)])
            .ok_or_else(|| m.bad(".wait or .launch_dependents is missing"))?;
        Ok((Op::GridDep { wait }, Class::Control))
    }

    /// `nanosleep`.
    pub(super) fn nanosleep(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        m.ty()?;
        self.count(stmt, &[1])?;
        self.src(ctx, &ops[0], Ty::U32, stmt)?;
        Ok((Op::Nanosleep, Class::Control))
    }

    /// `pmevent`: an event for a profiler, which nobody is.
    pub(super) fn pmevent(&mut self, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        m.take("mask");
        self.count(stmt, &[1])?;
        self.immediate(&stmt.operands[0], stmt)?;
        Ok((Op::Fence(FenceKind::Other), Class::Control))
    }
}
