//! The entry points of softmax: one for every row of `kernel_spec::for_each_softmax_row!`.

use cuda_std::prelude::*;
use kernel_spec::families::rows::{RowTile, SumsMemory};
use kernel_spec::families::softmax::{SoftmaxBackwardParams, SoftmaxParams, Variant};

use crate::entry::{Bf16, F16, F32};
use crate::operators::row::Config;
use crate::operators::softmax;

macro_rules! entries {
    ($($pass:ident $sharing:ident $row_threads:literal x $vectors:literal ahead $ahead:literal [$($t:ident $symbol:ident),+] $threads:literal, $min_ctas:literal,
       $reason:literal;)*) => {
        $($(entry! { $pass $vectors, $sharing $t $symbol $threads $min_ctas $reason SumsMemory::alone(&Self::TILE) })+)*
    };
}

macro_rules! entry {
    (Forward $vectors:literal, $($row:tt)*) => {
        row_entry! { $($row)*, SoftmaxParams => softmax::forward::<Row, $vectors> }
    };
    (Backward $vectors:literal, $($row:tt)*) => {
        row_entry! { $($row)*, SoftmaxBackwardParams => softmax::backward::<Row, $vectors> }
    };
}

kernel_spec::for_each_softmax_row!(entries);
