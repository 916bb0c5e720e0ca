//! Softmax of rows, forward and backward.

mod params;
#[macro_use]
mod rows;

pub use params::{MASK_OF_BOOLS, MASK_OF_F32, MASK_OF_X, SoftmaxBackwardParams, SoftmaxParams};

use super::rows::{RowTile, RowVariant, Sharing, SumsMemory};
use crate::dtype::DType;
use crate::features::FeatureSet;

/// Slots of the features.
pub const SLOTS: u32 = 3;

/// What the slots of the features mean. None has a value.
pub mod features {
    /// The logarithm of the softmax.
    pub const LOG: u32 = 0;
    /// Rows of the last axis of rows are query rows, aligned to the end of the columns, and see no later column.
    pub const CAUSAL: u32 = 1;
    /// There is a mask.
    pub const MASK: u32 = 2;
}

/// What a row computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The output.
    Forward,
    /// The gradient of x.
    Backward,
}

/// One row of the list. Its tile: how rows lie.
pub type Variant = RowVariant<Pass>;

impl Variant {
    named!();
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
    let log = FeatureSet::of(features::LOG);
    let (params_bytes, accepts) = match pass {
        Pass::Forward => {
            let seen = FeatureSet::of(features::CAUSAL).union(FeatureSet::of(features::MASK));
            (size_of::<SoftmaxParams>(), log.union(seen))
        }
        Pass::Backward => (size_of::<SoftmaxBackwardParams>(), log),
    };
    // x; or the output and its gradient.
    let tensors = if matches!(pass, Pass::Forward) { 1 } else { 2 };
    let entry = tile.entry(symbol, [min_ctas, SumsMemory::with_ahead(&tile, tensors)[1]], params_bytes, SLOTS, accepts);
    Variant { entry, pass, tile, reason }
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_softmax_row!(variants);

/// The row for this pass over so many columns of this type: the first of the list that takes them, in clusters where `clusters` are there.
pub fn find(pass: Pass, dtype: DType, columns: u32, clusters: bool) -> Option<&'static Variant> {
    super::rows::find(VARIANTS, pass, dtype, columns, clusters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Arch;
    use crate::families::rows::MAX_COLUMNS;

    #[test]
    fn every_row_of_a_pass_takes_more_columns_than_those_before_it() {
        for dtype in DType::ALL {
            for pass in [Pass::Forward, Pass::Backward] {
                for clusters in [false, true] {
                    let mut from = 1;
                    while from <= MAX_COLUMNS {
                        let row = find(pass, dtype, from, clusters).expect("rows of any length");
                        assert_eq!(find(pass, dtype, row.tile.most_columns(), clusters), Some(row));
                        assert!(clusters || row.entry.arch == Arch::Sm80);
                        from = row.tile.most_columns() + 1;
                    }
                }
            }
            assert_eq!(find(Pass::Forward, dtype, MAX_COLUMNS + 1, true), None);
        }
    }

    #[test]
    fn every_row_is_taken() {
        for row in VARIANTS {
            let columns = row.tile.most_columns();
            let found = [false, true].map(|clusters| find(row.pass, row.tile.dtype, columns, clusters));
            assert!(found.contains(&Some(row)), "{}", row.entry.symbol);
            assert_eq!(Variant::named(row.entry.symbol), row);
        }
    }
}
