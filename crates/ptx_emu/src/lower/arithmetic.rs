//! Arithmetic, with and without carry, and the special functions.

use super::*;

/// Which part of a product is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Low,
    High,
    Wide,
}

impl<'a> Lower<'a> {
    /// An operation whose destination and sources have these types.
    pub(super) fn alu(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &Stmt,
        f: Alu,
        ty: Ty,
        m: Mods,
        dty: Ty,
        tys: &[Ty],
    ) -> Res<Op> {
        self.count(stmt, &[tys.len() + 1])?;
        let d = self.dst(ctx, &stmt.operands[0], dty, stmt)?;
        let mut s = [ZERO; 4];
        for (i, t) in tys.iter().enumerate() {
            s[i] = self.src(ctx, &stmt.operands[i + 1], *t, stmt)?;
        }
        Ok(Op::Alu { f, ty, m, d, s })
    }

    /// Arithmetic whose operation is the opcode.
    pub(super) fn arithmetic(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let carry_out = m.take("cc");
        let carry_in = matches!(m.name(), "addc" | "subc" | "madc");
        let part = m.take_map(&[("lo", Part::Low), ("hi", Part::High), ("wide", Part::Wide)]);
        let (full, approx) = (m.take("full"), m.take("approx"));
        let mods = Mods {
            round: m.round(),
            ftz: m.take("ftz"),
            sat: m.take("sat"),
            flag: m.take("NaN"),
            relu: m.take("relu"),
            approx: approx || full,
            xorsign: m.take("xorsign"),
            imm: 0,
        };
        if mods.xorsign {
            m.require("abs")?;
        }
        if let Some(ty) = m.take_map(&[("u16x2", Ty::U16x2), ("s16x2", Ty::S16x2)]) {
            return self.packed_integers(ctx, stmt, m, ty, mods, part.is_some() || carry_in || carry_out);
        }
        let ty = m.ty()?;
        if matches!(ty, Ty::Pred | Ty::B8 | Ty::U8 | Ty::S8 | Ty::TF32 | Ty::E4M3 | Ty::E5M2 | Ty::E4M3x2 | Ty::E5M2x2)
        {
            return Err(m.bad("a type that arithmetic has not"));
        }
        if carry_in || carry_out {
            return self.carry(ctx, stmt, m, ty, part, carry_in, carry_out);
        }
        if ty.is_float() {
            return self.float_arithmetic(ctx, stmt, m, ty, part, mods);
        }
        self.integer_arithmetic(ctx, stmt, m, ty, part, mods)
    }

