//! Opcodes to the operations that they stand for.

use super::*;

impl<'a> Lower<'a> {
    /// The operation of a statement that is no branch, call or return, and what it counts as.
    pub(super) fn operation(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        Ok(match m.name() {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "neg" | "abs" | "addc" | "subc"
            | "madc" => self.arithmetic(ctx, stmt, m)?,
            "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "sin" | "cos" | "tanh" => self.special_function(ctx, stmt, m)?,
            "copysign" => self.copysign(ctx, stmt, m)?,
            "mul24" | "mad24" => self.mul24(ctx, stmt, m)?,
            "sad" => self.sad(ctx, stmt, m)?,
            "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" => self.logic(ctx, stmt, m)?,
            "popc" | "clz" | "brev" | "bfind" => self.bits(ctx, stmt, m)?,
            "bfe" | "bfi" => self.bit_field(ctx, stmt, m)?,
            "fns" => self.find_nth(ctx, stmt, m)?,
            "szext" => self.szext(ctx, stmt, m)?,
            "vabsdiff4" => self.abs_diff4(ctx, stmt, m)?,
            "bmsk" => self.bit_mask(ctx, stmt, m)?,
            "prmt" => self.permute(ctx, stmt, m)?,
            "shf" => self.funnel_shift(ctx, stmt, m)?,
            "lop3" => self.lookup(ctx, stmt, m)?,
            "dp4a" | "dp2a" => self.dot(ctx, stmt, m)?,
            "setp" | "set" => self.compare(ctx, stmt, m)?,
            "testp" => self.testp(ctx, stmt, m)?,
            "mov" => self.mov(ctx, stmt, m)?,
            "selp" => self.selp(ctx, stmt, m)?,
            "slct" => self.slct(ctx, stmt, m)?,
            "cvt" => (self.cvt(ctx, stmt, m)?, Class::Convert),
            "cvta" => self.cvta(ctx, stmt, m)?,
            "isspacep" => self.isspacep(ctx, stmt, m)?,
            "st" | "red" if m.take("async") => (self.async_store(ctx, stmt, m)?, Class::Async),
            "ld" | "ldu" | "st" => self.load_store(ctx, stmt, m)?,
            "atom" | "red" => (self.atom(ctx, stmt, m)?, Class::Atomic),
            "prefetch" | "prefetchu" => self.prefetch(ctx, stmt, m)?,
            "applypriority" => self.apply_priority(ctx, stmt, m)?,
            "discard" => self.discard(ctx, stmt, m)?,
            "createpolicy" => (self.create_policy(ctx, stmt, m)?, Class::Move),
            "cp" => (self.copy_async(ctx, stmt, m)?, Class::Async),
            "mapa" | "getctarank" => (self.cluster_address(ctx, stmt, m)?, Class::Integer),
            "shfl" => self.shfl(ctx, stmt, m)?,
            "vote" => self.vote(ctx, stmt, m)?,
            "match" => self.match_(ctx, stmt, m)?,
            "redux" => self.redux(ctx, stmt, m)?,
            "elect" => self.elect(ctx, stmt, m)?,
            "activemask" => self.activemask(ctx, stmt, m)?,
            "bar" | "barrier" => (self.barrier(ctx, stmt, m)?, Class::Barrier),
            "membar" | "fence" => (Op::Fence(self.fence(stmt, m)?), Class::Barrier),
            "mbarrier" => (self.mbarrier(ctx, stmt, m)?, Class::Barrier),
            "griddepcontrol" => self.griddepcontrol(stmt, m)?,
            "nanosleep" => self.nanosleep(ctx, stmt, m)?,
            "setmaxnreg" => self.setmaxnreg(stmt, m)?,
            "wmma" => (self.wmma(ctx, stmt, m)?, Class::Tensor),
            "mma" => (self.mma(ctx, stmt, m)?, Class::Tensor),
            "wgmma" => self.wgmma(ctx, stmt, m)?,
            "ldmatrix" | "stmatrix" => self.matrix_access(ctx, stmt, m)?,
            "movmatrix" => self.movmatrix(ctx, stmt, m)?,
            "pmevent" => self.pmevent(stmt, m)?,
            "trap" | "brkpt" => (Op::Trap, Class::Control),
            other => {
                return Err(ParseError {
                    line: stmt.line,
                    column: stmt.column,
                    kind: ParseErrorKind::UnknownOpcode(other.to_owned()),
                });
            }
        })
    }
}
