//! The modifiers of an opcode.

use super::*;

/// The modifiers of an opcode; every one must be taken.
pub(super) struct Parts<'a> {
    pub(super) op: &'a str,
    pub(super) parts: Vec<&'a str>,
    used: Vec<bool>,
    line: u32,
    column: u32,
}

impl<'a> Parts<'a> {
    pub(super) fn new(stmt: &'a Stmt) -> Self {
        let parts: Vec<&str> = stmt.opcode.split('.').collect();
        let used = vec![false; parts.len()];
        let mut p = Parts { op: &stmt.opcode, parts, used, line: stmt.line, column: stmt.column };
        p.used[0] = true;
        p
    }

    pub(super) fn name(&self) -> &'a str {
        self.parts[0]
    }

    pub(super) fn take(&mut self, m: &str) -> bool {
        for i in 1..self.parts.len() {
            if !self.used[i] && self.parts[i] == m {
                self.used[i] = true;
                return true;
            }
        }
        false
    }

    pub(super) fn take_map<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        for i in 1..self.parts.len() {
            if self.used[i] {
                continue;
            }
            if let Some((_, v)) = table.iter().find(|(n, _)| *n == self.parts[i]) {
                self.used[i] = true;
                return Some(*v);
            }
        }
        None
    }

    pub(super) fn take_prefix(&mut self, prefix: &str) -> Option<&'a str> {
        for i in 1..self.parts.len() {
            if !self.used[i] && self.parts[i].starts_with(prefix) {
                self.used[i] = true;
                return Some(self.parts[i]);
            }
        }
        None
    }

    pub(super) fn ty(&mut self) -> Res<Ty> {
        self.take_map(TYPES).ok_or_else(|| self.bad("a type is missing or not accepted"))
    }

    pub(super) fn bad(&self, what: impl Into<String>) -> ParseError {
        ParseError {
            line: self.line,
            column: self.column,
            kind: ParseErrorKind::UnsupportedForm { opcode: self.op.to_owned(), what: what.into() },
        }
    }

    /// Takes a modifier without which the form does not exist.
    pub(super) fn require(&mut self, m: &str) -> Res<()> {
        if self.take(m) { Ok(()) } else { Err(self.bad(format!(".{m} is missing"))) }
    }

    /// Whether a rounding of results that are no integers is written.
    pub(super) fn is_rounded(&self) -> bool {
        ["rn", "rna", "rz", "rm", "rp"].iter().any(|r| self.parts.contains(r))
    }

    pub(super) fn done(&self) -> Res<()> {
        match self.used.iter().position(|u| !u) {
            None => Ok(()),
            Some(i) => Err(self.bad(format!("modifier `.{}` is not accepted here", self.parts[i]))),
        }
    }

    pub(super) fn round(&mut self) -> Round {
        self.take_map(&[
            ("rn", Round::NearestEven),
            ("rna", Round::NearestAway),
            ("rz", Round::Zero),
            ("rm", Round::Down),
            ("rp", Round::Up),
        ])
        .unwrap_or_default()
    }

    /// Cache operators, eviction priorities and prefetch sizes: they change time, not values.
    pub(super) fn take_cache_hints(&mut self) {
        self.take_map(&[("ca", ()), ("cg", ()), ("cs", ()), ("lu", ()), ("cv", ()), ("wb", ()), ("wt", ())]);
        for p in ["L1::", "L2::evict", "L2::64B", "L2::128B", "L2::256B"] {
            self.take_prefix(p);
        }
    }

    /// The memory order that is written; `.volatile` and `.mmio` are relaxed ones.
    pub(super) fn take_order(&mut self) -> Option<Order> {
        self.take_map(&[
            ("relaxed", Order::Relaxed),
            ("acquire", Order::Acquire),
            ("release", Order::Release),
            ("acq_rel", Order::AcqRel),
            ("volatile", Order::Relaxed),
            ("weak", Order::Weak),
            ("mmio", Order::Relaxed),
        ])
    }

    pub(super) fn take_scope(&mut self) -> Option<Scope> {
        self.take_map(&[
            ("cta", Scope::Cta),
            ("cluster", Scope::Cluster),
            ("gpu", Scope::Gpu),
            ("gl", Scope::Gpu),
            ("sys", Scope::Sys),
        ])
    }

    pub(super) fn space(&mut self) -> MemSpace {
        self.take_map(&[
            ("global", MemSpace::Global),
            ("const", MemSpace::Global),
            ("shared", MemSpace::Shared),
            ("shared::cta", MemSpace::Shared),
            ("shared::cluster", MemSpace::SharedCluster),
            ("local", MemSpace::Local),
            ("param", MemSpace::Param),
            ("param::entry", MemSpace::Param),
            ("param::func", MemSpace::Param),
        ])
        .unwrap_or(MemSpace::Generic)
    }
}

pub(super) const TYPES: &[(&str, Ty)] = &[
    ("b8", Ty::B8),
    ("u8", Ty::U8),
    ("s8", Ty::S8),
    ("b16", Ty::B16),
    ("u16", Ty::U16),
    ("s16", Ty::S16),
    ("b32", Ty::B32),
    ("u32", Ty::U32),
    ("s32", Ty::S32),
    ("b64", Ty::B64),
    ("u64", Ty::U64),
    ("s64", Ty::S64),
    ("f16", Ty::F16),
    ("f16x2", Ty::F16x2),
    ("bf16", Ty::BF16),
    ("bf16x2", Ty::BF16x2),
    ("f32", Ty::F32),
    ("f32x2", Ty::F32x2),
    ("f64", Ty::F64),
    ("tf32", Ty::TF32),
    ("e4m3", Ty::E4M3),
    ("e5m2", Ty::E5M2),
    ("e4m3x2", Ty::E4M3x2),
    ("e5m2x2", Ty::E5M2x2),
    ("pred", Ty::Pred),
];

pub(super) const ATOM_OPS: &[(&str, AtomOp)] = &[
    ("add", AtomOp::Add),
    ("min", AtomOp::Min),
    ("max", AtomOp::Max),
    ("inc", AtomOp::Inc),
    ("dec", AtomOp::Dec),
    ("and", AtomOp::And),
    ("or", AtomOp::Or),
    ("xor", AtomOp::Xor),
    ("exch", AtomOp::Exch),
    ("cas", AtomOp::Cas),
];

pub(super) const CMPS: &[(&str, Cmp)] = &[
    ("eq", Cmp::Eq),
    ("ne", Cmp::Ne),
    ("lt", Cmp::Lt),
    ("le", Cmp::Le),
    ("gt", Cmp::Gt),
    ("ge", Cmp::Ge),
    ("lo", Cmp::Lt),
    ("ls", Cmp::Le),
    ("hi", Cmp::Gt),
    ("hs", Cmp::Ge),
    ("equ", Cmp::Equ),
    ("neu", Cmp::Neu),
    ("ltu", Cmp::Ltu),
    ("leu", Cmp::Leu),
    ("gtu", Cmp::Gtu),
    ("geu", Cmp::Geu),
    ("num", Cmp::Num),
    ("nan", Cmp::Nan),
];

pub(super) const BOOLS: &[(&str, BoolOp)] = &[("and", BoolOp::And), ("or", BoolOp::Or), ("xor", BoolOp::Xor)];
