//! Integers and bits.

use super::*;

impl<'a> Lower<'a> {
    /// `mul24` and `mad24`.
    pub(super) fn mul24(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let name = m.name();
        m.take("lo");
        let ty = m.ty()?;
        if !matches!(ty, Ty::U32 | Ty::S32) {
            return Err(m.bad("a type other than u32 and s32"));
        }
        let mul = name == "mul24";
        let f = if mul { Alu::Mul24 } else { Alu::Mad24 };
        let tys: &[Ty] = if mul { &[ty, ty] } else { &[ty, ty, ty] };
        Ok((self.alu(ctx, stmt, f, ty, Mods::default(), ty, tys)?, Class::Integer))
    }

    /// Sums of absolute differences.
    pub(super) fn sad(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ty = m.ty()?;
        if ty.is_float() || ty.bits() == 8 {
            return Err(m.bad("a type that is not an integer of 16 to 64 bits"));
        }
        Ok((self.alu(ctx, stmt, Alu::Sad, ty, Mods::default(), ty, &[ty, ty, ty])?, Class::Integer))
    }

    /// `and`, `or`, `xor`, `not`, `cnot` and shifts, of integers and predicates.
    pub(super) fn logic(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        let name = m.name();
        let ty = m.ty()?;
        if ty == Ty::Pred {
            let f = match name {
                "and" => BoolOp::And,
                "or" => BoolOp::Or,
                "xor" | "not" => BoolOp::Xor,
                _ => return Err(m.bad("a shift of predicates")),
            };
            self.count(stmt, &[if name == "not" { 2 } else { 3 }])?;
            let p = self.pred_dst(ctx, &ops[0], stmt)?;
            let a = self.pred_src(ctx, &ops[1], stmt)?;
            let b = if name == "not" { TRUE } else { self.pred_src(ctx, &ops[2], stmt)? };
            return Ok((Op::PredLogic { f, p, a, b }, Class::Predicate));
        }
        if ty.is_float() || ty.bits() < 16 {
            return Err(m.bad("a type that is not an integer of 16 to 64 bits"));
        }
        let f = match name {
            "and" => Alu::And,
            "or" => Alu::Or,
            "xor" => Alu::Xor,
            "not" => Alu::Not,
            "cnot" => Alu::Cnot,
            "shl" => Alu::Shl,
            _ => Alu::Shr,
        };
        let tys: &[Ty] = match name {
            "not" | "cnot" => &[ty],
            "shl" | "shr" => &[ty, Ty::U32],
            _ => &[ty, ty],
        };
        Ok((self.alu(ctx, stmt, f, ty, Mods::default(), ty, tys)?, Class::Integer))
    }

    /// `popc`, `clz`, `brev` and `bfind`.
    pub(super) fn bits(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let name = m.name();
        let shift = name == "bfind" && m.take("shiftamt");
        let ty = m.ty()?;
        if ty.is_float() || ty.bits() < 32 {
            return Err(m.bad("a type that is not an integer of 32 or 64 bits"));
        }
        let f = match name {
            "popc" => Alu::Popc,
            "clz" => Alu::Clz,
            "brev" => Alu::Brev,
            _ if shift => Alu::BfindShift,
            _ => Alu::Bfind,
        };
        let dty = if name == "brev" { ty } else { Ty::U32 };
        Ok((self.alu(ctx, stmt, f, ty, Mods::default(), dty, &[ty])?, Class::Integer))
    }

    /// `bfe` and `bfi`.
    pub(super) fn bit_field(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let name = m.name();
        let ty = m.ty()?;
        if ty.is_float() || ty.bits() < 32 {
            return Err(m.bad("a type that is not an integer of 32 or 64 bits"));
        }
        let op = if name == "bfe" {
            self.alu(ctx, stmt, Alu::Bfe, ty, Mods::default(), ty, &[ty, Ty::U32, Ty::U32])?
        } else {
            self.alu(ctx, stmt, Alu::Bfi, ty, Mods::default(), ty, &[ty, ty, Ty::U32, Ty::U32])?
        };
        Ok((op, Class::Integer))
    }

    /// `bmsk`.
    pub(super) fn bit_mask(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let wrap = m.take("wrap");
        if !wrap && !m.take("clamp") {
            return Err(m.bad(".clamp or .wrap is missing"));
        }
        let ty = m.ty()?;
        let mods = Mods { flag: wrap, ..Mods::default() };
        Ok((self.alu(ctx, stmt, Alu::Bmsk, ty, mods, Ty::U32, &[Ty::U32, Ty::U32])?, Class::Integer))
    }

    /// `prmt`.
    pub(super) fn permute(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let mode =
            m.take_map(&[("f4e", 1u8), ("b4e", 2), ("rc8", 3), ("ecl", 4), ("ecr", 5), ("rc16", 6)]).unwrap_or(0);
        let ty = m.ty()?;
        if ty != Ty::B32 {
            return Err(m.bad("a type other than b32"));
        }
        let mods = Mods { imm: mode, ..Mods::default() };
        Ok((self.alu(ctx, stmt, Alu::Prmt, ty, mods, ty, &[ty, ty, Ty::U32])?, Class::Integer))
    }

