//! Instructions of clusters: cluster barriers, addresses of other CTAs, and stores that an mbarrier counts.
//!
//! PTX ISA: barrier.cluster, mapa, getctarank, st.async, red.async.

use super::*;

/// How `st.async` and `red.async` tell that they are done, and the only way that sm_90 has.
const COMPLETE_TX: &str = "mbarrier::complete_tx::bytes";

impl<'a> Lower<'a> {
    /// `barrier.cluster.arrive{.release, .relaxed}{.aligned}` and `barrier.cluster.wait{.acquire}{.aligned}`.
    pub(super) fn cluster_barrier(&mut self, stmt: &Stmt, m: &mut Parts<'a>) -> Res<Op> {
        self.count(stmt, &[0])?;
        let aligned = m.take("aligned");
        if m.take("arrive") {
            let release = m.take_map(&[("release", true), ("relaxed", false)]).unwrap_or(true);
            return Ok(Op::ClusterArrive { release, aligned });
        }
        if !m.take("wait") {
            return Err(m.bad(".arrive or .wait is missing"));
        }
        m.take("acquire");
        Ok(Op::ClusterWait { aligned })
    }

    /// `mapa{.shared::cluster}.type d, a, rank`, and `getctarank{.shared::cluster}.type d, a` with a destination of 32 bits.
    pub(super) fn cluster_address(&mut self, ctx: &mut Ctx<'a>, stmt: &Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let map = m.name() == "mapa";
        self.count(stmt, &[2 + map as usize])?;
        let space = m.space();
        if !matches!(space, MemSpace::SharedCluster | MemSpace::Generic) {
            return Err(m.bad("a state space other than .shared::cluster"));
        }
        let ty = m.ty()?;
        match (ty, space) {
            (Ty::U64, _) | (Ty::U32, MemSpace::SharedCluster) => {}
            (Ty::U32, _) => return Err(m.bad("a generic address of 32 bits; they have 64")),
            _ => return Err(m.bad("a type other than u32 and u64")),
        }
        let wide = ty.wide();
        let d = self.dst(ctx, &stmt.operands[0], if map { ty } else { Ty::U32 }, stmt)?;
        let a = self.src(ctx, &stmt.operands[1], ty, stmt)?;
        if !map {
            return Ok(Op::GetCtaRank { d, wide, space, a });
        }
        let rank = self.src(ctx, &stmt.operands[2], Ty::U32, stmt)?;
        Ok(Op::Mapa { d, wide, space, a, rank })
    }

    /// `st.async{.weak}{.shared::cluster}.mbarrier::complete_tx::bytes{.vec}.type [a], b, [mbar]`, and
    /// `red.async.relaxed.cluster{.shared::cluster}.mbarrier::complete_tx::bytes.op.type [a], b, [mbar]`.
    pub(super) fn async_store(&mut self, ctx: &mut Ctx<'a>, stmt: &Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let red = m.name() == "red";
        self.count(stmt, &[3])?;
        let (order, scope) = (m.take_order(), m.take_scope());
        if red && (order, scope) != (Some(Order::Relaxed), Some(Scope::Cluster)) {
            return Err(m.bad("an order other than .relaxed.cluster"));
        }
        if !red && (order.is_some_and(|o| o != Order::Weak) || scope.is_some()) {
            return Err(m.bad("an order other than .weak"));
        }
        let space = m.space();
        if !matches!(space, MemSpace::Shared | MemSpace::SharedCluster | MemSpace::Generic) {
            return Err(m.bad("a state space other than shared"));
        }
        if !m.take(COMPLETE_TX) {
            return Err(m.bad(format!(".{COMPLETE_TX} is missing")));
        }
        let (count, op) = if red {
            let op = m.take_map(ATOM_OPS).ok_or_else(|| m.bad("an operation is missing"))?;
            (1, Some(op))
        } else {
            (m.take_map(&[("v2", 2), ("v4", 4)]).unwrap_or(1), None)
        };
        let ty = m.ty()?;
        let accepted = match op {
            None => matches!(ty, Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64),
            Some(AtomOp::Add) => matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64),
            Some(AtomOp::Min | AtomOp::Max) => matches!(ty, Ty::U32 | Ty::S32),
            Some(AtomOp::Inc | AtomOp::Dec) => ty == Ty::U32,
            Some(AtomOp::And | AtomOp::Or | AtomOp::Xor) => ty == Ty::B32,
            Some(AtomOp::Exch | AtomOp::Cas) => false,
        };
        if !accepted {
            return Err(m.bad("an operation or type that it has not"));
        }
        let bytes = (ty.bits() / 8) as u8;
        if bytes * count > 16 {
            return Err(m.bad(format!("{} bytes; at most 16 are stored at once", bytes * count)));
        }
        let dst = self.mem(ctx, &stmt.operands[0], stmt)?;
        let values = self.slots(ctx, &stmt.operands[1], ty, false, stmt)?;
        if values.len() != count as usize {
            return Err(self.err(stmt, format!("{} registers given, {count} accepted", values.len())));
        }
        let mut regs = [ZERO; 4];
        regs[..values.len()].copy_from_slice(&values);
        let mbar = self.mem(ctx, &stmt.operands[2], stmt)?;
        let reduce = op.map(|op| (op, ty));
        Ok(Op::AsyncStore(Box::new(AsyncStore { space, dst, mbar, bytes, count, wide: ty.wide(), regs, reduce })))
    }
}
