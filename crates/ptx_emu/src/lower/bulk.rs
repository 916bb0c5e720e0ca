//! `cp.async.bulk` and `cp.reduce.async.bulk`, of plain memory and of tensors.

use super::*;

/// Between what a bulk copy moves.
#[derive(Debug, Clone, Copy)]
struct Direction {
    to_global: bool,
    from_shared: bool,
    /// The destination is `.shared::cluster`.
    cluster: bool,
}

impl<'a> Lower<'a> {
    /// What follows `.bulk`.
    pub(super) fn bulk(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>, reduce: bool) -> Res<Op> {
        if m.take("commit_group") {
            self.count(stmt, &[0])?;
            return Ok(Op::BulkCommit);
        }
        if m.take("wait_group") {
            m.take("read");
            self.count(stmt, &[1])?;
            let pending = self.immediate(&stmt.operands[0], stmt)?.min(u32::MAX as u64) as u32;
            return Ok(Op::BulkWait { pending });
        }
        let prefetch = m.take("prefetch");
        let dims = if m.take("tensor") {
            let dims = m.take_map(&[("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)]);
            Some(dims.ok_or_else(|| m.bad("a number of dimensions is missing"))?)
        } else {
            None
        };
        if m.take_prefix("im2col").is_some() {
            return Err(m.bad("im2col mode"));
        }
        m.take("tile");
        let ops = self.without_policy(ctx, stmt, m)?;
        if prefetch {
            return self.bulk_prefetch(ctx, stmt, m, ops);
        }
        let (ops, multicast) = self.without_mask(ctx, stmt, m, ops)?;
        let way = bulk_direction(m, dims.is_some())?;
        if multicast.is_some() && (!way.cluster || way.from_shared) {
            return Err(m.bad("a multicast other than from global to shared::cluster"));
        }
        let reduce = if reduce { Some(bulk_reduction(m, way, dims.is_some())?) } else { None };
        let copy = self.bulk_operands(ctx, stmt, ops, way, dims)?;
        let copy = Box::new(Bulk { multicast, reduce, ..copy });
        Ok(if dims.is_some() { Op::BulkTensor(copy) } else { Op::Bulk(copy) })
    }

    fn bulk_prefetch(&mut self, ctx: &mut Ctx<'a>, stmt: &Stmt, m: &mut Parts<'a>, ops: &[Operand]) -> Res<Op> {
        m.take("L2");
        m.space();
        for o in ops {
            if let Operand::Mem { .. } = o {
                self.mem(ctx, o, stmt)?;
            }
        }
        Ok(Op::Prefetch)
    }

    /// The operands without the mask of CTAs that `.multicast::cluster` puts behind them.
    fn without_mask<'o>(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &Stmt,
        m: &mut Parts<'a>,
        ops: &'o [Operand],
    ) -> Res<(&'o [Operand], Option<Slot>)> {
        if !m.take("multicast::cluster") {
            return Ok((ops, None));
        }
        match ops.split_last() {
            None | Some((Operand::Mem { .. }, _)) => Err(m.bad("a mask of CTAs is missing")),
            Some((mask, rest)) => Ok((rest, Some(self.src(ctx, mask, Ty::B16, stmt)?))),
        }
    }

    /// `[dst], [src], size{, [mbar]}`, or with a tensor map and coordinates in place of one address and the size.
    fn bulk_operands(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &Stmt,
        ops: &[Operand],
        way: Direction,
        dims: Option<usize>,
    ) -> Res<Bulk> {
        let plain = dims.is_none() as usize;
        self.count_of(stmt, ops, &[2 + plain + !way.to_global as usize])?;
        let mut coords = Vec::new();
        if let Some(dims) = dims {
            let Operand::Mem { coords: given, .. } = &ops[!way.to_global as usize] else {
                return Err(self.err(stmt, "a tensor without coordinates"));
            };
            if given.len() != dims {
                return Err(self.err(stmt, format!("{} coordinates given, {dims} accepted", given.len())));
            }
            for c in given {
                coords.push(self.src(ctx, c, Ty::B32, stmt)?);
            }
        }
        let dst = self.mem(ctx, &ops[0], stmt)?;
        let src = self.mem(ctx, &ops[1], stmt)?;
        let size = if dims.is_none() { self.src(ctx, &ops[2], Ty::U32, stmt)? } else { ZERO };
        let mbar = if way.to_global { None } else { Some(self.mem(ctx, &ops[2 + plain], stmt)?) };
        let Direction { to_global, from_shared, cluster } = way;
        Ok(Bulk { dst, src, to_global, from_shared, cluster, multicast: None, size, mbar, reduce: None, coords })
    }
}

/// The spaces of a copy, with the completion mechanism that belongs to them.
fn bulk_direction(m: &mut Parts<'_>, tensor: bool) -> Res<Direction> {
    let (dst, src) = (m.space(), m.space());
    let mbarrier = m.take("mbarrier::complete_tx::bytes");
    let group = m.take("bulk_group");
    let to_global = match (dst, src) {
        (MemSpace::Shared | MemSpace::SharedCluster, MemSpace::Global) => false,
        (MemSpace::SharedCluster, MemSpace::Shared) if !tensor => false,
        (MemSpace::Global, MemSpace::Shared) => true,
        _ => {
            return Err(m.bad("spaces other than global to shared, shared to global and shared to shared::cluster"));
        }
    };
    if to_global == mbarrier || to_global != group {
        return Err(m.bad("a completion mechanism that does not fit the direction"));
    }
    let from_shared = src == MemSpace::Shared && !to_global;
    Ok(Direction { to_global, from_shared, cluster: dst == MemSpace::SharedCluster })
}

fn bulk_reduction(m: &mut Parts<'_>, way: Direction, tensor: bool) -> Res<(AtomOp, Ty)> {
    let op = m.take_map(ATOM_OPS).ok_or_else(|| m.bad("an operation is missing"))?;
    m.take("noftz");
    if !way.to_global {
        return Err(m.bad("a reduction into shared memory"));
    }
    // The tensor form has its type in the tensor map.
    Ok((op, if tensor { Ty::F32 } else { m.ty()? }))
}
