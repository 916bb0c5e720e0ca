//! The entry points of blocks of keys that a program shows: one for each of `kernel_spec::families::blocks::ENTRIES`.

use cuda_std::prelude::*;
use kernel_spec::families::blocks::{ClassesParams, ListsParams, THREADS};

use crate::attention::blocks;

/// The class of every unit.
#[kernel(threads = THREADS, min_ctas = 8)]
pub unsafe fn block_classes(p: ClassesParams) {
    // SAFETY: launched with as many threads.
    unsafe { blocks::classes(&p) }
}

/// The tiles that a kernel visits.
#[kernel(threads = THREADS, min_ctas = 8)]
pub unsafe fn block_lists(p: ListsParams) {
    // SAFETY: launched with as many threads.
    unsafe { blocks::lists(&p) }
}
