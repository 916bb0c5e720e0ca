//! The entry points of the backward pass: one for every row of its lists in `kernel_spec`.

/// The rows of a list: each becomes what the file's `entry!` makes of it, once for every element type.
macro_rules! entries {
    ($($pass:ident $dim:literal [$($dtype:ident $symbol:ident),+] $q_block:literal x $kv_block:literal,
       $warps:literal, $min_ctas:literal, $features:tt, $policy:tt, $reason:literal;)*) => {
        $($(entry! { $pass $dim $dtype $symbol $q_block $kv_block $warps $min_ctas $policy $reason })+)*
    };
}

/// The type of a row, with what every kernel asks of it.
macro_rules! row {
    ($symbol:ident $t:ident $warps:literal) => {
        /// The row.
        pub struct Row;

        impl ThreadBlock for Row {
            const THREADS: usize = 32 * $warps;
        }

        impl Config for Row {
            const ROW: &'static Variant = Variant::named(stringify!($symbol));
            type T = $t;
        }
    };
}

// Below the macros, which they use.
#[cfg(target_feature = "sm_90a")]
mod fused;
#[cfg(not(target_feature = "sm_90a"))]
mod naive;
#[cfg(not(target_feature = "sm_90a"))]
mod portable;
