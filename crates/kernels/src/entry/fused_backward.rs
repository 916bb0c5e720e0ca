//! The entry points of the backward pass on Hopper: one for every row of `kernel_spec::for_each_fused_backward_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::backward::{BackwardParams, FusedParams, Variant, policy};

use super::{Bf16, F16};
use crate::attention::backward::{Config, fused, round};
use crate::parts::fragments::RegTile;
use crate::parts::shared_tile::{SharedTile, ThreadBlock};

macro_rules! entries {
    ($($pass:ident $dim:literal [$($dtype:ident $symbol:ident),+] $q_block:literal x $kv_block:literal,
       $warps:literal, $min_ctas:literal, $policy:tt, $reason:literal;)*) => {
        $($(entry! { $pass $dim $dtype $symbol $q_block $kv_block $warps $min_ctas $policy $reason })+)*
    };
}

/// The type of a row, with what every kernel asks of it.
macro_rules! row {
    ($symbol:ident $t:ident $warps:literal) => {
        /// The row.
        pub struct Row;

        impl ThreadBlock for Row {
            const THREADS: usize = 32 * $warps;
        }

        impl Config for Row {
            const ROW: &'static Variant = Variant::named(stringify!($symbol));
            type T = $t;
        }
    };
}

macro_rules! entry {
    (Fused $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[doc = concat!("All gradients; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            impl fused::Config for Row {
                const POLICY: policy::Fused = policy::Fused $policy;
                const DIM: usize = $d;
                type Kv = SharedTile<$t, $kv, { <Self as Config>::ROW.tile_cols() as usize }>;
                type Q = SharedTile<$t, $q, { <Self as Config>::ROW.tile_cols() as usize }>;
                type Dscores = SharedTile<$t, $q, $kv>;
                type Scores = RegTile<1, { $q / 8 }>;
                type Weights = [[u32; 4]; $q / 16];
                type Acc = RegTile<1, { $d / 8 }>;
            }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas, param_align = 64)]
            pub unsafe fn $symbol(p: FusedParams) {
                let params = cuda_std::param_address!($symbol);
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { fused::gradients::<Row>(&p, params) }
            }
        }
    };
    (Round $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[doc = concat!("Sums to gradients of queries; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            impl round::Config for Row {}

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: BackwardParams) {
                // SAFETY: launched with this row's threads.
                unsafe { round::gradients::<Row>(&p) }
            }
        }
    };
}

kernel_spec::for_each_fused_backward_row!(entries);
