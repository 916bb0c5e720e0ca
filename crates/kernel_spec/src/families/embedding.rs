//! Embedding tables: rows by number, and gradients of the table, for which numbers are sorted.

use super::rows::{Extents, RowTile, RowVariant, RowsParams, Sharing};
use crate::dtype::DType;
use crate::features::{FeatureSet, Features};
use crate::shared::Carve;

/// Bits that a pass of the sort takes, from the lowest on.
pub const DIGIT_BITS: u32 = 8;

/// Values of a digit, each of which is that of one thread.
pub const BINS: u32 = 1 << DIGIT_BITS;

/// Thread blocks of a pass of the sort, at most: each of them adds up what those before it have counted.
pub const MAX_SORT_BLOCKS: u32 = 128;

/// Sorted tokens that are summed up by themselves where all of them name one row of the table: whoever sums up a row that many tokens name reads this many
/// at most on either side, and such sums between.
pub const RUN: u32 = 128;

/// What a row computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The rows of the table that tokens name.
    Gather,
    /// How many numbers of each thread block have each value of a digit.
    Count,
    /// Numbers and their tokens in the order of a digit, and otherwise in the order in which they were.
    Place,
    /// Where the tokens of each row of the table start.
    Bounds,
    /// Sums of runs of tokens that name one row.
    Runs,
    /// The gradient of the table.
    Sum,
}

/// Parameters of [`Pass::Gather`]: `out[token] = scale table[ids[token]]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatherParams {
    /// The table; its rows are along the last of the three axes.
    pub table: RowsParams,
    /// Output.
    pub out: RowsParams,
    /// Device address of the numbers, `i32 [rows of the output]`.
    pub ids: u64,
    /// The rows of the output.
    pub extents: Extents,
    /// Rows of the table.
    pub vocabulary: u32,
    /// Is multiplied with every element.
    pub scale: f32,
    /// 1 when rows are whole vectors; 0 makes threads read single elements.
    pub aligned: u32,
    /// 0: the features start at a multiple of 8.
    pub unused: u32,
    /// None yet.
    pub features: Features<0>,
}

/// Parameters of [`Pass::Count`] and [`Pass::Place`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SortParams {
    /// Device address of the numbers, `i32 [count]`: those of the call, or what the pass before has written.
    pub keys: u64,
    /// Device address of their tokens, `u32 [count]`, or 0: a number's token is its place.
    pub tokens: u64,
    /// Device address of the numbers in order.
    pub sorted_keys: u64,
    /// Device address of their tokens.
    pub sorted_tokens: u64,
    /// Device address of what thread blocks have counted, `u32 [blocks, BINS]`.
    pub counts: u64,
    /// Numbers.
    pub count: u32,
    /// Thread blocks.
    pub blocks: u32,
    /// Numbers of each of them, a multiple of its threads.
    pub share: u32,
    /// Bits below the digit.
    pub shift: u32,
    /// Rows of the table.
    pub vocabulary: u32,
    /// 0: the features start at a multiple of 8.
    pub unused: u32,
    /// None yet.
    pub features: Features<0>,
}

/// Parameters of [`Pass::Bounds`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundsParams {
    /// Device address of the sorted numbers.
    pub keys: u64,
    /// Device address of the first place of each row of the table among them, `u32 [vocabulary + 1]`.
    pub starts: u64,
    /// Numbers.
    pub count: u32,
    /// Rows of the table.
    pub vocabulary: u32,
    /// None yet.
    pub features: Features<0>,
}

/// Parameters of [`Pass::Runs`] and [`Pass::Sum`]: `dtable[id] = scale (sum of dout over the tokens that name id) + dtable[id]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SumParams {
    /// Gradient with respect to the output.
    pub dout: RowsParams,
    /// Gradient with respect to the table; its rows are along the last of the three axes.
    pub dtable: RowsParams,
    /// Device address of the sorted numbers.
    pub keys: u64,
    /// Device address of their tokens.
    pub tokens: u64,
    /// Device address of the first place of each row among them.
    pub starts: u64,
    /// Device address of the sums of runs, `f32 [runs, columns]`, rows of whole vectors.
    pub runs: u64,
    /// The rows of dout.
    pub extents: Extents,
    /// Rows of the table.
    pub vocabulary: u32,
    /// The row of the table that gets nothing, or a number behind its last.
    pub padding: u32,
    /// Is multiplied with every sum.
    pub scale: f32,
    /// 1 to add to what the gradient of the table holds; 0 to take its place.
    pub accumulate: u32,
    /// 1 when rows are whole vectors; 0 makes threads read single elements.
    pub aligned: u32,
    /// 1 when the gradient of the table is f32; 0: of the type of dout.
    pub wide_table: u32,
    /// None yet.
    pub features: Features<0>,
}

/// One row of the list. Its tile: how rows lie in the registers of threads; passes over numbers have none, and a row a thread.
pub type Variant = RowVariant<Pass>;

impl Variant {
    named!();

    /// Columns of the longest row that it reads in one go; a longer one passes by in tiles.
    pub const fn columns(&self) -> u32 {
        self.tile.columns()
    }
}

