//! The entry points of cross-entropy: one for every row of `kernel_spec::for_each_cross_entropy_row!`.

use cuda_std::prelude::*;
#[cfg(not(target_feature = "sm_90a"))]
use kernel_spec::families::cross_entropy::{CrossEntropyBackwardParams, LossPartsParams};
use kernel_spec::families::cross_entropy::{CrossEntropyParams, Variant};
use kernel_spec::families::rows::{RowTile, SumsMemory};

use crate::entry::{Bf16, F16, F32};
use crate::operators::cross_entropy;
use crate::operators::row::Config;

macro_rules! entries {
    ($($pass:ident $sharing:ident $row_threads:literal x $vectors:literal ahead $ahead:literal [$($t:ident $symbol:ident),+] $threads:literal, $min_ctas:literal,
       $reason:literal;)*) => {
        $($(entry! { $pass $vectors, $sharing $t $symbol $threads $min_ctas $reason SumsMemory::alone(&Self::TILE) })+)*
    };
}

macro_rules! entry {
    (Forward $vectors:literal, $($row:tt)*) => {
        row_entry! { $($row)*, CrossEntropyParams => cross_entropy::forward::<Row, $vectors> }
    };
    (Backward $vectors:literal, $($row:tt)*) => {
        row_entry! { $($row)*, CrossEntropyBackwardParams => cross_entropy::backward::<Row, $vectors> }
    };
    (Parts $vectors:literal, $($row:tt)*) => {
        row_entry! { $($row)*, LossPartsParams => cross_entropy::parts::<Row> }
    };
}

kernel_spec::for_each_cross_entropy_row!(entries);
