//! The entry points of blocks of keys that a program shows: one for each of `kernel_spec::families::blocks::ENTRIES`.

use cuda_std::prelude::*;
use kernel_spec::families::blocks::{ClassesParams, ListsParams, THREADS};

use crate::attention::blocks;

macro_rules! entries {
    ($($symbol:ident $params:ident $kernel:ident $what:literal;)*) => {$(
        #[doc = $what]
        #[kernel(threads = THREADS, min_ctas = 8)]
        pub unsafe fn $symbol(p: $params) {
            // SAFETY: launched with as many threads.
            unsafe { blocks::$kernel(&p) }
        }
    )*};
}

entries! {
    block_classes ClassesParams classes "The class of every unit.";
    block_lists ListsParams lists "The tiles that a kernel visits.";
}
