//! Partial results of attention, put together: outputs of the same rows over disjoint keys, with their log-sum-exps.

use super::forward::TensorParams;
use crate::divisor::Divisor;
use crate::dtype::DType;
use crate::entry::{Arch, Entry};
use crate::features::{FeatureSet, Features};

/// Partial results that one launch puts together, at most: their places fill most of the 4 KiB that parameters may have.
pub const MAX_PARTS: u32 = 64;

/// Threads of a thread block.
pub const THREADS: u32 = 256;

/// Columns of a thread.
pub const COLUMNS: u32 = 4;

/// One partial result.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartParams {
    /// Output over some of the keys, `[batch, row, head, dim]`.
    pub out: TensorParams,
    /// Device address of its log-sum-exp, contiguous `f32 [batch, head, row]`.
    pub lse: u64,
}

/// Parameters of a merge: `m = max lse_i`, `lse = m + ln sum e^(lse_i - m)`, `out = sum e^(lse_i - lse) out_i`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergeParams {
    /// The partial results, of which the first [`count`](Self::count) are there.
    pub parts: [PartParams; MAX_PARTS as usize],
    /// Output, `[batch, row, head, dim]`.
    pub out: TensorParams,
    /// Device address of the log-sum-exp, contiguous `f32 [batch, head, row]`, or 0 when it is not wanted.
    pub lse: u64,
    /// Partial results: `1..=MAX_PARTS`.
    pub count: u32,
    /// Rows of all heads and batch entries: below 2^31.
    pub all_rows: u32,
    /// Rows of a head.
    pub rows: Divisor,
    /// Heads.
    pub heads: Divisor,
    /// Threads of a row: a [`COLUMNS`]th of its columns.
    pub row_threads: Divisor,
    /// Rows of a thread block: as many as its threads are enough for.
    pub block_rows: u32,
    /// 1 when all four columns of a thread are at a multiple of their bytes, in every partial result; 0 makes it read single elements.
    pub aligned: u32,
    /// The same of out.
    pub out_aligned: u32,
    /// None yet.
    pub features: Features<0>,
}

/// One row of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// What a launch needs of it.
    pub entry: Entry,
    /// Element type of the partial results.
    pub parts: DType,
    /// Element type of the output.
    pub out: DType,
}

/// Calls `$callback!` with every row: `symbol type_of_parts type_of_out;`. Partial results are of the output's type, or one of the two is f32.
#[macro_export]
macro_rules! for_each_merge_row {
    ($callback:ident) => {
        $callback! {
            merge_parts_f16 F16 F16;
            merge_parts_bf16 Bf16 Bf16;
            merge_parts_f32 F32 F32;
            merge_parts_f32_f16 F32 F16;
            merge_parts_f32_bf16 F32 Bf16;
            merge_parts_f16_f32 F16 F32;
            merge_parts_bf16_f32 Bf16 F32;
        }
    };
}

macro_rules! variants {
    ($($symbol:ident $parts:ident $out:ident;)*) => {
        &[$(Variant {
            entry: Entry {
                symbol: stringify!($symbol),
                arch: Arch::Sm80,
                threads: THREADS,
                shared_bytes: 0,
                min_ctas: 4,
                params_bytes: size_of::<MergeParams>() as u32,
                feature_slots: 0,
                accepts: FeatureSet::NONE,
                cooperative: false,
                max_cluster: 1,
            },
            parts: DType::$parts,
            out: DType::$out,
        },)*]
    };
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_merge_row!(variants);

/// The row for these element types, if there is one.
pub fn find(parts: DType, out: DType) -> Option<&'static Variant> {
    VARIANTS.iter().find(|v| v.parts == parts && v.out == out)
}

// What every driver takes.
const _: () = assert!(size_of::<MergeParams>() <= 4096, "parameters of a kernel are 4 KiB at most");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_goes_into_itself_and_into_f32_and_back() {
        for parts in DType::ALL {
            for out in DType::ALL {
                let expected = parts == out || parts == DType::F32 || out == DType::F32;
                assert_eq!(find(parts, out).is_some(), expected, "{parts} {out}");
            }
        }
    }
}
