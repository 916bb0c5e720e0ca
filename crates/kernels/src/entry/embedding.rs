//! The entry points of embedding tables: one for every row of `kernel_spec::for_each_embedding_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::embedding::{BoundsParams, GatherParams, SortParams, SumParams, Variant};
use kernel_spec::families::rows::{RowTile, SumsMemory};

use crate::entry::{Bf16, F16, F32};
use crate::operators::row::Config;
use crate::operators::{embedding, embedding_backward};

macro_rules! entries {
    ($($pass:ident $row_threads:literal x $vectors:literal [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {
        $($(entry! { $pass $vectors $dtype $symbol $threads $min_ctas $reason })+)*
    };
}

macro_rules! entry {
    (Gather $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        row_entry! { Again $t $symbol $threads $min_ctas $reason SumsMemory::NONE, GatherParams => embedding::gather::<Row, $vectors> }
    };
    (Runs $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        row_entry! { Again $t $symbol $threads $min_ctas $reason SumsMemory::NONE, SumParams => embedding_backward::runs::<Row, $vectors> }
    };
    (Sum $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        row_entry! { Again $t $symbol $threads $min_ctas $reason SumsMemory::NONE, SumParams => embedding_backward::sum::<Row, $vectors> }
    };
    (Count $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        entry! { @numbers $symbol $threads $min_ctas $reason SortParams (embedding_backward::count) }
    };
    (Place $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        entry! { @numbers $symbol $threads $min_ctas $reason SortParams (embedding_backward::place) }
    };
    (Bounds $vectors:literal $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal) => {
        entry! { @numbers $symbol $threads $min_ctas $reason BoundsParams (embedding_backward::bounds::<$threads>) }
    };
    (@numbers $symbol:ident $threads:literal $min_ctas:literal $reason:literal $params:ident ($kernel:expr)) => {
        #[doc = concat!("Cut so because: ", $reason)]
        #[kernel(threads = $threads, min_ctas = $min_ctas)]
        pub unsafe fn $symbol(p: $params) {
            // SAFETY: launched with this row's threads and shared memory.
            unsafe { $kernel(&p) }
        }
    };
}

kernel_spec::for_each_embedding_row!(entries);
