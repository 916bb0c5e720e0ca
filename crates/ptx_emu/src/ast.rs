//! What the parser makes of a PTX text: functions as flat instruction lists with registers and variables resolved.

use std::collections::HashMap;

use crate::ir::ClusterShape;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RegKind {
    Pred,
    /// 8 and 16 bits: kept in the low half of a 32-bit lane.
    B16,
    B32,
    B64,
    B128,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A scalar immediate: its bits and how it was written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Imm {
    Int(u64),
    F32(u32),
    F64(u64),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Reg(u32),
    Imm(Imm),
    /// Special register by its name without `%`.
    Special(String),
    /// Variable of the function, with byte offset.
    Local(u32, i64),
    /// Variable of the module, with byte offset.
    Global(u32, i64),
    /// Not known in scope: a label or a function.
    Name {
        name: String,
        scope: u32,
    },
    /// `[a+off]`, with the coordinates of a tensor access.
    Mem {
        base: Box<Operand>,
        offset: i64,
        coords: Vec<Operand>,
    },
    Vector(Vec<Operand>),
    /// `d|p`.
    Pair(Box<Operand>, Box<Operand>),
    /// `!p`.
    Not(u32),
    /// `_`.
    Sink,
    /// `(a, b)` of a call.
    List(Vec<Operand>),
}

#[derive(Debug, Clone)]
pub(crate) struct Stmt {
    /// Predicate register and whether it is negated.
    pub(crate) guard: Option<(u32, bool)>,
    pub(crate) opcode: String,
    pub(crate) operands: Vec<Operand>,
    pub(crate) line: u32,
    pub(crate) column: u32,
    /// Index into [`Ast::locs`], `u32::MAX` when there is none.
    pub(crate) loc: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Var {
    pub(crate) name: String,
    pub(crate) space: Space,
    pub(crate) align: u64,
    /// Bytes; 0 for an `.extern .shared` array of open size.
    pub(crate) size: u64,
    pub(crate) is_extern: bool,
    pub(crate) init: Vec<InitItem>,
}

#[derive(Debug, Clone)]
pub(crate) enum InitItem {
    Bytes(Vec<u8>),
    /// Address of a variable or function: name, addend, bytes of the slot.
    Address {
        name: String,
        addend: i64,
        bytes: u64,
    },
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) is_entry: bool,
    pub(crate) has_body: bool,
    pub(crate) line: u32,
    /// Register kinds, by register id.
    pub(crate) regs: Vec<RegKind>,
    pub(crate) vars: Vec<Var>,
    /// Variables that hold the parameters and the return values.
    pub(crate) params: Vec<u32>,
    pub(crate) returns: Vec<u32>,
    pub(crate) body: Vec<Stmt>,
    /// (scope, name) to statement index.
    pub(crate) labels: HashMap<(u32, String), u32>,
    /// Parent of each scope; the root's parent is itself.
    pub(crate) scope_parent: Vec<u32>,
    pub(crate) reqntid: Option<[u32; 3]>,
    pub(crate) maxntid: Option<[u32; 3]>,
    pub(crate) cluster: ClusterShape,
}

#[derive(Debug, Default)]
pub(crate) struct Ast {
    pub(crate) version: (u32, u32),
    pub(crate) target: String,
    pub(crate) vars: Vec<Var>,
    pub(crate) var_names: HashMap<String, u32>,
    pub(crate) functions: Vec<Function>,
    pub(crate) function_names: HashMap<String, u32>,
    pub(crate) files: HashMap<u32, String>,
    /// (file, line, column)
    pub(crate) locs: Vec<(u32, u32, u32)>,
}
