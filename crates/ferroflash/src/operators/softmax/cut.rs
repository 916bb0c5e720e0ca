//! The row of the list that a pass takes, and the parameter structs as bytes.

use super::super::cut::{Cut, runs_clusters};
use super::super::rows::Rows;
use crate::device::Device;
use crate::error::Result;
use crate::plain::plain;
use kernel_spec::DType;
use kernel_spec::families::softmax::{Pass, SoftmaxBackwardParams, SoftmaxParams, find};

plain! {
    SoftmaxParams { x, mask, out, extents, sharers, queries, share, scale, aligned, mask_kind, features }
    SoftmaxBackwardParams { out, dout, dx, extents, sharers, share, scale, aligned, features }
}

/// How a pass over these rows is cut, in clusters where those are wanted and there.
pub(super) fn cut(pass: Pass, dtype: DType, rows: &Rows, device: &Device, clusters: bool) -> Result<Cut> {
    // Fits: rows have checked the columns.
    let row = find(pass, dtype, rows.columns as u32, clusters && runs_clusters(device)).expect("rows of any length");
    Cut::new(&row.entry, row.tile, row.reason, rows, device)
}
