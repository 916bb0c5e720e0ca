//! mbarriers: arrivals, expected bytes and waits, in the CTA and in the cluster.

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Init,
    Inval,
    Arrive,
    ArriveDrop,
    TestWait,
    TryWait,
    PendingCount,
    ExpectTx,
    CompleteTx,
}

impl<'a> Lower<'a> {
    /// Everything whose opcode is `mbarrier`.
    pub(super) fn mbarrier(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let ops = &stmt.operands;
        let action = m
            .take_map(&[
                ("init", Action::Init),
                ("inval", Action::Inval),
                ("arrive", Action::Arrive),
                ("arrive_drop", Action::ArriveDrop),
                ("test_wait", Action::TestWait),
                ("try_wait", Action::TryWait),
                ("pending_count", Action::PendingCount),
                ("expect_tx", Action::ExpectTx),
                ("complete_tx", Action::CompleteTx),
            ])
            .ok_or_else(|| m.bad("an action is missing"))?;
        match action {
            Action::Arrive | Action::ArriveDrop => self.mbarrier_arrive(ctx, stmt, m, action),
            Action::TestWait | Action::TryWait => self.mbarrier_wait(ctx, stmt, m, action),
            Action::Init => {
                let space = mbarrier_space(m, false)?;
                self.count(stmt, &[2])?;
                let addr = self.mem(ctx, &ops[0], stmt)?;
                Ok(Op::MbarInit { addr, space, count: self.src(ctx, &ops[1], Ty::U32, stmt)? })
            }
            Action::Inval => {
                let space = mbarrier_space(m, false)?;
                self.count(stmt, &[1])?;
                Ok(Op::MbarInval { addr: self.mem(ctx, &ops[0], stmt)?, space })
            }
            Action::PendingCount => {
                mbarrier_space(m, false)?;
                self.count(stmt, &[2])?;
                let d = self.dst(ctx, &ops[0], Ty::U32, stmt)?;
                Ok(Op::MbarPending { d, state: self.src(ctx, &ops[1], Ty::B64, stmt)? })
            }
            Action::ExpectTx | Action::CompleteTx => {
                mbarrier_order(m, Order::Relaxed)?;
                let space = mbarrier_space(m, true)?;
                self.count(stmt, &[2])?;
                let addr = self.mem(ctx, &ops[0], stmt)?;
                let tx = self.src(ctx, &ops[1], Ty::U32, stmt)?;
                Ok(Op::MbarTx { addr, space, tx, complete: action == Action::CompleteTx })
            }
        }
    }

    /// `state, [addr]{, count}`, or without a state where the space is given; with `.expect_tx`, bytes in place of the count.
    fn mbarrier_arrive(&mut self, ctx: &mut Ctx<'a>, stmt: &Stmt, m: &mut Parts<'a>, action: Action) -> Res<Op> {
        let ops = &stmt.operands;
        let expects = m.take("expect_tx");
        let no_complete = m.take("noComplete");
        let (order, scope) = mbarrier_order(m, Order::Release)?;
        let space = mbarrier_space(m, !no_complete)?;
        let with_state = !matches!(ops.first(), Some(Operand::Mem { .. }));
        let rest = ops.get(with_state as usize..).unwrap_or_default();
        if rest.is_empty() || rest.len() > 2 {
            return Err(m.bad("a number of operands that is not accepted"));
        }
        if space == MemSpace::SharedCluster && !matches!(ops[0], Operand::Sink) {
            return Err(m.bad("a state from an mbarrier of the cluster; `_` is accepted"));
        }
        let state = if with_state { self.dst(ctx, &ops[0], Ty::B64, stmt)? } else { SINK };
        let addr = self.mem(ctx, &rest[0], stmt)?;
        let number = match rest.get(1) {
            Some(o) => Some(self.src(ctx, o, Ty::U32, stmt)?),
            None => None,
        };
        if expects && number.is_none() {
            return Err(m.bad("expect_tx needs a byte count"));
        }
        let (count, expect) = if expects { (None, number) } else { (number, None) };
        let drop = action == Action::ArriveDrop;
        Ok(Op::MbarArrive(MbarArrive { addr, space, state, count, expect, drop, no_complete, order, scope }))
    }

    /// `p, [addr], phase{, time}`: the time is a hint.
    fn mbarrier_wait(&mut self, ctx: &mut Ctx<'a>, stmt: &Stmt, m: &mut Parts<'a>, action: Action) -> Res<Op> {
        let ops = &stmt.operands;
        let parity = m.take("parity");
        let (order, scope) = mbarrier_order(m, Order::Acquire)?;
        let space = mbarrier_space(m, false)?;
        let blocking = action == Action::TryWait;
        self.count(stmt, if blocking { &[3, 4] } else { &[3] })?;
        let p = self.pred_dst(ctx, &ops[0], stmt)?;
        let addr = self.mem(ctx, &ops[1], stmt)?;
        let on = if parity {
            WaitOn::Parity(self.src(ctx, &ops[2], Ty::U32, stmt)?)
        } else {
            WaitOn::State(self.src(ctx, &ops[2], Ty::B64, stmt)?)
        };
        if let Some(hint) = ops.get(3) {
            self.src(ctx, hint, Ty::U32, stmt)?;
        }
        Ok(Op::MbarWait { addr, space, p, on, blocking, order, scope })
    }
}

/// The state space of an mbarrier, and its type. In another CTA of the cluster a thread may arrive and count bytes; it neither
/// makes an mbarrier there nor looks at one.
fn mbarrier_space(m: &mut Parts<'_>, remote: bool) -> Res<MemSpace> {
    let space = m.space();
    match space {
        MemSpace::Shared | MemSpace::Generic => {}
        MemSpace::SharedCluster if remote => {}
        MemSpace::SharedCluster => return Err(m.bad("the state space .shared::cluster; .shared::cta is accepted")),
        _ => return Err(m.bad("a state space other than shared")),
    }
    if m.ty()? != Ty::B64 {
        return Err(m.bad("a type other than b64"));
    }
    Ok(space)
}

/// Order and scope of an operation, which come together or not at all. The default is `order` in the CTA.
fn mbarrier_order(m: &mut Parts<'_>, order: Order) -> Res<(Order, Scope)> {
    match (m.take_order(), m.take_scope()) {
        (None, None) => Ok((order, Scope::Cta)),
        (_, Some(Scope::Gpu | Scope::Sys)) => Err(m.bad("a scope other than .cta and .cluster")),
        (None, _) | (_, None) => Err(m.bad("an order without a scope, or a scope without an order")),
        (Some(given), Some(scope)) if given == order || given == Order::Relaxed => Ok((given, scope)),
        _ => Err(m.bad("an order that this action has not")),
    }
}
