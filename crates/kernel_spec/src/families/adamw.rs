//! AdamW over a list of tensors.

use super::rows::{RowTile, Sharing};
use crate::dtype::DType;
use crate::entry::{Arch, Entry};
use crate::features::{FeatureSet, Features};

/// Tensors of one launch, at most: their places fill most of the 4 KiB that parameters may have.
pub const MAX_TENSORS: u32 = 64;

/// A tensor of parameters, and what goes with each of its elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorParams {
    /// Device address of the parameters.
    pub parameter: u64,
    /// Device address of their gradients.
    pub gradient: u64,
    /// Device address of the first moments, f32.
    pub moment: u64,
    /// Device address of the second moments, f32.
    pub second_moment: u64,
    /// Device address of the parameters in f32, or 0 where there are none.
    pub master: u64,
    /// Elements.
    pub elements: u64,
    /// The first thread block that works on it, and in bit 32 whether the gradients are f32; otherwise they are of the type of the parameters.
    pub first_block: u64,
}

impl TensorParams {
    /// No tensor.
    pub const NONE: TensorParams =
        TensorParams { parameter: 0, gradient: 0, moment: 0, second_moment: 0, master: 0, elements: 0, first_block: 0 };

    /// The bit of [`first_block`](Self::first_block) that says that gradients are f32.
    pub const WIDE_GRADIENT: u64 = 1 << 32;
}

/// Parameters of a step.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWParams {
    /// The tensors, of which the first [`count`](Self::count) are there.
    pub tensors: [TensorParams; MAX_TENSORS as usize],
    /// Device address of the number of the step, `i32`, or 0: the host has computed the corrections.
    pub step: u64,
    /// Device address of a number that gradients are multiplied with, `f32`, or 0.
    pub gradient_factor: u64,
    /// Device address of the learning rate, `f32`, or 0: `rate` and `decay` have it. Where there is one, both are multiplied with it.
    pub device_rate: u64,
    /// The bits of the two betas, f64.
    pub betas: [u64; 2],
    /// `beta1`, and `1 - beta1`.
    pub moment: [f32; 2],
    /// `beta2`, and `1 - beta2`.
    pub second_moment: [f32; 2],
    /// The learning rate, divided by `1 - beta1^step` where the host knows the step.
    pub rate: f32,
    /// `1 / sqrt(1 - beta2^step)`, where the host knows the step.
    pub root: f32,
    /// Is added to the root of the second moment.
    pub epsilon: f32,
    /// `rate decay`, the part of a parameter that is taken off it: what is left, 1 less that, would have few of its digits.
    pub decay: f32,
    /// Is multiplied with every gradient.
    pub gradient_scale: f32,
    /// Tensors: `1..=MAX_TENSORS`.
    pub count: u32,
    /// None yet.
    pub features: Features<0>,
}

/// One row of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// What a launch needs of it.
    pub entry: Entry,
    /// How elements lie in the registers of a thread block.
    pub tile: RowTile,
    /// Why it is cut so.
    pub reason: &'static str,
}

impl Variant {
    named!();
}

/// Calls `$callback!` with every row: `[type symbol, ..] threads_of_a_thread_block, thread blocks of a multiprocessor, "why";`.
#[macro_export]
macro_rules! for_each_adamw_row {
    ($callback:ident) => {
        $callback! {
            [F16 adamw_f16, Bf16 adamw_bf16, F32 adamw_f32] 256, 4,
                "a vector of parameters a thread, with up to 128 bytes of what goes with it on their way";
        }
    };
}

macro_rules! variants {
    ($([$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {
        &[$($(Variant {
            entry: Entry {
                symbol: stringify!($symbol),
                arch: Arch::Sm80,
                threads: $threads,
                shared_bytes: 0,
                min_ctas: $min_ctas,
                params_bytes: size_of::<AdamWParams>() as u32,
                feature_slots: 0,
                accepts: FeatureSet::NONE,
                cooperative: false,
                max_cluster: 1,
            },
            tile: RowTile { sharing: Sharing::Alone, dtype: DType::$dtype, threads: $threads, row_threads: $threads, vectors: 1, ahead: 0 },
            reason: $reason,
        },)+)*]
    };
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_adamw_row!(variants);

/// The row for parameters of this type.
pub fn find(dtype: DType) -> Option<&'static Variant> {
    VARIANTS.iter().find(|row| row.tile.dtype == dtype)
}

// What every driver takes.
const _: () = assert!(size_of::<AdamWParams>() <= 4096, "parameters of a kernel are 4 KiB at most");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_row() {
        for dtype in DType::ALL {
            let row = find(dtype).expect("a row of the list");
            assert_eq!((row.tile.dtype, Variant::named(row.entry.symbol)), (dtype, row));
        }
    }
}
