//! Cross-entropy of rows of logits, forward and backward.

mod params;
#[macro_use]
mod rows;

pub use params::{CrossEntropyBackwardParams, CrossEntropyParams, LossOptions, LossPartsParams};

use super::rows::{MAX_COLUMNS, RowTile, RowVariant, Sharing, SumsMemory};
use crate::dtype::DType;
use crate::features::FeatureSet;

/// Slots of the features.
pub const SLOTS: u32 = 1;

/// What the slots of the features mean. None has a value.
pub mod features {
    /// All classes have a share of the target: the mean of the logits counts.
    pub const SMOOTHING: u32 = 0;
}

/// What a row computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Losses and log-sum-exps.
    Forward,
    /// The gradient of the logits.
    Backward,
    /// Losses and log-sum-exps of logits that were never in memory, from what tiles of a product have left of them.
    Parts,
}

/// One row of the list. Its tile: how rows lie.
pub type Variant = RowVariant<Pass>;

impl Variant {
    named!();

    /// Columns of the longest row that it takes: any number where tiles pass by.
    pub const fn most_columns(&self) -> u32 {
        match self.tile.sharing {
            Sharing::Alone => self.tile.columns(),
            Sharing::Cluster | Sharing::Kept | Sharing::Again => MAX_COLUMNS,
        }
    }
}

macro_rules! variants {
    ($($pass:ident $sharing:ident $row_threads:literal x $vectors:literal ahead $ahead:literal [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal,
       $reason:literal;)*) => {
        &[$($(variant(Pass::$pass, Sharing::$sharing, [$row_threads, $vectors, $ahead], DType::$dtype, stringify!($symbol), [$threads, $min_ctas], $reason),)+)*]
    };
}

const fn variant(
    pass: Pass,
    sharing: Sharing,
    [row_threads, vectors, ahead]: [u32; 3],
    dtype: DType,
    symbol: &'static str,
    [threads, min_ctas]: [u32; 2],
    reason: &'static str,
) -> Variant {
    let tile = RowTile { sharing, dtype, threads, row_threads, vectors, ahead };
    let (params_bytes, slots, accepts) = match pass {
        Pass::Forward => (size_of::<CrossEntropyParams>(), SLOTS, FeatureSet::of(features::SMOOTHING)),
        Pass::Backward => (size_of::<CrossEntropyBackwardParams>(), 0, FeatureSet::NONE),
        Pass::Parts => (size_of::<LossPartsParams>(), 0, FeatureSet::NONE),
    };
    let entry = tile.entry(symbol, [min_ctas, SumsMemory::with_ahead(&tile, 1)[1]], params_bytes, slots, accepts);
    Variant { entry, pass, tile, reason }
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_cross_entropy_row!(variants);

/// The row for this pass over so many columns of this type: the first of the list that takes them. Rows of more than one tile are shared by the thread
/// blocks of a cluster where `shared` asks for it.
pub fn find(pass: Pass, dtype: DType, columns: u32, shared: bool) -> Option<&'static Variant> {
    let found = VARIANTS.iter().filter(|row| row.pass == pass && row.tile.dtype == dtype);
    let mut found = found.filter(|row| columns <= row.most_columns());
    let alone = found.clone().find(|row| row.tile.sharing != Sharing::Cluster)?;
    match found.find(|row| row.tile.sharing == Sharing::Cluster) {
        Some(cluster) if shared && alone.tile.sharing == Sharing::Again => Some(cluster),
        _ => Some(alone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Arch;

    #[test]
    fn every_row_is_taken_up_to_its_most_columns() {
        for row in VARIANTS {
            let columns = row.most_columns();
            let shared = row.tile.sharing == Sharing::Cluster;
            assert_eq!(find(row.pass, row.tile.dtype, columns, shared), Some(row), "{}", row.entry.symbol);
            assert_eq!(find(row.pass, row.tile.dtype, columns, false).map(|row| row.entry.arch), Some(Arch::Sm80));
            assert_eq!(Variant::named(row.entry.symbol), row);
        }
        for dtype in DType::ALL {
            // Nothing that one tile holds is shared.
            for columns in [1, 32 * 4 * 16 / dtype.bytes() as u32, 128 * 4 * 16 / dtype.bytes() as u32] {
                assert_eq!(find(Pass::Forward, dtype, columns, true).map(|row| row.tile.sharing), Some(Sharing::Alone));
            }
            assert_eq!(find(Pass::Forward, dtype, MAX_COLUMNS + 1, true), None);
            assert_eq!(find(Pass::Backward, dtype, 5000, true).map(|row| row.tile.sharing), Some(Sharing::Again));
        }
    }
}
