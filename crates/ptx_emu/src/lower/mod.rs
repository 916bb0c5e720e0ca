//! [`Ast`] to [`Program`]: opcodes to typed operations, calls inlined, registers to slots.

mod arithmetic;
mod bulk;
mod call;
mod cluster;
mod compare;
mod copy;
mod integer;
mod mbarrier;
mod memory;
mod moves;
mod operands;
mod operation;
mod parts;
mod policy;
mod special;
mod sync;
mod tensor;
mod warp;
mod wmma;

use std::collections::HashMap;

use crate::alu::is_rare;
use crate::ast::*;
use crate::cfg;
use crate::error::{ParseError, ParseErrorKind};
use crate::float::Round;
use crate::ir::*;
use parts::{ATOM_OPS, BOOLS, CMPS, Parts};
use special::{is_clock, special};

pub(crate) use special::is_special;

/// Instructions of one entry with its calls inlined; more means runaway inlining.
const MAX_INSTRUCTIONS: usize = 1 << 21;
/// Slots of the register file of one warp (128 bytes each).
const MAX_SLOTS: u32 = 1 << 21;
/// Depth of inlined calls; deeper means recursion in disguise.
const MAX_CALL_DEPTH: usize = 48;
/// Calls that one entry may inline: functions that call each other twice double with every level.
const MAX_INLINED_CALLS: u32 = 1 << 16;

type Res<T> = Result<T, ParseError>;

/// Where a variable of a function lives.
#[derive(Debug, Clone, Copy)]
enum Place {
    Param(u32),
    Local(u32),
    Shared(u32),
    /// Index into the module's variables.
    Global(u32),
}

struct Ctx<'a> {
    fun: &'a Function,
    /// Slot (or predicate index) of each register.
    regs: Vec<u32>,
    places: Vec<Option<Place>>,
    stmt_pc: Vec<u32>,
    /// (instruction, statement) of branches to patch.
    fixups: Vec<(usize, u32)>,
    /// Branches to the end of an inlined function.
    returns: Vec<usize>,
}

struct Lower<'a> {
    ast: &'a Ast,
    code: Vec<Inst>,
    operand_ranges: Vec<(u32, u16, u16)>,
    operand_slots: Vec<Slot>,
    reads: Vec<Slot>,
    writes: Vec<Slot>,
    next_slot: u32,
    next_pred: u32,
    wide_slots: Vec<Slot>,
    consts: HashMap<(Const, bool), Slot>,
    shared_vars: HashMap<u32, u32>,
    static_shared: u32,
    dynamic_align: u32,
    /// Constant slots that hold the address of the dynamic array: patched when the static size is known.
    dynamic_consts: Vec<(i64, bool, Slot)>,
    local_bytes: u32,
    call_stack: Vec<u32>,
    inlined: u32,
    /// The guard of the statement.
    guard: Pred,
}

fn align_up(v: u64, a: u64) -> u64 {
    v.div_ceil(a.max(1)) * a.max(1)
}

/// Bytes of kernel parameters of one entry (PTX ISA 8.1).
const MAX_PARAM_BYTES: u64 = 32764;

/// Lowers one entry of the module.
pub(crate) fn lower_entry(ast: &Ast, index: u32) -> Res<Program> {
    let fun = &ast.functions[index as usize];
    let mut l = Lower::new(ast, index);
    let mut ctx = l.context(fun)?;
    let (params, param_bytes) = parameters(&mut ctx)?;
    l.function(&mut ctx)?;
    // Falling off the end ends the thread, as `ret` does.
    l.emit_raw(Op::Exit, TRUE, Class::Control, fun.line, u32::MAX);
    cfg::exits(&mut l.code);
    cfg::reconvergence(&mut l.code);
    let dynamic_shared_offset =
        align_up((l.static_shared + SHARED_BASE) as u64, l.dynamic_align as u64) as u32 - SHARED_BASE;
    let any = |f: fn(&Op) -> bool| l.code.iter().any(|i| f(&i.op));
    Ok(Program {
        name: fun.name.clone(),
        slots: l.next_slot,
        wide: l.wide(),
        preds: l.next_pred,
        consts: l.constants(dynamic_shared_offset),
        params,
        param_bytes,
        static_shared: l.static_shared,
        dynamic_shared_offset,
        local_bytes: l.local_bytes,
        reqntid: fun.reqntid,
        maxntid: fun.maxntid,
        cluster: fun.cluster,
        uses_wgmma: any(|o| matches!(o, Op::Wgmma(_))),
        uses_bulk: any(|o| matches!(o, Op::Bulk(_) | Op::BulkTensor(_))),
        uses_mbarrier: any(|o| matches!(o, Op::MbarInit { .. })),
        code: l.code,
        operand_ranges: l.operand_ranges,
        operand_slots: l.operand_slots,
    })
}

