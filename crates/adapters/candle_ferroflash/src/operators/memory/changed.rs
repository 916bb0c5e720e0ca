//! Tensors that a call overwrites. candle lends the memory of one at a time, for the duration of a call, so that a list of them is as many calls,
//! each inside of the one before.

use super::{Changed, MemoryMut};
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};
use ferroflash::Operand;
use std::cell::RefCell;

/// Calls `then` with the memory of these tensors, none of which may share memory with another: each is locked until `then` returns.
pub(in super::super) fn with_changed(
    op: &'static str,
    tensors: &[(Operand, &Tensor)],
    then: impl FnOnce(Vec<Changed<'_>>) -> Result<()>,
) -> Result<()> {
    lend(op, tensors, Vec::new(), then)
}

fn lend<F: FnOnce(Vec<Changed<'_>>) -> Result<()>>(
    op: &'static str,
    tensors: &[(Operand, &Tensor)],
    lent: Vec<Changed<'_>>,
    then: F,
) -> Result<()> {
    let Some(((operand, first), rest)) = tensors.split_first() else { return then(lent) };
    first.inplace_op1(&Lend { op, operand: *operand, rest, state: RefCell::new(Some((lent, then))) })
}

/// Lends one tensor more, and then the rest.
struct Lend<'a, F> {
    op: &'static str,
    operand: Operand,
    rest: &'a [(Operand, &'a Tensor)],
    /// What is lent already, and what is done with all of them.
    state: RefCell<Option<(Vec<Changed<'a>>, F)>>,
}

impl<F: FnOnce(Vec<Changed<'_>>) -> Result<()>> Lend<'_, F> {
    fn lend(&self, memory: MemoryMut<'_>, layout: &Layout) -> Result<()> {
        let (lent, then) = self.state.take().expect("candle calls an operation once");
        // Lent for as long as this tensor is.
        let mut lent: Vec<Changed<'_>> = lent;
        lent.push(Changed { operand: self.operand, memory, layout });
        lend(self.op, self.rest, lent, then)
    }
}

impl<F: FnOnce(Vec<Changed<'_>>) -> Result<()>> InplaceOp1 for Lend<'_, F> {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.lend(MemoryMut::Cpu(storage), layout)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        self.lend(MemoryMut::Cuda(storage), layout)
    }
}
