//! What is wrong with a program on scores, or with its tensors.

use super::names::Operand;

/// Why a [`ScoreProgram`](crate::score::ScoreProgram) cannot be written, bound or run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// The program is too long.
    #[error(
        "the program has more than {limit} operations, which is the limit: each is there once for every score of a thread"
    )]
    TooManyOperations {
        /// Most operations.
        limit: usize,
    },
    /// One name for two tensors.
    #[error(
        "the program reads {name} with different numbers of axes, or as numbers and as whole numbers; a name stands for one tensor"
    )]
    DeclaredTwice {
        /// The name.
        name: String,
    },
    /// A whole number is divided by 0 or less.
    #[error("the program divides by {found}; whole numbers are divided by constants above 0")]
    Divisor {
        /// The divisor.
        found: i32,
    },
    /// A tensor was not given.
    #[error("the program reads {name}, which is not bound")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A tensor that the program does not read.
    #[error("the program does not read {name}; it reads {accepted:?}")]
    Unknown {
        /// The tensor.
        name: String,
        /// What the program reads.
        accepted: Vec<String>,
    },
    /// A tensor was given twice.
    #[error("{name} is bound twice")]
    GivenTwice {
        /// The tensor.
        name: String,
    },
    /// A tensor with another number of axes.
    #[error("{name} has {found} axes; the program reads it with {accepted}")]
    Rank {
        /// The tensor.
        name: String,
        /// Its axes.
        found: usize,
        /// The indices that the program gives.
        accepted: usize,
    },
    /// Whole numbers for numbers, or the reverse.
    #[error("{name} holds {found}; the program reads {accepted}")]
    Kind {
        /// The tensor.
        name: String,
        /// What it holds.
        found: &'static str,
        /// What the program reads.
        accepted: &'static str,
    },
    /// A tensor on another device.
    #[error("{name} is on device {found}, other tensors are on {expected}; they must be on the same device")]
    Device {
        /// The tensor.
        name: String,
        /// Its device.
        found: String,
        /// That of the others.
        expected: String,
    },
    /// A call writes to memory that its program reads.
    #[error("{output} overlaps {name} in memory, which the program reads; outputs need memory of their own")]
    OutputOverlaps {
        /// What the call writes: an output, a gradient, or k or v of a cache that rows are appended to.
        output: Operand,
        /// The tensor.
        name: String,
    },
    /// An axis that 32 bits do not hold.
    #[error("axis {axis} of {name} has extent {extent} and stride {stride}; both must fit 32 bits")]
    AxisTooLarge {
        /// The tensor.
        name: String,
        /// The axis.
        axis: usize,
        /// Its extent.
        extent: usize,
        /// Its stride in elements.
        stride: usize,
    },
    /// A tensor without elements.
    #[error("axis {axis} of {name} has extent 0; programs read tensors of 1 element or more")]
    EmptyAxis {
        /// The tensor.
        name: String,
        /// The axis.
        axis: usize,
    },
    /// More tensors and axes than the parameters of kernels hold.
    #[error("the program's tensors and their axes take {found} words, one each; {limit} are accepted")]
    TooManyWords {
        /// Tensors and axes.
        found: usize,
        /// Most of them.
        limit: usize,
    },
    /// Blocks of a program that hides no key without a look at its score.
    #[error(
        "{name} hides no key whatever its score is, so that there is no block to pass over; programs that give minus infinity where a condition \
         on the place holds are accepted"
    )]
    HidesNothing {
        /// The program.
        name: String,
    },
    /// More blocks than kernels count.
    #[error("{name} would take {found} pieces; fewer than {limit} are accepted")]
    TooManyBlocks {
        /// The program, or its lists.
        name: String,
        /// Pairs of units of 64 rows and 16 keys, or words of the lists.
        found: u128,
        /// So many, or more, are too many.
        limit: u128,
    },
    /// A call on other scores than those that the blocks were found for.
    #[error(
        "the blocks of {name} are those of scores {expected:?}, [batch, heads, q_rows, kv_rows]; the call has {found:?}"
    )]
    BlocksShape {
        /// The program.
        name: String,
        /// Scores of the call.
        found: [usize; 4],
        /// Scores that the blocks were found for.
        expected: [usize; 4],
    },
    /// Blocks that were found for another program.
    #[error(
        "the blocks were found for a program that hides other keys than {name}; those of the same mask are accepted, and those of a mask that a \
         program has beside a function of scores"
    )]
    BlocksOfAnother {
        /// The program.
        name: String,
    },
    /// Blocks for a call that does not pass over any.
    #[error(
        "the blocks of {name} are for sequences of equal length; a program without blocks is accepted over {found} ones"
    )]
    BlocksOfSequences {
        /// The program.
        name: String,
        /// `packed`, `cached` or `paged`.
        found: &'static str,
    },
}
