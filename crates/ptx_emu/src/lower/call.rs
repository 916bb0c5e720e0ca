//! Calls: the callee is inlined, its parameters are local memory.

use super::*;

impl<'a> Lower<'a> {
    /// A call of a function of the module. Others are an error when they run.
    pub(super) fn call(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, guard: Pred) -> Res<()> {
        let (rets, rest): (&[Operand], &[Operand]) = match &stmt.operands[..] {
            [Operand::List(r), rest @ ..] => (r, rest),
            rest => (&[], rest),
        };
        let Some(target) = rest.first() else { return Err(self.err(stmt, "a call without a function")) };
        let args: &[Operand] = match rest.get(1) {
            Some(Operand::List(a)) => a,
            _ => &[],
        };
        let name = match target {
            Operand::Name { name, .. } => name,
            _ => {
                return self.refuse_call(stmt, guard, "indirect call".to_owned());
            }
        };
        let Some(&index) = self.ast.function_names.get(name) else { return Err(self.undeclared(stmt, name)) };
        let callee = &self.ast.functions[index as usize];
        if !callee.has_body && self.host_call(ctx, stmt, name, guard, rets, args)? {
            return Ok(());
        }
        if !callee.has_body {
            return self.refuse_call(stmt, guard, format!("call of the external function `{name}`"));
        }
        if self.call_stack.contains(&index) || self.call_stack.len() > MAX_CALL_DEPTH {
            return self.refuse_call(stmt, guard, format!("recursive call of `{name}`"));
        }
        if rets.len() != callee.returns.len() || args.len() != callee.params.len() {
            return Err(self.err(
                stmt,
                format!(
                    "`{name}` takes {} and returns {} values, {} and {} given",
                    callee.params.len(),
                    callee.returns.len(),
                    args.len(),
                    rets.len()
                ),
            ));
        }
        // The call itself, skipped where its guard is false.
        let skip = if guard != TRUE {
            let not = Pred { negated: !guard.negated, ..guard };
            let op = Op::Bra { target: 0, reconverge: NO_PC };
            Some(self.emit_raw(op, not, Class::Control, stmt.line, stmt.loc))
        } else {
            None
        };
        self.inline(ctx, stmt, index, rets, args)?;
        let end = self.code.len() as u32;
        if let Some(at) = skip
            && let Op::Bra { target, .. } = &mut self.code[at].op
        {
            *target = end;
        }
        Ok(())
    }

    /// `vprintf(format, arguments)` and `__assertfail(message, file, line, function, size of a character)`; false if it is neither.
    fn host_call(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &'a Stmt,
        name: &str,
        guard: Pred,
        rets: &[Operand],
        args: &[Operand],
    ) -> Res<bool> {
        let (f, bytes): (_, &[u64]) = match name {
            "vprintf" => (HostFn::Print, &[8, 8]),
            "__assertfail" => (HostFn::Assert, &[8, 8, 4, 8, 8]),
            _ => return Ok(false),
        };
        let mut places = Vec::new();
        for arg in args {
            places.push(self.call_place(ctx, arg, stmt)?);
        }
        let result = match rets {
            [] => None,
            [ret] if f == HostFn::Print => Some(self.call_place(ctx, ret, stmt)?).filter(|r| r.1 == 4).map(|r| r.0),
            _ => return Err(self.err(stmt, format!("{} results of `{name}`", rets.len()))),
        };
        if !places.iter().map(|p| p.1).eq(bytes.iter().copied()) {
            return Err(self.err(stmt, format!("arguments of `{name}` other than {bytes:?} bytes")));
        }
        let args = places.into_iter().map(|(at, bytes)| (at, bytes as u32)).collect();
        self.emit_raw(Op::Host(Box::new(Host { f, args, result })), guard, Class::Control, stmt.line, stmt.loc);
        Ok(true)
    }

    fn refuse_call(&mut self, stmt: &Stmt, guard: Pred, what: String) -> Res<()> {
        self.emit_raw(Op::Unsupported(what), guard, Class::Control, stmt.line, stmt.loc);
        Ok(())
    }

    /// The body of a callee between copies of its arguments and of its results.
    fn inline(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, index: u32, rets: &[Operand], args: &[Operand]) -> Res<()> {
        let callee = &self.ast.functions[index as usize];
        self.inlined += 1;
        if self.inlined > MAX_INLINED_CALLS {
            return Err(self.err(stmt, format!("more than {MAX_INLINED_CALLS} calls to inline")));
        }
        let mut inner = self.context(callee)?;
        for &v in callee.params.iter().chain(&callee.returns) {
            let o = self.local_alloc(&callee.vars[v as usize], stmt)?;
            inner.places[v as usize] = Some(Place::Local(o));
        }
        for (arg, &param) in args.iter().zip(&callee.params) {
            let (src, src_bytes) = self.call_place(ctx, arg, stmt)?;
            self.local_copy(&inner, param, src, src_bytes, true, stmt)?;
        }
        self.call_stack.push(index);
        self.function(&mut inner)?;
        self.call_stack.pop();
        for (ret, &slot) in rets.iter().zip(&callee.returns) {
            let (dst, dst_bytes) = self.call_place(ctx, ret, stmt)?;
            self.local_copy(&inner, slot, dst, dst_bytes, false, stmt)?;
        }
        Ok(())
    }

    fn call_place(&mut self, ctx: &mut Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<(u32, u64)> {
        if let Operand::Local(v, 0) = o
            && let Place::Local(p) = self.local_place(ctx, *v, stmt)?
        {
            return Ok((p, ctx.fun.vars[*v as usize].size));
        }
        Err(self.err(stmt, "a call argument that is not a .param variable"))
    }

    fn local_copy(
        &mut self,
        inner: &Ctx<'a>,
        formal: u32,
        actual: u32,
        bytes: u64,
        inward: bool,
        stmt: &Stmt,
    ) -> Res<()> {
        let Some(Place::Local(p)) = inner.places[formal as usize] else { return Ok(()) };
        let size = inner.fun.vars[formal as usize].size;
        if size != bytes {
            return Err(self.err(stmt, format!("an argument of {bytes} bytes where {size} are declared")));
        }
        let (dst, src) = if inward { (p, actual) } else { (actual, p) };
        let op = Op::LocalCopy { dst, src, bytes: size as u32 };
        self.emit_raw(op, TRUE, Class::LocalMemory, stmt.line, stmt.loc);
        Ok(())
    }
}
