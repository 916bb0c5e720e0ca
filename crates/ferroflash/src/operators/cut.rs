//! How the rows of a call are shared out among threads.

use super::rows::Rows;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::plain::plain;
use crate::plan::{MAX_GRID, Params, Step, check_device, check_hopper};
use crate::specialise::Specialised;
use kernel_spec::families::rows::{Extents, RowTile, RowsParams, Sharing};
use kernel_spec::{Entry, FeatureSet};

plain! {
    RowsParams { address, strides }
    Extents { rows, columns, middle, inner }
}

/// Whether the thread blocks of a cluster can share rows on this device.
pub(super) fn runs_clusters(device: &Device) -> bool {
    check_hopper(device.info()).is_ok()
}

/// A row of a family's list, and how many share a row of the tensor.
pub(super) struct Cut {
    pub(super) entry: &'static Entry,
    pub(super) tile: RowTile,
    /// Why the tile is as it is.
    because: &'static str,
    /// Thread blocks of a row.
    pub(super) sharers: u32,
    /// Columns of each.
    pub(super) share: u32,
}

impl Cut {
    /// Refuses a device that does not run the entry.
    pub(super) fn new(
        entry: &'static Entry,
        tile: RowTile,
        because: &'static str,
        rows: &Rows,
        device: &Device,
    ) -> Result<Cut> {
        let held = (rows.columns as u32).div_ceil(tile.held());
        // A cluster of one is launched like none, and then the GPU refuses to send numbers (H200: illegal instruction).
        let sharers = if tile.in_clusters() { held.max(2) } else { 1 };
        Cut::shared(entry, tile, because, rows, device, sharers)
    }

    /// The same with so many thread blocks to a row, whatever they hold of it.
    pub(super) fn shared(
        entry: &'static Entry,
        tile: RowTile,
        because: &'static str,
        rows: &Rows,
        device: &Device,
        sharers: u32,
    ) -> Result<Cut> {
        check_device(entry, device.info())?;
        // Fits: rows have checked the columns.
        let columns = rows.columns as u32;
        if sharers == 1 {
            return Ok(Cut { entry, tile, because, sharers, share: columns });
        }
        // Runs of whole lines of memory; a thread block holds a multiple of them.
        let line = 128 / tile.dtype.bytes() as u32;
        Ok(Cut { entry, tile, because, sharers, share: columns.div_ceil(sharers).next_multiple_of(line) })
    }

    /// Thread blocks, or clusters, for so many rows: one for each few, or as many as the GPU holds at a time where they share out the rows.
    pub(super) fn teams(&self, rows: &Rows, device: &Device, shared_out: bool) -> u64 {
        let teams = rows.rows.div_ceil(self.tile.block_rows() as usize) as u64;
        if !shared_out {
            return teams;
        }
        let held = u64::from(device.info().multiprocessors) * u64::from(self.entry.min_ctas);
        // Not all places are those of whole clusters, and one that comes after the others would have as much to do as they have had.
        let held = if self.sharers > 1 { held * 8 / 9 / u64::from(self.sharers) } else { held };
        teams.min(held.max(1))
    }

    /// The launch for so many thread blocks, or clusters.
    pub(super) fn step(&self, teams: u64, features: FeatureSet, aligned: bool, params: Params) -> Result<Step> {
        let Cut { entry, tile: RowTile { row_threads, vectors, sharing, .. }, because, .. } = *self;
        let (needed, limit) = (teams * u64::from(self.sharers), MAX_GRID);
        if needed > limit {
            return Err(Error::GridTooLarge { symbol: entry.symbol, needed: needed.into(), limit });
        }
        let pieces = if aligned { "" } else { ", in single elements, as rows start anywhere" };
        let tile = match sharing {
            Sharing::Again => format!("{row_threads} threads a row: {because}{pieces}"),
            _ => format!("{row_threads} threads a row, {vectors} times 16 bytes each: {because}{pieces}"),
        };
        let step = Step::new(Specialised::with_features(entry, features), needed as u32, tile, params);
        Ok(step.in_clusters(self.sharers))
    }

    /// Why the call reads as often as it does.
    pub(super) fn reason(&self) -> String {
        match self.tile.sharing {
            Sharing::Alone => "a row is read once, and held in registers".to_owned(),
            Sharing::Cluster => {
                format!("a row is read once, and held in the registers of {} thread blocks", self.sharers)
            }
            Sharing::Kept => {
                format!("a row is read once, and held in the shared memory of {} thread blocks", self.sharers)
            }
            Sharing::Again => "no registers hold a row, which is read anew for each sum over it".to_owned(),
        }
    }
}
