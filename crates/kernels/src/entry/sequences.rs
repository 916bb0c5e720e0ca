//! The entry points of attention over sequences: one for every row of `kernel_spec::for_each_sequences_row!`.

use cuda_std::prelude::*;
use cuda_std::{thread, warp};
#[cfg(target_feature = "sm_90a")]
use kernel_spec::V3Params;
use kernel_spec::Variant;
#[cfg(target_feature = "sm_90a")]
use kernel_spec::families::sequences::SplitV3Params;
#[cfg(not(target_feature = "sm_90a"))]
use kernel_spec::families::sequences::{AppendParams, TilesParams};
use kernel_spec::families::sequences::{SequencesParams, policy};

use crate::attention::Config;
use crate::attention::sequences::decode;
#[cfg(not(target_feature = "sm_90a"))]
use crate::attention::sequences::{append, merge, prefill, tiles};
use crate::attention::stream::StreamConfig;
#[cfg(target_feature = "sm_90a")]
use crate::attention::v3;
#[cfg(not(target_feature = "sm_90a"))]
use crate::entry::F32;
use crate::entry::{Bf16, F16};
use crate::parts::fragments::RegTile;
use crate::parts::products::Probs;
use crate::parts::shared_tile::{SharedTile, ThreadBlock};
#[cfg(target_feature = "sm_90a")]
use crate::parts::warpgroup::WarpgroupTiles;

macro_rules! entries {
    ($($pass:ident $dim_qk:literal / $dim_v:literal [$($dtype:ident $symbol:ident),+] $q_block:literal x $kv_block:literal,
       $warps:literal, $min_ctas:literal, $from_keys:literal, $features:tt, $policy:tt, $reason:literal;)*) => {
        $($(entry! { $pass $dim_qk $dtype $symbol $q_block $kv_block $warps $min_ctas $policy $reason })+)*
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
    (Decode $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal { slots: $slots:literal } $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        entry! { @decode $d $t $symbol $q $kv $warps $ctas $slots $reason false }
    };
    (ClusterDecode $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal { slots: $slots:literal } $reason:literal) => {
        #[cfg(target_feature = "sm_90a")]
        entry! { @decode $d $t $symbol $q $kv $warps $ctas $slots $reason true }
    };
    (@decode $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $slots:literal $reason:literal
     $cluster:literal) => {
        #[doc = concat!("Decode; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            /// A warp of it.
            pub struct Warp;

            impl ThreadBlock for Warp {
                const THREADS: usize = 32;

                #[inline(always)]
                fn thread() -> u32 {
                    thread::lane()
                }

                #[inline(always)]
                unsafe fn meet() {
                    // SAFETY: passed on.
                    unsafe { warp::sync() };
                }
            }

            impl StreamConfig for Warp {
                type K = SharedTile<$t, $kv, $d>;
                type V = SharedTile<$t, $kv, $d>;
                const SLOTS: u32 = $slots;
            }

            impl decode::Config for Row {
                const SLOTS: u32 = $slots;
                const CLUSTER: bool = $cluster;
                type Stream = Warp;
                type Q = SharedTile<$t, $q, $d>;
                type OutTile = SharedTile<$t, $q, $d>;
                type Scores = RegTile<{ $q / 16 }, { $kv / 8 }>;
                type Probs = Probs<$t, { $q / 16 }, { $kv / 8 }>;
                type Partial = RegTile<{ $q / 16 }, { $d / 8 }>;
                type Acc = RegTile<{ $q / 16 }, { $d / 8 / $warps }>;
            }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: SequencesParams) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { decode::forward::<Row>(&p) }
            }
        }
    };
    (Prefill $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("Prefill; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            impl StreamConfig for Row {
                type K = SharedTile<$t, $kv, $d>;
                type V = SharedTile<$t, $kv, $d>;
                const SLOTS: u32 = <Self as prefill::Config>::POLICY.slots;
            }

            impl prefill::Config for Row {
                const POLICY: policy::Prefill = policy::Prefill $policy;
                type Q = SharedTile<$t, $q, $d>;
                type OutTile = SharedTile<$t, $q, $d>;
                type Scores = RegTile<{ $q / 16 / $warps }, { $kv / 8 }>;
                type Probs = Probs<$t, { $q / 16 / $warps }, { $kv / 8 }>;
                type Acc = RegTile<{ $q / 16 / $warps }, { $d / 8 }>;
            }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
            pub unsafe fn $symbol(p: SequencesParams) {
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { prefill::forward::<Row>(&p) }
            }
        }
    };
    (PackedV3 $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(target_feature = "sm_90a")]
        entry! { @v3 PackedV3 $d $t $symbol $q $kv $warps $ctas $policy $reason V3Params [] false }
    };
    (SplitV3 $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(target_feature = "sm_90a")]
        entry! { @v3 SplitV3 $d $t $symbol $q $kv $warps $ctas $policy $reason SplitV3Params [v3] true }
    };
    (@v3 $pass:ident $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal
     $params:ident [$($v3:ident)?] $split:literal) => {
        #[doc = concat!("v3 over sequences; this tile because: ", $reason)]
        pub mod $symbol {
            use super::*;

            row! { $symbol $t $warps }

            impl WarpgroupTiles for Row {
                type Operand = $t;
                type Q = SharedTile<$t, $q, { <Row as Config>::ROW.tile_cols($d) as usize }>;
                type K = SharedTile<$t, $kv, { <Row as Config>::ROW.tile_cols($d) as usize }>;
                type V = SharedTile<$t, $kv, { <Row as Config>::ROW.tile_cols($d) as usize }>;
                type Scores = RegTile<1, { $kv / 8 }>;
                type Probs = [[u32; 4]; $kv / 16];
                type Acc = RegTile<1, { $d / 8 }>;
                const DIM_QK: usize = $d;
            }

            impl v3::Config for Row {
                const PACKED: bool = true;
                const SPLIT: bool = $split;
                const POLICY: policy::$pass = policy::$pass $policy;
            }

            #[kernel(threads = 32 * $warps, min_ctas = $ctas, param_align = 64)]
            pub unsafe fn $symbol(p: $params) {
                let params = cuda_std::param_address!($symbol) + (size_of::<$params>() - size_of::<V3Params>()) as u64;
                // SAFETY: launched with this row's threads and shared memory.
                unsafe { v3::forward::<Row>(&p $(.$v3)?, params) }
            }
        }
    };
    (Tiles $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("The list of tiles; this shape because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: TilesParams) {
            // SAFETY: launched with this row's threads and shared memory.
            unsafe { tiles::list::<$warps>(&p) }
        }
    };
    (Merge $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("Merge of the splits; this shape because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: SequencesParams) {
            // SAFETY: launched with this row's threads.
            unsafe { merge::merge::<$t, $warps>(&p) }
        }
    };
    (Append $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("Append; this shape because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: AppendParams) {
            // SAFETY: launched with this row's threads.
            unsafe { append::append::<$t, $warps>(&p) }
        }
    };
}

kernel_spec::for_each_sequences_row!(entries);
