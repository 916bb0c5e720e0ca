//! Moves, selections, conversions of numbers and of addresses.

use super::*;

impl<'a> Lower<'a> {
    /// Moves of values and predicates, packing and unpacking of vectors, clocks, and addresses of functions.
    pub(super) fn mov(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        self.count(stmt, &[2])?;
        let ops = &stmt.operands;
        let ty = m.ty()?;
        if ty == Ty::Pred {
            let p = self.pred_dst(ctx, &ops[0], stmt)?;
            if matches!(&ops[1], Operand::Special(name) if special(name) == Some(Special::IsExplicitCluster)) {
                let a = self.constant(Const::Special(Special::IsExplicitCluster), false);
                let op = Op::Setp { cmp: Cmp::Ne, ty: Ty::U32, ftz: false, combine: None, p, q: SINK, a, b: ZERO };
                return Ok((op, Class::Predicate));
            }
            let a = self.pred_src(ctx, &ops[1], stmt)?;
            return Ok((Op::PredLogic { f: BoolOp::And, p, a, b: TRUE }, Class::Predicate));
        }
        let part = |n: usize| match (ty.bits(), n) {
            (32, 2) | (64, 4) => Some((16u32, Ty::B16)),
            (64, 2) => Some((32, Ty::B32)),
            (32, 4) => Some((8, Ty::B8)),
            (16, 2) => Some((8, Ty::B8)),
            _ => None,
        };
        match (&ops[0], &ops[1]) {
            (d, Operand::Vector(v)) => {
                let (bits, pty) = part(v.len()).ok_or_else(|| m.bad("a vector that does not fill the type"))?;
                let d = self.dst(ctx, d, ty, stmt)?;
                let mut s = [ZERO; 4];
                for (i, e) in v.iter().enumerate() {
                    s[i] = self.src(ctx, e, pty, stmt)?;
                }
                Ok((Op::Pack { d, wide: ty.wide(), bits, s, n: v.len() as u8 }, Class::Move))
            }
            (Operand::Vector(v), a) => {
                let (bits, pty) = part(v.len()).ok_or_else(|| m.bad("a vector that does not fill the type"))?;
                let a = self.src(ctx, a, ty, stmt)?;
                let mut d = [SINK; 4];
                for (i, e) in v.iter().enumerate() {
                    d[i] = self.dst(ctx, e, pty, stmt)?;
                }
                Ok((Op::Unpack { a, wide: ty.wide(), bits, d, n: v.len() as u8 }, Class::Move))
            }
            (d, Operand::Special(n)) if is_clock(n) => {
                let d = self.dst(ctx, d, ty, stmt)?;
                let global = n.starts_with("globaltimer");
                if n.ends_with("_hi") {
                    // The high words stay zero: a launch is shorter than 2^32 ticks of either clock.
                    return Ok((Op::Alu { f: Alu::Mov, ty, m: Mods::default(), d, s: [ZERO; 4] }, Class::Move));
                }
                Ok((Op::Clock { d, wide: ty.wide(), global }, Class::Move))
            }
            (d, Operand::Name { name, .. }) if self.ast.function_names.contains_key(name) => {
                // The address of a function: only an indirect call could use it, and that is refused when it runs.
                let index = self.ast.function_names[name];
                let d = self.dst(ctx, d, ty, stmt)?;
                let s = self.constant(Const::Bits(16 * (index as u64 + 1)), ty.wide());
                Ok((Op::Alu { f: Alu::Mov, ty, m: Mods::default(), d, s: [s, ZERO, ZERO, ZERO] }, Class::Move))
            }
            _ => Ok((self.alu(ctx, stmt, Alu::Mov, ty, Mods::default(), ty, &[ty])?, Class::Move)),
        }
    }