/// Places the parameters one behind the other, and tells their bytes.
fn parameters(ctx: &mut Ctx<'_>) -> Res<(Vec<ParamLayout>, u32)> {
    let fun = ctx.fun;
    let mut params = Vec::new();
    let mut offset = 0u64;
    for &p in &fun.params {
        let v = &fun.vars[p as usize];
        offset = align_up(offset, v.align);
        ctx.places[p as usize] = Some(Place::Param(offset as u32));
        params.push(ParamLayout {
            name: v.name.clone(),
            offset: offset as u32,
            size: v.size as u32,
            align: v.align as u32,
        });
        offset += v.size;
    }
    if offset > MAX_PARAM_BYTES {
        let what = format!("{offset} bytes of kernel parameters; at most {MAX_PARAM_BYTES}");
        return Err(unsupported(fun.line, 1, what));
    }
    Ok((params, offset as u32))
}

fn unsupported(line: u32, column: u32, what: String) -> ParseError {
    ParseError { line, column, kind: ParseErrorKind::Unsupported(what) }
}

impl<'a> Lower<'a> {
    fn new(ast: &'a Ast, entry: u32) -> Self {
        Lower {
            ast,
            code: Vec::new(),
            operand_ranges: Vec::new(),
            operand_slots: Vec::new(),
            reads: Vec::new(),
            writes: Vec::new(),
            // Two words of zero, and the predicate that is always true, come first.
            next_slot: 2,
            next_pred: 1,
            wide_slots: Vec::new(),
            consts: HashMap::new(),
            shared_vars: HashMap::new(),
            static_shared: 0,
            dynamic_align: 16,
            dynamic_consts: Vec::new(),
            local_bytes: 0,
            call_stack: vec![entry],
            inlined: 0,
            guard: TRUE,
        }
    }

    /// Which slots start a 64-bit register.
    fn wide(&self) -> Vec<bool> {
        let mut wide = vec![false; self.next_slot as usize + 1];
        for &s in &self.wide_slots {
            wide[s as usize] = true;
        }
        wide
    }

    /// All constant slots, with the addresses of the dynamic array, which starts at this offset.
    fn constants(&self, dynamic_offset: u32) -> Vec<(Slot, bool, Const)> {
        let mut consts: Vec<_> = self.consts.iter().map(|(&(c, wide), &s)| (s, wide, c)).collect();
        for &(add, wide, slot) in &self.dynamic_consts {
            let address = ((SHARED_BASE + dynamic_offset) as u64).wrapping_add(add as u64);
            consts.push((slot, wide, Const::Bits(address)));
        }
        consts.sort_by_key(|c| c.0);
        consts
    }

