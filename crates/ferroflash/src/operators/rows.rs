//! Tensors as rows: the last axis is that of the columns, all others are those of the rows.

use crate::device::Device;
use crate::error::{Error, Operand, OperatorError, Result};
use crate::tensor::overlap::Footprint;
use crate::tensor::{BoolView, Dims, TensorView};
use kernel_spec::families::rows::{Extents, MAX_COLUMNS, RowsParams, VECTOR_BYTES};
use kernel_spec::{DType, Divisor};

/// Rows are counted in 31 bits, and a thread block may count some more than there are.
pub(super) const MAX_ROWS: u64 = (1 << 31) - 1024;

/// Where a tensor lies. An address of `None` is that of an allocation, which is aligned to whatever kernels like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) operand: Operand,
    /// Its element type; of booleans, that of the tensor that they go with.
    pub(super) dtype: DType,
    /// Bytes of an element.
    width: usize,
    pub(super) shape: Dims,
    pub(super) strides: Dims,
    address: Option<u64>,
    /// Bytes from the start of the tensor of the call to where this part of it starts.
    pub(super) further: u64,
}

impl Placed {
    pub(super) fn of(operand: Operand, view: &TensorView<'_>) -> Placed {
        let (dtype, shape, strides) = (view.dtype(), view.shape(), view.strides());
        Placed { operand, dtype, width: dtype.bytes(), shape, strides, address: Some(view.address()), further: 0 }
    }

    /// Booleans for a tensor of this type.
    pub(super) fn of_bools(operand: Operand, view: &BoolView<'_>, dtype: DType) -> Placed {
        let (shape, strides) = (view.shape(), view.strides());
        Placed { operand, dtype, width: 1, shape, strides, address: Some(view.address()), further: 0 }
    }

    /// What a vector of its elements is a multiple of: as many of them as others have in theirs.
    fn vector(&self) -> u64 {
        u64::from(VECTOR_BYTES) / self.dtype.bytes() as u64 * self.width as u64
    }

    /// A tensor that is not there yet: contiguous.
    pub(super) fn new(operand: Operand, dtype: DType, shape: Dims) -> Placed {
        let mut strides = shape;
        let mut stride = 1usize;
        for axis in (0..shape.len()).rev() {
            strides[axis] = stride;
            stride = stride.saturating_mul(shape[axis]);
        }
        Placed { operand, dtype, width: dtype.bytes(), shape, strides, address: None, further: 0 }
    }

    /// What there is of it at these indices of the first axis.
    pub(super) fn part(&self, indices: std::ops::Range<usize>) -> Placed {
        let further = (indices.start * self.strides[0] * self.width) as u64;
        let mut part = *self;
        part.shape[0] = indices.len();
        part.further += further;
        part.address = self.address.map(|address| address + further);
        part
    }

    /// Bytes of all elements.
    pub(super) fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.width as u64
    }

    /// Where it starts, if it is there.
    pub(super) fn address(&self) -> Option<u64> {
        self.address
    }

    /// Whether it starts at a multiple of a vector, and rows do.
    pub(super) fn is_aligned(&self) -> bool {
        let vector = self.vector();
        let rows = self.shape.iter().zip(self.strides.iter()).take(self.shape.len() - 1);
        let steps = rows.filter(|&(&extent, _)| extent > 1).map(|(_, &stride)| (stride * self.width) as u64);
        self.address.unwrap_or(0).is_multiple_of(vector) && steps.into_iter().all(|step| step.is_multiple_of(vector))
    }

    /// What an address in the parameters has to be a multiple of.
    pub(super) fn alignment(&self, aligned: bool) -> u64 {
        if aligned { self.vector() } else { self.width as u64 }
    }
}

/// The rows that all tensors of a call have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Axes of rows that continue each other in all tensors are one. The first in the order of the shape is the first of these; those behind the last are 0.
    axes: [Option<usize>; 3],
    pub(super) extents: Extents,
}