    /// `selp`.
    pub(super) fn selp(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        self.count(stmt, &[4])?;
        let ty = m.ty()?;
        if ty == Ty::Pred || ty.bits() == 8 {
            return Err(m.bad("a type of less than 16 bits"));
        }
        let d = self.dst(ctx, &ops[0], ty, stmt)?;
        let a = self.src(ctx, &ops[1], ty, stmt)?;
        let b = self.src(ctx, &ops[2], ty, stmt)?;
        let p = self.pred_src(ctx, &ops[3], stmt)?;
        Ok((Op::Selp { wide: ty.wide(), d, a, b, p }, Class::Move))
    }

    /// `slct`.
    pub(super) fn slct(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        self.count(stmt, &[4])?;
        let ftz = m.take("ftz");
        let ty = m.ty()?;
        let cty = m.ty()?;
        if !matches!(cty, Ty::S32 | Ty::F32) {
            return Err(m.bad("a selector other than s32 and f32"));
        }
        let d = self.dst(ctx, &ops[0], ty, stmt)?;
        let a = self.src(ctx, &ops[1], ty, stmt)?;
        let b = self.src(ctx, &ops[2], ty, stmt)?;
        let c = self.src(ctx, &ops[3], cty, stmt)?;
        Ok((Op::Slct { wide: ty.wide(), float: cty == Ty::F32, ftz, d, a, b, c }, Class::Move))
    }

    /// Conversions of one number, or of two f32 to a pair.
    pub(super) fn cvt(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        if m.take("pack") {
            return self.cvt_pack(ctx, stmt, m);
        }
        let ops = &stmt.operands;
        let int_round = m.take_map(&[
            ("rni", IntRound::NearestEven),
            ("rzi", IntRound::Zero),
            ("rmi", IntRound::Down),
            ("rpi", IntRound::Up),
        ]);
        let rounded = m.is_rounded();
        let round = m.round();
        let (ftz, sat, satfinite, relu) = (m.take("ftz"), m.take("sat"), m.take("satfinite"), m.take("relu"));
        let (to, from) = (m.ty()?, m.ty()?);
        let packs = matches!(to, Ty::F16x2 | Ty::BF16x2 | Ty::E4M3x2 | Ty::E5M2x2) && from == Ty::F32;
        if let Err(what) = conversion(to, from, rounded, int_round.is_some(), sat, satfinite, relu) {
            return Err(m.bad(what));
        }
        self.count(stmt, &[2 + packs as usize])?;
        let (d, wide_d) = self.dst_any(ctx, &ops[0], stmt)?;
        if d != SINK && (wide_d as u32 + 1) * 32 < to.bits() {
            return Err(m.bad("a destination register narrower than the type"));
        }
        let (mut a, wide_a) = self.src_any(ctx, &ops[1], from, stmt)?;
        if !wide_a && from.wide() {
            return Err(m.bad("a source register narrower than the type"));
        }
        let b = if packs { self.src(ctx, &ops[2], from, stmt)? } else { ZERO };
        // A narrow value in a 64-bit register: its low word is lane-strided differently, so take it apart first.
        if wide_a && !from.wide() {
            let low = self.slot(false);
            let op = Op::Unpack { a, wide: true, bits: 32, d: [low, SINK, SINK, SINK], n: 2 };
            let (r, w) = (std::mem::take(&mut self.reads), std::mem::take(&mut self.writes));
            self.emit_raw(op, TRUE, Class::Move, stmt.line, stmt.loc);
            (self.reads, self.writes) = (r, w);
            a = low;
        }
        Ok(Op::Cvt { to, from, round, int_round, ftz, sat: sat || satfinite, relu, d, wide_d, s: [a, b] })
    }

    /// `cvt.pack`: two integers, saturated.
    fn cvt_pack(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        m.require("sat")?;
        let element = m.take_map(&[
            ("u2", (2, false)),
            ("s2", (2, true)),
            ("u4", (4, false)),
            ("s4", (4, true)),
            ("u8", (8, false)),
            ("s8", (8, true)),
            ("u16", (16, false)),
            ("s16", (16, true)),
        ]);
        let (bits, signed) = element.ok_or_else(|| m.bad("a type of elements is missing"))?;
        m.require("s32")?;
        let mods = Mods { sat: true, flag: signed, imm: bits, ..Mods::default() };
        let tys = &[Ty::S32, Ty::S32, Ty::B32][..2 + (bits < 16) as usize];
        if bits < 16 {
            m.require("b32")?;
        }
        self.alu(ctx, stmt, Alu::CvtPack, Ty::B32, mods, Ty::B32, tys)
    }

