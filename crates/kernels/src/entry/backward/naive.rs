//! The entry points of the naive kernel of the backward pass: one for every row of `kernel_spec::for_each_naive_backward_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::backward::{NaiveBackwardParams, Variant, policy};

use crate::attention::backward::{Config, naive};
use crate::entry::{Bf16, F16, F32};
use crate::parts::fragments::RegTile;
use crate::parts::shared_tile::{SharedTile, ThreadBlock};

/// A row: its type with what `$config` asks of it beyond every kernel, and the entry point, which hands it to `$kernel`.
macro_rules! naive_entry {
    ($symbol:ident $t:ident $warps:literal $ctas:literal $reason:literal $kernel:ident { $config:item }) => {
        #[doc = concat!("`", stringify!($kernel), "` of naive; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            $config

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: NaiveBackwardParams) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { naive::$kernel::<Row>(&p) }
            }
        }
    };
}

macro_rules! entry {
    (NaiveScores $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        naive_entry! { $symbol $t $warps $ctas $reason scores {
            impl naive::ScoresConfig for Row {
                type Q = SharedTile<$t, $q, $d>;
                type Kv = SharedTile<$t, $kv, $d>;
                type Scores = RegTile<{ $q / 16 / $warps }, { $kv / 8 }>;
            }
        } }
    };
    (NaiveQueries $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        naive_entry! { $symbol $t $warps $ctas $reason queries {
            impl naive::ProductConfig for Row {
                const POLICY: policy::NaiveProduct = policy::NaiveProduct $policy;
                type Weights = SharedTile<$t, $q, $kv>;
                type Rows = SharedTile<$t, $kv, $d>;
                type Gradients = SharedTile<$t, $q, $d>;
                type Acc = RegTile<{ $q / 16 / $warps }, { $d / 8 }>;
            }
        } }
    };
    (NaiveKeys $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        naive_entry! { $symbol $t $warps $ctas $reason keys {
            impl naive::ProductConfig for Row {
                const POLICY: policy::NaiveProduct = policy::NaiveProduct $policy;
                type Weights = SharedTile<$t, $q, $kv>;
                type Rows = SharedTile<$t, $q, $d>;
                type Gradients = SharedTile<$t, $kv, $d>;
                type Acc = RegTile<{ $kv / 16 / $warps }, { $d / 8 }>;
            }
        } }
    };
}

kernel_spec::for_each_naive_backward_row!(entries);
