//! A tensor as a matrix of a product.

use super::super::rows::Placed;
use crate::error::{Operand, Unsupported};
use crate::plan::Binding;
use crate::tensor::Dims;
use crate::tensor_map::TensorGeometry;
use kernel_spec::DType;
use kernel_spec::copy_engine::{ALIGNMENT, BOX_COLS, STRIDE_LIMIT};
use kernel_spec::families::dense::MatrixParams;

/// A matrix of a product: a tensor whose rows one stride steps through.
#[derive(Clone, Copy, Debug)]
pub(in crate::operators) struct Matrix {
    pub(in crate::operators) placed: Placed,
    /// The tensor of the call, or memory of the call alone.
    pub(in crate::operators) binding: Binding,
    pub(in crate::operators) rows: usize,
    pub(in crate::operators) columns: usize,
    /// Elements between a row and the next; of a single row anything.
    pub(in crate::operators) stride: usize,
}

impl Matrix {
    /// A tensor of the call.
    pub(in crate::operators) fn of(placed: &Placed, rows: usize, stride: usize) -> Matrix {
        let columns = *placed.shape.last().expect("at least the axis of the columns");
        Matrix { placed: *placed, binding: Binding::Operand(placed.operand), rows, columns, stride }
    }

    /// Memory of the call alone: rows of so many numbers, in whole pieces.
    pub(in crate::operators) fn in_buffer(
        operand: Operand,
        dtype: DType,
        [rows, columns]: [usize; 2],
        buffer: usize,
    ) -> Matrix {
        let placed = Placed::new(operand, dtype, Dims::from([rows, columns]));
        let stride = columns.next_multiple_of(ALIGNMENT as usize / dtype.bytes());
        Matrix { placed, binding: Binding::Buffer(buffer), rows, columns, stride }
    }

    /// Bytes of it, where it is a buffer: something, also without rows.
    pub(in crate::operators) fn buffer_bytes(&self) -> u64 {
        self.row_bytes().saturating_mul(self.rows.max(1) as u64)
    }

    fn row_bytes(&self) -> u64 {
        (self.stride as u64).saturating_mul(self.placed.dtype.bytes() as u64)
    }

    /// Whether the copy engine, or a kernel that moves 16 bytes at a time, takes address and stride.
    pub(in crate::operators) fn check(&self) -> Result<(), Unsupported> {
        let (tensor, bytes) = (self.placed.operand, self.row_bytes());
        if let Some(address) = self.placed.address().filter(|address| !address.is_multiple_of(ALIGNMENT)) {
            return Err(Unsupported::Address { tensor, address });
        }
        if self.rows > 1 && (bytes == 0 || !bytes.is_multiple_of(ALIGNMENT) || bytes >= STRIDE_LIMIT) {
            return Err(Unsupported::Stride { tensor, axis: "row", bytes });
        }
        Ok(())
    }

    /// The matrix, or none, as kernels read it, its address missing. One row has no step, so that rows behind it, of which nothing is read, are aligned as it is.
    pub(in crate::operators) fn params(matrix: Option<&Matrix>) -> MatrixParams {
        let row_stride = matrix.map_or(0, |matrix| if matrix.rows > 1 { matrix.stride as u64 } else { 0 });
        MatrixParams { address: 0, row_stride }
    }

    /// Whether rows are whole pieces of 16 bytes at multiples of them.
    pub(in crate::operators) fn is_whole(&self) -> bool {
        let starts = self.placed.address().unwrap_or(0).is_multiple_of(ALIGNMENT);
        let steps = self.rows <= 1 || self.row_bytes().is_multiple_of(ALIGNMENT);
        starts && steps && (self.columns * self.placed.dtype.bytes()).is_multiple_of(ALIGNMENT as usize)
    }

    /// What the copy engine has to know of it, in `halves` halves of its rows, for boxes of `box_rows` rows.
    pub(in crate::operators) fn geometry(&self, halves: usize, box_rows: u32) -> TensorGeometry {
        let rows = self.rows / halves;
        // The stride of an axis of extent 1 is never used and may be anything; the driver checks it all the same.
        let stride = |extent: usize, bytes: u64| if extent > 1 { bytes } else { ALIGNMENT };
        let half_bytes = self.row_bytes().saturating_mul(rows as u64);
        TensorGeometry {
            address: 0,
            wraps: false,
            dtype: self.placed.dtype,
            extents: [self.columns as u64, rows as u64, halves as u64, 1],
            byte_strides: [stride(rows, self.row_bytes()), stride(halves, half_bytes), ALIGNMENT],
            box_extents: [BOX_COLS, box_rows, 1, 1],
        }
    }
}
