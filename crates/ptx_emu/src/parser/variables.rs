//! Variables of all spaces, and what they start with.

use super::{MAX_NESTING, MAX_VARIABLE_BYTES, Parser, Res, type_bytes};
use crate::ast::{InitItem, Space, Var};
use crate::error::ParseErrorKind;
use crate::lexer::Tok;

impl<'a> Parser<'a> {
    /// `.space .align N .type name[dims] = init, ...;`
    pub(super) fn variables(&mut self, is_extern: bool) -> Res<Vec<Var>> {
        let Tok::Dot(sp) = self.next() else { return self.syntax("a state space") };
        let space = match sp {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            _ => Space::Param,
        };
        let mut out = Vec::new();
        let ty = self.variable_type()?;
        loop {
            out.push(self.variable(space, ty, is_extern)?);
            if space == Space::Param || !self.eat(b',') {
                break;
            }
        }
        if space != Space::Param {
            self.expect(b';')?;
        }
        Ok(out)
    }

    /// Alignment, type and attributes, in any order.
    fn variable_type(&mut self) -> Res<ElementType> {
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
        Ok(ElementType { bytes: elem, vector, align: align.max(elem * vector) })
    }

    /// `name[dims] = init`.
    fn variable(&mut self, space: Space, ty: ElementType, is_extern: bool) -> Res<Var> {
        let elem = ty.bytes;
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
        let size = if open { 0 } else { count.saturating_mul(elem * ty.vector) };
        if size > MAX_VARIABLE_BYTES {
            return Err(self.error(ParseErrorKind::Unsupported(format!(
                "variable `{name}` of {size} bytes; at most {MAX_VARIABLE_BYTES}"
            ))));
        }
        if init.iter().map(InitItem::bytes).sum::<u64>() > size {
            return Err(self.error(ParseErrorKind::Syntax(format!("initialiser of `{name}` is longer than it"))));
        }
        Ok(Var { name, space, align: ty.align, size, is_extern, init })
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
}

/// What the elements of a variable are, in bytes, and how many are in a vector.
#[derive(Debug, Clone, Copy)]
struct ElementType {
    bytes: u64,
    vector: u64,
    align: u64,
}

impl InitItem {
    fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(b) => b.len() as u64,
            Self::Address { bytes, .. } => *bytes,
        }
    }
}
