//! The entry points of gradients through activations: one for every row of `kernel_spec::for_each_activation_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::activation::{ActivationGradientParams, Variant};
use kernel_spec::families::rows::{RowTile, SumsMemory};

use crate::entry::{Bf16, F16, F32};
use crate::operators::dense::gradient;
use crate::operators::row::Config;

macro_rules! entries {
    ($([$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {
        $($(row_entry! { Alone $dtype $symbol $threads $min_ctas $reason SumsMemory::NONE, ActivationGradientParams => gradient::activation::<Row> })+)*
    };
}

kernel_spec::for_each_activation_row!(entries);
