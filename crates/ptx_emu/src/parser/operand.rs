//! Operands, with the names in them resolved.

use super::{Parser, Res};
use crate::ast::{Imm, Operand};
use crate::error::ParseErrorKind;
use crate::lexer::Tok;

impl<'a> Parser<'a> {
    pub(super) fn find_reg(&self, name: &str) -> Option<u32> {
        let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = name.split_at(name.len() - digits);
        let number: Option<u32> = number.parse().ok();
        for s in self.scopes.iter().rev() {
            if let Some(&r) = s.regs.get(name) {
                return Some(r);
            }
            if let (Some(&(first, count)), Some(n)) = (s.ranges.get(prefix), number)
                && n < count
            {
                return Some(first + n);
            }
        }
        None
    }

    pub(super) fn operand(&mut self, depth: usize) -> Res<Operand> {
        if depth > 4 {
            return self.syntax("an operand that is not nested so deep");
        }
        let first = match self.peek() {
            Tok::Punct(b'[') => self.memory_operand(depth)?,
            Tok::Punct(b'{') => {
                self.next();
                Operand::Vector(self.operands(b'}', depth)?)
            }
            Tok::Punct(b'(') => {
                self.next();
                Operand::List(self.operands(b')', depth)?)
            }
            Tok::Punct(b'!') => {
                self.next();
                let name = self.ident()?;
                match self.find_reg(name) {
                    Some(r) => Operand::Not(r),
                    None => return Err(self.error(ParseErrorKind::Undeclared(name.to_owned()))),
                }
            }
            Tok::Punct(b'-') => {
                self.next();
                match self.next() {
                    Tok::Int(v) => Operand::Imm(Imm::Int(v.wrapping_neg())),
                    Tok::F32(b) => Operand::Imm(Imm::F32(b ^ 1 << 31)),
                    Tok::F64(b) => Operand::Imm(Imm::F64(b ^ 1 << 63)),
                    _ => {
                        self.pos -= 1;
                        return self.syntax("a number");
                    }
                }
            }
            Tok::Int(v) => {
                self.next();
                Operand::Imm(Imm::Int(v))
            }
            Tok::F32(b) => {
                self.next();
                Operand::Imm(Imm::F32(b))
            }
            Tok::F64(b) => {
                self.next();
                Operand::Imm(Imm::F64(b))
            }
            Tok::Ident("_") => {
                self.next();
                Operand::Sink
            }
            Tok::Ident("WARP_SZ") => {
                self.next();
                Operand::Imm(Imm::Int(32))
            }
            Tok::Ident(name) => self.named_operand(name, depth)?,
            _ => return self.syntax("an operand"),
        };
        if self.eat(b'|') {
            let second = self.operand(depth + 1)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    /// `[a+off]`, or `[a, {x, y}]` with the coordinates of a tensor.
    fn memory_operand(&mut self, depth: usize) -> Res<Operand> {
        self.next();
        let base = Box::new(self.operand(depth + 1)?);
        let mut offset = 0i64;
        while matches!(self.peek(), Tok::Punct(b'+' | b'-')) {
            // A minus belongs to the number.
            self.eat(b'+');
            offset = offset.wrapping_add(self.int()? as i64);
        }
        let mut coords = Vec::new();
        if self.eat(b',') {
            match self.operand(depth + 1)? {
                Operand::Vector(v) => coords = v,
                other => coords.push(other),
            }
        }
        self.expect(b']')?;
        Ok(Operand::Mem { base, offset, coords })
    }

    /// Operands up to the closing bracket.
    fn operands(&mut self, close: u8, depth: usize) -> Res<Vec<Operand>> {
        let mut v = Vec::new();
        while !self.eat(close) {
            v.push(self.operand(depth + 1)?);
            if !self.eat(b',') {
                self.expect(close)?;
                break;
            }
        }
        Ok(v)
    }

    fn named_operand(&mut self, name: &str, depth: usize) -> Res<Operand> {
        let op = self.name(name)?;
        self.next();
        // `mov.u64 %rd, sym+8;`: inside brackets the offset is taken by the caller.
        if depth != 0 || !matches!(op, Operand::Local(..) | Operand::Global(..)) {
            return Ok(op);
        }
        if !matches!(self.peek(), Tok::Punct(b'+' | b'-')) {
            return Ok(op);
        }
        self.eat(b'+');
        let add = self.int()? as i64;
        Ok(match op {
            Operand::Local(v, o) => Operand::Local(v, o.wrapping_add(add)),
            Operand::Global(v, o) => Operand::Global(v, o.wrapping_add(add)),
            other => other,
        })
    }

    fn name(&self, name: &str) -> Res<Operand> {
        if let Some(r) = self.find_reg(name) {
            return Ok(Operand::Reg(r));
        }
        for s in self.scopes.iter().rev() {
            if let Some(&v) = s.vars.get(name) {
                return Ok(Operand::Local(v, 0));
            }
        }
        if let Some(&v) = self.ast.var_names.get(name) {
            return Ok(Operand::Global(v, 0));
        }
        if let Some(s) = name.strip_prefix('%') {
            if crate::lower::is_special(s) {
                return Ok(Operand::Special(s.to_owned()));
            }
            return Err(self.error(ParseErrorKind::Undeclared(name.to_owned())));
        }
        let scope = self.scopes.last().map_or(0, |s| s.id);
        Ok(Operand::Name { name: name.to_owned(), scope })
    }
}
