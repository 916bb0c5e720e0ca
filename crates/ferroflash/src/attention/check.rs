//! Tensors against each other: everything that can be refused before a plan is made.

use super::options::Attention;
use super::problem::Sizes;
use crate::device::Device;
use crate::error::{Error, Operand, ProgramError, Result};
use crate::tensor::overlap::{self, Footprint, check_apart};
use crate::tensor::{HeadsView, LseShape, LseViewMut};
use kernel_spec::DType;
use std::fmt::Display;

/// Checks q, k and v against each other and returns the sizes of the problem they pose.
pub(super) fn check_inputs(q: &HeadsView<'_>, k: &HeadsView<'_>, v: &HeadsView<'_>) -> Result<Sizes> {
    let (q_shape, k_shape, v_shape) = (q.shape(), k.shape(), v.shape());
    for (tensor, view) in [(Operand::K, k), (Operand::V, v)] {
        check_against_q(q, tensor, view)?;
    }
    if v_shape.rows != k_shape.rows {
        let (found, expected) = (v_shape.rows, k_shape.rows);
        return Err(Error::RowsMismatch { tensor: Operand::V, found, of: Operand::K, expected });
    }
    if v_shape.heads != k_shape.heads {
        let (found, expected) = (v_shape.heads, k_shape.heads);
        return Err(Error::HeadsMismatch { tensor: Operand::V, found, of: Operand::K, expected });
    }
    let sizes = Sizes {
        batch: q_shape.batch,
        q_rows: q_shape.rows,
        kv_rows: k_shape.rows,
        q_heads: q_shape.heads,
        kv_heads: k_shape.heads,
        head_dim: q_shape.head_dim,
        dtype: q.dtype(),
    };
    sizes.validate()?;
    for (tensor, view) in [(Operand::Q, q), (Operand::K, k), (Operand::V, v)] {
        check_last_dim(tensor, view)?;
    }
    Ok(sizes)
}

/// Device, element type, batch and head dim, which every tensor shares with q.
fn check_against_q(q: &HeadsView<'_>, tensor: Operand, view: &HeadsView<'_>) -> Result<()> {
    check_same_device(q, tensor, view.device())?;
    if view.dtype() != q.dtype() {
        return Err(Error::DTypeMismatch { tensor, found: view.dtype(), expected: q.dtype() });
    }
    let (found, expected) = (view.shape(), q.shape());
    if found.batch != expected.batch {
        return Err(Error::BatchMismatch { tensor, found: found.batch, expected: expected.batch });
    }
    if found.head_dim != expected.head_dim {
        return Err(Error::HeadDimMismatch { tensor, found: found.head_dim, expected: expected.head_dim });
    }
    Ok(())
}

pub(super) fn check_same_device(q: &HeadsView<'_>, tensor: impl Display, device: &Device) -> Result<()> {
    if device == q.device() {
        return Ok(());
    }
    let (found, expected) = (device.info().id(), q.device().info().id());
    Err(Error::DeviceMismatch { what: tensor.to_string(), found, expected })
}

pub(super) fn check_last_dim(tensor: Operand, view: &HeadsView<'_>) -> Result<()> {
    match view.strides().dim {
        1 => Ok(()),
        stride => Err(Error::LastDimNotContiguous { tensor, stride }),
    }
}

/// Checks out and lse against q, which has passed its own checks.
pub(super) fn check_output(q: &HeadsView<'_>, out: &HeadsView<'_>, lse: Option<&LseViewMut<'_>>) -> Result<()> {
    check_like(q, Operand::Q, Operand::Out, out)?;
    lse.map_or(Ok(()), |lse| check_rows_of(q, Operand::Lse, lse.device(), lse.shape()))
}

/// Checks a tensor that has to be like `of`, which is q itself or has been checked against it.
pub(super) fn check_like(like: &HeadsView<'_>, of: Operand, tensor: Operand, view: &HeadsView<'_>) -> Result<()> {
    check_against_q(like, tensor, view)?;
    check_rows_and_heads(like, of, tensor, [view.shape().rows, view.shape().heads])?;
    check_last_dim(tensor, view)
}

