//! The entry points of Hopper's kernels: one for every row of `kernel_spec::for_each_fused_backward_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::backward::{BackwardParams, FusedParams, Variant, policy};

use crate::attention::backward::{Config, fused, round};
use crate::entry::{Bf16, F16};
use crate::parts::fragments::RegTile;
use crate::parts::shared_tile::{SharedTile, ThreadBlock};

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
    (Ordered $($row:tt)*) => {
        entry! { Fused $($row)* }
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
