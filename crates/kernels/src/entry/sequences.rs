//! The entry points of attention over sequences: one for every row of `kernel_spec::for_each_sequences_row!`.

use cuda_std::prelude::*;
use cuda_std::{thread, warp};
use kernel_spec::Variant;
use kernel_spec::families::sequences::{self as spec, AppendParams, SequencesParams, policy};

use crate::attention::Config;
use crate::attention::sequences::{append, decode, merge, prefill};
use crate::attention::stream::StreamConfig;
use crate::entry::{Bf16, F16, F32};
use crate::parts::fragments::RegTile;
use crate::parts::products::Probs;
use crate::parts::shared_tile::{SharedTile, ThreadBlock};

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
            const ROW: &'static Variant = spec::named(stringify!($symbol));
            type T = $t;
            type Out = $t;
        }
    };
}

macro_rules! entry {
    (Decode $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
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
                const SLOTS: u32 = <Row as decode::Config>::POLICY.slots;
            }

            impl decode::Config for Row {
                const POLICY: policy::Decode = policy::Decode $policy;
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
    (Merge $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[doc = concat!("Merge of the splits; this shape because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: SequencesParams) {
            // SAFETY: launched with this row's threads.
            unsafe { merge::merge::<$t, $warps>(&p) }
        }
    };
    (Append $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ctas:literal $policy:tt $reason:literal) => {
        #[doc = concat!("Append; this shape because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: AppendParams) {
            // SAFETY: launched with this row's threads.
            unsafe { append::append::<$t, $warps>(&p) }
        }
    };
}

kernel_spec::for_each_sequences_row!(entries);
