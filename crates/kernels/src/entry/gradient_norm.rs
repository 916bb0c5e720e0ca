//! The entry points of the norm of gradients: one for every row of `kernel_spec::for_each_gradient_norm_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::gradient_norm::{NormParams, SquaresParams, Variant};
use kernel_spec::families::rows::{RowTile, SumsMemory};

use crate::entry::{Bf16, F16, F32};
use crate::operators::gradient_norm;
use crate::operators::row::Config;

macro_rules! entries {
    ($($pass:ident [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {
        $($(entry! { $pass $dtype $symbol $threads $min_ctas $reason })+)*
    };
}

macro_rules! entry {
    (Squares $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        // SAFETY: tensors that are there are inside of the parameters.
        entry! { @$t $symbol $threads $min_ctas $reason SquaresParams, |p| unsafe {
            gradient_norm::squares::<Row>(p, |offset| cuda_std::load_param_u64!($symbol, offset as u64))
        } }
    };
    (Norm $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        // SAFETY: launched as one thread block.
        entry! { @$t $symbol $threads $min_ctas $reason NormParams, |p| unsafe { gradient_norm::norm::<Row>(p) } }
    };
    (@$t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal $params:ident, |$p:ident| $kernel:expr) => {
        #[doc = concat!("Cut so because: ", $reason)]
        pub mod $symbol {
            use super::*;

            /// The row.
            pub struct Row;

            impl Config for Row {
                const TILE: RowTile = Variant::named(stringify!($symbol)).tile;
                const SUMS: SumsMemory = Variant::named(stringify!($symbol)).sums();
                type T = $t;
            }

            #[kernel(threads = $threads, min_ctas = $min_ctas)]
            pub unsafe fn $symbol(p: $params) {
                let $p = &p;
                // With this row's threads and shared memory.
                $kernel
            }
        }
    };
}

kernel_spec::for_each_gradient_norm_row!(entries);