impl Rows {
    /// Reads the shape of `of`, and the axes of `tensors`, all of that shape.
    pub(super) fn of(of: &Placed, tensors: &[Placed]) -> Result<Rows> {
        let shape = of.shape;
        let Some((&columns, outer)) = shape.split_last() else {
            return Err(OperatorError::NoColumns { tensor: of.operand }.into());
        };
        if columns == 0 || columns > MAX_COLUMNS as usize {
            return Err(OperatorError::Columns { found: columns }.into());
        }
        let found = outer.iter().fold(1u128, |product, &extent| product.saturating_mul(extent as u128));
        let rows = if outer.contains(&0) { 0 } else { found };
        if rows >= MAX_ROWS.into() {
            return Err(OperatorError::Rows { found, limit: MAX_ROWS }.into());
        }
        // From the innermost on: extent and the axis whose stride steps through it.
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (axis, &extent) in outer.iter().enumerate().rev().filter(|&(_, &extent)| extent > 1 && rows > 0) {
            let continues = |&(inner, of): &(usize, usize)| {
                tensors.iter().all(|tensor| tensor.strides[axis] == inner * tensor.strides[of])
            };
            match runs.last_mut() {
                Some(run) if continues(run) => run.0 *= extent,
                _ => runs.push((extent, axis)),
            }
        }
        if runs.len() > 3 {
            return Err(OperatorError::RowAxes { extents: outer.to_vec(), found: runs.len() }.into());
        }
        // Fit: their product is below 2^31.
        let extent = |run: usize| Divisor::new(runs.get(run).map_or(1, |&(extent, _)| extent as u32));
        let axes = [2, 1, 0].map(|run| runs.get(run).map(|&(_, axis)| axis));
        let extents = Extents { rows: rows as u32, columns: columns as u32, middle: extent(1), inner: extent(0) };
        Ok(Rows { rows: rows as usize, columns, axes, extents })
    }

    /// Elements between a row of a tensor and the next, where one number says it for all tensors.
    pub(super) fn one_stride(&self, of: &Placed, tensor: &Placed) -> Result<usize> {
        let found = self.axes.iter().flatten().count();
        if found > 1 {
            let extents = of.shape[..of.shape.len() - 1].to_vec();
            return Err(OperatorError::RowStrides { extents, found }.into());
        }
        let [.., inner] = self.axes;
        Ok(inner.map_or(0, |axis| tensor.strides[axis]))
    }

    /// Shape of the statistics: one number a row.
    pub(super) fn statistics_shape(shape: &Dims) -> Dims {
        Dims::new(&shape[..shape.len().saturating_sub(1)]).expect("fewer axes than a tensor has")
    }

    /// Whether vectors are whole in all of these, columns of the type of which there are `dtype`.
    pub(super) fn aligned<'p>(&self, dtype: DType, mut tensors: impl Iterator<Item = &'p Placed>) -> bool {
        (self.columns * dtype.bytes()).is_multiple_of(VECTOR_BYTES as usize) && tensors.all(Placed::is_aligned)
    }

    /// A tensor as the kernels read it, its address missing.
    pub(super) fn params(&self, tensor: &Placed) -> RowsParams {
        RowsParams { address: 0, strides: self.axes.map(|axis| axis.map_or(0, |axis| tensor.strides[axis] as u64)) }
    }
}

/// Refuses a tensor whose shape is not `expected`, which `of` makes it.
pub(super) fn check_shape(tensor: Operand, view: &TensorView<'_>, of: Operand, expected: &Dims) -> Result<()> {
    if view.shape() == *expected {
        return Ok(());
    }
    let (found, expected) = (view.shape().to_vec(), expected.to_vec());
    Err(OperatorError::Shape { tensor, found, of, expected }.into())
}

/// Refuses columns that are apart.
pub(super) fn check_columns(tensor: Operand, view: &TensorView<'_>) -> Result<()> {
    match (view.shape().last(), view.strides().last()) {
        (Some(&extent), Some(&stride)) if extent > 1 && stride != 1 => {
            Err(Error::LastDimNotContiguous { tensor, stride })
        }
        _ => Ok(()),
    }
}

/// Refuses a tensor of another device than `of`.
pub(super) fn check_device(tensor: Operand, found: &Device, of: Operand, expected: &Device) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.info().id(), expected.info().id());
    Err(OperatorError::Device { tensor, found, of, expected }.into())
}

/// Refuses other element types than these.
pub(super) fn check_dtype(tensor: Operand, found: DType, accepted: &[DType]) -> Result<()> {
    if accepted.contains(&found) {
        return Ok(());
    }
    let mut accepted = accepted.to_vec();
    accepted.dedup();
    Err(OperatorError::DType { tensor, found, accepted }.into())
}

/// Refuses a tensor that is no run of numbers.
pub(super) fn check_contiguous(tensor: Operand, view: &TensorView<'_>) -> Result<()> {
    if view.geometry().is_logical_order() {
        return Ok(());
    }
    let (shape, strides) = (view.shape().to_vec(), view.strides().to_vec());
    Err(OperatorError::NotContiguous { tensor, shape, strides }.into())
}

/// The bytes of a tensor.
pub(super) fn footprint(view: &TensorView<'_>) -> Footprint {
    Footprint::of(view.geometry(), view.address())
}
