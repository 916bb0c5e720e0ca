//! The entry points of rotary embedding: one for every row of `kernel_spec::for_each_rotary_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::rotary::RotaryParams;

use crate::entry::{Bf16, F16, F32};
use crate::operators::rotary;

macro_rules! entries {
    ($($heads:literal [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {$($(
        #[doc = concat!("Cut so because: ", $reason)]
        #[kernel(threads = $threads, min_ctas = $min_ctas)]
        pub unsafe fn $symbol(p: RotaryParams) {
            // SAFETY: launched with this row's threads.
            unsafe { rotary::rotary::<$dtype, $threads, $heads>(&p) }
        }
    )+)*};
}

kernel_spec::for_each_rotary_row!(entries);
