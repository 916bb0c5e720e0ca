//! [`Ast`] to [`Program`]: opcodes to typed operations, calls inlined, registers to slots.

mod cluster;
mod policy;

use std::collections::HashMap;

use crate::ast::*;
use crate::cfg;
use crate::error::{ParseError, ParseErrorKind};
use crate::float::Round;
use crate::ir::*;

/// Instructions of one entry with its calls inlined; more means runaway inlining.
const MAX_INSTRUCTIONS: usize = 1 << 21;
/// Slots of the register file of one warp (128 bytes each).
const MAX_SLOTS: u32 = 1 << 21;
/// Depth of inlined calls; deeper means recursion in disguise.
const MAX_CALL_DEPTH: usize = 48;
/// Calls that one entry may inline: functions that call each other twice double with every level.
const MAX_INLINED_CALLS: u32 = 1 << 16;

type Res<T> = Result<T, ParseError>;

/// Whether `%name` is a special register that the emulator has.
pub(crate) fn is_special(name: &str) -> bool {
    special(name).is_some()
        || matches!(name, "clock" | "clock_hi" | "clock64" | "globaltimer" | "globaltimer_lo" | "globaltimer_hi")
}

fn special(name: &str) -> Option<Special> {
    let axis = |s: &str| match s {
        "x" => Some(0u8),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((base, ax)) = name.split_once('.') {
        let ax = axis(ax)?;
        return Some(match base {
            "tid" => Special::Tid(ax),
            "ntid" => Special::Ntid(ax),
            "ctaid" => Special::Ctaid(ax),
            "nctaid" => Special::Nctaid(ax),
            "clusterid" => Special::ClusterId(ax),
            "nclusterid" => Special::NClusterId(ax),
            "cluster_ctaid" => Special::ClusterCtaid(ax),
            "cluster_nctaid" => Special::ClusterNctaid(ax),
            _ => return None,
        });
    }
    Some(match name {
        "laneid" => Special::LaneId,
        "warpid" => Special::WarpId,
        "nwarpid" => Special::NWarpId,
        "lanemask_eq" => Special::LaneMask(Cmp2::Eq),
        "lanemask_le" => Special::LaneMask(Cmp2::Le),
        "lanemask_lt" => Special::LaneMask(Cmp2::Lt),
        "lanemask_ge" => Special::LaneMask(Cmp2::Ge),
        "lanemask_gt" => Special::LaneMask(Cmp2::Gt),
        "dynamic_smem_size" => Special::DynamicSharedSize,
        "total_smem_size" | "aggr_smem_size" => Special::TotalSharedSize,
        "gridid" => Special::GridId,
        "smid" => Special::SmId,
        "nsmid" => Special::NSmId,
        "cluster_ctarank" => Special::ClusterCtaRank,
        "cluster_nctarank" => Special::ClusterNctaRank,
        "is_explicit_cluster" => Special::IsExplicitCluster,
        _ => return None,
    })
}

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
    uses_dynamic: bool,
    /// Constant slots that hold the address of the dynamic array: patched when the static size is known.
    dynamic_consts: Vec<(i64, bool, Slot)>,
    local_bytes: u32,
    call_stack: Vec<u32>,
    inlined: u32,
}

/// The modifiers of an opcode; every one must be taken.
struct Parts<'a> {
    op: &'a str,
    parts: Vec<&'a str>,
    used: Vec<bool>,
    line: u32,
    column: u32,
}

impl<'a> Parts<'a> {
    fn new(stmt: &'a Stmt) -> Self {
        let parts: Vec<&str> = stmt.opcode.split('.').collect();
        let used = vec![false; parts.len()];
        let mut p = Parts { op: &stmt.opcode, parts, used, line: stmt.line, column: stmt.column };
        p.used[0] = true;
        p
    }

