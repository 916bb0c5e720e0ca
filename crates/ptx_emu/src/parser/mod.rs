//! Tokens to [`Ast`].

mod function;
mod operand;
mod variables;

use std::collections::HashMap;

use crate::ast::*;
use crate::error::{ParseError, ParseErrorKind};
use crate::lexer::{Tok, Token, lex};

/// Nesting of `{ }`, `[ ]` and `( )` that the parser follows: LLVM nests two deep, a fuzzer without end.
const MAX_NESTING: usize = 64;
/// Registers that one function may declare, so that `%r<4000000000>` is an error and not an allocation.
const MAX_REGISTERS: u64 = 1 << 20;
/// Bytes of one variable; more cannot be backed.
const MAX_VARIABLE_BYTES: u64 = 1 << 30;
/// CTAs of the largest cluster, which Hopper runs where the kernel allows a size that is not portable.
const MAX_CLUSTER: u64 = 16;

type Res<T> = Result<T, ParseError>;

struct Scope {
    id: u32,
    regs: HashMap<String, u32>,
    /// prefix -> (first id, count)
    ranges: HashMap<String, (u32, u32)>,
    vars: HashMap<String, u32>,
}

struct Parser<'a> {
    toks: Vec<Token<'a>>,
    pos: usize,
    ast: Ast,
    scopes: Vec<Scope>,
    fun: Function,
    loc: u32,
}

/// Parses a whole PTX text.
pub(crate) fn parse(src: &str) -> Res<Ast> {
    let toks = lex(src)?;
    let mut p =
        Parser { toks, pos: 0, ast: Ast::default(), scopes: Vec::new(), fun: Function::default(), loc: u32::MAX };
    p.module()?;
    Ok(p.ast)
}

/// Size in bytes of a fundamental type, from its name without the dot.
pub(crate) fn type_bytes(t: &str) -> Option<u64> {
    Some(match t {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" | "tf32" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        "b128" => 16,
        _ => return None,
    })
}