    fn context(&mut self, fun: &'a Function) -> Res<Ctx<'a>> {
        let mut regs = Vec::with_capacity(fun.regs.len());
        for k in &fun.regs {
            match k {
                RegKind::Pred => {
                    regs.push(self.next_pred);
                    self.next_pred += 1;
                }
                RegKind::B16 | RegKind::B32 => regs.push(self.slot(false)),
                RegKind::B64 => regs.push(self.slot(true)),
                RegKind::B128 => {
                    return Err(unsupported(fun.line, 1, "128-bit registers".to_owned()));
                }
            }
        }
        if self.next_slot > MAX_SLOTS || self.next_pred > MAX_SLOTS {
            return Err(unsupported(fun.line, 1, format!("more than {MAX_SLOTS} registers after inlining")));
        }
        Ok(Ctx {
            fun,
            regs,
            places: vec![None; fun.vars.len()],
            stmt_pc: vec![0; fun.body.len() + 1],
            fixups: Vec::new(),
            returns: Vec::new(),
        })
    }

    fn slot(&mut self, wide: bool) -> Slot {
        if wide {
            self.next_slot += self.next_slot & 1;
        }
        let s = self.next_slot;
        self.next_slot += 1 + wide as u32;
        if wide {
            self.wide_slots.push(s);
        }
        s
    }

    fn constant(&mut self, c: Const, wide: bool) -> Slot {
        if c == Const::Bits(0) {
            return ZERO;
        }
        if let Some(&s) = self.consts.get(&(c, wide)) {
            return s;
        }
        let s = self.slot(wide);
        self.consts.insert((c, wide), s);
        s
    }

    fn emit_raw(&mut self, op: Op, guard: Pred, class: Class, line: u32, loc: u32) -> usize {
        let first = self.operand_slots.len() as u32;
        let (r, w) = (self.reads.len() as u16, self.writes.len() as u16);
        self.operand_slots.append(&mut self.reads);
        self.operand_slots.append(&mut self.writes);
        self.operand_ranges.push((first, r, w));
        self.code.push(Inst { op, guard, class, flops: 0, line, loc });
        self.code.len() - 1
    }

    /// An instruction before the one that the statement is lowered to, under its guard.
    fn emit_before(&mut self, stmt: &Stmt, op: Op, class: Class) {
        let (r, w) = (std::mem::take(&mut self.reads), std::mem::take(&mut self.writes));
        self.emit_raw(op, self.guard, class, stmt.line, stmt.loc);
        (self.reads, self.writes) = (r, w);
    }

    fn function(&mut self, ctx: &mut Ctx<'a>) -> Res<()> {
        let fun = ctx.fun;
        for (i, stmt) in fun.body.iter().enumerate() {
            ctx.stmt_pc[i] = self.code.len() as u32;
            if self.code.len() > MAX_INSTRUCTIONS {
                let what = format!("more than {MAX_INSTRUCTIONS} instructions after inlining");
                return Err(unsupported(stmt.line, stmt.column, what));
            }
            self.statement(ctx, stmt)?;
        }
        ctx.stmt_pc[fun.body.len()] = self.code.len() as u32;
        for &(inst, stmt) in &ctx.fixups {
            if let Op::Bra { target, .. } = &mut self.code[inst].op {
                *target = ctx.stmt_pc[stmt as usize];
            }
        }
        let end = self.code.len() as u32;
        for &inst in &ctx.returns {
            if let Op::Bra { target, .. } = &mut self.code[inst].op {
                *target = end;
            }
        }
        Ok(())
    }

    fn err(&self, stmt: &Stmt, what: impl Into<String>) -> ParseError {
        ParseError {
            line: stmt.line,
            column: stmt.column,
            kind: ParseErrorKind::UnsupportedForm { opcode: stmt.opcode.clone(), what: what.into() },
        }
    }

    fn statement(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt) -> Res<()> {
        let guard = match stmt.guard {
            None => TRUE,
            Some((r, negated)) => {
                if ctx.fun.regs[r as usize] != RegKind::Pred {
                    return Err(self.err(stmt, "a guard that is not a predicate register"));
                }
                Pred { index: ctx.regs[r as usize], negated }
            }
        };
        self.guard = guard;
        self.reads.clear();
        self.writes.clear();
        let mut m = Parts::new(stmt);
        if matches!(m.name(), "bra" | "brx" | "ret" | "exit" | "call") {
            return self.control(ctx, stmt, &mut m, guard);
        }
        let (op, class) = self.operation(ctx, stmt, &mut m)?;
        m.done()?;
        let flops = flops(&op);
        let op = match op {
            Op::Alu { f, ty, m, d, s } if is_rare(f, ty, m) => Op::Rare { f, ty, m, d, s },
            op => op,
        };
        let at = self.emit_raw(op, guard, class, stmt.line, stmt.loc);
        self.code[at].flops = flops;
        Ok(())
    }

    /// Branches, returns and calls.
    fn control(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>, guard: Pred) -> Res<()> {
        if m.name() == "brx" {
            return Err(self.err(stmt, "a branch table"));
        }
        m.take("uni");
        m.done()?;
        let branch = Op::Bra { target: 0, reconverge: NO_PC };
        match m.name() {
            "call" => return self.call(ctx, stmt, guard),
            "bra" => {
                self.count(stmt, &[1])?;
                let Operand::Name { name, scope } = &stmt.operands[0] else {
                    return Err(self.err(stmt, "a target that is not a label"));
                };
                let target = self.label(ctx, name, *scope).ok_or_else(|| self.undeclared(stmt, name))?;
                let at = self.emit_raw(branch, guard, Class::Control, stmt.line, stmt.loc);
                ctx.fixups.push((at, target));
            }
            "ret" if self.call_stack.len() > 1 => {
                let at = self.emit_raw(branch, guard, Class::Control, stmt.line, stmt.loc);
                ctx.returns.push(at);
            }
            _ => {
                self.emit_raw(Op::Exit, guard, Class::Control, stmt.line, stmt.loc);
            }
        }
        Ok(())
    }

    fn label(&self, ctx: &Ctx<'a>, name: &str, scope: u32) -> Option<u32> {
        let mut s = scope;
        loop {
            if let Some(&at) = ctx.fun.labels.get(&(s, name.to_owned())) {
                return Some(at);
            }
            let parent = ctx.fun.scope_parent[s as usize];
            if parent == s {
                return None;
            }
            s = parent;
        }
    }
}

fn flops(op: &Op) -> u8 {
    let Op::Alu { f, ty, .. } = op else { return 0 };
    if !ty.is_float() {
        return 0;
    }
    let lanes = if matches!(ty, Ty::F16x2 | Ty::BF16x2 | Ty::F32x2) { 2 } else { 1 };
    lanes
        * match f {
            Alu::Fma => 2,
            Alu::Add | Alu::Sub | Alu::FMul | Alu::Div => 1,
            _ => 0,
        }
}
