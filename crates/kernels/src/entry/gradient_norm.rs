//! The entry points of the norm of gradients: one for every row of `kernel_spec::for_each_gradient_norm_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::gradient_norm::{NormParams, SquaresParams, Variant};
use kernel_spec::families::rows::{RowTile, SumsMemory};

use crate::entry::{Bf16, F16, F32};
use crate::operators::gradient_norm;
use crate::operators::row::Config;

macro_rules! entries {
    ($($pass:ident [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {
        $($(entry! { $pass $dtype $symbol $threads $min_ctas $reason })+)*
    };
}

macro_rules! entry {
    (Squares $t:ident $symbol:ident $($row:tt)*) => {
        row_entry! { Alone $t $symbol $($row)* SumsMemory::alone(&Self::TILE),
            SquaresParams => (|p| gradient_norm::squares::<Row>(p, |offset| cuda_std::load_param_u64!($symbol, offset as u64))) }
    };
    (Norm $($row:tt)*) => {
        row_entry! { Alone $($row)* SumsMemory::alone(&Self::TILE), NormParams => gradient_norm::norm::<Row> }
    };
}

kernel_spec::for_each_gradient_norm_row!(entries);
