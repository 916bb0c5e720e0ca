//! The tensors of a call, and what all operators refuse alike.

use super::rows::{Rows, check_columns, check_contiguous, check_device, check_dtype, check_shape, footprint};
use crate::device::Device;
use crate::error::{Error, Operand, OperatorError, Result};
use crate::tensor::overlap::{Footprint, check_apart, check_itself};
use crate::tensor::{BoolView, Dims, IndicesView, TensorView, TensorViewMut};
use kernel_spec::DType;

/// The tensors of a call, each checked against the first.
pub(super) struct Tensors<'a> {
    /// The tensor that the others go with.
    pub(super) first: Operand,
    pub(super) device: &'a Device,
    pub(super) shape: Dims,
    read: Vec<(Operand, Footprint)>,
    written: Vec<(Operand, Footprint)>,
}

impl<'a> Tensors<'a> {
    pub(super) fn of(first: Operand, view: &TensorView<'a>) -> Result<Tensors<'a>> {
        if view.shape().is_empty() {
            return Err(OperatorError::NoColumns { tensor: first }.into());
        }
        check_columns(first, view)?;
        let read = vec![(first, footprint(view))];
        Ok(Tensors { first, device: view.device(), shape: view.shape(), read, written: Vec::new() })
    }

    /// The tensors of a call that writes the first of them.
    pub(super) fn in_place(first: Operand, view: &'a TensorViewMut<'_>) -> Result<Tensors<'a>> {
        let view = view.view();
        let mut tensors = Tensors::of(first, &view)?;
        check_itself(view.geometry())?;
        tensors.written = std::mem::take(&mut tensors.read);
        Ok(tensors)
    }

    fn columns(&self) -> Dims {
        Dims::from([*self.shape.last().expect("checked above")])
    }

    /// Rows that are read, of one of these types.
    pub(super) fn rows(&mut self, tensor: Operand, view: &TensorView<'_>, accepted: &[DType]) -> Result<()> {
        self.like(tensor, view, &self.shape.clone(), accepted)?;
        check_columns(tensor, view)?;
        self.read.push((tensor, footprint(view)));
        Ok(())
    }

    /// Rows of booleans that are read.
    pub(super) fn bool_rows(&mut self, tensor: Operand, view: &BoolView<'_>) -> Result<()> {
        check_device(tensor, view.device(), self.first, self.device)?;
        let (found, expected) = (view.shape(), self.shape);
        if found != expected {
            let (found, expected) = (found.to_vec(), expected.to_vec());
            return Err(OperatorError::Shape { tensor, found, of: self.first, expected }.into());
        }
        match (found.last(), view.strides().last()) {
            (Some(&extent), Some(&stride)) if extent > 1 && stride != 1 => {
                return Err(Error::LastDimNotContiguous { tensor, stride });
            }
            _ => {}
        }
        self.read.push((tensor, Footprint::of_bytes(found, view.strides(), view.address())));
        Ok(())
    }

    /// Rows that are written.
    pub(super) fn rows_out(&mut self, tensor: Operand, view: &TensorViewMut<'_>, accepted: &[DType]) -> Result<()> {
        let view = view.view();
        self.like(tensor, &view, &self.shape.clone(), accepted)?;
        check_columns(tensor, &view)?;
        check_itself(view.geometry())?;
        self.written.push((tensor, footprint(&view)));
        Ok(())
    }

    /// A matrix of a shape of its own that is read, of one of these types.
    pub(super) fn matrix(
        &mut self,
        tensor: Operand,
        view: &TensorView<'_>,
        shape: &Dims,
        accepted: &[DType],
    ) -> Result<()> {
        self.like(tensor, view, shape, accepted)?;
        check_columns(tensor, view)?;
        self.read.push((tensor, footprint(view)));
        Ok(())
    }

    /// A matrix of a shape of its own that is written.
    pub(super) fn matrix_out(
        &mut self,
        tensor: Operand,
        view: &TensorViewMut<'_>,
        shape: &Dims,
        accepted: &[DType],
    ) -> Result<()> {
        let view = view.view();
        self.like(tensor, &view, shape, accepted)?;
        check_columns(tensor, &view)?;
        check_itself(view.geometry())?;
        self.written.push((tensor, footprint(&view)));
        Ok(())
    }

    /// A run of numbers that is read, whose length `of` says.
    pub(super) fn line(
        &mut self,
        tensor: Operand,
        view: &TensorView<'_>,
        shape: &Dims,
        of: Operand,
        accepted: &[DType],
    ) -> Result<()> {
        check_device(tensor, view.device(), self.first, self.device)?;
        check_shape(tensor, view, of, shape)?;
        check_dtype(tensor, view.dtype(), accepted)?;
        check_contiguous(tensor, view)?;
        self.read.push((tensor, footprint(view)));
        Ok(())
    }

