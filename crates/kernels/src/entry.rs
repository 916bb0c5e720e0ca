//! The entry points: one for every row of `kernel_spec::for_each_variant!`, under the symbol that the row gives.

use cuda_std::prelude::*;
#[cfg(not(target_feature = "sm_90a"))]
use kernel_spec::{ForwardParams, NaiveParams};
#[cfg(target_feature = "sm_90a")]
use kernel_spec::{V3Params, v3 as spec};

#[cfg(not(target_feature = "sm_90a"))]
use crate::{naive, v1, v2};

#[cfg(target_feature = "sm_90a")]
use crate::v3;

// The rows name element types as `kernel_spec::DType` does.
#[cfg(not(target_feature = "sm_90a"))]
type F32 = f32;
type F16 = f16;
type Bf16 = bf16;

macro_rules! entries {
    ($($pass:ident $head_dim:literal [$($dtype:ident $symbol:ident),+] $q_block:literal x $kv_block:literal,
       $warps:literal, $ring:literal, $min_ctas:literal, $from_keys:literal, $reason:literal;)*) => {
        $($(entry! { $pass $head_dim $dtype $symbol $q_block $kv_block $warps $ring $min_ctas $reason })+)*
    };
}

macro_rules! entry {
    (V2 $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ring:literal $ctas:literal $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
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
    (V3 $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ring:literal $ctas:literal $reason:literal) => {
        #[cfg(target_feature = "sm_90a")]
        #[doc = concat!("v3; this tile because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas, param_align = 64)]
        pub unsafe fn $symbol(p: V3Params) {
            let maps = cuda_std::param_address!($symbol);
            // SAFETY: launched with this row's threads and shared memory.
            unsafe {
                v3::forward::<
                    $t,
                    $q,
                    $kv,
                    $d,
                    { spec::shared_cols($d) as usize },
                    $ring,
                    { spec::q_buffers($d) },
                    { $kv / 8 },
                    { $kv / 16 },
                    { $d / 8 },
                    { turns($d) },
                    { lazy($d, $warps) },
                    { spec::skips($q, $kv) },
                    { load_registers($warps) },
                    { math_registers($warps) },
                >(&p, maps)
            }
        }
    };
    (V1 $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ring:literal $ctas:literal $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
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
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("Scores of naive; this tile because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: NaiveParams) {
            // SAFETY: launched with this row's threads and shared memory.
            unsafe { naive::scores::<$t, $q, $kv, $d, { 32 * $warps }, { $q / 16 / $warps }, { $kv / 8 }>(&p) }
        }
    };
    (Softmax $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ring:literal $ctas:literal $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("Softmax of naive; this tile because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: NaiveParams) {
            // SAFETY: launched with this row's threads.
            unsafe { naive::softmax::<$t>(&p) }
        }
    };
    (Output $d:literal $t:ident $symbol:ident $q:literal $kv:literal $warps:literal $ring:literal $ctas:literal $reason:literal) => {
        #[cfg(not(target_feature = "sm_90a"))]
        #[doc = concat!("Output of naive; this tile because: ", $reason)]
        #[kernel(threads = 32 * $warps, min_ctas = $ctas)]
        pub unsafe fn $symbol(p: NaiveParams) {
            // SAFETY: launched with this row's threads and shared memory.
            unsafe { naive::output::<$t, $q, $kv, $d, { 32 * $warps }, { $q / 16 / $warps }, { $d / 8 }>(&p) }
        }
    };
}

/// Whether the math warpgroups of v3 take turns. Above 128 dims the products are so long that turns only cost.
#[cfg(target_feature = "sm_90a")]
const fn turns(head_dim: u32) -> bool {
    head_dim <= 128
}

/// Whether v3 rescales the output only when it has to. That pays where the output has many columns, 2 % at 192 dims from 4096 rows on
/// and 3 to 7 % at 256, and with three warpgroups, up to 3 % at 64, 6 % at 96 and 9 % at 128; elsewhere the branch costs what it saves,
/// or up to 3 % (H200, docs/perf-log.md).
#[cfg(target_feature = "sm_90a")]
const fn lazy(head_dim: u32, warps: u32) -> bool {
    head_dim > 128 || warps > 12
}

/// Registers of a loading thread of v3: the least that holds the schedule; what it gives back goes to the others.
#[cfg(target_feature = "sm_90a")]
const fn load_registers(warps: u32) -> u32 {
    if warps == 12 { 24 } else { 32 }
}

/// Registers of a math thread of v3. 65536 of them on a multiprocessor, given out in eights: 24 + 2 * 240 and 32 + 3 * 160 for the
/// threads of a thread block use all that the block has at entry.
#[cfg(target_feature = "sm_90a")]
const fn math_registers(warps: u32) -> u32 {
    if warps == 12 { 240 } else { 160 }
}

kernel_spec::for_each_variant!(entries);
