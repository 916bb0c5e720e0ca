//! What Hopper's copy engine is told about a tensor, before the driver encodes it.

use crate::tensor::TensorView;
use kernel_spec::DType;
use kernel_spec::copy_engine::BOX_COLS;

/// A tensor as the copy engine sees it: `[batch, head, row, dim]`, listed innermost first, which is `(dim, row, head, batch)`; with
/// several heads in a box, `(dim, head, row, batch)`.
///
/// The extents are the true ones: what a box holds past them is read as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorGeometry {
    pub(crate) address: u64,
    pub(crate) dtype: DType,
    pub(crate) extents: [u64; 4],
    /// Bytes from one element to the next along all axes but the first.
    pub(crate) byte_strides: [u64; 3],
    /// Elements that one copy moves along each axis.
    pub(crate) box_extents: [u32; 4],
}

impl TensorGeometry {
    /// The geometry of a view that the plan has found fit for it, in boxes of `box_rows` rows: whole rows of `packed` heads each.
    pub(crate) fn new(view: &TensorView<'_>, box_rows: u32, packed: u32) -> TensorGeometry {
        let [batch, rows, heads, (dims, _)] = view.geometry().axes();
        let bytes = view.dtype().bytes();
        let axes = if packed == 1 { [rows, heads, batch] } else { [heads, rows, batch] };
        let box_extents = if packed == 1 { [box_rows, 1] } else { [packed, box_rows / packed] };
        // The stride of an axis of extent 1 is never used and may be anything; the driver checks it all the same.
        let stride = |(extent, stride): (usize, usize)| if extent > 1 { stride * bytes } else { dims * bytes } as u64;
        let [inner, outer, last] = axes.map(|(extent, _)| extent as u64);
        TensorGeometry {
            address: view.address(),
            dtype: view.dtype(),
            extents: [dims as u64, inner, outer, last],
            byte_strides: axes.map(stride),
            box_extents: [BOX_COLS, box_extents[0], box_extents[1], 1],
        }
    }
}
