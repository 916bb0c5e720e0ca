//! The entry points of dense layers: one for every row of `kernel_spec::for_each_dense_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::dense::Variant;
#[cfg(not(target_feature = "sm_90a"))]
use kernel_spec::families::dense::{DenseParams, LogitsParams};
#[cfg(target_feature = "sm_90a")]
use kernel_spec::families::dense::{HopperDenseParams, HopperLogitsParams};

#[cfg(not(target_feature = "sm_90a"))]
use crate::entry::F32;
use crate::entry::{Bf16, F16};
use crate::operators::dense;
#[cfg(target_feature = "sm_90a")]
use crate::operators::dense::hopper;
#[cfg(not(target_feature = "sm_90a"))]
use crate::operators::dense::portable;
#[cfg(target_feature = "sm_90a")]
use crate::parts::fragments::RegTile;

macro_rules! entries {
    ($($pass:ident $engine:ident $rows:literal x $columns:literal x $depth:literal [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal,
       $stages:literal, $cluster:literal, $group:literal, $cycles:literal, $reason:literal;)*) => {
        $($(entry! { $engine $pass $rows x $columns x $depth $dtype $symbol $threads $min_ctas $reason })+)*
    };
}

/// The parameters of a pass.
#[cfg(not(target_feature = "sm_90a"))]
macro_rules! params {
    (Losses) => {
        LogitsParams
    };
    (LogitGradient) => {
        LogitsParams
    };
    ($layer:ident) => {
        DenseParams
    };
}

/// The same on Hopper, and what is behind the maps.
#[cfg(target_feature = "sm_90a")]
macro_rules! hopper_params {
    (Losses) => {
        HopperLogitsParams
    };
    (LogitGradient) => {
        HopperLogitsParams
    };
    ($layer:ident) => {
        HopperDenseParams
    };
    (Losses of $p:ident) => {
        &$p.logits
    };
    (LogitGradient of $p:ident) => {
        &$p.logits
    };
    ($layer:ident of $p:ident) => {
        &$p.dense
    };
}

macro_rules! entry {
    (Warpgroups $pass:ident $rows:literal x $columns:literal x $depth:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        #[cfg(target_feature = "sm_90a")]
        #[doc = concat!("Cut so because: ", $reason)]
        pub mod $symbol {
            use super::*;

            entry! { @row $pass $symbol }

            impl hopper::Config for Row {
                type T = $t;
                type Acc = RegTile<1, { $columns / 8 }>;
            }

            #[kernel(threads = $threads, min_ctas = $min_ctas, param_align = 64)]
            pub unsafe fn $symbol(p: hopper_params!($pass)) {
                let maps = cuda_std::param_address!($symbol);
                // SAFETY: launched with this row's threads, shared memory and clusters.
                unsafe { hopper::product::<Row>(hopper_params!($pass of p), maps) }
            }
        }
    };
    (Warps $pass:ident $rows:literal x $columns:literal x $depth:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("Cut so because: ", $reason)]
        pub mod $symbol {
            use super::*;

            entry! { @row $pass $symbol }

            impl portable::Config for Row {
                type T = $t;
                type Operands = portable::$pass<$t, $rows, $columns, $depth>;
            }

            #[kernel(threads = $threads, min_ctas = $min_ctas)]
            pub unsafe fn $symbol(p: params!($pass)) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { portable::product::<Row>(&p) }
            }
        }
    };
    (@row $pass:ident $symbol:ident) => {
        /// The row.
        pub struct Row;

        impl dense::Config for Row {
            const ROW: &'static Variant = Variant::named(stringify!($symbol));
            type Epilogue = dense::passes::$pass;
        }
    };
}

kernel_spec::for_each_dense_row!(entries);
