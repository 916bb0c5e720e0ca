//! Rotary embedding: pairs of columns, turned by the position of their row.

use super::rows::RowsParams;
use crate::divisor::Divisor;
use crate::dtype::DType;
use crate::entry::{Arch, Entry};
use crate::features::{FeatureSet, Features};

/// Slots of the features.
pub const SLOTS: u32 = 1;

/// What the slots of the features mean. None has a value.
pub mod features {
    /// Pairs are neighbours, columns `2 i` and `2 i + 1`; otherwise `i` and `half + i`.
    pub const INTERLEAVED: u32 = 0;
}

/// Parameters: `(x, y) -> (x cos - sign y sin, sign x sin + y cos)` for each pair of the first `2 half` columns, `[batch, row, head, column]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotaryParams {
    /// What is turned; its strides are those of batch, row and head.
    pub x: RowsParams,
    /// Output: x itself, or another tensor.
    pub out: RowsParams,
    /// Device address of the cosines, contiguous `[positions, half]`.
    pub cos: u64,
    /// Device address of the sines, likewise.
    pub sin: u64,
    /// Device address of the position of each token, `i32 [tokens]`, or 0.
    pub positions: u64,
    /// Device address of the position of the first row of each batch entry or sequence, `i32`, or 0: all have [`offset`](Self::offset).
    pub offsets: u64,
    /// Device address of the first token of each packed sequence, `i32 [sequences]`, or 0: batch entries have rows of their own.
    pub starts: u64,
    /// Rows of all batch entries.
    pub tokens: u32,
    /// Heads of a token.
    pub heads: u32,
    /// Rows of a batch entry.
    pub rows: Divisor,
    /// Threads that share out the heads of a token.
    pub groups: Divisor,
    /// Threads that share out the columns of a head.
    pub units: Divisor,
    /// Of these, the ones that turn pairs; the others copy columns. All, where threads read single elements.
    pub turning_units: u32,
    /// Pairs of a head.
    pub half: u32,
    /// Columns that are written: all of the row, or the turned ones where the output is x.
    pub columns: u32,
    /// Rows of the tables.
    pub position_count: u32,
    /// Position of the first row where no array says it.
    pub offset: u32,
    /// Packed sequences.
    pub sequences: u32,
    /// 1, or -1 for the opposite turn, which is that of the gradient.
    pub sign: f32,
    /// 1 when rows, halves and tables are whole vectors; 0 makes threads read single elements.
    pub aligned: u32,
    /// 1 when cosines and sines are f32; 0: of x's type.
    pub wide_tables: u32,
    /// See [`features`](super::rotary::features).
    pub features: Features<{ SLOTS as usize }>,
}

/// One row of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// What a launch needs of it.
    pub entry: Entry,
    /// Element type of x.
    pub dtype: DType,
    /// Heads of a thread, for all of which it reads cosines and sines once.
    pub heads: u32,
    /// Why it is cut so.
    pub reason: &'static str,
}

impl Variant {
    named!();
}

/// Calls `$callback!` with every row: `heads_of_a_thread [type symbol, ..] threads_of_a_thread_block, thread blocks of a multiprocessor, "why";`.
#[macro_export]
macro_rules! for_each_rotary_row {
    ($callback:ident) => {
        $callback! {
            4 [F16 rotary_f16, Bf16 rotary_bf16, F32 rotary_f32] 128, 5,
                "four heads, of each a vector of either half: 128 bytes of a thread on their way, and cosines and sines read once for them; with a sixth thread block it spills";
        }
    };
}

macro_rules! variants {
    ($($heads:literal [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {
        &[$($(Variant {
            entry: Entry {
                symbol: stringify!($symbol),
                arch: Arch::Sm80,
                threads: $threads,
                shared_bytes: 0,
                min_ctas: $min_ctas,
                params_bytes: size_of::<RotaryParams>() as u32,
                feature_slots: SLOTS,
                accepts: FeatureSet::of(features::INTERLEAVED),
                cooperative: false,
                max_cluster: 1,
            },
            dtype: DType::$dtype,
            heads: $heads,
            reason: $reason,
        },)+)*]
    };
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_rotary_row!(variants);

/// The row for this element type.
pub fn find(dtype: DType) -> Option<&'static Variant> {
    VARIANTS.iter().find(|row| row.dtype == dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_row() {
        for dtype in DType::ALL {
            let row = find(dtype).expect("a row of the list");
            assert_eq!((row.dtype, Variant::named(row.entry.symbol)), (dtype, row));
        }
    }
}
