//! The entry points of the portable kernels: one for every row of `kernel_spec::for_each_backward_row!`, and one for every row of
//! `for_each_packed_backward_row!`, of the same kernels over packed sequences.

use cuda_std::prelude::*;
use kernel_spec::families::backward::{BackwardParams, PackedBackwardParams, SinkParams, Variant, policy};

use crate::attention::backward::{Config, delta, keys, queries, sinks};
use crate::attention::stream::StreamConfig;
use crate::entry::{Bf16, F16, F32};
use crate::parts::fragments::RegTile;
use crate::parts::products::Probs;
use crate::parts::shared_tile::{SharedTile, ThreadBlock};

macro_rules! entry {
    (Delta $($row:tt)+) => {
        entry! { @delta BackwardParams, delta::statistics; $($row)+ }
    };
    (PackedDelta $($row:tt)+) => {
        entry! { @delta PackedBackwardParams, delta::packed_statistics; $($row)+ }
    };
    (Keys $($row:tt)+) => {
        entry! { @keys BackwardParams, keys::gradients; $($row)+ }
    };
    (PackedKeys $($row:tt)+) => {
        entry! { @keys PackedBackwardParams, keys::packed_gradients; $($row)+ }
    };
    (Queries $($row:tt)+) => {
        entry! { @queries BackwardParams, queries::gradients; $($row)+ }
    };
    (PackedQueries $($row:tt)+) => {
        entry! { @queries PackedBackwardParams, queries::packed_gradients; $($row)+ }
    };
    (Sinks $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[doc = concat!("Gradients of the sinks; this shape because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: SinkParams) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { sinks::gradients::<Row>(&p) }
            }
        }
    };
    (@delta $params:ty, $kernel:path; $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt
     $reason:literal) => {
        #[doc = concat!("Statistics of the rows; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;
            use $kernel as kernel;

            row! { $symbol $t $warps }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: $params) {
                // SAFETY: launched with this row's threads.
                unsafe { kernel::<Row>(&p) }
            }
        }
    };
    (@keys $params:ty, $kernel:path; $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal
     { stages: $stages:literal, columns: 1 } $reason:literal) => {
        entry! { @keys_by $params, $kernel; $d $t $symbol $q $kv $warps $ctas $stages 1 $reason Probs<$t, { $kv / 16 / $warps }, { $q / 8 }> }
    };
    (@keys $params:ty, $kernel:path; $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal
     { stages: $stages:literal, columns: $columns:literal } $reason:literal) => {
        entry! { @keys_by $params, $kernel; $d $t $symbol $q $kv $warps $ctas $stages $columns $reason SharedTile<$t, $kv, $q> }
    };
    (@keys_by $params:ty, $kernel:path; $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal
     $stages:literal $columns:literal $reason:literal $weights:ty) => {
        #[doc = concat!("Gradients of keys and values; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;
            use $kernel as kernel;

            row! { $symbol $t $warps }

            impl keys::Config for Row {
                const POLICY: policy::Keys = policy::Keys { stages: $stages, columns: $columns };
                type Kv = SharedTile<$t, $kv, $d>;
                type Q = SharedTile<$t, $q, $d>;
                type Scores = RegTile<{ $kv * $columns / 16 / $warps }, { $q / 8 / $columns }>;
                type Weights = $weights;
                type Acc = RegTile<{ $kv * $columns / 16 / $warps }, { $d / 8 / $columns }>;
            }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: $params) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { kernel::<Row>(&p) }
            }
        }
    };
    (@queries $params:ty, $kernel:path; $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt
     $reason:literal) => {
        #[doc = concat!("Gradients of queries; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;
            use $kernel as kernel;

            row! { $symbol $t $warps }

            impl StreamConfig for Row {
                type K = SharedTile<$t, $kv, $d>;
                type V = SharedTile<$t, $kv, $d>;
                const SLOTS: u32 = <Self as queries::Config>::POLICY.slots;
            }

            impl queries::Config for Row {
                const POLICY: policy::Queries = policy::Queries $policy;
                type Kv = SharedTile<$t, $kv, $d>;
                type Q = SharedTile<$t, $q, $d>;
                type Scores = RegTile<{ $q / 16 / $warps }, { $kv / 8 }>;
                type Dscores = Probs<$t, { $q / 16 / $warps }, { $kv / 8 }>;
                type Acc = RegTile<{ $q / 16 / $warps }, { $d / 8 }>;
            }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: $params) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { kernel::<Row>(&p) }
            }
        }
    };
}

kernel_spec::for_each_backward_row!(entries);
kernel_spec::for_each_packed_backward_row!(entries);
