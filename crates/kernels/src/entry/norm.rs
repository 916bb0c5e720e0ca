//! The entry points of RMSNorm and LayerNorm: one for every row of `kernel_spec::for_each_norm_row!`.

use cuda_std::prelude::*;
#[cfg(not(target_feature = "sm_90a"))]
use kernel_spec::families::norm::NormPartsParams;
use kernel_spec::families::norm::{NormBackwardParams, NormParams, Variant};
use kernel_spec::families::rows::{RowTile, SumsMemory};

use crate::entry::{Bf16, F16, F32};
use crate::operators::norm::NormConfig;
#[cfg(not(target_feature = "sm_90a"))]
use crate::operators::norm_backward::{columns, parts};
use crate::operators::row::Config;
use crate::operators::{norm, norm_backward};

macro_rules! entries {
    ($($pass:ident $sharing:ident $row_threads:literal x $vectors:literal ahead $ahead:literal [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal,
       $reason:literal;)*) => {
        $($(entry! { $pass $sharing $vectors $dtype $symbol $threads $min_ctas $reason })+)*
    };
}

macro_rules! entry {
    ($pass:ident Cluster $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        #[cfg(target_feature = "sm_90a")]
        entry! { @$pass $vectors $t $symbol $threads $min_ctas $reason }
    };
    ($pass:ident $sharing:ident $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        entry! { @$pass $vectors $t $symbol $threads $min_ctas $reason }
    };
    (@Forward $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        entry! { @row $t $symbol $threads $min_ctas $reason NormParams (norm::forward::<Row, $vectors>) }
    };
    (@Backward $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        entry! { @row $t $symbol $threads $min_ctas $reason NormBackwardParams (norm_backward::backward::<Row, $vectors>) }
    };
    (@Columns $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        entry! { @row $t $symbol $threads $min_ctas $reason NormBackwardParams (columns::<Row>) }
    };
    (@Parts $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        entry! { @row $t $symbol $threads $min_ctas $reason NormPartsParams (parts::<Row>) }
    };
    (@row $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal $params:ident ($kernel:expr)) => {
        #[doc = concat!("Cut so because: ", $reason)]
        pub mod $symbol {
            use super::*;

            /// The row.
            pub struct Row;

            impl Config for Row {
                const TILE: RowTile = <Row as NormConfig>::ROW.tile;
                const SUMS: SumsMemory = <Row as NormConfig>::MEMORY.row;
                type T = $t;
            }

            impl NormConfig for Row {
                const ROW: &'static Variant = Variant::named(stringify!($symbol));
            }

            #[kernel(threads = $threads, min_ctas = $min_ctas)]
            pub unsafe fn $symbol(p: $params) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { $kernel(&p) }
            }
        }
    };
}

kernel_spec::for_each_norm_row!(entries);
