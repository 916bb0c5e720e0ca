//! Which row of the list a product takes, and what rules Hopper's out.

use super::super::rows::Placed;
use crate::device::{Device, DeviceInfo};
use crate::error::{Operand, Unsupported};
use crate::plan::check_hopper;
use crate::tensor_map::TensorGeometry;
use kernel_spec::DType;
use kernel_spec::copy_engine::{ALIGNMENT, BOX_COLS, STRIDE_LIMIT};
use kernel_spec::families::dense::{Engine, Pass, Variant, find};

/// A matrix of a product: a tensor whose rows one stride steps through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) placed: Placed,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Elements between a row and the next; of a single row anything.
    pub(super) stride: usize,
}

impl Matrix {
    fn row_bytes(&self) -> u64 {
        (self.stride as u64).saturating_mul(self.placed.dtype.bytes() as u64)
    }

    /// Whether the copy engine, or a kernel that moves 16 bytes at a time, takes address and stride.
    fn check(&self) -> Result<(), Unsupported> {
        let (tensor, bytes) = (self.placed.operand, self.row_bytes());
        if let Some(address) = self.placed.address().filter(|address| !address.is_multiple_of(ALIGNMENT)) {
            return Err(Unsupported::Address { tensor, address });
        }
        if self.rows > 1 && (bytes == 0 || !bytes.is_multiple_of(ALIGNMENT) || bytes >= STRIDE_LIMIT) {
            return Err(Unsupported::Stride { tensor, axis: "row", bytes });
        }
        Ok(())
    }

    /// Whether rows are whole pieces of 16 bytes at multiples of them.
    pub(super) fn is_whole(&self) -> bool {
        let starts = self.placed.address().unwrap_or(0).is_multiple_of(ALIGNMENT);
        let steps = self.rows <= 1 || self.row_bytes().is_multiple_of(ALIGNMENT);
        starts && steps && (self.columns * self.placed.dtype.bytes()).is_multiple_of(ALIGNMENT as usize)
    }

    /// What the copy engine has to know of it, in `halves` halves of its rows, for boxes of `box_rows` rows.
    pub(super) fn geometry(&self, halves: usize, box_rows: u32) -> TensorGeometry {
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

/// A product `[rows, columns]`, and what of it decides.
pub(super) struct Product<'p> {
    pub(super) dtype: DType,
    pub(super) rows: usize,
    /// Of the output.
    pub(super) columns: usize,
    pub(super) gated: bool,
    /// What is read as operands.
    pub(super) operands: [&'p Matrix; 2],
    /// What else is read and written row by row.
    pub(super) others: &'p [Matrix],
    pub(super) bias: Option<&'p Placed>,
}

impl Product<'_> {
    /// The row that the product takes, and why it is not Hopper's, if it is not.
    pub(super) fn choose(&self, device: &Device, hopper: bool) -> (&'static Variant, Option<Unsupported>) {
        let Product { dtype, rows, columns, gated, .. } = *self;
        let info = device.info();
        // Fit: the call has bounded both.
        let find = |unit| find(Pass::Forward, unit, dtype, [rows as u32, columns as u32], gated, info.multiprocessors);
        let checked = if hopper { self.check_hopper(info) } else { Err(Unsupported::SwitchedOff) };
        match (checked, find(Engine::Warpgroups)) {
            (Ok(()), Some(row)) => (row, None),
            (checked, _) => (find(Engine::Warps).expect("a row for every type"), checked.err()),
        }
    }

    /// The one place of the conditions of Hopper's kernel.
    fn check_hopper(&self, device: &DeviceInfo) -> Result<(), Unsupported> {
        check_hopper(device)?;
        if self.dtype == DType::F32 {
            return Err(Unsupported::DType { found: self.dtype });
        }
        if self.rows == 0 {
            return Err(Unsupported::NoRows);
        }
        if !self.columns.is_multiple_of(8) {
            return Err(Unsupported::OutputColumns { found: self.columns });
        }
        self.operands.into_iter().chain(self.others).try_for_each(Matrix::check)?;
        match self.bias.and_then(|bias| bias.address()).filter(|address| !address.is_multiple_of(ALIGNMENT)) {
            Some(address) => Err(Unsupported::Address { tensor: Operand::Bias, address }),
            None => Ok(()),
        }
    }

    /// Whether everything but the operands moves in whole pieces.
    pub(super) fn leaves_whole(&self) -> bool {
        let bias = self.bias.is_none_or(|bias| bias.address().unwrap_or(0).is_multiple_of(ALIGNMENT));
        self.columns.is_multiple_of(8) && bias && self.others.iter().all(Matrix::is_whole)
    }
}
