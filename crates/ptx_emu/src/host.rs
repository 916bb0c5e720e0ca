//! What kernels ask of the host: `vprintf` and `__assertfail`, as the CUDA runtime's `printf` and `assert` are compiled to.

use crate::error::FaultKind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes};

/// Bytes of a string that are read at most.
const LONGEST: u64 = 64 << 10;

/// A line, or whatever a thread printed with one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Printed {
    /// CTA in the grid.
    pub cta: [u32; 3],
    /// Linear number of the thread in the CTA.
    pub thread: u32,
    /// The text; bytes that are no UTF-8 are replaced.
    pub text: String,
}

impl Cta<'_> {
    /// A call of a function of the host, with its arguments in local memory.
    pub(crate) fn host(&mut self, w: usize, pc: u32, active: u32, call: &Host) -> Exec<()> {
        for lane in lanes(active) {
            let args = self.host_arguments(w, pc, lane, call)?;
            match call.f {
                HostFn::Assert => {
                    let text = |this: &mut Self, at: u64| this.string(w, pc, lane, at);
                    let (what, file, function) = (text(self, args[0])?, text(self, args[1])?, text(self, args[3])?);
                    let [what, file, function] = [what, file, function].map(|b| lossy(&b));
                    let d = format!("{file}:{}: {function}: `{what}` does not hold", args[2] as u32);
                    return Err(self.fault(w, Some(lane as u32), pc, FaultKind::AssertionFailed, d));
                }
                HostFn::Print => {
                    let format = self.string(w, pc, lane, args[0])?;
                    let (text, count) = self.formatted(w, pc, lane, &format, args[1])?;
                    let thread = 32 * w as u32 + lane as u32;
                    self.ctx.print(self.index, Printed { cta: self.ctaid, thread, text: lossy(&text) });
                    if let Some(to) = call.result {
                        let at = lane * self.ctx.prog.local_bytes as usize + to as usize;
                        self.warps[w].local[at..at + 4].copy_from_slice(&(count as u32).to_le_bytes());
                        self.warps[w].local_known[at..at + 4].fill(0xff);
                    }
                }
            }
        }
        Ok(())
    }

    fn host_arguments(&self, w: usize, pc: u32, lane: usize, call: &Host) -> Exec<[u64; 5]> {
        let base = lane * self.ctx.prog.local_bytes as usize;
        let mut args = [0; 5];
        for (arg, &(at, bytes)) in args.iter_mut().zip(&call.args) {
            let range = base + at as usize..base + at as usize + bytes as usize;
            if self.ctx.checks.uninitialized && self.warps[w].local_known[range.clone()].iter().any(|k| *k != 0xff) {
                let d = "an argument of the call depends on a value that nobody wrote".to_owned();
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::UninitializedRegister, d));
            }
            let mut word = [0; 8];
            word[..bytes as usize].copy_from_slice(&self.warps[w].local[range]);
            *arg = u64::from_le_bytes(word);
        }
        Ok(args)
    }

    /// Bytes at a generic address, which must be written.
    fn host_bytes<const N: usize>(&mut self, w: usize, pc: u32, lane: usize, addr: u64) -> Exec<[u8; N]> {
        let mut out = [0; N];
        let n = N as u64;
        let known = match self.locate(w, pc, lane, MemSpace::Generic, addr, n, 1)? {
            Where::Global(i, off) => {
                let a = self.ctx.mem.get(i);
                // An unaligned word of an aligned buffer, byte by byte.
                (0..N).for_each(|k| a.load(off + k as u64, &mut out[k..k + 1]));
                a.first_unknown(off, n).is_none()
            }
            Where::Local(off) => {
                out.copy_from_slice(&self.warps[w].local[off..off + N]);
                self.warps[w].local_known[off..off + N].iter().all(|k| *k == 0xff)
            }
            Where::Shared(off) => {
                out.copy_from_slice(&self.shared.bytes[off..off + N]);
                self.shared.first_unknown(off, N).is_none()
            }
            Where::Param(off) => {
                out.copy_from_slice(&self.ctx.params[off..off + N]);
                true
            }
            Where::Peer(..) => {
                let d = format!("{addr:#x} is in the shared memory of another CTA");
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
            }
        };
        if !known && self.ctx.checks.uninitialized {
            let d = format!("what the call reads at {addr:#x} was never written");
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::UninitializedRegister, d));
        }
        Ok(out)
    }

    fn string(&mut self, w: usize, pc: u32, lane: usize, addr: u64) -> Exec<Vec<u8>> {
        let mut out = Vec::new();
        for at in addr..addr.saturating_add(LONGEST) {
            match self.host_bytes::<1>(w, pc, lane, at)? {
                [0] => return Ok(out),
                [b] => out.push(b),
            }
        }
        let d = format!("the string at {addr:#x} has no end within {LONGEST} bytes");
        Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d))
    }

    /// The text of a format and of the arguments behind each other at an address, each aligned to its size; and how many there were.
    fn formatted(&mut self, w: usize, pc: u32, lane: usize, format: &[u8], args: u64) -> Exec<(Vec<u8>, usize)> {
        let (mut out, mut at, mut count) = (Vec::new(), args, 0);
        let mut rest = format;
        while let Some((&b, tail)) = rest.split_first() {
            rest = tail;
            if b != b'%' {
                out.push(b);
                continue;
            }
            if let Some(tail) = rest.strip_prefix(b"%") {
                out.push(b'%');
                rest = tail;
                continue;
            }
            let (mut spec, tail) = Spec::parse(rest);
            rest = tail;
            // Width and precision may be arguments too.
            let mut next = |this: &mut Self, bytes: u64| -> Exec<u64> {
                at = at.next_multiple_of(bytes);
                let v = if bytes == 4 {
                    u32::from_le_bytes(this.host_bytes(w, pc, lane, at)?) as u64
                } else {
                    u64::from_le_bytes(this.host_bytes(w, pc, lane, at)?)
                };
                at += bytes;
                count += 1;
                Ok(v)
            };
            if spec.star_width {
                let v = next(self, 4)? as i32;
                spec.left |= v < 0;
                spec.width = v.unsigned_abs() as usize;
            }
            if spec.star_precision {
                spec.precision = usize::try_from(next(self, 4)? as i32).ok();
            }
            let text = match spec.conversion {
                b'd' | b'i' | b'u' | b'o' | b'x' | b'X' | b'c' => {
                    let v = next(self, if spec.long { 8 } else { 4 })?;
                    spec.integer(v)
                }
                b'p' => format!("{:#x}", next(self, 8)?).into_bytes(),
                b'f' | b'F' | b'e' | b'E' | b'g' | b'G' => spec.float(f64::from_bits(next(self, 8)?)),
                b's' => {
                    let s = next(self, 8)?;
                    let mut s = self.string(w, pc, lane, s)?;
                    s.truncate(spec.precision.unwrap_or(usize::MAX));
                    s
                }
                other => {
                    let d = format!("the conversion `%{}` of a format", other as char);
                    return Err(self.fault(w, Some(lane as u32), pc, FaultKind::Unsupported, d));
                }
            };
            spec.pad(text, &mut out);
        }
        Ok((out, count))
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A conversion of a format (C17, 7.21.6.1).
#[derive(Debug, Clone, Copy, Default)]
struct Spec {
    left: bool,
    zeros: bool,
    plus: bool,
    space: bool,
    alternative: bool,
    width: usize,
    star_width: bool,
    precision: Option<usize>,
    star_precision: bool,
    long: bool,
    /// Bytes of a shorter integer.
    short: Option<u32>,
    conversion: u8,
}

impl Spec {
    /// The conversion behind a `%`, and what follows it.
    fn parse(mut rest: &[u8]) -> (Spec, &[u8]) {
        let mut spec = Spec::default();
        let number = |rest: &mut &[u8]| {
            let mut n = 0usize;
            while let Some((d @ b'0'..=b'9', tail)) = rest.split_first() {
                n = n.saturating_mul(10).saturating_add((d - b'0') as usize).min(LONGEST as usize);
                *rest = tail;
            }
            n
        };
        while let Some((flag, tail)) = rest.split_first() {
            match flag {
                b'-' => spec.left = true,
                b'0' => spec.zeros = true,
                b'+' => spec.plus = true,
                b' ' => spec.space = true,
                b'#' => spec.alternative = true,
                _ => break,
            }
            rest = tail;
        }
        if let Some(tail) = rest.strip_prefix(b"*") {
            (spec.star_width, rest) = (true, tail);
        } else {
            spec.width = number(&mut rest);
        }
        if let Some(tail) = rest.strip_prefix(b".") {
            rest = tail;
            if let Some(tail) = rest.strip_prefix(b"*") {
                (spec.star_precision, rest) = (true, tail);
            } else {
                spec.precision = Some(number(&mut rest));
            }
        }
        while let Some((length @ (b'h' | b'l' | b'j' | b'z' | b't' | b'L'), tail)) = rest.split_first() {
            match length {
                b'h' => spec.short = Some(if spec.short.is_some() { 1 } else { 2 }),
                _ => spec.long = true,
            }
            rest = tail;
        }
        let conversion = rest.split_first();
        spec.conversion = conversion.map_or(0, |c| *c.0);
        (spec, conversion.map_or(rest, |c| c.1))
    }

    fn integer(&mut self, v: u64) -> Vec<u8> {
        let bits = match (self.short, self.long) {
            (Some(bytes), _) => 8 * bytes,
            (_, true) => 64,
            _ => 32,
        };
        let (low, high) = (v << (64 - bits) >> (64 - bits), (v << (64 - bits)) as i64 >> (64 - bits));
        if self.conversion == b'c' {
            self.zeros = false;
            return vec![v as u8];
        }
        let signed = matches!(self.conversion, b'd' | b'i');
        let mut digits = match self.conversion {
            _ if signed => high.unsigned_abs().to_string(),
            b'u' => low.to_string(),
            b'o' => format!("{low:o}"),
            b'x' => format!("{low:x}"),
            _ => format!("{low:X}"),
        };
        if let Some(p) = self.precision {
            // Zeros up to the width give way to a precision.
            self.zeros = false;
            digits = if p == 0 && digits == "0" { String::new() } else { format!("{digits:0>p$}") };
        }
        let prefix = match self.conversion {
            b'x' if self.alternative && low != 0 => "0x",
            b'X' if self.alternative && low != 0 => "0X",
            b'o' if self.alternative && !digits.starts_with('0') => "0",
            _ if !signed => "",
            _ => self.sign(high < 0),
        };
        self.zeroed(prefix, digits)
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    /// A number with zeros between its sign and its digits, where they are asked for.
    fn zeroed(&self, prefix: &str, digits: String) -> Vec<u8> {
        let room = self.width.saturating_sub(prefix.len() + digits.len());
        let zeros = if self.zeros && !self.left { "0".repeat(room) } else { String::new() };
        format!("{prefix}{zeros}{digits}").into_bytes()
    }

    fn float(&mut self, v: f64) -> Vec<u8> {
        let upper = self.conversion.is_ascii_uppercase();
        let x = v.abs();
        let mut digits = if !x.is_finite() {
            self.zeros = false;
            if x.is_nan() { "nan".to_owned() } else { "inf".to_owned() }
        } else {
            let p = self.precision.unwrap_or(6);
            match self.conversion.to_ascii_lowercase() {
                b'f' => format!("{x:.p$}") + if self.alternative && p == 0 { "." } else { "" },
                b'e' => exponential(x, p, self.alternative),
                _ => general(x, p.max(1), self.alternative),
            }
        };
        if upper {
            digits.make_ascii_uppercase();
        }
        self.zeroed(self.sign(v.is_sign_negative() && !v.is_nan()), digits)
    }

    fn pad(&self, text: Vec<u8>, out: &mut Vec<u8>) {
        let room = vec![b' '; self.width.saturating_sub(text.len())];
        if !self.left {
            out.extend(&room);
        }
        out.extend(text);
        if self.left {
            out.extend(&room);
        }
    }
}

/// `%e`: at least two digits of the exponent.
fn exponential(x: f64, p: usize, point: bool) -> String {
    let text = format!("{x:.p$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{digits}{}e{sign}{exponent:0>2}", if point && p == 0 { "." } else { "" })
}

/// `%g`: as many significant digits, in the shorter of two ways, without zeros at the end.
fn general(x: f64, p: usize, all: bool) -> String {
    let text = exponential(x, p - 1, all);
    let exponent: i32 = text.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let trim = |digits: &str| {
        if all || !digits.contains('.') {
            return digits.to_owned();
        }
        digits.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if exponent < -4 || exponent >= p as i32 {
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "+00"));
        return format!("{}e{exponent}", trim(digits));
    }
    let places = (p as i32 - 1 - exponent) as usize;
    trim(&format!("{x:.places$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What C's printf gives, by its definition.
    #[test]
    fn conversions_are_those_of_c() {
        let one = |format: &str, v: u64| {
            let (mut spec, rest) = Spec::parse(format.strip_prefix('%').unwrap().as_bytes());
            assert!(rest.is_empty());
            let text = if matches!(spec.conversion, b'd' | b'i' | b'u' | b'o' | b'x' | b'X' | b'c') {
                spec.integer(v)
            } else {
                spec.float(f64::from_bits(v))
            };
            let mut out = Vec::new();
            spec.pad(text, &mut out);
            String::from_utf8(out).unwrap()
        };
        for (format, v, want) in [
            ("%d", -7i64, "-7"),
            ("%5d", 42, "   42"),
            ("%-5d", 42, "42   "),
            ("%05d", -42, "-0042"),
            ("%+d", 42, "+42"),
            ("% d", 42, " 42"),
            ("%.3d", 7, "007"),
            ("%8.3d", -7, "    -007"),
            ("%.0d", 0, ""),
            ("%u", -1, "4294967295"),
            ("%lu", -1, "18446744073709551615"),
            ("%lld", i64::MIN, "-9223372036854775808"),
            ("%hhd", 0x1ff, "-1"),
            ("%hx", 0x12345, "2345"),
            ("%#x", 255, "0xff"),
            ("%#X", 0, "0"),
            ("%#o", 8, "010"),
            ("%08x", 0xbeef, "0000beef"),
            ("%c", 65, "A"),
        ] {
            assert_eq!(one(format, v as u64), want, "{format} of {v}");
        }
        for (format, v, want) in [
            ("%f", 1.5f64, "1.500000"),
            ("%.2f", -2.345, "-2.35"),
            ("%8.1f", 3.25, "     3.2"),
            ("%08.1f", -3.25, "-00003.2"),
            ("%.0f", 2.5, "2"),
            ("%#.0f", 2.0, "2."),
            ("%e", 12345.678, "1.234568e+04"),
            ("%.1E", 0.00012, "1.2E-04"),
            ("%g", 0.0001, "0.0001"),
            ("%g", 0.00001, "1e-05"),
            ("%g", 100000.0, "100000"),
            ("%g", 1000000.0, "1e+06"),
            ("%g", 0.5, "0.5"),
            ("%.3g", 1234.5, "1.23e+03"),
            ("%g", 0.0, "0"),
            ("%f", f64::INFINITY, "inf"),
            ("%5.1F", f64::NEG_INFINITY, " -INF"),
            ("%f", f64::NAN, "nan"),
            ("%+.1e", 1e100, "+1.0e+100"),
        ] {
            assert_eq!(one(format, v.to_bits()), want, "{format} of {v}");
        }
    }
}