/// How a thread block of a pass over numbers divides up its shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// How many numbers have each value of the digit: `u32 [BINS]`, of the thread block or of all.
    pub bins: u32,
    /// The same of each warp, and then where its next number of that value goes: `u32 [warps][BINS]`. [`Pass::Place`] alone.
    pub warps: u32,
    /// Bytes of all.
    pub total: u32,
}

impl Memory {
    /// The memory of a row of the list.
    pub const fn of(pass: Pass, threads: u32) -> Memory {
        let mut carve = Carve::new();
        let bins = if matches!(pass, Pass::Count | Pass::Place) { carve.take(4 * BINS, 16) } else { 0 };
        let warps = if matches!(pass, Pass::Place) { carve.take(4 * BINS * (threads / 32), 16) } else { 0 };
        Memory { bins, warps, total: carve.total() }
    }
}

/// Calls `$callback!` with every row:
/// `Pass threads_of_a_row x vectors [type symbol, ..] threads_of_a_thread_block, thread blocks of a multiprocessor, "why";`.
///
/// Passes over numbers have one row, whose type nobody looks at.
#[macro_export]
macro_rules! for_each_embedding_row {
    ($callback:ident) => {
        $callback! {
            Gather 16 x 1 [F16 embedding_f16_16x1, Bf16 embedding_bf16_16x1, F32 embedding_f32_16x1] 128, 8,
                "256 bytes, the row of a small table: two a warp";
            Gather 32 x 4 [F16 embedding_f16_32x4, Bf16 embedding_bf16_32x4, F32 embedding_f32_32x4] 128, 8,
                "a warp a row, 64 bytes a thread on their way; longer rows pass by in tiles of 2 KiB";
            Count 1 x 1 [F32 embedding_count] 256, 4,
                "a thread a value of a digit of eight bits";
            Place 1 x 1 [F32 embedding_place] 256, 4,
                "as the count; a warp walks its own numbers in order, so that equal ones stay in theirs";
            Bounds 1 x 1 [F32 embedding_bounds] 256, 4,
                "a thread a row of the table finds its first token by halving";
            Runs 16 x 1 [F16 embedding_runs_f16_16x1, Bf16 embedding_runs_bf16_16x1, F32 embedding_runs_f32_16x1] 128, 6,
                "as the sum";
            Runs 128 x 1 [F16 embedding_runs_f16_128x1, Bf16 embedding_runs_bf16_128x1, F32 embedding_runs_f32_128x1] 128, 6,
                "as the sum";
            Sum 16 x 1 [F16 embedding_sum_f16_16x1, Bf16 embedding_sum_bf16_16x1, F32 embedding_sum_f32_16x1] 128, 6,
                "256 bytes: eight rows of the table a thread block";
            Sum 128 x 1 [F16 embedding_sum_f16_128x1, Bf16 embedding_sum_bf16_128x1, F32 embedding_sum_f32_128x1] 128, 6,
                "a vector a thread, of four tokens at a time; longer rows pass by in tiles of 2 KiB";
        }
    };
}

macro_rules! variants {
    ($($pass:ident $row_threads:literal x $vectors:literal [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {
        &[$($(variant(Pass::$pass, [$row_threads, $vectors], DType::$dtype, stringify!($symbol), [$threads, $min_ctas], $reason),)+)*]
    };
}

const fn variant(
    pass: Pass,
    [row_threads, vectors]: [u32; 2],
    dtype: DType,
    symbol: &'static str,
    [threads, min_ctas]: [u32; 2],
    reason: &'static str,
) -> Variant {
    assert!(!matches!(pass, Pass::Count | Pass::Place) || threads == BINS, "a thread a value of a digit");
    let params_bytes = match pass {
        Pass::Gather => size_of::<GatherParams>(),
        Pass::Count | Pass::Place => size_of::<SortParams>(),
        Pass::Bounds => size_of::<BoundsParams>(),
        Pass::Runs | Pass::Sum => size_of::<SumParams>(),
    };
    // Tiles pass by where a row is longer than one.
    let tile = RowTile { sharing: Sharing::Again, dtype, threads, row_threads, vectors, ahead: 0 };
    let shared_bytes = Memory::of(pass, threads).total;
    let entry = tile.entry(symbol, [min_ctas, shared_bytes], params_bytes, 0, FeatureSet::NONE);
    Variant { entry, pass, tile, reason }
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_embedding_row!(variants);

/// The row for this pass over rows of so many columns of this type: the first whose tile holds them, or the last.
pub fn find(pass: Pass, dtype: DType, columns: u32) -> Option<&'static Variant> {
    let rows = || VARIANTS.iter().filter(|row| row.pass == pass && row.tile.dtype == dtype);
    rows().find(|row| columns <= row.columns()).or_else(|| rows().next_back())
}

/// The row for a pass over numbers.
pub fn find_numbers(pass: Pass) -> Option<&'static Variant> {
    VARIANTS.iter().find(|row| row.pass == pass)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_taken() {
        for row in VARIANTS {
            let found = match row.pass {
                Pass::Count | Pass::Place | Pass::Bounds => find_numbers(row.pass),
                _ => find(row.pass, row.tile.dtype, row.columns()),
            };
            assert_eq!(found, Some(row));
            assert_eq!(Variant::named(row.entry.symbol), row);
        }
        assert_eq!(find(Pass::Sum, DType::Bf16, 1 << 20).map(|row| row.columns()), Some(1024));
    }
}