/// Checks a log-sum-exp, or its gradient, against q.
pub(super) fn check_rows_of(q: &HeadsView<'_>, tensor: Operand, device: &Device, shape: LseShape) -> Result<()> {
    check_same_device(q, tensor, device)?;
    let (found, expected) = (shape.batch, q.shape().batch);
    if found != expected {
        return Err(Error::BatchMismatch { tensor, found, expected });
    }
    check_rows_and_heads(q, Operand::Q, tensor, [shape.rows, shape.heads])
}

fn check_rows_and_heads(like: &HeadsView<'_>, of: Operand, tensor: Operand, [rows, heads]: [usize; 2]) -> Result<()> {
    let expected = like.shape();
    if rows != expected.rows {
        return Err(Error::RowsMismatch { tensor, found: rows, of, expected: expected.rows });
    }
    if heads != expected.heads {
        return Err(Error::HeadsMismatch { tensor, found: heads, of, expected: expected.heads });
    }
    Ok(())
}

/// Outputs need memory of their own: out and lse (given as its address) against themselves, each other, the inputs and what a program
/// reads.
pub(super) fn check_overlaps(
    attention: &Attention<'_>,
    inputs: [&HeadsView<'_>; 3],
    out: &HeadsView<'_>,
    lse: Option<(u64, &Sizes)>,
) -> Result<()> {
    check_itself(out)?;
    let [q, k, v] = inputs.map(footprint);
    let inputs = [(Operand::Q, q), (Operand::K, k), (Operand::V, v)];
    let out = (Operand::Out, footprint(out));
    let check = |outputs: &[(Operand, Footprint)]| {
        check_apart(outputs, &inputs)?;
        check_options_apart(attention, outputs)
    };
    match lse {
        Some((address, sizes)) => check(&[out, (Operand::Lse, row_footprint(address, sizes))]),
        None => check(&[out]),
    }
}

/// Whether the tensors that options bring along, of a program and sinks, are where q is.
pub(super) fn check_options(attention: &Attention<'_>, q: &HeadsView<'_>) -> Result<()> {
    if let Some(sink) = attention.sink {
        check_same_device(q, Operand::Sink, sink.device())?;
    }
    let Some(program) = attention.changing_program() else { return Ok(()) };
    program.devices().try_for_each(|(name, device)| check_same_device(q, name, device))
}

/// That nothing of what a call writes is what its program reads, or its sinks.
pub(super) fn check_options_apart(attention: &Attention<'_>, written: &[(Operand, Footprint)]) -> Result<()> {
    if let Some(sink) = attention.sink.map(|sink| Footprint::of(sink.geometry(), sink.address()))
        && let Some((output, _)) = written.iter().find(|(_, memory)| memory.overlaps(&sink))
    {
        return Err(Error::OutputOverlaps { output: *output, other: Operand::Sink });
    }
    let Some(program) = attention.changing_program() else { return Ok(()) };
    for (output, memory) in written {
        if let Some((name, _)) = program.footprints().find(|(_, read)| memory.overlaps(read)) {
            return Err(ProgramError::OutputOverlaps { output: *output, name: name.to_owned() }.into());
        }
    }
    Ok(())
}

/// That no element of an output lies at the place of another.
pub(super) fn check_itself(output: &HeadsView<'_>) -> Result<()> {
    overlap::check_itself(output.geometry())
}

/// The bytes of a tensor.
pub(super) fn footprint(view: &HeadsView<'_>) -> Footprint {
    Footprint::of(view.geometry(), view.address())
}

/// The bytes of a log-sum-exp, or of its gradient.
fn row_footprint(address: u64, sizes: &Sizes) -> Footprint {
    Footprint::contiguous(address, sizes.score_rows() * DType::F32.bytes() as u128)
}
