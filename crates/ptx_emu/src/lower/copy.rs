//! `cp.async`: asynchronous copies of each thread. Bulk copies are in `bulk.rs`.

use super::*;

impl<'a> Lower<'a> {
    /// Everything whose opcode is `cp`.
    pub(super) fn copy_async(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let ops = &stmt.operands;
        if m.take("reduce") {
            m.require("async")?;
            m.require("bulk")?;
            return self.bulk(ctx, stmt, m, true);
        }
        m.require("async")?;
        if m.take("bulk") {
            return self.bulk(ctx, stmt, m, false);
        }
        if m.take("commit_group") {
            self.count(stmt, &[0])?;
            return Ok(Op::CpAsyncCommit);
        }
        if m.take("wait_group") {
            self.count(stmt, &[1])?;
            return Ok(Op::CpAsyncWait(Some(self.immediate(&ops[0], stmt)?.min(u32::MAX as u64) as u32)));
        }
        if m.take("wait_all") {
            self.count(stmt, &[0])?;
            return Ok(Op::CpAsyncWait(None));
        }
        if m.take("mbarrier") {
            m.require("arrive")?;
            let no_inc = m.take("noinc");
            if !matches!(m.space(), MemSpace::Shared | MemSpace::Generic) {
                return Err(m.bad("a state space other than shared"));
            }
            m.ty()?;
            self.count(stmt, &[1])?;
            return Ok(Op::CpAsyncMbarArrive { addr: self.mem(ctx, &ops[0], stmt)?, no_inc });
        }
        self.thread_copy(ctx, stmt, m)
    }

    /// `cp.async.{ca, cg}.shared.global [dst], [src], size{, src-size or ignore-src}{, policy}`.
    fn thread_copy(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let cg = m.take("cg");
        if !cg && !m.take("ca") {
            return Err(m.bad(".ca or .cg is missing"));
        }
        if m.space() != MemSpace::Shared || m.space() != MemSpace::Global {
            return Err(m.bad("spaces other than shared and global"));
        }
        m.take_cache_hints();
        let ops = self.without_policy(ctx, stmt, m)?;
        self.count_of(stmt, ops, &[3, 4])?;
        let dst = self.mem(ctx, &ops[0], stmt)?;
        let src = self.mem(ctx, &ops[1], stmt)?;
        let bytes = self.immediate(&ops[2], stmt)?;
        if !(bytes == 16 || (!cg && matches!(bytes, 4 | 8))) {
            return Err(self.err(stmt, format!("{bytes} bytes; .cg copies 16, .ca copies 4, 8 or 16")));
        }
        let (mut src_size, mut ignore) = (None, None);
        match ops.get(3) {
            None => {}
            Some(Operand::Reg(r)) if ctx.fun.regs[*r as usize] == RegKind::Pred => {
                ignore = Some(self.pred_src(ctx, &ops[3], stmt)?);
            }
            Some(Operand::Not(_)) => ignore = Some(self.pred_src(ctx, &ops[3], stmt)?),
            Some(o) => src_size = Some(self.src(ctx, o, Ty::U32, stmt)?),
        }
        Ok(Op::CpAsync { dst, src, bytes: bytes as u8, src_size, ignore })
    }
}
