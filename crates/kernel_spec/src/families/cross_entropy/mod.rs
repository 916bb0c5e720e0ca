//! Cross-entropy of rows of logits, forward and backward.

mod params;
#[macro_use]
mod rows;

pub use params::{CrossEntropyBackwardParams, CrossEntropyParams};

use super::rows::{MAX_COLUMNS, MAX_SHARERS, RowTile, Sharing, SumsMemory};
use super::same;
use crate::dtype::DType;
use crate::entry::{Arch, Entry};
use crate::features::FeatureSet;
use crate::shared::Carve;

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
}

/// One row of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// What a launch needs of it.
    pub entry: Entry,
    /// What it computes.
    pub pass: Pass,
    /// How rows lie.
    pub tile: RowTile,
    /// Why it is cut so.
    pub reason: &'static str,
}

impl Variant {
    /// The row of this name, at compile time.
    pub const fn named(symbol: &str) -> &'static Variant {
        let mut i = 0;
        while i < VARIANTS.len() {
            if same(VARIANTS[i].entry.symbol.as_bytes(), symbol.as_bytes()) {
                return &VARIANTS[i];
            }
            i += 1;
        }
        panic!("no row of this name");
    }

    /// Columns of the longest row that it takes: any number where tiles pass by.
    pub const fn most_columns(&self) -> u32 {
        match self.tile.sharing {
            Sharing::Alone => self.tile.columns(),
            Sharing::Cluster | Sharing::Again => MAX_COLUMNS,
        }
    }
}

/// How a thread block divides up its shared memory: places for sums over a row.
const fn memory(tile: &RowTile) -> (SumsMemory, u32) {
    let mut carve = Carve::new();
    let sums = SumsMemory::take(&mut carve, tile);
    (sums, carve.total())
}

/// Places for sums over a row of this tile.
pub const fn sums(tile: &RowTile) -> SumsMemory {
    memory(tile).0
}

macro_rules! variants {
    ($($pass:ident $sharing:ident $row_threads:literal x $vectors:literal [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal,
       $reason:literal;)*) => {
        &[$($(variant(Pass::$pass, Sharing::$sharing, [$row_threads, $vectors], DType::$dtype, stringify!($symbol), [$threads, $min_ctas], $reason),)+)*]
    };
}

const fn variant(
    pass: Pass,
    sharing: Sharing,
    [row_threads, vectors]: [u32; 2],
    dtype: DType,
    symbol: &'static str,
    [threads, min_ctas]: [u32; 2],
    reason: &'static str,
) -> Variant {
    assert!(threads.is_multiple_of(row_threads), "whole rows of threads");
    let cluster = matches!(sharing, Sharing::Cluster);
    let tile = RowTile { sharing, dtype, threads, row_threads, vectors, ahead: 0 };
    let (params_bytes, slots, accepts) = match pass {
        Pass::Forward => (size_of::<CrossEntropyParams>(), SLOTS, FeatureSet::of(features::SMOOTHING)),
        Pass::Backward => (size_of::<CrossEntropyBackwardParams>(), 0, FeatureSet::NONE),
    };
    let entry = Entry {
        symbol,
        arch: if cluster { Arch::Sm90a } else { Arch::Sm80 },
        threads,
        shared_bytes: memory(&tile).1,
        min_ctas,
        params_bytes: params_bytes as u32,
        feature_slots: slots,
        accepts,
        cooperative: false,
        max_cluster: if cluster { MAX_SHARERS } else { 1 },
    };
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
