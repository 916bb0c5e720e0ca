//! The entry points of AdamW: one for every row of `kernel_spec::for_each_adamw_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::adamw::{AdamWParams, Variant};
use kernel_spec::families::rows::{RowTile, SumsMemory};

use crate::entry::{Bf16, F16, F32};
use crate::operators::adamw;
use crate::operators::row::Config;

macro_rules! entries {
    ($([$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {$($(
        #[doc = concat!("Cut so because: ", $reason)]
        pub mod $symbol {
            use super::*;

            /// The row.
            pub struct Row;

            impl Config for Row {
                const TILE: RowTile = Variant::named(stringify!($symbol)).tile;
                const SUMS: SumsMemory = SumsMemory::NONE;
                type T = $dtype;
            }

            #[kernel(threads = $threads, min_ctas = $min_ctas)]
            pub unsafe fn $symbol(p: AdamWParams) {
                // SAFETY: launched with this row's threads; tensors that are there are inside of the parameters.
                unsafe { adamw::adamw::<Row>(&p, |offset| cuda_std::load_param_u64!($symbol, offset as u64)) }
            }
        }
    )+)*};
}

kernel_spec::for_each_adamw_row!(entries);
