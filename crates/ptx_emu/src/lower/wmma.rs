//! `wmma.load`, `wmma.mma` and `wmma.store`.

use super::*;

/// Rows of the result, its columns, and what is summed over.
const SHAPES: &[(&str, [u32; 3])] =
    &[("m16n16k16", [16, 16, 16]), ("m32n8k16", [32, 8, 16]), ("m8n32k16", [8, 32, 16])];

/// Which matrix of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Matrix {
    A,
    B,
    Sum,
}

impl<'a> Lower<'a> {
    /// Everything whose opcode is `wmma`.
    pub(super) fn wmma(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        m.require("sync")?;
        m.require("aligned")?;
        if m.take("mma") {
            return self.wmma_mma(ctx, stmt, m);
        }
        let load = m.take("load");
        if !load && !m.take("store") {
            return Err(m.bad(".load, .mma or .store is missing"));
        }
        let matrix = if load { m.take_map(&[("a", Matrix::A), ("b", Matrix::B), ("c", Matrix::Sum)]) } else { None };
        let matrix = match matrix {
            Some(matrix) => matrix,
            None if !load && m.take("d") => Matrix::Sum,
            None => return Err(m.bad("which matrix is missing")),
        };
        let by_columns = layout(m)?;
        let shape = shape(m)?;
        let space = m.space();
        let ty = m.ty()?;
        let ops = &stmt.operands;
        self.count(stmt, &[2, 3])?;
        let (regs, mem) = if load { (&ops[0], &ops[1]) } else { (&ops[1], &ops[0]) };
        let fragment = self.fragment(ctx, stmt, m, regs, (matrix, shape, ty), load)?;
        let addr = self.mem(ctx, mem, stmt)?;
        let stride = match ops.get(2) {
            Some(o) => Some(self.src(ctx, o, Ty::U32, stmt)?),
            None => None,
        };
        let access = Box::new(WmmaAccess { fragment, by_columns, space, addr, stride });
        Ok(if load { Op::WmmaLoad(access) } else { Op::WmmaStore(access) })
    }

    fn wmma_mma(&mut self, ctx: &mut Ctx<'a>, stmt: &'a Stmt, m: &mut Parts<'a>) -> Res<Op> {
        // The layouts are those of the loads, and fragments have one layout whatever that was.
        layout(m)?;
        layout(m)?;
        let shape = shape(m)?;
        let (dty, second) = (m.ty()?, m.ty()?);
        // Types of f16 are those of the sums alone.
        let (aty, cty) = if second == Ty::BF16 {
            if m.ty()? != Ty::BF16 {
                return Err(m.bad("factors of different types"));
            }
            (Ty::BF16, m.ty()?)
        } else {
            (Ty::F16, second)
        };
        let sums = |t| t == Ty::F32 || (t == Ty::F16 && aty == Ty::F16);
        if !sums(dty) || !sums(cty) {
            return Err(m.bad("a combination of types that is not known"));
        }
        self.count(stmt, &[4])?;
        let ops = &stmt.operands;
        let d = self.fragment(ctx, stmt, m, &ops[0], (Matrix::Sum, shape, dty), true)?;
        let a = self.fragment(ctx, stmt, m, &ops[1], (Matrix::A, shape, aty), false)?;
        let b = self.fragment(ctx, stmt, m, &ops[2], (Matrix::B, shape, aty), false)?;
        let c = self.fragment(ctx, stmt, m, &ops[3], (Matrix::Sum, shape, cty), false)?;
        Ok(Op::WmmaMma(Box::new(WmmaMma { d, a, b, c })))
    }

    fn fragment(
        &mut self,
        ctx: &mut Ctx<'a>,
        stmt: &Stmt,
        parts: &Parts<'a>,
        regs: &Operand,
        (matrix, [m, n, k], ty): (Matrix, [u32; 3], Ty),
        write: bool,
    ) -> Res<Fragment> {
        let (rows, cols) = match matrix {
            Matrix::A => (m, k),
            Matrix::B => (k, n),
            Matrix::Sum => (m, n),
        };
        let count = match (matrix, ty) {
            (Matrix::Sum, Ty::F32) => 8,
            (Matrix::Sum, Ty::F16) => 4,
            // Every element of the smaller matrices is there more than once.
            (Matrix::A | Matrix::B, Ty::F16) => 8,
            (Matrix::A | Matrix::B, Ty::BF16) => rows * cols / 64,
            _ => return Err(parts.bad("a type that wmma has not for this matrix, or that is not known")),
        };
        let regs = self.slots(ctx, regs, if ty == Ty::F32 { Ty::F32 } else { Ty::B32 }, write, stmt)?;
        if regs.len() != count as usize {
            return Err(self.err(stmt, format!("{} registers of a fragment given, {count} accepted", regs.len())));
        }
        Ok(Fragment { rows, cols, ty, regs })
    }
}

/// Whether columns are contiguous.
fn layout(m: &mut Parts<'_>) -> Res<bool> {
    m.take_map(&[("row", false), ("col", true)]).ok_or_else(|| m.bad(".row or .col is missing"))
}

fn shape(m: &mut Parts<'_>) -> Res<[u32; 3]> {
    m.take_map(SHAPES).ok_or_else(|| m.bad("a shape other than m16n16k16, m32n8k16 and m8n32k16"))
}