    /// `shf`.
    pub(super) fn funnel_shift(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let left = m.take("l");
        if !left && !m.take("r") {
            return Err(m.bad(".l or .r is missing"));
        }
        let wrap = m.take("wrap");
        if !wrap && !m.take("clamp") {
            return Err(m.bad(".clamp or .wrap is missing"));
        }
        let ty = m.ty()?;
        let f = if left { Alu::ShfL } else { Alu::ShfR };
        let mods = Mods { flag: wrap, ..Mods::default() };
        Ok((self.alu(ctx, stmt, f, ty, mods, Ty::B32, &[Ty::B32, Ty::B32, Ty::U32])?, Class::Integer))
    }

    /// `lop3`.
    pub(super) fn lookup(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        let combine = m.take_map(&[("or", BoolOp::Or), ("and", BoolOp::And)]);
        let ty = m.ty()?;
        if ty != Ty::B32 {
            return Err(m.bad("a type other than b32"));
        }
        self.count(stmt, &[5 + combine.is_some() as usize])?;
        let lut = self.immediate(&ops[4], stmt)?;
        if lut > 255 {
            return Err(self.err(stmt, "a table above 0xff"));
        }
        let mut s = [ZERO; 4];
        for i in 0..3 {
            s[i] = self.src(ctx, &ops[i + 1], ty, stmt)?;
        }
        let table = |d| Op::Alu { f: Alu::Lop3, ty, m: Mods { imm: lut as u8, ..Mods::default() }, d, s };
        let Some(f) = combine else {
            let d = self.dst(ctx, &ops[0], ty, stmt)?;
            return Ok((table(d), Class::Integer));
        };
        // `lop3.or d|p`: the word, then whether it has a bit, combined with a predicate.
        let Operand::Pair(d, p) = &ops[0] else { return Err(self.err(stmt, "the destination must be d|p")) };
        let (d, p) = (self.dst(ctx, d, ty, stmt)?, self.pred_dst(ctx, p, stmt)?);
        let q = self.pred_src(ctx, &ops[5], stmt)?;
        let word = self.slot(false);
        self.emit_before(stmt, table(word), Class::Integer);
        if d != SINK {
            let op = Op::Alu { f: Alu::Mov, ty, m: Mods::default(), d, s: [word, ZERO, ZERO, ZERO] };
            self.emit_before(stmt, op, Class::Move);
        }
        let (cmp, ty) = (Cmp::Ne, Ty::U32);
        Ok((Op::Setp { cmp, ty, ftz: false, combine: Some((f, q)), p, q: SINK, a: word, b: ZERO }, Class::Predicate))
    }

    /// `fns`.
    pub(super) fn find_nth(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        m.require("b32")?;
        let tys = [Ty::B32, Ty::U32, Ty::S32];
        Ok((self.alu(ctx, stmt, Alu::Fns, Ty::B32, Mods::default(), Ty::B32, &tys)?, Class::Integer))
    }

    /// `szext`.
    pub(super) fn szext(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let wrap = m.take("wrap");
        if !wrap && !m.take("clamp") {
            return Err(m.bad(".clamp or .wrap is missing"));
        }
        let ty = m.ty()?;
        if !matches!(ty, Ty::U32 | Ty::S32) {
            return Err(m.bad("a type other than u32 and s32"));
        }
        let mods = Mods { flag: wrap, ..Mods::default() };
        Ok((self.alu(ctx, stmt, Alu::Szext, ty, mods, ty, &[ty, Ty::U32])?, Class::Integer))
    }

    /// `vabsdiff4` of whole words: the four differences, or their sum on top of the third operand.
    pub(super) fn abs_diff4(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let tys: Res<Vec<Ty>> = (0..3).map(|_| m.ty()).collect();
        let [d, a, b] = tys?[..] else { unreachable!("three are taken") };
        if [d, a, b].iter().any(|t| !matches!(t, Ty::U32 | Ty::S32)) {
            return Err(m.bad("types other than u32 and s32"));
        }
        let (sat, add) = (m.take("sat"), m.take("add"));
        if sat && add {
            return Err(m.bad("both .sat and .add"));
        }
        // What happens to the differences: their sum, or how they saturate.
        let imm = if add { 1 } else { 2 * (d == Ty::S32) as u8 };
        let mods = Mods { sat, flag: a == Ty::S32, relu: b == Ty::S32, imm, ..Mods::default() };
        Ok((self.alu(ctx, stmt, Alu::AbsDiff4, Ty::U32, mods, d, &[a, b, Ty::U32])?, Class::Integer))
    }

    /// `dp4a` and `dp2a`.
    pub(super) fn dot(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let name = m.name();
        let hi = name == "dp2a" && m.take("hi");
        if name == "dp2a" && !hi && !m.take("lo") {
            return Err(m.bad(".lo or .hi is missing"));
        }
        let a = m.ty()?;
        let b = m.ty()?;
        if !matches!((a, b), (Ty::U32 | Ty::S32, Ty::U32 | Ty::S32)) {
            return Err(m.bad("types other than u32 and s32"));
        }
        let f = if name == "dp4a" { Alu::Dp4a } else { Alu::Dp2a };
        let mods = Mods { flag: b == Ty::S32, imm: hi as u8, ..Mods::default() };
        Ok((self.alu(ctx, stmt, f, a, mods, Ty::B32, &[Ty::B32, Ty::B32, Ty::B32])?, Class::Integer))
    }
}