    /// One number a column, or a row, read.
    pub(super) fn vector(&mut self, tensor: Operand, view: &TensorView<'_>, accepted: &[DType]) -> Result<()> {
        let expected = self.vector_shape(tensor);
        self.like(tensor, view, &expected, accepted)?;
        check_contiguous(tensor, view)?;
        self.read.push((tensor, footprint(view)));
        Ok(())
    }

    /// One number a column, or a row, written.
    pub(super) fn vector_out(&mut self, tensor: Operand, view: &TensorViewMut<'_>, accepted: &[DType]) -> Result<()> {
        let view = view.view();
        let expected = self.vector_shape(tensor);
        self.like(tensor, &view, &expected, accepted)?;
        check_contiguous(tensor, &view)?;
        self.written.push((tensor, footprint(&view)));
        Ok(())
    }

    /// One `i32` a row.
    pub(super) fn row_indices(&mut self, tensor: Operand, view: &IndicesView<'_>) -> Result<()> {
        check_device(tensor, view.device(), self.first, self.device)?;
        let rows = self.shape[..self.shape.len() - 1].iter().try_fold(1usize, |rows, &extent| rows.checked_mul(extent));
        let (found, expected) = (view.len(), rows.unwrap_or(usize::MAX));
        if found != expected {
            return Err(OperatorError::Count { tensor, found, of: self.first, expected }.into());
        }
        self.read.push((tensor, Footprint::contiguous(view.address(), 4 * found as u128)));
        Ok(())
    }

    /// Lets `output` be the very elements of `input`, whose threads write what they have read: that is no overlap.
    pub(super) fn allow_in_place(&mut self, [output, input]: [Operand; 2], [out, of]: [&TensorView<'_>; 2]) {
        if out == of {
            // What else of the call overlaps the input overlaps the output.
            debug_assert!(self.written.iter().any(|(operand, _)| *operand == output));
            self.read.retain(|(operand, _)| *operand != input);
        }
    }

    /// A contiguous tensor whose shape follows from no other, read.
    pub(super) fn table(&mut self, tensor: Operand, view: &TensorView<'_>, accepted: &[DType]) -> Result<()> {
        check_device(tensor, view.device(), self.first, self.device)?;
        check_dtype(tensor, view.dtype(), accepted)?;
        check_contiguous(tensor, view)?;
        self.read.push((tensor, footprint(view)));
        Ok(())
    }

    /// A tensor of rows whose shape does not follow from the first, read.
    pub(super) fn other_rows(&mut self, tensor: Operand, view: &TensorView<'_>, accepted: &[DType]) -> Result<()> {
        self.fits(tensor, view, accepted)?;
        self.read.push((tensor, footprint(view)));
        Ok(())
    }

    /// The same, written.
    pub(super) fn other_rows_out(
        &mut self,
        tensor: Operand,
        view: &TensorViewMut<'_>,
        accepted: &[DType],
    ) -> Result<()> {
        let view = view.view();
        self.fits(tensor, &view, accepted)?;
        check_itself(view.geometry())?;
        self.written.push((tensor, footprint(&view)));
        Ok(())
    }

    fn fits(&self, tensor: Operand, view: &TensorView<'_>, accepted: &[DType]) -> Result<()> {
        check_device(tensor, view.device(), self.first, self.device)?;
        check_dtype(tensor, view.dtype(), accepted)?;
        check_columns(tensor, view)
    }

    /// Numbers on the device, so many of them.
    pub(super) fn indices(&mut self, tensor: Operand, view: &IndicesView<'_>, expected: usize) -> Result<()> {
        check_device(tensor, view.device(), self.first, self.device)?;
        let found = view.len();
        if found != expected {
            return Err(OperatorError::IndexCount { tensor, found, expected }.into());
        }
        self.read.push((tensor, Footprint::contiguous(view.address(), found as u128 * size_of::<i32>() as u128)));
        Ok(())
    }

    pub(super) fn vector_shape(&self, tensor: Operand) -> Dims {
        match tensor {
            Operand::Mean
            | Operand::Rstd
            | Operand::Rowscale
            | Operand::Loss
            | Operand::Lse
            | Operand::ZLosses
            | Operand::Dloss => Rows::statistics_shape(&self.shape),
            _ => self.columns(),
        }
    }

    fn like(&self, tensor: Operand, view: &TensorView<'_>, shape: &Dims, accepted: &[DType]) -> Result<()> {
        check_device(tensor, view.device(), self.first, self.device)?;
        check_shape(tensor, view, self.first, shape)?;
        check_dtype(tensor, view.dtype(), accepted)
    }

    /// That what is written is nothing else of the call.
    pub(super) fn check_apart(&self) -> Result<()> {
        check_apart(&self.written, &self.read)
    }
}
