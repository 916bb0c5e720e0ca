//! Functions: directives, registers, labels and statements.

use std::collections::HashMap;

use super::{MAX_CLUSTER, MAX_NESTING, MAX_REGISTERS, Parser, Res, Scope, reg_kind};
use crate::ast::{Function, Stmt, Var};
use crate::error::ParseErrorKind;
use crate::lexer::Tok;

impl<'a> Parser<'a> {
    pub(super) fn function(&mut self, is_entry: bool) -> Res<()> {
        self.fun = Function { is_entry, line: self.toks[self.pos].line, ..Function::default() };
        self.scopes.clear();
        self.loc = u32::MAX;
        self.open_scope();
        if !is_entry && self.peek() == Tok::Punct(b'(') {
            self.fun.returns = self.params()?;
        }
        self.fun.name = self.ident()?.to_owned();
        self.fun.params = self.params()?;
        self.directives()?;
        if self.peek() == Tok::Punct(b'{') {
            self.fun.has_body = true;
            self.next();
            self.body()?;
        } else {
            self.expect(b';')?;
        }
        let f = std::mem::take(&mut self.fun);
        self.define(f)
    }

    /// What stands between the parameters of a function and its body.
    fn directives(&mut self) -> Res<()> {
        loop {
            match self.peek() {
                Tok::Dot(".reqntid") => {
                    self.next();
                    self.fun.reqntid = Some(self.dims()?);
                }
                Tok::Dot(".maxntid") => {
                    self.next();
                    self.fun.maxntid = Some(self.dims()?);
                }
                Tok::Dot(".reqnctapercluster") => {
                    self.next();
                    self.fun.cluster.required = Some(self.cluster_dims()?);
                }
                Tok::Dot(".maxclusterrank") => {
                    self.next();
                    self.fun.cluster.max_rank = Some(self.int()?.min(u32::MAX as u64) as u32);
                }
                Tok::Dot(".explicitcluster") => {
                    self.next();
                    self.fun.cluster.explicit = true;
                }
                Tok::Dot(".blocksareclusters") => {
                    let what = "grids that are counted in clusters (.blocksareclusters)";
                    return Err(self.error(ParseErrorKind::Unsupported(what.to_owned())));
                }
                Tok::Dot(".minnctapersm" | ".maxnctapersm" | ".maxnreg") => {
                    self.next();
                    self.int()?;
                }
                Tok::Dot(".noreturn") => {
                    self.next();
                }
                Tok::Dot(".pragma") => self.pragma()?,
                _ => break,
            }
        }
        Ok(())
    }

    /// A declaration may come before the definition.
    fn define(&mut self, f: Function) -> Res<()> {
        if let Some(&old) = self.ast.function_names.get(&f.name) {
            let o = &mut self.ast.functions[old as usize];
            if f.has_body && o.has_body {
                return Err(self.error(ParseErrorKind::Syntax(format!("function `{}` is defined twice", f.name))));
            }
            if f.has_body {
                *o = f;
            }
        } else {
            self.ast.function_names.insert(f.name.clone(), self.ast.functions.len() as u32);
            self.ast.functions.push(f);
        }
        Ok(())
    }

    fn params(&mut self) -> Res<Vec<u32>> {
        let mut out = Vec::new();
        if !self.eat(b'(') {
            return Ok(out);
        }
        while !self.eat(b')') {
            if self.peek() == Tok::Dot(".reg") {
                return Err(self.error(ParseErrorKind::Unsupported("functions with register parameters".to_owned())));
            }
            if self.peek() != Tok::Dot(".param") {
                return self.syntax("`.param`");
            }
            for v in self.variables(false)? {
                out.push(self.add_var(v)?);
            }
            if !self.eat(b',') {
                self.expect(b')')?;
                break;
            }
        }
        Ok(out)
    }

    fn add_var(&mut self, v: Var) -> Res<u32> {
        let id = self.fun.vars.len() as u32;
        self.scopes.last_mut().expect("a function has a scope").vars.insert(v.name.clone(), id);
        self.fun.vars.push(v);
        Ok(id)
    }

    fn open_scope(&mut self) {
        let id = self.fun.scope_parent.len() as u32;
        let parent = self.scopes.last().map_or(id, |s| s.id);
        self.fun.scope_parent.push(parent);
        self.scopes.push(Scope { id, regs: HashMap::new(), ranges: HashMap::new(), vars: HashMap::new() });
    }

    fn dims(&mut self) -> Res<[u32; 3]> {
        let mut d = [1; 3];
        for (i, slot) in d.iter_mut().enumerate() {
            *slot = self.int()? as u32;
            if i == 2 || !self.eat(b',') {
                break;
            }
        }
        Ok(d)
    }

