//! PTX text to tokens with positions.

use crate::error::{ParseError, ParseErrorKind};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Tok<'a> {
    /// Identifier or opcode with its modifiers: `ld.global.v4.f32`, `%tid.x`, `$L1`.
    Ident(&'a str),
    /// `.reg`, `.param`, `.b32`, ...
    Dot(&'a str),
    /// Integer literal and whether it was written as unsigned.
    Int(u64),
    /// `0f` literal: bits of an f32.
    F32(u32),
    /// `0d` literal or decimal literal: bits of an f64.
    F64(u64),
    Str(&'a str),
    Punct(u8),
    End,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) tok: Tok<'a>,
    pub(crate) line: u32,
    pub(crate) col: u32,
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_' || c == b'$'
}

/// Splits the text; the last token is `End`.
pub(crate) fn lex(src: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let b = src.as_bytes();
    let mut out = Vec::with_capacity(b.len() / 4);
    let (mut i, mut line, mut line_start) = (0usize, 1u32, 0usize);
    let err =
        |line: u32, col: u32, m: &str| ParseError { line, column: col, kind: ParseErrorKind::Syntax(m.to_owned()) };
    while i < b.len() {
        let c = b[i];
        if c == b'\n' {
            line += 1;
            i += 1;
            line_start = i;
            continue;
        }
        if c.is_ascii_whitespace() {
            i += 1;
            continue;
        }
        let col = (i - line_start) as u32 + 1;
        if c == b'/' && b.get(i + 1) == Some(&b'/') {
            while i < b.len() && b[i] != b'\n' {
                i += 1;
            }
            continue;
        }
        if c == b'/' && b.get(i + 1) == Some(&b'*') {
            let (l0, c0) = (line, col);
            i += 2;
            loop {
                match b.get(i) {
                    None => return Err(err(l0, c0, "comment without end")),
                    Some(b'*') if b.get(i + 1) == Some(&b'/') => break,
                    Some(b'\n') => {
                        line += 1;
                        i += 1;
                        line_start = i;
                    }
                    Some(_) => i += 1,
                }
            }
            i += 2;
            continue;
        }
        let start = i;
        let tok = if c.is_ascii_alphabetic() || c == b'_' || c == b'$' || c == b'%' {
            i += 1;
            word_tail(b, &mut i);
            Tok::Ident(&src[start..i])
        } else if c == b'.' && b.get(i + 1).is_some_and(|&c| is_word(c)) {
            i += 1;
            while i < b.len() && is_word(b[i]) {
                i += 1;
            }
            Tok::Dot(&src[start..i])
        } else if c.is_ascii_digit() {
            number(src, b, &mut i).map_err(|m| err(line, col, &m))?
        } else if c == b'"' {
            i += 1;
            while i < b.len() && b[i] != b'"' && b[i] != b'\n' {
                if b[i] == b'\\' {
                    i += 1;
                }
                i += 1;
            }
            if b.get(i) != Some(&b'"') {
                return Err(err(line, col, "string without end"));
            }
            i += 1;
            let s = src.get(start + 1..i - 1).ok_or_else(|| err(line, col, "string is not valid text"))?;
            Tok::Str(s)
        } else if c.is_ascii_punctuation() {
            i += 1;
            Tok::Punct(c)
        } else {
            return Err(err(line, col, "character that no PTX token starts with"));
        };
        out.push(Token { tok, line, col });
    }
    out.push(Token { tok: Tok::End, line, col: (i.saturating_sub(line_start)) as u32 + 1 });
    Ok(out)
}

/// Takes word characters, `.word` and `::word` parts that follow without a blank.
fn word_tail(b: &[u8], i: &mut usize) {
    loop {
        while *i < b.len() && is_word(b[*i]) {
            *i += 1;
        }
        let next = b.get(*i + 1).is_some_and(|&c| is_word(c));
        if b.get(*i) == Some(&b'.') && next {
            *i += 1;
        } else if b.get(*i) == Some(&b':') && b.get(*i + 1) == Some(&b':') && b.get(*i + 2).is_some_and(|&c| is_word(c))
        {
            *i += 2;
        } else {
            return;
        }
    }
}

fn number<'a>(src: &'a str, b: &[u8], i: &mut usize) -> Result<Tok<'a>, String> {
    let start = *i;
    let digits = |from: usize| {
        let mut j = from;
        while j < b.len() && b[j].is_ascii_hexdigit() {
            j += 1;
        }
        j
    };
    if b[start] == b'0' && matches!(b.get(start + 1), Some(b'f' | b'F')) {
        let end = digits(start + 2);
        if end == start + 10 {
            *i = end;
            let bits = u32::from_str_radix(&src[start + 2..end], 16).map_err(|e| e.to_string())?;
            return Ok(Tok::F32(bits));
        }
        return Err("0f literal needs 8 hexadecimal digits".to_owned());
    }
    if b[start] == b'0' && matches!(b.get(start + 1), Some(b'd' | b'D')) {
        let end = digits(start + 2);
        if end == start + 18 {
            *i = end;
            let bits = u64::from_str_radix(&src[start + 2..end], 16).map_err(|e| e.to_string())?;
            return Ok(Tok::F64(bits));
        }
        return Err("0d literal needs 16 hexadecimal digits".to_owned());
    }
    let (radix, from) = match (b[start], b.get(start + 1)) {
        (b'0', Some(b'x' | b'X')) => (16, start + 2),
        (b'0', Some(b'b' | b'B')) => (2, start + 2),
        (b'0', Some(c)) if c.is_ascii_digit() => (8, start + 1),
        _ => (10, start),
    };
    let mut j = from;
    while j < b.len() && (b[j] as char).is_digit(radix) {
        j += 1;
    }
    if radix == 10 && b.get(j) == Some(&b'.') && b.get(j + 1).is_some_and(u8::is_ascii_digit) {
        j += 1;
        while j < b.len() && b[j].is_ascii_digit() {
            j += 1;
        }
        if matches!(b.get(j), Some(b'e' | b'E')) {
            j += 1;
            if matches!(b.get(j), Some(b'+' | b'-')) {
                j += 1;
            }
            while j < b.len() && b[j].is_ascii_digit() {
                j += 1;
            }
        }
        let v: f64 = src[start..j].parse().map_err(|_| "malformed decimal literal".to_owned())?;
        *i = j;
        return Ok(Tok::F64(v.to_bits()));
    }
    let v =
        u64::from_str_radix(&src[from..j], radix).map_err(|_| "integer literal does not fit in 64 bits".to_owned())?;
    if b.get(j) == Some(&b'U') {
        j += 1;
    }
    if j < b.len() && is_word(b[j]) {
        return Err("malformed number".to_owned());
    }
    *i = j;
    Ok(Tok::Int(v))
}
