//! What Hopper's copy engine is told about a tensor, before the driver encodes it.

use kernel_spec::DType;
use kernel_spec::copy_engine::{WRAPPED, wrapping_stride};

/// A tensor as the copy engine sees it: `[batch, head, row, dim]`, listed innermost first, which is `(dim, row, head, batch)`; with
/// several heads in a box, `(dim, head, row, batch)`.
///
/// The extents are the true ones: what a box holds past them is read as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorGeometry {
    pub(crate) address: u64,
    /// Whether the map wraps: the last axis is that of the rows a second time, and there is a fifth, see [`WRAPPED`].
    pub(crate) wraps: bool,
    pub(crate) dtype: DType,
    pub(crate) extents: [u64; 4],
    /// Bytes from one element to the next along all axes but the first.
    pub(crate) byte_strides: [u64; 3],
    /// Elements that one copy moves along each axis.
    pub(crate) box_extents: [u32; 4],
}

impl TensorGeometry {
    /// Extents of all axes, strides of all but the first, and extents of a box.
    pub(crate) fn axes(&self) -> (Vec<u64>, Vec<u64>, Vec<u32>) {
        let (mut extents, mut strides) = (self.extents.to_vec(), self.byte_strides.to_vec());
        let mut box_extents = self.box_extents.to_vec();
        if self.wraps {
            let [.., row_bytes] = self.byte_strides;
            extents.push(u64::from(WRAPPED) + 1);
            strides.push(wrapping_stride(row_bytes));
            box_extents.push(1);
        }
        (extents, strides, box_extents)
    }
}
