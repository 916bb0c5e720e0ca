//! Tensors against each other: everything that can be refused before a plan is made.

use super::problem::Sizes;
use crate::device::Device;
use crate::error::{Error, Operand, Result};
use crate::tensor::overlap::{self, Footprint};
use crate::tensor::{HeadsView, LseViewMut};
use kernel_spec::DType;

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

fn check_same_device(q: &HeadsView<'_>, tensor: Operand, device: &Device) -> Result<()> {
    if device == q.device() {
        return Ok(());
    }
    let (found, expected) = (device.info().id(), q.device().info().id());
    Err(Error::DeviceMismatch { what: tensor.to_string(), found, expected })
}

fn check_last_dim(tensor: Operand, view: &HeadsView<'_>) -> Result<()> {
    match view.strides().dim {
        1 => Ok(()),
        stride => Err(Error::LastDimNotContiguous { tensor, stride }),
    }
}

/// Checks out and lse against q, which has passed its own checks.
pub(super) fn check_output(q: &HeadsView<'_>, out: &HeadsView<'_>, lse: Option<&LseViewMut<'_>>) -> Result<()> {
    check_against_q(q, Operand::Out, out)?;
    let q_shape = q.shape();
    let same = |tensor, rows, heads| {
        if rows != q_shape.rows {
            return Err(Error::RowsMismatch { tensor, found: rows, of: Operand::Q, expected: q_shape.rows });
        }
        if heads != q_shape.heads {
            return Err(Error::HeadsMismatch { tensor, found: heads, of: Operand::Q, expected: q_shape.heads });
        }
        Ok(())
    };
    same(Operand::Out, out.shape().rows, out.shape().heads)?;
    check_last_dim(Operand::Out, out)?;
    if let Some(lse) = lse {
        check_same_device(q, Operand::Lse, lse.device())?;
        let shape = lse.shape();
        if shape.batch != q_shape.batch {
            let (found, expected) = (shape.batch, q_shape.batch);
            return Err(Error::BatchMismatch { tensor: Operand::Lse, found, expected });
        }
        same(Operand::Lse, shape.rows, shape.heads)?;
    }
    Ok(())
}

/// Outputs need memory of their own: out and lse (given as its address) against themselves, each other and the inputs.
pub(super) fn check_overlaps(
    inputs: [&HeadsView<'_>; 3],
    out: &HeadsView<'_>,
    lse: Option<(u64, &Sizes)>,
) -> Result<()> {
    let geometry = out.geometry();
    if overlap::overlaps_itself(geometry) {
        return Err(Error::OutputOverlapsItself { shape: geometry.shape.to_vec(), strides: geometry.strides.to_vec() });
    }
    let footprint = |view: &HeadsView<'_>| Footprint::of(view.geometry(), view.address());
    let named = [Operand::Q, Operand::K, Operand::V].into_iter().zip(inputs.map(footprint));
    let others: Vec<(Operand, Footprint)> = named.collect();
    let mut outputs = vec![(Operand::Out, footprint(out))];
    if let Some((address, p)) = lse {
        let lse = Footprint::contiguous(address, p.score_rows() * DType::F32.bytes() as u128);
        if lse.overlaps(&outputs[0].1) {
            return Err(Error::OutputOverlaps { output: Operand::Lse, other: Operand::Out });
        }
        outputs.push((Operand::Lse, lse));
    }
    for (output, memory) in &outputs {
        for (other, input) in &others {
            if memory.overlaps(input) {
                return Err(Error::OutputOverlaps { output: *output, other: *other });
            }
        }
    }
    Ok(())
}
