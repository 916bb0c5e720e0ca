//! The row of the list that a pass takes, and the parameter structs as bytes.

use super::super::cut::{Cut, runs_clusters};
use super::super::rows::Rows;
use crate::device::Device;
use crate::error::Result;
use crate::plain::plain;
use kernel_spec::DType;
use kernel_spec::families::cross_entropy::{CrossEntropyBackwardParams, CrossEntropyParams, LossOptions, Pass, find};
use kernel_spec::families::rows::{MAX_SHARERS, Sharing};

plain! {
    LossOptions { scale, smoothing, z_loss, ignored, has_ignored }
    CrossEntropyParams { logits, targets, loss, lse, z_losses, extents, sharers, share, options, aligned, teams, unused, features }
    CrossEntropyBackwardParams { logits, dlogits, targets, lse, dloss, extents, tiles, options, aligned, unused, features }
}

/// How a forward pass over these rows is cut: in clusters where those are wanted and there, and a thread block a row would leave multiprocessors idle.
pub(super) fn forward_cut(dtype: DType, rows: &Rows, device: &Device, clusters: bool) -> Result<Cut> {
    // Fits: rows have checked the columns.
    let columns = rows.columns as u32;
    let count = rows.rows.max(1) as u64;
    let multiprocessors = u64::from(device.info().multiprocessors);
    let wants = clusters && runs_clusters(device) && count < multiprocessors;
    let mut row = find(Pass::Forward, dtype, columns, wants).expect("rows of any length");
    let mut sharers = 1;
    if row.tile.sharing == Sharing::Cluster {
        // As many as all multiprocessors hold, each with a tile at least.
        let held = (multiprocessors * u64::from(row.entry.min_ctas)).div_ceil(count);
        sharers = held.min(columns.div_ceil(row.tile.columns()).into()).min(MAX_SHARERS.into()) as u32;
        if sharers == 1 {
            row = find(Pass::Forward, dtype, columns, false).expect("rows of any length");
        }
    }
    Cut::shared(&row.entry, row.tile, row.reason, rows, device, sharers)
}

/// How a backward pass over these rows is cut, and in how many tiles a row.
pub(super) fn backward_cut(dtype: DType, rows: &Rows, device: &Device) -> Result<(Cut, u32)> {
    // Fits: rows have checked the columns.
    let columns = rows.columns as u32;
    let row = find(Pass::Backward, dtype, columns, false).expect("rows of any length");
    Ok((Cut::new(&row.entry, row.tile, row.reason, rows, device)?, columns.div_ceil(row.tile.columns())))
}
