//! Cache policies: operands that change time, not values.

use super::*;

/// What `createpolicy` answers: the bits are opaque (PTX ISA, createpolicy), and no access looks at them.
const POLICY: u64 = 1 << 60;

impl<'a> Lower<'a> {
    /// The operands without the cache policy that `.L2::cache_hint` puts behind them.
    pub(super) fn without_policy(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &'a Stmt,
        m: &mut Parts<'a>,
    ) -> Res<&'a [Operand]> {
        if !m.take("L2::cache_hint") {
            return Ok(&stmt.operands);
        }
        if m.parts.iter().any(|p| p.starts_with("shared") || *p == "local" || *p == "param") && m.name() != "cp" {
            return Err(m.bad("a cache policy for a space other than global"));
        }
        let (policy, rest) = match stmt.operands.split_last() {
            None | Some((Operand::Mem { .. }, _)) => return Err(m.bad("a cache policy is missing")),
            Some(last) => last,
        };
        self.src(ctx, policy, Ty::B64, stmt)?;
        Ok(rest)
    }

    /// `createpolicy.fractional`, `.range` and `.cvt`: a policy that is known as soon as its operands are.
    pub(super) fn create_policy(&mut self, ctx: &mut Ctx<'a>, stmt: &Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let ops = &stmt.operands;
        let kind = m
            .take_map(&[("fractional", 0), ("range", 1), ("cvt", 2)])
            .ok_or_else(|| m.bad(".fractional, .range or .cvt is missing"))?;
        if kind == 1 {
            m.take("global");
        }
        if kind == 2 {
            m.require("L2")?;
        } else {
            m.take_prefix("L2::evict").ok_or_else(|| m.bad("a priority is missing"))?;
            m.take_prefix("L2::evict");
        }
        if m.ty()? != Ty::B64 {
            return Err(m.bad("a type other than b64"));
        }
        self.count(stmt, [&[1, 2][..], &[4], &[2]][kind])?;
        let d = self.dst(ctx, &ops[0], Ty::B64, stmt)?;
        // `mov d, POLICY`, whose other sources only say whether the result is known.
        let mut s = [self.constant(Const::Bits(POLICY), true), ZERO, ZERO, ZERO];
        match kind {
            0 => {
                for fraction in &ops[1..] {
                    s[1] = self.src(ctx, fraction, Ty::F32, stmt)?;
                }
            }
            1 => {
                s[1] = self.mem(ctx, &ops[1], stmt)?.base;
                s[2] = self.src(ctx, &ops[2], Ty::U32, stmt)?;
                s[3] = self.src(ctx, &ops[3], Ty::U32, stmt)?;
            }
            _ => {
                s[1] = self.src(ctx, &ops[1], Ty::B64, stmt)?;
            }
        }
        Ok(Op::Alu { f: Alu::Mov, ty: Ty::B64, m: Mods::default(), d, s })
    }
}
