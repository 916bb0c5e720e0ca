//! The tensors of a call of the backward pass, as far as its plan knows them.

use super::super::problem::Sizes;
use super::super::request::Placed;
use crate::tensor::{Layout, Shape};

/// The tensors of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensors {
    pub(super) q: Placed,
    pub(super) k: Placed,
    pub(super) v: Placed,
    pub(super) out: Placed,
    pub(super) dout: Placed,
    pub(super) dq: Placed,
    pub(super) dk: Placed,
    pub(super) dv: Placed,
}

/// What a call has, or wants, beside its tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beside {
    /// A gradient of the log-sum-exp comes in.
    pub(super) dlse: bool,
    /// The gradient of the sinks goes out.
    pub(super) dsink: bool,
}

impl Tensors {
    /// Contiguous tensors of a problem, `[batch, row, head, dim]`.
    pub(super) fn contiguous(sizes: &Sizes) -> Tensors {
        let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = *sizes;
        let placed = |rows, heads| Placed::contiguous(Shape::new(batch, rows, heads, head_dim), Layout::Bshd, dtype);
        let (q, k) = (placed(q_rows, q_heads), placed(kv_rows, kv_heads));
        Tensors { q, k, v: k, out: q, dout: q, dq: q, dk: k, dv: k }
    }
}
