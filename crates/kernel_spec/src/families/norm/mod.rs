//! RMSNorm and LayerNorm of rows, forward and backward.

mod params;
#[macro_use]
mod rows;

pub use params::{BranchParams, NormBackwardParams, NormParams, NormPartsParams};

use super::rows::{RowTile, RowVariant, Sharing, SumsMemory};
use crate::dtype::DType;
use crate::features::FeatureSet;
use crate::shared::Carve;

/// Columns of a thread block of [`Pass::Parts`].
pub const PARTS_COLUMNS: u32 = 32;

/// Slots of the features.
pub const SLOTS: u32 = 3;

/// What the slots of the features mean. None has a value.
pub mod features {
    /// The mean of a row is taken off: LayerNorm.
    pub const MEAN: u32 = 0;
    /// Forward: there is a residual. Backward: there is a gradient with respect to the sum with it.
    pub const RESIDUAL: u32 = 1;
    /// Before the residual is added, elements of x are dropped or its rows multiplied with a factor each, or both, as
    /// [`BranchParams`](super::BranchParams) have it. Backward: those of the gradient of x.
    pub const BRANCH: u32 = 2;
}

/// What a row computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The output.
    Forward,
    /// The gradient of x, and what each thread block adds to those of weights and biases.
    Backward,
    /// What thread blocks add to the gradients of weights and biases, without that of x.
    Columns,
    /// Those gradients, from what the thread blocks have.
    Parts,
}

/// One row of the list. Its tile: how rows lie, of the type of x and of the output; of the results of [`Pass::Parts`].
pub type Variant = RowVariant<Pass>;

impl Variant {
    named!();
}

/// How a thread block divides up its shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Places for sums over a row.
    pub row: SumsMemory,
    /// Rows that are on their way, of two tensors.
    pub ahead: u32,
    /// What each of the rows that it works on at a time has summed up: `f32 [rows][columns]`, in the place of rows on their way. Backward alone, where
    /// there are several. Of [`Pass::Parts`], the sums of a column of each thread.
    pub sums: u32,
    /// Bytes of all.
    pub total: u32,
}

impl Memory {
    /// The memory of a row of the list.
    pub const fn of(pass: Pass, tile: &RowTile) -> Memory {
        let mut carve = Carve::new();
        let row = SumsMemory::take(&mut carve, tile);
        let ahead = tile.ahead_bytes(2);
        let sums = match pass {
            Pass::Backward if tile.block_rows() > 1 => 4 * tile.block_rows() * tile.columns(),
            Pass::Parts => 4 * tile.threads,
            _ => 0,
        };
        let place = carve.take(if ahead > sums { ahead } else { sums }, 16);
        Memory { row, ahead: place, sums: place, total: carve.total() }
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
    let params_bytes = match pass {
        Pass::Forward => size_of::<NormParams>(),
        Pass::Backward | Pass::Columns => size_of::<NormBackwardParams>(),
        Pass::Parts => size_of::<NormPartsParams>(),
    };
    let all = FeatureSet::of(features::MEAN)
        .union(FeatureSet::of(features::RESIDUAL))
        .union(FeatureSet::of(features::BRANCH));
    let accepts = match pass {
        Pass::Forward | Pass::Backward => all,
        Pass::Columns => FeatureSet::of(features::MEAN),
        Pass::Parts => FeatureSet::NONE,
    };
    let slots = if matches!(pass, Pass::Parts) { 0 } else { SLOTS };
    let entry = tile.entry(symbol, [min_ctas, Memory::of(pass, &tile).total], params_bytes, slots, accepts);
    Variant { entry, pass, tile, reason }
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_norm_row!(variants);

/// The row for this pass over so many columns of this type: the first of the list that takes them, in clusters where `clusters` are there.
pub fn find(pass: Pass, dtype: DType, columns: u32, clusters: bool) -> Option<&'static Variant> {
    super::rows::find(VARIANTS, pass, dtype, columns, clusters)
}

// What every driver takes.
const _: () = assert!(size_of::<NormBackwardParams>() <= 4096, "parameters of a kernel are 4 KiB at most");

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