fn reg_kind(t: &str) -> Option<RegKind> {
    if t == "pred" {
        return Some(RegKind::Pred);
    }
    Some(match type_bytes(t)? {
        1 | 2 => RegKind::B16,
        4 => RegKind::B32,
        8 => RegKind::B64,
        _ => RegKind::B128,
    })
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Tok<'a> {
        self.toks[self.pos].tok
    }

    fn peek2(&self) -> Tok<'a> {
        self.toks[(self.pos + 1).min(self.toks.len() - 1)].tok
    }

    fn next(&mut self) -> Tok<'a> {
        let t = self.toks[self.pos].tok;
        if self.pos + 1 < self.toks.len() {
            self.pos += 1;
        }
        t
    }

    fn error(&self, kind: ParseErrorKind) -> ParseError {
        let t = &self.toks[self.pos];
        ParseError { line: t.line, column: t.col, kind }
    }

    fn syntax<T>(&self, wanted: &str) -> Res<T> {
        let found = match self.peek() {
            Tok::Ident(s) | Tok::Dot(s) => format!("`{s}`"),
            Tok::Int(v) => format!("`{v}`"),
            Tok::F32(_) | Tok::F64(_) => "a floating-point literal".to_owned(),
            Tok::Str(_) => "a string".to_owned(),
            Tok::Punct(c) => format!("`{}`", c as char),
            Tok::End => "the end of the text".to_owned(),
        };
        Err(self.error(ParseErrorKind::Syntax(format!("expected {wanted}, found {found}"))))
    }

    fn eat(&mut self, c: u8) -> bool {
        if self.peek() == Tok::Punct(c) {
            self.next();
            return true;
        }
        false
    }

    fn expect(&mut self, c: u8) -> Res<()> {
        if self.eat(c) { Ok(()) } else { self.syntax(&format!("`{}`", c as char)) }
    }

    fn int(&mut self) -> Res<u64> {
        let neg = self.eat(b'-');
        match self.peek() {
            Tok::Int(v) => {
                self.next();
                Ok(if neg { v.wrapping_neg() } else { v })
            }
            _ => self.syntax("an integer"),
        }
    }

    fn ident(&mut self) -> Res<&'a str> {
        match self.peek() {
            Tok::Ident(s) => {
                self.next();
                Ok(s)
            }
            _ => self.syntax("a name"),
        }
    }

    fn file(&mut self) -> Res<()> {
        self.next();
        let n = self.int()? as u32;
        let Tok::Str(s) = self.peek() else { return self.syntax("a file name in quotes") };
        self.next();
        self.ast.files.insert(n, s.to_owned());
        while self.eat(b',') {
            self.int()?;
        }
        Ok(())
    }

    fn loc_directive(&mut self) -> Res<()> {
        self.next();
        let f = self.int()? as u32;
        let l = self.int()? as u32;
        let c = self.int()? as u32;
        // `, function_name $info+N, inlined_at file line column`
        while self.eat(b',') {
            self.ident()?;
            loop {
                match self.peek() {
                    Tok::Int(_) => {
                        self.next();
                    }
                    Tok::Ident(s) if s.starts_with('$') => {
                        self.next();
                    }
                    Tok::Punct(b'+') => {
                        self.next();
                    }
                    _ => break,
                }
            }
        }
        self.loc = self.ast.locs.len() as u32;
        self.ast.locs.push((f, l, c));
        Ok(())
    }

    fn section(&mut self) -> Res<()> {
        self.next();
        while self.peek() != Tok::Punct(b'{') {
            if self.peek() == Tok::End {
                return self.syntax("`{`");
            }
            self.next();
        }
        while self.peek() != Tok::Punct(b'}') {
            if self.peek() == Tok::End {
                return self.syntax("`}`");
            }
            self.next();
        }
        self.next();
        Ok(())
    }

    fn pragma(&mut self) -> Res<()> {
        self.next();
        loop {
            let Tok::Str(_) = self.peek() else { return self.syntax("a pragma string") };
            self.next();
            if !self.eat(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    fn module(&mut self) -> Res<()> {
        let mut linkage_extern = false;
        loop {
            match self.peek() {
                Tok::End => break,
                Tok::Dot(d) => match d {
                    ".version" => self.version()?,
                    ".target" => {
                        self.next();
                        self.ast.target = self.ident()?.to_owned();
                        while self.eat(b',') {
                            self.ident()?;
                        }
                    }
                    ".address_size" => {
                        self.next();
                        if self.int()? != 64 {
                            self.pos -= 1;
                            return Err(
                                self.error(ParseErrorKind::Unsupported("an address size other than 64".to_owned()))
                            );
                        }
                    }
                    ".visible" | ".weak" | ".common" => {
                        self.next();
                    }
                    ".extern" => {
                        self.next();
                        linkage_extern = true;
                    }
                    ".entry" | ".func" => {
                        self.next();
                        self.function(d == ".entry")?;
                        linkage_extern = false;
                    }
                    ".global" | ".const" | ".shared" => {
                        self.module_variables(linkage_extern)?;
                        linkage_extern = false;
                    }
                    ".file" => self.file()?,
                    ".loc" => self.loc_directive()?,
                    ".section" => self.section()?,
                    ".pragma" => self.pragma()?,
                    _ => return self.syntax("a directive of the module"),
                },
                Tok::Punct(b';') => {
                    self.next();
                }
                _ => return self.syntax("a directive"),
            }
        }
        Ok(())
    }

    fn version(&mut self) -> Res<()> {
        self.next();
        match self.next() {
            Tok::F64(bits) => {
                let v = f64::from_bits(bits);
                self.ast.version = (v as u32, ((v * 10.0).round() as u32) % 10);
            }
            _ => {
                self.pos -= 1;
                return self.syntax("a version such as 8.0");
            }
        }
        if !(6..=9).contains(&self.ast.version.0) {
            let v = self.ast.version;
            return Err(
                self.error(ParseErrorKind::Unsupported(format!("PTX ISA {}.{}; 6.0 to 9.x are accepted", v.0, v.1)))
            );
        }
        Ok(())
    }

    fn module_variables(&mut self, is_extern: bool) -> Res<()> {
        let vars = self.variables(is_extern)?;
        for v in vars {
            let id = self.ast.vars.len() as u32;
            if let Some(&old) = self.ast.var_names.get(&v.name) {
                // A declaration may come before its definition, or be repeated.
                let o = &mut self.ast.vars[old as usize];
                if o.is_extern {
                    *o = v;
                    continue;
                } else if v.is_extern {
                    continue;
                }
                return Err(self.error(ParseErrorKind::Syntax(format!("variable `{}` is defined twice", v.name))));
            }
            self.ast.var_names.insert(v.name.clone(), id);
            self.ast.vars.push(v);
        }
        Ok(())
    }
}
