//! The entry points of forward attention: one for every row of `kernel_spec::for_each_forward_row!`, under the symbol that the row gives.
//!
//! A row becomes a module with a type, which says what the row is to its kernel, and the entry point, which hands it over.

use cuda_std::prelude::*;
#[cfg(target_feature = "sm_90a")]
use kernel_spec::V3Params;
use kernel_spec::Variant;
#[cfg(not(target_feature = "sm_90a"))]
use kernel_spec::families::forward::features::DROPOUT;
use kernel_spec::families::forward::policy;
#[cfg(not(target_feature = "sm_90a"))]
use kernel_spec::{ForwardParams, NaiveParams};

use crate::attention::Config;
#[cfg(target_feature = "sm_90a")]
use crate::attention::v3;
#[cfg(not(target_feature = "sm_90a"))]
use crate::attention::{naive, stream::StreamConfig, v1, v2};
#[cfg(not(target_feature = "sm_90a"))]
use crate::entry::F32;
use crate::entry::{Bf16, F16};
use crate::parts::fragments::RegTile;
#[cfg(not(target_feature = "sm_90a"))]
use crate::parts::products::Probs;
use crate::parts::shared_tile::{SharedTile, ThreadBlock};
#[cfg(target_feature = "sm_90a")]
use crate::parts::warpgroup::WarpgroupTiles;

macro_rules! entries {
    ($($pass:ident $dim_qk:literal / $dim_v:literal [$($dtype:ident $symbol:ident),+] $q_block:literal x $kv_block:literal,
       $warps:literal, $min_ctas:literal, $from_keys:literal, $features:tt, $policy:tt, $reason:literal;)*) => {
        $($(entry! { $pass $dim_qk $dim_v $dtype $symbol $q_block $kv_block $warps $min_ctas $policy $reason })+)*
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
            type Out = $t;
        }
    };
}

macro_rules! entry {
    (Scores $dqk:literal $dv:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("Scores of naive; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            impl naive::ScoresConfig for Row {
                type Q = SharedTile<$t, $q, $dqk>;
                type K = SharedTile<$t, $kv, $dqk>;
                type Scores = RegTile<{ $q / 16 / $warps }, { $kv / 8 }>;
            }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: NaiveParams) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { naive::scores::<Row>(&p) }
            }
        }
    };
    (Softmax $dqk:literal $dv:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("Softmax of naive; this tile because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: NaiveParams) {
            // SAFETY: launched with this row's threads.
            unsafe { naive::softmax::<$t, { Variant::named(stringify!($symbol)).entry.takes(DROPOUT) }>(&p) }
        }
    };
    (Output $dqk:literal $dv:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("Output of naive; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            impl naive::OutputConfig for Row {
                const POLICY: policy::Output = policy::Output $policy;
                type P = SharedTile<$t, $q, $kv>;
                type V = SharedTile<$t, $kv, $dv>;
                type OutTile = SharedTile<$t, $q, $dv>;
                type Acc = RegTile<{ $q / 16 / $warps }, { $dv / 8 }>;
            }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: NaiveParams) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { naive::output::<Row>(&p) }
            }
        }
    };
    (V1 $dqk:literal $dv:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("v1; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            impl StreamConfig for Row {
                type K = SharedTile<$t, $kv, $dqk>;
                type V = SharedTile<$t, $kv, $dv>;
                const SLOTS: u32 = <Self as v1::Config>::POLICY.slots;
            }

            impl v1::Config for Row {
                const POLICY: policy::V1 = policy::V1 $policy;
                type Q = SharedTile<$t, $q, $dqk>;
                type OutTile = SharedTile<$t, $q, $dv>;
                type Scores = RegTile<{ $q / 16 }, { $kv / 8 / $warps }>;
                type Probs = Probs<$t, { $q / 16 }, { $kv / 8 / $warps }>;
                type Partial = RegTile<{ $q / 16 }, { $dv / 8 }>;
                type Acc = RegTile<{ $q / 16 }, { $dv / 8 / $warps }>;
            }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: ForwardParams) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { v1::forward::<Row>(&p) }
            }
        }
    };
    (V2 $dqk:literal $dv:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("v2; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            impl StreamConfig for Row {
                type K = SharedTile<$t, $kv, $dqk>;
                type V = SharedTile<$t, $kv, $dv>;
                const SLOTS: u32 = <Self as v2::Config>::POLICY.slots;
            }

            impl v2::Config for Row {
                const POLICY: policy::V2 = policy::V2 $policy;
                type Q = SharedTile<$t, $q, $dqk>;
                type OutTile = SharedTile<$t, $q, $dv>;
                type Scores = RegTile<{ $q / 16 / $warps }, { $kv / 8 }>;
                type Probs = Probs<$t, { $q / 16 / $warps }, { $kv / 8 }>;
                type Acc = RegTile<{ $q / 16 / $warps }, { $dv / 8 }>;
            }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: ForwardParams) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { v2::forward::<Row>(&p) }
            }
        }
    };
    (V3 $dqk:literal $dv:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(target_feature = "sm_90a")]
        #[doc = concat!("v3; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            impl WarpgroupTiles for Row {
                type Operand = $t;
                type Q = SharedTile<$t, $q, { <Row as Config>::ROW.tile_cols($dqk) as usize }>;
                type K = SharedTile<$t, $kv, { <Row as Config>::ROW.tile_cols($dqk) as usize }>;
                type V = SharedTile<$t, $kv, { <Row as Config>::ROW.tile_cols($dv) as usize }>;
                type Scores = RegTile<1, { $kv / 8 }>;
                type Probs = [[u32; 4]; $kv / 16];
                type Acc = RegTile<1, { $dv / 8 }>;
                const DIM_QK: usize = $dqk;
            }

            impl v3::Config for Row {
                const PACKED: bool = false;
                const SPLIT: bool = false;
                const POLICY: policy::V3 = policy::V3 $policy;
            }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas, param_align = 64)]
            pub unsafe fn $symbol(p: V3Params) {
                let params = cuda_std::param_address!($symbol);
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { v3::forward::<Row>(&p, params) }
            }
        }
    };
}

kernel_spec::for_each_forward_row!(entries);
