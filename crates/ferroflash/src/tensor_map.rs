//! What Hopper's copy engine is told about a tensor, before the driver encodes it.

use kernel_spec::DType;

/// A tensor as the copy engine sees it: `[batch, head, row, dim]`, listed innermost first, which is `(dim, row, head, batch)`; with
/// several heads in a box, `(dim, head, row, batch)`.
///
/// The extents are the true ones: what a box holds past them is read as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorGeometry {
    pub(crate) address: u64,
    /// Bytes by which the coordinates' origin lies before the address.
    pub(crate) before: u64,
    pub(crate) dtype: DType,
    pub(crate) extents: [u64; 4],
    /// Bytes from one element to the next along all axes but the first.
    pub(crate) byte_strides: [u64; 3],
    /// Elements that one copy moves along each axis.
    pub(crate) box_extents: [u32; 4],
}
