//! The row of the list that a pass takes, and the parameter structs as bytes.

use super::super::cut::{Cut, runs_clusters};
use super::super::rows::Rows;
use crate::device::Device;
use crate::error::Result;
use crate::plain::plain;
use kernel_spec::DType;
use kernel_spec::families::norm::{BranchParams, NormBackwardParams, NormParams, Pass, find};

plain! {
    BranchParams { rowscale, seed, offset, factor, threshold, on_device, drops }
    NormParams {
        x, residual, out, residual_out, weight, bias, mean, rstd, branch, extents, sharers, share, epsilon, weight_offset, aligned, wide_residual,
        wide_weight, teams, features
    }
    NormBackwardParams {
        normalised, dout, dresidual_out, dx, dresidual, weight, mean, rstd, weight_parts, bias_parts, branch, extents, sharers, share, parts,
        weight_offset, aligned, wide_residual, wide_weight, unused, features
    }
}

/// How a pass over these rows is cut, in clusters where those are wanted and there.
pub(super) fn cut(pass: Pass, dtype: DType, rows: &Rows, device: &Device, clusters: bool) -> Result<Cut> {
    // Fits: rows have checked the columns.
    let row = find(pass, dtype, rows.columns as u32, clusters && runs_clusters(device)).expect("rows of any length");
    Cut::new(&row.entry, row.tile, row.reason, rows, device)
}
