//! Operands: registers, immediates, special registers, and variables with their addresses.

use super::*;

impl<'a> Lower<'a> {
    pub(super) fn global_place(&mut self, v: u32) -> Place {
        let var = &self.ast.vars[v as usize];
        match var.space {
            Space::Shared => {
                if var.is_extern {
                    self.dynamic_align = self.dynamic_align.max(var.align as u32);
                    return Place::Shared(u32::MAX);
                }
                if let Some(&o) = self.shared_vars.get(&v) {
                    return Place::Shared(o);
                }
                let o = align_up((self.static_shared + SHARED_BASE) as u64, var.align) - SHARED_BASE as u64;
                self.static_shared = (o + var.size).min(u32::MAX as u64 / 2) as u32;
                self.shared_vars.insert(v, o as u32);
                Place::Shared(o as u32)
            }
            _ => Place::Global(v),
        }
    }

    pub(super) fn local_place(&mut self, ctx: &mut Ctx<'a>, v: u32, stmt: &Stmt) -> Res<Place> {
        if let Some(p) = ctx.places[v as usize] {
            return Ok(p);
        }
        let var = &ctx.fun.vars[v as usize];
        let place = match var.space {
            Space::Shared => {
                let o = align_up((self.static_shared + SHARED_BASE) as u64, var.align) - SHARED_BASE as u64;
                self.static_shared = (o + var.size).min(u32::MAX as u64 / 2) as u32;
                Place::Shared(o as u32)
            }
            Space::Local | Space::Param => Place::Local(self.local_alloc(var, stmt)?),
            _ => return Err(self.err(stmt, format!("variable `{}` of this space inside of a function", var.name))),
        };
        ctx.places[v as usize] = Some(place);
        Ok(place)
    }

    pub(super) fn local_alloc(&mut self, var: &Var, stmt: &Stmt) -> Res<u32> {
        let o = align_up(self.local_bytes as u64, var.align);
        // 512 KiB a thread is the most that hardware gives.
        if o + var.size > 512 << 10 {
            return Err(self.err(stmt, format!("{} bytes of local memory a thread; at most 524288", o + var.size)));
        }
        self.local_bytes = (o + var.size) as u32;
        Ok(o as u32)
    }