    fn name(&self) -> &'a str {
        self.parts[0]
    }

    fn take(&mut self, m: &str) -> bool {
        for i in 1..self.parts.len() {
            if !self.used[i] && self.parts[i] == m {
                self.used[i] = true;
                return true;
            }
        }
        false
    }

    fn take_map<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
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

    fn take_prefix(&mut self, prefix: &str) -> Option<&'a str> {
        for i in 1..self.parts.len() {
            if !self.used[i] && self.parts[i].starts_with(prefix) {
                self.used[i] = true;
                return Some(self.parts[i]);
            }
        }
        None
    }

    fn ty(&mut self) -> Res<Ty> {
        self.take_map(TYPES).ok_or_else(|| self.bad("a type is missing or not accepted"))
    }

    fn bad(&self, what: impl Into<String>) -> ParseError {
        ParseError {
            line: self.line,
            column: self.column,
            kind: ParseErrorKind::UnsupportedForm { opcode: self.op.to_owned(), what: what.into() },
        }
    }

    fn done(&self) -> Res<()> {
        match self.used.iter().position(|u| !u) {
            None => Ok(()),
            Some(i) => Err(self.bad(format!("modifier `.{}` is not accepted here", self.parts[i]))),
        }
    }

    fn round(&mut self) -> Round {
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
    fn take_cache_hints(&mut self) {
        self.take_map(&[("ca", ()), ("cg", ()), ("cs", ()), ("lu", ()), ("cv", ()), ("wb", ()), ("wt", ())]);
        for p in ["L1::", "L2::evict", "L2::64B", "L2::128B", "L2::256B"] {
            self.take_prefix(p);
        }
    }

    /// The memory order that is written; `.volatile` and `.mmio` are relaxed ones.
    fn take_order(&mut self) -> Option<Order> {
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

    fn take_scope(&mut self) -> Option<Scope> {
        self.take_map(&[
            ("cta", Scope::Cta),
            ("cluster", Scope::Cluster),
            ("gpu", Scope::Gpu),
            ("gl", Scope::Gpu),
            ("sys", Scope::Sys),
        ])
    }

    fn space(&mut self) -> MemSpace {
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

const TYPES: &[(&str, Ty)] = &[
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

const ATOM_OPS: &[(&str, AtomOp)] = &[
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

const CMPS: &[(&str, Cmp)] = &[
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

const BOOLS: &[(&str, BoolOp)] = &[("and", BoolOp::And), ("or", BoolOp::Or), ("xor", BoolOp::Xor)];

fn align_up(v: u64, a: u64) -> u64 {
    v.div_ceil(a.max(1)) * a.max(1)
}

/// Lowers one entry of the module.
pub(crate) fn lower_entry(ast: &Ast, index: u32) -> Res<Program> {
    let fun = &ast.functions[index as usize];
    let mut l = Lower {
        ast,
        code: Vec::new(),
        operand_ranges: Vec::new(),
        operand_slots: Vec::new(),
        reads: Vec::new(),
        writes: Vec::new(),
        next_slot: 2,
        next_pred: 1,
        wide_slots: Vec::new(),
        consts: HashMap::new(),
        shared_vars: HashMap::new(),
        static_shared: 0,
        dynamic_align: 16,
        uses_dynamic: false,
        dynamic_consts: Vec::new(),
        local_bytes: 0,
        call_stack: vec![index],
        inlined: 0,
    };
    let mut params = Vec::new();
    let mut offset = 0u64;
    let mut ctx = l.context(fun)?;
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
    if offset > 32764 {
        return Err(ParseError {
            line: fun.line,
            column: 1,
            kind: ParseErrorKind::Unsupported(format!("{offset} bytes of kernel parameters; at most 32764")),
        });
    }
    l.function(&mut ctx)?;
    // Falling off the end ends the thread, as `ret` does.
    l.emit_raw(Op::Exit, TRUE, Class::Control, fun.line, u32::MAX);
    let dynamic_offset = align_up((l.static_shared + SHARED_BASE) as u64, l.dynamic_align as u64) as u32 - SHARED_BASE;
    let mut consts: Vec<(Slot, bool, Const)> = l.consts.iter().map(|(&(c, wide), &s)| (s, wide, c)).collect();
    for &(add, wide, slot) in &l.dynamic_consts {
        consts.push((slot, wide, Const::Bits(((SHARED_BASE + dynamic_offset) as u64).wrapping_add(add as u64))));
    }
    consts.sort_by_key(|c| c.0);
    cfg::reconvergence(&mut l.code);
    let any = |f: fn(&Op) -> bool| l.code.iter().any(|i| f(&i.op));
    let uses_wgmma = any(|o| matches!(o, Op::Wgmma(_)));
    let uses_bulk = any(|o| matches!(o, Op::Bulk(_) | Op::BulkTensor(_)));
    let uses_mbarrier = any(|o| matches!(o, Op::MbarInit { .. }));
    Ok(Program {
        name: fun.name.clone(),
        code: l.code,
        operand_ranges: l.operand_ranges,
        operand_slots: l.operand_slots,
        wide: {
            let mut wide = vec![false; l.next_slot as usize + 1];
            for &s in &l.wide_slots {
                wide[s as usize] = true;
            }
            wide
        },
        slots: l.next_slot,
        preds: l.next_pred,
        consts,
        params,
        param_bytes: offset as u32,
        static_shared: l.static_shared,
        dynamic_shared_offset: dynamic_offset,
        local_bytes: l.local_bytes,
        reqntid: fun.reqntid,
        maxntid: fun.maxntid,
        cluster: fun.cluster,
        uses_wgmma,
        uses_bulk,
        uses_mbarrier,
    })
}

impl<'a> Lower<'a> {
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
                    return Err(ParseError {
                        line: fun.line,
                        column: 1,
                        kind: ParseErrorKind::Unsupported("128-bit registers".to_owned()),
                    });
                }
            }
        }
        if self.next_slot > MAX_SLOTS || self.next_pred > MAX_SLOTS {
            return Err(ParseError {
                line: fun.line,
                column: 1,
                kind: ParseErrorKind::Unsupported(format!("more than {MAX_SLOTS} registers after inlining")),
            });
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

    fn function(&mut self, ctx: &mut Ctx<'a>) -> Res<()> {
        let fun = ctx.fun;
        for (i, stmt) in fun.body.iter().enumerate() {
            ctx.stmt_pc[i] = self.code.len() as u32;
            if self.code.len() > MAX_INSTRUCTIONS {
                return Err(ParseError {
                    line: stmt.line,
                    column: stmt.column,
                    kind: ParseErrorKind::Unsupported(format!(
                        "more than {MAX_INSTRUCTIONS} instructions after inlining"
                    )),
                });
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

    // ---- operands ----

    fn global_place(&mut self, v: u32) -> Place {
        let var = &self.ast.vars[v as usize];
        match var.space {
            Space::Shared => {
                if var.is_extern {
                    self.uses_dynamic = true;
                    self.dynamic_align = self.dynamic_align.max(var.align as u32);
                    return Place::Shared(u32::MAX);
                }
                if let Some(&o) = self.shared_vars.get(&v) {
                    return Place::Shared(o);
                }
                let o = align_up((self.static_shared + SHARED_BASE) as u64, var.align) - SHARED_BASE as u64;
                self.static_shared = (o + var.size).min(u32::MAX as u64 / 2) as u32;
                self.shared_vars.insert(v, o as u32);
                Place::Shared(o as u32)
            }
            _ => Place::Global(v),
        }
    }

    fn local_place(&mut self, ctx: &mut Ctx<'a>, v: u32, stmt: &Stmt) -> Res<Place> {
        if let Some(p) = ctx.places[v as usize] {
            return Ok(p);
        }
        let var = &ctx.fun.vars[v as usize];
        let place = match var.space {
            Space::Shared => {
                let o = align_up((self.static_shared + SHARED_BASE) as u64, var.align) - SHARED_BASE as u64;
                self.static_shared = (o + var.size).min(u32::MAX as u64 / 2) as u32;
                Place::Shared(o as u32)
            }
            Space::Local | Space::Param => Place::Local(self.local_alloc(var, stmt)?),
            _ => return Err(self.err(stmt, format!("variable `{}` of this space inside of a function", var.name))),
        };
        ctx.places[v as usize] = Some(place);
        Ok(place)
    }

    fn local_alloc(&mut self, var: &Var, stmt: &Stmt) -> Res<u32> {
        let o = align_up(self.local_bytes as u64, var.align);
        // 512 KiB a thread is the most that hardware gives.
        if o + var.size > 512 << 10 {
            return Err(self.err(stmt, format!("{} bytes of local memory a thread; at most 524288", o + var.size)));
        }
        self.local_bytes = (o + var.size) as u32;
        Ok(o as u32)
    }

    fn place(&mut self, ctx: &mut Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<Option<(Place, i64)>> {
        Ok(match o {
            Operand::Local(v, off) => Some((self.local_place(ctx, *v, stmt)?, *off)),
            Operand::Global(v, off) => Some((self.global_place(*v), *off)),
            _ => None,
        })
    }

    /// The address of a place in its own space, as a constant slot.
    fn place_slot(&mut self, place: Place, offset: i64, wide: bool) -> Slot {
        match place {
            Place::Param(o) | Place::Local(o) => {
                self.constant(Const::Bits((o as i64).wrapping_add(offset) as u64), wide)
            }
            Place::Shared(u32::MAX) => {
                if let Some(&(_, _, s)) = self.dynamic_consts.iter().find(|c| c.0 == offset && c.1 == wide) {
                    return s;
                }
                let s = self.slot(wide);
                self.dynamic_consts.push((offset, wide, s));
                s
            }
            Place::Shared(o) => {
                self.constant(Const::Bits(((o + SHARED_BASE) as i64).wrapping_add(offset) as u64), wide)
            }
            Place::Global(v) => self.constant(Const::GlobalVar(v, offset), wide),
        }
    }

    fn imm_bits(&self, imm: Imm, ty: Ty, stmt: &Stmt) -> Res<u64> {
        Ok(match (imm, ty) {
            (Imm::Int(v), t) if !matches!(t, Ty::F32 | Ty::F64) => match t.bits() {
                8 | 16 => v & 0xffff,
                32 => v & 0xffff_ffff,
                _ => v,
            },
            (Imm::F32(b), t) if t.bits() == 32 => b as u64,
            (Imm::F32(b), Ty::F64) => (f32::from_bits(b) as f64).to_bits(),
            (Imm::F64(b), Ty::F32) => (f64::from_bits(b) as f32).to_bits() as u64,
            (Imm::F64(b), t) if t.bits() == 64 => b,
            _ => return Err(self.err(stmt, "an immediate that does not fit the type")),
        })
    }

    /// A source of the type; registers must have the type's width (8 and 16 bits share a kind with 32).
    fn src(&mut self, ctx: &mut Ctx<'a>, o: &Operand, ty: Ty, stmt: &Stmt) -> Res<Slot> {
        let wide = ty.wide();
        let s = match o {
            Operand::Reg(r) => {
                let ok = match ctx.fun.regs[*r as usize] {
                    RegKind::B64 => wide,
                    RegKind::B16 | RegKind::B32 => !wide,
                    _ => false,
                };
                if !ok {
                    return Err(self.err(stmt, format!("a source register that is not {} bits wide", ty.bits())));
                }
                ctx.regs[*r as usize]
            }
            Operand::Imm(i) => {
                let bits = self.imm_bits(*i, ty, stmt)?;
                self.constant(Const::Bits(bits), wide)
            }
            Operand::Special(name) => match special(name) {
                Some(Special::IsExplicitCluster) => {
                    return Err(self.err(stmt, format!("the predicate `%{name}` is read by mov.pred only")));
                }
                Some(sp) => self.constant(Const::Special(sp), wide),
                None => return Err(self.err(stmt, format!("`%{name}` is read by mov only"))),
            },
            Operand::Local(..) | Operand::Global(..) => {
                let (p, off) = self.place(ctx, o, stmt)?.expect("a variable");
                self.place_slot(p, off, wide)
            }
            Operand::Name { name, .. } => return Err(self.undeclared(stmt, name)),
            _ => return Err(self.err(stmt, "a source operand of this form")),
        };
        self.reads.push(s);
        Ok(s)
    }

    /// A source register of any width, or an immediate of the type's.
    fn src_any(&mut self, ctx: &mut Ctx<'a>, o: &Operand, ty: Ty, stmt: &Stmt) -> Res<(Slot, bool)> {
        if let Operand::Reg(r) = o {
            let wide = ctx.fun.regs[*r as usize] == RegKind::B64;
            if ctx.fun.regs[*r as usize] == RegKind::Pred {
                return Err(self.err(stmt, "a predicate register where a value is needed"));
            }
            self.reads.push(ctx.regs[*r as usize]);
            return Ok((ctx.regs[*r as usize], wide));
        }
        Ok((self.src(ctx, o, ty, stmt)?, ty.wide()))
    }

    fn undeclared(&self, stmt: &Stmt, name: &str) -> ParseError {
        ParseError { line: stmt.line, column: stmt.column, kind: ParseErrorKind::Undeclared(name.to_owned()) }
    }

    fn dst(&mut self, ctx: &Ctx<'a>, o: &Operand, ty: Ty, stmt: &Stmt) -> Res<Slot> {
        match o {
            Operand::Reg(r) => {
                let ok = match ctx.fun.regs[*r as usize] {
                    RegKind::B64 => ty.wide(),
                    RegKind::B16 | RegKind::B32 => !ty.wide(),
                    _ => false,
                };
                if !ok {
                    return Err(self.err(stmt, format!("a destination register that is not {} bits wide", ty.bits())));
                }
                self.writes.push(ctx.regs[*r as usize]);
                Ok(ctx.regs[*r as usize])
            }
            Operand::Sink => Ok(SINK),
            _ => Err(self.err(stmt, "a destination that is not a register")),
        }
    }

    fn dst_any(&mut self, ctx: &Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<(Slot, bool)> {
        match o {
            Operand::Reg(r) if ctx.fun.regs[*r as usize] != RegKind::Pred => {
                self.writes.push(ctx.regs[*r as usize]);
                Ok((ctx.regs[*r as usize], ctx.fun.regs[*r as usize] == RegKind::B64))
            }
            Operand::Sink => Ok((SINK, false)),
            _ => Err(self.err(stmt, "a destination that is not a register")),
        }
    }

    fn pred_dst(&self, ctx: &Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<u32> {
        match o {
            Operand::Reg(r) if ctx.fun.regs[*r as usize] == RegKind::Pred => Ok(ctx.regs[*r as usize]),
            Operand::Sink => Ok(SINK),
            _ => Err(self.err(stmt, "a destination that is not a predicate register")),
        }
    }

    fn pred_src(&self, ctx: &Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<Pred> {
        let (r, negated) = match o {
            Operand::Reg(r) => (*r, false),
            Operand::Not(r) => (*r, true),
            Operand::Imm(Imm::Int(v)) => return Ok(Pred { index: 0, negated: *v == 0 }),
            _ => return Err(self.err(stmt, "a source that is not a predicate")),
        };
        if ctx.fun.regs[r as usize] != RegKind::Pred {
            return Err(self.err(stmt, "a source that is not a predicate"));
        }
        Ok(Pred { index: ctx.regs[r as usize], negated })
    }

    fn mem(&mut self, ctx: &mut Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<Addr> {
        Ok(self.mem_place(ctx, o, stmt)?.0)
    }

    fn mem_place(&mut self, ctx: &mut Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<(Addr, Option<Place>)> {
        let Operand::Mem { base, offset, coords } = o else {
            return Err(self.err(stmt, "an operand that is not a memory operand in brackets"));
        };
        if !coords.is_empty() && !stmt.opcode.contains("tensor") {
            return Err(self.err(stmt, "coordinates in an address"));
        }
        match &**base {
            Operand::Reg(r) => {
                let wide = match ctx.fun.regs[*r as usize] {
                    RegKind::B64 => true,
                    RegKind::B32 => false,
                    _ => return Err(self.err(stmt, "an address register that is not 32 or 64 bits wide")),
                };
                let s = ctx.regs[*r as usize];
                self.reads.push(s);
                Ok((Addr { base: s, wide, offset: *offset }, None))
            }
            Operand::Imm(Imm::Int(v)) => {
                Ok((Addr { base: ZERO, wide: true, offset: (*v as i64).wrapping_add(*offset) }, None))
            }
            other => match self.place(ctx, other, stmt)? {
                Some((p, off)) => {
                    let off = off.wrapping_add(*offset);
                    let s = self.place_slot(p, 0, true);
                    Ok((Addr { base: s, wide: true, offset: off }, Some(p)))
                }
                None => match other {
                    Operand::Name { name, .. } => Err(self.undeclared(stmt, name)),
                    _ => Err(self.err(stmt, "an address of this form")),
                },
            },
        }
    }

    fn count(&self, stmt: &Stmt, accepted: &[usize]) -> Res<()> {
        if accepted.contains(&stmt.operands.len()) {
            return Ok(());
        }
        Err(self.miscounted(stmt, &stmt.operands, accepted))
    }

    fn miscounted(&self, stmt: &Stmt, given: &[Operand], accepted: &[usize]) -> ParseError {
        self.err(stmt, format!("{} operands given, {accepted:?} accepted", given.len()))
    }

    fn vector<'o>(&self, o: &'o Operand) -> &'o [Operand] {
        match o {
            Operand::Vector(v) => v,
            one => std::slice::from_ref(one),
        }
    }

    fn immediate(&self, o: &Operand, stmt: &Stmt) -> Res<u64> {
        match o {
            Operand::Imm(Imm::Int(v)) => Ok(*v),
            _ => Err(self.err(stmt, "an operand that must be an integer immediate")),
        }
    }

    fn slots(&mut self, ctx: &mut Ctx<'a>, o: &Operand, ty: Ty, write: bool, stmt: &Stmt) -> Res<Vec<Slot>> {
        let mut out = Vec::new();
        for e in self.vector(o) {
            out.push(if write { self.dst(ctx, e, ty, stmt)? } else { self.src(ctx, e, ty, stmt)? });
        }
        Ok(out)
    }

    // ---- statements ----

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
        self.reads.clear();
        self.writes.clear();
        let mut m = Parts::new(stmt);
        match m.name() {
            "bra" => {
                m.take("uni");
                m.done()?;
                self.count(stmt, &[1])?;
                let Operand::Name { name, scope } = &stmt.operands[0] else {
                    return Err(self.err(stmt, "a target that is not a label"));
                };
                let target = self.label(ctx, name, *scope).ok_or_else(|| self.undeclared(stmt, name))?;
                let at =
                    self.emit_raw(Op::Bra { target: 0, reconverge: NO_PC }, guard, Class::Control, stmt.line, stmt.loc);
                ctx.fixups.push((at, target));
                return Ok(());
            }
            "ret" | "exit" => {
                m.take("uni");
                m.done()?;
                if m.name() == "ret" && self.call_stack.len() > 1 {
                    let op = Op::Bra { target: 0, reconverge: NO_PC };
                    let at = self.emit_raw(op, guard, Class::Control, stmt.line, stmt.loc);
                    ctx.returns.push(at);
                } else {
                    self.emit_raw(Op::Exit, guard, Class::Control, stmt.line, stmt.loc);
                }
                return Ok(());
            }
            "call" => {
                m.take("uni");
                m.done()?;
                return self.call(ctx, stmt, guard);
            }
            _ => {}
        }
        let (op, class) = self.operation(ctx, stmt, &mut m)?;
        m.done()?;
        let flops = flops(&op);
        let at = self.emit_raw(op, guard, class, stmt.line, stmt.loc);
        self.code[at].flops = flops;
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

    fn call(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, guard: Pred) -> Res<()> {
        let (rets, rest): (&[Operand], &[Operand]) = match &stmt.operands[..] {
            [Operand::List(r), rest @ ..] => (r, rest),
            rest => (&[], rest),
        };
        let Some(target) = rest.first() else { return Err(self.err(stmt, "a call without a function")) };
        let args: &[Operand] = match rest.get(1) {
            Some(Operand::List(a)) => a,
            _ => &[],
        };
        let name = match target {
            Operand::Name { name, .. } => name,
            _ => {
                let op = Op::Unsupported("indirect call".to_owned());
                self.emit_raw(op, guard, Class::Control, stmt.line, stmt.loc);
                return Ok(());
            }
        };
        let Some(&index) = self.ast.function_names.get(name) else { return Err(self.undeclared(stmt, name)) };
        let callee = &self.ast.functions[index as usize];
        if !callee.has_body {
            let op = Op::Unsupported(format!("call of the external function `{name}`"));
            self.emit_raw(op, guard, Class::Control, stmt.line, stmt.loc);
            return Ok(());
        }
        if self.call_stack.contains(&index) || self.call_stack.len() > MAX_CALL_DEPTH {
            let op = Op::Unsupported(format!("recursive call of `{name}`"));
            self.emit_raw(op, guard, Class::Control, stmt.line, stmt.loc);
            return Ok(());
        }
        if rets.len() != callee.returns.len() || args.len() != callee.params.len() {
            return Err(self.err(
                stmt,
                format!(
                    "`{name}` takes {} and returns {} values, {} and {} given",
                    callee.params.len(),
                    callee.returns.len(),
                    args.len(),
                    rets.len()
                ),
            ));
        }
        // The call itself, skipped where its guard is false.
        let skip = if guard != TRUE {
            let not = Pred { negated: !guard.negated, ..guard };
            let op = Op::Bra { target: 0, reconverge: NO_PC };
            Some(self.emit_raw(op, not, Class::Control, stmt.line, stmt.loc))
        } else {
            None
        };
        self.inlined += 1;
        if self.inlined > MAX_INLINED_CALLS {
            return Err(self.err(stmt, format!("more than {MAX_INLINED_CALLS} calls to inline")));
        }
        let mut inner = self.context(callee)?;
        for &v in callee.params.iter().chain(&callee.returns) {
            let o = self.local_alloc(&callee.vars[v as usize], stmt)?;
            inner.places[v as usize] = Some(Place::Local(o));
        }
        for (arg, &param) in args.iter().zip(&callee.params) {
            let (src, src_bytes) = self.call_place(ctx, arg, stmt)?;
            self.local_copy(&inner, param, src, src_bytes, true, stmt)?;
        }
        self.call_stack.push(index);
        self.function(&mut inner)?;
        self.call_stack.pop();
        for (ret, &slot) in rets.iter().zip(&callee.returns) {
            let (dst, dst_bytes) = self.call_place(ctx, ret, stmt)?;
            self.local_copy(&inner, slot, dst, dst_bytes, false, stmt)?;
        }
        if let Some(at) = skip {
            let end = self.code.len() as u32;
            if let Op::Bra { target, .. } = &mut self.code[at].op {
                *target = end;
            }
        }
        Ok(())
    }

    fn call_place(&mut self, ctx: &mut Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<(u32, u64)> {
        if let Operand::Local(v, 0) = o
            && let Place::Local(p) = self.local_place(ctx, *v, stmt)?
        {
            return Ok((p, ctx.fun.vars[*v as usize].size));
        }
        Err(self.err(stmt, "a call argument that is not a .param variable"))
    }

    fn local_copy(
        &mut self,
        inner: &Ctx<'a>,
        formal: u32,
        actual: u32,
        bytes: u64,
        inward: bool,
        stmt: &Stmt,
    ) -> Res<()> {
        let Some(Place::Local(p)) = inner.places[formal as usize] else { return Ok(()) };
        let size = inner.fun.vars[formal as usize].size;
        if size != bytes {
            return Err(self.err(stmt, format!("an argument of {bytes} bytes where {size} are declared")));
        }
        let (dst, src) = if inward { (p, actual) } else { (actual, p) };
        let op = Op::LocalCopy { dst, src, bytes: size as u32 };
        self.emit_raw(op, TRUE, Class::LocalMemory, stmt.line, stmt.loc);
        Ok(())
    }

    fn alu(&mut self, ctx: &mut Ctx<'a>, stmt: &Stmt, f: Alu, ty: Ty, m: Mods, dty: Ty, tys: &[Ty]) -> Res<Op> {
        self.count(stmt, &[tys.len() + 1])?;
        let d = self.dst(ctx, &stmt.operands[0], dty, stmt)?;
        let mut s = [ZERO; 4];
        for (i, t) in tys.iter().enumerate() {
            s[i] = self.src(ctx, &stmt.operands[i + 1], *t, stmt)?;
        }
        Ok(Op::Alu { f, ty, m, d, s })
    }

    fn operation(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        let name = m.name();
        Ok(match name {
            "mov" => self.mov(ctx, stmt, m)?,
            "cvta" => {
                self.count(stmt, &[2])?;
                let to = m.take("to");
                let space = m.space();
                let ty = m.ty()?;
                if !matches!(ty, Ty::U64 | Ty::U32 | Ty::B64) {
                    return Err(m.bad("a type other than u64"));
                }
                let d = self.dst(ctx, &ops[0], ty, stmt)?;
                let a = self.src(ctx, &ops[1], ty, stmt)?;
                let window = match space {
                    MemSpace::Global => 0,
                    MemSpace::Shared | MemSpace::SharedCluster => SHARED_WINDOW,
                    MemSpace::Local => LOCAL_WINDOW,
                    MemSpace::Param => PARAM_WINDOW,
                    MemSpace::Generic => return Err(m.bad("a state space is missing")),
                };
                let (f, b) = if window == 0 || !ty.wide() {
                    (Alu::Mov, ZERO)
                } else {
                    (if to { Alu::Sub } else { Alu::Add }, self.constant(Const::Bits(window), true))
                };
                let ty = if ty.wide() { Ty::U64 } else { Ty::U32 };
                (Op::Alu { f, ty, m: Mods::default(), d, s: [a, b, ZERO, ZERO] }, Class::Integer)
            }
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "neg" | "abs" | "addc" | "subc"
            | "madc" => self.arithmetic(ctx, stmt, m)?,
            "mul24" | "mad24" => {
                m.take("lo");
                let ty = m.ty()?;
                if !matches!(ty, Ty::U32 | Ty::S32) {
                    return Err(m.bad("a type other than u32 and s32"));
                }
                let mul = name == "mul24";
                let f = if mul { Alu::Mul24 } else { Alu::Mad24 };
                let tys: &[Ty] = if mul { &[ty, ty] } else { &[ty, ty, ty] };
                (self.alu(ctx, stmt, f, ty, Mods::default(), ty, tys)?, Class::Integer)
            }
            "sad" => {
                let ty = m.ty()?;
                if ty.is_float() || ty.bits() == 8 {
                    return Err(m.bad("a type that is not an integer of 16 to 64 bits"));
                }
                (self.alu(ctx, stmt, Alu::Sad, ty, Mods::default(), ty, &[ty, ty, ty])?, Class::Integer)
            }
            "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" => {
                let ty = m.ty()?;
                if ty == Ty::Pred {
                    let f = match name {
                        "and" => BoolOp::And,
                        "or" => BoolOp::Or,
                        "xor" | "not" => BoolOp::Xor,
                        _ => return Err(m.bad("a shift of predicates")),
                    };
                    self.count(stmt, &[if name == "not" { 2 } else { 3 }])?;
                    let p = self.pred_dst(ctx, &ops[0], stmt)?;
                    let a = self.pred_src(ctx, &ops[1], stmt)?;
                    let b = if name == "not" { TRUE } else { self.pred_src(ctx, &ops[2], stmt)? };
                    return Ok((Op::PredLogic { f, p, a, b }, Class::Predicate));
                }
                if ty.is_float() || ty.bits() < 16 {
                    return Err(m.bad("a type that is not an integer of 16 to 64 bits"));
                }
                let f = match name {
                    "and" => Alu::And,
                    "or" => Alu::Or,
                    "xor" => Alu::Xor,
                    "not" => Alu::Not,
                    "cnot" => Alu::Cnot,
                    "shl" => Alu::Shl,
                    _ => Alu::Shr,
                };
                let tys: &[Ty] = match name {
                    "not" | "cnot" => &[ty],
                    "shl" | "shr" => &[ty, Ty::U32],
                    _ => &[ty, ty],
                };
                (self.alu(ctx, stmt, f, ty, Mods::default(), ty, tys)?, Class::Integer)
            }
            "popc" | "clz" | "brev" | "bfind" => {
                let shift = name == "bfind" && m.take("shiftamt");
                let ty = m.ty()?;
                if ty.is_float() || ty.bits() < 32 {
                    return Err(m.bad("a type that is not an integer of 32 or 64 bits"));
                }
                let f = match name {
                    "popc" => Alu::Popc,
                    "clz" => Alu::Clz,
                    "brev" => Alu::Brev,
                    _ if shift => Alu::BfindShift,
                    _ => Alu::Bfind,
                };
                let dty = if name == "brev" { ty } else { Ty::U32 };
                (self.alu(ctx, stmt, f, ty, Mods::default(), dty, &[ty])?, Class::Integer)
            }
            "bfe" | "bfi" => {
                let ty = m.ty()?;
                if ty.is_float() || ty.bits() < 32 {
                    return Err(m.bad("a type that is not an integer of 32 or 64 bits"));
                }
                let op = if name == "bfe" {
                    self.alu(ctx, stmt, Alu::Bfe, ty, Mods::default(), ty, &[ty, Ty::U32, Ty::U32])?
                } else {
                    self.alu(ctx, stmt, Alu::Bfi, ty, Mods::default(), ty, &[ty, ty, Ty::U32, Ty::U32])?
                };
                (op, Class::Integer)
            }
            "bmsk" => {
                let wrap = m.take("wrap");
                if !wrap && !m.take("clamp") {
                    return Err(m.bad(".clamp or .wrap is missing"));
                }
                let ty = m.ty()?;
                let mods = Mods { flag: wrap, ..Mods::default() };
                (self.alu(ctx, stmt, Alu::Bmsk, ty, mods, Ty::U32, &[Ty::U32, Ty::U32])?, Class::Integer)
            }
            "prmt" => {
                let mode = m
                    .take_map(&[("f4e", 1u8), ("b4e", 2), ("rc8", 3), ("ecl", 4), ("ecr", 5), ("rc16", 6)])
                    .unwrap_or(0);
                let ty = m.ty()?;
                if ty != Ty::B32 {
                    return Err(m.bad("a type other than b32"));
                }
                let mods = Mods { imm: mode, ..Mods::default() };
                (self.alu(ctx, stmt, Alu::Prmt, ty, mods, ty, &[ty, ty, Ty::U32])?, Class::Integer)
            }
            "shf" => {
                let left = m.take("l");
                if !left && !m.take("r") {
                    return Err(m.bad(".l or .r is missing"));
                }
                let wrap = m.take("wrap");
                if !wrap && !m.take("clamp") {
                    return Err(m.bad(".clamp or .wrap is missing"));
                }
                let ty = m.ty()?;
                let f = if left { Alu::ShfL } else { Alu::ShfR };
                let mods = Mods { flag: wrap, ..Mods::default() };
                (self.alu(ctx, stmt, f, ty, mods, Ty::B32, &[Ty::B32, Ty::B32, Ty::U32])?, Class::Integer)
            }
            "lop3" => {
                let ty = m.ty()?;
                if ty != Ty::B32 {
                    return Err(m.bad("a type other than b32, or a .BoolOp form"));
                }
                self.count(stmt, &[5])?;
                let lut = self.immediate(&ops[4], stmt)?;
                if lut > 255 {
                    return Err(self.err(stmt, "a table above 0xff"));
                }
                let d = self.dst(ctx, &ops[0], ty, stmt)?;
                let mut s = [ZERO; 4];
                for i in 0..3 {
                    s[i] = self.src(ctx, &ops[i + 1], ty, stmt)?;
                }
                (Op::Alu { f: Alu::Lop3, ty, m: Mods { imm: lut as u8, ..Mods::default() }, d, s }, Class::Integer)
            }
            "dp4a" | "dp2a" => {
                let hi = name == "dp2a" && m.take("hi");
                if name == "dp2a" && !hi && !m.take("lo") {
                    return Err(m.bad(".lo or .hi is missing"));
                }
                let a = m.ty()?;
                let b = m.ty()?;
                if !matches!((a, b), (Ty::U32 | Ty::S32, Ty::U32 | Ty::S32)) {
                    return Err(m.bad("types other than u32 and s32"));
                }
                let f = if name == "dp4a" { Alu::Dp4a } else { Alu::Dp2a };
                let mods = Mods { flag: b == Ty::S32, imm: hi as u8, ..Mods::default() };
                (self.alu(ctx, stmt, f, a, mods, Ty::B32, &[Ty::B32, Ty::B32, Ty::B32])?, Class::Integer)
            }
            "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "sin" | "cos" | "tanh" => {
                let mut mods = Mods { approx: m.take("approx"), ..Mods::default() };
                let rounded = matches!(name, "rcp" | "sqrt")
                    && m.take_map(&[("rn", ()), ("rz", ()), ("rm", ()), ("rp", ())]).is_some();
                if rounded && !m.op.contains(".rn") {
                    return Err(m.bad("a rounding other than .rn"));
                }
                if rounded == mods.approx {
                    return Err(m.bad(".approx or a rounding is needed"));
                }
                mods.ftz = m.take("ftz");
                let ty = m.ty()?;
                let f = match name {
                    "ex2" => Alu::Ex2,
                    "lg2" => Alu::Lg2,
                    "rcp" => Alu::Rcp,
                    "rsqrt" => Alu::Rsqrt,
                    "sqrt" => Alu::Sqrt,
                    "sin" => Alu::Sin,
                    "cos" => Alu::Cos,
                    _ => Alu::Tanh,
                };
                let ok = match ty {
                    Ty::F32 => true,
                    Ty::F64 => matches!(f, Alu::Rcp | Alu::Rsqrt | Alu::Sqrt),
                    Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2 => matches!(f, Alu::Ex2 | Alu::Tanh),
                    _ => false,
                };
                if !ok {
                    return Err(m.bad("a type that this function has not"));
                }
                (self.alu(ctx, stmt, f, ty, mods, ty, &[ty])?, Class::Special)
            }
            "copysign" => {
                let ty = m.ty()?;
                if !matches!(ty, Ty::F32 | Ty::F64) {
                    return Err(m.bad("a type other than f32 and f64"));
                }
                (self.alu(ctx, stmt, Alu::Copysign, ty, Mods::default(), ty, &[ty, ty])?, Class::Float)
            }
            "setp" | "set" => self.compare(ctx, stmt, m)?,
            "testp" => {
                self.count(stmt, &[2])?;
                let kind = m
                    .take_map(&[
                        ("finite", 0u8),
                        ("infinite", 1),
                        ("number", 2),
                        ("notanumber", 3),
                        ("normal", 4),
                        ("subnormal", 5),
                    ])
                    .ok_or_else(|| m.bad("a test that is not known"))?;
                let ty = m.ty()?;
                if !matches!(ty, Ty::F32 | Ty::F64) {
                    return Err(m.bad("a type other than f32 and f64"));
                }
                let p = self.pred_dst(ctx, &ops[0], stmt)?;
                let a = self.src(ctx, &ops[1], ty, stmt)?;
                (Op::Testp { kind, ty, p, a }, Class::Predicate)
            }
            "selp" => {
                self.count(stmt, &[4])?;
                let ty = m.ty()?;
                if ty == Ty::Pred || ty.bits() == 8 {
                    return Err(m.bad("a type of less than 16 bits"));
                }
                let d = self.dst(ctx, &ops[0], ty, stmt)?;
                let a = self.src(ctx, &ops[1], ty, stmt)?;
                let b = self.src(ctx, &ops[2], ty, stmt)?;
                let p = self.pred_src(ctx, &ops[3], stmt)?;
                (Op::Selp { wide: ty.wide(), d, a, b, p }, Class::Move)
            }
            "slct" => {
                self.count(stmt, &[4])?;
                let ftz = m.take("ftz");
                let ty = m.ty()?;
                let cty = m.ty()?;
                if !matches!(cty, Ty::S32 | Ty::F32) {
                    return Err(m.bad("a selector other than s32 and f32"));
                }
                let d = self.dst(ctx, &ops[0], ty, stmt)?;
                let a = self.src(ctx, &ops[1], ty, stmt)?;
                let b = self.src(ctx, &ops[2], ty, stmt)?;
                let c = self.src(ctx, &ops[3], cty, stmt)?;
                (Op::Slct { wide: ty.wide(), float: cty == Ty::F32, ftz, d, a, b, c }, Class::Move)
            }
            "isspacep" => {
                self.count(stmt, &[2])?;
                let space = m.space();
                if space == MemSpace::Generic {
                    return Err(m.bad("a state space is missing"));
                }
                let p = self.pred_dst(ctx, &ops[0], stmt)?;
                let a = self.src(ctx, &ops[1], Ty::U64, stmt)?;
                (Op::Isspacep { space, p, a }, Class::Predicate)
            }
            "cvt" => (self.cvt(ctx, stmt, m)?, Class::Convert),
            "st" | "red" if m.take("async") => (self.async_store(ctx, stmt, m)?, Class::Async),
            "ld" | "ldu" | "st" => self.load_store(ctx, stmt, m)?,
            "prefetch" | "prefetchu" => {
                m.space();
                m.take_map(&[
                    ("L1", ()),
                    ("L2", ()),
                    ("L2::evict_last", ()),
                    ("L2::evict_normal", ()),
                    ("tensormap", ()),
                ]);
                self.mem(ctx, ops.first().ok_or_else(|| m.bad("an address is missing"))?, stmt)?;
                (Op::Prefetch, Class::GlobalMemory)
            }
            "atom" | "red" => (self.atom(ctx, stmt, m)?, Class::Atomic),
            "shfl" => {
                m.take("sync").then_some(()).ok_or_else(|| m.bad("only the .sync form is accepted"))?;
                let mode = m
                    .take_map(&[
                        ("idx", ShflMode::Idx),
                        ("up", ShflMode::Up),
                        ("down", ShflMode::Down),
                        ("bfly", ShflMode::Bfly),
                    ])
                    .ok_or_else(|| m.bad("a mode is missing"))?;
                let ty = m.ty()?;
                if ty.bits() != 32 {
                    return Err(m.bad("a type other than b32"));
                }
                self.count(stmt, &[5])?;
                let (d, p) = match &ops[0] {
                    Operand::Pair(d, p) => (self.dst(ctx, d, ty, stmt)?, self.pred_dst(ctx, p, stmt)?),
                    d => (self.dst(ctx, d, ty, stmt)?, SINK),
                };
                let a = self.src(ctx, &ops[1], ty, stmt)?;
                let b = self.src(ctx, &ops[2], Ty::U32, stmt)?;
                let c = self.src(ctx, &ops[3], Ty::U32, stmt)?;
                let mask = self.src(ctx, &ops[4], Ty::U32, stmt)?;
                (Op::Shfl { mode, d, p, a, b, c, mask }, Class::Warp)
            }
            "vote" => {
                m.take("sync").then_some(()).ok_or_else(|| m.bad("only the .sync form is accepted"))?;
                let mode = m
                    .take_map(&[
                        ("all", VoteMode::All),
                        ("any", VoteMode::Any),
                        ("uni", VoteMode::Uni),
                        ("ballot", VoteMode::Ballot),
                    ])
                    .ok_or_else(|| m.bad("a mode is missing"))?;
                let ty = m.ty()?;
                self.count(stmt, &[3])?;
                let (d, p) = if mode == VoteMode::Ballot {
                    (self.dst(ctx, &ops[0], ty, stmt)?, SINK)
                } else {
                    (SINK, self.pred_dst(ctx, &ops[0], stmt)?)
                };
                let a = self.pred_src(ctx, &ops[1], stmt)?;
                let mask = self.src(ctx, &ops[2], Ty::U32, stmt)?;
                (Op::Vote { mode, d, p, a, mask }, Class::Warp)
            }
            "match" => {
                let all = m.take("all");
                if !all && !m.take("any") {
                    return Err(m.bad(".any or .all is missing"));
                }
                m.take("sync").then_some(()).ok_or_else(|| m.bad("only the .sync form is accepted"))?;
                let ty = m.ty()?;
                self.count(stmt, &[3])?;
                let (d, p) = match &ops[0] {
                    Operand::Pair(d, p) if all => (self.dst(ctx, d, Ty::B32, stmt)?, self.pred_dst(ctx, p, stmt)?),
                    d => (self.dst(ctx, d, Ty::B32, stmt)?, SINK),
                };
                let a = self.src(ctx, &ops[1], ty, stmt)?;
                let mask = self.src(ctx, &ops[2], Ty::U32, stmt)?;
                (Op::Match { all, wide: ty.wide(), d, p, a, mask }, Class::Warp)
            }
            "redux" => {
                m.take("sync").then_some(()).ok_or_else(|| m.bad("only the .sync form is accepted"))?;
                let op = m.take_map(ATOM_OPS).ok_or_else(|| m.bad("an operation is missing"))?;
                let ty = m.ty()?;
                if !matches!(ty, Ty::U32 | Ty::S32 | Ty::B32)
                    || matches!(op, AtomOp::Inc | AtomOp::Dec | AtomOp::Exch | AtomOp::Cas)
                {
                    return Err(m.bad("an operation or type that redux has not"));
                }
                self.count(stmt, &[3])?;
                let d = self.dst(ctx, &ops[0], ty, stmt)?;
                let a = self.src(ctx, &ops[1], ty, stmt)?;
                let mask = self.src(ctx, &ops[2], Ty::U32, stmt)?;
                (Op::Redux { op, ty, d, a, mask }, Class::Warp)
            }
            "elect" => {
                m.take("sync").then_some(()).ok_or_else(|| m.bad("only the .sync form is accepted"))?;
                self.count(stmt, &[2])?;
                let Operand::Pair(d, p) = &ops[0] else { return Err(self.err(stmt, "the destination must be d|p")) };
                let d = self.dst(ctx, d, Ty::B32, stmt)?;
                let p = self.pred_dst(ctx, p, stmt)?;
                let mask = self.src(ctx, &ops[1], Ty::U32, stmt)?;
                (Op::Elect { d, p, mask }, Class::Warp)
            }
            "activemask" => {
                m.ty()?;
                self.count(stmt, &[1])?;
                (Op::Activemask { d: self.dst(ctx, &ops[0], Ty::B32, stmt)? }, Class::Warp)
            }
            "bar" | "barrier" => (self.barrier(ctx, stmt, m)?, Class::Barrier),
            "membar" => {
                let scope = m.take_scope().ok_or_else(|| m.bad("a scope is missing"))?;
                (Op::Fence(FenceKind::Memory(scope)), Class::Barrier)
            }
            "fence" => (Op::Fence(self.fence(m)?), Class::Barrier),
            "cp" => (self.copy_async(ctx, stmt, m)?, Class::Async),
            "mbarrier" => (self.mbarrier(ctx, stmt, m)?, Class::Barrier),
            "mma" => (self.mma(ctx, stmt, m)?, Class::Tensor),
            "ldmatrix" | "stmatrix" => {
                let load = name == "ldmatrix";
                m.take("sync");
                m.take("aligned").then_some(()).ok_or_else(|| m.bad("only the .sync.aligned form is accepted"))?;
                m.take("m8n8").then_some(()).ok_or_else(|| m.bad("a shape other than m8n8"))?;
                let n = m.take_map(&[("x1", 1u8), ("x2", 2), ("x4", 4)]).ok_or_else(|| m.bad("a count is missing"))?;
                let trans = m.take("trans");
                let space = m.space();
                if !matches!(space, MemSpace::Shared | MemSpace::Generic) {
                    return Err(m.bad("a state space other than shared"));
                }
                if m.ty()?.bits() != 16 {
                    return Err(m.bad("a type other than b16"));
                }
                self.count(stmt, &[2])?;
                let (regs, mem) = if load { (&ops[0], &ops[1]) } else { (&ops[1], &ops[0]) };
                let v = self.slots(ctx, regs, Ty::B32, load, stmt)?;
                if v.len() != n as usize {
                    return Err(self.err(stmt, format!("{} registers given, {n} accepted", v.len())));
                }
                let mut s = [ZERO; 4];
                s[..v.len()].copy_from_slice(&v);
                let addr = self.mem(ctx, mem, stmt)?;
                let op = if load {
                    Op::LdMatrix { d: s, n, trans, space, addr }
                } else {
                    Op::StMatrix { s, n, trans, space, addr }
                };
                (op, Class::SharedMemory)
            }
            "movmatrix" => {
                for p in ["sync", "aligned", "m8n8", "trans"] {
                    m.take(p).then_some(()).ok_or_else(|| m.bad(format!(".{p} is missing")))?;
                }
                m.ty()?;
                self.count(stmt, &[2])?;
                let d = self.dst(ctx, &ops[0], Ty::B32, stmt)?;
                let a = self.src(ctx, &ops[1], Ty::B32, stmt)?;
                (Op::MoveMatrix { d, a }, Class::Warp)
            }
            "wgmma" => self.wgmma(ctx, stmt, m)?,
            "setmaxnreg" => {
                let inc = m.take("inc");
                if !inc && !m.take("dec") {
                    return Err(m.bad(".inc or .dec is missing"));
                }
                m.take("sync");
                m.take("aligned").then_some(()).ok_or_else(|| m.bad("only the .sync.aligned form is accepted"))?;
                m.ty()?;
                self.count(stmt, &[1])?;
                let count = self.immediate(&ops[0], stmt)? as u32;
                if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
                    return Err(self.err(stmt, "a count that is not a multiple of 8 from 24 to 256"));
                }
                (Op::SetMaxNReg { count, inc }, Class::Control)
            }
            "griddepcontrol" => {
                self.count(stmt, &[0])?;
                let wait = m
                    .take_map(&[("wait", true), ("launch_dependents", false)])
                    .ok_or_else(|| m.bad(".wait or .launch_dependents is missing"))?;
                (Op::GridDep { wait }, Class::Control)
            }
            "nanosleep" => {
                m.ty()?;
                self.count(stmt, &[1])?;
                self.src(ctx, &ops[0], Ty::U32, stmt)?;
                (Op::Nanosleep, Class::Control)
            }
            "trap" | "brkpt" => (Op::Trap, Class::Control),
            "mapa" | "getctarank" => (self.cluster_address(ctx, stmt, m)?, Class::Integer),
            "createpolicy" => (self.create_policy(ctx, stmt, m)?, Class::Move),
            other => {
                return Err(ParseError {
                    line: stmt.line,
                    column: stmt.column,
                    kind: ParseErrorKind::UnknownOpcode(other.to_owned()),
                });
            }
        })
    }

    fn mov(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        self.count(stmt, &[2])?;
        let ops = &stmt.operands;
        let ty = m.ty()?;
        if ty == Ty::Pred {
            let p = self.pred_dst(ctx, &ops[0], stmt)?;
            if matches!(&ops[1], Operand::Special(name) if special(name) == Some(Special::IsExplicitCluster)) {
                let a = self.constant(Const::Special(Special::IsExplicitCluster), false);
                let op = Op::Setp { cmp: Cmp::Ne, ty: Ty::U32, ftz: false, combine: None, p, q: SINK, a, b: ZERO };
                return Ok((op, Class::Predicate));
            }
            let a = self.pred_src(ctx, &ops[1], stmt)?;
            return Ok((Op::PredLogic { f: BoolOp::And, p, a, b: TRUE }, Class::Predicate));
        }
        let part = |n: usize| match (ty.bits(), n) {
            (32, 2) | (64, 4) => Some((16u32, Ty::B16)),
            (64, 2) => Some((32, Ty::B32)),
            (32, 4) => Some((8, Ty::B8)),
            (16, 2) => Some((8, Ty::B8)),
            _ => None,
        };
        match (&ops[0], &ops[1]) {
            (d, Operand::Vector(v)) => {
                let (bits, pty) = part(v.len()).ok_or_else(|| m.bad("a vector that does not fill the type"))?;
                let d = self.dst(ctx, d, ty, stmt)?;
                let mut s = [ZERO; 4];
                for (i, e) in v.iter().enumerate() {
                    s[i] = self.src(ctx, e, pty, stmt)?;
                }
                Ok((Op::Pack { d, wide: ty.wide(), bits, s, n: v.len() as u8 }, Class::Move))
            }
            (Operand::Vector(v), a) => {
                let (bits, pty) = part(v.len()).ok_or_else(|| m.bad("a vector that does not fill the type"))?;
                let a = self.src(ctx, a, ty, stmt)?;
                let mut d = [SINK; 4];
                for (i, e) in v.iter().enumerate() {
                    d[i] = self.dst(ctx, e, pty, stmt)?;
                }
                Ok((Op::Unpack { a, wide: ty.wide(), bits, d, n: v.len() as u8 }, Class::Move))
            }
            (d, Operand::Special(n)) if special(n).is_none() => {
                let d = self.dst(ctx, d, ty, stmt)?;
                let global = n.starts_with("globaltimer");
                if n.ends_with("_hi") {
                    // The high words stay zero: a launch is shorter than 2^32 ticks of either clock.
                    return Ok((Op::Alu { f: Alu::Mov, ty, m: Mods::default(), d, s: [ZERO; 4] }, Class::Move));
                }
                Ok((Op::Clock { d, wide: ty.wide(), global }, Class::Move))
            }
            (d, Operand::Name { name, .. }) if self.ast.function_names.contains_key(name) => {
                // The address of a function: only an indirect call could use it, and that is refused when it runs.
                let index = self.ast.function_names[name];
                let d = self.dst(ctx, d, ty, stmt)?;
                let s = self.constant(Const::Bits(16 * (index as u64 + 1)), ty.wide());
                Ok((Op::Alu { f: Alu::Mov, ty, m: Mods::default(), d, s: [s, ZERO, ZERO, ZERO] }, Class::Move))
            }
            _ => Ok((self.alu(ctx, stmt, Alu::Mov, ty, Mods::default(), ty, &[ty])?, Class::Move)),
        }
    }

    fn arithmetic(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let name = m.name();
        let carry_out = m.take("cc");
        let carry_in = matches!(name, "addc" | "subc" | "madc");
        let part = m.take_map(&[("lo", 0u8), ("hi", 1), ("wide", 2)]);
        let full = m.take("full");
        let approx = m.take("approx");
        let has_round = ["rn", "rz", "rm", "rp"].iter().any(|r| m.parts.contains(r));
        let mut mods = Mods { round: m.round(), ftz: m.take("ftz"), ..Mods::default() };
        let sat = m.take("sat");
        mods.sat = sat;
        mods.relu = m.take("relu");
        mods.flag = m.take("NaN");
        mods.approx = approx || full;
        if m.take("xorsign") {
            return Err(m.bad("modifier `.xorsign` is not accepted"));
        }
        let ty = m.ty()?;
        let float = ty.is_float();
        if matches!(ty, Ty::Pred | Ty::B8 | Ty::U8 | Ty::S8 | Ty::TF32 | Ty::E4M3 | Ty::E5M2 | Ty::E4M3x2 | Ty::E5M2x2)
        {
            return Err(m.bad("a type that arithmetic has not"));
        }
        if carry_in || carry_out {
            if !matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64 | Ty::B32 | Ty::B64) {
                return Err(m.bad("carry arithmetic of this type"));
            }
            let f = match (name, part) {
                ("add" | "addc", None) => Alu::Add,
                ("sub" | "subc", None) => Alu::Sub,
                ("mad" | "madc", Some(0)) => Alu::MadLo,
                ("mad" | "madc", Some(1)) => Alu::MadHi,
                _ => return Err(m.bad("a carry form that is not known")),
            };
            let n = if matches!(f, Alu::Add | Alu::Sub) { 2 } else { 3 };
            self.count(stmt, &[n + 1])?;
            let d = self.dst(ctx, &stmt.operands[0], ty, stmt)?;
            let mut s = [ZERO; 3];
            for (s, o) in s.iter_mut().zip(&stmt.operands[1..]) {
                *s = self.src(ctx, o, ty, stmt)?;
            }
            return Ok((Op::Carry { f, ty, carry_in, carry_out, d, s }, Class::Integer));
        }
        if float {
            let f = match name {
                "add" => Alu::Add,
                "sub" => Alu::Sub,
                "mul" => Alu::FMul,
                // `mad.f32` is fma on every target that the emulator runs.
                "mad" | "fma" => Alu::Fma,
                "div" => Alu::Div,
                "min" => Alu::Min,
                "max" => Alu::Max,
                "neg" => Alu::Neg,
                "abs" => Alu::Abs,
                _ => return Err(m.bad("a floating-point type")),
            };
            if part.is_some() {
                return Err(m.bad(".lo, .hi and .wide are for integers"));
            }
            if f == Alu::Fma && !has_round {
                return Err(m.bad("a rounding is needed"));
            }
            let directed = mods.round != Round::NearestEven;
            if directed && !(ty == Ty::F32 && matches!(f, Alu::Add | Alu::Sub | Alu::FMul | Alu::Fma)) {
                return Err(m.bad("a rounding other than .rn for this operation and type"));
            }
            if f == Alu::Div && !matches!(ty, Ty::F32 | Ty::F64) {
                return Err(m.bad("division of this type"));
            }
            if mods.relu && !(f == Alu::Fma && ty.bits() <= 32 && ty != Ty::F32) {
                return Err(m.bad(".relu is for fma of f16 and bf16"));
            }
            if mods.flag && !matches!(f, Alu::Min | Alu::Max) {
                return Err(m.bad(".NaN is for min and max"));
            }
            if mods.sat && (ty == Ty::F64 || matches!(f, Alu::Min | Alu::Max | Alu::Neg | Alu::Abs | Alu::Div)) {
                return Err(m.bad(".sat with this operation or type"));
            }
            let n = match f {
                Alu::Neg | Alu::Abs => 1,
                Alu::Fma => 3,
                _ => 2,
            };
            let class = match ty {
                Ty::F64 => Class::Double,
                Ty::F32 | Ty::F32x2 => Class::Float,
                _ => Class::Half,
            };
            let class = if f == Alu::Div { Class::Special } else { class };
            return Ok((self.alu(ctx, stmt, f, ty, mods, ty, &[ty; 3][..n])?, class));
        }
        if mods.relu && !(matches!(name, "min" | "max") && ty == Ty::S32) {
            return Err(m.bad(".relu of integers is for min and max of s32"));
        }
        if has_round || mods != (Mods { sat, relu: mods.relu, ..Mods::default() }) {
            return Err(m.bad("a floating-point modifier is not accepted for an integer operation"));
        }
        if sat && !(matches!(name, "add" | "sub") && ty == Ty::S32) {
            return Err(m.bad(".sat is for add and sub of s32"));
        }
        let wide_ty = match ty {
            Ty::U16 => Ty::U32,
            Ty::S16 => Ty::S32,
            Ty::U32 => Ty::U64,
            Ty::S32 => Ty::S64,
            _ => ty,
        };
        let op = match (name, part) {
            ("add", None) => self.alu(ctx, stmt, Alu::Add, ty, mods, ty, &[ty, ty])?,
            ("sub", None) => self.alu(ctx, stmt, Alu::Sub, ty, mods, ty, &[ty, ty])?,
            ("mul", Some(0)) => self.alu(ctx, stmt, Alu::MulLo, ty, mods, ty, &[ty, ty])?,
            ("mul", Some(1)) => self.alu(ctx, stmt, Alu::MulHi, ty, mods, ty, &[ty, ty])?,
            ("mul", Some(2)) if wide_ty != ty => self.alu(ctx, stmt, Alu::MulWide, ty, mods, wide_ty, &[ty, ty])?,
            ("mad", Some(0)) => self.alu(ctx, stmt, Alu::MadLo, ty, mods, ty, &[ty, ty, ty])?,
            ("mad", Some(1)) => self.alu(ctx, stmt, Alu::MadHi, ty, mods, ty, &[ty, ty, ty])?,
            ("mad", Some(2)) if wide_ty != ty => {
                self.alu(ctx, stmt, Alu::MadWide, ty, mods, wide_ty, &[ty, ty, wide_ty])?
            }
            ("div", None) => self.alu(ctx, stmt, Alu::Div, ty, mods, ty, &[ty, ty])?,
            ("rem", None) => self.alu(ctx, stmt, Alu::Rem, ty, mods, ty, &[ty, ty])?,
            ("min", None) => self.alu(ctx, stmt, Alu::Min, ty, mods, ty, &[ty, ty])?,
            ("max", None) => self.alu(ctx, stmt, Alu::Max, ty, mods, ty, &[ty, ty])?,
            ("neg", None) => self.alu(ctx, stmt, Alu::Neg, ty, mods, ty, &[ty])?,
            ("abs", None) => self.alu(ctx, stmt, Alu::Abs, ty, mods, ty, &[ty])?,
            _ => return Err(m.bad("an integer form that is not known")),
        };
        Ok((op, Class::Integer))
    }

    fn compare(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        let cmp = m.take_map(CMPS).ok_or_else(|| m.bad("a comparison is missing"))?;
        let bool_op = m.take_map(BOOLS);
        let ftz = m.take("ftz");
        let set = m.name() == "set";
        let to = if set { m.ty()? } else { Ty::Pred };
        let ty = m.ty()?;
        if ty == Ty::Pred || ty.bits() == 8 || ty == Ty::F32x2 {
            return Err(m.bad("a type that cannot be compared"));
        }
        if matches!(ty, Ty::F16x2 | Ty::BF16x2) && set {
            return Err(m.bad("set of packed types"));
        }
        if set && !matches!(to, Ty::U32 | Ty::S32 | Ty::F32 | Ty::B32) {
            return Err(m.bad("a result type other than u32, s32 and f32"));
        }
        self.count(stmt, &[3 + bool_op.is_some() as usize])?;
        let a = self.src(ctx, &ops[1], ty, stmt)?;
        let b = self.src(ctx, &ops[2], ty, stmt)?;
        let combine = match bool_op {
            Some(f) => Some((f, self.pred_src(ctx, &ops[3], stmt)?)),
            None => None,
        };
        if set {
            let d = self.dst(ctx, &ops[0], to, stmt)?;
            return Ok((Op::Set { cmp, ty, to, ftz, combine, d, a, b }, Class::Predicate));
        }
        let (p, q) = match &ops[0] {
            Operand::Pair(p, q) => (self.pred_dst(ctx, p, stmt)?, self.pred_dst(ctx, q, stmt)?),
            p => (self.pred_dst(ctx, p, stmt)?, SINK),
        };
        Ok((Op::Setp { cmp, ty, ftz, combine, p, q, a, b }, Class::Predicate))
    }

    fn cvt(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let ops = &stmt.operands;
        let int_round = m.take_map(&[
            ("rni", IntRound::NearestEven),
            ("rzi", IntRound::Zero),
            ("rmi", IntRound::Down),
            ("rpi", IntRound::Up),
        ]);
        let has_round = ["rn", "rna", "rz", "rm", "rp"].iter().any(|r| m.parts.contains(r));
        let round = m.round();
        let ftz = m.take("ftz");
        let sat = m.take("sat");
        let satfinite = m.take("satfinite");
        let relu = m.take("relu");
        let to = m.ty()?;
        let from = m.ty()?;
        let packs = matches!(to, Ty::F16x2 | Ty::BF16x2 | Ty::E4M3x2 | Ty::E5M2x2) && from == Ty::F32;
        let fp8 = |t| matches!(t, Ty::E4M3x2 | Ty::E5M2x2);
        let plain =
            |t: Ty| matches!(t, Ty::F16 | Ty::BF16 | Ty::F32 | Ty::F64) || (!t.is_float() && t.bits() >= 8 && !fp8(t));
        let ok = packs
            || (to == Ty::F16x2 && fp8(from))
            || (fp8(to) && from == Ty::F16x2)
            || (to == Ty::TF32 && from == Ty::F32)
            || (plain(to) && plain(from));
        if !ok {
            return Err(m.bad("a conversion that is not known"));
        }
        if fp8(to) && !satfinite {
            return Err(m.bad(".satfinite is needed"));
        }
        if satfinite && !fp8(to) && to != Ty::TF32 && !packs && !matches!(to, Ty::F16 | Ty::BF16) {
            return Err(m.bad(".satfinite with these types"));
        }
        if from.is_float() && !to.is_float() && !fp8(to) && int_round.is_none() && plain(to) {
            return Err(m.bad("an integer rounding is needed"));
        }
        let narrows = to.is_float() && from.is_float() && to.bits() < from.bits();
        if (narrows || (to.is_float() && plain(from) && !from.is_float())) && !has_round {
            return Err(m.bad("a rounding is needed"));
        }
        if relu && !(to.is_float() || fp8(to)) {
            return Err(m.bad(".relu with these types"));
        }
        let fits = to.bits() > from.bits() && (to.signed() || !from.signed())
            || to.bits() == from.bits() && to.signed() == from.signed();
        if sat && !to.is_float() && !from.is_float() && fits {
            return Err(m.bad(".sat where every value fits"));
        }
        self.count(stmt, &[2 + packs as usize])?;
        let (d, wide_d) = self.dst_any(ctx, &ops[0], stmt)?;
        if d != SINK && (wide_d as u32 + 1) * 32 < to.bits() {
            return Err(m.bad("a destination register narrower than the type"));
        }
        let (a, wide_a) = self.src_any(ctx, &ops[1], from, stmt)?;
        if !wide_a && from.wide() {
            return Err(m.bad("a source register narrower than the type"));
        }
        let b = if packs { self.src(ctx, &ops[2], from, stmt)? } else { ZERO };
        // A narrow value in a 64-bit register: its low word is lane-strided differently, so take it apart first.
        if wide_a && !from.wide() {
            let t = self.slot(false);
            let op = Op::Unpack { a, wide: true, bits: 32, d: [t, SINK, SINK, SINK], n: 2 };
            let (r, w) = (std::mem::take(&mut self.reads), std::mem::take(&mut self.writes));
            self.emit_raw(op, TRUE, Class::Move, stmt.line, stmt.loc);
            (self.reads, self.writes) = (r, w);
            return Ok(Op::Cvt { to, from, round, int_round, ftz, sat: sat || satfinite, relu, d, wide_d, s: [t, b] });
        }
        Ok(Op::Cvt { to, from, round, int_round, ftz, sat: sat || satfinite, relu, d, wide_d, s: [a, b] })
    }

    fn load_store(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let load = m.name() != "st";
        // Volatile accesses are relaxed ones of the whole system (PTX ISA, ld.volatile).
        let unscoped = if m.parts.contains(&"volatile") || m.parts.contains(&"mmio") { Scope::Sys } else { Scope::Cta };
        let (order, scope) = (m.take_order().unwrap_or(Order::Weak), m.take_scope());
        if matches!(order, Order::Relaxed | Order::Acquire | Order::Release)
            && unscoped == Scope::Cta
            && scope.is_none()
        {
            return Err(m.bad("an order without a scope"));
        }
        let scope = scope.unwrap_or(unscoped);
        let mut space = m.space();
        m.take("nc");
        m.take_cache_hints();
        let ops = self.without_policy(ctx, stmt, m)?;
        m.take("unified");
        let count = m.take_map(&[("v2", 2u8), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        let ty = m.ty()?;
        if matches!(ty, Ty::Pred | Ty::F16x2 | Ty::BF16x2 | Ty::TF32 | Ty::E4M3 | Ty::E5M2 | Ty::E4M3x2 | Ty::E5M2x2) {
            return Err(m.bad("a type that memory has not"));
        }
        let bytes = (ty.bits() / 8) as u8;
        if bytes as u32 * count as u32 > 32 {
            return Err(m.bad("an access of more than 32 bytes"));
        }
        let [first, second] = ops else { return Err(self.miscounted(stmt, ops, &[2])) };
        let (regs, mem) = if load { (first, second) } else { (second, first) };
        let v = self.vector(regs);
        if v.len() != count as usize {
            return Err(self.err(stmt, format!("{} registers given, {count} accepted", v.len())));
        }
        let mut slots = [SINK; 8];
        let mut wide = None;
        for (i, o) in v.iter().enumerate() {
            let (s, w) = if load { self.dst_any(ctx, o, stmt)? } else { self.src_any(ctx, o, ty, stmt)? };
            if s == SINK {
                continue;
            }
            if !w && bytes == 8 {
                return Err(m.bad("a register narrower than the type"));
            }
            // The zero constant has both widths.
            if s != ZERO || load {
                if wide.is_some_and(|x| x != w) {
                    return Err(m.bad("registers of different widths"));
                }
                wide = Some(w);
            }
            slots[i] = s;
        }
        let (addr, place) = self.mem_place(ctx, mem, stmt)?;
        if space == MemSpace::Param
            && let Some(Place::Local(_)) = place
        {
            space = MemSpace::Local;
        }
        if !load && space == MemSpace::Param {
            return Err(m.bad("a store to a kernel parameter"));
        }
        let class = match space {
            MemSpace::Global | MemSpace::Generic => Class::GlobalMemory,
            MemSpace::Shared | MemSpace::SharedCluster => Class::SharedMemory,
            MemSpace::Local => Class::LocalMemory,
            MemSpace::Param => Class::Move,
        };
        let access = Access {
            space,
            addr,
            order,
            scope,
            bytes,
            count,
            signed: ty.signed(),
            wide: wide.unwrap_or(bytes == 8),
            regs: slots,
        };
        Ok((if load { Op::Ld(access) } else { Op::St(access) }, class))
    }

    fn atom(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let red = m.name() == "red";
        let order = match m.take_order() {
            None | Some(Order::Weak) => Order::Relaxed,
            Some(o) => o,
        };
        let scope = m.take_scope().unwrap_or(Scope::Gpu);
        let space = m.space();
        let op = m.take_map(ATOM_OPS).ok_or_else(|| m.bad("an operation is missing"))?;
        m.take("noftz");
        let ty = m.ty()?;
        let ok = match op {
            AtomOp::Add => {
                !matches!(ty, Ty::B8 | Ty::U8 | Ty::S8 | Ty::U16 | Ty::S16 | Ty::B16 | Ty::B32 | Ty::B64 | Ty::Pred)
            }
            AtomOp::Min | AtomOp::Max => matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64),
            AtomOp::Inc | AtomOp::Dec => ty == Ty::U32,
            AtomOp::And | AtomOp::Or | AtomOp::Xor => matches!(ty, Ty::B32 | Ty::B64),
            AtomOp::Exch => matches!(ty, Ty::B32 | Ty::B64 | Ty::U32 | Ty::U64 | Ty::S32),
            AtomOp::Cas => matches!(ty, Ty::B16 | Ty::B32 | Ty::B64 | Ty::U32 | Ty::U64 | Ty::S32),
        };
        if !ok || (red && matches!(op, AtomOp::Exch | AtomOp::Cas)) {
            return Err(m.bad("an operation that is not known for this type"));
        }
        let n = if op == AtomOp::Cas { 3 } else { 2 };
        let ops = self.without_policy(ctx, stmt, m)?;
        if ops.len() != n + !red as usize {
            return Err(self.miscounted(stmt, ops, &[n + !red as usize]));
        }
        let ops = &ops[!red as usize..];
        let d = if red { SINK } else { self.dst(ctx, &stmt.operands[0], ty, stmt)? };
        let addr = self.mem(ctx, &ops[0], stmt)?;
        let b = self.src(ctx, &ops[1], ty, stmt)?;
        let c = if n == 3 { self.src(ctx, &ops[2], ty, stmt)? } else { ZERO };
        Ok(Op::Atom { space, op, ty, order, scope, d, addr, b, c })
    }

    fn barrier(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let ops = &stmt.operands;
        if m.name() == "barrier" && m.take("cluster") {
            return self.cluster_barrier(stmt, m);
        }
        if m.take("warp") {
            m.take("sync");
            self.count(stmt, &[1])?;
            return Ok(Op::WarpSync { mask: self.src(ctx, &ops[0], Ty::U32, stmt)? });
        }
        m.take("cta");
        let kind = m
            .take_map(&[("sync", BarKind::Sync), ("arrive", BarKind::Arrive), ("red", BarKind::RedPopc)])
            .ok_or_else(|| m.bad("an action is missing"))?;
        // `bar` is `barrier` with `.aligned`.
        let aligned = m.take("aligned") || m.name() == "bar";
        if kind != BarKind::RedPopc {
            self.count(stmt, &[1, 2])?;
            let id = self.src(ctx, &ops[0], Ty::U32, stmt)?;
            let has_count = ops.len() == 2;
            let count = if has_count { self.src(ctx, &ops[1], Ty::U32, stmt)? } else { ZERO };
            if kind == BarKind::Arrive && !has_count {
                return Err(m.bad("arrive needs a thread count"));
            }
            return Ok(Op::Bar { kind, aligned, id, count, has_count, d: SINK, p: SINK, a: TRUE });
        }
        let kind = m
            .take_map(&[("popc", BarKind::RedPopc), ("and", BarKind::RedAnd), ("or", BarKind::RedOr)])
            .ok_or_else(|| m.bad("a reduction is missing"))?;
        m.ty()?;
        self.count(stmt, &[3, 4])?;
        let (d, p) = if kind == BarKind::RedPopc {
            (self.dst(ctx, &ops[0], Ty::U32, stmt)?, SINK)
        } else {
            (SINK, self.pred_dst(ctx, &ops[0], stmt)?)
        };
        let id = self.src(ctx, &ops[1], Ty::U32, stmt)?;
        let has_count = ops.len() == 4;
        let count = if has_count { self.src(ctx, &ops[2], Ty::U32, stmt)? } else { ZERO };
        let a = self.pred_src(ctx, &ops[ops.len() - 1], stmt)?;
        Ok(Op::Bar { kind, aligned, id, count, has_count, d, p, a })
    }

    fn fence(&mut self, m: &mut Parts<'a>) -> Res<FenceKind> {
        if m.take("proxy") {
            let kind = m
                .take_map(&[
                    ("async", FenceKind::ProxyAsync),
                    ("async::generic", FenceKind::Other),
                    ("alias", FenceKind::Other),
                    ("tensormap::generic", FenceKind::Other),
                ])
                .ok_or_else(|| m.bad("a proxy that is not known"))?;
            m.space();
            m.take_order();
            m.take_scope();
            return Ok(kind);
        }
        let order = m.take_order();
        let scope = m.take_scope();
        if m.take("mbarrier_init") {
            if (order, scope) != (Some(Order::Release), Some(Scope::Cluster)) {
                return Err(m.bad("an order other than .release.cluster"));
            }
            return Ok(FenceKind::MbarrierInit);
        }
        m.take("sc");
        Ok(FenceKind::Memory(scope.ok_or_else(|| m.bad("a scope is missing"))?))
    }

    fn copy_async(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let ops = &stmt.operands;
        if m.take("reduce") {
            m.take("async").then_some(()).ok_or_else(|| m.bad(".async is missing"))?;
            m.take("bulk").then_some(()).ok_or_else(|| m.bad(".bulk is missing"))?;
            return self.bulk(ctx, stmt, m, true);
        }
        m.take("async").then_some(()).ok_or_else(|| m.bad(".async is missing"))?;
        if m.take("bulk") {
            return self.bulk(ctx, stmt, m, false);
        }
        if m.take("commit_group") {
            self.count(stmt, &[0])?;
            return Ok(Op::CpAsyncCommit);
        }
        if m.take("wait_group") {
            self.count(stmt, &[1])?;
            return Ok(Op::CpAsyncWait(Some(self.immediate(&ops[0], stmt)?.min(u32::MAX as u64) as u32)));
        }
        if m.take("wait_all") {
            self.count(stmt, &[0])?;
            return Ok(Op::CpAsyncWait(None));
        }
        if m.take("mbarrier") {
            m.take("arrive").then_some(()).ok_or_else(|| m.bad(".arrive is missing"))?;
            let no_inc = m.take("noinc");
            m.space();
            m.ty()?;
            self.count(stmt, &[1])?;
            return Ok(Op::CpAsyncMbarArrive { addr: self.mem(ctx, &ops[0], stmt)?, no_inc });
        }
        let cg = m.take("cg");
        if !cg && !m.take("ca") {
            return Err(m.bad(".ca or .cg is missing"));
        }
        if m.space() != MemSpace::Shared || m.space() != MemSpace::Global {
            return Err(m.bad("spaces other than shared and global"));
        }
        m.take_cache_hints();
        let ops = self.without_policy(ctx, stmt, m)?;
        if !matches!(ops.len(), 3 | 4) {
            return Err(self.miscounted(stmt, ops, &[3, 4]));
        }
        let dst = self.mem(ctx, &ops[0], stmt)?;
        let src = self.mem(ctx, &ops[1], stmt)?;
        let bytes = self.immediate(&ops[2], stmt)?;
        if !(bytes == 16 || (!cg && matches!(bytes, 4 | 8))) {
            return Err(self.err(stmt, format!("{bytes} bytes; .cg copies 16, .ca copies 4, 8 or 16")));
        }
        let (mut src_size, mut ignore) = (None, None);
        match ops.get(3) {
            None => {}
            Some(Operand::Reg(r)) if ctx.fun.regs[*r as usize] == RegKind::Pred => {
                ignore = Some(self.pred_src(ctx, &ops[3], stmt)?);
            }
            Some(Operand::Not(_)) => ignore = Some(self.pred_src(ctx, &ops[3], stmt)?),
            Some(o) => src_size = Some(self.src(ctx, o, Ty::U32, stmt)?),
        }
        Ok(Op::CpAsync { dst, src, bytes: bytes as u8, src_size, ignore })
    }

    fn bulk(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>, reduce: bool) -> Res<Op> {
        let ops = &stmt.operands;
        if m.take("commit_group") {
            self.count(stmt, &[0])?;
            return Ok(Op::BulkCommit);
        }
        if m.take("wait_group") {
            m.take("read");
            self.count(stmt, &[1])?;
            return Ok(Op::BulkWait { pending: self.immediate(&ops[0], stmt)?.min(u32::MAX as u64) as u32 });
        }
        let prefetch = m.take("prefetch");
        let tensor = m.take("tensor");
        let dims = if tensor {
            m.take_map(&[("1d", 1usize), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)])
                .ok_or_else(|| m.bad("a number of dimensions is missing"))?
        } else {
            0
        };
        if m.take_prefix("im2col").is_some() {
            return Err(m.bad("im2col mode"));
        }
        m.take("tile");
        let ops = self.without_policy(ctx, stmt, m)?;
        if prefetch {
            m.take("L2");
            m.space();
            for o in ops {
                if let Operand::Mem { .. } = o {
                    self.mem(ctx, o, stmt)?;
                }
            }
            return Ok(Op::Prefetch);
        }
        let (ops, multicast) = if m.take("multicast::cluster") {
            let Some((mask, rest)) = ops.split_last() else { return Err(m.bad("a mask of CTAs is missing")) };
            (rest, Some(self.src(ctx, mask, Ty::B16, stmt)?))
        } else {
            (ops, None)
        };
        let dst_space = m.space();
        let src_space = m.space();
        let cluster = dst_space == MemSpace::SharedCluster;
        let complete_mbar = m.take_prefix("mbarrier::complete_tx").is_some();
        let group = m.take("bulk_group");
        let reduce = if reduce {
            let op = m.take_map(ATOM_OPS).ok_or_else(|| m.bad("an operation is missing"))?;
            m.take("noftz");
            // The tensor form has its type in the tensor map.
            let ty = if tensor { Ty::F32 } else { m.ty()? };
            Some((op, ty))
        } else {
            None
        };
        let to_global = match (dst_space, src_space) {
            (MemSpace::Shared | MemSpace::SharedCluster, MemSpace::Global) => false,
            (MemSpace::SharedCluster, MemSpace::Shared) if !tensor => false,
            (MemSpace::Global, MemSpace::Shared) => true,
            _ => {
                return Err(m.bad("spaces other than global to shared, shared to global and shared to shared::cluster"));
            }
        };
        if to_global == complete_mbar || to_global != group {
            return Err(m.bad("a completion mechanism that does not fit the direction"));
        }
        let from_shared = src_space == MemSpace::Shared && !to_global;
        if multicast.is_some() && (!cluster || from_shared) {
            return Err(m.bad("a multicast other than from global to shared::cluster"));
        }
        if reduce.is_some() && !to_global {
            return Err(m.bad("a reduction into shared memory"));
        }
        if tensor {
            if ops.len() != 2 + !to_global as usize {
                return Err(self.miscounted(stmt, ops, &[2 + !to_global as usize]));
            }
            let map_op = &ops[!to_global as usize];
            let Operand::Mem { coords, .. } = map_op else {
                return Err(self.err(stmt, "a tensor without coordinates"));
            };
            if coords.len() != dims {
                return Err(self.err(stmt, format!("{} coordinates given, {dims} accepted", coords.len())));
            }
            let mut cs = Vec::new();
            for c in coords {
                cs.push(self.src(ctx, c, Ty::B32, stmt)?);
            }
            let dst = self.mem(ctx, &ops[0], stmt)?;
            let src = self.mem(ctx, &ops[1], stmt)?;
            let mbar = if to_global { None } else { Some(self.mem(ctx, &ops[2], stmt)?) };
            return Ok(Op::BulkTensor(Box::new(Bulk {
                dst,
                src,
                to_global,
                from_shared: false,
                cluster,
                multicast,
                size: ZERO,
                mbar,
                reduce,
                coords: cs,
            })));
        }
        if ops.len() != 3 + !to_global as usize {
            return Err(self.miscounted(stmt, ops, &[3 + !to_global as usize]));
        }
        let dst = self.mem(ctx, &ops[0], stmt)?;
        let src = self.mem(ctx, &ops[1], stmt)?;
        let size = self.src(ctx, &ops[2], Ty::U32, stmt)?;
        let mbar = if to_global { None } else { Some(self.mem(ctx, &ops[3], stmt)?) };
        let coords = Vec::new();
        Ok(Op::Bulk(Box::new(Bulk {
            dst,
            src,
            to_global,
            from_shared,
            cluster,
            multicast,
            size,
            mbar,
            reduce,
            coords,
        })))
    }

    fn mbarrier(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        let ops = &stmt.operands;
        let action = m
            .take_map(&[
                ("init", 0),
                ("inval", 1),
                ("arrive", 2),
                ("arrive_drop", 3),
                ("test_wait", 4),
                ("try_wait", 5),
                ("pending_count", 6),
                ("expect_tx", 7),
                ("complete_tx", 8),
            ])
            .ok_or_else(|| m.bad("an action is missing"))?;
        let expect = matches!(action, 2 | 3) && m.take("expect_tx");
        let no_complete = m.take("noComplete");
        let parity = m.take("parity");
        let (order, scope) = self.mbarrier_order(m, action)?;
        let space = m.space();
        // In another CTA of the cluster one may arrive and count bytes, and neither make an mbarrier nor look at it.
        match space {
            MemSpace::Shared | MemSpace::Generic => {}
            MemSpace::SharedCluster if matches!(action, 2 | 3 | 7 | 8) && !no_complete => {}
            MemSpace::SharedCluster => return Err(m.bad("the state space .shared::cluster; .shared::cta is accepted")),
            _ => return Err(m.bad("a state space other than shared")),
        }
        if m.ty()? != Ty::B64 {
            return Err(m.bad("a type other than b64"));
        }
        Ok(match action {
            0 => {
                self.count(stmt, &[2])?;
                let addr = self.mem(ctx, &ops[0], stmt)?;
                Op::MbarInit { addr, space, count: self.src(ctx, &ops[1], Ty::U32, stmt)? }
            }
            1 => {
                self.count(stmt, &[1])?;
                Op::MbarInval { addr: self.mem(ctx, &ops[0], stmt)?, space }
            }
            2 | 3 => {
                // `state, [addr]{, count}`, or without a state where the space is given.
                let with_state = !matches!(ops.first(), Some(Operand::Mem { .. }));
                let rest = ops.get(with_state as usize..).unwrap_or_default();
                if rest.is_empty() || rest.len() > 2 {
                    return Err(m.bad("a number of operands that is not accepted"));
                }
                if space == MemSpace::SharedCluster && !matches!(ops[0], Operand::Sink) {
                    return Err(m.bad("a state from an mbarrier of the cluster; `_` is accepted"));
                }
                let state = if with_state { self.dst(ctx, &ops[0], Ty::B64, stmt)? } else { SINK };
                let addr = self.mem(ctx, &rest[0], stmt)?;
                let arg = match rest.get(1) {
                    Some(o) => Some(self.src(ctx, o, Ty::U32, stmt)?),
                    None => None,
                };
                if expect && arg.is_none() {
                    return Err(m.bad("expect_tx needs a byte count"));
                }
                let (count, expect) = if expect { (None, arg) } else { (arg, None) };
                Op::MbarArrive(MbarArrive {
                    addr,
                    space,
                    state,
                    count,
                    expect,
                    drop: action == 3,
                    no_complete,
                    order,
                    scope,
                })
            }
            4 | 5 => {
                self.count(stmt, if action == 5 { &[3, 4] } else { &[3] })?;
                let p = self.pred_dst(ctx, &ops[0], stmt)?;
                let addr = self.mem(ctx, &ops[1], stmt)?;
                let on = if parity {
                    WaitOn::Parity(self.src(ctx, &ops[2], Ty::U32, stmt)?)
                } else {
                    WaitOn::State(self.src(ctx, &ops[2], Ty::B64, stmt)?)
                };
                if let Some(hint) = ops.get(3) {
                    self.src(ctx, hint, Ty::U32, stmt)?;
                }
                Op::MbarWait { addr, space, p, on, blocking: action == 5, order, scope }
            }
            6 => {
                self.count(stmt, &[2])?;
                let d = self.dst(ctx, &ops[0], Ty::U32, stmt)?;
                Op::MbarPending { d, state: self.src(ctx, &ops[1], Ty::B64, stmt)? }
            }
            _ => {
                self.count(stmt, &[2])?;
                let addr = self.mem(ctx, &ops[0], stmt)?;
                Op::MbarTx { addr, space, tx: self.src(ctx, &ops[1], Ty::U32, stmt)?, complete: action == 8 }
            }
        })
    }

    /// Order and scope of an mbarrier operation, which come together or not at all; without them, what arrives releases and what
    /// waits acquires, in the CTA.
    fn mbarrier_order(&self, m: &mut Parts<'a>, action: i32) -> Res<(Order, Scope)> {
        let (default, relaxed) = match action {
            2 | 3 => (Order::Release, true),
            4 | 5 => (Order::Acquire, true),
            7 | 8 => (Order::Relaxed, true),
            _ => (Order::Weak, false),
        };
        match (m.take_order(), m.take_scope()) {
            (None, None) => Ok((default, Scope::Cta)),
            (Some(o), Some(s @ (Scope::Cta | Scope::Cluster))) if o == default || (relaxed && o == Order::Relaxed) => {
                Ok((o, s))
            }
            (Some(_), Some(Scope::Cta | Scope::Cluster)) => Err(m.bad("an order that this action has not")),
            (_, Some(Scope::Gpu | Scope::Sys)) => Err(m.bad("a scope other than .cta and .cluster")),
            _ => Err(m.bad("an order without a scope, or a scope without an order")),
        }
    }

    fn mma(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        for p in ["sync", "aligned", "row", "col"] {
            m.take(p).then_some(()).ok_or_else(|| m.bad(format!(".{p} is missing")))?;
        }
        let (n, k) = m
            .take_map(&[("m16n8k4", (8, 4)), ("m16n8k8", (8, 8)), ("m16n8k16", (8, 16)), ("m16n8k32", (8, 32))])
            .ok_or_else(|| m.bad("a shape other than m16n8k4, k8, k16 and k32"))?;
        let sat = m.take("satfinite");
        let acc = m.ty()?;
        let a_ty = m.ty()?;
        let b_ty = m.ty()?;
        let c_ty = m.ty()?;
        let bits = a_ty.bits();
        let ok = acc == c_ty
            && match (a_ty, b_ty) {
                (Ty::F16, Ty::F16) => matches!(k, 8 | 16) && matches!(acc, Ty::F32 | Ty::F16),
                (Ty::BF16, Ty::BF16) => matches!(k, 8 | 16) && acc == Ty::F32,
                (Ty::TF32, Ty::TF32) => matches!(k, 4 | 8) && acc == Ty::F32,
                (Ty::E4M3 | Ty::E5M2, Ty::E4M3 | Ty::E5M2) => matches!(k, 16 | 32) && matches!(acc, Ty::F32 | Ty::F16),
                (Ty::S8 | Ty::U8, Ty::S8 | Ty::U8) => matches!(k, 16 | 32) && acc == Ty::S32,
                _ => false,
            };
        if !ok || (sat && acc != Ty::S32) {
            return Err(m.bad("a combination of shape and types that is not known"));
        }
        self.count(stmt, &[4])?;
        let na = (16 * k * bits / 32 / 32) as usize;
        let nb = (8 * k * bits / 32 / 32) as usize;
        let nc = if acc == Ty::F16 { 2 } else { 4 };
        let d = self.slots(ctx, &stmt.operands[0], Ty::B32, true, stmt)?;
        let a = self.slots(ctx, &stmt.operands[1], Ty::B32, false, stmt)?;
        let b = self.slots(ctx, &stmt.operands[2], Ty::B32, false, stmt)?;
        let c = self.slots_f(ctx, &stmt.operands[3], stmt)?;
        if d.len() != nc || c.len() != nc || a.len() != na || b.len() != nb {
            return Err(self.err(stmt, format!("fragments need {nc}, {na}, {nb} and {nc} registers")));
        }
        Ok(Op::Mma(Box::new(Mma { n, k, a_ty, b_ty, acc, sat, d, a, b, c })))
    }

    /// Accumulator sources: registers, or immediates of either kind.
    fn slots_f(&mut self, ctx: &mut Ctx<'a>, o: &Operand, stmt: &Stmt) -> Res<Vec<Slot>> {
        let mut out = Vec::new();
        for e in self.vector(o) {
            let ty = if matches!(e, Operand::Imm(Imm::F64(_))) { Ty::F32 } else { Ty::B32 };
            out.push(self.src(ctx, e, ty, stmt)?);
        }
        Ok(out)
    }

    fn wgmma(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<(Op, Class)> {
        let ops = &stmt.operands;
        let action = m
            .take_map(&[("fence", 0), ("commit_group", 1), ("wait_group", 2), ("mma_async", 3)])
            .ok_or_else(|| m.bad("an action is missing"))?;
        for p in ["sync", "aligned"] {
            m.take(p).then_some(()).ok_or_else(|| m.bad(format!(".{p} is missing")))?;
        }
        match action {
            0 | 1 => {
                self.count(stmt, &[0])?;
                return Ok((if action == 0 { Op::WgmmaFence } else { Op::WgmmaCommit }, Class::Barrier));
            }
            2 => {
                self.count(stmt, &[1])?;
                let n = self.immediate(&ops[0], stmt)?;
                if n > 7 {
                    return Err(self.err(stmt, "a group count above 7"));
                }
                return Ok((Op::WgmmaWait(n as u32), Class::Barrier));
            }
            _ => {}
        }
        let shape = m.take_prefix("m64n").ok_or_else(|| m.bad("a shape is missing"))?;
        let (n, k) = shape[4..]
            .split_once('k')
            .and_then(|(n, k)| Some((n.parse::<u32>().ok()?, k.parse::<u32>().ok()?)))
            .ok_or_else(|| m.bad("a shape that is not known"))?;
        let acc = m.ty()?;
        let a_ty = m.ty()?;
        let b_ty = m.ty()?;
        let want_k = match (a_ty, b_ty) {
            (Ty::F16, Ty::F16) if matches!(acc, Ty::F32 | Ty::F16) => 16,
            (Ty::BF16, Ty::BF16) if acc == Ty::F32 => 16,
            (Ty::TF32, Ty::TF32) if acc == Ty::F32 => 8,
            (Ty::E4M3 | Ty::E5M2, Ty::E4M3 | Ty::E5M2) if matches!(acc, Ty::F32 | Ty::F16) => 32,
            _ => return Err(m.bad("a combination of types that is not known")),
        };
        if k != want_k || n % 8 != 0 || !(8..=256).contains(&n) {
            return Err(m.bad("a shape that these types have not"));
        }
        let trans_operands = matches!(a_ty, Ty::F16 | Ty::BF16);
        if ops.len() < 6 {
            return Err(m.bad("too few operands"));
        }
        let d = self.slots(ctx, &ops[0], Ty::B32, true, stmt)?;
        let want = (n / 8 * if acc == Ty::F16 { 2 } else { 4 }) as usize;
        if d.contains(&SINK) {
            return Err(self.err(stmt, "an accumulator that is `_`"));
        }
        if d.len() != want {
            return Err(self.err(stmt, format!("{} accumulators given, {want} accepted", d.len())));
        }
        let from_regs = matches!(&ops[1], Operand::Vector(_));
        let a = if from_regs {
            let v = self.slots(ctx, &ops[1], Ty::B32, false, stmt)?;
            WgmmaA::Regs(v.try_into().map_err(|_| self.err(stmt, "A in registers takes 4"))?)
        } else {
            WgmmaA::Desc(self.src(ctx, &ops[1], Ty::B64, stmt)?)
        };
        let b = self.src(ctx, &ops[2], Ty::B64, stmt)?;
        let scale_d = self.pred_src(ctx, &ops[3], stmt)?;
        let sign = |this: &Self, o: &Operand| match this.immediate(o, stmt)? as i64 {
            1 => Ok(false),
            -1 => Ok(true),
            _ => Err(this.err(stmt, "a scale other than 1 and -1")),
        };
        let flag = |this: &Self, o: &Operand| match this.immediate(o, stmt)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(this.err(stmt, "a transpose flag other than 0 and 1")),
        };
        let neg_a = sign(self, &ops[4])?;
        let neg_b = sign(self, &ops[5])?;
        let (mut trans_a, mut trans_b) = (false, false);
        let want_ops = 6 + if trans_operands { 2 - from_regs as usize } else { 0 };
        self.count(stmt, &[want_ops])?;
        if trans_operands {
            if !from_regs {
                trans_a = flag(self, &ops[6])?;
            }
            trans_b = flag(self, &ops[want_ops - 1])?;
        }
        let op = Op::Wgmma(Box::new(Wgmma { n, k, a_ty, b_ty, acc, d, a, b, scale_d, neg_a, neg_b, trans_a, trans_b }));
        Ok((op, Class::Tensor))
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
