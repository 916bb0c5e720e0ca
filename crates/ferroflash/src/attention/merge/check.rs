//! Everything of a merge that can be refused before a plan is made.

use super::super::check::{check_itself, check_last_dim, footprint};
use super::Part;
use crate::device::Device;
use crate::error::{Error, MergeError, Operand, Result};
use crate::tensor::overlap::{Footprint, check_apart};
use crate::tensor::{Dims, HeadsView, Layout, LseShape, LseView, Shape, TensorView};
use kernel_spec::{DType, MAX_HEAD_DIM};

/// The parts of a merge, checked against the first.
pub(super) struct Call<'a> {
    pub(super) device: &'a Device,
    pub(super) parts: Vec<(HeadsView<'a>, LseView<'a>)>,
    pub(super) shape: Shape,
    /// Element type of the parts.
    pub(super) dtype: DType,
    /// Whether tensors have no axis for the batch.
    packed: bool,
}

impl<'a> Call<'a> {
    pub(super) fn read(parts: &[Part<'a>]) -> Result<Call<'a>> {
        let first = parts.first().ok_or(MergeError::NoParts)?;
        let (device, dtype, packed) = (first.out.device(), first.out.dtype(), first.out.shape().len() == 3);
        let mut views = Vec::with_capacity(parts.len());
        for (i, Part { out, lse }) in parts.iter().enumerate() {
            let tensor = Operand::Part(i);
            let view = heads(tensor, out)?;
            check_device(device, tensor, out.device())?;
            check_shape(tensor, out, &first.out)?;
            if out.dtype() != dtype {
                return Err(MergeError::PartDType { tensor, found: out.dtype(), expected: dtype }.into());
            }
            check_last_dim(tensor, &view)?;
            views.push((view, *lse));
        }
        let shape = views[0].0.shape();
        if shape.head_dim == 0 || !shape.head_dim.is_multiple_of(8) || shape.head_dim > MAX_HEAD_DIM as usize {
            return Err(Error::HeadDim { found: shape.head_dim });
        }
        let call = Call { device, parts: views, shape, dtype, packed };
        for (i, (_, lse)) in call.parts.iter().enumerate() {
            call.check_lse(Operand::PartLse(i), lse.device(), lse.shape())?;
        }
        Ok(call)
    }

    /// Reads the output, which is like the parts but for its type.
    pub(super) fn output<'o>(&self, out: &TensorView<'o>) -> Result<HeadsView<'o>> {
        let view = heads(Operand::Out, out)?;
        check_device(self.device, Operand::Out, out.device())?;
        let (found, expected) = (out.shape().to_vec(), self.dims().to_vec());
        if found != expected {
            return Err(MergeError::Shape { tensor: Operand::Out, found, expected }.into());
        }
        check_last_dim(Operand::Out, &view)?;
        check_itself(&view)?;
        Ok(view)
    }

    /// Checks a log-sum-exp, of a part or of the output.
    pub(super) fn check_lse(&self, tensor: Operand, device: &Device, found: LseShape) -> Result<()> {
        check_device(self.device, tensor, device)?;
        let expected = self.lse_shape();
        if found == expected {
            return Ok(());
        }
        let extents = |LseShape { batch, heads, rows }| [batch, heads, rows];
        Err(MergeError::Lse { tensor, found: extents(found), expected: extents(expected) }.into())
    }

    /// What a merge writes must not be what it reads.
    pub(super) fn check_overlaps(&self, out: &HeadsView<'_>, lse: Option<u64>) -> Result<()> {
        let bytes = (self.all_rows() * DType::F32.bytes()) as u128;
        let of_lse = |address| Footprint::contiguous(address, bytes);
        let inputs = self.parts.iter().enumerate().flat_map(|(i, (part, lse))| {
            [(Operand::Part(i), footprint(part)), (Operand::PartLse(i), of_lse(lse.address()))]
        });
        let mut outputs = vec![(Operand::Out, footprint(out))];
        outputs.extend(lse.map(|address| (Operand::Lse, of_lse(address))));
        check_apart(&outputs, &inputs.collect::<Vec<_>>())
    }

    /// Extents of the log-sum-exps.
    pub(super) fn lse_shape(&self) -> LseShape {
        let Shape { batch, rows, heads, .. } = self.shape;
        LseShape { batch, heads, rows }
    }

    /// Rows of all heads and batch entries. They fit: a log-sum-exp has as many elements.
    pub(super) fn all_rows(&self) -> usize {
        let Shape { batch, rows, heads, .. } = self.shape;
        batch * rows * heads
    }

    /// The shape of the parts as they were given.
    pub(super) fn dims(&self) -> Dims {
        let Shape { batch, rows, heads, head_dim } = self.shape;
        if self.packed { Dims::from([rows, heads, head_dim]) } else { Dims::from([batch, rows, heads, head_dim]) }
    }

    /// The order of axes of a new output.
    pub(super) fn new_order(&self) -> Layout {
        if self.packed { Layout::RowMajor } else { self.parts[0].0.memory_order() }
    }
}

/// Reads a tensor of three axes, whose rows are packed, or of four.
fn heads<'a>(tensor: Operand, view: &TensorView<'a>) -> Result<HeadsView<'a>> {
    let shape = view.shape();
    match shape.len() {
        3 => view.reshape(Dims::from([1, shape[0], shape[1], shape[2]]))?.as_heads(Layout::Bshd),
        4 => view.as_heads(Layout::Bshd),
        found => Err(MergeError::AxisCount { tensor, found }.into()),
    }
}

fn check_device(expected: &Device, tensor: Operand, found: &Device) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.info().id(), expected.info().id());
    Err(MergeError::Device { tensor, found, expected }.into())
}

fn check_shape(tensor: Operand, view: &TensorView<'_>, first: &TensorView<'_>) -> Result<()> {
    let (found, expected) = (view.shape(), first.shape());
    if found == expected {
        return Ok(());
    }
    Err(MergeError::Shape { tensor, found: found.to_vec(), expected: expected.to_vec() }.into())
}
