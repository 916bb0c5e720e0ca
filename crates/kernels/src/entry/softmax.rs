//! The entry points of softmax: one for every row of `kernel_spec::for_each_softmax_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::rows::{RowTile, SumsMemory};
use kernel_spec::families::softmax::{SoftmaxBackwardParams, SoftmaxParams, Variant, sums};

use crate::entry::{Bf16, F16, F32};
use crate::operators::row::Config;
use crate::operators::softmax;

macro_rules! entries {
    ($($pass:ident $sharing:ident $row_threads:literal x $vectors:literal [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal,
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
        entry! { @row $t $symbol $threads $min_ctas $reason SoftmaxParams (softmax::forward::<Row, $vectors>) }
    };
    (@Backward $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        entry! { @row $t $symbol $threads $min_ctas $reason SoftmaxBackwardParams (softmax::backward::<Row, $vectors>) }
    };
    (@row $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal $params:ident ($kernel:expr)) => {
        #[doc = concat!("Cut so because: ", $reason)]
        pub mod $symbol {
            use super::*;

            /// The row.
            pub struct Row;

            impl Config for Row {
                const TILE: RowTile = Variant::named(stringify!($symbol)).tile;
                const SUMS: SumsMemory = sums(&Self::TILE);
                type T = $t;
            }

            #[kernel(threads = $threads, min_ctas = $min_ctas)]
            pub unsafe fn $symbol(p: $params) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { $kernel(&p) }
            }
        }
    };
}

kernel_spec::for_each_softmax_row!(entries);
