//! The entry points of the merge of partial results: one for every row of `kernel_spec::for_each_merge_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::merge::{MergeParams, THREADS};

use crate::attention::merge;
use crate::entry::{Bf16, F16, F32};

macro_rules! entries {
    ($($symbol:ident $parts:ident $out:ident;)*) => {$(
        #[doc = concat!("Partial results of ", stringify!($parts), ", put together in ", stringify!($out), ".")]
        #[kernel(threads = THREADS, min_ctas = 4)]
        pub unsafe fn $symbol(p: MergeParams) {
            // SAFETY: launched with the row's threads; partial results that are there are inside of the parameters.
            unsafe { merge::merge::<$parts, $out>(&p, |offset| cuda_std::load_param_u64!($symbol, offset as u64)) }
        }
    )*};
}

kernel_spec::for_each_merge_row!(entries);