    /// `.reqnctapercluster`: at most 16 CTAs, and no axis of none.
    fn cluster_dims(&mut self) -> Res<[u32; 3]> {
        let at = self.pos;
        let dims = self.dims()?;
        let ctas = dims.iter().map(|&d| d as u64).fold(1, u64::saturating_mul);
        if ctas == 0 || ctas > MAX_CLUSTER {
            self.pos = at;
            let what = format!("clusters of {dims:?} CTAs; 1 to {MAX_CLUSTER} are accepted");
            return Err(self.error(ParseErrorKind::Unsupported(what)));
        }
        Ok(dims)
    }

    fn body(&mut self) -> Res<()> {
        let mut depth = 1;
        loop {
            match self.peek() {
                Tok::Punct(b'}') => {
                    self.next();
                    depth -= 1;
                    if depth == 0 {
                        return Ok(());
                    }
                    self.scopes.pop();
                }
                Tok::Punct(b'{') => {
                    self.next();
                    depth += 1;
                    if depth > MAX_NESTING {
                        return self.syntax("a scope that is not nested so deep");
                    }
                    self.open_scope();
                }
                Tok::Punct(b';') => {
                    self.next();
                }
                Tok::Dot(".reg") => self.registers()?,
                Tok::Dot(".local" | ".shared" | ".global" | ".const") => {
                    for v in self.variables(false)? {
                        self.add_var(v)?;
                    }
                }
                Tok::Dot(".param") => {
                    for v in self.variables(false)? {
                        self.add_var(v)?;
                    }
                    self.expect(b';')?;
                }
                Tok::Dot(".loc") => self.loc_directive()?,
                Tok::Dot(".pragma") => self.pragma()?,
                Tok::Ident(name) if self.peek2() == Tok::Punct(b':') => self.label(name)?,
                Tok::Ident(_) | Tok::Punct(b'@') => self.statement()?,
                _ => return self.syntax("an instruction"),
            }
        }
    }

    /// A label, or the name of a list of functions or labels, which nothing that runs here needs.
    fn label(&mut self, name: &str) -> Res<()> {
        self.next();
        self.next();
        if matches!(self.peek(), Tok::Dot(".callprototype" | ".branchtargets" | ".calltargets")) {
            while !self.eat(b';') {
                if self.next() == Tok::End {
                    return self.syntax("`;`");
                }
            }
            return Ok(());
        }
        let scope = self.scopes.last().expect("inside a function").id;
        let at = self.fun.body.len() as u32;
        if self.fun.labels.insert((scope, name.to_owned()), at).is_some() {
            return Err(self.error(ParseErrorKind::Syntax(format!("label `{name}` is defined twice"))));
        }
        Ok(())
    }

    fn registers(&mut self) -> Res<()> {
        self.next();
        let Tok::Dot(t) = self.peek() else { return self.syntax("a register type") };
        let Some(kind) = reg_kind(&t[1..]) else { return self.syntax("a scalar register type") };
        self.next();
        loop {
            let name = self.ident()?.to_owned();
            let first = self.fun.regs.len() as u32;
            let n = if self.eat(b'<') {
                let n = self.int()?;
                self.expect(b'>')?;
                if n.saturating_add(first as u64) > MAX_REGISTERS {
                    return Err(self.error(ParseErrorKind::Unsupported(format!(
                        "more than {MAX_REGISTERS} registers in a function"
                    ))));
                }
                self.scopes.last_mut().expect("inside a function").ranges.insert(name, (first, n as u32));
                n as usize
            } else {
                self.scopes.last_mut().expect("inside a function").regs.insert(name, first);
                1
            };
            self.fun.regs.resize(first as usize + n, kind);
            if !self.eat(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    fn statement(&mut self) -> Res<()> {
        let (line, column) = (self.toks[self.pos].line, self.toks[self.pos].col);
        let mut guard = None;
        if self.eat(b'@') {
            let neg = self.eat(b'!');
            let name = self.ident()?;
            let Some(r) = self.find_reg(name) else {
                self.pos -= 1;
                return Err(self.error(ParseErrorKind::Undeclared(name.to_owned())));
            };
            guard = Some((r, neg));
        }
        let opcode = self.ident()?.to_owned();
        let mut operands = Vec::new();
        if self.peek() != Tok::Punct(b';') {
            loop {
                operands.push(self.operand(0)?);
                if !self.eat(b',') {
                    break;
                }
            }
        }
        self.expect(b';')?;
        self.fun.body.push(Stmt { guard, opcode, operands, line, column, loc: self.loc });
        Ok(())
    }
}
