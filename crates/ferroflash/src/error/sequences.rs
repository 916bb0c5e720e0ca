//! What does not fit together in a call over packed, cached or paged sequences.

use super::names::Operand;

/// What a call over sequences says of them, and why it is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SequencesError {
    /// A tensor of a call over sequences has another number of axes.
    #[error(
        "{tensor} has {found} axes; {accepted} are accepted {}",
        if *.is_packed { "where rows are packed (row, head, dim)" } else { "(batch or page, row, head, dim)" }
    )]
    AxisCount {
        /// The tensor.
        tensor: Operand,
        /// Number of its axes.
        found: usize,
        /// Number that is accepted.
        accepted: usize,
        /// Whether its rows are packed.
        is_packed: bool,
    },
    /// An array of numbers on the device has another length.
    #[error("{what} holds {found} numbers; {expected} are needed for the sequences of this call")]
    IndexCount {
        /// The array.
        what: Operand,
        /// Numbers of it.
        found: usize,
        /// Numbers needed: one for each sequence, or one more.
        expected: usize,
    },
    /// A table of pages has fewer numbers than its sequences need.
    #[error(
        "the table of pages holds {found} numbers; {batch} sequences of {width} pages, {stride} apart, need more, or overlap"
    )]
    PageTable {
        /// Numbers of the table.
        found: usize,
        /// Sequences.
        batch: usize,
        /// Pages of a sequence.
        width: usize,
        /// Numbers from one sequence's to the next one's.
        stride: usize,
    },
    /// Keys and values of a cache have different numbers of entries or pages.
    #[error("{tensor} has {found} entries or pages, {of} has {expected}; they must be equal")]
    EntriesMismatch {
        /// The tensor that differs.
        tensor: Operand,
        /// Its entries.
        found: usize,
        /// The tensor it is compared with.
        of: Operand,
        /// Entries of that.
        expected: usize,
    },
    /// Pages and entries both say where a sequence's keys are.
    #[error(
        "a cache of pages takes no cache entries: the table of pages says where a sequence's keys are; give one of the two"
    )]
    PagesAndEntries,
    /// Tables of cosines and sines that do not fit.
    #[error(
        "{tensor} has shape {shape:?} and strides {strides:?}; contiguous [positions, turned_dims / 2] is accepted, the same for both, with 1 to {} columns", .head_dim / 2
    )]
    RotaryTable {
        /// `cos` or `sin`.
        tensor: Operand,
        /// Its shape.
        shape: Vec<usize>,
        /// Its strides.
        strides: Vec<usize>,
        /// Columns of q and k.
        head_dim: usize,
    },
    /// More sequences than the statistics of their rows can be counted for.
    #[error(
        "{found} packed sequences with {rows} rows of q are not accepted; of so many rows, gradients are computed for up to {limit}"
    )]
    TooMany {
        /// Sequences.
        found: usize,
        /// Rows of q, over all of them.
        rows: usize,
        /// Most sequences.
        limit: usize,
    },
    /// A split of the keys that is no multiple of what kernels visit at a time, or more splits than are merged.
    #[error(
        "{found} are not accepted: splits of a multiple of 64 keys, or 1 to {most} splits, are; the keys would need {needed}{}",
        if *.of_all { ", counted over all packed keys: `PackedRows::with_longest` says how many the longest sequence has" } else { "" }
    )]
    Splits {
        /// What was asked for.
        found: String,
        /// Splits that it would make.
        needed: usize,
        /// Most splits.
        most: u32,
        /// Whether they are counted over all packed keys, because the longest sequence is not known.
        of_all: bool,
    },
}