    fn carry(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &'a Stmt,
        m: &mut Parts<'a>,
        ty: Ty,
        part: Option<Part>,
        carry_in: bool,
        carry_out: bool,
    ) -> Res<(Op, Class)> {
        if !matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64 | Ty::B32 | Ty::B64) {
            return Err(m.bad("carry arithmetic of this type"));
        }
        let f = match (m.name(), part) {
            ("add" | "addc", None) => Alu::Add,
            ("sub" | "subc", None) => Alu::Sub,
            ("mad" | "madc", Some(Part::Low)) => Alu::MadLo,
            ("mad" | "madc", Some(Part::High)) => Alu::MadHi,
            _ => return Err(m.bad("a carry form that is not known")),
        };
        let n = if matches!(f, Alu::Add | Alu::Sub) { 2 } else { 3 };
        self.count(stmt, &[n + 1])?;
        let d = self.dst(ctx, &stmt.operands[0], ty, stmt)?;
        let mut s = [ZERO; 3];
        for (s, o) in s.iter_mut().zip(&stmt.operands[1..]) {
            *s = self.src(ctx, o, ty, stmt)?;
        }
        Ok((Op::Carry { f, ty, carry_in, carry_out, d, s }, Class::Integer))
    }

    fn float_arithmetic(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &'a Stmt,
        m: &mut Parts<'a>,
        ty: Ty,
        part: Option<Part>,
        mods: Mods,
    ) -> Res<(Op, Class)> {
        let f = match m.name() {
            "add" => Alu::Add,
            "sub" => Alu::Sub,
            "mul" => Alu::FMul,
            // `mad.f32` is fma on every target that the emulator runs.
            "mad" | "fma" => Alu::Fma,
            "div" => Alu::Div,
            "min" => Alu::Min,
            "max" => Alu::Max,
            "neg" => Alu::Neg,
            "abs" => Alu::Abs,
            _ => return Err(m.bad("a floating-point type")),
        };
        if part.is_some() {
            return Err(m.bad(".lo, .hi and .wide are for integers"));
        }
        if f == Alu::Fma && !m.is_rounded() {
            return Err(m.bad("a rounding is needed"));
        }
        let directed = mods.round != Round::NearestEven;
        let rounds = matches!(f, Alu::Add | Alu::Sub | Alu::FMul | Alu::Fma | Alu::Div);
        if directed && !(matches!(ty, Ty::F32 | Ty::F64) && rounds && !mods.approx) {
            return Err(m.bad("a rounding other than .rn for this operation and type"));
        }
        if f == Alu::Div && !matches!(ty, Ty::F32 | Ty::F64) {
            return Err(m.bad("division of this type"));
        }
        if mods.relu && !(f == Alu::Fma && ty.bits() <= 32 && ty != Ty::F32) {
            return Err(m.bad(".relu is for fma of f16 and bf16"));
        }
        if mods.flag && !matches!(f, Alu::Min | Alu::Max) {
            return Err(m.bad(".NaN is for min and max"));
        }
        if mods.sat && (ty == Ty::F64 || matches!(f, Alu::Min | Alu::Max | Alu::Neg | Alu::Abs | Alu::Div)) {
            return Err(m.bad(".sat with this operation or type"));
        }
        if mods.xorsign && (!matches!(f, Alu::Min | Alu::Max) || matches!(ty, Ty::F64 | Ty::F32x2)) {
            return Err(m.bad(".xorsign.abs is for min and max of f32, f16 and bf16"));
        }
        // Devices from sm_100 on have minima and maxima of three.
        let three = ty == Ty::F32 && stmt.operands.len() == 4 && !mods.xorsign;
        let f = match f {
            Alu::Min if three => Alu::Min3,
            Alu::Max if three => Alu::Max3,
            f => f,
        };
        let n = match f {
            Alu::Neg | Alu::Abs => 1,
            Alu::Fma | Alu::Min3 | Alu::Max3 => 3,
            _ => 2,
        };
        let class = match ty {
            Ty::F64 => Class::Double,
            Ty::F32 | Ty::F32x2 => Class::Float,
            _ => Class::Half,
        };
        let class = if f == Alu::Div { Class::Special } else { class };
        Ok((self.alu(ctx, stmt, f, ty, mods, ty, &[ty; 3][..n])?, class))
    }

    /// add, min and max of two 16-bit integers at a time.
    fn packed_integers(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &'a Stmt,
        m: &mut Parts<'a>,
        ty: Ty,
        mods: Mods,
        other: bool,
    ) -> Res<(Op, Class)> {
        let f = match m.name() {
            "add" => Alu::Add,
            "min" => Alu::Min,
            "max" => Alu::Max,
            _ => return Err(m.bad("an operation that packed integers have not")),
        };
        let relu = mods.relu && f != Alu::Add && ty == Ty::S16x2;
        if other || m.is_rounded() || mods != (Mods { relu, ..Mods::default() }) {
            return Err(m.bad("a modifier that packed integers have not"));
        }
        Ok((self.alu(ctx, stmt, f, ty, mods, ty, &[ty, ty])?, Class::Integer))
    }

    fn integer_arithmetic(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &'a Stmt,
        m: &mut Parts<'a>,
        ty: Ty,
        part: Option<Part>,
        mods: Mods,
    ) -> Res<(Op, Class)> {
        let name = m.name();
        if mods.relu && !(matches!(name, "min" | "max") && ty == Ty::S32) {
            return Err(m.bad(".relu of integers is for min and max of s32"));
        }
        if m.is_rounded() || mods != (Mods { sat: mods.sat, relu: mods.relu, ..Mods::default() }) {
            return Err(m.bad("a floating-point modifier is not accepted for an integer operation"));
        }
        if mods.sat && !(matches!(name, "add" | "sub") && ty == Ty::S32) {
            return Err(m.bad(".sat is for add and sub of s32"));
        }
        let wide_ty = match ty {
            Ty::U16 => Ty::U32,
            Ty::S16 => Ty::S32,
            Ty::U32 => Ty::U64,
            Ty::S32 => Ty::S64,
            _ => ty,
        };
        let op = match (name, part) {
            ("add", None) => self.alu(ctx, stmt, Alu::Add, ty, mods, ty, &[ty, ty])?,
            ("sub", None) => self.alu(ctx, stmt, Alu::Sub, ty, mods, ty, &[ty, ty])?,
            ("mul", Some(Part::Low)) => self.alu(ctx, stmt, Alu::MulLo, ty, mods, ty, &[ty, ty])?,
            ("mul", Some(Part::High)) => self.alu(ctx, stmt, Alu::MulHi, ty, mods, ty, &[ty, ty])?,
            ("mul", Some(Part::Wide)) if wide_ty != ty => {
                self.alu(ctx, stmt, Alu::MulWide, ty, mods, wide_ty, &[ty, ty])?
            }
            ("mad", Some(Part::Low)) => self.alu(ctx, stmt, Alu::MadLo, ty, mods, ty, &[ty, ty, ty])?,
            ("mad", Some(Part::High)) => self.alu(ctx, stmt, Alu::MadHi, ty, mods, ty, &[ty, ty, ty])?,
            ("mad", Some(Part::Wide)) if wide_ty != ty => {
                self.alu(ctx, stmt, Alu::MadWide, ty, mods, wide_ty, &[ty, ty, wide_ty])?
            }
            ("div", None) => self.alu(ctx, stmt, Alu::Div, ty, mods, ty, &[ty, ty])?,
            ("rem", None) => self.alu(ctx, stmt, Alu::Rem, ty, mods, ty, &[ty, ty])?,
            ("min", None) => self.alu(ctx, stmt, Alu::Min, ty, mods, ty, &[ty, ty])?,
            ("max", None) => self.alu(ctx, stmt, Alu::Max, ty, mods, ty, &[ty, ty])?,
            ("neg", None) => self.alu(ctx, stmt, Alu::Neg, ty, mods, ty, &[ty])?,
            ("abs", None) => self.alu(ctx, stmt, Alu::Abs, ty, mods, ty, &[ty])?,
            _ => return Err(m.bad("an integer form that is not known")),
        };
        Ok((op, Class::Integer))
    }

    /// Special functions.
    pub(super) fn special_function(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &'a Stmt,
        m: &mut Parts<'a>,
    ) -> Res<(Op, Class)> {
        let name = m.name();
        let mut mods = Mods { approx: m.take("approx"), ..Mods::default() };
        let rounded = matches!(name, "rcp" | "sqrt") && m.is_rounded();
        if rounded {
            mods.round = m.round();
        }
        if rounded == mods.approx {
            return Err(m.bad(".approx or a rounding is needed"));
        }
        mods.ftz = m.take("ftz");
        let ty = m.ty()?;
        let f = match name {
            "ex2" => Alu::Ex2,
            "lg2" => Alu::Lg2,
            "rcp" => Alu::Rcp,
            "rsqrt" => Alu::Rsqrt,
            "sqrt" => Alu::Sqrt,
            "sin" => Alu::Sin,
            "cos" => Alu::Cos,
            _ => Alu::Tanh,
        };
        let ok = match ty {
            Ty::F32 => true,
            Ty::F64 => matches!(f, Alu::Rcp | Alu::Rsqrt | Alu::Sqrt),
            Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2 => matches!(f, Alu::Ex2 | Alu::Tanh),
            _ => false,
        };
        if !ok {
            return Err(m.bad("a type that this function has not"));
        }
        Ok((self.alu(ctx, stmt, f, ty, mods, ty, &[ty])?, Class::Special))
    }

    /// `copysign`.
    pub(super) fn copysign(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ty = m.ty()?;
        if !matches!(ty, Ty::F32 | Ty::F64) {
            return Err(m.bad("a type other than f32 and f64"));
        }
        Ok((self.alu(ctx, stmt, Alu::Copysign, ty, Mods::default(), ty, &[ty, ty])?, Class::Float))
    }
}
