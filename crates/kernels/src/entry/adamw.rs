//! The entry points of AdamW: one for every row of `kernel_spec::for_each_adamw_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::adamw::{AdamWParams, Variant};
use kernel_spec::families::rows::{RowTile, SumsMemory};

use crate::entry::{Bf16, F16, F32};
use crate::operators::adamw;
use crate::operators::row::Config;

macro_rules! entries {
    ($([$($t:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {$($(
        row_entry! { Alone $t $symbol $threads $min_ctas $reason SumsMemory::NONE,
            AdamWParams => (|p| adamw::adamw::<Row>(p, |offset| cuda_std::load_param_u64!($symbol, offset as u64))) }
    )+)*};
}

kernel_spec::for_each_adamw_row!(entries);