    /// `cvta`.
    pub(super) fn cvta(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        self.count(stmt, &[2])?;
        let to = m.take("to");
        let space = m.space();
        let ty = m.ty()?;
        if !matches!(ty, Ty::U64 | Ty::U32 | Ty::B64) {
            return Err(m.bad("a type other than u64"));
        }
        let d = self.dst(ctx, &ops[0], ty, stmt)?;
        let a = self.src(ctx, &ops[1], ty, stmt)?;
        let window = match space {
            MemSpace::Global => 0,
            MemSpace::Shared | MemSpace::SharedCluster => SHARED_WINDOW,
            MemSpace::Local => LOCAL_WINDOW,
            MemSpace::Param => PARAM_WINDOW,
            MemSpace::Generic => return Err(m.bad("a state space is missing")),
        };
        let (f, b) = if window == 0 || !ty.wide() {
            (Alu::Mov, ZERO)
        } else {
            (if to { Alu::Sub } else { Alu::Add }, self.constant(Const::Bits(window), true))
        };
        let ty = if ty.wide() { Ty::U64 } else { Ty::U32 };
        Ok((Op::Alu { f, ty, m: Mods::default(), d, s: [a, b, ZERO, ZERO] }, Class::Integer))
    }

    /// `isspacep`.
    pub(super) fn isspacep(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        self.count(stmt, &[2])?;
        let space = m.space();
        if space == MemSpace::Generic {
            return Err(m.bad("a state space is missing"));
        }
        let p = self.pred_dst(ctx, &ops[0], stmt)?;
        let a = self.src(ctx, &ops[1], Ty::U64, stmt)?;
        Ok((Op::Isspacep { space, p, a }, Class::Predicate))
    }
}

/// Whether there is such a conversion, and if not, what about it there is not.
fn conversion(
    to: Ty,
    from: Ty,
    rounded: bool,
    int_rounded: bool,
    sat: bool,
    satfinite: bool,
    relu: bool,
) -> Result<(), &'static str> {
    let fp8 = |t| matches!(t, Ty::E4M3x2 | Ty::E5M2x2);
    let plain =
        |t: Ty| matches!(t, Ty::F16 | Ty::BF16 | Ty::F32 | Ty::F64) || (!t.is_float() && t.bits() >= 8 && !fp8(t));
    let packs = from == Ty::F32 && (fp8(to) || matches!(to, Ty::F16x2 | Ty::BF16x2));
    let known = packs
        || (to == Ty::F16x2 && fp8(from))
        || (fp8(to) && from == Ty::F16x2)
        || (to == Ty::TF32 && from == Ty::F32)
        || (plain(to) && plain(from));
    if !known {
        return Err("a conversion that is not known");
    }
    if fp8(to) && !satfinite {
        return Err(".satfinite is needed");
    }
    if satfinite && !fp8(to) && to != Ty::TF32 && !packs && !matches!(to, Ty::F16 | Ty::BF16) {
        return Err(".satfinite with these types");
    }
    if from.is_float() && !to.is_float() && !fp8(to) && !int_rounded && plain(to) {
        return Err("an integer rounding is needed");
    }
    let narrows = to.is_float() && from.is_float() && to.bits() < from.bits();
    if (narrows || (to.is_float() && plain(from) && !from.is_float())) && !rounded {
        return Err("a rounding is needed");
    }
    if relu && !(to.is_float() || fp8(to)) {
        return Err(".relu with these types");
    }
    let fits = to.bits() > from.bits() && (to.signed() || !from.signed())
        || to.bits() == from.bits() && to.signed() == from.signed();
    if sat && !to.is_float() && !from.is_float() && fits {
        return Err(".sat where every value fits");
    }
    Ok(())
}
