//! The entry points: one for every row of `attn_spec::for_each_variant!`, under the symbol that the row gives.

use attn_spec::{ForwardParams, NaiveParams};
use cuda_std::prelude::*;

use crate::{naive, v1, v2};

// The rows name element types as `attn_spec::DType` does.
type F32 = f32;
type F16 = f16;
type Bf16 = bf16;

macro_rules! entries {
    ($($pass:ident $head_dim:literal [$($dtype:ident $symbol:ident),+] $q_block:literal x $kv_block:literal,
       $warps:literal, $ring:literal, $min_ctas:literal, $reason:literal;)*) => {
        $($(entry! { $pass $head_dim $dtype $symbol $q_block $kv_block $warps $ring $min_ctas $reason })+)*
    };
}

macro_rules! entry {
    (V2 $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ring:literal $ctas:literal $reason:literal) => {
        #[doc = concat!("v2; this tile because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: ForwardParams) {
            // SAFETY: launched with this row's threads and shared memory.
            unsafe {
                v2::forward::<
                    $t,
                    $q,
                    $kv,
                    $d,
                    { 32 * $warps },
                    $ring,
                    { $q / 16 / $warps },
                    { $kv / 8 },
                    { $d / 8 },
                    { $d != 128 },
                >(&p)
            }
        }
    };
    (V1 $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ring:literal $ctas:literal $reason:literal) => {
        #[doc = concat!("v1; this tile because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: ForwardParams) {
            // SAFETY: launched with this row's threads and shared memory.
            unsafe {
                v1::forward::<
                    $t,
                    $q,
                    $kv,
                    $d,
                    $warps,
                    { 32 * $warps },
                    $ring,
                    { $q / 16 },
                    { $kv / 8 / $warps },
                    { $d / 8 },
                    { $d / 8 / $warps },
                >(&p)
            }
        }
    };
    (Scores $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ring:literal $ctas:literal $reason:literal) => {
        #[doc = concat!("Scores of naive; this tile because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: NaiveParams) {
            // SAFETY: launched with this row's threads and shared memory.
            unsafe { naive::scores::<$t, $q, $kv, $d, { 32 * $warps }, { $q / 16 / $warps }, { $kv / 8 }>(&p) }
        }
    };
    (Softmax $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ring:literal $ctas:literal $reason:literal) => {
        #[doc = concat!("Softmax of naive; this tile because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: NaiveParams) {
            // SAFETY: launched with this row's threads.
            unsafe { naive::softmax::<$t>(&p) }
        }
    };
    (Output $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ring:literal $ctas:literal $reason:literal) => {
        #[doc = concat!("Output of naive; this tile because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: NaiveParams) {
            // SAFETY: launched with this row's threads and shared memory.
            unsafe { naive::output::<$t, $q, $kv, $d, { 32 * $warps }, { $q / 16 / $warps }, { $d / 8 }>(&p) }
        }
    };
}

attn_spec::for_each_variant!(entries);
