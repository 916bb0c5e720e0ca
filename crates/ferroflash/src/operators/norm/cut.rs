//! The row of the list that a pass takes, how its rows are shared, and the parameter structs as bytes.

use super::super::rows::Rows;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::plain::plain;
use crate::plan::{MAX_GRID, Params, Step, check_device, check_hopper};
use crate::specialise::Specialised;
use kernel_spec::families::norm::{
    Extents, NormBackwardParams, NormParams, NormPartsParams, Pass, RowsParams, Sharing, Variant, find,
};
use kernel_spec::{DType, FeatureSet};

plain! {
    RowsParams { address, strides }
    Extents { rows, columns, middle, inner }
    NormParams {
        x, residual, out, residual_out, weight, bias, mean, rstd, extents, sharers, share, epsilon, weight_offset, aligned, wide_residual,
        wide_weight, unused, features
    }
    NormBackwardParams {
        normalised, dout, dresidual_out, dx, dresidual, weight, mean, rstd, weight_parts, bias_parts, extents, sharers, share, parts,
        weight_offset, aligned, wide_residual, wide_weight, unused, features
    }
    NormPartsParams { from, to, parts, columns, features }
}

/// The row of the list that a pass takes, and how its rows are shared.
pub(super) struct Cut {
    pub(super) row: &'static Variant,
    /// Thread blocks of a row.
    pub(super) sharers: u32,
    /// Columns of each.
    pub(super) share: u32,
}

impl Cut {
    pub(super) fn of(pass: Pass, dtype: DType, rows: &Rows, device: &Device, clusters: bool) -> Result<Cut> {
        let clusters = clusters && check_hopper(device.info()).is_ok();
        // Fits: rows have checked the columns.
        let columns = rows.columns as u32;
        let row = find(pass, dtype, columns, clusters).expect("rows of any length");
        check_device(&row.entry, device.info())?;
        if row.sharing != Sharing::Cluster {
            return Ok(Cut { row, sharers: 1, share: columns });
        }
        let sharers = columns.div_ceil(row.columns());
        // Runs of whole lines of memory; a thread block holds a multiple of them.
        let line = 128 / dtype.bytes() as u32;
        Ok(Cut { row, sharers, share: columns.div_ceil(sharers).next_multiple_of(line) })
    }

    /// The launch for so many thread blocks, or clusters.
    pub(super) fn step(&self, teams: u64, features: FeatureSet, aligned: bool, params: Params) -> Result<Step> {
        let Variant { entry, row_threads, vectors, reason, sharing, .. } = self.row;
        let (needed, limit) = (teams * u64::from(self.sharers), MAX_GRID);
        if needed > limit {
            return Err(Error::GridTooLarge { symbol: entry.symbol, needed: needed.into(), limit });
        }
        let pieces = if aligned { "" } else { ", in single elements, as rows start anywhere" };
        let tile = match sharing {
            Sharing::Again => format!("{row_threads} threads a row: {reason}{pieces}"),
            _ => format!("{row_threads} threads a row, {vectors} times 16 bytes each: {reason}{pieces}"),
        };
        let step = Step::new(Specialised::with_features(entry, features), needed as u32, tile, params);
        Ok(step.in_clusters(self.sharers))
    }

    pub(super) fn reason(&self) -> String {
        match self.row.sharing {
            Sharing::Alone => "a row is read once, and held in registers".to_owned(),
            Sharing::Cluster => {
                format!("a row is read once, and held in the registers of {} thread blocks", self.sharers)
            }
            Sharing::Again => "no registers hold a row, which is read anew for each sum over it".to_owned(),
        }
    }
}