    pub(super) fn place(&mut self, ctx: &mut Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<Option<(Place, i64)>> {
        Ok(match o {
            Operand::Local(v, off) => Some((self.local_place(ctx, *v, stmt)?, *off)),
            Operand::Global(v, off) => Some((self.global_place(*v), *off)),
            _ => None,
        })
    }

    /// The address of a place in its own space, as a constant slot.
    pub(super) fn place_slot(&mut self, place: Place, offset: i64, wide: bool) -> Slot {
        match place {
            Place::Param(o) | Place::Local(o) => {
                self.constant(Const::Bits((o as i64).wrapping_add(offset) as u64), wide)
            }
            Place::Shared(u32::MAX) => {
                if let Some(&(_, _, s)) = self.dynamic_consts.iter().find(|c| c.0 == offset && c.1 == wide) {
                    return s;
                }
                let s = self.slot(wide);
                self.dynamic_consts.push((offset, wide, s));
                s
            }
            Place::Shared(o) => {
                self.constant(Const::Bits(((o + SHARED_BASE) as i64).wrapping_add(offset) as u64), wide)
            }
            Place::Global(v) => self.constant(Const::GlobalVar(v, offset), wide),
        }
    }

    pub(super) fn imm_bits(&self, imm: Imm, ty: Ty, stmt: &Stmt) -> Res<u64> {
        Ok(match (imm, ty) {
            (Imm::Int(v), t) if !matches!(t, Ty::F32 | Ty::F64) => match t.bits() {
                8 | 16 => v & 0xffff,
                32 => v & 0xffff_ffff,
                _ => v,
            },
            (Imm::F32(b), t) if t.bits() == 32 => b as u64,
            (Imm::F32(b), Ty::F64) => (f32::from_bits(b) as f64).to_bits(),
            (Imm::F64(b), Ty::F32) => (f64::from_bits(b) as f32).to_bits() as u64,
            (Imm::F64(b), t) if t.bits() == 64 => b,
            _ => return Err(self.err(stmt, "an immediate that does not fit the type")),
        })
    }

    /// A source of the type; registers must have the type's width (8 and 16 bits share a kind with 32).
    pub(super) fn src(&mut self, ctx: &mut Ctx<'a>, o: &Operand, ty: Ty, stmt: &Stmt) -> Res<Slot> {
        let wide = ty.wide();
        let s = match o {
            Operand::Reg(r) => {
                let ok = match ctx.fun.regs[*r as usize] {
                    RegKind::B64 => wide,
                    RegKind::B16 | RegKind::B32 => !wide,
                    _ => false,
                };
                if !ok {
                    return Err(self.err(stmt, format!("a source register that is not {} bits wide", ty.bits())));
                }
                ctx.regs[*r as usize]
            }
            Operand::Imm(i) => {
                let bits = self.imm_bits(*i, ty, stmt)?;
                self.constant(Const::Bits(bits), wide)
            }
            Operand::Special(name) => match special(name) {
                Some(Special::IsExplicitCluster) => {
                    return Err(self.err(stmt, format!("the predicate `%{name}` is read by mov.pred only")));
                }
                Some(sp) => self.constant(Const::Special(sp), wide),
                None if !is_clock(name) => return Err(self.err(stmt, format!("the special register `%{name}`"))),
                None => return Err(self.err(stmt, format!("`%{name}` is read by mov only"))),
            },
            Operand::Local(..) | Operand::Global(..) => {
                let (p, off) = self.place(ctx, o, stmt)?.expect("a variable");
                self.place_slot(p, off, wide)
            }
            Operand::Name { name, .. } => return Err(self.undeclared(stmt, name)),
            _ => return Err(self.err(stmt, "a source operand of this form")),
        };
        self.reads.push(s);
        Ok(s)
    }

    /// A source register of any width, or an immediate of the type's.
    pub(super) fn src_any(&mut self, ctx: &mut Ctx<'a>, o: &Operand, ty: Ty, stmt: &Stmt) -> Res<(Slot, bool)> {
        if let Operand::Reg(r) = o {
            let wide = ctx.fun.regs[*r as usize] == RegKind::B64;
            if ctx.fun.regs[*r as usize] == RegKind::Pred {
                return Err(self.err(stmt, "a predicate register where a value is needed"));
            }
            self.reads.push(ctx.regs[*r as usize]);
            return Ok((ctx.regs[*r as usize], wide));
        }
        Ok((self.src(ctx, o, ty, stmt)?, ty.wide()))
    }

    pub(super) fn undeclared(&self, stmt: &Stmt, name: &str) -> ParseError {
        ParseError { line: stmt.line, column: stmt.column, kind: ParseErrorKind::Undeclared(name.to_owned()) }
    }

    pub(super) fn dst(&mut self, ctx: &Ctx<'a>, o: &Operand, ty: Ty, stmt: &Stmt) -> Res<Slot> {
        match o {
            Operand::Reg(r) => {
                let ok = match ctx.fun.regs[*r as usize] {
                    RegKind::B64 => ty.wide(),
                    RegKind::B16 | RegKind::B32 => !ty.wide(),
                    _ => false,
                };
                if !ok {
                    return Err(self.err(stmt, format!("a destination register that is not {} bits wide", ty.bits())));
                }
                self.writes.push(ctx.regs[*r as usize]);
                Ok(ctx.regs[*r as usize])
            }
            Operand::Sink => Ok(SINK),
            _ => Err(self.err(stmt, "a destination that is not a register")),
        }
    }

    pub(super) fn dst_any(&mut self, ctx: &Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<(Slot, bool)> {
        match o {
            Operand::Reg(r) if ctx.fun.regs[*r as usize] != RegKind::Pred => {
                self.writes.push(ctx.regs[*r as usize]);
                Ok((ctx.regs[*r as usize], ctx.fun.regs[*r as usize] == RegKind::B64))
            }
            Operand::Sink => Ok((SINK, false)),
            _ => Err(self.err(stmt, "a destination that is not a register")),
        }
    }

    pub(super) fn pred_dst(&self, ctx: &Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<u32> {
        match o {
            Operand::Reg(r) if ctx.fun.regs[*r as usize] == RegKind::Pred => Ok(ctx.regs[*r as usize]),
            Operand::Sink => Ok(SINK),
            _ => Err(self.err(stmt, "a destination that is not a predicate register")),
        }
    }

    pub(super) fn pred_src(&self, ctx: &Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<Pred> {
        let (r, negated) = match o {
            Operand::Reg(r) => (*r, false),
            Operand::Not(r) => (*r, true),
            Operand::Imm(Imm::Int(v)) => return Ok(Pred { index: 0, negated: *v == 0 }),
            _ => return Err(self.err(stmt, "a source that is not a predicate")),
        };
        if ctx.fun.regs[r as usize] != RegKind::Pred {
            return Err(self.err(stmt, "a source that is not a predicate"));
        }
        Ok(Pred { index: ctx.regs[r as usize], negated })
    }

    pub(super) fn mem(&mut self, ctx: &mut Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<Addr> {
        Ok(self.mem_place(ctx, o, stmt)?.0)
    }

    pub(super) fn mem_place(&mut self, ctx: &mut Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<(Addr, Option<Place>)> {
        let Operand::Mem { base, offset, coords } = o else {
            return Err(self.err(stmt, "an operand that is not a memory operand in brackets"));
        };
        if !coords.is_empty() && !stmt.opcode.contains("tensor") {
            return Err(self.err(stmt, "coordinates in an address"));
        }
        match &**base {
            Operand::Reg(r) => {
                let wide = match ctx.fun.regs[*r as usize] {
                    RegKind::B64 => true,
                    RegKind::B32 => false,
                    _ => return Err(self.err(stmt, "an address register that is not 32 or 64 bits wide")),
                };
                let s = ctx.regs[*r as usize];
                self.reads.push(s);
                Ok((Addr { base: s, wide, offset: *offset }, None))
            }
            Operand::Imm(Imm::Int(v)) => {
                Ok((Addr { base: ZERO, wide: true, offset: (*v as i64).wrapping_add(*offset) }, None))
            }
            other => match self.place(ctx, other, stmt)? {
                Some((p, off)) => {
                    let off = off.wrapping_add(*offset);
                    let s = self.place_slot(p, 0, true);
                    Ok((Addr { base: s, wide: true, offset: off }, Some(p)))
                }
                None => match other {
                    Operand::Name { name, .. } => Err(self.undeclared(stmt, name)),
                    _ => Err(self.err(stmt, "an address of this form")),
                },
            },
        }
    }

    pub(super) fn count(&self, stmt: &Stmt, accepted: &[usize]) -> Res<()> {
        self.count_of(stmt, &stmt.operands, accepted)
    }

    /// The same for the operands that are left when optional ones at the end were taken.
    pub(super) fn count_of(&self, stmt: &Stmt, given: &[Operand], accepted: &[usize]) -> Res<()> {
        if accepted.contains(&given.len()) { Ok(()) } else { Err(self.miscounted(stmt, given, accepted)) }
    }

    pub(super) fn miscounted(&self, stmt: &Stmt, given: &[Operand], accepted: &[usize]) -> ParseError {
        self.err(stmt, format!("{} operands given, {accepted:?} accepted", given.len()))
    }

    pub(super) fn vector<'o>(&self, o: &'o Operand) -> &'o [Operand] {
        match o {
            Operand::Vector(v) => v,
            one => std::slice::from_ref(one),
        }
    }

    pub(super) fn immediate(&self, o: &Operand, stmt: &Stmt) -> Res<u64> {
        match o {
            Operand::Imm(Imm::Int(v)) => Ok(*v),
            _ => Err(self.err(stmt, "an operand that must be an integer immediate")),
        }
    }

    pub(super) fn slots(&mut self, ctx: &mut Ctx<'a>, o: &Operand, ty: Ty, write: bool, stmt: &Stmt) -> Res<Vec<Slot>> {
        let mut out = Vec::new();
        for e in self.vector(o) {
            out.push(if write { self.dst(ctx, e, ty, stmt)? } else { self.src(ctx, e, ty, stmt)? });
        }
        Ok(out)
    }
}
