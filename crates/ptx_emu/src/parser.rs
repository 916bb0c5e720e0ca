//! Tokens to [`Ast`].

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

    fn module(&mut self) -> Res<()> {
        let mut linkage_extern = false;
        loop {
            match self.peek() {
                Tok::End => break,
                Tok::Dot(d) => {
                    match d {
                        ".version" => {
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
                                return Err(self.error(ParseErrorKind::Unsupported(format!(
                                    "PTX ISA {}.{}; 6.0 to 9.x are accepted",
                                    v.0, v.1
                                ))));
                            }
                        }
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
                            let vars = self.variables(linkage_extern)?;
                            linkage_extern = false;
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
                                    return Err(self.error(ParseErrorKind::Syntax(format!(
                                        "variable `{}` is defined twice",
                                        v.name
                                    ))));
                                }
                                self.ast.var_names.insert(v.name.clone(), id);
                                self.ast.vars.push(v);
                            }
                        }
                        ".file" => self.file()?,
                        ".loc" => self.loc_directive()?,
                        ".section" => self.section()?,
                        ".pragma" => self.pragma()?,
                        _ => return self.syntax("a directive of the module"),
                    }
                }
                Tok::Punct(b';') => {
                    self.next();
                }
                _ => return self.syntax("a directive"),
            }
        }
        Ok(())
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

    /// `.space .align N .type name[dims] = init, ...;`
    fn variables(&mut self, is_extern: bool) -> Res<Vec<Var>> {
        let Tok::Dot(sp) = self.next() else { return self.syntax("a state space") };
        let space = match sp {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            _ => Space::Param,
        };
        let mut out = Vec::new();
        let (mut align, mut elem) = (0, 0);
        let mut vector = 1;
        while let Tok::Dot(d) = self.peek() {
            match d {
                ".align" => {
                    self.next();
                    align = self.int()?;
                    if !align.is_power_of_two() || align > 1 << 20 {
                        self.pos -= 1;
                        return self.syntax("an alignment that is a power of two, at most 1 MiB");
                    }
                    continue;
                }
                ".ptr" | ".attribute" | ".managed" | ".noinline" => {
                    self.next();
                    if d == ".attribute" {
                        self.expect(b'(')?;
                        while !self.eat(b')') {
                            if self.next() == Tok::End {
                                return self.syntax("`)`");
                            }
                        }
                    }
                    continue;
                }
                ".global" | ".const" | ".shared" | ".local" => {}
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                _ => match type_bytes(&d[1..]) {
                    Some(b) => {
                        // In `.u64 .ptr .align 1` the alignment is the pointee's.
                        elem = b;
                        self.next();
                        if self.peek() == Tok::Dot(".ptr") {
                            while let Tok::Dot(d) = self.peek() {
                                self.next();
                                if d == ".align" {
                                    self.int()?;
                                }
                            }
                        }
                        continue;
                    }
                    None => return self.syntax("a type or attribute of a variable"),
                },
            }
            self.next();
        }
        if elem == 0 {
            return self.syntax("a type");
        }
        loop {
            let name = self.ident()?.to_owned();
            let mut count = 1u64;
            let mut open = false;
            while self.eat(b'[') {
                if self.eat(b']') {
                    open = true;
                    continue;
                }
                count = count.saturating_mul(self.int()?);
                self.expect(b']')?;
            }
            let mut init = Vec::new();
            if self.eat(b'=') {
                self.initializer(elem, &mut init, 0)?;
                if open {
                    count = init.iter().map(InitItem::bytes).sum::<u64>() / elem;
                    open = false;
                }
            }
            let size = if open { 0 } else { count.saturating_mul(elem * vector) };
            if size > MAX_VARIABLE_BYTES {
                return Err(self.error(ParseErrorKind::Unsupported(format!(
                    "variable `{name}` of {size} bytes; at most {MAX_VARIABLE_BYTES}"
                ))));
            }
            if init.iter().map(InitItem::bytes).sum::<u64>() > size {
                return Err(self.error(ParseErrorKind::Syntax(format!("initialiser of `{name}` is longer than it"))));
            }
            out.push(Var { name, space, align: align.max(elem * vector), size, is_extern, init });
            if space == Space::Param || !self.eat(b',') {
                break;
            }
        }
        if space != Space::Param {
            self.expect(b';')?;
        }
        Ok(out)
    }

    fn initializer(&mut self, elem: u64, out: &mut Vec<InitItem>, depth: usize) -> Res<()> {
        if depth > MAX_NESTING {
            return self.syntax("an initialiser that is not nested so deep");
        }
        if self.eat(b'{') {
            while !self.eat(b'}') {
                self.initializer(elem, out, depth + 1)?;
                if !self.eat(b',') {
                    self.expect(b'}')?;
                    break;
                }
            }
            return Ok(());
        }
        match self.peek() {
            Tok::Ident(mut name) => {
                self.next();
                let generic = name == "generic" && self.eat(b'(');
                if generic {
                    name = self.ident()?;
                    self.expect(b')')?;
                }
                let addend = if self.eat(b'+') { self.int()? as i64 } else { 0 };
                out.push(InitItem::Address { name: name.to_owned(), addend, bytes: elem });
            }
            Tok::F32(b) => {
                self.next();
                out.push(InitItem::Bytes(b.to_le_bytes()[..elem.min(4) as usize].to_vec()));
            }
            Tok::F64(b) => {
                self.next();
                let bytes = if elem == 4 {
                    (f64::from_bits(b) as f32).to_le_bytes().to_vec()
                } else {
                    b.to_le_bytes()[..elem.min(8) as usize].to_vec()
                };
                out.push(InitItem::Bytes(bytes));
            }
            _ => {
                let v = self.int()?;
                let mut bytes = v.to_le_bytes().to_vec();
                bytes.resize(elem as usize, 0);
                match out.last_mut() {
                    Some(InitItem::Bytes(b)) => b.extend(bytes),
                    _ => out.push(InitItem::Bytes(bytes)),
                }
            }
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

    fn function(&mut self, is_entry: bool) -> Res<()> {
        self.fun = Function { is_entry, line: self.toks[self.pos].line, ..Function::default() };
        self.scopes.clear();
        self.loc = u32::MAX;
        self.open_scope();
        if !is_entry && self.peek() == Tok::Punct(b'(') {
            self.fun.returns = self.params()?;
        }
        self.fun.name = self.ident()?.to_owned();
        self.fun.params = self.params()?;
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
        if self.peek() == Tok::Punct(b'{') {
            self.fun.has_body = true;
            self.next();
            self.body()?;
        } else {
            self.expect(b';')?;
        }
        let f = std::mem::take(&mut self.fun);
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
                Tok::Ident(name) if self.peek2() == Tok::Punct(b':') => {
                    self.next();
                    self.next();
                    if matches!(self.peek(), Tok::Dot(".callprototype" | ".branchtargets" | ".calltargets")) {
                        let directive = self.peek();
                        while !self.eat(b';') {
                            if self.next() == Tok::End {
                                return self.syntax("`;`");
                            }
                        }
                        if directive == Tok::Dot(".branchtargets") {
                            return Err(self.error(ParseErrorKind::Unsupported("brx.idx branch tables".to_owned())));
                        }
                        continue;
                    }
                    let scope = self.scopes.last().expect("inside a function").id;
                    let at = self.fun.body.len() as u32;
                    if self.fun.labels.insert((scope, name.to_owned()), at).is_some() {
                        return Err(self.error(ParseErrorKind::Syntax(format!("label `{name}` is defined twice"))));
                    }
                }
                Tok::Ident(_) | Tok::Punct(b'@') => self.statement()?,
                _ => return self.syntax("an instruction"),
            }
        }
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

    fn find_reg(&self, name: &str) -> Option<u32> {
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

    fn operand(&mut self, depth: usize) -> Res<Operand> {
        if depth > 4 {
            return self.syntax("an operand that is not nested so deep");
        }
        let first = match self.peek() {
            Tok::Punct(b'[') => {
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
                Operand::Mem { base, offset, coords }
            }
            Tok::Punct(b'{') => {
                self.next();
                let mut v = Vec::new();
                while !self.eat(b'}') {
                    v.push(self.operand(depth + 1)?);
                    if !self.eat(b',') {
                        self.expect(b'}')?;
                        break;
                    }
                }
                Operand::Vector(v)
            }
            Tok::Punct(b'(') => {
                self.next();
                let mut v = Vec::new();
                while !self.eat(b')') {
                    v.push(self.operand(depth + 1)?);
                    if !self.eat(b',') {
                        self.expect(b')')?;
                        break;
                    }
                }
                Operand::List(v)
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
            Tok::Ident(name) => {
                let op = self.name(name)?;
                self.next();
                // `mov.u64 %rd, sym+8;` — inside brackets the offset is taken by the caller.
                if depth == 0
                    && let Operand::Local(..) | Operand::Global(..) = op
                    && matches!(self.peek(), Tok::Punct(b'+' | b'-'))
                {
                    self.eat(b'+');
                    let add = self.int()? as i64;
                    match op {
                        Operand::Local(v, o) => Operand::Local(v, o.wrapping_add(add)),
                        Operand::Global(v, o) => Operand::Global(v, o.wrapping_add(add)),
                        other => other,
                    }
                } else {
                    op
                }
            }
            _ => return self.syntax("an operand"),
        };
        if self.eat(b'|') {
            let second = self.operand(depth + 1)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
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

impl InitItem {
    fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(b) => b.len() as u64,
            Self::Address { bytes, .. } => *bytes,
        }
    }
}
