//! Loads, stores, atomics and prefetches.

use super::*;

impl<'a> Lower<'a> {
    /// `ld`, `ldu` and `st`.
    pub(super) fn load_store(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let load = m.name() != "st";
        let (order, scope) = access_order(m)?;
        let mut space = m.space();
        m.take("nc");
        m.take_cache_hints();
        let ops = self.without_policy(ctx, stmt, m)?;
        m.take("unified");
        let count = m.take_map(&[("v2", 2u8), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        let ty = m.ty()?;
        if matches!(ty, Ty::Pred | Ty::F16x2 | Ty::BF16x2 | Ty::TF32 | Ty::E4M3 | Ty::E5M2 | Ty::E4M3x2 | Ty::E5M2x2) {
            return Err(m.bad("a type that memory has not"));
        }
        let bytes = (ty.bits() / 8) as u8;
        if bytes as u32 * count as u32 > 32 {
            return Err(m.bad("an access of more than 32 bytes"));
        }
        let [first, second] = ops else { return Err(self.miscounted(stmt, ops, &[2])) };
        let (regs, mem) = if load { (first, second) } else { (second, first) };
        let (slots, wide) = self.access_registers(ctx, stmt, m, regs, load, ty, count)?;
        let (addr, place) = self.mem_place(ctx, mem, stmt)?;
        if space == MemSpace::Param
            && let Some(Place::Local(_)) = place
        {
            space = MemSpace::Local;
        }
        if !load && space == MemSpace::Param {
            return Err(m.bad("a store to a kernel parameter"));
        }
        let class = match space {
            MemSpace::Global | MemSpace::Generic => Class::GlobalMemory,
            MemSpace::Shared | MemSpace::SharedCluster => Class::SharedMemory,
            MemSpace::Local => Class::LocalMemory,
            MemSpace::Param => Class::Move,
        };
        let access = Access {
            space,
            addr,
            order,
            scope,
            bytes,
            count,
            signed: ty.signed(),
            wide: wide.unwrap_or(bytes == 8),
            regs: slots,
        };
        Ok((if load { Op::Ld(access) } else { Op::St(access) }, class))
    }

    /// The registers of an access of `count` elements, and their common width where one of them says it.
    fn access_registers(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &Stmt,
        m: &Parts<'a>,
        regs: &Operand,
        load: bool,
        ty: Ty,
        count: u8,
    ) -> Res<([Slot; 8], Option<bool>)> {
        let v = self.vector(regs);
        if v.len() != count as usize {
            return Err(self.err(stmt, format!("{} registers given, {count} accepted", v.len())));
        }
        let mut slots = [SINK; 8];
        let mut wide = None;
        for (i, o) in v.iter().enumerate() {
            let (s, w) = if load { self.dst_any(ctx, o, stmt)? } else { self.src_any(ctx, o, ty, stmt)? };
            if s == SINK {
                continue;
            }
            if !w && ty.wide() {
                return Err(m.bad("a register narrower than the type"));
            }
            // The zero constant has both widths.
            if s != ZERO || load {
                if wide.is_some_and(|x| x != w) {
                    return Err(m.bad("registers of different widths"));
                }
                wide = Some(w);
            }
            slots[i] = s;
        }
        Ok((slots, wide))
    }

    /// `prefetch` and `prefetchu`: the address is checked as an operand.
    pub(super) fn prefetch(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        m.space();
        m.take_map(&[("L1", ()), ("L2", ()), ("L2::evict_last", ()), ("L2::evict_normal", ()), ("tensormap", ())]);
        self.mem(ctx, ops.first().ok_or_else(|| m.bad("an address is missing"))?, stmt)?;
        Ok((Op::Prefetch, Class::GlobalMemory))
    }

    /// `applypriority`: a hint, whose address is checked as an operand.
    pub(super) fn apply_priority(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let space = m.space();
        m.require("L2::evict_normal")?;
        self.line_of_cache(ctx, stmt, m, space)?;
        Ok((Op::Prefetch, Class::GlobalMemory))
    }

    /// `discard`: the bytes hold nothing until somebody writes them.
    pub(super) fn discard(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let space = m.space();
        m.require("L2")?;
        let addr = self.line_of_cache(ctx, stmt, m, space)?;
        Ok((Op::Discard { space, addr }, Class::GlobalMemory))
    }

    /// The address of 128 bytes of global memory.
    fn line_of_cache(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &Parts<'a>, space: MemSpace) -> Res<Addr> {
        if !matches!(space, MemSpace::Global | MemSpace::Generic) {
            return Err(m.bad("a space other than global"));
        }
        self.count(stmt, &[2])?;
        if self.immediate(&stmt.operands[1], stmt)? != CACHE_LINE {
            return Err(m.bad("a size other than 128"));
        }
        self.mem(ctx, &stmt.operands[0], stmt)
    }

    /// `atom` and `red`.
    pub(super) fn atom(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let red = m.name() == "red";
        let order = match m.take_order() {
            None | Some(Order::Weak) => Order::Relaxed,
            Some(o) => o,
        };
        let scope = m.take_scope().unwrap_or(Scope::Gpu);
        let space = m.space();
        let op = m.take_map(ATOM_OPS).ok_or_else(|| m.bad("an operation is missing"))?;
        m.take("noftz");
        let count = m.take_map(&[("v2", 2u8), ("v4", 4)]).unwrap_or(1);
        let ty = m.ty()?;
        let ok = match op {
            AtomOp::Add => {
                !matches!(ty, Ty::B8 | Ty::U8 | Ty::S8 | Ty::U16 | Ty::S16 | Ty::B16 | Ty::B32 | Ty::B64 | Ty::Pred)
            }
            AtomOp::Min | AtomOp::Max => matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64),
            AtomOp::Inc | AtomOp::Dec => ty == Ty::U32,
            AtomOp::And | AtomOp::Or | AtomOp::Xor => matches!(ty, Ty::B32 | Ty::B64),
            AtomOp::Exch => matches!(ty, Ty::B32 | Ty::B64 | Ty::U32 | Ty::U64 | Ty::S32),
            AtomOp::Cas => matches!(ty, Ty::B16 | Ty::B32 | Ty::B64 | Ty::U32 | Ty::U64 | Ty::S32),
        };
        if !ok || (red && matches!(op, AtomOp::Exch | AtomOp::Cas)) {
            return Err(m.bad("an operation that is not known for this type"));
        }
        if count > 1 && !(red && op == AtomOp::Add && ty == Ty::F32 && space == MemSpace::Global) {
            return Err(m.bad("several elements for other than `red.global.add.f32`"));
        }
        let n = if op == AtomOp::Cas { 3 } else { 2 };
        let ops = self.without_policy(ctx, stmt, m)?;
        self.count_of(stmt, ops, &[n + !red as usize])?;
        let ops = &ops[!red as usize..];
        let d = if red { SINK } else { self.dst(ctx, &stmt.operands[0], ty, stmt)? };
        let addr = self.mem(ctx, &ops[0], stmt)?;
        let values = self.slots(ctx, &ops[1], ty, false, stmt)?;
        if values.len() != count as usize {
            return Err(self.err(stmt, format!("{} registers given, {count} accepted", values.len())));
        }
        let mut b = [ZERO; 4];
        b[..values.len()].copy_from_slice(&values);
        let c = if n == 3 { self.src(ctx, &ops[2], ty, stmt)? } else { ZERO };
        Ok(Op::Atom { space, op, ty, order, scope, d, addr, count, b, c })
    }
}

/// Order and scope of a load or store. Volatile accesses are relaxed ones of the whole system (PTX ISA, ld.volatile).
fn access_order(m: &mut Parts<'_>) -> Res<(Order, Scope)> {
    let volatile = m.parts.contains(&"volatile") || m.parts.contains(&"mmio");
    // `.mmio` is written beside `.relaxed.sys`.
    if m.parts.contains(&"relaxed") {
        m.take("mmio");
    }
    match (m.take_order().unwrap_or(Order::Weak), m.take_scope()) {
        (order, Some(scope)) => Ok((order, scope)),
        (order, None) if volatile => Ok((order, Scope::Sys)),
        (Order::Weak, None) => Ok((Order::Weak, Scope::Cta)),
        _ => Err(m.bad("an order without a scope")),
    }
}
