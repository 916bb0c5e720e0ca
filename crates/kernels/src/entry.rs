//! The entry points: one for every row of the lists in `kernel_spec::families`, under the symbol that the row gives.

use cuda_std::prelude::*;

/// An entry point of a kernel that holds rows: a module with the type of its row, and the function, for Hopper where a cluster shares a row.
#[cfg(feature = "operators")]
macro_rules! row_entry {
    (Cluster $($rest:tt)*) => {
        #[cfg(target_feature = "sm_90a")]
        row_entry! { @module $($rest)* }
    };
    (Kept $($rest:tt)*) => {
        #[cfg(target_feature = "sm_90a")]
        row_entry! { @module $($rest)* }
    };
    (Alone $($rest:tt)*) => {
        #[cfg(not(target_feature = "sm_90a"))]
        row_entry! { @module $($rest)* }
    };
    (Again $($rest:tt)*) => {
        #[cfg(not(target_feature = "sm_90a"))]
        row_entry! { @module $($rest)* }
    };
    (@module $t:ident $symbol:ident $threads:literal $min_ctas:literal $reason:literal $sums:expr, $params:ident => $kernel:expr) => {
        #[doc = concat!("Cut so because: ", $reason)]
        pub mod $symbol {
            use super::*;

            /// The row.
            pub struct Row;

            impl Config for Row {
                const TILE: RowTile = Variant::named(stringify!($symbol)).tile;
                const SUMS: SumsMemory = $sums;
                type T = $t;
            }

            #[kernel(threads = $threads, min_ctas = $min_ctas)]
            pub unsafe fn $symbol(p: $params) {
                // SAFETY: launched with this row's threads and shared memory; what the parameters name is inside of them.
                unsafe { $kernel(&p) }
            }
        }
    };
}

#[cfg(all(feature = "operators", not(target_feature = "sm_90a")))]
mod activation;
#[cfg(all(feature = "operators", not(target_feature = "sm_90a")))]
mod adamw;
#[cfg(feature = "attention")]
mod backward;
#[cfg(all(feature = "attention", not(target_feature = "sm_90a")))]
mod blocks;
#[cfg(feature = "operators")]
mod cross_entropy;
#[cfg(feature = "operators")]
mod dense;
#[cfg(all(feature = "operators", not(target_feature = "sm_90a")))]
mod embedding;
#[cfg(feature = "attention")]
mod forward;
#[cfg(all(feature = "operators", not(target_feature = "sm_90a")))]
mod gradient_norm;
#[cfg(all(feature = "attention", not(target_feature = "sm_90a")))]
mod merge;
#[cfg(feature = "operators")]
mod norm;
#[cfg(all(feature = "operators", not(target_feature = "sm_90a")))]
mod rotary;
#[cfg(feature = "attention")]
mod sequences;
#[cfg(feature = "operators")]
mod softmax;

// The rows name element types as `kernel_spec::DType` does.
#[cfg(any(feature = "operators", not(target_feature = "sm_90a")))]
type F32 = f32;
type F16 = f16;
type Bf16 = bf16;
