//! What rules a kernel, or all of them, out.

use super::names::{Operand, Version};
use kernel_spec::DType;

/// What was asked for and is not done: by the kernel that was asked for, or by any. Every message says what was given and what is
/// accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// Gradients through a softcap and a program on scores.
    #[error(
        "gradients through a softcap and the program {program}; one of the two is accepted, and a program may cap scores itself, with tanh"
    )]
    CappedProgram {
        /// The name of the program.
        program: String,
    },
    /// Gradients through a softcap and dropout, by kernels whose registers do not hold both.
    #[error(
        "gradients through a softcap and dropout by the portable kernels; one of the two is accepted, and both by the kernel naive"
    )]
    CappedDropout,
    /// Random numbers that only a device can read.
    #[error("seed and offset of dropout are on the device; numbers are accepted here")]
    DropoutOnDevice,
    /// Dropout over sequences whose kernels have none.
    #[error("dropout over {found} sequences; {accepted} ones are accepted with it")]
    DropoutOverSequences {
        /// `packed`, `cached` or `paged`.
        found: &'static str,
        /// `uniform`, or several kinds.
        accepted: &'static str,
    },
    /// The device lacks the instructions.
    #[error("the device has compute capability {found}; {accepted} alone is accepted")]
    ComputeCapability {
        /// Compute capability of the device, or what the emulator runs.
        found: Version,
        /// The one that is accepted.
        accepted: Version,
    },
    /// The driver cannot compile the PTX.
    #[error("the driver supports CUDA {found}; at least CUDA {least} is needed")]
    Driver {
        /// CUDA version of the driver.
        found: Version,
        /// Least CUDA version.
        least: Version,
    },
    /// No product of the element type in full precision.
    #[error("the tensors hold {found}; f16 and bf16 are accepted")]
    DType {
        /// Element type of the tensors.
        found: DType,
    },
    /// More columns than the kernel is compiled for.
    #[error("the head dim is {found}; up to {largest} is accepted")]
    HeadDim {
        /// Head dim of the tensors.
        found: usize,
        /// Largest head dim.
        largest: usize,
    },
    /// There is nothing to describe to the copy engine.
    #[error("k and v have no rows; at least 1 is needed")]
    NoKeys,
    /// More tiles than a schedule counts.
    #[error("the problem has {found} blocks of rows; at most {limit} are accepted")]
    TooManyTiles {
        /// Blocks of query rows, over all heads.
        found: u128,
        /// Most blocks.
        limit: u32,
    },
    /// Columns that do not leave in whole pieces of 16 bytes.
    #[error("the output has {found} columns; multiples of 8 are accepted")]
    OutputColumns {
        /// Columns of the output.
        found: usize,
    },
    /// Hopper's kernel is switched off.
    #[error("the options have Hopper's kernel switched off")]
    SwitchedOff,
    /// There is nothing to describe to the copy engine.
    #[error("x has no rows; at least 1 is needed")]
    NoRows,
    /// A tensor starts at an address that the copy engine does not take.
    #[error("{tensor} starts at address {address:#x}; multiples of 16 bytes are accepted")]
    Address {
        /// The tensor.
        tensor: Operand,
        /// Its address.
        address: u64,
    },
    /// A stride that the copy engine does not take. The stride of an axis of extent 1 plays no part.
    #[error(
        "the {axis} stride of {tensor} is {bytes} bytes; multiples of 16 bytes from 16 to below 2^40 are accepted (0, which \
         repeats memory, is none of them)"
    )]
    Stride {
        /// The tensor.
        tensor: Operand,
        /// `batch`, `row` or `head`.
        axis: &'static str,
        /// The stride in bytes.
        bytes: u64,
    },
    /// Rows of sequences that are further apart than the copy engine can step over them twice.
    #[error("the rows of {tensor} are {bytes} bytes apart; fewer than {limit} are accepted over sequences")]
    RowBytes {
        /// The tensor.
        tensor: Operand,
        /// Bytes from one row to the next.
        bytes: u64,
        /// The first number that is not accepted.
        limit: u64,
    },
    /// Sequences whose rows are not where a kernel or a call looks for them.
    #[error("the sequences are {found}; {accepted} ones are accepted")]
    Sequences {
        /// `packed`, `cached` or `paged`.
        found: &'static str,
        /// `uniform`, or several kinds.
        accepted: &'static str,
    },
    /// Keys that are to be split, where a kernel takes them whole.
    #[error("the keys are to be split as {found}; {accepted} and `Splits::Auto` are accepted")]
    Splits {
        /// What was asked for.
        found: String,
        /// Splits that the kernel makes.
        accepted: String,
    },
    /// Pages whose rows the copy engine does not take.
    #[error("pages have {found} rows; multiples of {multiple} are accepted")]
    PageRows {
        /// Rows of a page.
        found: usize,
        /// What they have to be a multiple of.
        multiple: usize,
    },
    /// Sequences in pages that do not start at the first row of their first page.
    #[error(
        "sequences in pages have a first row of their own (left padding); those that start with their first page are accepted"
    )]
    LeftPadding,
    /// Batch entries, or pages, that are no whole number of rows apart.
    #[error(
        "batch entries of {tensor} are {entry_stride} elements apart, and its rows {row_stride}; entries of several rows, a whole number \
         of rows apart, are accepted"
    )]
    EntryStride {
        /// The tensor.
        tensor: Operand,
        /// Elements from one batch entry, or page, to the next.
        entry_stride: usize,
        /// Elements from one row to the next.
        row_stride: usize,
    },
    /// Batch entries that are not as many rows apart in two tensors.
    #[error(
        "batch entries of {tensor} are {found} rows apart, those of {other} {accepted}; equal numbers are accepted"
    )]
    EntryRows {
        /// The tensor.
        tensor: Operand,
        /// Rows from one batch entry, or page, to the next.
        found: u32,
        /// The other tensor.
        other: Operand,
        /// Its rows.
        accepted: u32,
    },
    /// More rows than coordinates of the copy engine count, or, of all heads and splits together, the kernel.
    #[error("{tensor} spans {found} rows; fewer than {limit} are accepted")]
    TooManyRows {
        /// The tensor.
        tensor: Operand,
        /// Rows from its first to its last, or of all heads and splits.
        found: u64,
        /// So many, or more, are too many.
        limit: u64,
    },
    /// A row for packed sequences or caches.
    #[error(
        "{symbol} is for packed sequences and caches; rows of its kernel for sequences of equal length are accepted"
    )]
    Row {
        /// Entry point.
        symbol: &'static str,
    },
    /// A row that visits listed blocks alone, for a call without lists.
    #[error(
        "{symbol} visits the blocks of keys that a program shows; calls of a program with blocks (`BoundProgram::with_blocks`) are accepted, where \
         it is `_masked` those of one that only hides keys"
    )]
    NoBlocks {
        /// Entry point.
        symbol: &'static str,
    },
    /// Values of another head dim than queries and keys.
    #[error("v and out have {dim_v} dims, q and k {dim_qk}; equal numbers are accepted")]
    ValueDim {
        /// Columns of v and out.
        dim_v: usize,
        /// Columns of q and k.
        dim_qk: usize,
    },
    /// An output of another element type than the inputs.
    #[error("out holds {found}, the inputs {accepted}; equal types are accepted")]
    OutDType {
        /// Element type of out.
        found: DType,
        /// Element type of the inputs.
        accepted: DType,
    },
    /// No compiled entry computes the feature on this problem.
    #[error("no compiled entry accepts {feature} for {dtype} and head dim {head_dim}")]
    Feature {
        /// The feature, such as `softcap`.
        feature: &'static str,
        /// Element type of the tensors.
        dtype: DType,
        /// Head dim of the tensors.
        head_dim: usize,
    },
}
